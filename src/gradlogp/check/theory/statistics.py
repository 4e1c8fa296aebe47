r"""Claims on how much data an estimate of the score needs, in closed form and by simulation."""

from __future__ import annotations

import math
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from ...core import Estimate, mean_and_error
from .claim import DERIVED, Numbers, exact, false, grid, statistical, table


def _gaussian_fits(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Means and biased variances of n fits to 20 draws of N(0, 1), float64."""
    x = torch.randn(n, 20, dtype=torch.float64, generator=g)
    return x.mean(1), x.var(1, correction=0)


def _precision_variance(n: int, g: torch.Generator) -> Numbers:
    """λ̂ = 1/S_b of 20 draws: mean n/(n−3), variance 2n²/((n−3)²(n−5))."""
    squares = (1 / _gaussian_fits(n, g)[1] - 20 / 17).square()
    return 2 * 20**2 / (17**2 * 15), mean_and_error(squares)


def _error_by_formula(d: int, m: int) -> float:
    """E‖ŝ − s‖² of a Gaussian fitted to m draws of N(0, I_d); m times it tends to (d + 2) tr P."""
    nu = m - 1
    k2 = (nu - 1) / ((nu - d) * (nu - d - 1) * (nu - d - 3))
    return d * (m**2 * k2 + m * k2 - 2 * m / (nu - d - 1) + 1)


def _score_error(n: int, g: torch.Generator) -> Numbers:
    mean, var = _gaussian_fits(n, g)
    # over x ~ N(0, 1): E[(−(x − m)/v + x)²] = (1 − 1/v)² + (m/v)²
    error = (1 - 1 / var).square() + (mean / var).square()
    return _error_by_formula(1, 20), mean_and_error(error)


def _slopes(draws: int, n: int, g: torch.Generator) -> Estimate:
    """N Var of the DSM slope from n points of N(0, 1) with `draws` noises each, resampled, σ = ½."""
    m, n_fits, sigma = 400, max(200, n // 100), 0.5
    x = torch.randn(n_fits, m, 1, dtype=torch.float64, generator=g)
    eps = torch.randn(n_fits, m, draws, dtype=torch.float64, generator=g)
    noised = x + sigma * eps
    slope = -(noised * eps).sum((1, 2)) / sigma / noised.square().sum((1, 2))
    return mean_and_error(m * (slope + 1 / (1 + sigma**2)).square())


def _slope_law(sigma: float, draws: float) -> float:
    v = 1 + sigma**2
    one, all_noise = 1 / (sigma**2 * v**2), 2 / v**4
    return all_noise + (one - all_noise) / draws


def _single_draw_ratio() -> Numbers:
    sigmas = [k / 100 for k in range(20, 300)]
    return 2.0, min(_slope_law(sigma, 1) / _slope_law(sigma, math.inf) for sigma in sigmas)


def _logistic() -> Numbers:
    """Location of a logistic law: n Var of ISM is E[(s'' + s s')²]/E[s'²]²."""
    x, dx = grid(-40, 40, 20_001)
    x = x[:, 0]
    p = 1 / (4 * torch.cosh(x / 2).square()) * dx
    s = -torch.tanh(x / 2)
    s1 = -0.5 / torch.cosh(x / 2).square()
    s2 = s * s1
    ism = float((p * (s2 + s * s1).square()).sum() / (p * s1.square()).sum() ** 2)
    return 0.7, 1 / float((p * s.square()).sum()) / ism


def _two_modes(x: Tensor, a: float, v: float) -> Tensor:
    """The density of ½N(−a, v) + ½N(a, v)."""
    near, far = (torch.exp(-0.5 * (x - m) ** 2 / v) for m in (-a, a))
    return (near + far) / math.sqrt(8 * math.pi * v)


def weight_information(a: float) -> float:
    """The Fisher information of the weight of ½N(−a, 1) + ½N(a, 1)."""
    x, dx = grid(-a - 14, a + 14, 6001)
    x = x[:, 0]  # (φ(x − a) − φ(x + a)) / 2p = tanh ax; the score in π is 2 of it
    return 4 * float((_two_modes(x, a, 1.0) * torch.tanh(a * x).square()).sum()) * dx


@cache
def efficiency(a: float, sigma: float = 0.0) -> float:
    r"""Efficiency of (denoising) score matching for the weight of ½N(−a, 1) + ½N(a, 1).

    The Fisher information of the weight, times the asymptotic variance of the estimate, inverted:
    Γ = E[(∂_π s)²], ψ = ∂_π s' + s ∂_π s, n Var = Var(ψ)/Γ². With noise, ψ of a data point x is
    its average over all noise, E[ψ_σ(x + σε)].

    Arguments:
        a: Half the distance of the modes, in their standard deviation.
        sigma: The noise of the denoising objective; 0 for implicit score matching.
    """
    reach = 14 + 8 * sigma
    x, dx = grid(-a - reach, a + reach, 6001)
    x = x[:, 0]
    v = 1 + sigma**2
    r = torch.sigmoid(2 * a * x / v)
    # s = −x/v + (a/v)(2r − 1), r = π e^L/(π e^L + 1 − π): ∂_π r = r(1 − r)/(π(1 − π)) = 4 r(1 − r)
    s = -x / v + a / v * (2 * r - 1)
    ds = 8 * a / v * r * (1 - r)
    psi = ds * (1 - 2 * r) * 2 * a / v + s * ds
    gamma = float((_two_modes(x, a, v) * ds.square()).sum()) * dx
    if sigma > 0:
        lags = dx * torch.arange(1 - len(x), len(x), dtype=x.dtype)
        noise = torch.exp(-0.5 * (lags / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        psi = torch.from_numpy(np.convolve(noise, psi, "valid")) * dx
    clean = _two_modes(x, a, 1.0)
    mean = float((clean * psi).sum()) * dx
    variance = float((clean * (psi - mean).square()).sum()) * dx / gamma**2
    return 1 / (weight_information(a) * variance)


CHECKS = table(
    __name__,
    precision_variance=(
        statistical, "variance of the ISM precision of N(0, 1) from 20 points, 2n²/((n−3)²(n−5))",
        DERIVED, 0.02, _precision_variance),
    score_error=(
        statistical, "E‖ŝ − s‖² of a Gaussian fitted to 20 points in 1-D", DERIVED, 0.02,
        _score_error),
    score_error_limit=(
        exact, "n E‖ŝ − s‖² → (d + 2) tr P, P = I in 3-D, n = 1e7", DERIVED, 1e-4,
        lambda: (15.0, 10**7 * _error_by_formula(3, 10**7))),
    single_draw=(
        statistical, "n Var of the DSM slope, one draw a point, τ = 1, σ = 0.5: τ²/(σ²v²)", DERIVED,
        0.2, lambda n, g: (_slope_law(0.5, 1), _slopes(1, n, g))),
    several_draws=(
        statistical, "… with four draws per point: V∞ + (V₁ − V∞)/4", DERIVED, 0.1,
        lambda n, g: (_slope_law(0.5, 4), _slopes(4, n, g))),
    single_draw_ratio=(
        exact, "least ratio V₁/V∞ = v²/(2σ²τ²), at σ = τ", DERIVED, 1e-6, _single_draw_ratio),
    logistic=(
        exact, "efficiency of ISM for the location of a logistic law (3 against 30/7)", DERIVED,
        1e-6, _logistic),
    **{
        name: (exact, f"efficiency of {how} for the weight of modes at ±{a}", DERIVED, tolerance,
               partial(lambda value, a, sigma: (value, efficiency(a, sigma)), value, a, sigma))
        for name, how, a, sigma, value, tolerance in (
            ("weight_at_1", "ISM", 1, 0, 0.6013, 1e-4),
            ("weight_at_2", "ISM", 2, 0, 0.1061, 1e-4),
            ("weight_at_3", "ISM", 3, 0, 0.007167, 1e-6),
            ("weight_at_4", "ISM", 4, 0, 0.0001804, 1e-7),
            ("noise_1", "DSM at σ = 1", 4, 1, 0.17, 0.006),
            ("noise_2", "DSM at σ = 2", 4, 2, 0.86, 0.006),
            ("noise_4", "DSM at σ = 4", 4, 4, 0.98, 0.006),
            ("noise_8", "DSM at σ = 8", 4, 8, 0.95, 0.006),
        )
    },
    more_noise=(
        false, "“the more noise, the better the weights”: efficiency at σ = 8 over that at σ = 4, ±4",
        DERIVED, lambda: (1.0, efficiency(4.0, 8.0) / efficiency(4.0, 4.0), 0.95 / 0.98)),
)  # fmt: skip
