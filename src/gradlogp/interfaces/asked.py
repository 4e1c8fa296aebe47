"""What an estimator was asked for, as trainings and samplers take it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from sklearn.utils import check_random_state

from ..core import check_kind, shown
from ..learn.settings import TrainingSettings


def training_of(estimator: Any) -> TrainingSettings:
    """Return how an estimator trains: its settings, and what it has of its own in place of them."""
    own: dict[str, Any] = {
        "steps": estimator.max_iter, "batch_size": estimator.batch_size,
        "learning_rate": estimator.learning_rate, "ema": estimator.ema,
    }  # fmt: skip
    given = estimator.settings
    if given is None:
        given = TrainingSettings()
    check_kind(given, "settings", TrainingSettings, "TrainingSettings")
    return replace(given, **{k: v for k, v in own.items() if v is not None})


def generator_of(random_state: Any) -> torch.Generator:
    """Return the noise of what scikit-learn takes for a seed."""
    try:
        state = check_random_state(random_state)
    except (TypeError, ValueError):
        raise ValueError(
            "random_state must be None, an integer from 0 to 2**32 - 1 or a numpy.random.RandomState, "
            f"got {shown(random_state)}"
        ) from None
    return torch.Generator().manual_seed(int(state.randint(2**31)))
