"""The noise levels that data support, from their thinnest direction."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import check_points, subsample
from .ladder import largest_distance, nearest_distance

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
