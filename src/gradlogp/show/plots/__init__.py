"""Figures: one style, a light and a dark theme, no global state of matplotlib.

Every function returns a `matplotlib.figure.Figure` that nobody else holds; `png` turns it into
bytes. Tensors may carry gradients and live on any device; functions that are drawn get points on
the CPU in the default dtype.
"""

from .chains import autocorrelation, marginal, trace, walks
from .curves import levels, loss_curve
from .geometry import spectra, split_field
from .images import image_grid
from .planes import fields, scatter_pair, trajectories
from .samples import samples
from .style import DARK, LIGHT, Figure, Theme, png

__all__ = [
    "DARK",
    "LIGHT",
    "Figure",
    "Theme",
    "autocorrelation",
    "fields",
    "image_grid",
    "levels",
    "loss_curve",
    "marginal",
    "png",
    "samples",
    "scatter_pair",
    "spectra",
    "split_field",
    "trace",
    "trajectories",
    "walks",
]
