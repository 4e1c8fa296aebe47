"""The first steps of a training, from which it may continue."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

from .record import Step
from .resuming import Begun, own
from .training import Training


class Beginning(Training):
    """A training of which only the first steps are taken.

    With the same data, settings and generator `fit(begun=)` continues from them, and the result
    is that of an unbroken run, bit for bit.

    Attributes:
        begun: What `fit` needs for that; None before `take` has ended.
        check: How many steps take as long as a measurement on held-out data, where that was measured.
    """

    begun: Begun | None = None

    def planned(self) -> int:
        """Return the steps of the whole training; a time for it becomes steps by measuring."""
        if self.minutes is not None:
            self.model.train()
            self.measure_speed()
        return self.settings.steps

    def take(self, n: int) -> Iterator[Step]:
        """Take the first n steps, and yield their records."""
        taken: list[Step] = []
        records: Any = self.steps()
        with closing(records):
            for record in islice(records, n):
                taken.append(record)
                yield record
            self.begun = Begun(own(self.state()), taken)  # at its end the model changes
