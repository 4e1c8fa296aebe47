"""Tables learned and drawn: the estimator that joins the columns."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...core import check_count, check_kind, check_option, nearest, new_seed, randn_like, some
from ...diffusion import marginal_log_likelihood
from ...learn import checkpoint
from ...learn.objectives.masked import Masks
from ...noise.grids import time_grid
from ...scores.masked import Mask
from ..estimator import ScoreEstimator
from ..needs import in_float64
from ..pipeline import CHUNK, draw
from ..weights import sample_weights
from .coding import decode, encode, encode_known, fill, impossible, is_hole, without_holes
from .columns import MISSING, NOISE, Column, Kind, recognise
from .forms import Form
from .frames import column_of, frame_of, like, of_each, of_kind

TRIES = 20
"""Draws of a row until none of its cells is drawn to be missing; then the likeliest value is taken."""


class TableEstimator:
    r"""Learn the law of a table; draw new rows of the same columns, dtypes, levels and decimals.

    Every column is taken for a number, a date, a category or a name, by its values (`columns_` says
    for what, and `kinds` overrides it); what it becomes is said at the top of this package.
    The numbers are learned by a `ScoreEstimator`.

    Arguments:
        estimator: What learns the numbers, with its `random_state`; `ScoreEstimator()` by default.
        drop: Columns to leave out.
        kinds: What columns are to be taken for, by name: "number", "date", "category" or "name".
        holes: Whether to learn all conditional laws too, for `impute`, by half of the training.

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
        holes: bool = True,
    ) -> None:
        if estimator is not None:
            check_kind(estimator, "estimator", ScoreEstimator, "a ScoreEstimator")
        check_kind(drop, "drop", list | tuple, "a list of names")
        check_kind(
            {} if kinds is None else kinds, "kinds", Mapping, "a dictionary of names to kinds"
        )
        for name, kind in ({} if kinds is None else kinds).items():
            check_option(kind, f"kinds[{name!r}]", ("number", "date", "category", "name"))
        check_kind(holes, "holes", bool, "True or False")
        self.estimator, self.holes = estimator, holes
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
        frame, self._kind = frame_of(X)
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
        self.columns_ = of_each(frame, lambda c: recognise(frame[c], self.kinds.get(c), share))
        if not any(c.width for c in self.columns_):
            raise ValueError("no column can be learned: all are constant, or names")
        given = ScoreEstimator() if self.estimator is None else self.estimator
        self.estimator_ = given.__class__(**given.get_params(deep=False))
        if given.resume and given.checkpoint is not None:
            self._check_same(given.checkpoint)
        own = given.network is not None and not getattr(given.network, "holes", False)
        if self.holes and (own or given.objective is not None):
            raise ValueError(
                f"holes are learned by a network and an objective for them, and the estimator has its "
                f"own {'network' if own else 'objective'}: pass holes=False, and do without impute"
            )
        if self.holes and given.base not in ("auto", "none"):
            raise ValueError(
                f"holes are learned from a Gaussian law of their own, and the estimator has base="
                f"{given.base!r}: pass holes=False, and do without impute"
            )
        # noise of its own, and not that of the training, which starts from the same seed
        g = torch.Generator().manual_seed(new_seed(self.estimator_._generator(None)))
        if given.verbose:
            for column in self.columns_:
                print(f"{column.name}: {column.describe()}", file=sys.stderr)
        z, _ = self._encode(frame, g)
        masks = self._masks(frame, z) if self.holes else None
        self.estimator_.fit(z, sample_weight=weight, masks=masks, extra=self._extra())
        return self

    def _masks(self, frame: pd.DataFrame, z: Tensor) -> Masks:
        """Return what may be known of each row: its cells, and not what stands in for a hole."""
        known, start = z.clone(), 0
        groups: list[int] = []
        flags: list[bool] = []
        levels: list[bool] = []
        for i, column in enumerate(self.columns_):
            end, number = start + column.width, column.transform is not None
            if number:
                gone = torch.from_numpy(frame[column.name].isna().to_numpy(copy=True))
                known[gone, end - 1] = torch.nan
            groups += [i] * column.width
            levels += [not number] * column.width
            flags += [number and j < end - 1 for j in range(start, end)]
            start = end
        return Masks(known, tuple(groups), tuple(flags), tuple(levels), NOISE)

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
        parts, nats = zip(
            *(self._numbers(c, frame[c.name], g) for c in self.columns_), strict=True
        )
        return torch.cat(parts, 1), torch.stack(nats).sum(0)

    def _numbers(
        self, column: Column, series: pd.Series, g: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return what `encode` does; NaN for holes of a column that had none, if the model allows."""
        fact = MISSING in column.levels
        holes = torch.from_numpy(series.isna().to_numpy(copy=True))
        fitted = getattr(getattr(self, "estimator_", None), "model_", None)
        if (
            fact
            or not bool(holes.any())
            or not isinstance(getattr(fitted, "condition", None), Mask)
        ):
            return encode(column, series, g)
        z, nats = encode_known(column, series, g), torch.zeros(len(series), dtype=torch.float64)
        if not bool(holes.all()):
            z[~holes], nats[~holes] = encode(column, series[~holes.numpy()], g)
        return z, nats

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
        return of_kind(frame, self._kind)

    def impute(self, X: Any, n_draws: int = 1, *, random_state: int | None = None) -> Any:
        r"""Fill the holes of a frame by draws from the law of the missing cells given the others.

        Any cells of any rows. That a cell is missing is not taken for a fact about its value: a hole
        is filled by what the cell would be if it were there, given what else the row has.
        Means over draws estimate conditional means, and their spread shows what is not known; one
        draw keeps the spread of a column, which the mean does not.

        Arguments:
            X: A frame with the columns learned from; others come back as they are.
            n_draws: How many times to fill.
            random_state: Seed.

        Returns:
            A frame of the kind given without holes, or a list of `n_draws` of them if that is not 1.

        Raises:
            ValueError: For columns that are missing, values that cannot be, or a model made with
                `holes=False`.

        References:
            | CSDI: Conditional Score-based Diffusion Models for Probabilistic Time Series Imputation
              (Tashiro et al., 2021)
            | https://arxiv.org/abs/2107.03502
        """
        self._fitted()
        check_count(n_draws, "n_draws")
        model = self.estimator_.model_
        if not isinstance(model.condition, Mask):
            raise ValueError("this model knows whole rows alone: fit TableEstimator(holes=True)")
        frame, kind = frame_of(X)
        rows = self._as_learned(X)
        rows = rows[rows.isna().any(axis=1).to_numpy()]
        g = self.estimator_._generator(random_state)
        known = torch.cat([encode_known(c, rows[c.name], g) for c in self.columns_], 1)
        z = self._draw_given(known.repeat(n_draws, 1), g) if len(rows) else known
        widths = [c.width for c in self.columns_]
        parts = z.split(widths, 1)
        found = []
        for i in range(n_draws):
            whole = frame.copy()
            for c, part in zip(self.columns_, parts, strict=True):
                mine = without_holes(c, part[i * len(rows) : (i + 1) * len(rows)])
                holes = torch.from_numpy(rows[c.name].isna().to_numpy(copy=True))
                if bool(holes.any()):
                    whole[c.name] = fill(c, frame[c.name], decode(c, mine[holes], g))
            found.append(of_kind(whole, kind))
        return found[0] if n_draws == 1 else found

    def _draw_given(self, known: Tensor, g: torch.Generator) -> Tensor:
        """Draw rows given what is known of them; rows with a cell drawn to be missing again."""
        model, steps = self.estimator_.model_, self.estimator_.sample_levels()
        z = known.clone()
        left = torch.arange(len(z))
        for _ in range(TRIES):
            given = model.given(known[left])
            x = draw(given, len(left), steps, generator=g, title="filling", quiet=True)
            z[left] = torch.where(known[left].isnan(), x.cpu().double(), known[left])
            parts = z[left].split([c.width for c in self.columns_], 1)
            open_parts = known[left].isnan().split([c.width for c in self.columns_], 1)
            bad = torch.zeros(len(left), dtype=torch.bool)
            for c, part, unknown in zip(self.columns_, parts, open_parts, strict=True):
                bad |= is_hole(c, part) & unknown.any(1)
            left = left[bad]
            if not len(left):
                break
        return z

    def score_samples(
        self, X: Any, *, n_draws: int = 1, random_state: int | None = None
    ) -> np.ndarray:
        r"""Return a lower bound of each row's log-likelihood, in nats.

        Densities of numbers and probabilities of levels, holes and cells of a grid in one number:

        .. math:: \log P(x) \ge E_{q(z|x)} [\log p(z) - \log q(z|x)]

        where q spreads a grid over its cells, fills holes from N(0, 1), and adds to the 0s and 1s of
        levels the noise that they are learned with, that of the smallest noise level included. What q
        leaves open is the gap: little, where a level can be read off its noisy numbers.

        A hole is a fact where the column had holes when it was learned. Where it had none the
        hole says nothing, and the density is that of the other cells, p(row) / p(hole | others)
        at a draw of the hole: exact as far as the model's conditional laws are those of its joint one.

        Arguments:
            X: A frame with the columns learned from.
            n_draws: Draws of q to average over.
            random_state: Seed of them.
        """
        frame = self._as_learned(X)
        check_count(n_draws, "n_draws")
        if why := [
            next(filter(None, reasons)) for reasons in self._impossible(frame) if any(reasons)
        ]:
            raise ValueError("; ".join(why))
        g = self.estimator_._generator(random_state)
        numbers = [(c.width, c.transform is not None) for c in self.columns_]
        flags = torch.tensor([i < n - number for n, number in numbers for i in range(n)])
        scale = self.estimator_.model_.coordinates.scale.cpu().double()[flags]
        blur = self.estimator_.sigma_min_ * scale
        width = (blur.square() + NOISE**2).sqrt()
        gains = width.log() + 0.5 * math.log(2 * math.pi * math.e)
        total = np.zeros(len(frame))
        for _ in range(n_draws):
            z, nats = self._encode(frame, g)
            z[:, flags] += blur * randn_like(z[:, flags], g)
            gain = torch.where(z[:, flags].isnan(), 0.0, gains).sum(1)
            found = self._log_prob(z, g)
            total += (found + nats.numpy() + gain.numpy()) / n_draws
        return total

    def _log_prob(self, z: Tensor, g: torch.Generator) -> np.ndarray:
        """Return the log-density of rows of numbers; of what is known, where some are NaN."""
        holes, estimator = z.isnan().any(1), self.estimator_
        found = np.zeros(len(z))
        none = z.isnan().all(1)  # where nothing is known, nothing is unlikely
        if not bool(holes.all()):
            found[~holes.numpy()] = np.asarray(estimator.score_samples(z[~holes]))
        holes = holes & ~none
        if bool(holes.any()):
            model = in_float64(estimator.model_)
            times = time_grid(model.schedule, estimator.sample_levels(), rho=math.inf)
            found[holes.numpy()] = marginal_log_likelihood(
                model, z[holes], times=times, n_steps=estimator.likelihood_steps(),
                chunk_size=CHUNK, generator=g,
            )  # fmt: skip
        return found

    def _as_learned(self, X: Any) -> pd.DataFrame:
        """Return the columns learned from, with the dtypes that they had."""
        self._fitted()
        frame, _ = frame_of(X)
        names = [c.name for c in self.columns_]
        if missing := [name for name in names if name not in frame.columns]:
            raise ValueError(f"the frame lacks columns: {some(missing)}")
        learned = {c.name: c for c in self.columns_}
        series = of_each(frame[names], lambda name: like(learned[name], frame[name]))
        return pd.concat(series, axis=1)

    def _impossible(self, frame: pd.DataFrame) -> list[list[str]]:
        """Return for each column why each row has probability 0, or ""."""
        knows_parts = isinstance(getattr(self.estimator_.model_, "condition", None), Mask)
        return [impossible(c, frame[c.name], holes=knows_parts) for c in self.columns_]

    def _fitted(self) -> None:
        if not hasattr(getattr(self, "estimator_", None), "model_"):  # also if interrupted
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
        found.holes = isinstance(found.estimator_.model_.condition, Mask)
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
            return tuple(column_of(c) for c in table["columns"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{directory}/config.json is damaged: extra.table: {error}") from None
