"""The command that says how many points a score needs: sample-size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .common import Misuse, load, print_json

if TYPE_CHECKING:
    from ...check.sample_size import SampleSize

CAVEAT = (
    "Parametric only: estimates that know the form of the law. A network does not, and has no such "
    "guarantee; compare its denoising loss on training and held-out data."
)


def sample_size(
    *,
    accuracy: float = 0.1,
    dim: int | None = None,
    data: str | None = None,
    columns: str | None = None,
    label: str | None = None,
    separation: float | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Print how many points a score needs for an accuracy, with the formulas used.

    The error of a score is the root mean square of its distance to the true one, relative to the
    size of the true one; that of a location or weight is its standard error.

    Args:
        accuracy: The error, 0.1 for ten percent.
        dim: Number of dimensions.
        data: Data to take the dimension from; also told is what its number of points is good for.
        columns: Columns to use, separated by commas.
        label: Column with the class of each row, which is left out.
        separation: Half the distance of two modes in their standard deviations: adds what it takes
            to tell their weights.
        json: Print as JSON.
        quiet: Do not say what was dropped from the data.
    """
    if (dim is None) == (data is None):
        raise Misuse("sample-size needs --dim or --data, and not both")
    if not 1e-9 <= accuracy <= 1e9:
        raise Misuse(f"--accuracy must be positive, from 1e-9 to 1e9, got {accuracy}")
    if dim is not None and dim < 1:
        raise Misuse(f"--dim must be at least 1, got {dim}")
    if separation is not None and not 0 < separation <= 5:
        raise Misuse(
            f"--separation must lie in (0, 5], got {separation}; weights of modes further apart "
            "are not to be had from a score without noise"
        )
    from ...check import sample_size as needs

    facts: dict[str, Any] = {}
    if data is not None:
        n, dim = needs.span(load(data, columns, label, quiet=quiet).x)
        facts = {"n": n, "relative_error_of_a_gaussian_fit": needs.gaussian_error(n, dim=dim)}
    assert dim is not None
    rows = needs.table(accuracy, dim, separation)
    if json:
        print_json({"accuracy": accuracy, "dim": dim, **facts,
                    "rows": [row._asdict() for row in rows], "caveat": CAVEAT})  # fmt: skip
    else:
        _print(rows, dim, facts)
    return 0


def _print(rows: list[SampleSize], dim: int, facts: dict[str, Any]) -> None:
    import math
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("what", box=None, pad_edge=False)
    table.add_column("points", justify="right", no_wrap=True)
    table.add_column("formula")
    table.add_column("holds for")
    for row in rows:
        cells = (row.quantity, f"{row.n:,}", row.formula, row.conditions)
        table.add_row(*(Text(cell) for cell in cells))
    width = None if sys.stdout.isatty() else 150
    Console(width=width, highlight=False).print(table)
    if facts:
        error = facts["relative_error_of_a_gaussian_fit"]
        told = f"{error:.3g}" if math.isfinite(error) else f"infinite: it takes {dim + 5} points"
        print(
            f"The data have {facts['n']:,} points in {dim} dimensions: "
            f"relative error of a fitted Gaussian {told}"
        )
    print(CAVEAT)
