r"""Claims on Langevin samplers: the law that each really keeps, and the bounds on its error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import Estimate, Kernel, mean_and_error
from ..distributions import Gaussian
from ..kernels import BAOAB, MALA, OBABO, ULA, LeimkuhlerMatthews, PreconditionedULA
from ..metrics import gaussian_kl, gaussian_wasserstein
from ..schedules import Levels
from ..targets import as_target
from ..transitions import AnnealedLangevin
from .affine import Chosen, linear_step
from .claim import Check, Claim, at_most, exact, false, grid, statistical

ROBERTS = "Roberts & Tweedie 1996, doi 10.2307/3318418"
DALALYAN = "Dalalyan & Karagulyan 2019, arXiv 1710.00095"
VEMPALA = "Vempala & Wibisono 2019, arXiv 1903.08568"
LEIMKUHLER = "Leimkuhler & Matthews 2013, arXiv 1203.5428"
SONG = "Song & Ermon 2019, 2020, arXiv 1907.05600, 2006.09011"
DERIVED = "derived, docs/theory.md"

S = torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64)
P = torch.linalg.inv(S)
I = torch.eye(2, dtype=torch.float64)
ONE = torch.ones(1, 1, dtype=torch.float64)
ZERO = torch.zeros(2, dtype=torch.float64)


def ula_law(n: int, g: torch.Generator) -> Claim:
    h = 0.1
    error = linear_step(ULA(h), S).stationary() - S @ torch.linalg.inv(I - h / 2 * P)
    return exact(
        "ULA on N(μ, S) ends in covariance S (I − hP/2)⁻¹, largest error", ROBERTS, 0.0,
        error.abs().max(), 1e-10,
    )  # fmt: skip


def ula_inflation(n: int, g: torch.Generator) -> Claim:
    return false(
        "“ULA samples p once it has converged”: variance at h = 1.9/L, where p has 1",
        ROBERTS, 1.0, linear_step(ULA(1.9), ONE).stationary()[0, 0],
    )  # fmt: skip


def ula_stability(n: int, g: torch.Generator) -> Claim:
    L = float(torch.linalg.eigvalsh(P)[-1])
    return exact("ULA loses stability at h = 2/L: spectral radius there", ROBERTS, 1.0,
                 linear_step(ULA(2 / L), S).radius, 1e-10)  # fmt: skip


def _bias(h: float) -> tuple[float, float]:
    """Return W2 and KL of ULA's stationary law to N(0, S)."""
    found, target = Gaussian(ZERO, linear_step(ULA(h), S).stationary()), Gaussian(ZERO, S)
    return gaussian_wasserstein(found, target), gaussian_kl(found, target)


def bias_slope(n: int, g: torch.Generator) -> Claim:
    slope = math.log(_bias(2e-3)[0] / _bias(1e-3)[0]) / math.log(2)
    return exact("slope of log W2(π_h, p) in log h", DERIVED, 1.0, slope, 0.01)


def bias_is_not_root_h(n: int, g: torch.Generator) -> Claim:
    return false(
        "“the W2 bias of ULA is of order √h”: that is the worst case; its slope on smooth targets",
        DALALYAN, 0.5, math.log(_bias(2e-3)[0] / _bias(1e-3)[0]) / math.log(2),
    )  # fmt: skip


def bias_constant(n: int, g: torch.Generator) -> Claim:
    h = 1e-4
    return exact("W2(π_h, p)/h → √(tr P)/4 on a Gaussian", DERIVED,
                 math.sqrt(float(torch.trace(P))) / 4, _bias(h)[0] / h, 2e-3)  # fmt: skip


def bias_in_kl(n: int, g: torch.Generator) -> Claim:
    h = 1e-3
    return exact("KL(π_h‖p)/h² → tr P²/16 on a Gaussian", DERIVED, torch.trace(P @ P) / 16,
                 _bias(h)[1] / h**2, 2e-2)  # fmt: skip


