r"""Claims on how much data an estimate of the score needs, in closed form and by simulation."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from ...core import Estimate, mean_and_error
from .claim import Numbers, claim, collect, exact, false, grid, statistical

KOEHLER = "Koehler, Heckett & Risteski 2023, arXiv 2210.00726"
DERIVED = "derived, docs/theory.md"


def _gaussian_fits(n_fits: int, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return sample means and biased variances of fits to n draws of N(0, 1), float64."""
    x = torch.randn(n_fits, n, dtype=torch.float64, generator=g)
    return x.mean(1), x.var(1, correction=0)


@claim(
    statistical, "variance of the ISM precision of N(0, 1) from 20 points, 2n²/((n−3)²(n−5))",
    DERIVED, 0.02,
)  # fmt: skip
def precision_variance(n: int, g: torch.Generator) -> Numbers:
    """λ̂ = 1/S_b of 20 draws: mean n/(n−3), variance 2n²/((n−3)²(n−5))."""
    m = 20
    precision = 1 / _gaussian_fits(n, m, g)[1]
    squares = (precision - m / (m - 3)).square()
    return 2 * m**2 / ((m - 3) ** 2 * (m - 5)), mean_and_error(squares)


@claim(statistical, "E‖ŝ − s‖² of a Gaussian fitted to 20 points in 1-D", DERIVED, 0.02)
def score_error(n: int, g: torch.Generator) -> Numbers:
    """E‖ŝ − s‖² in one dimension, exact for n = 20; n times it tends to (d + 2) tr P = 3."""
    m = 20
    mean, var = _gaussian_fits(n, m, g)
    # over x ~ N(0, 1): E[(−(x − m)/v + x)²] = (1 − 1/v)² + (m/v)²
    error = (1 - 1 / var).square() + (mean / var).square()
    nu = m - 1
    k2 = 1 / ((nu - 2) * (nu - 4))  # (ν−1)/((ν−d)(ν−d−1)(ν−d−3)) at d = 1
    expected = m**2 * k2 + m * k2 - 2 * m / (nu - 2) + 1
    return expected, mean_and_error(error)


@claim(exact, "n E‖ŝ − s‖² → (d + 2) tr P, P = I in 3-D, n = 1e7", DERIVED, 1e-4)
def score_error_limit() -> Numbers:
    d, m = 3, 10**7
    nu = m - 1
    k2 = (nu - 1) / ((nu - d) * (nu - d - 1) * (nu - d - 3))
    value = m * d * (m**2 * k2 + m * k2 - 2 * m / (nu - d - 1) + 1)
    return 15.0, value


