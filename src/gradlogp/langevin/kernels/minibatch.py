r"""What minibatches need: observations, estimates of the score from them, and steps that decrease."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ...core import (
    Density,
    Generator,
    check_batch,
    check_count,
    check_finite,
    check_number,
    per_sample,
    rand_like,
)
from .steps import scored


@runtime_checkable
class Minibatched(Density, Protocol):
    """A density of n_data observations whose score can be estimated from some: `Observed`."""

    @property
    def n_data(self) -> int:
        """The number of observations N."""

    def minibatch_score(self, x: Tensor, index: Tensor) -> Tensor:
        """Return the estimate of the score from the observations `(n,)` or `(B, n)`."""


def as_minibatched(target: Density, batch_size: int) -> Minibatched:
    """Return the target, refusing one without minibatches or with too few observations."""
    if not isinstance(target, Minibatched):
        raise ValueError(
            "this kernel needs a target with minibatches; create one with "
            "Observed(log_prior, log_likelihood, data), or use ULA"
        )
    if batch_size > target.n_data:
        raise ValueError(
            f"batch_size must be at most the number of observations, {target.n_data}, got {batch_size}"
        )
    return target


def draw_index(
    x: Tensor, n_data: int, batch_size: int, replace: bool, generator: Generator | None
) -> Int64[Tensor, "chain batch"]:
    """Draw batch_size of n_data observations for every chain, each subset equally likely.

    References:
        | Programming Pearls: A Sample of Brilliance (Bentley & Floyd, 1987)
        | https://doi.org/10.1145/30401.315746
    """
    # Rows of noise are chains, here as everywhere: `Streams` then gives a chain the same batches
    # in chunks of any size. Which of the methods is taken depends on n and N only, not on B.
    wide = not replace and batch_size**2 > n_data
    blank = x.new_empty(len(x), n_data if wide else batch_size, dtype=torch.float64)
    u = rand_like(blank, generator)
    if wide:  # the n largest of N numbers
        return u.topk(batch_size, dim=1).indices
    if replace:
        return (u * n_data).long().clamp(max=n_data - 1)
    # Floyd's method, n numbers only: t uniform in 0 … j, and j itself where t is taken already
    index = torch.empty_like(u, dtype=torch.long)
    for k in range(batch_size):
        j = n_data - batch_size + k
        t = (u[:, k] * (j + 1)).long().clamp(max=j)
        taken = (index[:, :k] == t.unsqueeze(1)).any(1)
        index[:, k] = torch.where(taken, j, t)
    return index


class Anchor(NamedTuple):
    """Where the score is known from all observations, and that score; `(chain, 0)` for nowhere."""

    x: Float[Tensor, "chain *anchor"]
    score: Float[Tensor, "chain *anchor"]


@runtime_checkable
class Estimator(Protocol):
    """An unbiased estimate of the score, with an anchor if it needs one."""

    def start(self, x: Tensor, target: Minibatched) -> Anchor:
        """Return the anchor for chains that start at x."""

    def refresh(self, anchor: Anchor, x: Tensor, step: Tensor, target: Minibatched) -> Anchor:
        """Return the anchor for the step of number `step` `(chain,)`, taken from x."""

    def __call__(self, x: Tensor, index: Tensor, anchor: Anchor, target: Minibatched) -> Tensor:
        """Return the estimate at x from the observations `index`."""


@dataclass(frozen=True)
class Plain:
    r"""The plain estimate ĝ(x) = ∇ log π(x) + (N/n) Σ ∇ log ℓ(y_i | x) over the batch."""

    def start(self, x: Tensor, target: Minibatched) -> Anchor:
        """Return no anchor."""
        return Anchor(x.new_empty(len(x), 0), x.new_empty(len(x), 0))

    def refresh(self, anchor: Anchor, x: Tensor, step: Tensor, target: Minibatched) -> Anchor:
        """Return no anchor."""
        return anchor

    def __call__(self, x: Tensor, index: Tensor, anchor: Anchor, target: Minibatched) -> Tensor:
        """Return ĝ(x)."""
        return target.minibatch_score(x, index)


class _Anchored:
    """The estimate g(a) + ĝ(x) − ĝ(a) with the same batch in both: the noise at a is taken off."""

    def __call__(self, x: Tensor, index: Tensor, anchor: Anchor, target: Minibatched) -> Tensor:
        """Return g(a) + ĝ(x) − ĝ(a)."""
        noisy, there = (target.minibatch_score(v, index) for v in (x, anchor.x))
        return anchor.score + (noisy - there)


@dataclass(frozen=True, eq=False)
class ControlVariates(_Anchored):
    r"""The estimate g(x*) + ĝ(x) − ĝ(x*) about a fixed point, best near the mode.

    The score g(x*) of all observations is computed once, when chains start. The estimate is exact
    at x*, and everywhere if the score of each observation is affine with a common slope.

    References:
        | Control Variates for Stochastic Gradient MCMC (Baker et al., 2019)
        | https://arxiv.org/abs/1706.05439

    Arguments:
        x_star: x*, in the shape of an event.
    """

    x_star: Tensor

    def __post_init__(self) -> None:
        check_finite(self.x_star, "x_star")

    def start(self, x: Tensor, target: Minibatched) -> Anchor:
        """Return x* and its score, for every chain."""
        if self.x_star.shape != x.shape[1:]:
            raise ValueError(
                f"x_star must have the shape {tuple(x.shape[1:])} of an event, "
                f"got {tuple(self.x_star.shape)}"
            )
        point = self.x_star.to(x).unsqueeze(0)
        return Anchor(point.expand_as(x), scored(point, target).expand_as(x))

    def refresh(self, anchor: Anchor, x: Tensor, step: Tensor, target: Minibatched) -> Anchor:
        """Return the same anchor."""
        return anchor


@dataclass(frozen=True)
class SVRG(_Anchored):
    r"""The estimate g(a) + ĝ(x) − ĝ(a) about a point a of the chain itself, renewed periodically.

    Every chain has its own anchor: its position at the last step whose number is a multiple of
    `every`. Each renewal costs a pass over all observations.

    References:
        | On the Theory of Variance Reduction for Stochastic Gradient Monte Carlo
          (Chatterji et al., 2018)
        | https://arxiv.org/abs/1802.05431

    Arguments:
        every: Number of steps between renewals.

    Raises:
        ValueError: For fewer than one step.
    """

    every: int

    def __post_init__(self) -> None:
        check_count(self.every, "every")

    def start(self, x: Tensor, target: Minibatched) -> Anchor:
        """Return x and its score."""
        return Anchor(x, scored(x, target))

    def refresh(self, anchor: Anchor, x: Tensor, step: Tensor, target: Minibatched) -> Anchor:
        """Return the same anchor, or x where it is time."""
        due = (step > 0) & (step % self.every == 0)
        if not bool(due.any()):
            return anchor
        new = Anchor(x, scored(x, target))
        pairs = zip(new, anchor, strict=True)
        return Anchor(*(torch.where(per_sample(due, a).bool(), a, b) for a, b in pairs))


def start(
    x: Tensor, target: Density, batch_size: int, estimator: Estimator
) -> tuple[Int64[Tensor, " chain"], Anchor]:
    """Return step numbers 0 and the anchor for chains that start at x."""
    check_batch(x, name="x0")
    anchor = estimator.start(x, as_minibatched(target, batch_size))
    return torch.zeros(len(x), dtype=torch.long, device=x.device), anchor


StepSize = float | Callable[[int], float]
"""A step size h > 0, or a schedule k -> h_k of the number k = 0, 1, … of the step."""


@dataclass(frozen=True)
class _PolynomialDecay:
    a: float
    b: float
    gamma: float

    def __call__(self, k: int) -> float:
        return self.a * (self.b + k) ** -self.gamma


def polynomial_decay(a: float, b: float = 1.0, gamma: float = 0.55) -> Callable[[int], float]:
    r"""Return the schedule :math:`h_k = a (b + k)^{-γ}` of step sizes.

    References:
        | Bayesian Learning via Stochastic Gradient Langevin Dynamics (Welling & Teh, 2011)
        | https://mlanthology.org/icml/2011/welling2011icml-bayesian

    Arguments:
        a: Scale, a > 0; the first step is a b^{−γ}.
        b: Offset, b > 0.
        gamma: Exponent in (½, 1], for Σ h_k = ∞ and Σ h_k² < ∞.

    Raises:
        ValueError: For an argument outside its range.
    """
    check_number(a, "a", above=0)
    check_number(b, "b", above=0)
    why = ": otherwise steps shrink too slowly or too fast"
    check_number(gamma, "gamma", above=0.5, most=1, why=why)
    return _PolynomialDecay(a, b, gamma)


def step_size_at(step_size: StepSize, step: Int64[Tensor, " chain"]) -> float:
    """Return h_k for the step of number k; chains of one state have taken equally many."""
    if not callable(step_size):
        return step_size
    k = int(step[0])
    h = step_size(k)
    check_number(h, f"step_size({k})", above=0)
    return float(h)


def weighted_average(
    values: Float[Tensor, "chain draw *rest"], step_sizes: Float[Tensor, "*chains draw"]
) -> Float[Tensor, "chain *rest"]:
    r"""Return the average of draws weighted by their steps, for every chain.

    .. math:: \hat f = \frac{\sum_k h_k f(x_k)}{\sum_k h_k}

    References:
        | Bayesian Learning via Stochastic Gradient Langevin Dynamics (Welling & Teh, 2011)
        | https://mlanthology.org/icml/2011/welling2011icml-bayesian

    Arguments:
        values: f(x_k), `(chain, draw, ...)`, such as `chain.draws` or `chain.draws**2`.
        step_sizes: h_k, `(draw,)`, or `(chain, draw)` such as `chain.info.step_size`.

    Raises:
        ValueError: For shapes that do not fit, or steps that are not positive.
    """
    check_finite(values, "values")
    check_finite(step_sizes, "step_sizes")
    if step_sizes.shape not in (values.shape[1:2], values.shape[:2]):
        raise ValueError(
            f"step_sizes must have shape {tuple(values.shape[1:2])} or {tuple(values.shape[:2])} "
            f"for values of {tuple(values.shape)}, got {tuple(step_sizes.shape)}"
        )
    if not bool((step_sizes > 0).all()):
        raise ValueError("step_sizes must be positive")
    weight = (step_sizes / step_sizes.sum(-1, keepdim=True)).to(values)
    weight = weight.expand(values.shape[:2])
    return torch.einsum("cd...,cd->c...", values, weight)
