r"""From any table to columns of numbers that a score is learned of, and back to the same table.

What a column is, is decided once, from the rows that are learned from, and kept with the model:

- A number becomes T(x), monotone and onto, in one column, and comes back on the grid that it was on
  (decimals, multiples of 25). On a grid that is wide beside its spread, such as whole numbers often
  are, it is first spread evenly over its cell, and comes back as its cell.
- A date is a number of days, seconds or whatever holds all of them.
- A category, text of few values, a boolean become a column of 0 and 1 for each level (one for two).
- What has holes, or one value again and again, gets a category beside it: present, missing, that value.
- Text that differs in nearly every row is drawn as it was seen; a constant stays.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..core import choice, rand_like, randn_like
from ..learn import checkpoint
from ..noise.transforms import Monotone, fit_monotone
from .estimator import ScoreEstimator

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

GRAIN = 0.02
"""Spacing of a grid, in standard deviations, from which on numbers are spread over their cells."""

PRESENT, MISSING = "present", "missing"


@dataclass(frozen=True)
class Column:
    """What one column is, and how it becomes numbers and comes back.

    Attributes:
        name: Its name.
        kind: What it was taken for.
        dtype: The dtype it comes back with.
        levels: Levels of a category, as text; of a number its states, with "missing" or a spike.
        others: Values that are drawn as seen, and how often each was: rare levels, names, a constant.
        decimals: Decimals of a number; None for all of them.
        grid: Spacing of the numbers, 0 if they are on no grid.
        offset: A number on the grid.
        spread: Whether they are spread over cells.
        transform: T.
        unit: Resolution of a date, as NumPy names it.
        categories: The categories of a categorical dtype, in its order; None for other dtypes.
        category_dtype: Their dtype.
        ordered: Whether they are ordered.
        spikes: Values that are learned apart.
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

    @property
    def width(self) -> int:
        """How many columns of numbers it becomes."""
        n = len(self.levels)
        flags = 0 if n < 2 else 1 if n == 2 else n
        return flags + (self.transform is not None)

    def describe(self) -> str:
        """Return what the column was taken for, in words."""
        if self.kind == "constant":
            return "the same in all rows"
        if self.kind == "name":
            return "text that differs in nearly every row: drawn as seen, and not learned"
        if self.kind == "category":
            more = f", {len(self.others)} rare ones together" if self.others else ""
            return f"category of {len(self.levels)} levels{more}"
        grid = f" in steps of {self.grid:g}" if self.spread else ""
        apart = [level for level in self.levels if level != PRESENT]
        text = f"{self.kind}{grid}" + (f", apart from {', '.join(apart)}" if apart else "")
        T = self.transform
        if T is not None and self.kind == "number":
            text += "" if T.low is None else f", from {T.low:g}"
            text += "" if T.high is None else f", below {T.high:g}"
        return text


REST = "(others)"


def recognise(series: pd.Series, kind: Kind | None = None) -> Column:
    """Return what a column is.

    Arguments:
        series: The column.
        kind: What it is to be taken for instead.

    Raises:
        ValueError: For a column without any value, or a kind that its values cannot have.
    """
    name, dtype = str(series.name), str(series.dtype)
    present = series.dropna()
    if present.empty:
        raise ValueError(f"column {name!r} has no value; leave it out with drop=[{name!r}]")
    holes = len(present) < len(series)
    if kind is None:
        kind = _kind(present)
    if present.nunique() == 1 and not holes:
        return Column(name, "constant", dtype, others=((str(present.iloc[0]), 1.0),))
    if kind in ("category", "name"):
        return _categories(series, present, kind)
    return _numbers(series, present, kind)


def _kind(present: pd.Series) -> Kind:
    letter = present.dtype.kind
    if letter in "Mm":
        return "date"
    if letter == "b" or isinstance(present.dtype, pd.CategoricalDtype):
        return "category"
    if letter in "iuf":
        whole = letter in "iu" or bool((present == present.round()).all())
        return "category" if whole and present.nunique() <= FEW_NUMBERS else "number"
    n = present.nunique()
    return "name" if n > MOST_LEVELS and n > DIFFERENT * len(present) else "category"


