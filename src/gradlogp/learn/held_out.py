"""How good is a model that is being trained: its loss on held-out data, its excess over the floor."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core import Estimate, NoisyScoreFn, mean_and_error
from ..scores.model import ScoreModel
from .batches import Data, rows
from .objectives import draw_times, excess

Objective = Callable[..., Tensor]
"""objective(noisy_score, x, schedule, generator=...) -> the loss of each sample, `(B,)`."""

CHECK_POINTS = 4096  # held-out points looked at; more would cost time and no longer move the error


def losses(
    objective: Objective, model: ScoreModel, x: Tensor, labels: Tensor | None, g: torch.Generator
) -> Tensor:
    """Return the loss of each sample, `(B,)`; x in model coordinates."""
    score = model if labels is None else model.given(labels)
    return objective(score, x, model.schedule, generator=g)


class Measurement:
    """What is measured of a model while it is trained, always on the same points and noise.

    Arguments:
        model: The model, for its coordinates.
        objective: The loss of each sample.
        data: What it learns from; looked at for the excess where nothing is held out.
        held_out: Data to measure the loss on.
        held_out_labels: Their classes.
        exact: The exact noisy score of the data's law, if known.
        like: A tensor of the dtype and on the device of the model.
    """

    def __init__(
        self,
        model: ScoreModel,
        objective: Objective,
        data: Data,
        held_out: Data | None,
        held_out_labels: Tensor | None,
        exact: NoisyScoreFn | None,
        like: Tensor,
    ) -> None:
        self.objective, self.data, self.exact, self.like = objective, data, exact, like
        self.held_out = self.labels = None
        if held_out is not None:
            self.held_out = model.encode(rows(held_out, _spread(held_out), like))
            if held_out_labels is not None:
                self.labels = held_out_labels[_spread(held_out_labels)].to(like.device)

    @torch.no_grad()
    def __call__(self, model: ScoreModel, seed: int) -> tuple[Estimate | None, Estimate | None]:
        """Return the held-out loss and the excess over the floor, each if it was asked for."""
        x = self.held_out
        if x is None:
            if self.exact is None:
                return None, None
            x = model.encode(rows(self.data, _spread(self.data), self.like))
        g = torch.Generator(x.device).manual_seed(seed)
        held_out = above = None
        if self.held_out is not None:
            held_out = mean_and_error(losses(self.objective, model, x, self.labels, g))
        if self.exact is not None:
            t = draw_times(model.schedule, x.new_empty(len(x)), g)
            above = mean_and_error(excess(model, self.exact, x, model.schedule, t, generator=g))
        return held_out, above


def _spread(data: Data) -> slice:
    """Return at most `CHECK_POINTS` rows spread evenly, whatever order they are in."""
    return slice(None, None, -(-len(data) // CHECK_POINTS))
