r"""The driver `evolve`, which moves noise to data through time.

Every sample has its own noise (`core.Streams`), so that the same generator state yields the same
samples for any chunk size.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    ALONE,
    Generator,
    NoiseSource,
    NoisyScore,
    Processes,
    Progress,
    Transition,
    check_count,
    check_finite,
    check_function,
    check_generator,
    check_kind,
    check_points,
    check_same_shape,
    check_transition,
    chunks,
    shares,
)
from ..noise.grids import time_grid
from ..noise.score_base import ScoreBase, check_noisy_score
from ..noise.terminal import ExactTerminal, start_of, terminal
from .transitions.annealed_noise import Coloured
from .transitions.facts import facts_of
from .transitions.multistep import Multistep
from .transitions.reverse import DDIM


def check_times(times: Tensor) -> None:
    """Raise `ValueError` unless times are a vector that descends in [0, 1]."""
    check_finite(times, "times")
    if times.ndim != 1 or len(times) < 1 or bool((times.diff() >= 0).any()):
        raise ValueError("times must be strictly decreasing")
    if not (float(times[0]) <= 1 and float(times[-1]) >= 0):
        raise ValueError(
            f"times must lie in [0, 1], got {float(times[0]):.4g} … {float(times[-1]):.4g}"
        )


@torch.no_grad()
def evolve(
    transition: Transition,
    score: NoisyScore,
    x: Float[Tensor, "batch *event"] | int,
    times: Float[Tensor, " times"] | None = None,
    *,
    generator: Generator | None = None,
    denoise: bool = True,
    chunk_size: int | None = None,
    progress: Progress | None = None,
    callback: Callable[[Tensor, Tensor], None] | None = None,
    processes: Processes = ALONE,
    out: Tensor | None = None,
) -> Float[Tensor, "batch *event"]:
    r"""Move states from the law at times[0] to that of the data, one transition after another.

    The last step goes from times[-1] to the noise-free end (α, σ) = (1, 0), where every transition
    returns the Tweedie mean; one that follows the flow adds how much further the flow of a base
    leads, if the model has a base. The result is converted to the units of the data.
    `denoise=False` stops at the noise level of times[-1] and returns the state in model coordinates.

    A number n instead of states draws these from `terminal(score, times[0])`. If no signal is left
    at t = 1 (α = 0) and the transition divides by α, the first step is a DDIM step.

    Arguments:
        transition: A transition such as `Ancestral()`, `ProbabilityFlow()`, `AnnealedLangevin()`.
        score: The noisy score, with its schedule.
        x: States at times[0] in model coordinates `(B, *event)`, or a number of samples.
        times: Descending times; by default `time_grid(score.schedule)`, for a number of samples
            from where they can start.
        generator: Source of the noise; the same state gives the same samples, in chunks of any
            size.
        denoise: Whether to end without noise, in the units of the data.
        chunk_size: Number of samples moved together; all by default. Rows of conditions and
            observations follow their samples.
        progress: Called as progress(done, total) after every step of every chunk.
        callback: Called as callback(z, t) with each state before its step, for pictures; sees one
            chunk at a time.
        processes: Processes that divide the work, `core.Processes.here()`: each has its share of
            the same samples, bit for bit if these are whole chunks, and all samples are returned
            in every process.
        out: A tensor to fill chunk by chunk and to return, for example on a memory map, for more
            samples than memory holds; a new one by default.

    Raises:
        ValueError: For an object that is not a noisy score, times that do not descend in [0, 1],
            states of a wrong shape, empty, or not finite; for a number, if times begin where no law
            is known (before 1, or before `score.start`), the event shape is not known, or the noise
            is `Coloured`; for an `out` of a wrong shape, or together with processes.
        FloatingPointError: If samples became NaN or infinite.
        RuntimeError: If one of the other processes failed.

    Examples:
        >>> law = glp.GaussianMixture([0.3, 0.7], [[-2.0], [2.0]], 0.2)
        >>> score, g = glp.ExactScore(law, glp.schedules.VP()), torch.Generator().manual_seed(0)
        >>> x = glp.evolve(glp.diffusion.DDIM(), score, 5000, generator=g)
        >>> abs(float((x < 0).float().mean()) - 0.3) < 0.03
        True
    """
    check_noisy_score(score)
    check_transition(transition)
    check_generator(generator, NoiseSource)
    for name, f in (("progress", progress), ("callback", callback)):
        if f is not None:
            check_function(f, name, takes=2)
    if times is None:
        t_max = 1.0 if isinstance(x, Tensor) else first_time(transition, score)
        times = time_grid(score.schedule, t_max=t_max)
    check_times(times)
    Processes.check(processes)
    processes.same_noise(generator)
    each = times.unbind()
    steps: list[tuple[Tensor, Tensor | None]] = list(pairwise(each))
    steps.append((each[-1], None if denoise else each[-1]))
    blind = bool(score.schedule(times[0])[0] == 0) and facts_of(transition).divides_by_alpha
    if isinstance(x, Tensor):
        check_points(x, event_shape=score.event_shape)
        start = x
    else:
        start = _start(transition, score, x, times, generator)
    if isinstance(score, ScoreBase):
        score = score.tabulated(each)
    total, done = len(shares(len(start), chunk_size, processes)) * len(steps), 0

    def moved_part(part: slice, streams: NoiseSource) -> Tensor:
        nonlocal done
        whole = part == slice(0, len(start))
        inside = score if whole else score.rows(part)
        z = start[part]
        if not isinstance(x, Tensor) and not z.stride(0):  # no draws of an exact law: its own
            z = terminal(inside, float(times[0])).sample(len(z), generator=streams)
        own = transition
        if not whole and hasattr(transition, "rows"):  # observations of these samples
            own = transition.rows(part)
        move = own.begin() if isinstance(own, Multistep) else own
        for i, (t, s) in enumerate(steps):
            if callback is not None:
                callback(z, t)
            step = DDIM() if blind and i == 0 else move
            moved = step(z, t, s, inside, generator=streams)
            check_same_shape(moved, z, type(transition).__name__)
            z = moved
            done += 1
            if progress is not None:
                progress(done, total)
        if not bool(torch.isfinite(z).all()):
            bad = int((~torch.isfinite(z)).flatten(1).any(1).sum())
            raise FloatingPointError(
                f"{bad} of {len(z)} samples became NaN or infinite; use smaller steps or start at a "
                "smaller t"
            )
        return score.coordinates.decode(z) if denoise else z

    parts = chunks(start, chunk_size, generator, processes)
    if out is None:
        work = lambda: ([torch.cat([moved_part(*part) for part in parts])], None)
        return processes.gather(work)[0][0]
    check_kind(out, "out", Tensor, "a tensor to fill")
    if out.shape != start.shape or not processes.alone:
        raise ValueError(
            f"out must have shape {tuple(start.shape)}, and needs a single process; got "
            f"{tuple(out.shape)} and {processes.size}"
        )
    for part, streams in parts:
        made = moved_part(part, streams)
        if made.dtype != out.dtype:
            raise ValueError(f"out must be {made.dtype}, like the samples, got {out.dtype}")
        out[part] = made
    return out


def first_time(transition: Transition, score: NoisyScore) -> float:
    """Return the least time at which samples can start: that of the score, or 1.

    A transition whose samples need not have the law of the score starts at 1: one that follows an
    observation, or does not converge to that law with finer times (`facts.order` is None).
    """
    own = facts_of(transition).order is not None and not hasattr(transition, "rows")
    return start_of(score) if own else 1.0


def _start(
    transition: Transition, score: NoisyScore, n: int, times: Tensor, generator: Generator | None
) -> Tensor:
    """Return draws of an exact law at times[0]; else a placeholder, of no stride, for those to come."""
    check_count(n, "x, as a number of samples,")
    if isinstance(transition, Coloured):
        raise ValueError(
            "with coloured noise draw the start yourself: K^(1/2) times draws from terminal(score)"
        )
    t = float(times[0])
    if t < first_time(transition, score):
        raise ValueError(
            f"a number of samples needs a start at t = 1, or where the score and the transition know "
            f"the law, but times begin at {t:.4g}; pass states at that time"
        )
    if score.event_shape is None:
        raise ValueError(
            "this score does not know the shape of its samples: pass event_shape= when you create "
            "it, or pass states instead of a number"
        )
    law = terminal(score.rows(slice(0, 1)) if n > 1 else score, t)
    if isinstance(law, ExactTerminal) and not law.by_rows:
        return terminal(score, t).sample(n, generator=generator)
    like = law.like if isinstance(law, ExactTerminal) else law.mean
    return like.new_empty(()).expand(n, *score.event_shape)
