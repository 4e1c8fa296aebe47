"""Operations that move numbers, and those that add up what is moved to one place (see `tracing`).

Moving is done to references, by the same operation or its like in NumPy; it needs no instruction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import operations as op
from .tracing import CannotCompile, Refs, Tracer, tensors
from .truths import written


def _moved(function: Any) -> Callable[..., Refs]:
    """Do to references what is done to numbers; what is filled up with 0 refers to 0."""

    def rule(m: Tracer, *args: Any, **kwargs: Any) -> Refs:
        change: Callable[[Any], Any] = lambda v: (
            torch.from_numpy(np.asarray(m(v) + 1))
            if isinstance(v, Tensor)
            else type(v)(map(change, v))
            if isinstance(v, list | tuple)
            else v
        )
        # only the numbers that are moved: indices and paddings are not those of tensors
        first, *rest = args
        return function(change(first), *rest, **kwargs).numpy() - 1

    return rule


def _indices(m: Tracer, indices: Any) -> Any:
    if any(m.depends(t) for t in tensors(indices)):
        raise CannotCompile("it looks at values of x to decide what to do")
    return indices


def _index(m: Tracer, a: Any, indices: Any) -> Refs:
    return m(a)[_as_numpy(_indices(m, indices))]


def _as_numpy(indices: Any) -> tuple[Any, ...]:
    return tuple(slice(None) if i is None else i.numpy() for i in indices)


def _gather(m: Tracer, a: Any, dim: int, index: Tensor, sparse_grad: bool = False) -> Refs:
    return np.take_along_axis(m(a), _indices(m, index).numpy(), dim)


def _line(m: Tracer, index: Tensor) -> Any:
    """Return indices as a line, even one without dimension."""
    return _indices(m, index).reshape(-1).numpy()


def _select_rows(m: Tracer, a: Any, dim: int, index: Tensor) -> Refs:
    return np.take(m(a), _line(m, index), dim)


def _put(m: Tracer, a: Any, indices: Any, values: Any, accumulate: bool = False, *_: Any) -> Refs:
    out = m(a).copy()
    where = np.arange(out.size).reshape(out.shape)[_as_numpy(_indices(m, indices))]
    new = np.broadcast_to(m(values), where.shape)
    return _placed(m, out, where.ravel(), new.ravel(), accumulate)


def _placed(m: Tracer, out: Refs, where: Any, new: Refs, accumulate: bool) -> Refs:
    flat = out.reshape(-1)
    if not accumulate:
        flat[where] = new
        return flat.reshape(out.shape)
    order = np.argsort(where, kind="stable")
    places, counts = np.unique(where, return_counts=True)
    table = np.full((len(places), int(counts.max(initial=0)) + 1), -1)
    table[:, 0] = flat[places]
    column = np.arange(len(where)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    table[np.repeat(np.arange(len(places)), counts), column] = new[order]
    if len(places):
        flat[places] = m.do(op.ADD, *table.T) if table.shape[1] == 2 else m.fill(op.SUM, table)
    return flat.reshape(out.shape)


def _scatter_add(m: Tracer, a: Any, dim: int, index: Tensor, source: Any) -> Refs:
    out, at = m(a).copy(), _indices(m, index).numpy()
    where = np.arange(out.size).reshape(out.shape)
    grid = list(np.indices(at.shape))
    grid[dim] = at
    new = m(source)[tuple(slice(n) for n in at.shape)]
    return _placed(m, out, where[tuple(grid)].ravel(), new.ravel(), True)


def _index_add(m: Tracer, a: Any, dim: int, index: Tensor, source: Any, alpha: float = 1) -> Refs:
    out = m(a).copy()
    where = np.take(np.arange(out.size).reshape(out.shape), _line(m, index), dim)
    new = np.broadcast_to(m.do(op.MUL, m(source), m(alpha)), where.shape)
    return _placed(m, out, where.ravel(), new.ravel(), True)


def _copy(m: Tracer, a: Any, b: Any, non_blocking: bool = False) -> Refs:
    return np.broadcast_to(written(m, a, b), a.shape)


def _padded(m: Tracer, a: Any, pad: Any, value: float = 0) -> Refs:
    inside = torch.from_numpy(np.array(m(a)))
    return torch.ops.aten.constant_pad_nd(inside, pad, int(m(value))).numpy()


def _same(m: Tracer, a: Any, **_: Any) -> Refs:
    return m(a)


PLACES: dict[str, Callable[..., Any]] = {
    **{
        name: _moved(getattr(torch.ops.aten, name))
        for name in (
            "cat", "stack", "repeat", "flip", "roll", "tril", "triu", "select_backward",
            "slice_backward", "diagonal_backward",
        )
    },
    "constant_pad_nd": _padded,
    "index": _index,
    "gather": _gather,
    "index_select": _select_rows,
    "index_put": _put,
    "scatter_add": _scatter_add,
    "index_add": _index_add,
    "copy": _copy,
    "clone": _same,
    "fill": lambda m, a, b: np.broadcast_to(written(m, a, b), a.shape),
    "zero": lambda m, a: np.broadcast_to(m(0), a.shape),
}  # fmt: skip
