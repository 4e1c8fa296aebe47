"""The commands that learn: demo and fit."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from ...learn.settings import TrainingSettings
from .common import (
    Misuse,
    Stopped,
    claim_output,
    class_names,
    generator_of,
    height_and_width,
    interruptible,
    load,
    positive,
    print_json,
    print_rows,
    refuse,
    say,
    set_threads,
    split_given,
    with_given,
)
from .tables import kinds_of, learn_table, split, table_to_learn

if TYPE_CHECKING:
    from ...core import Schedule

ScheduleName = Literal["auto", "ve", "edm", "vp", "sub-vp", "cosine", "rectified", "ddpm"]
Standardize = Literal["each", "one", "none"]
STANDARDIZE: dict[Standardize, bool | Literal["one"]] = {"each": True, "one": "one", "none": False}
WeightName = Literal["sigma2", "unweighted", "truncated-snr", "x0", "v", "min-snr", "likelihood"]


def demo(
    name: Literal["stars", "digits", "mnist", "mixture"] = "stars",
    *,
    out: Path = Path("reports"),
    steps: int | None = None,
    force: bool = False,
    seed: int = 0,
    threads: int = 1,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Learn a score from real data, sample with it, check it, and leave a report.

    Args:
        name: stars (Hipparcos, 2-D), digits (8×8 images by class), mnist (28×28, needs `pip
            install 'gradlogp[images]'`), or mixture (its exact score is known).
        out: Folder for the reports; this one is written to OUT/NAME.
        steps: Number of optimisation steps; by default that of the demonstration.
        force: Replace an existing report.
        seed: Random seed.
        threads: PyTorch threads. Small networks gain little from a second thread, and lose much on
            a busy machine.
        json: Print the numbers as JSON.
        quiet: No progress.
    """
    set_threads(threads)
    positive("--steps", steps)
    claim_output(out / name, force=force, folder=True)
    from .. import demos

    chosen: Any = getattr(demos, name)
    kwargs = {} if steps is None else {"steps": steps}
    result = chosen.run(out / name, seed=seed, quiet=quiet, **kwargs)
    if json:
        rows = [row._asdict() for row in result.rows]
        verdict = {"ok": result.verdict.ok, "reasons": result.verdict.reasons}
        print_json(
            {"report": result.report, "passed": result.passed, "samples": verdict, "rows": rows}
        )
    else:
        print_rows(result.rows)
        print(f"samples: {result.verdict}")
        print(f"report: {result.report}")
    return 0 if result.passed else 1


