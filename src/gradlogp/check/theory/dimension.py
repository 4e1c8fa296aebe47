r"""Claims on high dimension: what grows with it, what does not, and under which conditions.

Everything here is about Gaussians and single levels, where laws are exact in any number of
dimensions. "Dimension-free" is a theorem on continuous time or an exponential integrator, in
Kullback–Leibler divergence, under spectral conditions; none of it holds for isotropic covariances.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...core import Injected, Kernel
from ...distributions.as_target import as_target
from ...langevin.kernels import ULA, PreconditionedULA
from ...langevin.kernels.exponential import ExponentialEuler
from ...langevin.planning import gaussian_bias
from .claim import Numbers, at_most, claim, collect, exact, false

DERIVED = "derived, docs/theory.md"
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


@claim(
    exact, "the W2 bias of ULA on N(0, I_d) is √d times that of d = 1: d = 10,000", DERIVED, 1e-10
)
def isotropic_grows() -> Numbers:
    ones = partial(torch.ones, dtype=torch.float64)
    return 100 * BIAS, bias(ULA(H), ones(10_000))


@claim(
    exact, "`planning.gaussian_bias` is that of the kernel, variances i⁻², d = 300, h = v_min",
    DERIVED, 1e-10,
)  # fmt: skip
def planned() -> Numbers:
    w = spectrum(300)
    return bias(ULA(float(w[-1])), w), gaussian_bias(1 / w, float(w[-1]))


@claim(
    exact, "with P_c = S it is ((1 − h/2)^−½ − 1) √(tr S): variances i⁻², d = 10,000",
    DERIVED, 1e-10,
)  # fmt: skip
def trace_class_is_bounded() -> Numbers:
    w = spectrum(10_000)
    return BIAS * math.sqrt(float(w.sum())), bias(PreconditionedULA(H, w), w)


@claim(at_most, "… and below ((1 − h/2)^−½ − 1) π/√6 for every d", DERIVED)
def trace_class_limit() -> Numbers:
    w = spectrum(10_000)
    return BIAS * math.pi / math.sqrt(6), bias(PreconditionedULA(H, w), w)


@claim(
    false,
    "“preconditioned Langevin is dimension-free”: on N(0, I_d) its W2 bias at d = 10,000 over 100",
    DERIVED, 1e-9,
)  # fmt: skip
def preconditioning_is_not_dimension_free() -> Numbers:
    ratio = [
        bias(PreconditionedULA(H, w), w) for w in (torch.ones(d).double() for d in (100, 10_000))
    ]
    return 1.0, ratio[1] / ratio[0], 10.0


def _rate(kernel: Kernel[Any, Any], variances: Tensor) -> float:
    """Return the steps in which the slowest direction contracts by e."""
    return -1 / math.log(float(moved(kernel, variances)[0].abs().max()))


@claim(
    exact, "ULA at h = 1/L on variances i⁻² contracts by e in κ = d² steps: d = 100, over d²",
    DERIVED, 1e-3,
)  # fmt: skip
def slow_without() -> Numbers:
    w = spectrum(100)
    return 1.0, _rate(ULA(float(w[-1])), w) / 100**2


@claim(exact, "with P_c = S in −1/log(1 − h) steps, whatever d: d = 10,000", DERIVED, 1e-9)
def fast_with() -> Numbers:
    return -1 / math.log(1 - H), _rate(PreconditionedULA(H, spectrum(10_000)), spectrum(10_000))


def _steps_for(delta: float, d: int) -> float:
    """Return the least n after which W₂(law, N(0, I_d)) ≤ δ from the start at 0, over the step h.

    For good: of steps whose stationary law is as near. (One step of h = ½ from 0 is N(0, I_d) itself,
    and the next one leaves it.)
    """
    best, near = math.inf, delta / math.sqrt(d)  # of the standard deviation of one coordinate
    for k in range(400):
        h = 4 * near * 10 ** (-1 + 1.05 * k / 399)
        a, b = (float(v) for v in moved(ULA(h), torch.ones(1, dtype=torch.float64)))
        stationary = b * b / (1 - a * a)
        if math.sqrt(stationary) - 1 <= near:
            # the variance after n steps, stationary (1 − a^{2n}), has to reach (1 − δ/√d)²
            short = 1 - (1 - near) ** 2 / stationary
            best = min(best, math.log(short) / (2 * math.log(abs(a))))
    return best


def _steps_formula(delta: float, d: int) -> float:
    return math.sqrt(d) / (8 * delta) * math.log(math.sqrt(d) / (4 * delta))


@claim(
    exact,
    "steps of ULA from 0 to W2 ≤ δ of N(0, I_d) for good, h the best: √d/(8δ) log(√d/(4δ)), "
    "d = 10⁶, δ = ½: ratio",
    DERIVED, 0.01,
)  # fmt: skip
def steps_grow() -> Numbers:
    return 1.0, _steps_for(0.5, 10**6) / _steps_formula(0.5, 10**6)


@claim(
    false, "“the steps grow as d”, as bounds for bounded Hessians and no more say: slope in "
    "log d from 10⁴ to 10⁶",
    DERIVED, 0.01,
)  # fmt: skip
def steps_do_not_grow_as_d() -> Numbers:
    d = (10**4, 10**6)
    slope, true = (
        math.log(steps(0.5, d[1]) / steps(0.5, d[0])) / math.log(d[1] / d[0])
        for steps in (_steps_for, _steps_formula)
    )
    return 1.0, slope, true


@claim(
    exact,
    "an exponential integrator about the covariance of a level keeps a Gaussian: greatest error of "
    "a variance, d = 10,000, h = 5",
    UNIFORM, 1e-12,
)  # fmt: skip
def exponential_is_exact() -> Numbers:
    """A level of variances v + σ² is left as it is, however large the step, in 10,000 dimensions."""
    v = spectrum(10_000) + 0.3**2
    a, b = moved(ExponentialEuler(5.0, v), v)
    return 0.0, ((a.square() * v + b.square()) / v - 1).abs().max()


@claim(
    exact,
    "the bias of a level of annealed Langevin with P_c = S + σ²I, over √(tr (S + σ²I)), is that of "
    "one dimension: d = 10,000",
    ANNEALED, 1e-10,
)  # fmt: skip
def annealed_is_bounded() -> Numbers:
    """Levels σ from 10 to 0.1 with P_c = S + σ²I: the W2 bias of a level in units of its size."""
    worst = 0.0
    for sigma in (10.0, 1.0, 0.1):
        v = spectrum(10_000) + sigma**2
        worst = max(worst, bias(PreconditionedULA(H, v), v) / float(v.sum().sqrt()))
    return BIAS, worst


CHECKS = collect(globals())
"""The claims of this file, in the order of the report."""
