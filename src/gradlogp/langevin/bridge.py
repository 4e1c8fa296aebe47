"""The ratio of two normalisers from weights in both directions, with the least variance."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Estimate


class Bridge(NamedTuple):
    """What joins both directions: log Z, its error, the overlap, and how far they contradict.

    `contradiction` is in standard errors: whether densities of forward and reverse values differ by
    the factor w/Z.
    """

    log_z: float
    standard_error: float
    overlap: float
    contradiction: float


def bridge(
    forward: Float[Tensor, " n"], reverse: Float[Tensor, " m"], batches: int | None = None
) -> Bridge:
    r"""Return log Z from log w of particles that went forward and of others that came back.

    .. math::
        \sum_{i \le n} (1 - f(\log w_i)) = \sum_{j \le m} f(-\log w'_j), \quad
        f(v) = \frac{1}{1 + \frac{m}{n} e^{v - \log Z}}

    with f the probability that the value v is that of a particle that went forward. Among all bridges
    it has the least variance, (2/n) (1/I − 1) for n + n independent particles with
    I = ∫ 2 p q / (p + q), and it is finite where that of a mean of weights is not. Kernels have to be
    reversible.

    References:
        | Efficient Estimation of Free Energy Differences from Monte Carlo Data (Bennett, 1976)
        | https://doi.org/10.1016/0021-9991(76)90078-4
        | Simulating Ratios of Normalizing Constants via a Simple Identity (Meng & Wong, 1996)
        | https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n43/j6n43.htm

    Arguments:
        forward: log w, whose mean weight is Z.
        reverse: log w', whose mean weight is 1/Z.
        batches: For reverse values that are correlated in their order: so many batches of neighbours
            give the error of their mean.
    """
    from scipy.optimize import brentq

    n, m = len(forward), len(reverse)
    ahead, back, shift = forward.double(), -reverse.double(), math.log(n / m)

    def parts(c: float) -> tuple[Tensor, Tensor]:
        return torch.sigmoid(c - ahead + shift), torch.sigmoid(c - back + shift)

    def excess(c: float) -> float:
        f, g = parts(c)
        return float((1 - f).sum() - g.sum())

    ends = torch.cat([ahead, back])
    ends = ends[ends.isfinite()]
    if len(ends) == 0:
        return Bridge(-math.inf, math.inf, 0.0, math.inf)
    width = 2 * abs(shift) + math.log(n + m) + 1
    c = float(brentq(excess, float(ends.min()) - width, float(ends.max()) + width))
    f, g = parts(c)
    overlap = float((f * (1 - f)).sum() + (g * (1 - g)).sum())
    if overlap == 0:
        return Bridge(c, math.inf, 0.0, math.inf)

    def error(u: Tensor, v: Tensor) -> float:
        return math.sqrt(n * float(u.var()) + m**2 * _variance_of_mean(v, batches))

    # Σ f (1 − f) over the first is Σ f² over the second; c was fitted, which lessens the difference
    gap = float((f * (1 - f)).sum() - g.square().sum())
    slope = float((f * (1 - f) * (1 - 2 * f)).sum() - (2 * g.square() * (1 - g)).sum()) / overlap
    spread = error(f * (1 - f) + slope * (1 - f), g.square() + slope * g)
    return Bridge(c, error(f, g) / overlap, overlap, gap / spread if spread > 0 else math.inf)


def _variance_of_mean(values: Tensor, batches: int | None) -> float:
    """Return the variance of the mean; by batches of neighbours where values are correlated."""
    if batches is None:
        return float(values.var()) / len(values)
    means = torch.stack([part.mean() for part in values.tensor_split(batches)])
    return float(means.var()) / batches


def log_mean(log_w: Tensor, batches: int | None = None) -> tuple[Estimate, float]:
    """Return log of the mean weight with its error, and the effective number of weights."""
    most = float(log_w.max())
    if most == -math.inf:
        return Estimate(-math.inf, math.inf), 0.0
    w = (log_w - most).exp()
    mean = float(w.mean())
    error = math.sqrt(_variance_of_mean(w, batches)) / mean
    return Estimate(most + math.log(mean), error), float(w.sum() ** 2 / w.square().sum())
