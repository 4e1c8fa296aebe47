"""A target that may fail in a proposal, and may not at the start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..core import Density


class Guarded:
    """A target whose errors and non-finite points count as NaN, once `lenient` is set.

    A function of the user may raise where a proposal lies outside of what it can compute: a Cholesky
    factor of a matrix that is not positive definite, parameters that a law of `torch.distributions`
    refuses. Such a proposal is rejected like any other that is not finite, and counted. Before
    that, at the start of the chains, every error is raised.

    Arguments:
        target: The density.

    Attributes:
        lenient: Whether to count errors instead of raising them.
        failures: How many points failed with which error.
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

        def nothing(x: Tensor) -> tuple[Tensor, Tensor]:
            return x.new_full((len(x),), torch.nan), torch.full_like(x, torch.nan)

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
