r"""Stochastic gradient Hamiltonian Monte Carlo: underdamped dynamics on minibatches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ...core import Density, Generator, check_number, randn_like
from .decreasing import StepSize
from .facts import Facts, unadjusted_facts
from .minibatch import Estimator, Plain, start
from .steps import Unadjusted, settle
from .stochastic import (
    StochasticInfo,
    check_settings,
    prepare,
    told,
)
from .underdamped import thermal


class SGHMCState(NamedTuple):
    """As `SGLDState`, and the momentum."""

    x: Float[Tensor, "chain *event"]
    momentum: Float[Tensor, "chain *event"]
    step: Int64[Tensor, " chain"]
    anchor: Float[Tensor, "chain *anchor"]
    anchor_score: Float[Tensor, "chain *anchor"]


class _Moved(NamedTuple):
    x: Float[Tensor, "chain *event"]
    momentum: Float[Tensor, "chain *event"]


@dataclass(frozen=True)
class SGHMC:
    r"""Stochastic gradient Hamiltonian Monte Carlo with unit mass, by symplectic Euler steps.

    .. math::
        p' = (1 - h γ)\, p + h\, \hat g(x) + \sqrt{2 h γ τ - h^2 \hat V}\, z, \quad
        x' = x + h\, p'

    The momentum goes first and the position takes the new one. (Both from the old values, explicit
    Euler, is much worse: on N(0, 1) with γ = 1 and h = 0.1 the variance of x is 1.114, here
    1.0026.) V̂ is what is known of the variance of ĝ, for each coordinate: the noise of the batch
    then does part of the work of z. h is a time: it compares with h²/2 of `SGLD`. Stable for
    h γ < 2 and h² λ < 4 − 2hγ with λ the largest curvature. Momenta start from N(0, τ I), by `refresh`.
    A chain that becomes NaN or infinite stays where it was and is flagged `diverging`.

    References:
        | Stochastic Gradient Hamiltonian Monte Carlo (Chen et al., 2014)
        | https://arxiv.org/abs/1402.4102

    Arguments:
        step_size: h > 0, or a schedule k -> h_k.
        batch_size: n, the observations of a batch.
        friction: γ > 0.
        noise_estimate: V̂ ≥ 0, at most 2γτ/h.
        replace: Whether a batch may hold an observation twice.
        temperature: τ ≥ 0: samples p^{1/τ}.
        estimator: `Plain()`, `ControlVariates(x_star)` or `SVRG(every)`.
        on_nonfinite: `raise` for a `FloatingPointError` where a chain would be frozen.
    """

    step_size: StepSize
    batch_size: int
    friction: float = 1.0
    noise_estimate: float = 0.0
    replace: bool = False
    temperature: float = 1.0
    estimator: Estimator = Plain()  # noqa: RUF009 (frozen)
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = unadjusted_facts(1, affine=True, draws=2)

    def __post_init__(self) -> None:
        check_settings(self)
        check_number(self.friction, "friction", above=0)
        check_number(self.noise_estimate, "noise_estimate", least=0)
        if not callable(self.step_size):
            self._injected(self.step_size)

    def _injected(self, h: float) -> float:
        """Return the variance of the noise that a step adds."""
        variance = 2 * h * self.friction * self.temperature - h**2 * self.noise_estimate
        if variance < 0:
            raise ValueError(
                f"noise_estimate must be at most 2 friction temperature / step_size = "
                f"{2 * self.friction * self.temperature / h:.4g}, got {self.noise_estimate}: "
                "the batches alone are noisier than the friction can take; lower step_size"
            )
        return variance

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> SGHMCState:
        """Return the state at x with momentum 0, which `refresh` draws; errors as those of `SGLD`."""
        step, anchor = start(x, target, self.batch_size, self.estimator)
        return SGHMCState(x, torch.zeros_like(x), step, *anchor)

    def refresh(self, state: SGHMCState, *, generator: Generator | None = None) -> SGHMCState:
        """Return the state with momenta from N(0, τ I), their law as h → 0."""
        return state._replace(momentum=thermal(state.x, self.temperature, generator))

    def step(
        self, state: SGHMCState, target: Density, *, generator: Generator | None = None
    ) -> tuple[SGHMCState, StochasticInfo]:
        """Move every chain by one step."""
        h, _, estimate, anchor = prepare(self, state, target, generator)
        z = randn_like(state.x, generator)
        momentum = (1 - h * self.friction) * state.momentum + h * estimate(state.x)
        momentum = momentum + math.sqrt(self._injected(h)) * z
        x = state.x + h * momentum
        old = _Moved(state.x, state.momentum)
        moved, info = settle(_Moved(x, momentum), old, self.on_nonfinite)
        new = SGHMCState(moved.x, moved.momentum, state.step + 1, *anchor)
        return new, told(h, x, info.diverging)
