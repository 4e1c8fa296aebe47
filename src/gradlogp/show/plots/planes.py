"""Figures in the plane: score fields, points, paths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from ...core import ScoreFn
from .style import ARROW, LIGHT, Array, Theme, array, evenly, frame, legend, new_figure

Bounds = tuple[float | int, float | int, float | int, float | int]
"""The frame of a plane: x_min, x_max, y_min, y_max."""


QUIET = 1.9
"""Of the colormap's range what lies behind other things uses one part in so many."""


def _plane(points: Tensor, name: str) -> Array:
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"{name} must have shape (n, 2), n > 0, got {tuple(points.shape)}")
    return array(points)


def _cells(bounds: Bounds, nx: int, ny: int) -> tuple[Array, Array, Tensor]:
    """Return the centres of cells along x and y, and all of them as points `(ny * nx, 2)`."""
    x0, x1, y0, y1 = bounds
    if not (x0 < x1 and y0 < y1):
        raise ValueError(f"bounds are (x_min, x_max, y_min, y_max), increasing; got {bounds}")
    x = x0 + (x1 - x0) * (np.arange(nx) + 0.5) / nx
    y = y0 + (y1 - y0) * (np.arange(ny) + 0.5) / ny
    points = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2)
    return x, y, torch.as_tensor(points, dtype=torch.get_default_dtype())


def _shape(bounds: Bounds) -> tuple[bool, float]:
    """Return whether both axes can have one unit, and height / width of the panel."""
    ratio = (bounds[3] - bounds[2]) / (bounds[1] - bounds[0])
    return (True, ratio) if 0.4 <= ratio <= 2.5 else (False, 1.0)


def _frame(axes: Axes, bounds: Bounds) -> None:
    axes.set(xlim=bounds[:2], ylim=bounds[2:])
    axes.set_box_aspect(_shape(bounds)[1])


def _log_density(density: Callable[[Tensor], Tensor], bounds: Bounds, n: int = 240) -> Array:
    """Return log p on an n × n grid, its maximum shifted to 0; −∞ where it is NaN."""
    log_p = density(_cells(bounds, n, n)[2])
    if log_p.shape != (n * n,):
        raise ValueError(f"density must map (n, 2) to (n,), got {tuple(log_p.shape)}")
    values = array(log_p).reshape(n, n)
    values = np.where(np.isnan(values), -np.inf, values)
    if not np.isfinite(values.max()):
        raise ValueError(f"the density is 0 or infinite on the whole grid of {bounds}")
    return values - values.max()


def _histogram(xy: Array, bounds: Bounds, bins: int) -> Array:
    """Return counts, rows along y."""
    edges = (np.linspace(a, b, bins + 1) for a, b in (bounds[:2], bounds[2:]))
    return np.histogram2d(xy[:, 0], xy[:, 1], bins=list(edges))[0].T


def _backdrop(axes: Axes, p: Array, bounds: Bounds, theme: Theme) -> None:
    """Show a density behind other things: √p, in the quieter half of the colormap."""
    root = np.sqrt(p / max(p.max(), 1e-300))
    style: dict[str, Any] = {"cmap": theme.density_map, "vmin": 0, "vmax": QUIET}
    axes.imshow(
        root, origin="lower", extent=bounds, interpolation="bilinear", aspect="auto", **style
    )


