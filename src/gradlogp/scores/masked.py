r"""A score given any part of x: one network for all parts, and the score that it becomes.

A row with holes, NaN where nothing is known, is the condition. The score stays one of all of x, so that
rows with different holes go together: entries that are known become independent of everything,
N(m, v) with the moments of z_0,

.. math::
    p(z \mid x_{known}) = p(z_{unknown} \mid x_{known}) \prod_{i\ known} N(z_i; m_i, v_i)

and whoever draws puts the known values back. Putting freshly noised known values in at every step of an
unconditional model instead is biased, however fine the steps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import check_event_shape, per_sample
from ..noise.coordinates import AffineCoordinates
from .conditioned import ConditionedScore


def check_holes(x: Any, event_shape: torch.Size) -> Tensor:
    """Return rows with holes, `(1, *event)` or `(B, *event)`, as they are.

    Raises:
        ValueError: Unless they are floats of that shape, finite or NaN.
    """
    wanted = f"float rows (1 or B, {', '.join(map(str, event_shape))}), NaN where nothing is known"
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"the condition must be {wanted}; got {got}")
    if x.ndim < 1 or x.shape[1:] != event_shape or not len(x):
        raise ValueError(f"the condition must be {wanted}; got shape {tuple(x.shape)}")
    if bool(x.isinf().any()):
        raise ValueError("the condition has infinite entries")
    return x


class Mask(nn.Module):
    """The condition of a network that knows any part of x: what is known, and its values.

    The network takes it as `(B, 2, *event)`: 1 where an entry is known, and the known values in the
    frame of unit variance, 0 elsewhere. Nothing known is the null condition, which it has always seen.

    Arguments:
        event_shape: The shape of x.
    """

    def __init__(self, event_shape: torch.Size) -> None:
        super().__init__()
        check_event_shape(event_shape)
        self.event_shape = torch.Size(event_shape)
        self.kind = torch.Size((2, *event_shape))
        self.coordinates = AffineCoordinates(torch.zeros(event_shape), torch.ones(event_shape))

    @property
    def config(self) -> list[int]:
        """What rebuilds it, JSON."""
        return list(self.kind)

    def check(self, condition: Any) -> Tensor:
        """Return rows with holes, or raise `ValueError`."""
        return check_holes(condition, self.event_shape)

    def encode(self, condition: Any) -> Tensor:
        """Return the condition as the network takes it, from rows in data units, NaN where unknown.

        Raises:
            ValueError: If it is not of this kind.
        """
        x = self.check(condition)
        known = ~x.isnan()
        values = self.coordinates.encode(torch.where(known, x, self.coordinates.shift.to(x)))
        return torch.stack([known.to(x), torch.where(known, values, 0.0)], 1)

    def null(self, n: int, like: Tensor) -> Tensor:
        """Return n rows of nothing known."""
        return like.new_zeros(n, *self.kind)

    def drop(self, encoded: Tensor, dropped: Tensor) -> Tensor:
        """Return encoded conditions, nothing known where `dropped` `(B,)`."""
        return torch.where(dropped.reshape(-1, *[1] * len(self.kind)), 0.0, encoded)

    def check_null(self) -> None:
        """Do nothing: that nothing is known is a condition like others."""


class MaskedScore(ConditionedScore):
    r"""The score of z_t given a part of x, one part for each row or one for all.

    Where an entry is unknown, that of the network; where it is known,

    .. math:: -\frac{z_i - α m_i}{α^2 v_i + σ^2}

    Arguments:
        model: A `ScoreModel` whose network was made with `holes=True`.
        condition: As the network takes it (`Mask.encode`); None for nothing known.
    """

    def _apart(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where entries are known, and their mean and variance."""
        m, v = self.score.moments
        return self._each(z)[:, 0] > 0.5, m.to(z), v.to(z)

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        known, m, v = self._apart(z)
        a, b = (per_sample(q, z) for q in self.score.schedule(t))
        return torch.where(known, -(z - a * m) / (a**2 * v + b**2), super()._score(z, t))

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        known, m, v = self._apart(z)
        a, b = (per_sample(q, z) for q in self.score.schedule(t))
        apart = m + a * v / (a**2 * v + b**2) * (z - a * m)
        return torch.where(known, apart, super()._denoise(z, t))
