r"""Two samples column by column and pair by pair: location, scale, shape, correlation.

Everything but the last test is computed on normal scores, Φ⁻¹ of the rank in both samples
together. They have no units, a heavy tail affects them no more than a light one, and no outlier
dominates. All statistics accept weights w_i of rows, normalised to Σ w_i = 1; they are equivalent
to 1/Σ w_i² rows of equal weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import check_kind


class Effects(NamedTuple):
    """A statistic of each column: 0 where the laws are equal, its standard error and its p-value."""

    value: Float[Tensor, " k"]
    standard_error: Float[Tensor, " k"]
    p_value: Float[Tensor, " k"]


def weights_of(x: Tensor, weight: Tensor | None) -> Tensor:
    """Return weights `(n,)` in float64 that sum to 1; equal ones for None.

    Raises:
        ValueError: For weights that are not `(n,)`, negative, not finite, or all 0.
    """
    if weight is None:
        return torch.full((len(x),), 1 / len(x), dtype=torch.float64, device=x.device)
    check_kind(weight, "sample_weight", Tensor, "a tensor with one weight per row")
    w = torch.as_tensor(weight.detach(), dtype=torch.float64, device=x.device)
    if w.shape != x.shape[:1]:
        raise ValueError(f"sample_weight must have shape ({len(x)},), got {tuple(w.shape)}")
    if not bool((w >= 0).all()) or not math.isfinite(float(w.sum())) or float(w.sum()) == 0:
        raise ValueError(
            "sample_weight must be finite, non-negative, and not 0 everywhere; "
            f"got values from {float(w.min()):g} to {float(w.max()):g}"
        )
    return w / w.sum()


def effective(w: Tensor) -> float:
    """Return how many rows of equal weight know as much, 1/Σ w²."""
    return 1 / float(w.square().sum())


def normal_scores(sets: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
    r"""Return :math:`z = Φ^{-1}(\hat F(x))` of every column, F̂ the law of all sets together.

    F̂ counts equal values half, so that ties have the same score, and the mass of a set is its
    effective number of rows. Scores are centred and have variance 1 over all sets; those of a
    constant column are 0.

    Arguments:
        sets: Points, `(n, d)` each.
        weights: Their weights, `(n,)` each.
    """
    mass = torch.cat([w * effective(w) for w in weights])
    mass = mass / mass.sum()
    pooled = torch.cat(list(sets))
    z = torch.empty_like(pooled)
    for j in range(pooled.shape[1]):
        _, place, counts = pooled[:, j].unique(return_inverse=True, return_counts=True)
        at = torch.zeros(len(counts), dtype=mass.dtype, device=mass.device)
        at.index_add_(0, place, mass)
        middle = (at.cumsum(0) - at / 2)[place]
        score = torch.special.ndtri(middle.clamp(1e-12, 1 - 1e-12))
        score = score - mass @ score
        deviation = (mass @ score.square()).sqrt()
        z[:, j] = score / deviation if float(deviation) > 1e-9 else 0.0
    return list(z.split([len(x) for x in sets]))


def _moments(z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of every column."""
    mean = w @ z
    return mean, w @ (z - mean).square()


def quantile(x: Tensor, w: Tensor, q: float) -> Tensor:
    """Return the weighted quantile of every column."""
    values, order = x.sort(0)
    at = (w[order].cumsum(0) >= q - 1e-12).to(torch.uint8).argmax(0)
    return values.gather(0, at[None])[0]


def _two_sided(z: Tensor) -> Tensor:
    """Return P(|Z| > |z|) for a standard normal Z."""
    return torch.special.erfc(z.abs() / math.sqrt(2))


