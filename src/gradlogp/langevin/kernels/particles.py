r"""Stein variational gradient descent: a set of particles that attract to p and repel one another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import Generator, Streams, check_function, check_number, distances
from .facts import Facts, unadjusted_facts
from .steps import LangevinState, Overdamped, Unadjusted

ParticleKernel = Callable[[Tensor], tuple[Tensor, Tensor]]
"""x `(n, d)` -> k(x_j, x_i) as `(n, n)` in [i, j], and Σ_j ∇_{x_j} k(x_j, x_i) as `(n, d)`."""


@dataclass(frozen=True)
class Linear:
    r"""The kernel k(x, y) = xᵀy + 1: matches mean and covariance of a Gaussian, and no more."""

    def __call__(
        self, x: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n d"]]:
        """Return the kernel matrix and the repulsion Σ_j x_i = n x_i."""
        return x @ x.mT + 1, len(x) * x


@dataclass(frozen=True)
class RBF:
    r"""The Gaussian kernel k(x, y) = exp(−‖x − y‖²/(2ℓ²)).

    Without a bandwidth :math:`ℓ^2 = m^2 / (2 \log(n + 1))`, m the median distance of two
    particles, computed at each step.

    Arguments:
        bandwidth: ℓ > 0, or None for the median rule.

    Raises:
        ValueError: For a bandwidth that is not positive; when called, if more than half of all
            pairs of particles coincide and there is no bandwidth.
    """

    bandwidth: float | None = None

    def __post_init__(self) -> None:
        if self.bandwidth is not None:
            check_number(self.bandwidth, "bandwidth", above=0)

    def __call__(
        self, x: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n d"]]:
        """Return the kernel matrix and the repulsion Σ_j k(x_j, x_i) (x_i − x_j)/ℓ²."""
        distance = distances(x, x)
        square = self._square(distance)
        K = distance.square().mul_(-0.5 / square).exp_()
        return K, (K.sum(1, keepdim=True) * x - K @ x) / square

    def _square(self, distance: Tensor) -> Tensor:
        """Return ℓ²."""
        if self.bandwidth is not None:
            return distance.new_tensor(self.bandwidth**2)
        n = len(distance)
        if n == 1:  # nobody to measure from, and no repulsion whatever ℓ is
            return distance.new_tensor(1.0)
        median = torch.cat([row[i + 1 :] for i, row in enumerate(distance[:-1])]).median()
        if median.device.type == "cpu" and median == 0:  # elsewhere a wait; what follows is NaN
            raise ValueError(
                "more than half of all pairs of particles coincide: start them apart, or pass "
                "RBF(bandwidth)"
            )
        return median.square() / (2 * math.log(n + 1))


@dataclass(frozen=True)
class SVGD(Overdamped):
    r"""Stein variational gradient descent: the particles are one sample, not separate chains.

    .. math::
        x_i' = x_i + h\, \frac1n \sum_{j=1}^n \left( k(x_j, x_i) \nabla \log p(x_j)
               + \nabla_{x_j} k(x_j, x_i) \right)

    Unlike all other kernels it couples the members of the batch: the move of a particle depends on
    all others, so that x0 must be run as a whole (chunks are refused), and with more "chains" the
    result is different, not just larger. Time and memory of a step grow as n². It is deterministic,
    and `generator` is not used; standard errors of independent draws do not apply. With n = 1 and
    `RBF` it is gradient ascent; with few particles in high dimension it loses variance. With
    `Linear` on a Gaussian it converges to particles with the exact mean and covariance (with
    divisor n) for n > d. A particle that becomes NaN or infinite stays where it was and is flagged
    `diverging`.

    References:
        | Stein Variational Gradient Descent: A General Purpose Bayesian Inference Algorithm
          (Liu & Wang, 2016)
        | https://arxiv.org/abs/1608.04471
        | Stein Variational Gradient Descent as Moment Matching (Liu & Wang, 2018)
        | https://arxiv.org/abs/1810.11693

    Arguments:
        step_size: h > 0.
        kernel: `RBF()`, `Linear()` or a function (`ParticleKernel`).
        on_nonfinite: `raise` for a `FloatingPointError` instead of a frozen particle.
    """

    step_size: float
    kernel: ParticleKernel = RBF()
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = unadjusted_facts(None, affine=False, draws=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_function(self.kernel, "kernel")

    def _next(self, state: LangevinState, generator: Generator | None) -> Tensor:
        if isinstance(generator, Streams) and generator.stop - generator.start < generator.total:
            raise ValueError(
                "the particles of SVGD form one sample and cannot be run in chunks; omit "
                "chunk_size"
            )
        K, repulsion = self.kernel(state.x.flatten(1))
        n = len(state.x)
        phi = (K @ state.score.flatten(1) + repulsion) / n
        return state.x + self.step_size * phi.reshape(state.x.shape)
