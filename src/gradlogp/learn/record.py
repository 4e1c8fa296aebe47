"""What a step of a training reports; numbers on a device are waited for when they are asked for."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import Estimate

AHEAD = ("cuda",)
"""Devices whose copies to the host do not make it wait, and can be waited for later."""


def arrival(device: torch.device) -> torch.cuda.Event:
    """Return an event after all that a device has been given to do."""
    return torch.cuda.current_stream(device).record_event()


class Reading:
    """The loss and the gradient norm of a step; who asks for them waits until the step is done.

    Attributes:
        step: The number of the step.
        ahead: Whether the host may go on before they are known. On a CPU they are known at once.
        failed: Where the host may go on, until they are known: 1.0 on the device if one of them is
            not finite, otherwise 0.0.
    """

    def __init__(self, step: int, numbers: Tensor) -> None:
        self.step, self.ahead = step, numbers.device.type in AHEAD
        self._numbers: Tensor | None = numbers.to("cpu", non_blocking=self.ahead)
        self.failed = (~numbers.isfinite().all()).float() if self.ahead else None
        self._arrival = arrival(numbers.device) if self.ahead else None
        self._known: tuple[float, float] | None = None

    def __call__(self) -> tuple[float, float]:
        """Return the loss and the gradient norm."""
        if self._known is None:
            if self._arrival is not None:
                self._arrival.synchronize()
            assert self._numbers is not None
            loss, norm = self._numbers.tolist()
            self._known = loss, norm
            self._numbers = self._arrival = self.failed = None  # a record may be kept for long
        return self._known

    def check(self) -> float:
        """Return the loss.

        Raises:
            FloatingPointError: If it or the gradient norm is not finite.
        """
        loss, norm = self()
        if not math.isfinite(loss + norm):
            raise FloatingPointError(
                f"the loss is not finite at step {self.step} (loss {loss}, gradient norm {norm}); "
                "lower learning_rate, or check the data for extreme values"
            )
        return loss


class Step(NamedTuple):
    """What one optimisation step did; measurements only if they were requested.

    On a GPU the next step is prepared while this one is computed: `loss` and `gradient_norm` wait
    for its end, and everything else is there at once.
    """

    step: int
    reading: Reading
    learning_rate: float
    steps_per_second: float
    held_out: Estimate | None = None
    excess: Estimate | None = None
    steps: int = 0

    @property
    def loss(self) -> float:
        """The mean loss of the batch."""
        return self.reading()[0]

    @property
    def gradient_norm(self) -> float:
        """The norm of the gradient before clipping."""
        return self.reading()[1]

    @property
    def seconds_left(self) -> float:
        """The time that the other steps will take at this speed."""
        return (self.steps - self.step) / self.steps_per_second
