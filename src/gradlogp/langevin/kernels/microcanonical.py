r"""Microcanonical Langevin dynamics: velocities of length 1 that the score turns.

.. math:: dx = u\, dτ, \quad du = \frac{(I - u u^\top)\, s(x)}{d - 1}\, dτ, \quad \|u\| = 1

leaves p(x) times the uniform law of u on the sphere invariant: the energy determines not the speed
but the time spent in a place. Both of its parts are solved exactly,

.. math::
    A_h: x \leftarrow x + h\, u, \quad
    B_h: u \leftarrow \frac{u + e\, (\sinh δ + c\, (\cosh δ - 1))}{D}, \quad
    D = \cosh δ + c \sinh δ, \quad δ = \frac{h \|s\|}{d - 1}, \quad e = \frac{s}{\|s\|}, \quad
    c = e \cdot u

and B changes volume on the sphere by D^{−(d−1)}. With K = (d−1) Σ log D the energy of a path is
off by W = K − log p(x') + log p(x), which is 0 in continuous time. With a preconditioner P
everything is done in y = P^{−1/2} x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ...core import (
    Density,
    Generator,
    check_count,
    check_number,
    check_option,
    per_sample,
    randn_like,
    sum_event,
)
from .facts import HAMILTONIAN, Facts, metropolis_facts, own_covariance
from .preconditioner import IDENTITY, Preconditioner, as_preconditioner
from .steps import (
    Adjusted,
    Unadjusted,
    check_shared,
    evaluated,
    jittered_length,
    metropolis,
    metropolis_start,
    per_chain,
    scored,
    select,
    settle,
)

Integrator = Literal["leapfrog", "minimal norm", "two-stage"]
"""How A and B take turns: B(h/2) A(h) B(h/2), or B(λh) A(h/2) B((1−2λ)h) A(h/2) B(λh)."""

LAMBDA = {"minimal norm": 0.1931833275037836, "two-stage": (3 - math.sqrt(3)) / 6}


class MicrocanonicalState(NamedTuple):
    """Position, its score and log-density (up to a constant), and the direction u in y."""

    x: Float[Tensor, "chain *event"]
    score: Float[Tensor, "chain *event"]
    log_prob: Float[Tensor, " chain"]
    direction: Float[Tensor, "chain *event"]


class AdjustedState(NamedTuple):
    """As `MicrocanonicalState`, and how many steps were taken, in host memory."""

    x: Float[Tensor, "chain *event"]
    score: Float[Tensor, "chain *event"]
    log_prob: Float[Tensor, " chain"]
    direction: Float[Tensor, "chain *event"]
    step: Int64[Tensor, " chain"]


class MicrocanonicalInfo(NamedTuple):
    """Information about a step: the change W of the energy, by which the step size is tuned."""

    log_prob: Float[Tensor, " chain"]
    energy_change: Float[Tensor, " chain"]
    diverging: Bool[Tensor, " chain"]


class AdjustedInfo(NamedTuple):
    """Information about a Metropolis step; `energy_change` is that of the proposal."""

    acceptance: Float[Tensor, " chain"]
    accepted: Bool[Tensor, " chain"]
    log_prob: Float[Tensor, " chain"]
    energy_change: Float[Tensor, " chain"]
    diverging: Bool[Tensor, " chain"]


# ---------------------------------------------------------------------------- the two parts


def turned(
    u: Float[Tensor, "chain *event"],
    score: Float[Tensor, "chain *event"],
    t: Float[Tensor, " chain"],
) -> tuple[Float[Tensor, "chain *event"], Float[Tensor, " chain"]]:
    r"""Return u after the map B for time t, and (d − 1) log D.

    B is a flow along great circles: tan(θ'/2) = e^{−δ} tan(θ/2) for the angle θ between u and s. With

    .. math::
        q = \tfrac12 \|e + u\|^2, \quad m = \tfrac12 \|e - u\|^2, \quad
        a = δ + \tfrac12 \log(q/m), \quad
        u' = \tanh(a)\, e + \mathrm{sech}(a)\, n, \quad
        D = \tfrac12 (q\, e^{δ} + m\, e^{-δ})

    where n is the unit vector of u − c e, so that u' has length 1 whatever the length of u. No
    term overflows, and none cancels if u is opposite to s: cosh δ overflows at δ > 710, or 89 in
    float32, and 1 + c loses all digits there.
    """
    rest = u[0].numel() - 1
    g = score.flatten(1).norm(dim=1)
    e = score / per_sample(torch.where(g > 0, g, 1.0), score)
    delta = t * g / rest
    q, m = sum_event((e + u).square()) / 2, sum_event((e - u).square()) / 2
    n = u - per_sample((q - m) / 2, u) * e
    length = n.flatten(1).norm(dim=1)
    a = delta + (q.log() - m.log()) / 2
    sech = torch.where(length > 0, 1 / (a.cosh() * length), 0.0)
    end = per_sample(a.tanh(), u) * e + per_sample(sech, u) * n
    log_d = torch.logaddexp(q.log() + delta, m.log() - delta) - math.log(2)
    return end, torch.where(g == 0, 0.0, rest * log_d)  # where s = 0, end is u and D is 1


def partly_renewed(
    u: Float[Tensor, "chain *event"],
    z: Float[Tensor, "chain *event"],
    t: Float[Tensor, " chain"],
    decoherence_length: float,
) -> Float[Tensor, "chain *event"]:
    r"""Return (u + ν z)/‖u + ν z‖ with ν² = (e^{2t/L} − 1)/d; at L = 0 a new direction.

    Its law depends only on the angle, so that the uniform law is invariant for any ν. The mean of
    u·u' tends to e^{−t/L} as d grows.
    """
    d, decay = (
        u[0].numel(),
        (-2 * t / decoherence_length if decoherence_length else -torch.inf * t),
    )
    total = 1 + (d - 1) * decay.exp()
    old, new = (d * decay.exp() / total).sqrt(), (-decay.expm1() / total).sqrt()
    end = per_sample(old, u) * u + per_sample(new, u) * z
    return end / per_sample(end.flatten(1).norm(dim=1), u)


class _Moved(NamedTuple):
    """Where a path ends, and its K."""

    x: Tensor
    score: Tensor
    log_prob: Tensor
    direction: Tensor
    work: Tensor


def path(
    state: MicrocanonicalState | AdjustedState,
    target: Density,
    h: Float[Tensor, " chain"],
    n_steps: int,
    integrator: Integrator,
    P: Preconditioner,
) -> _Moved:
    """Return where n steps lead; B at the end of one and the start of the next are done in one."""
    x, score, u = state.x, state.score, state.direction
    edge = LAMBDA.get(integrator)
    kicks, drift = ([0.5, 0.5], 1.0) if edge is None else ([edge, 1 - 2 * edge, edge], 0.5)
    times = [*(kicks[:-1] * n_steps), kicks[-1]]
    times[len(kicks) - 1 : -1 : len(kicks) - 1] = [2 * kicks[0]] * (n_steps - 1)
    work = torch.zeros_like(h)
    for i, part in enumerate(times):
        if i:
            x = x + per_sample(drift * h, x) * P.sqrt(u)
            if i < len(times) - 1:
                score = scored(x, target)
            else:
                log_prob, score = evaluated(x, target)
        u, change = turned(u, P.pull_back(score), part * h)
        work = work + change
    return _Moved(x, score, log_prob, u, work)


# ---------------------------------------------------------------------------- kernels


def _check(kernel: MCLMC | AdjustedMCLMC, policies: Any) -> None:
    check_shared(kernel, policies, per_chain=True)
    check_option(kernel.integrator, "integrator", Integrator)
    why = ": a direction that is never renewed stays on one path"
    check_number(kernel.decoherence_length, "decoherence_length", least=0, why=why)


def _start(x: Tensor, target: Density) -> MicrocanonicalState:
    state = metropolis_start(x, target)
    if x[0].numel() < 2:
        raise ValueError(
            f"microcanonical dynamics needs two dimensions or more, got x0 of {tuple(x.shape)}: in "
            "one dimension a velocity of length 1 never turns. Use HMC, or add a coordinate with "
            "law N(0, 1)"
        )
    return MicrocanonicalState(*state, torch.full_like(state.x, x[0].numel() ** -0.5))


def _drawn(x: Tensor, generator: Generator | None) -> Tensor:
    """Return directions, uniform on the sphere."""
    z = randn_like(x, generator)
    return z / per_sample(z.flatten(1).norm(dim=1), z)


@dataclass(frozen=True)
class MCLMC:
    r"""Microcanonical Langevin Monte Carlo, unadjusted: a little noise on u, a step of the dynamics.

    .. math:: u \leftarrow \frac{u + ν z}{\|u + ν z\|}, \quad ν^2 = \frac{e^{2h/L} - 1}{d}, \quad
        (x, u) \leftarrow B_{h/2} A_h B_{h/2}

    in y = P^{−1/2} x, d ≥ 2. The velocity has length 1 whatever the dimension, so that h and L
    grow like √d. Its bias is of order h²: on N(0, I) the variance is off by h²/(12 (d − 1)) with
    `leapfrog`, −0.0108 h²/(d − 1) with `minimal norm`, which takes two scores per step.
    `two-stage` has λ = (3 − √3)/6, where that term vanishes: −1.1e−4 at d = 10, h = √d/2.
    `energy_change` is the error of each step; `tune_mclmc` finds h and L. There is no temperature.

    A chain that becomes NaN or infinite or leaves the support stays where it was, reverses its
    direction and is flagged `diverging`.

    References:
        | Microcanonical Hamiltonian Monte Carlo (Robnik, De Luca, Silverstein & Seljak, 2023)
        | https://arxiv.org/abs/2212.08549
        | Fluctuation without Dissipation: Microcanonical Langevin Monte Carlo (Robnik & Seljak, 2024)
        | https://arxiv.org/abs/2303.18221

    Arguments:
        step_size: h > 0, a length in y, the same for all chains or one for each, `(chain,)`.
        decoherence_length: L ≥ 0, the length over which a direction is forgotten; about √(tr C)
            for a law with covariance C in y. 0 draws a new direction in each step.
        integrator: `leapfrog`, `minimal norm` or `two-stage`.
        preconditioner: P, as in `MALA`.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a flag.

    Raises:
        ValueError: For an argument out of its range.
    """

    step_size: float | Tensor
    decoherence_length: float
    integrator: Integrator = "leapfrog"
    preconditioner: Preconditioner | Tensor | float = IDENTITY
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = Facts(
        affine=False, stationary=None, order=2, reversible=False, exact=False, draws=1,
        target_acceptance=None, needs_log_prob=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        _check(self, Unadjusted)

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> MicrocanonicalState:
        """Return the state at x, all directions the same; `refresh` draws them.

        Raises:
            ValueError: If there is one dimension only, or the target has no log-density, or it is
                not finite at x.
        """
        return _start(x, target)

    def refresh(
        self, state: MicrocanonicalState, *, generator: Generator | None = None
    ) -> MicrocanonicalState:
        """Return the state with directions from their law, uniform on the sphere."""
        return state._replace(direction=_drawn(state.x, generator))

    def step(
        self, state: MicrocanonicalState, target: Density, *, generator: Generator | None = None
    ) -> tuple[MicrocanonicalState, MicrocanonicalInfo]:
        """Move every chain by one step."""
        P, h = as_preconditioner(self.preconditioner), per_chain(self.step_size, state.x)
        z = randn_like(state.x, generator)
        u = partly_renewed(state.direction, z, h, self.decoherence_length)
        end = path(state._replace(direction=u), target, h, 1, self.integrator, P)
        W = end.work - (end.log_prob - state.log_prob)
        back = state._replace(direction=-u)
        new, info = settle(MicrocanonicalState(*end[:4]), back, self.on_nonfinite)
        W = torch.where(info.diverging, torch.inf, W)
        return new, MicrocanonicalInfo(new.log_prob, W, info.diverging)


@dataclass(frozen=True)
class AdjustedMCLMC:
    r"""Microcanonical Langevin Monte Carlo with a Metropolis correction: leaves p invariant.

    .. math:: (x, u) \to (x', u') \text{ by n steps}, \quad
        a = \min(1, e^{-W}), \quad W = (d - 1) \sum \log D - \log p(x') + \log p(x)

    in y = P^{−1/2} x, d ≥ 2. The proposal is (x', −u'), an involution that changes volume by
    e^{−K}; on a rejection the chain stays at (x, u). Then u is reversed, and before the next step
    it is drawn again or, with a decoherence length, partly renewed, which leaves p and the uniform
    law of u invariant. There is no temperature.

    By default the number of steps runs evenly through 1 … 2n − 1, by multiples of the golden
    ratio, so that a period of the target is not hit repeatedly.

    References:
        | Metropolis Adjusted Microcanonical Hamiltonian Monte Carlo
          (Robnik, Cohn-Gordon & Seljak, 2025)
        | https://arxiv.org/abs/2503.01707

    Arguments:
        step_size: h > 0, a length in y, the same for all chains or one for each, `(chain,)`.
        n_steps: n, the mean number of steps of a path; or the number itself without `jitter`.
        jitter: Whether paths differ in length.
        decoherence_length: L ≥ 0, the length over which a direction is forgotten; 0 draws a new
            one.
        integrator: `leapfrog`, with one score per step, or `minimal norm` or `two-stage`, with
            two.
        preconditioner: P, as in `MALA`.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a flag.

    Raises:
        ValueError: For an argument out of its range.
    """

    step_size: float | Tensor
    n_steps: int
    jitter: bool = True
    decoherence_length: float = 0.0
    integrator: Integrator = "leapfrog"
    preconditioner: Preconditioner | Tensor | float = IDENTITY
    on_nonfinite: Adjusted = "reject"

    facts: ClassVar[Facts] = metropolis_facts(
        HAMILTONIAN, stationary=own_covariance, step_per_chain=True
    )

    def __post_init__(self) -> None:
        _check(self, Adjusted)
        check_count(self.n_steps, "n_steps")

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> AdjustedState:
        """Return the state at x, all directions the same; `refresh` draws them.

        Raises:
            ValueError: If there is one dimension only, or the target has no log-density, or it is
                not finite at x.
        """
        return AdjustedState(
            *_start(x, target), torch.zeros(len(x), dtype=torch.long, device="cpu")
        )

    def refresh(
        self, state: AdjustedState, *, generator: Generator | None = None
    ) -> AdjustedState:
        """Return the state with directions from their law, uniform on the sphere."""
        return state._replace(direction=_drawn(state.x, generator))

    def step(
        self, state: AdjustedState, target: Density, *, generator: Generator | None = None
    ) -> tuple[AdjustedState, AdjustedInfo]:
        """Move every chain by one step."""
        P, h = as_preconditioner(self.preconditioner), per_chain(self.step_size, state.x)
        n = self.n_steps
        number = state.step.cpu()  # of a run that goes on it may have been moved
        if self.jitter:  # chains of one state have taken equally many steps
            n = jittered_length(n, int(number[0]))
        z = randn_like(state.x, generator)
        u = partly_renewed(state.direction, z, self.n_steps * h, self.decoherence_length)
        start = state._replace(direction=u)
        end = path(start, target, h, n, self.integrator, P)
        W = end.work - (end.log_prob - state.log_prob)
        proposed = (end.x, end.score, end.direction)
        acceptance, accepted, diverging = metropolis(
            -W, proposed, end.log_prob, self.on_nonfinite, generator
        )
        W = torch.where(diverging, torch.inf, W)
        # the proposal has −u', which is turned round like the u of a rejection
        moved = select(accepted, tuple(end[:4]), tuple(start._replace(direction=-u)[:4]))
        kept = AdjustedState(moved[0], moved[1], moved[2], moved[3], number + 1)
        return kept, AdjustedInfo(acceptance, accepted, kept.log_prob, W, diverging)
