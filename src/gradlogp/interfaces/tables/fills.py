"""What replaces missing numbers, and what may be known of a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from ...core import randn_like
from ...learn.objectives.masked import Masks
from ...noise.coordinates import AffineCoordinates
from ...scores.masked import Mask
from .coding import encode, encode_known
from .columns import MISSING, NOISE, Column


def encoded(
    columns: Sequence[Column], frame: pd.DataFrame, g: torch.Generator, *, parts: bool
) -> tuple[Tensor, Tensor]:
    """Return rows of numbers `(n, D)` of a frame, and the correction of their density in nats.

    A missing value in a column that had none in training is NaN, if `parts` of rows may be known.
    """
    z, nats = zip(*(_encoded(c, frame[c.name], g, parts) for c in columns), strict=True)
    return torch.cat(z, 1), torch.stack(nats).sum(0)


def _encoded(
    column: Column, series: pd.Series, g: torch.Generator, parts: bool
) -> tuple[Tensor, Tensor]:
    holes = torch.from_numpy(series.isna().to_numpy(copy=True))
    if MISSING in column.levels or not bool(holes.any()) or not parts:
        return encode(column, series, g)
    z, nats = encode_known(column, series, g), torch.zeros(len(series), dtype=torch.float64)
    if not bool(holes.all()):
        z[~holes], nats[~holes] = encode(column, series[~holes.numpy()], g)
    return z, nats


def law_of(columns: Sequence[Column], z: Tensor) -> Mask:
    """Return the Gaussian law of rows of numbers `(n, D)`, NaN where there is none."""
    law = Mask(torch.Size(z.shape[1:])).double()
    none = torch.zeros(len(z), len(columns), dtype=torch.bool)
    masks_of(columns, z, none, (), 0.0).prepare(law)
    known = ~z.isnan()
    n, x = known.sum(0), torch.where(known, z, 0.0)
    mean = x.sum(0) / n
    std = ((torch.where(known, z - mean, 0.0).square().sum(0)) / n).sqrt()
    law.coordinates = AffineCoordinates(mean, std.clamp(min=1e-6))
    law.fit(z)
    return law


def filled(
    columns: Sequence[Column], z: Tensor, asked: Tensor, law: Mask | None, g: torch.Generator
) -> tuple[Tensor, Tensor]:
    r"""Return rows with draws instead of missing numbers, and the negative nats of these draws.

    They are drawn from a Gaussian law given the rest of the row, except for the flags that say
    that there is no number, so that jointly normal numbers stay so, whatever is missing.

    `asked` says which columns of which rows are left open, and the law is N(0, 1) by default.
    """
    todo, given, end = torch.zeros_like(z, dtype=torch.bool), ~z.isnan(), 0
    for i, column in enumerate(columns):
        start, end = end, end + column.width
        if column.transform is not None and column.width > 1:
            todo[:, end - 1] = z[:, end - 1].isnan() & ~asked[:, i]
            given[:, start:end] &= ~todo[:, end - 1 : end]
    if not bool(todo.any()):
        return z, z.new_zeros(len(z))
    if law is None:
        eps = torch.where(todo, randn_like(z, g), 0.0)
        nats = (0.5 * eps.square() + 0.5 * math.log(2 * math.pi)) * todo
        return torch.where(todo, eps, z), nats.sum(1)
    drawn, nats = law.fill(torch.where(z.isnan() & ~todo, 0.0, z), given, g)
    return torch.where(todo, drawn, z), -nats


def entries_of(columns: Sequence[Column], names: Sequence[str]) -> tuple[bool, ...]:
    """Return which entries of a row of numbers are those of these columns."""
    return tuple(c.name in names for c in columns for _ in range(c.width))


def masks_of(
    columns: Sequence[Column], z: Tensor, holes: Tensor, given: tuple[bool, ...], dropout: float
) -> Masks:
    """Return what may be known of each row: its cells, and not what stands in for a hole."""
    known, end = z.clone(), 0
    groups: list[int] = []
    flags: list[bool] = []
    levels: list[bool] = []
    for i, column in enumerate(columns):
        start, end, number = end, end + column.width, column.transform is not None
        if number:
            known[holes[:, i], end - 1] = torch.nan
        groups += [i] * column.width
        levels += [not number] * column.width
        flags += [number and j < end - 1 for j in range(start, end)]
    return Masks(known, tuple(groups), tuple(flags), tuple(levels), NOISE, given, dropout)