def _slopes(sigma: float, draws: int, n: int, g: torch.Generator) -> Estimate:
    """Return n Var of the DSM slope from n points of N(0, 1) with `draws` noises each, resampled."""
    m, n_fits = 400, max(200, n // 100)
    x = torch.randn(n_fits, m, 1, dtype=torch.float64, generator=g)
    eps = torch.randn(n_fits, m, draws, dtype=torch.float64, generator=g)
    noised = x + sigma * eps
    slope = -(noised * eps).sum((1, 2)) / sigma / noised.square().sum((1, 2))
    return mean_and_error(m * (slope + 1 / (1 + sigma**2)).square())


def _slope_law(sigma: float, draws: int) -> float:
    v = 1 + sigma**2
    one, all_noise = 1 / (sigma**2 * v**2), 2 / v**4
    return all_noise + (one - all_noise) / draws


@claim(
    statistical, "n Var of the DSM slope, one draw a point, τ = 1, σ = 0.5: τ²/(σ²v²)",
    DERIVED, 0.2,
)  # fmt: skip
def single_draw(n: int, g: torch.Generator) -> Numbers:
    return _slope_law(0.5, 1), _slopes(0.5, 1, n, g)


@claim(statistical, "… with four draws a point: V∞ + (V₁ − V∞)/4", DERIVED, 0.1)
def several_draws(n: int, g: torch.Generator) -> Numbers:
    return _slope_law(0.5, 4), _slopes(0.5, 4, n, g)


@claim(exact, "least ratio V₁/V∞ = v²/(2σ²τ²), at σ = τ", DERIVED, 1e-6)
def single_draw_ratio() -> Numbers:
    ratio = min(_slope_law(s / 100, 1) / (2 / (1 + (s / 100) ** 2) ** 4) for s in range(20, 300))
    return 2.0, ratio


@claim(
    exact, "efficiency of ISM for the location of a logistic law (3 against 30/7)", DERIVED, 1e-6
)
def logistic() -> Numbers:
    """Location of a logistic law: n Var of ISM is E[(s'' + s s')²]/E[s'²]²."""
    x, dx = grid(-40, 40, 20_001)
    x = x[:, 0]
    p = 1 / (4 * torch.cosh(x / 2).square()) * dx
    s = -torch.tanh(x / 2)
    s1, s2 = (
        -0.5 / torch.cosh(x / 2).square(),
        0.5 * torch.tanh(x / 2) / torch.cosh(x / 2).square(),
    )
    ism = float((p * (s2 + s * s1).square()).sum() / (p * s1.square()).sum() ** 2)
    mle = 1 / float((p * s.square()).sum())
    return 0.7, mle / ism


@cache
def efficiency(a: float, sigma: float = 0.0) -> float:
    r"""Efficiency of (denoising) score matching for the weight of ½N(−a, 1) + ½N(a, 1).

    The Fisher information of the weight, times the asymptotic variance of the estimate, inverted:
    Γ = E[(∂_π s)²], ψ = ∂_π s' + s ∂_π s, n Var = Var(ψ)/Γ². With noise ψ is averaged over it, that
    of a data point x being E[ψ_σ(x + σε)], with all of the noise.

    Arguments:
        a: Half the distance of the modes, in their standard deviation.
        sigma: The noise of the denoising objective; 0 for implicit score matching.
    """
    reach = 14 + 8 * sigma
    x, dx = grid(-a - reach, a + reach, 6001)
    x = x[:, 0]
    v = 1 + sigma**2
    log_ratio = 2 * a * x / v  # log of the mode at a over the one at −a
    r = torch.sigmoid(log_ratio)
    p = 0.5 * sum(torch.exp(-0.5 * (x - m) ** 2 / v) for m in (-a, a)) / math.sqrt(2 * math.pi * v)
    # s = −x/v + (a/v)(2r − 1), r = π e^L/(π e^L + 1 − π): ∂_π r = r(1 − r)/(π(1 − π)) = 4 r(1 − r)
    s = -x / v + a / v * (2 * r - 1)
    q = r * (1 - r)
    ds = 8 * a / v * q
    ds1 = 8 * a / v * q * (1 - 2 * r) * 2 * a / v
    gamma = float((p * ds.square()).sum()) * dx
    psi = ds1 + s * ds
    if sigma == 0:
        clean = p
    else:
        clean = 0.5 * sum(torch.exp(-0.5 * (x - m) ** 2) for m in (-a, a)) / math.sqrt(2 * math.pi)
        noise = torch.exp(-0.5 * ((x[:, None] - x) / sigma) ** 2) / (
            sigma * math.sqrt(2 * math.pi)
        )
        psi = noise @ psi * dx
    mean = float((clean * psi).sum()) * dx
    variance = float((clean * (psi - mean).square()).sum()) * dx / gamma**2
    difference = torch.tanh(a * x)  # (φ(x − a) − φ(x + a)) / 2p, the score in π is 2 of it
    density = 0.5 * sum(torch.exp(-0.5 * (x - m) ** 2) for m in (-a, a)) / math.sqrt(2 * math.pi)
    fisher = 4 * float((density * difference.square()).sum()) * dx
    return 1 / (fisher * variance)


@claim(exact, "efficiency of ISM for the weight of modes at ±1", DERIVED, 1e-4)
def weight_at_1() -> Numbers:
    return 0.6013, efficiency(1.0)


@claim(exact, "efficiency of ISM for the weight of modes at ±2", DERIVED, 1e-4)
def weight_at_2() -> Numbers:
    return 0.1061, efficiency(2.0)


@claim(exact, "efficiency of ISM for the weight of modes at ±3", DERIVED, 1e-6)
def weight_at_3() -> Numbers:
    return 0.007167, efficiency(3.0)


@claim(exact, "efficiency of ISM for the weight of modes at ±4", DERIVED, 1e-7)
def weight_at_4() -> Numbers:
    return 0.0001804, efficiency(4.0)


@claim(exact, "efficiency of DSM at σ = 1 for the weight of modes at ±4", DERIVED, 0.006)
def noise_1() -> Numbers:
    return 0.17, efficiency(4.0, 1.0)


@claim(exact, "efficiency of DSM at σ = 2 for the weight of modes at ±4", DERIVED, 0.006)
def noise_2() -> Numbers:
    return 0.86, efficiency(4.0, 2.0)


@claim(exact, "efficiency of DSM at σ = 4 for the weight of modes at ±4", DERIVED, 0.006)
def noise_4() -> Numbers:
    return 0.98, efficiency(4.0, 4.0)


@claim(exact, "efficiency of DSM at σ = 8 for the weight of modes at ±4", DERIVED, 0.006)
def noise_8() -> Numbers:
    return 0.95, efficiency(4.0, 8.0)


@claim(
    false, "“the more noise, the better the weights”: efficiency at σ = 8 over that at σ = 4, ±4",
    DERIVED,
)  # fmt: skip
def more_noise() -> Numbers:
    return 1.0, efficiency(4.0, 8.0) / efficiency(4.0, 4.0), 0.95 / 0.98


CHECKS = collect(globals())
"""The claims of this file, in the order of the report."""
