r"""Claims on solvers of the reverse SDE and the flow: which are equal, their orders, correctors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from scipy.integrate import quad
from torch import Tensor

from ...core import Injected, NoisyScore, Transition
from ...diffusion.transitions import (
    DDIM,
    AdaptiveFlow,
    Ancestral,
    Churn,
    DPMSolver,
    ExponentialAB,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseSDE,
)
from ...diffusion.transitions.multistep import Multistep, exponential_weights
from ...distributions.analytic import GaussianMixture
from ...noise.schedules import VE, VP, invert_log_snr
from ...scores.exact import ExactScore
from .claim import DERIVED, Numbers, apart, at_most, exact, false, grid, order, table
from .diffusion import F64, HO, SONG
from .reversal import DATA, DDIM_PAPER, SHORT, UNIT, equal_steps, law_after, law_at, wasserstein

LU = "Lu et al. 2022, arXiv 2211.01095"
KARRAS = "Karras et al. 2022, arXiv 2206.00364"
ZHANG = "Zhang & Chen 2023, arXiv 2204.13902"

PLANE = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-2.0, 0.5], [1.0, -1.0]], dtype=F64),
    torch.tensor([[0.5, 0.2], [0.1, 0.3]], dtype=F64),
)  # fmt: skip
HIGH, LOW = torch.tensor([0.6, 0.4], dtype=F64)


def _step(transition: Transition, z: float = 0.0) -> Tensor:
    """One step on the mixture from some points, with noise z in every entry."""
    x = torch.tensor([[0.3, -0.8], [2.0, 1.0], [-1.5, 0.2]], dtype=F64)
    noise = Injected(torch.full_like(x, z))
    return transition(x, HIGH, LOW, ExactScore(PLANE, SHORT), generator=noise)


def _stochastic_steps_agree() -> Numbers:
    ancestral, *others = (_step(move, 0.7) for move in (Ancestral(), ReverseSDE(), DDIM(1.0)))
    return 0.0, apart(torch.stack(others), ancestral)


def _noise_of_ddim() -> Numbers:
    (a_t, b_t), (a_s, b_s) = SHORT(HIGH), SHORT(LOW)
    beta = 1 - (a_t / a_s) ** 2
    added = (_step(DDIM(1.0), 1.0) - _step(DDIM(1.0))).square().mean()
    return 1.0, added / beta, (b_s / b_t) ** 2


def _ddim_under_two_schedules() -> Numbers:
    y, ends = torch.tensor([[30.0, -80.0], [200.0, 100.0]], dtype=F64), []
    for schedule in (VP(), VE(0.01, 200.0)):
        times = invert_log_snr(schedule, torch.linspace(-9.0, 6.0, 12, dtype=F64))
        x, score = schedule(times[0])[0] * y, ExactScore(PLANE, schedule)
        for t, s in pairwise(times):
            x = DDIM()(x, t, s, score)
        ends.append(x / schedule(times[-1])[0])
    return 0.0, apart(*ends)


# ---------------------------------------------------------------------------- orders


def _order_of_the_law(transition: Callable[[int], Transition], steps: int) -> float:
    """The order at which the law that k steps leave meets the law, from the exact one at t = 1."""
    errors = []
    for k in (steps, 2 * steps):
        times = equal_steps(SHORT, k)
        start = law_at(SHORT, times[0])
        end = law_after(transition(k), ExactScore(DATA, SHORT), times, start)
        errors.append(wasserstein(end, law_at(SHORT, times[-1])))
    return order(errors[0], errors[1])


def _order_of_the_path(transition: Transition, steps: int) -> float:
    """The order of the error on a path of the flow; values to remember come from the path itself."""
    errors: list[Tensor] = []
    memory = getattr(transition, "order", 1)
    for k in (steps, 2 * steps):
        times = equal_steps(SHORT, 3 * k // 2)
        times = times[torch.arange(len(times)) % 3 != 2]  # short and long steps in turn
        move = transition.begin() if isinstance(transition, Multistep) else transition
        x = _on_path(times[0])
        for i, (t, s) in enumerate(pairwise(times)):
            x = _on_path(t) if i < memory else x
            x = move(x, t, s, ExactScore(DATA, SHORT))
        errors.append(x - _on_path(times[-1]))
    return order(errors[0], errors[1])


def _on_path(t: Tensor) -> Tensor:
    """Where the flow of a Gaussian has one that was two standard deviations above the mean."""
    mean, var = law_at(SHORT, t)
    return torch.full((1, 1), mean + 2 * math.sqrt(var), dtype=F64)


class Circulating(DPMSolver):
    """3M by the formulas of the published code, with −α φ₃ D₂ for −2 α φ₃ D₂."""

    def _weights(self, offsets: Sequence[float], h: float) -> list[float]:
        if len(offsets) < 3:
            return exponential_weights(offsets, h, -1.0)
        h_0, h_1 = -offsets[1], offsets[1] - offsets[2]
        phi_1 = math.expm1(-h)
        phi_2 = phi_1 / h + 1
        phi_3 = phi_2 / h - 0.5
        r_0, r_1 = h_0 / h, h_1 / h
        newest = torch.tensor([1 / r_0, -1 / r_0, 0.0], dtype=F64)
        older = torch.tensor([0.0, 1 / r_1, -1 / r_1], dtype=F64)
        D_1 = newest + r_0 / (r_0 + r_1) * (newest - older)
        D_2 = (newest - older) / (r_0 + r_1)
        total = phi_2 * D_1 - phi_3 * D_2
        total[0] -= phi_1
        return [float(w) for w in total]


def _tolerance_of_the_flow() -> Numbers:
    times = equal_steps(SHORT, 1)
    end = AdaptiveFlow(1e-8, 1e-8)(_on_path(times[0]), times[0], times[1], ExactScore(DATA, SHORT))
    return 1e-6, apart(end, _on_path(times[1]))


# ---------------------------------------------------------------------------- correctors

RATIO, HALF = 0.1, torch.tensor(0.5, dtype=F64)


def _still(
    z: Tensor, t: Tensor, s: Tensor | None, score: NoisyScore, *, generator: object = None,
) -> Tensor:  # fmt: skip
    """A predictor that does nothing."""
    return z


def _gain(rule: str) -> float:
    """What one correction adds to E x² on N(0, 1), over its h = 2q²σ²: z = ±1 has the moments."""
    x, dx = grid(-10, 10, 20_001)
    p = UNIT.log_prob(x).exp() * dx
    move = PredictorCorrector(_still, snr=RATIO, rule=rule)  # type: ignore[arg-type]
    moved = [
        move(x, HALF, HALF, ExactScore(UNIT, SHORT), generator=Injected(z * torch.ones_like(x)))
        for z in (1.0, -1.0)
    ]
    second = 0.5 * (moved[0].square() + moved[1].square())[:, 0]
    return (float((p * second).sum()) - 1) / (2 * RATIO**2 * float(SHORT(HALF)[1]) ** 2)


def _gain_by_formula() -> float:
    """E[2h(1 − x²) + h² x²] with h = min(2q²/x², σ²)."""
    top = float(SHORT(HALF)[1]) ** 2
    size = lambda x: min(2 * RATIO**2 / x**2, top) if x else top
    density = lambda x: math.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    rate = lambda x: density(x) * (2 * size(x) * (1 - x * x) + (size(x) * x) ** 2)
    edge = RATIO * math.sqrt(2 / top)
    total = 2 * (quad(rate, 0, edge)[0] + quad(rate, edge, 10, limit=200)[0])
    return total / (2 * RATIO**2 * top)


CHECKS = table(
    __name__,
    stochastic_steps_agree=(
        exact, "DDIM with η = 1, DDPM with β̃ and the reverse SDE with x̂₀ frozen are one step: "
        "difference", DDIM_PAPER, 1e-12, _stochastic_steps_agree),
    noise_of_ddim=(
        false, "“DDIM with η = 1 adds noise of variance β”: it adds β̃; the ratio to β", DDIM_PAPER,
        1e-10, _noise_of_ddim),
    ddim_under_two_schedules=(
        exact, "DDIM draws the same x/α under VE and VP, 11 steps: difference", DDIM_PAPER, 1e-8,
        _ddim_under_two_schedules),
    **{
        f"order_of_{name}": (
            exact, f"order of the law in the steps: {what}", source, 0.06,
            partial(lambda order, move, k: (order, _order_of_the_law(move, k)), order, move, k))
        for name, what, source, order, move, k in (
            ("ancestral", "DDPM, variance β", HO, 1.0, lambda k: Ancestral("forward"), 100),
            ("ancestral_posterior", "DDPM, variance β̃", HO, 1.0, lambda k: Ancestral(), 100),
            ("euler", "Euler–Maruyama", SONG, 1.0, lambda k: ReverseSDE(1.0, "euler"), 30),
            ("heun_in_law", "Heun on the SDE, η = ½", DERIVED, 2.0,
             lambda k: ReverseSDE(0.5, "heun"), 50),
            ("churn", "Heun with churn γ = 2/N", KARRAS, 2.0, lambda k: Churn(2 / k), 30),
        )
    },
    **{
        f"order_of_{name}": (
            exact, f"order of the path in the steps: {what}", source, 0.06,
            partial(lambda order, move, k: (order, _order_of_the_path(move, k)), order, move, k))
        for name, what, source, order, move, k in (
            ("ddim", "DDIM", DDIM_PAPER, 1.0, DDIM(), 50),
            ("heun", "Heun", KARRAS, 2.0, ProbabilityFlow(2), 50),
            ("runge_kutta", "Runge–Kutta", SONG, 4.0, ProbabilityFlow(4), 16),
            ("2m", "DPM-Solver++ 2M", LU, 2.0, DPMSolver(2), 50),
            ("3m", "3M, its quadratic integrated in full", LU, 3.0, DPMSolver(3), 100),
            ("exponential", "exponential Adams–Bashforth of four ε̂", ZHANG, 4.0,
             ExponentialAB(4), 50),
        )
    },
    order_of_3m_as_published=(
        false, "“DPM-Solver++ 3M with α φ₃ D₂ is of order 3”: half the quadratic is lost; its order",
        "published code of Lu et al. 2022", 0.06,
        lambda: (3.0, _order_of_the_path(Circulating(3), 100), 2.0)),
    tolerance_of_the_flow=(
        at_most, "the flow solved to a tolerance of 10⁻⁸ a step: error, at most 10⁻⁶", DERIVED,
        _tolerance_of_the_flow),
    corrector_by_level=(
        exact, "a correction of one size a level keeps N(0, 1) to O(h²): gain in E x² over h", SONG,
        1e-9, lambda: (2 * RATIO**2 * SHORT(HALF)[1] ** 2, _gain("level"))),
    corrector_by_sample=(
        false, "“a correction may take its size from the sample's own score”: gain in E x² over h",
        DERIVED, 1e-4, lambda: (0.0, _gain("sample"), _gain_by_formula())),
)  # fmt: skip
