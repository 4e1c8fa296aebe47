"""The arguments of an estimator in the form that training and sampling take."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import torch
from sklearn.utils import check_random_state

from ..core import (
    check_count,
    check_device,
    check_kind,
    check_number,
    check_option,
    shown,
)
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


def check_asked(estimator: Any) -> None:
    """Raise `ValueError` for invalid options of an estimator, whether they will be used or not."""
    for name in ("max_iter", "batch_size", "n_sample_steps", "n_likelihood_steps"):
        if getattr(estimator, name) is not None:
            check_count(getattr(estimator, name), name)
    if estimator.held_out_fraction is not None:
        check_number(estimator.held_out_fraction, "held_out_fraction", least=0, below=1)
    if estimator.channels is not None:
        check_kind(estimator.channels, "channels", list | tuple, "a tuple of integers")
        for c in estimator.channels:
            check_count(c, "each of channels")
    if not isinstance(estimator.standardize, bool):
        named = "standardize, if it is neither True nor False,"
        check_option(estimator.standardize, named, ("one",))
    if estimator.start is not None:
        check_kind(estimator.start, "start", str | os.PathLike, "the folder of a checkpoint")
        if not os.path.isdir(estimator.start):
            raise ValueError(f"start must be the folder of a checkpoint, got {estimator.start!r}")
    check_device(estimator.device)


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
