r"""Laws on manifolds: spheres, the circle of von Mises, affine subspaces.

A law on a manifold of dimension k < D has no density in R^D and therefore no score. With noise it
has both, in closed form: the score then shows where the manifold is (of order 1/σ²), how it is
curved and what the density on it is (both of order 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import check_count, check_number
from .covariance import as_parameter
from .directional import Directional
from .gaussian import Gaussian
from .products import Embedded


class Singular:
    """A law on a manifold, all of whose questions are answered by `law`, its form for any noise."""

    law: Directional | Embedded

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one draw, `(D,)`."""
        return self.law.event_shape

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points on the manifold."""
        return self.law.sample(n, generator=generator)

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> Directional | Embedded:
        """Return the law of α X + σ Z; α, σ `()` or one for each sample `(B,)`."""
        return self.law.noised(alpha, sigma)

    def posterior_mean(
        self, x_t: Float[Tensor, "batch D"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch D"]:
        """Return E[X | α X + σ Z = x_t]."""
        return self.law.posterior_mean(x_t, alpha, sigma)

    def posterior_cov(
        self, x_t: Float[Tensor, "batch D"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch D D"]:
        """Return Cov[X | α X + σ Z = x_t]."""
        return self.law.posterior_cov(x_t, alpha, sigma)

    def log_prob(self, x: Float[Tensor, "batch D"]) -> NoReturn:
        """Raise `ValueError`: a law on a set of measure 0 has no density."""
        raise ValueError(self._refusal("density"))

    def score(self, x: Float[Tensor, "batch D"]) -> NoReturn:
        """Raise `ValueError`: without a density there is no score."""
        raise ValueError(self._refusal("score"))

    def _refusal(self, what: str) -> str:
        return (
            f"{type(self).__name__} lives on a set of measure 0, so it has no {what}; "
            f"use .noised(alpha, sigma).{'score' if what == 'score' else 'log_prob'} with sigma > 0"
        )


def _number(value: Tensor | float, name: str, least: float = 0.0, strict: bool = True) -> Tensor:
    """Return a parameter of shape () that is above `least`."""
    check_number(value, name, above=least if strict else None, least=least)
    return as_parameter(value, name)


def _dtype(*parameters: Tensor | float) -> torch.dtype:
    """Return the dtype of the samples: that of the first tensor, or the default."""
    given = [v.dtype for v in parameters if isinstance(v, Tensor) and v.is_floating_point()]
    return given[0] if given else torch.get_default_dtype()


@dataclass(frozen=True)
class UniformSphere(Singular):
    r"""The uniform law on the sphere S^{dim−1} of a radius r in R^dim; the circle for dim = 2.

    .. math::
        s_σ(x) = \frac{r A_d(k) \hat x - x}{σ^2}, \quad k = \frac{r \|x\|}{σ^2}, \quad
        A_d(k) = \frac{I_{d/2}(k)}{I_{d/2-1}(k)}

    which tends to −(d − 1)/(2r) x̂ on the sphere as σ → 0. In a larger space: `Embedded`.

    Arguments:
        dim: d, the dimension of the space, at least 2.
        radius: r.

    Raises:
        ValueError: For dim below 2 or a radius that is not positive.

    Examples:
        >>> law = glp.distributions.UniformSphere(3, radius=2.0)
        >>> law.sample(5, generator=torch.Generator()).norm(dim=1)
        tensor([2.0000, 2.0000, 2.0000, 2.0000, 2.0000])
    """

    dim: int
    radius: Tensor | float = 1.0

    def __post_init__(self) -> None:
        check_count(self.dim, "dim", 2)
        _number(self.radius, "radius")

    @cached_property
    def law(self) -> Directional:  # type: ignore[override]
        """The same law with noise 0."""
        r = _number(self.radius, "radius")
        return Directional(r, r.new_zeros(self.dim), r.new_zeros(()), _dtype(self.radius))


@dataclass(frozen=True)
class VonMisesCircle(Singular):
    r"""The von Mises law on the circle of a radius r in R²: density ∝ exp(k_0 cos(θ − θ_0)).

    .. math::
        s_σ(x) = -\frac{x}{σ^2} + \frac{r}{σ^2} \frac{I_1}{I_0}(\|η\|) \frac{η}{\|η\|}, \quad
        η = \frac{r x}{σ^2} + k_0 (\cos θ_0, \sin θ_0)

    On the circle its tangent part tends to −(k_0/r) sin(θ − θ_0) as σ → 0, with error O(σ²).

    Wikipedia:
        https://wikipedia.org/wiki/Von_Mises_distribution

    Arguments:
        radius: r.
        concentration: k_0, at least 0; 0 is the uniform law.
        angle: θ_0, where the density is largest.

    Raises:
        ValueError: For a radius that is not positive, or a negative concentration.
    """

    radius: Tensor | float = 1.0
    concentration: Tensor | float = 1.0
    angle: Tensor | float = 0.0

    def __post_init__(self) -> None:
        _number(self.radius, "radius")
        _number(self.concentration, "concentration", strict=False)
        check_number(self.angle, "angle")

    @cached_property
    def law(self) -> Directional:  # type: ignore[override]
        """The same law with noise 0."""
        r = _number(self.radius, "radius")
        k, angle = as_parameter(self.concentration, "concentration"), as_parameter(self.angle, "")
        natural = k * torch.stack([angle.cos(), angle.sin()])
        dtype = _dtype(self.radius, self.concentration, self.angle)
        return Directional(r, natural, r.new_zeros(()), dtype)


@dataclass(frozen=True, eq=False)
class AffineSubspace(Singular):
    r"""The law of b + V y with y ~ N(0, S): a Gaussian on an affine subspace of dimension k.

    .. math::
        s_σ(x) = -U (S_y + σ^2 I)^{-1} U^\top (x-b) - \frac{(I - U U^\top)(x-b)}{σ^2}

    with U an orthonormal basis of the columns of V, and S_y the covariance in it.

    Arguments:
        basis: V, `(D, k)`, columns that are linearly independent.
        offset: b, `(D,)`; 0 by default.
        cov: S, `(k, k)`, `(k,)` or one variance.

    Raises:
        ValueError: For shapes that do not fit, linearly dependent columns, or a matrix that is not
            a covariance.
    """

    basis: Tensor
    offset: Tensor | None = None
    cov: Tensor | float = 1.0

    def __post_init__(self) -> None:
        V = as_parameter(self.basis, "basis")
        if V.ndim != 2 or not 0 < V.shape[1] <= V.shape[0]:
            raise ValueError(f"basis must have shape (D, k) with k <= D, got {tuple(V.shape)}")
        values = torch.linalg.svdvals(V)
        if not bool(values[-1] > 100 * len(V) * torch.finfo(V.dtype).eps * values[0]):
            raise ValueError(f"the {V.shape[1]} columns of basis are linearly dependent")
        _ = self.law  # what is wrong with the rest shows now

    @cached_property
    def law(self) -> Embedded:  # type: ignore[override]
        """The same law with noise 0."""
        V = as_parameter(self.basis, "basis")
        k = V.shape[1]
        zero = torch.zeros(k, dtype=_dtype(self.basis), device=V.device)
        S = Gaussian(zero, self.cov).cov.to(V)
        U, R = torch.linalg.qr(V)
        S = R @ S @ R.mT
        return Embedded(Gaussian(zero, (S + S.mT) / 2), U, self.offset)
