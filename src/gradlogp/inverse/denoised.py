r"""The denoised x̂_0 with its derivative, the basis of methods that guide by a likelihood.

With x̂_0(x_t) = E[x_0 | x_t] and J = ∂x̂_0/∂x_t,

    Cov[x_0 | x_t] = (σ²/α) J,    ∇ log p(y | x_t) = Jᵀ Aᵀ u,    E[x_0 | x_t, y] = x̂_0 + (σ²/α) Jᵀ Aᵀ u

where u is the derivative of the log-likelihood in A x̂_0, in which the methods differ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import NoisyScore, check_batch, per_sample
from ..noise.predictions import predict
from .observation import Observation


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
