"""The arguments of a training, checked against the model and the data before anything is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..core import (
    NoisyScore,
    check_count,
    check_function,
    check_generator,
    check_kind,
    check_option,
)
from ..scores.model import ScoreModel
from .batches import check_conditions, check_data
from .claim import Claim
from .feed import Augment
from .held_out import Objective
from .mapped import as_rows
from .resuming import Begun
from .settings import TrainingSettings
from .share import corrected

SAVE_EVERY = 500
"""Steps between the saves of a checkpoint by default."""


@dataclass(frozen=True)
class Asked:
    """The arguments of `fit`, and the claim on the folder of its checkpoint."""

    model: ScoreModel
    data: Any
    objective: Objective
    condition: Tensor | None
    settings: TrainingSettings
    standardize: bool | Literal["one"] = False
    keep_frame: bool = False
    augment: Augment | None = None
    held_out: Any = None
    held_out_condition: Tensor | None = None
    exact: NoisyScore | None = None
    claim: Claim | None = None
    checkpoint: str | os.PathLike[str] | None = None
    checkpoint_every: int = SAVE_EVERY
    extra: Mapping[str, Any] | None = None
    resume: bool = False
    finish: Callable[[ScoreModel], object] | None = None
    generator: torch.Generator | None = None
    begun: Begun | None = None


def check_asked(asked: Asked) -> Asked:
    """Return the arguments, datasets as rows; raise `ValueError` if they do not fit one another."""
    model, condition, held_out_condition = asked.model, asked.condition, asked.held_out_condition
    check_kind(model, "model", ScoreModel, "a ScoreModel")
    check_function(asked.objective, "objective", takes=2, by_name=("generator",))
    check_generator(asked.generator)
    data, held_out = as_rows(asked.data), as_rows(asked.held_out)
    check_data(data, model.event_shape)
    check_conditions(model, condition, len(data), "condition")
    if condition is None and asked.settings.condition_dropout > 0:
        raise ValueError("condition_dropout= drops conditions: pass condition=")
    if not isinstance(asked.standardize, bool):
        named = "standardize, if it is neither True nor False,"
        check_option(asked.standardize, named, ("one",))
    check_kind(asked.keep_frame, "keep_frame", bool, "True or False")
    if asked.keep_frame and asked.standardize:
        raise ValueError(
            "keep_frame=True keeps the coordinates of the model, but standardize= would fit new ones: "
            "drop one of the two"
        )
    if asked.augment is not None:
        check_function(asked.augment, "augment", takes=2)
    if held_out is not None:
        check_data(held_out, model.event_shape, "held_out")
    elif held_out_condition is not None:
        raise ValueError("held_out_condition= needs held_out=")
    if held_out is not None:
        check_conditions(model, held_out_condition, len(held_out), "held_out_condition")
    check_count(asked.checkpoint_every, "checkpoint_every")
    if asked.finish is not None:
        check_function(asked.finish, "finish")
    if asked.begun is not None:
        check_kind(asked.begun, "begun", Begun, "the first steps of this training")
    if asked.resume and asked.checkpoint is None:
        raise ValueError("resume=True needs checkpoint=, the directory to resume from")
    return replace(asked, data=data, held_out=held_out)


def fit_frame(asked: Asked) -> None:
    """Fit coordinates, moments, base and what is known of the condition, or keep those of the model."""
    model, scales = asked.model, asked.standardize
    if (law := corrected(model)) is not None:  # no share of another training: it is found anew
        law.share.fill_(1.0)
    if asked.keep_frame:
        return
    model.fit_frame(asked.data, "each" if scales is True else scales or None)
    if asked.condition is not None and model.condition is not None:
        model.fit_condition(asked.data, asked.condition, asked.settings.condition_dropout)
