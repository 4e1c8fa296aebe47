"""gradlogp: the score ∇ log p of a distribution. Learn it, sample with it, check both.

Names are loaded when first used, so that `import gradlogp` costs nothing and changes nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import autodiff as autodiff
    from . import checkpoint as checkpoint
    from . import core as core
    from . import data as data
    from . import metrics as metrics
    from . import objectives as objectives
    from . import schedules as schedules
    from . import theory as theory
    from .core import Chain as Chain
    from .core import Estimate as Estimate
    from .core import Streams as Streams
    from .distributions import Empirical as Empirical
    from .distributions import Gaussian as Gaussian
    from .distributions import GaussianMixture as GaussianMixture
    from .estimator import ScoreEstimator as ScoreEstimator
    from .kernels import BAOA as BAOA
    from .kernels import BAOAB as BAOAB
    from .kernels import GHMC as GHMC
    from .kernels import HMC as HMC
    from .kernels import MALA as MALA
    from .kernels import OBABO as OBABO
    from .kernels import ULA as ULA
    from .kernels import LeimkuhlerMatthews as LeimkuhlerMatthews
    from .kernels import PositionDependentULA as PositionDependentULA
    from .kernels import PreconditionedULA as PreconditionedULA
    from .kernels import Preconditioner as Preconditioner
    from .kernels import Splitting as Splitting
    from .kernels import TamedULA as TamedULA
    from .kernels import Welford as Welford
    from .ladder import noise_levels as noise_levels
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
    from .parametrization import tweedie as tweedie
    from .sampling import evolve as evolve
    from .sampling import prior as prior
    from .sampling import run as run
    from .sampling import time_grid as time_grid
    from .scores import as_score as as_score
    from .settings import Settings as Settings
    from .targets import as_target as as_target
    from .training import fit as fit
    from .transitions import Ancestral as Ancestral
    from .transitions import AnnealedLangevin as AnnealedLangevin
    from .transitions import ProbabilityFlow as ProbabilityFlow

__version__ = "0.1.0"

_MODULES = (
    "autodiff",
    "checkpoint",
    "core",
    "data",
    "metrics",
    "objectives",
    "schedules",
    "theory",
)
_NAMES = {
    "Chain": "core", "Estimate": "core", "Streams": "core",
    "Empirical": "distributions", "Gaussian": "distributions", "GaussianMixture": "distributions",
    "ScoreEstimator": "estimator",
    **dict.fromkeys(
        (
            "BAOA", "BAOAB", "GHMC", "HMC", "MALA", "OBABO", "ULA", "LeimkuhlerMatthews",
            "PositionDependentULA", "PreconditionedULA", "Preconditioner", "Splitting", "TamedULA",
            "Welford",
        ),
        "kernels",
    ),
    "log_likelihood": "likelihood",
    "EmpiricalScore": "model", "ExactScore": "model", "ScoreModel": "model",
    "find_modes": "modes", "gradient_flow": "modes",
    "MLP": "networks", "UNet": "networks",
    "noise_levels": "ladder",
    "join": "parametrization", "split": "parametrization", "tweedie": "parametrization",
    "evolve": "sampling", "prior": "sampling", "run": "sampling", "time_grid": "sampling",
    "as_score": "scores",
    "Settings": "settings",
    "as_target": "targets",
    "fit": "training",
    "Ancestral": "transitions", "AnnealedLangevin": "transitions",
    "ProbabilityFlow": "transitions",
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
