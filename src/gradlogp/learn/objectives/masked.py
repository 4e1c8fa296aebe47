r"""Denoising score matching with a part of each row known: one network for every part.

For a row of z_0 a part K is drawn at random, the rest is noised, and the network also receives
z_K. The minimiser is ∇ log p_t(z_{not K} | z_K) for each K, and the joint score if nothing is
known.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core import (
    Generator,
    check_kind,
    check_number,
    check_points,
    check_same_shape,
    rand_like,
    randn_like,
    shown,
)  # fmt: skip
from ...scores.masked import Mask, MaskedScore
from .times import noised_with, times_of

FREE = 0.5
"""Share of rows of which nothing is known: they teach what draws whole rows."""

GIVEN = 0.25
"""Share of rows of which what is to be conditioned on is known, and nothing else."""


class Masks(NamedTuple):
    """What may be known of each row, and what is hidden together.

    Attributes:
        known: The rows, `(N, D)`, in the units of the data, with NaN for missing values: these are
            never a target while the rest of their group is known, and never known themselves.
        groups: The group of each entry, such as a column of a table that became several entries.
        flags: Entries that say whether the others of their group are present.
        levels: Entries that are 0 or 1; together those of a group encode its level.
        blur: Standard deviation of the noise on these entries, in the units of the data.
        given: Entries to condition on together; none by default.
        dropout: How often these are omitted from a row instead, for guidance.
    """

    known: Tensor
    groups: tuple[int, ...]
    flags: tuple[bool, ...]
    levels: tuple[bool, ...] = ()
    blur: float = 0.0
    given: tuple[bool, ...] = ()
    dropout: float = 0.0

    def objective(self) -> Any:
        """Return the objective that hides them."""
        more: Any = {"given": self.given, "dropout": self.dropout} if any(self.given) else {}
        return partial(masked, groups=self.groups, flags=self.flags, **more)

    def prepare(self, condition: object) -> None:
        """Say to the condition of a model which entries are levels."""
        if self.levels and isinstance(condition, Mask) and condition.levels is not None:
            each = zip(self.groups, self.levels, strict=True)
            blocks = tuple(group if is_level else -1 for group, is_level in each)
            condition.levels.choose(blocks, self.blur)
            condition.numbers = ~torch.tensor(
                [x or y for x, y in zip(self.levels, self.flags, strict=True)]
            )


def draw_known(
    present: Bool[Tensor, "batch D"],
    groups: tuple[int, ...],
    flags: tuple[bool, ...],
    generator: Generator | None = None,
) -> Bool[Tensor, "batch D"]:
    """Draw which entries are known.

    In half of the rows nothing is known. In the others the number of known groups is uniform from
    0 to all but one, and so is the choice of the groups. In every second hidden group with flags,
    only the flags are known, as needed for imputation. A missing value whose flags are known is
    neither known nor needed, and counts as known here.
    """
    n, k = len(present), len(set(groups))
    u = rand_like(torch.empty(n, 2 + 2 * k, dtype=torch.float64, device=present.device), generator)
    order = u[:, 2 : 2 + k].argsort(1).argsort(1)
    count = torch.where(u[:, 0] < FREE, 0.0, (u[:, 1] * k).floor())
    whole = order < count.unsqueeze(1)
    told = whole | ((u[:, 2 + k :] < 0.5) & (u[:, :1] >= FREE))
    index = [sorted(set(groups)).index(g) for g in groups]
    flag = torch.tensor(flags).to(present.device, non_blocking=True)
    return torch.where(flag | ~present, told[:, index], whole[:, index])


def condition_on(
    known: Bool[Tensor, "batch D"],
    present: Bool[Tensor, "batch D"],
    given: tuple[bool, ...],
    dropout: float,
    generator: Generator | None = None,
) -> tuple[Bool[Tensor, "batch D"], Bool[Tensor, "batch D"]]:
    """Make only the given entries known in a quarter of the rows, and omit them from some others.

    `dropout` is how often they are neither known nor asked for, and nothing else is known.

    Returns:
        Which entries are known, and where there is a value, as in `draw_known`.
    """
    u = rand_like(torch.empty(len(known), 2, dtype=torch.float64, device=known.device), generator)
    own, gone = torch.tensor(given).to(known.device, non_blocking=True), u[:, :1] < dropout
    known = torch.where(gone | (u[:, 1:] < GIVEN), own, known)
    return known, present & ~(gone & own)


def masked(
    score: MaskedScore,
    z: Float[Tensor, "batch D"],
    *,
    groups: tuple[int, ...],
    flags: tuple[bool, ...],
    given: tuple[bool, ...] = (),
    dropout: float = 0.0,
    t: Tensor | None = None,
    generator: Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Denoising score matching of unknown entries, :math:`\tfrac12 \|σ s_θ(z_t \mid z_K) + ε\|^2`.

    Summed over the unknown entries, with K drawn by `draw_known`: an unbiased estimate of
    E_{t,K}[σ² ½‖s_θ − ∇ log p_t(· | z_K)‖²] plus a constant.

    Arguments:
        score: The model given everything known about each row, `model.given(rows with holes)`.
        z: Clean data in model coordinates, with any finite numbers instead of missing values.
        groups: The group of each entry (`Masks`).
        flags: Which entries are flags.
        given: Entries to condition on (`condition_on`).
        dropout: How often they are omitted.
        t: Times, `()` or `(B,)`; drawn by default.
        generator: Source of times, noise and K.

    Raises:
        ValueError: For a different kind of score, a wrong shape, or points that are not finite.
    """
    options: Any = {"groups": groups, "flags": flags, "given": given, "dropout": dropout, "t": t}
    errors = masked_errors(score, z, **options, generator=generator)
    return 0.5 * errors.square().sum(1)


