"""Pictures of samples: rows of images, or their first coordinates."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from .style import LIGHT, Theme, array, evenly, frame, legend, new_figure

_GAP, _ROW_GAP = 0.05, 0.14  # inches
MOST_POINTS, MOST_IMAGES = 5000, 64


def image_grid(
    rows: Sequence[tuple[str, Tensor]],
    *,
    limits: tuple[float, float] | None = None,
    theme: Theme = LIGHT,
) -> Figure:
    """Draw rows of images with crisp pixels. Missing pixels are NaN and have their own colour.

    Arguments:
        rows: Pairs (title, images `(n, channels, height, width)`), channels 1 or 3. More than 16
            images continue on the next line.
        limits: The values of black and white; by default the range of the first row.
        theme: Colours outside the images.
    """
    if not rows:
        raise ValueError("needs at least one row of images")
    for title, images in rows:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
            raise ValueError(f"{title}: needs (n, 1 or 3, height, width), got {images.shape}")
    first = array(rows[0][1])
    low, high = limits or (float(np.nanmin(first)), float(np.nanmax(first)))
    columns = min(16, max(len(images) for _, images in rows))
    tile = min(0.85, 8.6 / columns)
    cell = tile + _GAP
    lines = [-(-len(images) // columns) for _, images in rows]
    labels = [textwrap.fill(title, 15) for title, _ in rows]
    left = 0.25 + 0.085 * max(len(line) for label in labels for line in label.split("\n"))
    width = left + columns * cell
    height = sum(lines) * cell + _ROW_GAP * (len(rows) - 1) + _GAP
    with new_figure(theme, width, height) as figure:
        figure.set_layout_engine("none")
        axes = figure.add_axes((0, 0, 1, 1))  # in inches, y downwards
        axes.set_axis_off()
        top = _GAP
        for label, (_, images), n in zip(labels, rows, lines, strict=True):
            middle = top + (n * cell - _GAP) / 2
            axes.text(left - 0.15, middle, label, ha="right", va="center")
            pixels = ((array(images) - low) / (high - low or 1.0)).clip(0, 1)
            holes = np.isnan(pixels).any(1)[..., None]
            pixels = pixels.transpose(0, 2, 3, 1)
            if holes.any():
                pixels = np.where(holes, to_rgb(theme.model), pixels)
            for i, image in enumerate(pixels):
                x, y = left + i % columns * cell, top + i // columns * cell
                box = (x, x + tile, y + tile, y)
                axes.imshow(image, "gray", vmin=0, vmax=1, extent=box, interpolation="nearest")
            top += n * cell + _ROW_GAP
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    return figure


def samples(
    sets: list[tuple[str, Tensor]], *, names: Sequence[str] = (), theme: Theme = LIGHT
) -> Figure:
    """Draw sets of samples side by side.

    Images are shown as rows of images, vectors by their first two coordinates in a common frame,
    numbers as histograms. Large sets are thinned evenly, and the title says so.

    Arguments:
        sets: Pairs (title, samples `(n, *event)`), all of one event shape.
        names: Names of the coordinates.
        theme: Colours.

    Raises:
        ValueError: For no set, an empty one, or events of several shapes.
    """
    if not sets or any(len(x) == 0 for _, x in sets):
        raise ValueError("needs at least one set, with at least one sample in each")
    if len({x.shape[1:] for _, x in sets}) > 1:
        raise ValueError(f"sets of different shapes: {[tuple(x.shape[1:]) for _, x in sets]}")
    shape = sets[0][1].shape
    if len(shape) == 4 and shape[1] in (1, 3) and min(shape[2:]) > 1:
        rows = []
        for name, batch in sets:
            even = evenly(len(batch), MOST_IMAGES)
            note = "" if len(even) == len(batch) else f" ({len(even)} of {len(batch):,})"
            rows.append((name + note, batch[even]))
        return image_grid(rows, theme=theme)
    flat = [(title, array(x.flatten(1))) for title, x in sets]
    low, high = frame(np.concatenate([x for _, x in flat]))
    colours = (theme.model, theme.real)
    if flat[0][1].shape[1] == 1:
        with new_figure(theme, 5.2, 3.6) as figure:
            axes = figure.add_subplot(
                xlabel=names[0] if names else "x", yticks=[], xlim=(low[0], high[0])
            )
            edges = np.linspace(low[0], high[0], 61)
            for i, (title, x) in enumerate(flat):
                heights = np.histogram(x[:, 0], edges)[0] / len(x)
                axes.stairs(heights, edges, color=colours[i % 2], lw=1.4, label=title)
            axes.set_ylim(bottom=0)
            legend(axes)
        return figure
    across, up = names[:2] if len(names) > 1 else ("x₁", "x₂")
    with new_figure(theme, 4.6 * len(flat), 4.2) as figure:
        for i, (title, x) in enumerate(flat):
            axes = figure.add_subplot(1, len(flat), i + 1, xlabel=across, ylabel=up)
            chosen = x[evenly(len(x), MOST_POINTS)]
            axes.plot(*chosen[:, :2].T, ".", ms=3, mew=0, alpha=0.5, color=colours[i % 2])
            axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            rest = "" if len(chosen) == len(x) else f", {len(chosen):,} shown"
            more = "" if x.shape[1] == 2 else f", 2 of {x.shape[1]} coordinates"
            axes.set_title(f"{title} (n = {len(x):,}{rest}{more})")
    return figure
