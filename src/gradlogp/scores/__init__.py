"""Everything that is s(x, t): learned, exact, empirical, foreign, guided, rescheduled."""

from .adapt import NoisyScore as NoisyScore
from .adapt import as_score as as_score
from .diffusers import from_diffusers as from_diffusers
from .foreign import ForeignScore as ForeignScore
from .foreign import Steps as Steps
from .foreign import from_edm as from_edm
from .foreign import from_epsilon as from_epsilon
from .foreign import from_k_diffusion as from_k_diffusion
from .foreign import to_k_diffusion as to_k_diffusion
from .guided import GuidedScore as GuidedScore
from .model import EmpiricalScore as EmpiricalScore
from .model import ExactScore as ExactScore
from .model import ScoreModel as ScoreModel
from .networks import MLP as MLP
from .networks import UNet as UNet
from .rescheduled import RescheduledScore as RescheduledScore
