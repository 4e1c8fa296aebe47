"""What many points cost: distances, rows that are held at a time, chunks of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .processes import Processes
from .randomness import Generator, NoiseSource, Streams, block_of, check_generator, new_seed
from .shapes import check_batch, check_count

HELD = 2**23
"""Numbers that are held at a time where all pairs of points are gone through: 64 MB in float64."""


def rows_held(columns: int) -> int:
    """Return how many rows of so many numbers are held at a time, at least one."""
    return max(1, HELD // max(1, columns))


def warn_of_cost(n: int, most: int, what: str, instead: str) -> None:
    """Warn of more points than is quick where the cost grows faster, and say what to do instead."""
    if n > most:
        message = f"{what} with {n:,} points is slow, above {most:,}: {instead}"
        warnings.warn(message, UserWarning, stacklevel=3)


ALONE = Processes()
"""This process and no other."""

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
        ValueError: If there is no chain, or a chunk would be empty.
    """
    check_count(n, "the number of chains")
    if chunk_size is not None:
        check_count(chunk_size, "chunk_size")
    return -(-n // (chunk_size or n))


def shares(n: int, chunk_size: int | None, processes: Processes = ALONE) -> list[slice]:
    """Return the chunks of n rows that belong to this process; one each without a chunk size.

    Raises:
        ValueError: For a chunk size below 1, or fewer chunks than processes.
    """
    n_chunks = count_chunks(n, chunk_size)
    if chunk_size is None:
        processes.check_batch(n, "a batch of {}")
        return [processes.rows(n)]
    processes.check_batch(n_chunks, f"a batch of {n} in {{}} chunks")
    mine = processes.rows(n_chunks)
    starts = range(mine.start * chunk_size, min(n, mine.stop * chunk_size), chunk_size)
    return [slice(i, min(n, i + chunk_size)) for i in starts]


def chunks(
    x: Tensor,
    chunk_size: int | None,
    generator: Generator | None,
    processes: Processes = ALONE,
) -> Iterator[tuple[slice, NoiseSource]]:
    """Yield the chunks of x, each with its own streams (a noise source of yours serves them all).

    Each of several processes goes through its own chunks.

    Raises:
        ValueError: For a chunk size below 1, fewer chunks than processes, or chunks with the
            caller's own noise.
    """
    mine = shares(len(x), chunk_size, processes)
    check_generator(generator, NoiseSource)
    if isinstance(generator, NoiseSource):
        if mine[0].stop < len(x):
            raise ValueError(
                "a NoiseSource serves one chunk; pass a torch.Generator, or omit chunk_size"
            )
        yield slice(0, len(x)), generator
        return
    seed, block = new_seed(generator), block_of(x.shape[1:], x.device)
    for part in mine:
        yield part, Streams(seed, part.start, part.stop, len(x), x.device, block)


def distances(x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
    r"""Return :math:`\lVert x_i - y_j \rVert` over the event, computed as differences.

    The expansion ‖x‖² + ‖y‖² − 2 xᵀy, which `torch.cdist` uses by default for many rows, suffers
    from cancellation: far from the origin small distances are lost. Here copies have distance 0
    exactly. Half precision, which `torch.cdist` does not support, is computed in float32.
    """
    check_batch(x)
    check_batch(y, x.shape[1:], "y")
    return _distances(_flat(x), _flat(y)).to(x.dtype)


def _flat(x: Tensor) -> Tensor:
    return (x.float() if x.dtype.itemsize < 4 else x).flatten(1)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


FEW, SPARE = 16, 8
"""Entries of a point below which differences are as quick; candidates beyond the k nearest."""


def neighbours(
    x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"], k: int = 1, *, copies: bool = True
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    r"""Return the distances of each x_i to the k nearest y_j, ascending, and which these are.

    The distances are those of `distances`. With many entries a product of matrices finds the
    candidates: for p_i and q_j, the points less the mean of all y,

    .. math:: \lVert x_i - y_j \rVert^2
        \ge (1 - δ) (\lVert p_i \rVert^2 + \lVert q_j \rVert^2) - 2\, p_i^\top q_j

    as computed in double precision, where δ bounds the rounding errors. If the largest of these
    numbers among the candidates is below the distance found, another point may be as near, and all
    are looked at.

    Arguments:
        x: Points to look from.
        y: Points to look at.
        k: Number of neighbours, at most m.
        copies: Whether points at distance 0 count; if not, a distance may be ∞.
    """
    check_batch(x)
    check_batch(y, x.shape[1:], "y")
    a, b, found = _flat(x), _flat(y), list[tuple[Tensor, Tensor]]()
    d, c = b.shape[1], k + SPARE

    def first(value: Tensor) -> tuple[Tensor, Tensor]:
        value = value if copies else value.masked_fill(value == 0, torch.inf)
        lowest = value.topk(k, dim=1, largest=False)
        return lowest.values, lowest.indices

    if d < FEW or len(b) <= 4 * c or b.device.type == "mps":  # which has no double precision
        found = [first(_distances(part, b)) for part in a.split(rows_held(2 * len(b)))]
        return torch.cat([v for v, _ in found]).to(x.dtype), torch.cat([i for _, i in found])
    centre, less = b.double().mean(0), 1 - (4 * d + 8) * torch.finfo(torch.float64).eps
    q, rounded = b.double() - centre, 1 + (d + 2) * torch.finfo(b.dtype).eps
    sizes = less * q.square().sum(1)
    for part in a.split(rows_held(max(2 * len(b), c * d))):
        p = part.double() - centre
        least = torch.addmm(sizes, p, q.mT, alpha=-2).topk(c, dim=1, largest=False)
        value, index = first(_distances(part[:, None], b[least.indices])[:, 0])
        index = least.indices.gather(1, index)
        bound = least.values[:, -1] + less * p.square().sum(1)
        unsure = ~(bound >= rounded * value[:, -1].double().square())  # of NaN too
        if bool(unsure.any()):
            value[unsure], index[unsure] = first(_distances(part[unsure], b))
        found.append((value, index))
    values, indices = (torch.cat(parts) for parts in zip(*found, strict=True))
    return values.to(x.dtype), indices
