"""The command that fills holes: impute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .common import Misuse, claim_output, generator_of, is_checkpoint, positive, say, set_threads

if TYPE_CHECKING:
    import pandas as pd

    from ..tables import TableEstimator


def impute(
    checkpoint: Path,
    data: Path,
    *,
    out: Path,
    n_draws: int = 1,
    force: bool = False,
    seed: int = 0,
    threads: int | None = None,
    quiet: bool = False,
) -> int:
    """Fill the holes of a table by draws given the cells that are there.

    Args:
        checkpoint: Checkpoint folder of a table (`TableEstimator.save`).
        data: A .csv or .parquet file with the columns learned from, and holes in any rows.
        out: The file to write, .csv or .parquet.
        n_draws: How many times to fill. With more than one the rows of all draws follow one another,
            and a first column, draw, numbers them.
        force: Replace a file that is there.
        seed: Seed of the draws.
        threads: PyTorch threads.
        quiet: No message.
    """
    set_threads(threads)
    positive("--n-draws", n_draws)
    for path in (data, out):
        if path.suffix.lower() not in (".csv", ".parquet"):
            raise Misuse(f"{path}: tables are .csv or .parquet")
    if not data.is_file():
        raise Misuse(f"there is no file {data}")
    if not is_checkpoint(checkpoint):
        raise Misuse(f"there is no checkpoint at {checkpoint}")
    claim_output(out, force=force)
    generator_of(seed)  # refuses what is no seed
    import pandas as pd

    from ...core.files import write_atomically
    from ..tables import TableEstimator

    model = TableEstimator.load(checkpoint)
    frame = _read(data, model)
    filled = model.impute(frame, n_draws, random_state=seed % 2**32)
    if n_draws > 1:
        numbered = []
        for i, one in enumerate(filled, 1):
            one.insert(0, "draw", i, allow_duplicates=True)
            numbered.append(one)
        filled = pd.concat(numbered, ignore_index=True)
    if out.suffix.lower() == ".csv":
        write_atomically(out, filled.to_csv(index=False).encode())
    else:
        write_atomically(out, filled.to_parquet(index=False))
    n = int(frame[[c.name for c in model.columns_]].isna().to_numpy().sum())
    say(f"{out}: {n} holes filled" + f", {n_draws} times" * (n_draws > 1), quiet=quiet)
    return 0


def _read(path: Path, model: TableEstimator) -> pd.DataFrame:
    """Return a table whose columns are of the kinds that were learned: text stays text."""
    import pandas as pd

    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        head = pd.read_csv(path, nrows=0)
        learned = {c.name: c for c in model.columns_}
        dates = {n: c for n, c in learned.items() if n in head.columns and c.kind == "date"}
        text = {
            n: str for n, c in learned.items()
            if n in head.columns and c.kind in ("category", "name")
            and not c.dtype.lower().startswith(("int", "uint", "float"))
        }  # fmt: skip
        frame = pd.read_csv(path, dtype=text)
        for name, column in dates.items():
            parse = pd.to_timedelta if column.dtype.startswith("timedelta") else pd.to_datetime
            frame[name] = parse(frame[name])
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {str(error).splitlines()[0][:200]}") from None
    return frame
