"""Which of two trainings a model needs: both are begun, and held-out rows decide."""

from __future__ import annotations

import copy
import os
import warnings
from dataclasses import replace

import torch
from torch import Tensor

from ..core import Processes, mean_and_error
from ..learn import checkpoint
from ..learn.arguments import Asked
from ..learn.beginning import Beginning
from ..learn.held_out import CHECK_POINTS, Measurement
from ..learn.pace import SHARE
from ..learn.resuming import Begun
from ..learn.settings import TrainingSettings
from ..learn.share import corrected, fit_share, of_share
from ..scores.base import Base
from ..scores.masked import Mask
from ..scores.model import ScoreModel
from ..show.progress import bar

TRIED = 600, 300
"""Steps of the two trainings by which one is chosen, at most half of all: with the settings of either,
the second in larger batches; where both are trained alike the first holds for both. The correction
on diamonds gains nothing before step 500, and then all at once."""

LOST = 0.4
"""Of the minutes, what the training that is not chosen may take, and the comparison. On phoneme a
correction of 1,200 steps is 0.08 nats worse than one of 2,400, and a whole score of 400 steps, in less
time, 0.45 better."""

LEAST = 1000, 1000
"""Rows to learn from, and steps, from which it is worth the time."""

LOOKS = 4
"""Draws of noise for each held-out row in the comparison."""

APART = 6
"""Measurements on held-out rows of the training that is not chosen."""


def settled(
    asked: Asked, large: TrainingSettings, directory: str | os.PathLike[str] | None, *,
    seed: int, quiet: bool,
) -> Asked:  # fmt: skip
    """Return a training with its own settings or the large ones, and its first steps if it was begun.

    Arguments:
        asked: The training.
        large: Its other settings.
        directory: The checkpoint to continue from, where it was settled before.
        seed: Seed of the choice (`choose`).
        quiet: Whether to show no progress.
    """
    if directory is None:
        first = choose(asked, large, seed=seed, quiet=quiet)
        made = None if first is None else first.state["setup"]
    else:
        first, made = None, checkpoint.read_run(directory).get("settings")
    names = ["batch_size", "learning_rate", *(["steps"] if large.minutes is None else [])]
    other = isinstance(made, dict) and all(made.get(k) == getattr(large, k) for k in names)
    return replace(asked, settings=large if other else asked.settings, begun=first)


def choose(asked: Asked, large: TrainingSettings, *, seed: int, quiet: bool) -> Begun | None:
    """Begin a training in two ways, and return the one that is better on held-out rows.

    Beside a mixture the first learns its correction, and the second the whole score. A mixture is a
    good start, but its edges may be harder to undo than the score is to learn: then the mixture is
    only what the model falls back on, level by level. On diamonds, whose columns nearly determine one
    another, it is the other way round. The mixture alone does not show which it is. A model of
    parts of rows learns the same either way, with the settings of each.

    The second has to be better by two standard errors. The training that is chosen continues from
    its first steps.

    Chosen for mixtures on phoneme, letter, penbased, ring, twonorm and diamonds, and reported on magic.
    Nothing is tried for rows or steps below `LEAST`, for other models, and where there is nothing to
    choose. Nor is anything tried within minutes if it would take more than `LOST` of them, or
    leave the first training fewer steps.

    Arguments:
        asked: The first training. Of its model, which is untrained, only `base.fallback` may change,
            and its generator stays as it is.
        large: How the second is trained.
        seed: Seed of the comparison.
        quiet: Whether to show no progress.

    Returns:
        The first steps of what is chosen, for `learn.fit`; None if nothing was begun.
    """
    base, small, generator = asked.model.base, asked.settings, asked.generator
    mixture = base if isinstance(base, Base) and not base.follows and not base.fallback else None
    parts = isinstance(asked.model.condition, Mask) and small != large
    aside = 0 if asked.held_out is None else len(asked.held_out)
    if not (mixture is not None or parts) or len(asked.data) < LEAST[0] or aside < 2:
        return None
    if min(small.steps, large.steps) < LEAST[1]:
        return None
    assert generator is not None
    runs = []
    for second, settings in enumerate((small, large)):
        model = copy.deepcopy(asked.model)
        if mixture is not None:
            assert isinstance(model.base, Base)
            model.base.fallback = bool(second)
        own = torch.Generator().set_state(generator.get_state())
        how = replace(settings, compile=False)
        runs.append(Beginning(replace(asked, model=model, settings=how, generator=own)))
    n = min(aside, CHECK_POINTS)
    judged = 2 * (of_share(asked.model, n) / n + LOOKS) + APART
    losses: list[Tensor] = []
    try:
        steps = _planned(runs, TRIED if small != large else TRIED[:1] * 2, judged)
        with bar("choosing", quiet=quiet) as update, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training that goes on says how slow it is
            for run, n in zip(runs, steps, strict=True):
                for record in run.take(n):
                    update(record.step + sum(steps[: len(losses)]), sum(steps))
                if n:
                    losses.append(_losses(run.averaged.module, asked, seed))
    except FloatingPointError:  # no number at all
        return runs[0].begun
    second = False
    if losses:
        gain = mean_and_error(losses[0] - losses[1])
        second = Processes.here().of_first(gain.value > 2 * gain.standard_error)
    if mixture is not None:
        mixture.fallback = second
    return runs[second].begun


def _planned(runs: list[Beginning], most: tuple[int, int], judged: float) -> list[int]:
    """Return how many steps of each training to try: so many, but at most half of all; or none.

    Within minutes each training is left the steps for which the other and the comparison, which takes
    so many measurements, leave time.
    """
    if runs[0].minutes is None:
        return [min(n, run.planned() // 2) for n, run in zip(most, runs, strict=True)]
    shares: list[float] = []
    for n, run in zip(most, runs, strict=True):
        shares.append(n / run.planned())
        if shares[-1] > LOST:  # before a step of the other is measured, which may be a slow one
            break
    whole = [run.settings.steps for run in runs]
    lost = [
        other + judged * run.check / steps
        for other, run, steps in zip(shares[::-1], runs, whole, strict=False)
    ]
    left = [int((1 - SHARE - share) * steps) for share, steps in zip(lost, whole, strict=False)]
    if len(shares) < 2 or max(lost) > LOST or left[0] < LEAST[1]:
        left, most = [int((1 - SHARE * (len(shares) - 1)) * whole[0])], (0, 0)
    for run, steps in zip(runs, left, strict=False):
        run.plan(steps)
    return list(most)


def _losses(model: ScoreModel, asked: Asked, seed: int) -> Tensor:
    """Return the loss of each validation row with the share that these support."""
    measure = Measurement(
        model, asked.objective, asked.data, asked.condition, asked.held_out,
        asked.held_out_condition, None, model.like,
    )  # fmt: skip
    found = []
    assert measure.z is not None
    if corrected(model) is not None:
        fit_share(model, measure.z, measure.condition, seed, asked.objective)
    for i in range(LOOKS):
        measure(model, seed + i)
        assert measure.losses is not None
        found.append(measure.losses)
    return torch.stack(found).mean(0)
