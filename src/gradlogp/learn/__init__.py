"""Learning a score: objectives, training, settings, data, checkpoints."""

from . import checkpoint as checkpoint
from . import data as data
from . import objectives as objectives
from .fit import fit as fit
from .settings import Step as Step
from .settings import TrainingSettings as TrainingSettings
