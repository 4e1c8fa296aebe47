r"""Foreign networks as noisy scores, and a noisy score as a foreign denoiser.

A network that predicts ε, x_0 or v at x_t = α x_0 + σ ε is a score once two things are said: the
schedule it was trained under, and what it is told of the noise. Nothing is rescaled and nothing is
guessed: x goes to the network as it is, and the answer becomes −ε̂/σ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import (
    NoisyScoreFn,
    Schedule,
    check_batch,
    check_same_shape,
    per_sample,
)
from ..noise.predictions import (
    KINDS,
    Kind,
    to_epsilon,
    to_x0,
)
from ..noise.schedules import DDPM, EDM
from .rescheduled import RescheduledScore

NoiseInput = Literal["time", "step", "sigma"] | Callable[[Tensor], Tensor]
"""What a network is told of the noise, as a function of t."""

NEAR = 1e-3  # in steps: float32 times are that far off i/T for T up to 10⁴


@dataclass(frozen=True)
class Steps:
    """The number a DDPM is told: step i of 1 … T, at t = i/T, is number i − 1.

    Where all times are steps the numbers are integers (int64, as embedding tables want). Between
    steps there is the fraction T t − 1 if `between`, which a network of sinusoidal embeddings
    takes; else such times are refused, and so are always those below 1/T, where the network has
    never been.

    Arguments:
        n: T, the number of steps.
        between: Whether times between the steps are allowed.

    Raises:
        ValueError: For n below 1; when called, for a time that is none.
    """

    n: int
    between: bool = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")

    def __call__(self, t: Tensor) -> Tensor:
        """Return T t − 1, shape of t."""
        number = t * self.n - 1
        whole = number.round()
        if bool(((number < -NEAR) | (number > self.n - 1 + NEAR) | number.isnan()).any()):
            raise ValueError(
                f"this network knows times from 1/{self.n} to 1, got {float(t.min()):.4g} … "
                f"{float(t.max()):.4g}; end at t = 1/{self.n}, from where samplers denoise"
            )
        if bool(((number - whole).abs() < NEAR).all()):
            return whole.long()
        if not self.between:
            raise ValueError(
                f"this network knows {self.n} steps and nothing between them, got t = "
                f"{float(t.min()):.6g} … {float(t.max()):.6g}; use times i/{self.n} "
                "(schedule.times), or noise_input=Steps(n, between=True) if its embedding is continuous"
            )
        return number.clamp(0, self.n - 1)


class ForeignScore(nn.Module):
    r"""The noisy score of a network that predicts ε, x_0, v, the velocity or the score itself.

    .. math:: s(x, t) = -\hat ε(x, t)/σ_t, \qquad \hat ε = F(x, c(t)) \text{ for ε-networks}

    x goes to the network as it is, in the frame x_t = α_t x_0 + σ_t ε of the schedule.

    Arguments:
        network: network(x, c) or, if class-conditional, network(x, c, labels) -> like x, with
            c `(B,)`.
        schedule: The schedule that it was trained under.
        predicts: One of score, epsilon, x0, v, velocity.
        noise_input: What c is: "time", t; "step", DDPM's number T t − 1 (see `Steps`);
            "sigma", σ_t; or a function of t.
        event_shape: The event shape; any where not given.

    Raises:
        ValueError: For an unknown `predicts` or `noise_input`, or steps of a schedule that has none.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: Schedule,
        predicts: Kind,
        *,
        noise_input: NoiseInput,
        event_shape: torch.Size | tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if predicts not in KINDS:
            raise ValueError(f"unknown kind {predicts!r}; one of {', '.join(map(repr, KINDS))}")
        if not callable(noise_input) and noise_input not in ("time", "step", "sigma"):
            raise ValueError(
                f"noise_input must be 'time', 'step', 'sigma' or a function, got {noise_input!r}"
            )
        if noise_input == "step":
            if not isinstance(schedule, DDPM):
                raise ValueError(
                    f"only DDPM has steps, and the schedule is {schedule}; pass noise_input='time', "
                    "'sigma' or a function of t"
                )
            noise_input = Steps(len(schedule.betas))
        self.network, self.schedule, self.predicts, self.noise_input = (
            network,
            schedule,
            predicts,
            noise_input,
        )
        self.event_shape = None if event_shape is None else torch.Size(event_shape)

    def _tell(self, t: Tensor, x: Tensor) -> Tensor:
        """Return what the network is told, `(B,)`."""
        if callable(self.noise_input):
            c = self.noise_input(t)
        else:
            c = t if self.noise_input == "time" else self.schedule(t)[1]
        return (c.to(x) if c.is_floating_point() else c.to(x.device)).expand(len(x))

    def _predict(
        self, x: Tensor, t: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the prediction, α and σ, the latter for x to be multiplied with."""
        check_batch(x, self.event_shape)
        per_sample(t, x)
        alpha, sigma = self.schedule(t)
        extra = () if labels is None else (labels.expand(len(x)),)
        out = self.network(x, self._tell(t, x), *extra)
        check_same_shape(out, x, "the network")
        return out, per_sample(alpha, x), per_sample(sigma, x)

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        t: Float[Tensor, "*time"],
        labels: Int[Tensor, "*labels"] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """Return the score ∇ log p_t(x) = −ε̂/σ; t and labels `()` or `(B,)`.

        Raises:
            ValueError: At σ = 0, where there is no score; at a time that the network does not
                know; or for a wrong shape.
        """
        out, a, b = self._predict(x, t, labels)
        if bool((b == 0).any()):
            raise ValueError("there is no score at sigma = 0; ask for it at a later time t")
        return out if self.predicts == "score" else -to_epsilon(self.predicts, out, x, a, b) / b

    def denoise(
        self,
        x: Float[Tensor, "batch *event"],
        t: Float[Tensor, "*time"],
        labels: Int[Tensor, "*labels"] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """Return the posterior mean E[x_0 | x_t = x]; t and labels `()` or `(B,)`.

        Raises:
            ValueError: For a score or an ε at α = 0, which say nothing of x_0 there.
        """
        out, a, b = self._predict(x, t, labels)
        return to_x0(self.predicts, out, x, a, b)

    def given(self, labels: Int[Tensor, "*labels"] | int) -> Given:
        """Return the noisy score with the class labels fixed: one for all, or one a sample."""
        return Given(self, torch.as_tensor(labels))


class Given:
    """A class-conditional foreign score with its labels fixed: a plain noisy score again."""

    def __init__(self, model: ForeignScore, labels: Tensor) -> None:
        self.model, self.labels = model, labels
        self.schedule, self.event_shape = model.schedule, model.event_shape

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score of the law of x_t given the labels."""
        return self.model(x, t, self.labels.to(x.device))

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E[x_0 | x_t = x, labels]."""
        return self.model.denoise(x, t, self.labels.to(x.device))


def from_epsilon(
    network: Callable[..., Tensor],
    schedule: Schedule,
    *,
    noise_input: NoiseInput,
    event_shape: torch.Size | tuple[int, ...] | None = None,
) -> ForeignScore:
    """Return the noisy score of a bare ε-network, network(x, c) -> ε̂.

    What c is has no default, because a wrong one gives samples that look merely bad: the number of
    the step, counted from 0, is `noise_input="step"`; numbers counted from 1 are
    `noise_input=lambda t: T * t`.

    Arguments:
        network: network(x, c), c `(B,)`.
        schedule: The schedule that it was trained under.
        noise_input: "time", "step", "sigma" or a function of t.
        event_shape: The event shape; any where not given.

    Raises:
        ValueError: As `ForeignScore`.
    """
    return ForeignScore(
        network, schedule, "epsilon", noise_input=noise_input, event_shape=event_shape
    )


def from_edm(
    network: Callable[..., Tensor],
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    *,
    event_shape: torch.Size | tuple[int, ...] | None = None,
) -> ForeignScore:
    r"""Return the noisy score of a preconditioned denoiser, network(x, σ) -> x̂_0 at x = x_0 + σ ε.

    .. math:: s(x, t) = (D(x; σ_t) - x)/σ_t^2

    under the schedule `EDM(sigma_min, sigma_max)`. A third argument of the network are labels.

    Arguments:
        network: D(x, σ) with its preconditioning, σ `(B,)`.
        sigma_min: The least σ that it shall be asked for.
        sigma_max: The largest.
        event_shape: The event shape; any where not given.

    Raises:
        ValueError: Unless 0 < sigma_min < sigma_max.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364
    """
    schedule = EDM(sigma_min, sigma_max)
    return ForeignScore(network, schedule, "x0", noise_input="sigma", event_shape=event_shape)


def from_k_diffusion(
    denoiser: Callable[..., Tensor],
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    *,
    event_shape: torch.Size | tuple[int, ...] | None = None,
    **extra: Any,
) -> ForeignScore:
    """Return the noisy score of a denoiser of k-diffusion, denoiser(x, σ, **extra) -> x̂_0.

    Arguments:
        denoiser: At x = x_0 + σ ε, σ `(B,)`.
        sigma_min: The least σ that it knows; the attribute of that name where not given.
        sigma_max: The largest; likewise.
        event_shape: The event shape; any where not given.
        extra: Arguments for every call.

    Raises:
        ValueError: If the range of σ is not known, or unless 0 < sigma_min < sigma_max.
    """
    low = getattr(denoiser, "sigma_min", None) if sigma_min is None else sigma_min
    high = getattr(denoiser, "sigma_max", None) if sigma_max is None else sigma_max
    if low is None or high is None:
        raise ValueError("this denoiser names no range of sigma; pass sigma_min= and sigma_max=")
    network = partial(denoiser, **extra) if extra else denoiser
    return from_edm(network, float(low), float(high), event_shape=event_shape)


class _Sigma(Schedule):
    """The dialect whose time is σ itself, with α = 1."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1, σ)."""
        return torch.ones_like(t), t


def to_k_diffusion(score: NoisyScoreFn, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    r"""Return denoiser(x, σ) -> x̂_0 at x = x_0 + σ ε, what the samplers of k-diffusion take.

    .. math:: D(x; σ) = E[x_0 | x_t = α_t x], \qquad σ_t/α_t = σ

    Arguments:
        score: The noisy score.
        schedule: The schedule that it belongs to, any.

    Raises:
        ValueError: When called, for a σ that is not positive or that the schedule does not reach.
    """
    moved = RescheduledScore(score, schedule, _Sigma())

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        if not bool((sigma > 0).all()):
            raise ValueError(f"sigma must be positive, got {float(sigma.min()):.4g}")
        return moved.denoise(x, sigma)

    return denoiser
