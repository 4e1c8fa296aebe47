"""The estimator for tables."""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ...core import (
    check_count,
    check_kind,
    check_number,
    check_option,
    listed,
    nearest,
    new_seed,
    randn_like,
    some,
)
from ...diffusion import marginal_log_likelihood
from ...learn import checkpoint
from ...noise.grids import time_grid
from ...scores.masked import Mask
from ..conditions import sample_weights
from ..estimator import ScoreEstimator
from ..kept import training_of
from ..pipeline import CHUNK, draw, in_float64
from .coding import decode, encode_known, fill, impossible, without_holes
from .columns import MISSING, NOISE, Kind, recognise
from .fills import encoded, entries_of, filled, law_of, masks_of
from .frames import check_condition, columns_of, far_values, frame_of, like, of_each, of_kind
from .given import check_learns_parts, check_parts, draw_filled, score_of


class TableEstimator:
    r"""Learn the law of a table; draw new rows of the same columns, dtypes, levels and decimals.

    Every column is interpreted as a number, a date, a category or a name, from its values (see
    `columns_`; `kinds` overrides it), and converted to numbers, as described at the top of this
    package. A `ScoreEstimator` learns these numbers.

    Arguments:
        estimator: The estimator for the numbers, with its `random_state`; `ScoreEstimator()` by
            default.
        drop: Columns to drop.
        kinds: Kinds of columns by name: "number", "date", "category" or "name".
        holes: Whether to learn all conditional laws too, for `impute`, in half of the training.
        condition: Columns that will be passed to `sample(given=)` together, and no others. Other
            cells may be given too, but half of the training with known cells uses exactly these.
            With `condition_dropout` in the settings of the estimator some rows are learned without
            them, so that `sample` can be guided.

    Attributes:
        columns_: The kind of each column.
        estimator_: The fitted estimator.
    """

    def __init__(
        self,
        estimator: ScoreEstimator | None = None,
        *,
        drop: Sequence[str] = (),
        kinds: Mapping[str, Kind] | None = None,
        holes: bool = True,
        condition: Sequence[str] = (),
    ) -> None:
        if estimator is not None:
            check_kind(estimator, "estimator", ScoreEstimator, "a ScoreEstimator")
        check_kind(drop, "drop", list | tuple, "a list of names")
        kinds = {} if kinds is None else kinds
        check_kind(kinds, "kinds", Mapping, "a dictionary of names to kinds")
        for name, kind in kinds.items():
            check_option(kind, f"kinds[{name!r}]", ("number", "date", "category", "name"))
        check_kind(holes, "holes", bool, "True or False")
        check_kind(condition, "condition", list | tuple, "a list of names")
        if condition and not holes:
            raise ValueError("condition= needs holes=True")
        self.estimator, self.holes, self.condition = estimator, holes, tuple(condition)
        self.drop = tuple(drop)
        self.kinds = dict(kinds)

    def fit(self, X: Any, *, sample_weight: Any = None) -> TableEstimator:
        """Learn the law of a frame of pandas or polars.

        Arguments:
            X: The frame.
            sample_weight: Weights of the rows, as in `ScoreEstimator.fit`.

        Raises:
            TypeError: If X is not a frame.
            ValueError: For fewer than two rows, names that are not columns, columns that cannot be
                of the requested kind (a `ColumnError`), no column to learn, or a checkpoint to
                continue from that belongs to a different table.
        """
        frame, self._kind = frame_of(X)
        self._form = dict(getattr(X, "attrs", {}).get("form", {}))
        known = list(frame.columns)
        if unknown := [name for name in (*self.drop, *self.kinds) if name not in known]:
            close = nearest(unknown[0], known) if len(unknown) == 1 else ""
            raise ValueError(f"there is no column {some(list(map(repr, unknown)))}{close}")
        frame = frame.drop(columns=list(self.drop))
        if len(frame) < 2:
            raise ValueError(f"a table needs at least two rows, got {len(frame)}")
        weight = sample_weights(sample_weight, len(frame))
        if weight is not None:  # a row that does not count is not there
            frame = frame[(weight > 0).numpy()]
            weight = weight[weight > 0]
        share = None if weight is None else weight.numpy()
        self.columns_ = of_each(
            frame, lambda c: recognise(frame[c], self.kinds.get(c), share), learning=True
        )
        if far := far_values(frame, self.columns_):
            warnings.warn(f"{listed(far)}: correct or remove what is a mistake", stacklevel=2)
        if not any(c.width for c in self.columns_):
            raise ValueError("no column can be learned: all are constant, or names")
        check_condition(self.condition, self.columns_)
        given = ScoreEstimator() if self.estimator is None else self.estimator
        self.estimator_ = given.__class__(**given.get_params(deep=False))
        self.dropout_ = training_of(given).condition_dropout
        if self.dropout_ > 0 and not self.condition:
            raise ValueError("condition_dropout drops the columns named by condition=: name some")
        if self.dropout_ > 0:  # of these columns, and not of all that is known
            settings = replace(training_of(given), condition_dropout=0.0)
            self.estimator_.set_params(settings=settings)
        if given.resume and given.checkpoint is not None:
            self._check_same(given.checkpoint)
        if self.holes:
            check_learns_parts(given)
        # noise of its own, and not that of the training, which starts from the same seed
        g = torch.Generator().manual_seed(new_seed(self.estimator_._generator(None)))
        if given.verbose:
            for column in self.columns_:
                print(f"{column.name}: {column.describe()}", file=sys.stderr)
        z, _ = encoded(self.columns_, frame, g, parts=False)
        none = torch.zeros(len(z), len(self.columns_), dtype=torch.bool)
        z, _ = filled(self.columns_, z, none, law_of(self.columns_, z) if self.holes else None, g)
        own = entries_of(self.columns_, self.condition), self.dropout_
        masks = masks_of(self.columns_, z, self._holes(frame), *own) if self.holes else None
        self.estimator_.fit(z, sample_weight=weight, masks=masks, extra=self._extra())
        return self

    def _holes(self, frame: pd.DataFrame) -> Tensor:
        """Return which cells are missing."""
        names = [c.name for c in self.columns_]
        return torch.from_numpy(frame[names].isna().to_numpy(copy=True))

    def _filled(self, z: Tensor, asked: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return rows with draws where they have no number, as the model learned them."""
        condition = getattr(self.estimator_.model_, "condition", None)
        law = condition if isinstance(condition, Mask) and condition.cov is not None else None
        return filled(self.columns_, z, asked, law, g)

    def _extra(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the table."""
        columns = [asdict(c) for c in self.columns_]
        table = {"columns": columns, "kind": self._kind, "form": self._form}
        return {"table": table | {"condition": self.condition, "dropout": self.dropout_}}

    def _check_same(self, directory: str | os.PathLike[str]) -> None:
        """Raise `ValueError` if the checkpoint to continue from belongs to a different table."""
        kept = columns_of(checkpoint.read_config(directory), directory)
        before, now = ({c.name: c for c in columns} for columns in (kept, self.columns_))
        other = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if other or list(before) != list(now):
            raise ValueError(
                f"the checkpoint was made from a different table: columns "
                f"{some(other or list(before))} "
                "differ; a resumed run must keep its settings and data"
            )

    def sample(
        self, n_samples: int = 1, random_state: int | None = None, *, given: Any = None,
        guidance: float = 0.0,
    ) -> Any:  # fmt: skip
        """Draw new rows, as a frame of the same kind as the training data.

        Arguments:
            n_samples: Number of rows.
            random_state: Seed.
            given: Cells that all rows should have, a dictionary of columns to values; or a frame
                of such columns with one row for all or one for each. They are returned unchanged,
                and the others are drawn given them. With guidance but without `given`, the cells
                of the condition are drawn first, at their frequencies.
            guidance: w of `GuidedScore`: 0 draws from the law given these cells, larger values
                move away from the law without them. It needs a model with a `condition`, trained
                with `condition_dropout`.

        Raises:
            ValueError: For cells that no row can have, or guidance of a model trained without
                `condition_dropout`.
        """
        check_number(guidance, "guidance")
        self._fitted()
        check_count(n_samples, "n_samples")
        g = self.estimator_._generator(random_state)
        if given is None and not guidance:
            seed = int(torch.randint(2**31, (1,), generator=g))
            z = torch.as_tensor(self.estimator_.sample(n_samples, random_state=seed))
            return self._decode(z, g)
        score, rows = score_of(self, given, n_samples, guidance, g)
        steps = self.estimator_.sample_levels()
        return self._decode(draw(score, n_samples, steps, generator=g, quiet=True), g, rows)

    def _decode(self, z: Tensor, g: torch.Generator, given: pd.DataFrame | None = None) -> Any:
        """Return rows from their numbers, with the cells that are given."""
        z = z.double()
        widths = [c.width for c in self.columns_]
        series = [
            decode(c, part, g) for c, part in zip(self.columns_, z.split(widths, 1), strict=True)
        ]
        if given is not None:
            series = [given[s.name] if s.name in given.columns else s for s in series]
        frame = pd.concat(series, axis=1)
        if self._form:
            frame.attrs["form"] = self._form
        return of_kind(frame, self._kind)

    def impute(self, X: Any, n_draws: int = 1, *, random_state: int | None = None) -> Any:
        r"""Fill in the missing cells of a frame with draws from their law given the others.

        Any cells of any rows may be missing. That a cell is missing carries no information about
        its value: the draw is the value that the cell would have if it were present, given the
        rest of the row.

        Means over draws estimate conditional means, and their spread shows the uncertainty; a
        single draw preserves the spread of a column, which the mean does not.

        Arguments:
            X: A frame with the columns of the training data; other columns are returned unchanged.
            n_draws: Number of draws for each missing cell.
            random_state: Seed.

        Returns:
            A frame of the same kind without missing cells, or a list of `n_draws` of them if that
            is not 1.

        Raises:
            ValueError: For missing columns, impossible values, or a model created with
                `holes=False`.

        References:
            | CSDI: Conditional Score-based Diffusion Models for Probabilistic Time Series Imputation
              (Tashiro et al., 2021)
            | https://arxiv.org/abs/2107.03502
        """
        self._fitted()
        check_count(n_draws, "n_draws")
        model = self.estimator_.model_
        check_parts(model)
        frame, kind = frame_of(X)
        rows = self._as_learned(X)
        rows = rows[rows.isna().any(axis=1).to_numpy()]
        g = self.estimator_._generator(random_state)
        known = torch.cat([encode_known(c, rows[c.name], g) for c in self.columns_], 1)
        known, _ = self._filled(known, self._holes(rows), g)
        known = known.repeat(n_draws, 1)
        z = draw_filled(self.columns_, self.estimator_, known, g) if len(rows) else known
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

    def score_samples(
        self, X: Any, *, n_draws: int = 1, random_state: int | None = None
    ) -> np.ndarray:
        r"""Return a lower bound of each row's log-likelihood, in nats.

        Densities of numbers and probabilities of levels, missing cells and cells of a grid in one
        number:

        .. math:: \log P(x) \ge E_{q(z|x)} [\log p(z) - \log q(z|x)]

        where q spreads a grid over its cells, fills missing cells from a Gaussian law, and adds
        the noise of training to the 0s and 1s of levels, including that of the smallest noise
        level. The gap is the uncertainty of x given z: it is small if a level can be recovered
        from its noisy numbers.

        A missing cell counts as an event if its column had missing cells in training. If it had
        none, the missing cell carries no information, and the density is that of the other cells,
        p(row) / p(missing cell | others) at a draw of the missing cell: exact if the conditional
        laws of the model are consistent with its joint law.

        Arguments:
            X: A frame with the columns of the training data.
            n_draws: Number of draws of q to average over.
            random_state: Seed of the draws.
        """
        frame = self._as_learned(X)
        check_count(n_draws, "n_draws")
        if why := [
            next(filter(None, reasons)) for reasons in self._impossible(frame) if any(reasons)
        ]:
            raise ValueError(listed(why))
        g = self.estimator_._generator(random_state)
        numbers = [(c.width, c.transform is not None) for c in self.columns_]
        flags = torch.tensor([i < n - number for n, number in numbers for i in range(n)])
        scale = self.estimator_.model_.coordinates.scale.cpu().double()[flags]
        blur = self.estimator_.sigma_min_ * scale
        width = (blur.square() + NOISE**2).sqrt()
        gains = width.log() + 0.5 * math.log(2 * math.pi * math.e)
        facts = torch.tensor([MISSING in c.levels for c in self.columns_])
        parts = isinstance(getattr(self.estimator_.model_, "condition", None), Mask)
        unknown, total = self._holes(frame) & ~facts, np.zeros(len(frame))
        for _ in range(n_draws):
            z, nats = encoded(self.columns_, frame, g, parts=parts)
            z, less = self._filled(z, unknown, g)
            nats = nats + less
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
        """Load an estimator written by `save`.

        Raises:
            ValueError: If the checkpoint is missing or damaged, or is not that of a table.
        """
        config = checkpoint.read_config(directory)
        found = cls()
        found.columns_ = columns_of(config, directory)
        table = config["extra"]["table"]
        found._kind, found._form = table["kind"], table["form"]
        found.condition, found.dropout_ = tuple(table["condition"]), float(table["dropout"])
        found.estimator_ = ScoreEstimator.load(directory)
        found.holes = isinstance(found.estimator_.model_.condition, Mask)
        if found.estimator_.n_features_in_ != sum(c.width for c in found.columns_):
            raise ValueError(
                f"{directory}/config.json is damaged: extra.table is of another model"
            )
        return found
