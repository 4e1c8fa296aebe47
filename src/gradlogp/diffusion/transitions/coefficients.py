"""(α, σ) at both ends of a step, as numbers: a product with one is a single operation on any device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core import Schedule
from ...noise.tabulated import numbers

Level = tuple[float, float]


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
    return numbers(schedule, t), (1.0, 0.0) if s is None else numbers(schedule, s)


def log_ratio(level: tuple[float | Tensor, float | Tensor]) -> float:
    """Return λ = log(α/σ), half the log-SNR: −∞ where α = 0, ∞ where σ = 0."""
    alpha, sigma = map(float, level)
    if alpha == 0 or sigma == 0:
        return -math.inf if alpha == 0 else math.inf
    return math.log(alpha) - math.log(sigma)


def combined(parts: list[tuple[float, Tensor]]) -> Tensor:
    """Return the sum of tensors times their numbers, in one operation for each."""
    (weight, first), *rest = parts
    total = weight * first
    for weight, part in rest:
        total = torch.add(total, part, alpha=weight)
    return total
