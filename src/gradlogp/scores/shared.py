"""What all laws that a network corrects have: the share of the correction at each noise level.

And the law of z_t where the share is 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ..core import Generator, Schedule, check_batch, check_count, per_sample, rand_like
from .frame import time_from

LEVELS = 24
"""Levels of noise at which the share of the correction is known; between them it is interpolated."""

FLOOR = 1e-8
"""The least variance along a direction, as a share of the mean one: directions of no variance at all
have no density, and thinner ones no digits in float32."""

ROWS = 20_000
"""Rows looked at for a covariance that is not kept whole, or is judged by cross-validation, and for the
linear part of a condition."""


class Shared(nn.Module):
    """A law that a network corrects, and the share of the correction at each noise level.

    Arguments:
        like: A tensor with its dtype and device.
        entries: The number of entries with separate shares; by default there is one share for all.
    """

    share: Tensor
    span: Tensor
    fallback = False
    """Whether the network learns the whole score, and this law only replaces a part."""

    def __init__(self, like: Tensor, *entries: int) -> None:
        super().__init__()
        self.register_buffer("share", like.new_ones(LEVELS, *entries))
        self.register_buffer("span", like.new_tensor([-1.0, 1.0]))

    def shared(self, coordinate: Tensor) -> Tensor:
        """Return the share of the correction at noise coordinates, linear between levels."""
        return self.between(self.share, coordinate)

    def between(self, table: Tensor, coordinate: Tensor) -> Tensor:
        """Return rows of a table `(LEVELS, ...)` at noise coordinates, linear between levels."""
        (low, high), last = self.span.to(coordinate), len(table) - 1
        place = ((coordinate - low) / (high - low) * last).clamp(0, last).unsqueeze(-1)
        levels = torch.arange(last + 1, dtype=place.dtype, device=place.device)
        return (1 - (place - levels).abs()).clamp(min=0) @ table.to(place)

    def beside(self, known: Tensor | None, learned: Tensor, coordinate: Tensor) -> Tensor:
        """Return what this law and a network say together, by the share at noise coordinates.

        Without `known` it is the part of the network.
        """
        share = self.shared(coordinate).reshape(-1, *[1] * (learned.ndim - 1))
        if known is None:
            return share * learned
        return known + share * (learned - known if self.fallback else learned)

    def alone_from(self, schedule: Schedule, std: Tensor) -> float:
        """Return the least time from which no correction is kept up to t = 1, or infinity.

        Arguments:
            schedule: The schedule of the model.
            std: c, which its noise coordinate is measured in.
        """
        kept = self.share.reshape(len(self.share), -1).any(1).nonzero()
        first, last = int(kept[-1]) + 1 if len(kept) else 0, len(self.share) - 1
        low, high = self.span.double().tolist()
        if first > last:
            return math.inf
        return time_from(schedule, low + (high - low) * first / last, std)

    def kinks(self, schedule: Schedule, std: Tensor) -> list[float]:
        """Return the times at which the slope of the share jumps, of a schedule without steps."""
        share = self.share.double().reshape(len(self.share), -1)
        low, high = self.span.double().tolist()
        ends = torch.zeros_like(share[:1])
        slopes = torch.cat([ends, share.diff(dim=0), ends])
        jumps = (slopes.diff(dim=0).abs() > 1e-6).any(1).nonzero()[:, 0].tolist()
        last = len(share) - 1
        times = [time_from(schedule, low + (high - low) * i / last, std) for i in jumps]
        return [t for t in times if t < 1]

    def law(self, t: Tensor, schedule: Schedule, std: Tensor) -> Noised | None:
        """Return the law of z_t from `alone_from` on, and None before."""
        if bool((t < self.alone_from(schedule, std)).any()):
            return None
        alpha, sigma = (v.to(self.share.device).reshape(-1, 1) for v in schedule(t))
        return Noised(cast(ClosedForm, self), alpha, sigma)

    def known_mean(
        self, z: Tensor, a: Tensor, b: Tensor, coordinate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the part of this law in E[z_0 | z_t = z] beside a network, and its divergence."""
        value, trace = cast(ClosedForm, self).denoise_trace(z, a, b)
        if not self.fallback:
            return value, trace
        left = 1 - self.shared(coordinate)
        return left.reshape(-1, *[1] * (z.ndim - 1)) * value, left * trace

    def beyond_mean(self, z: Tensor, a: Tensor, b: Tensor, coordinate: Tensor) -> Tensor | None:
        """Return the end of the flow of a model minus E[z_0 | z_t = z], as far as this law knows it.

        A learned correction adds nothing; beside a whole score, only the share of this law counts.
        """
        known = cast(ClosedForm, self).beyond(z, a, b)
        if known is None or not self.fallback:
            return known
        return (1 - self.shared(coordinate)).reshape(-1, *[1] * (z.ndim - 1)) * known

    def check_share(self, name: str) -> dict[str, bool]:
        """Return for each of its tensors whether it can be what it is called."""
        low, high = self.span.tolist()
        possible = bool(((self.share >= 0) & (self.share <= 1)).all())
        return {f"{name}.share": possible, f"{name}.span": low < high}


