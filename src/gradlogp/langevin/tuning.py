r"""Step sizes and preconditioners tuned to a target, before the draws that are kept.

What is tuned depends on the past of the chains, so that they do not keep the density meanwhile:
tune, then `run` the kernel that comes back, which changes no more.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Density, Generator, Kernel, check_batch, chunks
from .kernels import Preconditioner, Splitting, Welford, facts_of
from .planning import estimate_curvature, step_for_bias

Learn = Literal["none", "diagonal", "matrix"]
"""What is learnt of the covariance for the preconditioner."""

LEAST = 40
"""Steps needed to tune a preconditioner."""


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
        check_acceptance(target)
        return cls(math.log(10 * step_size), target, math.log(step_size))

    def update(self, acceptance: float) -> DualAveraging:
        """Return what follows from the acceptance α of one step, the mean over all chains."""
        t = self.t + 1
        weight, keep = 1 / (t + self.t0), t**-self.kappa
        gap = (1 - weight) * self.gap + weight * (self.target - acceptance)
        log_step = self.mu - math.sqrt(t) / self.gamma * gap
        average = keep * log_step + (1 - keep) * self.log_average
        return dataclasses.replace(self, gap=gap, log_step=log_step, log_average=average, t=t)


class Moved(NamedTuple):
    """What one step of all chains tells: positions, and acceptances or None."""

    x: Tensor
    acceptance: Tensor | None


Move = Callable[[Any], Moved]
"""Takes one step of all chains with the kernel it is given."""


@dataclasses.dataclass(frozen=True)
class Adaptation:
    r"""What is tuned in the burn-in of `run`: the step size and, if asked for, the preconditioner.

    The step size goes to an acceptance by `DualAveraging`, one update a step with the mean over
    all chains. With a preconditioner there are windows that double in length; after each

    .. math:: P = \frac{n}{n + 5} \hat S + \frac{5}{n + 5}\, 10^{-3} \bar s\, I

    with the covariance Ŝ of its n positions over all chains and s̄ the mean of its diagonal, and the
    step size is tuned anew. The last quarter of the steps tunes the step size alone. What comes
    of it changes no more.

    Arguments:
        target_acceptance: δ in (0, 1); by default that of the kernel's `facts`.
        preconditioner: `none`, `diagonal` or `matrix`.

    Raises:
        ValueError: For an acceptance outside (0, 1), or another preconditioner.
    """

    target_acceptance: float | None = None
    preconditioner: Learn = "none"

    def __post_init__(self) -> None:
        if self.target_acceptance is not None:
            check_acceptance(self.target_acceptance)
        if self.preconditioner not in ("none", "diagonal", "matrix"):
            raise ValueError(
                "preconditioner must be 'none', 'diagonal' or 'matrix', "
                f"got {self.preconditioner!r}"
            )

    def tune(self, kernel: Any, n_steps: int, move: Move) -> Any:
        """Return the kernel after n_steps of tuning, in which `move` moves the chains.

        Raises:
            ValueError: If the kernel has nothing to tune or no acceptance, for too few steps, or
                for a window in which a coordinate never moved.
        """
        learn = self.preconditioner != "none"
        check_tunable(kernel, n_steps, learn)
        for length, last in windows(n_steps) if learn else [(n_steps, True)]:
            kernel, positions = self._window(kernel, length, move, not last)
            if not last:
                seen = Welford.start(torch.cat(positions), dense=self.preconditioner == "matrix")
                kernel = dataclasses.replace(kernel, preconditioner=shrunk(seen))
        return kernel

    def acceptance_for(self, kernel: Any) -> float:
        """Return δ for a kernel.

        Raises:
            ValueError: If it accepts whatever it proposes, or does not say what it should accept.
        """
        facts, name = facts_of(kernel), type(kernel).__name__
        if facts.needs_log_prob is False:
            raise ValueError(
                f"{name} has no acceptance to tune its step size to; choose that by its bias, with "
                "step_for_bias"
            )
        rate = (
            facts.target_acceptance if self.target_acceptance is None else self.target_acceptance
        )
        if rate is None:
            raise ValueError(
                f"{name} does not say which acceptance is best: give target_acceptance in (0, 1), or "
                "the kernel `facts` that say it"
            )
        return rate

    def _window(
        self, kernel: Any, n_steps: int, move: Move, keep: bool
    ) -> tuple[Any, list[Tensor]]:
        """Return the kernel with the averaged step and, to keep, the positions."""
        rate = self.acceptance_for(kernel)
        averaging, positions = DualAveraging.start(kernel.step_size, rate), []
        for _ in range(n_steps):
            moved = move(dataclasses.replace(kernel, step_size=math.exp(averaging.log_step)))
            if moved.acceptance is None:
                raise ValueError(
                    f"a step of {type(kernel).__name__} tells no acceptance, to which its step size "
                    "could be tuned"
                )
            averaging = averaging.update(float(moved.acceptance.mean()))
            if keep:
                positions.append(moved.x)
        return dataclasses.replace(kernel, step_size=math.exp(averaging.log_average)), positions


def windows(n_steps: int) -> Iterator[tuple[int, bool]]:
    """Yield the windows, of 10, 20, 40 … steps, and whether it is the last, a quarter of them."""
    last, length = n_steps // 4, 10
    left = n_steps - last
    while left:
        length = left if left < 3 * length else length  # no short window at the end
        yield length, False
        left, length = left - length, 2 * length
    yield last, True


def check_acceptance(target: float) -> None:
    """Raise `ValueError` unless 0 < target < 1."""
    if not 0 < target < 1:
        raise ValueError(f"target_acceptance must lie in (0, 1), got {target}")


def check_tunable(kernel: object, n_steps: int, preconditioner: bool) -> None:
    """Raise `ValueError` unless the kernel has what is tuned and there are steps enough."""
    fields = (
        {f.name for f in dataclasses.fields(kernel)} if dataclasses.is_dataclass(kernel) else {}
    )
    for name in ("step_size", "preconditioner") if preconditioner else ("step_size",):
        if name not in fields:
            raise ValueError(f"{type(kernel).__name__} has no field {name} that could be tuned")
    if not isinstance(getattr(kernel, "step_size"), float | int):  # noqa: B009
        raise ValueError("step_size must be one number; a schedule of steps is not tuned")
    if n_steps < 1:
        raise ValueError(f"n_steps must be at least 1, got {n_steps}")
    if preconditioner and n_steps < LEAST:
        raise ValueError(f"n_steps must be at least {LEAST} for a preconditioner, got {n_steps}")


def shrunk(seen: Welford) -> Preconditioner:
    """Return P from the positions seen.

    Raises:
        ValueError: If a coordinate did not move.
    """
    S, n = seen.covariance(), seen.count
    variances = S.diagonal() if seen.dense else S
    if not bool((torch.isfinite(variances) & (variances > 0)).all()):
        raise ValueError("a coordinate did not move at all; start from a smaller step_size")
    floor = 5e-3 / (n + 5) * variances.mean()
    S = n / (n + 5) * S
    if seen.dense:
        return Preconditioner(S + floor * torch.eye(len(S)).to(S), kind="matrix")
    return Preconditioner(S + floor, kind="diagonal")


@torch.no_grad()
def adapt_step_size(
    kernel: Kernel[Any, Any],
    target: Density,
    x0: Float[Tensor, "chain *event"],
    n_steps: int,
    target_acceptance: float | None = None,
    *,
    generator: Generator | None = None,
) -> tuple[Any, Any]:
    """Tune the step size of a Metropolis kernel to an acceptance, by `DualAveraging`.

    All chains share one step size: each step makes one update, with the mean of their acceptances.

    Arguments:
        kernel: Such as `MALA(h)` or `HMC(ε, n)`, a frozen dataclass with the step size to start at.
        target: The density.
        x0: Starting points.
        n_steps: Steps, which are a burn-in as well.
        target_acceptance: δ in (0, 1); by default that of the kernel's `facts`.
        generator: Where the noise comes from.

    Returns:
        The kernel with its new step size, fixed from now on, and the state: go on with
        `run(kernel, target, state.x, …)`.

    Raises:
        ValueError: If the kernel has no step size or no acceptance, if no acceptance to aim at is
            given or known, or for one outside (0, 1).
    """
    return _tuned(Adaptation(target_acceptance), kernel, target, x0, n_steps, generator)


@torch.no_grad()
def adapt_preconditioner(
    kernel: Kernel[Any, Any],
    target: Density,
    x0: Float[Tensor, "chain *event"],
    n_steps: int,
    target_acceptance: float | None = None,
    *,
    dense: bool = False,
    generator: Generator | None = None,
) -> tuple[Any, Any]:
    r"""Tune preconditioner and step size together, in windows that double in length: see `Adaptation`.

    Arguments:
        kernel: A Metropolis kernel with `step_size` and `preconditioner`: `MALA`, `HMC`.
        target: The density.
        x0: Starting points.
        n_steps: Steps in all; at least 40.
        target_acceptance: δ, as in `adapt_step_size`.
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


def choose_step(
    make: Callable[[float], Any],
    target: Density,
    x: Tensor,
    n_steps: int,
    *,
    bias: float = 0.05,
    generator: Generator | None = None,
) -> tuple[Any, str]:
    """Return a kernel with a step size that suits the target, and in words how it came about.

    Kernels that accept or reject are adapted to the acceptance of their facts; the others get the
    step whose relative bias of the variance is `bias` in the stiffest direction, from the curvature at
    the starting points.

    Arguments:
        make: Step size -> kernel.
        target: The density.
        x: Starting points, `(B, *event)`.
        n_steps: Steps of the adaptation.
        bias: As above.
        generator: Where noise comes from.

    Raises:
        ValueError: As `adapt_step_size` and `estimate_curvature`.
    """
    kernel = make(0.1)
    if kernel.facts.target_acceptance is not None:
        return adapt_step_size(kernel, target, x, n_steps, generator=generator)[0], "adapted"
    step = step_for_bias(estimate_curvature(target, x, generator=generator).L, bias)
    if isinstance(kernel, Splitting):  # a time: h²/2 compares with a step of the position
        step = math.sqrt(2 * step)
    return make(step), "from the curvature at the starting points"
