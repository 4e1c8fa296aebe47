r"""Overdamped Langevin kernels.

For a density p on R^d every kernel here discretises dX = ∇ log p(X) dt + √2 dW with step size h.
Whoever thinks in steps of ε/2 and √ε has h = ε/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core import (
    Density,
    Generator,
    check_batch,
    check_same_shape,
    per_sample,
    rand_like,
    randn_like,
    sum_event,
)


class LangevinState(NamedTuple):
    """Position and its score."""

    x: Float[Tensor, "chain *event"]
    score: Float[Tensor, "chain *event"]


class LangevinInfo(NamedTuple):
    """What a step of an unadjusted kernel tells: whether the chain left the finite numbers."""

    diverging: Bool[Tensor, " chain"]


class MetropolisState(NamedTuple):
    """Position, its score and its log-density (up to a constant)."""

    x: Float[Tensor, "chain *event"]
    score: Float[Tensor, "chain *event"]
    log_prob: Float[Tensor, " chain"]


class MetropolisInfo(NamedTuple):
    """What a Metropolis step tells, for each chain."""

    acceptance: Float[Tensor, " chain"]
    accepted: Bool[Tensor, " chain"]
    log_prob: Float[Tensor, " chain"]
    diverging: Bool[Tensor, " chain"]


def langevin_step(
    x: Tensor, score: Tensor, h: float, z: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return x + h s(x) + √(2 h τ) z."""
    return torch.add(x, score, alpha=h).add_(z, alpha=math.sqrt(2 * h * temperature))


def _check_step(step_size: float, temperature: float) -> None:
    if not (step_size > 0 and math.isfinite(step_size)):
        raise ValueError(f"step_size must be positive and finite, got {step_size}")
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")


def _finite(x: Tensor) -> Tensor:
    return torch.isfinite(x).flatten(1).all(1)


def _scored(x: Tensor, target: Density) -> Tensor:
    score = target.score(x)
    check_same_shape(score, x, "the score")
    return score


@dataclass(frozen=True)
class ULA:
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
    """

    step_size: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_step(self.step_size, self.temperature)

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> LangevinState:
        """Return the state at x."""
        check_batch(x, name="x0")
        return LangevinState(x, _scored(x, target))

    def step(
        self, state: LangevinState, target: Density, *, generator: Generator | None = None
    ) -> tuple[LangevinState, LangevinInfo]:
        """Move every chain by one step."""
        z = randn_like(state.x, generator)
        x = langevin_step(state.x, state.score, self.step_size, z, self.temperature)
        score = _scored(x, target)
        ok = _finite(x) & _finite(score)
        if not bool(ok.all()):
            keep = per_sample(ok, x).bool()
            x, score = torch.where(keep, x, state.x), torch.where(keep, score, state.score)
        return LangevinState(x, score), LangevinInfo(diverging=~ok)


@dataclass(frozen=True)
class MALA:
    r"""Metropolis-adjusted Langevin algorithm: ULA's step as a proposal, then accept or stay.

    .. math::
        y = x + h \nabla \log p(x) + \sqrt{2 h}\, z, \quad
        a(x, y) = \min\left(1, \frac{p(y)\, q(x|y)}{p(x)\, q(y|x)}\right), \quad
        q(y|x) = N(y; x + h \nabla \log p(x), 2 h I)

    It keeps p exactly. A proposal that is not finite is rejected and flagged `diverging`.

    References:
        | Exponential Convergence of Langevin Distributions and Their Discrete Approximations
          (Roberts & Tweedie, 1996)
        | https://doi.org/10.2307/3318418
        | Optimal Scaling of Discrete Approximations to Langevin Diffusions
          (Roberts & Rosenthal, 1998)
        | https://doi.org/10.1111/1467-9868.00123

    Arguments:
        step_size: h > 0; in high dimension the best acceptance is near 0.574.
        temperature: τ > 0: samples p^{1/τ}.
    """

    step_size: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_step(self.step_size, self.temperature)
        if self.temperature == 0:
            raise ValueError(
                "MALA needs temperature > 0; for gradient flow use ULA(temperature=0)"
            )

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> MetropolisState:
        """Return the state at x.

        Raises:
            ValueError: If the target has no log-density, or it is not finite at x.
        """
        check_batch(x, name="x0")
        log_prob = target.log_prob(x)
        if not bool(torch.isfinite(log_prob).all()):
            bad = int((~torch.isfinite(log_prob)).sum())
            raise ValueError(f"the log-density is not finite at {bad} of {len(x)} starting points")
        return MetropolisState(x, _scored(x, target), log_prob)

    def step(
        self, state: MetropolisState, target: Density, *, generator: Generator | None = None
    ) -> tuple[MetropolisState, MetropolisInfo]:
        """Move every chain by one step."""
        h, tau = self.step_size, self.temperature
        z = randn_like(state.x, generator)
        y = langevin_step(state.x, state.score, h, z, tau)
        proposal = MetropolisState(y, _scored(y, target), target.log_prob(y))
        log_ratio = (
            (proposal.log_prob - state.log_prob) / tau
            + log_proposal(x_to=state.x, x_from=y, score_from=proposal.score, h=h, tau=tau)
            - log_proposal(x_to=y, x_from=state.x, score_from=state.score, h=h, tau=tau)
        )
        ok = _finite(y) & _finite(proposal.score) & torch.isfinite(log_ratio)
        acceptance = torch.where(ok, log_ratio, -torch.inf).clamp(max=0.0).exp()
        accepted = rand_like(acceptance, generator) < acceptance
        take = per_sample(accepted, y).bool()
        moved = MetropolisState(
            torch.where(take, proposal.x, state.x),
            torch.where(take, proposal.score, state.score),
            torch.where(accepted, proposal.log_prob, state.log_prob),
        )
        return moved, MetropolisInfo(acceptance, accepted, moved.log_prob, diverging=~ok)


def log_proposal(
    *, x_to: Tensor, x_from: Tensor, score_from: Tensor, h: float, tau: float = 1.0
) -> Tensor:
    """Return log q(x_to | x_from) up to a constant: N(x_to; x_from + h s(x_from), 2 h τ I)."""
    return -sum_event((x_to - x_from - h * score_from).square()) / (4 * h * tau)