def _log_cosh_bias(h: float) -> float:
    """Return W2(π_h, p)/h for p ∝ 1/cosh x, with π_h the stationary law of ULA on a grid."""
    x, dx = grid(-20, 20, 801)
    x = x[:, 0]
    p = 1 / torch.cosh(x)
    step = torch.exp(-((x - x[:, None] + h * torch.tanh(x)[:, None]) ** 2) / (4 * h))
    step, law = step / step.sum(1, keepdim=True), p / p.sum()
    for _ in range(int(60 / h)):
        law = law @ step
    levels = ((torch.arange(200_000) + 0.5) / 200_000).numpy()
    edges = torch.cat([x - dx / 2, x[-1:] + dx / 2]).numpy()
    quantiles = [
        np.interp(levels, torch.cat([q.new_zeros(1), q.cumsum(0)]).numpy(), edges)
        for q in (law, p / p.sum())
    ]
    return float(np.sqrt(np.mean((quantiles[0] - quantiles[1]) ** 2))) / h


def bias_beyond_gaussians(n: int, g: torch.Generator) -> Claim:
    """W2/h → ‖v‖ with v = −(1/p) ∫ p g and g = ¼ U'² − ½ U'' + ¼ E U'', U = log cosh."""
    x, dx = grid(-30, 30, 20_001)
    x = x[:, 0]
    p = 1 / torch.cosh(x) / math.pi
    d_U, dd_U = torch.tanh(x), 1 / torch.cosh(x).square()
    rise = 0.25 * d_U**2 - 0.5 * dd_U + 0.25 * float((p * dd_U).sum()) * dx
    v = -(torch.cumsum(p * rise, 0) - 0.5 * p * rise) * dx / p
    predicted = math.sqrt(float((p * v * v)[2000:-2000].sum()) * dx)
    found = 2 * _log_cosh_bias(0.1) - _log_cosh_bias(0.2)  # the term of order h drops out
    return exact(
        "W2(π_h, p)/h as h → 0 on p ∝ 1/cosh x: ‖v‖, p v = −∫ p (¼U'² − ½U'' + ¼E U'')",
        "Leimkuhler & Matthews 2013; derived", predicted, found, 2e-3,
    )  # fmt: skip


def dalalyan(n: int, g: torch.Generator) -> Claim:
    """The largest ratio of the exact W2 bias to 1.65 (L/m) √(hd), over random Gaussians and h."""
    worst = 0.0
    for _ in range(20):
        w = 0.05 + torch.rand(5, dtype=torch.float64, generator=g)
        m, L = float(w.min()), float(w.max())
        h = 2 / (m + L) * float(torch.rand((), dtype=torch.float64, generator=g))
        bias = math.sqrt(float((((1 - h * w / 2).rsqrt() - 1).square() / w).sum()))
        worst = max(worst, bias / (1.65 * L / m * math.sqrt(5 * h)))
    return at_most(
        "exact W2 bias over the bound 1.65 (L/m) √(hd), h ≤ 2/(m+L)", DALALYAN, 1.0, worst
    )


def vempala(n: int, g: torch.Generator) -> Claim:
    """The largest ratio of the exact KL bias to 8 h d L²/α, over random Gaussians and h."""
    worst = 0.0
    for _ in range(20):
        w = 0.05 + torch.rand(5, dtype=torch.float64, generator=g)
        m, L = float(w.min()), float(w.max())
        h = m / (4 * L**2) * float(torch.rand((), dtype=torch.float64, generator=g))
        u = 1 / (1 - h * w / 2)
        worst = max(worst, 0.5 * float((u - 1 - u.log()).sum()) / (8 * h * 5 * L**2 / m))
    return at_most("exact KL bias over the bound 8hdL²/α, h ≤ α/(4L²)", VEMPALA, 1.0, worst)


def averaged_noise(n: int, g: torch.Generator) -> Claim:
    law = linear_step(LeimkuhlerMatthews(0.9), ONE, field="z").stationary()
    return exact(
        "Leimkuhler–Matthews has no bias on N(0, 1), h = 0.9", LEIMKUHLER, 1.0, law[0, 0], 1e-10
    )


