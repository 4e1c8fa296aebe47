"""Signals that end a run where it can be saved."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


class Stops:
    """Ctrl-C, SIGTERM and SIGHUP as `KeyboardInterrupt`, only while the run is `interruptible`.

    In between, while files are written, a signal is remembered. At the end the previous handlers
    are restored, and `raise_again` gives the signal its usual effect: SIGTERM and SIGHUP end the
    process, unless the caller has set a handler. A signal that is ignored (`nohup`), and a Ctrl-C
    that the caller handles, are left alone; so are all signals in threads other than the main one,
    where Python has no handlers.
    """

    def __init__(self) -> None:
        self.caught: int | None = None
        self._open, self._process = False, os.getpid()
        self._old: dict[int, Any] = {}

    def install(self) -> None:
        """Take the signals over."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
            old = signal.getsignal(number)
            ours = number != signal.SIGINT or old is signal.default_int_handler
            if old not in (None, signal.SIG_IGN) and ours:
                self._old[number] = old
                signal.signal(number, self._catch)

    def restore(self) -> None:
        """Give the signals back."""
        while self._old:
            signal.signal(*self._old.popitem())

    def _catch(self, number: int, frame: object) -> None:
        if os.getpid() != self._process:  # a child that was forked meanwhile
            self.restore()
            signal.raise_signal(number)
            return
        if self.caught in (None, signal.SIGINT):
            self.caught = number
        if self._open:
            raise KeyboardInterrupt(signal.Signals(number).name)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within, a signal is raised at once."""
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def raise_again(self, ended: bool) -> None:
        """Give a signal its effect: Ctrl-C only if the run had `ended` all the same."""
        if self.caught is not None and (ended or self.caught != signal.SIGINT):
            signal.raise_signal(self.caught)
