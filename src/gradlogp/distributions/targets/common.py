"""What the known targets share: checked parameters and the blank that their draws fill."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_positive(**values: float) -> None:
    """Raise `ValueError` unless every value is positive and finite."""
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} must be positive and finite, got {value}")


def check_finite(**values: float) -> None:
    """Raise `ValueError` unless every value is finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")


def check_dim(dim: int, least: int = 1) -> None:
    """Raise `ValueError` unless dim is an integer of at least `least`."""
    if not isinstance(dim, int) or dim < least:
        raise ValueError(f"dim must be an integer of at least {least}, got {dim}")


def blank(n: int, dim: int, generator: torch.Generator | None) -> Tensor:
    """Return an unfilled `(n, dim)` of the default dtype on the device of the generator."""
    if n < 0:
        raise ValueError(f"n must be at least 0, got {n}")
    return torch.empty(n, dim, device="cpu" if generator is None else generator.device)


def facts(values: list[float]) -> Tensor:
    """Return known numbers as a float64 vector."""
    return torch.tensor(values, dtype=torch.float64)