class ClosedForm(Protocol):
    """A law of z_0 whose noised law is known: density, score and draws of α z_0 + σ ε.

    α and σ are `(1, 1)` or `(B, 1)`.
    """

    event_shape: torch.Size

    def log_prob(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return log p_t(z), `(B,)`."""

    def score(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return ∇ log p_t(z), shape of z."""

    def denoise_trace(self, z: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[z_0 | z_t = z] and its divergence, `(B,)`."""

    def beyond(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
        """Return the end of the flow from z minus E[z_0 | z_t = z]; None if it is not known."""

    def sample(self, n: int, a: Tensor, b: Tensor, generator: Generator | None) -> Tensor:
        """Draw n states, `(n, *event)`."""


@dataclass(frozen=True, eq=False)
class Noised:
    """The law of α z_0 + σ ε, z_0 from a base.

    Arguments:
        base: The law of z_0.
        alpha: α, `(1, 1)`.
        sigma: σ, `(1, 1)`.
    """

    base: ClosedForm
    alpha: Tensor
    sigma: Tensor

    by_rows = True
    """Whether `sample` takes streams, so that it can draw chunk by chunk."""

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one draw."""
        return self.base.event_shape

    @torch.no_grad()
    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Draw n states, `(n, *event)`.

        Raises:
            ValueError: For n < 1, or levels α and σ of several samples.
        """
        check_count(n, "n")
        if self.alpha.numel() != 1:
            raise ValueError("only a law noised with α and σ of shape () can be sampled")
        return self.base.sample(n, self.alpha, self.sigma, generator)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density, `(B,)`."""
        check_batch(x, self.event_shape)
        return self.base.log_prob(x, self.alpha.to(x), self.sigma.to(x))

    def score(self, x: Tensor) -> Tensor:
        """Return its gradient, shape of x."""
        check_batch(x, self.event_shape)
        return self.base.score(x, self.alpha.to(x), self.sigma.to(x))

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> Noised:
        """Return the law of α X + σ Z, Z ~ N(0, I), for X of this law."""
        a, b = (torch.as_tensor(v).to(self.alpha).reshape(-1, 1) for v in (alpha, sigma))
        return Noised(self.base, a * self.alpha, torch.hypot(a * self.sigma, b))

    def posterior_mean(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Return E[X | α X + σ Z = x_t], by Tweedie's formula.

        Raises:
            ValueError: If α = 0, where x_t carries no information about X.
        """
        check_batch(x_t, self.event_shape, "x_t")
        a, b = (per_sample(torch.as_tensor(v), x_t) for v in (alpha, sigma))
        if bool((a == 0).any()):
            raise ValueError("alpha must not be 0: there x_t carries no information about X")
        return (x_t + b**2 * self.noised(alpha, sigma).score(x_t)) / a


def chosen(weights: Tensor, n: int, generator: Generator | None) -> Tensor:
    """Draw n components with these probabilities, each row with its own number."""
    u = rand_like(weights.new_empty(n), generator)
    return torch.searchsorted(weights.cumsum(0), u, right=True).clamp(max=len(weights) - 1)
