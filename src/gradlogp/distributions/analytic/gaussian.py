r"""The Gaussian N(μ, S): score, noising and posterior in closed form.

With P = S⁻¹ the score is s(x) = −P (x − μ), the Hessian of log p is −P, and α X + σ Z is
N(α μ, α² S + σ² I).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import check_batch, check_count, randn_like
from .covariance import (
    Covariance,
    as_parameter,
    check_index,
    coefficients,
    conditional,
    constant,
    covariance,
    vanishes,
)


class _Constants(NamedTuple):
    """μ, −P = −S⁻¹ in the eigenbasis of S, and log det(2 π S), in one dtype."""

    mu: Tensor
    minus_P: Tensor
    U: Tensor | None
    log_det: Tensor


class Gaussian:
    r"""The normal law N(μ, S).

    .. math:: \log p(x) = -\tfrac12 (x-μ)^\top S^{-1} (x-μ) - \tfrac12 \log\det(2 π S)

    A singular S (variances of 0) is allowed: such a law can be sampled and noised, but has no
    density itself.

    Wikipedia:
        https://wikipedia.org/wiki/Multivariate_normal_distribution

    Arguments:
        mean: μ, shape `(D,)`.
        cov: S, a matrix `(D, D)`, a vector of variances `(D,)`, or one variance.

    Raises:
        ValueError: For a shape that does not fit, or a matrix that is not a covariance.

    Examples:
        >>> law = glp.Gaussian([0.0, 1.0], [[2.0, 0.0], [0.0, 0.5]])
        >>> law.score(torch.tensor([[2.0, 2.0]]))
        tensor([[-1., -2.]])
        >>> law.noised(1.0, 0.5).cov
        tensor([[2.2500, 0.0000],
                [0.0000, 0.7500]], dtype=torch.float64)
    """

    def __init__(
        self,
        mean: Tensor | Sequence[float],
        cov: Tensor | Sequence[float] | Sequence[Sequence[float]] | float = 1.0,
    ) -> None:
        mu, S = as_parameter(mean, "mean"), as_parameter(cov, "cov")
        if mu.ndim != 1 or len(mu) == 0:
            raise ValueError(f"mean must have shape (D,), got {tuple(mu.shape)}")
        D = len(mu)
        kinds = {(): "scalar", (D,): "diagonal", (D, D): "full"}
        if tuple(S.shape) not in kinds:
            raise ValueError(
                f"cov must have shape (), ({D},) or ({D}, {D}) for a mean of shape ({D},), "
                f"got {tuple(S.shape)}"
            )
        self.dtype = mu.dtype if isinstance(mean, Tensor) else torch.get_default_dtype()
        dtype = torch.promote_types(mu.dtype, S.dtype)
        self._set(mu.to(dtype, copy=True), covariance(S.to(dtype), D, kinds[tuple(S.shape)]))

    def _set(self, mean: Tensor, cov: Covariance, sigma: Tensor | float = 0.0) -> None:
        self.mean, self._cov, self._singular = mean, cov, vanishes(cov.w, sigma)
        self._constants: dict[tuple[torch.dtype, torch.device], _Constants] = {}

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one draw, `(D,)`."""
        return self.mean.shape[-1:]

    @property
    def cov(self) -> Tensor:
        """The covariance matrix S, `(D, D)`."""
        return self._cov.matrix(self._cov.w)

    def _fixed(self, x: Tensor) -> _Constants:
        """Return the constants for the dtype and device of x, kept from the first use."""
        self._check(x)
        key = x.dtype, x.device
        if key in self._constants:
            return self._constants[key]
        mu, S = self.mean.to(x), self._cov.to(x)
        if self.mean.ndim == 2 or not constant(x.dtype, self.mean, *self._cov):
            return _Constants(mu, -1 / S.w, S.U, (2 * math.pi * S.w).log().sum(-1))
        with torch.inference_mode(False), torch.no_grad():
            w = self._cov.w.to(torch.promote_types(self._cov.w.dtype, x.dtype))
            log_det = (2 * math.pi * w).log().sum(-1).to(x)
            mu, S = self.mean.to(x), self._cov.to(x)
            found = self._constants[key] = _Constants(mu, (-1 / w).to(x), S.U, log_det)
        return found

    def _check(self, x: Tensor, name: str = "x") -> None:
        """Check x and refuse a singular law."""
        check_batch(x, self.event_shape, name)
        if self.mean.ndim == 2 and len(self.mean) != len(x):
            raise ValueError(f"this law was noised for {len(self.mean)} samples, got {len(x)}")
        if self._singular:
            raise ValueError(
                "the covariance is singular, so there is no density; use .noised(alpha, sigma)"
            )

    def _at(self, x: Tensor, name: str = "x") -> tuple[Tensor, Covariance]:
        """Check x, refuse a singular law, and return μ and S in the dtype of x."""
        self._check(x, name)
        return self.mean.to(x), self._cov.to(x)

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x)."""
        mu, minus_P, U, log_det = self._fixed(x)
        y = x - mu if U is None else (x - mu) @ U
        return 0.5 * ((y.square() * minus_P).sum(-1) - log_det)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x) = −S⁻¹ (x − μ)."""
        mu, minus_P, U, _ = self._fixed(x)
        if U is None:
            return (x - mu) * minus_P
        return ((x - mu) @ U * minus_P) @ U.mT

    def hessian(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D D"]:
        """Return ∇² log p(x) = −S⁻¹."""
        _, S = self._at(x)
        return -S.matrix(1 / S.w).expand(len(x), *[x.shape[1]] * 2)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points μ + S^{1/2} z."""
        if self.mean.ndim == 2:
            raise ValueError("only a law noised with α and σ of shape () can be sampled, not (B,)")
        check_count(n, "n", 0)
        shape = (n, *self.event_shape)
        z = randn_like(torch.empty(shape, dtype=self.dtype, device=self.mean.device), generator)
        S = self._cov.to(z)
        return self.mean.to(z) + S.rotate_back(S.w.sqrt() * S.rotate(z))

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> Gaussian:
        """Return the law N(α μ, α² S + σ² I) of α X + σ Z; α, σ `()` or one for each sample `(B,)`."""
        a, b = (v.unsqueeze(-1) for v in coefficients(alpha, sigma, self.mean))
        law = object.__new__(Gaussian)
        law.dtype = self.dtype
        law._set(a * self.mean, Covariance(a**2 * self._cov.w + b**2, self._cov.U), sigma)
        return law

    def conditional(self, index: Sequence[int] | Tensor, values: Tensor) -> Gaussian:
        """Return the law of the other entries, in their order, given those at `index`.

        Arguments:
            index: The known entries.
            values: Their values, `(k,)`.

        Raises:
            ValueError: If entries do not exist, all are known, or the values do not fit.
        """
        k = check_index(index, values, self.event_shape[0])
        mean, cov = conditional(self.mean, self.cov, k, values.to(self.mean)[None])
        return Gaussian(mean[0], cov)

    def posterior_mean(
        self, x_t: Float[Tensor, "batch D"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch D"]:
        r"""Return E[x_0 | x_t] = μ + α S (α² S + σ² I)⁻¹ (x_t − α μ)."""
        mean_t, S_t = self.noised(alpha, sigma)._at(x_t, "x_t")
        a, _ = (v.unsqueeze(-1) for v in coefficients(alpha, sigma, x_t))
        gain = a * self._cov.w.to(x_t) / S_t.w
        return self.mean.to(x_t) + S_t.rotate_back(gain * S_t.rotate(x_t - mean_t))

    def posterior_cov(
        self, x_t: Float[Tensor, "batch D"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch D D"]:
        r"""Return Cov[x_0 | x_t] = S − α² S (α² S + σ² I)⁻¹ S = σ² S (α² S + σ² I)⁻¹."""
        _, S_t = self.noised(alpha, sigma)._at(x_t, "x_t")
        _, b = (v.unsqueeze(-1) for v in coefficients(alpha, sigma, x_t))
        cov = S_t.matrix(b**2 * self._cov.w.to(x_t) / S_t.w)
        return cov.expand(len(x_t), *[x_t.shape[1]] * 2)
