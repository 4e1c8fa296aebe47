"""Distributions whose Gaussian noising is known in closed form."""

from .conditional import Classes as Classes
from .conditional import ConditionalMixture as ConditionalMixture
from .conditional import Joint as Joint
from .conditional import WithHoles as WithHoles
from .empirical import Empirical as Empirical
from .gaussian import Gaussian as Gaussian
from .manifolds import AffineSubspace as AffineSubspace
from .manifolds import UniformSphere as UniformSphere
from .manifolds import VonMisesCircle as VonMisesCircle
from .mixture import GaussianMixture as GaussianMixture
from .products import Embedded as Embedded
from .products import Product as Product
