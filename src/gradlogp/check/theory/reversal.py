r"""Claims on the way from noise to data: the exact laws after its steps.

On a Gaussian every step is affine, so that laws are computed through whole runs and nothing is
drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ...calculus import affine_map
from ...core import Generator, Injected, NoisyScore, Schedule, Transition
from ...diffusion.transitions import Ancestral, ProbabilityFlow, ReverseSDE
from ...distributions.analytic import Gaussian
from ...noise.schedules import DDPM, VP, invert_log_snr
from ...noise.tweedie import tweedie
from ...scores import as_score
from ...scores.exact import ExactScore
from .claim import DERIVED, Numbers, apart, exact, false, table
from .diffusion import CHAIN as LONG
from .diffusion import F64, HO, PLANE, POINTS, SONG

BAO = "Bao et al. 2022, arXiv 2201.06503"
ANDERSON = "Anderson 1982, doi 10.1016/0304-4149(82)90051-5"
DDIM_PAPER = "Song, Meng & Ermon 2021, arXiv 2010.02502"


def _normal(mean: float, var: float) -> Gaussian:
    return Gaussian(torch.tensor([mean], dtype=F64), torch.tensor(var, dtype=F64))


M, V = 0.5, 0.36
DATA, UNIT = _normal(M, V), _normal(0.0, 1.0)
SHORT = VP(0.1, 8.0)
CHAIN = DDPM(torch.linspace(0.02, 0.6, 10, dtype=F64))
LOUD = VP(0.1, 4.0)
"""Of α₁ = 0.36, so that N(0, I) is far from the law at t = 1."""

Variance = Literal["posterior", "forward", "optimal"]
Law = tuple[float, float]
"""Mean and variance."""


def law_at(schedule: Schedule, t: Tensor, mean: float = M, var: float = V) -> Law:
    """The law at t of data N(mean, var)."""
    a, b = (float(q) for q in schedule(t))
    return a * mean, a**2 * var + b**2


def equal_steps(schedule: Schedule, n: int, start: float = 1.0, end: float = 0.05) -> Tensor:
    """Return n + 1 times, equal steps in log(α/σ) apart."""
    low, high = schedule.log_snr(torch.tensor([start, end], dtype=F64)).tolist()
    return invert_log_snr(schedule, torch.linspace(low, high, n + 1, dtype=F64))


def law_after(transition: Transition, score: NoisyScore, times: Tensor, start: Law) -> Law:
    """The law that steps end in on the line from N(start), for a score that is affine in x."""

    def steps(x: Tensor, generator: Generator) -> Tensor:
        for t, s in pairwise(times):
            x = transition(x, t, s, score, generator=generator)
        return x

    mean, var = torch.tensor(start, dtype=F64)
    m, C = affine_map(steps, 1).law(mean.reshape(1), var.reshape(1, 1))
    return float(m), float(C)


def wasserstein(one: Law, other: Law) -> float:
    """Return W2 between two normal laws on the line."""
    return math.hypot(one[0] - other[0], math.sqrt(one[1]) - math.sqrt(other[1]))


# ---------------------------------------------------------------------------- DDPM's step


def _ancestral(
    z: float, variance: Variance = "posterior"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_{i−1} by a step of DDPM's chain with noise z, and β, ᾱ_i, ᾱ_{i−1}."""
    t, s = LONG.times[40], LONG.times[41]
    noise = Injected(torch.full_like(POINTS, z))
    out = Ancestral(variance)(POINTS, t, s, ExactScore(PLANE, LONG), generator=noise)
    abar_t, abar_s = LONG(t)[0] ** 2, LONG(s)[0] ** 2
    return out, 1 - abar_t / abar_s, abar_t, abar_s


def _mean_of_a_step() -> Numbers:
    out, beta, *_ = _ancestral(0.0)
    s = ExactScore(PLANE, LONG)(POINTS, LONG.times[40])
    return 0.0, apart(out, (POINTS + beta * s) / (1 - beta).sqrt())


def _variance_of_a_step() -> Numbers:
    """Against the law of x_{i−1}, whose posterior given x_i is a mixture known in closed form."""
    found = (_ancestral(1.0, "optimal")[0] - _ancestral(0.0, "optimal")[0]).square()
    _, beta, _, abar = _ancestral(0.0)
    before = PLANE.noised(abar.sqrt(), (1 - abar).sqrt())
    cov = before.posterior_cov(POINTS, (1 - beta).sqrt(), beta.sqrt())
    return 0.0, apart(found, cov.diagonal(dim1=1, dim2=2))


