"""Measurements of a model in training: its loss on held-out data, its excess over the floor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core import Estimate, Generator, NoisyScore, mean_and_error, shown
from ..noise.coordinates import Data
from ..scores.conditioned import ConditionedScore
from ..scores.masked import Mask, MaskedScore
from ..scores.model import ScoreModel
from .batches import rows
from .objectives import draw_times, excess

Objective = Callable[..., Tensor]
"""objective(score, z, generator=...) -> the loss of each sample, `(B,)`; z in model coordinates."""

CHECK_POINTS = 4096  # held-out points looked at; more would cost time and no longer move the error


def encoded(model: ScoreModel, x: Tensor) -> Tensor:
    """Return data in the coordinates and the dtype of the model."""
    return model.coordinates.encode(x).to(model.like)


def conditioned(model: ScoreModel, condition: Tensor | None) -> NoisyScore:
    """Return the score of samples of these conditions, given as the network takes them."""
    if condition is None:
        return model
    made = MaskedScore if isinstance(model.condition, Mask) else ConditionedScore
    return made(model, condition)


class Measurement:
    """Measurements of a model in training, always on the same points and noise.

    Arguments as in `fit`; without held-out data the excess is that on training points. `like` is a
    tensor with the dtype and device of the model.
    """

    def __init__(
        self,
        model: ScoreModel,
        objective: Objective,
        data: Data,
        condition: Tensor | None,
        held_out: Data | None,
        held_out_condition: Tensor | None,
        exact: NoisyScore | None,
        like: Tensor,
    ) -> None:
        self.objective, self.exact = objective, exact
        self.trained_on = data, condition
        self.asked = held_out is not None
        self.losses: Tensor | None = None  # of each held-out point, when last measured
        self.z: Tensor | None = None
        self.condition: Tensor | None = None
        points, given = (data, condition) if held_out is None else (held_out, held_out_condition)
        if held_out is not None or exact is not None:
            every = _spread(points)
            self.z = encoded(model, rows(points, every, like))
            if not bool(self.z.flatten(1).square().sum(1).isfinite().all()):
                name = "data" if held_out is None else "held_out"
                raise ValueError(
                    f"{name} has rows so far from the data that their squares overflow; remove them"
                )
            if given is not None and model.condition is not None:
                self.condition = model.condition.encode(given[every]).to(like.device)
                self.exact = None if exact is None else exact.given(given[every])

    @torch.no_grad()
    def __call__(self, model: ScoreModel, seed: int) -> tuple[Estimate | None, Estimate | None]:
        """Return the held-out loss and the excess over the floor, each if it was requested."""
        if self.z is None:
            return None, None
        g = torch.Generator(self.z.device).manual_seed(seed)
        score, held_out, above = conditioned(model, self.condition), None, None
        if self.asked:
            self.losses = losses_of(self.objective, score, self.z, g)
            held_out = mean_and_error(self.losses)
        if self.exact is not None:
            t = draw_times(model.schedule, self.z.new_empty(len(self.z)), g)
            above = mean_and_error(excess(score, self.exact, self.z, t, generator=g))
        return held_out, above


def losses_of(objective: Objective, score: NoisyScore, z: Tensor, generator: Generator) -> Tensor:
    """Return the loss of each sample; `ValueError` if the objective averages them, or sums."""
    losses = objective(score, z, generator=generator)
    if not isinstance(losses, Tensor) or losses.shape != (len(z),) or losses.is_complex():
        raise ValueError(
            f"objective must return the loss of each sample, a tensor ({len(z)},), "
            f"got {shown(losses)}; do not average them"
        )
    return losses


def _spread(data: Data) -> slice:
    """Return at most `CHECK_POINTS` rows spread evenly, whatever order they are in."""
    return slice(None, None, -(-len(data) // CHECK_POINTS))
