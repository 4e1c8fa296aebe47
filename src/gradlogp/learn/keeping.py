"""Averaged weights, those of a training that are kept, and the model that computes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import mean_and_error
from ..scores.masked import Mask
from ..scores.model import ScoreModel
from .held_out import Measurement
from .share import corrected, evaluations, fit_linear, fit_share


class Average:
    """A copy of a model whose weights are averaged by θ̄ ← d θ̄ + (1 − d) θ; the first time θ̄ = θ.

    The same as `torch.optim.swa_utils.AveragedModel`, but without a traversal of the modules each
    time, which takes as long as a third of a step for a small network.

    Averaging number n = 1, 2, … has d = decay(n).

    Attributes:
        module: The copy, in evaluation mode.
    """

    def __init__(self, model: ScoreModel, decay: Callable[[int], float]) -> None:
        self.module, self.decay, self.n = copy.deepcopy(model).eval(), decay, 0
        kept = set(model.state_dict())  # of its buffers a step changes at most the network's
        buffers = [n for n, _ in model.named_buffers() if n in kept and n.startswith("network.")]
        detached = lambda m: [p.detach() for p in m.parameters()]
        self._pairs = [
            (detached(self.module), detached(model)),
            ([self.module.get_buffer(n) for n in buffers], [model.get_buffer(n) for n in buffers]),
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
        self.network, self.start = network, getattr(network, "start", False)

    def forward(self, x: Tensor, c: Tensor, *condition: Tensor, **known: Any) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x, c, *condition, **known).to(x.dtype)


def accelerated(model: ScoreModel, *, bfloat16: bool, compiled: bool) -> ScoreModel:
    """Return a model with the same weights and buffers whose network computes in a different way.

    This applies only to the network: frames, targets and the loss keep their precision.
    """
    if not (bfloat16 or compiled):
        return model
    network: Any = _Bfloat16(model.network) if bfloat16 else model.network
    network = torch.compile(network) if compiled else network
    shared = [model.schedule, model.coordinates, *model.buffers(recurse=False)]
    shared += [part for part in (model.condition, model.base) if part is not None]
    return copy.deepcopy(model, {id(model.network): network} | {id(s): s for s in shared})


LATE = 2.0
"""Standard errors by which the lowest loss is to be lower than that at the end, of a model of parts."""


class Best:
    """The averaged weights with the lowest loss on held-out data so far, and their step."""

    def __init__(self) -> None:
        self.step, self.loss = 0, float("inf")
        self.weights: dict[str, Tensor] | None = None

    def offer(self, step: int, loss: float, model: ScoreModel) -> None:
        """Keep a copy of these weights if their loss is lower."""
        if loss < self.loss:
            self.step, self.loss = step, loss
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}

    def state(self) -> dict[str, Any] | None:
        """Return all of it, or None if nothing was offered."""
        if self.weights is None:
            return None
        return {"step": self.step, "loss": self.loss, "weights": self.weights}

    def restore(self, state: dict[str, Any] | None) -> None:
        """Go on from a state."""
        if state is not None:
            self.step, self.loss, self.weights = state["step"], state["loss"], state["weights"]


def conclude(averaged: ScoreModel, best: Best, measure: Measurement, seed: int) -> ScoreModel:
    """Return the model that is kept: the best weights, and as much of a correction as helps."""
    final, last = copy.deepcopy(averaged), measure.losses
    z = measure.z if measure.asked else None
    weights = None if best.weights is None or _equal(final, best.weights) else best.weights
    by_parts = isinstance(final.condition, Mask) and corrected(final) is not None
    if by_parts and weights is not None and z is not None and len(z) > 1:
        return _of_parts(final, weights, measure, seed)
    if weights is not None:
        final.load_state_dict(weights)
        lowest = measure(final, seed)[0]
        if last is not None and measure.losses is not None and lowest is not None:
            rise = mean_and_error(last - measure.losses)
            if rise.value > max(3 * rise.standard_error, 0.01 * abs(lowest.value)):
                _warn(best.step, lowest.value, lowest.value + rise.value)
    fit_linear(final, *measure.trained_on, seed)
    if corrected(final) is not None and z is not None and len(z) > 1:
        fit_share(final, z, measure.condition, seed, measure.objective)
    return final


def ending(model: ScoreModel, measure: Measurement, finish: Callable[..., Any] | None) -> float:
    """Return how many measurements take as long as what is done after the last step.

    That is, `conclude` and `finish`, which may say of how many rows it asks the network. Without
    held-out rows there is no measurement to compare it with.
    """
    if measure.z is None or not measure.asked:
        return 0.0
    of_finish = getattr(finish, "evaluations", None)
    n, rows = len(measure.z), 0 if of_finish is None else of_finish(model)
    return float((rows + evaluations(model, measure.trained_on[0], n)) / n)


def _equal(model: ScoreModel, weights: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(v, weights[name]) for name, v in model.state_dict().items())


def _of_parts(
    late: ScoreModel, weights: Mapping[str, Tensor], measure: Measurement, seed: int
) -> ScoreModel:
    """Return the last weights, or the best ones if their loss is lower, each with its shares.

    The loss sums over all columns, and says little about a column that is still being learned
    while others are memorised; a memorised column loses its share.
    """
    early = copy.deepcopy(late)
    early.load_state_dict(weights)
    losses = []
    for model in (late, early):
        assert measure.z is not None
        fit_share(model, measure.z, measure.condition, seed, measure.objective)
        measure(model, seed)
        assert measure.losses is not None
        losses.append(measure.losses)
    rise = mean_and_error(losses[0] - losses[1])
    return early if rise.value > LATE * rise.standard_error else late


def _warn(step: int, lowest: float, end: float) -> None:
    warnings.warn(
        f"the loss on held-out data rose from {lowest:.4g} at step {step} to {end:.4g} at the end: the "
        "network memorises its rows. The weights with the lowest loss are kept; fewer steps, a "
        "smaller network or more data would also help",
        stacklevel=5,
    )
