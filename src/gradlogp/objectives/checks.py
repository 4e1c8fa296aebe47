"""What every objective asks of the points it is given."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import check_batch


def check_points(x: Tensor, name: str = "x") -> None:
    """Raise `ValueError` unless x is a batch `(B, *event)`, not empty, of finite numbers."""
    check_batch(x, name=name)
    if x.numel() == 0:
        raise ValueError(f"{name} is empty, shape {tuple(x.shape)}; a loss needs points")
    # one pass; only a sum that is not finite is looked at more closely
    if not math.isfinite(x.detach().sum().item()) and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise ValueError(f"{name} has {bad} of {len(x)} rows that are not finite; remove them")


def check_count(value: int, name: str) -> None:
    """Raise `ValueError` unless a count is at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
