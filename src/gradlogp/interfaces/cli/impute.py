"""The command that fills holes: impute."""

from __future__ import annotations

from pathlib import Path

from .common import Misuse, claim_output, generator_of, is_checkpoint, positive, say, set_threads


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
    from ...core.files import write_atomically
    from ..tables import TableEstimator
    from ..tables.files import read_table, stacked, table_bytes

    model = TableEstimator.load(checkpoint)
    frame = read_table(data, model.columns_)
    filled = model.impute(frame, n_draws, random_state=seed % 2**32)
    whole = filled if n_draws == 1 else stacked(filled)
    write_atomically(out, table_bytes(whole, out.suffix))
    names = [c.name for c in model.columns_]
    n = int(frame[names].isna().to_numpy().sum())
    say(f"{out}: {n} holes filled" + f", {n_draws} times" * (n_draws > 1), quiet=quiet)
    return 0
