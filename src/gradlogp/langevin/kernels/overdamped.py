r"""Overdamped Langevin kernels: ULA and its Metropolis correction MALA.

For a density p on R^d every kernel here discretises dX = ∇ log p(X) dt + √2 dW with step size h.
Whoever thinks in steps of ε/2 and √ε has h = ε/2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import Density, Generator, randn_like
from .facts import LANGEVIN, Facts, metropolis_facts, unadjusted_facts
from .preconditioner import IDENTITY, Preconditioner, as_preconditioner
from .steps import (
    Adjusted,
    LangevinState,
    MetropolisInfo,
    MetropolisState,
    Overdamped,
    Unadjusted,
    check_policy,
    check_step,
    check_warm,
    decided,
    metropolis_start,
    proposed,
    step_of,
)
from .steps import langevin_step as langevin_step


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
        on_nonfinite: `raise` for a `FloatingPointError` where a chain would be frozen.
    """

    step_size: float
    temperature: float = 1.0
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = unadjusted_facts(1, _inflated, affine=True)

    def __post_init__(self) -> None:
        check_step(self.step_size, self.temperature)
        check_policy(self.on_nonfinite, Unadjusted)

    def _next(self, state: LangevinState, generator: Generator | None) -> Tensor:
        z = randn_like(state.x, generator)
        return langevin_step(state.x, state.score, self.step_size, z, self.temperature)


@dataclass(frozen=True)
class MALA:
    r"""Metropolis-adjusted Langevin algorithm: a Langevin step as a proposal, then accept or stay.

    .. math::
        y = x + h P \nabla \log p(x) + \sqrt{2 h}\, P^{1/2} z, \quad
        a(x, y) = \min\left(1, \frac{p(y)\, q(x|y)}{p(x)\, q(y|x)}\right), \quad
        q(y|x) = N(y; x + h P \nabla \log p(x), 2 h P)

    It keeps p exactly. A proposal outside the support, log p = −∞, is rejected like any other; one
    that is otherwise not finite is rejected and flagged `diverging`.

    References:
        | Exponential Convergence of Langevin Distributions and Their Discrete Approximations
          (Roberts & Tweedie, 1996)
        | https://doi.org/10.2307/3318418
        | Optimal Scaling of Discrete Approximations to Langevin Diffusions
          (Roberts & Rosenthal, 1998)
        | https://doi.org/10.1111/1467-9868.00123

    Arguments:
        step_size: h > 0; `warm_up` finds one. A tensor `(chain,)` while it is tuned.
        temperature: τ > 0: samples p^{1/τ}.
        preconditioner: P, a constant: a number, a diagonal in the shape of an event, a symmetric
            positive definite matrix, or a `Preconditioner`.
        on_nonfinite: `raise` for a `FloatingPointError` where a proposal would be flagged.
    """

    step_size: float | Tensor
    temperature: float = 1.0
    preconditioner: Preconditioner | Tensor | float = IDENTITY
    on_nonfinite: Adjusted = "reject"

    facts: ClassVar[Facts] = metropolis_facts(LANGEVIN, step_per_chain=True)

    def __post_init__(self) -> None:
        check_step(self.step_size, self.temperature, per_chain=True)
        check_warm(self, self.temperature)
        check_policy(self.on_nonfinite, Adjusted)
        object.__setattr__(self, "preconditioner", as_preconditioner(self.preconditioner))

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> MetropolisState:
        """Return the state at x.

        Raises:
            ValueError: If the target has no log-density, or it is not finite at x.
        """
        return metropolis_start(x, target)

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
