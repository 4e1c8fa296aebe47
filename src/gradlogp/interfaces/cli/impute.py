"""The command that fills holes: impute."""

from __future__ import annotations

from pathlib import Path

from .common import Misuse, claim_output, generator_of, is_checkpoint, positive, say, set_threads
from .tables import ending, holds_table, whole_rows


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
        data: A file with the columns learned from, and holes in any rows.
        out: The file to write: .csv, .tsv, these with .gz, or .parquet.
        n_draws: How many times to fill. With more than one the rows of all draws follow one another,
            and a first column, draw, numbers them.
        force: Replace a file that is there.
        seed: Seed of the draws.
        threads: PyTorch threads.
        quiet: No message.
    """
    set_threads(threads)
    positive("--n-draws", n_draws)
    suffix, formats = ending(out, table=True)
    if suffix not in formats:
        raise Misuse(f"cannot write {out}: use one of {', '.join(formats)}")
    if not data.is_file():
        raise Misuse(f"there is no file {data}")
    if not is_checkpoint(checkpoint):
        raise Misuse(f"there is no checkpoint at {checkpoint}")
    if not holds_table(checkpoint):
        raise Misuse(
            f"{checkpoint} was trained on plain numbers, but only a table model can fill in missing "
            "values: train one with `gradlogp fit FILE --out m`, without --no-table, --label and "
            "--condition"
        )
    claim_output(out, force=force)
    generator_of(seed)  # refuses what is no seed
    from ...core.files import write_atomically
    from ..tables import TableEstimator
    from ..tables.forms import stacked, written

    model = TableEstimator.load(checkpoint)
    model._kind = "pandas"
    frame = whole_rows(str(data), model, None, quiet=quiet)
    filled = model.impute(frame, n_draws, random_state=seed % 2**32)
    whole = filled if n_draws == 1 else stacked(filled)
    whole.attrs["form"] = frame.attrs["form"]
    write_atomically(out, written(whole, suffix))
    names = [c.name for c in model.columns_]
    n = int(frame[names].isna().to_numpy().sum())
    say(f"{out}: {n} missing values filled in" + f", {n_draws} times" * (n_draws > 1), quiet=quiet)
    return 0
