"""Classifier two-sample tests: can a classifier distinguish two sets of rows?"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...core import Estimate, check_count, new_seed, permutation, proportion
from .columns import effective, weights_of
from .two_sample import TwoSample, two_samples

BINS = 128
"""Values that the trees distinguish in a column; with weights, scikit-learn's own search is slow."""


class Trees:
    """Gradient-boosted trees that distinguish x (class 1) from y (class 0), both with weight ½.

    Arguments:
        x: Rows `(n, d)`.
        y: Rows `(m, d)`.
        w_x: Weights `(n,)`.
        w_y: Weights `(m,)`.
        generator: Source of the randomness of the trees.
    """

    def __init__(
        self, x: Tensor, y: Tensor, w_x: Tensor, w_y: Tensor, generator: torch.Generator | None
    ) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        rows = torch.cat([x, y])
        at = torch.linspace(0, len(rows) - 1, BINS + 1, dtype=torch.float64)[1:-1].round().long()
        self._edges = rows.sort(0).values[at].mT.contiguous()
        labels = np.repeat([1, 0], [len(x), len(y)])
        weights = torch.cat([w_x / w_x.sum(), w_y / w_y.sum()]).cpu().numpy() * len(rows) / 2
        self._trees = HistGradientBoostingClassifier(
            max_iter=60, max_leaf_nodes=15, early_stopping=False,
            random_state=new_seed(generator) % 2**32,
        ).fit(self.binned(rows).numpy(), labels, sample_weight=weights)  # fmt: skip

    def binned(self, rows: Tensor) -> Tensor:
        """Return which bin each value is in, `(n, d)`."""
        return torch.searchsorted(self._edges, rows.mT.contiguous()).mT.double().cpu()

    def scores(self, binned: Tensor) -> Tensor:
        """Return what speaks for class 1, `(n,)`; above 0 it is the likelier class."""
        return torch.from_numpy(self._trees.decision_function(binned.numpy()))


def c2st(
    x: Float[Tensor, "n *event"],
    y: Float[Tensor, "m *event"],
    *,
    max_points: int = 4000,
    generator: torch.Generator | None = None,
) -> TwoSample:
    r"""Classifier two-sample test: held-out accuracy of distinguishing x from y; ½ for equal laws.

    Gradient-boosted trees are trained on one half of each sample and tested on the other. Given
    the classifier its decisions are independent, so that the standard error is binomial and the
    p-value, that of an accuracy above ½ by chance, is exact up to the normal approximation
    (neither would be true for cross-validation). Equal numbers of x and y are used.

    Arguments:
        x: Samples, `(n, *event)`.
        y: Samples, `(m, *event)`.
        max_points: Maximum number of points of each.
        generator: Source of the randomness of subsample, halves and classifier.

    Raises:
        ValueError: For fewer than 10 points of each.

    References:
        | Revisiting Classifier Two-Sample Tests (Lopez-Paz & Oquab, 2017)
        | https://arxiv.org/abs/1610.06545
    """
    from scipy.stats import norm

    a, b = two_samples(x, y, least=10)
    check_count(max_points, "max_points", 10)
    half = min(len(a), len(b), max_points) // 2
    a, b = (z[permutation(len(z), generator)[: 2 * half].to(z.device)] for z in (a, b))
    equal = weights_of(a[:half], None)
    trees = Trees(a[:half], b[:half], equal, equal, generator)
    ours, theirs = (trees.scores(trees.binned(z[half:])) for z in (a, b))
    right = int((ours > 0).sum() + (theirs <= 0).sum())
    accuracy, error = proportion(right, 2 * half)
    return TwoSample(accuracy, error, float(norm.sf((accuracy - 0.5) * 2 * math.sqrt(2 * half))))


class Auc(NamedTuple):
    """P(score of x > score of y), half of ties counted, with its error and its p-value."""

    value: float
    standard_error: float
    p_value: float


def auc(score_x: Tensor, score_y: Tensor, w_x: Tensor, w_y: Tensor) -> Auc:
    r"""Return the area under the ROC curve of scores that should be larger for x.

    .. math:: A = P(s_x > s_y) + \tfrac12 P(s_x = s_y)

    The error bar is DeLong's, from the placements of each score among the others; the p-value, for
    such an area above ½ by chance, uses the variance under equal laws, (n + m + 1)/(12 n m).

    Arguments:
        score_x: Scores, `(n,)`.
        score_y: Scores, `(m,)`.
        w_x: Weights, `(n,)`, which sum to 1.
        w_y: Weights, `(m,)`, which sum to 1.

    References:
        | Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves
          (DeLong, DeLong & Clarke-Pearson, 1988)
        | https://doi.org/10.2307/2531595
    """
    above_y = _placement(score_x, score_y, w_y)  # F_y at each score of x
    above_x = _placement(score_y, score_x, w_x)
    value = float(w_x @ above_y)
    n, m = effective(w_x), effective(w_y)
    variance = (
        float(w_x @ (above_y - value).square()) / (n - 1)
        + float(w_y @ (1 - above_x - value).square()) / (m - 1)
    )  # fmt: skip
    z = (value - 0.5) / math.sqrt((n + m + 1) / (12 * n * m))
    return Auc(value, math.sqrt(variance), 0.5 * math.erfc(z / math.sqrt(2)))


