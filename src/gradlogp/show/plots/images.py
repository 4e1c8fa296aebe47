"""Pictures of pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from .style import LIGHT, Theme, array, new_figure

_GAP, _ROW_GAP = 0.05, 0.14  # inches


def image_grid(rows: Sequence[tuple[str, Tensor]], *, theme: Theme = LIGHT) -> Figure:
    """Draw rows of images with crisp pixels; the range of values is that of the first row.

    Arguments:
        rows: Pairs (title, images `(n, channels, height, width)`), channels 1 or 3. More than 16
            images continue on the next line.
        theme: Colours of what is not image.
    """
    if not rows:
        raise ValueError("needs at least one row of images")
    for title, images in rows:
        if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
            raise ValueError(f"{title}: needs (n, 1 or 3, height, width), got {images.shape}")
    low, high = float(rows[0][1].min()), float(rows[0][1].max())
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
            for i, image in enumerate(pixels.transpose(0, 2, 3, 1)):
                x, y = left + i % columns * cell, top + i // columns * cell
                box = (x, x + tile, y + tile, y)
                axes.imshow(image, "gray", vmin=0, vmax=1, extent=box, interpolation="nearest")
            top += n * cell + _ROW_GAP
        axes.set(xlim=(0, width), ylim=(height, 0), aspect="auto")
    return figure
