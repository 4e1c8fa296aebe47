r"""Function types and protocols that everything else uses.

For a density p on R^d the *score* is s(x) = ∇ log p(x) = −∇E(x). Nothing else is called a score.
A batch is `x` with shape `(B, *event)`; nothing ever couples the members of a batch. Noise levels
are `x_t = α_t x_0 + σ_t ε` with ε ~ N(0, I), and t in [0, 1] runs from data to noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from .randomness import Generator
from .shapes import check_function, check_kind

Pair = tuple[Tensor, Tensor]


def derivatives(f: Callable[[Tensor], Pair], t: Tensor) -> Pair:
    """Return the derivatives of both values of f at each entry of t, on which alone it may depend.

    Uses reverse mode, which takes a fifth of the time of `torch.func.jvp` for such small tensors;
    `jvp` is used inside a transformation of torch.func, and if t itself is differentiated.
    """
    if t.requires_grad:
        return _forward(f, t)
    found: list[Tensor | None] = []
    try:
        with torch.inference_mode(False), torch.enable_grad():
            u = t.detach().clone().requires_grad_()
            for v in f(u):
                slope = (
                    torch.autograd.grad(v.sum(), u, retain_graph=True)[0]
                    if v.requires_grad
                    else None
                )
                found.append(slope)
    except RuntimeError:  # a transformation of torch.func is at work
        return _forward(f, t)
    first, second = (torch.zeros_like(t) if d is None else d for d in found)
    return first, second


def _forward(f: Callable[[Tensor], Pair], t: Tensor) -> Pair:
    first, second = torch.func.jvp(f, (t,), (torch.ones_like(t),))[1]
    return first.to(t), second.to(t)  # jvp turns a float32 t of shape () into float64


ScoreFn = Callable[[Tensor], Tensor]
"""s(x): `(B, *event) -> (B, *event)`."""

# ---------------------------------------------------------------------------- densities


@runtime_checkable
class Density(Protocol):
    """What Langevin dynamics needs: a log-density up to a constant, and its score.

    A density may also have `log_prob_and_score(x) -> ((B,), (B, *event))`, which returns both with
    a single evaluation.
    """

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) + const, shape `(B,)`."""

    def score(self, x: Tensor) -> Tensor:
        """Return ∇ log p(x), shape of `x`."""


