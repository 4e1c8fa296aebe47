r"""Parallel tempering: replicas at several temperatures that are swapped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ...core import (
    Density,
    Generator,
    Kernel,
    check_batch,
    check_count,
    check_function,
    check_kind,
    check_number,
    rand_like,
)
from .facts import Facts, facts_of
from .overdamped import MALA
from .steps import MetropolisState, check_step


class TemperingState(NamedTuple):
    """The coldest replica (x, its score and log-density), all replicas, and their origin.

    Entry r of `replicas` is the one at temperature r; `origin` says at which temperature it
    started. The number of the step is in host memory.
    """

    x: Float[Tensor, "chain *event"]
    score: Float[Tensor, "chain *event"]
    log_prob: Float[Tensor, " chain"]
    replicas: Float[Tensor, "chain ladder *event"]
    scores: Float[Tensor, "chain ladder *event"]
    log_probs: Float[Tensor, "chain ladder"]
    origin: Int64[Tensor, "chain ladder"]
    step: Int64[Tensor, " chain"]


class TemperingInfo(NamedTuple):
    """Information about a step of every chain, and about every pair of neighbours on its ladder.

    `swap_acceptance` is the probability of a swap where `proposed`, and 0 elsewhere.
    """

    log_prob: Float[Tensor, " chain"]
    swap_acceptance: Float[Tensor, "chain pair"]
    proposed: Bool[Tensor, "chain pair"]
    origin: Int64[Tensor, "chain ladder"]
    diverging: Bool[Tensor, " chain"]


def swap_log_ratio(
    log_probs: Float[Tensor, "chain ladder"], temperatures: Float[Tensor, " ladder"]
) -> Float[Tensor, "chain pair"]:
    r"""Return (1/τ_i − 1/τ_{i+1}) (log p(x_{i+1}) − log p(x_i)) for all neighbours."""
    return -(1 / temperatures).diff() * log_probs.diff(dim=1)


def _coldest(kernel: Any, precision: Tensor) -> Tensor:
    """Return τ Λ⁻¹."""
    return kernel.temperatures[0] * torch.linalg.inv(precision)


@dataclass(frozen=True)
class ParallelTempering:
    r"""Parallel tempering with non-reversible (even, then odd) swaps.

    .. math::
        x_i \sim p^{1/τ_i}, \quad x_i \leftrightarrow x_{i+1} \text{ with probability }
        \min\left(1, e^{(1/τ_i - 1/τ_{i+1})(\log p(x_{i+1}) - \log p(x_i))}\right)

    One chain is a ladder of R replicas, and x is the coldest. In a step each replica is moved by
    the kernel of its temperature, and after every `swap_every`-th step swaps are proposed: for the
    pairs (0, 1), (2, 3), …, and the next time for (1, 2), (3, 4), …. The alternation carries
    replicas through the ladder in one direction instead of to and fro. The product of p^{1/τ_i} is
    exactly invariant. All replicas start at x; a chain is flagged `diverging` if one of its
    replicas is.

    References:
        | Non-Reversible Parallel Tempering: a Scalable Highly Parallel MCMC Scheme
          (Syed et al., 2022)
        | https://arxiv.org/abs/1905.02939

    Arguments:
        step_size: h > 0 for all temperatures, or one for each. One h suits all if p is Gaussian:
            the noise of MALA at τ has variance 2hτ, and grows with the width of p^{1/τ}.
        temperatures: τ_0 < τ_1 < …, the first of them that of the target law, usually 1.
        swap_every: Number of steps between rounds of swaps.
        kernel: h, τ -> a kernel that leaves p^{1/τ} invariant and whose state is position, score
            and log-density (`MetropolisState`), such as `MALA`.

    Raises:
        ValueError: For temperatures that do not rise, or step sizes that do not fit.
    """

    step_size: float | tuple[float, ...]
    temperatures: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    swap_every: int = 1
    kernel: Callable[[float, float], Kernel[Any, Any]] = MALA

    def __post_init__(self) -> None:
        ladder = self.temperatures
        check_kind(ladder, "temperatures", tuple, "a tuple of numbers")
        for tau in ladder:
            check_number(tau, "temperatures", above=0)
        if not ladder or any(b <= a for a, b in pairwise(ladder)):
            raise ValueError(f"temperatures must be positive and increasing, got {ladder}")
        check_count(self.swap_every, "swap_every")
        check_function(self.kernel, "kernel")
        if isinstance(self.step_size, tuple) and len(self.step_size) != len(ladder):
            raise ValueError(
                f"step_size must be a number or one for each of {len(ladder)} temperatures, "
                f"got {len(self.step_size)}"
            )
        for h in self.step_sizes:
            check_step(h)

    @property
    def step_sizes(self) -> tuple[float, ...]:
        """The step size at every temperature."""
        if isinstance(self.step_size, tuple):
            return self.step_size
        return (self.step_size,) * len(self.temperatures)

    @property
    def facts(self) -> Facts:
        """What is known of it: exact if its kernels are, and draws what they draw, and swaps."""
        steps = zip(self.step_sizes, self.temperatures, strict=True)
        inner = [facts_of(self.kernel(h, tau)) for h, tau in steps]
        draws = [f.draws for f in inner if f.draws is not None]
        exact = all(f.exact for f in inner) or None
        return Facts(
            affine=False, stationary=_coldest if exact else None, order=None, reversible=False,
            exact=exact, draws=1 + sum(draws) if len(draws) == len(inner) else None,
            target_acceptance=None, needs_log_prob=True,
        )  # fmt: skip

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> TemperingState:
        """Return the state with all replicas at x.

        Raises:
            ValueError: For a target without log-density, one that is not finite at x, or a kernel
                with a different kind of state, which could not be swapped.
        """
        check_batch(x, name="x0")
        inner = self.kernel(self.step_sizes[0], self.temperatures[0]).init(x, target)
        if not isinstance(inner, MetropolisState):
            raise ValueError(
                "kernel must have a Metropolis correction and no momentum, such as "
                f"MALA; got one with state {type(inner).__name__}"
            )
        R = len(self.temperatures)
        replicas, scores, log_probs = (torch.stack([v] * R, 1) for v in inner)
        origin = torch.arange(R, device=x.device).repeat(len(x), 1)
        step = torch.zeros(len(x), dtype=torch.long, device="cpu")  # read without a wait
        return TemperingState(*inner, replicas, scores, log_probs, origin, step)

    def step(
        self, state: TemperingState, target: Density, *, generator: Generator | None = None
    ) -> tuple[TemperingState, TemperingInfo]:
        """Move every replica by one step of its kernel, and swap where it is time."""
        moved, diverging = self._move(state, target, generator)
        x, score, log_prob = (torch.stack(v, 1) for v in zip(*moved, strict=True))
        taus = torch.tensor(self.temperatures, dtype=log_prob.dtype)
        taus = taus.to(log_prob.device, non_blocking=True)
        number = state.step.cpu()  # of a run that goes on it may have been moved
        k = int(number[0]) + 1  # chains of one state have taken equally many steps
        pair = torch.arange(len(taus) - 1, device=x.device)
        proposed = torch.zeros_like(pair, dtype=torch.bool)
        if k % self.swap_every == 0:
            proposed = pair % 2 == (k // self.swap_every - 1) % 2
        ratio = swap_log_ratio(log_prob, taus)
        acceptance = torch.where(proposed, ratio.clamp(max=0.0).exp(), 0.0)
        accepted = rand_like(acceptance, generator) < acceptance
        # pairs of one round do not touch, so that one permutation makes all their swaps
        order = torch.arange(len(taus), device=x.device).repeat(len(x), 1)
        order[:, :-1] += accepted.long()
        order[:, 1:] -= accepted.long()
        x, score, log_prob, origin = (
            _permute(v, order) for v in (x, score, log_prob, state.origin)
        )
        new = TemperingState(
            *(x[:, 0], score[:, 0], log_prob[:, 0], x, score, log_prob),
            origin=origin,
            step=number + 1,
        )
        info = TemperingInfo(
            new.log_prob, acceptance, proposed.expand_as(acceptance), origin, diverging
        )
        return new, info

    def _move(
        self, state: TemperingState, target: Density, generator: Generator | None
    ) -> tuple[list[MetropolisState], Tensor]:
        """Step each replica with its kernel; a chain diverges where one of its replicas does."""
        moved, diverging = [], torch.zeros_like(state.log_prob, dtype=torch.bool)
        for r, (h, tau) in enumerate(zip(self.step_sizes, self.temperatures, strict=True)):
            old = (state.replicas[:, r], state.scores[:, r], state.log_probs[:, r])
            kernel = self.kernel(h, tau)
            new, info = kernel.step(MetropolisState(*old), target, generator=generator)
            moved.append(new)
            diverging = diverging | info.diverging
        return moved, diverging


def _permute(values: Tensor, order: Int64[Tensor, "chain ladder"]) -> Tensor:
    """Return values[b, order[b, r]] for every chain b and place r."""
    index = order.reshape(*order.shape, *[1] * (values.ndim - 2)).expand_as(values)
    return values.gather(1, index)
