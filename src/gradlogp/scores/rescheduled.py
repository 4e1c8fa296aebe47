r"""A score learned under one schedule, used under another.

Laws under two schedules with the same noise-to-signal ratio r = σ/α differ by a factor: if
z_t = α z_0 + σ ε and z'_t' = α' z_0 + σ' ε with σ/α = σ'/α', then z' = (α'/α) z.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Analytic, NoisyScore, Schedule, check_schedule, per_sample
from ..noise.blurred import noisy_log_prob
from ..noise.schedules import invert_log_snr
from ..noise.score_base import ScoreWrapper, check_noisy_score


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

    def _around(self, score: NoisyScore) -> RescheduledScore:
        return RescheduledScore(score, self.schedule)
