"""From a name or a path to a `Dataset`: choose columns, drop bad rows, number the classes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core import (
    check_dtype,
    check_kind,
    check_number,
    joined,
    listed,
    nearest,
    permutation,
    short,
    some,
)
from .files import read_csv, read_numpy, read_parquet
from .images import IMAGES, read_images
from .layout import Dataset, Raw, number
from .named import NAMES, named

CLASSES = 50
"""Most values of a column of text that are taken for classes in advice."""

DATE = re.compile(r"\d{1,4}([-/.])\d{1,2}\1\d{1,4}\b|\d{4}-\d{2}$|\d{1,2}:\d{2}(:\d{2})?$")
WRITTEN = re.compile(r"[+-]?\d{1,3}([,.' ])\d{3}(\1\d{3})*([.,]\d+)?|[+-]?\d*,\d+")
"""What begins like a date or a time, and numbers that are written otherwise."""


def load(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    label: str | None = None,
    header: bool | None = None,
    size: Sequence[int] | None = None,
    dtype: torch.dtype | None = None,
) -> Dataset:
    """Load a named data set, a file or a folder of images; x is `(N, *event)`.

    A name takes precedence over a file with that name (write ./stars for the file). A .npy file is
    mapped: it is searched for NaN once, in pieces, and if it keeps its dtype and no row is
    dropped, x *is* the mapping (writing to x does not change the file). Columns without names are
    called "0", "1", ….

    Arguments:
        source: One of `NAMES`; a .npy, .npz (one array, or `x` and perhaps `y` or `labels`), .csv
            (commas) or .parquet file; or a folder of images -> (N, C, H, W) in [0, 255], where
            sub-folders are classes. Arrays are (N,), (N, D), (N, C, L) or (N, C, H, W); `notes`
            say how those of three and four dimensions were interpreted.
        columns: Columns to use; by default all but the label.
        label: Column whose values, integers or text, are class labels.
        header: Whether the first line of a .csv file has column names. By default text is a name;
            so are distinct integers above columns without integers, or three or more that count up
            by one if no line below does. `notes` say how numbers were interpreted.
        size: Height and width to which the images of a folder are resized, after a centre crop of
            these proportions; by default all must have the same size.
        dtype: torch.float32 or torch.float64; by default float64 for tables and data with more
            digits than float32 holds, float32 for named sets, images and all others.

    Raises:
        ValueError: If the source does not exist or cannot be read, holds text instead of numbers,
            is ambiguous (images or vectors, images or channels), or has fewer than two samples
            without NaN and inf; if `header` is given for a source that is not a .csv file, or
            `size` for one that is not a folder.
    """
    if dtype is not None:
        check_dtype(dtype)
    columns = [columns] if isinstance(columns, str) else columns
    if size is not None:
        sizes = tuple(size) if isinstance(size, list | tuple) else ()
        if len(sizes) != 2 or not all(type(n) is int and n > 0 for n in sizes):
            raise ValueError(f"size must be two positive integers, height and width, got {size!r}")
        size = sizes
    raw, where, name = _read(source, header, size)
    if isinstance(source, str) and source in NAMES:
        dtype = dtype or torch.float32
    return _finish(_select(raw, columns, label, where), where, name, dtype)


def names_in(source: str | Path, header: bool | None = None) -> tuple[str, ...]:
    """Return the names of all columns, whatever they hold: "0", "1", … for a .csv without names.

    Arrays and images have none.

    Raises:
        ValueError: If the source does not exist, or cannot be read.
    """
    return _read(source, header)[0].names


def _read(
    source: str | Path, header: bool | None, size: tuple[int, int] | None = None
) -> tuple[Raw, str, str]:
    """Return what is there as it was found, where, and the name of that."""
    path = Path(source).expanduser()
    is_csv = path.suffix.lower() == ".csv" and source not in NAMES
    if header is not None and not is_csv:
        raise ValueError(f"a header is for .csv files, and {source} is not one")
    if size is not None and (source in NAMES or not path.is_dir()):
        raise ValueError(f"size= is for folders of images, and {source} is not one")
    if isinstance(source, str) and source in NAMES:
        return named(source), source, source
    if not path.exists():
        if isinstance(source, Path) or path.suffix or len(path.parts) != 1:
            raise ValueError(f"no such file or folder: {path}")
        raise ValueError(f"unknown data set '{source}'{nearest(source, NAMES)}")
    if not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path}: is neither a file nor a folder")  # a pipe would wait for ever
    readers: dict[str, Callable[[Path], Raw]] = {
        ".npy": read_numpy, ".npz": read_numpy, ".csv": lambda path: read_csv(path, header),
        ".parquet": read_parquet,
    }  # fmt: skip
    folder = path.is_dir()
    reader = partial(read_images, size=size) if folder else readers.get(path.suffix.lower())
    if reader is None:
        known = f"{', '.join(readers)} and folders of {', '.join(IMAGES)}"
        raise ValueError(f"{path}: unknown file type '{path.suffix}'; known: {known}")
    return reader(path), str(path), path.name


def train_held_out(
    dataset: Dataset, fraction: float = 0.2, generator: torch.Generator | None = None
) -> tuple[Dataset, Dataset]:
    """Split at random into a training part and a held-out part of round(fraction N) samples.

    Raises:
        ValueError: If fraction is not in (0, 1) or leaves one part empty.
    """
    check_kind(dataset, "dataset", Dataset, "a Dataset, such as from load")
    check_number(fraction, "fraction", above=0, below=1)
    n, held = len(dataset.x), round(float(fraction) * len(dataset.x))
    if not 0 < held < n:
        raise ValueError(f"fraction must leave both parts non-empty, got {fraction} of {n}")

    def part(index: Tensor, what: str) -> Dataset:
        labels = None if dataset.labels is None else dataset.labels[index]
        notes = (*dataset.notes, f"{what}: {len(index)} of {n} samples, chosen at random")
        return dataset._replace(x=dataset.x[index], labels=labels, notes=notes)

    order = permutation(n, generator)
    return part(order[held:], "training part"), part(order[:held], "held-out part")


def _select(raw: Raw, columns: Sequence[str] | None, label: str | None, where: str) -> Raw:
    """Take the requested columns as one array of numbers, and the labels from column `label`."""
    data, names = raw.data, raw.names
    if isinstance(data, np.ndarray):
        names = names or (tuple(map(str, range(data.shape[1]))) if data.ndim == 2 else ())
        if columns is None and label is None:
            return raw._replace(names=names)
        if not names or (label is not None and raw.labels is not None):
            raise ValueError(f"{where}: has no columns to choose from, or has labels already")
        data = list(data.T)
    if len(set(names)) != len(names):
        raise ValueError(f"{where}: column names repeat: {some(names)}")
    taken = [n for n in names if n != label] if columns is None else list(columns)
    place = {name: i for i, name in enumerate(names)}
    for name in taken if label is None else [*taken, label]:
        if name not in place:
            raise ValueError(f"{where}: no column '{name}'{nearest(name, names)}")
    if not taken or len(set(taken)) != len(taken) or label in taken:
        raise ValueError(f"{where}: columns must be distinct and not the label, got {some(taken)}")
    parts, others = [], {}
    for name in taken:
        cells = data[place[name]]
        if isinstance(cells, list):
            values = [number(text) for text in cells]
            if None in values:
                others[name] = _what(cells, values, raw.lines)
                continue
            cells = np.array(values, np.float64)
        parts.append(cells)
    if others:
        # few values, each many times: classes; dates, names and typing errors are not
        counts = {name: len(set(data[place[name]])) for name in others}
        few = {
            name: k
            for name, k in counts.items()
            if k <= CLASSES and 4 * k <= len(data[place[name]])
        }
        numeric = [name for name in taken if name not in others]
        raise NotNumbers(where, others, numeric, few)
    labels = raw.labels if label is None else np.asarray(data[place[label]])
    return raw._replace(data=np.stack(parts, 1), labels=labels, names=tuple(taken))


class NotNumbers(ValueError):
    """All columns that do not hold numbers, and what can be done.

    Attributes:
        columns: What each of them holds.
    """

    def __init__(
        self, where: str, columns: dict[str, str], numeric: Sequence[str], classes: dict[str, int]
    ) -> None:
        self.where, self.columns, self.numeric, self.classes = where, columns, numeric, classes
        super().__init__(self.message())

    def message(self, *, command_line: bool = False) -> str:
        """Return what is wrong, and what can be done in Python or on the command line."""
        found = listed([f"column '{short(name)}' has {w}" for name, w in self.columns.items()])
        advice = []
        if self.numeric:
            some_of = self.numeric[:20]
            option = f"--columns '{joined(some_of)}'" if command_line else f"columns={some_of}"
            advice.append(f"choose columns of numbers with {option}")
        if self.numeric and self.classes:
            name, k = next(iter(self.classes.items()))
            option = f"--label '{name}'" if command_line else f"label={name!r}"
            advice.append(f"use '{name}', with its {k} values, as classes with {option}")
        whole = "`gradlogp fit FILE --out m`" if command_line else "glp.TableEstimator"
        advice.append(f"learn all columns of the table as they are with {whole}")
        return f"{self.where}: {found}; {', or '.join(advice)}"


def _what(
    cells: Sequence[str], values: Sequence[float | None], lines: Sequence[int] | None
) -> str:
    """Say what a column holds, in which some cells are no numbers."""
    row = values.index(None)
    at = f"row {row}" if lines is None else f"line {lines[row]}"
    example, bad = (
        short(repr(cells[row])),
        [c for c, v in zip(cells, values, strict=True) if v is None],
    )
    by = next((c for c in ";\t|" if all(c in cell for cell in bad)), None)
    if by:
        return f"{example} in {at}: columns must be separated by commas here, not by {by!r}"
    if all(DATE.match(cell) for cell in bad):
        return f"dates, such as {example} in {at}"
    if all(WRITTEN.fullmatch(cell) for cell in bad):
        return f"numbers with decimal commas or grouped digits, such as {example} in {at}"
    if 2 * len(bad) < len(cells):
        return f"{len(bad)} of {len(cells)} cells that are not numbers: {example} in {at}"
    return f"text, such as {example} in {at}"


def _codes(labels: np.ndarray, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as 0 … K−1 and their names; "1", 1 and 1.0 are the same class.

    Integers are compared as such, however large: 2⁵³ and 2⁵³ + 1 are two classes.
    """
    found, inverse = np.unique(labels, return_inverse=True)
    values: list[Any] = found.tolist()
    if labels.dtype.kind != "U" or None not in map(number, values):
        try:
            exact = [Decimal(v) if isinstance(v, str) else v for v in values]
            if any(not math.isfinite(float(v)) for v in values):  # 10^(10^9) takes for ever
                raise OverflowError("they must be finite")
            values = [int(v) for v in exact]
        except ArithmeticError as error:
            raise ValueError(f"{where}: labels must be integers or text: {error}") from None
        if broken := [v for v, whole in zip(exact, values, strict=True) if v != whole]:
            raise ValueError(f"{where}: labels must be integers or text, got {broken[0]}")
    classes = sorted(set(values))
    place = {value: i for i, value in enumerate(classes)}
    codes = np.array([place[value] for value in values], np.int64)[inverse.reshape(-1)]
    return torch.from_numpy(codes), tuple(map(str, classes))


