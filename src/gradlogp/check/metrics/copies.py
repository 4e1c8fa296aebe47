"""Do samples contain copies of the training rows, and what do they reveal about them?

Held-out rows have the same law as training rows but were not used in training. If samples do not
depend on the choice of training rows, then the samples cannot distinguish training rows from
held-out rows, and the training rows cannot distinguish samples from held-out rows. If they can,
the model has memorised.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import Estimate, check_points, neighbours, permutation, proportion
from .classifier import Auc, auc
from .columns import weights_of

NEAR = (0.0, 0.1, 0.3)
"""Ratios of distances up to which a row is taken for a copy."""


class Copies(NamedTuple):
    """Rows that are far nearer to one training row than to any other row.

    Attributes:
        samples: The share of such rows among the samples.
        real: The share of such rows among the held-out rows, by chance.
        ratio: The largest ratio of distances to the nearest and the next row that counts as a
            copy.
        p_value: The p-value of the excess among the samples, corrected for the ratios that were
            tried.
    """

    samples: Estimate
    real: Estimate
    ratio: float
    p_value: float


def enrichment(k: int, n: int, other: int, m: int) -> float:
    """Return the p-value of k of n beside `other` of m: so many among the n by luck."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(k - 1, n + m, k + other, n)) if k else 1.0


def copies(
    samples: Float[Tensor, "n d"], train: Float[Tensor, "m d"], held_out: Float[Tensor, "k d"]
) -> Copies:
    r"""Test whether samples contain copies of training rows.

    A row counts as a copy if it is at most ρ times as far from its nearest training row as from
    the next one, :math:`d_1 \le ρ\, d_2`. Held-out rows satisfy this by chance, more often in low
    dimension; samples of the same law that do not depend on the training rows do so equally often
    (Fisher's exact test, one-sided). If samples are closer together than real rows overall, they
    do not count more: only the ratio matters. Time grows as (n + k) m d.

    Arguments:
        samples: Generated samples, `(n, d)`.
        train: Training rows, `(m, d)`.
        held_out: Rows that were not used in training, `(k, d)`.

    Raises:
        ValueError: For shapes that differ, values that are not finite, or fewer than two rows.

    References:
        | A Non-Parametric Test to Detect Data-Copying in Generative Models (Meehan et al., 2020)
        | https://arxiv.org/abs/2004.05675
    """
    samples, train, held_out = _checked(samples, train, held_out)
    shares = []
    for rows in (samples, held_out):
        first, second = neighbours(rows, train, 2)[0].unbind(1)
        # where two training rows are equal, to be equal to both says nothing
        shares.append(torch.where(second > 0, first / second, 1.0))
    best: Copies | None = None
    n, k = len(samples), len(held_out)
    for ratio in NEAR:
        hits, real = (int((share <= ratio).sum()) for share in shares)
        p = enrichment(hits, n, real, k)
        found = Copies(proportion(hits, n), proportion(real, k), ratio, min(1.0, len(NEAR) * p))
        if best is None or found.p_value < best.p_value:
            best = found
    assert best is not None
    return best


def _checked(samples: Tensor, train: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows in float64, flat, after a look at their shapes and values."""
    check_points(samples, "samples", least=2)
    check_points(train, "train", samples.shape[1:], least=2)
    check_points(held_out, "held_out", samples.shape[1:], least=4)
    return tuple(x.double().flatten(1) for x in (samples, train, held_out))  # type: ignore[return-value]


def membership(
    samples: Float[Tensor, "n d"],
    train: Float[Tensor, "m d"],
    held_out: Float[Tensor, "k d"],
    *,
    generator: torch.Generator | None = None,
) -> Auc:
    r"""Membership attack: rows with a sample nearby are guessed to be training rows.

    The area under the ROC curve for the ratio of two distances, to the nearest sample and to the
    nearest of some held-out rows, for training rows against the other held-out rows. It is ½ if
    the samples do not distinguish them; its p-value is exact up to the normal approximation. Time
    grows as (m + k) (n + k) d. Arguments are those of `copies`, and where the halves of the held-out
    rows come from.

    Raises:
        ValueError: For shapes that differ, values that are not finite, or fewer than four held-out
            rows.

    References:
        | Membership Inference Attacks against Synthetic Data through Overfitting Detection
          (van Breugel, Sun, Qian & van der Schaar, 2023)
        | https://arxiv.org/abs/2302.12580
    """
    samples, train, held_out = _checked(samples, train, held_out)
    order = permutation(len(held_out), generator).to(held_out.device)
    half = len(held_out) // 2
    known, unseen = held_out[order[:half]], held_out[order[half:]]
    scores = []
    for rows in (train, unseen):
        near, other = (neighbours(rows, among)[0][:, 0] for among in (samples, known))
        scores.append(-near / other.clamp(min=1e-12))
    return auc(*scores, *(weights_of(s, None) for s in scores))
