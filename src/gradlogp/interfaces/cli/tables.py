"""Tables on the command line: recognising, learning and drawing them, ranking and judging rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    STEPS,
    Method,
    Misuse,
    is_checkpoint,
    refuse,
    say,
    transition,
    with_given,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...check.compare import Comparison
    from ...show.report import Row
    from ..estimator import ScoreEstimator
    from ..tables import TableEstimator

ARRAYS = (".npy", ".npz", ".csv")
"""Ends of names of files of samples of numbers."""

KINDS = ("number", "date", "category", "name")


def is_table_file(source: str | Path) -> bool:
    """Return whether a name ends like that of a file of a table."""
    from ...learn import data
    from ..tables.forms import suffix_of

    named = isinstance(source, str) and source in data.NAMES
    return not named and bool(suffix_of(source)) and not Path(source).is_dir()


def read_table(
    source: str | Path,
    *,
    header: bool | None = None,
    missing: str | None = None,
    marks: Sequence[str] = (),
    columns: str | None = None,
    drop: Sequence[str] = (),
    kinds: dict[str, Any] | None = None,
    quiet: bool = False,
) -> Any:
    """Read a table file, with messages on standard error about how it was interpreted.

    Arguments:
        source: The file.
        header: Whether the first line has the names.
        missing: Texts that mean missing values, separated by commas.
        marks: The same, in the form stored with a model.
        columns: Columns to keep, separated by commas.
        drop: Columns that will be dropped.
        kinds: The kinds of columns, by name.
        quiet: Whether to print no messages.
    """
    from ...core import joined, nearest, short
    from ..tables.files import Marks, read

    kinds = kinds or {}
    texts = [name for name, kind in kinds.items() if kind in ("category", "name")]
    marks = missing.split(",") if missing is not None else list(marks)
    try:
        dates = [name for name, kind in kinds.items() if kind == "date"]
        frame, notes = read(source, header=header, marks=marks, skip=[*drop, *texts], dates=dates)
    except Marks as error:
        raise ValueError(
            f"{error.message}; --missing '{joined(error.marks)}' reads them as missing values, "
            f"--as {short(error.columns[0])}=category as they are"
        ) from None
    for note in notes:
        say(f"{Path(source).name}: {note}", quiet=quiet)
    if columns is not None:
        known = list(frame.columns)
        names = split(columns, known)
        for name in names:
            if name not in known:
                raise ValueError(f"{source}: no column '{name}'{nearest(name, known)}")
        frame = frame[names]
    return frame


def split(names: str, known: Sequence[Any]) -> list[str]:
    """Return names that are separated by commas; one that has commas itself is one."""
    return [names] if names in list(known) else names.split(",")


def kinds_of(given: Sequence[str] | None) -> dict[str, Any]:
    """Return what columns are to be taken for, from `column=kind`."""
    found = {}
    for part in given or ():
        name, equals, kind = part.rpartition("=")
        if not equals or kind not in KINDS:
            raise Misuse(
                f"--as needs column=kind, with kind one of {', '.join(KINDS)}; got {part!r}"
            )
        found[name] = kind
    return found


def table_to_learn(
    source: str, table: bool | None, label: str | None, *, header: bool | None, drop: Sequence[str],
    kinds: dict[str, Any], missing: str | None, columns: str | None, condition: str | None = None,
    quiet: bool,
) -> Any:  # fmt: skip
    """Return the table of a file; None for numbers without names, which are learned as they are.

    With columns to condition on, numbers without missing values are learned as they are, with or
    without names.
    """
    of_tables = {"--drop": drop or None, "--as": kinds or None, "--missing": missing}
    if label is not None or table is False or not is_table_file(source):
        refuse(of_tables, "is for table models, without --label or --no-table")
        if table and label is not None:
            raise Misuse(
                "--label is for numeric data; a table model learns categories as columns like any other"
            )
        if table:
            raise Misuse(f"--table is for table files, and {source} is not one")
        return None
    try:
        frame = read_table(
            source,
            header=header,
            missing=missing,
            columns=with_given(columns, condition),
            drop=drop,
            kinds=kinds,
            quiet=quiet,
        )
    except ValueError as error:
        if not Path(source).expanduser().exists():
            raise Misuse(error) from None
        raise
    form = frame.attrs["form"]
    plain = Path(source).suffix.lower() == ".csv" and form["separator"] == ","
    if table is None and plain and (condition or not form["header"]) and not form["numbers"]:
        numbers = all(d.kind in "iuf" for d in frame.dtypes) and not frame.isna().any(axis=None)
        if numbers and not any(v is not None for v in of_tables.values()):
            return None
    return frame


def holds_table(checkpoint: str | Path) -> bool:
    """Return whether a checkpoint is that of a table."""
    from ...learn.checkpoint import read_config

    return is_checkpoint(checkpoint) and "table" in read_config(checkpoint)["extra"]


def ending(out: Path | None, *, table: bool) -> tuple[str, tuple[str, ...]]:
    """Return the end of a name that says what to write, and those that are known."""
    if not table:
        return ("" if out is None else out.suffix), ARRAYS
    from ..tables.forms import SUFFIXES, check_writer, suffix_of

    suffix = "" if out is None else suffix_of(out)
    check_writer(suffix)
    return suffix, SUFFIXES


def refuse_table(checkpoint: str | Path) -> None:
    """Refuse a checkpoint of a table where numbers as they are needed."""
    if holds_table(checkpoint):
        raise Misuse(
            f"{checkpoint} was trained on a table, but this needs plain numbers: train with "
            "--no-table, or with --columns and --label"
        )


def learn_table(
    estimator: ScoreEstimator, frame: Any, drop: Sequence[str], kinds: dict[str, Any],
    condition: Sequence[str] = (),
) -> TableEstimator:  # fmt: skip
    """Learn a table; what cannot be is said in the words of the command line."""
    from ...core import joined, listed, nearest
    from ..tables import TableEstimator
    from ..tables.frames import ColumnError

    holes = estimator.objective is None  # another loss is one for whole rows
    if unknown := [name for name in condition if name not in frame.columns or name in drop]:
        known = [name for name in frame.columns if name not in drop]
        raise Misuse(f"--condition: no column {unknown[0]!r}{nearest(unknown[0], known)}")
    table = TableEstimator(
        estimator, drop=list(drop), kinds=kinds, holes=holes, condition=list(condition)
    )
    try:
        return table.fit(frame)
    except ColumnError as error:
        what = listed(error.problems)
        more = (
            ", or read them as missing values with --missing inf,-inf"
            if "infinite" in what
            else ""
        )
        raise ValueError(
            f"{what}; drop them with --drop '{joined(error.columns)}'{more}"
        ) from None


def draw_table(
    table: TableEstimator, n: int, g: torch.Generator, *, method: Method = "flow",
    steps: int | None = None, given: Any = None, guidance: float = 0.0, quiet: bool,
) -> Any:  # fmt: skip
    """Return new rows; of given cells, the others drawn given them."""
    from ..pipeline import draw
    from ..tables.given import score_of

    estimator, table._kind = table.estimator_, "pandas"
    score: Any = estimator.model_
    rows = None
    if given is not None or guidance:
        score, rows = score_of(table, given, n, guidance, g)
    z = draw(
        score, n, levels_of(estimator, method, steps), transition=transition(method), generator=g,
        quiet=quiet,
    )  # fmt: skip
    return table._decode(z, g, rows)


def given_rows(given: str, table: TableEstimator, *, quiet: bool) -> Any:
    """Return the given cells: column=value,…, or the known columns of a table file.

    Both are read in the format of the training file: dates, marks of numbers, missing values.
    """
    from ...core import nearest, some

    names = [c.name for c in table.columns_]
    if is_table_file(given):
        frame = read_rows(given, table, None, quiet=quiet)
        if not any(name in frame.columns for name in names):
            raise Misuse(f"--given {given}: it has no column of the table")
        return frame[[name for name in frame.columns if name in names]]
    cells: dict[str, str] = {}
    for part in given.split(","):
        name, equals, value = part.partition("=")
        if equals and name in names:
            cells[name] = value
        elif equals:
            raise Misuse(f"--given {given}: no column {name!r}{nearest(name, names)}")
        elif cells:  # a comma of the value before
            last = list(cells)[-1]
            cells[last] += f",{part}"
        else:
            raise Misuse(
                f"--given {given}: write column=value,… or name a file; the columns are "
                f"{some(names, 20)}"
            )
    import tempfile

    from ..tables.given import file_of

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "given.csv"
        path.write_bytes(file_of(cells, table))
        return read_rows(str(path), table, True, quiet=True)


def levels_of(estimator: ScoreEstimator, method: Method, steps: int | None) -> int:
    """Return the number of noise levels: requested, measured, or that of the method."""
    return max(2, steps or (estimator.sample_levels() if method == "flow" else STEPS[method]))


def numbers_of(frame: Any) -> tuple[Tensor, tuple[str, ...]]:
    """Return the columns of a table as numbers, for a picture, and their names."""
    import torch

    from ...check.rows import encode, filled, indicators

    layout, rows = encode({"rows": frame})
    names, flags = indicators(layout, rows)
    return torch.cat([filled(rows)["rows"], flags["rows"]], 1), (*layout.numbers, *names)


def evaluate_tables(
    source: Path, data: str, *, train: str | None, columns: str | None, header: bool | None, n: int,
    likelihood: bool | None, seed: int, quiet: bool,
) -> tuple[Comparison, list[Row]]:  # fmt: skip
    """Compare rows of a table, drawn now or in a file, with real ones."""
    from ...check.compare import compare, likelihood_row
    from ...core import joined, some
    from ..tables import TableEstimator
    from .common import generator_of

    g, rows = generator_of(seed), []
    if is_checkpoint(source):
        table = TableEstimator.load(source)
        names = [c.name for c in table.columns_]
        held = _rows(data, table, header, quiet=quiet)
        training = None if train is None else _rows(train, table, header, quiet=quiet)
        small = (
            sum(c.width for c in table.columns_) <= 16
            and table.estimator_.model_.schedule.times is None
        )
        if likelihood or (likelihood is None and small):
            import torch

            values = torch.as_tensor(table.score_samples(held, random_state=seed))
            rows.append(likelihood_row("log-likelihood", values, "nats per row, a lower bound"))
        samples = draw_table(table, n, g, quiet=quiet)
    else:
        refuse({"--likelihood": likelihood}, "is for a checkpoint; samples alone have none")
        held = read_table(data, header=header, quiet=quiet)
        samples = read_table(source, header=header, quiet=quiet)
        training = None if train is None else read_table(train, header=header, quiet=quiet)
        names = list(held.columns)
    if columns is not None:
        names = split(columns, names)
    frames = [samples, held, *([] if training is None else [training])]
    for frame, what in zip(frames, (source, data, train), strict=False):
        if lacking := [name for name in names if name not in frame.columns]:
            others = joined([name for name in names if name not in lacking])
            raise ValueError(
                f"{what} lacks columns: {some(lacking)}; --columns '{others}' compares the others"
            )
    samples, held, *rest = (frame[names] for frame in frames)
    found = compare(samples, held, rest[0] if rest else None, generator=g)
    return found, rows + list(found.rows)


def read_rows(data: str, table: TableEstimator, header: bool | None, *, quiet: bool) -> Any:
    """Return a file of the table that a model knows, read as the one that it was learned from."""
    from ..tables.forms import Form

    if not is_table_file(data):
        raise Misuse(f"the model is a table model, but {data} is not a table file")
    form = Form.of(table._form)
    kinds = {c.name: c.kind for c in table.columns_ if c.kind in ("category", "name", "date")}
    header = form.header if header is None and table._form else header
    return read_table(data, header=header, marks=form.marks, kinds=kinds, quiet=quiet)


def whole_rows(data: str, table: TableEstimator, header: bool | None, *, quiet: bool) -> Any:
    """Return a file as `read_rows` does, which has all columns that a model knows."""
    from ...core import some

    frame = read_rows(data, table, header, quiet=quiet)
    if lacking := [c.name for c in table.columns_ if c.name not in frame.columns]:
        raise ValueError(f"{data} lacks columns: {some(lacking)}")
    return frame


def _rows(data: str, table: TableEstimator, header: bool | None, *, quiet: bool) -> Any:
    """Return rows of the columns that a model knows."""
    from ...core import listed
    from ..tables.frames import ColumnError

    frame = whole_rows(data, table, header, quiet=quiet)
    try:
        found: Any = table._as_learned(frame)
    except ColumnError as error:
        raise ValueError(f"{data}: {listed(error.problems)}") from None
    return found


def rank_rows(checkpoint: Path, data: str, header: bool | None, seed: int, *, quiet: bool) -> Any:
    """Return rows of a table with their log-density, the least likely first.

    A value that no training row had has probability 0: minus infinity, and the reason in words.
    """
    from ..tables import TableEstimator
    from ..tables.frames import rank

    table = TableEstimator.load(checkpoint)
    return rank(table, _rows(data, table, header, quiet=quiet), seed)


def describe_table(source: str, *, header: bool | None) -> dict[str, Any]:
    """Return what a file of a table holds, and what its columns would be taken for."""
    from ..tables.columns import recognise
    from ..tables.files import read

    frame, notes = read(source, header=header)
    columns = {}
    for name in frame.columns:
        try:
            columns[name] = recognise(frame[name]).describe()
        except ValueError as error:
            columns[name] = str(error)
    return {
        "name": Path(source).name,
        "rows": len(frame),
        "columns": columns,
        "notes": "; ".join(notes),
    }
