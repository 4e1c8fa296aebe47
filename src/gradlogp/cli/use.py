"""The commands that use what was learned: sample and evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from .common import Misuse, load, positive, print_json, print_rows, say, set_threads
from .langevin import KernelName, sample_target

if TYPE_CHECKING:
    from torch import Tensor

    from ..core import Transition
    from ..estimator import ScoreEstimator

FORMATS = (".npy", ".npz", ".csv")
STEPS = {"flow": 32, "ancestral": 250, "langevin": 60}


def sample(
    checkpoint: Path | None = None,
    *,
    n: int = 1000,
    out: Path | None = None,
    klass: Annotated[str | None, Parameter(name="--class")] = None,
    method: Literal["flow", "ancestral", "langevin"] = "flow",
    steps: int | None = None,
    target: str | None = None,
    kernel: KernelName = "mala",
    step_size: float | None = None,
    chains: int = 100,
    burn_in: int | None = None,
    thin: int = 1,
    dim: int | None = None,
    spread: float = 1.0,
    seed: int = 0,
    threads: int | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Draw samples with a learned score, or from a density with --target.

    A learned score gives CSV on standard output, or a file. A density is sampled with Langevin
    dynamics, and a table says how well the chains have mixed.

    Args:
        checkpoint: Checkpoint folder.
        n: Number of samples.
        out: A .npy, .npz or .csv file. With --target .npz (draws and what the steps told) or .npy,
            and a picture of the chains beside it.
        klass: The class to draw, for a class-conditional model.
        method: Probability flow (Heun), DDPM ancestral, or annealed Langevin.
        steps: Noise levels to pass through; by default 32 for the flow, 250 for ancestral
            sampling and 60 of five Langevin steps each. With --target the steps of each chain,
            burn-in included, by default 2000.
        target: A name (`gradlogp targets` lists them), file.py:function, which is a log-density of a
            batch (B, D) that returns (B,), or a checkpoint folder, whose score at the lowest noise
            level is followed by kernels that need no density.
        kernel: Which one.
        step_size: h. Where it is not given it is adapted before the burn-in, for kernels that accept
            or reject, and for the others set to a bias of 5 % of the variance in the stiffest
            direction.
        chains: Chains, run together.
        burn_in: Steps dropped; half of them where not given.
        thin: Keep one draw in so many.
        dim: D, for a function from a file.
        spread: Standard deviation of the starting points, around 0.
        seed: Seed of the noise.
        threads: PyTorch threads.
        json: With --target, print the table as JSON.
        quiet: No progress.
    """
    set_threads(threads)
    positive("--n", n)
    positive("--steps", steps)
    if (checkpoint is None) == (target is None):
        raise Misuse("sample needs a checkpoint folder, or a density with --target, and not both")
    if target is not None:
        return sample_target(
            target, kernel=kernel, step_size=step_size, chains=chains, steps=steps or 2000,
            burn_in=burn_in, thin=thin, dim=dim, spread=spread, out=out, seed=seed, json=json,
            quiet=quiet,
        )  # fmt: skip
    assert checkpoint is not None
    if out is not None and out.suffix not in FORMATS:
        raise Misuse(f"cannot write {out}: use one of {', '.join(FORMATS)}")
    import torch

    from ..pipeline import generate
    from ..progress import bar
    from ..transitions import Ancestral, AnnealedLangevin, ProbabilityFlow

    estimator = _estimator(checkpoint)
    labels = _class(estimator, klass, n)
    transitions: dict[str, Transition] = {
        "flow": ProbabilityFlow(), "ancestral": Ancestral(), "langevin": AnnealedLangevin(),
    }  # fmt: skip
    with bar("sampling", quiet=quiet) as update:
        x = generate(
            estimator.model_, n, labels=labels, transition=transitions[method],
            n_steps=max(2, steps or STEPS[method]), progress=update,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
    _write(x, out, labels)
    if out is not None:
        say(f"{out}: {n} samples", quiet=quiet)
    return 0


def evaluate(
    checkpoint: Path,
    data: str,
    *,
    train: str | None = None,
    columns: str | None = None,
    label: str | None = None,
    n: int = 5000,
    likelihood: bool | None = None,
    seed: int = 0,
    threads: int | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Hold a learned score against data it has not seen; exit code 1 if a check fails.

    Args:
        checkpoint: Checkpoint folder.
        data: Held-out data.
        train: The data it was trained on: the floors and the memorisation check need it.
        columns: Columns to use, separated by commas.
        label: Column with the class of each row.
        n: Number of samples to draw.
        likelihood: Whether to compute the log-likelihood; by default up to 16 dimensions.
        seed: Seed of everything random.
        threads: PyTorch threads.
        json: Print the numbers as JSON.
        quiet: No progress.
    """
    set_threads(threads)
    positive("--n", n)
    import torch

    from ..core import choice
    from ..evaluation import compare, likelihood_row
    from ..pipeline import generate, log_density
    from ..progress import bar

    estimator = _estimator(checkpoint)
    held, model = load(data, columns, label, quiet=quiet), estimator.model_
    if held.x.shape[1:] != model.event_shape:
        raise Misuse(
            f"{data} has samples of shape {tuple(held.x.shape[1:])}, "
            f"the model of {tuple(model.event_shape)}"
        )
    training = None if train is None else load(train, columns, label, quiet=quiet).x
    g = torch.Generator().manual_seed(seed)
    labels, drawn = None, None
    if estimator.class_conditional:
        if held.labels is None:
            raise Misuse("the model is class-conditional: name the column of classes with --label")
        labels = held.labels
        drawn = labels[choice(torch.ones(len(labels)), n, g)]
    rows = []
    if likelihood or (likelihood is None and model.event_shape.numel() <= 16):
        with bar("log-likelihood", quiet=quiet) as update:
            values = log_density(model, held.x, labels=labels, progress=update)
        rows.append(likelihood_row("log-likelihood, nats a sample", values))
    with bar("sampling", quiet=quiet) as update:
        samples = generate(model, n, labels=drawn, generator=g, progress=update)
    rows += compare(samples, held.x, training, generator=g)
    if json:
        print_json([row._asdict() for row in rows])
    else:
        print_rows(rows)
    return 1 if any(row.verdict is False for row in rows) else 0


def _estimator(checkpoint: Path) -> ScoreEstimator:
    if not checkpoint.exists():
        raise Misuse(f"there is no checkpoint at {checkpoint}")
    from ..estimator import ScoreEstimator

    return ScoreEstimator.load(checkpoint)


def _class(estimator: ScoreEstimator, klass: str | None, n: int) -> Tensor | None:
    import torch

    if not estimator.class_conditional:
        if klass is not None:
            raise Misuse("--class was given, but the model knows no classes")
        return None
    known = [str(c) for c in estimator.classes_]
    if klass is None:
        return torch.arange(n) % len(known)
    if klass not in known:
        raise Misuse(f"unknown class {klass!r}; known: {', '.join(known)}")
    return torch.full((n,), known.index(klass))


def _write(x: Tensor, out: Path | None, labels: Tensor | None) -> None:
    """Write samples: rows of flattened samples as CSV, arrays as they are."""
    import sys

    import numpy as np

    if out is None or out.suffix == ".csv":
        np.savetxt(sys.stdout if out is None else out, x.flatten(1).numpy(), "%.7g", ",")
    elif out.suffix == ".npy":
        np.save(out, x.numpy())
    else:
        arrays = {"x": x.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
        np.savez(out, **arrays)  # type: ignore[arg-type]
