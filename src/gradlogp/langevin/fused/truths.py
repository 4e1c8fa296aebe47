"""Operations on what is true or false: numbers 1 and 0, as any number but 0 becomes 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import operations as op
from .tracing import Refs, Tracer


def axes(dim: Any) -> tuple[int, ...]:
    """Return axes as PyTorch gives them, none for all."""
    return () if dim is None else (dim,) if isinstance(dim, int) else tuple(dim)


def opposite(m: Tracer, a: Refs) -> Refs:
    """Return 1 less a number."""
    return m.do(op.SUB, m(1), a)


def truth(m: Tracer, a: Any) -> Refs:
    """Return 1 where a number is not 0, and 0 elsewhere."""
    if a.dtype == torch.bool if isinstance(a, Tensor) else isinstance(a, bool):
        return m(a)
    return opposite(m, m.do(op.EQ, m(a), m(0)))


def written(m: Tracer, a: Tensor, b: Any) -> Refs:
    """Return what a number becomes in the memory of another tensor; an integer is not cut off."""
    if a.dtype == torch.bool:
        return truth(m, b)
    fraction = b.is_floating_point() if isinstance(b, Tensor) else isinstance(b, float)
    if fraction and not a.is_floating_point():
        raise NotImplementedError
    return m(b)


def _bits(kind: int) -> Callable[..., Refs]:
    """Return the rule of an operation on bits, for true and false alone."""

    def rule(m: Tracer, *values: Any) -> Refs:
        if not logical(*values):
            raise NotImplementedError
        return m.do(kind, *map(m, values))

    return rule


def logical(*values: Any) -> bool:
    """Return whether all values are true or false."""
    return all(getattr(v, "dtype", torch.bool if v is True or v is False else None) == torch.bool
               for v in values)  # fmt: skip


def _some(m: Tracer, true: Refs, dim: Any = None, keepdim: bool = False) -> Refs:
    return m.reduce(op.MOST, true, axes(dim), keepdim)


TRUTHS: dict[str, Callable[..., Any]] = {
    "bitwise_not": lambda m, a: opposite(m, _bits(op.ABS)(m, a)),
    "bitwise_and": _bits(op.MUL),
    "bitwise_or": _bits(op.MAX),
    "logical_not": lambda m, a: m.do(op.EQ, m(a), m(0)),
    "logical_and": lambda m, a, b: m.do(op.MUL, truth(m, a), truth(m, b)),
    "logical_or": lambda m, a, b: m.do(op.MAX, truth(m, a), truth(m, b)),
    "all": lambda m, a, *rest: opposite(m, _some(m, opposite(m, truth(m, a)), *rest)),
    "any": lambda m, a, *rest: _some(m, truth(m, a), *rest),
}
