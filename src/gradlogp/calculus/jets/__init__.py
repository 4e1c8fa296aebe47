"""Derivatives carried forward through a network: the forward Laplacian, and the trace of a Jacobian."""

from .jet import Unsupported as Unsupported
from .jet import laplacian as laplacian
from .jet import partial_trace as partial_trace
from .jet import second_derivatives as second_derivatives
