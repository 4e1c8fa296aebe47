r"""SGLD with the preconditioner of RMSprop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ...calculus.reverse import jacobian
from ...core import Density, Generator, check_number, check_option, randn_like
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

Correction = Literal["exact", "omitted"]
"""What `PSGLD` does about the divergence of its preconditioner."""


class PSGLDState(NamedTuple):
    """As `SGLDState`, and the running mean of squared scores."""

    x: Float[Tensor, "chain *event"]
    square: Float[Tensor, "chain *event"]
    step: Int64[Tensor, " chain"]
    anchor: Float[Tensor, "chain *anchor"]
    anchor_score: Float[Tensor, "chain *anchor"]


class _Moved(NamedTuple):
    x: Float[Tensor, "chain *event"]
    square: Float[Tensor, "chain *event"]


@dataclass(frozen=True)
class PSGLD:
    r"""SGLD with the preconditioner of RMSprop, and the term that its dependence on x asks for.

    .. math::
        V' &= a V + (1 - a)\, (\hat g(x)/N)^2, \quad G = \frac{1}{λ + \sqrt{V'}} \\
        x' &= x + h_k \left( G\, \hat g(x) + τ\, Γ \right) + \sqrt{2 h_k τ\, G}\, z, \quad
        Γ_i = \frac{\partial G_i}{\partial x_i}
            = -\frac{(1 - a)\, G_i^2}{\sqrt{V'_i}}\, \frac{\hat g_i}{N}\,
              \frac{1}{N} \frac{\partial \hat g_i}{\partial x_i}

    entry by entry, and V = 0 at the start. Without Γ a G that follows x quickly (a near 0) makes
    the chain sample p/G. Γ is exact for G as a function of the present x, with the batch and the
    past V held fixed, and 0 where V' is 0 (G has a kink there). As V remembers the path, x alone is
    no Markov chain, and pSGLD is not exact even with Γ; the rest vanishes as a -> 1.

    References:
        | Preconditioned Stochastic Gradient Langevin Dynamics for Deep Neural Networks
          (Li et al., 2016)
        | https://arxiv.org/abs/1512.07666
        | A Complete Recipe for Stochastic Gradient MCMC (Ma et al., 2015)
        | https://arxiv.org/abs/1506.04696

    Arguments:
        step_size: h > 0, or a schedule k -> h_k.
        batch_size: n, the observations of a batch.
        correction: "exact" adds Γ, by d vector-Jacobian products a step; "omitted" leaves it out,
            as is usual for large d, at the price of a bias of order (1 − a).
        decay: a in [0, 1], the memory of V.
        regularizer: λ > 0.
        replace: Whether a batch may hold an observation twice.
        temperature: τ ≥ 0: samples p^{1/τ}.
        estimator: `Plain()`, `ControlVariates(x_star)` or `SVRG(every)`.
        on_nonfinite: `raise` for a `FloatingPointError` where a chain would be frozen.
    """

    step_size: StepSize
    batch_size: int
    correction: Correction
    decay: float = 0.99
    regularizer: float = 1e-5
    replace: bool = False
    temperature: float = 1.0
    estimator: Estimator = Plain()  # noqa: RUF009 (frozen)
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = unadjusted_facts(None, affine=False, draws=2)

    def __post_init__(self) -> None:
        check_settings(self)
        check_option(self.correction, "correction", Correction)
        check_number(self.decay, "decay", least=0, most=1)
        check_number(self.regularizer, "regularizer", above=0)

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> PSGLDState:
        """Return the state at x, with V = 0; errors as those of `SGLD`."""
        step, anchor = start(x, target, self.batch_size, self.estimator)
        return PSGLDState(x, torch.zeros_like(x), step, *anchor)

    def step(
        self, state: PSGLDState, target: Density, *, generator: Generator | None = None
    ) -> tuple[PSGLDState, StochasticInfo]:
        """Move every chain by one step."""
        h, N, estimate, anchor = prepare(self, state, target, generator)
        z = randn_like(state.x, generator)
        a, tau, g = self.decay, self.temperature, estimate(state.x)
        V = a * state.square + (1 - a) * (g / N).square()
        G = 1 / (self.regularizer + V.sqrt())
        drift = G * g
        if self.correction == "exact":
            slope = jacobian(estimate, state.x).diagonal(dim1=1, dim2=2).reshape(g.shape)
            ratio = torch.where(V > 0, g / V.sqrt(), 0.0)
            drift = drift - tau * (1 - a) / N**2 * G.square() * ratio * slope
        x = state.x + h * drift + (2 * h * tau * G).sqrt() * z
        moved, info = settle(_Moved(x, V), _Moved(state.x, state.square), self.on_nonfinite)
        new = PSGLDState(moved.x, moved.square, state.step + 1, *anchor)
        return new, told(h, x, info.diverging)
