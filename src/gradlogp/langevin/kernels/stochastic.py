r"""Langevin kernels whose score comes from a minibatch of a `Observed`.

Noise in the score widens the stationary law by about h V/2, V its variance; no fixed step is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ...calculus.reverse import jacobian
from ...core import (
    Density,
    Generator,
    ScoreFn,
    check_count,
    check_kind,
    check_number,
    check_option,
    check_same_shape,
    randn_like,
)
from .facts import Facts, unadjusted_facts
from .minibatch import (
    Anchor,
    Estimator,
    Plain,
    StepSize,
    as_minibatched,
    draw_index,
    start,
    step_size_at,
)
from .steps import Unadjusted, check_shared, langevin_step, settle
from .underdamped import thermal

Correction = Literal["exact", "omitted"]
"""What `PSGLD` does about the divergence of its preconditioner."""


class StochasticInfo(NamedTuple):
    """Information about a minibatch step: its size, and whether the chain was frozen."""

    step_size: Float[Tensor, " chain"]
    diverging: Bool[Tensor, " chain"]


class SGLDState(NamedTuple):
    """Position, steps taken, and the anchor of the estimator with its score."""

    x: Float[Tensor, "chain *event"]
    step: Int64[Tensor, " chain"]
    anchor: Float[Tensor, "chain *anchor"]
    anchor_score: Float[Tensor, "chain *anchor"]


class SGHMCState(NamedTuple):
    """As `SGLDState`, and the momentum."""

    x: Float[Tensor, "chain *event"]
    momentum: Float[Tensor, "chain *event"]
    step: Int64[Tensor, " chain"]
    anchor: Float[Tensor, "chain *anchor"]
    anchor_score: Float[Tensor, "chain *anchor"]


class PSGLDState(NamedTuple):
    """As `SGLDState`, and the running mean of squared scores."""

    x: Float[Tensor, "chain *event"]
    square: Float[Tensor, "chain *event"]
    step: Int64[Tensor, " chain"]
    anchor: Float[Tensor, "chain *anchor"]
    anchor_score: Float[Tensor, "chain *anchor"]


def check_settings(kernel: Any) -> None:
    """Raise `ValueError` for a step size, batch size, temperature or policy out of its range."""
    check_shared(kernel, Unadjusted, schedule=True)
    check_count(kernel.batch_size, "batch_size")
    check_kind(kernel.estimator, "estimator", ("start", "refresh"), "one such as Plain()")


def prepare(
    kernel: Any, state: Any, target: Density, generator: Generator | None
) -> tuple[float, int, ScoreFn, Anchor]:
    """Return h_k, N, the estimate of the score on a batch that is drawn here, and its anchor."""
    known, estimator = as_minibatched(target, kernel.batch_size), kernel.estimator
    h = step_size_at(kernel.step_size, state.step)
    anchor = Anchor(state.anchor, state.anchor_score)
    anchor = estimator.refresh(anchor, state.x, state.step, known)
    index = draw_index(state.x, known.n_data, kernel.batch_size, kernel.replace, generator)

    def estimate(x: Tensor) -> Tensor:
        score = estimator(x, index, anchor, known)
        check_same_shape(score, x, "the score from a minibatch")
        return score

    return h, known.n_data, estimate, anchor


def taken(
    kernel: Any, state: Any, h: float, anchor: Anchor, **moved: Tensor
) -> tuple[Any, StochasticInfo]:
    """Return the state after a step of size h, and its info; time also advances for frozen chains."""
    old = tuple(getattr(state, name) for name in moved)
    new, info = settle(tuple(moved.values()), old, kernel.on_nonfinite)
    state = state._replace(
        **dict(zip(moved, new, strict=True)),
        step=state.step + 1, anchor=anchor.x, anchor_score=anchor.score,
    )  # fmt: skip
    return state, StochasticInfo(new[0].new_full(info.diverging.shape, h), info.diverging)


@dataclass(frozen=True)
class SGLD:
    r"""Stochastic gradient Langevin dynamics: ULA with a score from a minibatch.

    .. math::
        x' = x + h_k \hat g(x) + \sqrt{2 h_k τ}\, z, \quad
        \hat g(x) = \nabla \log π(x) + \frac{N}{n} \sum_{i \in S} \nabla \log ℓ(y_i | x)

    Every chain draws its own batch S, then z. On N(μ, 1/λ) with gradient noise of variance V its
    stationary variance is (1 + hV/2)/(λ(1 − hλ/2)) at τ = 1, where ULA has V = 0: a fixed step is
    never exact, but decreasing steps are asymptotically. In the convention with ε/2 and √ε, h =
    ε/2. A chain that becomes NaN or infinite stays where it was and is flagged `diverging`.

    References:
        | Bayesian Learning via Stochastic Gradient Langevin Dynamics (Welling & Teh, 2011)
        | https://mlanthology.org/icml/2011/welling2011icml-bayesian
        | Exploration of the (Non-)Asymptotic Bias and Variance of Stochastic Gradient Langevin Dynamics
          (Vollmer et al., 2016)
        | https://arxiv.org/abs/1501.00438

    Arguments:
        step_size: h > 0, or a schedule k -> h_k such as `polynomial_decay`.
        batch_size: n, the observations of a batch.
        replace: Whether a batch may hold an observation twice.
        temperature: τ ≥ 0: samples p^{1/τ}.
        estimator: `Plain()`, `ControlVariates(x_star)` or `SVRG(every)`.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a frozen chain.

    Examples:
        >>> prior = lambda x: -x.square().sum(1) / 2
        >>> likelihood = lambda x, y: -(y - x).square() / 2
        >>> target = glp.distributions.Observed(prior, likelihood, torch.ones(100))
        >>> kernel, g = glp.langevin.SGLD(1e-3, 10), torch.Generator().manual_seed(0)
        >>> chain = glp.run(kernel, target, torch.zeros(50, 1), 120, generator=g)
        >>> abs(float(chain.draws[:, 80:].mean()) - 100 / 101) < 0.03
        True
    """

    step_size: StepSize
    batch_size: int
    replace: bool = False
    temperature: float = 1.0
    estimator: Estimator = Plain()  # noqa: RUF009 (frozen)
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = unadjusted_facts(1, affine=True, draws=2)

    def __post_init__(self) -> None:
        check_settings(self)

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> SGLDState:
        """Return the state at x.

        Raises:
            ValueError: For a target without minibatches, or with fewer observations than a batch.
        """
        step, anchor = start(x, target, self.batch_size, self.estimator)
        return SGLDState(x, step, *anchor)

    def step(
        self, state: SGLDState, target: Density, *, generator: Generator | None = None
    ) -> tuple[SGLDState, StochasticInfo]:
        """Move every chain by one step."""
        h, _, estimate, anchor = prepare(self, state, target, generator)
        z = randn_like(state.x, generator)
        x = langevin_step(state.x, estimate(state.x), h, z, self.temperature)
        return taken(self, state, h, anchor, x=x)


@dataclass(frozen=True)
class SGHMC:
    r"""Stochastic gradient Hamiltonian Monte Carlo with unit mass, by symplectic Euler steps.

    .. math::
        p' = (1 - h γ)\, p + h\, \hat g(x) + \sqrt{2 h γ τ - h^2 \hat V}\, z, \quad
        x' = x + h\, p'

    The momentum is updated first, and the position uses the new momentum. (Explicit Euler, with
    both from the old values, is much worse: on N(0, 1) with γ = 1 and h = 0.1 the variance of x is
    1.114, here 1.0026.) V̂ is an estimate of the variance of ĝ, for each coordinate: the noise of
    the batch then replaces a part of z. h is a time: h²/2 corresponds to the step of `SGLD`.
    Stable for h γ < 2 and h² λ < 4 − 2hγ with λ the largest curvature. Momenta start from N(0, τ
    I), by `refresh`. A chain that becomes NaN or infinite stays where it was and is flagged
    `diverging`.

    References:
        | Stochastic Gradient Hamiltonian Monte Carlo (Chen et al., 2014)
        | https://arxiv.org/abs/1402.4102

    Arguments:
        step_size: h > 0, or a schedule k -> h_k.
        batch_size: n, the observations of a batch.
        friction: γ > 0.
        noise_estimate: V̂ ≥ 0, at most 2γτ/h.
        replace, temperature, estimator, on_nonfinite: Those of `SGLD`.
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
                "the batches alone are noisier than the friction allows; lower step_size"
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
        return taken(self, state, h, anchor, x=x, momentum=momentum)


