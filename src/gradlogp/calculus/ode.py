r"""An ordinary differential equation to a tolerance, every sample with its own steps.

A shared step would make the accuracy (and the number of evaluations) of a sample depend on its
batch. Here each sample has its own time, step, error and acceptance. Samples that have arrived are
still evaluated with the others, because a field may hold one label or probe for each sample of the
batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    check_batch,
    check_count,
    check_function,
    check_level,
    check_number,
    check_same_shape,
    per_sample,
)

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


Size = Callable[[Tensor, Tensor], Tensor]
"""y and y' at the ends of a step -> what a relative error is relative to, in a shape like y."""


class Solution(NamedTuple):
    """The end of the path, an estimate of its error, and the steps of each sample, `(B,)`.

    `error` is the sum over accepted steps of |order 5 minus order 4| and of one rounding, entry by
    entry, or of what `told` makes of the difference: an estimate of the errors of the steps, not of
    how the path amplifies them. `part` is the fraction of the way from start to end that was
    completed: 1, unless the path is `partial`.
    """

    y: Tensor
    error: Tensor
    accepted: Tensor
    rejected: Tensor
    nfe: int
    part: Tensor


class Step(NamedTuple):
    """Where a step leads, the field there, and the difference of the two orders, shape of y."""

    y: Tensor
    slope: Tensor
    defect: Tensor


def _combine(stages: list[Tensor], row: tuple[float, ...]) -> Tensor:
    terms = [c * k for c, k in zip(row, stages, strict=True) if c]
    return sum(terms[1:], start=terms[0])


def attempt(
    field: Callable[[Tensor, Tensor], Tensor],
    y: Tensor,
    slope: Tensor,
    width: Tensor,
    at: Callable[[float], Tensor],
) -> Step:
    """Return a step of the pair from y, where the field is `slope`; at: part of it -> times."""
    moved, stages = y, [slope]
    for row, c in zip(A, C, strict=True):
        moved = y + width * _combine(stages, row)
        stages.append(field(moved, at(c)))
    with torch.no_grad():
        return Step(moved, stages[-1], width * _combine(stages, E))


