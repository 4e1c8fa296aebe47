r"""Noise levels chosen from the data, after the techniques of NCSNv2.

At the largest level σ_1 a sample can move from any point of the data to any other. Neighbouring
levels overlap. The smallest level is below the spacing of the data. The steps at a level end with
the variance at which the next level should begin.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtr
from torch import Tensor

from ..core import check_count, check_function, check_number, check_points, neighbours, subsample


class NoiseLevels(NamedTuple):
    """A ladder σ_1 > … > σ_L, the number of Langevin steps per level, and their size in units of σ²."""

    sigmas: tuple[float, ...]
    n_steps: int
    relative_step: float
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.reasons)


def overlap(dim: int, ratio: float) -> float:
    r"""Return the overlap of neighbouring levels, technique 2.

    .. math:: C = Φ(\sqrt{2D}(γ-1) + 3γ) - Φ(\sqrt{2D}(γ-1) - 3γ)

    which falls from 1 as the ratio γ = σ_{i}/σ_{i+1} grows, more slowly in lower dimensions D.
    """
    shift = math.sqrt(2 * dim) * (ratio - 1)
    return float(ndtr(3 * ratio - shift) - ndtr(-3 * ratio - shift))


def ladder_ratio(dim: int, wanted: float = 0.5) -> float:
    """Return the ratio γ > 1 at which neighbouring levels overlap by `wanted`, at most 2."""
    if overlap(dim, 2.0) >= wanted:
        return 2.0  # in few dimensions any ratio overlaps; beyond 2 the steps would be too few
    return float(brentq(lambda ratio: overlap(dim, ratio) - wanted, 1.0, 2.0, xtol=1e-12))


def variance_ratio(relative_step: float, n_steps: int, ratio: float) -> float:
    r"""Return s_T²/σ² after T steps at a level on point-mass data, technique 4.

    .. math:: \frac{s_T^2}{σ^2} = (1-η)^{2T} (γ^2 - f) + f, \quad f = \frac{1}{1 - η/2}

    for η = h/σ², starting from the level above, s_0² = γ² σ². The target value is 1.
    """
    f = 1 / (1 - relative_step / 2)
    return (1 - relative_step) ** (2 * n_steps) * (ratio**2 - f) + f


def relative_step(n_steps: int, ratio: float) -> float:
    """Return the η in (0, 1] at which T steps of ULA end nearest to the variance of their level."""
    off = lambda eta: (variance_ratio(eta, n_steps, ratio) - 1) ** 2
    return float(minimize_scalar(off, bounds=(1e-6, 1.0), method="bounded").x)


def largest_distance(
    x: Float[Tensor, "n *event"], quantile: float = 1.0, chunk_size: int = 1024
) -> float:
    """Return the largest (or a quantile of the row-wise largest) Euclidean distance of two points.

    Raises:
        ValueError: If that is 0.
    """
    flat = x.flatten(1)
    flat = flat - flat.mean(0)  # far from 0 the products in `cdist` would cancel
    rows = [torch.cdist(part, flat).amax(1) for part in flat.split(chunk_size)]
    largest = float(torch.cat(rows).double().quantile(quantile))
    if largest == 0:
        raise ValueError("all points coincide: there are no noise levels to choose")
    return largest


def nearest_distance(x: Float[Tensor, "n *event"]) -> float:
    """Return the median distance of a point to its nearest neighbour other than its copies."""
    return float(neighbours(x, x, copies=False)[0].median())


def noise_levels(
    x: Float[Tensor, "n *event"],
    *,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    wanted_overlap: float = 0.5,
    n_steps: int = 5,
    quantile: float = 1.0,
    max_points: int = 4000,
    tell: Callable[[str], object] | None = print,
    generator: torch.Generator | None = None,
) -> NoiseLevels:
    """Choose a noise ladder for annealed Langevin dynamics from the data.

    Arguments:
        x: Data `(N, *event)`, in the coordinates in which noise is added.
        sigma_min: The smallest level; by default half the median nearest-neighbour distance per
            coordinate.
        sigma_max: The largest level; by default the largest pairwise distance.
        wanted_overlap: Overlap C of neighbouring levels.
        n_steps: Langevin steps per level.
        quantile: Quantile of the pairwise distances to use instead of their maximum.
        max_points: Maximum number of points used.
        tell: Called with a text on what was chosen and why; None for no text.
        generator: Source of the random subsample.

    Raises:
        ValueError: For too few distinct points, or levels that do not descend.

    References:
        | Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020)
        | https://arxiv.org/abs/2006.09011

    Examples:
        >>> x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
        >>> found = glp.noise_levels(x, sigma_min=0.5, tell=None)
        >>> [round(sigma, 3) for sigma in found.sigmas]
        [5.0, 2.812, 1.581, 0.889, 0.5]
    """
    check_points(x, least=2)
    check_count(n_steps, "n_steps")
    check_number(quantile, "quantile", above=0, most=1)
    check_number(wanted_overlap, "wanted_overlap", above=0, below=1)
    for level, name in ((sigma_min, "sigma_min"), (sigma_max, "sigma_max")):
        if level is not None:
            check_number(level, name, above=0)
    if tell is not None:
        check_function(tell, "tell")
    x = subsample(x, max_points, generator)
    dim, spread = x.shape[1:].numel(), largest_distance(x, quantile)
    reasons = []
    if sigma_max is None:
        sigma_max = spread
        reasons.append(f"sigma_1 = {sigma_max:.4g}: the largest distance between two points")
    if sigma_min is None:
        sigma_min = 0.5 * nearest_distance(x) / math.sqrt(dim)
        reasons.append(
            f"sigma_L = {sigma_min:.4g}: half the median nearest-neighbour distance, per "
            "coordinate"
        )
    if not sigma_min < sigma_max:
        raise ValueError(f"needs sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
    wanted = ladder_ratio(dim, wanted_overlap)
    n_levels = max(2, 1 + math.ceil(math.log(sigma_max / sigma_min) / math.log(wanted)))
    ratio = (sigma_max / sigma_min) ** (1 / (n_levels - 1))
    sigmas = tuple(sigma_max * ratio**-i for i in range(n_levels))
    reasons.append(
        f"L = {n_levels} levels of ratio {ratio:.4g}: neighbours overlap by "
        f"{overlap(dim, ratio):.3f} in {dim} dimension(s)"
    )
    eta = relative_step(n_steps, ratio)
    reasons.append(
        f"{n_steps} steps a level of size {eta:.4g} sigma^2: they end with "
        f"{variance_ratio(eta, n_steps, ratio):.4f} of the variance of the level (1 is ideal)"
    )
    levels = NoiseLevels(sigmas, n_steps, eta, tuple(reasons))
    if tell is not None:
        tell(str(levels))
    return levels


MOST = 4000
"""Points whose distances are looked at."""

BLUR = 0.1
"""The largest share of a deviation by which data may be blurred: it costs 0.005 nats a direction."""

THIN = 1e-3
"""The smallest level in units of the data: below it float32 and the solvers run out of digits."""

EMPTY = 1e-6
"""Directions of less than this share of the mean variance are taken to have none: they are no part of
the law, but a column that is a sum of others."""


def noise_span(
    z: Float[Tensor, "few *event"],
    generator: torch.Generator | None = None,
    *,
    n_points: int | None = None,
) -> tuple[float, float]:
    r"""Return the smallest and the largest noise level for data, in their own units.

    The largest is the largest distance between two points. The smallest follows from the thinnest
    direction, that of the smallest eigenvalue λ of the covariance, which single columns do not
    show. With the spacing δ of the whitened points (half the median nearest-neighbour distance,
    per coordinate) and Scott's bandwidth h = n^{−1/(d+4)},

    .. math:: σ_{min} = \sqrt{λ_{min}} \; \min(0.1, \max(δ, h/10))

    since n points do not determine a score at scales far below the bandwidth of a kernel density,
    or below their spacing.

    Arguments:
        z: Data `(N, *event)`, N at least 2, in the coordinates in which noise is added.
        generator: Source of the random subsample.
        n_points: The total number of points, if z is a random part of them.

    Raises:
        ValueError: If all points coincide.
    """
    check_points(z, "z", least=2)
    few = subsample(z, MOST, generator)
    high, y = largest_distance(few), few.flatten(1).double()
    y = y - y.mean(0)
    n, d = y.shape
    w, U = torch.linalg.eigh(y.mT @ y / n)
    real = w > EMPTY * w.mean()
    white = (y @ U[:, real]) / w[real].sqrt()
    spacing = 0.5 * nearest_distance(white) / math.sqrt(white.shape[1])
    bandwidth = (n_points or len(z)) ** (-1 / (d + 4))
    low = float(w[real][0].sqrt()) * min(BLUR, max(spacing, 0.1 * bandwidth))
    return max(low, THIN * float(w.mean().sqrt())), high
