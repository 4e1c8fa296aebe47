r"""Distances between a model and the truth, each with a standard error.

A distance between two finite samples of one law is not 0. Every number here is to be read beside
its floor: the same distance between two independent samples of real data.
"""

from __future__ import annotations

from .fisher import fisher_divergence as fisher_divergence
from .memorisation import Memorisation as Memorisation
from .memorisation import nearest_neighbours as nearest_neighbours
from .transport import sliced_wasserstein as sliced_wasserstein
from .two_sample import TwoSample as TwoSample
from .two_sample import c2st as c2st
from .two_sample import mmd as mmd
