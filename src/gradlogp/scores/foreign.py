r"""Foreign networks as noisy scores, and a noisy score as a foreign denoiser.

A network that predicts ε, x_0 or v at x_t = α x_0 + σ ε can be used as a score if two things are
known: the schedule under which it was trained, and its noise input. Nothing is rescaled and
nothing is guessed: x is passed to the network as it is, and the output becomes −ε̂/σ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypedDict, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import (
    Moments,
    NoisyScore,
    Schedule,
    check_batch,
    check_count,
    check_event_shape,
    check_function,
    check_level,
    check_number,
    check_option,
    check_same_shape,
    check_schedule,
    per_sample,
)
from ..noise.coordinates import IDENTITY
from ..noise.predictions import KINDS, Kind, check_determines, to_epsilon, to_x0
from ..noise.schedules import DDPM, EDM
from ..noise.score_base import ScoreBase
from ..noise.terminal import check_moments
from .conditioned import ConditionedScore, check_condition
from .guided import RescheduledScore

NoiseInput = Literal["time", "step", "sigma"] | Callable[[Tensor], Tensor]
"""What a network is given of the noise, as a function of t."""


class Known(TypedDict, total=False):
    """What may be known of the states of a foreign network; see `ForeignScore`."""

    event_shape: torch.Size | tuple[int, ...] | None
    moments: Moments | None


NEAR = 1e-3  # in steps: float32 times are that far off i/T for T up to 10⁴


NAMED = ("time", "step", "sigma")
"""What is given of the noise, by name."""


@dataclass(frozen=True)
class Steps:
    """The noise input of a DDPM: step i of 1 … T, at t = i/T, is number i − 1.

    If all times are steps, the numbers are integers (int64, as embedding tables need). Between
    steps the number is the fraction T t − 1 if `between` is true, which networks with sinusoidal
    embeddings accept; otherwise such times are refused. Times below 1/T, for which the network was
    never trained, are always refused.

    Arguments:
        n: T, the number of steps.
        between: Whether times between the steps are allowed.

    Raises:
        ValueError: For n below 1; when called, for a time that is not a step.
    """

    n: int
    between: bool = False

    def __post_init__(self) -> None:
        check_count(self.n, "n")

    def __call__(self, t: Tensor) -> Tensor:
        """Return T t − 1, shape of t."""
        number = t * self.n - 1
        whole = number.round()
        if bool(((number < -NEAR) | (number > self.n - 1 + NEAR) | number.isnan()).any()):
            raise ValueError(
                f"this network is defined for times from 1/{self.n} to 1, got {float(t.min()):.4g} … "
                f"{float(t.max()):.4g}; end at t = 1/{self.n}, from where samplers denoise"
            )
        if bool(((number - whole).abs() < NEAR).all()):
            return whole.long()
        if not self.between:
            raise ValueError(
                f"this network is defined at {self.n} steps and nowhere between them, got t = "
                f"{float(t.min()):.6g} … {float(t.max()):.6g}; use times i/{self.n} "
                "(schedule.times), or noise_input=Steps(n, between=True) if its embedding is continuous"
            )
        return number.clamp(0, self.n - 1)


class ForeignScore(ScoreBase, nn.Module):
    r"""The noisy score of a network that predicts ε, z_0, v, the velocity or the score itself.

    .. math:: s(z, t) = -\hat ε(z, t)/σ_t, \qquad \hat ε = F(z, c(t)) \text{ for ε-networks}

    z is passed to the network as it is, in the frame z_t = α_t z_0 + σ_t ε of the schedule.

    Arguments:
        network: network(z, c) or, if conditional, network(z, c, condition) -> like z, with c `(B,)`.
        schedule: The schedule under which it was trained.
        predicts: One of score, epsilon, x0, v, velocity.
        noise_input: What c is: "time", t; "step", DDPM's number T t − 1 (see `Steps`);
            "sigma", σ_t; or a function of t.
        event_shape: The event shape; any by default.
        moments: Mean and variance of z_0, from which the law at t = 1 follows.

    Raises:
        ValueError: For an unknown `predicts` or `noise_input`, or "step" with a schedule without
            steps.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule,
        predicts: Kind,
        *,
        noise_input: NoiseInput,
        event_shape: torch.Size | tuple[int, ...] | None = None,
        moments: Moments | None = None,
    ) -> None:
        nn.Module.__init__(self)
        check_function(network, "network")
        check_schedule(schedule)
        check_option(predicts, "predicts", KINDS)
        check_moments(moments)
        if event_shape is not None:
            check_event_shape(event_shape)
        if not callable(noise_input):
            check_option(noise_input, "noise_input, if it is not a function,", NAMED)
        if noise_input == "step":
            if not isinstance(schedule, DDPM):
                raise ValueError(
                    f"only DDPM has steps, but the schedule is {schedule}; pass noise_input='time', "
                    "'sigma' or a function of t"
                )
            noise_input = Steps(len(schedule.betas))
        self.network, self.schedule = network, schedule
        self.predicts, self.noise_input = predicts, noise_input
        self.event_shape = None if event_shape is None else torch.Size(event_shape)
        self.coordinates, self.moments = IDENTITY, moments

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype and on the device of the weights, where there are any."""
        weight = next((p for p in self.parameters() if p.is_floating_point()), None)
        return torch.empty(0) if weight is None else weight.detach().new_empty(0)

    def _noise_input(self, t: Tensor, z: Tensor) -> Tensor:
        """Return what the network is given of the noise, `(B,)`."""
        if callable(self.noise_input):
            c = self.noise_input(t)
        else:
            c = t if self.noise_input == "time" else self.schedule(t)[1]
        return (c.to(z) if c.is_floating_point() else c.to(z.device)).expand(len(z))

    def _predict(
        self, z: Tensor, t: Tensor, condition: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the prediction, α and σ, the latter for z to be multiplied with."""
        check_batch(z, self.event_shape, "z")
        per_sample(t, z)
        alpha, sigma = self.schedule(t)
        extra = () if condition is None else (condition,)
        out = self.network(z, self._noise_input(t, z), *extra)
        check_same_shape(out, z, "the network")
        return out, per_sample(alpha, z), per_sample(sigma, z)

    def forward(
        self,
        z: Float[Tensor, "batch *event"],
        t: Float[Tensor, "*time"],
        condition: Tensor | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """Return the score ∇ log p_t(z) = −ε̂/σ; t `()` or `(B,)`; not finite at σ = 0.

        Raises:
            ValueError: At a time that the network does not know; for a wrong shape.
        """
        out, a, b = self._predict(z, t, condition)
        return out if self.predicts == "score" else -to_epsilon(self.predicts, out, z, a, b) / b

    def denoise_given(self, z: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        """Return E[z_0 | z_t = z] for a condition in the form that `forward` takes.

        Raises:
            ValueError: For a score or an ε at α = 0, where they carry no information about z_0.
        """
        out, a, b = self._predict(z, t, condition)
        check_determines(self.predicts, "x_0", a)
        return to_x0(self.predicts, out, z, a, b)

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        return nn.Module.__call__(self, z, t)

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        return self.denoise_given(z, t, None)

    def given(self, condition: Tensor | int) -> ConditionedScore:
        """Return the noisy score with the condition fixed: one for all, or one per sample.

        Raises:
            ValueError: If it is not an int, int64 `(1,)` or `(B,)`, or float `(1 or B, *shape)`.
        """
        return ConditionedScore(self, check_condition(condition, None))


def from_epsilon(
    network: Callable[..., Tensor],
    schedule: Schedule,
    *,
    noise_input: NoiseInput,
    **known: Unpack[Known],
) -> ForeignScore:
    """Return the noisy score of a bare ε-network, network(x, c) -> ε̂.

    The noise input c has no default, because with a wrong one the samples merely look bad. Step
    numbers counted from 0 are `noise_input="step"`, numbers counted from 1 `noise_input=lambda t:
    T * t`. Arguments and errors are those of `ForeignScore`.
    """
    return ForeignScore(network, schedule, "epsilon", noise_input=noise_input, **known)


def from_edm(
    network: Callable[..., Tensor],
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    **known: Unpack[Known],
) -> ForeignScore:
    r"""Return the noisy score of a preconditioned denoiser, network(x, σ) -> x̂_0 at x = x_0 + σ ε.

    .. math:: s(x, t) = (D(x; σ_t) - x)/σ_t^2

    under the schedule `EDM(sigma_min, sigma_max)`. Labels are a third argument of the network.

    Arguments:
        network: D(x, σ) with its preconditioning, σ `(B,)`.
        sigma_min: The smallest σ to use.
        sigma_max: The largest σ to use.
        known: `event_shape` and `moments`, as in `ForeignScore`.

    Raises:
        ValueError: Unless 0 < sigma_min < sigma_max.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364
    """
    check_function(network, "network")
    schedule = EDM(sigma_min, sigma_max)
    return ForeignScore(network, schedule, "x0", noise_input="sigma", **known)


def from_k_diffusion(
    denoiser: Callable[..., Tensor],
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    *,
    event_shape: torch.Size | tuple[int, ...] | None = None,
    moments: Moments | None = None,
    **extra: Any,
) -> ForeignScore:
    """Return the noisy score of a denoiser of k-diffusion, `denoiser(x, σ, **extra)` -> x̂_0.

    Arguments:
        denoiser: D(x, σ) at x = x_0 + σ ε, σ `(B,)`.
        sigma_min: The smallest σ that it knows; by default its attribute of that name.
        sigma_max: The largest σ that it knows; by default its attribute of that name.
        event_shape: As in `ForeignScore`.
        moments: As in `ForeignScore`.
        extra: Additional arguments of every call.

    Raises:
        ValueError: If the range of σ is not known, or unless 0 < sigma_min < sigma_max.
    """
    check_function(denoiser, "denoiser")
    low = getattr(denoiser, "sigma_min", None) if sigma_min is None else sigma_min
    high = getattr(denoiser, "sigma_max", None) if sigma_max is None else sigma_max
    if low is None or high is None:
        raise ValueError("this denoiser states no range of sigma; pass sigma_min= and sigma_max=")
    check_number(low, "sigma_min", above=0)
    check_number(high, "sigma_max", above=0)
    network = partial(denoiser, **extra) if extra else denoiser
    return from_edm(network, float(low), float(high), event_shape=event_shape, moments=moments)


class _Sigma(Schedule):
    """The dialect whose time is σ itself, with α = 1."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1, σ)."""
        return torch.ones_like(t), t


def to_k_diffusion(score: NoisyScore) -> Callable[[Tensor, Tensor], Tensor]:
    r"""Return denoiser(x, σ) -> x̂_0 at x = x_0 + σ ε, for the samplers of k-diffusion.

    .. math:: D(x; σ) = E[x_0 | x_t = α_t x], \qquad σ_t/α_t = σ

    Arguments:
        score: The noisy score.

    Raises:
        ValueError: When called, for a σ that is not positive or that the schedule does not reach.
    """
    moved = RescheduledScore(score, _Sigma())  # refuses what is no noisy score

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        check_level(sigma, x)
        return moved.denoise(x, sigma)

    return denoiser
