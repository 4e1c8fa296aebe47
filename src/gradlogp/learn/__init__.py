"""Learning a score: objectives, training, settings, data, checkpoints.

Everything except the settings is loaded on first use: the command line reads them before it needs
PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .settings import TrainingSettings as TrainingSettings

if TYPE_CHECKING:
    from . import checkpoint as checkpoint
    from . import data as data
    from . import objectives as objectives
    from .record import Step as Step
    from .training import fit as fit


def __getattr__(name: str) -> Any:
    if name in ("checkpoint", "data", "objectives"):
        return import_module(f".{name}", __name__)
    if name in ("Step", "fit"):
        return getattr(import_module(".training", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
