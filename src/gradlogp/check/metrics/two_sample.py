"""Distances and tests of two samples: do they have the same law?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    Estimate,
    check_count,
    check_points,
    distances,
    finite_result,
    permutation,
    randn_like,
    rows_held,
    subsample,
    warn_of_cost,
)


def components(rows: Float[Tensor, " n"], squares: Tensor) -> tuple[float, float]:
    """Return ζ_1 = Cov(k_12, k_13) and ζ_2 = Var k_12 from sums over rows and squares of k, n ≥ 4.

    The diagonal of k is omitted. Sums over distinct indices make the estimates of E k_12², E k_12
    k_13 and (E k_12)² unbiased.
    """
    n, total, linked = len(rows), rows.sum(), rows.square().sum()
    pairs = n * (n - 1)
    second = squares / pairs
    triple = (linked - squares) / (pairs * (n - 2))
    mean_2 = (total**2 - 4 * linked + 2 * squares) / (pairs * (n - 2) * (n - 3))
    return float(triple - mean_2), float(second - mean_2)


def between(K: Float[Tensor, "n m"]) -> tuple[float, float, float]:
    """Return Var E[k(X, Y) | X], Var E[k(X, Y) | Y] and Var k(X, Y) from all pairs, unbiased."""
    (n, m), r, c = K.shape, K.sum(1), K.sum(0)
    squares, total, in_rows, in_columns = (
        K.square().sum(),
        K.sum(),
        r.square().sum(),
        c.square().sum(),
    )
    mean_2 = (total**2 - in_rows - in_columns + squares) / (n * (n - 1) * m * (m - 1))
    of_x = (in_rows - squares) / (n * m * (m - 1)) - mean_2
    of_y = (in_columns - squares) / (n * m * (n - 1)) - mean_2
    return float(of_x), float(of_y), float(squares / (n * m) - mean_2)


def mmd_variance(K: Float[Tensor, "pooled pooled"], n: int) -> tuple[float, float]:
    r"""Return the variance of the unbiased MMD² in two parts: of single points, and the remainder.

    .. math::
        \frac4n \mathrm{Var}\, a(X) + \frac4m \mathrm{Var}\, b(Y), \qquad
        \frac{2 ζ_{xx}}{n (n-1)} + \frac{2 ζ_{yy}}{m (m-1)} + \frac{4 ζ_{xy}}{n m}

    with a(x) = E k(x, X) − E k(x, Y), b(y) = E k(y, Y) − E k(y, X), and ζ the variances of the
    remainders. Each estimate is unbiased, and the first may be negative where it is near 0.

    Arguments:
        K: The kernel of the pooled sample, 0 on the diagonal; the first n points are x.
        n: The number of points of x, at least 4 on either side.
    """
    m, across = len(K) - n, K[:n, n:]
    of_x, of_y, of_both = between(across)
    single, rest = 0.0, 4 * (of_both - of_x - of_y) / (n * m)
    for k, crossed, other in ((K[:n, :n], across, of_x), (K[n:, n:], across.mT, of_y)):
        size, against = crossed.shape
        rows, beside = k.sum(1), crossed.sum(1)
        one, two = components(rows, k.square().sum())
        linked = rows @ beside  # E k(X, X') k(X, Y) − E k(X, X') E k(X, Y), over distinct points
        apart = (rows.sum() * beside.sum() - 2 * linked) / (size - 2)
        both = float((linked - apart) / (size * (size - 1) * against))
        single += 4 * (one + other - 2 * both) / size
        rest += 2 * (two - 2 * one) / (size * (size - 1))
    return single, rest


MANY_POOLED = 10_000
"""Points of both samples above which `mmd` warns: its matrix is then of a gigabyte."""


class TwoSample(NamedTuple):
    """A two-sample statistic with its standard error and the p-value of "both are one law"."""

    value: float
    standard_error: float
    p_value: float


def two_samples(
    x: Tensor, y: Tensor, name_x: str = "x", name_y: str = "y", least: int = 2
) -> tuple[Tensor, Tensor]:
    """Check two samples of one event shape and return them flat, in float64."""
    check_points(x, name_x, least=least)
    check_points(y, name_y, x.shape[1:], least)
    return x.double().flatten(1), y.double().flatten(1)


def mmd(
    x: Float[Tensor, "n *event"],
    y: Float[Tensor, "m *event"],
    *,
    n_permutations: int = 200,
    max_points: int = 1000,
    generator: torch.Generator | None = None,
) -> TwoSample:
    r"""Squared maximum mean discrepancy (unbiased) with a permutation p-value.

    .. math:: MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

    with the sum of Gaussian kernels of bandwidth ½, 1 and 2 times the median distance of the
    pooled sample, on at most `max_points` points of each. It is 0 in the mean when both are one
    law, and may then be negative. The standard error is made of unbiased estimates of Hoeffding's
    components, so that it holds far from 0 and near it alike: where both are one
    law the single points' part is 0, and its estimate is not taken below minus half of the rest.

    Time grows as N² (d + n_permutations) and memory as N² in the pooled number N of points that are
    taken, with a warning from 10,000 on.

    Arguments:
        x: Samples, `(n, *event)`.
        y: Samples, `(m, *event)`.
        n_permutations: Number of relabellings of the pooled sample.
        max_points: Maximum number of points of each.
        generator: Source of subsample and permutations.

    Raises:
        ValueError: For fewer than 4 points of each, or max_points below 4, because the standard
            error needs 4.

    References:
        | A Kernel Two-Sample Test (Gretton et al., 2012)
        | https://jmlr.org/papers/v13/gretton12a.html

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> x, y = torch.randn(200, 2, generator=g), torch.randn(200, 2, generator=g) + 1.0
        >>> glp.metrics.mmd(x, y, generator=g).p_value < 0.01
        True
    """
    a, b = two_samples(x, y, least=4)
    check_count(n_permutations, "n_permutations", 2)
    check_count(max_points, "max_points", 4)
    a, b = subsample(a, max_points, generator), subsample(b, max_points, generator)
    warn_of_cost(
        len(a) + len(b), MANY_POOLED, "a maximum mean discrepancy",
        "lower max_points, or use sliced_wasserstein, which only sorts",
    )  # fmt: skip
    n, m = len(a), len(b)
    pooled = torch.cat([a, b])
    squared = distances(pooled, pooled).square()
    median = torch.pdist(pooled).median().square()
    if median == 0:
        raise ValueError("more than half of all pairs of points coincide; MMD has no bandwidth")
    K = sum(torch.exp(-squared / (2 * c**2 * median)) for c in (0.5, 1.0, 2.0))
    assert isinstance(K, Tensor)
    K.fill_diagonal_(0.0)

    def statistic(index: Tensor) -> Tensor:
        """MMD² for relabellings, index `(R, n + m)`, through row sums of K with signed labels."""
        label = torch.zeros(index.shape, dtype=K.dtype, device=K.device)
        label.scatter_(1, index[:, :n], 1.0)
        within_x = ((label @ K) * label).sum(1)
        within_y = (((1 - label) @ K) * (1 - label)).sum(1)
        across = ((label @ K) * (1 - label)).sum(1)
        return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * across / (n * m)

    identity = torch.arange(n + m, device=a.device).unsqueeze(0)
    observed = float(statistic(identity)[0])
    shuffles = [permutation(n + m, generator).to(a.device) for _ in range(n_permutations)]
    null = statistic(torch.stack(shuffles))
    p_value = (1 + int((null >= observed).sum())) / (1 + n_permutations)
    single, rest = mmd_variance(K, n)
    return TwoSample(observed, math.sqrt(max(single + rest, rest / 2)), p_value)


def _quantile_coupling(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return how much mass of order statistic i of n meets j of m: indices i, j and masses."""
    of_n = torch.arange(n + 1, dtype=torch.float64) / n
    of_m = torch.arange(1, m, dtype=torch.float64) / m
    cuts = torch.cat([of_n, of_m]).sort().values
    middle, mass = (cuts[1:] + cuts[:-1]) / 2, cuts.diff()
    keep = mass > 1e-12
    i, j = (middle[keep] * n).long(), (middle[keep] * m).long()
    return i.to(device), j.to(device), mass[keep].to(device)


