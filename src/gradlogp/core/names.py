"""Words about names: the nearest known one, and lists that stay short."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str]) -> str:
    """Return advice on a name that is not known, to put after it."""
    near = difflib.get_close_matches(name, known, 1, 0.65)
    return (f"; did you mean '{near[0]}'?" if near else ";") + f" known: {some(known, 20)}"


def some(items: Sequence[object], most: int = 5) -> str:
    """Return the first items as text."""
    return ", ".join(map(str, items[:most])) + (", …" if len(items) > most else "")
