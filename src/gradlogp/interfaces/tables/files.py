"""Table files, read by pandas after a look at their format."""

from __future__ import annotations

import csv
import datetime
import gzip
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO

import pandas as pd

from ...core import listed, some
from ...learn.data.files import LOOKED_AT, comments, in_doubt, is_header, left_out, uneven
from ...learn.data.layout import check_unpacked, reading
from .columns import MOST_LEVELS
from .forms import DATES, HOLES, NUMBERED, SEPARATORS, Form, as_text, suffix_of

NUMBER = re.compile(
    r"[+-]?\d{1,3}([,.' \u00a0\u202f])\d{3}(?:\1\d{3})*(?:([.,])\d+)?|[+-]?\d*([.,]?)\d+"
)
"""A number with groups of digits and a decimal mark, or with at most the latter."""

THREES = re.compile(r"[+-]?\d{1,3}(\.\d{3})*")
"""An integer with a point between its groups, or a fraction with three decimals."""

MARKS = 10
"""Most different texts among numbers that are marks of something, such as "?", and not names."""


def read(
    path: str | Path,
    *,
    header: bool | None = None,
    marks: Sequence[str] = (),
    skip: Sequence[str] = (),
    dates: Sequence[str] = (),
) -> tuple[pd.DataFrame, list[str]]:
    """Return the table of a file, and sentences on how it was interpreted.

    Separator, decimal mark, grouped digits, dates and names are detected. The format of the file
    is stored with the frame, in `attrs`, and `written` writes another file in it.

    Arguments:
        path: A text file (`TEXTS`) or .parquet.
        header: Whether the first line has the names; detected by default.
        marks: Texts that mean missing values, in addition to the usual ones.
        skip: Columns in which numbers may be mixed with text.
        dates: Columns that are dates, in any format.

    Raises:
        ValueError: If it cannot be read, has lines of different lengths, or numeric columns with a
            few cells that are not numbers (`Marks`).
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"no such file or folder: {path}")
    if not path.is_file():
        raise ValueError(f"{path}: is neither a file nor a folder")
    notes: list[str] = []
    if suffix_of(path) == ".parquet":
        frame, form = _read_parquet(path)
        if not len(frame):
            raise ValueError(f"{path}: the table has no rows")
    else:
        frame, form = _read_text(path, header, tuple(marks), notes)
        _refuse_marks(path, frame.drop(columns=[c for c in skip if c in frame]))
    form = replace(form, dates=_dates(frame, form, notes))
    for name in dates:
        if name in frame and frame[name].dtype.kind not in "Mm":
            present = frame[name].dropna()
            if present.dtype.kind in "iuf" and len(present):  # not nanoseconds since 1970
                raise ValueError(
                    f"column {name!r} cannot be a date: it holds numbers, such as {present.iloc[0]}"
                )
            try:
                frame[name] = pd.to_datetime(frame[name], format="mixed")
            except (ValueError, TypeError) as error:
                raise ValueError(f"column {name!r} cannot be a date: {error}") from None
    frame.attrs["form"] = form.kept()
    return frame, notes


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    with path.open("rb") as file:
        start = file.read(2)
    packed = start == b"\x1f\x8b"
    if packed:
        with path.open("rb") as file:
            file.seek(-4, 2)  # the length of what was packed, modulo 2³²
            check_unpacked(path, int.from_bytes(file.read(4), "little"))
    encoding = "utf-16" if start in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    opened = gzip.open if packed else open
    with opened(path, "rt", encoding=encoding, newline="") as file:
        try:
            yield file
        except UnicodeDecodeError as error:
            raise ValueError(f"{error}; save it as UTF-8") from error


def _read_text(
    path: Path, header: bool | None, marks: tuple[str, ...], notes: list[str]
) -> tuple[pd.DataFrame, Form]:
    """Look through the lines once, let pandas read them, and again if numbers are written otherwise."""
    with reading(path), _opened(path) as file:
        head = [*islice(file, LOOKED_AT)]
        separator = _separator([line for line in head if line[0] != "#"] or head)
        above = comments(head, separator, header)
        notes += [left_out(above)] if above else []
        head = head[above:]
    spaced = any(f'{separator} "' in line for line in head)
    holes: Counter[str] = Counter()
    rows: list[list[str]] = []
    n, problem = 0, ""
    with reading(path), _opened(path) as file:
        lines = islice(file, above, None)
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=spaced)
        for cells in reader:
            text = "".join(cells)
            if not text.strip() and len(cells) < 2:
                continue
            if "\0" in text:
                problem = (
                    f"line {reader.line_num + above} contains a NUL byte: this is not a text file"
                )
                break
            if rows and len(cells) != len(rows[0]):
                problem = uneven(reader.line_num + above, len(cells), len(rows[0]))
                break
            holes.update(cell for cell in cells if n and cell in HOLES)
            n += 1
            if n <= LOOKED_AT:
                rows.append(cells)
    if problem or not n:
        raise ValueError(f"{path}: {problem or 'the file is empty'}")
    columns = [[_plain(c.strip()) for c in cells] for cells in zip(*rows, strict=True)]
    named = is_header(columns) if header is None else header
    if named and n < 2:
        raise ValueError(f"{path}: there is a header but no row below it")
    if named and header is None and in_doubt([cells[0] for cells in columns]):
        notes.append(
            f"the first line, {some(rows[0])}, is read as column names: pass --no-header if it is a row"
        )
    names = rows[0] if named else [str(i) for i in range(len(rows[0]))]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: column names repeat: {some(names)}")
    hole = marks[0] if marks else max(HOLES, key=lambda cell: holes[cell])
    form = Form(separator, header=named, hole=hole, marks=marks)
    frame = _by_pandas(path, form, names, spaced, above)
    pointed = [
        name for name, cells in zip(names, zip(*rows[named:], strict=True), strict=True)
        if frame[name].dtype.kind == "f"
        and all(THREES.fullmatch(cell) for cell in cells if cell not in HOLES)
    ]  # fmt: skip
    frame, numbers = _numbers(frame, separator)
    if pointed and any(decimal == "," for _, decimal, _ in numbers):  # 1.234 is no fraction there
        texts = _by_pandas(path, form, names, spaced, above, dict.fromkeys(pointed, "string"))
        for name in pointed:
            frame[name] = pd.to_numeric(texts[name].str.replace(".", "")).astype("Int64")
        numbers = (*numbers, *((name, ",", ".") for name in pointed))
    if numbers:
        form = replace(form, numbers=numbers)
        said = {(d, t): [name for name, *rest in numbers if rest == [d, t]] for _, d, t in numbers}
        for (decimal, thousands), where in said.items():
            what = [f"{decimal!r} is the decimal mark"] * (decimal == ",")
            what += [f"{thousands!r} groups digits"] * bool(thousands)
            notes.append(f"{' and '.join(what)} in {some(where)}")
    if separator != ",":
        by = "tabs" if separator == "\t" else repr(separator)
        notes.append(f"columns are separated by {by}")
    return frame, form


def _separator(lines: list[str]) -> str:
    """Return what every line has as often as all others, outside quotes; a comma by default."""
    for separator in SEPARATORS:
        rows = [r for r in csv.reader(lines, delimiter=separator, skipinitialspace=True) if r]
        widths = {len(row) for row in rows[: max(1, len(rows) - 1)]}  # the last may be cut
        if len(widths) == 1 and widths != {1}:
            return separator
    return ","


def _by_pandas(
    path: Path, form: Form, names: list[str], spaced: bool, above: int,
    dtype: dict[str, str] | None = None,
) -> pd.DataFrame:  # fmt: skip
    with reading(path), _opened(path) as file:
        for _ in range(above):  # pandas would look for quotes in them
            next(file)
        frame: pd.DataFrame = pd.read_csv(
            file, sep=form.separator, header=0 if form.header else None, names=names,
            index_col=False, skipinitialspace=spaced, na_values=list(form.marks) or None,
            low_memory=False, dtype=dtype, dtype_backend="numpy_nullable"
        )  # fmt: skip
    return frame


def _plain(cell: str) -> str:
    """Return a cell with the usual decimal mark and no groups, if it is a number written otherwise."""
    if re.fullmatch(r"[+-]?\d+,\d+", cell):
        return cell.replace(",", ".")
    found = NUMBER.fullmatch(cell)
    return re.sub(r"[^\d+-]", "", cell) if found is not None and found[1] else cell


def _numbers(
    frame: pd.DataFrame, separator: str
) -> tuple[pd.DataFrame, tuple[tuple[str, str, str], ...]]:
    """Return the frame with text columns of formatted numbers as numbers, and their formats.

    1,234 is ambiguous: in a file separated by semicolons the comma is the decimal mark, in all
    others it groups digits.
    """
    found = []
    for name in frame.columns:
        if not pd.api.types.is_string_dtype(frame[name].dtype):
            continue
        values = frame[name].dropna().unique().tolist()
        seen = [NUMBER.fullmatch(v.strip()) for v in values]
        if not values or None in seen:
            continue
        groups = {m[1] for m in seen if m is not None and m[1]}
        marks = {m[2] or m[3] for m in seen if m is not None and (m[2] or m[3])}
        if groups == {","} and separator == ";" and not any(v.count(",") > 1 for v in values):
            groups, marks = set(), marks | {","}
        if len(groups) > 1 or len(marks) > 1 or groups & marks:
            continue  # texts after all
        decimal, thousands = next(iter(marks), "."), next(iter(groups), "")
        if not thousands and decimal == ".":
            continue
        if thousands == "." and not marks:
            decimal = ","
        bare = frame[name].str.strip().str.replace(thousands, "") if thousands else frame[name]
        frame[name] = pd.to_numeric(bare.str.replace(decimal, "."))
        found.append((name, decimal, thousands))
    return frame, tuple(found)


def _refuse_marks(path: Path, frame: pd.DataFrame) -> None:
    """Refuse columns of numbers in which a few cells are something else, all of them at once."""
    found, all_marks = {}, set()
    for c in frame:
        series = frame[c].dropna()
        if not pd.api.types.is_string_dtype(series.dtype) or series.nunique() <= MOST_LEVELS:
            continue
        bad = series[pd.to_numeric(series, errors="coerce").isna()]
        marks = bad.unique().tolist()
        if len(bad) < 0.5 * len(series) and len(marks) <= MARKS:
            found[str(c)] = (
                f"column {c!r} has {len(bad)} of {len(series)} cells that are not numbers "
                f"({some([repr(m) for m in marks])}, the first in row {bad.index[0] + 1})"
            )
            all_marks.update(marks)
    if found:
        raise Marks(f"{path}: {listed([*found.values()])}", sorted(all_marks), list(found))


class Marks(ValueError):
    """Cells among numbers that are no numbers: the message, the texts that they hold, and where."""

    def __init__(self, message: str, marks: list[str], columns: list[str]) -> None:
        super().__init__(f"{message}; marks={marks} reads them as missing values")
        self.message, self.marks, self.columns = message, marks, columns


def _read_parquet(path: Path) -> tuple[pd.DataFrame, Form]:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ValueError(f"{path}: needs a package: pip install 'gradlogp[data]'") from error
    with reading(path):
        with ParquetFile(path) as file:
            found = file.metadata
            check_unpacked(path, 8 * found.num_rows * found.num_columns)
        frame = pd.read_parquet(path, engine="pyarrow")
    if frame.index.name is not None or isinstance(frame.index, pd.MultiIndex):
        frame = frame.reset_index()
    frame = frame.reset_index(drop=True)
    frame.columns = pd.Index([str(c) for c in frame.columns])
    nested = [c for c in frame if frame[c].dtype == object and not _plain_values(frame[c])]
    if nested:
        raise ValueError(f"{path}: columns with lists or tables in their cells: {some(nested)}")
    frame.attrs = {}
    return frame, Form()


def _plain_values(series: pd.Series) -> bool:
    try:
        hash(tuple(series.dropna()))
    except TypeError:
        return False
    return True


def _dates(frame: pd.DataFrame, form: Form, notes: list[str]) -> tuple[tuple[str, str, bool], ...]:
    """Read texts as dates, in place, where all of a column are written in one way."""
    found = []
    for c in frame.columns:
        series, present = frame[c], frame[c].dropna()
        if series.dtype.kind == "i" and len(present) and form.separator and _numbered(present):
            frame[c] = pd.to_datetime(series.astype("string"), format=NUMBERED[0])
            found.append((str(c), NUMBERED[0], False))
            continue
        if present.empty or not (
            series.dtype == object or pd.api.types.is_string_dtype(series.dtype)
        ) or isinstance(series.dtype, pd.CategoricalDtype):  # fmt: skip
            continue
        if all(type(v) is datetime.date for v in present):
            frame[c], way = pd.to_datetime(series), "date"
            found.append((c, way, False))
            continue
        head = present.iloc[:: max(1, len(present) // 50)].astype(str)
        if not head.str.contains(r"\d").all():
            continue
        fitting = [way for way in DATES if _parsed(head, way) is not None]
        for way in fitting:
            parsed = _parsed(series, way)
            if parsed is None or (parsed.isna() & series.notna()).any():
                continue
            full = as_text(parsed.dropna(), way, False)
            bare = as_text(parsed.dropna(), way, True)
            texts = present.astype(str)
            padded = float((full.to_numpy() == texts.to_numpy()).mean())
            unpadded = "%z" not in way and padded < float(
                (bare.to_numpy() == texts.to_numpy()).mean()
            )
            if "%z" in way and padded < 1:
                notes.append(f"dates of {c!r} are written in UTC")
            swapped = way.replace("%d", "%_").replace("%m", "%d").replace("%_", "%m")
            if swapped != way and swapped in fitting and not way.startswith("%Y"):
                if _parsed(series, swapped) is not None:
                    notes.append(f"{c!r} may be {way} or {swapped}, and is read as {way}")
            frame[c] = parsed
            found.append((c, way, unpadded))
            break
    return tuple(found)


def _numbered(present: pd.Series) -> bool:
    """Whether integers are dates such as 20240131."""
    inside = bool(present.between(19000101, 21001231).all())
    return inside and _parsed(present.astype("string"), NUMBERED[0]) is not None


def _parsed(series: pd.Series, way: str) -> pd.Series | None:
    try:
        return pd.to_datetime(series, format=way, utc="%z" in way)
    except (ValueError, OverflowError):
        return None
