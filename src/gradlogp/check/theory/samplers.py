r"""Claims on Langevin samplers: the stationary law of each, and bounds on its error."""

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
from ...langevin.kernels import BAOAB, MALA, OBABO, ULA, LeimkuhlerMatthews, PreconditionedULA
from ..metrics import gaussian_kl, gaussian_wasserstein
from .claim import (
    DERIVED,
    LAW,
    Numbers,
    apart,
    at_most,
    exact,
    false,
    grid,
    order,
    statistical,
    table,
)

ROBERTS = "Roberts & Tweedie 1996, doi 10.2307/3318418"
DALALYAN = "Dalalyan & Karagulyan 2019, arXiv 1710.00095"
VEMPALA = "Vempala & Wibisono 2019, arXiv 1903.08568"
LEIMKUHLER = "Leimkuhler & Matthews 2013, arXiv 1203.5428"

S = LAW.cov
P = torch.linalg.inv(S)
I = torch.eye(2, dtype=torch.float64)
ONE = torch.ones(1, 1, dtype=torch.float64)


def _on_gaussian(kernel: Kernel[Any, Any], cov: Tensor, field: str | None = None) -> Affine:
    """The map of a kernel's step on N(0, cov)."""
    return kernel_map(kernel, _centred(cov), len(cov), field=field)


def _centred(cov: Tensor) -> Gaussian:
    return Gaussian(torch.zeros(len(cov), dtype=torch.float64), cov)


def _kept(kernel: Kernel[Any, Any], cov: Tensor, field: str | None = None) -> Tensor:
    """The covariance of the law that a kernel keeps on N(0, cov)."""
    return _on_gaussian(kernel, cov, field).stationary()[1]


def _bias(
    distance: Callable[[Gaussian, Gaussian], float], kernel: Kernel[Any, Any], cov: Tensor = S
) -> float:
    """How far the law that a kernel keeps is from N(0, cov)."""
    return distance(_centred(_kept(kernel, cov)), _centred(cov))


def _bias_slope() -> float:
    return order(*(_bias(gaussian_wasserstein, ULA(h)) for h in (2e-3, 1e-3)))


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
    found, exact = (
        np.interp(levels, torch.cat([q.new_zeros(1), q.cumsum(0)]).numpy(), edges)
        for q in (law, p / p.sum())
    )
    return float(np.sqrt(np.mean((found - exact) ** 2))) / h


def _bias_beyond_gaussians() -> Numbers:
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
    distance: Callable[[Gaussian, Gaussian], float],
    largest: Callable[[float, float], float],
    bound: Callable[[float, float, float], float],
    g: torch.Generator,
) -> Numbers:
    """1, and the largest ratio of ULA's exact bias to a bound, over random Gaussians in 5-D and h.

    `largest(m, L)` is the largest step that the bound allows, and `bound(m, L, h)` the bound.
    """
    worst = 0.0
    for _ in range(20):
        w = 0.05 + torch.rand(5, dtype=torch.float64, generator=g)
        m, L = float(w.min()), float(w.max())
        h = float(torch.rand((), dtype=torch.float64, generator=g)) * largest(m, L)
        worst = max(worst, _bias(distance, ULA(h), torch.diag(1 / w)) / bound(m, L, h))
    return 1.0, worst


def _preconditioned() -> Numbers:
    h, Pc = 0.1, torch.tensor([[1.0, 0.2], [0.2, 0.7]], dtype=torch.float64)
    found = torch.linalg.inv(_kept(PreconditionedULA(h, Pc), S))
    return 0.0, apart(found, P - h / 2 * P @ Pc @ P)


SECOND = math.pi**2 / 6 + 0.5772156649015329**2
"""E x² of log E, E ~ Exp(1)."""


def _skewed_after(kernel: Kernel[Any, Any], n: int, g: torch.Generator) -> Estimate:
    """Mean of x² after 10 steps from exact draws of log E, E ~ Exp(1)."""
    target = as_target(score=lambda x: 1 - x.exp(), log_prob=lambda x: (x - x.exp()).sum(1))
    x = torch.empty(n, 1, dtype=torch.float64).exponential_(generator=g).log()
    state = kernel.init(x, target)
    for _ in range(10):
        state, _ = kernel.step(state, target, generator=g)
    return mean_and_error(state.x[:, 0].square())


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