def _finish(raw: Raw, where: str, name: str, dtype: torch.dtype | None) -> Dataset:
    """Convert to `dtype`, drop rows that are not finite or have no label, number the classes."""
    data, labels, notes = np.asarray(raw.data), raw.labels, list(raw.notes)
    if data.dtype.kind not in "fiub":
        raise ValueError(f"{where}: expected real numbers, got an array of {data.dtype}")
    if data.ndim < 2 or not data.size:
        raise ValueError(f"{where}: no samples in an array of shape {data.shape}")
    n = len(data)
    if labels is not None and (labels.shape != (n,) or labels.dtype.kind not in "fiubU"):
        got = f"{labels.dtype} of shape {labels.shape}"
        raise ValueError(f"{where}: labels must be integers or text of shape ({n},), got {got}")
    if dtype is None:
        narrow = (data.dtype.kind in "bf" and data.dtype.itemsize <= 4) or data.dtype.itemsize <= 2
        dtype = torch.float32 if narrow else torch.float64
    with np.errstate(over="ignore"):  # a number beyond float32 becomes inf, and goes as such
        x = data.astype(np.float64 if dtype == torch.float64 else np.float32, copy=False)
    step = max(1, 2**22 * n // x.size)  # rows at a time: x may be larger than memory
    rest = tuple(range(1, x.ndim))
    finite = np.concatenate([np.isfinite(x[i : i + step]).all(rest) for i in range(0, n, step)])
    keep = finite.copy()
    if labels is not None:
        keep &= (labels != "") if labels.dtype.kind == "U" else np.isfinite(labels)
    for gone, what in ((~finite, "with NaN or inf"), (finite & ~keep, "without a label")):
        rows = np.flatnonzero(gone).tolist()
        if rows:
            at = f"rows {some(rows)} counted from 0"
            if raw.lines is not None:
                at = f"lines {some([raw.lines[row] for row in rows])}"
            notes.append(f"dropped {len(rows)} of {n} rows {what} ({at})")
    if keep.sum() < 2:
        why = "; ".join([f"{keep.sum()} of {n} samples left", *notes])
        raise ValueError(f"{where}: learning a score needs at least two samples: {why}")
    if not keep.all():
        x, labels = x[keep], None if labels is None else labels[keep]
    codes, classes = (None, ()) if labels is None else _codes(labels, where)
    out = torch.from_numpy(x).contiguous()
    constant = (out.amin(0) == out.amax(0)).flatten()
    if constant.any():
        which = [c for c, same in zip(raw.names, constant.tolist(), strict=False) if same]
        note = f"{int(constant.sum())} of {len(constant)} entries are constant"
        notes.append(f"{note}: {some(which)}" if which else note)
    return Dataset(out, codes, name, raw.names, classes, tuple(notes))
