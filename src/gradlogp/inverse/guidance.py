r"""A noisy score and an observation make the noisy score of p(x_t | y).

.. math:: \nabla \log p(x_t | y) = s(x_t, t) + \nabla \log p(y | x_t)

p(y | x_t) is an integral over x_0 that has no closed form. The methods approximate the law of x_0
given x_t: by a point, by an isotropic Gaussian, by a Gaussian with the true mean and covariance.
Each is again a noisy score, for use with any transition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..calculus.conjugate_gradients import Indefinite
from ..core import (
    NoisyScore,
    check_batch,
    check_count,
    check_kind,
    check_number,
    check_option,
    per_sample,
)
from ..noise.predictions import predict
from ..noise.score_base import ScoreWrapper, check_noisy_score
from .observation import Observation, solve_in_units, solve_isotropic


class Denoised(NamedTuple):
    """x̂_0 and ε̂ at x_t, α and σ as they multiply x_t, v -> Jᵀ v, and whether all has a graph."""

    x0: Tensor
    eps: Tensor
    alpha: Tensor
    sigma: Tensor
    pull_back: Callable[[Tensor], Tensor]
    live: bool

    def covariance(self, v: Tensor) -> Tensor:
        """Return Cov[x_0 | x_t] v (of a network, whose J is not quite symmetric, with Jᵀ)."""
        return self.sigma**2 / self.alpha * self.pull_back(v)

    def score(self, v: Tensor) -> Tensor:
        """Return s + Jᵀ v for v = Aᵀ u."""
        return self.pull_back(v) - self.eps / self.sigma

    def mean(self, v: Tensor) -> Tensor:
        """Return x̂_0 + (σ²/α) Jᵀ v for v = Aᵀ u."""
        return self.x0 + self.covariance(v)


def denoised(score: NoisyScore, x: Tensor, t: Tensor) -> Denoised:
    """Evaluate the model once, so that its derivative can be used as often as needed.

    A graph of the caller in x is kept, so that a guided score can be differentiated.

    Raises:
        ValueError: At α = 0 or σ = 0, or if the model does not depend on x differentiably.
    """
    check_batch(x)
    alpha, sigma = (per_sample(v, x) for v in score.schedule(t))
    if bool((alpha == 0).any()) or bool((sigma == 0).any()):
        raise ValueError(
            "guidance by an observation needs alpha > 0 and sigma > 0: otherwise x_t carries no "
            "information about x_0, or there is no score; start at a time below 1 and end above 0"
        )
    live = torch.is_grad_enabled() and x.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        y = (
            x
            if live
            else (x.detach().clone() if x.is_inference() else x.detach()).requires_grad_()
        )
        x0, eps = predict(score, y, t)
    if not (x0.requires_grad and eps.requires_grad):
        raise ValueError(
            "the score does not depend on x differentiably, so its derivative would silently be 0; "
            "check for .detach(), torch.no_grad() or .numpy() in it"
        )

    def pull_back(v: Tensor) -> Tensor:
        return torch.autograd.grad(x0, y, v, retain_graph=True, create_graph=live)[0]

    if live:
        return Denoised(x0, eps, alpha, sigma, pull_back, live)
    return Denoised(x0.detach(), eps.detach(), alpha, sigma, pull_back, live)


def direction(observation: Observation, at: Denoised, solve: Callable[[Tensor], Tensor]) -> Tensor:
    """Return Aᵀ u for u = solve(y − A(x̂_0)), A linearised at x̂_0 where it is not linear."""
    u = solve(observation.residual(at.x0))
    return observation.linearised(at.x0).adjoint(u)


class ObservedScore(ScoreWrapper):
    """A noisy score around that of a prior, given an observation in the units of the data."""

    observation: Observation

    def __post_init__(self) -> None:
        check_noisy_score(self.score)
        check_kind(
            self.observation, "observation", Observation, "an Observation, such as from observe"
        )

    @property
    def _seen(self) -> Observation:
        """What was seen, of model coordinates."""
        return self.observation.encoded(self.score.coordinates)

    @property
    def n_rows(self) -> int | None:
        """The rows of the observation, or of the condition of the score inside."""
        inside = getattr(self.score, "n_rows", None)
        return inside if len(self.observation.y) == 1 else len(self.observation.y)

    def _around(self, score: NoisyScore) -> NoisyScore:
        return replace(self, score=score)  # type: ignore[type-var]

    def rows(self, index: slice | Tensor) -> NoisyScore:  # type: ignore[override]
        """Return the same for these rows of observations and conditions."""
        inside = self.score.rows(index)
        return replace(self, score=inside, observation=self.observation.take(index))  # type: ignore[type-var]


class GuidedByDenoised(ObservedScore, ABC):
    """A method defines an estimate of z_0, and the contribution of y to it.

    Where α = 0 the state carries no information about z_0, and the method ignores y: there it is
    the prior.
    """

    pooled = True

    @abstractmethod
    def _at(self, z: Tensor, t: Tensor) -> tuple[Denoised, Tensor]:
        """Return what the prior says of z_0, and the direction in which y moves it."""

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        if bool((self.schedule(t)[0] == 0).all()):
            return self.score(z, t)
        at, v = self._at(z, t)
        return at.score(v)

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        if bool((self.schedule(t)[0] == 0).all()):
            return self.score.denoise(z, t)
        at, v = self._at(z, t)
        return at.mean(v)


@dataclass(frozen=True, eq=False)
class DPS(GuidedByDenoised):
    r"""Diffusion posterior sampling, with the likelihood of the denoised x̂_0.

    .. math:: \nabla \log p(y | x_t) ≈ ζ\, \nabla_{x_t} \log N(y; A(\hat x_0(x_t)), R)

    It treats x_0 as known given x_t, so it trusts y too much while there is noise: samples are too
    narrow, and steps that are not small compared with R become unstable. `DPSStep` is the step
    along the norm of the residual that is used in practice.

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
        | https://arxiv.org/abs/2209.14687

    Arguments:
        score: The noisy score of the prior, differentiable in x.
        observation: The observation, with noise, in the units of the data.
        scale: ζ, 1 for the Gaussian likelihood itself.

    Raises:
        ValueError: For a scale below 0; when called, if there is no noise, or at σ = 0.

    Examples:
        >>> law, A = glp.Gaussian([0.0]), glp.inverse.Matrix(torch.ones(1, 1))
        >>> score = glp.ExactScore(law, glp.schedules.VE(0.01, 10.0))
        >>> seen = glp.inverse.Observation(torch.tensor([[2.0]]), A, 1.0)
        >>> glp.inverse.DPS(score, seen)(torch.tensor([[1.0]]), torch.tensor(0.0))
        tensor([[0.0001]])
    """

    score: NoisyScore
    observation: Observation
    scale: float = 1.0
    pooled = False  # it trusts y too much to say where the posterior begins

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.scale, "scale", least=0)

    def _at(self, z: Tensor, t: Tensor) -> tuple[Denoised, Tensor]:
        at = denoised(self.score, z, t)
        return at, self.scale * direction(self._seen, at, self.observation.R.solve)


@dataclass(frozen=True, eq=False)
class PiGDM(GuidedByDenoised):
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
        observation: The observation, in the units of the data.
        data_var: v, the variance of an entry of z_0; the mean of the score's moments by default.

    Raises:
        ValueError: For a variance that is not positive, or if neither a variance nor moments of
            the score are known; when called, at σ = 0.
    """

    score: NoisyScore
    observation: Observation
    data_var: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_var is None and self.score.moments is None:
            raise ValueError("this score has no moments: pass data_var=, the variance of an entry")
        if self.data_var is not None:
            check_number(self.data_var, "data_var", above=0)

    def _variance(self) -> float:
        """Return v."""
        if self.data_var is not None:
            return self.data_var
        assert self.score.moments is not None
        return float(self.score.moments.var.mean())

    def _at(self, z: Tensor, t: Tensor) -> tuple[Denoised, Tensor]:
        at = denoised(self.score, z, t)
        alpha, sigma = self.schedule(t)
        v = self._variance()
        r2 = sigma**2 * v / (alpha**2 * v + sigma**2)
        seen = self._seen
        R, operator = seen.R, seen.linearised(at.x0)
        return at, direction(seen, at, lambda r: solve_isotropic(operator, R, 1.0, r2, r))


