r"""Langevin dynamics on a sphere: steps along geodesics, with and without a Metropolis correction.

For a density p with respect to the surface of the sphere of radius r around 0 the kernels discretise
dX = P ∇ log p(X) dt + √2 P ∘ dW, P = I − x̂ x̂ᵀ. A step goes along the geodesic

    exp_x(v) = cos(θ) x + (sin(θ)/θ) v,   θ = ‖v‖/r,   v tangent at x,

and so never leaves the sphere. The target is any density on R^d: the part of its score along x is
not used. The uniform law on the sphere is a constant log-density, von Mises–Fisher is η · x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    Density,
    Generator,
    check_number,
    check_points,
    per_sample,
    randn_like,
    sum_event,
)
from .facts import LANGEVIN, Facts, metropolis_facts, unadjusted_facts
from .steps import (
    Adjusted,
    LangevinState,
    Metropolised,
    MetropolisInfo,
    MetropolisState,
    Overdamped,
    Unadjusted,
    check_shared,
    decided,
    proposed,
)


class Geodesic(NamedTuple):
    """Where a geodesic ends, and its velocity there, shape of x."""

    x: Float[Tensor, "chain *event"]
    velocity: Float[Tensor, "chain *event"]


def tangent(
    x: Float[Tensor, "chain *event"], v: Float[Tensor, "chain *event"]
) -> Float[Tensor, "chain *event"]:
    """Return P v, the part of v that is tangent at x to the sphere around 0."""
    return v - per_sample(sum_event(v * x) / sum_event(x.square()), x) * x


def geodesic(
    x: Float[Tensor, "chain *event"], v: Float[Tensor, "chain *event"], radius: float = 1.0
) -> Geodesic:
    r"""Follow the geodesic from x with velocity v for time 1.

    .. math::
        y = \cos(θ)\, x + \frac{\sin θ}{θ}\, v, \quad
        \dot y = \cos(θ)\, v - θ \sin(θ)\, x, \quad θ = \|v\|/r

    Arguments:
        x: Points on the sphere.
        v: Tangent vectors there.
        radius: r.
    """
    theta = per_sample(v.flatten(1).norm(dim=1) / radius, x)
    y = theta.cos() * x + torch.sinc(theta / math.pi) * v
    y = y * per_sample(radius / y.flatten(1).norm(dim=1), x)  # rounding would add up
    return Geodesic(y, theta.cos() * v - theta * theta.sin() * x)


@dataclass(frozen=True)
class SphereULA(Overdamped):
    r"""Unadjusted Langevin algorithm on the sphere of radius r around 0, along geodesics.

    .. math:: x' = \exp_x\left( h P \nabla \log p(x) + \sqrt{2 h τ}\, P z \right)

    The uniform law is exactly invariant for every h; the bias on other laws is of order h. On a
    circle it is ULA for the angle. A chain that becomes NaN or infinite stays where it was and is
    flagged `diverging`.

    References:
        | Geodesic Monte Carlo on Embedded Manifolds (Byrne & Girolami, 2013)
        | https://arxiv.org/abs/1301.6064

    Arguments:
        step_size: h > 0; a step has the length √(2h(d − 1)), which should be compared with the
            radius.
        radius: r > 0; chains must start on the sphere.
        temperature: τ ≥ 0: samples p^{1/τ}; 0 is gradient flow on the sphere.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a frozen chain.
    """

    step_size: float
    radius: float = 1.0
    temperature: float = 1.0
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = unadjusted_facts(1, affine=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.radius, "radius", above=0)

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> LangevinState:
        """Return the state at x.

        Raises:
            ValueError: If x is not on the sphere.
        """
        state = super().init(x, target)
        check_on_sphere(x, self.radius)
        return state

    def _next(self, state: LangevinState, generator: Generator | None) -> Tensor:
        x, h = state.x, self.step_size
        z = randn_like(x, generator)
        v = tangent(x, h * state.score + math.sqrt(2 * h * self.temperature) * z)
        return geodesic(x, v, self.radius).x


@dataclass(frozen=True)
class SphereMALA(Metropolised):
    r"""Langevin algorithm on a sphere with a Metropolis correction: leaves p invariant.

    The proposal is that of `SphereULA`, read as one leapfrog step of time ε = √(2h) along a
    geodesic, with momentum p tangent at x:

    .. math::
        p \leftarrow \sqrt{τ} P z, \quad p \leftarrow p + \tfrac{ε}{2} P s(x), \quad
        (x, p) \leftarrow \text{geodesic for time } ε, \quad p \leftarrow p + \tfrac{ε}{2} P s(x)

    accepted with probability min(1, exp(−ΔH/τ)), H = −log p(x) + ½‖p‖². The step preserves volume
    and is reversible, so that the density of the proposal is not needed, which would have
    infinitely many terms, one for each time that the geodesic goes round.

    References:
        | Geodesic Monte Carlo on Embedded Manifolds (Byrne & Girolami, 2013)
        | https://arxiv.org/abs/1301.6064

    Arguments:
        step_size: h > 0.
        radius: r > 0; chains must start on the sphere.
        temperature: τ > 0: samples p^{1/τ}.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a flag.
    """

    step_size: float
    radius: float = 1.0
    temperature: float = 1.0
    on_nonfinite: Adjusted = "reject"

    facts: ClassVar[Facts] = replace(metropolis_facts(LANGEVIN), stationary=None)

    def __post_init__(self) -> None:
        check_shared(self, Adjusted)
        check_number(self.radius, "radius", above=0)

    def init(self, x: Float[Tensor, "chain *event"], target: Density) -> MetropolisState:
        """Return the state at x.

        Raises:
            ValueError: If x is not on the sphere, the target has no log-density, or it is not
                finite at x.
        """
        state = super().init(x, target)
        check_on_sphere(x, self.radius)
        return state

    def step(
        self, state: MetropolisState, target: Density, *, generator: Generator | None = None
    ) -> tuple[MetropolisState, MetropolisInfo]:
        """Move every chain by one step."""
        x, tau, eps = state.x, self.temperature, math.sqrt(2 * self.step_size)
        p = math.sqrt(tau) * tangent(x, randn_like(x, generator))
        kicked = p + eps / 2 * tangent(x, state.score)
        y, velocity = geodesic(x, eps * kicked, self.radius)
        proposal = proposed(y, target)
        arrived = velocity / eps + eps / 2 * tangent(y, proposal.score)
        kinetic = 0.5 * (sum_event(arrived.square()) - sum_event(p.square()))
        log_ratio = (proposal.log_prob - state.log_prob - kinetic) / tau
        return decided(log_ratio, proposal, state, self.on_nonfinite, generator)


def check_on_sphere(x: Tensor, radius: float) -> None:
    """Raise `ValueError` unless every chain starts on the sphere, up to a hundredth of a percent."""
    check_points(x, "x0")
    if x[0].numel() < 2:
        raise ValueError(f"a sphere needs two coordinates or more, got x0 of {tuple(x.shape)}")
    off = float((x.flatten(1).norm(dim=1) / radius - 1).abs().max())
    if not off <= 1e-4:
        raise ValueError(
            f"x0 must lie on the sphere of radius {radius} around 0, and is off by {off:.2g} of it; "
            "divide its rows by their norms, or pass radius= to the kernel"
        )
