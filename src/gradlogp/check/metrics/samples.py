"""What the two-sample metrics share: checked samples and subsamples."""

from __future__ import annotations

import torch
from torch import Tensor

from ...core import check_batch, permutation


def two_samples(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check two samples of one event shape and return them flat, in float64."""
    check_batch(x)
    check_batch(y, x.shape[1:], "y")
    if min(len(x), len(y)) < 2:
        raise ValueError(f"two-sample statistics need two points each, got {len(x)} and {len(y)}")
    for name, z in (("x", x), ("y", y)):
        if not bool(torch.isfinite(z).all()):
            bad = int((~torch.isfinite(z)).flatten(1).any(1).sum())
            raise ValueError(f"{name} has {bad} of {len(z)} rows that are not finite")
    return x.double().flatten(1), y.double().flatten(1)


def subsample(x: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Return n rows of x without replacement, or x where it has no more than n."""
    return x if len(x) <= n else x[permutation(len(x), generator)[:n].to(x.device)]
