"""Scores at perturbed points, and their second moments by direction."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..core import (
    Generator,
    ScoreFn,
    check_count,
    check_level,
    check_points,
    evaluate,
    randn_like,
)

GROUPS = 8
"""Groups of perturbations, each of which is left out once for a standard error."""


def noise_level(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Check x and σ; return σ so that it multiplies x.

    Raises:
        ValueError: For a wrong shape, or σ that is not positive and finite.
    """
    check_points(x)
    why = (
        ": it is the noise level of the score, and without noise data on a manifold have no score"
    )
    return check_level(sigma, x, why=why)


def check_dimension(dimension: int | None, D: int) -> None:
    """Refuse a dimension of the manifold that leaves no normal or makes no sense."""
    if isinstance(dimension, int) and dimension == D:
        raise ValueError(
            f"dimension = {D} fills the space: there are no normal directions, so nothing "
            "to split, project onto or curve"
        )
    if dimension is not None:
        check_count(dimension, "dimension", 0, most=D - 1)


def count(given: int | None, default: int, least: int, name: str, why: str) -> int:
    """Return a number of draws, refusing too few."""
    n = default if given is None else given
    check_count(n, name, least, f": {why}")
    return n


def perturbed_scores(
    score: ScoreFn, x: Tensor, b: Tensor, n: int, generator: Generator | None, stack: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield z and σ s(x + σ z), each `(j, B, D)` with j up to `stack`, n of them in all."""
    check_count(stack, "stack")
    for start in range(0, n, stack):
        size = min(stack, n - start)
        z = torch.stack([randn_like(x, generator) for _ in range(size)])
        points = (x + b * z).flatten(0, 1)
        s = evaluate(score, points, finite=True)
        s = b * s.detach().reshape(z.shape)
        yield z.flatten(2), s.flatten(2)


def score_moments(
    score: ScoreFn, x: Tensor, b: Tensor, n: int, generator: Generator | None, stack: int
) -> tuple[Tensor, Tensor]:
    """Return Σ σ² s sᵀ over perturbations, `(GROUPS, B, D, D)`, and the size of every group."""
    rows = [s for _, s in perturbed_scores(score, x, b, n, generator, stack)]
    s = torch.cat(rows).to(torch.promote_types(x.dtype, torch.float32)).movedim(0, 1)
    groups = [s[:, first::GROUPS] for first in range(GROUPS)]
    return torch.stack([g.mT @ g for g in groups]), s.new_tensor([g.shape[1] for g in groups])


def rank_threshold(n: Tensor | float, D: int) -> float:
    """Return a threshold that normal eigenvalues of the mean of σ² s sᵀ over n draws exceed.

    Half of the lower end of the Marchenko–Pastur law, (1 − √(D/n))², for D directions.
    """
    return 0.5 * (1 - (D / float(n)) ** 0.5) ** 2
