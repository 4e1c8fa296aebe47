"""Readers of tables and arrays: .npy, .npz, .csv and .parquet."""

from __future__ import annotations

import csv
import math
import zipfile
import zlib
from pathlib import Path

import numpy as np

from .records import Raw, number, unreadable


def read_numpy(path: Path) -> Raw:
    """Read .npy as a memory map, or the array x and perhaps the labels of .npz."""
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
        raise unreadable(path, error) from error
    if "x" not in arrays and len(arrays) != 1:
        raise ValueError(f"{path}: needs one array, or one called 'x'; found {list(arrays)}")
    x = arrays.pop("x" if "x" in arrays else next(iter(arrays)))
    labels = arrays.pop("y" if "y" in arrays else "labels", None)
    notes = (f"ignored the arrays {list(arrays)}",) if arrays else ()
    return Raw(x[:, None] if x.ndim == 1 else x, labels, (), notes)  # N numbers: N samples


def read_csv(path: Path) -> Raw:
    """Read columns of text; the first line is a header if it holds no number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, skipinitialspace=True)
            found = [(reader.line_num, cells) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error) from error
    if not found:
        raise ValueError(f"{path}: the file is empty")
    lines, rows = [line for line, _ in found], [[c.strip() for c in cells] for _, cells in found]
    names, numbers = tuple(rows[0]), [number(cell) for cell in rows[0]]
    if None in numbers and all(v is None or not math.isfinite(v) for v in numbers):
        lines, rows = lines[1:], rows[1:]
    else:
        names = tuple(map(str, range(len(names))))
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            raise ValueError(f"{path}: line {line} has {len(row)} cells instead of {len(names)}")
    if not rows:
        raise ValueError(f"{path}: there is a header but no row below it")
    return Raw([list(cells) for cells in zip(*rows, strict=True)], None, names, (), lines)


def read_parquet(path: Path) -> Raw:
    """Read columns of numbers or text."""
    try:
        import pandas as pd

        frame = pd.read_parquet(path, engine="pyarrow")
    except ImportError as error:
        raise ValueError(f"{path}: needs a package: pip install 'gradlogp[data]'") from error
    except (ValueError, OSError, NotImplementedError) as error:
        raise unreadable(path, error) from error

    def cells(i: int) -> np.ndarray | list[str]:
        column = frame.iloc[:, i]
        if pd.api.types.is_numeric_dtype(column):
            return column.to_numpy(np.float64, na_value=np.nan)
        return ["" if gone else str(v) for v, gone in zip(column, column.isna(), strict=True)]

    return Raw([cells(i) for i in range(frame.shape[1])], None, tuple(map(str, frame.columns)))
