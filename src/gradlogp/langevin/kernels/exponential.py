r"""An exponential integrator: the linear part of the score without error, the rest as in ULA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...core import Generator, randn_like
from .facts import Facts, unadjusted_facts
from .preconditioner import Preconditioner, as_preconditioner
from .steps import LangevinState, Overdamped, Unadjusted, check_policy, check_step


def _stationary(kernel: Any, precision: Tensor) -> Tensor:
    """Return τ Λ⁻¹ where C = Λ⁻¹, else the solution of a linear system.

    That is Σ = M Σ Mᵀ + τ C (I − E²) with M = I − C (I − E) Λ; in general C and Λ do not commute.
    """
    d = len(precision)
    M = torch.eye(d).to(precision) - kernel._gain.apply(precision).mT
    Q = kernel.temperature * kernel._noise.apply(torch.eye(d).to(precision))
    left = torch.eye(d * d).to(precision) - torch.kron(M, M)
    return torch.linalg.solve(left, Q.flatten()).reshape(d, d)


@dataclass(frozen=True)
class ExponentialEuler(Overdamped):
    r"""Langevin dynamics by an exponential integrator about N(m, C), for any m.

    The score is split into s(x) = −C⁻¹(x − m) + r(x). Over a step the linear part is solved exactly
    and r is held at its value at the start, which gives

    .. math::
        x' = x + C (I - E)\, \nabla \log p(x) + \sqrt{τ}\, \left( C (I - E^2) \right)^{1/2} z,
        \quad E = e^{-h C^{-1}}

    m drops out. On N(m, C) a step of any size h is that of the dynamics itself, so the law is
    exact; as C → ∞ it is `ULA`. On other laws the error is of order h, and the step is stable if C
    (I − E) < 2/L, L the largest curvature: for every h if C ≤ 2/L. A chain that becomes NaN or
    infinite stays where it was and is flagged `diverging`.

    References:
        | Exponential Integrators (Hochbruck & Ostermann, 2010)
        | https://doi.org/10.1017/S0962492910000048

    Arguments:
        step_size: h > 0, the time of a step.
        covariance: C, the covariance if the law were Gaussian: a number, a diagonal in the shape
            of an event, a symmetric positive definite matrix, or a `Preconditioner`.
        temperature: τ ≥ 0: samples p^{1/τ}.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a frozen chain.
    """

    step_size: float
    covariance: Preconditioner | Tensor | float
    temperature: float = 1.0
    on_nonfinite: Unadjusted = "freeze"
    _gain: Preconditioner = field(init=False, repr=False, compare=False)
    _noise: Preconditioner = field(init=False, repr=False, compare=False)

    facts: ClassVar[Facts] = unadjusted_facts(1, _stationary, affine=True)

    def __post_init__(self) -> None:
        check_step(self.step_size, self.temperature)
        check_policy(self.on_nonfinite, Unadjusted)
        C, h = as_preconditioner(self.covariance), self.step_size
        object.__setattr__(self, "covariance", C)
        object.__setattr__(self, "_gain", _function(C, lambda c: -c * torch.expm1(-h / c)))
        object.__setattr__(self, "_noise", _function(C, lambda c: -c * torch.expm1(-2 * h / c)))

    def _next(self, state: LangevinState, generator: Generator | None) -> Tensor:
        noise = self._noise.sqrt(randn_like(state.x, generator))
        return state.x + self._gain.apply(state.score) + self.temperature**0.5 * noise


def _function(C: Preconditioner, f: Callable[[Tensor], Tensor]) -> Preconditioner:
    """Return f(C), entry by entry or on the eigenvalues of a matrix."""
    if not isinstance(C.value, Tensor):
        return Preconditioner(float(f(torch.tensor(C.value, dtype=torch.float64))))
    if C.kind == "diagonal":
        return Preconditioner(f(C.value), kind="diagonal")
    w, U = torch.linalg.eigh(C.value)
    return Preconditioner((U * f(w)) @ U.mT, kind="matrix")
