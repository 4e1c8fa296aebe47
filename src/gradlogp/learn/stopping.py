"""Stopping by a signal without losses: SIGINT, SIGTERM and SIGHUP, in the main thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""The signals that ask a process to stop."""


class Stops:
    """A block in which a signal to stop raises: KeyboardInterrupt, or SystemExit(128 + its number).

    It raises at the current point of the program, or after the part that is `held`. This applies
    only to signals that would have ended the process, and only in the main thread: other handlers
    and ignored signals are left alone. At the end the previous handlers are restored.
    """

    def __init__(self) -> None:
        self._holds, self._asked = 0, 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *raised: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                if signal.getsignal(number) == self._ask:
                    signal.signal(number, before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = number
        if not self._holds:
            self.check()

    def check(self) -> None:
        """Raise if a signal came that nothing has answered."""
        number, self._asked = self._asked, 0
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number:
            raise SystemExit(128 + number)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let this part end before a signal raises."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1
        if not self._holds:
            self.check()
