"""The driver `run`, which moves chains within a density and keeps their draws."""

from .driver import run

__all__ = ["run"]
