"""Files of tables that are of known columns: read as these, and written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from .columns import Column


def read_table(path: Path, columns: Sequence[Column]) -> pd.DataFrame:
    """Return a .csv or .parquet file, its columns of the kinds that were learned: text stays text.

    Raises:
        ValueError: If it cannot be read as these.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        there = set(pd.read_csv(path, nrows=0).columns)
        numeric = ("int", "uint", "float")
        text = {
            c.name: str for c in columns
            if c.name in there and c.kind in ("category", "name")
            and not c.dtype.lower().startswith(numeric)
        }  # fmt: skip
        frame = pd.read_csv(path, dtype=text)
        for c in columns:
            if c.kind == "date" and c.name in there:
                parse = pd.to_timedelta if c.dtype.startswith("timedelta") else pd.to_datetime
                frame[c.name] = parse(frame[c.name])
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0][:200]}") from None
    return frame


def stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return frames one after another, numbered in a first column, draw."""
    numbered = [f.copy() for f in frames]
    for i, frame in enumerate(numbered, 1):
        frame.insert(0, "draw", i, allow_duplicates=True)
    return pd.concat(numbered, ignore_index=True)


def table_bytes(frame: pd.DataFrame, suffix: str) -> bytes:
    """Return a table as the bytes of a .csv or .parquet file."""
    if suffix.lower() == ".csv":
        return frame.to_csv(index=False).encode()
    return frame.to_parquet(index=False)
