"""Distributions whose Gaussian noising is known in closed form."""

from .empirical import Empirical as Empirical
from .gaussian import Gaussian as Gaussian
from .mixture import GaussianMixture as GaussianMixture
