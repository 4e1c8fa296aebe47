"""(α, σ) at both ends of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core import Schedule

Level = tuple[Tensor, Tensor]


def coefficients(schedule: Schedule, t: Tensor | None) -> Level:
    """Return (α, σ) at t, or (1, 0) at the noise-free end, t = None.

    Raises:
        ValueError: For a time that is not of shape ().
    """
    if t is None:
        return torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    if t.ndim:
        raise ValueError(f"a transition moves all samples at one time (), got {tuple(t.shape)}")
    return schedule(t)


def interval(schedule: Schedule, t: Tensor, s: Tensor | None) -> tuple[Level, Level]:
    """Return (α, σ) at both ends of a step."""
    return coefficients(schedule, t), coefficients(schedule, s)


def log_ratio(level: Level) -> float:
    """Return λ = log(α/σ), half the log-SNR: −∞ where α = 0, ∞ where σ = 0."""
    alpha, sigma = level
    return float(alpha.double().log() - sigma.double().log())
