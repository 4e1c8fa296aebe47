r"""Multistep solvers of the probability flow: one score per step, and memory of earlier steps.

In λ = log(α/σ) the flow is, exactly,

.. math::
    x_s = \frac{σ_s}{σ_t} x_t + α_s \int_{0}^{h} e^{-(h-u)} \hat x_0(λ_t + u)\, du
        = \frac{α_s}{α_t} x_t - σ_s \int_0^h e^{h-u}\, \hat ε(λ_t + u)\, du, \quad h = λ_s - λ_t

and a method of order k inserts the polynomial through the last k values of x̂_0 (or ε̂) into the
integral. With one value both are DDIM. The first steps have fewer values, and their error
persists. As long as k − 1 values are not known, methods of order 3 and 4 therefore take steps of
three stages, at 0, h/3 and 2h/3, whose error is of order h⁴ and which, like the others, are exact
if x̂_0 is constant. If steps are long, h ≥ 0.1, their two additional scores are better spent on
more steps, and the first step is DDIM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...core import Generator, NoisyScore, Transition, check_count, check_option
from ...noise.predictions import flow_end, predict
from ...noise.schedules import invert_log_snr
from ...noise.tabulated import numbers
from .coefficients import combined, interval, log_ratio
from .facts import POINT, Facts

STAGES = ((1 / 3, 0.0), (2 / 3, 1 / 3), (1.0, 2 / 3))
"""Ends of the stages of a first step, and the value each uses beside the first, as parts of h."""

FINE = 0.1
"""The length of a first step in λ from which on stages do not pay: measured from σ = 3 and from 80."""


@runtime_checkable
class Multistep(Protocol):
    """A transition with memory: `begin` returns one that has seen nothing yet, for one run."""

    def begin(self) -> Transition:
        """Return a transition that remembers the steps it takes."""


def exponential_weights(offsets: Sequence[float], h: float, growth: float) -> list[float]:
    r"""Return the weights :math:`\int_0^h e^{growth (h-u)} ℓ_j(u)\, du`.

    ℓ_j are the Lagrange polynomials of the nodes `offsets` (λ_j − λ_t, the first one 0): products of
    (u − λ_k)/(λ_j − λ_k), each of which leads from the integrals of 1, u, … to those with the factor.
    """
    return list(_weights(tuple(offsets), h, growth))


@lru_cache(maxsize=1024)
def _weights(offsets: tuple[float, ...], h: float, growth: float) -> tuple[float, ...]:
    """Return them; a pure function, kept as every chunk of a run asks for the same."""
    nodes, weights = [offset / h for offset in offsets], list[float]()
    powers = _moments(growth * h, len(nodes))
    for node in nodes:
        left = powers
        for other in nodes:
            if other != node:
                span = node - other
                left = [(up - other * low) / span for low, up in pairwise(left)]
        weights.append(h * left[0])
    return tuple(weights)


def _moments(x: float, n: int) -> list[float]:
    r"""Return :math:`\int_0^1 e^{x (1-v)} v^m dv` for m = 0, …, n − 1, by parts.

    Upwards from the first, or where that loses digits downwards from the series of the last.
    """
    if abs(x) >= 1:
        found = [math.expm1(x) / x]
        for m in range(1, n):
            found.append((m * found[-1] - 1) / x)
        return found
    term, last, k = 1 / n, 0.0, n + 1
    while abs(term) > 1e-18:
        last, term, k = last + term, term * x / k, k + 1
    found = [last]
    for m in range(n - 1, 0, -1):
        found.append((x * found[-1] + 1) / m)
    return found[::-1]


@dataclass(frozen=True)
class _ExponentialMultistep:
    """What the two solvers share; `order` values of x̂_0 or ε̂ are remembered."""

    order: int
    predicts = "x0"
    extrapolate = False

    def _weights(self, offsets: Sequence[float], h: float) -> list[float]:
        return exponential_weights(offsets, h, -1.0 if self.predicts == "x0" else 1.0)

    def begin(self) -> Transition:
        """Return a transition that remembers the steps it takes, for one run."""
        return _Run(self)

    @property
    def facts(self) -> Facts:
        """What is known of this transition, after its first steps and where time is continuous."""
        return Facts(self.order, 1, memory=self.order > 1, exact=POINT)

    def _move(
        self, z: Tensor, t: _Point, s: _Point, values: Sequence[tuple[float, Tensor]]
    ) -> Tensor:
        """Return the state at s by the polynomial through values (λ, x̂_0 or ε̂), that at t the first."""
        h = s.ratio - t.ratio
        weights = self._weights([node - t.ratio for node, _ in values], h)
        own, rest = (
            (s.sigma / t.sigma, s.alpha)
            if self.predicts == "x0"
            else (s.alpha / t.alpha, -s.sigma)
        )
        terms = [
            (rest * weight, value) for weight, (_, value) in zip(weights, values, strict=True)
        ]
        return combined([(own, z), *terms])

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x_s by a step without memory, which is DDIM's."""
        return _Run(self, alone=True)(z, t, s, score, generator=generator)


class _Point(NamedTuple):
    """A level of noise: α, σ, and λ = log(α/σ)."""

    alpha: float
    sigma: float
    ratio: float


