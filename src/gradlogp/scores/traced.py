"""What a model learned together with its divergence, by the chain rule written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .frame import Seen
from .networks import MLP


def _by_hand(model: Any, t: Tensor) -> bool:
    """Return whether the formula is that of this model at t, and no derivatives are wanted of it."""
    from .model import ScoreModel  # which needs this module

    kind, network = type(model), getattr(model, "network", None)
    if not isinstance(model, ScoreModel) or type(network) is not MLP or network.holes:
        return False
    own = all(getattr(kind, n) is getattr(ScoreModel, n) for n in ("denoise_given", "_seen"))
    return own and t.numel() == 1 and network._plain and not torch.is_grad_enabled()


def learned_and_trace(
    model: Any, z: Tensor, t: Tensor, condition: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    r"""Return what a network adds to E[z_0 | z_t = z] and its divergence, `(B,)`, without a graph.

    With z̃ = scale (z − drift) it is affine in z̃ and in what the network says of it, entry by
    entry, with factors p and q:

    .. math::
        \nabla \cdot m = \sum_i scale_i \left( p_i + q_i \, \partial F_i / \partial \tilde z_i \right)

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
    zero, one = torch.zeros_like(z[:1]), torch.ones_like(z[:1])
    # the rows of z̃ and of what the network says give 0, p and q beside what depends on neither
    units = Seen(torch.cat([zero, one, zero]), frame.coordinate.expand(3))
    said = torch.cat([zero, zero, one])
    origin, p, q = model._mean_by(said, units, frame, units.z_unit, alone=True)
    scale = frame.scale.reshape(z.shape[1:])
    out, trace = model.network._traced(
        seen.z_unit, seen.coordinate, scale * (q - origin), condition, seen.embedded
    )
    value = model._mean_by(out, seen, frame, z, alone=True)
    return value, trace + (scale * (p - origin)).sum()
