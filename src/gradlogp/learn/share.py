r"""How much of a learned correction is kept, level by level of noise.

With r = σ (s_θ − s_base), the loss of the share a of a correction is a parabola,

.. math::
    \tfrac12 E\|σ s_{base} + a r + ε\|^2, \qquad
    a^* = -\frac{E\langle r,\; σ s_{base} + ε \rangle}{E\|r\|^2}

so that least squares on rows that nothing was learned from says how much of it helps. Less one
standard error, and between 0 and 1, it is never worse than the base but by the error of that.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import Schedule, per_sample, randn_like
from ..noise.grids import least_time, noise_range
from ..noise.schedules import invert_log_snr
from ..scores.base import LEVELS
from ..scores.model import ScoreModel
from .held_out import conditioned

ENTRIES = 2**17
"""Entries looked at for each level: rows, or draws of the noise of few of them."""


def level_times(schedule: Schedule) -> Tensor:
    """Return the times of the levels of a share, geometric in σ/α, float64."""
    low, high = (min(max(v, math.exp(-14.9)), math.exp(14.9)) for v in noise_range(schedule))
    ratios = torch.logspace(math.log10(low), math.log10(high), LEVELS, dtype=torch.float64)
    if schedule.times is not None:  # the step that is nearest
        found = (schedule.log_snr(schedule.times) + 2 * ratios.log()[:, None]).abs().argmin(1)
        return schedule.times[found].double()
    log_snr = -2 * ratios.clamp(low, high).log()
    return invert_log_snr(schedule, log_snr, float(least_time(schedule)))


@torch.no_grad()
def fit_share(model: ScoreModel, z: Tensor, condition: Tensor | None, seed: int) -> None:
    """Set the share of the correction by rows z `(N, *event)`, in model coordinates.

    The noise is the same at every level, so that a share is smooth in σ, and comes in pairs ±ε. The
    standard error over rows is that of the ratio.

    Arguments:
        model: A model with a base.
        z: Rows that nothing was learned from, at least two.
        condition: Their conditions, as the network takes them.
        seed: Seed of the noise.
    """
    base = model.base
    assert base is not None
    n = len(z)
    times = level_times(model.schedule)
    index = torch.arange(0, n, max(1, n // max(64, ENTRIES // z[0].numel())), device=z.device)
    n, pairs = len(index), min(16, max(1, 512 // len(index)))
    rows, repeats = index.repeat(2 * pairs), 2 * pairs
    g = torch.Generator(z.device).manual_seed(seed)
    z = z[rows]
    half = randn_like(z[: n * pairs], g)
    eps = torch.cat([half, -half])  # what is odd in ε, nearly all at small σ, cancels in pairs
    score = conditioned(model, None if condition is None else condition[rows])
    base.share.fill_(1.0)
    shares = []
    for t in times:
        alpha, sigma = (v.to(z) for v in model.schedule(t))
        a, b = per_sample(alpha, z), per_sample(sigma, z)
        z_t = a * z + b * eps
        known = base.score(z_t, alpha.reshape(1, 1), sigma.reshape(1, 1))
        r = (b * (score(z_t, t.to(z)) - known)).flatten(1).double()
        left = (b * known + eps).flatten(1).double()
        gain = -(r * left).sum(1).reshape(repeats, n).mean(0)
        size = r.square().sum(1).reshape(repeats, n).mean(0)
        share = gain.sum() / size.sum()
        error = (gain - share * size).square().sum().sqrt() / size.sum() * math.sqrt(n / (n - 1))
        shares.append((share - error).nan_to_num(0.0).clamp(0, 1))
    span = torch.stack([model._noise_input(t) for t in times[[0, -1]]])
    base.span.copy_(span)
    base.share.copy_(torch.stack(shares))