def _placement(points: Tensor, among: Tensor, w: Tensor) -> Tensor:
    """Return the weight of `among` that is below each point, half of what is equal."""
    values, order = among.sort()
    mass = torch.cat([w.new_zeros(1), w[order].cumsum(0)])
    below = mass[torch.searchsorted(values, points.contiguous())]
    upto = mass[torch.searchsorted(values, points.contiguous(), right=True)]
    return (below + upto) / 2


class Distinction(NamedTuple):
    """The result of a classifier on unseen rows.

    Attributes:
        auc: The area under its ROC curve; ½ if the rows have the same law.
        share: Among the rows that look most like one kind, the share of that kind; ½ for equal
            laws.
        fraction: The fraction of all rows that these are.
        of_x: Whether they are rows of x.
        p_value: The p-value of that share, corrected for all shares that were tried.
        importance: How far the area falls when a column is shuffled, `(d,)`.
    """

    auc: Auc
    share: Estimate
    fraction: float
    of_x: bool
    p_value: float
    importance: Tensor


TAILS = (0.02, 0.05, 0.1, 0.2)
"""Shares of rows at either end of the scores that are looked at for themselves."""


def tell_apart(
    learn_x: Tensor,
    learn_y: Tensor,
    decide_x: Tensor,
    decide_y: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    *,
    generator: torch.Generator | None = None,
) -> Distinction:
    r"""Train trees on some rows and test them on others, which they have not seen.

    The area under the curve detects differences that are everywhere. A fault in few rows, such as
    a missing mode of 5 %, hardly changes it, so the rows at both ends of the scores are counted as
    well: nearly all of the 5 % that look most like y are y then.

    Arguments:
        learn_x: Training rows, `(n, d)`.
        learn_y: Training rows, `(m, d)`.
        decide_x: Test rows, `(k, d)`.
        decide_y: Test rows, `(l, d)`.
        weights: The weights of these four sets.
        generator: Source of the randomness of trees and shuffles.
    """
    from scipy.stats import hypergeom

    trees = Trees(learn_x, learn_y, weights[0], weights[1], generator)
    w_x, w_y = (w / w.sum() for w in weights[2:])
    binned = [trees.binned(rows) for rows in (decide_x, decide_y)]
    s_x, s_y = (trees.scores(rows) for rows in binned)
    area = auc(s_x, s_y, w_x, w_y)

    # ties are broken at random, so that under one law every order is equally likely
    n, m = len(s_x), len(s_y)
    pooled = torch.cat([s_x, s_y])
    shuffle = permutation(n + m, generator)
    order = shuffle[pooled[shuffle].argsort(stable=True)]
    is_x = (order < n).double()
    mass = torch.cat([w_x * effective(w_x), w_y * effective(w_y)])[order]
    N, K = round(effective(w_x) + effective(w_y)), round(effective(w_x))
    best: tuple[float, float, float, bool, int] | None = None
    for fraction in TAILS:
        for from_x in (True, False):
            hits, weight = (is_x, mass) if from_x else (1 - is_x, mass)
            hits, weight = (v.flip(0) if from_x else v for v in (hits, weight))
            inside = weight.cumsum(0) <= fraction * float(mass.sum())
            size = float(weight[inside].sum())
            count = float((hits * weight)[inside].sum())
            drawn, total = round(size), K if from_x else N - K
            p = float(hypergeom.sf(round(count) - 1, N, total, drawn)) if drawn else 1.0
            if best is None or p < best[0]:
                # as if there were as many rows of both kinds
                odds = count / total
                others = (size - count) / (N - total)
                share = odds / (odds + others) if size else 0.5
                best = (p, share, fraction, from_x, max(drawn, 1))
    assert best is not None
    p, share, fraction, from_x, drawn = best
    error = proportion(share * drawn, drawn).standard_error
    importance = _importance(trees, binned[0], binned[1], w_x, w_y, generator)
    corrected = min(1.0, 2 * len(TAILS) * p)
    return Distinction(area, Estimate(share, error), fraction, from_x, corrected, importance)


def _importance(
    trees: Trees,
    x: Tensor,
    y: Tensor,
    w_x: Tensor,
    w_y: Tensor,
    generator: torch.Generator | None,
) -> Tensor:
    """Return how far the area falls when one column is shuffled, on 500 rows of each at most."""
    few_x, few_y = (permutation(len(v), generator)[:500] for v in (x, y))
    rows, n = torch.cat([x[few_x], y[few_y]]), len(few_x)
    w_x, w_y = w_x[few_x] / w_x[few_x].sum(), w_y[few_y] / w_y[few_y].sum()

    def area(rows: Tensor) -> float:
        s = trees.scores(rows)
        return auc(s[:n], s[n:], w_x, w_y).value

    falls, whole = torch.zeros(rows.shape[1], dtype=torch.float64), area(rows)
    order = permutation(len(rows), generator)
    for j in range(rows.shape[1]) if whole > 0.5 else ():
        changed = rows.clone()
        changed[:, j] = rows[order, j]
        falls[j] = whole - area(changed)
    return falls
