r"""Decreasing steps: schedules k -> h_k, and averages that weight a draw by its step.

Unadjusted kernels with steps h_k -> 0, Σ h_k = ∞ and Σ h_k² < ∞ are asymptotically unbiased; each
draw is then weighted by its step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ...core import check_finite, check_number

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


def check_step_size(step_size: StepSize) -> None:
    """Raise `ValueError` unless a step size is positive and finite, or a schedule."""
    if not callable(step_size):
        check_number(step_size, "step_size", above=0)


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
