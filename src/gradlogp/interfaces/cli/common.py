"""What the commands share: loading data, interruption between steps, tables and JSON."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...learn.stopping import STOPS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...core import Transition
    from ...learn.data import Dataset
    from ...show.report import Row


NARROW = 60
"""Characters a line, below which a table is written one row below the other."""


Method = Literal[
    "flow", "heun", "exponential", "dpm", "ddim", "adaptive", "ancestral", "sde", "corrector", "churn",
    "langevin",
]  # fmt: skip

STEPS: dict[Method, int] = {
    "heun": 32, "exponential": 32, "dpm": 32, "ddim": 100, "adaptive": 2, "ancestral": 250,
    "sde": 100, "corrector": 100, "churn": 64, "langevin": 60,
}  # fmt: skip
"""Noise levels to pass through by default; for the flow they are measured."""


class Misuse(ValueError):
    """An argument that cannot be meant: exit code 2."""


def say(message: str, *, quiet: bool = False) -> None:
    """Print a message on standard error."""
    if not quiet:
        print(message, file=sys.stderr)


def refuse(given: Mapping[str, object], why: str) -> None:
    """Raise `Misuse` for the first of these options that was given: it belongs to another way."""
    for option, value in given.items():
        if value is not None:
            raise Misuse(f"{option} {why}")


def positive(option: str, value: int | None) -> None:
    """Refuse a count below 1."""
    if value is not None and value < 1:
        raise Misuse(f"{option} must be at least 1, got {value}")


def generator_of(seed: int) -> torch.Generator:
    """Return a generator of that seed; one that is no 64-bit number is misuse."""
    import torch

    if not 0 <= seed < 2**63:
        raise Misuse(f"--seed must lie between 0 and 2^63 - 1, got {seed}")
    return torch.Generator().manual_seed(seed)


def set_threads(threads: int | None) -> None:
    """Set PyTorch's number of threads, if asked to."""
    if threads is not None:
        import torch

        if threads < 1:
            raise Misuse(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)


def load(
    source: str,
    columns: str | Sequence[str] | None = None,
    label: str | None = None,
    *,
    header: bool | None = None,
    size: tuple[int, int] | None = None,
    quiet: bool = False,
) -> Dataset:
    """Load data, saying on standard error what was dropped; an unknown name is misuse."""
    from ...learn import data
    from ...learn.data.loading import NotNumbers

    if header is not None and (source in data.NAMES or Path(source).suffix.lower() != ".csv"):
        raise Misuse(f"--header and --no-header are for .csv files, and {source} is not one")
    if are_images(source):
        refuse(
            {"--columns": columns, "--label": label}, f"is for tables, but {source} holds images"
        )
    names = columns.split(",") if isinstance(columns, str) else columns
    try:
        found = data.load(source, columns=names, label=label, header=header, size=size)
    except NotNumbers as error:
        raise ValueError(error.message(command_line=True)) from None
    except ValueError as error:
        if source not in data.NAMES and not Path(source).exists():
            raise Misuse(error) from None
        raise
    for note in found.notes:
        say(f"{found.name}: {note}", quiet=quiet)
    return found


def height_and_width(size: str | None) -> tuple[int, int] | None:
    """Return the two numbers of --size, "32" or "32x48"; anything else is misuse."""
    if size is None:
        return None
    parts = size.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise Misuse(f"--size must be a side, or height x width, such as 32 or 32x48, got {size}")
    return int(parts[0]), int(parts[-1])


def are_images(source: str) -> bool:
    """Return whether a source is a set of images, or a folder, which has no columns."""
    from ...learn import data

    return source in ("digits", "mnist") or (source not in data.NAMES and Path(source).is_dir())


def with_given(columns: str | None, condition: str | None) -> str | None:
    """Return the columns to load, those to condition on among them."""
    if columns is None or condition is None:
        return columns
    return ",".join(dict.fromkeys([*columns.split(","), *condition.split(",")]))


def split_given(dataset: Dataset, condition: str | None) -> tuple[Dataset, Tensor | None]:
    """Return data without the columns to condition on, and these `(N, k)`, or None."""
    if condition is None:
        return dataset, None
    names = list(dict.fromkeys(condition.split(",")))
    if unknown := [name for name in names if name not in dataset.columns]:
        there = ", ".join(dataset.columns[:20]) or "none with a name"
        raise Misuse(f"{dataset.name} has no column {unknown[0]!r} of numbers; it has {there}")
    kept = [i for i, name in enumerate(dataset.columns) if name not in names]
    if not kept:
        raise Misuse(f"--condition {condition} leaves no column to learn")
    left = tuple(dataset.columns[i] for i in kept)
    y = dataset.x[:, [dataset.columns.index(name) for name in names]].double()
    return dataset._replace(x=dataset.x[:, kept], columns=left), y


