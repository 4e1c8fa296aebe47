"""Rows to be compared: arrays, frames with categories and missing values, images.

All sets in a comparison have the same encoding: numeric columns as they are, categories by their
name, missing values marked, images by summaries of each image.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core import check_points

MOST_LEVELS = 20
"""Levels of a category that get a column of their own; the rest share one."""

BANDS = 6
"""Bands of spatial frequency."""


class Rows(NamedTuple):
    """Rows from one source.

    Attributes:
        numbers: Numeric columns `(n, k)` in float64, NaN where a value is missing.
        levels: Categories `(n, c)` as indices into `Layout.levels`, −1 where missing.
        resolution: The relative spacing of the numbers in their original dtype.
    """

    numbers: Tensor
    levels: Tensor
    resolution: float


class Layout(NamedTuple):
    """The kinds of the columns.

    Attributes:
        numbers: Names of the numeric columns.
        categories: Names of the columns of categories.
        levels: The levels of each, by name.
        event_shape: The shape of an image; None for a table.
    """

    numbers: tuple[str, ...]
    categories: tuple[str, ...] = ()
    levels: tuple[tuple[str, ...], ...] = ()
    event_shape: torch.Size | None = None


LARGEST = 1e70
"""The largest number whose fourth power, in error bars of distances, is finite over many rows."""


def encode(
    sets: Mapping[str, Any], names: Sequence[str] | None = None
) -> tuple[Layout, dict[str, Rows]]:
    """Encode sets of rows in the same way.

    Arguments:
        sets: By name: tensors `(n, *event)`, or frames with the same columns.
        names: Column names of tensors.

    Raises:
        TypeError: For an object that is neither a tensor nor a frame, or a mixture of both.
        ValueError: For shapes or columns that differ, or numbers that are not finite or too large for
            their fourth power.
    """
    kinds = {name: _is_frame(name, rows) for name, rows in sets.items()}
    if len(set(kinds.values())) > 1:
        kinds_of = ", ".join(f"{name} is a {type(rows).__name__}" for name, rows in sets.items())
        raise TypeError(f"either all must be tensors, or all data frames: {kinds_of}")
    if all(kinds.values()):
        if names is not None:
            raise ValueError("frames carry their own column names; omit names=")
        layout, encoded = _encode_frames(sets)
    else:
        layout, encoded = _encode_tensors(sets, names)
    for name, rows in encoded.items():
        if bool((rows.numbers.abs() > LARGEST).any()):
            raise ValueError(
                f"{name} has numbers beyond {LARGEST:g}: powers of it overflow; rescale it"
            )
    return layout, encoded


def _is_frame(name: str, rows: Any) -> bool:
    if isinstance(rows, Tensor):
        return False
    if hasattr(rows, "columns") and hasattr(rows, "dtypes"):
        return True
    raise TypeError(
        f"{name} must be a tensor (n, *event) or a data frame, got {type(rows).__name__}; "
        "convert an array with torch.as_tensor"
    )


def _encode_tensors(
    sets: Mapping[str, Tensor], names: Sequence[str] | None
) -> tuple[Layout, dict[str, Rows]]:
    shape = next(iter(sets.values())).shape[1:]
    for name, x in sets.items():
        check_points(x, name)
        if x.shape[1:] != shape:
            raise ValueError(f"{name} must have shape (n, {', '.join(map(str, shape))}), got "
                             f"{tuple(x.shape)}")  # fmt: skip
    count = shape.numel()
    if names is None:
        places = itertools.product(*(range(size) for size in shape))
        names = [f"x[{', '.join(map(str, place))}]" for place in places]
    names = tuple(names)
    if len(names) != count or len(set(names)) < count:
        raise ValueError(f"names must be {count} different column names, got {len(names)}")
    none = lambda x: torch.zeros(len(x), 0, dtype=torch.long)
    rows = {
        name: Rows(x.detach().cpu().double().flatten(1), none(x), torch.finfo(x.dtype).eps)
        for name, x in sets.items()
    }
    return Layout(names, event_shape=shape if len(shape) > 1 else None), rows


def _encode_frames(sets: Mapping[str, Any]) -> tuple[Layout, dict[str, Rows]]:
    frames = {k: f.to_pandas() if hasattr(f, "to_pandas") else f for k, f in sets.items()}
    first, reference = next(iter(frames.items()))
    columns = list(reference.columns)
    if len(set(columns)) < len(columns):
        raise ValueError(f"columns must have different names, got {columns}")
    for name, frame in frames.items():
        if missing := [c for c in columns if c not in frame.columns]:
            raise ValueError(
                f"{name} lacks columns that {first} has: {', '.join(map(str, missing))}"
            )
        if more := [c for c in frame.columns if c not in columns]:
            raise ValueError(f"{name} has columns that {first} lacks: {', '.join(map(str, more))}")
    numeric: list[Any] = []
    categories: list[Any] = []
    for c in columns:
        kinds = {name: _numeric(frame[c]) for name, frame in frames.items()}
        known = {v for v in kinds.values() if v is not None}  # an empty column fits any kind
        if len(known) > 1:
            found = ", ".join(f"{frames[name][c].dtype} in {name}" for name in kinds)
            raise ValueError(f"column {c!r} must have one dtype: {found}")
        (numeric if known != {False} else categories).append(c)
    texts = {n: {c: _texts(f[c]) for c in categories} for n, f in frames.items()}
    levels = tuple(
        tuple(sorted({v for t in texts.values() for v in t[c] if v is not None}))
        for c in categories
    )
    codes = [{level: i for i, level in enumerate(ls)} | {None: -1} for ls in levels]
    rows = {}
    for name, frame in frames.items():
        numbers = [torch.tensor(_floats(frame[c])) for c in numeric]
        coded = [
            torch.tensor([code[v] for v in texts[name][c]], dtype=torch.long)
            for c, code in zip(categories, codes, strict=True)
        ]
        n = len(frame)
        x = torch.stack(numbers, 1) if numbers else torch.zeros(n, 0, dtype=torch.float64)
        if bool(x.isinf().any()):
            at = [str(numeric[j]) for j in x.isinf().any(0).nonzero().flatten()]
            raise ValueError(f"{name} has infinite values in {', '.join(at)}; remove these rows")
        wide = [np.finfo(frame[c].dtype).eps for c in numeric if frame[c].dtype.kind == "f"
                and isinstance(frame[c].dtype, np.dtype)]  # fmt: skip
        coded_all = torch.stack(coded, 1) if coded else torch.zeros(n, 0, dtype=torch.long)
        rows[name] = Rows(x, coded_all, float(max([*wide, 2.0**-52])))
    return Layout(tuple(map(str, numeric)), tuple(map(str, categories)), levels), rows


def _numeric(series: Any) -> bool | None:
    """Say whether a column holds numbers or dates; None for one without any value."""
    if bool(series.isna().all()):
        return None
    return series.dtype.kind in "iufMm"


def _floats(series: Any) -> np.ndarray:
    """Return numbers, and dates as days, NaN where missing."""
    if series.dtype.kind in "Mm":
        time = series.dt.tz_localize(None) if getattr(series.dt, "tz", None) else series
        unit = time.to_numpy().astype(f"{series.dtype.kind}8[us]")
        days = unit.astype(np.int64) / 86_400e6
        return np.where(series.isna().to_numpy(), np.nan, days)
    numbers: np.ndarray = series.to_numpy(dtype=np.float64, na_value=np.nan)
    return numbers


def _texts(series: Any) -> list[str | None]:
    return [None if gone else str(v) for v, gone in zip(series, series.isna(), strict=True)]


def filled(rows: Mapping[str, Rows]) -> dict[str, Tensor]:
    """Return the numeric columns with every hole at the median of what all sets have there."""
    pooled = torch.cat([r.numbers for r in rows.values()])
    middle = pooled.nanmedian(0).values
    middle = torch.where(middle.isnan(), 0.0, middle)  # of a column without any value
    return {k: torch.where(r.numbers.isnan(), middle, r.numbers) for k, r in rows.items()}


def indicators(layout: Layout, rows: Mapping[str, Rows]) -> tuple[list[str], dict[str, Tensor]]:
    """Return columns of 0 and 1, and their names: where holes are, and which level a category has."""
    names: list[str] = []
    parts: dict[str, list[Tensor]] = {k: [] for k in rows}

    def add(name: str, where: Mapping[str, Tensor]) -> None:
        names.append(name)
        for k, v in where.items():
            parts[k].append(v.double())

    for j, name in enumerate(layout.numbers):
        holes = {k: r.numbers[:, j].isnan() for k, r in rows.items()}
        if any(bool(h.any()) for h in holes.values()):
            add(f"{name} missing", holes)
    for j, name in enumerate(layout.categories):
        codes = {k: r.levels[:, j] for k, r in rows.items()}
        pooled = torch.cat(list(codes.values()))
        values, counts = pooled.unique(return_counts=True)
        common = values[counts.argsort(descending=True, stable=True)][:MOST_LEVELS].tolist()
        for code in common[1:] or common:  # of two levels one column says it all
            level = "missing" if code < 0 else f"= {layout.levels[j][code]}"
            add(f"{name} {level}", {k: v == code for k, v in codes.items()})
    empty = {k: torch.zeros(len(r.numbers), 0, dtype=torch.float64) for k, r in rows.items()}
    return names, {k: torch.stack(v, 1) if v else empty[k] for k, v in parts.items()}


def image_columns(
    event_shape: torch.Size, images: Mapping[str, Tensor]
) -> tuple[list[str], dict[str, Tensor]]:
    """Return what can be said of each image `(n, pixels)` alone, channel by channel, and the names.

    Mean, deviation, least and largest value, and the logarithm of the power in bands of spatial
    frequency, in cycles per pixel. Images are independent, and so are these numbers: pixels of one
    image are not.
    """
    channels, *space = event_shape
    frequency = torch.zeros(())
    for axis, size in enumerate(space):
        last = axis == len(space) - 1
        f = torch.fft.rfftfreq(size) if last else torch.fft.fftfreq(size)
        frequency = frequency + f.square().reshape(-1, *[1] * (len(space) - 1 - axis))
    radius = frequency.sqrt().flatten()
    edges = torch.linspace(0, 0.5, BANDS + 1)[1:]
    band = torch.bucketize(radius, edges).clamp(max=BANDS - 1)
    band = torch.where(radius == 0, -1, band)  # the mean has a column of its own
    used = [b for b in range(BANDS) if bool((band == b).any())]
    names = []
    for c in range(channels):
        prefix = f"channel {c}: " if channels > 1 else ""
        names += [f"{prefix}{what}" for what in ("mean", "deviation", "minimum", "maximum")]
        names += [f"{prefix}log power up to {edges[b]:.2f} cycles per pixel" for b in used]
    found = {}
    whole = torch.cat(list(images.values()))
    tiny = 1e-12 * float(whole.var()) * math.prod(space) + 1e-300
    for key, flat in images.items():
        x = flat.reshape(len(flat), channels, *space)
        pixels = x.flatten(2)
        power = torch.fft.rfftn(x, dim=tuple(range(2, x.ndim))).abs().square().flatten(2)
        parts = [pixels.mean(2), pixels.std(2, correction=0), pixels.amin(2), pixels.amax(2)]
        parts += [(power[:, :, band == b].mean(2) + tiny).log() for b in used]
        found[key] = torch.stack(parts, 2).flatten(1)
    return names, found
