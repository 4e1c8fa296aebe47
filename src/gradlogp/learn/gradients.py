"""The loss of a batch and its gradients, all at once or in parts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .ahead import Batch


def accumulate(batch: Batch, n_parts: int) -> Tensor:
    """Add the gradients of the mean loss of a batch to those of the parameters; return the loss.

    The rows of this process are divided into n_parts parts of a row or more.

    Returns:
        The sum of their losses, divided by the number of rows of the whole batch.
    """
    loss = None
    for part in batch.parts(n_parts):
        value = part.losses().sum() / batch.total
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
    scale = (most / (norm + 1e-6)).clamp(max=1.0)
    if norm.device.type != "cpu" or float(scale) != 1:  # which changes nothing
        torch._foreach_mul_(gradients, scale)
    return norm


class Descent:
    """The steps of a fused AdamW, bit for bit, for tensors of one dtype and device.

    Its own `step` takes several times as long as the work to look which these are, and does so here
    only until all parameters with a gradient have moments.

    Arguments:
        optimizer: The optimiser; its state may be replaced between two steps.
    """

    def __init__(self, optimizer: torch.optim.AdamW) -> None:
        self.optimizer = optimizer
        self._of: Any = None  # the state that the moments belong to
        self._parameters: list[Tensor] = []
        self._steps = torch.empty(0)  # how often each parameter was changed
        self._moments: tuple[list[Tensor], ...] = ()

    @torch.no_grad()
    def __call__(self, failed: Tensor | None = None) -> None:
        """Do a step.

        If `failed`, a float32, is 1 and not 0, nothing changes: that is decided on the device.
        """
        (group,) = self.optimizer.param_groups
        parameters = [p for p in group["params"] if p.grad is not None]
        if not self._found(parameters):
            self.optimizer.found_inf = failed  # type: ignore[attr-defined]
            self.optimizer.step()
            return
        self._steps.add_(1)
        if failed is not None:
            self._steps.sub_(failed)
        steps, means, squares = self._moments
        beta1, beta2 = group["betas"]
        torch._fused_adamw_(
            parameters, [p.grad for p in parameters], means, squares, [], steps, lr=group["lr"],
            beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"],
            amsgrad=False, maximize=False, found_inf=failed,
        )  # fmt: skip

    def _found(self, parameters: list[Tensor]) -> bool:
        """Find the moments of these parameters, if all have some."""
        state = self.optimizer.state
        if self._of is state and list(map(id, parameters)) == list(map(id, self._parameters)):
            return True
        moments = [state[p] for p in parameters if p in state]
        if len(moments) < max(1, len(parameters)) or not all("exp_avg" in m for m in moments):
            return False
        self._of, self._parameters = state, parameters
        self._steps = torch.stack([m["step"] for m in moments])
        for m, step in zip(moments, self._steps.unbind(), strict=True):
            m["step"] = step  # so that one operation counts for all
        names = ("step", "exp_avg", "exp_avg_sq")
        self._moments = tuple([m[name] for m in moments] for name in names)
        return True
