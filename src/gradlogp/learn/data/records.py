"""A `Dataset`, the raw columns before it, and the wording of errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

BOMB = 2**28, 100
"""Bytes, and times the size of its file: what unpacks to more than both is refused."""


class Dataset(NamedTuple):
    """Samples x `(N, *event)`, labels `(N,)` int64 in 0 … K−1, and what was done to them.

    `columns` names the entries of the event (empty for images), `classes` the labels 0 … K−1;
    `notes` are sentences on what was dropped, changed or interpreted.
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


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a reader raises on the bytes of a stranger into one line with the path."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        said = (str(error) or repr(error)).splitlines()[0]
        raise ValueError(f"{path}: cannot be read: {said}") from error


def check_unpacked(path: Path, size: int) -> None:
    """Raise `ValueError` if a small file claims to hold very much, before memory is allocated."""
    most, times = BOMB
    if size > most and size > times * path.stat().st_size:
        raise ValueError(
            f"its {path.stat().st_size:,} bytes would unpack to {size:,}; if that is meant, save "
            "the array as .npy, which need not fit in memory"
        )
