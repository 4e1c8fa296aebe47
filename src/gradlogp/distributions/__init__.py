"""Densities whose score is known: closed under noising (`analytic`), with known moments (`targets`)."""

from .analytic import AffineSubspace as AffineSubspace
from .analytic import Classes as Classes
from .analytic import Embedded as Embedded
from .analytic import Empirical as Empirical
from .analytic import Gaussian as Gaussian
from .analytic import GaussianMixture as GaussianMixture
from .analytic import Joint as Joint
from .analytic import Product as Product
from .analytic import UniformSphere as UniformSphere
from .analytic import VonMisesCircle as VonMisesCircle
from .analytic import WithHoles as WithHoles
from .as_target import Target as Target
from .as_target import as_target as as_target
from .constraints import bijection as bijection
from .constraints import ordered as ordered
from .observed import Observed as Observed
from .parameters import Parameters as Parameters
from .targets import Banana as Banana
from .targets import DoubleWell as DoubleWell
from .targets import Funnel as Funnel
from .targets import LogCosh as LogCosh
from .targets import LogisticRegression as LogisticRegression
from .targets import ManyWell as ManyWell
from .targets import Ring as Ring
from .targets import SkewedGumbel as SkewedGumbel
