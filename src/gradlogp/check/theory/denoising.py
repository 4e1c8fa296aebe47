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
from .claim import (
    DERIVED,
    LAW,
    MIXTURE,
    VINCENT,
    Numbers,
    apart,
    exact,
    false,
    grid,
    order,
    statistical,
    table,
)
from .matching import affine, bent, implicit_of_affine

EFRON = "Efron 2011"


def _denoising_minus_implicit(sigma: float, n: int, g: torch.Generator) -> Estimate:
    """J_DSM − J_ISM(p_σ) − d/(2σ²) with the same noise in both, ½‖ε‖²/σ² taken off sample by sample."""
    x = LAW.sample(n, generator=g)
    eps = torch.randn(x.shape, dtype=x.dtype, generator=g)
    loss = objectives.denoising(bent, x, sigma, generator=Injected(eps))
    loss = loss - 0.5 * sum_event(eps.square()) / sigma**2
    return mean_and_error(loss - objectives.implicit(bent, x + sigma * eps))


def _denoising_of_affine(sigma: float) -> float:
    """The expected loss, exact for an affine score: x and ε at ±2 in each of four coordinates."""
    z = 2 * torch.cat([torch.eye(4), -torch.eye(4)]).double()
    x = LAW.mean + z[:, :2] @ torch.linalg.cholesky(LAW.cov).mT
    return float(objectives.denoising(affine, x, sigma, generator=Injected(z[:, 2:])).mean())


def _floor() -> tuple[float, float]:
    """R(0.8) as d/(2σ²) − ½ E‖s_σ‖² and as mmse/(2σ⁴), by quadrature in one dimension."""
    x, dx = grid(-14, 14)
    noised = MIXTURE.noised(1.0, 0.8)
    p = noised.log_prob(x).exp() * dx
    by_score = 0.5 / 0.8**2 - 0.5 * float((p * noised.score(x).square()[:, 0]).sum())
    mmse = float((p * MIXTURE.posterior_cov(x, 1.0, 0.8)[:, 0, 0]).sum())
    return by_score, mmse / (2 * 0.8**4)


def _loss_of_the_exact_score(n: int, g: torch.Generator) -> Estimate:
    x = MIXTURE.sample(n, generator=g)
    score = MIXTURE.noised(1.0, 0.8).score
    return mean_and_error(objectives.denoising(score, x, 0.8, generator=g))


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


def _jumps(n: int, g: torch.Generator) -> Numbers:
    sigma = 0.5
    x, eps = torch.randn(2, n, 1, dtype=torch.float64, generator=g)
    loss = objectives.denoising(lambda y: -torch.sign(y), x, sigma, generator=Injected(eps))
    expected = 0.5 - math.sqrt(2 / math.pi / (1 + sigma**2))
    return expected, mean_and_error(loss - 0.5 * eps[:, 0].square() / sigma**2)


def _tweedie(moment: str, g: torch.Generator) -> Tensor:
    """The largest error of a posterior moment by Tweedie, on a mixture in the plane."""
    law = GaussianMixture(
        [0.2, 0.5, 0.3], torch.tensor([[-2.0, 0.0], [1.0, 1.0], [2.0, -1.0]]).double(),
        torch.tensor([[0.3, 1.0], [0.5, 0.2], [1.0, 1.0]]).double(),
    )  # fmt: skip
    noised = law.noised(0.8, 0.6)
    x = noised.sample(50, generator=g)
    found = getattr(tweedie(noised.score, x, 0.8, 0.6), moment)
    return apart(found, getattr(law, f"posterior_{moment}")(x, 0.8, 0.6))


