"""What kernels share: states, information about a step, treatment of non-finite numbers."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...core import (
    Density,
    Generator,
    NoiseSource,
    check_batch,
    check_finite,
    check_generator,
    check_kernel,
    check_number,
    check_option,
    check_points,
    check_same_shape,
    check_target,
    per_sample,
    rand_like,
)
from .preconditioner import as_preconditioner

Unadjusted = Literal["freeze", "raise"]
"""What an unadjusted kernel does with a chain that becomes NaN or infinite."""

Adjusted = Literal["reject", "raise"]
"""What a Metropolis kernel does with a proposal that is not finite."""


class LangevinState(NamedTuple):
    """Position and its score."""

    x: Float[Tensor, "chain *event"]
    score: Float[Tensor, "chain *event"]


class LangevinInfo(NamedTuple):
    """Information about an unadjusted step: whether the chain became NaN or infinite."""

    diverging: Bool[Tensor, " chain"]


class MetropolisState(NamedTuple):
    """Position, its score and its log-density (up to a constant)."""

    x: Float[Tensor, "chain *event"]
    score: Float[Tensor, "chain *event"]
    log_prob: Float[Tensor, " chain"]


class MetropolisInfo(NamedTuple):
    """Information about a Metropolis step of each chain; `acceptance` is the probability."""

    acceptance: Float[Tensor, " chain"]
    accepted: Bool[Tensor, " chain"]
    log_prob: Float[Tensor, " chain"]
    diverging: Bool[Tensor, " chain"]


S = TypeVar("S", bound=tuple[Tensor, ...])


# ---------------------------------------------------------------------------- arguments


def check_step(step_size: float | Tensor, *, per_chain: bool = False) -> None:
    """Raise `ValueError` unless h > 0 is finite; it may be `(chain,)` if `per_chain`."""
    if isinstance(step_size, Tensor) and per_chain:
        check_finite(step_size, "step_size")
        if step_size.ndim != 1 or not bool((step_size > 0).all()):
            raise ValueError("step_size must be one positive number, or one per chain")
    else:
        check_number(step_size, "step_size", above=0)


def check_shared(
    kernel: Any, policies: Any, *, per_chain: bool = False, schedule: bool = False
) -> None:
    """Raise `ValueError` for a step size, temperature or policy of a kernel out of its range.

    The policies are `Unadjusted`, or `Adjusted`, which needs τ > 0: at 0 there is no density to be
    reversible for. With `schedule` step sizes may be a function. A preconditioner becomes a
    `Preconditioner`.
    """
    if not (schedule and callable(kernel.step_size)):
        check_step(kernel.step_size, per_chain=per_chain)
    temperature = getattr(kernel, "temperature", 1.0)
    check_number(temperature, "temperature", least=0)
    if temperature == 0 and policies is Adjusted:
        raise ValueError(
            f"{type(kernel).__name__} needs temperature > 0; "
            "for gradient flow use ULA(temperature=0)"
        )
    check_option(kernel.on_nonfinite, "on_nonfinite", policies)
    if hasattr(kernel, "preconditioner"):
        object.__setattr__(kernel, "preconditioner", as_preconditioner(kernel.preconditioner))


def per_chain(step_size: float | Tensor, x: Tensor) -> Float[Tensor, " chain"]:
    """Return the step size of every chain.

    Raises:
        ValueError: If the number of step sizes is not that of the chains.
    """
    return per_sample(step_size, x, "step_size").reshape(-1).expand(len(x))


# ---------------------------------------------------------------------------- pieces of a step

GOLDEN = (math.sqrt(5) - 1) / 2


def jittered_length(n: int, k: int) -> int:
    r"""Return the length of path number k, uniform on 1 … 2n − 1 in the long run.

    .. math:: n_k = 1 + \lfloor (2n - 1)\, \{k φ\} \rfloor, \quad φ = (\sqrt 5 - 1)/2

    with the fractional part {·}. The lengths do not depend on the state, so each step leaves the
    density invariant. They are the same for all chains, so that no work is wasted, and they fill 1
    … 2n − 1 more evenly than random lengths.
    """
    return 1 + int((2 * n - 1) * (k * GOLDEN % 1.0))


def step_of(step_size: float | Tensor, x: Tensor) -> float | Tensor:
    """Return a step size that multiplies x: a number, or one for each chain in a shape that does."""
    if not isinstance(step_size, Tensor) or step_size.ndim == x.ndim:
        return step_size
    return per_sample(step_size, x, "step_size")


def moved(x: Tensor, h: float | Tensor, v: Tensor) -> Tensor:
    """Return x + h v, with h as `step_of` returns it."""
    return torch.addcmul(x, h, v) if isinstance(h, Tensor) else torch.add(x, v, alpha=h)


def langevin_step(
    x: Tensor, score: Tensor, h: float | Tensor, z: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return x + h s(x) + √(2 h τ) z."""
    if isinstance(h, Tensor):
        h = per_sample(h, x, "step_size")
        return x + h * score + (2 * temperature * h).sqrt() * z
    return torch.add(x, score, alpha=h).add_(z, alpha=math.sqrt(2 * h * temperature))