@dataclass(frozen=True)
class PSGLD:
    r"""SGLD with the preconditioner of RMSprop, and the term that its dependence on x requires.

    .. math::
        V' &= a V + (1 - a)\, (\hat g(x)/N)^2, \quad G = \frac{1}{λ + \sqrt{V'}} \\
        x' &= x + h_k \left( G\, \hat g(x) + τ\, Γ \right) + \sqrt{2 h_k τ\, G}\, z, \quad
        Γ_i = \frac{\partial G_i}{\partial x_i}
            = -\frac{(1 - a)\, G_i^2}{\sqrt{V'_i}}\, \frac{\hat g_i}{N}\,
              \frac{1}{N} \frac{\partial \hat g_i}{\partial x_i}

    entry by entry, and V = 0 at the start. Without Γ, if G follows x quickly (a near 0), the chain
    samples p/G. Γ is exact for G as a function of the current x, with the batch and the past V
    held fixed, and is set to 0 where V' is 0 (G has a kink there). As V remembers the path, x
    alone is not a Markov chain, and pSGLD is not exact even with Γ; the remaining error vanishes
    as a -> 1.

    References:
        | Preconditioned Stochastic Gradient Langevin Dynamics for Deep Neural Networks
          (Li et al., 2016)
        | https://arxiv.org/abs/1512.07666
        | A Complete Recipe for Stochastic Gradient MCMC (Ma, Chen & Fox, 2015)
        | https://arxiv.org/abs/1506.04696

    Arguments:
        step_size: h > 0, or a schedule k -> h_k.
        batch_size: n, the observations of a batch.
        correction: "exact" adds Γ, by d vector-Jacobian products per step; "omitted" omits it, as
            is usual for large d, at the cost of a bias of order (1 − a).
        decay: a in [0, 1], the memory of V.
        regularizer: λ > 0.
        replace, temperature, estimator, on_nonfinite: Those of `SGLD`.
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
        return taken(self, state, h, anchor, x=x, square=V)
