r"""Claims on Langevin samplers: the law that each really keeps, and the bounds on its error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...calculus import Affine, kernel_map
from ...core import Estimate, Kernel, mean_and_error
from ...distributions.analytic import Gaussian
from ...distributions.as_target import as_target
from ...langevin.kernels import (
    BAOAB,
    MALA,
    OBABO,
    ULA,
    LeimkuhlerMatthews,
    PreconditionedULA,
)
from ..metrics import gaussian_kl, gaussian_wasserstein
from .claim import Numbers, at_most, claim, collect, exact, false, grid, statistical

ROBERTS = "Roberts & Tweedie 1996, doi 10.2307/3318418"
DALALYAN = "Dalalyan & Karagulyan 2019, arXiv 1710.00095"
VEMPALA = "Vempala & Wibisono 2019, arXiv 1903.08568"
LEIMKUHLER = "Leimkuhler & Matthews 2013, arXiv 1203.5428"
DERIVED = "derived, docs/theory.md"

S = torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64)
P = torch.linalg.inv(S)
I = torch.eye(2, dtype=torch.float64)
ONE = torch.ones(1, 1, dtype=torch.float64)
ZERO = torch.zeros(2, dtype=torch.float64)


def _on_gaussian(kernel: Kernel[Any, Any], cov: Tensor, field: str | None = None) -> Affine:
    """The map of a kernel's step on N(0, cov)."""
    law = Gaussian(torch.zeros(len(cov), dtype=torch.float64), cov)
    return kernel_map(kernel, law, len(cov), field=field)


@claim(exact, "ULA on N(μ, S) ends in covariance S (I − hP/2)⁻¹, largest error", ROBERTS, 1e-10)
def ula_law() -> Numbers:
    h = 0.1
    error = _on_gaussian(ULA(h), S).stationary()[1] - S @ torch.linalg.inv(I - h / 2 * P)
    return 0.0, error.abs().max()


@claim(
    false, "“ULA samples p once it has converged”: variance at h = 1.9/L, where p has 1",
    ROBERTS, 1e-9,
)  # fmt: skip
def ula_inflation() -> Numbers:
    return 1.0, _on_gaussian(ULA(1.9), ONE).stationary()[1][0, 0], 20.0


@claim(exact, "ULA loses stability at h = 2/L: spectral radius there", ROBERTS, 1e-10)
def ula_stability() -> Numbers:
    L = float(torch.linalg.eigvalsh(P)[-1])
    return 1.0, _on_gaussian(ULA(2 / L), S).radius


def _bias(h: float) -> tuple[float, float]:
    """Return W2 and KL of ULA's stationary law to N(0, S)."""
    found, target = Gaussian(ZERO, _on_gaussian(ULA(h), S).stationary()[1]), Gaussian(ZERO, S)
    return gaussian_wasserstein(found, target), gaussian_kl(found, target)


@claim(exact, "slope of log W2(π_h, p) in log h", DERIVED, 0.01)
def bias_slope() -> Numbers:
    slope = math.log(_bias(2e-3)[0] / _bias(1e-3)[0]) / math.log(2)
    return 1.0, slope


@claim(
    false, "“the W2 bias of ULA is of order √h”: that is the worst case; its slope on smooth targets",
    DALALYAN,
)  # fmt: skip
def bias_is_not_root_h() -> Numbers:
    return 0.5, math.log(_bias(2e-3)[0] / _bias(1e-3)[0]) / math.log(2), 1.0


@claim(exact, "W2(π_h, p)/h → √(tr P)/4 on a Gaussian", DERIVED, 2e-3)
def bias_constant() -> Numbers:
    h = 1e-4
    return math.sqrt(float(torch.trace(P))) / 4, _bias(h)[0] / h


@claim(exact, "KL(π_h‖p)/h² → tr P²/16 on a Gaussian", DERIVED, 2e-2)
def bias_in_kl() -> Numbers:
    h = 1e-3
    return torch.trace(P @ P) / 16, _bias(h)[1] / h**2


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


