r"""The probability-flow ODE by Euler, Heun and Runge–Kutta, or with a tolerance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...calculus.ode import integrate
from ...core import Generator, NoisyScore, check_count, check_number
from ...noise.predictions import flow_end, flow_velocity, predict
from ...noise.schedules import invert_log_snr
from .coefficients import interval, log_ratio
from .facts import POINT, Facts

NEAR = 1e-4
"""σ/α, as a part of 1 or of that at the start, below which Tweedie's mean is the end."""


def runge_kutta(f: Callable[[Tensor, Tensor], Tensor], y: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Return y at time s by one classical step of order 4 along dy/dt = f(y, t)."""
    h = s - t
    k1 = f(y, t)
    k2 = f(y + 0.5 * h * k1, t + 0.5 * h)
    k3 = f(y + 0.5 * h * k2, t + 0.5 * h)
    k4 = f(y + h * k3, s)
    return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@dataclass(frozen=True)
class ProbabilityFlow:
    r"""The probability-flow ODE dx = α' x̂_0 dt + σ' ε̂ dt by Euler, Heun or Runge–Kutta.

    .. math:: x_s = x_t + (α_s - α_t) \bar x_0 + (σ_s - σ_t) \bar ε

    where the bars are the values at t (order 1, which is DDIM with η = 0) or the mean of the
    values at t and at the Euler step's end (order 2; for VE this is EDM's Heun). Order 4 is the
    classical Runge–Kutta step in t. Deterministic.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        order: 1, 2 or 4, which is also the number of evaluations of the score per step.

    Examples:
        >>> score = glp.ExactScore(glp.Gaussian([3.0]), glp.schedules.VP())
        >>> z, t, s = torch.tensor([[0.5]]), torch.tensor(0.8), torch.tensor(0.7)
        >>> glp.diffusion.ProbabilityFlow()(z, t, s, score)
        tensor([[0.6337]])
    """

    order: int = 2

    def __post_init__(self) -> None:
        check_count(self.order, "order", most=4)
        if self.order == 3:
            raise ValueError(
                f"order must be 1 (Euler, DDIM), 2 (Heun) or 4 (Runge-Kutta), got {self.order}"
            )

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        # ε̂ and x̂_0 stay what they are; Runge–Kutta integrates σ' by Simpson's rule
        return Facts(self.order, self.order, exact=POINT if self.order < 4 else None)

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x_s."""
        del generator  # deterministic
        (alpha_t, sigma_t), (alpha_s, sigma_s) = interval(score.schedule, t, s)
        if self.order == 4 and s is not None and sigma_s > 0:  # at σ = 0 σ' may be infinite
            return runge_kutta(lambda u, time: flow_velocity(score, u, time), z, t, s)
        x0, eps = predict(score, z, t)
        if s is None or (sigma_s == 0 and self.order == 1):
            return alpha_s * flow_end(score, z, t, x0)
        end = alpha_s * x0 + sigma_s * eps
        if self.order == 1:
            return end
        x0_s, eps_s = predict(score, end, s)
        return z + (alpha_s - alpha_t) * (x0 + x0_s) / 2 + (sigma_s - sigma_t) * (eps + eps_s) / 2


@dataclass(frozen=True)
class AdaptiveFlow:
    r"""The probability-flow ODE to a tolerance, each sample with its own steps.

    Between two times the Dormand–Prince pair of order 5(4) takes as many steps as a sample needs
    for a local error below `atol + rtol · |x|`. With a grid of two times, `torch.tensor([1.0,
    1e-3])`, it chooses all steps.

    References:
        | A Family of Embedded Runge-Kutta Formulae (Dormand & Prince, 1980)
        | https://doi.org/10.1016/0771-050X(80)90013-3

    Arguments:
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance of a step.
        max_steps: Number of attempts between two times after which the solver raises an error.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_steps: int = 10_000

    def __post_init__(self) -> None:
        check_number(self.rtol, "rtol", least=0)
        check_number(self.atol, "atol", least=0)
        if not self.rtol + self.atol > 0:
            raise ValueError("rtol and atol must not both be 0")
        check_count(self.max_steps, "max_steps")

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        return Facts(5, 7, adaptive=True)

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x_s.

        Raises:
            ArithmeticError: If the tolerance is not met within `max_steps`.
        """
        del generator  # deterministic
        level_t, (alpha_s, sigma_s) = interval(score.schedule, t, s)
        if s is None:
            return flow_end(score, z, t, predict(score, z, t)[0])
        end = float(s)
        if sigma_s == 0:  # σ' may be infinite there: the last bit is left to Tweedie's mean
            lam = max(log_ratio(level_t), 0.0) - math.log(NEAR)
            if not math.isfinite(lam):
                return alpha_s * flow_end(score, z, t, predict(score, z, t)[0])
            near = invert_log_snr(score.schedule, torch.tensor(2 * lam, dtype=torch.float64), end)
            end = float(near)
        y = integrate(
            lambda u, time: flow_velocity(score, u, time), z, float(t), end,
            rtol=self.rtol, atol=self.atol, max_steps=self.max_steps,
        ).y  # fmt: skip
        return alpha_s * predict(score, y, near)[0] if sigma_s == 0 else y