def fields(
    panels: Sequence[tuple[str, ScoreFn]],
    *,
    bounds: Bounds,
    density: Callable[[Tensor], Tensor] | None = None,
    points: Tensor | None = None,
    names: tuple[str, str] = ("x₁", "x₂"),
    invert_y: bool = False,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw score fields side by side, on a density or on points.

    An arrow points along s; its length is `|s| / (c + |s|)` with one c, a fifth of the median of
    `|s|`, for all panels. If the scales of the axes differ too much for a common unit, s is the
    gradient with respect to the position in the frame.

    Arguments:
        panels: One to three pairs (title, s), s: `(n, 2) -> (n, 2)`.
        bounds: The frame.
        density: log p for the background, `(n, 2) -> (n,)`, up to a constant.
        points: Points `(n, 2)`: dots over the density, a histogram in its absence.
        names: Names of the axes.
        invert_y: Let y grow downwards, as magnitudes do.
        theme: Colours.
    """
    if not 1 <= len(panels) <= 3:
        raise ValueError(f"needs one to three panels, got {len(panels)}")
    one_unit, ratio = _shape(bounds)
    span = np.array([bounds[1] - bounds[0], bounds[3] - bounds[2]], dtype=np.float64)
    unit = np.ones(2) if one_unit else span / span.max()
    n = np.round(20 * span / unit / (span / unit).max()).astype(int)
    cells = _cells(bounds, int(n[0]), int(n[1]))[2]
    arrows = []
    for title, score in panels:
        s = score(cells)
        if s.shape != cells.shape:
            raise ValueError(f"{title}: score maps {tuple(cells.shape)} to {tuple(s.shape)}")
        arrows.append(array(s) * unit)
    c = float(np.nanmedian(np.linalg.norm(np.concatenate(arrows), axis=1))) / 5 or 1.0
    longest = 0.95 * (span / unit / n).min() * unit
    quiver: dict[str, Any] = {"pivot": "mid", "minlength": 0.2} | ARROW
    width = 3.5 if len(panels) > 1 else 4.8
    height = (width - 0.7 / len(panels) - 0.15) * ratio + 0.95
    with new_figure(theme, width * len(panels), height) as figure:
        all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, _), v in zip(all_axes, panels, arrows, strict=True):
            _frame(axes, bounds)
            axes.set(title=title, xlabel=names[0])
            if density is not None:
                _backdrop(axes, np.exp(_log_density(density, bounds)), bounds, theme)
            if points is not None:
                xy = _plane(points, "points")
                if density is None:
                    _backdrop(axes, _histogram(xy, bounds, 60), bounds, theme)
                else:
                    axes.plot(*xy.T, ".", ms=2.5, mew=0, color=theme.model, alpha=0.6)
            v = v / (c + np.linalg.norm(v, axis=1, keepdims=True)) * longest
            axes.quiver(*array(cells).T, *v.T, color=theme.ink, **quiver)
        all_axes[0].set_ylabel(names[1])
        if invert_y:
            all_axes[0].invert_yaxis()
        note = f"arrow length ∝ |s| / ({c:.2g} + |s|)"
        figure.supxlabel(note, x=0.99, ha="right", fontsize=7.5, color=theme.muted)
    return figure


def scatter_pair(
    real: Tensor,
    samples: Tensor,
    *,
    names: tuple[str, str] = ("x₁", "x₂"),
    invert_y: bool = False,
    labels: tuple[str, str] = ("real (held out)", "samples"),
    theme: Theme = LIGHT,
) -> Figure:
    """Draw histograms of two sets of points in one frame, and their marginals over each other.

    The frame is that of the real points, without 1 in 2,000 on each side; the panels give the
    share of each set that lies outside. Both show the same number of points, with the larger set
    thinned evenly, so that they look equally noisy; the marginals are those of all points.

    Arguments:
        real: Points `(n, 2)`.
        samples: Points `(m, 2)`.
        names: Labels of the axes.
        invert_y: Let y grow downwards, as magnitudes do.
        labels: Names of the sets.
        theme: Colours.
    """
    sets = [_plane(real, "real"), _plane(samples, "samples")]
    (x0, y0), (x1, y1) = (end.tolist() for end in frame(sets[0]))
    n = min(len(xy) for xy in sets)
    shown = [xy[evenly(len(xy), n)] for xy in sets]
    bins = int(np.clip(0.7 * n**0.5, 24, 100))
    counts = [_histogram(xy, (x0, x1, y0, y1), bins) for xy in shown]
    norm = LogNorm(0.5, max(2.0, *(float(c.max()) for c in counts)))
    colours = (theme.real, theme.model)
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    with new_figure(theme, 10.4, 4.0) as figure:
        grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 0.8))
        planes = [figure.add_subplot(grid[:, 0])]
        planes.append(figure.add_subplot(grid[:, 1], sharey=planes[0]))
        for i, axes in enumerate(planes):
            inside = (sets[i] >= (x0, y0)).all(1) & (sets[i] <= (x1, y1)).all(1)
            note = f"n = {n:,}" + (f" of {len(sets[i]):,}" if n < len(sets[i]) else "")
            note += "" if inside.all() else f" · {100 * (1 - inside.mean()):.2g} % outside"
            axes.set(xlabel=names[0], xlim=(x0, x1), ylim=(y0, y1))
            axes.set_title(labels[i], pad=18)
            axes.annotate(note, (0, 1), xytext=(0, 5), fontsize=7.5, color=theme.muted, **place)
            x, y = np.linspace(x0, x1, bins + 1), np.linspace(y0, y1, bins + 1)
            masked = np.ma.masked_equal(counts[i], 0)
            mesh = axes.pcolormesh(x, y, masked, cmap=theme.density_map, norm=norm)
        cax = planes[1].inset_axes((1.03, 0, 0.035, 1))
        bar = figure.colorbar(mesh, cax, ticks=LogLocator(subs=(1, 3)), format="{x:g}")
        bar.minorticks_off()
        cax.set_ylim(bottom=1)
        cax.set_title("points\nper cell", fontsize=7.5, color=theme.muted, pad=4)
        bar.outline.set_visible(False)
        if invert_y:
            planes[0].invert_yaxis()
        planes[0].set_ylabel(names[1])
        planes[1].tick_params(labelleft=False)
        for i, ends in enumerate(((x0, x1), (y0, y1))):
            axes = figure.add_subplot(grid[i, 2], xlabel=names[i], xlim=ends, yticks=[])
            axes.spines["left"].set_visible(False)
            edges = np.linspace(*ends, int(np.clip(n**0.5, 16, 48)) + 1)
            heights = [np.histogram(xy[:, i], edges)[0] / len(xy) for xy in sets]
            axes.stairs(
                heights[0], edges, fill=True, color=colours[0], alpha=0.35, label=labels[0]
            )
            axes.stairs(heights[1], edges, color=colours[1], lw=1.4, label=labels[1])
            axes.set_ylim(bottom=0)
            if i == 0:
                legend(axes)
    return figure


def trajectories(
    paths: Tensor,
    *,
    bounds: Bounds,
    density: Callable[[Tensor], Tensor] | None = None,
    names: tuple[str, str] = ("x₁", "x₂"),
    invert_y: bool = False,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw the paths of an annealed run from noise to data.

    If paths go far outside the frame, a second panel shows all of them and the frame. At most 400
    steps are drawn.

    Arguments:
        paths: Positions `(steps, n, 2)`.
        bounds: The frame, where the data are.
        density: log p of the data, `(n, 2) -> (n,)`, up to a constant.
        names: Names of the axes.
        invert_y: Let y grow downwards.
        theme: Colours.
    """
    if paths.ndim != 3 or paths.shape[2] != 2 or len(paths) < 2 or not paths.shape[1]:
        raise ValueError(f"paths must have shape (steps, n, 2), got {tuple(paths.shape)}")
    xy = array(paths)[evenly(len(paths), 400)]
    if not np.isfinite(xy).all():
        raise ValueError("paths must be finite; these have diverged")
    x0, x1, y0, y1 = bounds
    low, high = np.array([[x0, y0], [x1, y1]], dtype=np.float64)
    reach = float((np.abs(2 * xy - low - high) / (high - low)).max())
    frames = [bounds]
    if reach > 1.6:
        all_low, all_high = np.minimum(xy.min((0, 1)), low), np.maximum(xy.max((0, 1)), high)
        half = 0.52 * (high - low) * ((all_high - all_low) / (high - low)).max()
        middle = (all_low + all_high) / 2
        a, b = (middle - half).tolist(), (middle + half).tolist()
        frames.insert(0, (a[0], b[0], a[1], b[1]))
    segments = np.stack([xy[:-1], xy[1:]], 2).transpose(1, 0, 2, 3).reshape(-1, 2, 2)
    time = np.tile(np.linspace(0, 1, len(xy) - 1), xy.shape[1])
    width = float(np.clip(1.2 - 0.015 * xy.shape[1], 0.4, 1.0))
    edge: dict[str, Any] = {"ls": "none", "marker": "o", "mew": 0.7, "zorder": 3}
    size = 5.0 if len(frames) == 1 else 10.4
    height = ((size - 1.25) / len(frames) - 0.1 * (len(frames) - 1)) * _shape(bounds)[1] + 0.8
    with new_figure(theme, size, height) as figure:
        all_axes = figure.subplots(1, len(frames), squeeze=False)[0]
        for axes, box in zip(all_axes, frames, strict=True):
            _frame(axes, box)
            axes.set(xlabel=names[0])
            if density is not None:
                log_p = _log_density(density, box)
                _backdrop(axes, np.exp(log_p), box, theme)
                x, y, _ = _cells(box, *log_p.shape)
                style: dict[str, Any] = {"colors": theme.muted, "linestyles": "solid"}
                axes.contour(x, y, log_p, [-8.0, -4.5, -2.0, -0.5], linewidths=0.5, **style)
            if invert_y:
                axes.invert_yaxis()
            lines = LineCollection(list(segments), array=time, cmap=theme.time_map, lw=width)
            axes.add_collection(lines, autolim=False)
            axes.plot(*xy[0].T, ms=3.5, mec=theme.ink, mfc=theme.background, label="start", **edge)
            axes.plot(
                *xy[-1].T, ms=4.5, mec=theme.background, mfc=theme.time[-1], label="end", **edge
            )
        all_axes[0].set_ylabel(names[1])
        if len(frames) > 1:
            inset = (x0, y0, x1 - x0, y1 - y0)
            all_axes[0].indicate_inset(inset, edgecolor=theme.ink, alpha=1, lw=1)
            all_axes[1].set_title("the box, enlarged")
        legend(all_axes[-1])
        bar = figure.colorbar(lines, all_axes[-1].inset_axes((1.03, 0, 0.035, 1)), ticks=[0, 1])
        bar.ax.set_yticklabels(["noise", "data"])
        bar.outline.set_visible(False)
    return figure
