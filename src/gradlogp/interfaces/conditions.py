"""What is said of each row, as a model takes it: y, its classes or values, and its weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core import MANY_ROWS, NoisyScore, check_kind, check_option, permutation, rand_like, some
from ..scores.conditioned import Condition
from ..scores.model import ScoreModel


def names_of(y: Any) -> tuple[str, ...]:
    """Return the names of the columns of y, where it is a frame or a named series."""
    columns = getattr(y, "columns", None)
    if columns is not None:
        return tuple(map(str, columns))
    name = getattr(y, "name", None)
    return () if name is None else (str(name),)


def as_array(y: Any) -> np.ndarray:
    """Return y as an array; a tensor may be on any device.

    Raises:
        ValueError: If its rows have different shapes.
    """
    if isinstance(y, Tensor):
        check_kind(y, "y", Tensor, "a tensor")
    try:
        return y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
    except (TypeError, ValueError) as error:
        raise ValueError(f"y is not an array with one row per sample: {error}") from None


def read_classes(y: Any) -> np.ndarray:
    """Return classes as an array, `()` or `(n,)`, of text, integers or booleans.

    Raises:
        ValueError: For numbers that are not integers, missing values, or an array of a wrong
            shape.
    """
    found = as_array(y)
    if found.dtype == object:
        kinds = {type(v) for v in found.ravel()}
        if kinds <= {int, bool, np.int64, np.bool_} or kinds == {str}:
            found = np.array(found.tolist())
        elif kinds & {float, np.float32, np.float64} and kinds <= {
            float,
            np.float32,
            np.float64,
            int,
        }:
            found = found.astype(np.float64)
    if found.dtype.kind in "fc":
        n = len(np.unique(found))
        raise ValueError(
            f"y holds {n:,} different numbers with decimals, and a class is text, an integer or a "
            'boolean: learn them as numbers by condition="values", or convert them by y.astype(int)'
        )
    if found.dtype.kind not in "iubUST" or found.ndim > 1 or not found.size:
        raise ValueError(
            "y must hold one class per sample: text, integers or booleans without missing values; got "
            f"{found.dtype} of shape {found.shape}"
        )
    return found


def number_classes(y: Any, classes: np.ndarray) -> Tensor:
    """Return the numbers of classes, `(1,)` or `(n,)`.

    Raises:
        ValueError: For an unknown class.
    """
    found = np.atleast_1d(read_classes(y))
    known = {name: i for i, name in enumerate(classes.tolist())}
    if unknown := sorted({str(v)[:40] for v in set(found.tolist()) - known.keys()}):
        raise ValueError(
            f"unknown class{'es' * (len(unknown) > 1)} {some(unknown)}; known: "
            f"{some(classes.tolist())}"
        )
    return torch.tensor([known[name] for name in found.tolist()])


def read_values(y: Any, shape: Sequence[int] | None = None) -> Tensor:
    """Return float64 values `(n, *shape)`; by default the shape is that of the rows of y.

    A single row may lack its first axis, and single numbers count as one per row.

    Raises:
        ValueError: For values that are not numbers, NaN or infinite, or of a different shape.
    """
    found = as_array(y)
    if found.dtype.kind not in "fiub":
        try:
            found = found.astype(np.float64)
        except (TypeError, ValueError):
            raise ValueError(
                'condition="values" needs numbers; y holds '
                f'{found.dtype}. For classes use condition="classes"'
            ) from None
    values = torch.from_numpy(np.array(found, dtype=np.float64))
    if shape is None:
        values = values.unsqueeze(1) if values.ndim == 1 else values
        if values.ndim < 2 or not values.numel():
            raise ValueError(f"y must hold one row of values per sample, got shape {found.shape}")
    elif tuple(shape) == (1,) and values.ndim <= 1:
        values = values.reshape(-1, 1)
    elif values.shape == tuple(shape):
        values = values.unsqueeze(0)
    if shape is not None and values.shape[1:] != tuple(shape):
        wanted = ", ".join(map(str, shape))
        raise ValueError(
            f"y must have shape (n, {wanted}), or ({wanted}) for all, got {found.shape}"
        )
    if not bool(values.isfinite().all()):
        raise ValueError("y has entries that are NaN or infinite; drop these rows")
    return values


def check_rows(shape: Sequence[int], n: int) -> None:
    """Raise `ValueError` unless y of this shape has one row for each of n samples."""
    if not shape or shape[0] != n:
        raise ValueError(
            f"y must have one row per sample, {n} in all; got {shape[0] if shape else 'a single one'}"
        )


def learn_condition(
    estimator: Any, y: Any, n: int, names: Sequence[str] | None = None,
    weight: Tensor | None = None,
) -> Tensor | None:  # fmt: skip
    """Return y as an array with n rows, and store its classes or shape in the estimator.

    Raises:
        ValueError: If y is missing, or not of the kind that `condition` says.
    """
    if estimator.condition is None:
        return None
    check_option(estimator.condition, "condition, if it is not None,", ("classes", "values"))
    if y is None:
        raise ValueError(f'condition="{estimator.condition}" needs y, one row per sample')
    estimator.condition_names_ = names_of(y) if names is None else tuple(names)
    if estimator.condition == "classes":
        found = read_classes(y)
        check_rows(found.shape, n)
        estimator.classes_ = np.unique(found)
        numbers = number_classes(found, estimator.classes_)
        counts = np.bincount(numbers.numpy(), None if weight is None else weight.numpy())
        estimator.class_prior_ = counts / counts.sum()
        return numbers
    values = read_values(y)
    check_rows(values.shape, n)
    estimator.condition_shape_ = tuple(values.shape[1:])
    return values


def condition_kind(estimator: Any) -> int | tuple[int, ...] | None:
    """Return a number of classes, the shape of values, or None, as networks are made with it."""
    if estimator.condition is None:
        return None
    return (
        len(estimator.classes_) if estimator.condition == "classes" else estimator.condition_shape_
    )


def given_score(estimator: Any, score: ScoreModel, y: Any, n: int) -> NoisyScore:
    """Return the score given y, one row for each of n samples or one for all.

    Raises:
        ValueError: For a y that is missing, superfluous, or of a wrong kind or number of rows.
    """
    if estimator.condition is None:
        if y is not None:
            raise ValueError(
                "y was given, but this model is unconditional: fit it with "
                'condition="classes" or condition="values"'
            )
        return score
    if y is None:
        if isinstance(score.condition, Condition) and float(score.condition.dropout) > 0:
            return score.unconditional()
        raise ValueError(
            f'condition="{estimator.condition}" needs y, one row per sample or one for all (or train '
            "with settings=TrainingSettings(condition_dropout=0.1), and leave it out)"
        )
    if estimator.condition == "classes":
        given = number_classes(y, estimator.classes_)
    else:
        given = read_values(y, estimator.condition_shape_)
    if len(given) != 1:
        check_rows(given.shape, n)
    return score.given(given)


def restore_condition(estimator: Any, model: ScoreModel, kept: Mapping[str, Any]) -> None:
    """Let an estimator have the condition of a model, with what a checkpoint keeps of it."""
    kind = None if model.condition is None else model.condition.kind
    estimator.condition_names_ = tuple(kept.get("condition_names", ()))
    estimator.condition = None
    if isinstance(kind, int):
        estimator.condition = "classes"
        estimator.classes_ = np.asarray(kept.get("classes", range(kind)))
        estimator.class_prior_ = np.asarray(kept.get("class_prior", [1 / kind] * kind))
    elif isinstance(model.condition, Condition) and kind is not None:
        estimator.condition, estimator.condition_shape_ = "values", tuple(kind)


def sample_weights(sample_weight: Any, n: int) -> Tensor | None:
    """Return weights of samples; None where all count alike."""
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Tensor):
        check_kind(sample_weight, "sample_weight", Tensor, "a tensor")
        sample_weight = sample_weight.detach().cpu()
    try:
        weight = torch.as_tensor(np.asarray(sample_weight, dtype=np.float64))
    except (TypeError, ValueError, OverflowError):
        raise ValueError("sample_weight must be numbers, one per sample") from None
    if weight.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), got {tuple(weight.shape)}")
    if not bool((weight >= 0).all() and weight.isfinite().all() and (weight > 0).sum() >= 2):
        raise ValueError(
            "sample_weight must be finite and non-negative, with at least two weights above zero"
        )
    return weight


def repeated(
    weight: Tensor, generator: torch.Generator | None = None, *, copies: int = 4
) -> Tensor:
    r"""Return each row i in proportion to its weight, `(m,)`, by systematic sampling.

    .. math::
        n_i = \lfloor C_i + u \rfloor - \lfloor C_{i-1} + u \rfloor, \qquad
        C_i = \frac{m}{W} \sum_{j \le i} w_j, \quad u \sim U(0, 1)

    so that E n_i = m w_i / W and |n_i − E n_i| < 1, W the sum of the weights. With integer weights
    m is W, and n_i = w_i, if that is at most `copies` per row; otherwise m is `copies` times n.

    A row of average weight is there in so many `copies`: rounding 4 to whole ones adds less than a
    tenth to errors.
    """
    weight = weight.double()
    total, most = float(weight.sum()), copies * len(weight)
    whole = bool((weight == weight.round()).all()) and total <= most
    m = round(total) if whole else most
    u = 0.5 if whole else float(rand_like(weight[:1], generator))
    ends = (weight.cumsum(0) * (m / total) + u).floor().long()
    ends[-1] = m  # rounding may leave it one short
    counts = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.long))
    return torch.arange(len(weight)).repeat_interleave(counts)


class Divided(NamedTuple):
    """Training rows and held-out rows, some of them repeated if rows have weights.

    `distinct` are the training rows without repetition, and `repeats` the index of each training
    row among them, or None.
    """

    kept: Tensor
    aside: Tensor
    distinct: Tensor
    repeats: Tensor | None


def divided(n: int, n_held_out: int, weight: Tensor | None, generator: torch.Generator) -> Divided:
    """Divide n rows at random; those of weight 0 are in neither part.

    Of `MANY_ROWS` each part is in the order in which rows are stored, in which they are read.
    """
    order = permutation(n, generator)
    if n >= MANY_ROWS:
        for part in (order[:n_held_out], order[n_held_out:]):
            part.numpy().sort()
    if weight is None:
        return Divided(order[n_held_out:], order[:n_held_out], order[n_held_out:], None)
    order = order[weight[order] > 0]
    distinct, aside = order[n_held_out:], order[:n_held_out]
    repeats = repeated(weight[distinct], generator)
    if len(aside):  # one for each on average: copies are no more data, errors would shrink
        aside = aside[repeated(weight[aside], generator, copies=1)]
    return Divided(distinct[repeats], aside, distinct, repeats)
