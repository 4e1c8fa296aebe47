r"""How much of a learned correction is kept, for each noise level.

With r = σ (s_θ − s_base), the loss of the share a of a correction is a parabola,

.. math::
    \tfrac12 E\|σ s_{base} + a r + ε\|^2, \qquad
    a^* = -\frac{E\langle r,\; σ s_{base} + ε \rangle}{E\|r\|^2}

so that least squares on held-out rows determines how much of it helps. With a reduction by one
standard error, and clipped to [0, 1], the result is never worse than the base by more than the
error of this estimate. With known parts of a row each column has its own share: the least-squares
value for numbers, and one standard error more for levels and for flags that say whether there is a
number, because the law from which these start knows little about other columns.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..core import Schedule, per_sample, randn_like
from ..noise.coordinates import Data, pieces
from ..noise.grids import least_time, noise_range
from ..noise.schedules import invert_log_snr
from ..scores.masked import Mask
from ..scores.model import ScoreModel
from ..scores.shared import LEVELS, ROWS, Shared
from ..scores.waves import Waves
from .batches import rows
from .held_out import Objective, conditioned, encoded
from .objectives.masked import masked, masked_errors

ENTRIES = 2**17
"""Entries looked at for each level: rows, or draws of the noise of few of them."""

LINEAR = 256
"""Training rows at each level that the linear part of a correction is measured on."""


def corrected(model: ScoreModel) -> Shared | None:
    """Return the law that the network corrects, which has the share of it; None without one."""
    of = model.condition
    return of if isinstance(of, Mask) and of.cov is not None else model.base


def level_times(schedule: Schedule) -> Tensor:
    """Return the times of the levels of a share, geometric in σ/α, float64."""
    low, high = (min(max(v, math.exp(-14.9)), math.exp(14.9)) for v in noise_range(schedule))
    ratios = torch.logspace(math.log10(low), math.log10(high), LEVELS, dtype=torch.float64)
    if schedule.times is not None:  # the step that is nearest
        found = (schedule.log_snr(schedule.times) + 2 * ratios.log()[:, None]).abs().argmin(1)
        return schedule.times[found].double()
    log_snr = -2 * ratios.clamp(low, high).log()
    return invert_log_snr(schedule, log_snr, float(least_time(schedule)))


def evaluations(model: ScoreModel, data: Data, n: int) -> int:
    """Return how many rows `fit_linear`, of data, and `fit_share`, of n rows, ask the network for.

    Of a model of parts of rows the last and the best weights each have their shares.
    """
    linear = min(LINEAR, len(data)) * LEVELS if isinstance(model.base, Waves) else 0
    often = 2 if isinstance(model.condition, Mask) else 1
    return linear + often * of_share(model, n)


def of_share(model: ScoreModel, n: int) -> int:
    """Return how many rows `fit_share` asks the network for once, of n held-out rows."""
    if corrected(model) is None or n < 2:
        return 0
    step, pairs = _design(n, model.event_shape.numel())
    often = 2 if isinstance(model.condition, Mask) else 1  # with and without the network's part
    return often * len(range(0, n, step)) * 2 * pairs * LEVELS


def _design(n: int, entries: int) -> tuple[int, int]:
    """Return how far apart the rows are that a share is fitted to, and the pairs of noise of each."""
    step = max(1, n // max(64, ENTRIES // entries))
    looked_at = len(range(0, n, step))
    most = max(1, ENTRIES // (2 * looked_at * entries))  # pairs, of large images
    return step, min(16, max(1, 512 // looked_at), most)


@torch.no_grad()
def fit_linear(model: ScoreModel, data: Data, condition: Tensor | None, seed: int) -> None:
    """Fit the linear part of the correction of images to rows of the training data.

    Held-out rows would be too few. Each level has rows of its own, so that errors of neighbouring
    levels average out.
    """
    base = model.base
    if not isinstance(base, Waves):
        return
    g = torch.Generator().manual_seed(seed)
    noise = torch.Generator(base.mean.device).manual_seed(seed + 1)
    base.linear.zero_()
    base.share.fill_(1.0)
    times = level_times(model.schedule)
    base.span.copy_(torch.stack([model._noise_input(t) for t in times[[0, -1]]]))
    found, squares = [], _mean_squares(base, model, data)
    for t in times:
        some = torch.randperm(len(data), generator=g)[:LINEAR].sort().values
        z = encoded(model, rows(data, some, model.like))
        if condition is None or model.condition is None:
            score = conditioned(model, None)
        else:
            score = conditioned(model, model.condition.encode(condition[some]).to(z.device))
        alpha, sigma = (v.to(z).reshape(1, 1) for v in model.schedule(t))
        eps = randn_like(z, noise)
        z_t = alpha[..., None, None] * z + sigma[..., None, None] * eps
        found.append(base.lacks(score(z_t, t.to(z)), z, eps, alpha, sigma, squares))
    base.linear.copy_(torch.stack(found))


def _mean_squares(base: Waves, model: ScoreModel, data: Data) -> Tensor:
    """Return the means of the squared waves of data, `(1, C, H, W)`."""
    some = data[:: -(-len(data) // ROWS)]
    total = torch.zeros_like(base.variances)
    for _, part in pieces(some):
        total += base.squares(encoded(model, part.double())).sum(0)
    return (total / len(some)).unsqueeze(0)


@torch.no_grad()
def fit_share(
    model: ScoreModel, z: Tensor, condition: Tensor | None, seed: int,
    objective: Objective | None = None,
) -> None:  # fmt: skip
    """Fit the share of the correction to rows z `(N, *event)`, in model coordinates.

    The noise is the same at every level, so that the share is smooth in σ, and is used in pairs
    ±ε. The standard error over rows is that of the ratio.

    Of a model that knows parts of a row nothing is set unless its objective is that of `Masks`, which
    says what is hidden.
    """
    base, law = model.base, corrected(model)
    assert law is not None
    by_parts = isinstance(objective, partial) and objective.func is masked
    if base is None and not by_parts:
        return
    times = level_times(model.schedule)
    step, pairs = _design(len(z), z[0].numel())
    index = torch.arange(0, len(z), step, device=z.device)
    n, rows, repeats = len(index), index.repeat(2 * pairs), 2 * pairs
    g = torch.Generator(z.device).manual_seed(seed)
    z = z[rows]
    half = randn_like(z[: n * pairs], g)
    eps = torch.cat([half, -half])  # what is odd in ε, nearly all at small σ, cancels in pairs
    score = conditioned(model, None if condition is None else condition[rows])
    law.share.fill_(1.0)
    words = _words(law, objective) if base is None else torch.zeros(())
    shares = []
    for t in times:
        if base is None:
            assert isinstance(objective, partial)
            gain, size = _of_entries(law, score, z, t, objective.keywords, seed)
        else:
            alpha, sigma = (v.to(z) for v in model.schedule(t))
            a, b = per_sample(alpha, z), per_sample(sigma, z)
            z_t = a * z + b * eps
            known = base.score(z_t, alpha.reshape(1, 1), sigma.reshape(1, 1))
            r = (b * (score(z_t, t.to(z)) - known)).flatten(1).double()
            left = (b * known + eps).flatten(1).double()
            gain, size = -(r * left).sum(1), r.square().sum(1)
        share, error = _ratio(*(v.unflatten(0, (repeats, n)).mean(0) for v in (gain, size)))
        share = share + error * words if base is None else (share - error)
        shares.append(
            share.where(share.isfinite(), 0.0).clamp(0, 1)
        )  # 0/0: there is no correction
    span = torch.stack([model._noise_input(t) for t in times[[0, -1]]])
    law.span.copy_(span)
    law.share.copy_(torch.stack(shares))


def _words(law: Any, objective: Any) -> Tensor:
    """Return 1 for entries that are levels, or say whether there is a number."""
    levels = law.levels.block >= 0
    return (levels | torch.tensor(objective.keywords["flags"], device=levels.device)).double()


def _ratio(gain: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ratio of the means of two columns or tables of n rows, and its standard error."""
    n, share = len(gain), gain.sum(0) / size.sum(0)
    error = (gain - share * size).square().sum(0).sqrt() / size.sum(0) * math.sqrt(n / (n - 1))
    return share, error


def _of_entries(
    law: Shared, score: Any, z: Tensor, t: Tensor, hidden: dict[str, Any], seed: int
) -> tuple[Tensor, Tensor]:
    """Return −<r, σ s_base + ε> and |r|² of each entry, summed over those that go together."""
    errors = []
    for share in (0.0, 1.0):
        law.share.fill_(share)
        g = torch.Generator(z.device).manual_seed(seed)
        errors.append(
            masked_errors(score, z, t=t.to(z).expand(len(z)), generator=g, **hidden).double()
        )
    known, r = errors[0], errors[1] - errors[0]
    each = list(zip(hidden["groups"], hidden["flags"], strict=True))
    together = torch.tensor([[a == b for a in each] for b in each], device=z.device).double()
    return -(r * known) @ together, r.square() @ together