def sliced_wasserstein(
    x: Float[Tensor, "n *event"],
    y: Float[Tensor, "m *event"],
    n_projections: int = 128,
    *,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Sliced 2-Wasserstein distance, :math:`\left( E_θ W_2^2(θ^\top x, θ^\top y) \right)^{1/2}`.

    Each projection on a random direction of the unit sphere is solved exactly by sorting, also for
    n ≠ m. The standard error is that of the plug-in functional: the 1-D Kantorovich potentials,
    averaged over the projections, are its influence function; the finite set of projections is
    part of the definition (pass the same generator state to compare). Between two samples of one
    law it is about n^{-1/2}, not 0: compare with the floor.

    Arguments:
        x: Samples, `(n, *event)`.
        y: Samples, `(m, *event)`.
        n_projections: Number of directions.
        generator: Source of the directions.

    References:
        | Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015)
        | https://doi.org/10.1007/s10851-014-0506-3
        | Central Limit Theorems for Empirical Transportation Cost in General Dimension
          (del Barrio & Loubes, 2019)
        | https://doi.org/10.1214/18-AOP1275
    """
    a, b = two_samples(x, y)
    check_count(n_projections, "n_projections")
    z = torch.empty(n_projections, a.shape[1], dtype=a.dtype, device=a.device)
    theta = randn_like(z, generator)
    theta = theta / theta.norm(dim=1, keepdim=True)
    i, j, mass = _quantile_coupling(len(a), len(b), a.device)
    total = torch.zeros((), dtype=a.dtype, device=a.device)
    potential_a, potential_b = a.new_zeros(len(a)), b.new_zeros(len(b))
    for directions in theta.split(min(32, rows_held(4 * (len(a) + len(b))))):
        (u, order_u), (v, order_v) = ((w @ directions.mT).sort(dim=0) for w in (a, b))
        gap = u[i] - v[j]
        total += (mass.unsqueeze(1) * gap.square()).sum()
        # phi'(u) = 2 (u - T(u)), integrated by the trapezoid rule over the order statistics
        for w, order, index, sign, potential in (
            (u, order_u, i, 1.0, potential_a),
            (v, order_v, j, -1.0, potential_b),
        ):
            slope = torch.zeros_like(w).index_add(0, index, 2 * sign * mass.unsqueeze(1) * gap)
            slope = slope * len(w)
            steps = 0.5 * (slope[1:] + slope[:-1]) * w.diff(dim=0)
            phi = torch.cat([w.new_zeros(1, w.shape[1]), steps.cumsum(0)])
            potential += torch.zeros_like(phi).scatter(0, order, phi - phi.mean(0)).sum(1)
    squared = float(total) / n_projections
    variance = sum(float((p / n_projections).var()) / len(p) for p in (potential_a, potential_b))
    value = math.sqrt(squared)
    error = math.sqrt(variance) / (2 * value) if value > 0 else 0.0
    return finite_result(Estimate(value, error), "x or y")
