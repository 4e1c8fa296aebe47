"""Chains: traces over time, autocorrelations, and the regions that were visited."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from ...core import ScoreFn
from .planes import Bounds, _cells, _frame, _log_density, _shape, fields
from .style import (
    LIGHT,
    Array,
    Theme,
    Values,
    array,
    count_axis,
    evenly,
    frame,
    legend,
    new_figure,
    scale_y,
)

SHOWN = 4
"""Chains that are drawn one by one."""

POINTS = 2000
"""Draws of a chain that are drawn."""

DOTS = 5000
"""Draws of all chains together that are drawn as dots."""


def _scalars(draws: Tensor) -> Array:
    """Return draws `(chain, draw)` of one number as an array."""
    if draws.ndim != 2 or not draws.numel():
        raise ValueError(
            "draws must have shape (chain, draw), one number per draw, such as chain.draws[..., 0]; "
            f"got {tuple(draws.shape)}"
        )
    return _finite(draws)


def _finite(draws: Tensor) -> Array:
    x = array(draws)
    if not np.isfinite(x).all():
        raise ValueError("draws must be finite")
    return x


def trace(
    draws: Tensor,
    *,
    names: Sequence[str] | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw coordinates over time, a panel for each: four chains, and all of them as a histogram.

    With many draws the traces are thinned; the histogram has all draws. Chains that have not
    converged stay apart or drift.

    Arguments:
        draws: `(chain, draw)`, or `(chain, draw, k)` for one to six coordinates.
        names: Their names.
        theme: Colours.
    """
    if draws.ndim == 2:
        draws = draws[..., None]
    if draws.ndim != 3 or not draws.numel() or draws.shape[2] > 6:
        raise ValueError(
            "draws must have shape (chain, draw, k) with at most 6 coordinates, such as "
            f"chain.draws[..., :6]; got {tuple(draws.shape)}"
        )
    x, k = _finite(draws), draws.shape[2]
    names = [f"x{'₀₁₂₃₄₅₆'[i + 1]}" for i in range(k)] if names is None else list(names)
    if len(names) != k:
        raise ValueError(f"names must hold {k} names, got {len(names)}")
    chains, at = evenly(len(x), SHOWN), evenly(x.shape[1], POINTS)
    colours = (theme.real, theme.model, theme.muted, theme.ink)
    with new_figure(theme, 10.4, 0.9 + 1.5 * k) as figure:
        grid = figure.add_gridspec(k, 2, width_ratios=(6, 1))
        for i, name in enumerate(names):
            axes = figure.add_subplot(grid[i, 0], ylabel=name)
            axes.grid(axis="y")
            for chain, colour in zip(chains, colours, strict=False):
                label = f"chain {chain + 1}"
                axes.plot(at + 1, x[chain, at, i], color=colour, lw=0.6, alpha=0.8, label=label)
            scale_y(axes, x[..., i].ravel(), positive=False)
            axes.margins(x=0.01)
            count_axis(axes.xaxis)
            axes.yaxis.set_major_locator(MaxNLocator(5))
            side = figure.add_subplot(grid[i, 1], sharey=axes, xticks=[])
            side.tick_params(labelleft=False)
            side.spines["bottom"].set_visible(False)
            edges = np.linspace(*axes.get_ylim(), 41)
            counts = np.histogram(x[..., i], edges)[0]
            side.stairs(
                counts, edges, orientation="horizontal", fill=True, color=theme.real, alpha=0.35
            )
            if i == 0:
                legend(axes)
                for line in axes.get_legend().get_lines():  # type: ignore[union-attr]
                    line.set(lw=1.6, alpha=1)
                side.set_title(f"all {len(x):,}", color=theme.muted, fontsize=8.5)
            axes.tick_params(labelbottom=i == k - 1)
        axes.set_xlabel("draw")
    return figure


def autocorrelations(x: Array, max_lag: int) -> Array:
    r"""Return the autocorrelations `(chain, lag)` of chains `(chain, draw)` about their joint mean.

    .. math:: ρ_k = \frac{\sum_{t \le n - k} (x_t - m)(x_{t+k} - m)}{n\, v}

    with mean m and variance v of all chains.
    """
    y, n = x - x.mean(), x.shape[1]
    f = np.fft.rfft(y, 2 * n, axis=1)
    products: Array = np.fft.irfft(np.abs(f) ** 2, 2 * n, axis=1)[:, : max_lag + 1]
    rho: Array = products / (n * y.var())
    return rho