CHECKS = table(
    __name__,
    ula_law=(
        exact, "ULA on N(μ, S) ends in covariance S (I − hP/2)⁻¹, largest error", ROBERTS, 1e-10,
        lambda: (0.0, apart(_kept(ULA(0.1), S), S @ torch.linalg.inv(I - 0.05 * P)))),
    ula_inflation=(
        false, "“ULA samples p once it has converged”: variance at h = 1.9/L, where p has 1",
        ROBERTS, 1e-9, lambda: (1.0, _kept(ULA(1.9), ONE), 20.0)),
    ula_stability=(
        exact, "ULA loses stability at h = 2/L: spectral radius there", ROBERTS, 1e-10,
        lambda: (1.0, _on_gaussian(ULA(2 / float(torch.linalg.eigvalsh(P)[-1])), S).radius)),
    bias_slope=(
        exact, "slope of log W2(π_h, p) in log h", DERIVED, 0.01, lambda: (1.0, _bias_slope())),
    bias_is_not_root_h=(
        false, "“the W2 bias of ULA is of order √h”: that is the worst case; its slope on smooth "
        "targets", DALALYAN, lambda: (0.5, _bias_slope(), 1.0)),
    bias_constant=(
        exact, "W2(π_h, p)/h → √(tr P)/4 on a Gaussian", DERIVED, 2e-3,
        lambda: (P.trace().sqrt() / 4, _bias(gaussian_wasserstein, ULA(1e-4)) / 1e-4)),
    bias_in_kl=(
        exact, "KL(π_h‖p)/h² → tr P²/16 on a Gaussian", DERIVED, 2e-2,
        lambda: ((P @ P).trace() / 16, _bias(gaussian_kl, ULA(1e-3)) / 1e-3**2)),
    bias_beyond_gaussians=(
        exact, "W2(π_h, p)/h as h → 0 on p ∝ 1/cosh x: ‖v‖, p v = −∫ p (¼U'² − ½U'' + ¼E U'')",
        "Leimkuhler & Matthews 2013; derived", 2e-3, _bias_beyond_gaussians),
    dalalyan=(
        at_most, "exact W2 bias over the bound 1.65 (L/m) √(hd), h ≤ 2/(m+L)", DALALYAN,
        lambda n, g: _worst(gaussian_wasserstein, lambda m, L: 2 / (m + L),
                            lambda m, L, h: 1.65 * L / m * math.sqrt(5 * h), g)),
    vempala=(
        at_most, "exact KL bias over the bound 8hdL²/α, h ≤ α/(4L²)", VEMPALA,
        lambda n, g: _worst(gaussian_kl, lambda m, L: m / (4 * L**2),
                            lambda m, L, h: 8 * h * 5 * L**2 / m, g)),
    averaged_noise=(
        exact, "Leimkuhler–Matthews has no bias on N(0, 1), h = 0.9", LEIMKUHLER, 1e-10,
        lambda: (1.0, _kept(LeimkuhlerMatthews(0.9), ONE, "z")[0, 0])),
    baoab_position=(
        exact, "BAOAB: Var x = 1 on N(0, 1) at every stable h (0.8)", LEIMKUHLER, 1e-10,
        lambda: (1.0, _kept(BAOAB(0.8), ONE, "momentum")[0, 0])),
    baoab_velocity=(
        exact, "BAOAB: Var v = 1 − h²/4, h = 0.8", LEIMKUHLER, 1e-10,
        lambda: (0.84, _kept(BAOAB(0.8), ONE, "momentum")[1, 1])),
    obabo_position=(
        exact, "OBABO: Var x = 1/(1 − h²/4), h = 0.8", LEIMKUHLER, 1e-10,
        lambda: (1 / 0.84, _kept(OBABO(0.8), ONE, "momentum")[0, 0])),
    preconditioned=(
        exact, "preconditioned ULA keeps precision P − (h/2) P P_c P, largest error", DERIVED, 1e-9,
        _preconditioned),
    condition_number=(
        exact, "with P_c = S every direction contracts by 1 − h, h = 0.3", DERIVED, 1e-10,
        lambda: (0.7, _on_gaussian(PreconditionedULA(0.3, S), S).radius)),
    mala_keeps=(
        statistical, "MALA keeps a skewed law: E x² of x − e^x after 10 steps of 0.4", ROBERTS, 0.05,
        lambda n, g: (SECOND, _skewed_after(MALA(0.4), n, g))),
    ula_does_not_keep=(
        false, "“so does ULA, started in it”", ROBERTS,
        lambda n, g: (SECOND, _skewed_after(ULA(0.4), n, g), _ula_on_a_grid(0.4, 10))),
)  # fmt: skip
