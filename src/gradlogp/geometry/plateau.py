"""The noise levels at which an estimate of the dimension does not depend on the noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Estimate, Generator, ScoreFn, mean_and_error
from .dimension import Estimator, intrinsic_dimension


class SigmaRange(NamedTuple):
    """A range of σ over which the estimated dimension is flat, and all that was estimated.

    Attributes:
        low, high: The range.
        dimension: The mean over the points, at the middle of the range.
        sigmas: All levels, ascending, `(n,)`.
        values: The mean over the points at each, `(n,)`.
        standard_errors: Of those means, `(n,)`.
    """

    low: float
    high: float
    dimension: Estimate
    sigmas: Float[Tensor, " n"]
    values: Float[Tensor, " n"]
    standard_errors: Float[Tensor, " n"]


def recommend_sigma(
    score_at: Callable[[float], ScoreFn],
    x: Float[Tensor, "batch *event"],
    sigmas: Tensor | Sequence[float],
    *,
    estimator: Estimator = "divergence",
    tolerance: float = 0.1,
    n_perturbations: int | None = None,
    n_probes: int | None = None,
    generator: Generator | None = None,
    stack: int = 1,
) -> SigmaRange:
    r"""Find the range of σ over which the estimated dimension of a manifold is flat.

    Below it the estimate sees points instead of a manifold (or a score that was never learned so
    finely), above it curvature, and in the end one blob: k → 0. The widest run of levels, in log σ,
    over which the mean estimate changes by no more than the tolerance is taken. Runs at k < ½ and
    k > D − ½ are those two ends and do not count.

    Arguments:
        score_at: σ -> the score at noise level σ, such as `lambda b: law.noised(1.0, b).score`.
        x: Points on the manifold, `(B, *event)`.
        sigmas: The levels to try, at least four and positive: three to five a decade.
        estimator: Of the dimension, as of `intrinsic_dimension`.
        tolerance: How much k may change over the range; above the noise of perturbations or probes.
        n_perturbations: For estimators that perturb.
        n_probes: For estimators that take a divergence; exact where not given.
        generator: Where perturbations and probes come from.
        stack: Perturbations handed to the score at once.

    Raises:
        ValueError: For fewer than four levels or one that is not positive; where no three levels in a
            row agree on a dimension, with the estimates at all of them.
    """
    levels = torch.as_tensor(sigmas, dtype=torch.float64).flatten().sort().values
    if len(levels) < 4 or not bool((levels > 0).all()):
        raise ValueError(f"sigmas must be four or more positive levels, got {levels.tolist()}")
    D, means = x.shape[1:].numel(), []
    for sigma in levels.tolist():
        found = intrinsic_dimension(
            score_at(sigma), x, sigma, estimator=estimator, n_perturbations=n_perturbations,
            n_probes=n_probes, generator=generator, stack=stack,
        )  # fmt: skip
        means.append(mean_and_error(found.value) if len(x) > 1 else
                     Estimate(float(found.value), float(found.standard_error)))  # fmt: skip
    value = torch.tensor([m.value for m in means], dtype=torch.float64)
    error = torch.tensor([m.standard_error for m in means], dtype=torch.float64)
    best: tuple[float, int, int] | None = None
    for i in range(len(levels)):
        for j in range(i + 2, len(levels)):
            run = value[i : j + 1]
            flat = float(run.max() - run.min()) <= tolerance
            width = float((levels[j] / levels[i]).log())
            inside = 0.5 <= float(run.mean()) <= D - 0.5
            if flat and inside and (best is None or width > best[0]):
                best = (width, i, j)
    if best is None:
        table = ", ".join(f"{s:.3g}: {v:.2f}" for s, v in zip(levels, value, strict=True))
        raise ValueError(
            f"no three noise levels in a row agree on a dimension between 0 and {D} (sigma: k = "
            f"{table}); try a finer or wider range of sigmas, or more points, or a larger tolerance"
        )
    _, i, j = best
    low, high = float(levels[i]), float(levels[j])
    return SigmaRange(low, high, means[(i + j) // 2], levels, value, error)