def _difference(a: Tensor, b: Tensor, w_a: Tensor, w_b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the difference of two means, its standard error, and its p-value if the laws are equal.

    The error bar uses each sample's own variance, the p-value a common one: under equal laws that
    is the variance over all relabellings.
    """
    n, m = effective(w_a), effective(w_b)
    (mean_a, var_a), (mean_b, var_b) = _moments(a, w_a), _moments(b, w_b)
    gap = mean_a - mean_b
    error = (var_a / (n - 1) + var_b / (m - 1)).sqrt()
    # the gap belongs to the variance of both together: relabelled, they have one mean
    between = gap.square() * n * m / (n + m) ** 2
    common = (n * var_a + m * var_b) / (n + m) + between
    null = (common * (n + m) / (n + m - 1) * (1 / n + 1 / m)).sqrt()
    z = torch.where(gap == 0, 0.0, gap / null.clamp(min=1e-300))
    return gap, error, _two_sided(z)


def location(z_x: Tensor, z_y: Tensor, w_x: Tensor, w_y: Tensor) -> Effects:
    r"""Compare means of normal scores, :math:`\bar z_x - \bar z_y` (van der Waerden's test).

    A shift of a normal column by a small fraction δ of its standard deviation is a difference of
    δ.

    Arguments:
        z_x: Normal scores, `(n, d)`.
        z_y: Normal scores, `(m, d)`.
        w_x: Weights, `(n,)`.
        w_y: Weights, `(m,)`.

    References:
        | Order tests for the two-sample problem and their power (van der Waerden, 1952)
        | https://doi.org/10.1016/S1385-7258(52)50063-5
    """
    return Effects(*_difference(z_x, z_y, w_x, w_y))


def scale(z_x: Tensor, z_y: Tensor, w_x: Tensor, w_y: Tensor) -> Effects:
    r"""Compare spreads A = Σ w |z − median(z)| of normal scores, as the ratio A_x/A_y − 1.

    The p-value is that of the difference A_x − A_y (Brown and Forsythe's test). The median is where
    A is least, so that its own error plays no part to first order, whatever the law's shape. Arguments
    are those of `location`.

    References:
        | Robust Tests for the Equality of Variances (Brown & Forsythe, 1974)
        | https://doi.org/10.1080/01621459.1974.10482955
    """
    a, b = ((z - quantile(z, w, 0.5)).abs() for z, w in ((z_x, w_x), (z_y, w_y)))
    _, _, p_value = _difference(a, b, w_x, w_y)
    (A, var_a), (B, var_b) = _moments(a, w_x), _moments(b, w_y)
    ratio = A / B
    error = (
        var_a / (effective(w_x) - 1) + ratio.square() * var_b / (effective(w_y) - 1)
    ).sqrt() / B
    same = torch.where(A == 0, 0.0, math.inf)  # both constant, or only the other one
    value = torch.where(B > 0, ratio - 1, same)
    return Effects(value, torch.where(B > 0, error, 0.0), p_value)


def kolmogorov_smirnov(x: Tensor, y: Tensor, w_x: Tensor, w_y: Tensor) -> Effects:
    r"""Compare distribution functions of every column by :math:`D = \sup_u |F_x(u) - F_y(u)|`.

    D lies between 0 and 1 and is not 0 under equal laws but about 0.87 (1/n + 1/m)^{1/2} on average.
    The p-value is the asymptotic one with Stephens' correction; ties make it too large, never too
    small.

    Arguments:
        x: Points, `(n, d)`.
        y: Points, `(m, d)`.
        w_x: Weights, `(n,)`.
        w_y: Weights, `(m,)`.

    References:
        | Use of the Kolmogorov–Smirnov, Cramér–von Mises and related statistics without extensive
          tables (Stephens, 1970)
        | https://doi.org/10.1111/j.2517-6161.1970.tb00821.x
    """
    from scipy.stats import kstwobign

    n, m = effective(w_x), effective(w_y)
    pooled, order = torch.cat([x, y]).sort(0)
    jump = torch.cat([w_x, -w_y])[order]
    below = torch.cat([w_x, torch.zeros_like(w_y)])[order].cumsum(0)  # F_x
    gap = jump.cumsum(0)
    # within a run of equal values only its end is a value of the functions
    end = torch.ones_like(pooled, dtype=torch.bool)
    end[:-1] = pooled[1:] > pooled[:-1]
    gap = torch.where(end, gap, 0.0)
    where = gap.abs().argmax(0, keepdim=True)
    D = gap.gather(0, where)[0].abs()
    F = below.gather(0, where)[0]
    G = F - gap.gather(0, where)[0]
    error = ((F * (1 - F)).clamp(min=0) / n + (G * (1 - G)).clamp(min=0) / m).sqrt()
    root = math.sqrt(n * m / (n + m))
    p = kstwobign.sf(((root + 0.12 + 0.11 / root) * D).cpu().numpy())
    return Effects(D, error, torch.as_tensor(p).to(D))


class Pairs(NamedTuple):
    """Correlations of every pair of columns in both samples, and the difference in arctanh r."""

    x: Float[Tensor, "d d"]
    y: Float[Tensor, "d d"]
    difference: Float[Tensor, "d d"]
    standard_error: Float[Tensor, "d d"]
    p_value: Float[Tensor, "d d"]


NEARLY_ONE = 1 - 1e-6
"""Correlations beyond are taken as this: arctanh of 1 is infinite."""


def correlations(z_x: Tensor, z_y: Tensor, w_x: Tensor, w_y: Tensor) -> Pairs:
    r"""Compare the correlations r of normal scores by Fisher's :math:`\operatorname{arctanh} r`.

    The variance of r is that of its influence function, whatever the law of the pair,

    .. math:: ψ = ab - \tfrac{r}{2} (a^2 + b^2), \qquad
        \operatorname{Var} \operatorname{arctanh} r = \frac{E ψ^2}{n (1 - r^2)^2}

    with a and b in standard units: 1/n for a bivariate normal, more if squares are correlated. A
    constant column has no correlation; the result is 0 with a p-value of 1. Arguments are those of
    `location`.
    """
    r_x, var_x = _correlation(z_x, w_x)
    r_y, var_y = _correlation(z_y, w_y)
    difference = r_x.atanh() - r_y.atanh()
    error = (var_x + var_y).sqrt()
    z = torch.where(difference.abs() < 1e-12, 0.0, difference / error.clamp(min=1e-12))
    known = ~(r_x.isnan() | r_y.isnan())  # a constant column has no correlation
    known &= ~torch.eye(len(r_x), dtype=torch.bool, device=r_x.device)
    p = torch.where(known, _two_sided(z), 1.0)
    r_x, r_y = (torch.where(r.isnan(), 0.0, r) for r in (r_x, r_y))
    difference, error = (torch.where(known, v, 0.0) for v in (difference, error))
    return Pairs(r_x, r_y, difference, error, p)


def _correlation(z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return r of every pair, NaN for a constant column, and the variance of arctanh r."""
    mean, variance = _moments(z, w)
    u = (z - mean) / torch.where(variance > 1e-18, variance, math.nan).sqrt()
    W = w.unsqueeze(1)
    r = (u.mT @ (W * u)).clamp(-NEARLY_ONE, NEARLY_ONE)
    squares = u.square()
    both = squares.mT @ (W * squares)  # E a²b²
    third = (squares * u).mT @ (W * u)  # E a³b
    fourth = w @ squares.square()
    ends = fourth.unsqueeze(1) + fourth + 2 * both
    psi = both - r * (third + third.mT) + r.square() / 4 * ends
    return r, psi.clamp(min=0) / (effective(w) - 1) / (1 - r.square()).square()