def autocorrelation(
    draws: Tensor,
    *,
    max_lag: int | None = None,
    exact: Values | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw how fast chains forget: the autocorrelation over the lag, of each and on average.

    The band is 0 ± 2/√n, n the number of all draws: the average of independent draws lies in it.

    Arguments:
        draws: `(chain, draw)`.
        max_lag: The last lag; by default 50, or half the length of short chains.
        exact: The expected values at lags 0, 1 …
        theme: Colours.
    """
    x = _scalars(draws)
    n = x.shape[1]
    max_lag = max(1, min(50, n // 2)) if max_lag is None else max_lag
    if not 1 <= max_lag < n:
        raise ValueError(f"max_lag must lie in [1, {n - 1}] for {n} draws, got {max_lag}")
    if x.std() == 0:
        raise ValueError("draws are all equal: their autocorrelation is undefined")
    rho, lags = autocorrelations(x, max_lag), np.arange(max_lag + 1)
    band = 2 / x.size**0.5
    with new_figure(theme, 5.2, 3.2) as figure:
        axes = figure.add_subplot(xlabel="lag", ylabel="autocorrelation")
        axes.grid(axis="y")
        axes.axhspan(-band, band, color=theme.grid, lw=0)
        axes.axhline(0, color=theme.muted, lw=0.8)
        if len(x) > 1:
            each = rho[evenly(len(x), 50)]
            axes.plot(lags, each.T, color=theme.real, lw=0.5, alpha=0.25)
        axes.plot(lags, rho.mean(0), color=theme.real, lw=1.8, label="average of all chains")
        shown = [rho.mean(0), rho.min(0), np.array([-band])]
        if exact is not None:
            expected = array(exact)[: max_lag + 1]
            style: dict[str, Any] = {"ls": (0, (4, 2)), "label": "exact"}
            axes.plot(lags[: len(expected)], expected, color=theme.model, lw=1.4, **style)
            shown.append(expected)
        scale_y(axes, np.concatenate(shown), positive=False)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.margins(x=0.015)
        legend(axes)
    return figure


def marginal(
    draws: Tensor,
    *,
    density: Callable[[Tensor], Tensor] | None = None,
    name: str = "x₁",
    theme: Theme = LIGHT,
) -> Figure:
    """Draw the histogram of one coordinate, with its exact density if that is known.

    Arguments:
        draws: `(chain, draw)`.
        density: p itself, not its logarithm, normalised: `(n,) -> (n,)`.
        name: Name of the coordinate.
        theme: Colours.
    """
    x = _scalars(draws).ravel()
    low, high = map(float, frame(x))
    edges = np.linspace(low, high, int(np.clip(x.size**0.5 / 2, 16, 80)) + 1)
    heights = np.histogram(x, edges)[0] / (x.size * np.diff(edges))
    outside = 1 - float(((x >= low) & (x <= high)).mean())
    with new_figure(theme, 5.2, 3.2) as figure:
        axes = figure.add_subplot(xlabel=name, ylabel="density", xlim=(low, high))
        label = f"{x.size:,} draws" + (f", {100 * outside:.2g} % outside" if outside else "")
        axes.stairs(heights, edges, fill=True, color=theme.real, alpha=0.35, label=label)
        top = [heights]
        if density is not None:
            points = torch.linspace(low, high, 400, dtype=torch.get_default_dtype())
            p = density(points)
            if p.shape != points.shape:
                raise ValueError(f"density must map (n,) to (n,), got {tuple(p.shape)}")
            axes.plot(array(points), array(p), color=theme.model, lw=1.6, label="exact")
            top.append(array(p))
        axes.set_ylim(0, 1.06 * float(np.concatenate(top).max()))
        legend(axes)
    return figure


def over_density(
    draws: Tensor,
    density: Callable[[Tensor], Tensor],
    *,
    names: Sequence[str] = ("x₁", "x₂"),
    theme: Theme = LIGHT,
) -> Figure:
    """Draw the draws of chains over their density: contours of √p, and dots.

    The frame is that of the draws, without 1 in 2,000 on each side. Inside it, regions that chains
    have missed appear as contours without dots, and draws where the density is low as dots without
    contours.

    Arguments:
        draws: `(chain, draw, 2)`.
        density: log p, `(n, 2) -> (n,)`, up to a constant; NaN counts as −∞.
        names: Names of the axes.
        theme: Colours.

    Raises:
        ValueError: For a wrong shape, draws that are not finite, or a density that is 0 on the
            whole frame.
    """
    if draws.ndim != 3 or draws.shape[2] != 2 or not draws.numel():
        raise ValueError(f"draws must have shape (chain, draw, 2), got {tuple(draws.shape)}")
    xy = _finite(draws).reshape(-1, 2)
    (x0, y0), (x1, y1) = (end.tolist() for end in frame(xy))
    bounds = (x0, x1, y0, y1)
    p = np.exp(_log_density(density, bounds))
    shown = xy[evenly(len(xy), DOTS)]
    title = f"{len(draws):,} chains × {draws.shape[1]:,} draws"
    title += "" if len(shown) == len(xy) else f", {len(shown):,} shown"
    with new_figure(theme, 5.4, 4.8 * _shape(bounds)[1] + 0.7) as figure:
        axes = figure.add_subplot(xlabel=names[0], ylabel=names[1], title=title)
        x, y, _ = _cells(bounds, *p.shape)
        filled: dict[str, Any] = {"cmap": theme.density_map, "vmin": 0, "vmax": 1.9}
        axes.contourf(x, y, np.sqrt(p), np.linspace(0, 1, 11)[1:], **filled)
        axes.plot(*shown.T, ".", ms=3, mew=0, color=theme.model, alpha=0.6)
        _frame(axes, bounds)
    return figure


def walks(
    score: ScoreFn,
    draws: Tensor,
    *,
    bounds: Bounds | None = None,
    density: Callable[[Tensor], Tensor] | None = None,
    title: str = "score and chains",
    names: tuple[str, str] = ("x₁", "x₂"),
    theme: Theme = LIGHT,
) -> Figure:
    """Draw a score field in the plane, and the paths of chains through it.

    Up to eight chains are drawn, the first 500 draws each.

    Arguments:
        score: The score, `(n, 2) -> (n, 2)`.
        draws: `(chain, draw, 2)`.
        bounds: The frame; by default that of the paths.
        density: log p for the background, `(n, 2) -> (n,)`, up to a constant.
        title: Title of the figure.
        names: Names of the axes.
        theme: Colours.
    """
    if draws.ndim != 3 or draws.shape[2] != 2 or draws.shape[1] < 2 or not len(draws):
        raise ValueError(f"draws must have shape (chain, draw > 1, 2), got {tuple(draws.shape)}")
    xy = _finite(draws[:, :500])[evenly(len(draws), 8)]
    if bounds is None:
        low, high = xy.min((0, 1)), xy.max((0, 1))
        pad = 0.08 * max(float((high - low).max()), 1e-9)
        bounds = (low[0] - pad, high[0] + pad, low[1] - pad, high[1] + pad)
        bounds = tuple(map(float, bounds))  # type: ignore[assignment]
    figure = fields([(title, score)], bounds=bounds, density=density, names=names, theme=theme)
    (axes,) = figure.axes
    with mpl.rc_context(theme.rc):
        width = float(np.clip(1.1 - 0.0004 * xy[..., 0].size, 0.4, 1.0))
        style: dict[str, Any] = {"lw": width, "alpha": 0.75, "zorder": 3}
        axes.add_collection(LineCollection(list(xy), colors=theme.model, **style), autolim=False)
        edge: dict[str, Any] = {"ls": "none", "marker": "o", "mew": 0.9, "zorder": 4, "ms": 5.0}
        axes.plot(*xy[:, 0].T, mec=theme.ink, mfc=theme.background, label="start", **edge)
        axes.plot(*xy[:, -1].T, mec=theme.background, mfc=theme.model, label="end", **edge)
        legend(axes)
    return figure
