"""From a column to numbers, and back to the column."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ...core import choice, rand_like, randn_like, short
from .columns import BEYOND, CLOSER, MISSING, NOISE, PRESENT, REST, Column, texts
from .heaps import from_normal, to_normal


def encode(column: Column, series: pd.Series, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the columns of numbers of one column, `(n, width)`, and the correction of their density.

    The second are the nats `(n,)` to add to a log-density of these numbers: the derivative of T
    and the width of a cell. Numbers are NaN for missing values and values with a separate state.
    """
    if any(why := impossible(column, series)):
        raise ValueError(next(filter(None, why)))
    n = len(series)
    nats = torch.zeros(n, dtype=torch.float64)
    parts = []
    holes = torch.from_numpy(series.isna().to_numpy(copy=True))
    if column.transform is None:
        states = _codes(column, series)
    else:
        numbers = _numbers_of(column, series)
        states = torch.where(
            holes, column.levels.index(MISSING) if MISSING in column.levels else 0, 0
        )
        for spike in column.spikes:
            states[numbers == spike] = column.levels.index(repr(spike))
        present, T = (states == 0) & ~holes, column.transform
        x = numbers + (column.grid * rand_like(nats, generator) if column.spread else 0.0)
        x = torch.where(present, x, T.inverse(torch.zeros_like(x)))
        z, raised = to_normal(x, numbers, T, column.atoms, column.step, generator)
        nats = torch.where(present, raised, 0.0)
        parts.append(torch.where(present, z, torch.nan)[:, None])
    k = len(column.levels)
    if k > 1:
        flags = one_hot(states, k)[:, 1 if k == 2 else 0 :].double()
        parts.insert(0, flags + NOISE * randn_like(flags, generator))
    return torch.cat(parts, 1) if parts else torch.zeros(n, 0, dtype=torch.float64), nats


def _shown(column: Column, value: float) -> str:
    """Return a boundary in the units of the table."""
    if column.kind != "date" or column.dtype.startswith("timedelta") or math.isinf(value):
        return f"{value + column.base:g}"
    return str(np.array(round(value) + column.base).astype(f"M8[{column.unit}]"))


def _numbers_of(column: Column, series: pd.Series) -> Tensor:
    """Return the values of a column of numbers or dates, NaN for holes."""
    if column.kind == "date":
        time = series.dt.tz_localize(None) if getattr(series.dt, "tz", None) else series
        raw = time.to_numpy().astype(f"{series.dtype.kind}8[{column.unit}]").astype(np.int64)
        holes = series.isna().to_numpy()
        values = np.where(
            holes, np.nan, (np.where(holes, 0, raw) - column.base).astype(np.float64)
        )
    elif column.base:
        holes = series.isna().to_numpy()
        whole = [
            0 if hole else int(v) - column.base for v, hole in zip(series, holes, strict=True)
        ]
        values = np.where(holes, np.nan, np.array(whole, dtype=np.float64))
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
    codes = [
        index[MISSING if hole else REST if value in rare else value]
        for value, hole in zip(texts(series), holes, strict=True)
    ]
    return torch.tensor(codes, dtype=torch.long)


def encode_known(column: Column, series: pd.Series, generator: torch.Generator) -> Tensor:
    """Return the columns of numbers of one column, NaN where a missing value leaves them open.

    A missing value is to be imputed: that it exists is known, unless there is another state.
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
    """Return a column with its missing values filled in, in the dtype that was learned.

    If this dtype cannot hold the values, the column keeps its own.
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


