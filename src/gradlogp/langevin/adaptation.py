r"""Step sizes and preconditioners tuned to a target, before the draws that are kept.

What is tuned depends on the past of the chains, so that they do not keep the density meanwhile:
tune, then `run` the kernel that comes back, which changes no more.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    Density,
    Generator,
    Kernel,
    check_batch,
    chunks,
)
from .kernels.tuning import Adaptation, Moved, check_tunable
from .kernels.tuning import DualAveraging as DualAveraging


@torch.no_grad()
def adapt_step_size(
    kernel: Kernel[Any, Any],
    target: Density,
    x0: Float[Tensor, "chain *event"],
    n_steps: int,
    target_acceptance: float = 0.574,
    *,
    generator: Generator | None = None,
) -> tuple[Any, Any]:
    """Tune the step size of a Metropolis kernel to an acceptance, by `DualAveraging`.

    All chains share one step size: each step makes one update, with the mean of their acceptances.

    References:
        | Optimal Scaling of Discrete Approximations to Langevin Diffusions
          (Roberts & Rosenthal, 1998)
        | https://doi.org/10.1111/1467-9868.00123

    Arguments:
        kernel: Such as `MALA(h)` or `HMC(ε, n)`, a frozen dataclass with the step size to start at.
        target: The density.
        x0: Starting points.
        n_steps: Steps, which are a burn-in as well.
        target_acceptance: δ: 0.574 for MALA, 0.65 for HMC, each the best in high dimension.
        generator: Where the noise comes from.

    Returns:
        The kernel with its new step size, fixed from now on, and the state: go on with
        `run(kernel, target, state.x, …)`.

    Raises:
        ValueError: If the kernel has no step size or no acceptance, or for a target outside (0, 1).
    """
    return _tuned(Adaptation(target_acceptance), kernel, target, x0, n_steps, generator)


@torch.no_grad()
def adapt_preconditioner(
    kernel: Kernel[Any, Any],
    target: Density,
    x0: Float[Tensor, "chain *event"],
    n_steps: int,
    target_acceptance: float = 0.574,
    *,
    dense: bool = False,
    generator: Generator | None = None,
) -> tuple[Any, Any]:
    r"""Tune preconditioner and step size together, in windows that double in length.

    .. math:: P = \frac{n}{n + 5} \hat S + \frac{5}{n + 5}\, 10^{-3} \bar s\, I

    after every window, with the covariance Ŝ of its n positions over all chains, and s̄ the mean
    of its diagonal; the step size is tuned anew in the next window. The last window, a quarter of
    the steps, tunes the step size alone.

    Arguments:
        kernel: A Metropolis kernel with `step_size` and `preconditioner`: `MALA`, `HMC`.
        target: The density.
        x0: Starting points.
        n_steps: Steps in all; at least 40.
        target_acceptance: δ.
        dense: Whether to estimate a matrix; the variances alone otherwise.
        generator: Where the noise comes from.

    Returns:
        The kernel with both, fixed from now on, and the state.

    Raises:
        ValueError: As `adapt_step_size`, and for fewer than 40 steps or a window in which a
            coordinate never moved.
    """
    how = Adaptation(target_acceptance, "matrix" if dense else "diagonal")
    return _tuned(how, kernel, target, x0, n_steps, generator)


def _tuned(
    how: Adaptation,
    kernel: Kernel[Any, Any],
    target: Density,
    x0: Tensor,
    n_steps: int,
    generator: Generator | None,
) -> tuple[Any, Any]:
    """Return the kernel and the last state."""
    check_batch(x0, name="x0")
    check_tunable(kernel, n_steps, how.preconditioner != "none")
    _, streams = next(chunks(x0, None, generator))
    state = kernel.init(x0, target)

    def move(kernel: Kernel[Any, Any]) -> Moved:
        nonlocal state
        state, info = kernel.step(state, target, generator=streams)
        return Moved(state.x, getattr(info, "acceptance", None))

    return how.tune(kernel, n_steps, move), state
