"""Grids of times from noise to data."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Schedule, check_count, check_number, check_schedule
from .schedules import invert_log_snr

N_TIMES = 40
"""Times of a grid on a continuous schedule."""

MOST_RATIO = 1e3
"""σ/α above which a state carries nothing of the data."""

T_END = 1e-3
"""The time nearest the data where noise vanishes at t = 0; under VP there is 1 % of it then."""


def least_time(schedule: Schedule) -> Tensor:
    """Return the least time with noise: 0, or 10⁻³ where σ_0 = 0; a ladder's last; float64 `()`."""
    check_schedule(schedule)
    if schedule.times is not None:
        return schedule.times[-1].double()
    _, sigma = schedule(torch.zeros((), dtype=torch.float64))
    return torch.tensor(T_END if sigma == 0 else 0.0, dtype=torch.float64)


def check_t_min(t_min: float) -> None:
    """Raise `ValueError` unless t_min lies in [0, 1)."""
    check_number(t_min, "t_min", least=0, below=1)


def noise_range(schedule: Schedule) -> tuple[float, float]:
    """Return the smallest and the largest σ/α of a schedule."""
    ends = torch.stack([least_time(schedule), torch.ones((), dtype=torch.float64)])
    low, high = (-0.5 * schedule.log_snr(ends)).exp().tolist()
    return low, high


def time_at(schedule: Schedule, sigma: float | None = None) -> Tensor:
    """Return the time at which σ/α is `sigma`, float64 `()`; by default the smallest with noise.

    Raises:
        ValueError: If the schedule does not reach it.
    """
    if sigma is None:
        return least_time(schedule)
    check_number(sigma, "sigma", least=0)
    low, high = noise_range(schedule)
    if not low * (1 - 1e-9) <= sigma <= high * (1 + 1e-9):
        raise ValueError(
            f"sigma={sigma} lies outside the noise levels of the schedule, {low:.3g} to {high:.3g}"
        )
    log_snr = -2 * torch.tensor(sigma, dtype=torch.float64).log()
    return invert_log_snr(schedule, log_snr, float(least_time(schedule)))


def time_grid(
    schedule: Schedule, n: int | None = None, *, t_min: float | None = None, rho: float = 7.0,
    t_max: float = 1.0,
) -> Float[Tensor, " times"]:  # fmt: skip
    r"""Descending times from t = 1 (noise), or `t_max`, towards data, float64.

    One time for each level of a discrete ladder. On a continuous schedule, n times from t_max to
    `t_min` at which :math:`r_i^{1/ρ}` is uniform, where r = σ/α is the noise-to-signal ratio (the
    EDM grid); with ρ = ∞ log r is uniform. The first step crosses all levels above r = 1000, where
    z carries no information about the data.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        schedule: The noise schedule.
        n: The number of times on a continuous schedule, 40 by default.
        t_min: The last time, where the final denoising starts; by default the smallest with noise.
        rho: Exponent of the grid, or infinity; larger values are finer near the data.
        t_max: The first time; at `t_min` or below it is the only one.

    Raises:
        ValueError: For fewer than two times, a t_min outside [0, 1), a t_max outside [0, 1], or
            times so close to 0 that float64 does not distinguish them.

    Examples:
        >>> schedule = glp.schedules.VE(0.01, 10.0)
        >>> schedule(glp.time_grid(schedule, 4))[1]
        tensor([10.0000,  1.9361,  0.2257,  0.0100], dtype=torch.float64)
    """
    n = N_TIMES if n is None else n
    check_schedule(schedule)
    check_count(n, "n", 2)
    uniform = isinstance(rho, float) and rho == math.inf
    if not uniform:
        check_number(rho, "rho", above=0, why=" (or infinite)")
    if t_min is not None:
        check_t_min(t_min)
    check_number(t_max, "t_max", least=0, most=1)
    if schedule.times is not None:
        return schedule.times[schedule.times <= max(t_max, float(schedule.times[-1]))]
    t_min = float(least_time(schedule)) if t_min is None else t_min
    if t_max <= t_min:
        return torch.tensor([t_min], dtype=torch.float64)
    first, last = _log_ratios(schedule, t_min, t_max)
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    if uniform:
        log_ratio = first + ramp * (last - first)
    else:
        low, high = (last / rho).exp(), (first / rho).exp()
        log_ratio = rho * (high + ramp * (low - high)).log()
    return _times(schedule, log_ratio, t_min, t_max)


def likelihood_grid(
    schedule: Schedule, n: int, t_min: float, spread: float = 1.0, t_max: float = 1.0
) -> Float[Tensor, " times"]:
    r"""Descending times for a likelihood, from t_max to t_min, float64; of a continuous schedule.

    They are uniform in :math:`\operatorname{arsinh} \sqrt{2 c/r}`, r = σ/α and c the largest
    standard deviation of an entry of the data: for r below c nearly uniform in log r, and above it
    fewer and fewer. There the integrand α ∇·x̂_0 falls as (c/r)², and with it the error that a step
    h of log r leaves. If cubics are integrated exactly this is about h⁵ (c/r)², the same in each
    step for h ∝ r^{2/5};
    here h ∝ √r far out.

    Arguments:
        schedule: The noise schedule.
        n: The number of times, at least two.
        t_min: The last time.
        spread: c.
        t_max: The first time.
    """
    u = torch.asinh((2 * spread * (-_log_ratios(schedule, t_min, t_max)).exp()).sqrt())
    u = u[0] + torch.linspace(0, 1, n, dtype=torch.float64) * (u[1] - u[0])
    return _times(schedule, math.log(2 * spread) - 2 * u.sinh().log(), t_min, t_max)


def _log_ratios(schedule: Schedule, t_min: float, t_max: float) -> Tensor:
    """Return log σ/α where a grid begins, at most that of `MOST_RATIO`, and at t_min."""
    ends = torch.tensor([t_max, t_min], dtype=torch.float64)
    return -0.5 * schedule.log_snr(ends).clamp(min=-2 * math.log(MOST_RATIO))


def _times(schedule: Schedule, log_ratio: Tensor, t_min: float, t_max: float) -> Tensor:
    """Return the times of levels log σ/α, the first t_max and the last t_min."""
    n, times = len(log_ratio), invert_log_snr(schedule, -2 * log_ratio, t_min)
    times[0], times[-1] = t_max, t_min
    if (same := int((times.diff() >= 0).sum())) > 0:
        raise ValueError(
            f"{same + 1} of {n} times down to t_min={t_min:g} coincide in float64: use fewer, or a "
            f"t_min > 0, such as {T_END:g}"
        )
    return times
