r"""An adapter from what a network returns to a score: energy, log-density, score, ε, x_0, v.

Without a schedule the result is a score s(x); with one, a noisy score s(x, t) that also denoises,
the type that samplers, likelihoods and `objectives.multilevel` accept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, cast, overload

import torch
from torch import Tensor

from ..calculus.reverse import GradientField
from ..core import (
    Moments,
    Schedule,
    ScoreFn,
    check_batch,
    check_event_shape,
    check_finite,
    check_function,
    check_option,
    check_same_shape,
    check_schedule,
    per_sample,
)
from ..noise.coordinates import IDENTITY
from ..noise.predictions import KINDS, Kind, check_determines, to_epsilon, to_x0
from ..noise.score_base import ScoreBase
from ..noise.terminal import check_moments

Network = Literal["log_prob", "energy", "score", "epsilon", "x0", "v", "velocity"]


@overload
def as_score(network: Callable[[Tensor], Tensor], kind: Network = "score") -> ScoreFn: ...


@overload
def as_score(
    network: Callable[[Tensor, Tensor], Tensor],
    kind: Network,
    schedule: Schedule,
    *,
    moments: Moments | None = None,
    event_shape: torch.Size | tuple[int, ...] | None = None,
) -> FunctionScore: ...


def as_score(
    network: Callable[..., Tensor],
    kind: Network = "score",
    schedule: Schedule | None = None,
    *,
    moments: Moments | None = None,
    event_shape: torch.Size | tuple[int, ...] | None = None,
) -> ScoreFn | FunctionScore:
    """Make a score from a network or any function.

    =========  ===================================  ==========================
    kind       the function returns                 the score is
    =========  ===================================  ==========================
    log_prob   log p(x) + const, `(B,)`             its gradient
    energy     −log p(x) + const, `(B,)`            minus its gradient
    score      s, shape of x                        itself
    epsilon    ε̂, shape of x; needs a schedule      −ε̂/σ
    x0         x̂_0, needs a schedule                (α x̂_0 − x_t)/σ²
    v          α ε − σ x_0, needs a schedule        −(σ x_t + α v)/(σ (α² + σ²))
    velocity   ε − x_0, needs a schedule            −(x_t + α u)/(σ (α + σ))
    =========  ===================================  ==========================

    Gradients are computed at every call, so that objectives train the energy itself and not just
    the output of its network.

    Arguments:
        network: f(x), or f(x, t) with a schedule; t is `()` or `(B,)`.
        kind: What it returns.
        schedule: The noise schedule of a function of (x, t), which the score then carries.
        moments: With a schedule, mean and variance of z_0, from which the law at t = 1 follows.
        event_shape: With a schedule, the shape of one sample, so that samplers can draw the
            starts.

    Returns:
        A score x -> `(B, *event)`; with a schedule (x, t) -> `(B, *event)`, with `.denoise(x, t)` for
        E[x_0 | x_t] and `.at(t)` for the score at one time.

    Raises:
        ValueError: For an unknown kind, or a prediction of ε, x_0, v or velocity without a
            schedule; when called, for an energy or log-density that is not one number per sample,
            a prediction that does not have the shape of x, or σ = 0, where there is no score.

    Examples:
        >>> epsilon = lambda z, t: z * t
        >>> score = glp.as_score(epsilon, "epsilon", glp.schedules.VE())
        >>> score(torch.tensor([[1.0]]), torch.tensor(1.0))
        tensor([[-0.0200]])
    """
    check_function(network, "network")
    check_option(kind, "kind", ("log_prob", "energy", *KINDS))
    if schedule is not None:
        return FunctionScore(network, kind, schedule, moments, event_shape)
    if moments is not None or event_shape is not None:
        raise ValueError(
            "moments= and event_shape= only apply to a noisy score: pass schedule= too"
        )
    if kind == "log_prob":
        return GradientField(network)
    if kind == "energy":
        return GradientField(network, -1.0)
    if kind == "score":
        return _Checked(network)
    raise ValueError(
        f"a network that predicts {kind} is a score only together with alpha and sigma: pass the "
        "schedule that it was trained with"
    )


class _Checked:
    """A score whose shape is checked."""

    def __init__(self, score: ScoreFn) -> None:
        self.score = score

    def __call__(self, x: Tensor) -> Tensor:
        """Return s(x)."""
        check_batch(x)
        s = self.score(x)
        check_same_shape(s, x, "the score")
        return s


class FunctionScore(ScoreBase):
    """A function of (z, t) as a noisy score; see `as_score`."""

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        kind: Network,
        schedule: Schedule,
        moments: Moments | None = None,
        event_shape: torch.Size | tuple[int, ...] | None = None,
    ) -> None:
        check_function(network, "network")
        check_option(kind, "kind", ("log_prob", "energy", *KINDS))
        check_schedule(schedule)
        check_moments(moments)
        if event_shape is not None:
            check_event_shape(event_shape)
        self.network, self.kind, self.schedule = network, kind, schedule
        self.moments, self.coordinates = moments, IDENTITY
        self.event_shape = None if event_shape is None else torch.Size(event_shape)

    def _prediction(self, z: Tensor, t: Tensor) -> tuple[Kind, Tensor]:
        if self.kind in ("log_prob", "energy"):
            return "score", self._gradient(t)(z)
        value = self.network(z, t)
        check_same_shape(value, z, f"the network that predicts {self.kind}")
        return cast(Kind, self.kind), value

    def _gradient(self, t: Tensor) -> GradientField:
        return GradientField(lambda z: self.network(z, t), -1.0 if self.kind == "energy" else 1.0)

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        kind, value = self._prediction(z, t)
        if kind == "score":
            return value
        a, b = (per_sample(v, z) for v in self.schedule(t))
        return -to_epsilon(kind, value, z, a, b) / b

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        kind, value = self._prediction(z, t)
        a, b = (per_sample(v, z) for v in self.schedule(t))
        check_determines(kind, "x_0", a)
        return to_x0(kind, value, z, a, b)

    def log_prob(self, z: Tensor, t: Tensor) -> Tensor:
        """Return log p_t(z), up to a constant for each t.

        Raises:
            ValueError: If the function is neither a log-density nor an energy.
        """
        if self.kind not in ("log_prob", "energy"):
            raise ValueError(
                f"a function that returns {self.kind} has no log-density, which Metropolis "
                "corrections need; use a kernel without one (ULA, LeimkuhlerMatthews, BAOAB)"
            )
        return self._gradient(t).log_prob(z)

    def at(self, t: Tensor) -> ScoreFn:
        """Return the score z -> ∇ log p_t(z) at one time `()`."""
        check_finite(t, "t")
        if self.kind in ("log_prob", "energy"):
            return self._gradient(t)
        return lambda z: self(z, t)
