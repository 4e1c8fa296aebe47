r"""A score learned under one schedule, read under another.

Laws under two schedules with the same noise-to-signal ratio r = σ/α differ by a factor: if
x_t = α x_0 + σ ε and x'_t' = α' x_0 + σ' ε with σ/α = σ'/α', then x' = (α'/α) x.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    Denoiser,
    NoisyScoreFn,
    Schedule,
    check_batch,
    per_sample,
)
from ..noise.predictions import predict
from ..noise.schedules import invert_log_snr


class RescheduledScore:
    r"""The noisy score under the schedule `target` of a model that belongs to `source`.

    .. math::
        s'(x', t') = \frac{α}{α'}\, s\left( \frac{α}{α'} x', t \right), \qquad
        \frac{σ_t}{α_t} = \frac{σ'_{t'}}{α'_{t'}}

    so that VE and VP are one model in two coordinate systems. The posterior mean E[x_0 | x_t] is
    the same under both.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456
        | Variational Diffusion Models (Kingma et al., 2021)
        | https://arxiv.org/abs/2107.00630

    Arguments:
        score: A noisy score under `source`.
        source: The schedule that it was made for.
        target: The schedule under which it shall be used; its (α, σ) at t decide, so that it may
            reach only noise levels that `source` has.

    Raises:
        ValueError: At a call, for a noise level that `source` does not reach.
    """

    def __init__(self, score: NoisyScoreFn, source: Schedule, target: Schedule) -> None:
        self.score, self.source, self.schedule = score, source, target

    def _place(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x in the coordinates of the source, its time there, and α/α'."""
        check_batch(x)
        per_sample(t, x)
        exact = t.double()  # times closer than float32 tells apart are found by bisection
        wanted = self.schedule.log_snr(exact)
        ends = torch.tensor([1.0, 0.0], dtype=torch.float64, device=x.device)
        low, high = (float(v) for v in self.source.log_snr(ends))
        slack = 1e-6
        if bool(((wanted < low - slack) | (wanted > high + slack)).any()):
            r = (-0.5 * wanted).exp()
            raise ValueError(
                f"sigma/alpha from {float(r.min()):.4g} to {float(r.max()):.4g} was asked of a "
                f"model that knows {float(torch.tensor(-high / 2).exp()):.4g} to "
                f"{float(torch.tensor(-low / 2).exp()):.4g}; choose a schedule (or t_min) within"
            )
        time = invert_log_snr(self.source, wanted)
        ratio = self.source(time)[0] / self.schedule(exact)[0]
        return per_sample(ratio.to(x), x, "alpha") * x, time.to(t), ratio.to(x)

    def __call__(
        self, x: Float[Tensor, "batch *event"], t: Float[Tensor, "*time"]
    ) -> Float[Tensor, "batch *event"]:
        """Return the score of the law of x at t; t `()` or `(B,)`."""
        y, time, ratio = self._place(x, t)
        return per_sample(ratio, x, "alpha") * self.score(y, time)

    def denoise(
        self, x: Float[Tensor, "batch *event"], t: Float[Tensor, "*time"]
    ) -> Float[Tensor, "batch *event"]:
        """Return the posterior mean E[x_0 | x_t = x]."""
        y, time, _ = self._place(x, t)
        if isinstance(self.score, Denoiser):
            return self.score.denoise(y, time)
        return predict(self.score, self.source, y, time)[0]
