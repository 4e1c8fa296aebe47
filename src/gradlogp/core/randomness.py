"""The one place that draws noise, which does not depend on how chains are divided among chunks."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .shapes import check_count

BLOCK = 1024
"""Chains that share one stream of noise, by default."""

NUMBERS, ON_DEVICE = 2**15, 2**20
"""Numbers in one draw of one block, on the CPU and elsewhere: enough that a call does not show."""

PIECE = 2**22
"""Most numbers drawn in one go, for rows much larger than an event."""

FEW = 8
"""Most dimensions for which the chains are contiguous in memory, not the dimensions."""

MANY_ROWS = 2**20
"""Rows whose numbers are worth keeping short, and which are best read in the order of the file."""

_IN_PLACE = {torch.randn: Tensor.normal_, torch.rand: Tensor.uniform_}


def block_of(event_shape: torch.Size, device: torch.device | str = "cpu") -> int:
    """Return how many chains of this event shape best share a stream: a power of two, at least 16."""
    numbers = NUMBERS if torch.device(device).type == "cpu" else ON_DEVICE
    chains = max(16, numbers // max(1, event_shape.numel()))
    return 1 << (chains.bit_length() - 1)


@runtime_checkable
class NoiseSource(Protocol):
    """An object that is used like a `torch.Generator` and returns the noise itself."""

    def draw(self, law: Callable[..., Tensor], shape: torch.Size, like: Tensor) -> Tensor:
        """Return `shape` numbers of `law`, `torch.randn` or `torch.rand`, on the device of `like`."""
        ...


class Injected:
    """Noise chosen in advance: returns the given tensors in order, whatever law is requested.

    Arguments:
        noise: One tensor for each draw, of the shape of that draw.

    Attributes:
        left: The tensors not returned yet.
    """

    def __init__(self, *noise: Tensor) -> None:
        self.left = list(noise)

    def draw(self, law: Callable[..., Tensor], shape: torch.Size, like: Tensor) -> Tensor:
        """Return the next tensor, in the dtype and on the device of `like`.

        Raises:
            ValueError: If none is left, or the next has another shape.
        """
        if not self.left:
            raise ValueError(
                f"noise {tuple(shape)} was requested and none is left: pass one more tensor"
            )
        if self.left[0].shape != shape:
            raise ValueError(
                f"noise {tuple(shape)} was requested and the next tensor has shape "
                f"{tuple(self.left[0].shape)}: pass one tensor per draw, in order"
            )
        return self.left.pop(0).to(like)


class Streams:
    """Noise keyed by block of chains, so that a chain does not depend on how chains are chunked.

    One `torch.randn` call of n numbers is not the same as two of n/2, so the rows are divided into
    blocks of chains, each with its own stream derived from one seed. The chains [start, stop) out
    of `total` therefore get the same numbers in any chunk; a chunk that ends within a block draws
    the noise of the whole block.

    Arguments:
        seed: The seed of the whole run.
        start, stop, total: The chains [start, stop) of `total` chains in the whole run.
        device: The device of the noise.
        block: Number of chains per block; the noise depends on it.
    """

    def __init__(
        self,
        seed: int,
        start: int,
        stop: int,
        total: int,
        device: torch.device | str = "cpu",
        block: int = BLOCK,
    ) -> None:
        if not 0 <= start < stop <= total:
            raise ValueError(f"chains [{start}, {stop}) are not within the {total} chains")
        check_count(block, "block")
        self.start, self.stop, self.total, self.block = start, stop, total, block
        blocks = self.blocks
        # An odd multiplier keeps the low 32 bits, all that the CPU generator reads, distinct.
        seeds = [(seed + 0x9E3779B97F4A7C15 * i) % 2**63 for i in range(blocks.start, blocks.stop)]
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        starts = range(blocks.start * block, stop, block)
        self._full = [min(block, total - i) for i in starts]
        self._sizes = [min(stop, i + block) - max(start, i) for i in starts]

    @classmethod
    def split(
        cls,
        seed: int,
        total: int,
        chunk_size: int,
        device: torch.device | str = "cpu",
        block: int = BLOCK,
    ) -> list[Streams]:
        """Return the streams of every chunk of a run of `total` chains."""
        starts = range(0, total, chunk_size)
        return [cls(seed, i, min(i + chunk_size, total), total, device, block) for i in starts]

    @property
    def blocks(self) -> slice:
        """The numbers of the blocks in which these chains lie."""
        return slice(self.start // self.block, (self.stop - 1) // self.block + 1)

    def draw(self, law: Callable[..., Tensor], shape: torch.Size, like: Tensor) -> Tensor:
        """Draw `shape` numbers from `law` (`torch.randn`, `torch.rand`); rows are the chains."""
        if shape[0] != (n := self.stop - self.start):
            raise ValueError(
                f"these streams serve {n} chains, but noise for {shape[0]} was requested"
            )
        fill, dim = _IN_PLACE[law], int(len(shape) == 2 and shape[1] <= FEW)
        out = like.new_empty((shape[1], n) if dim else shape)  # the chains last, or first
        most = self.block if dim else max(1, PIECE // max(1, shape[1:].numel()))
        if n == self.total <= min(self.block, most):
            fill(out, generator=self._generators[0])
            return out.mT if dim else out
        skip, by_row = self.start % self.block, dim == 1 and self.total > self.block
        parts = out.split_with_sizes(self._sizes, dim)
        for part, size, generator in zip(parts, self._full, self._generators, strict=True):
            for at in range(0, size, most):  # mostly all of the block
                n_drawn = min(most, size - at)
                first, last = max(at, skip), min(at + n_drawn, skip + part.shape[dim])
                mine = part.narrow(dim, first - skip, last - first) if first < last else None
                if mine is not None and last - first == n_drawn:
                    drawn = mine
                else:
                    drawn = like.new_empty((shape[1], n_drawn) if dim else (n_drawn, *shape[1:]))
                for row in drawn if by_row else (drawn,):  # contiguous, which fills much faster
                    fill(row, generator=generator)
                if mine is not None and drawn is not mine:
                    mine.copy_(drawn.narrow(dim, first - at, last - first))
            skip = 0
        return out.mT if dim else out

    def get_state(self) -> Tensor:
        """Return where the streams stand: bytes, a row for each block."""
        return torch.stack([generator.get_state() for generator in self._generators])

    def set_state(self, state: Tensor) -> None:
        """Continue from where `get_state` was called."""
        for generator, row in zip(self._generators, state, strict=True):
            generator.set_state(row.clone())  # a view crashes PyTorch


class PartOfBatch:
    """Some rows of the noise of a whole batch, so that processes can divide a batch among them.

    Arguments:
        generator: The source of the noise of the whole batch; the same in all processes.
        rows: The rows of this process.
        total: The number of rows of the whole batch.
    """

    def __init__(self, generator: torch.Generator, rows: slice, total: int) -> None:
        self.generator, self.rows, self.total = generator, rows, total

    def draw(self, law: Callable[..., Tensor], shape: torch.Size, like: Tensor) -> Tensor:
        """Draw `shape` numbers of `law`: the rows of this process out of those of all."""
        if shape[0] != len(range(self.total)[self.rows]):
            raise ValueError(
                f"noise for {shape[0]} rows was requested, but this process has {self.rows} of "
                f"{self.total}"
            )
        whole = (self.total, *shape[1:])
        drawn = law(whole, dtype=like.dtype, device=like.device, generator=self.generator)
        return drawn[self.rows]


class _Forks:
    """Noise without a generator in forked processes, which begin with a copy of the same state.

    Like Python's `random` module, a child reseeds PyTorch's CPU generator, from its state and the
    number of the fork. So the children of a process differ from it and from one another, in the
    same way each time after `torch.manual_seed`; a seed that a child sets itself takes precedence.
    """

    n = 0

    def count(self) -> None:
        self.n += 1

    def seed(self) -> None:
        # an odd multiplier, as in `Streams`
        torch.default_generator.manual_seed((new_seed(None) + 0x9E3779B97F4A7C15 * self.n) % 2**63)


_forks = _Forks()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forks.count, after_in_child=_forks.seed)


Generator = torch.Generator | NoiseSource
"""Where randomness enters; `None` means PyTorch's default generator."""


