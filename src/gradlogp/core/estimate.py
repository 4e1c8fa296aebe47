"""Numbers with their error bars."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Estimate(NamedTuple):
    """A number with its error bar."""

    value: float
    standard_error: float

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.standard_error:.2g}"


def mean_and_error(values: Tensor) -> Estimate:
    """Return the mean of independent numbers `(n,)` and its standard error, NaN for one number."""
    values, n = values.detach().double(), len(values)
    return Estimate(float(values.mean()), float(values.std()) / n**0.5 if n > 1 else float("nan"))
