r"""The driver `evolve`, which moves noise to data through time; where it starts, and at which times.

Every sample has its own noise (`core.Streams`), so that the same generator state yields the same
samples whatever the chunk size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    Generator,
    NoisyScoreFn,
    Progress,
    Schedule,
    Transition,
    check_batch,
    check_same_shape,
    chunks,
    count_chunks,
)
from .transitions.multistep import Multistep


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
