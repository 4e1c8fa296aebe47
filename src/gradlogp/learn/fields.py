"""Whether a value read from a file fits an annotation."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type: finite numbers, 64-bit integers, booleans not as numbers.

    Lists count as sequences and tuples, as in JSON.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in inner)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in inner)
    if origin in (Sequence, tuple, list):
        return isinstance(value, list | tuple) and all(fits(v, inner[0]) for v in value)
    if hint in (None, NoneType):
        return value is None
    if hint is float:
        return fits(value, int) or (type(value) is float and math.isfinite(value))
    if hint is int:
        return type(value) is int and abs(value) < 2**63
    if hint is str:
        return type(value) is str and value.isprintable()
    return type(value) is hint


def check_fields(given: Mapping[str, Any], made: Callable[..., Any], where: str) -> None:
    """Raise `ValueError` unless these are the arguments of a class or function, each of its type.

    For a dataclass these are its fields, otherwise the arguments that can be positional.
    """
    if dataclasses.is_dataclass(made):
        hints = get_type_hints(made)
        names = [field.name for field in dataclasses.fields(made)]
    else:
        call = made.__init__ if inspect.isclass(made) else made
        hints = get_type_hints(call)
        parameters = inspect.signature(made).parameters.values()
        names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if odd := sorted(given.keys() ^ set(names)):
        raise ValueError(f"{where}: fields missing or unknown: {', '.join(odd)[:200]}")
    for name, value in given.items():
        if not fits(value, hints[name]):
            raise ValueError(f"{where}: {name} cannot be {short(value)}")


def short(value: Any, most: int = 60) -> str:
    """Return a value as text that fits in a line."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits, a list too deep
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"
