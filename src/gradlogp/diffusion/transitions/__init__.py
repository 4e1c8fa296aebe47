"""Transitions: callables (z, t, s, score) that move p_t to p_s."""

from .ancestral import Ancestral as Ancestral
from .annealed import AnnealedLangevin as AnnealedLangevin
from .annealed_noise import Coloured as Coloured
from .corrector import Churn as Churn
from .corrector import PredictorCorrector as PredictorCorrector
from .flow import AdaptiveFlow as AdaptiveFlow
from .flow import ProbabilityFlow as ProbabilityFlow
from .multistep import DPMSolver as DPMSolver
from .multistep import ExponentialAB as ExponentialAB
from .reverse import DDIM as DDIM
from .reverse import ReverseSDE as ReverseSDE
from .unipc import UniPC as UniPC
