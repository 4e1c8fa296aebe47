"""Rows of a map-style dataset or a DataLoader, with our own order and randomness."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from ..noise.coordinates import Rows

MIX = 0x9E3779B97F4A7C15  # odd, and far from simple fractions of 2⁶⁴: keys of rows look unrelated
READ = 64
"""Items that a worker reads at a time when all of a dataset is looked at."""


def key(seed: int, step: int, place: int) -> int:
    """Return the seed of an item: that at a place of a step counted from 1, or of step 0, of none."""
    return (seed + MIX * (step * 2**32 + place + 1)) % 2**63


@dataclass(frozen=True)
class _Keyed(Dataset[Any]):
    """Items of a dataset, each created with its own seed, on which alone its random numbers depend."""

    dataset: Any

    def __getitem__(self, item: tuple[int, int]) -> Any:
        index, seed = item
        states = torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - what datasets draw from
        random.seed(seed)
        try:
            return self.dataset[index]
        finally:
            torch.default_generator.set_state(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            random.setstate(states[2])


class Mapped(Rows):
    """A dataset as an array of rows, which are created on request.

    Random items, such as random crops, depend on a seed and on their place in the run: neither the
    number of workers nor an interruption changes them.

    Arguments:
        source: A dataset with `__len__` and `__getitem__`, or a `DataLoader` of one: its workers
            and `collate_fn` are used, but not its order. If items are tuples, the first entry is
            used.

    Raises:
        ValueError: For a dataset without length or indexing, or whose items are not arrays of the
            same shape.
    """

    def __init__(self, source: Any) -> None:
        loader = source if isinstance(source, DataLoader) else None
        dataset: Any = source if loader is None else loader.dataset
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise ValueError(
                "data must be indexable: a dataset with __len__ and __getitem__, got "
                f"{type(dataset).__name__}; otherwise its order is not under control, and "
                f"training cannot be resumed"
            )
        self.dataset = _Keyed(dataset)
        self.batch_size = None if loader is None else loader.batch_size
        collate = default_collate if loader is None else loader.collate_fn
        self.options: dict[str, Any] = {"collate_fn": _First(collate)}
        if loader is not None and loader.num_workers:
            self.options |= {
                name: getattr(loader, name)
                for name in ("num_workers", "timeout", "worker_init_fn", "multiprocessing_context",
                             "prefetch_factor")
            }  # fmt: skip
        self.n = len(dataset)
        first = self.options["collate_fn"]([self.dataset[0, key(0, 0, 0)]])
        self.shape, self.dtype = torch.Size((self.n, *first.shape[1:])), first.dtype

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: Any) -> Tensor:
        """Return rows as they are outside of any step of training."""
        places = torch.arange(self.n)[index].reshape(-1).tolist()
        parts = [places[i : i + READ] for i in range(0, len(places), READ)]
        if not parts:
            return torch.zeros(0, *self.shape[1:], dtype=self.dtype)
        return torch.cat(list(self._load([[(i, key(0, 0, i)) for i in p] for p in parts])))

    def batches(self, orders: Iterator[tuple[int, Tensor, slice]], seed: int) -> Iterator[Tensor]:
        """Return the rows of one step after the other, loaded ahead by the workers.

        Arguments:
            orders: For each step its number, the rows of the batch, and which of them to load.
            seed: Seed of random items.
        """
        return self._load(
            [(i, key(seed, step, k)) for k, i in list(enumerate(index.tolist()))[part]]
            for step, index, part in orders
        )

    def _load(self, keyed: Any) -> Iterator[Tensor]:
        own = torch.Generator().manual_seed(0)  # or a global one is drawn from
        loader: Any = DataLoader(self.dataset, batch_sampler=keyed, generator=own, **self.options)
        return iter(loader)


@dataclass(frozen=True)
class _First:
    """Collates items, and takes the first entry of tuples."""

    collate: Callable[[Any], Any]

    def __call__(self, items: list[Any]) -> Tensor:
        found = self.collate(items)
        while isinstance(found, list | tuple) and found:
            found = found[0]
        if not isinstance(found, Tensor) or len(found) != len(items):
            raise ValueError(
                "items of a dataset must be tensors or arrays of one shape, or tuples that start with "
                f"one; collated they are {type(found).__name__}"
            )
        return found


def as_rows(data: Any) -> Any:
    """Return a dataset, or a `DataLoader` of one, as `Mapped` rows, and all else as it is."""
    return Mapped(data) if isinstance(data, DataLoader | Dataset) else data
