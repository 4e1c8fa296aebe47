"""Numbers along a line, losses and spectra, and a score along and across a manifold."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .style import (
    ARROW,
    LIGHT,
    Array,
    Theme,
    Values,
    array,
    columns,
    count_axis,
    legend,
    limit_line,
    log_axis,
    new_figure,
    scale_y,
)


def _moving_average(y: Array) -> Array:
    """Average over a window of a thirtieth of the run, cut off at the ends."""
    i, half = np.arange(len(y)), len(y) // 60
    left, right = np.maximum(i - half, 0), np.minimum(i + half + 1, len(y))
    total = np.concatenate([[0.0], y.cumsum()])
    average: Array = (total[right] - total[left]) / (right - left)
    return average


def loss_curve(
    steps: Values,
    loss: Values,
    *,
    held_out: tuple[Values, Values, Values] | None = None,
    floor: float | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw a training loss: raw and as a moving average, with values for comparison.

    Losses that are not finite are omitted, and the legend gives their number. The y axis excludes
    the most extreme hundredth of the others on either side; it is logarithmic if every value is
    positive and the visible range spans more than a decade.

    Arguments:
        steps: Optimisation steps of the losses.
        loss: Training loss at these steps.
        held_out: Steps, losses and standard errors on held-out data.
        floor: The exact minimum of the expected loss, if it is known.
        theme: Colours.
    """
    x, y = columns(steps=steps, loss=loss)
    finite = np.isfinite(y)
    if not finite.any():
        raise ValueError("no loss is finite")
    x, y = x[finite], y[finite]
    lost = f" ({(~finite).sum():,} not finite)" if not finite.all() else ""
    average = _moving_average(y)
    shown = [average, np.quantile(y, [0.01, 0.99])]
    with new_figure(theme, 10.4, 3.6) as figure:
        axes = figure.add_subplot(xlabel="optimisation step", ylabel="loss")
        axes.grid(axis="y")
        axes.plot(x, y, color=theme.model, lw=0.6, alpha=0.3)
        axes.plot(x, average, color=theme.model, lw=1.8, label=f"training, moving average{lost}")
        if held_out is not None:
            at, values, errors = columns(
                steps=held_out[0], losses=held_out[1], standard_errors=held_out[2]
            )
            style: dict[str, Any] = {"ms": 4.5, "lw": 1.2, "zorder": 3, "color": theme.real}
            axes.errorbar(at, values, errors, fmt="o", label="held out, ± standard error", **style)
            shown += [values - errors, values + errors]
        if floor is not None:
            limit_line(axes, floor, "exact floor", theme)
            shown.append(array([floor]))
        scale_y(axes, np.concatenate(shown), positive=bool(y.min() > 0))
        count_axis(axes.xaxis)
        axes.margins(x=0.015)
        legend(axes)
    return figure


