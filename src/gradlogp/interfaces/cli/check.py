"""The command that checks the theory: verify."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .common import Misuse, print_json, set_threads

if TYPE_CHECKING:
    from ...check.theory import Claim


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

    False statements that circulate are among the claims: they pass if they are shown false.

    Args:
        only: A part of the theory: matching, density, statistics, or a name such as
            statistics.weight_at_4.
        quick: A quarter of the random draws.
        seed: Another seed gives other draws.
        threads: PyTorch threads.
        json: Print a list of objects: claim, source, expected, measured, standard_error, verdict,
            statement.
        quiet: No progress.
    """
    set_threads(threads)
    from ...check.theory import CHECKS, select
    from ...check.theory import verify as run
    from ...show.progress import bar

    checks = CHECKS if only is None else select(only)
    if not checks:
        files = ", ".join(sorted({check.name.split(".")[0] for check in CHECKS}))
        raise Misuse(f"no check has {only!r} in its name; parts are {files}")
    claims = []
    with bar("verify", quiet=quiet) as progress:
        for claim in run(quick=quick, seed=seed, checks=checks):
            claims.append(claim)
            progress(len(claims), len(checks))
    failed = [c for c in claims if c.verdict == "fail"]
    if json:
        print_json([c._asdict() for c in claims])
    else:
        _print_claims(claims)
        refuted = sum(c.statement == "false" for c in claims)
        print(
            f"{len(claims) - len(failed)} of {len(claims)} claims pass, "
            f"{refuted} of them false statements shown false"
        )
    return 1 if failed else 0


def _print_claims(claims: list[Claim]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ...show.report import format_value

    table = Table("claim", "source", box=None, pad_edge=False)
    table.add_column("expected", justify="right", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for c in claims:
        shown = "✓ true" if c.statement == "true" else "✓ false, as shown"
        table.add_row(
            Text(c.claim), Text(c.source), format_value(c.expected),
            format_value(c.measured, c.standard_error),
            shown if c.verdict == "pass" else "✗ fail",
        )  # fmt: skip
    width = None if sys.stdout.isatty() else 150
    Console(width=width, highlight=False).print(table)
