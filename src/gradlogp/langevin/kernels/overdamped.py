r"""Overdamped Langevin kernels: ULA, its Metropolis correction MALA, and variants of ULA.

For a density p on R^d every kernel here discretises dX = ∇ log p(X) dt + √2 dW with step size h.
In the convention with ε/2 and √ε, h = ε/2. An exponential integrator solves the linear part of
the score without error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import Density, Generator, per_sample, randn_like
from .facts import LANGEVIN, Facts, metropolis_facts, target_covariance, unadjusted_facts
from .preconditioner import IDENTITY, Preconditioner, as_preconditioner
from .steps import (
    Adjusted,
    LangevinInfo,
    LangevinState,
    Metropolised,
    MetropolisInfo,
    MetropolisState,
    Overdamped,
    Unadjusted,
    check_shared,
    decided,
    langevin_start,
    langevin_step,
    proposed,
    scored,
    settle,
    step_of,
)


def _inflated(kernel: Any, precision: Tensor) -> Tensor:
    """Return τ (Λ − (h/2) Λ²)⁻¹."""
    narrowed = precision - kernel.step_size / 2 * precision @ precision
    return kernel.temperature * torch.linalg.inv(narrowed)


@dataclass(frozen=True)
class ULA(Overdamped):
    r"""Unadjusted Langevin algorithm.

    .. math:: x' = x + h \nabla \log p(x) + \sqrt{2 h τ}\, z, \quad z \sim N(0, I)

    On N(μ, S) at τ = 1 its law tends to covariance S (I − h S⁻¹/2)⁻¹, not S, and it is stable
    for h < 2/L with L the largest eigenvalue of S⁻¹. A chain whose proposal is not finite stays
    where it was and is flagged `diverging`.

    References:
        | Exponential Convergence of Langevin Distributions and Their Discrete Approximations
          (Roberts & Tweedie, 1996)
        | https://doi.org/10.2307/3318418

    Arguments:
        step_size: h > 0.
        temperature: τ ≥ 0: samples p^{1/τ}; 0 is gradient flow.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a frozen chain.

    Examples:
        >>> target, g = glp.Gaussian([0.0]), torch.Generator().manual_seed(0)
        >>> chain = glp.run(glp.langevin.ULA(0.5), target, torch.zeros(200, 1), 200, generator=g)
        >>> abs(float(chain.draws[:, 50:].var()) - 1 / (1 - 0.5 / 2)) < 0.05
        True
    """

    step_size: float
    temperature: float = 1.0
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = unadjusted_facts(1, _inflated, affine=True)

    def _next(self, state: LangevinState, generator: Generator | None) -> Tensor:
        z = randn_like(state.x, generator)
        return langevin_step(state.x, state.score, self.step_size, z, self.temperature)


@dataclass(frozen=True)
class MALA(Metropolised):
    r"""Metropolis-adjusted Langevin algorithm: a Langevin step as a proposal, then accept or stay.

    .. math::
        y = x + h P \nabla \log p(x) + \sqrt{2 h}\, P^{1/2} z, \quad
        a(x, y) = \min\left(1, \frac{p(y)\, q(x|y)}{p(x)\, q(y|x)}\right), \quad
        q(y|x) = N(y; x + h P \nabla \log p(x), 2 h P)

    It leaves p exactly invariant. A proposal outside the support, log p = −∞, is rejected like any
    other; one that is otherwise not finite is rejected and flagged `diverging`.

    References:
        | Exponential Convergence of Langevin Distributions and Their Discrete Approximations
          (Roberts & Tweedie, 1996)
        | https://doi.org/10.2307/3318418
        | Optimal Scaling of Discrete Approximations to Langevin Diffusions
          (Roberts & Rosenthal, 1998)
        | https://doi.org/10.1111/1467-9868.00123

    Arguments:
        step_size: h > 0; `warm_up` tunes it. A tensor `(chain,)` while it is tuned.
        temperature: τ > 0: samples p^{1/τ}.
        preconditioner: P, a constant: a number, a diagonal in the shape of an event, a symmetric
            positive definite matrix, or a `Preconditioner`.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a flag.

    Examples:
        >>> target, g = glp.Gaussian(torch.zeros(2)), torch.Generator().manual_seed(0)
        >>> chain = glp.run(glp.langevin.MALA(0.5), target, torch.zeros(100, 2), 100, generator=g)
        >>> 0.5 < float(chain.info.acceptance.mean()) < 1.0
        True
    """

    step_size: float | Tensor
    temperature: float = 1.0
    preconditioner: Preconditioner | Tensor | float = IDENTITY
    on_nonfinite: Adjusted = "reject"

    facts: ClassVar[Facts] = metropolis_facts(LANGEVIN, step_per_chain=True)

    def __post_init__(self) -> None:
        check_shared(self, Adjusted, per_chain=True)

    def step(
        self, state: MetropolisState, target: Density, *, generator: Generator | None = None
    ) -> tuple[MetropolisState, MetropolisInfo]:
        """Move every chain by one step."""
        h, tau, P = self.step_size, self.temperature, as_preconditioner(self.preconditioner)
        z = randn_like(state.x, generator)
        y = langevin_step(state.x, P.apply(state.score), h, P.sqrt(z), tau)
        proposal = proposed(y, target)
        log_ratio = (
            (proposal.log_prob - state.log_prob) / tau
            + log_proposal(x_to=state.x, x_from=y, score_from=proposal.score, h=h, tau=tau, P=P)
            - log_proposal(x_to=y, x_from=state.x, score_from=state.score, h=h, tau=tau, P=P)
        )
        return decided(log_ratio, proposal, state, self.on_nonfinite, generator)


def log_proposal(
    *,
    x_to: Tensor,
    x_from: Tensor,
    score_from: Tensor,
    h: float | Tensor,
    tau: float = 1.0,
    P: Preconditioner = IDENTITY,
) -> Tensor:
    """Return log q(x_to | x_from) up to a constant: N(x_to; x_from + h P s(x_from), 2 h τ P)."""
    gap = x_to - x_from - step_of(h, x_from) * P.apply(score_from)
    return -P.inv_quadratic(gap) / (4 * h * tau)


class AveragedState(NamedTuple):
    """Position, its score, and the noise of the last step."""

    x: Float[Tensor, "chain *event"]
    score: Float[Tensor, "chain *event"]
    z: Float[Tensor, "chain *event"]


@dataclass(frozen=True)
class LeimkuhlerMatthews:
    r"""Langevin dynamics with the average of two consecutive noises.

    .. math:: x_{k+1} = x_k + h \nabla \log p(x_k) + \sqrt{2 h τ}\, \frac{z_k + z_{k+1}}{2}

    It costs one score per step, like ULA. Its stationary law has an error of order h², compared
    with order h for ULA, and is exact on Gaussians for every stable h < 2/L. It is the limit of
    `BAOAB` at infinite friction with steps of √(2h). A chain starts with z_0 = 0; one that becomes
    NaN or infinite stays where it was and is flagged `diverging`.

    References:
        | Rational Construction of Stochastic Numerical Methods for Molecular Sampling
          (Leimkuhler & Matthews, 2013)
        | https://doi.org/10.1093/amrx/abs010

    Arguments:
        step_size: h > 0.
        temperature: τ ≥ 0: samples p^{1/τ}; 0 is gradient flow.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a frozen chain.
    """

    step_size: float
    temperature: float = 1.0
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = unadjusted_facts(2, target_covariance, affine=True)

    def __post_init__(self) -> None:
        check_shared(self, Unadjusted)

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> AveragedState:
        """Return the state at x, with z_0 = 0."""
        start = langevin_start(x, target)
        return AveragedState(start.x, start.score, torch.zeros_like(x))

    def step(
        self, state: AveragedState, target: Density, *, generator: Generator | None = None
    ) -> tuple[AveragedState, LangevinInfo]:
        """Move every chain by one step."""
        z = randn_like(state.x, generator)
        mean = (state.z + z) / 2
        x = langevin_step(state.x, state.score, self.step_size, mean, self.temperature)
        return settle(AveragedState(x, scored(x, target), z), state, self.on_nonfinite)


@dataclass(frozen=True)
class TamedULA(Overdamped):
    r"""ULA with a drift that cannot exceed 1 in a step, for scores that grow faster than x.

    .. math:: x' = x + \frac{h s}{1 + h \|s\|} + \sqrt{2 h τ}\, z, \quad s = \nabla \log p(x)

    with the norm over the event of each chain, or entry by entry `h s_i / (1 + h |s_i|)`. The bound
    is one unit of x: scale x so that a unit is a sensible step. A chain that becomes NaN or
    infinite stays where it was and is flagged `diverging`.

    References:
        | The Tamed Unadjusted Langevin Algorithm (Brosse, Durmus, Moulines & Sabanis, 2019)
        | https://arxiv.org/abs/1710.05559

    Arguments:
        step_size: h > 0.
        temperature: τ ≥ 0: samples p^{1/τ}.
        coordinatewise: Whether each entry is tamed separately.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a frozen chain.
    """

    step_size: float
    temperature: float = 1.0
    coordinatewise: bool = False
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = unadjusted_facts(1, affine=False)

    def _next(self, state: LangevinState, generator: Generator | None) -> Tensor:
        h, s = self.step_size, state.score
        size = s.abs() if self.coordinatewise else per_sample(_norm(s), s)
        z = randn_like(state.x, generator)
        return langevin_step(state.x, s / (1 + h * size), h, z, self.temperature)


def _preconditioned(kernel: Any, precision: Tensor) -> Tensor:
    """Return τ (Λ − (h/2) Λ P Λ)⁻¹."""
    narrowed = (
        precision - kernel.step_size / 2 * kernel.preconditioner.apply(precision) @ precision
    )
    return kernel.temperature * torch.linalg.inv(narrowed)


@dataclass(frozen=True)
class PreconditionedULA(Overdamped):
    r"""ULA in different coordinates, by a constant symmetric positive definite P.

    .. math:: x' = x + h P \nabla \log p(x) + \sqrt{2 h τ}\, P^{1/2} z

    It is ULA on P^{-1/2} x. On N(μ, Λ⁻¹) at τ = 1 its law tends to precision Λ − (h/2) Λ P Λ, and
    with P = Λ⁻¹ every direction contracts by 1 − h. A P that depends on x needs an additional
    term: see `PositionDependentULA`. A chain that becomes NaN or infinite stays where it was and
    is flagged `diverging`.

    Arguments:
        step_size: h > 0.
        preconditioner: P: a number, a diagonal in the shape of an event, a symmetric positive
            definite matrix, or a `Preconditioner`.
        temperature: τ ≥ 0: samples p^{1/τ}; 0 is preconditioned gradient flow.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a frozen chain.
    """

    step_size: float
    preconditioner: Preconditioner | Tensor | float
    temperature: float = 1.0
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = unadjusted_facts(1, _preconditioned, affine=True)

    def _next(self, state: LangevinState, generator: Generator | None) -> Tensor:
        P = as_preconditioner(self.preconditioner)
        z = randn_like(state.x, generator)
        drift, noise = P.apply(state.score), P.sqrt(z)
        return langevin_step(state.x, drift, self.step_size, noise, self.temperature)


def _norm(s: Tensor) -> Tensor:
    """The Euclidean norm of each event, without overflow in the squares."""
    largest = s.flatten(1).abs().amax(1).clamp(min=torch.finfo(s.dtype).tiny)
    return largest * (s.flatten(1) / largest[:, None]).norm(dim=1)


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
        temperature, on_nonfinite: As in `ULA`.
    """

    step_size: float
    covariance: Preconditioner | Tensor | float
    temperature: float = 1.0
    on_nonfinite: Unadjusted = "freeze"
    _gain: Preconditioner = field(init=False, repr=False, compare=False)
    _noise: Preconditioner = field(init=False, repr=False, compare=False)

    facts: ClassVar[Facts] = unadjusted_facts(1, _stationary, affine=True)

    def __post_init__(self) -> None:
        super().__post_init__()
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