@dataclass(frozen=True, eq=False)
class MomentMatching(GuidedByDenoised):
    r"""x_0 given x_t is a Gaussian with the mean and the covariance of Tweedie's formula.

    .. math::
        \nabla \log p(y | x_t) ≈ J^\top A^\top (R + A C A^\top)^{-1} (y - A \hat x_0), \qquad
        C = \mathrm{Cov}[x_0 | x_t] = \frac{σ^2}{α} J

    Exact for Gaussian data and a linear A at every t; otherwise C is treated as constant in x_t.
    The system is solved by conjugate gradients for each sample, with one vector-Jacobian product
    of the model per step. For a network C may not be symmetric and positive; then it is common to
    take few steps (`max_steps`), which stop before directions of small C matter, or
    `indefinite="stop"`. A function is linearised at x̂_0.

    References:
        | Learning Diffusion Priors from Observations by Expectation Maximization (Rozet et al., 2024)
        | https://arxiv.org/abs/2405.13712
        | Tweedie Moment Projected Diffusions for Inverse Problems (Boys et al., 2023)
        | https://arxiv.org/abs/2310.06721

    Arguments:
        score: The noisy score of the prior, differentiable in x.
        observation: The observation, in the units of the data.
        max_steps: Maximum number of conjugate-gradient steps; by default until convergence.
        tol: Relative residual at which they end, as in `conjugate_gradients`, with every entry of
            y in its own units.
        indefinite: What to do if R + A C Aᵀ is not positive definite: "raise", or "stop" that
            sample at its current iterate.

    Raises:
        ValueError: When called, at σ = 0, and if conjugate gradients fail and neither
            `max_steps` nor "stop" was requested.
    """

    score: NoisyScore
    observation: Observation
    max_steps: int | None = None
    tol: float | None = None
    indefinite: Indefinite = "raise"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps is not None:
            check_count(self.max_steps, "max_steps")
        if self.tol is not None:
            check_number(self.tol, "tol", above=0, below=1)
        check_option(self.indefinite, "indefinite", Indefinite)

    def _at(self, z: Tensor, t: Tensor) -> tuple[Denoised, Tensor]:
        at = denoised(self.score, z, t)
        seen = self._seen
        R, operator = seen.R, seen.linearised(at.x0)

        def product(v: Tensor) -> Tensor:
            return R.product(v) + operator.apply(at.covariance(operator.adjoint(v)))

        def solve(r: Tensor) -> Tensor:
            how = (self.tol, self.max_steps, self.indefinite)
            return solve_in_units(product, operator, R, r, *how)

        return at, direction(seen, at, solve)
