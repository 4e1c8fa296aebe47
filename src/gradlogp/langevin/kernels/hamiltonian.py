r"""Metropolised kernels with a position and a momentum q: HMC and GHMC.

The energy is H(x, q) = −log p(x) + ½ qᵀ P q with the inverse mass P, and a leapfrog step of size ε

.. math:: q \leftarrow q + \tfrac{ε}{2} s(x), \quad x \leftarrow x + ε P q, \quad
    q \leftarrow q + \tfrac{ε}{2} s(x)

preserves volume and is undone by reversing q, so that accepting with probability min(1,
exp(−ΔH/τ)) leaves the law with density exp(−H/τ) invariant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ...core import Density, Generator, check_count, randn_like, sum_event
from .facts import HAMILTONIAN, LANGEVIN, Facts, metropolis_facts
from .preconditioner import IDENTITY, Preconditioner, as_preconditioner
from .steps import (
    Adjusted,
    check_shared,
    evaluated,
    jittered_length,
    metropolis,
    metropolis_start,
    moved,
    scored,
    select,
    step_of,
)
from .underdamped import check_kinetic, refresh, thermal

ENERGY_ERROR = 1000.0
"""Growth of H/τ along a path from which the path is said to have diverged, as in Stan."""


class HamiltonianInfo(NamedTuple):
    """Information about a Metropolis step with momentum; `energy` is H at the new state."""

    acceptance: Float[Tensor, " chain"]
    accepted: Bool[Tensor, " chain"]
    log_prob: Float[Tensor, " chain"]
    diverging: Bool[Tensor, " chain"]
    energy: Float[Tensor, " chain"]


class PhaseState(NamedTuple):
    """Position, its score and log-density (up to a constant), and the momentum."""

    x: Float[Tensor, "chain *event"]
    score: Float[Tensor, "chain *event"]
    log_prob: Float[Tensor, " chain"]
    momentum: Float[Tensor, "chain *event"]


def energy(state: PhaseState, P: Preconditioner) -> Float[Tensor, " chain"]:
    """Return H(x, q) = −log p(x) + ½ qᵀ P q."""
    return sum_event(state.momentum * P.apply(state.momentum)) / 2 - state.log_prob


def leapfrog(
    state: PhaseState, target: Density, step_size: float | Tensor, n_steps: int, P: Preconditioner
) -> PhaseState:
    """Return the state after n leapfrog steps, of one size or `(chain,)`; each costs one score."""
    h = step_of(step_size, state.x)
    x, q = state.x, moved(state.momentum, h / 2, state.score)
    for _ in range(n_steps - 1):
        x = moved(x, h, P.apply(q))
        q = moved(q, h, scored(x, target))
    x = moved(x, h, P.apply(q))
    log_prob, score = evaluated(x, target)
    return PhaseState(x, score, log_prob, moved(q, h / 2, score))


class _Decided(NamedTuple):
    """Whether proposals were accepted, and the energy of what was kept."""

    acceptance: Tensor
    accepted: Tensor
    diverging: Tensor
    energy: Tensor


def _decided(
    state: PhaseState,
    proposal: PhaseState,
    P: Preconditioner,
    tau: float,
    on_nonfinite: Adjusted,
    generator: Generator | None,
) -> _Decided:
    """Accept or stay."""
    before, after = energy(state, P), energy(proposal, P)
    log_ratio = (before - after) / tau
    acceptance, accepted, diverging = metropolis(
        log_ratio,
        (proposal.x, proposal.score, proposal.momentum),
        proposal.log_prob,
        on_nonfinite,
        generator,
    )
    diverging = diverging | ((log_ratio < -ENERGY_ERROR) & torch.isfinite(after))
    return _Decided(acceptance, accepted, diverging, torch.where(accepted, after, before))


class HMCState(NamedTuple):
    """Position, its score and log-density, and the number of the step, the same for all chains.

    The number is in host memory, so that it can be read without a wait for a device.
    """

    x: Float[Tensor, "chain *event"]
    score: Float[Tensor, "chain *event"]
    log_prob: Float[Tensor, " chain"]
    number: Int[Tensor, " chain"]


@dataclass(frozen=True)
class HMC:
    r"""Hamiltonian Monte Carlo: a new momentum, n leapfrog steps, then accept or stay.

    .. math:: q \sim N(0, τ P^{-1}), \quad (x, q) \to (x', q') \text{ by leapfrog}, \quad
        a = \min(1, \exp(-(H(x', q') - H(x, q))/τ)), \quad
        H(x, q) = -\log p(x) + \tfrac12 q^\top P q

    It leaves p^{1/τ} exactly invariant. One leapfrog step of size √(2h) is `MALA` with step h and
    the same preconditioner. A proposal outside the support is rejected like any other; one that is
    otherwise not finite, or whose energy grows by more than 1000 τ, is rejected and flagged
    `diverging`.

    With `jitter` the number of leapfrog steps runs through 1 … 2n − 1 (`jittered_length`). Without
    it every path has the same length. If this is close to half a turn for a direction of the
    density, that direction is hardly sampled, at an acceptance of 1: on N(0, I) a leapfrog step
    rotates by arccos(1 − ε²/2), so that HMC(1, 3) without jitter sends x to −x forever.

    References:
        | Hybrid Monte Carlo (Duane, Kennedy, Pendleton & Roweth, 1987)
        | https://doi.org/10.1016/0370-2693(87)91197-X
        | MCMC Using Hamiltonian Dynamics (Neal, 2011)
        | https://arxiv.org/abs/1206.1901
        | An Adaptive-MCMC Scheme for Setting Trajectory Lengths in Hamiltonian Monte Carlo
          (Hoffman, Radul & Sountsov, 2021): the jitter by a low-discrepancy sequence
        | https://proceedings.mlr.press/v130/hoffman21a.html

    Arguments:
        step_size: ε > 0, the time of one leapfrog step; it corresponds to √(2h) for a Langevin h.
            A tensor `(chain,)` while it is tuned.
        n_leapfrog: n, the mean number of leapfrog steps, one score each.
        preconditioner: The inverse mass P, a constant: a number, a diagonal in the shape of an
            event, a symmetric positive definite matrix, or a `Preconditioner`.
        temperature: τ > 0: samples p^{1/τ}.
        jitter: Whether the number of leapfrog steps changes from step to step.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a flag.

    Examples:
        >>> target, g = glp.Gaussian(torch.zeros(2)), torch.Generator().manual_seed(0)
        >>> chain = glp.run(glp.langevin.HMC(0.5, 4), target, torch.zeros(100, 2), 50, generator=g)
        >>> abs(float(chain.draws[:, 10:].var()) - 1.0) < 0.1
        True
    """

    step_size: float | Tensor
    n_leapfrog: int
    preconditioner: Preconditioner | Tensor | float = IDENTITY
    temperature: float = 1.0
    jitter: bool = True
    on_nonfinite: Adjusted = "reject"

    def __post_init__(self) -> None:
        check_shared(self, Adjusted, per_chain=True)
        check_count(self.n_leapfrog, "n_leapfrog")

    @property
    def facts(self) -> Facts:
        """What is known of it; with one leapfrog step it is `MALA`, and tuned as that."""
        return metropolis_facts(
            HAMILTONIAN if self.n_leapfrog > 1 else LANGEVIN, step_per_chain=True
        )

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> HMCState:
        """Return the state at x.

        Raises:
            ValueError: If the target has no log-density, or that or the score is not finite at x.
        """
        start = metropolis_start(x, target)
        return HMCState(*start, torch.zeros(len(x), dtype=torch.long, device="cpu"))

    def step(
        self, state: HMCState, target: Density, *, generator: Generator | None = None
    ) -> tuple[HMCState, HamiltonianInfo]:
        """Move every chain by one step."""
        P, tau, n = as_preconditioner(self.preconditioner), self.temperature, self.n_leapfrog
        momentum = tau**0.5 * P.momentum(randn_like(state.x, generator))
        start = PhaseState(*state[:3], momentum)
        number = state.number.cpu()  # of a run that goes on it may have been moved
        if self.jitter and n > 1:
            n = jittered_length(n, int(number[0]))
        proposal = leapfrog(start, target, self.step_size, n, P)
        found = _decided(start, proposal, P, tau, self.on_nonfinite, generator)
        kept = HMCState(*select(found.accepted, proposal[:3], state[:3]), number + 1)
        return kept, HamiltonianInfo(*found[:2], kept.log_prob, *found[2:])


@dataclass(frozen=True)
class GHMC:
    r"""Generalised HMC: the Metropolised `OBABO`, which keeps most of its momentum.

    Friction for h/2, one leapfrog step of size h that is accepted with probability
    min(1, exp(−ΔH/τ)), friction for h/2, where

    .. math:: \text{friction for } t: q \leftarrow e^{-γ t} q + \sqrt{τ m (1 - e^{-2 γ t})}\, z

    On a rejection x stays and the momentum is reversed: otherwise the law would not be invariant.
    It leaves exp(−H/τ), that is p^{1/τ} in x and N(0, τ m I) in the momentum, exactly invariant,
    and is reversible up to the sign of the momentum. Momenta start from their law, by `refresh`. A
    proposal outside the support is rejected like any other; one that is otherwise not finite is
    also flagged `diverging`.

    References:
        | A Generalized Guided Monte Carlo Algorithm (Horowitz, 1991)
        | https://doi.org/10.1016/0370-2693(91)90812-5

    Arguments:
        step_size: h > 0, a time.
        friction: γ > 0; infinity draws a new momentum, which makes it `MALA` with step h²/(2m).
        mass: m > 0.
        temperature: τ > 0: samples p^{1/τ}.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a flag.
    """

    step_size: float
    friction: float = 1.0
    mass: float = 1.0
    temperature: float = 1.0
    on_nonfinite: Adjusted = "reject"

    facts: ClassVar[Facts] = metropolis_facts(LANGEVIN, draws=3, partial_refresh=True)

    def __post_init__(self) -> None:
        check_shared(self, Adjusted)
        check_kinetic(self.friction, self.mass)

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> PhaseState:
        """Return the state at x with momentum 0; `refresh` draws it.

        Raises:
            ValueError: If the target has no log-density, or it is not finite at x.
        """
        return PhaseState(*metropolis_start(x, target), torch.zeros_like(x))

    def refresh(self, state: PhaseState, *, generator: Generator | None = None) -> PhaseState:
        """Return the state with momenta from their law, N(0, τ m I)."""
        tau_m = self.temperature * self.mass
        return state._replace(momentum=thermal(state.x, tau_m, generator))

    def step(
        self, state: PhaseState, target: Density, *, generator: Generator | None = None
    ) -> tuple[PhaseState, HamiltonianInfo]:
        """Move every chain by one step."""
        h, tau, P = self.step_size, self.temperature, Preconditioner(1 / self.mass)
        state = self._rub(state, generator)
        proposal = leapfrog(state, target, h, 1, P)
        found = _decided(state, proposal, P, tau, self.on_nonfinite, generator)
        # on a rejection the momentum is turned round
        kept = select(found.accepted, proposal, state._replace(momentum=-state.momentum))
        info = HamiltonianInfo(*found[:2], kept.log_prob, *found[2:])
        return self._rub(kept, generator), info

    def _rub(self, state: PhaseState, generator: Generator | None) -> PhaseState:
        z = randn_like(state.x, generator)
        t, tau_m = self.step_size / 2, self.temperature * self.mass
        return state._replace(momentum=refresh(state.momentum, z, self.friction, t, tau_m))
