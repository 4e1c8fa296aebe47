r"""Noise schedules t -> (α_t, σ_t), t in [0, 1] from data to noise.

x_t = α_t x_0 + σ_t ε with ε ~ N(0, I). A schedule is these two functions; drift, diffusion and
log-SNR are derived from them in `core.Schedule`. Discrete ladders (`Levels`, `DDPM`) are
log-linear between their points, and list them in `times`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..core import (
    Schedule,
    check_count,
    check_finite,
    check_kind,
    check_number,
    check_schedule,
    shown,
)

Array = npt.NDArray[np.float64]
"""What a schedule is computed in."""


def _check_rising(**ends: float) -> None:
    (first, low), (last, high) = ends.items()
    check_number(low, first, above=0)
    check_number(high, last, above=0)
    if not low < high:
        raise ValueError(f"needs {first} < {last}, got {low} and {high}")


def _numbers(
    values: Sequence[float] | Tensor, name: str, below: float | None = None
) -> tuple[float, ...]:
    if isinstance(values, Tensor):
        check_finite(values, name)
    if isinstance(values, Tensor) and values.ndim != 1:
        raise ValueError(f"{name} must be a sequence of numbers, got {shown(values)}")
    if not isinstance(values, Sequence | Tensor | np.ndarray) or isinstance(values, str | bytes):
        raise ValueError(f"{name} must be a sequence of numbers, got {type(values).__name__}")
    for value in values:
        check_number(value, name, above=0, below=below)
    return tuple(float(value) for value in values)


@dataclass(frozen=True)
class VE(Schedule):
    r"""Variance exploding: :math:`α = 1`, :math:`σ_t = σ_{min} (σ_{max}/σ_{min})^t`.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456

    Examples:
        >>> glp.schedules.VE(0.01, 100.0)(torch.tensor([0.0, 0.5, 1.0]))
        (tensor([1., 1., 1.]), tensor([1.0000e-02, 1.0000e+00, 1.0000e+02]))
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_rising(sigma_min=self.sigma_min, sigma_max=self.sigma_max)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t)."""
        return torch.ones_like(t), self.sigma_min * torch.exp(self._log_ratio * t)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (dα/dt, dσ/dt), which are 0 and σ log(σ_max/σ_min)."""
        return torch.zeros_like(t), self(t)[1] * self._log_ratio


@dataclass(frozen=True)
class EDM(Schedule):
    r"""EDM's levels: :math:`α = 1`, :math:`σ_t^{1/ρ}` linear from σ_min at t = 0 to σ_max at t = 1.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Examples:
        >>> glp.schedules.EDM()(torch.tensor([0.0, 1.0]))[1]
        tensor([2.0000e-03, 8.0000e+01])
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        _check_rising(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        check_number(self.rho, "rho", above=0)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t)."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return torch.ones_like(t), (low + t * (high - low)) ** self.rho


@dataclass(frozen=True)
class VP(Schedule):
    r"""Variance preserving, linear β: :math:`\log α = -\tfrac14 t^2 (β_1 - β_0) - \tfrac12 t β_0`.

    σ² = 1 − α², so f = −β/2 and g² = β.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456

    Examples:
        >>> alpha, sigma = glp.schedules.VP()(torch.tensor([0.0, 0.5, 1.0]))
        >>> alpha.square() + sigma.square()
        tensor([1.0000, 1.0000, 1.0000])
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_number(self.beta_max, "beta_max", above=0)
        check_number(self.beta_min, "beta_min", above=0, most=self.beta_max)

    def log_alpha(self, t: Tensor) -> Tensor:
        """Return log α_t."""
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t)."""
        log_alpha = self.log_alpha(t)
        return log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()


@dataclass(frozen=True)
class SubVP(Schedule):
    r"""Sub-VP: α as in `VP`, :math:`σ = 1 - α^2` (a standard deviation, not a variance).

    g² = β (1 − α⁴), always below that of `VP`.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        VP(self.beta_min, self.beta_max)  # refuses what is no β

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t)."""
        log_alpha = VP(self.beta_min, self.beta_max).log_alpha(t)
        return log_alpha.exp(), -torch.expm1(2 * log_alpha)


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Cosine: :math:`α_t = \cos(a_t) / \cos(a_0)`, a_t linear in t, σ² = 1 − α².

    a_0 = (π/2) s / (1 + s) as in the paper. In the paper a_1 = π/2 makes α_1 = 0, and β is clipped
    at 0.999 for this reason; here a_1 is such that α_1 = `alpha_min`, so that x̂_0 stays finite.

    References:
        | Improved Denoising Diffusion Probabilistic Models (Nichol & Dhariwal, 2021)
        | https://arxiv.org/abs/2102.09672

    Examples:
        >>> alpha, sigma = glp.schedules.Cosine()(torch.tensor([0.0, 0.5]))
        >>> sigma
        tensor([0.0000, 0.7111])
    """

    s: float = 0.008
    alpha_min: float = 1e-3

    def __post_init__(self) -> None:
        check_number(self.s, "s", above=0)
        check_number(self.alpha_min, "alpha_min", above=0, below=1)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t)."""
        a0 = 0.5 * math.pi * self.s / (1 + self.s)
        turn = (math.acos(self.alpha_min * math.cos(a0)) - a0) * t  # a - a0
        # sigma^2 = (cos^2 a0 - cos^2 a) / cos^2 a0, as a product so that nothing cancels near t = 0
        sigma2 = torch.sin(turn) * torch.sin(turn + 2 * a0) / math.cos(a0) ** 2
        return torch.cos(turn + a0) / math.cos(a0), sigma2.sqrt()


@dataclass(frozen=True)
class Rectified(Schedule):
    """Straight paths: α = 1 − t, σ = t. At t = 1 nothing of the data is left (α = 0).

    References:
        | Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
          (Liu et al., 2023)
        | https://arxiv.org/abs/2209.03003

    Examples:
        >>> glp.schedules.Rectified()(torch.tensor([0.0, 0.25, 1.0]))
        (tensor([1.0000, 0.7500, 0.0000]), tensor([0.0000, 0.2500, 1.0000]))
    """

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t)."""
        return 1 - t, t.clone()


