"""What is known of each transition: the one place that tests, drivers, error texts and docs read."""

from __future__ import annotations

from typing import NamedTuple

from ...core import Transition


class Facts(NamedTuple):
    """Facts of a transition.

    Attributes:
        order: Order of the error over fixed time, of the path for a deterministic transition, of the
            law of Gaussian data for a random one; None where it does not converge by finer times.
        evaluations: Evaluations of the score a step.
        draws: Draws of noise a step.
        divides_by_alpha: Whether a step from α_t = 0 is refused.
        memory: Whether a step depends on the steps before.
        exact: On which data a step is exact whatever its length, in words; None if on none.
    """

    order: int | None
    evaluations: int
    draws: int = 0
    divides_by_alpha: bool = False
    memory: bool = False
    exact: str | None = None


UNKNOWN = Facts(None, 1)


def facts_of(transition: Transition) -> Facts:
    """Return the facts of a transition; of one that states none the most cautious ones."""
    facts = getattr(transition, "facts", None)
    return facts if isinstance(facts, Facts) else UNKNOWN
