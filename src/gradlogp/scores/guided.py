r"""Classifier-free guidance: a conditional score moved away from the unconditional one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    Denoiser,
    NoisyScoreFn,
    check_batch,
    check_same_shape,
    per_sample,
)


@dataclass(frozen=True, eq=False)
class GuidedScore:
    r"""The score of classifier-free guidance.

    .. math::
        \tilde s(x, t | c) = s(x, t | c) + w \left( s(x, t | c) - s(x, t) \right)
        = \nabla \log \left( p_t(x | c)\, p_t(c | x)^w \right)

    w = 0 is the conditional model, w = −1 the unconditional one. (Others call 1 + w the guidance
    scale.) The weight may be limited to an interval of times; outside it is 0.

    For w ≠ 0 this is the score of a density at every t, but not of the noised law of any data: what
    the samples follow depends on the sampler, and is not p(x | c) p(c | x)^w.

    References:
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022)
        | https://arxiv.org/abs/2207.12598
        | Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
          Models (Kynkäänniemi et al., 2024)
        | https://arxiv.org/abs/2404.07724

    Arguments:
        conditional: s(x, t | c), such as `model.given(labels)`.
        unconditional: s(x, t): another model, or the same one given the label that stands for none.
        weight: w.
        interval: (low, high): the weight acts at times low <= t <= high; at all where not given.

    Raises:
        ValueError: For a weight that is not finite, or an interval that is none.
    """

    conditional: NoisyScoreFn
    unconditional: NoisyScoreFn
    weight: float = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ValueError(f"weight must be finite, got {self.weight}")
        if self.interval is not None and not self.interval[0] <= self.interval[1]:
            raise ValueError(f"interval must be (low, high) with low <= high, got {self.interval}")

    def _acts(self, t: Tensor) -> Tensor:
        """Return where the weight is not 0, shape of t."""
        if self.weight == 0:
            return torch.zeros_like(t, dtype=torch.bool)
        if self.interval is None:
            return torch.ones_like(t, dtype=torch.bool)
        low, high = self.interval
        return (t >= low) & (t <= high)

    def _combine(
        self,
        x: Tensor,
        t: Tensor,
        with_label: Callable[[Tensor, Tensor], Tensor],
        without: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        check_batch(x)
        per_sample(t, x)
        given = with_label(x, t)
        check_same_shape(given, x, "the conditional score")
        acts = self._acts(t)
        if not bool(acts.any()):  # the other model is not asked
            return given
        free = without(x, t)
        check_same_shape(free, x, "the unconditional score")
        return given + per_sample(self.weight * acts.to(x), x) * (given - free)

    def __call__(
        self, x: Float[Tensor, "batch *event"], t: Tensor
    ) -> Float[Tensor, "batch *event"]:
        """Return the guided score; t `()` or `(B,)`."""
        return self._combine(x, t, self.conditional, self.unconditional)

    def denoise(
        self, x: Float[Tensor, "batch *event"], t: Tensor
    ) -> Float[Tensor, "batch *event"]:
        """Return the x̂_0 that belongs to the guided score.

        Raises:
            ValueError: If one of the two scores cannot denoise.
        """
        return self._combine(x, t, _denoise(self.conditional), _denoise(self.unconditional))


def _denoise(score: NoisyScoreFn) -> Callable[[Tensor, Tensor], Tensor]:
    if isinstance(score, Denoiser):
        return score.denoise
    raise ValueError(
        f"{type(score).__name__} has no denoise, which is needed where alpha = 0; start at a time "
        "below 1"
    )
