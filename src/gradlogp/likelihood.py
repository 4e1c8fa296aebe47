r"""Log-likelihood by the probability-flow ODE.

Along dx/dt = v(x, t) = α' x̂_0 + σ' ε̂ the density changes by d log p_t(x_t)/dt = −div v, so

    log p_{t_min}(x) = log p_1(x_1) + ∫_{t_min}^1 div v(x_t, t) dt.

What is returned is the density at t_min, whose noise σ(t_min) is part of the model: for data it
is that of a distribution blurred by σ/α (t_min = 1e-3 under VP: 0.01).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .autodiff import Probe, hutchinson_trace, jacobian_trace
from .autodiff import probe as draw_probe
from .core import Density, Generator, NoisyScoreFn, Schedule, check_batch, sum_event
from .parametrization import predict
from .sampling import Progress, chunks, count_chunks, time_grid


class Likelihood(NamedTuple):
    """Log-likelihood in nats and its standard error over probes (0 if exact), each `(B,)`."""

    log_prob: Float[Tensor, " batch"]
    standard_error: Float[Tensor, " batch"]
    nfe: int


def _log_prior(x: Tensor, schedule: Schedule, mean: Tensor | float, var: Tensor | float) -> Tensor:
    alpha, sigma = (v.to(x) for v in schedule(torch.ones((), dtype=torch.float64)))
    m, v = (torch.as_tensor(q, dtype=x.dtype, device=x.device) for q in (mean, var))
    variance = (alpha**2 * v + sigma**2).expand(x.shape[1:])
    return -0.5 * sum_event((x - alpha * m).square() / variance + (2 * math.pi * variance).log())


@torch.no_grad()
def log_likelihood(
    score: NoisyScoreFn,
    schedule: Schedule,
    x: Float[Tensor, "batch *event"],
    divergence: Literal["exact", "hutchinson"] = "exact",
    *,
    n_steps: int = 64,
    t_min: float = 1e-3,
    mean: Tensor | float = 0.0,
    var: Tensor | float = 1.0,
    prior: Density | None = None,
    n_probes: int = 1,
    probe: Probe = "rademacher",
    generator: Generator | None = None,
    chunk_size: int | None = None,
    progress: Progress | None = None,
) -> Likelihood:
    r"""Log-density of x under a noisy score, by the probability flow from t_min to 1.

    .. math:: \log p_{t_{min}}(x) = \log p_1(x_1) + \int_{t_{min}}^1 \nabla \cdot v(x_t, t)\, dt

    Fourth-order Runge–Kutta on the grid of `time_grid(schedule, n_steps + 1)`; each sample is on
    its own. A Hutchinson divergence uses the same probes all along the path, so that the error
    over probes is the error of the result.

    Arguments:
        score: The noisy score.
        schedule: Its schedule.
        x: Points, `(B, *event)`.
        divergence: "exact" (d Jacobian-vector products an evaluation) or "hutchinson".
        n_steps: Runge–Kutta steps, four evaluations each.
        t_min: Where the data is taken to be; log p is that of p at t_min.
        mean: Data mean, for the law at t = 1 (as in `prior`).
        var: Data variance per entry, likewise.
        prior: The law at t = 1 itself, where it is known; instead of mean and var.
        n_probes: Probes of the Hutchinson estimate; with one the standard error is NaN, unknown.
        probe: Their law.
        generator: Where the probes come from.
        chunk_size: Points handled together.
        progress: Called as progress(done, total) after every step.

    Raises:
        ValueError: For a wrong shape or an unknown divergence.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456
        | FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models
          (Grathwohl et al., 2019)
        | https://arxiv.org/abs/1810.01367
    """
    check_batch(x)
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(f"divergence must be 'exact' or 'hutchinson', got {divergence!r}")
    if schedule.times is not None:
        raise ValueError("a discrete ladder has no continuous flow; use the schedule it came from")
    if n_steps < 1 or n_probes < 1:
        raise ValueError(f"n_steps and n_probes must be positive, got {n_steps} and {n_probes}")
    times = time_grid(schedule, n_steps + 1, t_min=t_min).flip(0)
    n_chunks = count_chunks(len(x), chunk_size)
    total, done, nfe, values = n_chunks * n_steps, 0, 0, []
    for part, streams in chunks(len(x), chunk_size, generator, x.device):
        y = x[part]
        probes = (
            torch.stack([draw_probe(probe, y, streams) for _ in range(n_probes)])
            if divergence == "hutchinson"
            else None
        )

        def velocity(u: Tensor, t: Tensor, v: Tensor | None = probes) -> tuple[Tensor, Tensor]:
            """Return dx/dt and its divergence, `(B,)` or `(n_probes, B)`."""
            d_alpha, d_sigma = schedule.rates(t)

            def field(w: Tensor) -> Tensor:
                x0, eps = predict(score, schedule, w, t)
                return d_alpha * x0 + d_sigma * eps

            return jacobian_trace(field, u) if v is None else hutchinson_trace(field, u, v)

        gain: Tensor | float = 0.0
        for t, s in pairwise(times):
            h = s - t
            k1, l1 = velocity(y, t)
            k2, l2 = velocity(y + 0.5 * h * k1, t + 0.5 * h)
            k3, l3 = velocity(y + 0.5 * h * k2, t + 0.5 * h)
            k4, l4 = velocity(y + h * k3, s)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            gain = gain + h / 6 * (l1 + 2 * l2 + 2 * l3 + l4)
            done += 1
            if progress is not None:
                progress(done, total)
        end = _log_prior(y, schedule, mean, var) if prior is None else prior.log_prob(y)
        values.append(end + gain)
        nfe = 4 * n_steps
    if divergence == "exact":
        log_prob = torch.cat(values)
        return Likelihood(log_prob, torch.zeros_like(log_prob), nfe)
    over_probes = torch.cat(values, dim=1)
    spread = (
        over_probes.std(0)
        if n_probes > 1
        else over_probes.new_full(over_probes[0].shape, torch.nan)
    )
    return Likelihood(over_probes.mean(0), spread / math.sqrt(n_probes), nfe)
