"""A claim: a statement, its source, its prediction, the measured number, and a verdict."""

from __future__ import annotations

import math
from collections.abc import Callable
from inspect import signature
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ...core import Estimate
from ...distributions.analytic import Gaussian, GaussianMixture


class Claim(NamedTuple):
    """A statement with a number and its measurement.

    Attributes:
        claim: The statement. A false one is quoted, and the true one follows.
        source: Its source.
        expected: The predicted number.
        measured: The measured number.
        standard_error: Standard error of the measured number; None if nothing was drawn.
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


Numbers = tuple[Tensor | float | Estimate, ...]
"""What a verdict compares: expected and measured; for a false statement also what is true."""

STANDARD_ERRORS = 4.5
"""How far a true number may lie off: about 1 in 150,000 by chance."""


DERIVED = "derived, docs/theory.md"
HYVARINEN = "Hyvärinen 2005, jmlr.org/papers/v6/hyvarinen05a"
VINCENT = "Vincent 2011, doi 10.1162/NECO_a_00142"

MIXTURE = GaussianMixture([0.3, 0.7], torch.tensor([[-2.0], [1.0]]).double(), [0.3, 0.5])
LAW = Gaussian(
    torch.tensor([0.7, -1.2], dtype=torch.float64),
    torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64),
)


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
    """Compare a mean with the right one, in units of its standard error.

    The standard error must be below `resolution`, so that a measurement that is too coarse does
    not pass.
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
    """Show that a statement is false, and what is true instead.

    The measured number must differ from the stated one beyond doubt: by 10 standard errors, or by
    a hundredth if nothing was drawn. And it must agree with the true one, within 4.5 standard
    errors, or within tolerance · max(1, |instead|).
    """
    e, truth = float(stated), float(instead)
    m, error = measured if isinstance(measured, Estimate) else (float(measured), None)
    far = 10 * error if error is not None else 0.01 * max(1.0, abs(e))
    near = tolerance * max(1.0, abs(truth))
    near = near if error is None else max(STANDARD_ERRORS * error, 1e-9 * max(1.0, abs(truth)))
    holds = math.isfinite(m) and abs(m - e) > far and abs(m - truth) <= near
    return Claim(claim, source, e, m, error, _verdict(holds), "false")


class Check(NamedTuple):
    """A row of a file's claims: a statement, and a function that measures its numbers.

    Attributes:
        name: File and name, as in "denoising.floor_is_mmse".
        verdict: How the numbers are judged: `exact`, `statistical`, `at_most`, `false`.
        statement: The claim. A false one is quoted, and the true one follows.
        source: Its source.
        limits: The tolerance of the verdict, or its resolution.
        measure: () -> Numbers, or (n, generator) -> Numbers with n random draws to spend.
    """

    name: str
    verdict: Callable[..., Claim]
    statement: str
    source: str
    limits: tuple[float, ...]
    measure: Callable[..., Numbers]

    def __call__(self, n: int, generator: torch.Generator) -> Claim:
        """Measure and judge."""
        drawn = (n, generator) if signature(self.measure).parameters else ()
        return self.verdict(self.statement, self.source, *self.measure(*drawn), *self.limits)


def table(module: str, **rows: tuple[Any, ...]) -> tuple[Check, ...]:
    """Return the checks of a file, from rows `name=(verdict, statement, source, *limits, measure)`."""
    file = module.rpartition(".")[2]
    return tuple(
        Check(f"{file}.{name}", verdict, statement, source, tuple(rest[:-1]), rest[-1])
        for name, (verdict, statement, source, *rest) in rows.items()
    )


def grid(low: float, high: float, n: int = 4001) -> tuple[Tensor, float]:
    """Return points `(n, 1)` and their spacing, for integrals of smooth functions that die out."""
    return torch.linspace(low, high, n, dtype=torch.float64).unsqueeze(1), (high - low) / (n - 1)


def apart(one: Tensor, other: Tensor) -> Tensor:
    """Return the largest difference of two tensors."""
    return (one - other).abs().max()


def derivative(f: Callable[[float], float], at: float, h: float = 1e-3) -> float:
    """Return f' by central differences of fourth order."""
    return (f(at - 2 * h) - 8 * f(at - h) + 8 * f(at + h) - f(at + 2 * h)) / (12 * h)


def order(coarse: Tensor | float, fine: Tensor | float, factor: float = 2.0) -> float:
    """Return the slope, in the logarithms, of what is `coarse` at a step and `fine` at step/factor."""
    return math.log(abs(float(coarse) / float(fine))) / math.log(factor)
