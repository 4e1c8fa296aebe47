r"""Posteriors that Langevin dynamics can sample: at every noise level, and at the data."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..core import (
    Density,
    NoisyScoreFn,
    Schedule,
    check_batch,
    check_same_shape,
    per_sample,
)
from ..diffusion.transitions.annealed import noisy_log_prob
from .isotropic import solve_isotropic
from .observation import Observation


@dataclass(frozen=True, eq=False)
class AnnealedLikelihood:
    r"""The prior at every noise level with a likelihood of x_t itself, noised alike.

    .. math:: π_t(x) ∝ p_t(x)\, N(y; A x/α,\; R + \tfrac{σ^2}{α^2} A A^\top)

    the likelihood under a flat prior, where x_0 given x_t is N(x_t/α, (σ²/α²) I). π_t is not the
    law of x_t given y; but as σ → 0 it becomes the posterior, and Langevin steps keep it at every
    level:

    .. math:: \nabla \log π_t = s(x, t) + A^\top (α^2 R + σ^2 A A^\top)^{-1} (α y - A x)

    so with `AnnealedLangevin` the only errors are those of finite steps. The curvature at a level
    is at most 2/σ², so that a relative step below 1 is stable. No derivative of the model is needed.

    References:
        | Robust Compressed Sensing MRI with Deep Generative Priors (Jalal et al., 2021)
        | https://arxiv.org/abs/2108.01368
        | SNIPS: Solving Noisy Inverse Problems Stochastically (Kawar et al., 2021)
        | https://arxiv.org/abs/2105.14951

    Arguments:
        score: The noisy score of the prior.
        schedule: Its schedule.
        observation: What was seen, by a linear operator.

    Raises:
        ValueError: For an operator that is not linear.
    """

    score: NoisyScoreFn
    schedule: Schedule
    observation: Observation

    def __post_init__(self) -> None:
        _ = self.observation.linear

    def _direction(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return α y − A x, and (α² R + σ² A Aᵀ)⁻¹ of it."""
        alpha, sigma = self.schedule(t)
        operator, y = self.observation.linear, self.observation.rows(x)
        seen = operator.apply(x)
        check_same_shape(seen, y, "the operator")
        r = per_sample(alpha, y, "alpha") * y - seen
        return r, solve_isotropic(operator, self.observation.R, alpha**2, sigma**2, r)

    def __call__(
        self, x: Float[Tensor, "batch *event"], t: Tensor
    ) -> Float[Tensor, "batch *event"]:
        """Return ∇ log π_t(x); t `()` or `(B,)`."""
        check_batch(x)
        s = self.score(x, t)
        check_same_shape(s, x, "the score")
        return s + self.observation.linear.adjoint(self._direction(x, t)[1])

    def log_prob(self, x: Float[Tensor, "batch *event"], t: Tensor) -> Float[Tensor, " batch"]:
        """Return log π_t(x), up to a constant for each t.

        Raises:
            ValueError: If the score of the prior has no log-density.
        """
        r, u = self._direction(x, t)
        return noisy_log_prob(self.score)(x, t) - 0.5 * (r * u).flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class PosteriorTarget:
    r"""The posterior itself as a target for `run`.

    .. math:: \nabla \log p(x | y) = s(x) + (\nabla A)^\top R^{-1} (y - A(x))

    With chains that start from samples of a guided diffusion, Langevin steps remove its bias. The
    curvature of the likelihood is that of Aᵀ R⁻¹ A; with little noise it decides the step.

    Arguments:
        prior: A density; with a learned model, `as_target(score=lambda x: model(x, t))` at a small t.
        observation: What was seen, with noise; `y` has one row or as many as there are chains.

    Raises:
        ValueError: When called, if there is no noise.
    """

    prior: Density
    observation: Observation

    def score(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return ∇ log p(x | y)."""
        return self.prior.score(x) + self.observation.score(x)

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return log p(x) + log p(y | x), up to a constant."""
        return self.prior.log_prob(x) + self.observation.log_likelihood(x)
