"""Mini-batches from memory or disk: checking, and a shuffled order that can be resumed."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import check_count, check_dtype, check_kind, permutation
from ..noise.coordinates import Data, Rows, as_tensor, pieces
from ..scores.model import ScoreModel


def rows(data: Data, index: Any, like: Tensor) -> Tensor:
    """Return rows of data, from memory or disk, on the device of the model.

    They keep their dtype, and integers become float64, so that no digits are lost before encoding.
    """
    part = as_tensor(data[index])
    return part.to(like.device, part.dtype if part.is_floating_point() else torch.float64)


def check_data(data: Data, event_shape: torch.Size, name: str = "data") -> None:
    """Raise `ValueError` unless data is `(N, *event)`, N ≥ 2, and finite."""
    check_kind(data, name, Tensor | np.ndarray | Rows, "a tensor, a NumPy array or a dataset")
    if isinstance(data, Tensor) and data.is_floating_point():
        check_dtype(data.dtype, f"the dtype of {name}")
    if tuple(data.shape[1:]) != tuple(event_shape) or data.ndim < 2:
        raise ValueError(
            f"{name} must have shape (N, {', '.join(map(str, event_shape))}), got {tuple(data.shape)}"
        )
    check_count(len(data), f"the number of rows of {name}", 2)
    as_tensor(data[:1])  # refuses what is no number
    bad: list[int] = []
    for start, part in pieces(data):
        finite = torch.isfinite(part).flatten(1).all(1)
        bad.extend((start + (~finite).nonzero().flatten()).tolist())
    if bad:
        raise ValueError(
            f"{name} has {len(bad)} of {len(data)} rows that are not finite (first: row {bad[0]}); "
            "remove them"
        )


def check_conditions(model: ScoreModel, condition: Tensor | None, n: int, name: str) -> None:
    """Raise `ValueError` unless there is one condition of the model's kind a row, or none wanted."""
    if model.condition is None:
        if condition is not None:
            raise ValueError(
                f"{name} was given to a model without a condition; create its network with condition="
            )
        return
    if condition is None:
        raise ValueError(f"this model is conditional: pass {name}=, one per row of the data")
    if len(model.condition.check(condition)) != n:
        raise ValueError(f"{name} has {len(condition)} rows, but the data have {n}")


class Batches:
    """Rows in an order shuffled anew each epoch; a last, smaller batch is left out.

    The order follows from the generator where the epoch begins, so that a state does not hold it.
    """

    def __init__(self, n: int, size: int, generator: torch.Generator) -> None:
        self.n, self.size, self.generator = n, min(size, n), generator
        self._shuffle()

    def _shuffle(self) -> None:
        self.began = self.generator.get_state()
        self.order, self.position = permutation(self.n, self.generator), 0

    def next(self) -> Tensor:
        """Return the row numbers of the next batch."""
        if self.position + self.size > self.n:
            self._shuffle()
        index = self.order[self.position : self.position + self.size]
        self.position += self.size
        return index.long()

    def copy(self) -> Batches:
        """Return a copy that continues in the same way, independently."""
        other = copy.copy(self)
        other.generator = torch.Generator().set_state(self.generator.get_state())
        return other

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs."""
        return {"position": self.position, "generator": self.began}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.generator.set_state(state["generator"])
        self._shuffle()
        self.position = state["position"]


def fingerprint(data: Data) -> int:
    """Return a number that other data, or the same in another order, would hardly have."""
    n = len(data)
    ends = [
        as_tensor(data[torch.arange(*part)]).cpu().contiguous()
        for part in ((min(n, 64),), (max(0, n - 64), n))
    ]
    return zlib.crc32(b"".join(part.numpy().tobytes() for part in ends))
