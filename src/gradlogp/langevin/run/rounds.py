"""Chunks of chains moved in turn, so that a run can end at any time with all at the same step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...core import Density, Kernel, NoiseSource
from .resume import Part
from .stream import Store, Stream

ROUND_SECONDS = 0.1
"""How long a chunk is moved before the next one has its turn and draws are stored."""

BUFFER_BYTES = 2**26
"""Draws of one chunk that wait to be stored."""


class Thinning(NamedTuple):
    """Which steps are kept; `since` of them had passed since a draw when the run began."""

    burn_in: int
    thin: int
    since: int = 0

    def kept(self, step: int) -> int:
        """Return how many draws the first steps give."""
        made = self.since // self.thin  # by a run that kept fewer
        return max(0, step - self.burn_in + self.since) // self.thin - made

    def due(self, step: int) -> bool:
        """Return whether this step gives a draw."""
        taken = step - self.burn_in + self.since
        return taken > 0 and taken % self.thin == 0

    def left_over(self, step: int) -> int:
        """Return how many steps have passed since the last draw."""
        return max(0, step - self.burn_in + self.since) % self.thin


@dataclass
class Stretch:
    """Some steps of one chunk: the state after them, and what of them is kept."""

    state: Any
    draws: list[Tensor] = field(default_factory=list)
    infos: list[Any] = field(default_factory=list)
    info: Any = None
    diverging: list[Tensor] = field(default_factory=list)
    steps: int = 0


class Round(NamedTuple):
    """Where the parts stand after so many steps, and the divergent steps of each chain in it."""

    done: int
    parts: list[Part]
    diverged: Tensor | None


def advance(
    stretch: Stretch,
    kernel: Kernel[Any, Any],
    target: Density,
    noise: NoiseSource,
    thinning: Thinning,
    first: int,
    n_steps: int,
    seconds: float,
    tell: Callable[[Any], None] | None,
) -> None:
    """Move one chunk by n_steps, or fewer if the time is over, one kernel step after another.

    Any function that fills a `Stretch` in the same way can replace it.

    What is in the stretch is complete at any moment; after so many `seconds` no further step begins,
    and `first` counts the steps that the run has taken before.
    """
    end = time.monotonic() + seconds
    while stretch.steps < n_steps:
        state, info = kernel.step(stretch.state, target, generator=noise)
        step = first + stretch.steps + 1
        stretch.state, stretch.info, stretch.steps = state, info, stretch.steps + 1
        if thinning.due(step):
            stretch.draws.append(state.x)
            stretch.infos.append(info)
        if (diverging := getattr(info, "diverging", None)) is not None:
            stretch.diverging.append(diverging)
        if tell is not None:
            tell(info)
        if time.monotonic() > end:
            return


def _count(diverging: list[Tensor]) -> Tensor:
    """Return how many steps of each chain diverged; mostly none, and to see that is faster."""
    flags = torch.stack(diverging)
    if bool(flags.view(torch.uint8).amax()):
        return flags.sum(0)
    return torch.zeros(flags.shape[1:], dtype=torch.long, device=flags.device)


def rounds(
    kernel: Kernel[Any, Any],
    target: Density,
    parts: list[Part],
    thinning: Thinning,
    n_steps: int,
    store: Store | Stream,
    tell: Callable[[Any], None] | None,
    first: int = 0,
) -> Iterator[Round]:
    """Move the parts in turn, all by the same number of steps, one round after another.

    Ctrl-C ends this after a round, which is shortened to what the first part has done of it; a
    signal that the store has caught ends it after the round.
    """
    x = parts[0].state.x
    most = max(1, BUFFER_BYTES // (x.numel() * x.element_size())) * thinning.thin
    done, interrupted = first, False
    while done < n_steps and not interrupted and store.caught is None:
        length, ends = 0, []
        for part in parts:
            n, seconds = (length, inf) if length else (min(n_steps - done, most), ROUND_SECONDS)
            before = None if part.streams is None else part.streams.get_state()
            stretch = Stretch(part.state)
            try:
                with store.interruptible():
                    advance(stretch, kernel, target, part.noise, thinning, done, n, seconds, tell)
                store.write(part.where, thinning.kept(done), stretch.draws, stretch.infos)
            except KeyboardInterrupt:
                n, interrupted = length or stretch.steps, True
                if part.streams is None or before is None or (n == 0 and store.info is None):
                    raise
                part.streams.set_state(before)  # a step may have drawn a part of its noise
                stretch = Stretch(part.state)
                with store.interruptible():
                    advance(stretch, kernel, target, part.noise, thinning, done, n, inf, None)
                store.write(part.where, thinning.kept(done), stretch.draws, stretch.infos)
            if not stretch.steps:
                return
            length = stretch.steps
            ends.append(stretch)
        done += length
        if store.info is None:
            store.allocate(ends[0].info)
        parts = [p._replace(state=s.state) for p, s in zip(parts, ends, strict=True)]
        counts = [_count(s.diverging) for s in ends if s.diverging]
        yield Round(done, parts, torch.cat(counts) if counts else None)
