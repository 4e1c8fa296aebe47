"""What a claim is: a statement, where it stands, what it predicts, what was measured, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import update_wrapper
from inspect import signature
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...core import Estimate


class Claim(NamedTuple):
    """A statement with a number, as it was measured.

    Attributes:
        claim: The statement. One that is false is quoted, and what is true follows.
        source: Where it comes from.
        expected: The number it predicts.
        measured: The number found.
        standard_error: Of the number found; None where nothing was drawn.
        verdict: "pass" if a true statement holds, or a false one fails as it should.
        statement: Whether the statement is "true" or "false".
    """

    claim: str
    source: str
    expected: float
    measured: float
    standard_error: float | None
    verdict: Literal["pass", "fail"]
    statement: Literal["true", "false"] = "true"


Check = Callable[[int, torch.Generator], Claim]
"""A check with n random draws to spend: (n, generator) -> Claim. Its docstring is not printed."""

Numbers = tuple[Tensor | float | Estimate, ...]
"""What a verdict compares: expected and measured; for a false statement also what is true."""

STANDARD_ERRORS = 4.5
"""How far a true number may lie off: about 1 in 150,000 by chance."""


def _verdict(holds: bool) -> Literal["pass", "fail"]:
    return "pass" if holds else "fail"


def exact(
    claim: str, source: str, expected: Tensor | float, measured: Tensor | float, tolerance: float
) -> Claim:
    """Compare two numbers that were computed without chance, up to tolerance · max(1, |expected|)."""
    e, m = float(expected), float(measured)
    return Claim(claim, source, e, m, None, _verdict(abs(m - e) <= tolerance * max(1.0, abs(e))))


def statistical(
    claim: str, source: str, expected: Tensor | float, measured: Estimate, resolution: float
) -> Claim:
    """Compare a mean with what it should be, in units of its standard error.

    The standard error has to be below `resolution`, so that a measurement too coarse to tell
    anything does not pass.
    """
    e, (m, error) = float(expected), measured
    rounding = 1e-9 * max(1.0, abs(e))  # of draws that are all equal
    error = 0.0 if error <= rounding else error
    holds = abs(m - e) <= STANDARD_ERRORS * error + rounding and error <= resolution
    return Claim(claim, source, e, m, error, _verdict(holds))


def at_most(claim: str, source: str, bound: Tensor | float, measured: Tensor | float) -> Claim:
    """Compare a number that was computed without chance with its upper bound."""
    e, m = float(bound), float(measured)
    return Claim(claim, source, e, m, None, _verdict(m <= e))


def false(
    claim: str,
    source: str,
    stated: Tensor | float,
    measured: Estimate | Tensor | float,
    instead: Tensor | float,
    tolerance: float = 1e-2,
) -> Claim:
    """Show a statement false, and what is true instead.

    What is measured must differ from what is stated beyond any doubt: by 10 standard errors, or by
    a hundredth where nothing was drawn. And it must be what is true, within 4.5 standard errors,
    or within tolerance · max(1, |instead|).
    """
    e, truth = float(stated), float(instead)
    m, error = measured if isinstance(measured, Estimate) else (float(measured), None)
    far = 10 * error if error is not None else 0.01 * max(1.0, abs(e))
    near = tolerance * max(1.0, abs(truth))
    near = near if error is None else max(STANDARD_ERRORS * error, 1e-9 * max(1.0, abs(truth)))
    holds = math.isfinite(m) and abs(m - e) > far and abs(m - truth) <= near
    return Claim(claim, source, e, m, error, _verdict(holds), "false")


class Declared:
    """A function that measures, with what `claim` says of it: together a check."""

    def __init__(
        self,
        measure: Callable[..., Numbers],
        verdict: Callable[..., Claim],
        statement: str,
        source: str,
        limits: tuple[float, ...],
    ) -> None:
        update_wrapper(self, measure)
        self.measure, self.verdict, self.limits = measure, verdict, limits
        self.statement, self.source = statement, source

    def __call__(self, n: int, generator: torch.Generator) -> Claim:
        """Measure and judge."""
        drawn = (n, generator) if signature(self.measure).parameters else ()
        return self.verdict(self.statement, self.source, *self.measure(*drawn), *self.limits)


def claim(
    verdict: Callable[..., Claim], statement: str, source: str, *limits: float
) -> Callable[[Callable[..., Numbers]], Declared]:
    """Make a check of a function that measures the numbers of a statement.

    Arguments:
        verdict: How they are judged: `exact`, `statistical`, `at_most`, `false`.
        statement: The claim. One that is false is quoted, and what is true follows.
        source: Where it comes from.
        limits: The tolerance of the verdict, or its resolution.

    Returns:
        A decorator of functions () -> Numbers, or (n, generator) -> Numbers where something is drawn.
    """
    return lambda measure: Declared(measure, verdict, statement, source, limits)


def collect(module: Mapping[str, Any]) -> tuple[Declared, ...]:
    """Return the checks that a module, given as its `globals()`, declares, in order."""
    found = (value for value in module.values() if isinstance(value, Declared))
    return tuple(check for check in found if check.__module__ == module["__name__"])


def grid(low: float, high: float, n: int = 4001) -> tuple[Tensor, float]:
    """Return points `(n, 1)` and their spacing, for integrals of smooth functions that die out."""
    return torch.linspace(low, high, n, dtype=torch.float64).unsqueeze(1), (high - low) / (n - 1)
