r"""Posteriors that Langevin dynamics can sample: at every noise level, and at the data."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from ..core import Density, NoisyScore, check_kind, check_same_shape, check_target, per_sample
from ..noise.blurred import noisy_log_prob
from .guidance import ObservedScore
from .observation import Observation, solve_isotropic


@dataclass(frozen=True, eq=False)
class AnnealedLikelihood(ObservedScore):
    r"""The prior at every noise level with a likelihood of x_t itself, at the same noise level.

    .. math:: π_t(x) ∝ p_t(x)\, N(y; A x/α,\; R + \tfrac{σ^2}{α^2} A A^\top)

    the likelihood under a flat prior, where x_0 given x_t is N(x_t/α, (σ²/α²) I). π_t is not the
    law of x_t given y; but as σ → 0 it becomes the posterior, and Langevin steps leave it
    invariant at every level:

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
        observation: The observation, by a linear operator, in the units of the data.

    Raises:
        ValueError: For an operator that is not linear.
    """

    score: NoisyScore
    observation: Observation

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.observation.linear

    def _direction(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Observation]:
        """Return α y − A z, (α² R + σ² A Aᵀ)⁻¹ of it, and what was seen of z."""
        alpha, sigma = self.schedule(t)
        seen = self._seen
        y, shown = seen.rows(z), seen.linear.apply(z)
        check_same_shape(shown, y, "the operator")
        r = per_sample(alpha, y, "alpha") * y - shown
        return r, solve_isotropic(seen.linear, seen.R, alpha**2, sigma**2, r), seen

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        _, u, seen = self._direction(z, t)
        return self.score(z, t) + seen.linear.adjoint(u)

    def log_prob(self, z: Float[Tensor, "batch *event"], t: Tensor) -> Float[Tensor, " batch"]:
        """Return log π_t(z), up to a constant for each t.

        Raises:
            ValueError: If the score of the prior has no log-density.
        """
        self._check(z, t)
        r, u, _ = self._direction(z, t)
        return noisy_log_prob(self.score, z, t) - 0.5 * (r * u).flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class PosteriorTarget:
    r"""The posterior itself as a target for `run`.

    .. math:: \nabla \log p(x | y) = s(x) + (\nabla A)^\top R^{-1} (y - A(x))

    Starting from samples of a guided diffusion, Langevin steps remove its bias. The curvature of
    the likelihood is that of Aᵀ R⁻¹ A; with little noise it limits the step.

    Arguments:
        prior: A density; for a learned model `blurred(model)`.
        observation: The observation, with noise; `y` has one row or as many as there are chains.

    Raises:
        ValueError: When called, if there is no noise.
    """

    prior: Density
    observation: Observation

    def __post_init__(self) -> None:
        check_target(self.prior, "prior")
        check_kind(
            self.observation, "observation", Observation, "an Observation, such as from observe"
        )

    def score(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return ∇ log p(x | y)."""
        return self.prior.score(x) + self.observation.score(x)

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return log p(x) + log p(y | x), up to a constant."""
        return self.prior.log_prob(x) + self.observation.log_likelihood(x)
