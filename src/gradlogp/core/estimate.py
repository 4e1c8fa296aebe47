"""Numbers with their errors, and verdicts with their reasons."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from .shapes import check_count, check_number, shown

_Result = TypeVar("_Result", bound=Any)


class Estimate(NamedTuple):
    """A number with its error bar."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"


def mean_and_error(values: Tensor) -> Estimate:
    """Return the mean of independent numbers `(n,)` and its standard error, NaN for one number."""
    if not isinstance(values, Tensor) or values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values must be at least one number (n,), got {shown(values)}")
    values, n = values.detach().double(), len(values)
    return Estimate(float(values.mean()), float(values.std()) / n**0.5 if n > 1 else float("nan"))


def proportion(successes: float, n: int) -> Estimate:
    r"""Return p = successes/n of n independent trials, and its binomial standard error.

    .. math:: \sqrt{\frac{\max(p (1 - p), 1/n)}{n}}

    With no success, or no failure, p (1 − p) is 0, as if p were known exactly. The error is
    therefore at least 1/n, the error of a single success among many trials: p is then within 3/n
    at 95 %.

    Raises:
        ValueError: If n is 0, or successes are not between 0 and n.
    """
    check_count(n, "n")
    check_number(successes, "successes", least=0, most=n)
    p = successes / n
    return Estimate(p, math.sqrt(max(p * (1 - p), 1 / n) / n))


def finite_result(result: _Result, name: str = "x") -> _Result:
    """Return a result, a number or a tuple of numbers and estimates, if all of it is finite.

    Raises:
        ValueError: If a number is NaN or infinite, such as the square of 10²⁰⁰.
    """
    for part in result if isinstance(result, tuple) else (result,):
        if isinstance(part, tuple):
            finite_result(part, name)
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError(f"the result became NaN or infinite; rescale {name}")
    return result


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
