"""The output of `evaluate`: a report and a verdict, or rows by their log-density."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import Misuse, claim_output, generator_of, print_json, print_rows, refuse, say
from .loading import load_estimator, load_for
from .tables import ending, rank_rows

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ...check.compare import Comparison
    from ...show.report import Row
    from ..estimator import ScoreEstimator


def conclude(
    comparison: Comparison, rows: list[Row], out: Path | None, began: float, facts: dict[str, Any],
    *, json: bool, quiet: bool,
) -> int:  # fmt: skip
    """Write the report of an evaluation, print its rows and the verdict; return the exit code."""
    from ...show.report import provenance

    if out is not None:
        _report(out, provenance(began, **facts), comparison, rows, quiet=quiet)
    verdict = comparison.verdict
    if json:
        table = [row._asdict() for row in rows]
        print_json({"ok": verdict.ok, "reasons": verdict.reasons, "rows": table})
    else:
        print_rows(rows)
        print(verdict)
    if not verdict.ok:
        more = len(verdict.reasons) - 1
        say(f"not ok: {verdict.reasons[0]}" + f" (and {more} more)" * bool(more))
    return 0 if verdict.ok else 1


def nats(
    estimator: ScoreEstimator, x: Tensor, labels: Tensor | None, probes: int | None, g: Generator, *,
    quiet: bool,
) -> Tensor:  # fmt: skip
    """Return the log-density of rows, given their labels, `(n,)`."""
    from ...diffusion import log_likelihood
    from ...show.progress import bar
    from ..pipeline import chunk_of

    model = estimator.model_
    with bar("log-likelihood", quiet=quiet) as update:
        return log_likelihood(
            model if labels is None else model.given(labels), x,
            divergence="exact" if probes is None else "hutchinson", n_probes=probes or 1,
            n_steps=estimator.likelihood_steps(), chunk_size=chunk_of(model, len(x)), generator=g,
            progress=update,
        ).log_prob  # fmt: skip


def rank_into(
    checkpoint: Path, data: str, out: Path, columns: str | None, label: str | None, *,
    header: bool | None, whole: bool, probes: int | None, force: bool, seed: int, quiet: bool,
) -> int:  # fmt: skip
    """Write the rows of the data with their log-density, the least likely first."""
    suffix, formats = ending(out, table=True)
    if suffix not in formats:
        raise Misuse(f"cannot write {out}: use one of {', '.join(formats)}")
    claim_output(out, force=force)
    from ...core.files import write_files
    from ..tables.forms import written

    g = generator_of(seed)
    if whole:
        refuse({"--probes": probes}, "is for models of plain numbers, not of tables")
        refuse(
            {"--columns": columns, "--label": label},
            "is not for tables, which are always modelled in full",
        )
        found = rank_rows(checkpoint, data, header, seed, quiet=quiet)
    else:
        from ..tables.frames import numbers, ranked

        estimator = load_estimator(checkpoint)
        held, labels = load_for(estimator, data, columns, label, header=header, quiet=quiet)
        values = nats(estimator, held.x, labels, probes, g, quiet=quiet)
        found = ranked(numbers(held.x, held.columns), values.numpy())
    write_files({out: written(found, suffix)})
    say(f"{out}: {len(found)} rows, the least likely first", quiet=quiet)
    return 0


def _report(
    out: Path, facts: dict[str, str], comparison: Comparison, rows: list[Row], *, quiet: bool
) -> None:
    """Write the report of an evaluation."""
    from ...check.pages import sections
    from ...show.report import Section, write

    ok = comparison.verdict.ok
    lead = f"Samples of {facts['checkpoint']} compared with {facts['data']}: " + (
        "no test can distinguish them." if ok else "they can be distinguished."
    )
    own = tuple(row for row in rows if row not in comparison.rows)
    parts = sections(comparison)
    parts += [Section("Likelihood of held-out rows", rows=own)] if own else []
    page = write(out, f"Evaluation of {facts['checkpoint']}", lead, parts, facts)
    say(f"report: {page}", quiet=quiet)
