"""The driver `run`, which moves chains within a density and keeps their draws."""

from .driver import run
from .warmup import WarmUp, warm_up

__all__ = ["WarmUp", "run", "warm_up"]