def finite(x: Tensor) -> Bool[Tensor, " chain"]:
    """Return which chains have finite numbers only."""
    return torch.isfinite(x).reshape(len(x), -1).all(1)


def all_finite(fields: tuple[Tensor, ...]) -> bool:
    """Return in one pass whether all numbers are finite; False if they may merely be large.

    A sum is finite only if every term is: ∞ − ∞ is NaN. Also False on a device, where reading a
    number waits for it: treating each chain separately costs less.
    """
    if fields[0].device.type != "cpu":
        return False
    return all(math.isfinite(field.sum().item()) for field in fields)


def scored(x: Tensor, target: Density) -> Tensor:
    """Return the score at x, refusing one of another shape."""
    score = target.score(x)
    check_same_shape(score, x, "the score")
    return score


def evaluated(x: Tensor, target: Density) -> tuple[Tensor, Tensor]:
    """Return log-density and score at x, from one evaluation where the target can do that."""
    both = getattr(target, "log_prob_and_score", None)
    if both is None:
        return target.log_prob(x), scored(x, target)
    log_prob, score = both(x)
    check_same_shape(score, x, "the score")
    return log_prob, score


def started(
    kernel: Any, x: Tensor, target: Density, generator: Generator | None, *, wait: bool = True
) -> Any:
    """Return the state at x, with a momentum from its law where the kernel has one.

    Without `wait` it is not looked whether an x on a device is finite.
    """
    check_kernel(kernel)
    check_target(target)
    check_points(x, "x0", wait=wait)
    check_generator(generator, NoiseSource)
    state = kernel.init(x, target)
    refresh = getattr(kernel, "refresh", None)
    return state if refresh is None else refresh(state, generator=generator)


def langevin_start(x: Tensor, target: Density) -> LangevinState:
    """Return position and score where a chain starts."""
    check_batch(x, name="x0")
    return LangevinState(*_alike(x, scored(x, target)))


class Overdamped:
    """What kernels share whose state is position and score: each says in `_next` where a step leads."""

    def __post_init__(self) -> None:
        check_shared(self, Unadjusted)

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> LangevinState:
        """Return the state at x."""
        return langevin_start(x, target)

    def step(
        self, state: LangevinState, target: Density, *, generator: Generator | None = None
    ) -> tuple[LangevinState, LangevinInfo]:
        """Move every chain by one step."""
        x, kernel = self._next(state, generator), cast(Any, self)
        return settle(LangevinState(x, scored(x, target)), state, kernel.on_nonfinite)

    def _next(self, state: LangevinState, generator: Generator | None) -> Tensor:
        raise NotImplementedError


def _alike(x: Tensor, score: Tensor) -> tuple[Tensor, Tensor]:
    """Lay x out in memory as its score is, so that the steps to come do not mix two orders."""
    return x if x.stride() == score.stride() else torch.empty_like(score, dtype=x.dtype).copy_(
        x
    ), score


def metropolis_start(x: Tensor, target: Density) -> MetropolisState:
    """Return position, score and log-density at the start of the chains.

    Raises:
        ValueError: If the target has no log-density, or that or the score is not finite at x.
    """
    check_points(x, "x0")
    log_prob, score = evaluated(x, target)
    for name, ok in (("log-density", torch.isfinite(log_prob)), ("score", finite(score))):
        if not bool(ok.all()):
            raise ValueError(
                f"the {name} is not finite at {int((~ok).sum())} of {len(x)} starting points; "
                "start where the density is positive and smooth"
            )
    return MetropolisState(*_alike(x, score), log_prob)


