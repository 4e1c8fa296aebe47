r"""Score matching for data on a manifold: noise along chosen directions, and matching on a sphere.

With noise only along normals, a point x on M and its noised x̃ = x + σ n carry no information
about the probability of x: the regression learns the way back to M and no density. With noise
along the tangents too, possibly of a different size, the target is the score of the conditional
law N(x, Σ(x)), so that the minimiser is the score of the noised law, by the same identity as for
isotropic noise. Without noise, the density on a sphere is learned by an integration by parts on
the sphere, which has no boundary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    Generator,
    ScoreFn,
    check_batch,
    check_finite,
    check_function,
    check_level,
    check_number,
    check_points,
    evaluate,
    per_sample,
    randn_like,
    sum_event,
)
from .closed_form import _inverse
from .matching import implicit


def normal_denoising(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    sigma: Tensor | float,
    normals: Float[Tensor, "batch D m"],
    *,
    generator: Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Denoising of noise along normals, :math:`\tfrac12 \|s_θ(x + σ N z) + N z/σ\|^2`.

    It learns the projection onto M, s(x̃) ≈ −(x̃ − π(x̃))/σ², and no density on M: the tangent
    part of the minimiser is 0 wherever only one point of M can have become x̃. On the uniform
    circle of radius r the minimiser is, everywhere,

    .. math:: \left( -\frac{ρ}{σ^2} + \frac{r}{σ^2} \tanh\frac{ρ r}{σ^2} \right) \hat x, \quad
        ρ = \|x\|

    Use it to denoise, not to sample; `tangent_normal_denoising` learns the density as well.

    Arguments:
        score: The model, `(B, *event) -> (B, *event)`.
        x: Data on the manifold, `(B, *event)`.
        sigma: σ > 0, `()` or `(B,)`.
        normals: N, m orthonormal columns for each point, `(B, D, m)`: all normals of M there, known
            or estimated (the last columns of `manifold.tangent_space(...).directions`).
        generator: Source of the noise.

    Raises:
        ValueError: For σ ≤ 0, a wrong shape, an empty batch, points that are not finite, or columns
            that are not orthonormal.
    """
    check_points(x)
    b = check_level(sigma, x)
    z = _along(normals, x, randn_like(x, generator))
    return _half_square(score, x + b * z, z / b)


