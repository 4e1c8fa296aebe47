r"""The variational bound of a diffusion model: a lower bound of its log-likelihood, by sampling."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    ALONE,
    Generator,
    NoiseSource,
    NoisyScore,
    Processes,
    check_count,
    check_points,
    chunks,
    per_sample,
    rand_like,
    randn_like,
    sum_event,
)
from ..noise.blurred import encode
from ..noise.grids import check_t_min, least_time
from ..noise.predictions import predict
from ..noise.schedules import invert_log_snr
from ..noise.score_base import check_noisy_score
from ..noise.terminal import terminal


class Bound(NamedTuple):
    """A lower bound of log p(x) in nats and its standard error over draws, each `(B,)`."""

    log_prob: Float[Tensor, " batch"]
    standard_error: Float[Tensor, " batch"]
    nfe: int
    t_min: float


@torch.no_grad()
def variational_bound(
    score: NoisyScore,
    x: Float[Tensor, "batch *event"],
    *,
    n_strata: int = 64,
    t_min: float | None = None,
    generator: Generator | None = None,
    chunk_size: int | None = None,
    processes: Processes = ALONE,
) -> Bound:
    r"""Evidence lower bound of the reverse SDE with this score, in continuous time.

    .. math::
        \log p(z) \ge -\mathrm{KL}(q(z_1 | z) \,\|\, p_1) - \tfrac12 \int_{λ_1}^{λ_{min}}
        E\, \|ε - \hat ε(α z + σ ε)\|^2\, dλ + E \log p(z | z_{t_{min}}), \qquad
        p(z | z_t) = N(z_t/α, σ^2/α^2)

    with λ = log(α²/σ²), and p_1 = `terminal(score)`. If the score and p_1 are exact, nothing is
    lost in the first two terms. The bound is for the law of the data blurred by 2σ²/α² at t_min:
    once by the noise there, once by the decoder p(z | z_t); both vanish as t_min → 0. With an exact
    score it is the mean over ε of log p(z + (σ/α) ε), p the data blurred once. The integral
    is computed over equal strata of λ with two draws each, whose difference gives the standard
    error.

    Arguments:
        score: The noisy score, with its schedule.
        x: Points in the units of the data, `(B, *event)`.
        n_strata: Number of strata of λ, with 2 evaluations of the score each.
        t_min: Start of the path; by default the smallest time with noise.
        generator: Source of times and noise.
        chunk_size: Number of points processed together.
        processes: Processes that divide the points among them, as in `evolve`.

    Raises:
        ValueError: For an object that is not a noisy score, a wrong shape, points that are not
            finite, n_strata below 1, a schedule whose α_1 or σ at t_min is 0, or an unknown law at
            t = 1.
        ArithmeticError: If a bound became NaN or infinite.

    References:
        | Variational Diffusion Models (Kingma et al., 2021)
        | https://arxiv.org/abs/2107.00630
        | Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021)
        | https://arxiv.org/abs/2101.09258
    """
    check_noisy_score(score)
    check_points(x, event_shape=score.event_shape)
    check_count(n_strata, "n_strata")
    schedule = score.schedule
    t_min = float(least_time(schedule)) if t_min is None else t_min
    check_t_min(t_min)
    low, high = schedule.log_snr(torch.tensor([1.0, t_min], dtype=torch.float64)).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(
            f"the log-SNR must be finite from t_min to 1, got {high:.4g} and {low:.4g}; choose "
            "t_min > 0 and a schedule that keeps some signal at t = 1"
        )
    width, d = (high - low) / n_strata, x.shape[1:].numel()
    ends = schedule(torch.ones((), dtype=torch.float64))
    Processes.check(processes)
    processes.same_noise(generator)

    def estimated(part: slice, streams: NoiseSource) -> tuple[Tensor, Tensor]:
        inside = score.rows(part)
        z = encode(score, x[part])
        loss, spread = z.new_zeros(len(z)), z.new_zeros(len(z))
        for k in range(n_strata):
            pair = []
            for _ in range(2):
                u = rand_like(z[:, :1].flatten(1)[:, 0], streams).double()
                t = invert_log_snr(schedule, low + (k + u) * width)
                alpha, sigma = (per_sample(q.to(z), z) for q in schedule(t))
                noise = randn_like(z, streams)
                found = predict(inside, alpha * z + sigma * noise, t.to(z))[1]
                pair.append(0.5 * width * sum_event((noise - found).square()))
            loss = loss + (pair[0] + pair[1]) / 2
            spread = spread + ((pair[0] - pair[1]) / 2).square()
        law = terminal(inside)
        first = [law.kl(z, *ends, streams) for _ in range(2)]
        spread = spread + ((first[0] - first[1]) / 2).square()
        # E over z_t of log N(z; z_t/α, σ²/α²): the squared distance is d in its own units
        decoder = -0.5 * d * (1 + math.log(2 * math.pi) - high)
        bound = decoder - (first[0] + first[1]) / 2 - loss
        return bound.to(x) + score.coordinates.log_det(x[part]), spread.sqrt().to(x)

    def mine() -> tuple[list[Tensor], None]:
        found = [estimated(*part) for part in chunks(x, chunk_size, generator, processes)]
        return [torch.cat(parts) for parts in zip(*found, strict=True)], None

    value, error = processes.gather(mine)[0]
    bad = int((~(value + error).isfinite()).sum())
    if bad:
        raise ArithmeticError(
            f"the bound of {bad} of {len(x)} points became NaN or infinite; look whether the score is "
            "finite at x, or x far from the data"
        )
    return Bound(value, error, 2 * n_strata, t_min)
