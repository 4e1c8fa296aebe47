"""Euclidean distances without cancellation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .shapes import check_batch


def distances(x: Float[Tensor, "n *event"], y: Float[Tensor, "m *event"]) -> Float[Tensor, "n m"]:
    r"""Return :math:`\lVert x_i - y_j \rVert` over the event, computed as differences.

    The expansion ‖x‖² + ‖y‖² − 2 xᵀy, which `torch.cdist` uses by default for many rows, suffers
    from cancellation: far from the origin small distances are lost. Here copies have distance 0
    exactly. Half precision, which `torch.cdist` does not support, is computed in float32.
    """
    check_batch(x)
    check_batch(y, x.shape[1:], "y")
    a, b = (z.flatten(1) for z in (x, y))
    if x.dtype.itemsize < 4:
        a, b = a.float(), b.float()
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").to(x.dtype)
