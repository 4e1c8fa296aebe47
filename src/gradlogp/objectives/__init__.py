"""Objectives: losses per sample, `(B,)`, all estimates of ½ E‖s_θ − s‖² up to a constant."""

from . import weights as weights
from .boundary import box as box
from .boundary import generalised as generalised
from .boundary import half_line as half_line
from .closed_form import ExponentialFit as ExponentialFit
from .closed_form import exponential_family as exponential_family
from .closed_form import gaussian_precision as gaussian_precision
from .denoising import denoising as denoising
from .denoising import excess as excess
from .denoising import multilevel as multilevel
from .kernel_scores import KernelScore as KernelScore
from .kernel_scores import kernel_exponential_family as kernel_exponential_family
from .kernel_scores import nu_method as nu_method
from .kernel_scores import spectral_stein as spectral_stein
from .kernel_scores import stein_gradient as stein_gradient
from .matching import explicit as explicit
from .matching import finite_difference as finite_difference
from .matching import implicit as implicit
from .matching import sliced as sliced
from .matching import sliced_vr as sliced_vr
from .times import ImportanceTimes as ImportanceTimes
from .times import draw_times as draw_times
