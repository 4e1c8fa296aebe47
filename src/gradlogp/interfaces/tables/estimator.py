"""Tables learned and drawn: the estimator that joins the columns."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...core import check_kind, check_option, nearest, new_seed, randn_like, some
from ...learn import checkpoint
from ...noise.transforms import Monotone
from ..estimator import ScoreEstimator
from ..pipeline import sample_weights
from .coding import decode, encode, impossible
from .columns import NOISE, Column, Kind, recognise
from .forms import Form


class TableEstimator:
    r"""Learn the law of a table; draw new rows of the same columns, dtypes, levels and decimals.

    Every column is taken for a number, a date, a category or a name, by its values (`columns_` says
    for what, and `kinds` overrides it); what it becomes is said at the top of this package.
    The numbers are learned by a `ScoreEstimator`.

    Arguments:
        estimator: What learns the numbers, with its `random_state`; `ScoreEstimator()` by default.
        drop: Columns to leave out.
        kinds: What columns are to be taken for, by name: "number", "date", "category" or "name".

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
    ) -> None:
        if estimator is not None:
            check_kind(estimator, "estimator", ScoreEstimator, "a ScoreEstimator")
        check_kind(drop, "drop", list | tuple, "a list of names")
        check_kind(
            {} if kinds is None else kinds, "kinds", Mapping, "a dictionary of names to kinds"
        )
        for name, kind in ({} if kinds is None else kinds).items():
            check_option(kind, f"kinds[{name!r}]", ("number", "date", "category", "name"))
        self.estimator = estimator
        self.drop = tuple(drop)
        self.kinds = {} if kinds is None else dict(kinds)

    def fit(self, X: Any, *, sample_weight: Any = None) -> TableEstimator:
        """Learn the law of a frame of pandas or polars.

        Arguments:
            X: The frame.
            sample_weight: How much each row counts, as for `ScoreEstimator.fit`.

        Raises:
            TypeError: For what is not a frame.
            ValueError: For fewer than two rows, names that are not columns, columns that cannot be
                what they are to be (a `ColumnError`), no column to learn, or a checkpoint to go on
                from that was made of another table.
        """
        frame, self._kind = _frame(X)
        self._form = dict(getattr(X, "attrs", {}).get("form", {}))
        known = list(frame.columns)
        if unknown := [name for name in (*self.drop, *self.kinds) if name not in known]:
            close = nearest(unknown[0], known) if len(unknown) == 1 else ""
            raise ValueError(f"there is no column {some(list(map(repr, unknown)))}{close}")
        frame = frame.drop(columns=list(self.drop))
        if len(frame) < 2:
            raise ValueError(f"a table needs two rows at least, got {len(frame)}")
        weight = sample_weights(sample_weight, len(frame))
        if weight is not None:  # a row that does not count is not there
            frame = frame[(weight > 0).numpy()]
            weight = weight[weight > 0]
        share = None if weight is None else weight.numpy()
        self.columns_ = _recognised(frame, lambda c: recognise(frame[c], self.kinds.get(c), share))
        if not any(c.width for c in self.columns_):
            raise ValueError("no column can be learned: all are constant, or names")
        given = ScoreEstimator() if self.estimator is None else self.estimator
        self.estimator_ = given.__class__(**given.get_params(deep=False))
        if given.resume and given.checkpoint is not None:
            self._check_same(given.checkpoint)
        # noise of its own, and not that of the training, which starts from the same seed
        g = torch.Generator().manual_seed(new_seed(self.estimator_._generator(None)))
        if given.verbose:
            for column in self.columns_:
                print(f"{column.name}: {column.describe()}", file=sys.stderr)
        z, _ = self._encode(frame, g)
        self.estimator_.fit(z, sample_weight=weight, extra=self._extra())
        return self

    def _extra(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the table."""
        columns = [asdict(c) for c in self.columns_]
        return {"table": {"columns": columns, "kind": self._kind, "form": self._form}}

    def _check_same(self, directory: str | os.PathLike[str]) -> None:
        """Raise `ValueError` if the checkpoint to go on from was made of another table."""
        kept = TableEstimator._columns(checkpoint.read_config(directory), directory)
        before, now = ({c.name: c for c in columns} for columns in (kept, self.columns_))
        other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if other or list(before) != list(now):
            raise ValueError(
                f"the checkpoint was made of another table: columns {some(other or list(before))} "
                "differ; a resumed run must keep its settings and data"
            )

    def _encode(self, frame: pd.DataFrame, g: torch.Generator) -> tuple[Tensor, Tensor]:
        parts, nats = zip(*(encode(c, frame[c.name], g) for c in self.columns_), strict=True)
        return torch.cat(parts, 1), torch.stack(nats).sum(0)

    def sample(self, n_samples: int = 1, random_state: int | None = None) -> Any:
        """Draw new rows, as a frame of the kind that was learned from."""
        self._fitted()
        g = self.estimator_._generator(random_state)
        seed = int(torch.randint(2**31, (1,), generator=g))
        return self._decode(
            torch.as_tensor(self.estimator_.sample(n_samples, random_state=seed)), g
        )

    def _decode(self, z: Tensor, g: torch.Generator) -> Any:
        """Return rows from their numbers."""
        z = z.double()
        widths = [c.width for c in self.columns_]
        series = [
            decode(c, part, g) for c, part in zip(self.columns_, z.split(widths, 1), strict=True)
        ]
        frame = pd.concat(series, axis=1)
        if self._form:
            frame.attrs["form"] = self._form
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
        frame = self._as_learned(X)
        if why := [
            reason for c in self.columns_ for reason in _first(impossible(c, frame[c.name]))
        ]:
            raise ValueError("; ".join(why))
        g = self.estimator_._generator(random_state)
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

    def _as_learned(self, X: Any) -> pd.DataFrame:
        """Return the columns learned from, with the dtypes that they had."""
        self._fitted()
        frame, _ = _frame(X)
        names = [c.name for c in self.columns_]
        if missing := [name for name in names if name not in frame.columns]:
            raise ValueError(f"the frame lacks columns: {', '.join(missing)}")
        learned = {c.name: c for c in self.columns_}
        series = _recognised(frame[names], lambda name: _like(learned[name], frame[name]))
        return pd.concat(series, axis=1)

    def _fitted(self) -> None:
        if not hasattr(self, "estimator_"):
            raise ValueError("this TableEstimator has not been fitted; call fit first")

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Save the model, with names, kinds and levels of all columns, to a checkpoint folder."""
        self._fitted()
        return self.estimator_.save(directory, extra=self._extra())

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> TableEstimator:
        """Load what `save` wrote.

        Raises:
            ValueError: If the checkpoint is missing, damaged, or holds no table.
        """
        config = checkpoint.read_config(directory)
        found = cls()
        found.columns_ = cls._columns(config, directory)
        table = config["extra"]["table"]
        found._kind, found._form = table["kind"], table["form"]
        found.estimator_ = ScoreEstimator.load(directory)
        if found.estimator_.n_features_in_ != sum(c.width for c in found.columns_):
            raise ValueError(
                f"{directory}/config.json is damaged: extra.table is of another model"
            )
        return found

    @staticmethod
    def _columns(config: dict[str, Any], directory: str | os.PathLike[str]) -> tuple[Column, ...]:
        """Return the columns that a configuration has of a table, read with distrust."""
        table = config["extra"].get("table")
        if table is None:
            raise ValueError(f"{directory} holds no table; load it by ScoreEstimator.load")
        try:
            if table.keys() != {"columns", "kind", "form"}:
                raise ValueError("fields missing or unknown")
            Form.of(table["form"])
            return tuple(_column(c) for c in table["columns"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{directory}/config.json is damaged: extra.table: {error}") from None


class ColumnError(ValueError):
    """Columns that cannot be learned: all of them, and what is wrong with each.

    Attributes:
        columns: Their names.
        problems: What is wrong, in this order.
    """

    def __init__(self, columns: Sequence[str], problems: Sequence[str]) -> None:
        self.columns, self.problems = tuple(columns), tuple(problems)
        super().__init__(f"{'; '.join(problems)}; drop={list(columns)} leaves them out")


def _recognised(frame: pd.DataFrame, look: Callable[[str], Any]) -> tuple[Any, ...]:
    """Return what is found in each column; `ColumnError` for all that fail."""
    found, problems = [], {}
    for name in frame.columns:
        try:
            found.append(look(name))
        except ValueError as error:
            problems[name] = str(error)
    if problems:
        raise ColumnError(list(problems), list(problems.values()))
    return tuple(found)


def _like(column: Column, series: pd.Series) -> pd.Series:
    """Return a column with the dtype of the one learned from, or as it is if that has no holes."""
    if str(series.dtype) == column.dtype or (
        column.dtype == "category" and column.transform is None
    ):
        return series
    try:
        return series.astype(column.dtype)
    except (TypeError, ValueError):
        numbers = column.transform is not None and series.dtype.kind in "iuf"
        if (numbers and column.kind == "number") or column.transform is None:
            return series
        raise ValueError(
            f"column {column.name!r} was learned as {column.dtype}, and is {series.dtype} here"
        ) from None


def _first(reasons: list[str]) -> list[str]:
    return [next(reason for reason in reasons if reason)] if any(reasons) else []


def _column(kept: dict[str, Any]) -> Column:
    """Return a column from what a checkpoint keeps of it."""
    T = kept["transform"]
    kept = {**kept, "transform": None if T is None else Monotone(**T)}
    for key in ("levels", "spikes", "categories", "seen"):
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
