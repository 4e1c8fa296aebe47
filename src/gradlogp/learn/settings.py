"""How to train, and what a step of training tells."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ..core import Estimate


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
class TrainingSettings:
    """How to train; stored with a checkpoint, and a resumed run must agree with it.

    Arguments:
        steps: Optimisation steps.
        batch_size: Samples a step.
        learning_rate: Peak learning rate of AdamW.
        warm_up: Steps over which the rate rises linearly; it then falls as a half cosine to 0.
        weight_decay: AdamW's.
        ema: Decay of the averaged weights, once warm.
        clip: Largest gradient norm.
        ema_half_lives: More averages kept beside that one, each by the steps n after which a step
            counts half, so of decay 2^{−1/n}. All averages warm up alike, so that none reaches
            back further than about a twelfth of the steps done. A checkpoint holds them all, and
            `checkpoint.load(directory, ema=n)` takes one: how long to average is best seen on
            samples, afterwards.
        condition_dropout: Probability of leaving a sample's condition out, so that a conditional
            model learns the unconditional score too (`ScoreModel.unconditional`). What is left
            out has a stream of its own: batches, times and noise stay what they were.
        bfloat16: Whether the network computes in bfloat16 (autocast) while training; weights,
            loss and averages keep their dtype. For GPUs: on a CPU without bfloat16 arithmetic a
            step takes two to three times as long.
        compile: Whether to train through `torch.compile`, which needs a C++ compiler on a CPU and
            minutes for the first step. Neither changes the model that comes out but by rounding.

    References:
        | Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024)
        | https://arxiv.org/abs/2312.02696
    """

    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 0.0
    ema: float = 0.999
    clip: float = 1.0
    ema_half_lives: tuple[float, ...] = ()
    condition_dropout: float = 0.0
    bfloat16: bool = False
    compile: bool = False

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
        lives = tuple(float(n) for n in self.ema_half_lives)
        if not all(0 < n < math.inf for n in lives) or len(set(lives)) < len(lives):
            raise ValueError(
                f"ema_half_lives must be different numbers of steps above 0, got {lives}"
            )
        object.__setattr__(self, "ema_half_lives", lives)
        if not 0 <= self.condition_dropout < 1:
            raise ValueError(f"condition_dropout must lie in [0, 1), got {self.condition_dropout}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / (self.warm_up + 1))
        progress = max(0.0, (step - self.warm_up) / max(1, self.steps - self.warm_up))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * progress))


def ema_decay(decay: float, n: int) -> float:
    """Return the decay of the n-th averaging, min(decay, (1 + n)/(10 + n))."""
    return min(decay, (1 + n) / (10 + n))
