"""What is known about each transition: tests, drivers, messages and pages read it from here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

from ...core import Transition


class Facts(NamedTuple):
    """Facts of a transition.

    Attributes:
        order: Order of the error over fixed time, of the path for a deterministic transition, of
            the law on Gaussian data for a random one; None if it does not converge with finer
            times.
        evaluations: Evaluations of the score per step, the minimum for a step that adapts; the
            first steps of a solver with memory may take more.
        draws: Draws of noise per step.
        divides_by_alpha: Whether a step from α_t = 0 is refused.
        memory: Whether a step depends on the steps before.
        exact: For which data a step of any length is exact, in words; None if for none.
        adaptive: Whether a step evaluates the score more often if needed.
    """

    order: int | None
    evaluations: int
    draws: int = 0
    divides_by_alpha: bool = False
    memory: bool = False
    exact: str | None = None
    adaptive: bool = False


POINT, FORWARD = "data that are one point", "N(0, I) under VP"
DIAGONAL = "Gaussians of diagonal covariance"

UNKNOWN = Facts(None, 1, divides_by_alpha=True)


def facts_of(transition: Transition) -> Facts:
    """Return the facts of a transition; of one that states none the most cautious ones."""
    facts = getattr(transition, "facts", None)
    return facts if isinstance(facts, Facts) else UNKNOWN


def table(transitions: Iterable[Any]) -> str:
    """Return the facts of some transitions as a table in Markdown, a row each, as in the docs."""
    head = ("transition", "order", "scores per step", "draws", "from α = 0", "memory", "exact for")
    rows = [head, ("---",) * len(head), *(_row(transition) for transition in transitions)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(transition: Any) -> tuple[str, ...]:
    plain, facts = type(transition)(), facts_of(transition)
    changed = [
        f"{f.name}={getattr(transition, f.name)!r}"
        for f in dataclasses.fields(transition)
        if getattr(transition, f.name) != getattr(plain, f.name)
    ]
    return (
        f"`{type(transition).__name__}({', '.join(changed)})`",
        "biased" if facts.order is None else str(facts.order),
        str(facts.evaluations),
        str(facts.draws),
        "no" if facts.divides_by_alpha else "yes",
        "yes" if facts.memory else "",
        facts.exact or "",
    )
