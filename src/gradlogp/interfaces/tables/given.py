"""Rows with given cells: their conversion to numbers, and the score for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from ...core import NoisyScore, check_number, listed, nearest, some
from ...scores.guided import GuidedScore
from ...scores.masked import Mask, MaskedScore
from ...scores.model import ScoreModel
from ..estimator import ScoreEstimator
from ..pipeline import draw
from .coding import encode, impossible, is_hole
from .columns import Column
from .fills import entries_of
from .forms import Form
from .frames import frame_of, like, of_each

if TYPE_CHECKING:
    from .estimator import TableEstimator

TRIES = 20
"""Draws of a row until none of its cells is drawn to be missing; then the likeliest value is taken."""


def read_given(given: Any, columns: Sequence[Column]) -> pd.DataFrame:
    """Return the given cells of each row, in the form that was learned.

    Raises:
        ValueError: For no cell, unknown columns, or values that no row can have.
    """
    frame = (
        pd.DataFrame([dict(given)]) if isinstance(given, Mapping) else frame_of(given, "given")[0]
    )
    known = {c.name: c for c in columns}
    if not len(frame) or not len(frame.columns):
        raise ValueError("given= holds no known cell: omit it")
    if unknown := [name for name in frame.columns if name not in known]:
        close = nearest(unknown[0], list(known)) if len(unknown) == 1 else ""
        raise ValueError(f"given: there is no column {some(list(map(repr, unknown)))}{close}")
    frame = pd.concat(of_each(frame, lambda name: like(known[name], frame[name])), axis=1)
    each = [impossible(known[name], frame[name]) for name in frame.columns]
    if why := [next(filter(None, reasons)) for reasons in each if any(reasons)]:
        raise ValueError(listed(why))
    return frame.reset_index(drop=True)


def file_of(cells: Mapping[str, str], table: TableEstimator) -> bytes:
    """Return a file of one row, separated like the one that a model was learned from."""
    separator = Form.of(table._form).separator
    return pd.DataFrame([cells]).to_csv(index=False, sep=separator).encode()


def numbers_given(
    columns: Sequence[Column], rows: pd.DataFrame, g: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return rows of numbers, NaN where nothing is given, and which columns of them are not."""
    there = [c.name in rows.columns for c in columns]
    parts = [
        encode(c, rows[c.name], g)[0]
        if given
        else torch.full((len(rows), c.width), torch.nan, dtype=torch.float64)
        for c, given in zip(columns, there, strict=True)
    ]
    return torch.cat(parts, 1), ~torch.tensor(there).expand(len(rows), -1)


def score_of(
    table: TableEstimator, given: Any, n: int, guidance: float, g: torch.Generator
) -> tuple[NoisyScore, pd.DataFrame]:
    """Return the score of n rows given some of their cells, and these cells.

    Guidance moves away from the law of the other cells for any values of the condition.

    `given` is as in `read_given`, one row for all or one for each. For None the cells of the condition
    are drawn, as often as they are met.

    Raises:
        ValueError: For cells that no row can have, or guidance without training for it.
    """
    check_number(guidance, "guidance")
    model, names = table.estimator_.model_, list(table.condition)
    check_parts(model)
    if given is None and names:
        seed = int(torch.randint(2**31, (1,), generator=g))
        given = frame_of(table.sample(n, seed))[0][names]
    elif given is None:
        raise ValueError("guidance= needs given=, the cells to guide towards")
    rows = read_given(given, table.columns_)
    if len(rows) not in (1, n):
        raise ValueError(f"given= must have one row, or one for each of {n}; got {len(rows)}")
    rows = pd.concat([rows] * (n // len(rows)), ignore_index=True)
    known, asked = numbers_given(table.columns_, rows, g)
    score = model.given(table._filled(known, asked, g)[0])
    if not guidance:
        return score, rows
    if not table.dropout_ > 0 or set(names) != set(rows.columns):
        raise ValueError(
            "guidance= needs a model fitted with condition= and condition_dropout, and all columns of "
            "this condition, and no others, given"
        )
    state = -torch.tensor(entries_of(table.columns_, names)).to(model.like)
    free = MaskedScore(model, torch.stack([state, torch.zeros_like(state)])[None])
    return GuidedScore(score, free, float(guidance)), rows


def draw_filled(
    columns: Sequence[Column], estimator: ScoreEstimator, known: Tensor, g: torch.Generator
) -> Tensor:
    """Draw rows given what is known of them; rows with a cell drawn to be missing again."""
    model, steps = estimator.model_, estimator.sample_levels()
    widths = [c.width for c in columns]
    z = known.clone()
    left = torch.arange(len(z))
    for _ in range(TRIES):
        given = model.given(known[left])
        x = draw(given, len(left), steps, generator=g, title="filling", quiet=True)
        z[left] = torch.where(known[left].isnan(), x.cpu().double(), known[left])
        parts, open_parts = z[left].split(widths, 1), known[left].isnan().split(widths, 1)
        bad = torch.zeros(len(left), dtype=torch.bool)
        for c, part, unknown in zip(columns, parts, open_parts, strict=True):
            bad |= is_hole(c, part) & unknown.any(1)
        left = left[bad]
        if not len(left):
            break
    return z


def check_learns_parts(estimator: ScoreEstimator) -> None:
    """Raise `ValueError` if the arguments of an estimator do not allow learning parts of rows."""
    own = estimator.network is not None and not getattr(estimator.network, "holes", False)
    if own or estimator.objective is not None:
        raise ValueError(
            f"missing values need their own network and objective, but the estimator was given its "
            f"own {'network' if own else 'objective'}: pass holes=False, which gives up impute"
        )
    if estimator.base not in ("auto", "none"):
        raise ValueError(
            f"missing values need their own Gaussian base, but the estimator has base="
            f"{estimator.base!r}: pass holes=False, which gives up impute"
        )


def check_parts(model: ScoreModel) -> None:
    """Raise `ValueError` unless a model knows parts of rows."""
    if not isinstance(model.condition, Mask):
        raise ValueError("this model handles complete rows only: fit TableEstimator(holes=True)")
