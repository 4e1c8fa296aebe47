r"""Products of one law on the line: heavier tails than the Gaussian's, and a skewed one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import check_batch, rand_like
from .common import Known, blank


@dataclass(frozen=True)
class LogCosh(Known):
    r"""The hyperbolic secant law in every coordinate, unnormalised.

    .. math:: \log p(x) = -\sum_i \log\cosh x_i, \quad Z = π^d

    Log-concave with exponential tails; the score −tanh x is bounded by 1. The mean is 0, the
    variance π²/4, the distribution function (2/π) arctan e^x.

    Arguments:
        dim: d ≥ 1.

    Raises:
        ValueError: For a dimension below 1.
    """

    dim: int = 1

    @property
    def cov(self) -> Float[Tensor, "D D"]:
        """The exact covariance matrix, π²/4 I."""
        return math.pi**2 / 4 * torch.eye(self.dim, dtype=torch.float64)

    @property
    def log_normalizer(self) -> float:
        """Log Z = d log π."""
        return self.dim * math.log(math.pi)

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x) + log Z."""
        check_batch(x, self.event_shape)
        size = x.abs()  # cosh overflows where its logarithm does not
        return -(size + torch.log1p((-2 * size).exp()) - math.log(2)).sum(1)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x) = −tanh x."""
        check_batch(x, self.event_shape)
        return -torch.tanh(x)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points by the inverse distribution function."""
        u = rand_like(blank(n, self.dim, generator), generator)
        u = u.clamp(min=torch.finfo(u.dtype).tiny)  # the one draw whose logarithm is infinite
        return (math.pi / 2 * u).tan().log()


@dataclass(frozen=True)
class SkewedGumbel(Known):
    r"""The law of log E for a standard exponential E, in every coordinate (a reflected Gumbel law).

    .. math:: \log p(y) = \sum_i (y_i - e^{y_i})

    Skewed to the left, so that a wrong sign shows; the mean is −γ = −0.5772…, the variance π²/6.

    Arguments:
        dim: d ≥ 1.

    Raises:
        ValueError: For a dimension below 1.
    """

    dim: int = 1

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """The exact mean, −γ."""
        return torch.full((self.dim,), -0.57721566490153286, dtype=torch.float64)

    @property
    def cov(self) -> Float[Tensor, "D D"]:
        """The exact covariance matrix, π²/6 I."""
        return math.pi**2 / 6 * torch.eye(self.dim, dtype=torch.float64)

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x)."""
        check_batch(x, self.event_shape)
        return (x - x.exp()).sum(1)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x) = 1 − e^x."""
        check_batch(x, self.event_shape)
        return 1 - x.exp()

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points."""
        u = rand_like(blank(n, self.dim, generator), generator)
        u = u.clamp(min=torch.finfo(u.dtype).tiny)  # as above
        return (-torch.log1p(-u)).log()