def _categories(series: pd.Series, present: pd.Series, kind: Kind) -> Column:
    dtype = series.dtype
    known: dict[str, Any] = {}
    if isinstance(dtype, pd.CategoricalDtype):
        known = {
            "categories": tuple(map(str, dtype.categories)),
            "category_dtype": str(dtype.categories.dtype), "ordered": bool(dtype.ordered),
        }  # fmt: skip
    shares = present.astype(str).value_counts(normalize=True)
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


def _numbers(series: pd.Series, present: pd.Series, kind: Kind) -> Column:
    name, dtype, unit = str(series.name), str(series.dtype), ""
    if kind == "date":
        if present.dtype.kind not in "Mm":
            raise ValueError(f"column {name!r} cannot be a date: it has dtype {dtype}")
        unit, values = _resolution(present)
    else:
        try:
            values = present.to_numpy(dtype=np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"column {name!r} cannot be a number: {present.iloc[0]!r}") from None
        if not np.isfinite(values).all():
            raise ValueError(f"column {name!r} has infinite values; remove these rows")
    places = 0 if kind == "date" else _decimals(values, present.dtype)
    grid = 0.0
    if places is not None:
        whole = np.round(values * 10.0**places).astype(np.int64)
        grid = float(np.gcd.reduce(whole - whole.min())) * 10.0**-places
    offset = float(values.min())
    spread = grid > GRAIN * float(values.std())
    step = grid if spread else 0.0
    spikes = _spikes(values, step)
    low, high = _borders(values, step, positive=kind == "number")
    if low is not None and not step and (values == low).any() and low not in spikes:
        spikes = (low, *spikes)  # no density above it has them
    rest = values[~np.isin(values, spikes)]
    if len(np.unique(rest)) < FEW_NUMBERS:
        return _categories(series, present, "category")
    levels = (PRESENT, *(MISSING,) * (len(present) < len(series)), *map(repr, spikes))
    x = torch.from_numpy(rest)
    if step:  # three points of each cell stand for what is spread over it
        x = torch.cat([x + step / 6, x + step / 2, x + 5 * step / 6])
    return Column(
        name, kind, dtype, levels if len(levels) > 1 else (), (), places, grid, offset, spread,
        fit_monotone(x, low=low, high=high), unit, spikes=spikes,
    )  # fmt: skip


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
    values: np.ndarray, step: float, *, positive: bool
) -> tuple[float | None, float | None]:
    """Return where values end below and above, None where they just get rare.

    On a wide grid they end where the last cell has as many rows as half of an average cell. Numbers
    that are never negative end at 0, unless they end above it.
    """
    low = high = None
    if step:
        _, counts = np.unique(values, return_counts=True)
        cells = round((values.max() - values.min()) / step) + 1
        least = max(0.5 * len(values) / cells, RARE)
        low = float(values.min()) if counts[0] >= least else None
        high = float(values.max() + step) if counts[-1] >= least else None
    if low is None and positive and values.min() >= 0:
        low = 0.0
    return low, high


