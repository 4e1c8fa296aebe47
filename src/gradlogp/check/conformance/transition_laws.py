"""The laws of a transition on Gaussian data: at the end of many steps, and after one long one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ...calculus import affine_map
from ...calculus.affine import Affine
from ...core import Schedule, Transition
from ...diffusion import evolve
from ...diffusion.transitions.facts import DIAGONAL, FORWARD, POINT, Facts
from ...distributions import Gaussian
from ...noise.schedules import VE, VP
from ...scores import ExactScore
from .report import ConformanceError, Report, off_by, seeded

T, S, U = (torch.tensor(v, dtype=torch.float64) for v in (0.6, 0.4, 0.3))

DATA = Gaussian(torch.tensor([0.7, -1.2], dtype=torch.float64), [[1.5, 0.6], [0.6, 0.5]])
LINE = Gaussian(torch.tensor([0.7], dtype=torch.float64), 1.96)
NARROW = Gaussian(torch.zeros(1, dtype=torch.float64), 0.2)

HIGH, LOW, FIRST = 4.0, 0.05, 0.9
"""σ of the largest and the smallest level, log σ uniform in t, and the time at which runs start.

From σ = 2.6, about two deviations of the data: from 80, where x̂_0 is flat, orders look higher.
"""

CLAIMS = {
    POINT: Gaussian(torch.tensor([0.7, -1.2], dtype=torch.float64), 0.0),
    FORWARD: Gaussian(torch.zeros(2, dtype=torch.float64), 1.0),
    DIAGONAL: Gaussian(
        torch.tensor([0.7, -1.2], dtype=torch.float64), torch.tensor([1.5, 0.3]).double()
    ),
}
"""What the facts may say of exactness, each with data on which one long step shows it."""


def laws(report: Report, transition: Transition, facts: Facts | None) -> None:
    """What a transition makes of Gaussian data, in one step and in many."""
    _noise_free_end(report, transition)
    if facts is not None and facts.adaptive:
        report.measure("error of the path, one interval", _path(transition, 1)[0])
        return
    if facts is not None and not facts.draws and facts.order is not None:
        _order_of_paths(report, transition, facts.order)
    if (read := _affine(transition)) is None:
        return
    if facts is None:
        _order_of_laws(report, read, 1, at_least=True)
    elif facts.draws:
        _order_of_laws(report, read, facts.order)
    if facts is not None:
        _exact(report, read, facts)


def _noise_free_end(report: Report, transition: Any) -> None:
    point = CLAIMS[POINT]
    x = torch.randn(5, 2, generator=seeded(6), dtype=torch.float64)
    out = transition(x, T, None, ExactScore(point, VP()), generator=seeded())
    report.small(
        "noise-free end on data that are one point, off", off_by(out, point.mean.expand(5, 2)), 1e-9,
        "an end that is not the Tweedie mean: a state that still carries noise, or is at a "
        "different level",
    )  # fmt: skip


Read = Callable[[Gaussian, Schedule, Tensor, Tensor], Affine]


def _reader(transition: Any) -> Read:
    """Return (data, schedule, t, s) -> the affine map of a step without memory."""

    def read(data: Gaussian, schedule: Schedule, t: Tensor, s: Tensor) -> Affine:
        score = ExactScore(data, schedule)
        return affine_map(lambda x, g: transition(x, t, s, score, generator=g), len(data.mean))

    return read


def _affine(transition: Any) -> Read | None:
    """Return the same, or None for a transition whose step is not affine on Gaussian data."""
    read = _reader(transition)
    try:
        read(DATA, VP(), T, U)
    except ValueError:
        return None
    return read


def _ladder(n: int) -> Tensor:
    return torch.linspace(FIRST, 0, n + 1, dtype=torch.float64)


def _ends(data: Gaussian, schedule: Schedule, times: Tensor) -> tuple[Gaussian, Gaussian]:
    return data.noised(*schedule(times[0])), data.noised(*schedule(times[-1]))


def _off(read: Read, data: Gaussian, schedule: Schedule, times: Tensor) -> tuple[float, float]:
    """Final error of mean and covariance, exact at the start, relative to those at the last time.

    Also return the size of the covariance relative to the right one.
    """
    start, end = _ends(data, schedule, times)
    m, C = start.mean, start.cov
    for t, s in pairwise(times):
        m, C = read(data, schedule, t, s).law(m, C)
    size = float(torch.linalg.solve(end.cov, C).trace()) / len(m)
    return float((m - end.mean).norm() + (C - end.cov).norm()), size


def _path(transition: Any, n: int) -> tuple[float, float]:
    """Error of the endpoints of the flow of N(0.7, 1.96) from three points after n steps.

    Also return the square of its slope relative to the right one.
    """
    x = torch.tensor([[4.0], [-1.5], [0.2]], dtype=torch.float64)
    schedule = VE(LOW, HIGH)
    start, end = _ends(LINE, schedule, _ladder(n))
    out = evolve(
        transition, ExactScore(LINE, schedule), x, _ladder(n), denoise=False, generator=seeded()
    )
    ratio = float((end.cov / start.cov).sqrt())
    slope = float((out[0] - out[1]) / (x[0] - x[1])) / ratio
    return float((out - LINE.mean - ratio * (x - LINE.mean)).norm()), slope**2


def _after(data: Gaussian, a: float, b: float) -> float:
    """The covariance after dX = −a g² s dτ + b g dW̄ under VE, relative to that of p.

    Data N(m, S) go from σ² = u₀, where V = S + u₀, to u₁ with the variance
    r V₁ + (1 − r) V₁ (V₁/V₀)^{2a−1}, r = b²/(2a − 1), in each eigendirection of S.
    """
    start, end = _ends(data, VE(LOW, HIGH), _ladder(1))
    decay = torch.linalg.eigvalsh(end.cov) / torch.linalg.eigvalsh(start.cov)
    if a == 0.5:
        return float((1 - b**2 * decay.log()).mean())
    r = b**2 / (2 * a - 1)
    return float((r + (1 - r) * decay ** (2 * a - 1)).mean())


NEITHER = (
    "a step of neither the flow nor the SDE; if a bias is intended, pass facts= of order None"
)


@cache
def _rooted(data: Gaussian, drift: float, noise: float, n: int = 2000) -> float:
    """The same for dX = −g^{drift} s dτ + g^{noise} dW̄, by Heun's rule for the variance."""
    schedule, total = VE(LOW, HIGH), 0.0
    start, _ = _ends(data, schedule, _ladder(1))
    times = _ladder(n)
    g, sigma2 = schedule.g2(times).sqrt().tolist(), schedule(times)[1].square().tolist()
    h = FIRST / n
    for w in torch.linalg.eigvalsh(data.cov).tolist():
        v = w + sigma2[0]
        slope = lambda i, v, w=w: -2 * g[i] ** drift * v / (w + sigma2[i]) + g[i] ** (2 * noise)
        for i in range(n):
            first = slope(i, v)
            v += h * (first + slope(i + 1, v + h * first)) / 2
        total += v / (w + sigma2[-1])
    return total / len(start.mean)


