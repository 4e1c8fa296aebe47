"""Words about names: the nearest known one, and lists that stay short."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

LONGEST = 80
"""Characters of a name or a value in a message: files may have cells of any length."""


def nearest(name: str, known: Sequence[str]) -> str:
    """Return advice on a name that is not known, to put after it."""
    near = difflib.get_close_matches(name, known, 1, 0.65)
    return (f"; did you mean '{near[0]}'?" if near else ";") + f" known: {some(known, 20)}"


def some(items: Sequence[object], most: int = 5) -> str:
    """Return the first items as text, each no longer than `LONGEST`."""
    return ", ".join(map(short, items[:most])) + (", …" if len(items) > most else "")


def short(item: object) -> str:
    """Return an item as text, cut after `LONGEST` characters."""
    text = str(item)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def joined(items: Sequence[str]) -> str:
    """Return items with commas between them, to be copied; cut where they fill no line but a screen."""
    whole = ",".join(items)
    return whole if len(whole) <= 10 * LONGEST else f"{whole[: 10 * LONGEST - 1]}…"


def listed(sentences: Sequence[str], most: int = 10) -> str:
    """Return sentences in one line, and how many more there are."""
    more = len(sentences) - most
    return "; ".join(sentences[:most]) + (f"; and {more} more" if more > 0 else "")
