"""Readers of tables and arrays: .npy, .npz, .csv and .parquet."""

from __future__ import annotations

import csv
import math
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from ...core import some
from .layout import Raw, check_unpacked, layout, number, reading

LOOKED_AT = 1000
"""Lines that tell comments, the separator, and whether there are names."""


def read_numpy(path: Path) -> Raw:
    """Read .npy as a memory map, or the array x and perhaps the labels of .npz."""
    labels: np.ndarray | None = None
    others: list[str] = []
    with reading(path):
        with path.open("rb") as file:
            magic, (major, *_), size = file.read(6), file.read(2) or b"\0", file.read(4)
        length = int.from_bytes(size[: 2 if major == 1 else 4], "little")
        if magic == b"\x93NUMPY" and length > 10_000:  # memory for it would be asked for at once
            raise ValueError(f"a header of {length:,} bytes is not a header")
        if magic == b"\x93NUMPY":  # "c": read when touched, written to in memory only
            x = np.load(path, mmap_mode="c", allow_pickle=False)
        elif magic[:2] == b"PK":
            x, labels, others = _members(path)
        else:
            raise ValueError("it is neither a NumPy array nor an archive of them")
        x = x[:, None] if x.ndim == 1 else x  # N numbers: N samples
        taken = layout(x.shape)
    notes = [f"ignored the arrays {others}"] if others else []
    return Raw(x, labels, (), (*notes, *([taken] if taken else [])))


def _members(path: Path) -> tuple[np.ndarray, np.ndarray | None, list[str]]:
    """Return the array x of an archive, the labels if any, and the names of all others."""
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        names, members = list(archive.files), archive.zip
        if "x" not in names and len(names) != 1:
            raise ValueError(f"needs one array, or one called 'x'; found {names}")
        x = "x" if "x" in names else names[0]
        label = next((name for name in ("y", "labels") if name in names and name != x), None)
        for name in filter(
            None, (x, label)
        ):  # memory is asked for by the header, so that comes first
            inside = name if name in members.namelist() else f"{name}.npy"
            with members.open(inside) as member:
                old = np.lib.format.read_magic(member) == (1, 0)
                format = np.lib.format
                read = format.read_array_header_1_0 if old else format.read_array_header_2_0
                shape, _, dtype = read(member)
            check_unpacked(path, members.getinfo(inside).file_size)
            if math.prod(shape) * dtype.itemsize > members.getinfo(inside).file_size:
                raise ValueError(f"the array '{name}' of shape {shape} is cut short")
        labels = None if label is None else np.asarray(archive[label])
        return np.asarray(archive[x]), labels, [n for n in names if n not in (x, label)]


def read_csv(path: Path, header: bool | None = None) -> Raw:
    """Read columns of text. Unless `header` says so, `is_header` tells names from a first row."""
    with reading(path):
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                above = comments([*islice(file, LOOKED_AT)], ",", header)
                file.seek(0)
                reader = csv.reader(islice(file, above, None), skipinitialspace=True)
                found = [(reader.line_num + above, cells) for cells in reader if cells]
        except UnicodeDecodeError as error:
            raise ValueError(f"{error}; save it as UTF-8") from error
    if not found:
        raise ValueError(f"{path}: the file is empty")
    lines = [line for line, _ in found]
    rows = [[c.strip() for c in cells] for _, cells in found]
    first = rows[0]
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(first):
            raise ValueError(f"{path}: {uneven(line, len(row), len(first))}")
    columns = [list(cells) for cells in zip(*rows, strict=True)]
    named = is_header(columns) if header is None else header
    notes = [left_out(above)] if above else []
    if named:
        if header is None and in_doubt(first):
            notes.append(
                f"the first line, {some(first)}, is read as column names: pass --no-header if it "
                f"is a row"
            )
        lines, columns = lines[1:], [cells[1:] for cells in columns]
    elif header is None and _whole(first):
        notes.append(
            f"the first line, {some(first)}, is read as a row: pass --header if it holds column names"
        )
    if not lines:
        raise ValueError(f"{path}: there is a header but no row below it")
    names = first if named else [str(i) for i in range(len(first))]
    return Raw(list(columns), None, tuple(names), tuple(notes), lines)


