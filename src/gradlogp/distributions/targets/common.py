"""What the known targets share: a mean of 0, checked parameters, and the blank that draws fill."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


class Known:
    """A target on R^d of mean 0 that is normalised, where it says nothing else."""

    dim: int = 2

    def __post_init__(self) -> None:
        check_dim(self.dim)

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one draw, `(d,)`."""
        return torch.Size([self.dim])

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """The exact mean."""
        return torch.zeros(self.dim, dtype=torch.float64)

    @property
    def log_normalizer(self) -> float:
        """Log Z, the logarithm of ∫ exp(log_prob(x)) dx."""
        return 0.0


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
