"""Known laws for measuring kernels, transitions, scores and objectives; quadrature."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ...core import per_sample, sum_event
from ...distributions import Gaussian, VonMisesCircle

MEAN = torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64)
COV = torch.tensor([[1.5, 0.6, 0.2], [0.6, 0.8, -0.2], [0.2, -0.2, 0.9]], dtype=torch.float64)
PRECISION = torch.linalg.inv(COV)
GAUSSIAN = Gaussian(MEAN, COV)
"""Correlated, in three dimensions, so that d is not mistaken for a factor 2."""


class Observed:
    """A density written as several observations, whose scores differ by constants.

    Arguments:
        law: The density.
        apart: The difference between the scores of successive observations.
        n_data: The number of observations.
    """

    def __init__(self, law: object, apart: float = 0.0, n_data: int = 10) -> None:
        self.law, self.apart, self.n_data = law, apart, n_data

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of all observations."""
        return self.law.log_prob(x)  # type: ignore[attr-defined]

    def score(self, x: Tensor) -> Tensor:
        """Return its score."""
        return self.law.score(x)  # type: ignore[attr-defined]

    def minibatch_score(self, x: Tensor, index: Tensor) -> Tensor:
        """Return an unbiased estimate of the score from the observations `index` `(B, n)`."""
        away = (index.to(x) - (self.n_data - 1) / 2).sum(-1)
        return self.score(x) + self.n_data / index.shape[-1] * self.apart * per_sample(away, x)


class Skewed:
    """log p = Σ x/c − e^{x/c}, of any event: skewed, so that a wrong sign cannot hide."""

    def __init__(self, c: float = 1.0) -> None:
        self.c = c

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) but for a constant."""
        return sum_event(x / self.c - (x / self.c).exp())

    def score(self, x: Tensor) -> Tensor:
        """Return its gradient."""
        return (1 - (x / self.c).exp()) / self.c

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n numbers `(n, 1)`, in float64."""
        u = torch.rand(n, 1, dtype=torch.float64, generator=generator)
        return self.c * torch.log(-torch.log1p(-u))


class Quartic:
    """p ~ exp(−Σ x⁴/4): here kernels show an order that a Gaussian hides."""

    square = 2 * math.gamma(0.75) / math.gamma(0.25)
    """E x² on the line."""

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) but for a constant."""
        return -sum_event(x**4) / 4

    def score(self, x: Tensor) -> Tensor:
        """Return its gradient."""
        return -(x**3)


class OnCircle:
    """The law of density ∝ exp(κ cos θ) on a circle around 0, for kernels of a sphere."""

    event_shape = torch.Size([2])

    def __init__(self, radius: float, concentration: float = 1.5) -> None:
        self.law = VonMisesCircle(radius, concentration)
        self.slope = torch.tensor([concentration / radius, 0.0], dtype=torch.float64)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return κ cos θ, with respect to the length of the circle."""
        return x @ self.slope.to(x)

    def score(self, x: Tensor) -> Tensor:
        """Return its gradient in the plane."""
        return self.slope.to(x).expand(x.shape).clone()

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw n points of the circle."""
        return self.law.sample(n, generator=generator)


# ---------------------------------------------------------------------------- quadrature

Rule = tuple[Tensor, Tensor]
"""Nodes `(n,)` and weights `(n,)`, which sum to 1."""


def hermite(n: int) -> Rule:
    """Return nodes and weights of N(0, 1), exact to degree 2n − 1."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.as_tensor(nodes), torch.as_tensor(weights / weights.sum())


def product(*rules: Rule) -> tuple[Tensor, Tensor]:
    """Return the product of rules: points `(n, k)`, and weights `(n,)`."""
    nodes, weights = zip(*rules, strict=True)
    mesh = torch.meshgrid(*nodes, indexing="ij")
    weight = torch.stack(torch.meshgrid(*weights, indexing="ij")).prod(0)
    return torch.stack([v.reshape(-1) for v in mesh], 1), weight.reshape(-1)