def tangent_normal_denoising(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    sigma_tangent: Tensor | float,
    sigma_normal: Tensor | float,
    normals: Float[Tensor, "batch D m"],
    *,
    generator: Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Denoising with noise of one size along tangents and of another along normals.

    .. math::
        \tfrac12 \left\| s_θ(\tilde x) + \frac{T z_T}{σ_T} + \frac{N z_N}{σ_N} \right\|^2, \quad
        \tilde x = x + σ_T T z_T + σ_N N z_N

    An unbiased estimate of ½ E‖s_θ − s‖² plus a constant, where s is the score of the law of x̃:
    geometry and density at once. With σ_T = σ_N it is `denoising`. A larger σ_T reduces the
    variance of the tangent part, whose target has variance 1/σ_T² in each direction, and keeps the
    resolution σ_N across. As both tend to 0 in a ratio q = σ_T/σ_N, the tangent part on M tends to
    the score of the density on M, −(k_0/r) sin θ on the circle of von Mises, and the normal part
    to q²/(2r) − 1/r on a circle. Noise along a tangent leaves a curved manifold: the ridge of the
    law of x̃ lies off M, by σ_T²/(2r) − σ_N²/r on a circle, so σ_T² should stay below σ_N times
    the radius of curvature.

    The residuals must not be multiplied by σ_T and σ_N to balance them: this weight would depend
    on x and not only on x̃, and its minimiser would be a different field.

    Arguments and errors are those of `normal_denoising`, with two levels for one.

    References:
        | A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011)
        | https://doi.org/10.1162/NECO_a_00142
    """
    check_points(x)
    b_t = check_level(sigma_tangent, x, "sigma_tangent")
    b_n = check_level(sigma_normal, x, "sigma_normal")
    z = randn_like(x, generator)
    across = _along(normals, x, z)
    inside = z - across
    return _half_square(score, x + b_t * inside + b_n * across, inside / b_t + across / b_n)


def _half_square(score: ScoreFn, x: Tensor, minus_target: Tensor) -> Tensor:
    return 0.5 * sum_event((evaluate(score, x) + minus_target).square())


def _along(normals: Tensor, x: Tensor, z: Tensor) -> Tensor:
    """Return N Nᵀ z, shape of x."""
    B, D = len(x), x[0].numel()
    check_batch(normals, name="normals")
    if normals.ndim != 3 or normals.shape[:2] != (B, D) or not 0 < normals.shape[2] < D:
        raise ValueError(
            f"normals must have shape ({B}, {D}, m) with m from 1 to {D - 1}, got "
            f"{tuple(normals.shape)}; without normals the data fill the space: use denoising"
        )
    check_finite(normals, "normals")
    N = normals.to(x)
    off = (N.mT @ N - torch.eye(N.shape[2]).to(N)).abs().amax()
    if not bool(off <= torch.finfo(N.dtype).eps ** 0.5):
        raise ValueError(
            f"the columns of normals must be orthonormal, but are off by {float(off):.2g}; "
            "orthonormalise them with torch.linalg.qr"
        )
    return (N @ (N.mT @ z.flatten(1).unsqueeze(2))).reshape(x.shape)


# ---------------------------------------------------------------------------- on a sphere


def tangential(score: ScoreFn) -> ScoreFn:
    r"""Return y -> (I − ŷ ŷᵀ) s(y): a field without its part along y.

    The trace of its Jacobian at a point of a sphere around 0 is the divergence on that sphere of
    the tangent part of s; so `sliced_vr(tangential(score), x)` is `implicit_on_sphere` with
    Hutchinson's estimate of it.
    """
    check_function(score, "score")

    def field(y: Tensor) -> Tensor:
        s = evaluate(score, y)
        along = sum_event(s * y) / sum_event(y.square())
        return s - per_sample(along, y) * y

    return field


def implicit_on_sphere(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    radius: float = 1.0,
    *,
    chunk_size: int | None = None,
) -> Float[Tensor, " batch"]:
    r"""Implicit score matching on a sphere, :math:`\tfrac12 \|P s\|^2 + \mathrm{div}_S (P s)`.

    .. math::
        \mathrm{div}_S (P s) = \mathrm{tr}(P \nabla s) - \frac{d-1}{r} \hat x \cdot s, \quad
        P = I - \hat x \hat x^\top

    An unbiased estimate of ½ E‖P s − s_S‖² − ½ E‖s_S‖², with s_S the gradient on the sphere of the
    log-density with respect to its surface. The sphere has no boundary, so no assumption is needed
    there. The part of s along x̂ does not count. The term with d − 1 is the trace of the
    contribution of the normal part of s by curvature: tr(P ∇s) alone is right only for tangent
    fields.

    Arguments:
        score: The model, defined also near the sphere, `(B, *event) -> (B, *event)`.
        x: Data on the sphere with this radius around 0, `(B, *event)`.
        radius: r.
        chunk_size: Coordinates differentiated together (`calculus.reverse.jacobian_trace`).

    Raises:
        ValueError: For points that are not on the sphere, and as in `implicit`.

    References:
        | Score Matching Estimators for Directional Distributions (Mardia, Kent & Laha, 2016)
        | https://arxiv.org/abs/1604.08470
    """
    check_points(x)
    _on_sphere(x, radius)
    return implicit(tangential(score), x, chunk_size=chunk_size)


def _on_sphere(x: Tensor, radius: float) -> None:
    check_number(radius, "radius", above=0)
    off = (x.detach().flatten(1).norm(dim=1) / radius - 1).abs().max()
    if not float(off) <= 1e-4:
        raise ValueError(
            f"x must lie on the sphere of radius {radius} around 0, and is off by "
            f"{float(off):.2g} of it; divide the rows by their norms, or pass radius="
        )


class SphereFit(NamedTuple):
    """A von Mises–Fisher law fitted by score matching.

    Attributes:
        natural: η = κ μ, `(d,)`.
        cov: The covariance of this estimate, `(d, d)`, from the spread over the data.
    """

    natural: Float[Tensor, " d"]
    cov: Float[Tensor, "d d"]

    @property
    def concentration(self) -> float:
        """Return κ = ‖η‖."""
        return float(self.natural.norm())


def von_mises_fisher(x: Float[Tensor, "n d"]) -> SphereFit:
    r"""Fit the density ∝ exp(η · x) on the unit sphere by implicit score matching, in closed form.

    The score is P η, the loss ½ ηᵀ(I − E[x xᵀ])η − (d − 1) η · E[x], and its minimum at

    .. math:: η = (d - 1)\, (I - E[x x^\top])^{-1} E[x]

    with no normalising constant and no Bessel function. η has the covariance
    Ā⁻¹ Cov(A η − (d − 1) x) Ā⁻¹/n with A = I − x xᵀ.

    Arguments:
        x: Points on the unit sphere, `(n, d)`.

    Raises:
        ValueError: For points that are not on the sphere, or all on one line through 0.

    References:
        | Score Matching Estimators for Directional Distributions (Mardia, Kent & Laha, 2016)
        | https://arxiv.org/abs/1604.08470
    """
    check_points(x)
    if x.ndim != 2 or x.shape[1] < 2:
        raise ValueError(f"x must have shape (n, d) with d at least 2, got {tuple(x.shape)}")
    _on_sphere(x, 1.0)
    y, (n, d) = x.double(), x.shape
    A = torch.eye(d).to(y) - y.mT @ y / n
    inverse = _inverse(
        A, 0.0, "the points all lie on one line through 0; a fit needs more directions"
    )
    natural = (d - 1) * inverse @ y.mean(0)
    residual = natural - (d + y @ natural - 1).unsqueeze(1) * y  # (I − y yᵀ) η − (d − 1) y
    spread = residual.mT @ residual / n
    return SphereFit(natural.to(x), (inverse @ spread @ inverse / n).to(x))
