"""Kernels: frozen dataclasses with `init` and `step` that keep a density."""

from .overdamped import MALA as MALA
from .overdamped import ULA as ULA
