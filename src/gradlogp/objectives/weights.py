r"""Weights of ½‖s_θ + ε/σ‖² as functions of (α, σ).

They say at which noise level an error of the score counts how much. In terms of the other
predictions: ½‖s + ε/σ‖² = ½‖ε̂ − ε‖²/σ² = ½ (α²/σ⁴) ‖x̂_0 − x_0‖².
"""

from __future__ import annotations

from torch import Tensor


def unweighted(alpha: Tensor, sigma: Tensor) -> Tensor:
    """1: the Fisher divergence itself; grows as d/(2σ²) at small σ."""
    return sigma.new_ones(sigma.shape)


def sigma2(alpha: Tensor, sigma: Tensor) -> Tensor:
    """σ²: every level counts alike, ½‖ε̂ − ε‖² (NCSN, DDPM's simple loss)."""
    return sigma**2


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


def min_snr(alpha: Tensor, sigma: Tensor, gamma: float = 5.0) -> Tensor:
    """min(SNR, γ) on ‖x̂_0 − x_0‖², that is σ² min(1, γ σ²/α²).

    References:
        | Efficient Diffusion Training via Min-SNR Weighting Strategy (Hang et al., 2023)
        | https://arxiv.org/abs/2303.09556
    """
    return sigma**2 * (gamma * (sigma / alpha) ** 2).clamp(max=1.0)
