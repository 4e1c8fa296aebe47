r"""An ordinary differential equation to a tolerance, every sample with steps of its own.

A shared step would make the accuracy (and the number of evaluations) of a sample depend on its
batch-mates. Here time, step, error and acceptance are one number for each sample; samples that have
arrived wait, and are evaluated along with the others, because a field may hold one label or probe
for each sample of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import check_batch, check_same_shape, per_sample

A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
"""The stages of Dormand and Prince; the last row is the step of order 5 itself."""

C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)

E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
"""Order 5 minus order 4."""


class Solution(NamedTuple):
    """The end of the path, what it may be wrong by, and how many steps each sample took, `(B,)`.

    `error` is the sum over accepted steps of |order 5 minus order 4| and of one rounding, entry by
    entry: an estimate of what the steps did wrong, not of how the path carries it on.
    """

    y: Tensor
    error: Tensor
    accepted: Tensor
    rejected: Tensor
    nfe: int


def _combine(stages: list[Tensor], row: tuple[float, ...]) -> Tensor:
    terms = [c * k for c, k in zip(row, stages, strict=True) if c]
    return sum(terms[1:], start=terms[0])


def integrate(
    field: Callable[[Tensor, Tensor], Tensor],
    y: Float[Tensor, "batch *event"],
    start: float,
    end: float,
    *,
    rtol: float,
    atol: float,
    max_steps: int = 10_000,
) -> Solution:
    r"""Solve dy/dt = field(y, t) from start to end by the Dormand–Prince pair of order 5(4).

    A step of a sample is accepted if the root mean square over its entries of
    :math:`e / (atol + rtol \max(|y|, |y'|))` is at most 1, e being the difference of the two
    orders; the next step is as large as would just be accepted, times 0.9. Steps are decided
    without gradients, so that the path can be differentiated in y and in the field's parameters.

    Arguments:
        field: (y `(B, *event)`, t `(B,)`) -> dy/dt, sample by sample.
        y: The start, `(B, *event)`.
        start: First time; times may run either way.
        end: Last time.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        max_steps: Attempts after which to give up.

    Raises:
        ValueError: If the field has another shape than y.
        ArithmeticError: If the tolerance is not met within `max_steps`, or only by steps below the
            resolution of time: the field is not finite, or too stiff for an explicit method.

    References:
        | A Family of Embedded Runge-Kutta Formulae (Dormand & Prince, 1980)
        | https://doi.org/10.1016/0771-050X(80)90013-3
    """
    check_batch(y, name="y")
    span = end - start
    n = len(y)
    accepted, rejected = (torch.zeros(n, dtype=torch.long, device=y.device) for _ in range(2))
    if span == 0:
        return Solution(y, torch.zeros_like(y), accepted, rejected, 0)
    done = torch.zeros(n, dtype=torch.float64, device=y.device)  # part of the span
    step = torch.full_like(done, 0.01)

    def at(part: Tensor) -> Tensor:
        return start + span * part

    def attempt(y: Tensor, slope: Tensor, h: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return where a step leads, its stages, and its length in time."""
        width = per_sample((span * h).to(y), y, "h")
        moved, stages = y, [slope]
        for row, c in zip(A, C, strict=True):
            moved = y + width * _combine(stages, row)
            stages.append(field(moved, at(done + c * h)))
        return moved, stages, width

    slope, total = field(y, at(done)), torch.zeros_like(y)
    check_same_shape(slope, y, "the field")
    nfe = 1
    for tried in range(max_steps + 1):
        going = done < 1
        if not bool(going.any()):
            return Solution(y, total, accepted, rejected, nfe)
        if tried == max_steps:
            break
        last = done + step >= 1
        h = torch.where(last, 1 - done, step) * going
        moved, stages, width = attempt(y, slope, h)
        nfe += len(A)
        with torch.no_grad():
            scale = atol + rtol * torch.maximum(y.abs(), moved.abs())
            local = (width * _combine(stages, E)).abs()
            error = (local / scale).flatten(1).double().square().mean(1)
            error = torch.where(error.isfinite(), error.sqrt(), torch.inf)
            good = going & (error <= 1)
            factor = (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)
            step = torch.where(going, (h * factor).clamp(max=1.0), step)
            if bool((going & ~good & (step < 1e-14)).any()):
                raise ArithmeticError(
                    f"the step fell below the resolution of time at t = "
                    f"{float(at(done[going & ~good][0])):.4g}: the field is not finite there or "
                    "too stiff; raise rtol or atol, or end at a larger time"
                )
            done = torch.where(good, torch.where(last, 1.0, done + h), done)
            accepted, rejected = accepted + good, rejected + (going & ~good)
            keep = good.reshape(-1, *[1] * (y.ndim - 1))
            rounding = torch.finfo(y.dtype).eps * moved.abs()
            total = torch.where(keep, total + local + rounding, total)
        if torch.is_grad_enabled() and bool((going & ~good).any()):
            # what was refused may have overflowed, and 0 · ∞ spoils derivatives: leave it out
            done_then, done = done, torch.where(good, done - h, done)
            moved, stages, _ = attempt(y, slope, h * good)
            done, nfe = done_then, nfe + len(A)
        y, slope = torch.where(keep, moved, y), torch.where(keep, stages[-1], slope)
    raise ArithmeticError(
        f"{max_steps} steps were not enough at rtol={rtol:g}, atol={atol:g}; raise max_steps or the "
        "tolerance"
    )
