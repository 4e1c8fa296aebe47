"""A picture of samples of any kind: images as images, else their first coordinates."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .images import image_grid
from .style import LIGHT, Theme, array, legend, new_figure

MOST_POINTS, MOST_IMAGES = 5000, 64


def is_image(x: Tensor) -> bool:
    """Whether samples `(n, *event)` are grey or colour images."""
    return x.ndim == 4 and x.shape[1] in (1, 3) and min(x.shape[2:]) > 1


def samples(sets: list[tuple[str, Tensor]], *, theme: Theme = LIGHT) -> Figure:
    """Draw sets of samples beside one another.

    Images are shown as rows of images, vectors by their first two coordinates in one frame for
    all sets, numbers as histograms. Of large sets an even choice is shown, and the title says so.

    Arguments:
        sets: Pairs (title, samples `(n, *event)`), all of one event shape.
        theme: Colours.

    Raises:
        ValueError: For no set, an empty one, or events of several shapes.
    """
    if not sets or any(len(x) == 0 for _, x in sets):
        raise ValueError("needs at least one set, and in each at least one sample")
    if len({x.shape[1:] for _, x in sets}) > 1:
        raise ValueError(f"sets of several shapes: {[tuple(x.shape[1:]) for _, x in sets]}")
    if is_image(sets[0][1]):
        rows = []
        for name, batch in sets:
            even = np.unique(np.linspace(0, len(batch) - 1, MOST_IMAGES).round().astype(int))
            note = "" if len(even) == len(batch) else f" ({len(even)} of {len(batch):,})"
            rows.append((name + note, batch[even]))
        return image_grid(rows, theme=theme)
    flat = [(title, array(x.flatten(1))) for title, x in sets]
    low, high = np.quantile(np.concatenate([x for _, x in flat]), [0.0005, 0.9995], axis=0)
    pad = 0.06 * np.where(high > low, high - low, 1.0)
    low, high = low - pad, high + pad
    colours = (theme.model, theme.real)
    if flat[0][1].shape[1] == 1:
        with new_figure(theme, 5.2, 3.6) as figure:
            axes = figure.add_subplot(xlabel="x", yticks=[], xlim=(low[0], high[0]))
            edges = np.linspace(low[0], high[0], 61)
            for i, (title, x) in enumerate(flat):
                heights = np.histogram(x[:, 0], edges)[0] / len(x)
                axes.stairs(heights, edges, color=colours[i % 2], lw=1.4, label=title)
            axes.set_ylim(bottom=0)
            legend(axes)
        return figure
    with new_figure(theme, 4.6 * len(flat), 4.2) as figure:
        for i, (title, x) in enumerate(flat):
            axes = figure.add_subplot(1, len(flat), i + 1, xlabel="x₁", ylabel="x₂")
            chosen = x[np.unique(np.linspace(0, len(x) - 1, MOST_POINTS).round().astype(int))]
            axes.plot(*chosen[:, :2].T, ".", ms=3, mew=0, alpha=0.5, color=colours[i % 2])
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            rest = "" if len(chosen) == len(x) else f", {len(chosen):,} shown"
            more = "" if x.shape[1] == 2 else f", 2 of {x.shape[1]} coordinates"
            axes.set_title(f"{title} (n = {len(x):,}{rest}{more})")
    return figure
