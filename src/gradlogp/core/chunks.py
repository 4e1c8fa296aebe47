"""Chunks of a batch with noise of their own, and what reports progress."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor

from .randomness import Generator, NoiseSource, Streams, block_of, check_generator, new_seed
from .shapes import check_count

HELD = 2**23
"""Numbers that are held at a time where all pairs of points are gone through: 64 MB in float64."""


def rows_held(columns: int) -> int:
    """Return how many rows of so many numbers are held at a time, at least one."""
    return max(1, HELD // max(1, columns))


def warn_of_cost(n: int, most: int, what: str, instead: str) -> None:
    """Warn, with what to do instead, of more points than a cost that grows faster allows."""
    if n > most:
        message = f"{what} with {n:,} points is slow, above {most:,}: {instead}"
        warnings.warn(message, UserWarning, stacklevel=3)


Progress = Callable[[int, int], None]
"""Called as progress(done, total) after every step."""


@runtime_checkable
class Update(Protocol):
    """update(done, total, note): what to show; also what the samplers call as progress."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` steps are done."""


def count_chunks(n: int, chunk_size: int | None) -> int:
    """Return how many chunks n chains make.

    Raises:
        ValueError: If there is no chain, or a chunk would have none.
    """
    check_count(n, "the number of chains")
    if chunk_size is not None:
        check_count(chunk_size, "chunk_size")
    return -(-n // (chunk_size or n))


def chunks(
    x: Tensor, chunk_size: int | None, generator: Generator | None
) -> Iterator[tuple[slice, NoiseSource]]:
    """Yield the chunks of x, each with streams of its own (noise of the caller's serves a whole run).

    Raises:
        ValueError: For a chunk size below 1, or chunks asked of a caller's own noise.
    """
    count_chunks(len(x), chunk_size)
    check_generator(generator, NoiseSource)
    if isinstance(generator, NoiseSource):
        if chunk_size is not None and chunk_size < len(x):
            raise ValueError(
                "a NoiseSource serves one chunk; pass a torch.Generator, or leave chunk_size out"
            )
        yield slice(0, len(x)), generator
        return
    n, block = len(x), block_of(x.shape[1:], x.device)
    for streams in Streams.split(new_seed(generator), n, chunk_size or n, x.device, block):
        yield slice(streams.start, streams.stop), streams
