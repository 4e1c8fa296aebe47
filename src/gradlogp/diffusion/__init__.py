"""From noise to data: transitions, the driver `evolve`, likelihoods and their bound."""

from .bound import variational_bound as variational_bound
from .evolve import evolve as evolve
from .holes import conditional_log_likelihood as conditional_log_likelihood
from .holes import marginal_log_likelihood as marginal_log_likelihood
from .likelihood import Likelihood as Likelihood
from .likelihood import bits_per_dim as bits_per_dim
from .likelihood import dequantise as dequantise
from .likelihood import log_likelihood as log_likelihood
from .planning import Plan as Plan
from .planning import plan_levels as plan_levels
from .planning import plan_likelihood as plan_likelihood
from .transitions import DDIM as DDIM
from .transitions import AdaptiveFlow as AdaptiveFlow
from .transitions import Ancestral as Ancestral
from .transitions import AnnealedLangevin as AnnealedLangevin
from .transitions import Churn as Churn
from .transitions import Coloured as Coloured
from .transitions import DPMSolver as DPMSolver
from .transitions import ExponentialAB as ExponentialAB
from .transitions import PredictorCorrector as PredictorCorrector
from .transitions import ProbabilityFlow as ProbabilityFlow
from .transitions import ReverseSDE as ReverseSDE
from .transitions import UniPC as UniPC
from .transitions.annealed_kernels import ExponentialSteps as ExponentialSteps
from .transitions.annealed_kernels import PreconditionedSteps as PreconditionedSteps
