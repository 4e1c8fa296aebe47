r"""Averaged copies of the weights of a model, and the model used in training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..scores.model import ScoreModel


class Average:
    """A copy of a model whose weights are averaged by θ̄ ← d θ̄ + (1 − d) θ; the first time θ̄ = θ.

    The same as `torch.optim.swa_utils.AveragedModel`, but without a traversal of the modules each
    time, which takes as long as a third of a step for a small network.

    Arguments:
        model: The model to follow.
        decay: n -> d of averaging number n = 1, 2, ….

    Attributes:
        module: The copy, in evaluation mode.
    """

    def __init__(self, model: ScoreModel, decay: Callable[[int], float]) -> None:
        self.module, self.decay, self.n = copy.deepcopy(model).eval(), decay, 0
        self._pairs = [
            ([v.detach() for v in kind(self.module)], [v.detach() for v in kind(model)])
            for kind in (nn.Module.parameters, nn.Module.buffers)
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Average once more, with the weights as they are; buffers are copied."""
        (theirs, weights), (kept, buffers) = self._pairs
        if self.n == 0:
            torch._foreach_copy_(theirs, weights)
        else:
            torch._foreach_lerp_(theirs, weights, 1 - self.decay(self.n))
        if kept:
            torch._foreach_copy_(kept, buffers)
        self.n += 1

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights and how often they were averaged."""
        state = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.n)} | state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        self.n = int(state["n_averaged"])
        weights = {k: v for k, v in state.items() if k != "n_averaged"}
        self.module.load_state_dict({k.removeprefix("module."): v for k, v in weights.items()})


class _Bfloat16(nn.Module):
    """A network that computes in bfloat16 and returns the dtype of its input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, c: Tensor, *condition: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x, c, *condition).to(x.dtype)


def accelerated(model: ScoreModel, *, bfloat16: bool, compiled: bool) -> ScoreModel:
    """Return a model with the same weights and buffers whose network computes in a different way.

    This applies only to the network: frames, targets and the loss keep their precision.

    Arguments:
        model: The model; returned as it is if no option is set.
        bfloat16: Whether the network runs under autocast.
        compiled: Whether it goes through `torch.compile`.
    """
    if not (bfloat16 or compiled):
        return model
    network: Any = _Bfloat16(model.network) if bfloat16 else model.network
    network = torch.compile(network) if compiled else network
    shared = [model.schedule, model.coordinates, *model.buffers(recurse=False)]
    shared += [part for part in (model.condition, model.base) if part is not None]
    return copy.deepcopy(model, {id(model.network): network} | {id(s): s for s in shared})
