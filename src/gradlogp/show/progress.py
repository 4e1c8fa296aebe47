"""A progress bar on standard error: a live bar in a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..core import Update

PLAIN_SECONDS = 10.0  # between lines where there is no terminal


@contextmanager
def bar(title: str, *, quiet: bool = False) -> Iterator[Update]:
    """Show progress while the block runs; yields update(done, total, note).

    Arguments:
        title: The name of the work in progress.
        quiet: Show nothing.
    """
    if quiet:
        yield lambda done, total, note="": None
    elif sys.stderr.isatty():
        with _live(title) as update:
            yield update
    else:
        yield _plain(title)


@contextmanager
def _live(title: str) -> Iterator[Update]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        "{task.description}", BarColumn(), "{task.completed}/{task.total}", TimeElapsedColumn(),
        "left", TimeRemainingColumn(), "{task.fields[note]}",
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=None, note="")
        yield lambda done, total, note="": progress.update(
            task, completed=done, total=total, note=note
        )


def _plain(title: str) -> Update:
    began = last = time.monotonic()

    def update(done: int, total: int, note: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if done < total and now - last < PLAIN_SECONDS:
            return
        last, spent = now, now - began
        left = f", {spent / done * (total - done):.0f} s left" if 0 < done < total else ""
        rest = f"{left}, {note}" if note else left
        print(f"{title}: {done}/{total} in {spent:.0f} s{rest}", file=sys.stderr)

    return update
