"""At which times to stop on the way from noise to data."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Schedule
from .schedules import invert_log_snr


def time_grid(
    steps: int | Schedule, n: int = 40, *, t_min: float = 1e-3, rho: float = 7.0
) -> Float[Tensor, " times"]:
    r"""Descending times from t = 1 (noise) towards data, float64.

    `time_grid(n)` is uniform from 1 to `t_min`. `time_grid(schedule)` has one time for each level
    of a discrete ladder; for a continuous schedule it has n times at which the noise-to-signal
    ratio r = σ/α follows :math:`r_i^{1/ρ}` uniform (the EDM grid), from t = 1 to `t_min`. Noise
    above r = 1000 is crossed in the first step: there x carries nothing of the data.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        steps: The number of times, or a schedule.
        n: The number of times on a continuous schedule.
        t_min: The last time, where the final denoising starts.
        rho: Exponent of the grid; larger means finer near the data.

    Raises:
        ValueError: For fewer than two times or a t_min outside [0, 1).
    """
    n = steps if isinstance(steps, int) else n
    if n < 2:
        raise ValueError(f"a time grid needs at least two times, got {n}")
    if not 0 <= t_min < 1:
        raise ValueError(f"t_min must lie in [0, 1), got {t_min}")
    if isinstance(steps, int):
        return torch.linspace(1, t_min, n, dtype=torch.float64)
    if steps.times is not None:
        return steps.times
    ends = torch.tensor([1.0, t_min], dtype=torch.float64)
    first, last = (-steps.log_snr(ends).clamp(min=-2 * math.log(1e3)) / (2 * rho)).exp()
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    log_snr = -2 * rho * (first + ramp * (last - first)).log()
    times = invert_log_snr(steps, log_snr, t_min)
    times[0], times[-1] = 1.0, t_min
    return times
