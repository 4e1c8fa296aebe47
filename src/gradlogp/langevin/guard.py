"""A target that may fail in a proposal, but not at the start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core import Density
from ..distributions.as_target import has_log_prob

ROWS = 4
"""Rows that are evaluated again, alone and in a different order."""

SINGLE = 2.0**-23
"""Rounding of float32, which a function may compute in whatever the dtype of x."""


@torch.no_grad()
def check_rows(target: Density, x: Tensor) -> None:
    """Raise `ValueError` if the value of a row depends on the other rows of the batch.

    Arguments:
        target: The density.
        x: Points, `(B, *event)`.

    Raises:
        ValueError: For such a log-density or score. Functions that are not finite there, fail, or
            return different values when called again are not judged.
    """
    x = x[:ROWS]
    if len(x) < 2:
        x = torch.cat([x, x])
    if bool((x == x[:1]).all()):  # a mean that is taken off would be that of each row
        shift = 3e-2 * torch.arange(len(x)).to(x).reshape(-1, *[1] * (x.ndim - 1))
        x = x + shift * (1 + x.abs())
    asked = [("score", target.score)]
    if has_log_prob(target):
        asked.insert(0, ("log-density", target.log_prob))
    for name, f in asked:
        try:
            whole, again = f(x), f(x)
            alone, turned = torch.cat([f(row[None]) for row in x]), f(x.flip(0)).flip(0)
            near = f(x * (1 + SINGLE))
        except (ArithmeticError, RuntimeError, ValueError):
            return
        if not bool(torch.isfinite(whole).all()) or not torch.equal(whole, again):
            return
        # rounding is another in a batch of another size, and grows as that of x itself
        most = max(torch.finfo(whole.dtype).eps, SINGLE) ** 0.5 * float(whole.abs().max())
        most += 1000 * float((near - whole).abs().max())
        for other in (alone, turned):
            if bool(((whole - other).abs() > most).any()):
                raise ValueError(
                    f"the {name} of a point depends on the other points of the batch: alone, or in "
                    "a different order, it changes; compute each row of (B, *event) from that row "
                    "only, without means, sorting or norms over the batch, or write a function of "
                    "one point and pass vectorized=False"
                )


class Guarded:
    """A target whose errors and non-finite points count as NaN, once `lenient` is set.

    A user's function may raise an error if it cannot be computed at a proposal: a Cholesky factor
    of a matrix that is not positive definite, parameters that a law of `torch.distributions`
    refuses. Such a proposal is rejected like any other that is not finite, and counted. At the
    start of the chains, every error is raised.

    Arguments:
        target: The density.

    Attributes:
        lenient: Whether to count errors instead of raising them.
        failures: The number of points that failed with each error.
    """

    def __init__(self, target: Density) -> None:
        self.target, self.lenient, self.failures = target, False, Counter[str]()
        recorded = getattr(target, "recorded", None)
        self._asked: Density = target if recorded is None else recorded()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) + const, NaN where it cannot be computed."""
        return self._call(self._asked.log_prob, x, lambda x: x.new_full((len(x),), torch.nan))

    def score(self, x: Tensor) -> Tensor:
        """Return the score, NaN where it cannot be computed."""
        return self._call(self._asked.score, x, lambda x: torch.full_like(x, torch.nan))

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, from one evaluation where the target can do that."""
        from .kernels.steps import evaluated

        nothing = lambda x: (x.new_full((len(x),), torch.nan), torch.full_like(x, torch.nan))
        return self._call(lambda x: evaluated(x, self._asked), x, nothing)

    def _call(
        self, f: Callable[[Tensor], Any], x: Tensor, nothing: Callable[[Tensor], Any]
    ) -> Any:
        if not self.lenient:
            return f(x)
        try:
            return f(x)
        except torch.OutOfMemoryError:
            raise
        except (ArithmeticError, RuntimeError, ValueError) as error:
            if len(x) == 1:
                self.failures[f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"] += 1
                return nothing(x)
        rows = [self._call(f, half, nothing) for half in x.tensor_split(2)]
        if isinstance(rows[0], tuple):
            return tuple(torch.cat(column) for column in zip(*rows, strict=True))
        return torch.cat(rows)