def _denoised_is_not_the_mean() -> Numbers:
    out, beta, abar_t, abar_s = _ancestral(0.0)
    (alpha, sigma), score = LONG(LONG.times[40]), ExactScore(PLANE, LONG)
    x0 = tweedie(lambda x: score(x, LONG.times[40]), POINTS, alpha, sigma).mean
    mu = (abar_s.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - abar_s) * POINTS) / (1 - abar_t)
    return x0[0, 0], out[0, 0], mu[0, 0]


def _chain(variance: Variance, mean: float, var: float) -> float:
    """W2 that ten ancestral steps leave between their law and that of N(mean, var), noised."""
    times, start = CHAIN.times, law_at(CHAIN, CHAIN.times[0], mean, var)
    end = law_after(Ancestral(variance), ExactScore(_normal(mean, var), CHAIN), times, start)
    return wasserstein(end, law_at(CHAIN, times[-1], mean, var))


def _chain_by_formula(forward: bool) -> float:
    """W2 by the recursion of the variance on N(M, V), written out with β and ᾱ; the mean is exact."""
    betas = CHAIN.betas
    abar = [math.prod(1 - b for b in betas[:i]) for i in range(len(betas) + 1)]
    var = abar[-1] * V + 1 - abar[-1]
    for i in range(len(betas), 1, -1):
        b, total = betas[i - 1], abar[i] * V + 1 - abar[i]
        noise = b if forward else b * (1 - abar[i - 1]) / (1 - abar[i])
        var = (1 - b / total) ** 2 / (1 - b) * var + noise
    return abs(math.sqrt(var) - math.sqrt(abar[1] * V + 1 - abar[1]))


def _without_noise() -> Numbers:
    """Each step is E[x_s | x_t] = (α_t/α_s) x_t on N(0, 1), so that x_s = (α_1/α_s) x_1."""
    mean = lambda x, t, s, score, generator=None: Ancestral()(
        x, t, s, score, generator=Injected(torch.zeros_like(x))
    )
    _, left = law_after(mean, ExactScore(UNIT, CHAIN), CHAIN.times, (0.0, 1.0))
    return 1.0, left, (CHAIN(CHAIN.times[0])[0] / CHAIN(CHAIN.times[-1])[0]) ** 2


# ---------------------------------------------------------------------------- the reverse SDE

Change = Callable[[float, float], float]
"""(c, β) -> what takes the place of c in a score −c (x − m)."""


def _reversed(change: Change) -> tuple[float, float]:
    """The variance at t = 10⁻³ of the reverse SDE from N(0, 1) with a changed score.

    By 150 steps, and by dV/dt = 2 (f + g² c) V − g² downwards, with f = −β/2 and g² = β written out.
    """
    exact_score = ExactScore(DATA, SHORT)
    score = lambda x, t: change(1.0, 0.1 + 7.9 * float(t)) * exact_score(x, t)
    times, changed = equal_steps(SHORT, 150, end=1e-3), as_score(score, "score", SHORT)
    left = law_after(ReverseSDE(1.0, "heun"), changed, times, (0.0, 1.0))[1]

    def rate(t: float, var: np.ndarray) -> list[float]:
        beta, log_a = 0.1 + 7.9 * t, -0.25 * t**2 * 7.9 - 0.05 * t
        total = math.exp(2 * log_a) * V - math.expm1(2 * log_a)
        return [2 * (-0.5 * beta + beta * change(1 / total, beta)) * var[0] - beta]

    moments = solve_ivp(rate, (1.0, 1e-3), [1.0], rtol=1e-10, atol=1e-12).y
    return left, float(moments[0, -1])


BETA = "β from 0.1 to 8, data of variance 0.36, from N(0, 1)"


def _reverse_is_no_flow() -> Numbers:
    """With η = 0 the drift is f X − ½ g² s; a score twice as large makes it that of the SDE."""
    times, twice = equal_steps(SHORT, 200), lambda x, t: 2 * ExactScore(UNIT, SHORT)(x, t)
    left = law_after(ProbabilityFlow(), as_score(twice, "score", SHORT), times, (0.0, 1.0))[1]
    return 1.0, left, (SHORT(times[0])[0] / SHORT(times[-1])[0]) ** 2


# ---------------------------------------------------------------------------- a prior that is wrong


def _from_unit_prior(transition: Transition, steps: int) -> tuple[Law, Law, float, float]:
    """The law left by N(0, 1), the one wanted, a = α_t/α_s, and the variance at t = 1."""
    times = equal_steps(LOUD, steps)
    law = law_after(transition, ExactScore(DATA, LOUD), times, (0.0, 1.0))
    a = float(LOUD(times[0])[0] / LOUD(times[-1])[0])
    return law, law_at(LOUD, times[-1]), a, law_at(LOUD, times[0])[1]


def _prior_of_the_sde() -> tuple[Numbers, Numbers]:
    """Numbers on the mean, and on the variance."""
    (mean, var), (m, v), a, top = _from_unit_prior(Ancestral("optimal"), 5)
    wanted = v - a**2 * v**2 / top + a**2 * v**2 / top**2
    return (-(a**2) * v / top * m, mean - m), (wanted, var)


