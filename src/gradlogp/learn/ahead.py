"""Batches of the coming steps, and all in their losses that does not depend on the weights.

For a small network the times, the noise, the frame and the base of a step are dozens of operations
on a few numbers each, which together take a third as long as the network. They are therefore done
for several steps at once. What is drawn is drawn step by step, so that it does not depend on that.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..core import Generator, PartOfBatch, Processes, check_points, sent
from ..scores.affine import affine, is_affine
from ..scores.frame import Seen
from ..scores.model import ScoreModel
from ..scores.networks import drop
from .feed import Feed
from .held_out import Objective, conditioned, losses_of
from .objectives.denoising import Draws, draw, half_square, options_of, regression
from .objectives.weights import sigma2

NUMBERS, MOST = 2**15, 16
"""Numbers of the data of all steps that are prepared together, and steps, at most: with more of
either, an operation takes as long as what it works on."""


def together(
    model: ScoreModel, objective: Objective, size: int, dropout: float, *, encoded: bool
) -> int:
    """Return how many steps are prepared together: one unless all but the network is known before.

    A learned value in place of a condition left out is not, nor is what a user's own objective or
    model does. Rows that have yet to be read, or are changed by a function, are best read step by
    step.

    Arguments:
        model: The model.
        objective: The loss of each sample.
        size: The rows of a batch.
        dropout: How often a condition is left out.
        encoded: Whether the rows are in memory as the model takes them.
    """
    kind = None if model.condition is None else model.condition.kind
    learned = dropout > 0 and not isinstance(kind, int)
    if learned or not encoded or options_of(objective) is None or not is_affine(model):
        return 1
    entries = model.event_shape.numel() + (math.prod(kind) if isinstance(kind, tuple) else 0)
    return max(1, min(MOST, NUMBERS // (size * entries)))


class Batch(Protocol):
    """The rows of a batch that this process has, or some of them."""

    @property
    def total(self) -> int:
        """The number of rows of the whole batch, in all processes."""

    def parts(self, n: int) -> Sequence[Batch]:
        """Return these rows divided into n parts, of a row or more."""

    def losses(self) -> Tensor:
        """Return the loss of each row, for the weights as they are."""


@dataclass
class Drawn:
    """A batch whose losses are those of any objective.

    Noise and times are drawn for the whole batch, so that neither parts nor processes change the
    result, except for rounding.
    """

    model: ScoreModel
    objective: Objective
    z: Tensor
    condition: Tensor | None
    noise: torch.Generator
    rows: slice  # which of the batch they are
    total: int
    start: Tensor | None = None  # the state of the noise, which every part draws again

    def parts(self, n: int) -> Sequence[Batch]:
        """Return these rows divided into n parts, of a row or more."""
        sizes = _sizes(len(self.z), n)
        if len(sizes) == 1:
            return [self]
        start, parts, first = self.noise.get_state(), [], self.rows.start
        none = [None] * len(sizes)
        conditions = none if self.condition is None else self.condition.split(sizes)
        for z, condition in zip(self.z.split(sizes), conditions, strict=True):
            rows, first = slice(first, first + len(z)), first + len(z)
            parts.append(replace(self, z=z, condition=condition, rows=rows, start=start))
        return parts

    def source(self) -> Generator:
        """Return the source of the noise of these rows."""
        if len(self.z) == self.total:
            return self.noise
        return PartOfBatch(self.noise, self.rows, self.total)

    def losses(self) -> Tensor:
        """Return the loss of each row, for the weights as they are."""
        if self.start is not None:
            self.noise.set_state(self.start)
        score = conditioned(self.model, self.condition)
        return losses_of(self.objective, score, self.z, self.source())


class Prepared(NamedTuple):
    """A batch whose losses are ½‖ε + σ s‖² with ε + σ s = residual + gain F, F from the network."""

    network: nn.Module
    total: int
    seen: Seen
    residual: Tensor
    gain: Tensor
    factor: Tensor | None

    def parts(self, n: int) -> Sequence[Batch]:
        """Return these rows divided into n parts, of a row or more."""
        return [self] if n == 1 else self.split(_sizes(len(self.residual), n))

    def split(self, sizes: list[int]) -> list[Prepared]:
        """Return the rows divided into parts of these sizes."""
        each: Any = [
            # not as views: a network may change what it is given in place
            [None] * len(sizes) if value is None else torch.unsafe_split_with_sizes(value, sizes)
            for value in (*self.seen[:4], self.residual, self.gain, self.factor)
        ]
        return [
            Prepared(self.network, self.total, Seen(*row[:4]), *row[4:])
            for row in zip(*each, strict=True)
        ]

    def losses(self) -> Tensor:
        """Return the loss of each row, for the weights as they are."""
        out = self.seen.through(self.network)
        return half_square(torch.addcmul(self.residual, self.gain, out), self.factor)


class Ahead:
    """The batches of a training, in order; those of a few steps are made together.

    A state holds where these begin, so that a training that is resumed amid them makes the same
    ones, bit for bit.

    Arguments:
        n: How many are made together (`together`).
        model: The model with the network to call.
        objective: The loss of each sample.
        feed: Source of the rows.
        condition: The conditions of all rows, or None.
        dropout: How often they are left out.
        processes: The processes of the training.
        seed: Seed of the noise and, another, of what is left out.
    """

    def __init__(
        self, n: int, model: ScoreModel, objective: Objective, feed: Feed,
        condition: Tensor | None, dropout: float, processes: Processes, seed: int,
    ) -> None:  # fmt: skip
        self.n = n
        self.model, self.objective, self.feed = model, objective, feed
        self.dropout, self.processes, self.condition = dropout, processes, None
        if condition is not None and model.condition is not None:
            self.condition = model.condition.encode(condition)
        self.noise = torch.Generator(model.like.device).manual_seed(seed)
        self.dropping = torch.Generator().manual_seed(seed + 3)
        self.options = options_of(objective) if n > 1 else None
        self._ready: deque[Batch] = deque()
        self._next = 0  # the step after these
        self._began: dict[str, Any] | None = None  # the state where these begin

    def next(self, step: int) -> Batch:
        """Return the batch of a step, numbered from 0; the same one until the step is `done`."""
        if not self._ready:
            self._began, first = self._now(), self._next
            last = step - step % self.n + self.n
            batches = self._made([self._drawn(i) for i in range(first, last)])
            self._next = last
            self._ready.extend(batches[step - first :])
        return self._ready[0]

    def done(self) -> None:
        """Go on to the next batch."""
        self._ready.popleft()
        if not self._ready:
            self._began = None

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to repeat the step that is not done."""
        return self._now() if self._began is None else self._began

    def restore(self, state: dict[str, Any], seed: int | None = None) -> None:
        """Continue from a state, of a run of this seed of the feed."""
        self._next = state["drawn_from"]
        self.feed.restore(state, seed)
        self.noise.set_state(state["noise"])
        self.dropping.set_state(state["dropping"])
        self._ready.clear()
        self._began = None

    def _now(self) -> dict[str, Any]:
        noise, dropping = self.noise.get_state(), self.dropping.get_state()
        return {
            "drawn_from": self._next, "noise": noise, **self.feed.state(), "dropping": dropping,
        }  # fmt: skip

    def _drawn(self, step: int) -> tuple[Drawn, Draws | None]:
        """Return the rows of a step and, if they do not depend on the weights, its times and noise."""
        z, whole, mine = self.feed.next(step + 1)
        condition = None
        if self.condition is not None and self.model.condition is not None:
            condition = sent(self.condition[whole[mine]], z.device)
            if condition.is_floating_point():
                condition = condition.to(z)
            if self.dropout > 0:
                gone = drop(self.dropout, len(whole), self.dropping)[mine]
                condition = self.model.condition.drop(condition, sent(gone, z.device))
        batch = Drawn(self.model, self.objective, z, condition, self.noise, mine, len(whole))
        if self.options is None:
            return batch, None
        law = {k: v for k, v in self.options.items() if k != "weight"}
        return batch, draw(self.model.schedule, z, **law, generator=batch.source())

    @torch.no_grad()
    def _made(self, drawn: Sequence[tuple[Drawn, Draws | None]]) -> Sequence[Batch]:
        batches, draws = zip(*drawn, strict=True)
        if self.options is None:
            return batches
        z = torch.cat([batch.z for batch in batches])
        check_points(z, "z", wait=False)
        t, ratio, eps = zip(*draws, strict=True)
        every = Draws(torch.cat(t), None if ratio[0] is None else torch.cat(ratio), torch.cat(eps))
        asked = regression(self.model.schedule, z, every, self.options.get("weight", sigma2))
        conditions = [batch.condition for batch in batches]
        given = None if conditions[0] is None else torch.cat(conditions)
        seen, offset, gain = affine(self.model, asked.z_t, asked.t, given)
        residual = asked.eps if offset is None else torch.addcmul(asked.eps, asked.b, offset)
        made = Prepared(
            self.model.network, batches[0].total, seen, residual, asked.b * gain, asked.factor
        )
        return made.split([len(batch.z) for batch in batches])


def _sizes(rows: int, n: int) -> list[int]:
    """Return the sizes of n parts of rows, or of as many as there are."""
    n = min(n, rows)
    return [rows * (i + 1) // n - rows * i // n for i in range(n)]
