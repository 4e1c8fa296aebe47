r"""Claims on high dimension: what grows with it, what does not, and under which conditions.

Everything here is about Gaussians and single levels, where laws are exact in any number of
dimensions. "Dimension-free" is a theorem on continuous time or an exponential integrator, in
Kullback–Leibler divergence, under spectral conditions; none of it holds for isotropic covariances.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...core import Injected, Kernel
from ...distributions.as_target import as_target
from ...langevin.kernels import ULA, PreconditionedULA
from ...langevin.kernels.overdamped import ExponentialEuler
from ...langevin.planning import gaussian_bias
from .claim import DERIVED, Numbers, at_most, exact, false, order, table

ANNEALED = "derived; in continuous time see arXiv 2602.01449"
UNIFORM = "derived; for mixtures see arXiv 2605.16473"

H = 0.1
BIAS = (1 - H / 2) ** -0.5 - 1
"""Relative error of a standard deviation under ULA with step h in units of the variance."""


def spectrum(d: int) -> Tensor:
    """Return variances i⁻², of which the sum is bounded, `(d,)`."""
    return torch.arange(1, d + 1, dtype=torch.float64) ** -2.0


def moved(kernel: Kernel[Any, Any], variances: Tensor) -> tuple[Tensor, Tensor]:
    """Return a_i and b_i of a step x_i' = a_i x_i + b_i z_i on N(0, diag v), from the kernel itself."""
    target = as_target(score=lambda x: -x / variances)
    rows = torch.stack([torch.ones_like(variances), torch.zeros_like(variances)])
    noise = Injected(rows.flip(0))
    a, b = kernel.step(kernel.init(rows, target), target, generator=noise)[0].x
    return a, b


def bias(kernel: Kernel[Any, Any], variances: Tensor) -> float:
    """Return the W₂ distance of the stationary law of a kernel from N(0, diag v)."""
    a, b = moved(kernel, variances)
    return float((b / (1 - a.square()).sqrt() - variances.sqrt()).norm())


def _ones(d: int) -> Tensor:
    return torch.ones(d, dtype=torch.float64)


def _preconditioned_bias(variances: Tensor) -> float:
    """The bias with P_c the covariance itself."""
    return bias(PreconditionedULA(H, variances), variances)


def _steps(kernel: Kernel[Any, Any], variances: Tensor) -> float:
    """The steps in which the slowest direction contracts by e."""
    return -1 / math.log(float(moved(kernel, variances)[0].abs().max()))


def _steps_for(d: int, delta: float = 0.5) -> float:
    """Return the least n after which W₂(law, N(0, I_d)) ≤ δ from the start at 0, over the step h.

    Only steps count whose stationary law is that close, so that the bound remains true. (One step
    of h = ½ from 0 is N(0, I_d) itself, and the next one leaves it.)
    """
    best, near = math.inf, delta / math.sqrt(d)  # of the standard deviation of one coordinate
    for k in range(400):
        h = 4 * near * 10 ** (-1 + 1.05 * k / 399)
        a, b = (float(v) for v in moved(ULA(h), _ones(1)))
        stationary = b * b / (1 - a * a)
        if math.sqrt(stationary) - 1 <= near:
            # the variance after n steps, stationary (1 − a^{2n}), has to reach (1 − δ/√d)²
            short = 1 - (1 - near) ** 2 / stationary
            best = min(best, math.log(short) / (2 * math.log(abs(a))))
    return best


def _steps_by_formula(d: int, delta: float = 0.5) -> float:
    return math.sqrt(d) / (8 * delta) * math.log(math.sqrt(d) / (4 * delta))


def _exponential_is_exact() -> Numbers:
    """A level of variances v + σ² is left as it is, however large the step, in 10,000 dimensions."""
    v = spectrum(10_000) + 0.3**2
    a, b = moved(ExponentialEuler(5.0, v), v)
    return 0.0, ((a.square() * v + b.square()) / v - 1).abs().max()


def _annealed_is_bounded() -> Numbers:
    """Levels σ from 10 to 0.1 with P_c = S + σ²I: the W2 bias of a level in units of its size."""
    levels = [spectrum(10_000) + sigma**2 for sigma in (10.0, 1.0, 0.1)]
    return BIAS, max(_preconditioned_bias(v) / float(v.sum().sqrt()) for v in levels)


CHECKS = table(
    __name__,
    isotropic_grows=(
        exact, "the W2 bias of ULA on N(0, I_d) is √d times that of d = 1: d = 10,000", DERIVED,
        1e-10, lambda: (100 * BIAS, bias(ULA(H), _ones(10_000)))),
    planned=(
        exact, "`planning.gaussian_bias` is that of the kernel, variances i⁻², d = 300, h = v_min",
        DERIVED, 1e-10,
        lambda: (bias(ULA(300.0**-2), spectrum(300)), gaussian_bias(1 / spectrum(300), 300.0**-2))),
    trace_class_is_bounded=(
        exact, "with P_c = S it is ((1 − h/2)^−½ − 1) √(tr S): variances i⁻², d = 10,000", DERIVED,
        1e-10,
        lambda: (
            BIAS * math.sqrt(float(spectrum(10_000).sum())), _preconditioned_bias(spectrum(10_000)))),
    trace_class_limit=(
        at_most, "… and below ((1 − h/2)^−½ − 1) π/√6 for every d", DERIVED,
        lambda: (BIAS * math.pi / math.sqrt(6), _preconditioned_bias(spectrum(10_000)))),
    preconditioning_is_not_dimension_free=(
        false, "“preconditioned Langevin is dimension-free”: on N(0, I_d) its W2 bias at "
        "d = 10,000 over 100", DERIVED, 1e-9,
        lambda: (1.0, _preconditioned_bias(_ones(10_000)) / _preconditioned_bias(_ones(100)), 10.0)),
    slow_without=(
        exact, "ULA at h = 1/L on variances i⁻² contracts by e in κ = d² steps: d = 100, over d²",
        DERIVED, 1e-3, lambda: (1.0, _steps(ULA(100.0**-2), spectrum(100)) / 100**2)),
    fast_with=(
        exact, "with P_c = S in −1/log(1 − h) steps, whatever d: d = 10,000", DERIVED, 1e-9,
        lambda: (-1 / math.log(1 - H),
                 _steps(PreconditionedULA(H, spectrum(10_000)), spectrum(10_000)))),
    steps_grow=(
        exact, "steps of ULA from 0 to W2 ≤ δ of N(0, I_d) for good, h the best: "
        "√d/(8δ) log(√d/(4δ)), d = 10⁶, δ = ½: ratio", DERIVED, 0.01,
        lambda: (1.0, _steps_for(10**6) / _steps_by_formula(10**6))),
    steps_do_not_grow_as_d=(
        false, "“the steps grow as d”, as bounds for bounded Hessians and no more say: slope in "
        "log d from 10⁴ to 10⁶", DERIVED, 0.01,
        lambda: (1.0, *(order(f(10**6), f(10**4), 100) for f in (_steps_for, _steps_by_formula)))),
    exponential_is_exact=(
        exact, "an exponential integrator about the covariance of a level keeps a Gaussian: "
        "greatest error of a variance, d = 10,000, h = 5", UNIFORM, 1e-12, _exponential_is_exact),
    annealed_is_bounded=(
        exact, "the bias of a level of annealed Langevin with P_c = S + σ²I, over √(tr (S + σ²I)), "
        "is that of one dimension: d = 10,000", ANNEALED, 1e-10, _annealed_is_bounded),
)  # fmt: skip
