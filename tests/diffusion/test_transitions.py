"""Transitions against exact laws, and annealed Langevin with any kernel, step and noise."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from support import COV, MEAN, MIXTURE, close, every_continuous, noised_law, step_law, z_score

from gradlogp import ExactScore, Gaussian, GaussianMixture, as_score, evolve, noise_levels
from gradlogp.calculus import affine_map
from gradlogp.core import Injected
from gradlogp.diffusion import Ancestral, AnnealedLangevin, ProbabilityFlow
from gradlogp.diffusion.transitions.annealed import Level
from gradlogp.diffusion.transitions.annealed_kernels import (
    ExponentialSteps,
    PreconditionedSteps,
    level_variance,
    solve_step,
)
from gradlogp.diffusion.transitions.annealed_noise import Coloured
from gradlogp.langevin import (
    BAOA,
    BAOAB,
    GHMC,
    HMC,
    MALA,
    OBABO,
    ULA,
    LeimkuhlerMatthews,
    PreconditionedULA,
    Preconditioner,
    Splitting,
)
from gradlogp.langevin.kernels.overdamped import ExponentialEuler
from gradlogp.langevin.kernels.steps import started
from gradlogp.noise.ladder import variance_ratio
from gradlogp.noise.schedules import DDPM, VE, VP, Cosine, Levels, Rectified, SubVP

I2 = torch.eye(2, dtype=torch.float64)
DATA = Gaussian(MEAN, COV)
BETAS = torch.linspace(0.02, 0.4, 10, dtype=torch.float64)
LADDER = Levels([4.0, 1.5, 0.5, 0.1])


# ---------------------------------------------------------------------------- ancestral


@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_ancestral_step_is_that_of_ddpm(variance):
    """q(x_s | x_t, x̂_0) of DDPM in β and ᾱ (Ho et al., 2020), with the x̂_0 of the score of N(m, S).

    The map is (I − β (ᾱ S + (1 − ᾱ) I)⁻¹)/√α, the variance β (1 − ᾱ_s)/(1 − ᾱ_t), or β.
    """
    schedule, T = DDPM(BETAS), len(BETAS)
    abar = (1 - BETAS).cumprod(0)
    for i in range(1, T):  # from step i + 1 to step i, counted from 1
        beta, alpha = BETAS[i], 1 - BETAS[i]
        t, s = torch.tensor((i + 1) / T), torch.tensor(i / T)
        step = step_law(Ancestral(variance), DATA, schedule, t, s, 1)
        P_t = torch.linalg.inv(abar[i] * COV + (1 - abar[i]) * I2)
        close(step.M, (I2 - beta * P_t) / alpha.sqrt(), 1e-12)
        close(step.b, beta / alpha.sqrt() * P_t @ (abar[i].sqrt() * MEAN), 1e-12)
        tilde = beta * (1 - abar[i - 1]) / (1 - abar[i])
        close(step.Q, (beta if variance == "forward" else tilde) * I2, 1e-12)


def test_ancestral_step_on_a_ladder_is_that_of_smld(generator):
    """VE: x + (σ_t² − σ_s²) s(x) + sqrt(σ_s² (σ_t² − σ_s²)/σ_t²) z (Song et al., 2021)."""
    x, z = torch.randn(2, 6, 2, generator=generator)
    score = ExactScore(MIXTURE, LADDER)
    for (t, s), (b_t, b_s) in zip(pairwise(LADDER.times), pairwise(LADDER.sigmas), strict=True):
        out = Ancestral()(x, t, s, score, generator=Injected(z))
        gap = b_t**2 - b_s**2
        expected = x + gap * score(x, t) + math.sqrt(b_s**2 * gap / b_t**2) * z
        close(out, expected, 1e-12)


@every_continuous
def test_ancestral_mean_is_exact_for_any_law(schedule, generator):
    """E[x_s | x_t] of a mixture, from the posterior of the law at s given a further noising."""
    x = 2 * torch.randn(8, 2, generator=generator)
    t, s = torch.tensor(0.6), torch.tensor(0.35)
    (a_t, b_t), (a_s, b_s) = schedule(t), schedule(s)
    a = a_t / a_s
    expected = MIXTURE.noised(a_s, b_s).posterior_mean(x, a, (b_t**2 - a**2 * b_s**2).sqrt())
    mean = Ancestral()(
        x, t, s, ExactScore(MIXTURE, schedule), generator=Injected(torch.zeros(8, 2))
    )
    close(mean, expected, 1e-11)


# ---------------------------------------------------------------------------- probability flow


def test_order_two_is_edm_heun_on_ve(generator):
    """Karras et al. 2022, Algorithm 1, with D the denoiser."""
    schedule = VE(0.02, 10.0)
    x = 3 * torch.randn(6, 2, generator=generator)
    exact = ExactScore(MIXTURE, schedule)
    t, s = torch.tensor(0.7), torch.tensor(0.5)
    b_t, b_s = schedule(t)[1], schedule(s)[1]
    d = (x - exact.denoise(x, t)) / b_t
    euler = x + (b_s - b_t) * d
    d_next = (euler - exact.denoise(euler, s)) / b_s
    expected = x + (b_s - b_t) * (d + d_next) / 2
    close(ProbabilityFlow()(x, t, s, exact), expected, 1e-11)


@every_continuous
@pytest.mark.parametrize("t", [0.9, 0.3, 1e-3])
@pytest.mark.parametrize(
    "transition", [Ancestral(), Ancestral("forward"), ProbabilityFlow(1), ProbabilityFlow(2)]
)
def test_the_noise_free_end_is_the_tweedie_mean(schedule, t, transition, generator):
    t = torch.tensor(t)
    a, b = schedule(t)
    x = MIXTURE.noised(a, b).sample(6, generator=generator)
    out = transition(x, t, None, ExactScore(MIXTURE, schedule), generator=Injected())
    close(out, MIXTURE.posterior_mean(x, a, b), 1e-10)


@pytest.mark.parametrize("transition", [Ancestral(), ProbabilityFlow(1), ProbabilityFlow(2)])
@pytest.mark.parametrize("schedule", [VP(), SubVP(), Cosine(), Rectified()], ids=str)
def test_time_zero_is_finite(transition, schedule, generator):
    """At t = 0 there is no noise left, and the last step has nothing to do."""
    score = ExactScore(DATA, schedule)
    x, zero = torch.randn(4, 2, generator=generator), torch.zeros(())
    close(transition(x, zero, None, score, generator=generator), x, 1e-12)
    there = transition(x, torch.tensor(0.1), zero, score, generator=generator)
    out = evolve(transition, score, x, torch.tensor([0.1, 0.0]), generator=generator)
    assert torch.isfinite(there).all()
    assert torch.isfinite(out).all()


# ---------------------------------------------------------------------------- annealed Langevin


def annealed_law(sigmas, n_steps, eta, m, C, denoise=True, mean=MEAN, cov=COV):
    """N(m, C) after Langevin steps of h = η σ² at every level, in the eigenbasis of S.

    With the precision l = 1/(w + σ²) one step maps m → (1 − h l) m and C → (1 − h l)² C + 2h; n of
    them lead towards 1/(l (1 − h l/2)). m is the error of the mean; denoising is w/(w + σ²).
    """
    w, U = torch.linalg.eigh(cov)
    m, C = U.mT @ (m - mean), U.mT @ C @ U
    for sigma in sigmas:
        l = 1 / (w + sigma**2)
        h = eta * sigma**2
        A = (1 - h * l) ** n_steps
        stationary = torch.diag(1 / (l * (1 - h * l / 2)))
        m, C = A * m, stationary + (C - stationary) * torch.outer(A, A)
    if denoise:
        D = w / (w + sigma**2)
        m, C = D * m, C * torch.outer(D, D)
    return mean + U @ m, U @ C @ U.mT


@pytest.mark.parametrize("denoise", [True, False])
@pytest.mark.parametrize(("n_steps", "eta"), [(1, 0.2), (3, 0.1), (2, 1.7)])
def test_annealed_langevin_final_law(n_steps, eta, denoise):
    step = affine_map(
        lambda x, g: evolve(
            AnnealedLangevin(n_steps, eta),
            ExactScore(DATA, LADDER),
            x,
            LADDER.times,
            generator=g,
            denoise=denoise,
        ),
        2,
        n_steps * len(LADDER.sigmas),
    )
    m0, C0 = torch.tensor([0.5, -0.4]), 16 * I2
    m, C = step.law(m0, C0)
    expected = annealed_law(LADDER.sigmas, n_steps, eta, m0, C0, denoise)
    close(m, expected[0], 1e-10)
    close(C, expected[1], 1e-10)


@every_continuous
def test_annealed_langevin_follows_the_scale_of_the_schedule(schedule):
    """From level t to s the state is rescaled by α_s/α_t, after the steps at level t."""
    t, s, eta = torch.tensor(0.5), torch.tensor(0.3), 0.15
    step = step_law(AnnealedLangevin(1, eta), DATA, schedule, t, s, 1)
    (a_t, b_t), (a_s, _) = schedule(t), schedule(s)
    m_t, S_t = noised_law(schedule, t)
    h, r = eta * b_t**2, a_s / a_t
    P = torch.linalg.inv(S_t)
    close(step.M, r * (I2 - h * P), 1e-12)
    close(step.b, r * h * P @ m_t, 1e-12)
    close(step.Q, r**2 * 2 * h * I2, 1e-12)


def test_annealed_langevin_denoises_at_its_own_level(generator):
    x = torch.randn(5, 2, generator=generator)
    t = LADDER.times[2]
    score = ExactScore(MIXTURE, LADDER)
    z = torch.randn(2, 5, 2, generator=generator)
    sigma = LADDER.sigmas[2]
    h = 0.1 * sigma**2
    y = x
    for k in range(2):
        y = y + h * score(y, t) + math.sqrt(2 * h) * z[k]
    out = AnnealedLangevin(2)(x, t, None, score, generator=Injected(*z))
    close(out, MIXTURE.posterior_mean(y, 1.0, sigma), 1e-11)
    close(out, y + sigma**2 * score(y, t), 1e-11)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "transition", [Ancestral(), ProbabilityFlow(1), ProbabilityFlow(2), AnnealedLangevin()]
)
def test_a_score_without_data_at_full_noise_is_refused(transition, as_user):
    """α = 0: a score says nothing of x_0, and only a denoiser can go on."""
    x, one = torch.ones(3, 2), torch.ones(())
    blind = as_score(lambda x, t: -x, "score", Rectified())
    with pytest.raises(ValueError, match="alpha = 0"):
        transition(x, one, None, blind)
    out = transition(x, one, None, ExactScore(DATA, Rectified()))
    close(out, MEAN.expand(3, 2), 1e-12)


TWO_PARTS = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-1.5, 0.0], [1.0, 0.5]], dtype=torch.float64), 0.2
)
T = torch.tensor(0.5, dtype=torch.float64)
DENSE = torch.tensor([[0.9, -0.3], [-0.3, 0.4]], dtype=torch.float64)


def noisy(score, schedule=None):
    """A plain function of (z, t) as a noisy score."""
    return as_score(score, "score", schedule or LADDER)


def level_law(schedule, t, mean=MEAN, cov=COV):
    return Gaussian(*noised_law(schedule, t, mean, cov))


def same_step(one, two, tolerance=1e-10):
    for a, b in zip(one, two, strict=True):
        close(a, b, tolerance)


# ---------------------------------------------------------------------------- any kernel

# what is given, and the same in the units of x at a level of noise σ
PAIRS = [
    ("ULA", ULA, lambda h, b: ULA(h * b**2), 1),
    ("LM", LeimkuhlerMatthews, lambda h, b: LeimkuhlerMatthews(h * b**2), 1),
    ("warm", partial(ULA, temperature=2.0), lambda h, b: ULA(h * b**2, 2.0), 1),
    (
        "PULA",
        partial(PreconditionedULA, preconditioner=DENSE),
        lambda h, b: PreconditionedULA(h, b**2 * DENSE),
        1,
    ),
    ("BAOAB", BAOAB, lambda h, b: BAOAB(h * b, friction=1 / b), 1),
    ("OBABO", partial(OBABO, friction=2.0), lambda h, b: OBABO(h * b, friction=2 / b), 2),
    ("BAOA", BAOA, lambda h, b: BAOA(h * b, friction=1 / b), 1),
    (
        "ABOBA",
        partial(Splitting, scheme="ABOBA", mass=2.0),
        lambda h, b: Splitting(h * b, "ABOBA", friction=1 / b, mass=2.0),
        1,
    ),
    (
        "exponential",
        partial(ExponentialEuler, covariance=DENSE),
        lambda h, b: ExponentialEuler(h * b**2, b**2 * DENSE),
        1,
    ),
]
every_pair = pytest.mark.parametrize(
    ("make", "in_x", "draws"), [p[1:] for p in PAIRS], ids=[p[0] for p in PAIRS]
)


@every_pair
@pytest.mark.parametrize("schedule", [VE(0.05, 8.0), VP()], ids=["VE", "VP"])
def test_a_level_is_the_kernel_at_a_step_of_its_own(make, in_x, draws, schedule):
    """η σ² where a step is one of position, η σ where it is a time, and friction γ/σ."""
    n, eta = 3, 0.4
    law, sigma = level_law(schedule, T), float(schedule(T)[1])
    kernel = in_x(eta, sigma)

    def directly(x, noise):
        state = started(kernel, x, law, noise)
        for _ in range(n):
            state, _ = kernel.step(state, law, generator=noise)
        return state.x

    draws = n * draws + hasattr(kernel, "refresh")
    found = step_law(AnnealedLangevin(n, eta, make), DATA, schedule, T, T, draws)
    same_step(found, affine_map(directly, 2, draws))
    assert float((found.M - I2).abs().max()) > 0.01  # it has moved


@pytest.mark.parametrize(("make", "eta"), [(LeimkuhlerMatthews, 0.9), (BAOAB, 1.0), (BAOA, 1.0)])
def test_a_level_ends_with_its_exact_law_where_the_kernel_does(make, eta):
    n, t = 120, LADDER.times[1]
    law = level_law(LADDER, t)
    draws = n + (make is not LeimkuhlerMatthews)
    step = step_law(AnnealedLangevin(n, eta, make), DATA, LADDER, t, t, draws)
    m, C = step.law(torch.tensor([3.0, -2.0]), 20 * I2)
    close(m, law.mean, 1e-8)
    close(C, law.cov, 1e-8)
    biased = step_law(AnnealedLangevin(n, eta), DATA, LADDER, t, t, n).law(m, C)[1]
    assert float((biased / law.cov - 1).abs().max()) > 0.05


def test_one_leapfrog_step_is_mala_at_half_the_square(generator):
    """A time η compares with the step η²/2, at every level."""
    eta, score = 0.8, ExactScore(TWO_PARTS, VP())
    x = torch.randn(50, 2, generator=generator)
    ends = [
        evolve(
            AnnealedLangevin(4, step, make), score, x, torch.tensor([0.9, 0.5, 0.1]),
            generator=torch.Generator().manual_seed(5),
        )
        for step, make in ((eta, partial(HMC, n_leapfrog=1)), (eta**2 / 2, MALA))
    ]  # fmt: skip
    close(ends[0], ends[1], 1e-11)


@pytest.mark.parametrize(
    ("make", "eta"),
    [(MALA, 0.7), (partial(HMC, n_leapfrog=3), 0.6), (GHMC, 0.8)],
    ids=["MALA", "HMC", "GHMC"],
)
def test_adjusted_kernels_keep_the_law_of_a_level(make, eta, generator):
    """Exact draws stay exact draws; those that ULA has moved do not."""
    n, (a, b) = 40_000, LADDER(T)
    law = TWO_PARTS.noised(a, b)
    x = law.sample(n, generator=generator)
    score = ExactScore(TWO_PARTS, LADDER)
    centre, cov = law.mean, law.cov

    def off(kernel, step):
        transition = AnnealedLangevin(12, step, kernel)
        y = transition(x, T, T, score, generator=generator)
        assert not torch.equal(y, x)
        first = [abs(z_score(y[:, i], centre[i])) for i in range(2)]
        d = y - centre
        return max(
            *first, *(abs(z_score(d[:, i] * d[:, j], cov[i, j])) for i in (0, 1) for j in (0, 1))
        )

    assert off(make, eta) < 4.5
    assert off(ULA, 0.7) > 10


def test_a_level_begins_with_momenta_of_its_law(generator):
    """Two steps from exact draws. From rest BAOAB ends with .74 of the variance, GHMC 7 errors off."""
    exact = level_law(LADDER, T)
    step = step_law(AnnealedLangevin(2, 0.8, BAOAB), DATA, LADDER, T, T, 3)
    close(step.law(exact.mean, exact.cov)[1] / exact.cov, torch.ones(2, 2), 0.04)
    n, sigma = 40_000, float(LADDER(T)[1])
    x, score = exact.sample(n, generator=generator), ExactScore(DATA, LADDER)
    y = AnnealedLangevin(2, 0.8, GHMC)(x, T, T, score, generator=generator)
    at_rest = (kernel := GHMC(0.8)).init(x / sigma, level := Level(score, T, sigma))
    for _ in range(2):
        at_rest, _ = kernel.step(at_rest, level, generator=generator)
    for end, kept in ((y, True), (sigma * at_rest.x, False)):
        d = end - exact.mean
        z = [z_score(d[:, i].square(), exact.cov[i, i]) for i in (0, 1)]
        assert max(map(abs, z)) < 4.5 if kept else min(z) < -6


def test_a_metropolis_correction_needs_the_log_density(as_user):
    score = noisy(lambda x, t: -x)
    with pytest.raises(ValueError, match=r"no log-density.*ULA"):
        AnnealedLangevin(2, 0.1, MALA)(torch.zeros(2, 2), T, T, score)
    with pytest.raises(ValueError, match=r"no log-density.*ULA"):
        Coloured(2.0, AnnealedLangevin(2, 0.1, MALA))(torch.zeros(2, 2), T, T, score)


def test_a_chain_that_became_nan_or_infinite_is_counted():
    score = noisy(lambda x, t: torch.where(x.abs() > 1, torch.nan, -x))
    x, z = torch.tensor([[0.0], [2.0], [3.0]]), torch.zeros(2, 3, 1)
    for make in (ULA, BAOAB, ExponentialSteps(1.0)):
        transition = AnnealedLangevin(2, 0.1, make)
        with pytest.raises(FloatingPointError, match="2 of 3 chains"):
            transition(x, T, T, score, generator=Injected(*z))


def test_without_noise_there_are_no_steps(generator):
    """VP has σ = 0 at t = 0."""
    x = torch.randn(4, 2, generator=generator)
    t = torch.zeros(())
    for transition in (AnnealedLangevin(), AnnealedLangevin(3, 0.5, BAOAB)):
        out = transition(x, t, t, noisy(lambda x, t: -x, VP()), generator=generator)
        assert torch.equal(out, x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AnnealedLangevin(2, -1.0, ExponentialSteps(1.0)), "relative_step"),
        (lambda: ExponentialSteps(-1.0), "covariance"),
        (lambda: ExponentialSteps(torch.tensor([1.0, -0.1])), "covariance"),
        (lambda: PreconditionedSteps(torch.diag(torch.tensor([1.0, -0.5]))), "covariance"),
        (lambda: PreconditionedSteps(torch.tensor([[1.0, 0.3], [0.0, 1.0]])), "symmetric"),
        (lambda: Coloured(0.0), "positive and finite"),
        (
            lambda: AnnealedLangevin(kernel=PreconditionedSteps(torch.ones(3)))(
                torch.zeros(2, 2), T, None, ExactScore(DATA, LADDER)
            ),
            r"shape \(3,\)",
        ),
        (
            lambda: Coloured(torch.ones(3))(torch.zeros(2, 2), T, None, ExactScore(DATA, LADDER)),
            r"shape \(3,\)",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(build, message, as_user):
    with pytest.raises(ValueError, match=message):
        build()


# ---------------------------------------------------------------------------- solved steps


def powers(ratio=1.5):
    return Levels([ratio**-i for i in range(4)])


@pytest.mark.parametrize(("eta", "n", "gamma"), [(0.1, 5, 1.2), (0.7, 1, 2.0), (1.6, 3, 1.5)])
def test_the_variance_of_a_level_is_that_of_technique_4(eta, n, gamma):
    close(level_variance(ULA, eta, n, gamma), variance_ratio(eta, n, gamma), 1e-12)


@pytest.mark.parametrize("eta", [0.3, 4.0])
def test_the_variance_of_exponential_steps(eta):
    """An Ornstein-Uhlenbeck process: s_T² = 1 + e^{−2ηT} (γ² − 1)."""
    expected = 1 + math.exp(-2 * eta * 3) * (1.7**2 - 1)
    close(level_variance(ExponentialSteps(0.0), eta, 3, 1.7), expected, 1e-12)


@pytest.mark.parametrize(
    "make", [LeimkuhlerMatthews, BAOAB, partial(OBABO, friction=2.0), ExponentialSteps(0.0)],
    ids=["LM", "BAOAB", "OBABO", "exponential"],
)  # fmt: skip
def test_a_solved_step_is_the_best_there_is(make):
    eta = AnnealedLangevin.solved(5, make)._step_size(powers())
    off = lambda eta: abs(level_variance(make, eta, 5, 1.5) - 1)
    best = min(off(eta) for eta in np.linspace(0.02, 1, 25))
    assert off(eta) < best + 1e-6


def test_the_step_of_noise_levels_is_kept(generator):
    """The dynamics solved for a ladder moves as with the step that `noise_levels` returns."""
    found = noise_levels(torch.randn(300, 2, generator=generator), tell=None)
    ladder = Levels(found.sigmas)
    x, z = torch.randn(6, 2, generator=generator), torch.randn(5, 6, 2, generator=generator)
    t, s = ladder.times[1], ladder.times[2]
    score = ExactScore(DATA, ladder)
    stated = AnnealedLangevin(found.n_steps, found.relative_step)
    solved = AnnealedLangevin.solved(found.n_steps)
    expected = stated(x, t, s, score, generator=Injected(*z))
    close(solved(x, t, s, score, generator=Injected(*z)), expected, 1e-9)
    other = AnnealedLangevin(found.n_steps)(x, t, s, score, generator=Injected(*z))
    assert float((other - expected).abs().max()) > 1e-3
    ratio = found.sigmas[0] / found.sigmas[1]
    again = level_variance(ULA, solve_step(found.n_steps, ratio, ULA), found.n_steps, ratio)
    assert abs(again - 1) <= abs(level_variance(ULA, found.relative_step, 5, ratio) - 1) + 1e-6


def test_steps_that_cannot_be_solved_are_refused(as_user):
    x, t = torch.zeros(2, 2), torch.tensor(0.5)
    with pytest.raises(ValueError, match="MALA may reject"):
        AnnealedLangevin.solved(5, MALA)(x, t, None, ExactScore(DATA, powers()))
    with pytest.raises(ValueError, match="continuous"):
        AnnealedLangevin.solved()(x, t, None, ExactScore(DATA, VP()))


# ---------------------------------------------------------------------------- exponential steps


@pytest.mark.parametrize("eta", [0.01, 0.7, 2.0, 50.0])
@pytest.mark.parametrize("schedule", [LADDER, VP()], ids=["VE", "VP"])
def test_exponential_steps_are_exact_on_a_gaussian(eta, schedule):
    """Of any size: the law of a level is kept, and another is drawn to it as by an OU process."""
    law, sigma = level_law(schedule, T), float(schedule(T)[1])
    step = step_law(AnnealedLangevin(2, eta, ExponentialSteps(COV)), DATA, schedule, T, T, 2)
    m, C = step.law(law.mean, law.cov)
    close(m, law.mean, 1e-10)
    close(C, law.cov, 1e-10)
    E = torch.as_tensor(expm(-2 * eta * sigma**2 * np.linalg.inv(law.cov.numpy())))
    close(step.M, E, 1e-10)
    close(step.Q, law.cov - E @ law.cov @ E.mT, 1e-10)


@pytest.mark.parametrize("V", [0.3, torch.tensor([0.3, 0.8])], ids=["number", "diagonal"])
def test_exponential_steps_of_a_number_and_of_a_diagonal(V):
    full = V * torch.eye(2) if isinstance(V, float) else torch.diag(V)
    one = step_law(AnnealedLangevin(2, 0.8, ExponentialSteps(V)), DATA, VP(), T, T, 2)
    two = step_law(AnnealedLangevin(2, 0.8, ExponentialSteps(full)), DATA, VP(), T, T, 2)
    same_step(one, two)
    named = ExponentialSteps(Preconditioner(full))
    same_step(two, step_law(AnnealedLangevin(2, 0.8, named), DATA, VP(), T, T, 2))


def test_a_large_exponential_step_about_a_point_is_tweedie_and_fresh_noise(generator):
    x, z = torch.randn(6, 2, generator=generator), torch.randn(1, 6, 2, generator=generator)
    a, b = VP()(T)
    transition = AnnealedLangevin(1, 60.0, ExponentialSteps(0.0))
    out = transition(x, T, T, ExactScore(TWO_PARTS, VP()), generator=Injected(*z))
    close(out, a * TWO_PARTS.posterior_mean(x, a, b) + b * z[0], 1e-12)


def test_singular_data_are_a_covariance_too():
    flat = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    law = Gaussian(MEAN, flat + 1e-14 * I2)
    step = step_law(AnnealedLangevin(3, 3.0, ExponentialSteps(flat)), law, LADDER, T, T, 3)
    expected = level_law(LADDER, T, MEAN, flat)
    close(step.law(expected.mean, expected.cov)[1], expected.cov, 1e-9)


# ---------------------------------------------------------------------------- preconditioned


@pytest.mark.parametrize("eta", [0.1, 0.9, 1.7])
@pytest.mark.parametrize("schedule", [LADDER, VP()], ids=["VE", "VP"])
def test_preconditioned_steps_contract_alike_in_all_directions(eta, schedule):
    """A = (1 − η)ⁿ I, and the law tends to covariance C_t/(1 − η/2) (2.M, 3.6)."""
    n = 3
    law = level_law(schedule, T)
    step = step_law(AnnealedLangevin(n, eta, PreconditionedSteps(COV)), DATA, schedule, T, T, n)
    close(step.M, (1 - eta) ** n * I2, 1e-10)
    stays = law.cov / (1 - eta / 2)
    close(step.law(law.mean, stays)[0], law.mean, 1e-10)
    close(step.law(law.mean, stays)[1], stays, 1e-10)
    plain = step_law(AnnealedLangevin(n, eta), DATA, schedule, T, T, n)
    assert float((plain.M - (1 - eta) ** n * I2).abs().max()) > 0.005


def test_a_preconditioner_for_another_law():
    """V ≠ S: precision Λ − (η/2) Λ C_t Λ in the end."""
    n, eta, V = 200, 0.5, DENSE / 10
    law = level_law(LADDER, T)
    step = step_law(AnnealedLangevin(n, eta, PreconditionedSteps(V)), DATA, LADDER, T, T, n)
    P = torch.linalg.inv(law.cov)
    C_t = V + float(LADDER(T)[1]) ** 2 * I2
    stays = torch.linalg.inv(P - eta / 2 * P @ C_t @ P)
    close(step.law(law.mean, stays)[1], stays, 1e-9)


# ---------------------------------------------------------------------------- coloured noise


def test_coloured_steps_are_preconditioned_ones():
    n, eta = 3, 0.3
    sigma = float(LADDER(T)[1])
    P = torch.linalg.inv(COV + sigma**2 * DENSE)
    score = noisy(lambda x, t: (MEAN - x) @ P)
    transition = Coloured(DENSE, AnnealedLangevin(n, eta))
    found = affine_map(lambda x, g: transition(x, T, T, score, generator=g), 2, n)
    A, h = I2 - eta * sigma**2 * DENSE @ P, eta * sigma**2
    C = torch.zeros(2, 2)
    for _ in range(n):
        C = A @ C @ A.mT + 2 * h * DENSE
    close(found.M, torch.linalg.matrix_power(A, n), 1e-10)
    close(found.Q, C, 1e-10)


@pytest.mark.parametrize("inner", [Ancestral(), ProbabilityFlow(), AnnealedLangevin(1)])
def test_coloured_noise_is_denoised_by_its_own_tweedie_formula(inner, generator):
    x = torch.randn(4, 2, generator=generator)
    sigma = float(LADDER(T)[1])
    S = COV + sigma**2 * DENSE
    score = noisy(lambda x, t: (MEAN - x) @ torch.linalg.inv(S))
    out = Coloured(DENSE, inner)(x, T, None, score, generator=Injected(torch.zeros(4, 2)))
    if isinstance(inner, AnnealedLangevin):
        x = x + 0.1 * sigma**2 * score(x, T) @ DENSE
    close(out, MEAN + (x - MEAN) @ torch.linalg.inv(S) @ COV, 1e-10)
