"""A user's density for the engine: translated at a starting point, compared with itself at others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...calculus import GradientField
from ...distributions.as_target import Target
from ..guard import Guarded
from .tracing import CannotCompile, Program, traced


@dataclass(frozen=True, eq=False)
class Translated:
    """A target of functions whose PyTorch operations the engine carries out itself.

    Arguments:
        target: The target.
        program: Its operations.
    """

    target: Target
    program: Program

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x), by PyTorch."""
        return self.target.score(x)

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x) + const, by PyTorch."""
        return self.target.log_prob(x)

    def log_prob_and_score(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, by PyTorch."""
        return self.target.log_prob_and_score(x)

    def constants(self, x0: Tensor, lanes: int) -> tuple[Any, ...]:
        """Return the program for the machine, of which so many lanes of a tile are in use."""
        p = self.program
        numbers = p.numbers.astype(x0.detach().numpy().dtype)
        return p.code, p.tables, numbers, p.ends, p.for_score, lanes

    def on_tile(self, x: Float[Tensor, "batch D"], w: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return score and log-density as the machine computes them, for as many points as w has."""
        from . import machine

        columns = np.ascontiguousarray(x.numpy().T)
        s, log_p = np.empty_like(columns), np.empty(len(x), columns.dtype)
        work = np.empty((self.program.places + machine.SCRATCH, len(x)), columns.dtype)
        machine.score(w, self.constants(x, len(x)), columns, s, log_p, work, True)
        return torch.from_numpy(s.T.copy()), torch.from_numpy(log_p)


@torch.no_grad()
def translated(target: Target, x0: Tensor) -> Translated:
    """Return a target as the engine computes it.

    Raises:
        CannotCompile: With the reason.
    """
    field, log_prob = target.score_fn, target.log_prob_fn
    f: Callable[[Tensor], tuple[Tensor, ...]] = lambda x: (target.score(x),)
    if isinstance(field, GradientField) and field.f is log_prob:
        f = target.log_prob_and_score
    elif log_prob is not None:
        f = lambda x: (target.log_prob(x), target.score(x))
    return Translated(target, traced(f, x0[:1].detach().clone()))


@torch.no_grad()
def check(target: Translated, x0: Tensor) -> None:
    """Compare the machine with the function, at starting points and around them.

    Raises:
        CannotCompile: If they differ.
    """
    from .noise import VECTOR
    from .pack import width

    w = width(len(x0))
    lanes = VECTOR * len(w)
    g = torch.Generator().manual_seed(0)
    few = x0[:4].detach()
    x = few.repeat(-(-lanes // len(few)), 1)[:lanes].clone()
    z = torch.randn(x.shape, generator=g, dtype=x.dtype)
    x[: -len(few)] += (0.1 * (1 + x.abs()) * z)[: -len(few)]
    score, log_p = target.on_tile(x, w)
    known = target.target.log_prob_fn is not None
    plain = Guarded(target.target)
    plain.lenient = True  # where the function raises an error, nothing is known
    for turn in (lambda rows: rows, lambda rows: rows.flip(0)):  # another row is the first
        of_rows = lambda f: lambda x: turn(f(turn(x)))  # noqa: B023
        agree = same(score, of_rows(plain.score), x)
        if agree and (not known or same(log_p, of_rows(plain.log_prob), x)):
            continue
        raise CannotCompile(
            "at other points it has a different value than the operations recorded at one: it must "
            "compute each row from that row alone, through PyTorch operations"
        )


def same(found: Tensor, f: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Return whether numbers are those of a function at x but for rounding.

    Rounding is judged by the largest number of a row, or of the median row if that is larger, and by
    what a change of x by its own rounding does. Where large terms cancel little is left of them: of
    sums of many terms in single precision, two digits.
    """
    eps = torch.finfo(x.dtype).eps
    if not torch.allclose(f(x), f(x), 0.0, 0.0, equal_nan=True):  # it draws random numbers
        return False
    a, b, near = (v.reshape(len(x), -1) for v in (found, f(x), f(x + eps * (1 + x.abs()))))
    size, moved = (
        torch.where(torch.isfinite(v), v.abs(), 0.0).amax(1, keepdim=True) for v in (b, near - b)
    )
    part = eps**0.5 if x.dtype == torch.float64 else 0.01
    most = part * size.maximum(size.median()) + 1000 * moved
    return bool((((a - b).abs() <= most) | (a == b) | (a.isnan() & b.isnan())).all())
