"""Does a model copy its training data?"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import Estimate, distances, mean_and_error
from .two_sample import subsample, two_samples


class Memorisation(NamedTuple):
    """Nearest-neighbour distances of samples and of held-out data, and who is nearer to what."""

    to_train: Estimate
    to_held_out: Estimate
    real_to_train: Estimate
    nearer_train: Estimate


def nearest_neighbours(
    samples: Float[Tensor, "n *event"],
    train: Float[Tensor, "m *event"],
    held_out: Float[Tensor, "k *event"],
    *,
    generator: torch.Generator | None = None,
) -> Memorisation:
    """Nearest-neighbour distances that show memorisation.

    `nearer_train` is the fraction of samples nearer to the training set than to a held-out set of
    the same size (the larger of the two is subsampled): ½ for a model that generalises, 1 for one
    that copies. `to_train` is the mean distance of a sample to the training set, beside
    `real_to_train`, that of real held-out data to it; `to_held_out` that of a sample to the held-out
    set.

    The standard error of `nearer_train` is that over all ways to divide the two reference sets:
    points near many samples make it larger than a binomial one.

    Arguments:
        samples: Generated samples, `(n, *event)`.
        train: Training data, `(m, *event)`.
        held_out: Data not trained on, `(k, *event)`.
        generator: Where the subsample comes from.

    References:
        | A Non-Parametric Test to Detect Data-Copying in Generative Models (Meehan et al., 2020)
        | https://arxiv.org/abs/2004.05675
    """
    s, tr = two_samples(samples, train)
    _, ho = two_samples(samples, held_out)
    n = min(len(tr), len(ho))
    tr_n, ho_n = subsample(tr, n, generator), subsample(ho, n, generator)
    d_train, i_train = _nearest(s, tr_n)
    d_held, i_held = _nearest(s, ho_n)
    # equal distances (copies in both sets) count half to each side
    nearer = (d_train < d_held).double() + 0.5 * (d_train == d_held).double()
    nearest = torch.where(d_train <= d_held, i_train, n + i_held)
    counts = torch.bincount(nearest, minlength=2 * n).double() / len(s)
    spread = float((counts - counts.mean()).square().sum()) * 2 * n / (2 * n - 1)
    return Memorisation(
        mean_and_error(d_train),
        mean_and_error(d_held),
        mean_and_error(_nearest(ho_n, tr_n)[0]),
        Estimate(float(nearer.mean()), 0.5 * math.sqrt(spread)),
    )


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of each point of a to its nearest of b, and which that is."""
    parts = [distances(part, b).min(1) for part in a.split(512)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
