"""Text for terminals with a limited encoding: other characters are written in ASCII."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

IN_ASCII = {
    "−": "-", "–": "-", "—": "-", "±": "+/-", "×": "x", "·": "*", "✓": "ok", "✗": "x", "…": "...",
    "≤": "<=", "≥": ">=", "≈": "~", "∞": "inf", "√": "sqrt", "∇": "grad ", "∂": "d", "Σ": "sum ",
    "→": "->", "‖": "|", "⟨": "<", "⟩": ">", "½": "1/2", "“": '"', "”": '"',
    "’": "'", "‘": "'", "━": "-", "╸": "-", "│": "|", "─": "-", "╭": "+", "╮": "+", "╰": "+", "╯": "+",
}  # fmt: skip
"""What this library prints; powers, accents and Greek letters are taken apart by Unicode itself."""

NAME = "gradlogp"


def in_ascii(text: str) -> str:
    """Return text in ASCII: a minus for a minus, 10^2 for 10², a question mark for unknown characters.

    Examples:
        >>> in_ascii("−1.743 ± 0.021, 10⁻⁷, σ²")
        '-1.743 +/- 0.021, 10^-7, sigma^2'
    """
    out, raised = [], False
    for character in text:
        above = unicodedata.decomposition(character).startswith("<super>")
        out.append("^" if above and not raised else "")
        raised = above
        plain = unicodedata.normalize("NFKD", IN_ASCII.get(character, character))
        for part in plain:
            if not unicodedata.combining(part):
                out.append(part if part.isascii() else IN_ASCII.get(part) or _greek(part) or "?")
    return "".join(out)


def _greek(letter: str) -> str:
    """Return the name of a Greek letter, Sigma for Σ."""
    words = unicodedata.name(letter, "").split()
    if words[:1] != ["GREEK"]:
        return ""
    name = "lambda" if words[-1] == "LAMDA" else words[-1].lower()
    return name.capitalize() if words[1] == "CAPITAL" else name


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return in_ascii(error.object[error.start : error.end]), error.end


@contextmanager
def printable(*streams: Any) -> Iterator[None]:
    """Write to these streams what they can encode, and the rest in ASCII; strict again afterwards."""
    codecs.register_error(NAME, _replace)
    strict = [
        s for s in streams if getattr(s, "errors", "") == "strict" and hasattr(s, "reconfigure")
    ]
    for stream in strict:
        stream.reconfigure(errors=NAME)
    try:
        yield
    finally:
        for stream in strict:
            if not stream.closed:
                stream.reconfigure(errors="strict")
