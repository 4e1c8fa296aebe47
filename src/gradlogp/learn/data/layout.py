"""What readers of data return, and what an array is taken for by its shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

PIXELS = (1, 2, 3, 4)
"""How many channels images have: grey, grey and alpha, colours, colours and alpha."""


def layout(shape: tuple[int, ...], name: str = "x", do: str = "save") -> str:
    """Return how an array of more than two dimensions is interpreted, in words; "" for a table.

    Images are (N, C, H, W) and sequences (N, C, L). Ambiguous arrays are refused: channels that
    seem to come last, grey images without a channel, volumes.

    Arguments:
        shape: The shape of the array.
        name: Its name in messages.
        do: What to do with the converted array, in messages.

    Raises:
        ValueError: With a line of NumPy for each possible interpretation.
    """
    vectors = f"{name}.reshape(len({name}), -1) for vectors of {math.prod(shape[1:])} numbers"
    if len(shape) == 3:
        _, a, b = shape
        if b in PIXELS and a not in PIXELS:
            raise ValueError(
                f"an array {shape} looks like sequences (N, L, C), but channels must come first: {do} "
                f"np.moveaxis({name}, -1, 1), which is (N, {b}, {a}), or {vectors}"
            )
        if min(a, b) > max(PIXELS) and b < 8 * a:
            raise ValueError(
                f"an array {shape} may be grey images, sequences or vectors: {do} {name}[:, None] for "
                f"images (N, 1, {a}, {b}), {name}[:, :, None] for {a} channels of {b} numbers, or "
                f"{vectors}"
            )
        return f"read as {a} channels of {b} numbers ({do} {name}[:, None] if these are images)"
    if len(shape) == 4:
        _, c, h, w = shape
        if w in PIXELS and c not in PIXELS:
            raise ValueError(
                f"an array {shape} looks like images (N, H, W, C), but channels must come first: {do} "
                f"np.moveaxis({name}, -1, 1), which is (N, {w}, {c}, {h})"
            )
        if c > max(PIXELS) and h > 1 and 2 * c > min(h, w):
            raise ValueError(
                f"an array {shape} looks like volumes (N, D, H, W), which are not supported directly: "
                f"{do} {name}.reshape(-1, 1, {h}, {w}) for their slices as images, or {vectors}"
            )
        return f"read as images (N, C, H, W): {c} {'channel' if c == 1 else 'channels'}, {h}×{w}"
    if len(shape) == 5:
        _, c, _, h, w = shape
        raise ValueError(
            f"an array {shape} looks like volumes (N, C, D, H, W), which are not supported "
            f"directly: {do} "
            f"np.moveaxis({name}, 2, 1).reshape(-1, {c}, {h}, {w}) for their slices as images, or "
            f"{vectors}"
        )
    if len(shape) > 5:
        raise ValueError(
            f"an array {shape} is neither a table (N, D) nor images (N, C, H, W): {do} {vectors}"
        )
    return ""


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
