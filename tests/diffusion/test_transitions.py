"""Transitions against exact laws: moments are carried through the code's own steps."""

import math
from itertools import pairwise

import pytest
import torch
from support import COV, MEAN, MIXTURE, close, every_continuous, noised_law, step_law

from gradlogp import ExactScore, Gaussian, as_score, evolve
from gradlogp.calculus import affine_map
from gradlogp.core import Injected
from gradlogp.diffusion import Ancestral, AnnealedLangevin, ProbabilityFlow
from gradlogp.noise.schedules import DDPM, VE, VP, Cosine, Levels, Rectified, SubVP

I2 = torch.eye(2, dtype=torch.float64)
DATA = Gaussian(MEAN, COV)
BETAS = torch.linspace(0.02, 0.4, 10, dtype=torch.float64)
LADDER = Levels([4.0, 1.5, 0.5, 0.1])


# ---------------------------------------------------------------------------- ancestral


@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_ancestral_step_is_that_of_ddpm(variance):
    """Oracles 3.8 and 2.P, written in β and ᾱ."""
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
    """Oracles 3.7 in the eigenbasis of S; m is the error of the mean."""
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
