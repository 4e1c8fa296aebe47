r"""Step sizes tuned to an acceptance: dual averaging for each chain, and final small steps."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from ...core import check_number


def check_acceptance(target: float) -> None:
    """Raise `ValueError` unless 0 < target < 1."""
    check_number(target, "target_acceptance", above=0, below=1)


@dataclasses.dataclass(frozen=True, eq=False)
class DualAveraging:
    r"""Dual averaging of log h towards an acceptance δ, from the start h_0, entry by entry.

    .. math::
        \bar H_t = \left(1 - \tfrac{1}{t + t_0}\right) \bar H_{t-1} + \frac{δ - α_t}{t + t_0}, \quad
        \log h_t = μ - \frac{\sqrt t}{γ} \bar H_t, \quad
        \log \bar h_t = t^{-κ} \log h_t + (1 - t^{-κ}) \log \bar h_{t-1}, \quad μ = \log(10 h_0)

    The step t + 1 uses h_t, and the average is the final result.

    References:
        | The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian Monte Carlo
          (Hoffman & Gelman, 2014)
        | https://arxiv.org/abs/1111.4246

    Arguments:
        mu: μ, the value to which log h is drawn, `()` or `(chain,)`.
        target: δ.
        log_step: log h_t.
        log_average: The average log h̄_t.
        gap: H̄_t.
        t: Number of updates.
        t0: Weakens the first updates.
        gamma: γ, how strongly log h is drawn to μ.
        kappa: κ in (½, 1], how fast the average forgets.
    """

    mu: Tensor
    target: float
    log_step: Tensor
    log_average: Tensor
    gap: Tensor
    t: int = 0
    t0: float = 10.0
    gamma: float = 0.05
    kappa: float = 0.75

    @classmethod
    def start(cls, step_size: float | Tensor, target: float) -> DualAveraging:
        """Begin at h_0, `()` or `(chain,)`.

        Raises:
            ValueError: Unless 0 < target < 1.
        """
        check_acceptance(target)
        log_step = torch.as_tensor(step_size, dtype=torch.float64).log()
        zero = torch.zeros_like(log_step)
        return cls(log_step + math.log(10), target, log_step, zero, zero)

    def update(self, acceptance: Tensor | float) -> DualAveraging:
        """Return what follows from the acceptances α of one step, in the shape of h_0."""
        t = self.t + 1
        weight, keep = 1 / (t + self.t0), t**-self.kappa
        gap = (1 - weight) * self.gap + weight * (self.target - acceptance)
        log_step = self.mu - math.sqrt(t) / self.gamma * gap
        average = keep * log_step + (1 - keep) * self.log_average
        return dataclasses.replace(self, gap=gap, log_step=log_step, log_average=average, t=t)


@dataclasses.dataclass(frozen=True)
class Polish:
    r"""Robbins–Monro steps of one log h, so small that the acceptance at the average is δ itself.

    .. math:: \log h_t = \log h_{t-1} + \frac{c}{t + t_0} (α_t - δ)

    Dual averaging swings so far that the mean acceptance over its swings, which it controls,
    differs from the acceptance at its average.

    References:
        | A Stochastic Approximation Method (Robbins & Monro, 1951)
        | https://doi.org/10.1214/aoms/1177729586

    Arguments:
        log_step: log h_t.
        target: δ.
        t: Number of updates.
        gain: c, about 1/|∂α/∂log h|.
        t0: Weakens the first updates.
    """

    log_step: float
    target: float
    t: int = 0
    gain: float = 2.0
    t0: float = 5.0

    def update(self, acceptance: float) -> Polish:
        """Return what follows from the mean acceptance of one step of all chains."""
        t = self.t + 1
        log_step = self.log_step + self.gain / (t + self.t0) * (acceptance - self.target)
        return dataclasses.replace(self, log_step=log_step, t=t)
