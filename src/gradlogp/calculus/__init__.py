"""Derivatives and paths: gradients, traces, values with derivatives, an adaptive solver."""

from .affine import Affine as Affine
from .affine import affine_map as affine_map
from .affine import kernel_map as kernel_map
from .conjugate_gradients import Solution as Solution
from .conjugate_gradients import conjugate_gradients as conjugate_gradients
from .ode import integrate as integrate
from .quasi_newton import Path as Path
from .quasi_newton import minimise as minimise
from .quasi_newton import minimise_each as minimise_each
from .reverse import GradientField as GradientField
from .reverse import Probe as Probe
from .reverse import hutchinson_trace as hutchinson_trace
from .reverse import jacobian as jacobian
from .reverse import jacobian_product as jacobian_product
from .reverse import jacobian_trace as jacobian_trace
from .reverse import probe as probe
from .reverse import score_from_log_prob as score_from_log_prob
from .reverse import slices as slices
