"""What the known targets share: a mean of 0, checked parameters, and an empty tensor for draws."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import check_count, check_generator


class Known:
    """A target on R^d of mean 0 that is normalised, where it says nothing else."""

    dim: int = 2

    def __post_init__(self) -> None:
        check_count(self.dim, "dim")

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


def blank(n: int, dim: int, generator: torch.Generator | None) -> Tensor:
    """Return an unfilled `(n, dim)` of the default dtype on the device of the generator."""
    check_count(n, "n", 0)
    check_generator(generator)
    return torch.empty(n, dim, device="cpu" if generator is None else generator.device)


def facts(values: list[float]) -> Tensor:
    """Return known numbers as a float64 vector."""
    return torch.tensor(values, dtype=torch.float64)
