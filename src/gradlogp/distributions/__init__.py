"""Distributions whose Gaussian noising is known in closed form."""

from .gaussian import Gaussian as Gaussian
from .mixture import GaussianMixture as GaussianMixture
