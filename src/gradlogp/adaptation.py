r"""Step sizes and preconditioners tuned to a target, before the draws that are kept.

What is tuned depends on the past of the chains, so that they do not keep the density meanwhile:
tune, then `run` the kernel that comes back, which changes no more.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from .core import Density, Generator, Kernel, check_batch
from .kernels import Preconditioner, Welford
from .sampling import chunks

K = TypeVar("K")


@dataclasses.dataclass(frozen=True)
class DualAveraging:
    r"""Dual averaging of log h towards an acceptance δ, from the start h_0.

    .. math::
        \bar H_t = \left(1 - \tfrac{1}{t + t_0}\right) \bar H_{t-1} + \frac{δ - α_t}{t + t_0}, \quad
        \log h_t = μ - \frac{\sqrt t}{γ} \bar H_t, \quad
        \log \bar h_t = t^{-κ} \log h_t + (1 - t^{-κ}) \log \bar h_{t-1}, \quad μ = \log(10 h_0)

    The step t + 1 is taken with h_t, and the average is what to keep in the end.

    References:
        | The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian Monte Carlo
          (Hoffman & Gelman, 2014)
        | https://arxiv.org/abs/1111.4246

    Arguments:
        mu: μ, what log h is drawn to.
        target: δ.
        log_step: log h_t.
        log_average: The average log h̄_t.
        gap: H̄_t.
        t: Number of updates.
        t0: Weakens the first updates.
        gamma: γ, how strongly log h is drawn to μ.
        kappa: κ in (½, 1], how fast the average forgets.
    """

    mu: float
    target: float
    log_step: float
    log_average: float = 0.0
    gap: float = 0.0
    t: int = 0
    t0: float = 10.0
    gamma: float = 0.05
    kappa: float = 0.75

    @classmethod
    def start(cls, step_size: float, target: float) -> DualAveraging:
        """Begin at h_0.

        Raises:
            ValueError: Unless 0 < target < 1.
        """
        if not 0 < target < 1:
            raise ValueError(f"target_acceptance must lie in (0, 1), got {target}")
        return cls(math.log(10 * step_size), target, math.log(step_size))

    def update(self, acceptance: float) -> DualAveraging:
        """Return what follows from the acceptance α of one step, the mean over all chains."""
        t = self.t + 1
        weight, keep = 1 / (t + self.t0), t**-self.kappa
        gap = (1 - weight) * self.gap + weight * (self.target - acceptance)
        log_step = self.mu - math.sqrt(t) / self.gamma * gap
        average = keep * log_step + (1 - keep) * self.log_average
        return dataclasses.replace(self, gap=gap, log_step=log_step, log_average=average, t=t)


def _replace(kernel: K, **changes: Any) -> K:
    return dataclasses.replace(kernel, **changes)  # type: ignore[type-var]


def _check(kernel: object, n_steps: int, *names: str) -> None:
    fields = (
        {f.name for f in dataclasses.fields(kernel)} if dataclasses.is_dataclass(kernel) else {}
    )
    for name in names:
        if name not in fields:
            raise ValueError(f"{type(kernel).__name__} has no field {name} that could be tuned")
    if not isinstance(getattr(kernel, "step_size"), float | int):  # noqa: B009
        raise ValueError("step_size must be one number; a schedule of steps is not tuned")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")


def _tune(
    kernel: Any, target: Density, state: Any, n_steps: int, rate: float, streams: Generator
) -> tuple[Any, Any, list[Tensor]]:
    """Return the kernel with the averaged step, the last state, and the positions."""
    averaging, positions = DualAveraging.start(kernel.step_size, rate), []
    for _ in range(n_steps):
        pace = _replace(kernel, step_size=math.exp(averaging.log_step))
        state, info = pace.step(state, target, generator=streams)
        if not hasattr(info, "acceptance"):
            raise ValueError(
                f"{type(kernel).__name__} has no acceptance to tune its step size to; choose that "
                "by its bias, with planning.step_for_bias"
            )
        averaging = averaging.update(float(info.acceptance.mean()))
        positions.append(state.x)
    return _replace(kernel, step_size=math.exp(averaging.log_average)), state, positions


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
    check_batch(x0, name="x0")
    _check(kernel, n_steps, "step_size")
    _, streams = next(chunks(len(x0), None, generator, x0.device))
    state = kernel.init(x0, target)
    return _tune(kernel, target, state, n_steps, target_acceptance, streams)[:2]


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
    check_batch(x0, name="x0")
    _check(kernel, n_steps, "step_size", "preconditioner")
    if n_steps < 40:
        raise ValueError(f"n_steps must be at least 40 for a preconditioner, got {n_steps}")
    _, streams = next(chunks(len(x0), None, generator, x0.device))
    tuned: Any = kernel
    state, last, length = kernel.init(x0, target), n_steps // 4, 10
    left = n_steps - last
    while left:
        length = left if left < 3 * length else length  # no short window at the end
        tuned, state, positions = _tune(tuned, target, state, length, target_acceptance, streams)
        seen = Welford.start(torch.cat(positions), dense=dense)
        tuned = _replace(tuned, preconditioner=_shrunk(seen))
        left, length = left - length, 2 * length
    return _tune(tuned, target, state, last, target_acceptance, streams)[:2]


def _shrunk(seen: Welford) -> Preconditioner:
    S, n = seen.covariance(), seen.count
    variances = S.diagonal() if seen.dense else S
    if not bool((torch.isfinite(variances) & (variances > 0)).all()):
        raise ValueError("a coordinate did not move at all; start from a smaller step_size")
    floor = 5e-3 / (n + 5) * variances.mean()
    S = n / (n + 5) * S
    if seen.dense:
        return Preconditioner(S + floor * torch.eye(len(S)).to(S), kind="matrix")
    return Preconditioner(S + floor, kind="diagonal")