def comments(lines: list[str], separator: str, header: bool | None = None) -> int:
    """Return how many lines at the top of a file are comments and not part of the table.

    They begin with #, and have a different number of cells than the first line that does not, or
    are above a line of names over numbers: #ff0000 may be a cell, and a name may begin with #.
    """
    n = next((i for i, line in enumerate(lines) if line.strip() and line[0] != "#"), 0)
    if not any(line.startswith("#") for line in lines[:n]):
        return 0
    rows = [row for row in csv.reader(lines[n:], delimiter=separator) if row]
    columns = [[cell.strip() for cell in cells] for cells in zip(*rows, strict=False)]
    over_numbers = any(all(number(cell) is not None for cell in c[1:]) for c in columns)
    if header is not False and len(rows) > 1 and is_header(columns) and over_numbers:
        return n
    cells = [len(next(csv.reader([line], delimiter=separator), [])) for line in lines[:n]]
    return max((i + 1 for i, k in enumerate(cells) if k not in (0, len(rows[0]))), default=0)


def in_doubt(names: list[str]) -> bool:
    """Whether names are such that they may be something else: a number, or a comment."""
    return names[0].startswith("#") or any(number(c) is not None and c for c in names)


def left_out(n: int) -> str:
    """Return what is said of comments."""
    first = "the first line, which begins" if n == 1 else f"the first {n} lines, which begin"
    return f"{first} with #, {'is' if n == 1 else 'are'} left out"


def uneven(line: int, cells: int, first: int) -> str:
    """Return what is said of a line with more or fewer cells than the first."""
    why = "; what stands above a table is left out if it begins with #" if cells > first else ""
    return f"line {line} has {cells} cells instead of {first}{why}"


def _whole(cells: list[str]) -> bool:
    """Whether these are distinct integers."""
    return len(set(cells)) == len(cells) and all(
        cell.removeprefix("-").isdecimal() for cell in cells
    )


def _counts_up(cells: tuple[str, ...]) -> bool:
    return _whole(list(cells)) and all(int(b) == int(a) + 1 for a, b in pairwise(cells))


def is_header(columns: list[list[str]]) -> bool:
    """Return whether the first line has column names.

    Names are text. Among them may be distinct integers if each text, or an empty cell, is above a
    column of numbers, or if three or more integers count up by one and no line below does. Numbers
    alone are names if they are distinct integers and no column below has an integer, or if they
    count up in this way.
    """
    first = [cells[0] for cells in columns]
    found = [number(cell) for cell in first]
    numbers = [c for c, v in zip(first, found, strict=True) if v is not None and math.isfinite(v)]
    if not numbers:
        return None in found
    if not _whole(numbers) or len(columns[0]) < 2:
        return False
    own = [cells for cells in columns if cells[0] in numbers]
    counts, *below = map(_counts_up, zip(*own, strict=True))
    if len(own) > 2 and counts and not any(below):
        return True
    if len(own) < len(first):
        texts = [cells for cells in columns if cells[0] not in numbers]
        return all(number(cell) is not None for cells in texts for cell in cells[1:])
    return not any(cell.removeprefix("-").isdecimal() for cells in columns for cell in cells[1:])


def read_parquet(path: Path) -> Raw:
    """Read columns of numbers or text."""
    import pandas as pd

    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f"{path}: needs a package: pip install 'gradlogp[data]'") from error
    with reading(path):
        with ParquetFile(path) as file:
            found = file.metadata
            check_unpacked(path, 8 * found.num_rows * found.num_columns)
        frame = pd.read_parquet(path, engine="pyarrow", dtype_backend="numpy_nullable")

    def cells(i: int) -> np.ndarray | list[str]:
        column = frame.iloc[:, i]
        whole = pd.api.types.is_integer_dtype(column)  # as they are: labels may be beyond 2⁵³
        if whole and not column.hasnans:
            return column.to_numpy(column.dtype.name.lower())
        if pd.api.types.is_numeric_dtype(column) and not whole:
            return column.to_numpy(np.float64, na_value=np.nan)
        return ["" if gone else str(v) for v, gone in zip(column, column.isna(), strict=True)]

    return Raw([cells(i) for i in range(frame.shape[1])], None, tuple(map(str, frame.columns)))