def baoab_position(n: int, g: torch.Generator) -> Claim:
    law = linear_step(BAOAB(0.8), ONE, field="momentum").stationary()
    return exact(
        "BAOAB: Var x = 1 on N(0, 1) at every stable h (0.8)", LEIMKUHLER, 1.0, law[0, 0], 1e-10
    )


def baoab_velocity(n: int, g: torch.Generator) -> Claim:
    law = linear_step(BAOAB(0.8), ONE, field="momentum").stationary()
    return exact("BAOAB: Var v = 1 − h²/4, h = 0.8", LEIMKUHLER, 0.84, law[1, 1], 1e-10)


def obabo_position(n: int, g: torch.Generator) -> Claim:
    law = linear_step(OBABO(0.8), ONE, field="momentum", n_draws=2).stationary()
    return exact("OBABO: Var x = 1/(1 − h²/4), h = 0.8", LEIMKUHLER, 1 / 0.84, law[0, 0], 1e-10)


def preconditioned(n: int, g: torch.Generator) -> Claim:
    h, Pc = 0.1, torch.tensor([[1.0, 0.2], [0.2, 0.7]], dtype=torch.float64)
    found = torch.linalg.inv(linear_step(PreconditionedULA(h, Pc), S).stationary())
    return exact("preconditioned ULA keeps precision P − (h/2) P P_c P, largest error", DERIVED, 0.0,
                 (found - (P - h / 2 * P @ Pc @ P)).abs().max(), 1e-9)  # fmt: skip


def condition_number(n: int, g: torch.Generator) -> Claim:
    radius = linear_step(PreconditionedULA(0.3, S), S).radius
    return exact(
        "with P_c = S every direction contracts by 1 − h, h = 0.3", DERIVED, 0.7, radius, 1e-10
    )


def _spectrum(d: int) -> Tensor:
    return torch.arange(1, d + 1, dtype=torch.float64) ** -2.0


def dimension(n: int, g: torch.Generator) -> Claim:
    bias = lambda d: math.sqrt(d) * ((1 - 0.05) ** -0.5 - 1)  # N(0, I_d), h = 0.1
    law = linear_step(ULA(0.1), torch.eye(16, dtype=torch.float64)).stationary()
    target = Gaussian(torch.zeros(16).double(), 1.0)
    found = gaussian_wasserstein(Gaussian(torch.zeros(16).double(), law), target)
    return exact("the W2 bias of ULA grows as √d on N(0, I): d = 16 over d = 1", DERIVED, 4.0,
                 found / bias(1), 1e-8)  # fmt: skip


def dimension_free(n: int, g: torch.Generator) -> Claim:
    found = []
    for d in (8, 64):
        cov = torch.diag(_spectrum(d))
        law = linear_step(PreconditionedULA(0.1, cov), cov).stationary()
        zero = torch.zeros(d).double()
        found.append(gaussian_wasserstein(Gaussian(zero, law), Gaussian(zero, cov)))
    return at_most("with P_c = S and a trace-class S it stays bounded: d = 64 over √(π²/6)·0.0260",
                   DERIVED, 1.0, found[1] / (math.pi / math.sqrt(6) * 0.0260)
                   if found[1] > found[0] else math.nan)  # fmt: skip


def _skewed_after(kernel: Kernel[Any, Any], n: int, g: torch.Generator) -> Estimate:
    """Mean of x² after 10 steps from exact draws of log E, E ~ Exp(1)."""
    target = as_target(score=lambda x: 1 - x.exp(), log_prob=lambda x: (x - x.exp()).sum(1))
    x = torch.empty(n, 1, dtype=torch.float64).exponential_(generator=g).log()
    state = kernel.init(x, target)
    for _ in range(10):
        state, _ = kernel.step(state, target, generator=g)
    return mean_and_error(state.x[:, 0].square())


