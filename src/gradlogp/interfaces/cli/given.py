"""Conditions on the command line: reading them, and writing them to output files."""

from __future__ import annotations

import csv
import io
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from .common import Misuse

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from ..estimator import ScoreEstimator


PICTURED = 100_000
"""Samples in a picture, at most."""


class Beside(NamedTuple):
    """What is written beside samples: names, and values `(n, k)`."""

    names: tuple[str, ...]
    values: np.ndarray


def class_labels(
    estimator: ScoreEstimator, klass: str | None, n: int, g: torch.Generator
) -> Tensor | None:
    """Return n labels of one class, or as the data has them; None to draw without a condition."""
    import torch

    from ...core import choice, nearest, some

    if estimator.condition != "classes":
        if klass is not None:
            raise Misuse("--class was given, but the model has no classes")
        drops = getattr(estimator.model_.condition, "dropout", 0.0)
        if estimator.condition == "values" and not float(drops) > 0:
            names = some(estimator.condition_names_, 20) or "values without names"
            raise Misuse(
                f"the model is conditional on {names}: sample it with --given (a model trained with "
                "--condition-dropout can also be sampled without)"
            )
        return None
    known = [str(c) for c in estimator.classes_]
    if klass is None:
        return choice(torch.from_numpy(estimator.class_prior_), n, g)
    if klass not in known:
        raise Misuse(f"unknown class {klass!r}{nearest(klass, known)}")
    return torch.full((n,), known.index(klass))


def read_given(estimator: ScoreEstimator, given: str) -> Tensor:
    """Return rows of the values to draw for: a=1.5,b=2, or those of a file."""
    import torch

    from ...core import some

    if estimator.condition != "values":
        raise Misuse("--given is for a model trained with --condition, which this one was not")
    names = estimator.condition_names_
    if "=" not in given:
        return _rows_of(given, names)
    pairs = dict(part.partition("=")[::2] for part in given.split(","))
    if set(pairs) != set(names):
        raise Misuse(f"--given {given}: the model needs {some([f'{n}=…' for n in names], 20)}")
    try:
        row = [float(pairs[name]) for name in names]
    except ValueError:
        row = [math.nan]
    if not all(map(math.isfinite, row)):
        raise Misuse(f"--given {given}: values after = must be finite numbers")
    return torch.tensor([row], dtype=torch.float64)


def _rows_of(path: str, names: tuple[str, ...]) -> Tensor:
    """Return these columns of a file with a header."""
    import torch

    from ...core import some

    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, ValueError, csv.Error) as error:
        raise Misuse(f"--given {path}: {str(error).splitlines()[0][:200]}") from None
    if len(rows) < 2:
        raise Misuse(f"--given {path}: it needs a line of names and a line of numbers")
    if missing := [name for name in names if name not in rows[0]]:
        raise Misuse(f"--given {path}: there is no column {some(missing)}")
    at = [rows[0].index(name) for name in names]
    try:
        values = [[float(row[i]) for i in at] for row in rows[1:] if row]
    except (ValueError, IndexError):
        values = [[math.nan]]
    if not all(math.isfinite(value) for row in values for value in row):
        raise Misuse(f"--given {path}: a row holds values that are not finite numbers")
    return torch.tensor(values, dtype=torch.float64)


def write_samples(
    x: Tensor, suffix: str, columns: tuple[str, ...], beside: Beside | None, file: IO[Any]
) -> None:
    """Write samples: rows of flattened samples as CSV, arrays as they are; with what is beside them."""
    import numpy as np

    if suffix == ".csv" and beside is None:
        np.savetxt(file, x.flatten(1).numpy(), "%.7g", ",")
    elif suffix == ".csv" and beside is not None:
        flat = x.flatten(1).tolist()
        names = columns or tuple(f"x{i}" for i in range(len(flat[0])))
        more = [name if name not in names else f"{name}_given" for name in beside.names]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*names, *more])
        for row, given in zip(flat, beside.values.tolist(), strict=True):
            cells = [v if isinstance(v, str) else f"{v:.7g}" for v in (*row, *given)]
            writer.writerow(cells)
        file.write(text.getvalue() if file is sys.stdout else text.getvalue().encode())
    elif suffix == ".npy":
        np.save(file, x.numpy())
    else:
        arrays = {"x": x.numpy()}
        if beside is not None and beside.names == ("class",):
            arrays["labels"] = beside.values[:, 0]
        elif beside is not None:
            arrays["given"] = beside.values
        np.savez(file, **arrays)  # type: ignore[arg-type]


def on_disk(path: Path, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Return a tensor mapped to a new .npy file on disk, of the dtype of another tensor.

    Raises:
        OSError: If there is no room for it.
    """
    import numpy as np
    import torch

    array = np.lib.format.open_memmap(path, "w+", like.numpy().dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:  # a full disk is found out now
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return torch.from_numpy(array)


def picture_of(sets: list[tuple[str, Tensor]], names: Sequence[str] = ()) -> bytes:
    """Return a picture of samples."""
    from ...show.plots import png
    from ...show.plots.samples import samples

    return png(samples(sets, names=names))