def _prior_of_the_flow() -> tuple[Numbers, Numbers]:
    (mean, var), (m, v), a, top = _from_unit_prior(ProbabilityFlow(4), 20)
    return (-a * math.sqrt(v / top) * m, mean - m), (v / top, var)


def _prior_forgotten_alike() -> Numbers:
    (sde, _), (m, v), a, top = _from_unit_prior(Ancestral("optimal"), 5)
    (flow, _), *_ = _from_unit_prior(ProbabilityFlow(4), 20)
    return 1.0, (flow - m) / (sde - m), math.sqrt(top / v) / a


CHECKS = table(
    __name__,
    mean_of_a_step=(
        exact, "E[x_{i−1} | x_i] = (x_i + β s)/√(1 − β) for any law: largest error on a mixture",
        HO, 1e-12, _mean_of_a_step),
    variance_of_a_step=(
        exact, "Cov[x_{i−1} | x_i] = β(I + β∇s)/(1 − β) for any law: largest error on a mixture",
        BAO, 1e-10, _variance_of_a_step),
    denoised_is_not_the_mean=(
        false, "“the mean of DDPM's step is x̂₀”: its first entry at (0.3, −0.8), step 60 of 100",
        "lecture notes", 1e-12, _denoised_is_not_the_mean),
    ancestral_forward=(
        exact, "ten DDPM steps of variance β on N(0, 1): W2 to its law", HO, 1e-12,
        lambda: (0.0, _chain("forward", 0.0, 1.0))),
    ancestral_posterior=(
        exact, "ten DDPM steps of variance β̃ on a point mass: W2 to its law", HO, 1e-12,
        lambda: (0.0, _chain("posterior", M, 0.0))),
    ancestral_optimal=(
        exact, "ten DDPM steps of variance β(I + β∇s)/(1 − β) on N(0.5, 0.36): W2 to its law",
        BAO, 1e-12, lambda: (0.0, _chain("optimal", M, V))),
    ancestral_forward_elsewhere=(
        false, "“DDPM's steps of variance β are exact on Gaussians”: W2 after ten, N(0.5, 0.36)",
        HO, 1e-10, lambda: (0.0, _chain("forward", M, V), _chain_by_formula(True))),
    ancestral_posterior_elsewhere=(
        false, "“DDPM's steps of variance β̃ are exact on Gaussians”: W2 after ten, N(0.5, 0.36)",
        HO, 1e-10, lambda: (0.0, _chain("posterior", M, V), _chain_by_formula(False))),
    without_noise=(
        false, "“leave out z, and DDPM's step is the deterministic sampler”: variance on N(0, 1)",
        DDIM_PAPER, 1e-12, _without_noise),
    reverse_variance=(
        exact, f"dX = (f X − g² s) dt + g dW̄ leads back: variance left, {BETA}", ANDERSON, 1e-4,
        lambda: _reversed(lambda c, beta: c)[::-1]),
    reverse_wrong_sign=(
        false, f"“the reverse drift is f X + g² s”: variance left, {BETA}", "lecture notes",
        lambda: (V, *_reversed(lambda c, beta: -c))),
    reverse_wrong_power=(
        false, f"“the reverse drift is f X − g s”: variance left, {BETA}", "lecture notes", 1e-3,
        lambda: (V, *_reversed(lambda c, beta: c / math.sqrt(beta)))),
    reverse_is_no_flow=(
        false, "“the probability flow is the reverse SDE without its noise”: variance left on N(0, 1)",
        SONG, 1e-4, _reverse_is_no_flow),
    prior_mean_of_the_sde=(
        exact, "the reverse SDE from N(0, I) misses the mean by a² S S_T⁻¹ m", DERIVED, 1e-12,
        lambda: _prior_of_the_sde()[0]),
    prior_variance_of_the_sde=(
        exact, "and ends in covariance S − a² S S_T⁻¹ S + a² S S_T⁻² S", DERIVED, 1e-12,
        lambda: _prior_of_the_sde()[1]),
    prior_mean_of_the_flow=(
        exact, "the flow from N(0, I) misses the mean by a √(S S_T⁻¹) m", DERIVED, 1e-6,
        lambda: _prior_of_the_flow()[0]),
    prior_variance_of_the_flow=(
        exact, "and ends in covariance S S_T⁻¹", DERIVED, 1e-6, lambda: _prior_of_the_flow()[1]),
    prior_forgotten_alike=(
        false, "“flow and SDE forget a wrong prior alike”: error of the mean, flow over SDE at "
        "α₁ = 0.36", DERIVED, 1e-5, _prior_forgotten_alike),
)  # fmt: skip
