r"""Observations: y = A(x) + noise, and the covariance of the noise.

The noise is N(0, R): independent with a standard deviation for all or for each entry, or correlated.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..calculus.conjugate_gradients import Indefinite, solve_all
from ..core import (
    Coordinates,
    Generator,
    check_batch,
    check_dtype,
    check_finite,
    check_kind,
    check_number,
    check_points,
    check_same_shape,
    per_sample,
    randn_like,
    sum_event,
)
from ..distributions.analytic import Gaussian, GaussianMixture
from ..noise.coordinates import IDENTITY, AffineCoordinates
from .operators import Linearised, LinearOperator, Scaled, as_matrix, check_operator, gram_diagonal


@runtime_checkable
class NoiseCovariance(Protocol):
    """The covariance R by what it does; write one where R is diagonal in a Fourier basis."""

    def product(self, v: Tensor) -> Tensor:
        """Return R v, `(B, *observed)`."""

    def solve(self, v: Tensor) -> Tensor:
        """Return R⁻¹ v, `(B, *observed)`."""


@dataclass(frozen=True, eq=False)
class Independent:
    """R = diag(std²); std a number or in the shape of what is observed."""

    std: Tensor

    def __post_init__(self) -> None:
        if not bool((torch.isfinite(self.std) & (self.std >= 0)).all()):
            raise ValueError("noise, as a standard deviation, must be at least 0 and finite")

    def product(self, v: Tensor) -> Tensor:
        """Return R v."""
        return self.std.to(v).square() * v

    def solve(self, v: Tensor) -> Tensor:
        """Return R⁻¹ v.

        Raises:
            ValueError: If an entry has no noise.
        """
        if bool((self.std == 0).any()):
            raise ValueError(
                "this needs the inverse of the noise covariance, but there is no noise; use "
                "MomentMatching, PiGDM or RePaint, or give the observation a little noise"
            )
        return v / self.std.to(v).square()

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Return noise of the shape of `like`."""
        return self.std.to(like) * randn_like(like, generator)


@dataclass(frozen=True, eq=False)
class Correlated:
    """R is a matrix `(m, m)` for the m entries of a flattened observation.

    Raises:
        ValueError: If it is not symmetric positive definite.
    """

    cov: Tensor
    _L: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        R = self.cov
        check_finite(R, "cov")
        if R.ndim != 2 or R.shape[0] != R.shape[1]:
            raise ValueError(f"cov must be a square matrix, got shape {tuple(R.shape)}")
        L, info = torch.linalg.cholesky_ex(R)
        if int(info) or bool(((R - R.mT).abs() > 1e-5 * R.abs().max()).any()):
            raise ValueError("cov, the noise, is not symmetric positive definite")
        object.__setattr__(self, "_L", L)

    def product(self, v: Tensor) -> Tensor:
        """Return R v."""
        return (v.flatten(1) @ self.cov.to(v)).reshape(v.shape)

    def solve(self, v: Tensor) -> Tensor:
        """Return R⁻¹ v."""
        return torch.cholesky_solve(v.flatten(1).mT, self._L.to(v)).mT.reshape(v.shape)

    def draw(self, like: Tensor, generator: Generator | None) -> Tensor:
        """Return noise of the shape of `like`."""
        z = randn_like(like, generator).flatten(1)
        return (z @ self._L.to(like).mT).reshape(like.shape)


Noise = Tensor | float | NoiseCovariance


def as_covariance(noise: Noise, observed: torch.Size) -> NoiseCovariance:
    """Return the covariance that a standard deviation, one for each entry, or a matrix stands for."""
    if isinstance(noise, NoiseCovariance):
        return noise
    if not isinstance(noise, Tensor):
        check_number(noise, "noise", least=0)
    value = torch.as_tensor(noise, dtype=None if isinstance(noise, Tensor) else torch.float64)
    check_finite(value, "noise")
    if value.ndim == 0 or value.shape == observed:
        return Independent(value)
    m = observed.numel()
    if value.shape == (m, m):
        return Correlated(value)
    raise ValueError(
        f"noise must be a standard deviation, one for each entry {tuple(observed)}, a covariance "
        f"matrix ({m}, {m}) or an object with product and solve, got shape {tuple(value.shape)}"
    )


