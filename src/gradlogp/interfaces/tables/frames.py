"""Frames of users, and columns as they were learned."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from ...core import check_number, joined, listed, nearest, short, some
from ...noise.transforms import Monotone
from .columns import Column
from .forms import Form

if TYPE_CHECKING:
    from .estimator import TableEstimator


class ColumnError(ValueError):
    """All columns that cannot be learned, and what is wrong with each.

    Attributes:
        columns: Their names.
        problems: What is wrong, in the same order.
    """

    def __init__(self, columns: Sequence[str], problems: Sequence[str], advice: str) -> None:
        self.columns, self.problems = tuple(columns), tuple(problems)
        super().__init__(listed(problems) + advice)


FAR, FEWEST = 3.0, 10
"""A value is far away if its distance to the next one is this many times the range of all others, in a
column of at least so many values. Positive numbers are also compared by their logarithms, or exp(2N)
would have such values. Of 24 real tables metro (gt) has one, a latitude without its first digit."""


def far_values(frame: pd.DataFrame, columns: Sequence[Column]) -> list[str]:
    """Return a sentence for each smallest or largest number that is far from all others."""
    found = []
    for column in columns:
        if column.kind != "number":
            continue
        x = frame[column.name].to_numpy(dtype=float, na_value=np.nan)
        v = np.sort(x[np.isfinite(x)])
        if len(v) < FEWEST:
            continue
        scales = (v, np.log(v)) if v[0] > 0 else (v,)
        low, high = (
            all(abs(u[at] - u[by]) > FAR * (u[end] - u[start]) > 0 for u in scales)
            for at, by, start, end in ((0, 1, 1, -1), (-1, -2, 0, -2))
        )
        for far, at, others in ((low, v[0], v[1:]), (high, v[-1], v[:-1])):
            if far:
                found.append(
                    f"column {short(column.name)!r} has {at:g} in row {int(np.argmax(x == at)) + 1}, "
                    f"far from all others, {others[0]:g} to {others[-1]:g}"
                )
    return found


def of_each(
    frame: pd.DataFrame, look: Callable[[str], Any], *, learning: bool = False
) -> tuple[Any, ...]:
    """Return the result for each column; raise `ColumnError` for all that fail.

    If they are to be learned, the error says how to drop them.
    """
    found, problems = [], {}
    for name in frame.columns:
        try:
            found.append(look(name))
        except ValueError as error:
            problems[name] = str(error)
    if problems:
        names = joined([f" {name!r}" for name in problems]).strip()
        advice = f"; drop=[{names}] drops them" if learning else ""
        raise ColumnError(list(problems), list(problems.values()), advice)
    return tuple(found)


def like(column: Column, series: pd.Series) -> pd.Series:
    """Return a column with the dtype of the one learned from, or as it is if that has no holes."""
    if str(series.dtype) == column.dtype or (
        column.dtype == "category" and column.transform is None
    ):
        return series
    holes = series.isna()
    dtype = column.dtype
    if holes.any():  # the same with room for holes
        whole = dtype.startswith(("int", "uint"))
        dtype = dtype.replace("i", "I").replace("u", "U") if whole else dtype
        dtype = "boolean" if dtype == "bool" else dtype
    try:
        typed = series.astype(dtype)
        return typed if typed.isna().equals(holes) else series  # a hole is no text
    except (TypeError, ValueError):
        numbers = column.transform is not None and series.dtype.kind in "iuf"
        if (numbers and column.kind == "number") or column.transform is None:
            return series
        values = series.dropna()
        if column.kind == "number":
            values = values[pd.to_numeric(values, errors="coerce").isna()]
        what = f" with {short(repr(values.iloc[0]))}" if len(values) else ""
        raise ValueError(
            f"column {column.name!r} was learned as {column.dtype}, and is {series.dtype} here{what}"
        ) from None


def of_kind(frame: pd.DataFrame, kind: str) -> Any:
    """Return a frame of pandas as one of the kind that was given."""
    if kind == "polars":
        import polars

        return polars.from_pandas(frame)
    return frame


def column_of(kept: dict[str, Any]) -> Column:
    """Return a column from what a checkpoint keeps of it."""
    T = kept["transform"]
    kept = {**kept, "transform": None if T is None else Monotone(**T)}
    for key in ("levels", "spikes", "categories", "seen"):
        kept[key] = None if kept[key] is None else tuple(kept[key])
    pairs = {key: tuple((v, s) for v, s in kept[key]) for key in ("others", "atoms")}
    return Column(**kept | pairs)


def frame_of(X: Any, name: str = "X") -> tuple[pd.DataFrame, str]:
    """Return a frame of pandas, and which kind was given."""
    if isinstance(X, pd.DataFrame):
        frame, kind = X, "pandas"
    elif hasattr(X, "to_pandas"):
        frame, kind = X.to_pandas(), "polars"
        for name, dtype in X.schema.items():  # pandas has holes in integers and booleans if asked
            if dtype.is_integer() or str(dtype) == "Boolean":
                frame[name] = frame[name].astype(
                    "boolean" if str(dtype) == "Boolean" else str(dtype)
                )
    else:
        raise TypeError(f"{name} must be a frame of pandas or polars, got {type(X).__name__}")
    names = list(map(str, frame.columns))
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"columns must have different names; repeated: {some(twice)}")
    return frame.set_axis(names, axis=1), kind


def columns_of(config: dict[str, Any], directory: str | os.PathLike[str]) -> tuple[Column, ...]:
    """Return the columns of a table from a configuration, after checks.

    Raises:
        ValueError: If it has none, or values that no table could have stored.
    """
    table = config["extra"].get("table")
    if table is None:
        raise ValueError(f"{directory} holds no table; load it by ScoreEstimator.load")
    try:
        if table.keys() != {"columns", "kind", "form", "condition", "dropout"}:
            raise ValueError("fields missing or unknown")
        Form.of(table["form"])
        columns = tuple(column_of(c) for c in table["columns"])
        check_condition(table["condition"], columns)
        check_number(table["dropout"], "dropout", least=0, below=1)
        return columns
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{directory}/config.json is damaged: extra.table: {error}") from None


def check_condition(names: Sequence[str], columns: Sequence[Column]) -> None:
    """Raise `ValueError` unless these are columns that are learned, and others are left."""
    learned = [c.name for c in columns if c.width]
    if unknown := [name for name in names if name not in learned]:
        raise ValueError(
            f"condition: there is no learned column called {some(list(map(repr, unknown)))}"
            f"{nearest(unknown[0], learned) if len(unknown) == 1 else ''}"
        )
    if names and set(names) >= set(learned):
        raise ValueError("condition: this leaves no column to learn")


def numbers(x: torch.Tensor, names: Sequence[str]) -> pd.DataFrame:
    """Return samples `(n, *event)` as a frame, entries by their names or numbers."""
    flat = x.flatten(1).numpy()
    return pd.DataFrame(flat, columns=[*(names or map(str, range(flat.shape[1])))])


def ranked(frame: pd.DataFrame, nats: np.ndarray) -> pd.DataFrame:
    """Return rows with the number that each has among these, its log-density and its rank, in order."""
    found = frame.reset_index(drop=True)
    order = nats.argsort(kind="stable")
    found.insert(0, _free(found, "row"), range(1, len(found) + 1))
    found[_free(found, "log_density")] = nats
    found = found.iloc[order]
    found[_free(found, "rank")] = range(1, len(found) + 1)
    return found


def rank(table: TableEstimator, frame: pd.DataFrame, random_state: int) -> pd.DataFrame:
    """Return rows of a table ranked; what has probability 0 has −inf, and the reason in words."""
    frame = table._as_learned(frame)
    why = [
        "; ".join(filter(None, reasons)) for reasons in zip(*table._impossible(frame), strict=True)
    ]
    known = np.array([not reason for reason in why])
    nats = np.full(len(frame), -np.inf)
    if known.any():
        nats[known] = table.score_samples(frame[known], random_state=random_state)
    found = ranked(frame, nats)
    found[_free(found, "why")] = [why[i] for i in found.index]
    found.attrs["form"] = table._form
    return found


def _free(frame: pd.DataFrame, name: str) -> str:
    """Return a name that no column has yet."""
    while name in frame.columns:
        name = f"{name}_"
    return name
