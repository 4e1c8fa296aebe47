r"""Claims on denoising: its constant, its floor, its sign, and Tweedie's formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...calculus.reverse import jacobian_trace
from ...core import Estimate, Injected, mean_and_error, sum_event
from ...distributions.analytic import GaussianMixture
from ...learn import objectives
from ...noise.tweedie import tweedie
from .claim import Numbers, claim, collect, exact, false, grid, statistical
from .matching import (
    DERIVED,
    LAW,
    affine,
    bent,
    implicit_of_affine,
)

VINCENT = "Vincent 2011, doi 10.1162/NECO_a_00142"

MIXTURE = GaussianMixture([0.3, 0.7], torch.tensor([[-2.0], [1.0]]).double(), [0.3, 0.5])


def _denoising_minus_implicit(sigma: float, n: int, g: torch.Generator) -> Estimate:
    """J_DSM − J_ISM(p_σ) − d/(2σ²) with the same noise in both, ½‖ε‖²/σ² taken off sample by sample."""
    x = LAW.sample(n, generator=g)
    eps = torch.randn(x.shape, dtype=x.dtype, generator=g)
    loss = objectives.denoising(bent, x, sigma, generator=Injected(eps))
    loss = loss - 0.5 * sum_event(eps.square()) / sigma**2
    return mean_and_error(loss - objectives.implicit(bent, x + sigma * eps))


@claim(
    statistical, "DSM − d/(2σ²) = ISM on p_σ for a model that is not optimal (σ = 0.5)",
    f"{VINCENT}; constant {DERIVED}", 0.02,
)  # fmt: skip
def denoising_is_implicit(n: int, g: torch.Generator) -> Numbers:
    return 0.0, _denoising_minus_implicit(0.5, n, g)


@claim(
    statistical, "DSM − d/(2σ²) = ISM on p_σ, also at σ = 0.05",
    f"{VINCENT}; constant {DERIVED}", 0.25,
)  # fmt: skip
def denoising_is_implicit_at_small_noise(n: int, g: torch.Generator) -> Numbers:
    return 0.0, _denoising_minus_implicit(0.05, n, g)


def _denoising_of_affine(sigma: float) -> float:
    """The expected loss, exact for an affine score: x and ε at ±2 in each of four coordinates."""
    z = 2 * torch.cat([torch.eye(4), -torch.eye(4)]).double()
    x = LAW.mean + z[:, :2] @ torch.linalg.cholesky(LAW.cov).mT
    return float(objectives.denoising(affine, x, sigma, generator=Injected(z[:, 2:])).mean())


@claim(
    false, "“the DSM loss tends to the ISM loss as σ → 0”: it diverges as d/(2σ²)", DERIVED, 1e-9
)
def denoising_does_not_converge() -> Numbers:
    return (
        implicit_of_affine(LAW.cov),
        _denoising_of_affine(1e-3),
        implicit_of_affine(LAW.cov + 1e-6 * torch.eye(2).double()) + 1e6,
    )


@claim(exact, "slope of log J_DSM in log σ as σ → 0", DERIVED, 1e-5)
def slope_of_denoising() -> Numbers:
    slope = math.log(_denoising_of_affine(1e-4) / _denoising_of_affine(1e-3)) / math.log(0.1)
    return -2.0, slope


def _floor(law: GaussianMixture, sigma: float) -> tuple[float, float]:
    """R(σ) as d/(2σ²) − ½ E‖s_σ‖² and as mmse/(2σ⁴), by quadrature in one dimension."""
    x, dx = grid(-14, 14)
    noised = law.noised(1.0, sigma)
    p = noised.log_prob(x).exp() * dx
    by_score = 0.5 / sigma**2 - 0.5 * float((p * noised.score(x).square()[:, 0]).sum())
    mmse = float((p * law.posterior_cov(x, 1.0, sigma)[:, 0, 0]).sum())
    return by_score, mmse / (2 * sigma**4)


@claim(exact, "R(σ) = d/(2σ²) − ½ E‖s_σ‖² = mmse/(2σ⁴)", "Guo, Shamai & Verdú 2005 (I-MMSE)", 1e-9)
def floor_is_mmse() -> Numbers:
    return _floor(MIXTURE, 0.8)


def _loss_of_the_exact_score(n: int, g: torch.Generator) -> Estimate:
    x = MIXTURE.sample(n, generator=g)
    score = MIXTURE.noised(1.0, 0.8).score
    return mean_and_error(objectives.denoising(score, x, 0.8, generator=g))


@claim(statistical, "DSM loss of the exact score is R(σ)", DERIVED, 0.01)
def exact_score_loses_the_floor(n: int, g: torch.Generator) -> Numbers:
    return _floor(MIXTURE, 0.8)[0], _loss_of_the_exact_score(n, g)


@claim(false, "“the DSM loss of the perfect score is 0”: it is R(σ)", DERIVED)
def exact_score_does_not_lose_nothing(n: int, g: torch.Generator) -> Numbers:
    return 0.0, _loss_of_the_exact_score(n, g), _floor(MIXTURE, 0.8)[0]


def _slope(n: int, g: torch.Generator) -> Estimate:
    """The a that minimises the DSM loss of s = a x on N(0, τ²) data, τ = 1.5, σ = 0.5."""
    tau, sigma = 1.5, 0.5
    z = torch.randn(n, 2, dtype=torch.float64, generator=g)

    def loss(a: float) -> Tensor:
        noise = Injected(z[:, 1:])
        return objectives.denoising(lambda y: a * y, tau * z[:, :1], sigma, generator=noise)

    below, middle, above = loss(-1.0), loss(0.0), loss(1.0)
    slope, curve = (above - below) / 2, above + below - 2 * middle  # l'(0) and l'' of each sample
    a = -float(slope.sum() / curve.sum())
    return Estimate(a, float((slope + a * curve).square().sum().sqrt() / curve.sum()))


@claim(statistical, "DSM fits −1/(τ² + σ²) on N(0, τ²)", VINCENT, 0.01)
def learned_slope(n: int, g: torch.Generator) -> Numbers:
    return -0.4, _slope(n, g)


@claim(false, "“argmin E‖s(x + z) − z/σ²‖² is the score”: it is minus the score", "lecture notes")
def learned_slope_of_the_wrong_sign(n: int, g: torch.Generator) -> Numbers:
    return 0.4, _slope(n, g), -0.4


@claim(
    statistical, "DSM takes a score with jumps: J_DSM − d/(2σ²) for −sign(x) on N(0, 1)",
    DERIVED, 0.02,
)  # fmt: skip
def jumps_denoised(n: int, g: torch.Generator) -> Numbers:
    sigma = 0.5
    x, eps = torch.randn(2, n, 1, dtype=torch.float64, generator=g)
    loss = objectives.denoising(lambda y: -torch.sign(y), x, sigma, generator=Injected(eps))
    expected = 0.5 - math.sqrt(2 / math.pi / (1 + sigma**2))
    return expected, mean_and_error(loss - 0.5 * eps[:, 0].square() / sigma**2)


def _mixture_at(n: int, g: torch.Generator) -> tuple[GaussianMixture, GaussianMixture, Tensor]:
    law = GaussianMixture(
        [0.2, 0.5, 0.3], torch.tensor([[-2.0, 0.0], [1.0, 1.0], [2.0, -1.0]]).double(),
        torch.tensor([[0.3, 1.0], [0.5, 0.2], [1.0, 1.0]]).double(),
    )  # fmt: skip
    noised = law.noised(0.8, 0.6)
    return law, noised, noised.sample(50, generator=g)


@claim(exact, "Tweedie's mean on a mixture, largest error", "Efron 2011", 1e-10)
def tweedie_mean(n: int, g: torch.Generator) -> Numbers:
    law, noised, x = _mixture_at(n, g)
    error = tweedie(noised.score, x, 0.8, 0.6).mean - law.posterior_mean(x, 0.8, 0.6)
    return 0.0, error.abs().max()


@claim(exact, "Tweedie's covariance on a mixture, largest error", "Efron 2011", 1e-10)
def tweedie_covariance(n: int, g: torch.Generator) -> Numbers:
    law, noised, x = _mixture_at(n, g)
    error = tweedie(noised.score, x, 0.8, 0.6).cov - law.posterior_cov(x, 0.8, 0.6)
    return 0.0, error.abs().max()


def _printed(n: int, g: torch.Generator) -> tuple[float, Estimate]:
    """A quick start in circulation: two modes at (±2, 0), σ = 0.5, the score of the clean law."""
    law = GaussianMixture([0.5, 0.5], torch.tensor([[-2.0, 0.0], [2.0, 0.0]]).double(), 1.0)
    x, sigma = law.sample(n, generator=g), 0.5
    eps = torch.randn(x.shape, dtype=x.dtype, generator=g)
    s, _ = jacobian_trace(law.score, x + sigma * eps)
    # ‖s + ε/σ‖² without the ½; d/σ² stands for ‖ε‖²/σ²
    return 6.779, mean_and_error(sum_event(s.square() + 2 * s * eps / sigma) + 2 / sigma**2)


@claim(
    statistical, "E‖s(x + σε) + ε/σ‖² of the clean score, modes at (±2, 0), σ = 0.5", DERIVED, 0.1
)
def quick_start(n: int, g: torch.Generator) -> Numbers:
    expected, found = _printed(n, g)
    return expected, found


@claim(false, "“… prints 2.134”: it prints 6.779 on average", "lecture notes")
def quick_start_as_printed(n: int, g: torch.Generator) -> Numbers:
    return 2.134, _printed(n, g)[1], 6.779


CHECKS = collect(globals())
"""The claims of this file, in the order of the report."""
