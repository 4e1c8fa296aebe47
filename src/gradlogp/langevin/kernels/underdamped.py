r"""Underdamped Langevin dynamics by splitting, with a momentum p beside the position x.

.. math:: dX = p/m\, dt, \quad dp = \nabla \log p(X)\, dt - γ p\, dt + \sqrt{2 γ τ m}\, dW

Its invariant law has density p^{1/τ} in x and, independently, N(0, τ m I) in the momentum. Each of
its three parts is solved exactly, and a scheme is the order in which they are applied:

.. math::
    A_t: x \leftarrow x + t\, p/m, \quad
    B_t: p \leftarrow p + t \nabla \log p(x), \quad
    O_t: p \leftarrow c\, p + \sqrt{τ m (1 - c^2)}\, z, \; c = e^{-γ t}

A letter that occurs k times in a scheme lasts h/k each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import Density, Generator, check_number, randn_like
from .facts import Facts, Stationary, target_covariance, unadjusted_facts
from .steps import LangevinInfo, Unadjusted, check_shared, langevin_start, scored, settle


class KineticState(NamedTuple):
    """Position, its score, and the momentum."""

    x: Float[Tensor, "chain *event"]
    score: Float[Tensor, "chain *event"]
    momentum: Float[Tensor, "chain *event"]


def check_kinetic(friction: float, mass: float) -> None:
    """Raise `ValueError` unless γ > 0, where infinity is allowed, and m > 0 is finite."""
    if not (isinstance(friction, float) and friction == math.inf):
        check_number(friction, "friction", above=0, why=": without it the energy never changes")
    check_number(mass, "mass", above=0)


def refresh(momentum: Tensor, z: Tensor, friction: float, t: float, tau_m: float) -> Tensor:
    """Return c p + √(τ m (1 − c²)) z with c = exp(−γ t): the map O."""
    c = math.exp(-friction * t)
    return c * momentum + math.sqrt(tau_m * -math.expm1(-2 * friction * t)) * z


def thermal(x: Tensor, tau_m: float, generator: Generator | None) -> Tensor:
    """Return momenta from their law, N(0, τ m I)."""
    return math.sqrt(tau_m) * randn_like(x, generator)


def _inflated(kernel: Any, precision: Tensor) -> Tensor:
    """Return τ (Λ − h² Λ²/(4m))⁻¹."""
    narrowed = precision - kernel.step_size**2 / (4 * kernel.mass) * precision @ precision
    return kernel.temperature * torch.linalg.inv(narrowed)


def _deflated(kernel: Any, precision: Tensor) -> Tensor:
    """Return τ (Λ⁻¹ − h² I/(4m))."""
    less = kernel.step_size**2 / (4 * kernel.mass) * torch.eye(len(precision)).to(precision)
    return kernel.temperature * (torch.linalg.inv(precision) - less)


@dataclass(frozen=True)
class Splitting:
    r"""Underdamped Langevin dynamics in any order of the maps A (drift), B (kick) and O (friction).

    .. math::
        A_t: x \leftarrow x + t\, p/m, \quad
        B_t: p \leftarrow p + t \nabla \log p(x), \quad
        O_t: p \leftarrow e^{-γ t} p + \sqrt{τ m (1 - e^{-2 γ t})}\, z

    A letter that occurs k times lasts h/k each time. One step costs one score if every B comes
    before the first A or after the last; a scheme such as ABOBA needs one more, at the end of the
    step, since the state contains the score at its position. Palindromes and their rotations have
    an error of order h² in the stationary law of x. Momenta start from their law, by `refresh`. A
    chain that becomes NaN or infinite stays where it was and is flagged `diverging`.

    References:
        | Rational Construction of Stochastic Numerical Methods for Molecular Sampling
          (Leimkuhler & Matthews, 2013)
        | https://doi.org/10.1093/amrx/abs010

    Arguments:
        step_size: h > 0, a time: with momentum a step moves x by about h √(τ/m). It corresponds to
            the step h²/2 of `ULA`.
        scheme: The letters A, B, O in the order in which they act, such as `BAOAB`.
        friction: γ > 0; infinity draws a new momentum.
        mass: m > 0.
        temperature: τ ≥ 0: samples p^{1/τ}.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a frozen chain.

    Raises:
        ValueError: For an argument out of its range, or a scheme that lacks a letter.
    """

    step_size: float
    scheme: str
    friction: float = 1.0
    mass: float = 1.0
    temperature: float = 1.0
    on_nonfinite: Unadjusted = "freeze"

    def __post_init__(self) -> None:
        check_shared(self, Unadjusted)
        check_kinetic(self.friction, self.mass)
        if not isinstance(self.scheme, str) or set(self.scheme) != set("ABO"):
            raise ValueError(
                f"scheme must consist of the letters A, B and O, each at least once, "
                f"got {self.scheme!r}"
            )

    @property
    def facts(self) -> Facts:
        """What is known about the scheme.

        A scheme that, read backwards, is a rotation of itself is a palindrome seen from a
        different point of its cycle, which changes the law of x only by order h².
        """
        known: dict[str, Stationary] = {"OBABO": _inflated, "OABAO": _deflated}
        known |= dict.fromkeys(("BAOAB", "BAOA", "ABOBA"), target_covariance)
        return unadjusted_facts(
            2 if self.scheme[::-1] in 2 * self.scheme else 1,
            known.get(self.scheme),
            affine=True,
            draws=self.scheme.count("O"),
        )

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> KineticState:
        """Return the state at x with momentum 0; `refresh` draws it."""
        start = langevin_start(x, target)
        return KineticState(start.x, start.score, torch.zeros_like(x))

    def refresh(self, state: KineticState, *, generator: Generator | None = None) -> KineticState:
        """Return the state with momenta from their law, up to terms of order h².

        That is N(0, τ m I) if the kicks at both ends of the scheme are equal. A scheme that begins
        with more kicks than it ends with is earlier by half of the difference: by h/2 for `BAOA`.
        """
        scheme, momentum = self.scheme, thermal(state.x, self.temperature * self.mass, generator)
        first, last = len(scheme) - len(scheme.lstrip("B")), len(scheme) - len(scheme.rstrip("B"))
        if first != last:
            late = self.step_size * (first - last) / (2 * scheme.count("B"))
            momentum = momentum - late * state.score
        return state._replace(momentum=momentum)

    def step(
        self, state: KineticState, target: Density, *, generator: Generator | None = None
    ) -> tuple[KineticState, LangevinInfo]:
        """Move every chain by one step."""
        x, momentum = state.x, state.momentum
        score: Tensor | None = state.score  # None: not known where x is now
        for letter in self.scheme:
            t = self.step_size / self.scheme.count(letter)
            if letter == "A":
                x, score = x + t / self.mass * momentum, None
            elif letter == "B":
                score = scored(x, target) if score is None else score
                momentum = momentum + t * score
            else:
                z = randn_like(x, generator)
                momentum = refresh(momentum, z, self.friction, t, self.temperature * self.mass)
        score = scored(x, target) if score is None else score
        return settle(KineticState(x, score, momentum), state, self.on_nonfinite)


@dataclass(frozen=True)
class BAOAB(Splitting):
    r"""Underdamped Langevin dynamics, kick, drift, friction, drift, kick: the best for positions.

    On N(μ, Λ⁻¹) the stationary law of x is exact for every stable h < 2 √(m/L); that of the
    momentum has covariance τ (m I − h² Λ/4). See `Splitting` for the maps; at infinite friction
    it is `LeimkuhlerMatthews` with step h²/(2m).

    References:
        | Rational Construction of Stochastic Numerical Methods for Molecular Sampling
          (Leimkuhler & Matthews, 2013)
        | https://doi.org/10.1093/amrx/abs010
        | Robust and Efficient Configurational Molecular Sampling via Langevin Dynamics
          (Leimkuhler & Matthews, 2013)
        | https://doi.org/10.1063/1.4802990

    Arguments:
        step_size: h > 0, a time; the others are those of `Splitting`.

    Examples:
        >>> target, g = glp.Gaussian(torch.zeros(2)), torch.Generator().manual_seed(0)
        >>> chain = glp.run(glp.langevin.BAOAB(0.5), target, torch.zeros(100, 2), 100, generator=g)
        >>> abs(float(chain.draws[:, 20:].var()) - 1.0) < 0.1
        True
    """

    scheme: str = field(default="BAOAB", init=False)


@dataclass(frozen=True)
class OBABO(Splitting):
    r"""Underdamped Langevin dynamics, friction around a leapfrog step: `GHMC` without correction.

    On N(μ, Λ⁻¹) the stationary law of the momentum is exact, and that of x has covariance
    τ (Λ − h² Λ²/(4m))⁻¹. See `Splitting` for the maps.

    References:
        | Accurate Sampling Using Langevin Dynamics (Bussi & Parrinello, 2007)
        | https://doi.org/10.1103/PhysRevE.75.056707

    Arguments:
        step_size: h > 0, a time; the others are those of `Splitting`.
    """

    scheme: str = field(default="OBABO", init=False)


@dataclass(frozen=True)
class BAOA(Splitting):
    r"""Underdamped Langevin dynamics, one kick per step, then drift, friction, drift.

    The same chain as `BAOAB`, seen half a kick earlier: on N(μ, Λ⁻¹) the laws of x and of the
    momentum are both exact for every stable h, and the two have covariance τ h/2. See `Splitting`
    for the maps.

    Arguments:
        step_size: h > 0, a time; the others are those of `Splitting`.
    """

    scheme: str = field(default="BAOA", init=False)
