"""The step size of annealed Langevin dynamics, solved for any kernel without drawing anything."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from torch import Tensor

from ...calculus import affine_map
from ...core import Generator, sum_event
from ...distributions.as_target import Target
from ...langevin.kernels.steps import started
from .annealed_kernels import LevelKernel, MakeKernel

NORMAL = Target(lambda y: -y, lambda y: -0.5 * sum_event(y.square()))
"""The law of a level in units of its noise, for data that are one point."""


def level_variance(
    kernel: MakeKernel | LevelKernel, relative_step: float, n_steps: int, ratio: float
) -> float:
    """Return s_T²/σ² after T steps at a level on point-mass data, from s_0² = γ² σ².

    A step is affine there, and its map carries the law. `ladder.variance_ratio` is the closed form for
    ULA.

    Raises:
        ValueError: For a kernel whose step is not affine, as one that may reject it.
    """
    made = (
        kernel.at(relative_step, 0.0) if isinstance(kernel, LevelKernel) else kernel(relative_step)
    )

    def level(x: Tensor, generator: Generator) -> Tensor:
        state = started(made, x, NORMAL, generator)
        for _ in range(n_steps):
            state, info = made.step(state, NORMAL, generator=generator)
            if hasattr(info, "acceptance"):
                raise ValueError(
                    f"{type(made).__name__} may reject its steps: choose relative_step by the "
                    "acceptance instead"
                )
        return state.x

    found = affine_map(level, 1)
    return float(ratio**2 * found.M**2 + found.Q)


def solve_step(n_steps: int, ratio: float, kernel: MakeKernel | LevelKernel) -> float:
    """Return the η in (0, 1] whose steps end nearest to the variance of the level."""

    def off(eta: float) -> float:
        return (level_variance(kernel, eta, n_steps, ratio) - 1) ** 2

    grid = np.geomspace(1e-3, 1.0, 61)
    best = int(np.argmin([off(eta) for eta in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(minimize_scalar(off, bounds=(low, high), method="bounded").x)
