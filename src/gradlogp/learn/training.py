r"""Learning a score: an iterator of step records over AdamW with an averaged copy of the weights.

The average θ̄ ← d θ̄ + (1 − d) θ is what sampling uses. Its decay warms up, d_n = min(d, (1+n)/(10+n)):
without that, a short run ends as an average over weights from before it learned anything.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..core import (
    Estimate,
    NoisyScore,
    PartOfBatch,
    Processes,
    check_count,
    check_function,
    check_generator,
    check_kind,
    check_option,
    new_seed,
)
from ..noise.coordinates import Data, Scales, pieces
from ..noise.score_base import check_noisy_score, check_same_frame
from ..scores.model import ScoreModel
from ..scores.networks import drop
from . import checkpoint as ckpt
from .averages import Average, accelerated
from .batches import Batches, check_conditions, check_data, fingerprint, rows
from .claim import Claim
from .held_out import Measurement, Objective, conditioned, encoded
from .keeping import Best, conclude
from .objectives import multilevel
from .resuming import adamw, load_training, objective_name
from .settings import TrainingSettings, ema_decay
from .stopping import Stops


class Step(NamedTuple):
    """What one optimisation step did; the last two only where they were asked for."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    steps_per_second: float
    held_out: Estimate | None = None
    excess: Estimate | None = None


def fit(
    model: ScoreModel,
    data: Data,
    objective: Objective = multilevel,
    *,
    condition: Tensor | None = None,
    settings: TrainingSettings | None = None,
    standardize: bool | Literal["one"] = False,
    held_out: Data | None = None,
    held_out_condition: Tensor | None = None,
    exact: NoisyScore | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 500,
    extra: Mapping[str, Any] | None = None,
    resume: bool = False,
    finish: Callable[[ScoreModel], object] | None = None,
    generator: torch.Generator | None = None,
    **changes: Any,
) -> Iterator[Step]:
    """Train a model in place, yielding a record after every step.

    With held-out data the averaged weights of the lowest loss on them are kept
    (`TrainingSettings.keep_best`), and of a model with a base as much of the correction, level by
    level, as they support (`learn.share`); a warning says if the loss on them rose in the end.

    Arguments:
        model: The model; holds the averaged weights when the iteration ends or is broken off.
        data: `(N, *event)`, a tensor, an array or a memory map on disk.
        objective: The loss of each sample; its mean over the batch is minimised.
        condition: For a conditional network, one a row: classes, int64 `(N,)`, or float values
            `(N, *shape)`, whose scales are fitted and stored with the model.
        settings: How to train; `changes` override single fields, as in `fit(..., steps=500)`.
        standardize: Learn in coordinates of zero mean and unit variance, per column of vectors and
            per channel of `(C, L)` or `(C, H, W)`; "one": with one scale for all. They are fitted in
            float64 and become `model.coordinates`. The network always sees standardised input; this
            decides in which coordinates noise is isotropic. False keeps the model's coordinates.
        held_out: Data to measure the loss of the averaged weights on, with its standard error; the
            last record has that of the weights that are kept.
        held_out_condition: Their conditions.
        exact: The exact noisy score of the data's law, if known: records then show the excess
            over the floor of the loss. Of a conditional model one that can be given the same
            conditions, as the `ExactScore` of a `Joint` law.
        checkpoint: Directory to save to, at the end, when interrupted, and while training; what
            is learned up to the last whole step is in it. No other training can write there before
            this iteration has ended. In the main thread SIGTERM and SIGHUP save like Ctrl-C, and
            then raise `SystemExit(128 + number)`.
        checkpoint_every: Steps between saves.
        extra: More to keep in the checkpoint's configuration, JSON.
        resume: Go on from `checkpoint`; on a CPU the result is that of an unbroken run, bit for bit.
            Settings, objective, model and data must be those of that run.
        finish: Called with the model that is kept, after the last step and before it is saved; it
            may change it.
        generator: Where initial order and noise come from.
        **changes: Single fields of `TrainingSettings`.

    Raises:
        ValueError: For data, conditions or settings that do not fit; a checkpoint that does not.
        OSError: If the checkpoint cannot be written, or another training writes there.
        FloatingPointError: If the loss is no longer finite.
    """
    settings = TrainingSettings() if settings is None else settings
    check_kind(settings, "settings", TrainingSettings, "TrainingSettings")
    settings = replace(settings, **changes)
    if extra is not None:
        check_kind(extra, "extra", Mapping, "a dictionary")
    if checkpoint is not None:
        check_kind(checkpoint, "checkpoint", str | os.PathLike, "a directory")
    claim = None
    if checkpoint is not None:  # what cannot be saved is better refused now than in the end
        json.dumps([ckpt.describe(model), dict(extra or {})], allow_nan=False)
        claim = ckpt.claim(checkpoint) if Processes.here().first else None
    try:
        return _Fit(
            model, data, objective, condition, settings, standardize, held_out, held_out_condition,
            exact, claim, checkpoint, checkpoint_every, extra, resume, finish, generator,
        ).steps()  # fmt: skip
    except BaseException:
        if claim is not None:
            claim.release()
        raise


