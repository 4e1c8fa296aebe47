"""gradlogp: the score ∇ log p of a distribution. Learn it, sample with it, check both.

Names are loaded when first used, so that `import gradlogp` costs nothing and changes nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import adapters as adapters
    from . import autodiff as autodiff
    from . import checkpoint as checkpoint
    from . import core as core
    from . import data as data
    from . import densities as densities
    from . import inverse as inverse
    from . import manifold as manifold
    from . import metrics as metrics
    from . import objectives as objectives
    from . import pretrained as pretrained
    from . import sample_size as sample_size
    from . import schedules as schedules
    from . import theory as theory
    from .adaptation import adapt_preconditioner as adapt_preconditioner
    from .adaptation import adapt_step_size as adapt_step_size
    from .bound import variational_bound as variational_bound
    from .chains import run as run
    from .core import Estimate as Estimate
    from .core import Streams as Streams
    from .diagnostics import Chain as Chain
    from .distributions import AffineSubspace as AffineSubspace
    from .distributions import Embedded as Embedded
    from .distributions import Empirical as Empirical
    from .distributions import Gaussian as Gaussian
    from .distributions import GaussianMixture as GaussianMixture
    from .distributions import Product as Product
    from .distributions import UniformSphere as UniformSphere
    from .distributions import VonMisesCircle as VonMisesCircle
    from .estimator import ScoreEstimator as ScoreEstimator
    from .guided import Guided as Guided
    from .kernels import BAOA as BAOA
    from .kernels import BAOAB as BAOAB
    from .kernels import GHMC as GHMC
    from .kernels import HMC as HMC
    from .kernels import MALA as MALA
    from .kernels import OBABO as OBABO
    from .kernels import PSGLD as PSGLD
    from .kernels import SGHMC as SGHMC
    from .kernels import SGLD as SGLD
    from .kernels import SVGD as SVGD
    from .kernels import SVRG as SVRG
    from .kernels import ULA as ULA
    from .kernels import Adaptation as Adaptation
    from .kernels import ControlVariates as ControlVariates
    from .kernels import ExponentialEuler as ExponentialEuler
    from .kernels import LeimkuhlerMatthews as LeimkuhlerMatthews
    from .kernels import ParallelTempering as ParallelTempering
    from .kernels import PositionDependentULA as PositionDependentULA
    from .kernels import PreconditionedULA as PreconditionedULA
    from .kernels import Preconditioner as Preconditioner
    from .kernels import Splitting as Splitting
    from .kernels import TamedULA as TamedULA
    from .kernels import Welford as Welford
    from .kernels import polynomial_decay as polynomial_decay
    from .kernels import weighted_average as weighted_average
    from .kernels.sphere import SphereMALA as SphereMALA
    from .kernels.sphere import SphereULA as SphereULA
    from .ladder import noise_levels as noise_levels
    from .likelihood import bits_per_dim as bits_per_dim
    from .likelihood import dequantise as dequantise
    from .likelihood import log_likelihood as log_likelihood
    from .model import EmpiricalScore as EmpiricalScore
    from .model import ExactScore as ExactScore
    from .model import ScoreModel as ScoreModel
    from .modes import find_modes as find_modes
    from .modes import gradient_flow as gradient_flow
    from .networks import MLP as MLP
    from .networks import UNet as UNet
    from .parametrization import join as join
    from .parametrization import split as split
    from .planning import estimate_curvature as estimate_curvature
    from .planning import plan as plan
    from .planning import step_for_bias as step_for_bias
    from .posterior import Posterior as Posterior
    from .posterior_moments import tweedie as tweedie
    from .posterior_moments import tweedie_product as tweedie_product
    from .posterior_moments import tweedie_variance as tweedie_variance
    from .rescheduled import Rescheduled as Rescheduled
    from .sampling import evolve as evolve
    from .sampling import prior as prior
    from .sampling import time_grid as time_grid
    from .scores import as_score as as_score
    from .settings import Settings as Settings
    from .targets import as_target as as_target
    from .training import fit as fit
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
    from .transitions.annealed_kernels import ExponentialSteps as ExponentialSteps
    from .transitions.annealed_kernels import PreconditionedSteps as PreconditionedSteps

__version__ = "0.1.0"

_MODULES = (
    "adapters",
    "autodiff",
    "checkpoint",
    "core",
    "data",
    "densities",
    "inverse",
    "manifold",
    "metrics",
    "objectives",
    "pretrained",
    "sample_size",
    "schedules",
    "theory",
)
_NAMES = {
    "Chain": "diagnostics", "Estimate": "core", "Streams": "core",
    **dict.fromkeys(
        (
            "AffineSubspace", "Embedded", "Empirical", "Gaussian", "GaussianMixture", "Product",
            "UniformSphere", "VonMisesCircle",
        ),
        "distributions",
    ),
    "ScoreEstimator": "estimator",
    "Guided": "guided",
    **dict.fromkeys(
        (
            "BAOA", "BAOAB", "GHMC", "HMC", "MALA", "OBABO", "ULA", "LeimkuhlerMatthews",
            "PositionDependentULA", "PreconditionedULA", "Preconditioner", "Splitting", "TamedULA",
            "Welford", "PSGLD", "SGHMC", "SGLD", "SVGD", "SVRG", "ControlVariates",
            "Adaptation", "ExponentialEuler", "ParallelTempering", "polynomial_decay",
            "weighted_average",
        ),
        "kernels",
    ),
    "SphereMALA": "kernels.sphere", "SphereULA": "kernels.sphere",
    "bits_per_dim": "likelihood", "dequantise": "likelihood", "log_likelihood": "likelihood",
    "variational_bound": "bound",
    "EmpiricalScore": "model", "ExactScore": "model", "ScoreModel": "model",
    "find_modes": "modes", "gradient_flow": "modes",
    "MLP": "networks", "UNet": "networks",
    "noise_levels": "ladder",
    "join": "parametrization", "split": "parametrization",
    "adapt_preconditioner": "adaptation", "adapt_step_size": "adaptation",
    "run": "chains",
    "estimate_curvature": "planning", "plan": "planning", "step_for_bias": "planning",
    "Posterior": "posterior", "Rescheduled": "rescheduled",
    "evolve": "sampling", "prior": "sampling", "time_grid": "sampling",
    "as_score": "scores",
    "Settings": "settings",
    "as_target": "targets",
    "fit": "training",
    **dict.fromkeys(
        (
            "DDIM", "AdaptiveFlow", "Ancestral", "AnnealedLangevin", "Churn", "Coloured", "DPMSolver",
            "ExponentialAB", "PredictorCorrector", "ProbabilityFlow", "ReverseSDE",
        ),
        "transitions",
    ),
    "ExponentialSteps": "transitions.annealed_kernels",
    "PreconditionedSteps": "transitions.annealed_kernels",
    "tweedie": "posterior_moments", "tweedie_product": "posterior_moments",
    "tweedie_variance": "posterior_moments",
}  # fmt: skip

__all__ = [*_MODULES, *_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name in _NAMES:
        value = getattr(import_module(f".{_NAMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gradlogp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