def _resolution(present: pd.Series) -> tuple[str, np.ndarray]:
    """Return the coarsest of days, hours, minutes, seconds, … that holds all dates, and the numbers."""
    time = present.dt.tz_localize(None) if getattr(present.dt, "tz", None) else present
    letter = present.dtype.kind
    raw = time.to_numpy().astype(f"{letter}8[ns]").astype(np.int64)
    for unit in ("D", "h", "m", "s", "ms", "us"):
        size = int(np.timedelta64(1, unit).astype("m8[ns]").astype(np.int64))
        if not (raw % size).any():
            return unit, (raw // size).astype(np.float64)
    return "ns", raw.astype(np.float64)


def _decimals(values: np.ndarray, dtype: Any) -> int | None:
    eps = np.finfo(np.float32).eps if str(dtype).lower() == "float32" else np.finfo(np.float64).eps
    for k in range(10):
        scaled = np.abs(values) * 10.0**k
        rounding = 4 * eps * scaled + 1e-9
        if rounding.max() > 0.01:
            return None
        if (np.abs(scaled - np.round(scaled)) <= rounding).all():
            return k
    return None


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


def decode(column: Column, z: Tensor, generator: torch.Generator) -> pd.Series:
    """Return a column from its columns of numbers, with its dtype, decimals, levels and holes."""
    n, k = len(z), len(column.levels)
    if k == 2:
        states = (z[:, 0] > 0.5).long()
    else:
        states = z[:, :k].argmax(1) if k > 2 else torch.zeros(n, dtype=torch.long)
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
                zone, ambiguous="NaT", nonexistent="shift_forward"
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
            return pd.Series(numbers, name=name).round().astype(dtype)
        return pd.Series(np.round(numbers), name=name).astype(dtype)
    found = pd.Series(values, name=name, dtype=object)
    return found.mask(holes, None).astype(dtype) if holes.any() else found.astype(dtype)


class TableEstimator:
    r"""Learn the law of a table; draw new rows of the same columns, dtypes, levels and decimals.

    Every column is taken for a number, a date, a category or a name, by its values (`columns_` says
    for what, and `kinds` overrides it); what it becomes is in the table at the top of this module.
    The numbers are learned by a `ScoreEstimator`.

    Arguments:
        estimator: What learns the numbers; `ScoreEstimator()` by default.
        drop: Columns to leave out.
        kinds: What columns are to be taken for, by name: "number", "date", "category" or "name".
        random_state: Seed.

    Attributes:
        columns_: What each column was taken for.
        estimator_: What was fitted.
    """

    def __init__(
        self,
        estimator: ScoreEstimator | None = None,
        *,
        drop: Sequence[str] = (),
        kinds: Mapping[str, Kind] | None = None,
        random_state: int | None = 0,
    ) -> None:
        self.estimator = estimator
        self.drop = tuple(drop)
        self.kinds = dict(kinds or {})
        self.random_state = random_state

    def fit(self, X: Any) -> TableEstimator:
        """Learn the law of a frame of pandas or polars.

        Raises:
            TypeError: For what is not a frame.
            ValueError: For fewer than two rows, names that are not columns, columns that cannot be
                what they are to be, or no column to learn.
        """
        frame, self._kind = _frame(X)
        for name in (*self.drop, *self.kinds):
            if name not in frame.columns:
                raise ValueError(
                    f"there is no column {name!r}; there are {', '.join(frame.columns)}"
                )
        frame = frame.drop(columns=list(self.drop))
        if len(frame) < 2:
            raise ValueError(f"a table needs two rows at least, got {len(frame)}")
        self.columns_ = tuple(recognise(frame[c], self.kinds.get(c)) for c in frame.columns)
        if not any(c.width for c in self.columns_):
            raise ValueError("no column can be learned: all are constant, or names")
        g = self._generator(None)
        z, _ = self._encode(frame, g)
        self.estimator_ = ScoreEstimator(random_state=self.random_state)
        if self.estimator is not None:
            self.estimator_ = self.estimator.__class__(**self.estimator.get_params(deep=False))
        self.estimator_.fit(z)
        return self

    def _generator(self, random_state: int | None) -> torch.Generator:
        seed = self.random_state if random_state is None else random_state
        g = torch.Generator()
        if seed is None:
            g.seed()
        else:
            g.manual_seed(seed)
        return g

    def _encode(self, frame: pd.DataFrame, g: torch.Generator) -> tuple[Tensor, Tensor]:
        parts, nats = zip(*(encode(c, frame[c.name], g) for c in self.columns_), strict=True)
        return torch.cat(parts, 1), torch.stack(nats).sum(0)

    def sample(self, n_samples: int = 1, random_state: int | None = None) -> Any:
        """Draw new rows, as a frame of the kind that was learned from."""
        self._fitted()
        g = self._generator(random_state)
        seed = int(torch.randint(2**31, (1,), generator=g))
        z = torch.as_tensor(self.estimator_.sample(n_samples, random_state=seed)).double()
        widths = [c.width for c in self.columns_]
        series = [
            decode(c, part, g) for c, part in zip(self.columns_, z.split(widths, 1), strict=True)
        ]
        frame = pd.concat(series, axis=1)
        if self._kind == "polars":
            import polars

            return polars.from_pandas(frame)
        return frame

    def score_samples(
        self, X: Any, *, n_draws: int = 1, random_state: int | None = None
    ) -> np.ndarray:
        r"""Return a lower bound of each row's log-likelihood, in nats.

        Densities of numbers and probabilities of levels, holes and cells of a grid in one number:

        .. math:: \log P(x) \ge E_{q(z|x)} [\log p(z) - \log q(z|x)]

        where q spreads a grid over its cells, fills holes from N(0, 1), and adds to the 0s and 1s of
        levels the noise that they are learned with, that of the smallest noise level included. What q
        leaves open is the gap: little, where a level can be read off its noisy numbers.

        Arguments:
            X: A frame with the columns learned from.
            n_draws: Draws of q to average over.
            random_state: Seed of them.
        """
        self._fitted()
        frame, _ = _frame(X)
        names = [c.name for c in self.columns_]
        if missing := [name for name in names if name not in frame.columns]:
            raise ValueError(f"the frame lacks columns: {', '.join(missing)}")
        g = self._generator(random_state)
        flags = torch.tensor(
            [
                i < c.width - (c.transform is not None)
                for c in self.columns_
                for i in range(c.width)
            ]
        )
        scale = self.estimator_.model_.coordinates.scale.cpu().double()[flags]
        blur = self.estimator_.sigma_min_ * scale
        width = (blur.square() + NOISE**2).sqrt()
        gain = float((width.log() + 0.5 * math.log(2 * math.pi * math.e)).sum())
        total = np.zeros(len(frame))
        for _ in range(n_draws):
            z, nats = self._encode(frame, g)
            z[:, flags] += blur * randn_like(z[:, flags], g)
            found = np.asarray(self.estimator_.score_samples(z))
            total += (found + nats.numpy() + gain) / n_draws
        return total

    def _fitted(self) -> None:
        if not hasattr(self, "estimator_"):
            raise ValueError("this TableEstimator has not been fitted; call fit first")

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Save the model, with names, kinds and levels of all columns, to a checkpoint folder."""
        self._fitted()
        columns = [asdict(c) for c in self.columns_]
        table = {"columns": columns, "kind": self._kind, "random_state": self.random_state}
        return self.estimator_.save(directory, extra={"table": table})

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> TableEstimator:
        """Load what `save` wrote.

        Raises:
            ValueError: If the checkpoint is missing, damaged, or holds no table.
        """
        table = checkpoint.read_config(directory)["extra"].get("table")
        if table is None:
            raise ValueError(f"{directory} holds no table; load it by ScoreEstimator.load")
        found = cls(random_state=table["random_state"])
        found._kind = table["kind"]
        found.columns_ = tuple(_column(c) for c in table["columns"])
        found.estimator_ = ScoreEstimator.load(directory)
        return found


def _column(kept: dict[str, Any]) -> Column:
    """Return a column from what a checkpoint keeps of it."""
    T = kept["transform"]
    kept = {**kept, "transform": None if T is None else Monotone(**T)}
    for key in ("levels", "spikes", "categories"):
        kept[key] = None if kept[key] is None else tuple(kept[key])
    return Column(**{**kept, "others": tuple((v, s) for v, s in kept["others"])})


def _frame(X: Any) -> tuple[pd.DataFrame, str]:
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
        raise TypeError(f"a table is a frame of pandas or polars, got {type(X).__name__}")
    names = list(map(str, frame.columns))
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"columns must have different names; twice there: {', '.join(twice)}")
    return frame.set_axis(names, axis=1), kind