@runtime_checkable
class Analytic(Density, Protocol):
    """A density closed under Gaussian noising: the reason everything here can be checked."""

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one draw."""

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw n independent points, `(n, *event)`."""

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> Analytic:
        """Return the law of α X + σ Z with Z ~ N(0, I); α and σ `()` or `(B,)`."""

    def posterior_mean(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Return E[X | α X + σ Z = x_t], shape of x_t."""


# ---------------------------------------------------------------------------- noise


class Schedule(ABC):
    r"""A map t -> (α_t, σ_t) from which drift, diffusion and log-SNR are derived once.

    .. math:: f = \frac{d \log α}{dt}, \quad λ = 2 \log(α / σ), \quad g^2 = -σ^2 \frac{dλ}{dt}

    so that dX = f X dt + g dW has the marginals α_t x_0 + σ_t ε. A subclass defines only
    `__call__`.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456
        | Variational Diffusion Models (Kingma et al., 2021)
        | https://arxiv.org/abs/2107.00630
    """

    @property
    def times(self) -> Tensor | None:
        """The descending times of a discrete ladder; None where time is continuous."""
        return None

    @abstractmethod
    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (α_t, σ_t), each with the shape of t."""

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (dα/dt, dσ/dt) by automatic differentiation."""
        return derivatives(self, t)

    def log_snr(self, t: Tensor) -> Tensor:
        """Return λ(t) = 2 log(α/σ)."""
        alpha, sigma = self(t)
        return 2 * (alpha.log() - sigma.log())

    def f(self, t: Tensor) -> Tensor:
        """Return the drift coefficient, d log α / dt."""
        return self.rates(t)[0] / self(t)[0]

    def g2(self, t: Tensor) -> Tensor:
        """Return the squared diffusion coefficient, 2σ (σ' − f σ), at t = 0 as a limit."""
        t = t.clamp(min=1e-12)  # σ' is infinite at 0 where σ ~ sqrt(t), the product is not
        (alpha, sigma), (d_alpha, d_sigma) = self(t), self.rates(t)
        return 2 * sigma * (d_sigma - d_alpha / alpha * sigma)


class Moments(NamedTuple):
    """Mean and variance of z_0, entry by entry; each `()` or in the shape of an event."""

    mean: Tensor
    var: Tensor


@runtime_checkable
class Coordinates(Protocol):
    """The map between x, in the units of the data, and z, in which noise is isotropic."""

    def encode(self, x: Tensor) -> Tensor:
        """Return z, shape of x."""

    def decode(self, z: Tensor) -> Tensor:
        """Return x, shape of z."""

    def log_det(self, x: Tensor) -> Tensor:
        """Return `log |det dz/dx|`, `(B,)`: what a log-density in x gains over one in z."""

    def pull_back(self, x: Tensor, s_z: Tensor) -> Tensor:
        """Return the score in x of the law whose score in z is s_z: (dz/dx)ᵀ s_z + ∇ log_det."""


@runtime_checkable
class NoisyScore(Protocol):
    r"""A noisy score is a function with a schedule: s(z, t) = ∇ log p_t(z).

    All of it is in model coordinates z: z_t = α_t z_0 + σ_t ε under `schedule`, and `coordinates`
    converts between z_0 and data. `noise.ScoreBase` has everything but the formula.
    """

    @property
    def schedule(self) -> Schedule:
        """The schedule that says what t means: its one owner."""

    @property
    def event_shape(self) -> torch.Size | None:
        """The shape of one sample; None if any shape is allowed."""

    @property
    def coordinates(self) -> Coordinates:
        """Between z and the units of the data; the identity for all but fitted models."""

    @property
    def moments(self) -> Moments | None:
        """Mean and variance of z_0; None if they are unknown."""

    def __call__(self, z: Tensor, t: Tensor) -> Tensor:
        """Return ∇ log p_t(z), shape of z; t `()` or `(B,)`."""

    def denoise(self, z: Tensor, t: Tensor) -> Tensor:
        """Return E[z_0 | z_t = z]."""

    def law(self, t: Tensor) -> Analytic | None:
        """Return the exact law of z_t, or None."""

    def given(self, condition: Tensor | int) -> NoisyScore:
        """Return the conditional score."""

    def rows(self, index: slice | Tensor) -> NoisyScore:
        """Return the same for these rows of a batch: their conditions, their observations."""


# ---------------------------------------------------------------------------- what moves


S = TypeVar("S")
I = TypeVar("I", covariant=True)


@runtime_checkable
class Kernel(Protocol[S, I]):
    """Leaves a density invariant. State holds what the next step needs, Info what a diagnostic needs.

    A kernel with a momentum also has `refresh(state, *, generator) -> state`, which draws it from
    its law: `init` leaves it at rest, and drivers refresh it when they start chains.
    """

    def init(self, x: Tensor, target: Density) -> S:
        """Return the state at x."""

    def step(
        self, state: S, target: Density, *, generator: Generator | None = None
    ) -> tuple[S, I]:
        """Move every chain by one step."""


@runtime_checkable
class Transition(Protocol):
    """Moves p_t to p_s, s < t; `s = None` is the noise-free end (α, σ) = (1, 0)."""

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return z_s, shape of z."""


# ---------------------------------------------------------------------------- checks


def check_target(target: object, name: str = "target") -> None:
    """Raise `ValueError` unless this is a density."""
    check_kind(
        target, name, ("score",), "a density",
        ": wrap a function with as_target(log_prob=f, event_shape=(d,))",
    )  # fmt: skip


def check_analytic(law: object, name: str) -> None:
    """Raise `ValueError` unless this is a law closed under noising."""
    what = "an analytic law, such as a Gaussian, which has .sample and .noised"
    check_kind(law, name, ("sample", "noised", "event_shape"), what)


def check_schedule(schedule: object, name: str = "schedule") -> None:
    """Raise `ValueError` unless this is a schedule."""
    check_kind(schedule, name, Schedule, "a schedule, such as VP()")


def check_kernel(kernel: object, name: str = "kernel") -> None:
    """Raise `ValueError` unless this is a kernel with its arguments."""
    check_kind(kernel, name, ("init", "step"), "an instance with its step size, such as NUTS(0.1)")


def check_transition(transition: object, name: str = "transition") -> None:
    """Raise `ValueError` unless this is a transition with its arguments."""
    if isinstance(transition, type):
        raise ValueError(f"{name} must be an instance: {transition.__name__}(), not the class")
    check_function(transition, name)
