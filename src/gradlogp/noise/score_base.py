"""The base class of noisy scores, which checks arguments, and that of wrapped scores."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from operator import attrgetter
from typing import TypeVar

import torch
from torch import Tensor

from ..core import (
    Analytic,
    Coordinates,
    Moments,
    NoisyScore,
    Schedule,
    check_batch,
    check_kind,
    check_per_sample,
    check_same_shape,
)
from .coordinates import same_coordinates
from .predictions import from_prediction
from .tabulated import Tabulated

Self = TypeVar("Self", bound="ScoreBase")


class ScoreBase:
    """A noisy score from its formula: subclasses define `_score`, and perhaps `_denoise`.

    They set `schedule`, `event_shape`, `coordinates` and `moments`. Everything is in model
    coordinates.
    """

    schedule: Schedule
    event_shape: torch.Size | None
    coordinates: Coordinates
    moments: Moments | None

    pooled = False
    """Whether `moments` are those of more than this score's law, as for one class of many."""

    start = 1.0
    """The least time at which samples can start and likelihoods end: 1, or that from which on `law`
    is known in closed form."""

    kinks: Sequence[float] = ()
    """Times at which derivatives of the score jump: `log_likelihood` to a tolerance ends steps
    there."""

    fixed_dtype = False
    """Whether states must have the dtype and device of `like`, as weights ask for."""

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype and on the device of states that are drawn."""
        return torch.empty(0)

    @property
    def n_rows(self) -> int | None:
        """How many samples the score is bound to, by conditions or observations; None: any."""
        return None

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        raise NotImplementedError

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        return from_prediction("score", self._score(z, t), z, *self.schedule(t))[0]

    def _beyond_mean(self, z: Tensor, t: Tensor) -> Tensor | None:
        """Return the end of the flow from z minus E[z_0 | z_t = z]; None if it is not known.

        It is of order σ²: the law of the means is narrower than that of z_0.
        """
        return None

    def _known(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what is known in closed form of E[z_0 | z_t = z], and its divergence; or None.

        If it is not None, likelihoods ask for `_learned` in place of `_denoise`.
        """
        return None

    def _learned(self, z: Tensor, t: Tensor) -> Tensor:
        """Return what is added to it."""
        return self._denoise(z, t)

    def _learned_and_trace(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return `_learned` and its divergence, `(B,)`, without a graph; None: by differentiation."""
        return None

    def _check(self, z: Tensor, t: Tensor) -> None:
        empty = isinstance(z, Tensor) and z.is_meta and self.fixed_dtype and self.like.is_meta
        check_batch(z, self.event_shape, "z", held=not empty)  # empty: weights without numbers
        if not isinstance(t, Tensor):
            raise ValueError(f"t must be a tensor, () or (B,), got {type(t).__name__}")
        check_per_sample(t, z)
        if z.dtype.itemsize < 4 and self.fixed_dtype and z.dtype != self.like.dtype:
            raise ValueError(
                f"z must have the dtype of the weights, {self.like.dtype}, got {z.dtype}"
            )
        if self.n_rows not in (None, 1, len(z)):
            raise ValueError(
                f"{type(self).__name__} holds {self.n_rows} rows of conditions or observations, but "
                f"got {len(z)} samples; pass as many, or one for all"
            )

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """Return ∇ log p_t(z), shape of z; t `()` or `(B,)`.

        Raises:
            ValueError: At σ = 0, where there is no score (checked if t is in host memory); for a
                wrong shape.
        """
        self._check(z, t)
        refuse_no_noise(self.schedule, t)
        s = self._score(z, t)
        check_same_shape(s, z, type(self).__name__)
        return s

    def denoise(self, z: Tensor, t: Tensor) -> Tensor:
        """Return E[z_0 | z_t = z], shape of z.

        Raises:
            ValueError: If α = 0, where a score carries no information about z_0; for a wrong
                shape.
        """
        self._check(z, t)
        z0 = self._denoise(z, t)
        check_same_shape(z0, z, type(self).__name__)
        return z0

    def law(self, t: Tensor) -> Analytic | None:
        """Return the exact law of z_t, or None if it is unknown."""
        return None

    def given(self, condition: Tensor | int) -> NoisyScore:
        """Return the conditional score.

        Raises:
            ValueError: If the score has no condition.
        """
        raise ValueError(f"this {type(self).__name__} does not accept a condition")

    def unconditional(self) -> NoisyScore:
        """Return the score without a condition: the score itself if it has none."""
        return self

    def rows(self: Self, index: slice | Tensor) -> Self:
        """Return the same for these rows of a batch; itself where nothing is per row."""
        return self

    def tabulated(self: Self, times: Sequence[Tensor]) -> Self:
        """Return the same score, with what depends on time alone computed at these times, once.

        For a driver that asks for them again and again; each is known by identity, see `Tabulated`.
        """
        other = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, ScoreBase):
                vars(other)[name] = value.tabulated(times)
            elif isinstance(value, Schedule):
                vars(other)[name] = Tabulated(value, times)
        return other


class ScoreWrapper(ScoreBase):
    """A noisy score that wraps another, `self.score`, and passes on everything it does not change."""

    score: NoisyScore
    schedule = property(attrgetter("score.schedule"))
    event_shape = property(attrgetter("score.event_shape"))
    coordinates = property(attrgetter("score.coordinates"))
    moments = property(attrgetter("score.moments"))
    # what the base adds to the protocol, as it is for a score of another make
    pooled = property(lambda self: getattr(self.score, "pooled", False))
    fixed_dtype = property(lambda self: getattr(self.score, "fixed_dtype", False))
    like = property(lambda self: getattr(self.score, "like", torch.empty(0)))
    basis = property(lambda self: getattr(self.score, "basis", None))
    n_rows = property(lambda self: getattr(self.score, "n_rows", None))

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


def refuse_no_noise(schedule: Schedule, t: Tensor) -> None:
    """Raise `ValueError` if σ_t = 0 for a t that can be looked at without a wait or a break."""
    if t.device.type != "cpu" or torch.compiler.is_compiling():
        return
    known = schedule.numbers(t) if isinstance(schedule, Tabulated) else None
    if known is not None:
        bare = known[1] == 0
    else:
        early = t.numel() > 0 and bool(t.min() <= 0)
        bare = early and bool((schedule(t)[1] == 0).any())
    if bare:
        raise ValueError("there is no score at sigma = 0; evaluate it at a larger t")


def check_noisy_score(score: object, name: str = "score") -> None:
    """Raise `ValueError` unless this is a noisy score, which owns its schedule."""
    if not isinstance(score, ScoreBase):  # a protocol is slow to ask for
        check_kind(
            score, name, NoisyScore,
            "a noisy score, which carries its schedule (ScoreModel, ExactScore, …)",
            "; wrap a function of (z, t) with as_score(f, kind, schedule)",
        )  # fmt: skip


def check_same_frame(a: NoisyScore, b: NoisyScore, what: str) -> None:
    """Raise `ValueError` unless two scores have one schedule and one system of coordinates."""
    if a.schedule != b.schedule:
        raise ValueError(
            f"{what} have different schedules, {a.schedule} and {b.schedule}; read one under the "
            "other's by RescheduledScore(score, schedule)"
        )
    if not same_coordinates(a.coordinates, b.coordinates):
        raise ValueError(f"{what} have different coordinates: their z do not agree")
