"""z_t = α_t z_0 + σ_t ε: schedules, predictions, ladders, grids, coordinates, the law at t = 1."""

from ..core import Moments as Moments
from . import schedules as schedules
from .blurred import Blurred as Blurred
from .blurred import blurred as blurred
from .blurred import perturb as perturb
from .coordinates import IDENTITY as IDENTITY
from .coordinates import AffineCoordinates as AffineCoordinates
from .coordinates import Identity as Identity
from .grids import least_time as least_time
from .grids import noise_range as noise_range
from .grids import time_at as time_at
from .grids import time_grid as time_grid
from .ladder import NoiseLevels as NoiseLevels
from .ladder import noise_levels as noise_levels
from .predictions import from_prediction as from_prediction
from .predictions import predict as predict
from .predictions import to_prediction as to_prediction
from .score_base import ScoreBase as ScoreBase
from .terminal import Terminal as Terminal
from .terminal import terminal as terminal
from .tweedie import Tweedie as Tweedie
from .tweedie import tweedie as tweedie
from .tweedie import tweedie_product as tweedie_product
from .tweedie import tweedie_variance as tweedie_variance