def class_names(dataset: Dataset) -> Any:
    """Return the class of each row by its name, or None if there are no classes.

    Class numbers belong to one file: a different file with the same classes may number them
    differently.
    """
    import numpy as np

    if dataset.labels is None:
        return None
    names = dataset.classes or tuple(str(i) for i in range(int(dataset.labels.max()) + 1))
    return np.array(names)[dataset.labels.numpy()]


class Stopped(KeyboardInterrupt):
    """A signal asked to stop: the exit code is 128 + its number."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


@contextmanager
def interruptible() -> Iterator[Any]:
    """Turn Ctrl-C, SIGTERM and SIGHUP into a stop between steps; yields what to call after a step."""
    asked = 0

    def remember(number: int, frame: object) -> None:
        nonlocal asked
        asked = number

    def check(*_: object) -> None:
        if asked:
            raise Stopped(asked)

    before = {}
    for number in STOPS:
        if number == signal.SIGINT or signal.getsignal(number) is signal.SIG_DFL:
            before[number] = signal.signal(number, remember)
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_checkpoint(path: str | Path) -> bool:
    """Return whether there is a checkpoint, also while it is being replaced."""
    from ...learn.folders import find

    return os.path.lexists(find(path) / "config.json")


def claim_output(*paths: Path | None, force: bool, folder: bool = False) -> None:
    """Refuse to replace existing files without --force, and places that cannot be written to.

    Call this with every path that a command will write, before the work starts.

    Arguments:
        paths: Files, or folders; None stands for no output.
        force: Whether --force was given.
        folder: Whether these are folders, which may exist if they are empty.

    Raises:
        Misuse: If a path exists.
        OSError: If nothing can be written there.
    """
    from ...core.files import check_writable

    for path in (path for path in paths if path is not None):
        taken = any(path.iterdir()) if folder and path.is_dir() else os.path.lexists(path)
        if taken and not force and (path.is_file() or path.is_dir() or path.is_symlink()):
            raise Misuse(f"{path} exists: choose a different name, or replace it with --force")
        check_writable(path, folder=folder)


def plain(value: Any) -> Any:
    """Return a value as JSON has it: paths as text, numbers that are not finite as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def print_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: str = "") -> None:
    """Print a table on standard output; the columns named in `numbers` are flush right, unbroken.

    If the terminal is narrower than `NARROW` characters, each row is a paragraph: cells without a
    heading (a verdict) and the first cell, then the others, each below its name.
    """
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 150
    console = Console(width=width, highlight=False)
    if console.width < NARROW:
        for row in rows:
            cells = dict(zip(columns, row, strict=True))
            console.print(Text(" ".join(filter(None, [cells.pop("", ""), row[0]])), style="bold"))
            for name, cell in [*cells.items()][1:]:
                if cell:
                    console.print(Padding(Text(f"{name}: {cell}"), (0, 0, 0, 2), expand=False))
        return
    table = Table(box=None, pad_edge=False)
    for name in columns:
        number = bool(name) and name in numbers.split()
        table.add_column(name, justify="right" if number else "left", no_wrap=number or not name)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def print_rows(rows: Iterable[Row]) -> None:
    """Print the rows of a report."""
    from ...show.report import format_value

    verdicts = {True: "✓ pass", False: "✗ fail", None: ""}
    cells = (
        (row.name, format_value(row.value, row.standard_error),
         "" if row.floor is None else format_value(row.floor, row.floor_error),
         verdicts[row.verdict], row.note)
        for row in rows
    )  # fmt: skip
    print_table(("quantity", "value", "floor", "", "note"), cells)


def transition(method: Method) -> Transition:
    """Return the transition of that name."""
    from ...diffusion import transitions as ways

    table: dict[Method, Transition] = {
        "flow": ways.UniPC(), "heun": ways.ProbabilityFlow(), "exponential": ways.ExponentialAB(),
        "dpm": ways.DPMSolver(), "ddim": ways.DDIM(), "adaptive": ways.AdaptiveFlow(),
        "ancestral": ways.Ancestral(), "sde": ways.ReverseSDE(1.0, "heun"),
        "corrector": ways.PredictorCorrector(), "churn": ways.Churn(),
        "langevin": ways.AnnealedLangevin(),
    }  # fmt: skip
    return table[method]
