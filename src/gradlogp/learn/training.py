r"""Learning a score: an iterator of step records over AdamW with an averaged copy of the weights.

Sampling uses the average θ̄ ← d θ̄ + (1 − d) θ. Its decay has a warm-up, d_n = min(d,
(1+n)/(10+n)): otherwise a short run would end with an average over weights from before it learned
anything.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import NoisyScore, Processes, check_kind, new_seed
from ..noise.score_base import check_noisy_score, check_same_frame
from ..scores.model import ScoreModel
from . import checkpoint as ckpt
from . import pace
from .ahead import Ahead, together
from .arguments import SAVE_EVERY, Asked, check_asked, fit_frame
from .batches import fingerprint
from .config import describe
from .feed import Augment, Feed
from .gradients import Descent, accumulate, clip
from .held_out import Measurement, Objective
from .keeping import Average, Best, accelerated, conclude, ending
from .mapped import Mapped
from .objectives import multilevel
from .record import Reading, Step
from .resuming import Begun, adamw, load_training, objective_name, steps_of
from .settings import TrainingSettings, ema_decay
from .stopping import Stops


def fit(
    model: ScoreModel,
    data: Any,
    objective: Objective = multilevel,
    *,
    condition: Tensor | None = None,
    settings: TrainingSettings | None = None,
    standardize: bool | Literal["one"] = False,
    keep_frame: bool = False,
    augment: Augment | None = None,
    held_out: Any = None,
    held_out_condition: Tensor | None = None,
    exact: NoisyScore | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = SAVE_EVERY,
    extra: Mapping[str, Any] | None = None,
    resume: bool = False,
    begun: Begun | None = None,
    finish: Callable[[ScoreModel], object] | None = None,
    generator: torch.Generator | None = None,
    **changes: Any,
) -> Iterator[Step]:
    """Train a model in place, yielding a record after every step.

    With held-out data the averaged weights with the lowest loss on them are kept
    (`TrainingSettings.keep_best`), and for a model with a base as much of the correction at each
    noise level as they support (`learn.share`); a warning says if the loss on them rose at the
    end. For a model that accepts known parts of rows the last weights are kept, with a share for
    each column, unless the earlier ones, with their shares, are better.

    Arguments:
        model: The model; holds the averaged weights when the iteration ends or is interrupted.
        data: `(N, *event)`, a tensor, an array or a memory map on disk; a map-style dataset; or a
            `DataLoader` of one, for its workers (`learn.mapped`). The order is that of this run.
        objective: The loss of each sample; its mean over the batch is minimised.
        condition: For a conditional network, one per row: classes, int64 `(N,)`, or float values
            `(N, *shape)`, whose scales are fitted and stored with the model.
        settings: How to train; `changes` override single fields, as in `fit(..., steps=500)`.
        standardize: Learn in coordinates of zero mean and unit variance, per column of vectors and
            per channel of `(C, L)` or `(C, H, W)`; "one": with one scale for all. They are fitted in
            float64 and become `model.coordinates`. The network always sees standardised input; this
            decides in which coordinates noise is isotropic. False keeps the model's coordinates.
        keep_frame: Continue with a trained model: coordinates, moments, base and scales of
            conditions do not change, and training starts from its weights. Use this to train
            beyond the planned steps, or to fine-tune on other data.
        augment: augment(x, generator) -> like x: changes each batch in the units of the data, such
            as flipping images. Held-out data, coordinates and moments are not augmented.
        held_out: Data for the loss of the averaged weights, with its standard error; the last
            record has that of the weights that are kept.
        held_out_condition: The conditions of the held-out data.
        exact: The exact noisy score of the data's law, if known, given the same conditions (of a
            `Joint` law): records then show the excess over the floor of the loss.
        checkpoint: Directory to save to, during training, at the end, and when interrupted, up to
            the last complete step. No other training can write there before this iteration has
            ended. In the main thread SIGTERM and SIGHUP save like Ctrl-C, then raise
            `SystemExit(128 + n)`.
        checkpoint_every: Steps between saves.
        extra: Additional entries of the checkpoint's configuration, JSON.
        resume: Continue from `checkpoint`; on a CPU the result is that of an unbroken run, bit for
            bit. Settings, objective, model and data must be those of that run.
        begun: The first steps of this training (`learn.beginning`), of the same model, data and
            settings. Their records come first, at once: the model is already that of the last one.
        finish: Called with the model to keep, before it is saved; it may change the model.
        generator: Source of the order and the noise.
        **changes: Single fields of `TrainingSettings`.

    Raises:
        ValueError: For data, conditions or settings that do not fit; a checkpoint that does not.
        OSError: If the checkpoint cannot be written, or another training writes there.
        FloatingPointError: If the loss is no longer finite. On a GPU this is noticed a step later;
            the optimiser does not move in such a step.

    Examples:
        >>> model = glp.ScoreModel(glp.MLP(1, 16), glp.schedules.VP())
        >>> [step.step for step in glp.fit(model, torch.randn(500, 1), steps=3)]
        [1, 2, 3]
    """
    settings = TrainingSettings() if settings is None else settings
    check_kind(settings, "settings", TrainingSettings, "TrainingSettings")
    settings = replace(settings, **changes)
    if extra is not None:
        check_kind(extra, "extra", Mapping, "a dictionary")
    claim = None
    if checkpoint is not None:  # what cannot be saved is better refused now than in the end
        check_kind(checkpoint, "checkpoint", str | os.PathLike, "a directory")
        json.dumps([describe(model), dict(extra or {})], allow_nan=False)
        claim = ckpt.claim(checkpoint) if Processes.here().first else None
    try:
        return Training(Asked(
            model, data, objective, condition, settings, standardize, keep_frame, augment, held_out,
            held_out_condition, exact, claim, checkpoint, checkpoint_every, extra, resume, finish,
            generator, begun,
        )).steps()  # fmt: skip
    except BaseException:
        if claim is not None:
            claim.release()
        raise


class Training:
    """The state of one training run."""

    def __init__(self, asked: Asked) -> None:
        asked, began = check_asked(asked), pace.clock()
        model, data, settings = asked.model, asked.data, asked.settings
        objective, condition, augment = asked.objective, asked.condition, asked.augment
        resume, checkpoint, exact = asked.resume, asked.checkpoint, asked.exact
        self.model, self.objective = model, objective
        self.settings, self.processes = settings, Processes.here()
        self.minutes = settings.minutes  # None once the steps are known
        self.setup = vars(settings) | {
            "standardize": asked.standardize, "n_samples": len(data), "data": fingerprint(data),
            "condition": None if condition is None else fingerprint(condition),
            "objective": objective_name(objective), "keep_frame": asked.keep_frame,
            "augment": None if augment is None else objective_name(augment),
        }  # fmt: skip
        self.claim, self.checkpoint_every = asked.claim, asked.checkpoint_every
        self.extra, self.stops, self.finish = asked.extra, Stops(), asked.finish
        self.best, self.taken = Best(), () if asked.begun is None else asked.begun.records
        self.final: ScoreModel | None = None  # what is kept, once all steps are done
        self.like = next(p for p in model.parameters() if p.requires_grad)
        self.processes.check_alike(self.setup, "data, objective and settings")
        self.size = settings.batch(model.event_shape)
        if isinstance(data, Mapped) and settings.batch_size is None:
            self.size = data.batch_size or self.size
        self.processes.check_batch(min(self.size, len(data)))
        self.processes.make_alike(model)
        seed = self.processes.of_first(new_seed(asked.generator))
        self.check_seed = seed + 2
        self.step, self.seconds, self.check = 0, 0.0, 0.0  # a check in steps, if it was measured
        self.history: list[list[float | None]] = []
        self.unread: list[tuple[Reading, list[float | None]]] = []  # and their rows in it
        n = together(
            model, objective, min(self.size, len(data)), settings.condition_dropout,
            encoded=isinstance(data, Tensor) and augment is None,
        )  # fmt: skip
        self.whole, state = True, None  # whole: False while the weights are half changed
        if resume and checkpoint is not None:
            self.plan(steps_of(Path(checkpoint), settings))
            state = load_training(Path(checkpoint), model, self.settings, self.setup, n)
        elif asked.begun is not None:
            state = asked.begun.continued(self.setup)
            self.plan(state["setup"]["steps"])
            model.load_state_dict(state["model"])
        else:
            fit_frame(asked)
        if exact is not None:
            check_noisy_score(exact, "exact")
            check_same_frame(model, exact, "the model and the exact score")
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = adamw(self.parameters, settings)
        self.descend = Descent(self.optimizer)
        self.averaged = Average(model, partial(ema_decay, settings.ema))
        self.averages = {
            n: Average(model, partial(ema_decay, 0.5 ** (1 / n))) for n in settings.ema_half_lives
        }
        working = accelerated(model, bfloat16=settings.bfloat16, compiled=settings.compile)
        self.ahead = Ahead(
            n, working, objective, Feed(model, data, self.size, augment, self.processes, seed + 1),
            condition, settings.condition_dropout, self.processes, seed,
        )  # fmt: skip
        if state is not None:
            self._restore(state)
        self.measure = Measurement(
            model, objective, data, condition, asked.held_out, asked.held_out_condition, exact,
            self.like,
        )  # fmt: skip
        self.took = pace.clock() - began

    def state(self) -> dict[str, Any]:
        """Return all that an unbroken continuation depends on."""
        self._read()
        return {
            "setup": self.setup,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "averages": {n: average.state_dict() for n, average in self.averages.items()},
            "best": self.best.state(),
            "optimizer": self.optimizer.state_dict(),
            **self.ahead.state(),
            "check_seed": self.check_seed,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.averaged.load_state_dict(state["averaged"])
        for n, average in self.averages.items():
            average.load_state_dict(state["averages"][n])
        self.best.restore(state["best"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.check_seed = state["check_seed"]
        self.ahead.restore(state, self.check_seed - 1)

    def plan(self, steps: int | None) -> None:
        """Settle how many steps there are, where they follow from a time."""
        if steps is not None:
            self.settings = replace(self.settings, steps=steps, minutes=None)
            self.setup["steps"], self.minutes = steps, None

    def measure_speed(self) -> None:
        """Find how many steps fit into the time by taking some, of which nothing stays."""
        assert self.minutes is not None
        before, minutes = copy.deepcopy(self.state()), self.minutes
        steps, self.check = pace.steps_within(
            minutes, self._update, lambda: self.measure(self.averaged.module, self.check_seed),
            self.processes.of_first, self._read,
            ending(self.model, self.measure, self.finish), self.took, self.settings.check_every,
        )  # fmt: skip
        self._read()
        self.model.load_state_dict(before["model"])
        self._restore(before)
        self.whole = True
        self.plan(steps)

    def _save(self) -> None:
        if self.claim is None:
            return
        names = ("step", "loss", "held_out", "held_out_error", "excess", "excess_error")
        run = {
            "settings": {k: self.setup[k] for k in vars(self.settings)},
            "step": self.step,
            "seconds": self.seconds,
            "history": {"columns": names, "rows": self.history},
        }
        ckpt.save(
            self.claim.path, self.model, weights=self._kept(),
            averages={n: a.module.state_dict() for n, a in self.averages.items()},
            run=run, extra=self.extra, training=self.state(), claimed=self.claim,
        )  # fmt: skip

    def _kept(self) -> Mapping[str, Tensor]:
        """Return the final weights."""
        if self.final is not None:
            return self.final.state_dict()
        return self.best.weights or self.averaged.module.state_dict()

    def _conclude(self) -> None:
        """Settle what is kept, and let `finish` change it."""
        self.final = conclude(self.averaged.module, self.best, self.measure, self.check_seed)
        if self.finish is not None:
            self.finish(self.final)

    def _update(self) -> Reading:
        """Do one optimisation step; return where its loss and gradient norm can be read."""
        batch = self.ahead.next(self.step)
        for p in self.parameters:  # what `zero_grad` does, which takes as long as ten operations
            p.grad = None
        total = accumulate(batch, self.settings.accumulate)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not self.processes.alone:
            self.processes.add_up([total, *gradients])
        numbers = torch.stack([total, clip(gradients, self.settings.clip).to(total)])
        reading = Reading(self.step + 1, numbers)
        self._read()  # of the step before: on a GPU it ends while this one is prepared
        if not reading.ahead:
            self._finite(reading)
        self.whole = False
        with self.stops.held():
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.rate(self.step)
            self.descend(reading.failed)
            for average in (self.averaged, *self.averages.values()):
                average.update()
            self.step += 1
            self.history.append([self.step, None, None, None, None, None])
            self.unread.append((reading, self.history[-1]))
            self.ahead.done()
            self.whole = True
        return reading

    def _read(self) -> None:
        """Enter the losses of the last steps into the history."""
        for reading, row in self.unread:
            row[1] = self._finite(reading)
        self.unread.clear()

    def _finite(self, reading: Reading) -> float:
        """Return a loss; if it is not finite, the last checkpoint stays as it is."""
        try:
            return reading.check()
        except FloatingPointError:
            self.whole = False
            raise

    def steps(self) -> Iterator[Step]:
        """Yield a record after every step; save and return the averaged weights at the end."""
        with self.stops:
            yield from self._steps()

    def _steps(self) -> Iterator[Step]:
        try:
            self.model.train()
            if self.minutes is not None:
                self.measure_speed()
            yield from self.taken
            while self.step < self.settings.steps:
                began = time.perf_counter()
                rate = self.settings.rate(self.step)
                reading = self._update()
                if self.step == max(len(self.taken) + 1, min(pace.LEAST, self.settings.steps)):
                    pace.warn_if_slow(
                        self.settings.steps, (self.seconds + time.perf_counter() - began) / self.step,
                        self.size, self.model.event_shape, self.like.device, self.setup["minutes"],
                    )  # fmt: skip
                last = self.step == self.settings.steps
                held_out = above = None
                if last or self.step % self.settings.check_interval == 0:
                    self._read()
                    held_out, above = self.measure(self.averaged.module, self.check_seed)
                    if held_out is not None and self.settings.keep_best:
                        self.best.offer(self.step, held_out.value, self.averaged.module)
                    if last:
                        self._conclude()
                        held_out, above = self.measure(self.final or self.model, self.check_seed)
                    self.history[-1][2:] = [*(held_out or (None, None)), *(above or (None, None))]
                self.seconds += time.perf_counter() - began
                speed = self.step / self.seconds
                if not last and self.step % self.checkpoint_every == 0:
                    self._save()
                yield Step(self.step, reading, rate, speed, held_out, above, self.settings.steps)
            if self.final is None:  # of a run that had ended and is resumed
                self._conclude()
        finally:
            # Nothing learned is lost: a step that was begun is drawn again.
            # If weights are half changed or the loss is not finite, the last checkpoint stays as it is.
            self.ahead.feed.close()
            try:
                if self.whole and self.minutes is None:
                    with self.stops.held():
                        self._save()
            finally:
                if self.claim is not None:
                    self.claim.release()
                self.model.load_state_dict(self._kept())
                self.model.eval()
