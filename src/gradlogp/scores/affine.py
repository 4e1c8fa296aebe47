"""A learned score at given states as an affine function of what its network says of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..noise.score_base import refuse_no_noise
from .frame import Seen
from .masked import Mask
from .model import ScoreModel


class Affine(NamedTuple):
    """s = offset + gain F(seen): all of the score in training but the output F of the network."""

    seen: Seen
    offset: Tensor | None  # None: 0
    gain: Tensor


def is_affine(model: ScoreModel) -> bool:
    """Return whether `affine` is all that a call of this model does, with no rows known in part."""
    kind, own = type(model), ("forward", "__call__", "_score", "_frame", "_seen")
    plain = all(getattr(kind, name) is getattr(ScoreModel, name) for name in own)
    plain = plain and not any(name in vars(model) for name in own)
    hooked = model._forward_hooks or model._forward_pre_hooks
    return plain and not hooked and not isinstance(model.condition, Mask)


def affine(model: ScoreModel, z: Tensor, t: Tensor, condition: Tensor | None) -> Affine:
    """Return the score of a model in training; z `(B, *event)`, t `(B,)`.

    Arguments:
        model: The model, which `is_affine`.
        z: States.
        t: Times.
        condition: Conditions as the network takes them.
    """
    refuse_no_noise(model.schedule, t)
    frame = model._frame(z, t)
    seen = model._seen(z, frame, condition)
    offset = None if frame.of_z is None else frame.of_z * seen.z_unit
    base = model.base
    if base is None or base.fallback:
        return Affine(seen, offset, frame.of_network)
    at = frame.place()
    offset = base.corrected(torch.zeros_like(z) if offset is None else offset, z, *at)
    return Affine(seen, offset, base.beside(None, frame.of_network, frame.coordinate))
