r"""What is tuned before the draws that are kept, and when.

Tuning depends on the past of the chains, so the density is not invariant meanwhile: tune first,
then run the resulting kernel, which no longer changes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from ...core import Density, Generator, check_count, check_function, check_number, check_option
from ..kernels import Splitting, facts_of
from ..planning import estimate_curvature, step_for_bias
from .averaging import check_acceptance
from .metric import Learn

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
