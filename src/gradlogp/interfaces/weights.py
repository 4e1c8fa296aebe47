"""Weights of samples: rows that are repeated, or omitted."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core import check_kind, permutation, rand_like


def sample_weights(sample_weight: Any, n: int) -> Tensor | None:
    """Return weights of samples; None where all count alike."""
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Tensor):
        check_kind(sample_weight, "sample_weight", Tensor, "a tensor")
        sample_weight = sample_weight.detach().cpu()
    try:
        weight = torch.as_tensor(np.asarray(sample_weight, dtype=np.float64))
    except (TypeError, ValueError, OverflowError):
        raise ValueError("sample_weight must be numbers, one per sample") from None
    if weight.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), got {tuple(weight.shape)}")
    if not bool((weight >= 0).all() and weight.isfinite().all() and (weight > 0).sum() >= 2):
        raise ValueError(
            "sample_weight must be finite and non-negative, with at least two weights above zero"
        )
    return weight


def repeated(
    weight: Tensor, generator: torch.Generator | None = None, *, copies: int = 4
) -> Tensor:
    r"""Return each row i in proportion to its weight, `(m,)`, by systematic sampling.

    .. math::
        n_i = \lfloor C_i + u \rfloor - \lfloor C_{i-1} + u \rfloor, \qquad
        C_i = \frac{m}{W} \sum_{j \le i} w_j, \quad u \sim U(0, 1)

    so that E n_i = m w_i / W and |n_i − E n_i| < 1, W the sum of the weights. With integer weights
    m is W, and n_i = w_i, if that is at most `copies` per row; otherwise m is `copies` times n.

    Arguments:
        weight: Weights, not negative, `(n,)`.
        generator: Source of u.
        copies: Number of copies of a row of average weight: with 4, rounding to integers adds less
            than a tenth to errors.
    """
    weight = weight.double()
    total, most = float(weight.sum()), copies * len(weight)
    whole = bool((weight == weight.round()).all()) and total <= most
    m = round(total) if whole else most
    u = 0.5 if whole else float(rand_like(weight[:1], generator))
    ends = (weight.cumsum(0) * (m / total) + u).floor().long()
    ends[-1] = m  # rounding may leave it one short
    counts = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.long))
    return torch.arange(len(weight)).repeat_interleave(counts)


class Divided(NamedTuple):
    """Training rows and held-out rows, some of them repeated if rows have weights.

    `distinct` are the training rows without repetition, and `repeats` the index of each training
    row among them, or None.
    """

    kept: Tensor
    aside: Tensor
    distinct: Tensor
    repeats: Tensor | None


def divided(n: int, n_held_out: int, weight: Tensor | None, generator: torch.Generator) -> Divided:
    """Divide n rows at random; those of weight 0 are in neither part."""
    order = permutation(n, generator)
    if weight is None:
        return Divided(order[n_held_out:], order[:n_held_out], order[n_held_out:], None)
    order = order[weight[order] > 0]
    distinct, aside = order[n_held_out:], order[:n_held_out]
    repeats = repeated(weight[distinct], generator)
    if len(aside):  # one for each on average: copies are no more data, errors would shrink
        aside = aside[repeated(weight[aside], generator, copies=1)]
    return Divided(distinct[repeats], aside, distinct, repeats)