@claim(
    exact, "W2(π_h, p)/h as h → 0 on p ∝ 1/cosh x: ‖v‖, p v = −∫ p (¼U'² − ½U'' + ¼E U'')",
    "Leimkuhler & Matthews 2013; derived", 2e-3,
)  # fmt: skip
def bias_beyond_gaussians() -> Numbers:
    """W2/h → ‖v‖ with v = −(1/p) ∫ p g and g = ¼ U'² − ½ U'' + ¼ E U'', U = log cosh."""
    x, dx = grid(-30, 30, 20_001)
    x = x[:, 0]
    p = 1 / torch.cosh(x) / math.pi
    d_U, dd_U = torch.tanh(x), 1 / torch.cosh(x).square()
    rise = 0.25 * d_U**2 - 0.5 * dd_U + 0.25 * float((p * dd_U).sum()) * dx
    v = -(torch.cumsum(p * rise, 0) - 0.5 * p * rise) * dx / p
    predicted = math.sqrt(float((p * v * v)[2000:-2000].sum()) * dx)
    found = 2 * _log_cosh_bias(0.1) - _log_cosh_bias(0.2)  # the term of order h drops out
    return predicted, found


def _worst(
    bound: Callable[[float, float, float], tuple[float, float]], g: torch.Generator
) -> float:
    """The largest ratio of ULA's exact bias to a bound, over random Gaussians in 5-D and h.

    `bound(m, L, u)` is a step, u in (0, 1) of the largest one allowed, and the bound at it; a bound
    in W2 if positive, in KL if negative.
    """
    worst, zero = 0.0, torch.zeros(5, dtype=torch.float64)
    for _ in range(20):
        w = 0.05 + torch.rand(5, dtype=torch.float64, generator=g)
        u = float(torch.rand((), dtype=torch.float64, generator=g))
        h, limit = bound(float(w.min()), float(w.max()), u)
        cov = torch.diag(1 / w)
        laws = Gaussian(zero, _on_gaussian(ULA(h), cov).stationary()[1]), Gaussian(zero, cov)
        bias = gaussian_wasserstein(*laws) if limit > 0 else gaussian_kl(*laws)
        worst = max(worst, bias / abs(limit))
    return worst


@claim(at_most, "exact W2 bias over the bound 1.65 (L/m) √(hd), h ≤ 2/(m+L)", DALALYAN)
def dalalyan(n: int, g: torch.Generator) -> Numbers:
    def bound(m: float, L: float, u: float) -> tuple[float, float]:
        h = 2 * u / (m + L)
        return h, 1.65 * L / m * math.sqrt(5 * h)

    return 1.0, _worst(bound, g)


@claim(at_most, "exact KL bias over the bound 8hdL²/α, h ≤ α/(4L²)", VEMPALA)
def vempala(n: int, g: torch.Generator) -> Numbers:
    def bound(m: float, L: float, u: float) -> tuple[float, float]:
        h = u * m / (4 * L**2)
        return h, -8 * h * 5 * L**2 / m

    return 1.0, _worst(bound, g)


@claim(exact, "Leimkuhler–Matthews has no bias on N(0, 1), h = 0.9", LEIMKUHLER, 1e-10)
def averaged_noise() -> Numbers:
    law = _on_gaussian(LeimkuhlerMatthews(0.9), ONE, field="z").stationary()[1]
    return 1.0, law[0, 0]


@claim(exact, "BAOAB: Var x = 1 on N(0, 1) at every stable h (0.8)", LEIMKUHLER, 1e-10)
def baoab_position() -> Numbers:
    law = _on_gaussian(BAOAB(0.8), ONE, field="momentum").stationary()[1]
    return 1.0, law[0, 0]


@claim(exact, "BAOAB: Var v = 1 − h²/4, h = 0.8", LEIMKUHLER, 1e-10)
def baoab_velocity() -> Numbers:
    law = _on_gaussian(BAOAB(0.8), ONE, field="momentum").stationary()[1]
    return 0.84, law[1, 1]


@claim(exact, "OBABO: Var x = 1/(1 − h²/4), h = 0.8", LEIMKUHLER, 1e-10)
def obabo_position() -> Numbers:
    law = _on_gaussian(OBABO(0.8), ONE, field="momentum").stationary()[1]
    return 1 / 0.84, law[0, 0]