def fit(
    data: str,
    *,
    out: Path,
    columns: str | None = None,
    label: str | None = None,
    header: bool | None = None,
    table: bool | None = None,
    drop: str | None = None,
    as_: Annotated[list[str] | None, Parameter(name="--as")] = None,
    missing: str | None = None,
    class_conditional: bool | None = None,
    condition: str | None = None,
    settings: Annotated[TrainingSettings, Parameter(name="*")] = TrainingSettings(),  # noqa: B008
    width: int | None = None,
    depth: int | None = None,
    predicts: Literal["score", "epsilon", "x0", "v", "velocity"] = "v",
    schedule: ScheduleName = "auto",
    objective: Literal["denoising", "implicit", "sliced", "sliced-vr"] = "denoising",
    weight: WeightName = "sigma2",
    standardize: Standardize = "each",
    base: Literal["auto", "gaussian", "mixture", "none"] = "auto",
    held_out: float | None = None,
    size: str | None = None,
    start: Path | None = None,
    resume: bool = False,
    force: bool = False,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Learn the score of data and save a checkpoint. Ctrl-C and SIGTERM save; --resume continues.

    Several processes can train one model: `torchrun --nproc-per-node 4 -m -- gradlogp fit …`. Each
    works on its part of every batch; the result is the same for any number of processes, up to
    rounding.

    A file with column names, text, dates, missing values or separators other than commas is a
    table: all its columns are learned, and `sample` writes a new table with the same columns.
    Numbers without column names are learned as plain numbers, and so is any file with --label or
    --no-table, and a file of numbers with --condition.

    Args:
        data: A built-in set (stars, digits, moons, …), a table file (.csv, .tsv, .txt, also
            compressed as .gz, or .parquet), a .npy or .npz file, or a folder of images.
        out: Checkpoint folder.
        columns: Columns to use, separated by commas.
        label: Column with the class of each row; all others must be numbers.
        header: Whether the first line of a text file holds names; detected by default.
        table: Learn the whole table, or with --no-table plain numbers, which geometry,
            restore and chains need; detected by default.
        drop: Table columns to drop, separated by commas.
        as_: How to read a table column: column=number, date, category or name; may
            be repeated.
        missing: Texts that mean missing values, separated by commas, such as '?'.
        class_conditional: Learn one density for each class; with --no-class-conditional the column
            of --label is dropped.
        condition: Columns to condition on, separated by commas: the law of the others given these
            is learned. In a table they may be of any kind; all columns are still learned, and
            `sample` draws them too, or takes them from --given.
        settings: Training settings: each field is an option. If none is set, 4,000 rows or more of
            at most two columns are trained on for 1,000 steps of 1,024 rows at a rate of 0.01, and so
            is a network that learns a whole score beside a mixture, and that of a table if a short
            trial favours it; with --minutes alone for as many such steps as fit.
        width: Width of the network for vectors; by default 128, or 64 for 4,000 rows or more of at
            most two columns.
        depth: Number of its residual blocks, 3 by default.
        predicts: What the network predicts.
        schedule: Noise levels; auto chooses them from the data. ddpm has 1000 steps, β from 1e-4
            to 0.02, and no likelihood.
        objective: Denoising score matching; or, without added noise, implicit (the exact
            trace of the Jacobian), sliced, or sliced-vr (its trace from one random probe).
        weight: The weight of a score error at noise σ and signal α: sigma2 (σ², the same for all
            levels; of large images more for those of much noise), unweighted (1), truncated-snr,
            x0, v, min-snr, or likelihood (g²).
        standardize: Standardise to zero mean and unit variance, with one scale per
            column or channel, one for all, or not at all.
        base: What the network corrects: the noised score of a gaussian, of a mixture if held-out
            rows prefer it, or nothing; auto is mixture for vectors, gaussian with classes and for
            images, none for images of at most 512 entries. A mixture is not corrected, but only
            fallen back on, where a short trial favours it. For plain numbers only: a table with
            missing values has its own Gaussian base.
        held_out: Share of the data to hold out; by default a tenth, up to a quarter if there are
            few rows.
        size: Side, or height x width, to which the images of a folder are cropped and resized; by
            default all must have the same size.
        start: Checkpoint to start from, to continue training or to fine-tune on other data; its
            coordinates, noise levels and network are kept.
        resume: Continue from the checkpoint OUT; needs the same data, options and seed.
        force: Replace an existing checkpoint.
        seed: Random seed.
        device: cpu, cuda, cuda:1 or mps.
        threads: PyTorch threads.
        json: Print the result as JSON.
        quiet: No progress.
    """
    set_threads(threads)
    positive("--width", width)
    positive("--depth", depth)
    if held_out is not None and not 0 <= held_out < 1:
        raise Misuse(f"--held-out must lie in [0, 1), got {held_out}")
    rank = join_processes(device, quiet=quiet)
    quiet = quiet or rank > 0
    if rank == 0:
        claim_output(out, force=force or resume, folder=True)
    if condition is not None and (class_conditional or (label and class_conditional is None)):
        raise Misuse("--condition is for numbers and --label for classes: use one of them")
    kinds, dropped = kinds_of(as_), [] if drop is None else drop.split(",")
    frame = table_to_learn(
        data, table, label, header=header, drop=dropped, kinds=kinds, missing=missing,
        columns=columns, condition=condition, quiet=quiet,
    )  # fmt: skip
    conditional = label is not None if class_conditional is None else class_conditional
    dataset: Any = None
    y: Any = None
    if frame is not None:
        if start is not None or size is not None:
            option = "--start" if size is None else "--size"
            raise Misuse(f"{option} is for plain numbers and images, but {data} is a table")
        if base in ("gaussian", "mixture") and (objective, weight) == ("denoising", "sigma2"):
            raise Misuse(
                "--base is for plain numbers; a table with missing values always starts from its own "
                "Gaussian"
            )
        if conditional or (settings.condition_dropout > 0 and condition is None):
            raise Misuse(
                f"{data} is a table, which has no built-in classes: name a column with --label for "
                "--class-conditional, and columns with --condition for --condition-dropout"
            )
        if drop is not None:
            dropped = split(drop, list(frame.columns))
    else:
        sides = height_and_width(size)
        if sides is not None and not Path(data).is_dir():
            raise Misuse(f"--size is for folders of images, and {data} is not one")
        names = with_given(columns, condition)
        dataset = load(data, names, label, header=header, size=sides, quiet=quiet)
        dataset, y = split_given(dataset, condition)
    if dataset is not None and conditional and dataset.labels is None:
        raise Misuse(f"{data} has no classes; name a column with --label")
    if settings.condition_dropout > 0 and not conditional and condition is None:
        raise Misuse(
            "--condition-dropout drops conditions: use it with --class-conditional or --condition"
        )
    from ..estimator import ScoreEstimator
    from ..pipeline import suits_unet

    shape = {"width": width, "depth": depth}
    if dataset is not None and suits_unet(dataset.x.shape[1:]):
        of_vectors = {f"--{name}": value for name, value in shape.items()}
        refuse(of_vectors, "is for vectors; images and sequences use a U-Net")
    generator_of(seed)  # refuses what is no seed
    _check_device(device)
    with interruptible() as after_step:
        estimator = ScoreEstimator(
            settings=None if settings == TrainingSettings() else settings,
            predicts=predicts, base=base,
            standardize=STANDARDIZE[standardize], held_out_fraction=held_out,
            schedule=_schedule(schedule),
            objective=_objective(objective, weight),
            condition="values" if y is not None else "classes" if conditional else None,
            checkpoint=out, resume=resume, start=start, random_state=seed, device=device,
            callback=after_step, verbose=not quiet,
        )  # fmt: skip
        estimator.set_params(**{k: v for k, v in shape.items() if v is not None})
        try:
            if frame is not None:
                own = [] if condition is None else split(condition, list(frame.columns))
                estimator = learn_table(estimator, frame, dropped, kinds, own).estimator_
            else:
                estimator.fit(
                    dataset.x, class_names(dataset) if y is None else y, columns=dataset.columns,
                    condition_names=condition and list(dict.fromkeys(condition.split(","))),
                )  # fmt: skip
        except Stopped as stop:
            raise Stopped(stop.number, f"{out} is saved; continue with --resume") from None
    if rank > 0:
        return 0
    loss, n = estimator.held_out_loss_, len(dataset.x) if frame is None else len(frame)
    if json:
        print_json({
            "checkpoint": out, "held_out_loss": None if loss is None else loss._asdict(),
            "sigma_min": estimator.sigma_min_, "steps": estimator.n_iter_, "n": n,
        })  # fmt: skip
    else:
        held = "no rows held out" if loss is None else f"held-out loss {loss}"
        print(f"{out}: trained on {n} {'samples' if frame is None else 'rows'}, {held}")
    return 0


def _schedule(name: ScheduleName) -> Schedule | None:
    """Return a schedule, or None to have one chosen from the data."""
    import torch

    from ...noise.schedules import DDPM, EDM, VE, VP, Cosine, Rectified, SubVP

    known: dict[str, Any] = {
        "auto": lambda: None, "ve": VE, "edm": EDM, "vp": VP, "sub-vp": SubVP, "cosine": Cosine,
        "rectified": Rectified,
        "ddpm": lambda: DDPM(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
    }  # fmt: skip
    return known[name]()


def _objective(name: str, weight: WeightName) -> Any:
    """Return the loss of each sample, over all noise levels, times spread; None for the default."""
    from ...learn.objectives import implicit, multilevel, sliced, sliced_vr, weights
    from ...learn.objectives.denoising import noised

    if (name, weight) == ("denoising", "sigma2"):
        return None
    losses: dict[str, Any] = {
        "denoising": multilevel, "sliced": partial(noised, sliced),
        "sliced-vr": partial(noised, sliced_vr),
        "implicit": partial(noised, lambda score, x, generator: implicit(score, x)),
    }  # fmt: skip
    law = getattr(weights, weight.replace("-", "_"))
    return partial(losses[name], weight=law, stratified=True)


def _check_device(device: str) -> None:
    """Refuse a device that is unknown, or that this machine does not have."""
    from ...core import check_device

    try:
        check_device(device, "--device")
    except ValueError as error:
        raise Misuse(str(error)) from None


PATIENCE = 120.0
"""Seconds for which processes that are started by hand wait for one another."""

HOW = "start them with `torchrun --nproc-per-node 2 -m -- gradlogp fit …`, or unset WORLD_SIZE"


def join_processes(device: str, *, quiet: bool = False) -> int:
    """Join the processes that `torchrun` or a user has started; return the number of this one.

    Raises:
        ValueError: If the others cannot be reached, after `PATIENCE` at most.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    if size == "1":
        return 0
    import torch.distributed as dist

    if not dist.is_available():
        raise ValueError(f"WORLD_SIZE={size}, but this PyTorch has no torch.distributed; {HOW}")
    try:
        store, rank, n = _meet(quiet)
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=n)
    except (RuntimeError, ValueError, OSError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"WORLD_SIZE={size}, but no other process was found: {said}; {HOW}"
        ) from None
    atexit.register(dist.destroy_process_group)
    return dist.get_rank()


def _meet(quiet: bool) -> tuple[Any, int, int]:
    """Return the store through which processes find one another, the number of this one, and of all."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be set too")
    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    host, patience = os.environ["MASTER_ADDR"], timedelta(seconds=PATIENCE)
    if not dist.is_torchelastic_launched():  # else they have met already
        others = "one other process" if size == 2 else f"{size - 1} other processes"
        say(
            f"process {rank} of {size} waits for {others} at {host}:{port}, at most {PATIENCE:g} s",
            quiet=quiet,
        )
        if rank > 0:
            _wait_for(host, port)
    try:
        store, rank, size = next(rendezvous("env://", timeout=patience))
    except dist.DistStoreError:
        raise ValueError(f"{PATIENCE:g} s passed without the others at {host}:{port}") from None
    store.set_timeout(dist.default_pg_timeout)  # a later step may take longer
    return store, rank, size


def _wait_for(host: str, port: int) -> None:
    """Return once the first process can be reached."""
    import socket
    import time

    end = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                why = error.strerror or error
                raise ValueError(
                    f"{PATIENCE:g} s passed without process 0 at {host}:{port} ({why})"
                ) from None
            time.sleep(min(1.0, PATIENCE / 10))
