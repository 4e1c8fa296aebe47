"""gradlogp: the score ∇ log p of a distribution. Learn it, sample with it, check both.

Names are loaded when first used, so that `import gradlogp` costs nothing and changes nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import calculus as calculus
    from . import check as check
    from . import core as core
    from . import diffusion as diffusion
    from . import distributions as distributions
    from . import geometry as geometry
    from . import interfaces as interfaces
    from . import inverse as inverse
    from . import langevin as langevin
    from . import learn as learn
    from . import noise as noise
    from . import scores as scores
    from . import show as show
    from .check import metrics as metrics
    from .check import sample_size as sample_size
    from .check import theory as theory
    from .check.compare import compare as compare
    from .core import Estimate as Estimate
    from .core import Verdict as Verdict
    from .diffusion import evolve as evolve
    from .diffusion import log_likelihood as log_likelihood
    from .diffusion import variational_bound as variational_bound
    from .distributions import Empirical as Empirical
    from .distributions import Gaussian as Gaussian
    from .distributions import GaussianMixture as GaussianMixture
    from .distributions import as_target as as_target
    from .geometry import find_modes as find_modes
    from .geometry import gradient_flow as gradient_flow
    from .interfaces.estimator import ScoreEstimator as ScoreEstimator
    from .interfaces.tables import TableEstimator as TableEstimator
    from .langevin import Chain as Chain
    from .langevin import run as run
    from .langevin import sample as sample
    from .learn import TrainingSettings as TrainingSettings
    from .learn import data as data
    from .learn import fit as fit
    from .learn import objectives as objectives
    from .noise import blurred as blurred
    from .noise import noise_levels as noise_levels
    from .noise import perturb as perturb
    from .noise import schedules as schedules
    from .noise import terminal as terminal
    from .noise import time_grid as time_grid
    from .noise import tweedie as tweedie
    from .scores import MLP as MLP
    from .scores import EmpiricalScore as EmpiricalScore
    from .scores import ExactScore as ExactScore
    from .scores import GuidedScore as GuidedScore
    from .scores import RescheduledScore as RescheduledScore
    from .scores import ScoreModel as ScoreModel
    from .scores import UNet as UNet
    from .scores import as_score as as_score
    from .scores import networks as networks

__version__ = "0.1.0"

_ROOMS = (
    "calculus",
    "check",
    "core",
    "diffusion",
    "distributions",
    "geometry",
    "interfaces",
    "inverse",
    "langevin",
    "learn",
    "noise",
    "scores",
    "show",
)
_SUBPACKAGES = {
    "data": "learn",
    "metrics": "check",
    "networks": "scores",
    "objectives": "learn",
    "sample_size": "check",
    "schedules": "noise",
    "theory": "check",
}
_NAMES = {
    "compare": "check.compare",
    "Estimate": "core",
    "Verdict": "core",
    "evolve": "diffusion",
    "log_likelihood": "diffusion",
    "variational_bound": "diffusion",
    "Empirical": "distributions",
    "Gaussian": "distributions",
    "GaussianMixture": "distributions",
    "as_target": "distributions",
    "find_modes": "geometry",
    "gradient_flow": "geometry",
    "ScoreEstimator": "interfaces.estimator",
    "TableEstimator": "interfaces.tables",
    "Chain": "langevin",
    "run": "langevin",
    "sample": "langevin",
    "TrainingSettings": "learn",
    "fit": "learn",
    "noise_levels": "noise",
    "blurred": "noise",
    "perturb": "noise",
    "terminal": "noise",
    "time_grid": "noise",
    "tweedie": "noise",
    "EmpiricalScore": "scores",
    "ExactScore": "scores",
    "GuidedScore": "scores",
    "MLP": "scores",
    "RescheduledScore": "scores",
    "ScoreModel": "scores",
    "UNet": "scores",
    "as_score": "scores",
}

__all__ = [*_ROOMS, *_SUBPACKAGES, *_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f".{name}", __name__)
    if name in _SUBPACKAGES:
        return import_module(f".{_SUBPACKAGES[name]}.{name}", __name__)
    if name in _NAMES:
        value = getattr(import_module(f".{_NAMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'gradlogp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