@dataclass(frozen=True, eq=False)
class Observation:
    r"""y = A(x) + N(0, R).

    .. math:: \log p(y | x) = -\tfrac12 (y - A(x))^\top R^{-1} (y - A(x)) + const

    Arguments:
        y: The observed values, `(B, *observed)`, one for each sample; or `(1, *observed)`, one for
            all of them.
        operator: A: a `LinearOperator` such as `Inpainting(mask)`, or any differentiable function
            `(B, *event) -> (B, *observed)` that acts on each sample separately.
        noise: A standard deviation, one for each entry, a covariance matrix for the m entries of a
            flattened observation `(m, m)`, or a `NoiseCovariance`. 0 is allowed if the method does
            not need the inverse of R.

    Raises:
        ValueError: If y has no batch dimension, or the noise has a wrong shape.
    """

    y: Float[Tensor, "batch *observed"]
    operator: LinearOperator | Callable[[Tensor], Tensor]
    noise: Noise
    R: NoiseCovariance = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_points(self.y, "y")
        check_operator(self.operator)
        object.__setattr__(self, "R", as_covariance(self.noise, self.y.shape[1:]))

    @property
    def linear(self) -> LinearOperator:
        """The operator.

        Raises:
            ValueError: If it is not linear.
        """
        if not isinstance(self.operator, LinearOperator):
            raise ValueError(
                "this needs a linear operator, with apply and adjoint; a plain function has neither"
            )
        return self.operator

    def linearised(self, x: Tensor) -> LinearOperator:
        """Return the operator, or the derivative of a function at x."""
        operator = self.operator
        return operator if isinstance(operator, LinearOperator) else Linearised(operator, x)

    def apply(self, x: Tensor) -> Tensor:
        """Return A(x)."""
        operator = self.operator
        return operator.apply(x) if isinstance(operator, LinearOperator) else operator(x)

    def encoded(self, coordinates: Coordinates) -> Observation:
        r"""Return the same observation in terms of model coordinates z.

        Under x = shift + scale · z a linear A becomes A diag(scale), and y becomes y − A(shift), with
        the same noise. A function, and A under other coordinates, becomes A ∘ decode.
        """
        if coordinates == IDENTITY:
            return self
        operator = self.operator
        if isinstance(operator, LinearOperator) and isinstance(coordinates, AffineCoordinates):
            shift, y = coordinates.shift.to(self.y.device), self.y.double()
            moved = (y - operator.apply(shift.unsqueeze(0))).to(self.y)
            return replace(self, y=moved, operator=Scaled(operator, coordinates.scale))
        seen = self.apply
        return replace(self, operator=lambda z: seen(coordinates.decode(z).to(z)))

    def take(self, index: slice | Tensor) -> Observation:
        """Return the observations of these rows; itself where there is one for all."""
        return self if len(self.y) == 1 else replace(self, y=self.y[index])

    def rows(self, like: Tensor) -> Tensor:
        """Return y for each sample of a batch, in its dtype.

        Raises:
            ValueError: If the number of rows is neither that of the samples nor one.
        """
        check_batch(like)
        if len(self.y) not in (1, len(like)):
            raise ValueError(
                f"the observation has {len(self.y)} rows, but x has {len(like)}; pass as many "
                f"rows of y, or one for all samples"
            )
        return self.y.to(like).expand(len(like), *self.y.shape[1:])

    def residual(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *observed"]:
        """Return y − A(x)."""
        y, seen = self.rows(x), self.apply(x)
        check_same_shape(seen, y, "the operator")
        return y - seen

    def log_likelihood(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return log p(y | x), up to a constant."""
        r = self.residual(x)
        return -0.5 * sum_event(r * self.R.solve(r))

    def score(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return ∇ log p(y | x) = (∇A)ᵀ R⁻¹ (y − A(x))."""
        return self.linearised(x).adjoint(self.R.solve(self.residual(x)))


def observe(
    x: Float[Tensor, "batch *event"],
    operator: LinearOperator | Callable[[Tensor], Tensor],
    noise: Tensor | float,
    *,
    generator: Generator | None = None,
) -> Observation:
    """Draw y = A(x) + noise for known x: a problem with a known answer.

    Arguments:
        x: The truth, `(B, *event)`.
        operator: A, as in `Observation`.
        noise: As in `Observation`, a number or a tensor.
        generator: Source of the noise.

    Examples:
        >>> first = glp.inverse.Inpainting(torch.tensor([True, False]))
        >>> seen = glp.inverse.observe(torch.tensor([[1.0, 2.0]]), first, 0.0)
        >>> seen.y
        tensor([[1.]])
    """
    check_points(x)
    check_operator(operator)
    clean = operator.apply(x) if isinstance(operator, LinearOperator) else operator(x)
    check_kind(clean, "the return value of operator", Tensor, "a tensor")
    check_dtype(clean.dtype, "the dtype of the return value of operator")
    R = as_covariance(noise, clean.shape[1:])
    assert isinstance(R, Independent | Correlated)
    return Observation(clean + R.draw(clean, generator), operator, noise)


def solve_isotropic(
    operator: LinearOperator, R: NoiseCovariance, a: Tensor | float, b: Tensor | float, r: Tensor
) -> Tensor:
    """Return u with (a R + b A Aᵀ) u = r; a and b `()` or one for each sample `(B,)`.

    In closed form if A Aᵀ is diagonal and the noise independent, otherwise by conjugate gradients.

    Raises:
        ValueError: If the matrix is singular, or the iteration does not converge.
    """
    a, b = per_sample(a, r, "a"), per_sample(b, r, "b")
    gram = gram_diagonal(operator)
    if gram is not None and isinstance(R, Independent):
        gram = gram.to(r) if isinstance(gram, Tensor) else gram
        return r / (a * R.std.to(r).square() + b * gram)
    return solve_in_units(
        lambda v: a * R.product(v) + b * operator.apply(operator.adjoint(v)), operator, R, r
    )


def solve_in_units(
    product: Callable[[Tensor], Tensor],
    operator: LinearOperator,
    R: NoiseCovariance,
    r: Tensor,
    tol: float | None = None,
    max_steps: int | None = None,
    indefinite: Indefinite = "raise",
) -> Tensor:
    r"""Return u with M u = r by conjugate gradients, with each entry of y in its own units.

    .. math:: D^{-1} M D^{-1} (D u) = D^{-1} r, \qquad D^2 = \mathrm{diag}(R + A A^\top)

    as far as D is known. Otherwise entries in large units would hide those in small units.
    """
    gram = gram_diagonal(operator)
    size = r.new_zeros(r.shape[1:])
    size = size if gram is None else size + (gram.to(r) if isinstance(gram, Tensor) else gram)
    if isinstance(R, Independent):
        size = size + R.std.to(r).square()
    if isinstance(R, Correlated):
        size = size + R.cov.diagonal().to(r).reshape(r.shape[1:])
    D = torch.where(size > 0, size, 1.0).sqrt()
    return solve_all(lambda v: product(v / D) / D, r / D, tol, max_steps, indefinite) / D


Law = TypeVar("Law", Gaussian, GaussianMixture)


def posterior(law: Law, observation: Observation) -> Law:
    r"""Return the law of x given y = A x + N(0, R), for x of a Gaussian or a Gaussian mixture.

    For N(μ, S), with the gain K = S Aᵀ (A S Aᵀ + R)⁻¹,

    .. math:: N(μ + K (y - A μ),\; (I - K A) S (I - K A)^\top + K R K^\top)

    and for a mixture that of every component, with weights π_k N(y; A μ_k, A S_k Aᵀ + R) divided
    by their sum. Noising this law gives the law of x_t given y, with which every approximation can
    be compared. Components whose weight underflows to 0 are omitted.

    Arguments:
        law: The prior.
        observation: One row y, by a linear operator.

    Raises:
        ValueError: For several rows, an operator that is not linear, or A S Aᵀ + R singular.

    Examples:
        >>> law = glp.Gaussian([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])
        >>> A = glp.inverse.Matrix(torch.tensor([[1.0, 0.0]]))
        >>> seen = glp.inverse.Observation(torch.tensor([[2.0]]), A, 1.0)
        >>> glp.inverse.posterior(law, seen).mean
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    check_kind(law, "law", Gaussian | GaussianMixture, "a Gaussian or a GaussianMixture")
    check_kind(observation, "observation", Observation, "an Observation, such as from observe")
    if len(observation.y) != 1:
        raise ValueError(
            f"one observation has one posterior, got {len(observation.y)} rows; pass y[i : i + 1]"
        )
    if isinstance(law, Gaussian):
        mean, cov, _ = _condition(law.mean[None], law.cov[None], observation)
        found = Gaussian(mean[0], cov[0])
    else:
        mean, cov, log_evidence = _condition(law.means, law.covs, observation)
        weights = (law.weights.log() + log_evidence).softmax(0)
        keep = weights > 0
        found = GaussianMixture(weights[keep], mean[keep], cov[keep])
    found.dtype = law.dtype
    return found


def _condition(
    mean: Tensor, cov: Tensor, observation: Observation
) -> tuple[Tensor, Tensor, Tensor]:
    """Return means `(K, D)`, covariances `(K, D, D)` and log-evidences `(K,)` given y."""
    y = observation.rows(mean[:1]).flatten(1)
    m = y.shape[1]
    A = as_matrix(observation.linear, mean.shape[1:], mean)
    eye = torch.eye(m).to(mean)
    R = observation.R.product(eye.reshape(m, *observation.y.shape[1:])).flatten(1)
    r = y - mean @ A.mT
    G = A @ cov @ A.mT + R
    L, info = torch.linalg.cholesky_ex(G)
    if bool((info > 0).any()):
        raise ValueError("A S Aᵀ + R is singular: y is already certain in some direction")
    K = torch.cholesky_solve(A @ cov, L).mT
    rest = torch.eye(mean.shape[1]).to(mean) - K @ A
    white = torch.linalg.solve_triangular(L, r.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_evidence = -0.5 * (white.square().sum(-1) + log_det + m * math.log(2 * math.pi))
    new = rest @ cov @ rest.mT + K @ R @ K.mT
    return mean + (K @ r.unsqueeze(-1)).squeeze(-1), (new + new.mT) / 2, log_evidence
