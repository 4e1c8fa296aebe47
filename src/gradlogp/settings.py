"""How to train, and what a step of training tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from .core import Estimate


class Step(NamedTuple):
    """What one optimisation step did; the last two only where they were asked for."""

    step: int
    loss: float
    gradient_norm: float
    learning_rate: float
    steps_per_second: float
    held_out: Estimate | None = None
    excess: Estimate | None = None


@dataclass(frozen=True)
class Settings:
    """How to train; stored with a checkpoint, and a resumed run must agree with it.

    Arguments:
        steps: Optimisation steps.
        batch_size: Samples a step.
        learning_rate: Peak learning rate of AdamW.
        warm_up: Steps over which the rate rises linearly; it then falls as a half cosine to 0.
        weight_decay: AdamW's.
        ema: Decay of the averaged weights, once warm.
        clip: Largest gradient norm.
    """

    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 0.0
    ema: float = 0.999
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.warm_up < 0:
            raise ValueError(
                f"needs steps >= 1, batch_size >= 1, warm_up >= 0, got {self.steps}, "
                f"{self.batch_size}, {self.warm_up}"
            )
        if not (self.learning_rate > 0 and self.weight_decay >= 0 and self.clip > 0):
            raise ValueError("learning_rate and clip must be positive, weight_decay at least 0")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / (self.warm_up + 1))
        progress = max(0.0, (step - self.warm_up) / max(1, self.steps - self.warm_up))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(decay: float, n: int) -> float:
    """Return the decay of the n-th averaging, min(decay, (1 + n)/(10 + n))."""
    return min(decay, (1 + n) / (10 + n))
