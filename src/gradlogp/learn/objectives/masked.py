r"""Denoising score matching with a part of each row known: one network for every part.

For a row of z_0 a part K is drawn, whatever else is noised, and the network is given z_K beside it. The
minimiser is ∇ log p_t(z_{not K} | z_K) for each K; with nothing known that of all.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core import Generator, check_kind, check_points, check_same_shape, rand_like, shown
from ...scores.masked import Mask, MaskedScore
from .times import noised_at, times_of

FREE = 0.5
"""Share of rows of which nothing is known: they teach what draws whole rows."""

GIVEN = 0.25
"""Share of rows of which what is to be conditioned on is known, and nothing else."""


class Masks(NamedTuple):
    """What may be known of each row, and what is hidden together.

    Attributes:
        known: The rows, `(N, D)`, in the units of the data, NaN where there is a hole: never a
            target while the rest of its group is known, and never known itself.
        groups: The group of each entry, such as a column of a table that became several.
        flags: Which entries say whether the others of their group are there.
        levels: Which entries are 0 or 1, those of a group together saying which of its levels it has.
        blur: Standard deviation of the noise on these, in the units of the data.
        given: Which entries are to be conditioned on together; none by default.
        dropout: How often they are left out of a row instead, as guidance needs it.
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

    Half of the rows know nothing. Of the others the number of known groups is uniform from 0 to all but
    one, and which they are as well. In every second hidden group that has flags, these are known
    where the rest is not: that is what filling a hole asks for. A hole whose flags are known is neither
    known nor asked for, and counts as known here.

    Arguments:
        present: Where there is a value.
        groups: The group of each entry.
        flags: Which entries are flags.
        generator: Where they come from.
    """
    n, k = len(present), len(set(groups))
    u = rand_like(torch.empty(n, 2 + 2 * k, dtype=torch.float64, device=present.device), generator)
    order = u[:, 2 : 2 + k].argsort(1).argsort(1)
    count = torch.where(u[:, 0] < FREE, 0.0, (u[:, 1] * k).floor())
    whole = order < count.unsqueeze(1)
    told = whole | ((u[:, 2 + k :] < 0.5) & (u[:, :1] >= FREE))
    index = [sorted(set(groups)).index(g) for g in groups]
    flag = torch.tensor(flags, device=present.device)
    return torch.where(flag | ~present, told[:, index], whole[:, index])


def condition_on(
    known: Bool[Tensor, "batch D"],
    present: Bool[Tensor, "batch D"],
    given: tuple[bool, ...],
    dropout: float,
    generator: Generator | None = None,
) -> tuple[Bool[Tensor, "batch D"], Bool[Tensor, "batch D"]]:
    """Let some entries alone be known in a quarter of rows, and be no part of others.

    Arguments:
        known: Which entries are known, or neither known nor asked for.
        present: Where there is a value.
        given: Which entries are to be conditioned on.
        dropout: How often they are neither known nor asked for, and nothing else is known.
        generator: Where it comes from which rows are such.

    Returns:
        What is known, and where there is a value, as of `draw_known`.
    """
    u = rand_like(torch.empty(len(known), 2, dtype=torch.float64, device=known.device), generator)
    own, gone = torch.tensor(given, device=known.device), u[:, :1] < dropout
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
    r"""Denoising score matching of what is not known, :math:`\tfrac12 \|σ s_θ(z_t \mid z_K) + ε\|^2`.

    Summed over the entries that are not known, K drawn by `draw_known`: an unbiased estimate of
    E_{t,K}[σ² ½‖s_θ − ∇ log p_t(· | z_K)‖²] plus a constant.

    Arguments:
        score: The model given all that may be known of each row, `model.given(rows with holes)`.
        z: Clean data in model coordinates, with any finite values in holes.
        groups: The group of each entry (`Masks`).
        flags: Which entries are flags.
        given: Which entries are to be conditioned on (`condition_on`).
        dropout: How often they are left out.
        t: Times, `()` or `(B,)`; drawn by default.
        generator: Where times, noise and K come from.

    Raises:
        ValueError: For another kind of score, a wrong shape, or points that are not finite.
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
    """Return σ s_θ(z_t | z_K) + ε, 0 in entries that are known: arguments as of `masked`."""
    check_kind(score, "score", MaskedScore, "a MaskedScore, model.given(rows with missing values)")
    check_points(z, "z", score.event_shape)
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
    z = z.to(score.like)
    t = times_of(score.schedule, z, t, generator, True)
    present, values = score.condition.to(z).unbind(1)
    there = present > 0.5
    known = draw_known(there, groups, flags, generator)
    if given:
        known, there = condition_on(known, there, given, dropout, generator)
    state = torch.where(known, torch.where(there, 1.0, -1.0), 0.0).to(z)
    condition = torch.stack([state, torch.where(known & there, values, 0.0)], 1)
    z_t, eps, b = noised_at(score.schedule, z, t, generator)
    s = MaskedScore(score.score, condition)(z_t, t)
    check_same_shape(s, z_t, "the score")
    return torch.where(known, 0.0, torch.addcmul(eps, b, s))
