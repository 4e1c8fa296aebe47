r"""Scores made of scores: guided away from the unconditional one, or read under another schedule.

Laws under two schedules with the same noise-to-signal ratio r = σ/α differ by a factor: if
z_t = α z_0 + σ ε and z'_t' = α' z_0 + σ' ε with σ/α = σ'/α', then z' = (α'/α) z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import (
    Analytic,
    NoisyScore,
    Schedule,
    check_number,
    check_same_shape,
    check_schedule,
    per_sample,
    shown,
)
from ..noise.blurred import noisy_log_prob
from ..noise.predictions import beyond_mean
from ..noise.schedules import invert_log_snr
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
        return inside + per_sample(self.weight * acts.to(z.dtype), z) * (inside - outside)

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        return self._combine(z, t, self.score, self.free)

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        return self._combine(z, t, self.score.denoise, self.free.denoise)

    def _beyond_mean(self, z: Tensor, t: Tensor) -> Tensor | None:
        inside, free = (beyond_mean(score, z, t) for score in (self.score, self.free))
        if inside is None and free is None:
            return None
        known = [torch.zeros_like(z) if v is None else v for v in (inside, free)]
        return self._combine(z, t, lambda *_: known[0], lambda *_: known[1])

    def _around(self, score: NoisyScore) -> GuidedScore:
        return GuidedScore(score, self.free, self.weight, self.interval)

    def rows(self, index: slice | Tensor) -> GuidedScore:
        """Return the same around these rows of both scores."""
        return GuidedScore(
            self.score.rows(index), self.free.rows(index), self.weight, self.interval
        )


class RescheduledScore(ScoreWrapper):
    r"""A noisy score under a different schedule.

    .. math::
        s'(z', t') = \frac{α}{α'}\, s\left( \frac{α}{α'} z', t \right), \qquad
        \frac{σ_t}{α_t} = \frac{σ'_{t'}}{α'_{t'}}

    so that VE and VP are one model in two coordinate systems. The posterior mean E[z_0 | z_t] is
    the same under both.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456
        | Variational Diffusion Models (Kingma et al., 2021)
        | https://arxiv.org/abs/2107.00630

    Arguments:
        score: A noisy score.
        schedule: The schedule under which to use it. All its noise levels must be within the range
            of the score's own schedule.

    Raises:
        ValueError: When called, for a noise level that the score's own schedule does not reach.

    Examples:
        >>> score = glp.ExactScore(glp.Gaussian([3.0]), glp.schedules.VP())
        >>> other = glp.RescheduledScore(score, glp.schedules.VE())
        >>> other.denoise(torch.tensor([[3.0]]), torch.tensor(0.5))
        tensor([[3.]])
    """

    def __init__(self, score: NoisyScore, schedule: Schedule) -> None:
        check_noisy_score(score)
        check_schedule(schedule)
        self.score, self._schedule = score, schedule

    @property
    def schedule(self) -> Schedule:  # type: ignore[override]
        """The schedule that t belongs to."""
        return self._schedule

    def _place(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the time in the score's own schedule, float64, and α/α'."""
        exact = t.double()  # times closer than float32 can tell are found by bisection
        wanted = self.schedule.log_snr(exact)
        source = self.score.schedule
        ends = torch.tensor([1.0, 0.0], dtype=torch.float64, device=t.device)
        low, high = (float(v) for v in source.log_snr(ends))
        slack = 1e-6
        if bool(((wanted < low - slack) | (wanted > high + slack)).any()):
            r = (-0.5 * wanted).exp()
            raise ValueError(
                f"sigma/alpha from {float(r.min()):.4g} to {float(r.max()):.4g} was requested from "
                f"a model that covers {float(torch.tensor(-high / 2).exp()):.4g} to "
                f"{float(torch.tensor(-low / 2).exp()):.4g}; choose a schedule (or t_min) within"
            )
        time = invert_log_snr(source, wanted)
        return time, source(time)[0] / self.schedule(exact)[0]

    def law(self, t: Tensor) -> Analytic | None:
        """Return the exact law of z_t where the score knows it."""
        if self.score.law(torch.ones((), dtype=torch.float64)) is None:
            return None
        time, ratio = self._place(t)
        law = self.score.law(time)
        return None if law is None else law.noised(1 / ratio, 0.0)

    def log_prob(self, z: Tensor, t: Tensor) -> Tensor:
        """Return log p_t(z).

        Raises:
            ValueError: If the score has no log-density.
        """
        self._check(z, t)
        time, ratio = self._place(t)
        known = noisy_log_prob(self.score, per_sample(ratio.to(z), z) * z, time.to(t))
        return known + z.shape[1:].numel() * ratio.log().to(z)

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        time, ratio = self._place(t)
        r = per_sample(ratio.to(z), z, "alpha")
        return r * self.score(r * z, time.to(t))

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        time, ratio = self._place(t)
        return self.score.denoise(per_sample(ratio.to(z), z, "alpha") * z, time.to(t))

    def _beyond_mean(self, z: Tensor, t: Tensor) -> Tensor | None:
        time, ratio = self._place(t)
        return beyond_mean(self.score, per_sample(ratio.to(z), z, "alpha") * z, time.to(t))

    def _around(self, score: NoisyScore) -> RescheduledScore:
        return RescheduledScore(score, self.schedule)
