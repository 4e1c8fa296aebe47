"""Themes, and the pieces that figures share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray
from torch import Tensor

Values = Tensor | Sequence[float | int]
"""A list of numbers, or a tensor of them."""

Array = NDArray[np.float64]

ARROW: dict[str, Any] = {
    "angles": "xy", "scale_units": "xy", "scale": 1, "units": "inches", "width": 0.011,
    "headwidth": 4.2, "headlength": 4.6, "minshaft": 1.4,
}  # fmt: skip
"""Arrows whose length is in the units of the axes."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure; `density` and `time` are ramps of monotone lightness."""

    name: str
    background: str
    ink: str
    muted: str
    grid: str
    real: str
    model: str
    density: tuple[str, ...]
    time: tuple[str, ...]

    @property
    def density_map(self) -> Colormap:
        """The colormap of densities, from the background on."""
        return LinearSegmentedColormap.from_list(f"{self.name}-density", self.density)

    @property
    def time_map(self) -> Colormap:
        """The colormap of noise levels, from noise to data."""
        return LinearSegmentedColormap.from_list(f"{self.name}-time", self.time)

    @property
    def rc(self) -> dict[Any, Any]:
        """The matplotlib settings of the theme."""
        ink = ("axes.labelcolor", "axes.titlecolor", "text.color")
        face = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
        off = ("axes.spines.top", "axes.spines.right", "legend.frameon", "text.usetex")
        settings: dict[Any, Any] = {
            **dict.fromkeys((*ink, "xtick.labelcolor", "ytick.labelcolor"), self.ink),
            **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), self.muted),
            **dict.fromkeys(face, self.background),
            **dict.fromkeys(off, False),
            **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.6),
            **dict.fromkeys(("xtick.major.width", "ytick.major.width"), 0.6),
            **dict.fromkeys(("xtick.minor.width", "ytick.minor.width"), 0.4),
            **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8.5),
            "font.family": ["DejaVu Sans"],  # ships with matplotlib: the same figure everywhere
            "font.size": 9.5,
            "text.hinting": "none",
            "axes.labelsize": 9.5,
            "axes.titlesize": 10.5,
            "axes.titlelocation": "left",
            "axes.titlepad": 7.0,
            "axes.axisbelow": True,
            "axes.unicode_minus": True,
            "grid.color": self.grid,
        }
        return settings


LIGHT = Theme(
    name="light",
    background="#ffffff",
    ink="#1d2530",
    muted="#66707d",
    grid="#e6e9ed",
    real="#0b62a4",
    model="#d1550b",
    density=("#ffffff", "#d9efee", "#9bd3d6", "#4fa6bc", "#2f739d", "#33427a", "#21183b"),
    time=("#f0b35c", "#e5762b", "#b8321f", "#5e0d26"),
)
"""Dark ink on white."""

DARK = Theme(
    name="dark",
    background="#11151b",
    ink="#e4e8ee",
    muted="#8d98a7",
    grid="#262d37",
    real="#58b0ee",
    model="#ffa04d",
    density=("#11151b", "#1c2442", "#25457c", "#2a75a0", "#3fa9b5", "#8fd8c8", "#f0fbef"),
    time=("#8a2f45", "#d3543a", "#f59a4a", "#ffe3a6"),
)
"""Light ink on near-black."""


def array(values: Values) -> Array:
    """Return the numbers as a NumPy array of doubles."""
    return torch.as_tensor(values).detach().cpu().double().numpy()


def columns(**values: Values) -> list[Array]:
    """Return lists of numbers with the same length as arrays.

    Raises:
        ValueError: If the lengths differ or are 0.
    """
    arrays = {name: array(v) for name, v in values.items()}
    shape = next(iter(arrays.values())).shape
    if len(shape) != 1 or shape == (0,) or any(a.shape != shape for a in arrays.values()):
        shapes = ", ".join(f"{name} {a.shape}" for name, a in arrays.items())
        raise ValueError(
            f"needs equally many numbers of each kind, at least one; got shapes {shapes}"
        )
    return list(arrays.values())


def evenly(n: int, most: int) -> Any:
    """Return the indices of `most` of n things, all of them where there are no more."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(int)


def frame(values: Array) -> tuple[Any, Any]:
    """Return where axes begin and end for values `(n, ...)`: without 1 in 2,000 on each side."""
    low, high = np.quantile(values, [0.0005, 0.9995], axis=0)
    pad = 0.06 * np.where(high > low, high - low, 1.0)
    return low - pad, high + pad


@contextmanager
def new_figure(theme: Theme, width: float, height: float) -> Iterator[Figure]:
    """Open a figure of that many inches: styled while it is drawn, then laid out for good."""
    with mpl.rc_context(theme.rc):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.05, wspace=0.03)
        figure.set_layout_engine(layout)
        yield figure
        if figure.get_layout_engine() is layout:
            for _ in range(2):  # the second time it knows the size of tick labels
                layout.execute(figure)
            figure.set_layout_engine("none")


def legend(axes: Axes) -> None:
    """Put the legend in a line above the axes, where it can hide nothing."""
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=9, borderaxespad=0.2, borderpad=0.2,
        columnspacing=1.6, handlelength=1.6, handletextpad=0.6,
    )  # fmt: skip


def log_axis(axis: Axis, low: float, high: float) -> None:
    """Label a logarithmic axis with plain numbers, more of them where decades are few."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def count_axis(axis: Axis, n: int = 6) -> None:
    """Label an axis of counts with integers."""
    axis.set_major_locator(MaxNLocator(n, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))


def scale_y(axes: Axes, values: Array, *, positive: bool) -> None:
    """Fit the y axis to the values: logarithmic where all is positive and spans a decade."""
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    if positive and low > 0 and high > 10 * low:
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(low * (low / high) ** 0.08, high * (high / low) ** 0.06)
        log_axis(axes.yaxis, low, high)
    else:
        pad = high - low or abs(high) or 1.0
        axes.set_ylim(low - 0.08 * pad, high + 0.06 * pad)


def limit_line(axes: Axes, value: float, label: str, theme: Theme) -> None:
    """Draw a dashed line, labelled in the margin on its right."""
    axes.axhline(value, color=theme.ink, lw=1.1, ls=(0, (5, 3)), zorder=2.5)
    text = f"{label}\n{value:.4g}".replace("-", "−")
    place: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "annotation_clip": False}
    place |= {"xytext": (5, 0), "textcoords": "offset points", "fontsize": 8.5}
    axes.annotate(text, (1, value), va="center", linespacing=1.3, **place)


def png(figure: Figure, dpi: int = 144) -> bytes:
    """Return the figure as a PNG file; equal figures give equal bytes."""
    buffer = BytesIO()
    with mpl.rc_context({"text.hinting": "none", "savefig.bbox": None}):
        face = figure.get_facecolor()
        figure.savefig(buffer, format="png", dpi=dpi, facecolor=face, metadata={"Software": None})
    return buffer.getvalue()
