"""What a training keeps: the averaged weights that are best on held-out data, and a warning."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import Tensor

from ..core import mean_and_error
from ..scores.masked import Mask
from ..scores.model import ScoreModel
from .held_out import Measurement
from .share import corrected, fit_share

LATE = 2.0
"""Standard errors by which the lowest loss is to be lower than that at the end, of a model of parts."""


class Best:
    """The averaged weights with the lowest loss on held-out data so far, and their step."""

    def __init__(self) -> None:
        self.step, self.loss = 0, float("inf")
        self.weights: dict[str, Tensor] | None = None

    def offer(self, step: int, loss: float, model: ScoreModel) -> None:
        """Keep a copy of these weights if their loss is lower."""
        if loss < self.loss:
            self.step, self.loss = step, loss
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}

    def state(self) -> dict[str, Any] | None:
        """Return all of it, or None if nothing was offered."""
        if self.weights is None:
            return None
        return {"step": self.step, "loss": self.loss, "weights": self.weights}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from a state."""
        if state is not None:
            self.step, self.loss, self.weights = state["step"], state["loss"], state["weights"]


def conclude(averaged: ScoreModel, best: Best, measure: Measurement, seed: int) -> ScoreModel:
    """Return the model to keep: the best weights, and as much of a correction as helps.

    Arguments:
        averaged: The averaged weights at the end.
        best: The best ones, if there are held-out data.
        measure: The measurement, last called at the end.
        seed: The seed of the measurements.
    """
    final, last = copy.deepcopy(averaged), measure.losses
    z = measure.z if measure.asked else None
    by_parts = isinstance(final.condition, Mask) and corrected(final) is not None
    if by_parts and best.weights is not None and z is not None and len(z) > 1:
        return _of_parts(final, best, measure, seed)
    if best.weights is not None:
        final.load_state_dict(best.weights)
        lowest = measure(final, seed)[0]
        if last is not None and measure.losses is not None and lowest is not None:
            rise = mean_and_error(last - measure.losses)
            if rise.value > max(3 * rise.standard_error, 0.01 * abs(lowest.value)):
                _warn(best.step, lowest.value, lowest.value + rise.value)
    if corrected(final) is not None and z is not None and len(z) > 1:
        fit_share(final, z, measure.condition, seed, measure.objective)
    return final


def _of_parts(late: ScoreModel, best: Best, measure: Measurement, seed: int) -> ScoreModel:
    """Return the last weights, or the best ones if their loss is lower, each with its shares.

    The loss sums over all columns, and says little about a column that is still being learned
    while others are memorised; a memorised column loses its share.
    """
    early = copy.deepcopy(late)
    early.load_state_dict(best.weights or {})
    losses = []
    for model in (late, early):
        assert measure.z is not None
        fit_share(model, measure.z, measure.condition, seed, measure.objective)
        measure(model, seed)
        assert measure.losses is not None
        losses.append(measure.losses)
    rise = mean_and_error(losses[0] - losses[1])
    return early if rise.value > LATE * rise.standard_error else late


def _warn(step: int, lowest: float, end: float) -> None:
    warnings.warn(
        f"the loss on held-out data rose from {lowest:.4g} at step {step} to {end:.4g} at the end: the "
        "network memorises its rows. The weights with the lowest loss are kept; fewer steps, a "
        "smaller network or more data would also help",
        stacklevel=5,
    )