def _interpolate(t: Tensor, values: Array) -> Tensor:
    """Interpolate linearly between values placed uniformly on [0, 1]."""
    knots = torch.from_numpy(values).to(t)
    position = t * (len(knots) - 1)
    left = position.detach().floor().clamp(0, len(knots) - 2).long()
    before, after = (knots[i.reshape(-1)].reshape(i.shape) for i in (left, left + 1))
    return before + (position - left) * (
        after - before
    )  # flat: vmap of PyTorch 2.6 reads a single one


@dataclass(frozen=True, init=False)
class DDPM(Schedule):
    r"""Tabulated β_1 … β_T: :math:`\barα_i = \prod_{j \le i} (1 - β_j)` at t = i/T, α = √ᾱ.

    Between the steps log ᾱ is linear; ᾱ_0 = 1 at t = 0.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239
    """

    betas: tuple[float, ...]

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        values = _numbers(betas, "betas", below=1)
        check_count(len(values), "the number of betas")
        object.__setattr__(self, "betas", values)

    @cached_property
    def _log_abar(self) -> Array:
        """Log ᾱ_0 … log ᾱ_T, made once; no tensor, which could be one of a transformation."""
        return np.concatenate([[0.0], np.log1p(-np.array(self.betas)).cumsum()])

    @property
    def times(self) -> Tensor:
        """The descending times 1, (T−1)/T, …, 1/T."""
        T = len(self.betas)
        return torch.arange(T, 0, -1, dtype=torch.float64) / T

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t)."""
        log_abar = _interpolate(t, self._log_abar)
        return (0.5 * log_abar).exp(), (-torch.expm1(log_abar)).sqrt()


@dataclass(frozen=True, init=False)
class Levels(Schedule):
    r"""A ladder σ_1 > … > σ_L with α = 1: level i at t = 1 − (i−1)/(L−1), geometric between.

    References:
        | Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019)
        | https://arxiv.org/abs/1907.05600
    """

    sigmas: tuple[float, ...]

    def __init__(self, sigmas: Sequence[float] | Tensor) -> None:
        values = _numbers(sigmas, "sigmas")
        check_count(len(values), "the number of sigmas", 2)
        if not all(a > b for a, b in pairwise(values)):
            raise ValueError("sigmas must decrease: sigma_1 > … > sigma_L > 0")
        object.__setattr__(self, "sigmas", values)

    @cached_property
    def _log_sigmas(self) -> Array:
        """Log σ_L … log σ_1, made once."""
        return np.log(self.sigmas[::-1])

    @property
    def times(self) -> Tensor:
        """The descending times of the levels, t = 1 for σ_1 and t = 0 for σ_L."""
        return torch.linspace(1, 0, len(self.sigmas), dtype=torch.float64)

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t)."""
        return torch.ones_like(t), _interpolate(t, self._log_sigmas).exp()


def invert_log_snr(schedule: Schedule, log_snr: Tensor, t_min: float = 0.0) -> Tensor:
    """Return the times in [t_min, 1] at which λ(t) = log_snr (float64).

    Bisection; of few values several bits at a time, so that fewer calls of the schedule are enough.
    A value outside the range of the schedule gives the nearest end.
    """
    check_schedule(schedule)
    check_kind(log_snr, "log_snr", Tensor, "a tensor")
    check_number(t_min, "t_min", least=0, below=1)
    wanted = log_snr.double().unsqueeze(-1)
    low, width = torch.full_like(wanted, t_min), 1.0 - t_min
    bits = 6 if wanted.numel() <= 32 else 3 if wanted.numel() <= 1024 else 1
    inner = torch.arange(1, 2**bits, dtype=torch.float64, device=wanted.device)
    for _ in range(60 // bits):
        width /= 2**bits
        above = schedule.log_snr(low + inner * width) > wanted  # λ falls with t
        low = low + above.sum(-1, keepdim=True) * width
    return (low + width / 2).squeeze(-1)


SCHEDULES: tuple[type[Schedule], ...] = (VE, EDM, VP, SubVP, Cosine, Rectified, DDPM, Levels)
"""The schedules that a checkpoint can name."""


def from_config(config: dict[str, Any]) -> Schedule:
    """Build a schedule from `{"name": class name, **arguments}`, the form checkpoints store."""
    classes = {c.__name__: c for c in SCHEDULES}
    check_kind(config, "config", dict, "a dictionary")
    if config.get("name") not in classes:
        raise ValueError(
            f"config names an unknown schedule: {config.get('name')!r}; one of {', '.join(classes)}"
        )
    return classes[config["name"]](**{k: v for k, v in config.items() if k != "name"})
