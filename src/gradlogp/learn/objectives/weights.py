r"""Weights of ½‖s_θ + ε/σ‖² as functions of (α, σ).

They determine how much an error of the score counts at each noise level. In terms of the other
predictions: ½‖s + ε/σ‖² = ½‖ε̂ − ε‖²/σ² = ½ (α²/σ⁴) ‖x̂_0 − x_0‖².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core import Schedule, check_finite, check_function, check_number, shown


def unweighted(alpha: Tensor, sigma: Tensor) -> Tensor:
    """1: the Fisher divergence itself; grows as d/(2σ²) at small σ."""
    return sigma.new_ones(sigma.shape)


def sigma2(alpha: Tensor, sigma: Tensor) -> Tensor:
    """σ²: every level counts alike, ½‖ε̂ − ε‖² (NCSN, DDPM's simple loss)."""
    return sigma**2


def snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """SNR = α²/σ² on ‖x̂_0 − x_0‖², which is σ² here: another name of `sigma2`."""
    return sigma**2


def truncated_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """max(SNR, 1) on ‖x̂_0 − x_0‖², that is max(σ², σ⁴/α²).

    References:
        | Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022)
        | https://arxiv.org/abs/2202.00512
    """
    return sigma**2 * ((sigma / alpha) ** 2).clamp(min=1.0)


def x0(alpha: Tensor, sigma: Tensor) -> Tensor:
    """σ⁴/α²: the error of the denoiser, ½‖x̂_0 − x_0‖²."""
    return sigma**4 / alpha**2


def v(alpha: Tensor, sigma: Tensor) -> Tensor:
    """σ² (α² + σ²)/α²: the error of v for VP, and EDM's weight for data of unit variance.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364
    """
    return sigma**2 * (1 + (sigma / alpha) ** 2)


def truncated_v(alpha: Tensor, sigma: Tensor, most: float = 25.0) -> Tensor:
    """σ² (1 + r)/(1 + r/most), r = σ²/α²: that of `v` at little noise, and at most so many times σ².

    Levels of much noise decide about means over an image, in a loss of a few nats among hundreds.
    """
    r = (sigma / alpha) ** 2
    return sigma**2 * (1 + r) / (1 + r / most)


def min_snr(alpha: Tensor, sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, γ) on ‖x̂_0 − x_0‖², that is σ² min(1, γ σ²/α²).

    References:
        | Efficient Diffusion Training via Min-SNR Weighting Strategy (Hang et al., 2023)
        | https://arxiv.org/abs/2303.09556
    """
    return sigma**2 * (gamma * (sigma / alpha) ** 2).clamp(max=1.0)


def edm(sigma_data: float = 0.5) -> Callable[[Tensor, Tensor], Tensor]:
    r"""(σ̃² + σ_d²)/(σ̃ σ_d)² on ‖x̂_0 − x_0‖² with σ̃ = σ/α, that is σ² (1 + σ̃²/σ_d²).

    Raises:
        ValueError: If the standard deviation of the data is not positive.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364
    """
    check_number(sigma_data, "sigma_data", above=0)

    def weight(alpha: Tensor, sigma: Tensor) -> Tensor:
        return sigma**2 * (1 + (sigma / (alpha * sigma_data)) ** 2)

    return weight


@dataclass(frozen=True)
class OfTime:
    """A weight that is a function of time, under the schedule of the score it is used with."""

    at: Callable[[Schedule, Tensor], Tensor]


likelihood = OfTime(lambda schedule, t: schedule.g2(t))
r"""g²(t): the weighted loss, integrated over time, bounds the negative log-likelihood.

.. math:: KL(p_0 \| p_θ) \le \int_0^1 g^2(t) \, \tfrac12 E\|s_θ - s_t\|^2 \, dt + KL(p_1 \| π)

Under VP the loss weighted with it grows as 1/t towards the data: draw times with
`ImportanceTimes.for_likelihood`.

References:
    | Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021)
    | https://arxiv.org/abs/2101.09258
"""

Weight = Callable[[Tensor, Tensor], Tensor] | OfTime
"""(α, σ) -> the weight of ½‖s_θ + ε/σ‖², one number for each sample; or one of time."""


def weight_at(weight: Weight, schedule: Schedule, t: Tensor) -> Tensor:
    """Return the weight at each time, shape of t."""
    if not isinstance(weight, OfTime):
        check_function(weight, "weight")
    w = weight.at(schedule, t) if isinstance(weight, OfTime) else weight(*schedule(t))
    if not isinstance(w, Tensor) or w.shape not in (t.shape, torch.Size()):
        raise ValueError(f"weight must return one number per sample, got {shown(w)}")
    if not isinstance(weight, OfTime):
        check_finite(w, "weight", wait=False)
    return w
