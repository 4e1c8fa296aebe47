"""A score around a score: what it hands on."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Coordinates, Moments, NoisyScore, Schedule
from .score_base import ScoreBase


class ScoreWrapper(ScoreBase):
    """A noisy score around another, `self.score`, that hands on all it does not change."""

    score: NoisyScore

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]
        """That of the score inside."""
        return self.score.schedule

    @property
    def event_shape(self) -> torch.Size | None:  # type: ignore[override]
        """That of the score inside."""
        return self.score.event_shape

    @property
    def coordinates(self) -> Coordinates:  # type: ignore[override]
        """Those of the score inside."""
        return self.score.coordinates

    @property
    def moments(self) -> Moments | None:  # type: ignore[override]
        """Those of the score inside."""
        return self.score.moments

    @property
    def pooled(self) -> bool:  # type: ignore[override]
        """Whether the moments are those of more than this score's law."""
        return getattr(self.score, "pooled", False)

    @property
    def like(self) -> Tensor:
        """That of the score inside."""
        return getattr(self.score, "like", torch.empty(0))

    @property
    def fixed_dtype(self) -> bool:  # type: ignore[override]
        """That of the score inside."""
        return getattr(self.score, "fixed_dtype", False)

    @property
    def n_rows(self) -> int | None:
        """That of the score inside."""
        return getattr(self.score, "n_rows", None)

    def _around(self, score: NoisyScore) -> NoisyScore:
        """Return the same wrapper around another score."""
        raise NotImplementedError

    def given(self, condition: Tensor | int) -> NoisyScore:
        """Return the same around the conditional score."""
        return self._around(self.score.given(condition))

    def unconditional(self) -> NoisyScore:
        """Return the same around the score without its condition."""
        return self._around(self.score.unconditional())  # type: ignore[attr-defined]

    def rows(self, index: slice | Tensor) -> NoisyScore:  # type: ignore[override]
        """Return the same around these rows of the score inside."""
        inside = self.score.rows(index)
        return self if inside is self.score else self._around(inside)