class _Run:
    """One run of a multistep solver: its memory of (λ, x̂_0, what is followed), newest first."""

    def __init__(self, solver: _ExponentialMultistep, alone: bool = False) -> None:
        self.solver, self.alone = solver, alone
        self.memory: list[tuple[float, Tensor, Tensor]] = []

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x_s."""
        del generator  # deterministic
        solver = self.solver
        here, there = (_Point(*v, log_ratio(v)) for v in interval(score.schedule, t, s))
        if here.ratio == there.ratio:
            return z
        x0, eps = predict(score, z, t)
        value = x0 if solver.predicts == "x0" else eps
        if math.isfinite(here.ratio):
            self.memory.insert(0, (here.ratio, x0, value))
            del self.memory[max(2, solver.order) :]
        if there.ratio == math.inf and len(self.memory) > 1 and solver.extrapolate:
            before, x0_before, _ = self.memory[1]
            return x0 + (x0 - x0_before) / math.expm1(2 * (here.ratio - before))
        used = [(ratio, value) for ratio, _, value in self.memory[: solver.order]]
        if math.isfinite(there.ratio - here.ratio):
            known = self.alone or len(used) >= solver.order - 1
            short = there.ratio - here.ratio < FINE
            if not known and short and score.schedule.times is None:
                return self._start(z, here, there, score, value)
            if len(used) > 1:
                return solver._move(z, here, there, used)
        if there.sigma == 0:
            return there.alpha * flow_end(score, z, t, x0)
        return combined([(there.alpha, x0), (there.sigma, eps)])

    def _start(
        self, z: Tensor, here: _Point, there: _Point, score: NoisyScore, value: Tensor
    ) -> Tensor:
        """Return x_s by three stages, which need no memory."""
        values, h, end = {0.0: value}, there.ratio - here.ratio, z
        for part, beside in STAGES:
            nodes = [(here.ratio + at * h, values[at]) for at in sorted({0.0, beside})]
            if part == 1.0:
                return self.solver._move(z, here, there, nodes)
            ratio = torch.tensor(here.ratio + part * h, dtype=torch.float64)
            time = invert_log_snr(score.schedule, 2 * ratio)
            between = _Point(*numbers(score.schedule, time), float(ratio))
            end = self.solver._move(z, here, between, nodes)
            x0, eps = predict(score, end, time)
            values[part] = x0 if self.solver.predicts == "x0" else eps
        return end


@dataclass(frozen=True)
class ExponentialAB(_ExponentialMultistep):
    r"""Exponential Adams–Bashforth in λ = log(α/σ), of order 1 to 4.

    The polynomial through the last values of ε̂ or x̂_0 is integrated exactly against the
    exponential. Order 1 is DDIM. If steps are short in λ, below 0.1, order 3 begins with one step
    of three stages and order 4 with two, with two additional scores each, so that the order holds
    for any initial σ. On a discrete ladder, which has no levels in between, the first steps are
    DDIM's, and the order is 2. The benchmarks show which order is best for how many steps.

    The noise-free end is the Tweedie mean, which differs from the end of the flow by O(r²), r =
    σ/α at the last time; if the score is a model with a base, what the base knows of this is added
    (`noise.predictions.flow_end`). `extrapolate` removes the term from two values instead,

    .. math:: x = \hat x_0 + \frac{\hat x_0 - \hat x_0^{before}}{(r_{before}/r)^2 - 1}

    which helps if the score is exact and there are many steps; errors of a network are amplified.

    References:
        | Exponential Integrators (Hochbruck & Ostermann, 2010)
        | https://doi.org/10.1017/S0962492910000048
        | Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2023)
        | https://arxiv.org/abs/2204.13902

    Arguments:
        order: 1 to 4.
        predicts: "epsilon" or "x0": the values that the polynomial interpolates.
        extrapolate: Whether to extrapolate x̂_0 to r = 0 at the noise-free end.
    """

    order: int = 3
    predicts: Literal["epsilon", "x0"] = "epsilon"
    extrapolate: bool = False

    def __post_init__(self) -> None:
        check_count(self.order, "order", most=4)
        check_option(self.predicts, "predicts", ("epsilon", "x0"))


@dataclass(frozen=True)
class DPMSolver(_ExponentialMultistep):
    r"""DPM-Solver++ in its multistep form, 2M (order 2) or 3M (order 3); order 1 is DDIM.

    With q = h_{before}/h the step of 2M is

    .. math::
        x_s = \frac{σ_s}{σ_t} x_t + α_s (1 - e^{-h})
        \left[ \left(1 + \tfrac{1}{2q}\right) \hat x_0 - \tfrac{1}{2q} \hat x_0^{before} \right]

    3M is the exact integral of the quadratic through the last three x̂_0, and begins like
    `ExponentialAB` of order 3. (Common implementations give the last term of the quadratic half
    its weight, so that 3M is of order 2.)

    References:
        | DPM-Solver++: Fast Solver for GuidedScore Sampling of Diffusion Probabilistic Models
          (Lu et al., 2022)
        | https://arxiv.org/abs/2211.01095

    Arguments:
        order: 1, 2 or 3.

    Examples:
        >>> score = glp.ExactScore(glp.Gaussian([3.0]), glp.schedules.VP())
        >>> times, g = glp.time_grid(score.schedule, 12), torch.Generator().manual_seed(0)
        >>> x = glp.evolve(glp.diffusion.DPMSolver(), score, 2000, times, generator=g)
        >>> abs(float(x.mean()) - 3.0) < 0.1
        True
    """

    order: int = 2

    def __post_init__(self) -> None:
        check_count(self.order, "order", most=3)

    def _weights(self, offsets: Sequence[float], h: float) -> list[float]:
        if len(offsets) == 2 and self.order == 2:
            share = h / (-2 * offsets[1])  # 1 / (2q)
            return [-math.expm1(-h) * (1 + share), math.expm1(-h) * share]
        return super()._weights(offsets, h)
