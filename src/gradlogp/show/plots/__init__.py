"""Figures: one style, a light and a dark theme, no global state of matplotlib.

Every function returns a new `matplotlib.figure.Figure`; `png` turns it into bytes. Tensors may
have gradients and be on any device; functions to be drawn receive points on the CPU in the default
dtype.
"""

from matplotlib.figure import Figure as Figure

from .chains import autocorrelation as autocorrelation
from .chains import marginal as marginal
from .chains import over_density as over_density
from .chains import trace as trace
from .chains import walks as walks
from .comparison import bars as bars
from .comparison import correlation_matrices as correlation_matrices
from .comparison import histograms as histograms
from .comparison import shares as shares
from .curves import levels as levels
from .curves import loss_curve as loss_curve
from .curves import spectra as spectra
from .curves import split_field as split_field
from .planes import fields as fields
from .planes import scatter_pair as scatter_pair
from .planes import trajectories as trajectories
from .samples import image_grid as image_grid
from .samples import samples as samples
from .style import DARK as DARK
from .style import LIGHT as LIGHT
from .style import Theme as Theme
from .style import png as png
