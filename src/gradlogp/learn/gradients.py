"""The loss of a batch and its gradients, all at once or in parts."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import PartOfBatch
from ..scores.model import ScoreModel
from .held_out import Objective, conditioned, losses_of


def accumulate(
    score: ScoreModel,
    objective: Objective,
    z: Tensor,
    condition: Tensor | None,
    noise: torch.Generator,
    mine: slice,
    total: int,
    n_parts: int,
) -> Tensor:
    """Add the gradients of the mean loss of a batch to those of the parameters; return the loss.

    Noise and times are drawn for the whole batch, so that neither parts nor processes change the
    result, except for rounding.

    z and the conditions are the rows `mine` of a batch of `total`, divided into n_parts parts of a row
    or more.

    Returns:
        The sum of their losses, divided by the number of rows of the whole batch.
    """
    n_parts = min(n_parts, len(z))
    start, loss = noise.get_state(), z.new_zeros(())
    for i in range(n_parts):
        part = slice(len(z) * i // n_parts, len(z) * (i + 1) // n_parts)
        rows = slice(mine.start + part.start, mine.start + part.stop)
        noise.set_state(start)
        source = noise if len(z[part]) == total else PartOfBatch(noise, rows, total)
        given = conditioned(score, None if condition is None else condition[part])
        value = losses_of(objective, given, z[part], source).sum() / total
        value.backward()
        loss = loss + value.detach()
    return loss
