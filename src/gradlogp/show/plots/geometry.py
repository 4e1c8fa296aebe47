"""A score split along and across a manifold: arrows in the plane, spectra in more dimensions."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .style import ARROW, LIGHT, Array, Theme, array, legend, new_figure


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
