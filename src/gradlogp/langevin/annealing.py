"""Particles moved through levels between two densities, and their weights in both directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Density, Estimate, Generator, Kernel, per_sample
from .kernels.steps import evaluated, started


@dataclass(frozen=True)
class Level:
    """The density p_0^{1−b} p_1^b."""

    base: Density
    target: Density
    b: float

    def log_prob(self, x: Tensor) -> Tensor:
        """Return (1 − b) log p_0(x) + b log p_1(x)."""
        return (1 - self.b) * self.base.log_prob(x) + self.b * self.target.log_prob(x)

    def score(self, x: Tensor) -> Tensor:
        """Return the same of the scores."""
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, from one evaluation of each end."""
        (p, s), (q, t) = evaluated(x, self.base), evaluated(x, self.target)
        return (1 - self.b) * p + self.b * q, (1 - self.b) * s + self.b * t

    def log_ratio(self, x: Tensor) -> Tensor:
        """Return log p_1 − log p_0, float64; −∞ where the target has no density."""
        ratio = (self.target.log_prob(x).double() - self.base.log_prob(x).double()).detach()
        return ratio.where(~ratio.isnan(), -torch.inf)


@dataclass(frozen=True)
class Walk:
    """Where annealed particles ended, what they collected, and how their moves were accepted."""

    log_w: Float[Tensor, " n"]
    increments: Float[Tensor, " K"]
    acceptance: Float[Tensor, " inner"]


def anneal(
    x: Float[Tensor, "n *event"],
    target: Density,
    base: Density,
    levels: Sequence[float],
    kernels: Sequence[Kernel[Any, Any]],
    *,
    n_steps: int = 1,
    generator: Generator | None = None,
) -> Walk:
    r"""Move particles through levels, and collect their weights.

    .. math:: \log w = \sum_k (b_{k+1} - b_k) \left(\log p_1(x_k) - \log p_0(x_k)\right)

    For draws x of the first level E w is Z(last)/Z(first), for all kernels that leave their level
    invariant. Descending levels give the reverse direction.

    References:
        | Nonequilibrium Equality for Free Energy Differences (Jarzynski, 1997)
        | https://doi.org/10.1103/PhysRevLett.78.2690
        | Annealed Importance Sampling (Neal, 2001)
        | https://doi.org/10.1023/A:1008923215028

    Arguments:
        x: Draws of the first level, `(n, *event)`.
        target: p_1, up to its constant.
        base: p_0.
        levels: b, from the first to the last.
        kernels: One for each level in between.
        n_steps: Number of steps of the kernel at a level.
        generator: Source of the noise.
    """
    log_w = x.new_zeros(len(x), dtype=torch.float64)
    increments, acceptances = [], []
    for k in range(len(levels) - 1):
        if k > 0:
            x, accepted = moved(
                kernels[k - 1], Level(base, target, levels[k]), x, n_steps, generator
            )
            acceptances.append(accepted)
        gained = (levels[k + 1] - levels[k]) * Level(base, target, levels[k]).log_ratio(x)
        increments.append(gained.mean())
        log_w = log_w + gained
        x = _alive(x, gained)
    inner = torch.tensor(acceptances, dtype=torch.float64)
    return Walk(log_w, torch.stack(increments), inner)


def _alive(x: Tensor, gained: Tensor) -> Tensor:
    """Put those that can only have weight 0 where one of the others is, so that all can be moved."""
    ok = gained > -torch.inf
    if bool(ok.all()) or not bool(ok.any()):
        return x
    places = ok.nonzero()[:, 0]
    return torch.where(
        per_sample(ok.to(x), x) > 0,
        x,
        x[places[torch.arange(len(x), device=x.device) % len(places)]],
    )


def moved(
    kernel: Kernel[Any, Any], level: Density, x: Tensor, n_steps: int, generator: Generator | None
) -> tuple[Tensor, float]:
    """Return the positions after n steps, and the mean acceptance, NaN where there is none."""
    state, accepted = started(kernel, x, level, generator), []
    for _ in range(n_steps):
        state, info = kernel.step(state, level, generator=generator)
        if (acceptance := getattr(info, "acceptance", None)) is not None:
            accepted.append(float(acceptance.mean()))
    return state.x, sum(accepted) / len(accepted) if accepted else math.nan


class Bridge(NamedTuple):
    """The combination of both directions: log Z, its error, the overlap, and their contradiction.

    `contradiction` is in standard errors: it tests whether the densities of forward and reverse
    values differ by the factor w/Z.
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

    with f the probability that the value v belongs to a forward particle. Among all bridges this
    one has the smallest variance, (2/n) (1/I − 1) for n + n independent particles with I = ∫ 2 p q
    / (p + q), and its variance is finite even if that of a mean of weights is not. Kernels must be
    reversible.

    References:
        | Efficient Estimation of Free Energy Differences from Monte Carlo Data (Bennett, 1976)
        | https://doi.org/10.1016/0021-9991(76)90078-4
        | Simulating Ratios of Normalizing Constants via a Simple Identity (Meng & Wong, 1996)
        | https://www3.stat.sinica.edu.tw/statistica/j6n4/j6n43/j6n43.htm

    Arguments:
        forward: log w, whose mean weight is Z.
        reverse: log w', whose mean weight is 1/Z.
        batches: For reverse values that are correlated in their order: the number of batches of
            neighbours from which the error of their mean is estimated.
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
