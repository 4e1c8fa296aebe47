"""The commands that use what was learned: sample and evaluate."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import IO, TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .common import (
    Misuse,
    claim_output,
    class_names,
    generator_of,
    is_checkpoint,
    load,
    positive,
    refuse,
    say,
    set_threads,
)
from .judge import conclude, rank_into
from .langevin import KernelName, sample_target
from .methods import STEPS, Method, transition
from .tables import (
    draw_table,
    ending,
    evaluate_tables,
    holds_table,
    is_table_file,
    numbers_of,
    refuse_table,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ...learn.data import Dataset
    from ..estimator import ScoreEstimator


def sample(
    checkpoint: Path | None = None,
    *,
    n: int | None = None,
    out: Path | None = None,
    klass: Annotated[str | None, Parameter(name="--class")] = None,
    method: Method | None = None,
    steps: int | None = None,
    target: str | None = None,
    draws: int | None = None,
    warmup: int | None = None,
    chains: int | None = None,
    kernel: KernelName | None = None,
    step_size: float | None = None,
    dim: int | None = None,
    spread: float | None = None,
    burn_in: Annotated[int | None, Parameter(show=False)] = None,
    thin: Annotated[int | None, Parameter(show=False)] = None,
    force: bool = False,
    seed: int = 0,
    threads: int | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Draw samples with a learned score, or from a density with --target.

    A learned score gives CSV on standard output, or a file; that of a table a table with the same
    columns, written like the one learned from. A density is sampled by chains: where
    they start, step sizes and metric are found in a warm-up. A table and a verdict say whether the
    draws can be trusted; if not, the exit code is 1, and the draws are written all the same.

    Args:
        checkpoint: Checkpoint folder.
        n: Number of samples; 1000 by default.
        out: A .npy, .npz or .csv file, of a table .csv, .tsv, .csv.gz, .tsv.gz or .parquet, and a
            picture of the samples beside it. With --target .npz
            (draws, and what each step reported), .npy or .nc, and a picture: the draws over their
            density in two dimensions, else the chains over time.
        klass: The class to draw, for a class-conditional model.
        method: The probability flow by Heun's method (flow, the default), by an exponential
            multistep solver, by DPM-Solver++, by DDIM or to a tolerance (adaptive); DDPM's ancestral
            sampling, the reverse SDE, a predictor with Langevin corrections, EDM's churn; annealed
            Langevin.
        steps: Noise levels to pass through; by default 32 for the flow and the solvers, 64 for
            churn, 100 for DDIM, the SDE and the corrector, 250 for ancestral sampling, and 60 of
            five Langevin steps each.
        target: A name (`gradlogp targets` lists them), file.py:function, which is a log-density of a
            batch (B, D) that returns (B,), or an `as_target(...)` with its shapes and names; or a
            checkpoint folder, whose score at the lowest noise level is followed by kernels that need
            no density. WARNING: a .py file is run, with all that is in it: name only files that you
            trust. Checkpoints and data files hold no code.
        draws: With --target, draws of each chain; 1000 by default.
        warmup: With --target, steps of the warm-up, which are dropped; 1000 by default.
        chains: With --target, the number of chains; 4 by default. One alone is never judged to be ok.
        kernel: With --target, another kernel than HMC (BAOAB where there is no log-density).
        step_size: h, with --kernel: then nothing is tuned. By default tuned in the warm-up, for
            kernels that accept or reject; for mclmc by its energy; and for the others set to a bias
            of 5 % of the variance in the stiffest direction.
        dim: D, for a function from a file.
        spread: Standard deviation of the starting points, around 0, where no log-density shows where
            to start: of a checkpoint, around the mean of its data and in their standard deviations,
            and with --kernel and --step-size. 1 by default.
        burn_in: Refused, with the option that is meant.
        thin: Refused.
        force: Replace files that are there.
        seed: Seed of the noise.
        threads: PyTorch threads.
        json: With --target, print table and verdict as JSON.
        quiet: No progress.
    """
    set_threads(threads)
    positive("--n", n)
    positive("--steps", steps)
    if (checkpoint is None) == (target is None):
        raise Misuse("sample needs a checkpoint folder, or a density with --target, and not both")
    of_chains = {
        "--draws": draws, "--warmup": warmup, "--chains": chains, "--kernel": kernel,
        "--step-size": step_size, "--dim": dim, "--spread": spread, "--json": json or None,
    }  # fmt: skip
    of_samples = {"--n": n, "--class": klass, "--method": method, "--steps": steps}
    refuse({"--burn-in": burn_in}, "does not exist: --warmup is what is dropped of each chain")
    refuse({"--thin": thin}, "does not exist: all --draws of each chain are kept")
    if target is not None:
        refuse(
            of_samples,
            "is for a checkpoint that is sampled without --target; with it, give --draws and "
            "--warmup (of each chain) and --chains",
        )
        return sample_target(
            target, draws=1000 if draws is None else draws, warmup=1000 if warmup is None else warmup,
            chains=4 if chains is None else chains, kernel=kernel, step_size=step_size, dim=dim,
            spread=spread, out=out, force=force, seed=seed, json=json, quiet=quiet,
        )  # fmt: skip
    assert checkpoint is not None
    refuse(of_chains, f"is for a density; write --target {checkpoint} to run chains on its score")
    n, method = n or 1000, method or "flow"
    table = holds_table(checkpoint)
    suffix, formats = ending(out, table=table)
    if out is not None and suffix not in formats:
        raise Misuse(f"cannot write {out}: use one of {', '.join(formats)}")
    if out is not None and not out.parent.is_dir():
        raise Misuse(f"cannot write {out}: there is no folder {out.parent}")
    picture = None if out is None else out.with_name(out.name.removesuffix(suffix) + ".png")
    claim_output(out, picture, force=force)
    g = generator_of(seed)
    import torch

    from ...core.files import write_files
    from ..pipeline import draw

    levels = max(2, steps or STEPS[method])
    if table:
        refuse({"--class": klass}, "was given, but a table has no classes")
        from ..tables.forms import written

        frame = draw_table(checkpoint, n, levels, transition(method), g, quiet=quiet)
        if out is None or picture is None:
            sys.stdout.write(written(frame).decode())
            return 0
        x, names = numbers_of(frame)
        write_files({out: written(frame, suffix), picture: _picture([(method, x)], names)})
        say(f"{out}: {n} rows; {picture}", quiet=quiet)
        return 0
    estimator = load_estimator(checkpoint)
    labels, model = class_labels(estimator, klass, n), estimator.model_
    torch.empty(n, *model.event_shape)  # what the samples take: missed now, and not after the work
    x = draw(
        model if labels is None else model.given(labels), n, levels,
        transition=transition(method), generator=g, quiet=quiet,
    )  # fmt: skip
    if out is None or picture is None:
        _write(x, ".csv", labels, sys.stdout)
        return 0
    drawn = _picture([(method, x)], model.columns)
    write_files({out: partial(_write, x, suffix, labels), picture: drawn})
    say(f"{out}: {n} samples; {picture}", quiet=quiet)
    return 0


