"""Tangents, normals and curvature, from the Jacobian of a score or from scores at perturbed points."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..calculus.reverse import jacobian
from ..core import (
    Generator,
    NoiseSource,
    ScoreFn,
    check_count,
    check_finite,
    check_function,
    check_generator,
    check_option,
    evaluate,
)
from .perturb import check_dimension, count, noise_level, rank_threshold, score_moments

Method = Literal["jacobian", "perturbations"]


class TangentSpace(NamedTuple):
    """Directions at every point, from the most tangent to the most normal.

    Attributes:
        directions: Orthonormal columns, `(B, D, D)`; the first `dimension` of them are tangent.
        spectrum: How normal each is, `(B, D)`: near 0 for tangents and near 1 for normals.
        dimension: Dimension of the manifold, `(B,)`; D where no normal direction was found.
    """

    directions: Float[Tensor, "batch D D"]
    spectrum: Float[Tensor, "batch D"]
    dimension: Int[Tensor, " batch"]

    def tangent_part(self, v: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return the orthogonal projection of vectors on the tangent space."""
        index = torch.arange(self.spectrum.shape[1], device=v.device)
        mask = index < self.dimension.unsqueeze(1)
        U = self.directions.to(v)
        inside = (U.mT @ v.flatten(1).unsqueeze(2)).squeeze(2)
        return (U @ (inside * mask).unsqueeze(2)).reshape(v.shape)


def tangent_space(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    sigma: Tensor | float,
    dimension: int | None = None,
    *,
    method: Method = "jacobian",
    n_perturbations: int | None = None,
    generator: Generator | None = None,
    stack: int = 1,
) -> TangentSpace:
    r"""Tangent space at points near a manifold, from the score at noise level σ.

    .. math::
        -σ^2 \nabla s_σ(x) \to P_N, \qquad
        \frac{σ^2}{K} \sum_{i=1}^K s_σ(x + σ z_i)\, s_σ(x + σ z_i)^\top \to P_N

    as σ → 0, with P_N the projection onto the normal space. "jacobian" uses the spectrum of the
    first, with D vector-Jacobian products per point; "perturbations" that of the second, with K
    evaluations and no derivative, for any score. Eigenvalues of normals are near 1, those of
    tangents are O(σ²) (O(σ) off the manifold). A direction in which data have the standard
    deviation τ has the eigenvalue σ²/(τ² + σ²).

    Arguments:
        score: s at noise level σ, with α = 1.
        x: Points on the manifold or within a few σ of it, `(B, *event)`.
        sigma: σ, `()` or `(B,)`.
        dimension: k, if it is known; by default the eigenvalues are counted.
        method: "jacobian" or "perturbations".
        n_perturbations: K, at least 2D; by default max(64, 8D).
        generator: Source of the perturbations.
        stack: Number of perturbations passed to the score at once, as stack · B rows. More than 1
            is faster with few points, and needs a score that treats all rows in the same way.

    Raises:
        ValueError: For σ ≤ 0, a dimension that is not below D, or too few perturbations.

    References:
        | Your diffusion model secretly knows the dimension of the data manifold
          (Stanczuk et al., 2022)
        | https://arxiv.org/abs/2212.12611
    """
    b = noise_level(sigma, x)
    check_function(score, "score")
    check_option(method, "method", Method)
    check_generator(generator, NoiseSource)
    check_count(stack, "stack")
    D = x.shape[1:].numel()
    check_dimension(dimension, D)
    if method == "jacobian":
        if n_perturbations is not None:
            raise ValueError('n_perturbations belongs to method="perturbations"')
        J = jacobian(score, x).detach()
        matrix = -b.reshape(-1, 1, 1).square() * (J + J.mT) / 2
        threshold = 0.5
    else:
        n = perturbations(n_perturbations, D)
        total, sizes = score_moments(score, x, b, n, generator, stack)
        matrix = total.sum(0) / sizes.sum()
        threshold = rank_threshold(n, D)
    check_finite(matrix, "the derivative of score")
    spectrum, directions = torch.linalg.eigh(matrix)
    if dimension is None:
        found = (spectrum < threshold).sum(1)
    else:
        found = torch.full((len(x),), dimension, device=x.device)
    return TangentSpace(directions.to(x), spectrum.to(x), found)