def _limit(
    report: Report, sizes: Sequence[float], order: int, slips: dict[str, float], else_: str | None
) -> None:
    finest = sizes[1] + (sizes[1] - sizes[0]) / (2**order - 1)
    name = "variance at the end in fine steps, over that of p"
    report.hold(name, finest, 1.0, 0.03, slips, else_=else_)


def _order_of_paths(report: Report, transition: Any, order: int) -> None:
    ends = {n: _path(transition, n) for n in (80, 160)}
    slips = {
        "a wrong sign: the flow goes away from the data": _after(LINE, -0.5, 0),
        "g² s where ½ g² s belongs: a factor 2": _after(LINE, 1, 0),
        "¼ g² s where ½ g² s belongs: a factor 2": _after(LINE, 0.25, 0),
    }
    _limit(report, [size for _, size in ends.values()], order, slips, None)
    _order(report, "order of the path", {n: error for n, (error, _) in ends.items()}, order)


def _order_of_laws(report: Report, read: Read, order: int | None, at_least: bool = False) -> None:
    name = "order of the law"
    if order is None:
        _bias(report, read, stays=True)
        return
    ends = {n: _off(read, DATA, VE(LOW, HIGH), _ladder(n)) for n in (40, 80)}
    slips = {
        "a wrong sign: the drift goes away from the data": _after(DATA, -1, 1),
        "½ g² s, the drift of the flow, with the noise of the SDE": _after(DATA, 0.5, 1),
        "noise left out": _after(DATA, 1, 0),
        "noise of half the variance": _after(DATA, 1, math.sqrt(0.5)),
        "noise of twice the variance": _after(DATA, 1, math.sqrt(2)),
        "a drift of 2 g² s": _after(DATA, 2, 1),
        "a square root: g s where g² s belongs in the drift": _rooted(DATA, 1, 1),
        "a missing square root: noise g² dW where g dW belongs": _rooted(DATA, 2, 2),
    }
    _limit(
        report, [size for _, size in ends.values()], order, slips, NEITHER if at_least else None
    )
    if at_least:
        _bias(report, read, stays=False)
        return
    errors = {n: error for n, (error, _) in ends.items()}
    if abs(math.log2(errors[40] / errors[80]) - order) > 0.25:  # an error that changes its sign
        errors = {80: errors[80], 160: _off(read, DATA, VE(LOW, HIGH), _ladder(160))[0]}
    _order(report, name, errors, order)


def _bias(report: Report, read: Read, stays: bool) -> None:
    """Whether a bias stays as steps get finer: it shows where data are as narrow as the last noise."""
    name = "order of the law on narrow data"
    coarse = _off(read, NARROW, VE(0.5, HIGH), _ladder(40))[0]
    for n in (80, 160):  # where a bias is small, the error falls at first
        fine = _off(read, NARROW, VE(0.5, HIGH), _ladder(n))[0]
        found = report.measure(name, math.log2(coarse / fine) if fine > 1e-9 else math.inf)
        if (found < 0.9) == stays:
            return
        coarse = fine
    right = (
        "none: the facts say that a bias remains"
        if stays
        else "at least 1: a transition converges"
    )
    raise ConformanceError(
        name, found, right, "facts of a different transition: this one converges" if stays else NEITHER
    )  # fmt: skip


def _order(report: Report, name: str, errors: dict[int, float], order: int) -> None:
    (n, coarse), (_, fine) = errors.items()
    found = math.log2(coarse / fine) if fine > 0 else math.inf
    slips = {"an error that does not fall with the step": 0.0}
    likely = "coefficients at the wrong end of the step, or a first step of lower order"
    above = 0.5 if found > order else 0.25  # where the error of the order itself is small
    report.hold(name, found, order, above, slips, else_=likely)
    report.measure(f"error at {n} steps", coarse)


def _exact(report: Report, read: Read, facts: Facts) -> None:
    """The error of one long step, on all data of which facts may say that there is none."""
    for words, data in CLAIMS.items():
        name = f"one long step on {words}, off"
        off = report.measure(name, _off(read, data, VP(), torch.stack([T, U]))[0])
        if facts.exact == words and not off < 1e-9:
            raise ConformanceError(
                name, off, "rounding", "the variance or mean of a different law: β for β̃, or "
                "coefficients at the wrong end of the step",
            )  # fmt: skip