def masked_errors(
    score: MaskedScore,
    z: Float[Tensor, "batch D"],
    *,
    groups: tuple[int, ...],
    flags: tuple[bool, ...],
    given: tuple[bool, ...] = (),
    dropout: float = 0.0,
    t: Tensor | None = None,
    generator: Generator | None = None,
) -> Float[Tensor, "batch D"]:
    """Return σ s_θ(z_t | z_K) + ε, 0 in entries that are known: arguments as in `masked`."""
    check_kind(score, "score", MaskedScore, "a MaskedScore, model.given(rows with missing values)")
    check_points(z, "z", score.event_shape, wait=False)
    if score.condition is None:
        raise ValueError(
            "score must be conditioned on something: model.given(rows with missing values)"
        )
    if len(score.condition) != len(z):
        raise ValueError(
            f"z must have the {len(score.condition)} rows that score is conditioned on, got {len(z)}"
        )
    for name, value, kind in (
        ("groups", groups, int),
        ("flags", flags, bool),
        ("given", given, bool),
    ):
        check_kind(value, name, tuple | list, f"a tuple, one for each of {z.shape[1]} entries")
        if name == "given" and not value:
            continue
        if len(value) != z.shape[1] or not all(type(v) is kind for v in value):
            raise ValueError(f"{name} must be {z.shape[1]} of {kind.__name__}, got {shown(value)}")
    check_number(dropout, "dropout", least=0, most=1)
    z = z.to(score.like)
    t = times_of(score.schedule, z, t, generator, True)
    present, values = score.condition.to(z).unbind(1)
    there = present > 0.5
    known = draw_known(there, groups, flags, generator)
    if given:
        known, there = condition_on(known, there, given, dropout, generator)
    state = torch.where(known, torch.where(there, 1.0, -1.0), 0.0).to(z)
    condition = torch.stack([state, torch.where(known & there, values, 0.0)], 1)
    eps = randn_like(z, generator)
    z_t, b = noised_with(score.schedule, z, t, eps)
    s = MaskedScore(score.score, condition)(z_t, t)
    check_same_shape(s, z_t, "the score")
    return torch.where(known, 0.0, torch.addcmul(eps, b, s))
