"""The commands that check and describe: verify, sample-size and info."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from .common import Misuse, is_checkpoint, load, print_json, print_table, refuse, set_threads
from .tables import describe_table, is_table_file

CAVEAT = (
    "Parametric only: for estimates that know the form of the law. A network does not, and has no such "
    "guarantee; compare its denoising loss on training and held-out data."
)


def verify(
    only: str | None = None,
    *,
    quick: bool = False,
    seed: int = 0,
    threads: int = 1,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Measure every claim of the theory on this machine; exit code 1 if one fails.

    Common false statements are among the claims: they pass if they are shown to be false.

    Args:
        only: A part of the theory: matching, density, statistics, or a name such as
            statistics.weight_at_4.
        quick: A quarter of the random draws.
        seed: Random seed.
        threads: PyTorch threads.
        json: Print a list of objects: claim, source, expected, measured, standard_error, verdict,
            statement.
        quiet: No progress.
    """
    set_threads(threads)
    from ...check.theory import CHECKS, select
    from ...check.theory import verify as run
    from ...core import nearest
    from ...show.progress import bar
    from ...show.report import format_value

    checks = CHECKS if only is None else select(only)
    if not checks:
        parts = sorted({check.name.split(".")[0] for check in CHECKS})
        raise Misuse(f"no check has {only!r} in its name{nearest(only or '', parts)}")
    claims = []
    with bar("verify", quiet=quiet) as progress:
        for claim in run(quick=quick, seed=seed, checks=checks):
            claims.append(claim)
            progress(len(claims), len(checks))
    failed = sum(c.verdict == "fail" for c in claims)
    if json:
        print_json([c._asdict() for c in claims])
        return 1 if failed else 0
    good = {"true": "✓ true", "false": "✓ false, as shown"}
    cells = (
        (c.claim, c.source, format_value(c.expected), format_value(c.measured, c.standard_error),
         good[c.statement] if c.verdict == "pass" else "✗ fail")
        for c in claims
    )  # fmt: skip
    print_table(("claim", "source", "expected", "measured", ""), cells, "expected measured")
    print(
        f"{len(claims) - failed} of {len(claims)} claims pass, "
        f"{sum(c.statement == 'false' for c in claims)} of them false statements shown false"
    )
    return 1 if failed else 0


def sample_size(
    *,
    accuracy: float = 0.1,
    dim: int | None = None,
    data: str | None = None,
    columns: str | None = None,
    label: str | None = None,
    header: bool | None = None,
    separation: float | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Print how many points a score needs for an accuracy, with the formulas used.

    The error of a score is the root mean square of its distance to the true score, relative to the
    root mean square of the true score; the error of a location or a weight is its standard error.

    Args:
        accuracy: The error, 0.1 for ten percent.
        dim: Number of dimensions.
        data: Data from which to take the dimension; also prints what their number of points is
            enough for.
        columns: Columns to use, separated by commas.
        label: Column with the class of each row, which is omitted.
        header: Whether the first line of a .csv file holds names; detected by default.
        separation: Half the distance between two modes, in their standard deviations: also prints
            how many points their weights need.
        json: Print as JSON.
        quiet: Print no message about what was dropped from the data.
    """
    if (dim is None) == (data is None):
        raise Misuse("sample-size needs --dim or --data, not both")
    if data is None:
        of_data = {"--columns": columns, "--label": label, "--header": header}
        refuse(of_data, "is for --data; with --dim there is no table")
    if not 1e-9 <= accuracy <= 1e9:
        raise Misuse(f"--accuracy must be positive, from 1e-9 to 1e9, got {accuracy}")
    if dim is not None and dim < 1:
        raise Misuse(f"--dim must be at least 1, got {dim}")
    if separation is not None and not 0 < separation <= 5:
        raise Misuse(
            f"--separation must lie in (0, 5], got {separation}; a score without noise does not "
            "determine the weights of modes further apart"
        )
    from ...check import sample_size as needs

    facts: dict[str, Any] = {}
    if data is not None:
        n, dim = needs.span(load(data, columns, label, header=header, quiet=quiet).x)
        facts = {"n": n, "relative_error_of_a_gaussian_fit": needs.gaussian_error(n, dim=dim)}
    assert dim is not None
    rows = needs.table(accuracy, dim, separation)
    if json:
        print_json({"accuracy": accuracy, "dim": dim, **facts,
                    "rows": [row._asdict() for row in rows], "caveat": CAVEAT})  # fmt: skip
        return 0
    cells = ((row.quantity, f"{row.n:,}", row.formula, row.conditions) for row in rows)
    print_table(("what", "points", "formula", "holds for"), cells, "points")
    if facts:
        error = facts["relative_error_of_a_gaussian_fit"]
        size = f"{error:.3g}" if math.isfinite(error) else f"infinite: needs {dim + 5} points"
        print(
            f"The data have {facts['n']:,} points in {dim} dimensions: "
            f"relative error of a fitted Gaussian: {size}"
        )
    print(CAVEAT)
    return 0


def info(what: str | None = None, *, header: bool | None = None, json: bool = False) -> int:
    """Describe a checkpoint, a data set, or this installation.

    Args:
        what: A checkpoint folder, or any data that `fit` accepts; by default the installation.
        header: Whether the first line of a .csv file holds names; detected by default.
        json: Print as JSON.
    """
    if what is None:
        refuse({"--header": header}, "is for a .csv file")
    facts = _installation() if what is None else _describe(what, header)
    if json:
        print_json(facts)
    else:
        columns = facts.pop("columns", "")
        for key, value in facts.items():
            print(f"{key:>16}  {value}")
        if isinstance(columns, dict):
            print_table(("column", "read as"), columns.items())
        elif columns:
            print(f"{'columns':>16}  {columns}")
    return 0


def _installation() -> dict[str, Any]:
    import platform
    from importlib.metadata import version

    import torch

    from ... import __version__

    packages = ("torch", "numpy", "scipy", "scikit-learn", "safetensors")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU only"
    return {"gradlogp": __version__} | {name: version(name) for name in packages} | {
        "python": platform.python_version(), "threads": torch.get_num_threads(), "device": device,
    }  # fmt: skip


def _describe(what: str, header: bool | None) -> dict[str, Any]:
    from ...learn import checkpoint as ckpt

    if is_checkpoint(what):
        refuse({"--header": header}, f"is for a .csv file, but {what} is a checkpoint")
        config = ckpt.read_config(what)
        run = ckpt.read_run(what)
        run.pop("history", None)
        facts = {k: v for k, v in config.items() if k != "extra"} | config["extra"] | run
        if "table" in config["extra"]:
            from ..tables import TableEstimator

            columns = TableEstimator.load(what).columns_
            facts = facts | {
                "table": len(columns),
                "columns": {c.name: c.describe() for c in columns},
            }
        return facts
    if is_table_file(what) and Path(what).is_file():
        return describe_table(what, header=header)
    found = load(what, header=header, quiet=True)
    return {
        "name": found.name, "samples": len(found.x), "event shape": tuple(found.x.shape[1:]),
        "columns": ", ".join(found.columns), "classes": ", ".join(found.classes),
        "mean": float(found.x.mean()), "std": float(found.x.std()), "notes": "; ".join(found.notes),
    }  # fmt: skip
