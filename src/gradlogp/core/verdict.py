"""Whether a result can be trusted, in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """Whether a result passed every check that could be made, and if not, why.

    Arguments:
        ok: Whether no check failed.
        reasons: A sentence for each finding: what was seen, what was expected, what to do. With
            ok=True they state only what could not be judged.
    """

    ok: bool
    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Return `ok`."""
        return self.ok

    def __str__(self) -> str:
        head = "verdict: ok" if self.ok else "verdict: not ok"
        return "\n".join([head, *(f"  - {reason}" for reason in self.reasons)])
