r"""Annealed Langevin dynamics: Langevin steps at every noise level, from the largest down."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from ...core import (
    Generator,
    Kernel,
    NoisyScore,
    Schedule,
    check_count,
    check_function,
    check_number,
    check_same_shape,
)
from ...langevin.kernels import ULA, LeimkuhlerMatthews, facts_of
from ...langevin.kernels.steps import Overdamped, started
from ...noise.blurred import noisy_log_prob
from ...noise.grids import noise_range
from ...noise.ladder import relative_step
from ...noise.predictions import predict
from .annealed_kernels import ExponentialSteps, LevelKernel, MakeKernel, solve_step
from .coefficients import interval
from .facts import Facts

SPARING = Overdamped | LeimkuhlerMatthews
"""Kernels that move x without the score where it ends: the last one at a level is not needed."""


@dataclass(frozen=True)
class AnnealedLangevin:
    r"""Annealed Langevin dynamics (NCSN), from σ_1 (the largest) to σ_L, with any kernel.

    At level t, `n_steps` of

    .. math:: x \leftarrow x + h_t\, s(x, t) + \sqrt{2 h_t}\, z, \quad h_t = η σ_t^2

    or of another kernel, and then the move to level s, where x is rescaled by α_s/α_t (1 for VE
    and ladders). At the noise-free end, s = None, the state is denoised by Tweedie's formula at
    its current level.

    The dimensionless η is `relative_step`. In NCSN's notation η = ε/σ_L², with h_i = ε σ_i²/σ_L² as
    in NCSN's code; the step in NCSN's paper (α/2, √α) is half as large, h = α/2. For finite
    `n_steps` the final law is biased; on a Gaussian the bias is known exactly.

    A kernel moves x/σ_t with step size η. In x its step is ησ_t² if it is a step of the position,
    and ησ_t if it is a time, as for `BAOAB` and `HMC` (for which η corresponds to η²/2); a
    friction γ becomes γ/σ_t. In these units the law at every level has a curvature of at most 1,
    and both kinds are stable for η < 2. Momenta are drawn from their law at each level. A kernel
    with a Metropolis correction needs log p_t, which `ExactScore` has but a network does not.

    References:
        | Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019)
        | https://arxiv.org/abs/1907.05600
        | Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020)
        | https://arxiv.org/abs/2006.09011

    Arguments:
        n_steps: Langevin steps per level.
        relative_step: η, the step size at a level in units of σ_t² (of σ_t for a time); stable
            below 2. None: solved for the ladder of the score, see `solved`.
        kernel: η -> kernel, such as `ULA`, `MALA` or `partial(HMC, n_leapfrog=3)`; or an object
            that creates one for each level, `ExponentialSteps` or `PreconditionedSteps`.

    Raises:
        ValueError: For fewer than one step, or an η at which no kernel is stable; when called, if
            the kernel raises one.
        FloatingPointError: When called, if a chain of an unadjusted kernel becomes NaN or
            infinite. On a device it is NaN from then on, which `evolve` reports.

    Examples:
        >>> score = glp.ExactScore(glp.Gaussian([3.0]), glp.schedules.VE(0.01, 10.0))
        >>> times, g = glp.time_grid(score.schedule, 20), torch.Generator().manual_seed(0)
        >>> x = glp.evolve(glp.diffusion.AnnealedLangevin(), score, 2000, times, generator=g)
        >>> abs(float(x.mean()) - 3.0) < 0.2
        True
    """

    n_steps: int = 5
    relative_step: float | None = 0.1
    kernel: MakeKernel | LevelKernel = ULA

    def __post_init__(self) -> None:
        check_count(self.n_steps, "n_steps")
        if not isinstance(self.kernel, LevelKernel):
            check_function(self.kernel, "kernel")
        if self.relative_step is not None:
            limit = None if isinstance(self.kernel, ExponentialSteps) else 2
            why = ": there the dynamics is stable for every law"
            check_number(self.relative_step, "relative_step", above=0, below=limit, why=why)

    @classmethod
    def solved(cls, n_steps: int = 5, kernel: MakeKernel | LevelKernel = ULA) -> AnnealedLangevin:
        r"""Return the dynamics with η solved for the ladder of the score.

        η is such that for data consisting of one point the steps at a level end with the variance
        of that level, or as close to it as possible, when each level begins with the final
        variance of the one above (technique 4 of NCSNv2). For `ULA` that is the `relative_step` of
        `noise_levels`.

        Arguments:
            n_steps: Langevin steps per level.
            kernel: As for the class, without a Metropolis correction.

        Raises:
            ValueError: When called, for a kernel whose step is not affine on a Gaussian, or a
                score whose schedule is not a ladder.
        """
        return cls(n_steps, None, kernel)

    def _step_size(self, schedule: Schedule) -> float:
        """Return η for a schedule."""
        if self.relative_step is not None:
            return self.relative_step
        return _solved(schedule, self.n_steps, cast(Any, self.kernel))

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        kernel, n = self._kernel(self.relative_step or 0.1, 1.0), self.n_steps
        evaluations = n + (not isinstance(kernel, SPARING))
        draws = n * (facts_of(kernel).draws or 1) + hasattr(kernel, "refresh")
        return Facts(None, evaluations, draws, divides_by_alpha=True)

    def _kernel(self, eta: float, snr: float) -> Kernel[Any, Any]:
        """Return the kernel of a level."""
        make = self.kernel
        return make.at(eta, snr) if isinstance(make, LevelKernel) else make(eta)

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x after the steps at level t, moved to level s.

        Raises:
            ValueError: If α_t = 0, where no rescaling leads to level s, or if the score has a
                wrong shape.
        """
        (alpha, sigma), (alpha_s, _) = interval(score.schedule, t, s)
        alpha_t, sigma_t = float(alpha), float(sigma)
        if sigma_t > 0:  # else there is no noise, and no step
            eta, snr = self._step_size(score.schedule), (alpha_t / sigma_t) ** 2
            z = self._steps(z, Level(score, t, sigma_t), eta, snr, generator)
        if s is None:
            return predict(score, z, t)[0]
        if alpha_t == 0:
            raise ValueError("annealed Langevin cannot leave alpha = 0; start at a smaller t")
        ratio = float(alpha_s) / alpha_t
        return z if math.isclose(ratio, 1.0, rel_tol=1e-12) else ratio * z

    def _steps(
        self, x: Tensor, level: Level, eta: float, snr: float, generator: Generator | None
    ) -> Tensor:
        kernel = self._kernel(eta, snr)
        freezes = getattr(kernel, "on_nonfinite", None) == "freeze"
        looks = x.device.type == "cpu"  # elsewhere it would wait
        if freezes and looks:  # a transition cannot report what froze
            kernel = dataclasses.replace(cast(Any, kernel), on_nonfinite="raise")
        last = blind if isinstance(kernel, SPARING) else level
        state = started(kernel, x / level.sigma, level, generator, wait=False)
        frozen = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for k in range(self.n_steps):
            target = level if k + 1 < self.n_steps else last
            state, info = kernel.step(state, target, generator=generator)
            if freezes and not looks:
                frozen = frozen | info.diverging
        x = level.sigma * state.x
        return x.masked_fill(frozen.reshape(-1, *[1] * (x.ndim - 1)), torch.nan)


