"""Laws built from laws: independent blocks of coordinates, and a law embedded in a larger space."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    Analytic,
    check_analytic,
    check_batch,
    check_count,
    check_kind,
    randn_like,
    shown,
)
from .covariance import as_parameter, coefficients


def _flat(law: Any, name: str) -> int:
    """Return D of a law on R^D."""
    check_analytic(law, name)
    if len(law.event_shape) != 1:
        raise ValueError(f"{name} must have event shape (D,), got {tuple(law.event_shape)}")
    return law.event_shape[0]


@dataclass(frozen=True, eq=False)
class Product:
    """The law of independent blocks of coordinates, (X_1, …, X_m): a torus is a product of circles.

    Its score consists of the scores of the blocks. Closed under noising, which acts on every
    block. It has a density if every block has one.

    Arguments:
        laws: The laws of the blocks, each with events `(D_i,)`.

    Raises:
        ValueError: For an empty list, or an object that is not such a law.
    """

    laws: Sequence[Analytic]

    def __post_init__(self) -> None:
        check_kind(self.laws, "laws", Sequence, "a sequence of analytic laws")
        object.__setattr__(self, "laws", tuple(self.laws))
        check_count(len(self.laws), "the number of laws")
        for law in self.laws:
            _flat(law, "each of laws")

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one draw, `(D_1 + … + D_m,)`."""
        return torch.Size([sum(self._sizes)])

    @property
    def _sizes(self) -> list[int]:
        return [law.event_shape[0] for law in self.laws]

    def _parts(self, x: Tensor, name: str = "x") -> list[tuple[Any, Tensor]]:
        check_batch(x, self.event_shape, name)
        return list(zip(self.laws, x.split(self._sizes, dim=1), strict=True))

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x), the sum over blocks."""
        return torch.stack([law.log_prob(y) for law, y in self._parts(x)]).sum(0)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x)."""
        return torch.cat([law.score(y) for law, y in self._parts(x)], 1)

    def hessian(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D D"]:
        """Return ∇² log p(x), block by block."""
        return _blocks([law.hessian(y) for law, y in self._parts(x)])

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points."""
        return torch.cat([law.sample(n, generator=generator) for law in self.laws], 1)

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> Product:
        """Return the law of α X + σ Z; α, σ `()` or one for each sample `(B,)`."""
        return Product([law.noised(alpha, sigma) for law in self.laws])

    def posterior_mean(
        self, x_t: Float[Tensor, "batch D"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch D"]:
        """Return E[X | α X + σ Z = x_t]."""
        parts = self._parts(x_t, "x_t")
        return torch.cat([law.posterior_mean(y, alpha, sigma) for law, y in parts], 1)

    def posterior_cov(
        self, x_t: Float[Tensor, "batch D"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch D D"]:
        """Return Cov[X | α X + σ Z = x_t], block by block."""
        parts = self._parts(x_t, "x_t")
        return _blocks([law.posterior_cov(y, alpha, sigma) for law, y in parts])


def _blocks(matrices: list[Tensor]) -> Tensor:
    """Return block-diagonal matrices from batches of blocks."""
    sizes, rows = [m.shape[1] for m in matrices], []
    for i, m in enumerate(matrices):
        left, right = (
            m.new_zeros(len(m), sizes[i], sum(part)) for part in (sizes[:i], sizes[i + 1 :])
        )
        rows.append(torch.cat([left, m, right], 2))
    return torch.cat(rows, 1)


@dataclass(frozen=True, eq=False)
class Embedded:
    r"""A law on R^m embedded in R^D by an isometry: b + U X + σ (I − U Uᵀ) Z.

    .. math::
        s(x) = U s_X(y) - \frac{x - b - U y}{σ^2}, \qquad y = U^\top (x - b)

    Closed under noising. With σ = 0 and D > m it has neither density nor score.

    Arguments:
        law: The law of X, events `(m,)`.
        basis: U, `(D, m)` with orthonormal columns; or just D, to append coordinates that are 0.
        offset: b, `(D,)`, 0 by default.
        sigma: Noise in the directions orthogonal to the subspace.

    Raises:
        ValueError: For shapes that do not fit, or columns that are not orthonormal.
    """

    law: Analytic
    basis: Tensor | int
    offset: Tensor | None = None
    sigma: Tensor | float = 0.0

    def __post_init__(self) -> None:
        m, U = _flat(self.law, "law"), self.basis
        if not isinstance(U, Tensor):
            check_count(U, "basis", m)
            U = torch.eye(U, m, dtype=torch.float64)
        U = as_parameter(U, "basis")
        if U.ndim != 2 or U.shape[1] != m or U.shape[0] < m:
            raise ValueError(f"basis must have shape (D, {m}) with D >= {m}, got {tuple(U.shape)}")
        off = float((U.mT @ U - torch.eye(m).to(U)).abs().max())
        if not off <= 100 * m * torch.finfo(U.dtype).eps:
            raise ValueError(
                f"the columns of basis must be orthonormal, UᵀU is off by {off:.2g}; use Q from "
                "torch.linalg.qr(basis), or AffineSubspace, which accepts any basis"
            )
        b = U.new_zeros(len(U)) if self.offset is None else as_parameter(self.offset, "offset")
        if b.ndim not in (1, 2) or b.shape[-1] != len(U):
            raise ValueError(f"offset must have shape ({len(U)},), got {tuple(b.shape)}")
        sigma = as_parameter(self.sigma, "sigma").to(U.device)
        if sigma.ndim > 1 or bool((sigma < 0).any()):
            raise ValueError(f"sigma must be at least 0, () or (B,), got {shown(self.sigma)}")
        for name, value in (("basis", U), ("offset", b), ("sigma", sigma)):
            object.__setattr__(self, name, value)

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one draw, `(D,)`."""
        return torch.Size([len(self._U)])

    @property
    def _U(self) -> Tensor:
        assert isinstance(self.basis, Tensor)
        return self.basis

    @property
    def _b(self) -> Tensor:
        assert isinstance(self.offset, Tensor)
        return self.offset

    @property
    def _sigma(self) -> Tensor:
        assert isinstance(self.sigma, Tensor)
        return self.sigma

    def _split(self, x: Tensor, name: str = "x") -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Check x; return y = Uᵀ(x − b), what is left of x, U, and σ as a column."""
        check_batch(x, self.event_shape, name)
        if self._sigma.ndim and len(self._sigma) != len(x):
            raise ValueError(f"this law was noised for {len(self._sigma)} samples, got {len(x)}")
        U, sigma = self._U.to(x), self._sigma.to(x).unsqueeze(-1)
        if U.shape[0] == U.shape[1]:
            sigma = torch.ones_like(sigma)  # no direction is left for it
        elif not bool((sigma > 0).all()):
            raise ValueError(
                f"a law on {U.shape[1]} of {U.shape[0]} dimensions has no density and no score "
                "without noise; use .noised(alpha, sigma) with sigma > 0"
            )
        rest = x - self._b.to(x)
        y = rest @ U
        return y, rest - y @ U.mT, U, sigma

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x)."""
        y, off, U, sigma = self._split(x)
        norm = (U.shape[0] - U.shape[1]) * (sigma.log() + 0.5 * math.log(2 * math.pi)).squeeze(-1)
        return self.law.log_prob(y) - 0.5 * (off / sigma).square().sum(1) - norm

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x)."""
        y, off, U, sigma = self._split(x)
        return self.law.score(y) @ U.mT - off / sigma / sigma

    def _matrix(self, inside: Tensor, off: Tensor, U: Tensor) -> Tensor:
        """Return U C Uᵀ + v (I − U Uᵀ) for C `(B, m, m)` and v `(B | 1, 1, 1)`."""
        return U @ inside @ U.mT + off * (torch.eye(len(U)).to(U) - U @ U.mT)

    def hessian(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D D"]:
        """Return ∇² log p(x)."""
        y, _, U, sigma = self._split(x)
        law: Any = self.law
        return self._matrix(law.hessian(y), -1 / sigma.reshape(-1, 1, 1).square(), U)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points."""
        if self._sigma.ndim:
            raise ValueError("only a law noised with α and σ of shape () can be sampled, not (B,)")
        check_count(n, "n")
        x = self.law.sample(n, generator=generator)
        U, b = self._U.to(x), self._b.to(x)
        x = b + x @ U.mT
        if not self._sigma > 0:
            return x
        z = randn_like(x, generator)
        return x + self._sigma.to(x) * (z - (z @ U) @ U.mT)

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> Embedded:
        """Return the law of α X + σ Z; α, σ `()` or one for each sample `(B,)`."""
        a, b = coefficients(alpha, sigma, self._U)
        spread = (a.square() * self._sigma.to(a).square() + b.square()).sqrt()
        inside = self.law.noised(alpha, sigma)
        return Embedded(inside, self._U, a.unsqueeze(-1) * self._b.to(a), spread)

    def posterior_mean(
        self, x_t: Float[Tensor, "batch D"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch D"]:
        """Return E[X | α X + σ Z = x_t]."""
        y, off, U, total = self.noised(alpha, sigma)._split(x_t, "x_t")
        a = coefficients(alpha, sigma, x_t)[0].unsqueeze(-1)
        own = self._sigma.to(x_t).unsqueeze(-1)
        inside = self.law.posterior_mean(y, alpha, sigma) @ U.mT
        return self._b.to(x_t) + inside + a * (own / total).square() * off

    def posterior_cov(
        self, x_t: Float[Tensor, "batch D"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch D D"]:
        """Return Cov[X | α X + σ Z = x_t]."""
        y, _, U, total = self.noised(alpha, sigma)._split(x_t, "x_t")
        b = coefficients(alpha, sigma, x_t)[1].unsqueeze(-1)
        own = self._sigma.to(x_t).unsqueeze(-1)
        law: Any = self.law
        outside = (own * b / total).square().reshape(-1, 1, 1)
        return self._matrix(law.posterior_cov(y, alpha, sigma), outside, U)