SECOND = math.pi**2 / 6 + 0.5772156649015329**2


def mala_keeps(n: int, g: torch.Generator) -> Claim:
    return statistical("MALA keeps a skewed law: E x² of x − e^x after 10 steps of 0.4", ROBERTS,
                       SECOND, _skewed_after(MALA(0.4), n, g), 0.05)  # fmt: skip


def ula_does_not_keep(n: int, g: torch.Generator) -> Claim:
    return false("“so does ULA, started in it”", ROBERTS, SECOND, _skewed_after(ULA(0.4), n, g))


def _annealed(sigmas: list[float], n_steps: int, relative_step: float) -> float:
    """The variance that annealed Langevin leaves on N(0, 1) data, with the exact score, unit draws."""
    step, schedule = AnnealedLangevin(n_steps, relative_step), Levels(sorted(sigmas, reverse=True))
    score = lambda x, t: -x / (1 + schedule(t)[1] ** 2)
    variance = 1 + sigmas[0] ** 2
    for sigma in sigmas:
        times = schedule.times
        t = times[schedule(times)[1].sub(sigma).abs().argmin()]
        rows = torch.eye(1 + n_steps, dtype=torch.float64)
        noise = Chosen(*(rows[:, 1 + k : 2 + k] for k in range(n_steps)))
        out = step(rows[:, :1], t, t, score, schedule, generator=noise)[:, 0]
        variance = float(out[0] ** 2 * variance + (out[1:] ** 2).sum())
    return variance


def _annealed_by_formula(sigmas: list[float], n_steps: int, eta: float) -> float:
    variance = 1 + sigmas[0] ** 2
    for sigma in sigmas:
        lam, h = 1 / (1 + sigma**2), eta * sigma**2
        rest, a = 1 / (lam * (1 - h * lam / 2)), (1 - h * lam) ** (2 * n_steps)
        variance = rest + (variance - rest) * a
    return variance


LADDER = [10.0, 3.0, 1.0, 0.3, 0.1]


def annealed_law(n: int, g: torch.Generator) -> Claim:
    return exact("annealed Langevin on N(0, 1): variance left by 5 levels of 20 steps, η = 0.2", SONG,
                 _annealed_by_formula(LADDER, 20, 0.2), _annealed(LADDER, 20, 0.2), 1e-10)  # fmt: skip


def annealed_order(n: int, g: torch.Generator) -> Claim:
    return false(
        "“the levels go from the smallest σ to the largest”: variance left, near 1 + σ₁² = 101",
        SONG, 1.01, _annealed(LADDER[::-1], 20, 0.2),
    )  # fmt: skip


def annealed_step_of_the_code(n: int, g: torch.Generator) -> Claim:
    """On point-mass data: x' = (1 − η) x + √(2η) σ z, variance 1/(1 − η/2) in units of σ²."""
    return exact("NCSN's step as in its code, ε/σ_L² = 0.2: variance of a level over σ²", SONG, 1 / 0.9,
                 linear_step(ULA(0.2), ONE).stationary()[0, 0], 1e-10)  # fmt: skip


def annealed_step_of_the_paper(n: int, g: torch.Generator) -> Claim:
    return false("“the paper's α/2, √α is the same step”: with the same ε it is half of it",
                 SONG, 1 / 0.9, linear_step(ULA(0.1), ONE).stationary()[0, 0])  # fmt: skip


CHECKS: tuple[Check, ...] = (
    ula_law, ula_inflation, ula_stability, bias_slope, bias_is_not_root_h, bias_constant, bias_in_kl,
    bias_beyond_gaussians, dalalyan, vempala, averaged_noise, baoab_position, baoab_velocity,
    obabo_position, preconditioned, condition_number, dimension, dimension_free, mala_keeps,
    ula_does_not_keep, annealed_law, annealed_order, annealed_step_of_the_code,
    annealed_step_of_the_paper,
)  # fmt: skip
"""The claims of this file, in the order of the report."""
