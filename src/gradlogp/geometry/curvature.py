"""How a manifold bends, from the normal part of a score on it."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from ..core import Generator, ScoreFn
from .tangent import Method, tangent_normal_split


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
    *,
    method: Method = "jacobian",
    n_perturbations: int | None = None,
    generator: Generator | None = None,
    stack: int = 1,
) -> MeanCurvature:
    r"""Mean-curvature vector at points of a manifold, from the normal part of the score.

    .. math:: P_N s_σ(x) \to \tfrac12 H(x) \quad (σ \to 0, \; x \in M)

    whatever the density on M, with error O(σ²). The points must lie on M: a distance δ adds −δ/σ²,
    so noise in them drowns the curvature unless it is far below σ². H is the sum over tangent
    directions; some authors call H/k the mean curvature.

    Arguments:
        score: s at noise level σ, with α = 1.
        x: Points on the manifold, `(B, *event)`.
        sigma: σ, `()` or `(B,)`.
        dimension: k, where it is known; else it is counted at every point.
        method: "jacobian" or "perturbations", as of `tangent_space`.
        n_perturbations: For the second; max(64, 8D) where not given.
        generator: Where the perturbations come from.
        stack: Perturbations handed to the score at once, as of `tangent_space`.

    Raises:
        ValueError: As `tangent_space`.

    Wikipedia:
        https://wikipedia.org/wiki/Mean_curvature
    """
    normal = tangent_normal_split(
        score, x, sigma, dimension,
        method=method, n_perturbations=n_perturbations, generator=generator, stack=stack,
    ).normal  # fmt: skip
    return MeanCurvature(normal, 2 * normal)
