r"""Classifier-free guidance: a conditional score moved away from the unconditional one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import NoisyScore, check_number, check_same_shape, per_sample, shown
from ..noise.score_base import ScoreWrapper, check_noisy_score, check_same_frame


@dataclass(frozen=True, eq=False)
class GuidedScore(ScoreWrapper):
    r"""The score of classifier-free guidance.

    .. math::
        \tilde s(z, t | c) = s(z, t | c) + w \left( s(z, t | c) - s(z, t) \right)
        = \nabla \log \left( p_t(z | c)\, p_t(c | z)^w \right)

    w = 0 is the conditional model, w = −1 the unconditional one. (Others call 1 + w the guidance
    scale.) The weight may be limited to an interval of times; outside it is 0.

    For w ≠ 0 this is the score of a density at every t, but not that of a noised law: the law of
    the samples depends on the sampler and is not p(z | c) p(c | z)^w.

    References:
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022)
        | https://arxiv.org/abs/2207.12598
        | Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion
          Models (Kynkäänniemi et al., 2024)
        | https://arxiv.org/abs/2404.07724

    Arguments:
        score: The conditional score s(z, t | c), such as `model.given(y)`.
        free: The unconditional one, s(z, t): `model.unconditional()`, or another model.
        weight: w.
        interval: (low, high): the weight acts at times low <= t <= high; by default at all times.

    Raises:
        ValueError: For a weight that is not finite, an interval that is not ascending, or two
            scores with different schedules or coordinates.

    Examples:
        >>> VE = glp.schedules.VE()
        >>> one, other = (glp.ExactScore(glp.Gaussian([m]), VE) for m in (0.0, 1.0))
        >>> score = glp.GuidedScore(one, other, weight=2.0)
        >>> score(torch.tensor([[0.0]]), torch.tensor(0.0))
        tensor([[-1.9998]])
    """

    score: NoisyScore
    free: NoisyScore
    weight: float = 1.0
    interval: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_noisy_score(self.score)
        check_noisy_score(self.free, "free")
        check_same_frame(self.score, self.free, "the conditional and the unconditional score")
        check_number(self.weight, "weight")
        if self.interval is not None:
            if not isinstance(self.interval, tuple) or len(self.interval) != 2:
                raise ValueError(f"interval must be (low, high), got {shown(self.interval)}")
            check_number(self.interval[0], "low of the interval")
            check_number(self.interval[1], "high of the interval", least=self.interval[0])

    @property
    def pooled(self) -> bool:  # type: ignore[override]
        """True: the moments are not those of the guided law."""
        return True

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
        z: Tensor,
        t: Tensor,
        conditional: Callable[[Tensor, Tensor], Tensor],
        free: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        inside = conditional(z, t)
        check_same_shape(inside, z, "the conditional score")
        acts = self._acts(t)
        if not bool(acts.any()):  # the other model is not asked
            return inside
        outside = free(z, t)
        check_same_shape(outside, z, "the unconditional score")
        return inside + per_sample(self.weight * acts.to(z), z) * (inside - outside)

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        return self._combine(z, t, self.score, self.free)

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        return self._combine(z, t, self.score.denoise, self.free.denoise)

    def _around(self, score: NoisyScore) -> GuidedScore:
        return GuidedScore(score, self.free, self.weight, self.interval)

    def rows(self, index: slice | Tensor) -> GuidedScore:
        """Return the same around these rows of both scores."""
        return GuidedScore(
            self.score.rows(index), self.free.rows(index), self.weight, self.interval
        )