def _quick_start(n: int, g: torch.Generator) -> Estimate:
    """A quick start in circulation: two modes at (±2, 0), σ = 0.5, the score of the clean law."""
    law = GaussianMixture([0.5, 0.5], torch.tensor([[-2.0, 0.0], [2.0, 0.0]]).double(), 1.0)
    x, sigma = law.sample(n, generator=g), 0.5
    eps = torch.randn(x.shape, dtype=x.dtype, generator=g)
    s, _ = jacobian_trace(law.score, x + sigma * eps)
    # ‖s + ε/σ‖² without the ½; d/σ² stands for ‖ε‖²/σ²
    return mean_and_error(sum_event(s.square() + 2 * s * eps / sigma) + 2 / sigma**2)


CHECKS = table(
    __name__,
    denoising_is_implicit=(
        statistical, "DSM − d/(2σ²) = ISM on p_σ for a model that is not optimal (σ = 0.5)",
        f"{VINCENT}; constant {DERIVED}", 0.02,
        lambda n, g: (0.0, _denoising_minus_implicit(0.5, n, g))),
    denoising_is_implicit_at_small_noise=(
        statistical, "DSM − d/(2σ²) = ISM on p_σ, also at σ = 0.05",
        f"{VINCENT}; constant {DERIVED}", 0.25,
        lambda n, g: (0.0, _denoising_minus_implicit(0.05, n, g))),
    denoising_does_not_converge=(
        false, "“the DSM loss tends to the ISM loss as σ → 0”: it diverges as d/(2σ²)",
        DERIVED, 1e-9,
        lambda: (implicit_of_affine(LAW.cov), _denoising_of_affine(1e-3),
                 implicit_of_affine(LAW.cov + 1e-6 * torch.eye(2).double()) + 1e6)),
    slope_of_denoising=(
        exact, "slope of log J_DSM in log σ as σ → 0", DERIVED, 1e-5,
        lambda: (-2.0, order(_denoising_of_affine(1e-3), _denoising_of_affine(1e-4), 10))),
    floor_is_mmse=(
        exact, "R(σ) = d/(2σ²) − ½ E‖s_σ‖² = mmse/(2σ⁴)", "Guo, Shamai & Verdú 2005 (I-MMSE)",
        1e-9, _floor),
    exact_score_loses_the_floor=(
        statistical, "DSM loss of the exact score is R(σ)", DERIVED, 0.01,
        lambda n, g: (_floor()[0], _loss_of_the_exact_score(n, g))),
    exact_score_does_not_lose_nothing=(
        false, "“the DSM loss of the perfect score is 0”: it is R(σ)", DERIVED,
        lambda n, g: (0.0, _loss_of_the_exact_score(n, g), _floor()[0])),
    learned_slope=(
        statistical, "DSM fits −1/(τ² + σ²) on N(0, τ²)", VINCENT, 0.01,
        lambda n, g: (-0.4, _slope(n, g))),
    learned_slope_of_the_wrong_sign=(
        false, "“argmin E‖s(x + z) − z/σ²‖² is the score”: it is minus the score", "lecture notes",
        lambda n, g: (0.4, _slope(n, g), -0.4)),
    jumps_denoised=(
        statistical, "DSM takes a score with jumps: J_DSM − d/(2σ²) for −sign(x) on N(0, 1)",
        DERIVED, 0.02, _jumps),
    tweedie_mean=(
        exact, "Tweedie's mean on a mixture, largest error", EFRON, 1e-10,
        lambda n, g: (0.0, _tweedie("mean", g))),
    tweedie_covariance=(
        exact, "Tweedie's covariance on a mixture, largest error", EFRON, 1e-10,
        lambda n, g: (0.0, _tweedie("cov", g))),
    quick_start=(
        statistical, "E‖s(x + σε) + ε/σ‖² of the clean score, modes at (±2, 0), σ = 0.5",
        DERIVED, 0.1, lambda n, g: (6.779, _quick_start(n, g))),
    quick_start_as_printed=(
        false, "“… prints 2.134”: it prints 6.779 on average", "lecture notes",
        lambda n, g: (2.134, _quick_start(n, g), 6.779)),
)  # fmt: skip
