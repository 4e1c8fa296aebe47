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
    start, loss = noise.get_state() if n_parts > 1 else None, None
    for i in range(n_parts):
        part = slice(len(z) * i // n_parts, len(z) * (i + 1) // n_parts)
        rows = slice(mine.start + part.start, mine.start + part.stop)
        if start is not None:
            noise.set_state(start)
        x = z[part]
        source = noise if len(x) == total else PartOfBatch(noise, rows, total)
        given = conditioned(score, None if condition is None else condition[part])
        losses = losses_of(objective, given, x, source)
        value = losses.sum() / total
        value.backward()
        value = value.detach()
        loss = value if loss is None else loss + value
    assert loss is not None
    return loss


@torch.no_grad()
def clip(gradients: list[Tensor], most: float) -> Tensor:
    """Scale gradients down to a common norm of `most`; return the norm that they had.

    What `torch.nn.utils.clip_grad_norm_` does, bit for bit, for tensors of one dtype and device. To
    look which these are takes it as long as the work.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (most / (norm + 1e-6)).clamp(max=1.0))
    return norm


@torch.no_grad()
def descend(optimizer: torch.optim.AdamW, failed: Tensor | None = None) -> None:
    """Do a step of a fused optimiser, bit for bit, for tensors of one dtype and device.

    If `failed`, a float32, is 1 and not 0, nothing changes: that is decided on the device.

    Its own `step` takes several times as long as the work to look which these are, and does so here
    only while a parameter has no moments yet.
    """
    (group,) = optimizer.param_groups
    parameters = [p for p in group["params"] if p.grad is not None]
    moments = [optimizer.state.get(p) for p in parameters]
    if not all(m and "exp_avg" in m for m in moments):
        optimizer.found_inf = failed  # type: ignore[attr-defined]
        optimizer.step()
        return
    steps, means, squares = (
        [m[name] for m in moments if m] for name in ("step", "exp_avg", "exp_avg_sq")
    )
    torch._foreach_add_(steps, 1)
    if failed is not None:
        torch._foreach_sub_(steps, [failed] * len(steps))
    beta1, beta2 = group["betas"]
    torch._fused_adamw_(
        parameters, [p.grad for p in parameters], means, squares, [], steps, lr=group["lr"],
        beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
        amsgrad=False, maximize=False, found_inf=failed,
    )  # fmt: skip