def evaluate(
    checkpoint: Path,
    data: str,
    *,
    train: str | None = None,
    columns: str | None = None,
    label: str | None = None,
    header: bool | None = None,
    n: int | None = None,
    rank: Path | None = None,
    likelihood: bool | None = None,
    probes: int | None = None,
    levels: int | None = None,
    out: Path | None = None,
    force: bool = False,
    seed: int = 0,
    threads: int | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Hold a learned score against data it has not seen; exit code 1 if its samples can be told apart.

    Samples in a file are judged likewise: `gradlogp evaluate new.csv real.csv`. With --rank nothing is
    drawn or judged: the rows of the data are written with their log-density, the least likely first.

    Looked at are columns, pairs, all columns together by a classifier, and, with --train, copies of
    training rows; classical estimators fitted to these stand beside. A verdict says what failed.

    Args:
        checkpoint: Checkpoint folder, or a file of samples.
        data: Held-out data.
        train: The data it was trained on: the floors and the memorisation check need it.
        columns: Columns to use, separated by commas.
        label: Column with the class of each row.
        header: Whether the first line of a .csv file is names; by default it is looked at.
        n: Number of samples to draw; 5000 by default.
        rank: A file (.csv, .tsv, .csv.gz, .parquet) for the rows of the data, the least likely first,
            each with its number in the data, log-density in nats, and rank. Of tables the
            log-density is a lower bound; what no row learned from had has −inf, and the reason.
        likelihood: Whether to compute the log-likelihood; by default up to 16 dimensions, where the
            schedule is no discrete ladder.
        probes: Estimate its divergence with so many random probes, as many dimensions need.
        levels: The data are integers 0 … LEVELS − 1: report bits per dimension, of dequantised data.
        out: A folder for a report: index.html, its pictures, and numbers.json.
        force: Replace a report that is there.
        seed: Seed of everything random.
        threads: PyTorch threads.
        json: Print the numbers as JSON.
        quiet: No progress.
    """
    began = perf_counter()
    set_threads(threads)
    for option, value in (("--n", n), ("--probes", probes)):
        positive(option, value)
    if levels is not None and levels < 2:
        raise Misuse(f"--levels must be at least 2, got {levels}")
    if out is not None and (out.suffix or out.is_file()):
        raise Misuse(f"--out must be a folder for the report, got {out}")
    claim_output(out, force=force, folder=True)
    whole = holds_table(checkpoint)
    if rank is not None:
        of_samples = {
            "--n": n,
            "--train": train,
            "--out": out,
            "--probes": probes,
            "--levels": levels,
        }
        refuse(
            of_samples | {"--likelihood": likelihood}, "is for judging samples; --rank draws none"
        )
        return rank_into(
            checkpoint, data, rank, columns, label, header=header, whole=whole, force=force, seed=seed,
            quiet=quiet,
        )  # fmt: skip
    if whole or (checkpoint.is_file() and is_table_file(checkpoint)):
        of_numbers = {"--label": label, "--probes": probes, "--levels": levels}
        refuse(of_numbers, "is for models of numbers, not for tables")
        if not whole:
            refuse({"--n": n}, "is for a checkpoint; of a file all samples are looked at")
        found, all_rows = evaluate_tables(
            checkpoint, data, train=train, columns=columns, header=header, n=n or 5000,
            likelihood=likelihood, seed=seed, quiet=quiet,
        )  # fmt: skip
        facts = {"seed": seed, "checkpoint": checkpoint.name, "data": data}
        return conclude(found, all_rows, out, began, facts, json=json, quiet=quiet)
    n = n or 5000
    import torch

    from ...check.compare import bits_row, compare, likelihood_row
    from ...core import choice
    from ...diffusion import dequantise, log_likelihood
    from ...show.progress import bar
    from ..pipeline import CHUNK, draw

    estimator = load_estimator(checkpoint)
    held, labels = load_for(estimator, data, columns, label, header=header, quiet=quiet)
    training = None
    if train is not None:
        training = load_for(estimator, train, columns, label, header=header, quiet=quiet)[0].x
    g, model, rows = generator_of(seed), estimator.model_, []
    drawn = None if labels is None else labels[choice(torch.ones(len(labels)), n, g)]
    if likelihood is False:
        refuse(
            {"--probes": probes, "--levels": levels}, "is for the likelihood, not --no-likelihood"
        )
    asked = likelihood or probes is not None or levels is not None
    small, values = model.event_shape.numel() <= 16 and model.schedule.times is None, None
    if asked or (likelihood is None and small):
        x = held.x if levels is None else levels * dequantise(held.x, levels, generator=g) - 0.5
        with bar("log-likelihood", quiet=quiet) as update:
            values = log_likelihood(
                model if labels is None else model.given(labels), x,
                divergence="exact" if probes is None else "hutchinson", n_probes=probes or 1,
                n_steps=estimator.n_likelihood_steps, generator=g, chunk_size=CHUNK, progress=update,
            ).log_prob  # fmt: skip
        if levels is not None:  # x has cells of width 1 and y = (x + ½)/levels
            rows.append(likelihood_row("log-likelihood", values, "nats a dequantised row"))
            rows.append(bits_row(values, model.event_shape, levels))
    samples = draw(
        model if drawn is None else model.given(drawn), n, estimator.n_sample_steps, generator=g,
        quiet=quiet,
    )  # fmt: skip
    comparison = compare(
        samples, held.x, training, names=held.columns or None, generator=g,
        log_prob=values if levels is None else None,
    )  # fmt: skip
    rows += comparison.rows
    facts = {"seed": seed, "checkpoint": checkpoint.name, "data": data}
    return conclude(comparison, rows, out, began, facts, json=json, quiet=quiet)


def load_estimator(checkpoint: Path) -> ScoreEstimator:
    """Load a checkpoint; a missing one is misuse."""
    if not (checkpoint.exists() or is_checkpoint(checkpoint)):
        raise Misuse(f"there is no checkpoint at {checkpoint}")
    from ..estimator import ScoreEstimator

    refuse_table(checkpoint)
    return ScoreEstimator.load(checkpoint)


def load_for(
    estimator: ScoreEstimator,
    data: str,
    columns: str | None,
    label: str | None,
    *,
    header: bool | None = None,
    quiet: bool,
) -> tuple[Dataset, Tensor | None]:
    """Load data that a model knows, and the numbers that it gave their classes, by name."""
    import torch

    found, shape = (
        load(data, columns, label, header=header, quiet=quiet),
        estimator.model_.event_shape,
    )
    if found.x.shape[1:] != shape:
        raise Misuse(
            f"{data} has samples of shape {tuple(found.x.shape[1:])}, the model of {tuple(shape)}"
        )
    if not estimator.class_conditional:
        return found, None
    if found.labels is None:
        raise Misuse("the model is class-conditional: name the column of classes with --label")
    known, names = [str(c) for c in estimator.classes_], class_names(found).tolist()
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(
            f"the model knows the classes {', '.join(known)}, the data also {', '.join(unknown)}"
        )
    return found, torch.tensor([known.index(name) for name in names])


def class_labels(estimator: ScoreEstimator, klass: str | None, n: int) -> Tensor | None:
    """Return n labels of one class, or of all in turn; None for a model without classes."""
    import torch

    from ...core import nearest

    if not estimator.class_conditional:
        if klass is not None:
            raise Misuse("--class was given, but the model knows no classes")
        return None
    known = [str(c) for c in estimator.classes_]
    if klass is None:
        return torch.arange(n) % len(known)
    if klass not in known:
        raise Misuse(f"unknown class {klass!r}{nearest(klass, known)}")
    return torch.full((n,), known.index(klass))


def _picture(sets: list[tuple[str, Tensor]], names: Sequence[str] = ()) -> bytes:
    """Return a picture of samples."""
    from ...show.plots import png
    from ...show.plots.samples import samples

    return png(samples(sets, names=names))


def _write(x: Tensor, suffix: str, labels: Tensor | None, file: IO[Any]) -> None:
    """Write samples: rows of flattened samples as CSV, arrays as they are."""
    import numpy as np

    if suffix == ".csv":
        np.savetxt(file, x.flatten(1).numpy(), "%.7g", ",")
    elif suffix == ".npy":
        np.save(file, x.numpy())
    else:
        arrays = {"x": x.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
        np.savez(file, **arrays)  # type: ignore[arg-type]
