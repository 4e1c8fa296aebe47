"""Everything that is s(z, t): learned, exact, empirical, foreign, conditioned, guided, rescheduled."""

from .adapt import FunctionScore as FunctionScore
from .adapt import as_score as as_score
from .conditioned import Condition as Condition
from .conditioned import ConditionedScore as ConditionedScore
from .diffusers import from_diffusers as from_diffusers
from .exact import EmpiricalScore as EmpiricalScore
from .exact import ExactScore as ExactScore
from .foreign import ForeignScore as ForeignScore
from .foreign import Steps as Steps
from .foreign import from_edm as from_edm
from .foreign import from_epsilon as from_epsilon
from .foreign import from_k_diffusion as from_k_diffusion
from .foreign import to_k_diffusion as to_k_diffusion
from .guided import GuidedScore as GuidedScore
from .guided import RescheduledScore as RescheduledScore
from .masked import MaskedScore as MaskedScore
from .model import ScoreModel as ScoreModel
from .networks import MLP as MLP
from .networks import UNet as UNet