def impossible(column: Column, series: pd.Series, *, holes: bool = False) -> list[str]:
    """Return for each row why its value has probability 0, or ""; a hole has not if `holes`."""
    unseen = f"column {column.name!r} has {{}}, which no training row had"
    missing = series.isna().to_numpy()
    no_hole = "" if holes or MISSING in column.levels else unseen.format("a hole")
    if column.transform is not None:
        T, x = column.transform, _numbers_of(column, series).numpy()
        low, high = (math.inf * s if v is None else v for s, v in ((-1, T.low), (1, T.high)))
        above = x >= low if column.spread else x > low
        good = missing | (above & (x < high)) | np.isin(x, column.spikes)
        kind = f"training values lie from {_shown(column, low)} to {_shown(column, high)}"
        why = [
            "" if fine else f"column {column.name!r} has {v}; {kind}"
            for v, fine in zip(series, good, strict=True)
        ]
    else:
        known = {*column.levels, *(value for value, _ in column.others)}
        named = column.kind == "name"  # any is as good as another
        why = [
            "" if named or value in known else unseen.format(short(repr(value)))
            for value in texts(series)
        ]
    return [no_hole if hole else reason for hole, reason in zip(missing, why, strict=True)]


def decode(column: Column, z: Tensor, generator: torch.Generator) -> pd.Series:
    """Return a column from its columns of numbers, with its dtype, decimals, levels and holes."""
    n, states = len(z), states_of(column, z)
    if column.transform is None:
        return _decode_levels(column, states, n, generator)
    least, most = column.seen
    more = 0.0 if column.edges else BEYOND * (most - least)
    low = column.transform.low
    x = from_normal(z[:, -1], column.transform, column.atoms, column.step)
    if column.grid:
        cells = (x - column.offset) / column.grid
        x = column.offset + column.grid * (cells.floor() if column.spread else cells.round())
        T = column.transform  # rounding may lead to the cell beyond a border
        if T.low is not None:
            x = torch.where(x < T.low if column.spread else x <= T.low, x + column.grid, x)
        x = torch.where(x >= T.high, x - column.grid, x) if T.high is not None else x
    near = least - more if low is None or column.edges else low + (least - low) / CLOSER
    x = x.clamp(near, most + more)
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
    found: list[str | None] = []
    for i, state in enumerate(states.tolist()):
        level = column.levels[state] if column.levels else (REST if drawn else None)
        if level in (REST, PRESENT):
            level = drawn[i]
        found.append(None if level == MISSING else level)
    holes = np.array([text is None for text in found])
    return _typed(
        column, np.array([t if t is not None else "" for t in found], dtype=object), holes
    )


def _typed(column: Column, values: np.ndarray, holes: np.ndarray) -> pd.Series:
    """Return values as the dtype that the column had."""
    name, dtype = column.name, column.dtype
    if column.kind == "date":
        letter = "m" if dtype.startswith("timedelta") else "M"
        raw = (
            (np.where(holes, 0, np.round(values)).astype(np.int64) + column.base)
            .clip(*_dates_of(column))
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
    if dtype.lower().startswith("float"):
        numbers = [np.nan if hole else float(v) for v, hole in zip(values, holes, strict=True)]
        return pd.Series(np.array(numbers), name=name).astype(dtype)
    if dtype.lower().startswith(("int", "uint")):
        return pd.Series(_whole(column, values, holes), name=name)
    found = pd.Series(values, name=name, dtype=object)
    return found.mask(holes, None).astype(dtype) if holes.any() else found.astype(dtype)


def _whole(column: Column, values: np.ndarray, holes: np.ndarray) -> Any:
    """Return integers exactly: those of a column of numbers, or those in texts."""
    info = np.iinfo(column.dtype.lower())
    if column.transform is None:
        exact = [0 if hole else int(v) for v, hole in zip(values, holes, strict=True)]
    else:
        exact = [int(v) + column.base for v in np.where(holes, 0, np.round(values))]
    kept = np.array(
        [min(max(v, int(info.min)), int(info.max)) for v in exact], dtype=column.dtype.lower()
    )
    if column.dtype[0].islower():
        return kept
    found = pd.array(kept, dtype=column.dtype)
    found[holes] = pd.NA
    return found


def _dates_of(column: Column) -> tuple[int, int]:
    """Return the first and the last date that the dtype of a column holds, and can be written."""
    if column.dtype.startswith("timedelta"):
        return -(2**62), 2**62
    first, last = (
        ("1678-01-01", "2262-01-01") if "[ns" in column.dtype else ("0001-01-01", "9999-12-31")
    )
    low, high = np.array([first, last], dtype=f"M8[{column.unit}]").astype(np.int64)
    return int(low), int(high)
