r"""The law at t = 1, where samplers start, and likelihoods and bounds end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    Analytic,
    Generator,
    Moments,
    NoisyScore,
    check_batch,
    check_count,
    check_finite,
    check_kind,
    check_number,
    new_seed,
    randn_like,
    sum_event,
)
from .score_base import ScoreBase, check_noisy_score

ROUNDS = 3
"""Evaluations that find the mean of one class, or of a posterior, among all data."""


@dataclass(frozen=True, eq=False)
class ExactTerminal:
    """The law of z_1, or of an earlier z_t, if it is known.

    Arguments:
        law: That law.
        like: A tensor with the dtype and device of the draws.
    """

    law: Analytic
    like: Tensor

    @property
    def by_rows(self) -> bool:
        """Whether it can be sampled chunk by chunk, with the streams of its samples."""
        return getattr(self.law, "by_rows", False)

    @torch.no_grad()
    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Draw n states, `(n, *event)`.

        Raises:
            ValueError: For streams, which belong to chunks, if the law is sampled as a whole.
        """
        if self.by_rows:
            return self.law.sample(n, generator=generator).to(self.like)  # type: ignore[arg-type]
        g = torch.Generator().manual_seed(new_seed(generator))
        return self.law.sample(n, generator=g).to(self.like)

    def log_prob(self, z: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return log p(z)."""
        return self.law.log_prob(z)

    def kl(
        self,
        z0: Float[Tensor, "batch *event"],
        alpha: Tensor,
        sigma: Tensor,
        generator: Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        r"""Estimate KL(N(α z_0, σ² I) ‖ p_1) with one draw for each sample, without bias."""
        noise = randn_like(z0, generator)
        d = z0.shape[1:].numel()
        entropy = 0.5 * d * (math.log(2 * math.pi) + 2 * sigma.log())
        log_q = -0.5 * sum_event(noise.square()) - entropy.to(z0)
        return log_q - self.law.log_prob(alpha.to(z0) * z0 + sigma.to(z0) * noise)


class Basis(Protocol):
    """An orthonormal basis in which the entries of z_0 are uncorrelated, and their moments."""

    mean: Tensor
    variances: Tensor

    def waves(self, z: Tensor) -> Tensor:
        """Return z in the basis."""

    def image(self, w: Tensor) -> Tensor:
        """Return w of the basis as a state."""


@dataclass(frozen=True, eq=False)
class GaussianTerminal:
    r"""The law of z_1 from its first two moments, N(m, v) entry by entry.

    Exact for Gaussian data with uncorrelated entries, and if no signal is left.

    Mean and variance are `(1, *event)`, or one for each sample `(B, *event)`. The variances may be
    those in an orthonormal basis.
    """

    mean: Tensor
    var: Tensor
    event_shape: torch.Size | None
    basis: Basis | None = None

    @torch.no_grad()
    def sample(self, n: int, *, generator: Generator | None = None) -> Tensor:
        """Draw n states, `(n, *event)`.

        Raises:
            ValueError: If the event shape is not known, or the law has a number of samples other
                than n.
        """
        if self.event_shape is None:
            raise ValueError(
                "this score does not know the shape of its samples: pass event_shape= when you create "
                "it, or draw from terminal(score) yourself"
            )
        check_count(n, "n")
        if len(self.mean) not in (1, n):
            raise ValueError(
                f"this is the law of {len(self.mean)} samples, but {n} were requested"
            )
        z = self.var.sqrt() * randn_like(self.mean.new_empty(n, *self.event_shape), generator)
        return self.mean + (z if self.basis is None else self.basis.image(z))

    def log_prob(self, z: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return log N(z; m, v)."""
        check_batch(z, self.event_shape, "z")
        v = self.var.to(z).expand(1, *z.shape[1:])
        return -0.5 * sum_event(self._centred(z).square() / v + (2 * math.pi * v).log())

    def kl(
        self,
        z0: Float[Tensor, "batch *event"],
        alpha: Tensor,
        sigma: Tensor,
        generator: Generator | None = None,
    ) -> Float[Tensor, " batch"]:
        r"""Return KL(N(α z_0, σ² I) ‖ N(m, v))."""
        del generator  # closed form
        v = self.var.to(z0)
        ratio = sigma.to(z0) ** 2 / v
        shift = self._centred(alpha.to(z0) * z0).square() / v
        return 0.5 * sum_event((ratio - 1 - ratio.log() + shift).expand(z0.shape))

    def _centred(self, z: Tensor) -> Tensor:
        """Return z − m, in the basis."""
        y = z - self.mean.to(z)
        return y if self.basis is None else self.basis.waves(y)


Terminal = ExactTerminal | GaussianTerminal
"""What `terminal` returns: the exact law of z_1, or the Gaussian with its moments."""


def terminal(score: NoisyScore, t: float = 1.0) -> Terminal:
    r"""Return the law of z_1 of a noisy score, with sample, log_prob, and a KL divergence.

    The exact law if the score knows it; N(0, σ_1²) if α_1 = 0; otherwise, from the moments m and v
    of z_0,

    .. math:: N(α_1 m,\; α_1^2 v + σ_1^2)

    entry by entry, or in the basis of the score in which the entries are uncorrelated: entries that
    vary together, as the pixels of an image do, have far more variance in one direction.
    For a conditioned, guided or observed score the moments are those of all data. Its own mean is
    the fixed point m = E[z_0 | z_1 = α_1 m], for which three evaluations are accurate enough. The
    variance remains that of all data.

    Arguments:
        score: The noisy score.
        t: A time before 1 at which the score knows the law of z_t, as a model that is there the law
            it started from (`start_of`).

    Raises:
        ValueError: If the law is not known, α_1 > 0, and the score has no moments, or if these do
            not have the shape of an event or have a negative variance; if it is not known at a t
            before 1.

    Examples:
        >>> score = glp.ExactScore(glp.Gaussian([5.0]), glp.schedules.VE(0.01, 2.0))
        >>> law = glp.terminal(score)
        >>> law.sample(4, generator=torch.Generator()).shape
        torch.Size([4, 1])
        >>> law.log_prob(torch.tensor([[5.0]]))
        tensor([-1.7237])
    """
    check_noisy_score(score)
    check_number(t, "t", least=0, most=1)
    time = torch.tensor(float(t), dtype=torch.float64)
    like = getattr(score, "like", torch.empty(0))
    law = score.law(time)
    if law is not None:
        return ExactTerminal(law, like)
    if t < 1:
        raise ValueError(
            f"the law of this {type(score).__name__} at t = {t:.4g} is unknown; its law is known at "
            f"t = 1{f', and from t = {start:.4g} on' if (start := start_of(score)) < 1 else ''}"
        )
    alpha, sigma = (v.to(like) for v in score.schedule(time))
    if alpha == 0:
        zero = like.new_zeros(1)
        event = score.event_shape
        shape = (1, *[1] * len(event)) if event is not None else (1,)
        return GaussianTerminal(zero.reshape(shape), (sigma**2).reshape(shape), event)
    if score.moments is None:
        raise ValueError(
            f"the law of this {type(score).__name__} at t = 1 is unknown, where alpha = "
            f"{float(alpha):.3g} of the data remains: pass moments=Moments(mean, var) of z_0 when you "
            "create it"
        )
    _check_moments(score.moments, score.event_shape)
    basis = getattr(score, "basis", None)  # of which the variance of one direction may be large
    moments = score.moments if basis is None else (basis.mean, basis.variances)
    m, v = (q.to(like).unsqueeze(0) for q in moments)
    if getattr(score, "pooled", False):
        if score.event_shape is None:
            raise ValueError(
                "the mean of a conditioned score needs the shape of a sample: pass event_shape="
            )
        m = m.expand(getattr(score, "n_rows", None) or 1, *score.event_shape)
        for _ in range(ROUNDS):
            m = score.denoise(alpha * m, time.to(like))
    return GaussianTerminal(alpha * m, alpha**2 * v + sigma**2, score.event_shape, basis)


def start_of(score: NoisyScore) -> float:
    """Return the least time at which samples of a score can start and its likelihoods end."""
    return float(score.start) if isinstance(score, ScoreBase) else 1.0


def check_moments(moments: object) -> None:
    """Raise `ValueError` unless these are moments of tensors, or None."""
    if moments is None:
        return
    check_kind(moments, "moments", ("mean", "var"), "Moments(mean, var), two tensors")
    for name in ("mean", "var"):
        check_finite(getattr(moments, name), f"the {name} of the moments")


def _check_moments(moments: Moments, event_shape: torch.Size | None) -> None:
    """Raise `ValueError` unless moments fit an event and no variance is negative."""
    for name, value in moments._asdict().items():
        if event_shape is not None and value.shape not in (torch.Size(), event_shape):
            raise ValueError(
                f"the {name} of the moments must have shape () or that of an event, "
                f"{tuple(event_shape)}; got {tuple(value.shape)}"
            )
    if not bool((moments.var >= 0).all()):
        raise ValueError("the var of the moments must be at least 0")
