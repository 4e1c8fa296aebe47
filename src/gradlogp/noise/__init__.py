"""x_t = α_t x_0 + σ_t ε: schedules, predictions, Tweedie, ladders, grids, the law at t = 1."""

from . import schedules as schedules
from .grids import time_grid as time_grid
from .ladder import NoiseLevels as NoiseLevels
from .ladder import noise_levels as noise_levels
from .predictions import from_prediction as from_prediction
from .predictions import to_prediction as to_prediction
from .terminal import prior as prior
from .tweedie import Tweedie as Tweedie
from .tweedie import tweedie as tweedie
from .tweedie import tweedie_product as tweedie_product
from .tweedie import tweedie_variance as tweedie_variance
