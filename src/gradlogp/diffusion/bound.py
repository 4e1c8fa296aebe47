r"""The variational bound of a diffusion model: a lower bound of its log-likelihood, by sampling."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    Generator,
    NoisyScoreFn,
    Schedule,
    check_batch,
    chunks,
    per_sample,
    rand_like,
    randn_like,
    sum_event,
)
from ..noise.predictions import predict
from ..noise.schedules import invert_log_snr


class Bound(NamedTuple):
    """A lower bound of log p(x) in nats and its standard error over draws, each `(B,)`."""

    log_prob: Float[Tensor, " batch"]
    standard_error: Float[Tensor, " batch"]
    nfe: int


def _gaussian_kl(x: Tensor, schedule: Schedule, mean: Tensor, var: Tensor) -> Tensor:
    """Return KL(N(α_1 x, σ_1²) ‖ N(α_1 m, α_1² v + σ_1²)), `(B,)`."""
    alpha, sigma = (v.to(x) for v in schedule(torch.ones((), dtype=torch.float64)))
    ratio = sigma**2 / (alpha**2 * var + sigma**2)
    shift = (alpha * (x - mean)).square() / (alpha**2 * var + sigma**2)
    return 0.5 * sum_event((ratio - 1 - ratio.log() + shift).expand(x.shape))


@torch.no_grad()
def variational_bound(
    score: NoisyScoreFn,
    schedule: Schedule,
    x: Float[Tensor, "batch *event"],
    *,
    n_strata: int = 64,
    t_min: float = 1e-3,
    mean: Tensor | float = 0.0,
    var: Tensor | float = 1.0,
    generator: Generator | None = None,
    chunk_size: int | None = None,
) -> Bound:
    r"""Evidence lower bound of the reverse SDE with this score, in continuous time.

    .. math::
        \log p(x) \ge -\mathrm{KL}(q(x_1 | x) \,\|\, p_1) - \tfrac12 \int_{λ_1}^{λ_{min}}
        E\, \|ε - \hat ε(α x + σ ε)\|^2\, dλ + E \log p(x | x_{t_{min}}), \qquad
        p(x | x_t) = N(x_t/α, σ^2/α^2)

    with λ = log(α²/σ²). Where the score is exact and the law at t = 1 too, the first two terms lose
    nothing, and the last one vanishes against them as t_min → 0. The integral is taken over equal
    strata of λ with two draws each, whose difference gives the standard error.

    Arguments:
        score: The noisy score.
        schedule: Its schedule.
        x: Points, `(B, *event)`.
        n_strata: Strata of λ; 2 evaluations of the score each.
        t_min: Where the path starts.
        mean: Data mean, for the law at t = 1 (as in `prior`).
        var: Data variance per entry, likewise.
        generator: Where times and noise come from.
        chunk_size: Points handled together.

    Raises:
        ValueError: For a wrong shape, n_strata below 1, or a schedule whose α_1 or σ at t_min is 0.

    References:
        | Variational Diffusion Models (Kingma et al., 2021)
        | https://arxiv.org/abs/2107.00630
        | Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021)
        | https://arxiv.org/abs/2101.09258
    """
    check_batch(x)
    if n_strata < 1:
        raise ValueError(f"n_strata must be at least 1, got {n_strata}")
    low, high = schedule.log_snr(torch.tensor([1.0, t_min], dtype=torch.float64)).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"the log-SNR must be finite from t_min to 1, got {high:.4g} and {low:.4g}; choose "
            "t_min > 0 and a schedule that keeps some signal at t = 1"
        )
    width, d = (high - low) / n_strata, x.shape[1:].numel()
    m, v = (torch.as_tensor(q, dtype=x.dtype, device=x.device) for q in (mean, var))
    values, variances = [], []
    for part, streams in chunks(x, chunk_size, generator):
        y = x[part]
        loss, spread = y.new_zeros(len(y)), y.new_zeros(len(y))
        for k in range(n_strata):
            pair = []
            for _ in range(2):
                u = rand_like(y[:, :1].flatten(1)[:, 0], streams).double()
                t = invert_log_snr(schedule, low + (k + u) * width)
                alpha, sigma = (per_sample(q.to(y), y) for q in schedule(t))
                noise = randn_like(y, streams)
                found = predict(score, schedule, alpha * y + sigma * noise, t.to(y))[1]
                pair.append(0.5 * width * sum_event((noise - found).square()))
            loss = loss + (pair[0] + pair[1]) / 2
            spread = spread + ((pair[0] - pair[1]) / 2).square()
        # E over x_t of log N(x; x_t/α, σ²/α²): the squared distance is d in its own units
        decoder = -0.5 * d * (1 + math.log(2 * math.pi) - high)
        values.append(decoder - _gaussian_kl(y, schedule, m, v) - loss)
        variances.append(spread)
    return Bound(torch.cat(values), torch.cat(variances).sqrt(), 2 * n_strata)
