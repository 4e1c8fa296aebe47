r"""Score matching for data with a boundary: non-negative numbers, boxes.

Where p does not vanish at the boundary of its support the integration by parts behind implicit score
matching leaves a boundary term, and its minimiser is not the score: for the exponential law e^{−x} the
best constant is 0, not −1. A weight g(x) ≥ 0 that vanishes at the boundary removes the term.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ...calculus.reverse import Probe, hutchinson_trace, jacobian_trace
from ...core import (
    Generator,
    NoiseSource,
    ScoreFn,
    check_finite,
    check_generator,
    check_number,
    check_option,
    check_points,
    evaluate,
    sum_event,
)
from .matching import draw_probes

BoundaryWeight = Callable[[Tensor], Tensor]
"""Entrywise x -> g(x) ≥ 0, `(B, *event) -> (B, *event)`, 0 at the boundary."""


def half_line(x: Tensor) -> Tensor:
    """Return the weight x² on x ≥ 0 of Hyvärinen (2007).

    Raises:
        ValueError: For a negative entry.
    """
    check_finite(x, "x")
    if bool((x < 0).any()):
        raise ValueError(f"x must be non-negative, got a minimum of {float(x.detach().min()):.3g}")
    return x * x


def box(low: float, high: float) -> BoundaryWeight:
    """Return the weight (x − low)(high − x) on low ≤ x ≤ high.

    Raises:
        ValueError: If low ≥ high; when called, for an entry outside.
    """
    check_number(low, "low")
    check_number(high, "high")
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")

    def weight(x: Tensor) -> Tensor:
        if bool(((x < low) | (x > high)).any()):
            raise ValueError(
                f"x must lie in [{low}, {high}], got entries from {float(x.detach().min()):.3g} to "
                f"{float(x.detach().max()):.3g}"
            )
        return (x - low) * (high - x)

    return weight


def generalised(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    weight: BoundaryWeight = half_line,
    *,
    n_slices: int | None = None,
    probe: Probe = "rademacher",
    generator: Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Generalised score matching, :math:`\sum_i \partial_i (g_i s_i) + \tfrac12 g_i s_i^2`.

    An unbiased estimate of ½ E Σ_i g_i (s_θ − s)_i² up to ½ E Σ_i g_i s_i², which does not depend on
    θ, wherever g p s_θ vanishes at the boundary. With g = 1 it is `implicit`.

    Arguments:
        score: The model, `(B, *event) -> (B, *event)`.
        x: Data, `(B, *event)`, within the support.
        weight: g, entrywise, from PyTorch functions: `half_line`, `box(low, high)`, or your own.
        n_slices: Probes of Hutchinson's estimate of the divergence; the exact one by default.
        probe: Law of the probes.
        generator: Source of the probes.

    Raises:
        ValueError: For data outside the support, a negative weight, a wrong shape, an empty batch,
            or points that are not finite.

    References:
        | Some Extensions of Score Matching (Hyvärinen, 2007)
        | https://doi.org/10.1016/j.csda.2006.09.003
        | Generalized Score Matching for Non-Negative Data (Yu, Drton & Shojaie, 2019)
        | https://jmlr.org/papers/v20/18-278.html
    """
    check_points(x)
    check_option(probe, "probe", Probe)
    check_generator(generator, NoiseSource)
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        g = evaluate(weight, y, "weight", finite=True)
        slope = torch.autograd.grad(g.sum(), y, allow_unused=True)[0] if g.requires_grad else None
    if slope is None and bool((g != g.flatten()[0]).any()):
        raise ValueError(
            "weight varies with x, but not through differentiable operations; without its gradient the "
            "loss would silently be a different one"
        )
    g = g.detach()
    if not bool((g >= 0).all()):
        raise ValueError(f"weight must be at least 0, got a minimum of {float(g.min()):.3g}")
    s = evaluate(score, x)

    def flux(y: Tensor) -> Tensor:  # g stays at x, so that a score cut off from x is noticed
        return g * score(y)

    if n_slices is None:
        trace = jacobian_trace(flux, x)[1]
    else:
        trace = hutchinson_trace(flux, x, draw_probes(x, n_slices, probe, generator))[1].mean(0)
    loss = trace + 0.5 * sum_event(g * s.square())
    return loss if slope is None else loss + sum_event(slope * s)
