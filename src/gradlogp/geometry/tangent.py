"""Tangents, normals and curvature from a score or its Jacobian; points brought onto a manifold."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
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
    check_level,
    check_option,
    check_points,
    evaluate,
    randn_like,
    sum_event,
)

GROUPS = 8
"""Groups of perturbations, each of which is left out once for a standard error."""


def noise_level(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Check x and σ; return σ so that it multiplies x.

    Raises:
        ValueError: For a wrong shape, or σ that is not positive and finite.
    """
    check_points(x)
    why = (
        ": it is the noise level of the score, and without noise data on a manifold have no score"
    )
    return check_level(sigma, x, why=why)


def check_dimension(dimension: int | None, D: int) -> None:
    """Refuse a dimension of the manifold that leaves no normal or makes no sense."""
    if isinstance(dimension, int) and dimension == D:
        raise ValueError(
            f"dimension = {D} fills the space: there are no normal directions, so nothing "
            "to split, project onto or curve"
        )
    if dimension is not None:
        check_count(dimension, "dimension", 0, most=D - 1)


def count(given: int | None, default: int, least: int, name: str, why: str) -> int:
    """Return a number of draws, refusing too few."""
    n = default if given is None else given
    check_count(n, name, least, f": {why}")
    return n


def perturbed_scores(
    score: ScoreFn, x: Tensor, b: Tensor, n: int, generator: Generator | None, stack: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield z and σ s(x + σ z), each `(j, B, D)` with j up to `stack`, n of them in all."""
    check_count(stack, "stack")
    for start in range(0, n, stack):
        size = min(stack, n - start)
        z = torch.stack([randn_like(x, generator) for _ in range(size)])
        points = (x + b * z).flatten(0, 1)
        s = evaluate(score, points, finite=True)
        s = b * s.detach().reshape(z.shape)
        yield z.flatten(2), s.flatten(2)


def score_moments(
    score: ScoreFn, x: Tensor, b: Tensor, n: int, generator: Generator | None, stack: int
) -> tuple[Tensor, Tensor]:
    """Return Σ σ² s sᵀ over perturbations, `(GROUPS, B, D, D)`, and the size of every group."""
    rows = [s for _, s in perturbed_scores(score, x, b, n, generator, stack)]
    s = torch.cat(rows).to(torch.promote_types(x.dtype, torch.float32)).movedim(0, 1)
    groups = [s[:, first::GROUPS] for first in range(GROUPS)]
    return torch.stack([g.mT @ g for g in groups]), s.new_tensor([g.shape[1] for g in groups])


def rank_threshold(n: Tensor | float, D: int) -> float:
    """Return a threshold that normal eigenvalues of the mean of σ² s sᵀ over n draws exceed.

    Half of the lower end of the Marchenko–Pastur law, (1 − √(D/n))², for D directions.
    """
    return 0.5 * (1 - (D / float(n)) ** 0.5) ** 2


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

    Arguments and errors are those of `tangent_space`. Where the dimension is found to be D, no normal
    direction was seen, and the normal part is 0.

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
    directions; some authors call H/k the mean curvature. Arguments and errors are those of
    `tangent_space`.

    Wikipedia:
        https://wikipedia.org/wiki/Mean_curvature
    """
    normal = tangent_normal_split(score, x, sigma, dimension, **options).normal
    return MeanCurvature(normal, 2 * normal)


class Projection(NamedTuple):
    """Projected points, shape of x, and the length of the last step, `(B,)`."""

    x: Float[Tensor, "batch *event"]
    last_step: Float[Tensor, " batch"]


def project(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    sigma: Tensor | float,
    n_steps: int = 1,
    dimension: int | None = None,
) -> Projection:
    r"""Project points onto the manifold by Tweedie's formula, once or several times.

    .. math:: x \leftarrow x + σ^2 s_σ(x) = E[x_0 \mid x_σ = x] = π(x) + O(σ^2)

    One step removes nearly all of the distance. More steps remove the rest, but each also moves
    the points along the manifold by σ² times the score of its density, finally to the modes. With
    `dimension` k points move only along the D − k most normal directions, without this drift
    (subspace-constrained mean shift), at a cost of D vector-Jacobian products per step. Both end
    where the normal part of the score is 0, off the manifold by σ²/2 times its mean curvature.

    Arguments:
        score: s at noise level σ, with α = 1.
        x: Points, `(B, *event)`.
        sigma: σ, `()` or `(B,)`.
        n_steps: Number of steps.
        dimension: k, to move only along normals.

    Raises:
        ValueError: For σ ≤ 0, fewer than one step, or a dimension that is not below D.

    References:
        | Locally Defined Principal Curves and Surfaces (Ozertem & Erdogmus, 2011)
        | https://jmlr.org/papers/v12/ozertem11a.html

    Examples:
        >>> field = glp.distributions.UniformSphere(2).noised(1.0, 0.05).score
        >>> glp.geometry.project(field, torch.tensor([[1.1, 0.0]]), 0.05, n_steps=3).x
        tensor([[0.9987, 0.0000]])
    """
    b = noise_level(sigma, x)
    check_dimension(dimension, x.shape[1:].numel())
    check_count(n_steps, "n_steps")
    step = torch.zeros_like(x)
    for _ in range(n_steps):
        s = evaluate(score, x, finite=True).detach()
        step = b.square() * s
        if dimension is not None:
            step = step - tangent_space(score, x, sigma, dimension).tangent_part(step)
        x = x + step
    length = sum_event(step.square()).sqrt()
    check_finite(length[:, None], "the last step from x, sigma squared times the score,")
    return Projection(x, length)


def interpolate(
    score: ScoreFn,
    a: Float[Tensor, "batch *event"],
    b: Float[Tensor, "batch *event"],
    sigma: Tensor | float,
    n_bisections: int = 4,
    n_steps: int = 2,
) -> Float[Tensor, "points batch *event"]:
    """Return a curve from a to b along the manifold, with nearly equal steps.

    The midpoint of a and b is projected onto the manifold, then the midpoints of both halves, and
    so on: each new point starts closer to the manifold than a point of the straight line would. On
    a sphere this is the geodesic. If the midpoint is equally far from several sides (antipodes),
    the path is not determined, and the midpoint may stay off the manifold.

    Arguments:
        score: s at noise level σ, with α = 1.
        a: First points, `(B, *event)`.
        b: Last points, `(B, *event)`.
        sigma: σ, `()` or `(B,)`.
        n_bisections: The curve has 2^n_bisections + 1 points, including a and b.
        n_steps: Number of steps of each projection, as in `project`.

    Returns:
        The points `(2^n_bisections + 1, B, *event)`.

    Raises:
        ValueError: For shapes that differ, σ ≤ 0, or fewer than one bisection or step.
    """
    check_points(a, "a")
    check_points(b, "b", a.shape[1:])
    if b.shape != a.shape or b.dtype != a.dtype:
        raise ValueError(
            f"a and b must have one shape and dtype, got {tuple(a.shape)} {a.dtype} and "
            f"{tuple(b.shape)} {b.dtype}"
        )
    check_count(n_bisections, "n_bisections")
    check_count(n_steps, "n_steps")
    curve = [a, b]
    for _ in range(n_bisections):
        finer = [curve[0]]
        for start, end in pairwise(curve):
            finer += [project(score, (start + end) / 2, sigma, n_steps).x, end]
        curve = finer
    return torch.stack(curve)
