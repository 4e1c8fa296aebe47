"""(α, σ) at both ends of a step."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core import Schedule

Level = tuple[Tensor, Tensor]


def interval(schedule: Schedule, t: Tensor, s: Tensor | None) -> tuple[Level, Level]:
    """Return (α, σ) at both ends of a step; (1, 0) at the noise-free end, s = None.

    Raises:
        ValueError: For a time that is not of shape ().
    """
    for time in (t,) if s is None else (t, s):
        if time.ndim:
            raise ValueError(
                f"a transition moves all samples at one time (), got {tuple(time.shape)}"
            )
    end = torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    return schedule(t), end if s is None else schedule(s)


def log_ratio(level: Level) -> float:
    """Return λ = log(α/σ), half the log-SNR: −∞ where α = 0, ∞ where σ = 0."""
    alpha, sigma = level
    return float(alpha.double().log() - sigma.double().log())
