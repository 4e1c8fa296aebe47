"""The kind of a column: decided once, from the training rows, and stored with the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from ...check.values import GRAIN, decimals
from ...noise.transforms import Monotone, fit_monotone
from .heaps import Atoms, find_atoms, smooth_part

Kind = Literal["number", "date", "category", "name", "constant"]

MOST_LEVELS = 40
"""Levels of a category that are learned; the others are taken together, and drawn by frequency."""

RARE = 5
"""Rows of a level, below which it goes with the others."""

NOISE = 0.05
"""Standard deviation of the noise on the 0s and 1s of levels: to be read off wrongly has probability
Φ(−1/(0.05 √2)) ≈ 10⁻⁴⁵, and no such column is constant, however rare a level is."""

DIFFERENT = 0.5
"""Share of different values among texts, above which they are names and not categories."""

FEW_NUMBERS = 3
"""Whole numbers of at most so many values are a category."""

SPIKE = 0.05
"""Share of rows that have one value of a column of numbers, from which on it is learned apart."""

MOST_CELLS = 100
"""Cells of a grid that are looked at for rows in all of them."""

BEYOND = 10.0
"""Ranges beyond what was seen at which numbers that are drawn end, so that none is infinite."""

CLOSER = 1000.0
"""How many times nearer to a boundary than all training values numbers may be drawn."""

FAR = 10.0
"""Standard deviations between 0 and the smallest value, above which 0 is not a relevant boundary."""

PRESENT, MISSING, REST = "\0present", "\0missing", "\0others"
"""States beside levels; no text of a table begins like that."""


@dataclass(frozen=True)
class Column:
    """The kind of a column, and its conversion to numbers and back.

    Attributes:
        name: Its name.
        kind: Its kind.
        dtype: The dtype with which it is returned.
        levels: Levels of a category, as text; for a number its states, with "missing" or a spike.
        others: Values drawn from those seen, with their frequencies: rare levels, names, a
            constant.
        decimals: Decimals of a number; None for all of them.
        grid: Spacing of the numbers, 0 if they are not on a grid.
        offset: A number on the grid.
        spread: Whether they are spread over cells.
        transform: T.
        unit: Resolution of a date, in the notation of NumPy.
        categories: The categories of a categorical dtype, in its order; None for other dtypes.
        category_dtype: The dtype of the categories.
        ordered: Whether they are ordered.
        spikes: Values that are learned separately.
        seen: Smallest and largest number.
        edges: Whether these are hard limits, although T continues; draws beyond are moved to them.
        base: A number subtracted first from integers that are too large for float64.
        atoms: Values that are more frequent than those near them, each with its additional
            probability.
        counts: Whether the column numbers the rows.
    """

    name: str
    kind: Kind
    dtype: str
    levels: tuple[str, ...] = ()
    others: tuple[tuple[str, float], ...] = ()
    decimals: int | None = None
    grid: float = 0.0
    offset: float = 0.0
    spread: bool = False
    transform: Monotone | None = None
    unit: str = ""
    categories: tuple[str, ...] | None = None
    category_dtype: str = ""
    ordered: bool = False
    spikes: tuple[float, ...] = ()
    seen: tuple[float, float] = (0.0, 0.0)
    edges: bool = False
    base: int = 0
    atoms: Atoms = ()
    counts: bool = False

    @property
    def width(self) -> int:
        """How many columns of numbers it becomes."""
        n = len(self.levels)
        flags = 0 if n < 2 else 1 if n == 2 else n
        return flags + (self.transform is not None)

    @property
    def step(self) -> float:
        """The width of the cell over which a number is spread, 0 if it is not."""
        return self.grid if self.spread else 0.0

    def describe(self) -> str:
        """Return how the column is read, in words."""
        if self.counts:
            return "numbers the rows, and is learned like any other number: better dropped"
        if self.kind == "constant":
            return "missing in all rows" if self.levels else "the same in all rows"
        if self.kind == "name":
            return "text that differs in nearly every row: resampled from the data, not learned"
        if self.kind == "category":
            rare = f", {len(self.others)} of them rare and grouped together" if self.others else ""
            n = sum(level not in (REST, MISSING) for level in self.levels) + len(self.others)
            text = f"category of {n} level{'s' * (n != 1)}{rare}"
            return text + ", apart from missing" * (MISSING in self.levels)
        units = {"Y": "years", "M": "months", "D": "days", "h": "hours", "m": "minutes"}
        steps = f"{self.grid:g} {units.get(self.unit, self.unit)}".rstrip()
        grid = f" in steps of {steps}" if self.spread else ""
        apart = [level.lstrip("\0") for level in self.levels if level != PRESENT]
        spikes = ", ".join(level for level in apart if level != "missing")
        text = f"{self.kind}{grid}" + (" with missing values" if "missing" in apart else "")
        text += f", {spikes} kept separate" if spikes else ""
        T = self.transform
        if T is not None and self.kind == "number":
            low, high = (None if v is None else v + self.base for v in (T.low, T.high))
            if self.edges and not self.spread:
                return f"{text}, from {self.seen[0] + self.base:g} to {self.seen[1] + self.base:g}"
            text += "" if low is None else f", from {low:g}"
            text += "" if high is None else f", below {high:g}"
            text += f", up to {self.seen[1] + self.base:g}" if self.edges and high is None else ""
        return text


def recognise(
    series: pd.Series, kind: Kind | None = None, weight: np.ndarray | None = None
) -> Column:
    """Return the kind of a column with its parameters.

    Rows may count differently, for what is drawn by frequency.

    Raises:
        ValueError: For infinite values, or a kind that its values cannot have.
    """
    name, dtype = str(series.name), str(series.dtype)
    present = series.dropna()
    holes = len(present) < len(series)
    if present.empty:
        return Column(name, "constant", dtype, (MISSING,), **_dtype(series))
    if present.dtype.kind == "f":
        infinite = np.isinf(series.to_numpy(dtype=np.float64, na_value=np.nan))
        if infinite.any():
            raise ValueError(
                f"column {name!r} has {infinite.sum()} infinite values, the first in row "
                f"{infinite.argmax() + 1}"
            )
    if kind is None:
        kind = _kind(present)
    if present.nunique() == 1 and not holes:
        value = str(present.iloc[0])
        return Column(name, "constant", dtype, others=((value, 1.0),), **_dtype(series))
    if kind in ("category", "name"):
        return _categories(series, present, kind, weight)
    return _numbers(series, present, kind, weight)


def _kind(present: pd.Series) -> Kind:
    letter = present.dtype.kind
    if letter in "Mm":
        return "date"
    if letter == "b" or isinstance(present.dtype, pd.CategoricalDtype):
        return "category"
    if letter in "iuf":
        whole = letter in "iu" or bool((present == present.round()).all())
        if letter in "iu" and int(present.max()) - int(present.min()) > 2**53:
            return "name" if present.nunique() > MOST_LEVELS else "category"
        few = (whole and present.nunique() <= FEW_NUMBERS) or _leaves_out(present)
        return "category" if few else "number"
    n = present.nunique()
    return "name" if n > MOST_LEVELS and n > DIFFERENT * len(present) else "category"


def _leaves_out(present: pd.Series) -> bool:
    """Whether there are few distinct numbers with gaps between them, such as 4, 5, 6 and 8 cylinders.

    The geometric mean of the rows on both sides of a gap estimates how many it would have.
    """
    values, counts = np.unique(present.to_numpy(dtype=np.float64), return_counts=True)
    if not FEW_NUMBERS <= len(values) <= MOST_LEVELS // 2 or len(present) < 2 * RARE * len(values):
        return False
    gaps, around = np.diff(values), np.sqrt(counts[:-1] * counts[1:])
    return bool(((gaps > 1.5 * gaps.min()) & (around >= RARE)).any())


def texts(series: pd.Series) -> list[str]:
    """Return the values of a column as texts, by which levels are known."""
    return [str(value) for value in series.astype(object)]


def _dtype(series: pd.Series) -> dict[str, Any]:
    """Return the fields of a column for a categorical dtype."""
    dtype = series.dtype
    if not isinstance(dtype, pd.CategoricalDtype):
        return {}
    return {
        "categories": tuple(map(str, dtype.categories)),
        "category_dtype": str(dtype.categories.dtype), "ordered": bool(dtype.ordered),
    }  # fmt: skip


def _categories(
    series: pd.Series, present: pd.Series, kind: Kind, weight: np.ndarray | None
) -> Column:
    dtype, known = series.dtype, _dtype(series)
    each = np.ones(len(series)) if weight is None else weight / weight.mean()
    there = pd.Series(each[series.notna().to_numpy()])
    shares = there.groupby(texts(present)).sum().sort_values(ascending=False, kind="stable")
    shares = shares / shares.sum()
    if kind == "name":
        values = tuple((str(k), float(v)) for k, v in shares.items())
        states = (PRESENT, MISSING) if len(present) < len(series) else ()
        return Column(str(series.name), kind, str(dtype), states, values)
    frequent = (shares * len(present) >= RARE - 0.5) & (np.arange(len(shares)) < MOST_LEVELS)
    kept, rest = shares[frequent], shares[~frequent]
    levels = tuple(sorted(map(str, kept.index)))
    others: tuple[tuple[str, float], ...] = ()
    if len(rest):
        others = tuple((str(k), float(v / rest.sum())) for k, v in rest.items())
        levels = (*levels, REST)
    if len(present) < len(series):
        levels = (*levels, MISSING)
    return Column(str(series.name), "category", str(dtype), levels, others, **known)


def _numbers(
    series: pd.Series, present: pd.Series, kind: Kind, weight: np.ndarray | None
) -> Column:
    name, dtype, unit = str(series.name), str(series.dtype), ""
    whole: np.ndarray | None = None
    if kind == "date":
        if present.dtype.kind not in "Mm":
            raise ValueError(f"column {name!r} cannot be a date: it has dtype {dtype}")
        unit, whole = _resolution(present)
    elif present.dtype.kind in "iu":
        whole = present.to_numpy(dtype.lower())
    base = 0
    if whole is not None:
        least, most = int(whole.min()), int(whole.max())
        base = least if max(-least, most) > 2**53 else 0
        if kind == "number" and most - base > 2**53:
            raise ValueError(
                f"column {name!r} cannot be a number: float64 cannot hold all from {least} to {most}; "
                "as a name, they are resampled from the data"
            )
        values = (whole - whole.dtype.type(base)).astype(np.float64)
    else:
        try:
            values = present.to_numpy(dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(
                f"column {name!r} cannot be a number: {_no_number(present)!r}"
            ) from None
    single = dtype.lower() == "float32"
    resolution = float(np.finfo(np.float32 if single else np.float64).eps)
    places = 0 if kind == "date" else decimals(torch.tensor(values), resolution)
    grid = 0.0
    if places is None:
        places = _digits(values.astype(np.float32 if single else np.float64))
    else:
        cells = np.round(values * 10.0**places).astype(np.int64)
        grid = float(np.gcd.reduce(cells - cells.min())) * 10.0**-places
    offset = float(values.min())
    counts = kind == "number" and offset in (0, 1) and MOST_LEVELS < len(values) == len(series)
    counts = counts and bool((np.diff(values) == 1).all())
    spread = grid > GRAIN * float(values.std())
    step = grid if spread else 0.0
    spikes = _spikes(values, step)
    low, high = _borders(values, grid, spread=spread, positive=kind == "number" and not base)
    seen = float(values.min()), float(values.max())
    if low is not None and not step and (values == low).any() and low not in spikes:
        spikes = (low, *spikes)  # no density above it has them
    rest = values[~np.isin(values, spikes)]
    if len(np.unique(rest)) < FEW_NUMBERS:
        return _categories(series, present, "category", weight)
    levels = (PRESENT, *(MISSING,) * (len(present) < len(series)), *map(repr, spikes))
    T = _fitted(rest, step, low, high)
    atoms = find_atoms(rest, T, grid, spread=spread)
    smooth = smooth_part(rest, atoms)
    if atoms and len(np.unique(smooth)) >= FEW_NUMBERS:
        T = _fitted(smooth, step, low, high)
    return Column(
        name, kind, dtype, levels if len(levels) > 1 else (), (), places, grid, offset, spread,
        T, unit, spikes=spikes, seen=seen,
        edges=_all_met(values, step) or (not step and high is not None), base=base, atoms=atoms,
        counts=counts,
    )  # fmt: skip


def _fitted(values: np.ndarray, step: float, low: float | None, high: float | None) -> Monotone:
    x = torch.from_numpy(values)
    if step:  # three points of each cell stand for what is spread over it
        x = torch.cat([x + step / 6, x + step / 2, x + 5 * step / 6])
    return fit_monotone(x, low=low, high=high)


def _digits(values: np.ndarray) -> int | None:
    """Return the most decimals that numbers are written with; None if those are all that they have."""
    written = [str(v).partition(".")[2] for v in np.unique(values)]
    if any("e" in part for part in written):
        return None
    most = max(map(len, written))
    return most if most < (7 if values.dtype == np.float32 else 14) else None


def _no_number(present: pd.Series) -> Any:
    """Return a value that is not a number."""
    bad = present[pd.to_numeric(present.astype(object), errors="coerce").isna()]
    return (bad if len(bad) else present).iloc[0]


def _spikes(values: np.ndarray, step: float) -> tuple[float, ...]:
    """Return values that far more rows have than others near them: no density has those."""
    found, counts = np.unique(values, return_counts=True)
    least: Any = max(SPIKE * len(values), 2 * RARE)
    if step:  # neighbours on a grid are met as often, give or take
        around = np.array([counts[np.abs(found - v) <= 3 * step].sum() for v in found])
        others = (around - counts) / 6
        least = np.maximum(least, 5 * others)
    return tuple(float(v) for v in found[counts >= least])


def _borders(
    values: np.ndarray, grid: float, *, spread: bool, positive: bool
) -> tuple[float | None, float | None]:
    """Return where values end below and above, None where they merely become rare.

    On a coarse grid they end if the last cell has as many rows as half of an average cell, or so
    many that the next would have some if the numbers continued to fall at the same rate. On a fine
    grid, such as days of a year, and without a grid, they end if the first and the last twentieth
    of the range both have half as many rows as others. Numbers that are never negative end at 0,
    unless they end above it or are far from it.
    """
    low = high = None
    least, most = float(values.min()), float(values.max())
    if spread:
        cells = np.round((values - least) / grid).astype(np.int64)
        counts = np.bincount(cells).tolist()
        enough = max(0.5 * len(values) / len(counts), RARE)

        def ends(last: int, before: int) -> bool:
            more = last * min(1.0, last / max(before, 1))
            return last >= enough or more >= RARE

        low = least if ends(counts[0], counts[1]) else None
        high = most + grid if ends(counts[-1], counts[-2]) else None
    elif most > least:
        part = (values - least) / (most - least)
        fewest = min(int((part <= 0.05).sum()), int((part >= 0.95).sum()))
        if fewest >= max(0.025 * len(values), 2 * RARE):
            margin = 0.5 * (grid or (most - least) / (len(np.unique(values)) - 1))
            return least - margin, most + margin
    if low is None and positive and 0 <= least <= FAR * values.std():
        low = 0.0
    return low, high


def _all_met(values: np.ndarray, step: float) -> bool:
    """Whether a coarse grid of few cells has rows in nearly all of them, up to both ends.

    This is true of months and ratings, however rare the last is; numbers without an end leave gaps
    there.
    """
    if not step:
        return False
    cells = np.unique(np.round((values - values.min()) / step).astype(np.int64))
    n = int(cells[-1]) + 1
    return n <= MOST_CELLS and len(cells) >= 0.9 * n and {1, n - 2} <= set(cells.tolist())


def _resolution(present: pd.Series) -> tuple[str, np.ndarray]:
    """Return the coarsest of years, months, days, hours, … that fits all dates, and the integers."""
    time = present.dt.tz_localize(None) if getattr(present.dt, "tz", None) else present
    letter, raw = present.dtype.kind, time.to_numpy()
    own = np.datetime_data(raw.dtype)[0]
    for unit in (*("Y", "M") * (letter == "M"), "D", "h", "m", "s", "ms", "us", "ns"):
        coarse = raw.astype(f"{letter}8[{unit}]")
        if unit == own or bool((coarse.astype(raw.dtype) == raw).all()):
            return unit, coarse.astype(np.int64)
    raise ValueError(f"dates in units of {own} are not supported")
