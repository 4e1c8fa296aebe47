"""Does a transition move p_t to p_s: its interface, then its laws and its order on Gaussians."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...core import NoisyScore, Schedule, Transition, check_kind, per_sample, shown, sum_event
from ...core import check_transition as check_is_transition
from ...diffusion import evolve
from ...diffusion.transitions.facts import Facts
from ...noise import IDENTITY, ScoreBase, time_grid
from ...noise.schedules import VE, VP, Levels, Rectified
from ...noise.score_base import ScoreWrapper
from ...scores import ExactScore
from .report import Report, Watched, off_by, require, seeded, with_own_noise
from .transition_laws import DATA, S, T, U, laws

CASES = (
    ((2,), VP(), (0.9, 0.5)), ((2,), VP(), (0.5, 0.0)), ((2,), VP(), (0.5, None)),
    ((2,), VP(), (0.5, 0.5)), ((1, 3, 3), VE(0.05, 8.0), (0.9, 0.5)),
    ((1, 3, 3), VE(0.05, 8.0), (0.5, None)), ((2,), Levels([4.0, 1.0, 0.2]), (0.9, 0.5)),
)  # fmt: skip
"""Events, schedules, and times t and s of a step; s = None is the noise-free end."""


def check_transition(t: Transition, *, facts: Facts | None = None) -> Report:
    r"""Check a transition against what is known about it, and measure the rest.

    First its interface: shapes, dtypes, that arguments are not changed, that samples depend
    neither on the rest of their batch nor on chunks, the evaluations and draws of a step, memory,
    α_t = 0, and the noise-free end s = None, which is the point itself if the data are one point.
    Then its laws: on Gaussian data a run is an affine map, which is determined without random
    numbers,

    - the final variance in the limit of fine steps, compared with the exact one,
    - the order of the error: of the path for a deterministic transition, otherwise of mean and
      covariance,
    - the error of one long step on data for which the facts claim that there is none.

    Only what the facts state can fail. A transition without facts must converge.

    References:
        | From Score Matching to Diffusion: A Fine-Grained Error Analysis in the Gaussian Setting
          (Hurault et al., 2025)
        | https://arxiv.org/abs/2503.11615

    Arguments:
        t: `(z, t, s, score, *, generator)` -> z, such as `DDIM()`.
        facts: Facts to compare with; by default `t.facts`.

    Returns:
        Name -> measured value. `print` shows one line each.

    Raises:
        ConformanceError: An `AssertionError` with the right number and the likeliest mistake.
        ValueError: For an argument of the wrong kind.

    Examples:
        >>> found = glp.check.check_transition(glp.diffusion.DDIM())
        >>> round(found["order of the path"].value, 1)
        1.0
    """
    check_is_transition(t, "t")
    if facts is not None:
        check_kind(facts, "facts", Facts, "the Facts of diffusion.transitions")
    stated = getattr(t, "facts", None) if facts is None else facts
    report = Report()
    conduct(report, t, stated if isinstance(stated, Facts) else None)
    laws(report, t, stated if isinstance(stated, Facts) else None)
    return report


# ---------------------------------------------------------------------------- conduct


def conduct(
    report: Report, transition: Transition, facts: Facts | None, cases: Any = CASES
) -> None:
    """What a transition owes whatever it does: shapes, dtypes, rows, draws, ends."""
    for event, schedule, (t, s) in cases:
        x = torch.randn(6, *event, generator=seeded(1), dtype=torch.float64)
        _step(report, transition, Noisy(schedule), x, t, s)
    _rows(report, transition)
    if facts is not None:
        _counts(report, transition, facts)
        _memory(report, transition, facts)
        _from_alpha_zero(transition, facts)


class Noisy(ScoreBase):
    """The noisy score of data N(1, 2 I) of any event shape, with its log-density."""

    event_shape, moments, coordinates = None, None, IDENTITY

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        a, b = (per_sample(v, z) for v in self.schedule(t))
        return (a - z) / (2 * a**2 + b**2)

    def log_prob(self, z: Tensor, t: Tensor) -> Tensor:
        """Return log p_t(z) but for a constant."""
        a, b = (per_sample(v, z) for v in self.schedule(t))
        return -sum_event((z - a).square() / (2 * a**2 + b**2)) / 2


def _step(
    report: Report, transition: Any, score: Any, x: Tensor, t: float, s: float | None
) -> None:
    at, to = torch.tensor(t), None if s is None else torch.tensor(s)
    before, where = x.clone(), f"a step from t = {t} to s = {s}"
    step = lambda x, g: transition(x, at, to, score, generator=g)
    one, two = step(x, seeded(2)), step(x, seeded(2))
    if not isinstance(one, Tensor):
        raise ValueError(f"t must return the state at s, a tensor, got {shown(one)}")
    require(
        torch.equal(x, before), "the arguments of a step", "changed", "as it was",
        "an in-place operation",
    )  # fmt: skip
    require(
        torch.equal(one, two), "two steps with the same generator", "different", "the same bits",
        "noise that does not come from generator=",
    )  # fmt: skip
    double, single = with_own_noise(lambda g: step(x, g), where), step(x.float(), Watched())
    for given, end in ((x, double), (x.float(), single)):
        require(
            end.shape == given.shape and end.dtype == given.dtype,
            where, f"{tuple(end.shape)} in {end.dtype}", f"{tuple(x.shape)} in {given.dtype}",
            "a sum over the wrong dimension, or a coefficient that changes the dtype",
        )  # fmt: skip
        require(
            bool(torch.isfinite(end).all()), where, "NaN or infinity", "finite numbers",
            "a division by σ_s = 0 or by a step of length zero",
        )  # fmt: skip
    report.small(
        "float32 compared with float64", off_by(single, double), 1e-3,
        "a difference of nearly equal numbers, or a constant in float32",
    )  # fmt: skip


def _rows(report: Report, transition: Any) -> None:
    """Samples must depend neither on chunks nor on the rest of their batch, however extreme."""
    score, x = ExactScore(DATA, VP()), torch.randn(7, 2, generator=seeded(3), dtype=torch.float64)
    times = time_grid(VP(), 4)

    def carry(x: Tensor, size: int | None = None) -> Tensor:
        return evolve(transition, score, x, times, generator=seeded(4), chunk_size=size)

    source = Watched()
    started(transition)(x, T, S, score, generator=source)
    require(
        all(shape[0] == len(x) for _, shape in source.asked),
        "noise for seven samples", [tuple(shape) for _, shape in source.asked][:3],
        "seven rows each", "the same noise for all samples",
    )  # fmt: skip
    whole = carry(x)
    report.small(
        "what other samples change", off_by(carry(torch.cat([x[:1], 1e3 * x[1:]]))[:1], whole[:1]),
        1e-10, "a coupled batch: a norm or mean over all samples that each sample needs for itself",
    )  # fmt: skip
    report.small(
        "what chunks change", off_by(carry(x, 4), whole), 1e-10,
        "a coupled batch, or something kept between chunks",
    )  # fmt: skip


class Counting(ScoreWrapper):
    """A noisy score that counts how often it is asked."""

    def __init__(self, score: NoisyScore) -> None:
        self.score, self.calls = score, 0

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.score(z, t)

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.score.denoise(z, t)

    def log_prob(self, z: Tensor, t: Tensor) -> Tensor:
        """Return that of the score inside."""
        return self.score.log_prob(z, t)  # type: ignore[attr-defined]


def _counts(report: Report, transition: Any, facts: Facts) -> None:
    x = torch.randn(5, 2, generator=seeded(5), dtype=torch.float64)
    run, source, score = started(transition), Watched(), Counting(ExactScore(DATA, VP()))
    times = torch.linspace(0.6, 0.2, 6, dtype=torch.float64)
    for t, s in pairwise(times):  # a solver with memory may begin by steps of another kind
        before = score.calls
        run(x, t, s, score, generator=source)
        calls, draws = score.calls - before, len(source.asked) / 5
    first, other = (started(transition)(x, T, S, score, generator=Watched(seed=n)) for n in (0, 1))
    report.hold(
        "evaluations of the score a step, the least", min(calls, facts.evaluations)
        if facts.adaptive else calls, facts.evaluations, 0.0,
        else_="facts of a different transition, or a score evaluated twice at the same place",
    )  # fmt: skip
    report.hold(
        "draws of noise a step", draws, facts.draws, 0.0,
        else_="noise left out or drawn twice, or facts of a different transition",
    )  # fmt: skip
    require(
        torch.equal(other, first) == (facts.draws == 0),
        "steps with other noise", "the same" if facts.draws else "different",
        "different" if facts.draws else "the same", "noise from a fixed seed, or from elsewhere",
    )  # fmt: skip


def _memory(report: Report, transition: Any, facts: Facts) -> None:
    """A second step in a run differs from the same step alone where there is memory, and only there."""
    x = torch.randn(5, 2, generator=seeded(5), dtype=torch.float64)
    score, run = ExactScore(DATA, VP()), started(transition)
    y = run(x, T, S, score, generator=Watched())
    second = run(y, S, U, score, generator=Watched(seed=1))
    alone = transition(y, S, U, score, generator=Watched(seed=1))
    off = report.measure("what the step before changes", off_by(second, alone))
    require(
        (off > 0) == facts.memory, "what the step before changes", off,
        "more than 0" if facts.memory else 0, "a state kept although the facts say there is none"
        if off else "a memory never used",
    )  # fmt: skip


def _from_alpha_zero(transition: Any, facts: Facts) -> None:
    """From t = 1 of `Rectified`: refused by those that say so, finite from the others."""
    x, one = torch.randn(5, 2, generator=seeded(5), dtype=torch.float64), torch.ones(())
    name, refused = "a step from α = 0", False
    try:
        out = transition(x, one, T, ExactScore(DATA, Rectified()), generator=seeded())
    except ValueError:
        refused = True
    require(
        refused == facts.divides_by_alpha, name, "refused" if refused else "taken",
        "a ValueError" if facts.divides_by_alpha else "a finite step",
        "facts of a different transition, or a division by α that goes unnoticed",
    )  # fmt: skip
    if not refused:
        require(
            bool(torch.isfinite(out).all()), name, "NaN or infinity", "finite numbers",
            "a division by α = 0",
        )  # fmt: skip


def started(transition: Any) -> Any:
    """Return a transition at the start of a run, with its own memory if it has one."""
    return transition.begin() if hasattr(transition, "begin") else transition
