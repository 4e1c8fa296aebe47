r"""Inverse problems: samples of x given y = A(x) + noise, with a score as the prior.

Operators describe what is seen, and an `Observation` holds the observed values. A method turns the
score of the prior into the score of the posterior (`DPS`, `PiGDM`, `MomentMatching`,
`AnnealedLikelihood`), or a transition into one that respects the observation (`DPSStep`,
`RePaint`). `posterior` has the exact solution if there is a closed form.
"""

from .annealed import AnnealedLikelihood as AnnealedLikelihood
from .annealed import PosteriorTarget as PosteriorTarget
from .guidance import DPS as DPS
from .guidance import MomentMatching as MomentMatching
from .guidance import PiGDM as PiGDM
from .observation import Correlated as Correlated
from .observation import NoiseCovariance as NoiseCovariance
from .observation import Observation as Observation
from .observation import observe as observe
from .observation import posterior as posterior
from .operators import Blur as Blur
from .operators import Identity as Identity
from .operators import Inpainting as Inpainting
from .operators import LinearOperator as LinearOperator
from .operators import Matrix as Matrix
from .operators import Subsampling as Subsampling
from .steps import DPSStep as DPSStep
from .steps import RePaint as RePaint
