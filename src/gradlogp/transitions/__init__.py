"""Transitions: callables (x, t, s, score, schedule) that move p_t to p_s."""

from .annealed import AnnealedLangevin as AnnealedLangevin
from .diffusion import Ancestral as Ancestral
from .diffusion import ProbabilityFlow as ProbabilityFlow