def _draw(
    law: Callable[..., Tensor], shape: torch.Size, like: Tensor, g: Generator | None
) -> Tensor:
    if g is None or isinstance(g, torch.Generator):  # first, as the cheaper questions
        return law(shape, dtype=like.dtype, device=like.device, generator=g)
    if not isinstance(g, Streams):
        check_generator(g, NoiseSource)
    return g.draw(law, shape, like)


def check_generator(generator: object, also: Any = None) -> None:
    """Raise `ValueError` unless this is None, a `torch.Generator`, or of the type `also`."""
    if generator is None or isinstance(generator, torch.Generator):
        return
    if also is None or isinstance(generator, type) or not isinstance(generator, also):
        other = "" if also is None else f" or a {also.__name__}"
        raise ValueError(
            f"generator must be a torch.Generator{other}, got {type(generator).__name__}: pass "
            "torch.Generator().manual_seed(seed)"
        )


def randn_like(x: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw N(0, I) noise of the shape, dtype and device of x: the one place noise comes from."""
    return _draw(torch.randn, x.shape, x, generator)


def rand_like(x: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw uniform numbers in [0, 1) of the shape, dtype and device of x."""
    return _draw(torch.rand, x.shape, x, generator)


def choice(weights: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw n indices with replacement, with probability proportional to `weights` `(K,)`."""
    check_generator(generator)
    return torch.multinomial(weights, n, replacement=True, generator=generator)


def permutation(n: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw a uniform permutation of 0 … n−1 on the CPU, int32 for large n: half the memory."""
    check_generator(generator)
    small = n < MANY_ROWS or n >= 2**31  # the draws are the same for either dtype
    return torch.randperm(n, generator=generator, dtype=torch.int64 if small else torch.int32)


def subsample(x: Tensor, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Return n rows of x without replacement, or x where it has no more than n."""
    check_count(n, "max_points", 2)
    check_generator(generator)
    return x if len(x) <= n else x[permutation(len(x), generator)[:n].to(x.device)]


def new_seed(generator: Generator | None) -> int:
    """Draw a new seed, so that a run can give each block of chains its own streams."""
    check_generator(generator)  # no source of a caller's own, which has no seeds
    assert not isinstance(generator, NoiseSource)
    at = "cpu" if generator is None else generator.device
    return int(torch.randint(2**62, (), device=at, generator=generator))
