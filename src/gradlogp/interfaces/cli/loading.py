"""Loading of checkpoints, and of data in the form of a model, for commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from pathlib import Path
from typing import TYPE_CHECKING

from .common import (
    Misuse,
    are_images,
    class_names,
    is_checkpoint,
    load,
    split_given,
    with_given,
)
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
    """Load data and conditions in the form of a model, with classes by name.

    Columns are matched by name, in the order of the model, if both model and data have names.
    """
    import torch

    from ...core import some

    names = estimator.condition_names_ if estimator.condition == "values" else ()
    if estimator.condition == "values" and not names:
        raise Misuse("the model is conditional on unnamed values, which no table has")
    given = ",".join(names) or None
    found = _columns_of(estimator, data, with_given(columns, given), label, header, quiet=quiet)
    found, y = split_given(found, given)
    shape = estimator.model_.event_shape
    if found.x.shape[1:] != shape:
        raise Misuse(
            f"{data} has samples of shape {tuple(found.x.shape[1:])}, but the model has {tuple(shape)}"
        )
    if y is not None:
        return found, y
    if estimator.condition is None:
        return found, None
    if found.labels is None:
        raise Misuse("the model is class-conditional: name the class column with --label")
    known, there = [str(c) for c in estimator.classes_], class_names(found).tolist()
    if unknown := sorted(set(there) - set(known)):
        raise ValueError(
            f"the model has the classes {some(known)}, but the data also {some(unknown)}"
        )
    return found, torch.tensor([known.index(name) for name in there])


def _columns_of(
    estimator: ScoreEstimator,
    data: str,
    columns: str | None,
    label: str | None,
    header: bool | None,
    *,
    quiet: bool,
) -> Dataset:
    """Load the columns that a model learned, and those it is conditional on, in its order.

    Data without column names are matched by position.
    """
    from ...learn.data.loading import names_in

    wanted: tuple[str, ...] = estimator.model_.columns
    if not wanted or are_images(data):
        event = estimator.model_.event_shape
        sides = (event[1], event[2]) if len(event) == 3 and Path(data).is_dir() else None
        return load(data, columns, label, header=header, size=sides, quiet=quiet)
    if estimator.condition == "values":
        wanted += estimator.condition_names_
    if label in wanted:
        raise Misuse(f"--label {label}: the model learned this column as numbers, not as classes")
    asked = wanted if columns is None else tuple(columns.split(","))
    if not _places(wanted) and set(asked) == set(wanted):
        try:
            return load(data, wanted, label, header=header, quiet=quiet)
        except Misuse:
            raise
        except ValueError:
            there = names_in(data, header)
            if set(wanted) <= set(there):
                raise
            if not _places(there):
                raise Misuse(_differ(data, there, wanted, extra=False)) from None
    found = load(data, columns, label, header=header, quiet=quiet)
    if set(found.columns) == set(wanted):
        order = [found.columns.index(name) for name in wanted]
        return found._replace(x=found.x[:, order], columns=wanted)
    if columns is not None and not (_places(wanted) or _places(names_in(data, header))):
        raise Misuse(_differ(f"--columns {columns}", asked, wanted))
    return found


def _places(names: tuple[str, ...]) -> bool:
    """Return whether these are the places of columns, counted from 0, and no names."""
    return set(names) == set(map(str, range(len(names))))


def _differ(
    what: str, names: tuple[str, ...], wanted: tuple[str, ...], *, extra: bool = True
) -> str:
    """Say which columns of the model are missing among names, and which it does not know."""
    from ...core import some

    missing = [name for name in wanted if name not in names]
    unknown = [name for name in names if name not in wanted] if extra else []
    said = [f"lacks {some(missing)}"] * bool(missing)
    said += [f"has {some(unknown)}, which the model does not have"] * bool(unknown)
    return f"{what} {' and '.join(said)}; the model learned the columns {some(wanted)}"