@claim(exact, "preconditioned ULA keeps precision P − (h/2) P P_c P, largest error", DERIVED, 1e-9)
def preconditioned() -> Numbers:
    h, Pc = 0.1, torch.tensor([[1.0, 0.2], [0.2, 0.7]], dtype=torch.float64)
    found = torch.linalg.inv(_on_gaussian(PreconditionedULA(h, Pc), S).stationary()[1])
    return 0.0, (found - (P - h / 2 * P @ Pc @ P)).abs().max()


@claim(exact, "with P_c = S every direction contracts by 1 − h, h = 0.3", DERIVED, 1e-10)
def condition_number() -> Numbers:
    radius = _on_gaussian(PreconditionedULA(0.3, S), S).radius
    return 0.7, radius


def _spectrum(d: int) -> Tensor:
    return torch.arange(1, d + 1, dtype=torch.float64) ** -2.0


@claim(exact, "the W2 bias of ULA grows as √d on N(0, I): d = 16 over d = 1", DERIVED, 1e-8)
def dimension() -> Numbers:
    bias = lambda d: math.sqrt(d) * ((1 - 0.05) ** -0.5 - 1)  # N(0, I_d), h = 0.1
    law = _on_gaussian(ULA(0.1), torch.eye(16, dtype=torch.float64)).stationary()[1]
    target = Gaussian(torch.zeros(16).double(), 1.0)
    found = gaussian_wasserstein(Gaussian(torch.zeros(16).double(), law), target)
    return 4.0, found / bias(1)


@claim(
    at_most, "with P_c = S and a trace-class S it stays bounded: d = 64 over √(π²/6)·0.0260",
    DERIVED,
)  # fmt: skip
def dimension_free() -> Numbers:
    found = []
    for d in (8, 64):
        cov = torch.diag(_spectrum(d))
        law = _on_gaussian(PreconditionedULA(0.1, cov), cov).stationary()[1]
        zero = torch.zeros(d).double()
        found.append(gaussian_wasserstein(Gaussian(zero, law), Gaussian(zero, cov)))
    return 1.0, found[1] / (math.pi / math.sqrt(6) * 0.0260) if found[1] > found[0] else math.nan


def _skewed_after(kernel: Kernel[Any, Any], n: int, g: torch.Generator) -> Estimate:
    """Mean of x² after 10 steps from exact draws of log E, E ~ Exp(1)."""
    target = as_target(score=lambda x: 1 - x.exp(), log_prob=lambda x: (x - x.exp()).sum(1))
    x = torch.empty(n, 1, dtype=torch.float64).exponential_(generator=g).log()
    state = kernel.init(x, target)
    for _ in range(10):
        state, _ = kernel.step(state, target, generator=g)
    return mean_and_error(state.x[:, 0].square())


SECOND = math.pi**2 / 6 + 0.5772156649015329**2


@claim(
    statistical, "MALA keeps a skewed law: E x² of x − e^x after 10 steps of 0.4", ROBERTS, 0.05
)
def mala_keeps(n: int, g: torch.Generator) -> Numbers:
    return SECOND, _skewed_after(MALA(0.4), n, g)


def _ula_on_a_grid(h: float, n_steps: int) -> float:
    """E x² after steps of ULA from the law of x − e^x, by its transition density."""
    x, dx = grid(-25, 6, 3101)
    x = x[:, 0]
    step = torch.exp(-((x - (x + h * (1 - x.exp()))[:, None]) ** 2) / (4 * h))
    step = step * dx / math.sqrt(4 * math.pi * h)
    law = (x - x.exp()).exp() * dx
    for _ in range(n_steps):
        law = law @ step
    return float((law * x * x).sum())


@claim(false, "“so does ULA, started in it”", ROBERTS)
def ula_does_not_keep(n: int, g: torch.Generator) -> Numbers:
    return SECOND, _skewed_after(ULA(0.4), n, g), _ula_on_a_grid(0.4, 10)


CHECKS = collect(globals())
"""The claims of this file, in the order of the report."""
