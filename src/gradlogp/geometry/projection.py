"""Projection of points onto a manifold by a score, and curves that stay on it."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    ScoreFn,
    check_count,
    check_finite,
    check_points,
    evaluate,
    sum_event,
)
from .perturb import check_dimension, noise_level
from .tangent import tangent_space


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