class _Fit:
    """The state of one training run."""

    def __init__(
        self,
        model: ScoreModel,
        data: Data,
        objective: Objective,
        condition: Tensor | None,
        settings: TrainingSettings,
        standardize: bool | Literal["one"],
        held_out: Data | None,
        held_out_condition: Tensor | None,
        exact: NoisyScore | None,
        claim: Claim | None,
        checkpoint: str | os.PathLike[str] | None,
        checkpoint_every: int,
        extra: Mapping[str, Any] | None,
        resume: bool,
        finish: Callable[[ScoreModel], object] | None,
        generator: torch.Generator | None,
    ) -> None:
        check_kind(model, "model", ScoreModel, "a ScoreModel")
        check_function(objective, "objective")
        check_generator(generator)
        check_data(data, model.event_shape)
        check_conditions(model, condition, len(data), "condition")
        if condition is None and settings.condition_dropout > 0:
            raise ValueError("condition_dropout= leaves out conditions: pass condition=")
        if not isinstance(standardize, bool):
            check_option(standardize, "standardize, if it is neither True nor False,", ("one",))
        if held_out is not None:
            check_data(held_out, model.event_shape, "held_out")
        elif held_out_condition is not None:
            raise ValueError("held_out_condition belongs to held_out=, which is missing")
        if held_out is not None:
            check_conditions(model, held_out_condition, len(held_out), "held_out_condition")
        check_count(checkpoint_every, "checkpoint_every")
        if finish is not None:
            check_function(finish, "finish")
        if resume and checkpoint is None:
            raise ValueError("resume=True needs checkpoint=, the directory to go on from")
        self.model, self.data, self.objective = model, data, objective
        self.settings, self.processes = settings, Processes.here()
        self.setup = vars(settings) | {
            "standardize": standardize, "n_samples": len(data), "data": fingerprint(data),
            "condition": None if condition is None else fingerprint(condition),
            "objective": objective_name(objective),
        }  # fmt: skip
        self.claim, self.checkpoint_every, self.extra = claim, checkpoint_every, extra
        self.stops, self.finish = Stops(), finish
        self.best = Best()
        self.final: ScoreModel | None = None  # what is kept, once all steps are done
        self.like = next(p for p in model.parameters() if p.requires_grad)
        self.processes.check_alike(self.setup, "data, objective and settings")
        self.processes.check_batch(min(settings.batch_size, len(data)))
        self.processes.make_alike(model)
        seed = self.processes.of_first(new_seed(generator))
        self.noise = torch.Generator(self.like.device).manual_seed(seed)
        self.batches = Batches(
            len(data), settings.batch_size, torch.Generator().manual_seed(seed + 1)
        )
        self.check_seed = seed + 2
        self.dropping = torch.Generator().manual_seed(seed + 3)
        self.step, self.seconds = 0, 0.0
        self.history: list[list[float | None]] = []
        self.mark: tuple[Any, ...] | None = None  # where the randomness of this step began
        self.whole = True  # False while the weights are half changed
        state = None
        if resume and checkpoint is not None:
            state = load_training(Path(checkpoint), model, settings, self.setup)
        else:
            scales: Scales | None = "each" if standardize is True else standardize or None
            model.fit_frame(data, scales)
            if condition is not None and model.condition is not None:
                model.fit_condition(data, condition, settings.condition_dropout)
        if exact is not None:
            check_noisy_score(exact, "exact")
            check_same_frame(model, exact, "the model and the exact score")
        self.condition: Tensor | None = None  # as the network takes it
        if condition is not None and model.condition is not None:
            self.condition = model.condition.encode(condition)
        # data in memory are encoded once, where they are; what lies on disk batch by batch
        self.z: Tensor | None = None
        if isinstance(data, Tensor):
            parts = (rows(part, slice(None), part) for _, part in pieces(data))
            self.z = torch.cat([model.coordinates.encode(x).to(self.like.dtype) for x in parts])
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = adamw(self.parameters, settings)
        self.averaged = Average(model, partial(ema_decay, settings.ema))
        self.averages = {
            n: Average(model, partial(ema_decay, 0.5 ** (1 / n))) for n in settings.ema_half_lives
        }
        self.working = accelerated(model, bfloat16=settings.bfloat16, compiled=settings.compile)
        if state is not None:
            self._restore(state)
        self.measure = Measurement(
            model, objective, data, condition, held_out, held_out_condition, exact, self.like
        )

    def state(self) -> dict[str, Any]:
        """Return all that an unbroken continuation depends on."""
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
            "noise": self.noise.get_state(),
            "batches": self.batches.state(),
            "dropping": self.dropping.get_state(),
            "check_seed": self.check_seed,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.averaged.load_state_dict(state["averaged"])
        for n, average in self.averages.items():
            average.load_state_dict(state["averages"][n])
        self.best.restore(state["best"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.noise.set_state(state["noise"])
        self.batches.restore(state["batches"])
        self.dropping.set_state(state["dropping"])
        self.step, self.seconds, self.history = state["step"], state["seconds"], state["history"]
        self.check_seed = state["check_seed"]

    def _save(self) -> None:
        if self.claim is None:
            return
        names = ("step", "loss", "held_out", "held_out_error", "excess", "excess_error")
        run = {
            "settings": vars(self.settings),
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
        """Return the weights that are handed over."""
        if self.final is not None:
            return self.final.state_dict()
        return self.best.weights or self.averaged.module.state_dict()

    def _conclude(self) -> None:
        """Settle what is kept, and let `finish` change it."""
        self.final = conclude(self.averaged.module, self.best, self.measure, self.check_seed)
        if self.finish is not None:
            self.finish(self.final)

    def _update(self) -> tuple[float, float]:
        """Do one optimisation step; return the loss and the gradient norm before clipping."""
        self.mark = self.batches.state(), self.noise.get_state(), self.dropping.get_state()
        whole = self.batches.next()
        mine = self.processes.rows(len(whole))
        index = whole[mine]
        if self.z is None:
            z = encoded(self.model, rows(self.data, index, self.like))
        else:
            z = self.z[index.to(self.z.device)].to(self.like.device)
        condition = None
        if self.condition is not None and self.model.condition is not None:
            condition = self.condition[index].to(z.device)
            if condition.is_floating_point():
                condition = condition.to(z)
            if self.settings.condition_dropout > 0:
                gone = drop(self.settings.condition_dropout, len(whole), self.dropping)[mine]
                condition = self.model.condition.drop(condition, gone.to(z.device))
        self.optimizer.zero_grad(set_to_none=True)
        score = conditioned(self.working, condition)
        alone = self.processes.alone
        noise = self.noise if alone else PartOfBatch(self.noise, mine, len(whole))
        each = self.objective(score, z, generator=noise)
        check_kind(each, "what objective returns", Tensor, "a tensor (B,)")
        loss = each.mean() if alone else each.sum() / len(whole)
        loss.backward()
        total = loss.detach()
        if not alone:
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            self.processes.add_up([total, *gradients])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        value = float(total)
        self.whole = False
        if not math.isfinite(value + float(norm)):
            raise FloatingPointError(
                f"the loss is not finite at step {self.step + 1} (loss {value}, gradient norm "
                f"{float(norm)}); lower learning_rate, or look for extreme values in the data"
            )
        with self.stops.held():
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.rate(self.step)
            self.optimizer.step()
            for average in (self.averaged, *self.averages.values()):
                average.update()
            self.step += 1
            self.history.append([self.step, value, None, None, None, None])
            self.mark, self.whole = None, True
        return value, float(norm)

    def steps(self) -> Iterator[Step]:
        """Yield a record after every step; save and hand over the averaged weights at the end."""
        with self.stops:
            yield from self._steps()

    def _steps(self) -> Iterator[Step]:
        try:
            self.model.train()
            while self.step < self.settings.steps:
                began = time.perf_counter()
                rate = self.settings.rate(self.step)
                loss, norm = self._update()
                last = self.step == self.settings.steps
                held_out = above = None
                if last or self.step % self.settings.check_interval == 0:
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
                yield Step(self.step, loss, norm, rate, speed, held_out, above)
            if self.final is None:  # of a run that had ended and is resumed
                self._conclude()
        finally:
            # Also when interrupted or broken off, nothing learned is lost: a step that was begun is
            # undone by turning the generators back. If the weights were caught half changed or the
            # loss was not finite, the last checkpoint stays as it is.
            try:
                if self.whole:
                    self._rewind()
                    with self.stops.held():
                        self._save()
            finally:
                if self.claim is not None:
                    self.claim.release()
                self.model.load_state_dict(self._kept())
                self.model.eval()

    def _rewind(self) -> None:
        if self.mark is not None:
            self.batches.restore(self.mark[0])
            self.noise.set_state(self.mark[1])
            self.dropping.set_state(self.mark[2])
