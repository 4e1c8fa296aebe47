"""What is kept of a training: the averaged weights that are best on held-out data, and a warning."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import Tensor

from ..core import mean_and_error
from ..scores.model import ScoreModel
from .held_out import Measurement
from .share import fit_share


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
    """Return the model that is kept: the best weights, and as much of a correction as helps.

    Arguments:
        averaged: The averaged weights at the end.
        best: The best ones, if held-out data were measured.
        measure: What measures, called last at the end.
        seed: The seed of the measurements.
    """
    final, last = copy.deepcopy(averaged), measure.losses
    if best.weights is not None:
        final.load_state_dict(best.weights)
        lowest = measure(final, seed)[0]
        if last is not None and measure.losses is not None and lowest is not None:
            rise = mean_and_error(last - measure.losses)
            if rise.value > max(3 * rise.standard_error, 0.01 * abs(lowest.value)):
                _warn(best.step, lowest.value, lowest.value + rise.value)
    z = measure.z if measure.asked else None
    if final.corrected is not None and z is not None and len(z) > 1:
        fit_share(final, z, measure.condition, seed, measure.objective)
    return final


def _warn(step: int, lowest: float, end: float) -> None:
    warnings.warn(
        f"the loss on held-out data rose from {lowest:.4g} at step {step} to {end:.4g} at the end: the "
        "network learns its rows by heart. The weights of the lowest loss are kept; fewer steps, a "
        "smaller network or more data would do as well",
        stacklevel=5,
    )
