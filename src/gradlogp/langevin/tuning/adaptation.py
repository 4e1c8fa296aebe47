r"""What is tuned before the draws that are kept, and when.

Tuning depends on the past of the chains, so the density is not invariant meanwhile: tune first,
then run the resulting kernel, which no longer changes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...core import Density, Generator, check_count, check_function, check_number, check_option
from ..kernels import Splitting, facts_of
from ..planning import estimate_curvature, step_for_bias
from .metric import Learn


def check_acceptance(target: float) -> None:
    """Raise `ValueError` unless 0 < target < 1."""
    check_number(target, "target_acceptance", above=0, below=1)


@dataclasses.dataclass(frozen=True, eq=False)
class DualAveraging:
    r"""Dual averaging of log h towards an acceptance δ, from the start h_0, entry by entry.

    .. math::
        \bar H_t = \left(1 - \tfrac{1}{t + t_0}\right) \bar H_{t-1} + \frac{δ - α_t}{t + t_0}, \quad
        \log h_t = μ - \frac{\sqrt t}{γ} \bar H_t, \quad
        \log \bar h_t = t^{-κ} \log h_t + (1 - t^{-κ}) \log \bar h_{t-1}, \quad μ = \log(10 h_0)

    The step t + 1 uses h_t, and the average is the final result.

    References:
        | The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian Monte Carlo
          (Hoffman & Gelman, 2014)
        | https://arxiv.org/abs/1111.4246

    Arguments:
        mu: μ, the value to which log h is drawn, `()` or `(chain,)`.
        target: δ.
        log_step: log h_t.
        log_average: The average log h̄_t.
        gap: H̄_t.
        t: Number of updates.
        t0: Weakens the first updates.
        gamma: γ, how strongly log h is drawn to μ.
        kappa: κ in (½, 1], how fast the average forgets.
    """

    mu: Tensor
    target: float
    log_step: Tensor
    log_average: Tensor
    gap: Tensor
    t: int = 0
    t0: float = 10.0
    gamma: float = 0.05
    kappa: float = 0.75

    @classmethod
    def start(cls, step_size: float | Tensor, target: float) -> DualAveraging:
        """Begin at h_0, `()` or `(chain,)`.

        Raises:
            ValueError: Unless 0 < target < 1.
        """
        check_acceptance(target)
        log_step = torch.as_tensor(step_size, dtype=torch.float64).log()
        zero = torch.zeros_like(log_step)
        return cls(log_step + math.log(10), target, log_step, zero, zero)

    def update(self, acceptance: Tensor | float) -> DualAveraging:
        """Return what follows from the acceptances α of one step, in the shape of h_0."""
        t = self.t + 1
        weight, keep = 1 / (t + self.t0), t**-self.kappa
        gap = (1 - weight) * self.gap + weight * (self.target - acceptance)
        log_step = self.mu - math.sqrt(t) / self.gamma * gap
        average = keep * log_step + (1 - keep) * self.log_average
        return dataclasses.replace(self, gap=gap, log_step=log_step, log_average=average, t=t)


@dataclasses.dataclass(frozen=True)
class Polish:
    r"""Robbins–Monro steps of one log h, so small that the acceptance at the average is δ itself.

    .. math:: \log h_t = \log h_{t-1} + \frac{c}{t + t_0} (α_t - δ)

    Dual averaging swings so far that the mean acceptance over its swings, which it controls,
    differs from the acceptance at its average.

    References:
        | A Stochastic Approximation Method (Robbins & Monro, 1951)
        | https://doi.org/10.1214/aoms/1177729586

    Arguments:
        log_step: log h_t.
        target: δ.
        t: Number of updates.
        gain: c, about 1/|∂α/∂log h|.
        t0: Weakens the first updates.
    """

    log_step: float
    target: float
    t: int = 0
    gain: float = 2.0
    t0: float = 5.0

    def update(self, acceptance: float) -> Polish:
        """Return what follows from the mean acceptance of one step of all chains."""
        t = self.t + 1
        log_step = self.log_step + self.gain / (t + self.t0) * (acceptance - self.target)
        return dataclasses.replace(self, log_step=log_step, t=t)


LEAST = 40
"""Steps needed to tune a metric."""

FIRST, WINDOW, LAST = 0.075, 25, 0.25
"""Part of the steps before the first window, steps of that, and the part after the last window."""


@dataclasses.dataclass(frozen=True)
class Adaptation:
    r"""What is tuned in the burn-in of `run` and the warm-up of `sample`.

    Every chain has its own step size, tuned to an acceptance δ by `DualAveraging`, as long as the
    chains differ. In windows of doubling length the metric is learned from draws and scores
    (`fit_metric`) of the chains that have arrived, until a window adds nothing to it; a chain that
    could not move in a window starts again from one that could. If more than 1 % of the steps of a
    long window diverge, a δ from the facts moves half way to 1. The last quarter of the steps
    tunes only the step size: one for all chains, tuned to δ by ever smaller steps (`Polish`), or
    that of the slowest chain if the chains do not agree.

    Arguments:
        target_acceptance: δ in (0, 1); by default that of the kernel's `facts`.
        preconditioner: `none`, `diagonal`, `matrix`, or `auto` for the one that the draws support.
        trajectory: The mean length of a path in time, in standard deviations of the density along
            its widest direction under the metric. It determines the kernel's `n_leapfrog`, which
            by default does not change.

    Raises:
        ValueError: For an acceptance outside (0, 1), an unknown preconditioner, or a time below 0.
    """

    target_acceptance: float | None = None
    preconditioner: Learn = "none"
    trajectory: float | None = None

    def __post_init__(self) -> None:
        if self.target_acceptance is not None:
            check_acceptance(self.target_acceptance)
        check_option(self.preconditioner, "preconditioner", Learn)
        if self.trajectory is not None:
            check_number(self.trajectory, "trajectory", above=0)

    def acceptance_for(self, kernel: Any) -> float:
        """Return δ for a kernel.

        Raises:
            ValueError: If it accepts all proposals, or does not state a target acceptance.
        """
        facts, name = facts_of(kernel), type(kernel).__name__
        if facts.needs_log_prob is False:
            raise ValueError(
                f"{name} has no acceptance rate to tune its step size to; choose the step size by "
                f"its bias, with step_for_bias"
            )
        rate = self.target_acceptance or facts.target_acceptance
        if rate is None:
            raise ValueError(
                f"{name} does not state a target acceptance: pass target_acceptance in (0, 1), or "
                "define it in the kernel's `facts"
            )
        return rate

    def check(self, kernel: object, n_steps: int) -> None:
        """Raise `ValueError` unless the kernel has what is tuned and there are enough steps."""
        learn, fields = self.preconditioner != "none", set[str]()
        if dataclasses.is_dataclass(kernel):
            fields = {f.name for f in dataclasses.fields(kernel)}
        wanted = [
            "step_size",
            *(["preconditioner"] if learn else []),
            *(["n_leapfrog"] if self.trajectory else []),
        ]
        for name in wanted:
            if name not in fields:
                raise ValueError(
                    f"{type(kernel).__name__} has no field {name} that could be tuned"
                )
        if not isinstance(getattr(kernel, "step_size"), float | int | Tensor):  # noqa: B009
            raise ValueError("step_size must be one number; a schedule of steps is not tuned")
        least = LEAST if learn else 1
        check_count(
            n_steps, "n_steps", least, ": tuning needs them, and works better with a few hundred"
        )

    def windows(self, n_steps: int) -> Iterator[tuple[int, bool]]:
        """Yield windows of steps, and whether a metric is fitted in each; never in the last."""
        last = max(1, int(LAST * n_steps))
        left = n_steps - last
        if self.preconditioner != "none":
            first = min(int(FIRST * n_steps), left)
            yield first, False
            left, length = left - first, max(10, min(WINDOW, left // 4))
            while left:
                length = left if left < 3 * length else length  # no short window at the end
                yield length, True
                left, length = left - length, 2 * length
        elif left:
            yield left, False
        yield last, False


def choose_step(
    make: Callable[[float], Any],
    target: Density,
    x: Tensor,
    *,
    bias: float = 0.05,
    generator: Generator | None = None,
) -> Any:
    """Return an unadjusted kernel with a step size that suits the target.

    The relative bias of the variance is `bias` in the stiffest direction, from the curvature at x.

    Arguments:
        make: Step size -> kernel.
        target: The density.
        x: Points, `(B, *event)`.
        bias: The relative bias.
        generator: Source of the noise.

    Raises:
        ValueError: As in `estimate_curvature`.
    """
    check_function(make, "make")
    check_number(bias, "bias", above=0)
    step = step_for_bias(estimate_curvature(target, x, generator=generator).L, bias)
    if isinstance(make(step), Splitting):  # a time: h²/2 compares with a step of the position
        step = math.sqrt(2 * step)
    return make(step)
