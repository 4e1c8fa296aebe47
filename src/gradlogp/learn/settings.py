"""How to train: the only place with defaults of training. Needs no PyTorch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class TrainingSettings:
    """How to train; stored with a checkpoint, and a resumed run must have the same settings.

    Arguments:
        steps: Optimisation steps.
        minutes: The time that training may take, in place of steps. The number of steps is chosen
            once, from the speed of some real ones, and stored with the checkpoint. A run with this
            number of `steps` is the same, bit for bit.
        batch_size: Samples per step. By default 256, or fewer if these have more than 2¹⁴ pixels
            (or time points of a sequence) in total, but at least 16.
        accumulate: Number of parts into which a batch is divided, processed one after the other,
            for batches that do not fit into memory. The result changes only by rounding.
        learning_rate: Peak learning rate of AdamW.
        warm_up: Steps over which the rate rises linearly; it then falls as a half cosine to 0. By
            default a tenth of the steps, at most 100.
        weight_decay: Weight decay of AdamW.
        ema: Decay of the averaged weights after their warm-up.
        clip: Largest gradient norm.
        check_every: Steps between two measurements on held-out data. By default a twentieth of the
            steps.
        keep_best: Whether to keep the averaged weights with the lowest loss on held-out data, if
            there are any; otherwise the final ones are kept.
        ema_half_lives: Additional averages, each given by the number n of steps after which the
            weight of a step is halved, so with decay 2^{−1/n}. All averages have the same warm-up,
            so none reaches back further than about a twelfth of the steps done. A checkpoint holds
            them all, and `checkpoint.load(directory, ema=n)` selects one: the best length is
            easiest to choose afterwards, from samples.
        condition_dropout: Probability of omitting a sample's condition, so that a conditional
            model learns the unconditional score too (`ScoreModel.unconditional`). The choice has
            its own random stream: batches, times and noise do not change.
        bfloat16: Whether the network computes in bfloat16 (autocast) while training; weights,
            loss and averages keep their dtype. For GPUs: on a CPU without bfloat16 arithmetic a
            step takes two to three times as long.
        compile: Whether to train through `torch.compile`, which needs a C++ compiler on a CPU and
            minutes for the first step. It changes the resulting model only by rounding, like
            bfloat16.

    References:
        | Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2024)
        | https://arxiv.org/abs/2312.02696

    Examples:
        >>> glp.TrainingSettings(steps=500).batch((2,))
        256
        >>> settings = glp.TrainingSettings(steps=100, warm_up=10)
        >>> [round(settings.rate(step), 5) for step in (0, 10, 55, 99)]
        [0.00027, 0.003, 0.0015, 0.0]
    """

    steps: int = 2000
    batch_size: int | None = None
    learning_rate: float = 3e-3  # that of the figures in the README
    warm_up: int | None = None
    weight_decay: float = 0.0
    ema: float = 0.999
    clip: float = 1.0
    check_every: int | None = None
    keep_best: bool = True
    ema_half_lives: tuple[float, ...] = ()
    condition_dropout: float = 0.0
    bfloat16: bool = False
    compile: bool = False
    minutes: float | None = None
    accumulate: int = 1

    def __post_init__(self) -> None:
        if all(getattr(self, f.name) is f.default for f in fields(self)):
            return  # the command line reads the defaults before it loads PyTorch, which comes with
        from ..core import check_count, check_number

        check_count(self.steps, "steps")
        check_count(self.accumulate, "accumulate")
        if self.minutes is not None:
            check_number(self.minutes, "minutes", above=0)
            if self.steps != TrainingSettings.steps:
                raise ValueError("steps follow from minutes: pass only one of them")
        if self.batch_size is not None:
            check_count(self.batch_size, "batch_size")
        if self.check_every is not None:
            check_count(self.check_every, "check_every")
        if self.warm_up is not None:
            check_count(self.warm_up, "warm_up", 0)
        check_number(self.learning_rate, "learning_rate", above=0)
        check_number(self.weight_decay, "weight_decay", least=0)
        check_number(self.clip, "clip", above=0)
        check_number(self.ema, "ema", least=0, below=1)
        check_number(self.condition_dropout, "condition_dropout", least=0, below=1)
        if not isinstance(self.ema_half_lives, tuple | list):
            raise ValueError(
                f"ema_half_lives must be a tuple, got {type(self.ema_half_lives).__name__}"
            )
        for n in self.ema_half_lives:
            check_number(n, "each of ema_half_lives", above=0)
        lives = tuple(float(n) for n in self.ema_half_lives)
        if len(set(lives)) < len(lives):
            raise ValueError(f"ema_half_lives must be distinct numbers of steps, got {lives}")
        object.__setattr__(self, "ema_half_lives", lives)

    def batch(self, event: Sequence[int]) -> int:
        """Return the number of samples per step, for events of this shape."""
        if self.batch_size is not None:
            return self.batch_size
        return max(16, min(256, 2**14 // math.prod(event[1:])))

    @property
    def warm_up_steps(self) -> int:
        """Steps over which the rate rises."""
        return min(100, self.steps // 10) if self.warm_up is None else self.warm_up

    @property
    def check_interval(self) -> int:
        """Steps between two measurements."""
        return max(1, self.steps // 20) if self.check_every is None else self.check_every

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = self.warm_up_steps
        rise = min(1.0, (step + 1) / (warm + 1))
        progress = max(0.0, (step - warm) / max(1, self.steps - warm))
        return self.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * progress))


DENSE: dict[str, Any] = {"steps": 1000, "batch_size": 1024, "learning_rate": 1e-2}
"""How the estimator trains on dense rows by default, a whole score beside a mixture in any number of
columns, and parts of rows if a trial favours it: the noise of the loss is what limits it. For whole
scores this was chosen on phoneme and letter."""


def dense(n: int, event: Sequence[int]) -> bool:
    """Return whether n rows are many for such events: 4,000 or more of at most two columns."""
    return n >= 4000 and len(event) == 1 and event[0] <= 2


def ema_decay(decay: float, n: int) -> float:
    """Return the decay of the n-th averaging, min(decay, (1 + n)/(10 + n))."""
    return min(decay, (1 + n) / (10 + n))
