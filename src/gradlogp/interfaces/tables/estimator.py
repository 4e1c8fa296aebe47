"""Tables learned and drawn: the estimator that joins the columns."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...core import check_kind, check_option, new_seed, randn_like
from ...learn import checkpoint
from ...noise.transforms import Monotone
from ..estimator import ScoreEstimator
from .coding import decode, encode
from .columns import NOISE, Column, Kind, recognise


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
        given = ScoreEstimator() if self.estimator is None else self.estimator
        self.estimator_ = given.__class__(**given.get_params(deep=False))
        # noise of its own, and not that of the training, which starts from the same seed
        g = torch.Generator().manual_seed(new_seed(self.estimator_._generator(None)))
        z, _ = self._encode(frame, g)
        self.estimator_.fit(z)
        return self

    def _encode(self, frame: pd.DataFrame, g: torch.Generator) -> tuple[Tensor, Tensor]:
        parts, nats = zip(*(encode(c, frame[c.name], g) for c in self.columns_), strict=True)
        return torch.cat(parts, 1), torch.stack(nats).sum(0)

    def sample(self, n_samples: int = 1, random_state: int | None = None) -> Any:
        """Draw new rows, as a frame of the kind that was learned from."""
        self._fitted()
        g = self.estimator_._generator(random_state)
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

    def _fitted(self) -> None:
        if not hasattr(self, "estimator_"):
            raise ValueError("this TableEstimator has not been fitted; call fit first")

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Save the model, with names, kinds and levels of all columns, to a checkpoint folder."""
        self._fitted()
        columns = [asdict(c) for c in self.columns_]
        table = {"columns": columns, "kind": self._kind}
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
        try:
            found = cls()
            found._kind = table["kind"]
            found.columns_ = tuple(_column(c) for c in table["columns"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{directory}/config.json is damaged: extra.table: {error}") from None
        found.estimator_ = ScoreEstimator.load(directory)
        if found.estimator_.n_features_in_ != sum(c.width for c in found.columns_):
            raise ValueError(
                f"{directory}/config.json is damaged: extra.table is of another model"
            )
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
