"""What is passed around: a `Dataset`, the raw columns before it, and words for what went wrong."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Dataset(NamedTuple):
    """Samples x `(N, *event)`, labels `(N,)` int64 in 0 … K−1, and what was done to them.

    `columns` names the entries of the event (empty for images), `classes` the labels 0 … K−1;
    `notes` are plain sentences on what was dropped or changed.
    """

    x: Tensor
    labels: Tensor | None
    name: str
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Raw(NamedTuple):
    """An array or a list of columns as found; `lines` are the lines of the rows in a text file."""

    data: np.ndarray | list[np.ndarray | list[str]]
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lines: list[int] | None = None


def number(text: str) -> float | None:
    """Return the number, NaN for a missing one, or None for any other text."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return math.nan if text.lower() in ("", "na", "n/a", "null", "none") else None


def unreadable(path: Path, error: BaseException) -> ValueError:
    """Return the error to raise for a file that its reader gave up on, in one line."""
    return ValueError(f"{path}: cannot be read: {(str(error) or repr(error)).splitlines()[0]}")


def nearest(name: str, known: Sequence[str]) -> str:
    """Return advice on a name that is not known."""
    near = difflib.get_close_matches(name, known, 1, 0.65)
    return (f"; did you mean '{near[0]}'?" if near else ";") + f" known: {some(known, 20)}"


def some(items: Sequence[object], most: int = 5) -> str:
    """Return the first items as text."""
    return ", ".join(map(str, items[:most])) + (", …" if len(items) > most else "")
