"""Objectives: losses per sample, `(B,)`, all estimates of ½ E‖s_θ − s‖² up to a constant."""

from . import weights as weights
from .denoising import denoising as denoising
from .denoising import draw_times as draw_times
from .denoising import excess as excess
from .denoising import multilevel as multilevel