def levels(
    sigmas: Values,
    excess: Values,
    standard_errors: Values,
    *,
    limit: float | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw the excess loss of each noise level, weighted by σ² so that levels compare.

    Arguments:
        sigmas: Noise levels.
        excess: Loss above its exact minimum, times σ².
        standard_errors: Standard errors of `excess`.
        limit: The largest accepted value.
        theme: Colours.
    """
    x, y, e = columns(sigmas=sigmas, excess=excess, standard_errors=standard_errors)
    extra = [] if limit is None else [limit]
    with new_figure(theme, 10.4, 3.2) as figure:
        axes = figure.add_subplot(xlabel="noise level σ", ylabel="excess loss × σ²", xscale="log")
        log_axis(axes.xaxis, float(x.min()), float(x.max()))
        axes.grid()
        axes.axhline(0, color=theme.muted, lw=0.8)
        axes.plot(x, y, color=theme.model, lw=1, alpha=0.5)
        axes.errorbar(x, y, e, fmt="o", ms=4.5, lw=1.2, color=theme.model)
        logarithmic = bool(y.min() > 0 and y.max() > 10 * y.min())
        bars = [np.maximum(y - e, y / 2) if logarithmic else y - e, y + e]
        zero = [] if logarithmic else [0.0]
        scale_y(axes, np.concatenate([*bars, extra, zero]), positive=logarithmic)
        if limit is not None:
            limit_line(axes, limit, "limit", theme)
    return figure


def split_field(
    points: Tensor,
    tangent: Tensor,
    normal: Tensor,
    *,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw the tangent and the normal part of a score in the plane, side by side.

    The parts differ in size, so each panel has its own scale: the title gives the size of the
    longest arrow.

    Arguments:
        points: Points at which the score was evaluated, `(n, 2)`.
        tangent: Its tangent part there, `(n, 2)`.
        normal: Its normal part there, `(n, 2)`.
        theme: Colours.

    Raises:
        ValueError: For wrong shapes.
    """
    xy, parts = array(points), [array(tangent), array(normal)]
    if xy.ndim != 2 or xy.shape[1] != 2 or not len(xy) or any(p.shape != xy.shape for p in parts):
        shapes = ", ".join(str(v.shape) for v in (xy, *parts))
        raise ValueError(f"points, tangent and normal must all have shape (n, 2), got {shapes}")
    low, high = xy.min(0), xy.max(0)
    reach = 0.16 * float((high - low).max() or 1.0)
    with new_figure(theme, 8.0, 4.4) as figure:
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        colours = (theme.real, theme.model)
        for axes, part, name, colour in zip(
            panels, parts, ("tangent", "normal"), colours, strict=True
        ):
            longest = float(np.linalg.norm(part, axis=1).max())
            axes.plot(*xy.T, ".", ms=2.0, mew=0, color=theme.muted, alpha=0.35)
            v = part * (reach / longest if longest > 0 else 0.0)
            axes.quiver(*xy.T, *v.T, color=colour, pivot="tail", **ARROW)
            axes.set(title=f"{name} part, longest {longest:.3g}", xlabel="x₁")
            axes.set_aspect("equal")
            axes.set_xlim(low[0] - 1.3 * reach, high[0] + 1.3 * reach)
            axes.set_ylim(low[1] - 1.3 * reach, high[1] + 1.3 * reach)
        panels[0].set_ylabel("x₂")
    return figure


def spectra(spectrum: Tensor, dimension: int | None = None, *, theme: Theme = LIGHT) -> Figure:
    """Draw the eigenvalues of −σ² ∇s at many points: near 0 for tangents, near 1 for normals.

    Arguments:
        spectrum: Ascending at every point, `(n, D)` (`TangentSpace.spectrum`).
        dimension: k, to be marked.
        theme: Colours.

    Raises:
        ValueError: For a wrong shape.
    """
    values: Array = array(spectrum)
    if values.ndim != 2 or not values.size:
        raise ValueError(f"spectrum must have shape (n, D), got {values.shape}")
    index = np.arange(1, values.shape[1] + 1)
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9], axis=0)
    with new_figure(theme, 10.4, 3.6) as figure:
        axes = figure.add_subplot(
            xlabel="direction, most tangent first", ylabel="eigenvalue of −σ²∇s"
        )
        axes.grid(axis="y")
        axes.fill_between(
            index, low, high, color=theme.real, alpha=0.2, lw=0, label="80 % of points"
        )
        dots: dict[str, Any] = {"ms": 4.0, "lw": 1.2, "color": theme.real, "label": "median"}
        axes.plot(index, middle, "o-" if len(index) <= 80 else "-", **dots)
        axes.axhline(
            0.5, color=theme.ink, lw=1.0, ls=(0, (5, 3)), label="tangent below, normal above"
        )
        if dimension is not None:
            axes.axvline(dimension + 0.5, color=theme.model, lw=1.4, label=f"k = {dimension}")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        axes.set_xlim(0.5, len(index) + 0.5)
        legend(axes)
    return figure
