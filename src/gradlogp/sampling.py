r"""The driver `evolve`, which moves noise to data through time; where it starts, and at which times.

Every sample has its own noise (`core.Streams`), so that the same generator state yields the same
samples whatever the chunk size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from .core import (
    Generator,
    NoisyScoreFn,
    Schedule,
    Streams,
    Transition,
    block_of,
    check_batch,
    check_same_shape,
    new_seed,
    randn_like,
)
from .schedules import invert_log_snr
from .transitions.multistep import Multistep

Progress = Callable[[int, int], None]
"""Called as progress(done, total) after every step."""


def prior(
    schedule: Schedule,
    shape: tuple[int, ...],
    mean: Tensor | float = 0.0,
    var: Tensor | float = 1.0,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw from N(α_1 m, α_1² v + σ_1²), the law of x at t = 1 for data of that mean and variance.

    It is the law itself for Gaussian data, and elsewhere agrees with it in the first two moments;
    N(0, σ_1²) by habit would be off by α_1 m in the mean.

    Arguments:
        schedule: The noise schedule.
        shape: `(n, *event)`.
        mean: Data mean m, a number or an event-shaped tensor.
        var: Data variance v per entry, likewise.
        generator: Where the noise comes from.
        dtype: Of the result; PyTorch's default where not given.
        device: Of the result.
    """
    mean, var = torch.as_tensor(mean), torch.as_tensor(var)
    for name, value in (("mean", mean), ("var", var)):
        if value.ndim and value.shape != torch.Size(shape[1:]):
            raise ValueError(
                f"{name} must be a number or have shape {tuple(shape[1:])}, got {tuple(value.shape)}"
            )
    if bool((var < 0).any()):
        raise ValueError("var must be at least 0; it is a variance, not a standard deviation")
    z = randn_like(torch.empty(shape, dtype=dtype, device=device), generator)
    alpha, sigma = (v.to(z) for v in schedule(torch.ones((), dtype=torch.float64)))
    return alpha * mean.to(z) + (alpha**2 * var.to(z) + sigma**2).sqrt() * z


def time_grid(
    steps: int | Schedule, n: int = 40, *, t_min: float = 1e-3, rho: float = 7.0
) -> Float[Tensor, " times"]:
    r"""Descending times from t = 1 (noise) towards data, float64.

    `time_grid(n)` is uniform from 1 to `t_min`. `time_grid(schedule)` has one time for each level
    of a discrete ladder; for a continuous schedule it has n times at which the noise-to-signal
    ratio r = σ/α follows :math:`r_i^{1/ρ}` uniform (the EDM grid), from t = 1 to `t_min`. Noise
    above r = 1000 is crossed in the first step: there x carries nothing of the data.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        steps: The number of times, or a schedule.
        n: The number of times on a continuous schedule.
        t_min: The last time, where the final denoising starts.
        rho: Exponent of the grid; larger means finer near the data.

    Raises:
        ValueError: For fewer than two times or a t_min outside [0, 1).
    """
    n = steps if isinstance(steps, int) else n
    if n < 2:
        raise ValueError(f"a time grid needs at least two times, got {n}")
    if not 0 <= t_min < 1:
        raise ValueError(f"t_min must lie in [0, 1), got {t_min}")
    if isinstance(steps, int):
        return torch.linspace(1, t_min, n, dtype=torch.float64)
    if steps.times is not None:
        return steps.times
    ends = torch.tensor([1.0, t_min], dtype=torch.float64)
    first, last = (-steps.log_snr(ends).clamp(min=-2 * math.log(1e3)) / (2 * rho)).exp()
    ramp = torch.linspace(0, 1, n, dtype=torch.float64)
    log_snr = -2 * rho * (first + ramp * (last - first)).log()
    times = invert_log_snr(steps, log_snr, t_min)
    times[0], times[-1] = 1.0, t_min
    return times


def count_chunks(n: int, chunk_size: int | None) -> int:
    """Return how many chunks n chains make.

    Raises:
        ValueError: If there is no chain.
    """
    if n < 1:
        raise ValueError("x is empty: there is no chain to move")
    return -(-n // (chunk_size or n))


def chunks(
    x: Tensor, chunk_size: int | None, generator: Generator | None
) -> Iterator[tuple[slice, Streams]]:
    """Yield the chunks of x, each with streams of its own (a whole run keeps its streams).

    Raises:
        ValueError: For a chunk size below 1, or chunks asked of a caller's own streams.
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if isinstance(generator, Streams):
        if chunk_size is not None and chunk_size < len(x):
            raise ValueError("streams already belong to one chunk; pass a torch.Generator")
        yield slice(0, len(x)), generator
        return
    n, block = len(x), block_of(x.shape[1:], x.device)
    for streams in Streams.split(new_seed(generator), n, chunk_size or n, x.device, block):
        yield slice(streams.start, streams.stop), streams


@torch.no_grad()
def evolve(
    transition: Transition,
    score: NoisyScoreFn,
    schedule: Schedule,
    x: Float[Tensor, "batch *event"],
    times: Float[Tensor, " times"],
    *,
    generator: Generator | None = None,
    progress: Progress | None = None,
    denoise: bool = True,
    chunk_size: int | None = None,
    callback: Callable[[Tensor, Tensor], None] | None = None,
) -> Float[Tensor, "batch *event"]:
    r"""Move x from the law at times[0] to that of the data, one transition after another.

    The last step goes from times[-1] to the noise-free end (α, σ) = (1, 0), where every
    transition returns the Tweedie mean; `denoise=False` stops at the noise level of times[-1].

    Arguments:
        transition: Such as `Ancestral()`, `ProbabilityFlow()`, `AnnealedLangevin()`.
        score: The noisy score.
        schedule: The schedule that the score belongs to.
        x: Start, usually from `prior`, `(B, *event)`.
        times: Descending times, usually from `time_grid`.
        generator: Where the noise comes from; the same state gives the same samples, in chunks of
            any size.
        progress: Called as progress(done, total) after every step of every chunk.
        denoise: Whether to end in the Tweedie denoising.
        chunk_size: Samples moved together; all where not given.
        callback: Called as callback(x, t) with each state before its step, for pictures; sees one
            chunk at a time.

    Raises:
        ValueError: For times that do not descend in [0, 1], or a wrong shape.
    """
    check_batch(x)
    if times.ndim != 1 or len(times) < 1 or bool((times.diff() >= 0).any()):
        raise ValueError("times must be a vector that descends strictly")
    if float(times[0]) > 1 or float(times[-1]) < 0:
        raise ValueError(
            f"times must lie in [0, 1], got {float(times[0]):.4g} … {float(times[-1]):.4g}"
        )
    steps: list[tuple[Tensor, Tensor | None]] = list(pairwise(times))
    steps.append((times[-1], None if denoise else times[-1]))
    n_chunks = count_chunks(len(x), chunk_size)
    total, done, parts = n_chunks * len(steps), 0, []
    for part, streams in chunks(x, chunk_size, generator):
        y = x[part]
        move = transition.begin() if isinstance(transition, Multistep) else transition
        for t, s in steps:
            if callback is not None:
                callback(y, t)
            moved = move(y, t, s, score, schedule, generator=streams)
            check_same_shape(moved, y, type(transition).__name__)
            y = moved
            done += 1
            if progress is not None:
                progress(done, total)
        parts.append(y)
    return torch.cat(parts)
