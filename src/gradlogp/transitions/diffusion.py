r"""Transitions from p_t to p_s that need one or two scores: ancestral sampling and the flow.

Written in (x̂_0, ε̂), with x_t = α_t x̂_0 + σ_t ε̂, they need no derivative of the schedule and stay
finite at both ends of time. `s = None` is the noise-free end (α, σ) = (1, 0), where every one of
them returns the Tweedie mean x̂_0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Generator, NoisyScoreFn, Schedule, randn_like
from ..parametrization import predict


def coefficients(schedule: Schedule, t: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return (α, σ) at t, or (1, 0) at the noise-free end."""
    if t is None:
        return torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    if t.ndim:
        raise ValueError(f"a transition moves all samples at one time (), got {tuple(t.shape)}")
    return schedule(t)


@dataclass(frozen=True)
class Ancestral:
    r"""DDPM's ancestral step.

    With a = α_t/α_s and σ²_{t|s} = σ_t² − a² σ_s², the exact posterior of x_s given x_t and x_0 is
    Gaussian; x̂_0 takes the place of x_0:

    .. math::
        x_s = a \frac{σ_s^2}{σ_t^2} x_t + α_s \frac{σ_{t|s}^2}{σ_t^2} \hat x_0 + \sqrt{v}\, z

    The posterior variance v = σ_{t|s}² σ_s²/σ_t² (DDPM's β̃) is exact for a point mass; the
    forward variance v = σ_{t|s}² (DDPM's β) is exact under VP for data N(0, I).

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239

    Arguments:
        variance: "posterior" (β̃) or "forward" (β).
    """

    variance: str = "posterior"

    def __post_init__(self) -> None:
        if self.variance not in ("posterior", "forward"):
            raise ValueError(f"variance must be 'posterior' or 'forward', got {self.variance!r}")

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScoreFn,
        schedule: Schedule,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x_s."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (coefficients(schedule, u) for u in (t, s))
        x0, _ = predict(score, schedule, x, t)
        if sigma_s == 0:  # the limit, also where σ_t = 0 too
            return alpha_s * x0
        a = alpha_t / alpha_s
        var_ts = sigma_t**2 - a**2 * sigma_s**2
        mean = a * sigma_s**2 / sigma_t**2 * x + alpha_s * var_ts / sigma_t**2 * x0
        v = var_ts * sigma_s**2 / sigma_t**2 if self.variance == "posterior" else var_ts
        return mean + v.sqrt() * randn_like(x, generator)


@dataclass(frozen=True)
class ProbabilityFlow:
    r"""The probability-flow ODE dx = α' x̂_0 dt + σ' ε̂ dt by Euler (order 1) or Heun (order 2).

    .. math:: x_s = x_t + (α_s - α_t) \bar x_0 + (σ_s - σ_t) \bar ε

    where the bars are the values at t (order 1, which is DDIM with η = 0) or the mean of the
    values at t and at the Euler step's end (order 2; for VE this is EDM's Heun). Deterministic.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        order: 1 or 2; so many evaluations of the score a step.
    """

    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 (Euler, DDIM) or 2 (Heun), got {self.order}")

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScoreFn,
        schedule: Schedule,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x_s."""
        del generator  # deterministic
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (coefficients(schedule, u) for u in (t, s))
        x0, eps = predict(score, schedule, x, t)
        end = alpha_s * x0 + sigma_s * eps
        if self.order == 1 or s is None:
            return end
        x0_s, eps_s = predict(score, schedule, end, s)
        return x + (alpha_s - alpha_t) * (x0 + x0_s) / 2 + (sigma_s - sigma_t) * (eps + eps_s) / 2
