"""A column to numbers, and numbers to the column that they came from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ...core import choice, rand_like, randn_like
from .columns import MISSING, NOISE, PRESENT, REST, Column


def encode(column: Column, series: pd.Series, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the columns of numbers of one column, `(n, width)`, and what their density needs.

    The second are the nats `(n,)` by which a log-density of these numbers is to be raised: the
    derivative of T, the width of a cell, and less the density of what was drawn to fill a hole.
    """
    n = len(series)
    nats = torch.zeros(n, dtype=torch.float64)
    parts = []
    holes = torch.from_numpy(series.isna().to_numpy(copy=True))
    if column.transform is None:
        states = _codes(column, series)
    else:
        numbers = _numbers_of(column, series)
        if bool(holes.any()) and MISSING not in column.levels:
            raise ValueError(f"column {column.name!r} has a hole, which no row learned from had")
        states = torch.where(
            holes, column.levels.index(MISSING) if MISSING in column.levels else 0, 0
        )
        for spike in column.spikes:
            states[numbers == spike] = column.levels.index(repr(spike))
        present = states == 0
        fill = randn_like(nats, generator)
        x = torch.where(present, numbers, 1.0)
        if column.spread:
            x = x + column.grid * rand_like(nats, generator)
        T = column.transform
        inside = (x > (-math.inf if T.low is None else T.low)) & (
            x < (math.inf if T.high is None else T.high)
        )
        if bool((present & ~inside).any()):
            bad = float(numbers[present & ~inside][0])
            raise ValueError(
                f"column {column.name!r} has {bad:g}; what was learned lies from {T.low} to {T.high}"
            )
        x = torch.where(present, x, T.inverse(torch.zeros_like(x)))
        z = torch.where(present, T(x), fill)
        log_fill = -0.5 * fill.square() - 0.5 * math.log(2 * math.pi)
        spread = math.log(column.grid) if column.spread else 0.0
        nats = torch.where(present, T.log_derivative(x) + spread, -log_fill)
        parts.append(z[:, None])
    k = len(column.levels)
    if k > 1:
        flags = one_hot(states, k)[:, 1 if k == 2 else 0 :].double()
        parts.insert(0, flags + NOISE * randn_like(flags, generator))
    return torch.cat(parts, 1) if parts else torch.zeros(n, 0, dtype=torch.float64), nats


def _numbers_of(column: Column, series: pd.Series) -> Tensor:
    """Return the values of a column of numbers or dates, NaN for holes."""
    if column.kind == "date":
        time = series.dt.tz_localize(None) if getattr(series.dt, "tz", None) else series
        raw = time.to_numpy().astype(f"{series.dtype.kind}8[{column.unit}]").astype(np.int64)
        values = np.where(series.isna().to_numpy(), np.nan, raw.astype(np.float64))
    else:
        values = series.to_numpy(dtype=np.float64, na_value=np.nan)
    return torch.from_numpy(np.array(values, dtype=np.float64))


def _codes(column: Column, series: pd.Series) -> Tensor:
    """Return the level of each row of a category."""
    holes = series.isna().to_numpy()
    if column.kind != "category":
        return torch.from_numpy(holes.astype(np.int64))
    index = {level: i for i, level in enumerate(column.levels)}
    rare = {value for value, _ in column.others}
    codes = []
    for value, hole in zip(series.astype(object), holes, strict=True):
        text = MISSING if hole else REST if str(value) in rare else str(value)
        if text not in index:
            what = "a hole" if hole else repr(str(value))
            raise ValueError(f"column {column.name!r} has {what}, which no row learned from had")
        codes.append(index[text])
    return torch.tensor(codes, dtype=torch.long)


def encode_known(column: Column, series: pd.Series, generator: torch.Generator) -> Tensor:
    """Return the columns of numbers of one column, NaN where a hole leaves them open.

    A hole is asked for its value: that there is one is known, unless one more category is in the way.
    """
    series = _as_learned(column, series)
    there = series.notna().to_numpy(copy=True)
    z = torch.full((len(series), column.width), torch.nan, dtype=torch.float64)
    if there.any():
        z[torch.from_numpy(there)] = encode(column, series[there], generator)[0]
    if column.levels == (PRESENT, MISSING):
        z[~torch.from_numpy(there), 0] = 0.0  # what "present" is coded as
    return z


def _as_learned(column: Column, series: pd.Series) -> pd.Series:
    """Return a category of numbers as numbers of the kind that it was learned from."""
    learned = column.dtype.lower()
    if column.kind == "category" and learned.startswith(("int", "uint")):
        return series.astype("Int64") if series.dtype.kind == "f" else series
    if column.kind == "category" and learned.startswith("float"):
        return series.astype(float) if series.dtype.kind in "iu" else series
    return series


def states_of(column: Column, z: Tensor) -> Tensor:
    """Return the level, or the state beside numbers, that columns of numbers stand for."""
    k = len(column.levels)
    if k == 2:
        return (z[:, 0] > 0.5).long()
    return z[:, :k].argmax(1) if k > 2 else torch.zeros(len(z), dtype=torch.long)


def is_hole(column: Column, z: Tensor) -> Tensor:
    """Return where columns of numbers stand for a hole."""
    if MISSING not in column.levels:
        return torch.zeros(len(z), dtype=torch.bool)
    return states_of(column, z) == column.levels.index(MISSING)


def without_holes(column: Column, z: Tensor) -> Tensor:
    """Return columns of numbers whose likeliest state other than a hole is taken."""
    if MISSING not in column.levels:
        return z
    z = z.clone()
    i, k = column.levels.index(MISSING), len(column.levels)
    z[:, 0 if k == 2 else i] = float(1 - i) if k == 2 else -math.inf
    return z