def perturbations(given: int | None, D: int) -> int:
    """Return the number of perturbations, at least 2D."""
    why = "fewer do not span the normal space well enough to count its directions"
    return count(given, max(64, 8 * D), max(16, 2 * D), "n_perturbations", why)


class Split(NamedTuple):
    """The tangent and normal parts of a score, shape of x, and the space they were split by."""

    tangent: Float[Tensor, "batch *event"]
    normal: Float[Tensor, "batch *event"]
    space: TangentSpace


def tangent_normal_split(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    sigma: Tensor | float,
    dimension: int | None = None,
    **options: Any,
) -> Split:
    r"""Split the score at x into its parts along and across the manifold.

    .. math::
        s_σ(x) = \underbrace{\nabla_M \log p_M}_{\text{tangent}} + \underbrace{\tfrac12 H -
        \frac{x - π(x)}{σ^2}}_{\text{normal}} + O(σ^2) \quad \text{near } M

    The tangent part tends to the score of the density on the manifold, the normal part to half the
    mean-curvature vector H, minus the distance to the manifold divided by σ². So for a point
    visibly off the manifold, geometry dominates density by a factor of order σ⁻².

    Arguments:
        score: s at noise level σ, with α = 1.
        x: Points on the manifold or within a few σ of it, `(B, *event)`.
        sigma: σ, `()` or `(B,)`.
        dimension: k, if it is known; by default it is counted at every point. If it is D, no
            normal direction was found, and the normal part is 0.
        options: `method`, `n_perturbations`, `generator` and `stack` of `tangent_space`.

    Raises:
        ValueError: As `tangent_space`.

    References:
        | When Scores Learn Geometry: Rate Separations under the Manifold Hypothesis (Li et al., 2025)
        | https://arxiv.org/abs/2509.24912
    """
    space = tangent_space(score, x, sigma, dimension, **options)
    s = evaluate(score, x, finite=True).detach()
    tangent = space.tangent_part(s)
    return Split(tangent, s - tangent, space)


class MeanCurvature(NamedTuple):
    """The normal part of the score on a manifold, and the mean-curvature vector, twice that.

    Attributes:
        normal_score: H/2, shape of x; −(d − 1)/(2r) x̂ on a sphere in R^d.
        vector: H, the trace of the second fundamental form; −(d − 1)/r x̂ on that sphere.
    """

    normal_score: Float[Tensor, "batch *event"]
    vector: Float[Tensor, "batch *event"]


def mean_curvature(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    sigma: Tensor | float,
    dimension: int | None = None,
    **options: Any,
) -> MeanCurvature:
    r"""Mean-curvature vector at points of a manifold, from the normal part of the score.

    .. math:: P_N s_σ(x) \to \tfrac12 H(x) \quad (σ \to 0, \; x \in M)

    whatever the density on M, with error O(σ²). The points must lie on M: a distance δ adds −δ/σ²,
    so noise in them hides the curvature unless it is far below σ². H is the sum over tangent
    directions; some authors call H/k the mean curvature.

    Arguments:
        score: s at noise level σ, with α = 1.
        x: Points on the manifold, `(B, *event)`.
        sigma: σ, `()` or `(B,)`.
        dimension: k, if it is known; by default it is counted at every point.
        options: `method`, `n_perturbations`, `generator` and `stack` of `tangent_space`.

    Raises:
        ValueError: As `tangent_space`.

    Wikipedia:
        https://wikipedia.org/wiki/Mean_curvature
    """
    normal = tangent_normal_split(score, x, sigma, dimension, **options).normal
    return MeanCurvature(normal, 2 * normal)