@dataclass(frozen=True)
class Level:
    """The law of y = x_t/σ_t at one level, as a target."""

    noisy_score: NoisyScore
    t: Tensor
    sigma: float

    def score(self, y: Tensor) -> Tensor:
        """Return σ s(σ y, t)."""
        x = self.sigma * y
        score = self.noisy_score(x, self.t)
        check_same_shape(score, x, "the score")
        return self.sigma * score

    def log_prob(self, y: Tensor) -> Tensor:
        """Return log p_t(σ y), which differs by a constant.

        Raises:
            ValueError: If the noisy score has no log-density.
        """
        return noisy_log_prob(self.noisy_score, self.sigma * y, self.t)


class _Blind:
    """A target that replaces one whose score at the end of a level is not used."""

    def score(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y)

    def log_prob(self, y: Tensor) -> Tensor:
        return y.new_zeros(len(y))


blind = _Blind()


@lru_cache(maxsize=64)
def _solved(schedule: Schedule, n_steps: int, kernel: Any) -> float:
    """Return the η of `AnnealedLangevin.solved`; a pure function, cached for all levels."""
    if schedule.times is None:
        raise ValueError(
            f"a step is solved for the levels of a ladder, but {schedule} is continuous; use "
            "schedules.Levels, or pass relative_step"
        )
    low, high = noise_range(schedule)
    ratio = (high / low) ** (1 / (len(schedule.times) - 1))
    return relative_step(n_steps, ratio) if kernel is ULA else solve_step(n_steps, ratio, kernel)