class Metropolised:
    """What kernels share whose state is position, score and log-density."""

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> MetropolisState:
        """Return the state at x.

        Raises:
            ValueError: If the target has no log-density, or it is not finite at x.
        """
        return metropolis_start(x, target)


def select(take: Tensor, new: S, old: S) -> S:
    """Return the new state for the chains in `take` and the old one for the others."""
    fields = (
        torch.where(take.reshape(-1, *[1] * (a.ndim - 1)), a, b)
        for a, b in zip(new, old, strict=True)
    )
    return cast(S, getattr(type(new), "_make", tuple)(fields))


def settle(new: S, old: S, on_nonfinite: Unadjusted) -> tuple[S, LangevinInfo]:
    """Return the new state where all of it is finite; elsewhere the old one, or raise an error.

    Raises:
        FloatingPointError: For `on_nonfinite="raise"`, if a chain became NaN or infinite.
    """
    if all_finite(new):
        return new, LangevinInfo(torch.zeros(len(new[0]), dtype=torch.bool, device=new[0].device))
    ok = torch.stack([finite(field) for field in new]).all(0)
    if on_nonfinite == "raise":
        if not bool(ok.all()):
            raise FloatingPointError(
                f"{int((~ok).sum())} of {len(ok)} chains became NaN or infinite; "
                "use a smaller step_size"
            )
        return new, LangevinInfo(diverging=~ok)
    return select(ok, new, old), LangevinInfo(diverging=~ok)


def proposed(y: Tensor, target: Density) -> MetropolisState:
    """Return the state at y."""
    log_prob, score = evaluated(y, target)
    return MetropolisState(y, score, log_prob)


def decided(
    log_ratio: Float[Tensor, " chain"],
    proposal: MetropolisState,
    state: MetropolisState,
    on_nonfinite: Adjusted,
    generator: Generator | None,
) -> tuple[MetropolisState, MetropolisInfo]:
    """Accept each proposal with probability min(1, exp(log_ratio)), or stay."""
    acceptance, accepted, diverging = metropolis(
        log_ratio, proposal[:2], proposal.log_prob, on_nonfinite, generator
    )
    kept = select(accepted, proposal, state)
    return kept, MetropolisInfo(acceptance, accepted, kept.log_prob, diverging)


def metropolis(
    log_ratio: Float[Tensor, " chain"],
    proposal: tuple[Tensor, ...],
    log_prob: Float[Tensor, " chain"],
    on_nonfinite: Adjusted,
    generator: Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Accept each proposal with probability min(1, exp(log_ratio)).

    A proposal outside the support, log p = −∞ with everything else finite, is an ordinary
    rejection.

    Arguments:
        log_ratio: Logarithm of the Metropolis-Hastings ratio.
        proposal: What must be finite besides the log-density: position, score, momentum.
        log_prob: Log-density at the proposal.
        on_nonfinite: What to do if something is not finite.
        generator: Source of the uniform numbers.

    Returns:
        The probability of acceptance, which chains accepted, and whose proposal was not finite.

    Raises:
        FloatingPointError: For `on_nonfinite="raise"`, if a proposal was not finite.
    """
    if all_finite((*proposal, log_ratio)):  # mostly; the log-density is a part of the ratio
        acceptance = log_ratio.clamp(max=0.0).exp()
        accepted = rand_like(acceptance, generator) < acceptance
        return acceptance, accepted, torch.zeros_like(accepted)
    outside = log_prob == -torch.inf
    ok = torch.ones_like(outside)
    if not all_finite(proposal):
        ok = torch.stack([finite(field) for field in proposal]).all(0)
    ok = ok & (outside | torch.isfinite(log_ratio) & torch.isfinite(log_prob))
    if on_nonfinite == "raise" and not bool(ok.all()):
        raise FloatingPointError(
            f"{int((~ok).sum())} of {len(ok)} proposals were not finite; use a smaller step_size"
        )
    acceptance = torch.where(ok & ~outside, log_ratio, -torch.inf).clamp(max=0.0).exp()
    accepted = rand_like(acceptance, generator) < acceptance
    return acceptance, accepted, ~ok
