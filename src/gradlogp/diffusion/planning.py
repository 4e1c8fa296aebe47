"""How many steps a score needs: measured on its own draws, to a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..core import NoisyScore, Transition, check_count, check_number, check_transition, new_seed
from ..noise.grids import time_grid
from ..noise.score_base import check_noisy_score
from ..noise.terminal import start_of
from .evolve import evolve, first_time
from .likelihood import log_likelihood
from .transitions import UniPC
from .transitions.facts import facts_of

FEWEST, MOST = 8, 256
"""Steps to try first, and with which to give up."""

PARTS = 16
"""Parts of a power of two up to which numbers of steps of a likelihood are distinguished."""

MARGIN = 0.7
"""Of the tolerance, what one of several numbers between two powers of two may leave: the least of them
may owe its small error to the few draws."""


class Plan(NamedTuple):
    """A number of steps, and the remaining error: root mean square over the draws.

    The error is larger than the tolerance only if none of the tried numbers meets it.
    """

    n: int
    error: float


def plan_levels(
    score: NoisyScore,
    transition: Transition | None = None,
    *,
    tolerance: float = 0.01,
    n_draws: int = 32,
    generator: torch.Generator | None = None,
) -> Plan:
    r"""Return how many times of `time_grid(score.schedule, n, rho=math.inf)` are enough to sample.

    They begin where samples can start, `t_max=score.start`. Draws from the same starts are compared
    over n and over about twice as many times, for 8 times, then 16, and so on, until they differ by
    less than the tolerance.

    Arguments:
        score: The noisy score, on a continuous schedule; if it holds conditions, one for all draws
            or one for each.
        transition: A deterministic transition, `UniPC()` by default.
        tolerance: Root mean square of the difference, relative to the standard deviation of the
            draws.
        n_draws: Number of draws to compare.
        generator: Source of the starts.

    Raises:
        ValueError: For an object that is not a noisy score, a discrete ladder, a transition that
            draws noise, a number out of range, or an unknown event shape or law at t = 1.
    """
    check_noisy_score(score)
    if score.schedule.times is not None:
        raise ValueError("a discrete ladder is always run in full: there are no times to choose")
    check_number(tolerance, "tolerance", above=0)
    check_count(n_draws, "n_draws", 2)
    transition = UniPC() if transition is None else transition
    check_transition(transition)
    if facts_of(transition).draws:
        raise ValueError(
            f"{type(transition).__name__} draws noise, so two runs differ whatever their steps: plan "
            "with a deterministic transition"
        )
    seed = new_seed(generator)

    def trial(n: int) -> Tensor:
        times = time_grid(score.schedule, n, rho=math.inf, t_max=first_time(transition, score))
        g = torch.Generator().manual_seed(seed)  # the same starts for any n
        x = evolve(transition, score, n_draws, times, generator=g)
        return score.coordinates.encode(x).flatten(1)

    def difference(a: Tensor, b: Tensor) -> float:
        spread = float(b.std(0).square().mean())
        return math.sqrt(float((a - b).square().mean()) / spread) if spread else 0.0

    return _enough(trial, difference, tolerance)


def plan_likelihood(
    score: NoisyScore,
    *,
    tolerance: float = 0.005,
    n_draws: int = 64,
    divergence: Literal["exact", "hutchinson"] = "exact",
    generator: torch.Generator | None = None,
) -> Plan:
    """Return how many steps `log_likelihood(score, x, n_steps=n)` needs, on draws of the score.

    Arguments:
        score: As in `plan_levels`.
        tolerance: Root mean square of the difference to twice as many steps or more, in nats.
        n_draws: Number of draws to compare.
        divergence: "hutchinson" uses one probe instead of d, the same for any number of steps.
        generator: Source of the draws.

    Raises:
        ValueError: As in `plan_levels`.
    """
    check_noisy_score(score)
    if score.schedule.times is not None:
        raise ValueError("a discrete ladder has no continuous flow; use the schedule it came from")
    check_number(tolerance, "tolerance", above=0)
    n, seed = plan_levels(score, n_draws=n_draws, generator=generator).n, new_seed(generator)
    times = time_grid(score.schedule, n, rho=math.inf, t_max=start_of(score))
    x = evolve(UniPC(), score, n_draws, times, generator=torch.Generator().manual_seed(seed))
    return _enough(
        lambda n: log_likelihood(
            score, x, n_steps=n, divergence=divergence,
            generator=torch.Generator().manual_seed(seed + 1),
        ).log_prob,
        lambda a, b: float((a - b).square().mean().sqrt()),
        tolerance,
        PARTS,
        MARGIN,
    )  # fmt: skip


def _enough(
    trial: Callable[[int], Tensor], difference: Callable[[Tensor, Tensor], float],
    tolerance: float, parts: int = 4, margin: float = 1.0,
) -> Plan:  # fmt: skip
    """Return the least n whose result differs little from that of about twice as many steps.

    Powers of two are tried first, each beside the next; then numbers between n/2 and n, by bisection
    to n/parts, beside 2n, where only `margin` of the tolerance may be left. A few trials cost less
    than steps that every later use takes in vain.
    """
    n, coarse = FEWEST, trial(FEWEST)
    while True:
        fine = trial(2 * n)
        error = difference(coarse, fine)
        if error <= tolerance or 2 * n >= MOST:
            break
        n, coarse = 2 * n, fine
    if error > tolerance:
        return Plan(2 * n, error)
    best, too_few = Plan(n, error), n // 2 if n > FEWEST else n
    while best.n - too_few > max(1, n // parts):
        between = (best.n + too_few) // 2
        less = difference(trial(between), fine)
        if less <= margin * tolerance:
            best = Plan(between, less)
        else:
            too_few = between
    return best
