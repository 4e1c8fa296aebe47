"""Particles that are moved through levels between two densities, and their weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Density, Generator, Kernel, per_sample
from .kernels.steps import evaluated, started


@dataclass(frozen=True)
class Level:
    """The density p_0^{1−b} p_1^b."""

    base: Density
    target: Density
    b: float

    def log_prob(self, x: Tensor) -> Tensor:
        """Return (1 − b) log p_0(x) + b log p_1(x)."""
        return (1 - self.b) * self.base.log_prob(x) + self.b * self.target.log_prob(x)

    def score(self, x: Tensor) -> Tensor:
        """Return the same of the scores."""
        return self.log_prob_and_score(x)[1]

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, from one evaluation of each end."""
        (p, s), (q, t) = evaluated(x, self.base), evaluated(x, self.target)
        return (1 - self.b) * p + self.b * q, (1 - self.b) * s + self.b * t

    def log_ratio(self, x: Tensor) -> Tensor:
        """Return log p_1 − log p_0, float64; −∞ where the target has no density."""
        ratio = self.target.log_prob(x).double() - self.base.log_prob(x).double()
        return ratio.detach().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)


@dataclass(frozen=True)
class Walk:
    """Where annealed particles ended, what they collected, and how their moves were accepted."""

    log_w: Float[Tensor, " n"]
    increments: Float[Tensor, " K"]
    acceptance: Float[Tensor, " inner"]


def anneal(
    x: Float[Tensor, "n *event"],
    target: Density,
    base: Density,
    levels: Sequence[float],
    kernels: Sequence[Kernel[Any, Any]],
    *,
    n_steps: int = 1,
    generator: Generator | None = None,
) -> Walk:
    r"""Move particles through levels, and collect their weights.

    .. math:: \log w = \sum_k (b_{k+1} - b_k) \left(\log p_1(x_k) - \log p_0(x_k)\right)

    From draws x of the first level E w is Z(last)/Z(first), for all kernels that keep their level.
    With levels that fall it is the way back.

    References:
        | Nonequilibrium Equality for Free Energy Differences (Jarzynski, 1997)
        | https://doi.org/10.1103/PhysRevLett.78.2690
        | Annealed Importance Sampling (Neal, 2001)
        | https://doi.org/10.1023/A:1008923215028

    Arguments:
        x: Draws of the first level, `(n, *event)`.
        target: p_1, up to its constant.
        base: p_0.
        levels: b, from the first to the last.
        kernels: One for each level in between.
        n_steps: Steps of the kernel at a level.
        generator: Where the noise comes from.
    """
    log_w = x.new_zeros(len(x), dtype=torch.float64)
    increments, acceptances = [], []
    for k in range(len(levels) - 1):
        if k > 0:
            x, accepted = moved(
                kernels[k - 1], Level(base, target, levels[k]), x, n_steps, generator
            )
            acceptances.append(accepted)
        gained = (levels[k + 1] - levels[k]) * Level(base, target, levels[k]).log_ratio(x)
        increments.append(gained.mean())
        log_w = log_w + gained
        x = _alive(x, gained)
    inner = torch.tensor(acceptances, dtype=torch.float64)
    return Walk(log_w, torch.stack(increments), inner)


def _alive(x: Tensor, gained: Tensor) -> Tensor:
    """Put those that can only have weight 0 where one of the others is, so that all can be moved."""
    ok = gained > -torch.inf
    if bool(ok.all()) or not bool(ok.any()):
        return x
    places = ok.nonzero()[:, 0]
    return torch.where(
        per_sample(ok.to(x), x) > 0,
        x,
        x[places[torch.arange(len(x), device=x.device) % len(places)]],
    )


def moved(
    kernel: Kernel[Any, Any], level: Density, x: Tensor, n_steps: int, generator: Generator | None
) -> tuple[Tensor, float]:
    """Return the positions after n steps, and the mean acceptance, NaN where there is none."""
    state, accepted = started(kernel, x, level, generator), []
    for _ in range(n_steps):
        state, info = kernel.step(state, level, generator=generator)
        if (acceptance := getattr(info, "acceptance", None)) is not None:
            accepted.append(float(acceptance.mean()))
    return state.x, sum(accepted) / len(accepted) if accepted else math.nan