def growth(error: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Return by what to multiply a step, whose error is of order h⁵, to be just accepted, times 0.9."""
    return (0.9 * error.clamp(min=1e-10) ** -0.2).clamp(0.2, 5.0)


def larger(y: Tensor, moved: Tensor) -> Tensor:
    """Return max(|y|, |y'|), entry by entry."""
    return torch.maximum(y.abs(), moved.abs())


def error_of(
    step: Step, y: Tensor, rtol: float, atol: float, size: Size = larger
) -> Float[Tensor, " batch"]:
    """Return the root mean square of defect / (atol + rtol size); infinite if it is not finite."""
    scale = atol + rtol * size(y, step.y)
    error = (step.defect.abs() / scale).flatten(1).double().square().mean(1)
    return torch.where(error.isfinite(), error.sqrt(), torch.inf)


def integrate(
    field: Callable[[Tensor, Tensor], Tensor],
    y: Float[Tensor, "batch *event"],
    start: float,
    end: float | Float[Tensor, " batch"],
    *,
    rtol: float,
    atol: float,
    size: Size = larger,
    first_step: float | Float[Tensor, " batch"] = 0.01,
    max_steps: int = 10_000,
    partial: bool = False,
    stops: Sequence[float] = (),
    told: Callable[[Step, Tensor], Tensor] | None = None,
) -> Solution:
    r"""Solve dy/dt = field(y, t) from start to end by the Dormand–Prince pair of order 5(4).

    A step of a sample is accepted if the root mean square over its entries of
    :math:`e / (atol + rtol \, size)` is at most 1, e being the difference of the two orders and
    size by default :math:`\max(|y|, |y'|)`; the next step is 0.9 times the largest that would be
    accepted. Step sizes are chosen without gradients, so that the path can be differentiated in y
    and in the field's parameters.

    Arguments:
        field: (y `(B, *event)`, t `(B,)`) -> dy/dt, sample by sample.
        y: The start, `(B, *event)`.
        start: First time; it may be larger than the last.
        end: Last time, one for all or one per sample.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        size: (y, y') -> the quantity to which rtol is relative.
        first_step: The step to try first, as a fraction of the way.
        max_steps: Maximum number of attempts.
        partial: Whether to return an incomplete path if the end is not reached.
        stops: Times at which derivatives of the field jump. Steps end there: the pair underestimates
            the error of a step across.
        told: (step, t `(B,)` at its end) -> what the defect of a step changes in a result, `(B, k)`.
            Absolute values are added up, with the largest rounding. By default it is the defect.

    Raises:
        ValueError: If the field does not have the shape of y.
        ArithmeticError: Unless `partial`, if the tolerance is not met within `max_steps`, or only by
            steps below the resolution of time: the field is not finite, or too stiff.

    References:
        | A Family of Embedded Runge-Kutta Formulae (Dormand & Prince, 1980)
        | https://doi.org/10.1016/0771-050X(80)90013-3
    """
    check_batch(y, name="y")
    check_function(field, "field")
    check_number(start, "start")
    check_number(rtol, "rtol", least=0)
    check_number(atol, "atol", least=0)
    check_count(max_steps, "max_steps")
    check_function(size, "size")
    check_level(first_step, y.double(), "first_step")
    for time in stops:
        check_number(time, "each of stops")
    if isinstance(end, Tensor):
        per_sample(end, y, "end")
    else:
        check_number(end, "end")
    n = len(y)
    accepted, rejected = (torch.zeros(n, dtype=torch.long, device=y.device) for _ in range(2))
    done = torch.zeros(n, dtype=torch.float64, device=y.device)  # part of the span
    span = torch.as_tensor(end).to(done) - start
    done = torch.where(span == 0, 1.0, done)
    step = torch.zeros_like(done) + torch.as_tensor(first_step).to(done).clamp(max=1.0)
    total = torch.zeros_like(y) if told is None else y.new_zeros(n, 1)
    if bool((done == 1).all()):
        return Solution(y, total, accepted, rejected, 0, done)
    parts = (torch.tensor([*stops], dtype=done.dtype, device=done.device) - start) / span.reshape(
        -1, 1
    )
    parts = torch.where((parts > 0) & (parts < 1), parts, 1.0)

    def at(part: Tensor) -> Tensor:
        return start + span * part

    def moved_by(h: Tensor) -> Step:
        width = per_sample((span * h).to(y), y, "h")
        return attempt(field, y, slope, width, lambda c: at(done + c * h))

    slope = field(y, at(done))
    check_same_shape(slope, y, "the field")
    nfe = 1
    for tried in range(max_steps + 1):
        going = done < 1
        if tried == max_steps or not bool(going.any()):
            break
        left = torch.where(parts > done.unsqueeze(1), parts, 1.0)
        stop = left.amin(1) if len(stops) else torch.ones_like(done)
        cut = done + step >= stop
        h = torch.where(cut, stop - done, step) * going
        new = moved_by(h)
        nfe += len(A)
        with torch.no_grad():
            error = error_of(new, y, rtol, atol, size)
            good = going & (error <= 1)
            longer = (h * growth(error)).clamp(max=1.0)
            longer = torch.where(cut & good, torch.maximum(longer, step), longer)
            step = torch.where(going, longer, step)
            if not partial and bool((going & ~good & (step < 1e-14)).any()):
                raise ArithmeticError(
                    f"the step fell below the resolution of time at t = "
                    f"{float(at(done)[going & ~good][0]):.4g}: the field is not finite there or "
                    "too stiff; raise rtol or atol, or end at a larger time"
                )
            reached = torch.where(good, torch.where(cut, stop, done + h), done)
            accepted, rejected = accepted + good, rejected + (going & ~good)
            keep = good.reshape(-1, *[1] * (y.ndim - 1))
            rounding = torch.finfo(y.dtype).eps * new.y.abs()
            if told is None:
                total = torch.where(keep, total + new.defect.abs() + rounding, total)
            else:
                most = rounding.flatten(1).amax(1, keepdim=True)
                part = told(new, at(done + h)).abs() + most
                total = torch.where(good.unsqueeze(1), total + part, total)
        if new.slope.requires_grad and bool((going & ~good).any()):
            # what was refused may have overflowed, and 0 · ∞ spoils derivatives: omit it
            new, nfe = moved_by(h * good), nfe + len(A)
        done = reached
        y, slope = torch.where(keep, new.y, y), torch.where(keep, new.slope, slope)
    if not partial and bool((done < 1).any()):
        raise ArithmeticError(
            f"{max_steps} steps were not enough at rtol={rtol:g}, atol={atol:g}; raise max_steps or "
            "the tolerance"
        )
    return Solution(y, total, accepted, rejected, nfe, done)
