"""Samples beside real rows: columns, shares, correlations, importances of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .style import LIGHT, Theme, Values, array, columns, frame, legend, new_figure

LONG = 28  # characters of a label


def _short(name: str) -> str:
    return name if len(name) <= LONG else name[: LONG - 1] + "…"


def histograms(
    pairs: Sequence[tuple[str, Tensor, Tensor]],
    *,
    labels: tuple[str, str] = ("samples", "real (held out)"),
    theme: Theme = LIGHT,
) -> Figure:
    """Draw columns of samples over those of real rows, three in a line.

    The frame of each is that of the real values, without 1 in 2,000 on each side; values outside
    are counted at its ends.

    Arguments:
        pairs: Name, values `(n,)` of samples, values `(m,)` of real rows.
        labels: Names of the two sets.
        theme: Colours.
    """
    if not pairs:
        raise ValueError("needs at least one column")
    across = min(3, len(pairs))
    down = -(-len(pairs) // across)
    with new_figure(theme, 3.45 * across, 2.3 * down + 0.3) as figure:
        for i, (name, ours, real) in enumerate(pairs):
            axes = figure.add_subplot(down, across, i + 1, xlabel=_short(name), yticks=[])
            axes.spines["left"].set_visible(False)
            low, high = frame(array(real))
            edges = np.linspace(low, high, int(np.clip(len(real) ** 0.5, 12, 60)) + 1)
            sets = ((ours, theme.model, labels[0]), (real, theme.real, labels[1]))
            for values, colour, label in sets:
                inside = array(values).clip(edges[0], edges[-1])
                heights = np.histogram(inside, edges)[0] / len(values)
                axes.stairs(heights, edges, color=colour, lw=1.4, label=label)
            axes.set(xlim=(low, high))
            axes.set_ylim(bottom=0)
            if i == 0:
                legend(axes)
    return figure


def shares(
    names: Sequence[str],
    ours: Values,
    real: Values,
    *,
    labels: tuple[str, str] = ("samples", "real (held out)"),
    theme: Theme = LIGHT,
) -> Figure:
    """Draw shares of rows of samples and of real rows, a line for each name, the first on top."""
    x, y = columns(ours=ours, real=real)
    at = np.arange(len(names))[::-1]
    with new_figure(theme, 7.2, 0.27 * len(names) + 0.9) as figure:
        axes = figure.add_subplot(xlabel="share of rows")
        axes.hlines(at, np.minimum(x, y), np.maximum(x, y), color=theme.muted, lw=1.2, zorder=1)
        axes.plot(x, at, "o", ms=5, color=theme.model, label=labels[0])
        axes.plot(y, at, "o", ms=5, color=theme.real, label=labels[1], fillstyle="none", mew=1.6)
        axes.set_yticks(at, [_short(name) for name in names])
        axes.set_xlim(left=0)
        axes.grid(axis="x")
        legend(axes)
    return figure


def bars(names: Sequence[str], values: Values, *, label: str, theme: Theme = LIGHT) -> Figure:
    """Draw numbers as bars, a line for each name, the first on top."""
    (x,) = columns(values=values)
    at = np.arange(len(names))[::-1]
    with new_figure(theme, 7.2, 0.27 * len(names) + 0.8) as figure:
        axes = figure.add_subplot(xlabel=label)
        axes.barh(at, x, 0.6, color=theme.model)
        axes.axvline(0, color=theme.muted, lw=0.8)
        axes.set_yticks(at, [_short(name) for name in names])
    return figure


def correlation_matrices(
    names: Sequence[str],
    ours: Tensor,
    real: Tensor,
    *,
    labels: tuple[str, str] = ("samples", "real (held out)"),
    theme: Theme = LIGHT,
) -> Figure:
    """Draw two matrices of correlations and their difference, with the names on their axes.

    Arguments:
        names: Column names.
        ours: Correlations `(d, d)`; NaN is left blank.
        real: Correlations `(d, d)`.
        labels: Names of the two matrices.
        theme: Colours.
    """
    d = len(names)
    ticks: Any = np.arange(d) if d <= 25 else np.linspace(0, d - 1, 25).round().astype(int)
    size = float(np.clip(0.16 * d + 1.6, 2.6, 4.4))
    difference = array(ours) - array(real)
    panels = ((labels[0], array(ours)), (labels[1], array(real)), ("difference", difference))
    with new_figure(theme, 3 * size + 1.2, size + 1.1) as figure:
        for i, (title, matrix) in enumerate(panels):
            axes = figure.add_subplot(1, 3, i + 1)
            image = axes.imshow(matrix, "RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            axes.set_title(title)
            axes.set_xticks(ticks, [_short(names[t]) for t in ticks], rotation=90, fontsize=7)
            axes.set_yticks(ticks, [_short(names[t]) for t in ticks] if i == 0 else [], fontsize=7)
        bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, label="correlation of ranks")
        bar.outline.set_visible(False)
    return figure
