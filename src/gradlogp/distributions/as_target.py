r"""Densities to sample from: any callable becomes a target.

A target is a log-density up to a constant, and its score (`core.Density`). Missing parts are
filled by automatic differentiation; what cannot be filled is refused when asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..calculus.reverse import GradientField, score_from_log_prob
from ..core import (
    Density,
    ScoreFn,
    check_batch,
    check_same_shape,
)


@dataclass(frozen=True)
class Target:
    """A density made from functions; `log_prob_fn` is None where only the score is known."""

    score_fn: ScoreFn
    log_prob_fn: Callable[[Tensor], Tensor] | None = None

    def score(self, x: Tensor) -> Tensor:
        """Return ∇ log p(x), shape of x."""
        check_batch(x)
        value = self.score_fn(x)
        check_same_shape(value, x, "the score")
        return value

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) + const, shape `(B,)`.

        Raises:
            ValueError: If only the score is known.
        """
        check_batch(x)
        if self.log_prob_fn is None:
            raise ValueError(
                "this target has a score but no log-density, which Metropolis corrections and "
                "tempering need; give as_target(log_prob=...) or use an unadjusted kernel (ULA)"
            )
        value = self.log_prob_fn(x)
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"the log-density must return shape ({len(x)},), got {tuple(value.shape)}"
            )
        return value

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, from one evaluation where the score is the gradient of the log-density."""
        if isinstance(self.score_fn, GradientField) and self.score_fn.f is self.log_prob_fn:
            check_batch(x)
            return self.score_fn.log_prob_and_score(x)
        return self.log_prob(x), self.score(x)


def has_log_prob(target: Density) -> bool:
    """Return whether a density says its log-density, or only a score."""
    return callable(getattr(target, "log_prob", None)) and (
        getattr(target, "log_prob_fn", True) is not None
    )


def as_target(
    score: ScoreFn | None = None,
    log_prob: Callable[[Tensor], Tensor] | None = None,
    energy: Callable[[Tensor], Tensor] | None = None,
) -> Density:
    """Make a target from a score, a log-density or an energy E = −log p (up to a constant).

    Arguments:
        score: x -> ∇ log p(x), shape of x. Filled by automatic differentiation where not given.
        log_prob: x -> log p(x) + const, `(B, *event) -> (B,)`.
        energy: x -> E(x), `(B, *event) -> (B,)`; the sign is turned here, once.

    Raises:
        ValueError: If nothing is given, if both a log-density and an energy are, or, when called,
            if a log-density or energy returns more than one number per sample.
    """
    if energy is not None:
        if log_prob is not None:
            raise ValueError("give log_prob or energy, not both: energy = -log_prob")
        potential = energy

        def log_prob(x: Tensor) -> Tensor:
            return -potential(x)

    if score is None:
        if log_prob is None:
            raise ValueError("as_target needs score=, log_prob= or energy=")
        score = score_from_log_prob(log_prob)
    return Target(score, log_prob)
