"""What a model learned together with its divergence, by the chain rule written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import Base
from .networks import MLP


def _by_hand(model: Any, t: Tensor) -> bool:
    """Return whether the formula is that of this model at t, and no derivatives are wanted of it."""
    from .model import ScoreModel  # which needs this module

    if type(model) is not ScoreModel or "denoise_given" in vars(model) or t.numel() != 1:
        return False
    network, plain_base = model.network, type(model.base) in (type(None), Base)
    if not plain_base or type(network) is not MLP or network.holes or torch.is_grad_enabled():
        return False
    return network._plain()


def learned_and_trace(
    model: Any, z: Tensor, t: Tensor, condition: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    r"""Return what a network adds to E[z_0 | z_t = z] and its divergence, `(B,)`, without a graph.

    Entry by entry it is affine in z̃ = scale (z − drift) and in the output F(z̃) of the network, with
    factors p and q. Its divergence is

    .. math::
        \sum_i scale_i \left( p_i + q_i \, \partial F_i / \partial \tilde z_i \right)

    Arguments:
        model: The model.
        z: States `(B, *event)`.
        t: A time, `()`.
        condition: Conditions as the network takes them.

    Returns:
        None for a model that is not a `ScoreModel` of a `MLP`, or is changed in a way that the
        formula does not know.
    """
    if not _by_hand(model, t):
        return None
    frame = model._frame(z, t)
    seen = model._seen(z, frame, condition)
    zero, one = torch.zeros_like(z[0]), torch.ones_like(z[0])
    z_unit, said = torch.stack([one, zero]), torch.stack([zero, one])
    factors = frame.mean(model.predicts, said, z_unit if model._whole else None)
    factors = model._spread(z) * factors
    if model.base is not None:
        factors = model.base.beside(None, factors, frame.coordinate)
    p, q = factors
    scale = frame.scale.reshape(z.shape[1:])
    out, trace = model.network._traced(
        seen.z_unit, seen.coordinate, scale * q, condition, seen.embedded
    )
    value = model._mean_by(out, seen, frame, z, alone=True)
    return value, trace + (scale * p).sum()
