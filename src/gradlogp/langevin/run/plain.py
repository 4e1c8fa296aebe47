"""Kernels and other settings as plain values, to be stored in a file and compared by a later run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import kernels, tuning


def plain(value: Any) -> Any:
    """Return numbers, strings and tensors as they are, a frozen dataclass of this room as its fields.

    Anything else, such as a function, is represented by the name of its type.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):  # those of NumPy, too
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, tuple | list):
        return tuple(map(plain, value))
    if isinstance(value, Mapping):
        return {name: plain(v) for name, v in value.items()}
    if dataclasses.is_dataclass(value) and _known(type(value).__name__) is type(value):
        own = (f.name for f in dataclasses.fields(value) if f.init)
        return {"class": type(value).__name__} | {n: plain(getattr(value, n)) for n in own}
    return {"opaque": f"{type(value).__module__}.{type(value).__qualname__}"}


def rebuilt(value: Any) -> Any:
    """Return the original of plain values.

    Raises:
        ValueError: If the plain values are not sufficient.
    """
    if isinstance(value, tuple):
        return tuple(map(rebuilt, value))
    if not isinstance(value, Mapping):
        return value
    known = _known(value.get("class", ""))
    if known is None:
        raise ValueError(f"a file cannot hold a {value.get('opaque', value.get('class'))}")
    return known(**{name: rebuilt(v) for name, v in value.items() if name != "class"})


def alike(a: Any, b: Any) -> bool:
    """Whether two plain values are the same."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and a == b


def _known(name: str) -> type | None:
    """Return the dataclass of this room of that name, or None."""
    found = getattr(kernels, name, getattr(tuning, name, None))
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None
