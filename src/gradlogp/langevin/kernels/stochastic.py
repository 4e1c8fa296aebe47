r"""Langevin kernels whose score comes from a minibatch of a `Observed`.

Noise in the score widens the stationary law by about h V/2, V its variance; no fixed step is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ...core import (
    Density,
    Generator,
    ScoreFn,
    check_count,
    check_kind,
    check_same_shape,
    randn_like,
)
from .decreasing import StepSize, check_step_size, step_size_at
from .facts import Facts, unadjusted_facts
from .minibatch import (
    Anchor,
    Estimator,
    Plain,
    as_minibatched,
    draw_index,
    start,
)
from .steps import (
    Unadjusted,
    check_policy,
    check_step,
    langevin_step,
    settle,
)


class StochasticInfo(NamedTuple):
    """What a step on a minibatch tells: its size, and whether the chain was frozen."""

    step_size: Float[Tensor, " chain"]
    diverging: Bool[Tensor, " chain"]


class SGLDState(NamedTuple):
    """Position, steps taken, and the anchor of the estimator with its score."""

    x: Float[Tensor, "chain *event"]
    step: Int64[Tensor, " chain"]
    anchor: Float[Tensor, "chain *anchor"]
    anchor_score: Float[Tensor, "chain *anchor"]


class _Moved(NamedTuple):
    x: Float[Tensor, "chain *event"]


@runtime_checkable
class Settings(Protocol):
    """What the kernels on minibatches have in common."""

    @property
    def step_size(self) -> StepSize:
        """A step size or a schedule."""

    @property
    def batch_size(self) -> int:
        """Observations of a batch."""

    @property
    def replace(self) -> bool:
        """Whether a batch may hold an observation twice."""

    @property
    def temperature(self) -> float:
        """The temperature."""

    @property
    def estimator(self) -> Estimator:
        """The estimate of the score."""

    @property
    def on_nonfinite(self) -> Unadjusted:
        """What to do with a chain that becomes NaN or infinite."""


@runtime_checkable
class Progress(Protocol):
    """What the states of these kernels have in common."""

    @property
    def x(self) -> Tensor:
        """Position."""

    @property
    def step(self) -> Tensor:
        """Steps taken."""

    @property
    def anchor(self) -> Tensor:
        """Anchor of the estimator."""

    @property
    def anchor_score(self) -> Tensor:
        """Score at the anchor."""


def check_settings(kernel: Settings) -> None:
    """Raise `ValueError` for a step size, batch size, temperature or policy out of its range."""
    check_step_size(kernel.step_size)
    check_step(1.0, kernel.temperature)
    check_count(kernel.batch_size, "batch_size")
    check_kind(kernel.estimator, "estimator", ("start", "refresh"), "one such as Plain()")
    check_policy(kernel.on_nonfinite, Unadjusted)


def prepare(
    kernel: Settings, state: Progress, target: Density, generator: Generator | None
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


def told(h: float, x: Tensor, diverging: Tensor) -> StochasticInfo:
    """Return what a step of size h tells."""
    return StochasticInfo(x.new_full(diverging.shape, h), diverging)


@dataclass(frozen=True)
class SGLD:
    r"""Stochastic gradient Langevin dynamics: ULA with a score from a minibatch.

    .. math::
        x' = x + h_k \hat g(x) + \sqrt{2 h_k τ}\, z, \quad
        \hat g(x) = \nabla \log π(x) + \frac{N}{n} \sum_{i \in S} \nabla \log ℓ(y_i | x)

    Every chain draws a batch S of its own, then z. On N(μ, 1/λ) with gradient noise of variance V
    its stationary variance is (1 + hV/2)/(λ(1 − hλ/2)) at τ = 1, where ULA has V = 0: a fixed step
    is never exact, steps that decrease get there. Whoever thinks in ε/2 and √ε has h = ε/2. A chain
    that becomes NaN or infinite stays where it was and is flagged `diverging`.

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
        on_nonfinite: `raise` for a `FloatingPointError` where a chain would be frozen.

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
        moved, info = settle(_Moved(x), _Moved(state.x), self.on_nonfinite)
        new = SGLDState(moved.x, state.step + 1, *anchor)  # time goes on for a frozen chain too
        return new, told(h, x, info.diverging)
