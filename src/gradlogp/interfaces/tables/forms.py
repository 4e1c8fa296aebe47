"""The format of a table file: separator, names, marks of numbers, dates, missing values."""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

TEXTS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
"""Ends of names of files of text."""

SUFFIXES = (*TEXTS, ".parquet")
"""Ends of names of files of tables."""

SEPARATORS = ("\t", ";", "|", ",")
GROUPS = (",", ".", "'", " ", "\u00a0", "\u202f")
"""What groups digits."""

HOLES = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "<NA>")
"""Cells that pandas reads as missing, and people write."""

DATES = (
    "%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M",
    "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S.%f", "%Y/%m/%d",
    "%Y/%m/%d %H:%M", "%Y/%m/%d %H:%M:%S", "%m/%d/%Y", "%d/%m/%Y", "%m/%d/%Y %H:%M",
    "%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%d.%m.%Y", "%d.%m.%Y %H:%M",
    "%d.%m.%Y %H:%M:%S", "%d-%m-%Y", "%d-%b-%Y", "%d %b %Y", "%b %d %Y", "%b %d, %Y", "%B %d, %Y",
    "%d %B %Y", "%Y-%m", "%Y/%m", "%b %Y", "%b-%y", "%d-%b-%y", "%m/%d/%y", "%d/%m/%y",
    "%H:%M", "%H:%M:%S", "%Y-%m-%d %H:%M:%S%z", "%Y-%m-%dT%H:%M:%S%z",
)  # fmt: skip
"""Ways to write a date; of two that fit, the first is taken."""

NUMBERED = ("%Y%m%d",)
"""Dates written as integers, of the years 1900 to 2100."""


@dataclass(frozen=True)
class Form:
    """The format of a table file, so that another file can be written in the same format.

    Attributes:
        separator: The separator between cells.
        header: Whether the first line has the names.
        hole: How a missing value is written.
        marks: Additional texts that mean missing values.
        dates: Date columns with their formats, and whether without leading zeros.
        numbers: Columns of formatted numbers: their decimal mark and digit separator.
    """

    separator: str = ","
    header: bool = True
    hole: str = ""
    marks: tuple[str, ...] = ()
    dates: tuple[tuple[str, str, bool], ...] = ()
    numbers: tuple[tuple[str, str, str], ...] = ()

    def kept(self) -> dict[str, Any]:
        """Return what is kept of it, JSON."""
        return asdict(self)

    @classmethod
    def of(cls, kept: Any) -> Form:
        """Return a form from its stored values after checks; the usual one for None.

        Raises:
            ValueError: For values that no form could have stored.
        """
        if not kept:
            return cls()
        try:
            form = cls(**kept)
            texts = (form.hole, *form.marks, *(d[0] for d in (*form.dates, *form.numbers)))
            good = (
                form.separator in SEPARATORS and isinstance(form.header, bool)
                and all(isinstance(text, str) for text in texts)
                and all(way in (*DATES, *NUMBERED, "date") for _, way, _ in form.dates)
                and all(d in (".", ",") and t in ("", *GROUPS) for _, d, t in form.numbers)
            )  # fmt: skip
        except (TypeError, ValueError, LookupError):
            good = False
        if not good:
            raise ValueError("this is not a known way to write a table")
        return replace(
            form, marks=tuple(form.marks), dates=tuple((n, w, bool(b)) for n, w, b in form.dates),
            numbers=tuple((n, d, t) for n, d, t in form.numbers),
        )  # fmt: skip


def suffix_of(path: str | Path) -> str:
    """Return the end of a name that says what is in the file, with that of its packing."""
    name = Path(path).name.lower()
    return next((s for s in sorted(SUFFIXES, key=len, reverse=True) if name.endswith(s)), "")


def check_writer(suffix: str) -> None:
    """Raise `ValueError` if what writes such files is not installed."""
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise ValueError("a .parquet file needs a package: pip install 'gradlogp[data]'")


def as_text(series: pd.Series, way: str, unpadded: bool) -> pd.Series:
    """Return dates as texts, without leading zeros if `unpadded`."""
    texts = series.dt.strftime(way.replace("%z", "+00:00"))
    if way.endswith(".%f"):
        return texts.str.replace(r"0+$", "", regex=True) if unpadded else texts
    return texts.str.replace(r"(?<!\d)0(?=\d)", "", regex=True) if unpadded else texts


def written(frame: pd.DataFrame, suffix: str = ".csv") -> bytes:
    """Return the content of a table file in the form of the frame: separator, names, dates, gaps.

    Arguments:
        frame: The table; its `attrs` have the form.
        suffix: One of `SUFFIXES`, the kind of file. A .tsv file has tabs, whatever the form.
    """
    form = Form.of(frame.attrs.get("form"))
    frame = frame.copy()
    frame.attrs = {}
    for name, way, unpadded in form.dates:
        if name not in frame.columns or frame[name].dtype.kind != "M":
            continue
        if way == "date":
            if suffix == ".parquet":
                frame[name] = frame[name].dt.date
            continue
        frame[name] = as_text(frame[name], way, unpadded).astype("string")
    if suffix == ".parquet":
        packed: bytes = frame.to_parquet(None, engine="pyarrow", index=False)
        return packed
    for name, decimal, thousands in form.numbers:
        if name in frame.columns:
            marks = str.maketrans({",": thousands, ".": decimal})
            texts = [pd.NA if pd.isna(v) else f"{v:,}".translate(marks) for v in frame[name]]
            frame[name] = pd.Series(texts, dtype="string", index=frame.index)
    separator = "\t" if suffix.startswith(".tsv") else form.separator
    text = frame.to_csv(
        None, sep=separator, header=form.header, index=False, na_rep=form.hole, lineterminator="\n"
    ).encode()
    return gzip.compress(text, mtime=0) if suffix.endswith(".gz") else text


def stacked(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Return frames one after another, numbered in a first column, draw."""
    numbered = [f.copy() for f in frames]
    for i, frame in enumerate(numbered, 1):
        frame.insert(0, "draw", i, allow_duplicates=True)
    return pd.concat(numbered, ignore_index=True)
