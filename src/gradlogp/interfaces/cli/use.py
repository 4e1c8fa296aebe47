"""The commands that use a learned score: sample and evaluate."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .common import (
    Method,
    Misuse,
    claim_output,
    generator_of,
    positive,
    refuse,
    say,
    set_threads,
    transition,
)
from .given import (
    PICTURED,
    Beside,
    class_labels,
    on_disk,
    picture_of,
    read_given,
    write_samples,
)
from .judge import conclude, nats, rank_into
from .langevin import KernelName, sample_target
from .learn import join_processes
from .loading import load_estimator, load_for
from .tables import (
    draw_table,
    ending,
    evaluate_tables,
    given_rows,
    holds_table,
    is_table_file,
    levels_of,
    numbers_of,
)

if TYPE_CHECKING:
    from ...core import NoisyScore


def sample(
    checkpoint: Path | None = None,
    *,
    n: int | None = None,
    out: Path | None = None,
    klass: Annotated[str | None, Parameter(name="--class")] = None,
    given: str | None = None,
    guidance: float = 0.0,
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

    Several processes can share the work for a learned score, and the first writes the samples:
    `torchrun --nproc-per-node 4 -m -- gradlogp sample …`.

    Samples of a learned score are written to a file, or as CSV to standard output; those of a
    table have the columns and the format of the training file. A density is sampled by chains,
    whose starting points, step sizes and metric are found in a warm-up. A table and a verdict say
    whether the draws can be trusted; if not, the exit code is 1, but the draws are written all the
    same.

    Args:
        checkpoint: Checkpoint folder.
        n: Number of samples; 1000 by default.
        out: The file to write, with a picture of the samples beside it: .npy, .npz or .csv; for a
            table .csv, .tsv, .csv.gz, .tsv.gz or .parquet; with --target .npz (draws, and what
            each step reported), .npy or .nc. The picture of a target shows the draws over their
            density in two dimensions, otherwise the chains over time.
        klass: The class to draw, for a class-conditional model. By default classes are drawn at
            their frequencies in the data, and the output contains the class of each row: in a
            column, or in the array labels.
        given: The condition to draw for, for a model trained with --condition: a=1.5,b=2, or a
            .csv file with these columns, where each row gets one sample, or --n samples; the
            output repeats the condition. Without --given a model trained with --condition-dropout
            draws from the law of all conditions together. For a table any columns can be given,
            with --condition or without: town=Bern,income=50000.
        guidance: How far to move away from what all conditions have in common; 0 draws from the
            law given the condition. It needs a model trained with --condition-dropout.
        method: The probability flow, solved by a predictor and corrector (flow, the default),
            Heun's method, an exponential multistep solver, DPM-Solver++, DDIM, or to a tolerance
            (adaptive); or DDPM's ancestral sampling, the reverse SDE, a predictor with Langevin
            corrections, EDM's churn, or annealed Langevin.
        steps: Number of noise levels. By default measured for flow, 32 for the other solvers, 64
            for churn, 100 for DDIM, the SDE and the corrector, 250 for ancestral sampling, and 60
            with five Langevin steps each for langevin.
        target: A name (`gradlogp targets` lists them); file.py:function, where the function is a
            log-density of a batch (B, D) that returns (B,), or the result of `as_target(...)` with
            its shapes and names; or a checkpoint folder, whose score at the lowest noise level is
            sampled by kernels that need no density. WARNING: a .py file is run, with all that is
            in it: name only files that you trust. Checkpoints and data files contain no code.
        draws: With --target, the number of draws per chain; 1000 by default.
        warmup: With --target, steps of the warm-up, which are dropped; 1000 by default.
        chains: With --target, the number of chains; 4 by default. A single chain is never judged
            ok.
        kernel: With --target, the kernel; HMC by default, or BAOAB if there is no log-density.
        step_size: Step size h for --kernel; then nothing is tuned. By default it is tuned in the
            warm-up for kernels that accept or reject, tuned by the energy for mclmc, and chosen
            for the others so that the bias is 5 % of the variance in the stiffest direction.
        dim: Number of dimensions D, for a function from a file.
        spread: Standard deviation of the starting points, 1 by default. Used if no log-density
            shows where to start, and with --kernel and --step-size. The starting points are around
            0; those of a checkpoint around the mean of its data, with spread in their standard
            deviations.
        burn_in: Refused, with the option that is meant.
        thin: Refused.
        force: Replace existing files.
        seed: Seed of the noise.
        threads: PyTorch threads.
        json: With --target, print table and verdict as JSON.
        quiet: No progress.
    """
    set_threads(threads)
    positive("--n", n)
    positive("--steps", steps)
    if (checkpoint is None) == (target is None):
        raise Misuse("sample needs a checkpoint folder or a density with --target, not both")
    of_chains = {
        "--draws": draws, "--warmup": warmup, "--chains": chains, "--kernel": kernel,
        "--step-size": step_size, "--dim": dim, "--spread": spread, "--json": json or None,
    }  # fmt: skip
    of_samples = {
        "--n": n, "--class": klass, "--given": given, "--guidance": guidance or None,
        "--method": method, "--steps": steps,
    }  # fmt: skip
    refuse(
        {"--burn-in": burn_in}, "does not exist: --warmup already drops the start of each chain"
    )
    refuse({"--thin": thin}, "does not exist: all --draws each chain are kept")
    if target is not None:
        refuse(
            of_samples,
            "is for a checkpoint sampled without --target; with --target, use --draws, "
            "--warmup (both per chain) and --chains",
        )
        return sample_target(
            target, draws=1000 if draws is None else draws, warmup=1000 if warmup is None else warmup,
            chains=4 if chains is None else chains, kernel=kernel, step_size=step_size, dim=dim,
            spread=spread, out=out, force=force, seed=seed, json=json, quiet=quiet,
        )  # fmt: skip
    assert checkpoint is not None
    refuse(of_chains, f"is for a density; write --target {checkpoint} to run chains on its score")
    method = method or "flow"
    table = holds_table(checkpoint)
    suffix, formats = ending(out, table=table)
    if out is not None and suffix not in formats:
        raise Misuse(f"cannot write {out}: use one of {', '.join(formats)}")
    if out is not None and not out.parent.is_dir():
        raise Misuse(f"cannot write {out}: there is no folder {out.parent}")
    picture = None if out is None else out.with_name(out.name.removesuffix(suffix) + ".png")
    rank = join_processes("cpu", quiet=quiet)
    if rank == 0:
        claim_output(out, picture, force=force)
    quiet = quiet or rank > 0
    g = generator_of(seed)
    import torch

    from ...core import Processes
    from ...core.files import replacing, write_files
    from ...scores.guided import GuidedScore
    from ..pipeline import draw

    processes = Processes.here()
    if table:
        processes.check_alone("tables are sampled")
        refuse(
            {"--class": klass},
            "was given, but a table model has no classes: use --given column=value",
        )
        from ..tables import TableEstimator
        from ..tables.forms import written

        learned = TableEstimator.load(checkpoint)
        rows = None if given is None else given_rows(given, learned, quiet=quiet)
        alone = given is None or not is_table_file(given)
        n = n or (1000 if alone else 1)
        if rows is not None:
            rows = rows.loc[rows.index.repeat(n)].reset_index(drop=True)
            n = len(rows)
        frame = draw_table(
            learned, n, g, method=method, steps=steps, given=rows, guidance=guidance, quiet=quiet
        )
        if out is None or picture is None:
            sys.stdout.write(written(frame).decode())
            return 0
        x, names = numbers_of(frame)
        write_files({out: written(frame, suffix), picture: picture_of([(method, x)], names)})
        say(f"{out}: {n} rows; {picture}", quiet=quiet)
        return 0
    estimator = load_estimator(checkpoint)
    if given is None:
        n, y = n or 1000, None
        condition, model = class_labels(estimator, klass, n, g), estimator.model_
        if condition is not None and klass is None:
            y = Beside(("class",), estimator.classes_[condition.numpy()].astype(str)[:, None])
    else:
        refuse({"--class": klass}, "is for classes, and --given for values")
        rows, model = read_given(estimator, given), estimator.model_
        condition = rows.repeat_interleave(n or (1000 if "=" in given else 1), 0)
        n, y = len(condition), None
        if "=" not in given:
            y = Beside(estimator.condition_names_, condition.numpy())
    if y is not None and out is not None and out.suffix == ".npy":
        raise Misuse(
            f"{out}: a .npy file cannot record which row has which condition; write .npz or .csv, "
            f"or draw for one condition with --class or --given"
        )
    score: NoisyScore = model.unconditional() if condition is None else model.given(condition)
    if guidance:
        if condition is None:
            more = "" if model.condition is None else ", and --given to guide towards"
            raise Misuse(f"--guidance needs a model with a condition{more}")
        score = GuidedScore(score, model.unconditional(), guidance)
    sampled = partial(
        draw, score, n, levels_of(estimator, method, steps), transition=transition(method),
        generator=g, quiet=quiet, processes=processes,
    )  # fmt: skip
    if out is not None and picture is not None and suffix == ".npy" and processes.alone:
        with replacing(out, picture) as (place, shown):
            like = model.coordinates.decode(torch.zeros(1, *model.event_shape))
            x = sampled(out=on_disk(place, (n, *model.event_shape), like))
            shown.write_bytes(picture_of([(method, x[:PICTURED])], model.columns))
        say(f"{out}: {n} samples; {picture}", quiet=quiet)
        return 0
    torch.empty(n, *model.event_shape)  # what the samples take: missed now, and not after the work
    x = sampled()
    if rank > 0:
        return 0
    if out is None or picture is None:
        write_samples(x, ".csv", model.columns, y, sys.stdout)
        return 0
    files: dict[Path, Any] = {
        out: partial(write_samples, x, suffix, model.columns, y),
        picture: picture_of([(method, x)], model.columns),
    }
    write_files(files)
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
    """Compare a learned score with unseen data; exit code 1 if its samples can be distinguished.

    Samples in a file can be judged too: `gradlogp evaluate new.csv real.csv`. With --rank nothing is
    drawn or judged: the rows of the data are written with their log-density, the least likely first.

    The tests cover columns, pairs, all columns together by a classifier, and, with --train, copies of
    training rows; classical estimators fitted to these are shown for comparison. A verdict says
    what failed.

    Args:
        checkpoint: Checkpoint folder, or a file of samples.
        data: Held-out data.
        train: The training data, which the floors and the memorisation check need.
        columns: Columns to use, separated by commas; by default those that the model learned. They
            are matched by name, in any order.
        label: Column with the class of each row.
        header: Whether the first line of a .csv file holds names; detected by default.
        n: Number of samples to draw; 5000 by default.
        rank: A file (.csv, .tsv, .csv.gz, .parquet) for the rows of the data, the least likely
            first, each with its row number in the data, log-density in nats, and rank. For tables
            the log-density is a lower bound; a row with a value that no training row had gets
            −inf, and the reason.
        likelihood: Whether to compute the log-likelihood; by default up to 16 dimensions, unless
            the schedule is a discrete ladder.
        probes: Estimate the divergence of the flow with this many random probes, for many
            dimensions; also with --rank.
        levels: The data are integers 0 … LEVELS − 1: report bits per dimension of dequantised
            data.
        out: A folder for a report: index.html, its pictures, and numbers.json.
        force: Replace an existing report.
        seed: Random seed.
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
            "--levels": levels,
        }
        refuse(
            of_samples | {"--likelihood": likelihood},
            "is for judging samples, and --rank draws none",
        )
        return rank_into(
            checkpoint, data, rank, columns, label, header=header, whole=whole, probes=probes,
            force=force, seed=seed, quiet=quiet,
        )  # fmt: skip
    if whole or (checkpoint.is_file() and is_table_file(checkpoint)):
        of_numbers = {"--label": label, "--probes": probes, "--levels": levels}
        refuse(of_numbers, "is for models of plain numbers, not of tables")
        if not whole:
            refuse({"--n": n}, "is for a checkpoint; from a file all samples are used")
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
    from ...diffusion import dequantise
    from ..pipeline import draw

    estimator = load_estimator(checkpoint)
    held, labels = load_for(estimator, data, columns, label, header=header, quiet=quiet)
    training = None
    if train is not None:
        training = load_for(estimator, train, columns, label, header=header, quiet=quiet)[0].x
    g, model, rows = generator_of(seed), estimator.model_, []
    drawn = None if labels is None else labels[choice(torch.ones(len(labels)), n, g)]
    if likelihood is False:
        refuse(
            {"--probes": probes, "--levels": levels},
            "is for the likelihood, and contradicts --no-likelihood",
        )
    asked = likelihood or probes is not None or levels is not None
    small, values = model.event_shape.numel() <= 16 and model.schedule.times is None, None
    if asked or (likelihood is None and small):
        x = held.x if levels is None else levels * dequantise(held.x, levels, generator=g) - 0.5
        values = nats(estimator, x, labels, probes, g, quiet=quiet)
        if levels is not None:  # x has cells of width 1 and y = (x + ½)/levels
            rows.append(likelihood_row("log-likelihood", values, "nats per dequantised row"))
            rows.append(bits_row(values, model.event_shape, levels))
    samples = draw(
        model if drawn is None else model.given(drawn), n, estimator.sample_levels(), generator=g,
        quiet=quiet,
    )  # fmt: skip
    comparison = compare(
        samples, held.x, training, names=held.columns or None, generator=g,
        log_prob=values if levels is None else None,
    )  # fmt: skip
    rows += comparison.rows
    facts = {"seed": seed, "checkpoint": checkpoint.name, "data": data}
    return conclude(comparison, rows, out, began, facts, json=json, quiet=quiet)
