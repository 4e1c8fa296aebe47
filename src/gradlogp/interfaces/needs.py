"""How many steps samples and likelihoods of a learned score need, measured once for each model."""

from __future__ import annotations

import copy
import math

import torch

from ..core import NoisyScore, randn_like
from ..diffusion import plan_levels, plan_likelihood
from ..scores.conditioned import Condition
from ..scores.model import ScoreModel

EXACT = 32
"""Entries of an event up to which the steps of a likelihood are measured with the exact divergence."""


class Needs:
    """The steps that a model needs; nothing is measured before it is requested.

    Arguments:
        model: The model.
    """

    def __init__(self, model: ScoreModel) -> None:
        self.model = model
        self._levels: int | None = None
        self._steps: int | None = None

    def levels(self) -> int:
        """Return the noise levels for samples that are right to a hundredth of a deviation."""
        if self._levels is None:
            self._levels = sample_levels(self.model)
        return self._levels

    def steps(self) -> int:
        """Return the steps for log-likelihoods that are right to 0.003 √d nats."""
        if self._steps is None:
            self._steps = likelihood_steps(in_float64(self.model))
        return self._steps


def in_float64(model: ScoreModel) -> ScoreModel:
    """Return a copy of a model in float64, in which no result depends on the batch."""
    return copy.deepcopy(model).cpu().double()


def sample_levels(model: ScoreModel) -> int:
    """Return the noise levels that sampling needs, to a hundredth of a standard deviation."""
    if model.schedule.times is not None:
        return len(model.schedule.times)
    generator = torch.Generator().manual_seed(0)
    return plan_levels(_typical(model, 32, generator), generator=generator).n


def likelihood_steps(model: ScoreModel) -> int:
    """Return the steps that a log-likelihood of d entries needs, to 0.003 √d nats."""
    generator, d = torch.Generator().manual_seed(0), model.event_shape.numel()
    n = max(8, min(64, 1024 // d))
    return plan_likelihood(
        _typical(model, n, generator), tolerance=0.003 * math.sqrt(d), n_draws=n, generator=generator,
        divergence="exact" if d <= EXACT else "hutchinson",
    ).n  # fmt: skip


def _typical(model: ScoreModel, n: int, generator: torch.Generator) -> NoisyScore:
    """Return the score given n conditions like those of the data, without asking the user."""
    condition = model.condition
    if not isinstance(condition, Condition):
        return model
    if isinstance(condition.kind, int):
        return model.given(torch.arange(n, device=model.z_std.device) % condition.kind)
    z = randn_like(torch.zeros(n, *condition.kind), generator).to(model.z_std)
    return model.given(condition.coordinates.decode(z))
