r"""A noisy score and an observation make the noisy score of p(x_t | y).

.. math:: \nabla \log p(x_t | y) = s(x_t, t) + \nabla \log p(y | x_t)

p(y | x_t) is an integral over x_0 that has no closed form. The methods approximate the law of x_0 given
x_t: by a point, by an isotropic Gaussian, by a Gaussian with the true mean and covariance. Each is a
noisy score again, which every transition takes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..calculus.conjugate_gradients import Indefinite, solve_all
from ..core import NoisyScoreFn, Schedule
from .denoised import Denoised, denoised, direction
from .isotropic import solve_isotropic
from .observation import Observation


class _Posterior(ABC):
    """A noisy score given y: a method says where x_0 is thought to be, and what y adds to it."""

    @abstractmethod
    def _at(self, x: Tensor, t: Tensor) -> tuple[Denoised, Tensor]:
        """Return what the prior says of x_0, and the direction in which y moves it."""

    def __call__(
        self, x: Float[Tensor, "batch *event"], t: Tensor
    ) -> Float[Tensor, "batch *event"]:
        """Return the score of the law of x_t given y; t `()` or `(B,)`."""
        at, v = self._at(x, t)
        return at.score(v)

    def denoise(
        self, x: Float[Tensor, "batch *event"], t: Tensor
    ) -> Float[Tensor, "batch *event"]:
        """Return the mean of x_0 given x_t and y."""
        at, v = self._at(x, t)
        return at.mean(v)


@dataclass(frozen=True, eq=False)
class DPS(_Posterior):
    r"""Diffusion posterior sampling, with the likelihood of the denoised x̂_0.

    .. math:: \nabla \log p(y | x_t) ≈ ζ\, \nabla_{x_t} \log N(y; A(\hat x_0(x_t)), R)

    It takes x_0 for known once x_t is, so that it trusts y too much while there is noise: samples
    are too narrow, and steps that are not small against R become unstable. `DPSStep` is the step by
    the norm of the residual that is used in practice.

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
        | https://arxiv.org/abs/2209.14687

    Arguments:
        score: The noisy score of the prior, differentiable in x.
        schedule: Its schedule.
        observation: What was seen, with noise.
        scale: ζ, 1 for the Gaussian likelihood itself.

    Raises:
        ValueError: For a scale below 0; when called, if there is no noise, or at α = 0 or σ = 0.
    """

    score: NoisyScoreFn
    schedule: Schedule
    observation: Observation
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"scale must be a number of at least 0, got {self.scale}")

    def _at(self, x: Tensor, t: Tensor) -> tuple[Denoised, Tensor]:
        at = denoised(self.score, self.schedule, x, t)
        return at, self.scale * direction(self.observation, at, self.observation.R.solve)


@dataclass(frozen=True, eq=False)
class PiGDM(_Posterior):
    r"""Pseudo-inverse guidance: x_0 given x_t has covariance r_t² I.

    .. math::
        \nabla \log p(y | x_t) ≈ J^\top A^\top (R + r_t^2 A A^\top)^{-1} (y - A \hat x_0), \qquad
        r_t^2 = \frac{σ^2 v}{α^2 v + σ^2}

    r_t² is right for data N(m, v I), on which the method is exact. A function is linearised at x̂_0.

    References:
        | Pseudoinverse-GuidedScore Diffusion Models for Inverse Problems (Song et al., 2023)
        | https://openreview.net/forum?id=9_gsMA8MRKQ

    Arguments:
        score: The noisy score of the prior, differentiable in x.
        schedule: Its schedule.
        observation: What was seen.
        data_var: v, the variance of an entry of the data.

    Raises:
        ValueError: For a variance that is not positive; when called, at α = 0 or σ = 0.
    """

    score: NoisyScoreFn
    schedule: Schedule
    observation: Observation
    data_var: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.data_var < math.inf:
            raise ValueError(f"data_var must be positive, got {self.data_var}")

    def _at(self, x: Tensor, t: Tensor) -> tuple[Denoised, Tensor]:
        at = denoised(self.score, self.schedule, x, t)
        alpha, sigma = self.schedule(t)
        v = self.data_var
        r2 = sigma**2 * v / (alpha**2 * v + sigma**2)
        R, operator = self.observation.R, self.observation.linearised(at.x0)
        return at, direction(
            self.observation, at, lambda r: solve_isotropic(operator, R, 1.0, r2, r)
        )


@dataclass(frozen=True, eq=False)
class MomentMatching(_Posterior):
    r"""x_0 given x_t is a Gaussian with the mean and the covariance of Tweedie's formula.

    .. math::
        \nabla \log p(y | x_t) ≈ J^\top A^\top (R + A C A^\top)^{-1} (y - A \hat x_0), \qquad
        C = \mathrm{Cov}[x_0 | x_t] = \frac{σ^2}{α} J

    Exact for Gaussian data and a linear A at every t; else C is taken for constant in x_t. The
    system is solved by conjugate gradients for each sample, with one vector-Jacobian product of
    the model a step. C of a network may not be symmetric and positive; few steps
    (`max_steps`), which stop before directions of small C matter, are then usual, and
    `indefinite="stop"`. A function is linearised at x̂_0.

    References:
        | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)
        | https://arxiv.org/abs/2405.13712
        | Tweedie Moment Projected Diffusions for Inverse Problems (Boys et al., 2023)
        | https://arxiv.org/abs/2310.06721

    Arguments:
        score: The noisy score of the prior, differentiable in x.
        schedule: Its schedule.
        observation: What was seen.
        max_steps: Of conjugate gradients; as many as convergence takes where not given.
        tol: Relative residual that ends them, as in `conjugate_gradients`.
        indefinite: What to do where R + A C Aᵀ is found not to be positive definite: "raise", or
            "stop" that sample at what it has.

    Raises:
        ValueError: When called, at α = 0 or σ = 0, and if conjugate gradients fail and neither
            `max_steps` nor "stop" was asked for.
    """

    score: NoisyScoreFn
    schedule: Schedule
    observation: Observation
    max_steps: int | None = None
    tol: float | None = None
    indefinite: Indefinite = "raise"

    def _at(self, x: Tensor, t: Tensor) -> tuple[Denoised, Tensor]:
        at = denoised(self.score, self.schedule, x, t)
        R, operator = self.observation.R, self.observation.linearised(at.x0)

        def product(v: Tensor) -> Tensor:
            return R.product(v) + operator.apply(at.covariance(operator.adjoint(v)))

        def solve(r: Tensor) -> Tensor:
            return solve_all(product, r, self.tol, self.max_steps, self.indefinite)

        return at, direction(self.observation, at, solve)
