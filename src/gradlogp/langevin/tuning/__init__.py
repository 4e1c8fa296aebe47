"""Tuning before the draws that are kept: starts, step sizes, metrics."""

from .adaptation import Adaptation as Adaptation
from .adaptation import choose_step as choose_step
from .metric import fisher_divergence as fisher_divergence
from .metric import fit_metric as fit_metric
