"""Checkpoints, and data that a model knows, as commands name them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .common import Misuse, class_names, is_checkpoint, load, split_given, with_given
from .tables import refuse_table

if TYPE_CHECKING:
    from torch import Tensor

    from ...learn.data import Dataset
    from ..estimator import ScoreEstimator


def load_estimator(checkpoint: Path) -> ScoreEstimator:
    """Load a checkpoint; a missing one is misuse."""
    if not (checkpoint.exists() or is_checkpoint(checkpoint)):
        raise Misuse(f"there is no checkpoint at {checkpoint}")
    from ..estimator import ScoreEstimator

    refuse_table(checkpoint)
    return ScoreEstimator.load(checkpoint)


def load_for(
    estimator: ScoreEstimator,
    data: str,
    columns: str | None,
    label: str | None,
    *,
    header: bool | None = None,
    quiet: bool,
) -> tuple[Dataset, Tensor | None]:
    """Load data that a model knows, and its conditions as the model takes them: classes by name."""
    import torch

    from ...core import some

    names = estimator.condition_names_ if estimator.condition == "values" else ()
    if estimator.condition == "values" and not names:
        raise Misuse("the model is conditional on values without names, which no table has")
    given = ",".join(names) or None
    found = load(data, with_given(columns, given), label, header=header, quiet=quiet)
    found, y = split_given(found, given)
    shape = estimator.model_.event_shape
    if found.x.shape[1:] != shape:
        raise Misuse(
            f"{data} has samples of shape {tuple(found.x.shape[1:])}, the model of {tuple(shape)}"
        )
    if y is not None:
        return found, y
    if estimator.condition is None:
        return found, None
    if found.labels is None:
        raise Misuse("the model is class-conditional: name the column of classes with --label")
    known, there = [str(c) for c in estimator.classes_], class_names(found).tolist()
    if unknown := sorted(set(there) - set(known)):
        raise ValueError(
            f"the model knows the classes {some(known)}, the data also {some(unknown)}"
        )
    return found, torch.tensor([known.index(name) for name in there])
