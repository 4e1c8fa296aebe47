r"""Kernel Stein discrepancy: do these points come from the law with this score?

No draws of the law are needed and no normaliser: for X, X' independent with score s the Stein
kernel has E k_0(X, X') = 0, and > 0 for any other law of X (if the kernel is suitable for it).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    ScoreFn,
    check_count,
    check_finite,
    check_number,
    check_points,
    distances,
    evaluate,
    rand_like,
    rows_held,
    subsample,
    warn_of_cost,
)
from .two_sample import components

MANY_POINTS = 20_000
"""Points above which a warning comes of a time that grows as their square: minutes."""


class SteinDiscrepancy(NamedTuple):
    """KSD² (unbiased), its standard error, and the p-value of "the points have this score"."""

    value: float
    standard_error: float
    p_value: float


def stein_kernel(
    x: Float[Tensor, "n d"],
    s_x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    s_y: Float[Tensor, "m d"],
    *,
    c: float = 1.0,
    beta: float = -0.5,
) -> Float[Tensor, "n m"]:
    r"""Return the Stein kernel of the inverse multiquadric k(x, y) = (c² + ‖x − y‖²)^β.

    .. math::
        k_0(x, y) &= s(x)^\top s(y)\, k + s(x)^\top \nabla_y k + s(y)^\top \nabla_x k
                     + \nabla_x \cdot \nabla_y k \\
                  &= b^β s(x)^\top s(y) - 2β b^{β-1} (s(x) - s(y))^\top r - 2 β d\, b^{β-1}
                     - 4 β (β-1) b^{β-2} \|r\|^2

    with r = x − y, b = c² + ‖r‖² and d the dimension.

    References:
        | Measuring Sample Quality with Kernels (Gorham & Mackey, 2017)
        | https://arxiv.org/abs/1703.01717
    """
    d, square = x.shape[1], distances(x, y).square()
    b = c**2 + square
    # (s(x) − s(y))ᵀ(x − y) from inner products: n·m·d numbers are never held
    cross = (s_x * x).sum(1)[:, None] + (s_y * y).sum(1) - s_x @ y.mT - x @ s_y.mT
    inner = s_x @ s_y.mT - 2 * beta * (cross + d) / b - 4 * beta * (beta - 1) * square / b**2
    return inner * b**beta


def ksd(
    score: ScoreFn,
    x: Float[Tensor, "n *event"],
    *,
    c: float | Literal["median"] = 1.0,
    beta: float = -0.5,
    n_bootstrap: int = 500,
    flip: float = 0.5,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
) -> SteinDiscrepancy:
    r"""Squared kernel Stein discrepancy between points and a score, as a U-statistic.

    .. math:: KSD^2 = \frac{1}{n(n-1)} \sum_{i \ne j} k_0(x_i, x_j)

    with the Stein kernel of the inverse multiquadric (`stein_kernel`). Its mean is 0 if x has this
    score, and it may then be negative. The standard error is the root of
    :math:`\frac{4(n-2) ζ_1 + 2 ζ_2}{n(n-1)}` with unbiased estimates of Hoeffding's ζ_1, set to 0 if
    negative, and ζ_2. It is also valid near 0, where ζ_1 is 0 and the error bar is up to about 1.4
    times too long. There the statistic is skewed as well: judge by the p-value, a wild bootstrap
    that compares with :math:`\sum_{i \ne j} w_i w_j k_0(x_i, x_j) / (n(n-1))` for random signs w.

    Like the score it is blind to wrong weights of modes that are far apart. Time grows as n² (d +
    n_bootstrap), with a warning from 20,000 points on, and memory as n · n_bootstrap.

    Arguments:
        score: s(x), `(B, *event) -> (B, *event)`.
        x: Points, `(n, *event)`.
        c: Scale of the kernel, or "median" for the median distance of the points (of at most 1000
            of them). That makes the kernel depend on the points.
        beta: β in (−1, 0).
        n_bootstrap: Number of sign vectors of the bootstrap.
        flip: Probability that the sign changes from one point to the next: ½ for independent
            points; about 1/τ for successive draws of one chain whose autocorrelation time is τ.
            The standard error is for independent points only.
        chunk_size: Rows of the kernel matrix held at a time; by default as many as need some 64
            MB.
        generator: Source of signs and subsample.

    Raises:
        ValueError: For fewer than 4 points, points or scores that are not finite, or an argument
            outside its range.

    References:
        | A Kernelized Stein Discrepancy for Goodness-of-fit Tests (Liu, Lee & Jordan, 2016)
        | https://arxiv.org/abs/1602.03253
        | A Kernel Test of Goodness of Fit (Chwialkowski et al., 2016)
        | https://arxiv.org/abs/1602.02964
        | Measuring Sample Quality with Kernels (Gorham & Mackey, 2017)
        | https://arxiv.org/abs/1703.01717

    Examples:
        >>> law, g = glp.Gaussian([0.0]), torch.Generator().manual_seed(0)
        >>> x = law.sample(200, generator=g)
        >>> glp.metrics.ksd(law.score, x + 1.0, generator=g).p_value < 0.01
        True
    """
    points, scores = _checked(score, x)
    check_number(beta, "beta", above=-1, below=0)
    check_number(flip, "flip", above=0, most=0.5)
    check_count(n_bootstrap, "n_bootstrap")
    n = len(points)
    warn_of_cost(
        n, MANY_POINTS, "a kernel Stein discrepancy",
        "use every k-th point, or mean_score, whose cost is linear",
    )  # fmt: skip
    chunk_size = rows_held(8 * n) if chunk_size is None else chunk_size
    check_count(chunk_size, "chunk_size")
    scale = _scale(c, points, generator)
    change = rand_like(points.new_empty(n_bootstrap, n), generator) < flip
    # the first sign does not matter: w_i w_j is what counts
    signs = torch.where(change, -1.0, 1.0).to(points).cumprod(1)
    rows, squares = points.new_zeros(n), points.new_zeros(())
    null = points.new_zeros(n_bootstrap)
    for start in range(0, n, chunk_size):
        part = slice(start, min(start + chunk_size, n))
        k_0 = stein_kernel(points[part], scores[part], points, scores, c=scale, beta=beta)
        k_0.diagonal(start).zero_()
        rows[part] = k_0.sum(1)
        squares += k_0.square().sum()
        null += ((signs @ k_0.mT) * signs[:, part]).sum(1)
    total, pairs = rows.sum(), n * (n - 1)
    tie = 1e-12 * (pairs * squares).sqrt()  # equal signs give the statistic again, to rounding
    p_value = (1 + int((null >= total - tie).sum())) / (1 + n_bootstrap)
    zeta_1, zeta_2 = components(rows, squares)
    variance = (4 * (n - 2) * max(zeta_1, 0.0) + 2 * max(zeta_2, 0.0)) / pairs
    return SteinDiscrepancy(float(total) / pairs, math.sqrt(variance), p_value)


def _checked(score: ScoreFn, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return points, about their mean, and scores, flat and in float64."""
    check_points(x, least=4)  # the error of a U-statistic needs them
    s = evaluate(score, x, finite=True).detach()
    points = x.detach().double().flatten(1)
    check_finite(points.square().sum(1), "the squared norm of x")
    check_finite(s.double().flatten(1).square().sum(1), "the squared norm of the score at x")
    # k_0 depends on differences of points; inner products lose digits where points are far out
    return points - points.mean(0), s.double().flatten(1)


def _scale(
    c: float | Literal["median"], points: Tensor, generator: torch.Generator | None
) -> float:
    if isinstance(c, str) and c == "median":
        median = float(torch.pdist(subsample(points, 1000, generator)).median())
        if median == 0:
            raise ValueError("more than half of all pairs of points coincide; pass a number for c")
        return median
    check_number(c, "c", above=0, why="; or pass 'median'")
    return float(c)