def fill(column: Column, series: pd.Series, filled: pd.Series) -> pd.Series:
    """Return a column with its holes filled, one after another, in the dtype that was learned.

    Values that this dtype cannot hold keep that of the column.
    """
    holes = series.isna().to_numpy()
    if not holes.any():
        return series
    values = np.array(series.astype(object), dtype=object)
    values[holes] = np.array(filled.astype(object), dtype=object)
    whole = pd.Series(values, index=series.index, name=series.name, dtype=object)
    dtypes: list[Any] = [series.dtype]
    if isinstance(series.dtype, pd.CategoricalDtype):
        known = filled.cat.categories if isinstance(filled.dtype, pd.CategoricalDtype) else []
        more = [c for c in known if c not in series.cat.categories]
        dtypes = [pd.CategoricalDtype([*series.cat.categories, *more], series.cat.ordered)]
    elif column.categories is None:
        dtypes.insert(0, column.dtype)
    for dtype in dtypes:
        try:
            typed = whole.astype(dtype)
        except (TypeError, ValueError):
            continue
        if bool((typed.astype(object) == whole).all()):
            return typed
    return whole.infer_objects()


def decode(column: Column, z: Tensor, generator: torch.Generator) -> pd.Series:
    """Return a column from its columns of numbers, with its dtype, decimals, levels and holes."""
    n, states = len(z), states_of(column, z)
    if column.transform is None:
        return _decode_levels(column, states, n, generator)
    x = column.transform.inverse(z[:, -1])
    if column.grid:
        cells = (x - column.offset) / column.grid
        x = column.offset + column.grid * (cells.floor() if column.spread else cells.round())
        T = column.transform  # rounding may lead to the cell beyond a border
        x = torch.where(x < T.low, x + column.grid, x) if T.low is not None else x
        x = torch.where(x >= T.high, x - column.grid, x) if T.high is not None else x
    for spike in column.spikes:
        x = torch.where(states == column.levels.index(repr(spike)), spike, x)
    values = x.numpy()
    if column.decimals is not None and column.kind == "number":
        values = np.round(values, column.decimals)
    holes = np.zeros(n, dtype=bool)
    if MISSING in column.levels:
        holes = (states == column.levels.index(MISSING)).numpy()
    return _typed(column, values, holes)


def _decode_levels(
    column: Column, states: Tensor, n: int, generator: torch.Generator
) -> pd.Series:
    drawn: list[str] = []
    if column.others:
        shares = torch.tensor([share for _, share in column.others], dtype=torch.float64)
        drawn = [column.others[int(i)][0] for i in choice(shares, n, generator)]
    texts: list[str | None] = []
    for i, state in enumerate(states.tolist()):
        level = column.levels[state] if column.levels else (REST if drawn else None)
        if level in (REST, PRESENT):
            level = drawn[i]
        texts.append(None if level == MISSING else level)
    holes = np.array([text is None for text in texts])
    return _typed(
        column, np.array([t if t is not None else "" for t in texts], dtype=object), holes
    )


def _typed(column: Column, values: np.ndarray, holes: np.ndarray) -> pd.Series:
    """Return values as the dtype that the column had."""
    name, dtype = column.name, column.dtype
    if column.kind == "date":
        letter = "m" if dtype.startswith("timedelta") else "M"
        raw = (
            np.where(holes, 0, np.round(values))
            .astype(np.int64)
            .astype(f"{letter}8[{column.unit}]")
        )
        found = pd.Series(raw, name=name)
        zone = dtype.partition(",")[2].strip(" ]")
        if zone:
            found = found.astype("datetime64[ns]").dt.tz_localize(
                zone, ambiguous=np.ones(len(found), dtype=bool), nonexistent="shift_forward"
            )
        found = found.astype(dtype)
        return found.mask(holes) if holes.any() else found
    if column.categories is not None:
        index = {text: i for i, text in enumerate(column.categories)}
        codes = [-1 if hole else index[value] for value, hole in zip(values, holes, strict=True)]
        categories = pd.Index(column.categories).astype(column.category_dtype)
        levels = pd.Categorical.from_codes(codes, categories, ordered=column.ordered)
        return pd.Series(levels, name=name)
    if dtype == "bool":
        return pd.Series([value == "True" for value in values], name=name, dtype=bool)
    if dtype == "boolean":
        seen = [
            pd.NA if hole else value == "True" for value, hole in zip(values, holes, strict=True)
        ]
        return pd.Series(seen, name=name, dtype="boolean")
    if dtype.lower().startswith(("int", "uint", "float")):
        numbers = np.where(
            holes,
            np.nan,
            np.array([0.0 if h else float(v) for v, h in zip(values, holes, strict=True)]),
        )
        if dtype.lower().startswith("float"):
            return pd.Series(numbers, name=name).astype(dtype)
        if dtype[0].isupper():  # nullable
            return pd.Series(numbers, name=name).round().clip(*_limits(dtype)).astype(dtype)
        return pd.Series(np.round(numbers).clip(*_limits(dtype)), name=name).astype(dtype)
    found = pd.Series(values, name=name, dtype=object)
    return found.mask(holes, None).astype(dtype) if holes.any() else found.astype(dtype)


def _limits(dtype: str) -> tuple[float, float]:
    """Return the least and the largest number of an integer dtype that float64 can hold, too."""
    info = np.iinfo(dtype.lower())
    return float(info.min), float(info.max) if info.max < 2**53 else np.nextafter(info.max, 0.0)
