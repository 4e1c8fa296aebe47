"""What the demonstrations share: training with a progress bar, provenance, the result."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...check.compare import Comparison
from ...check.metrics.features import Classifier, frechet_distance
from ...core import NoisyScore, Verdict, neighbours
from ...diffusion.evolve import evolve
from ...diffusion.transitions import AnnealedLangevin
from ...learn import Step, checkpoint
from ...noise.grids import T_END
from ...scores.model import ScoreModel
from ...show.plots import Figure, image_grid, loss_curve
from ...show.progress import bar
from ...show.report import Row, Section, provenance, write


class Outcome(NamedTuple):
    """Where the report is, its rows, whether all goals were met, and the verdict on the samples."""

    report: Path
    rows: tuple[Row, ...]
    passed: bool
    verdict: Verdict


class History(NamedTuple):
    """The losses of a training run, for pictures."""

    steps: list[int]
    loss: list[float]
    held_out: tuple[list[int], list[float], list[float]]

    def draw(self, **options: Any) -> Figure:
        """Draw the loss curve."""
        held_out = self.held_out if self.held_out[0] else None
        return loss_curve(self.steps, self.loss, held_out=held_out, **options)


def train(records: Iterable[Step], total: int, *, quiet: bool) -> History:
    """Run a training to its end under a progress bar."""
    history, seen = History([], [], ([], [], [])), []
    with bar("learning", quiet=quiet) as update:
        note = ""
        for record in records:
            history.steps.append(record.step)
            seen.append(record)  # whose losses may still be on the device
            if record.held_out is not None:
                steps, values, errors = history.held_out
                steps.append(record.step)
                values.append(record.held_out.value)
                errors.append(record.held_out.standard_error)
                note = f"held-out loss {record.held_out}"
            update(record.step, total, note)
    history.loss.extend(record.loss for record in seen)
    return history


@torch.no_grad()
def annealed_paths(
    score: NoisyScore, n: int, *, generator: torch.Generator, levels: int = 60
) -> Tensor:
    """Return the states of an annealed Langevin run in data units, `(levels + 1, n, *event)`."""
    states: list[Tensor] = []
    end = evolve(
        AnnealedLangevin(n_steps=2, relative_step=0.1), score, n,
        torch.linspace(1, T_END, levels, dtype=torch.float64),
        generator=generator, callback=lambda z, t: states.append(score.coordinates.decode(z)),
    )  # fmt: skip
    return torch.stack([*states, end])


def feature_rows(judge: Classifier, samples: Tensor, real: Tensor, held: Tensor) -> list[Row]:
    """Return the Fréchet distance of features to held-out data, its floor, and the difference.

    Both use the same number of images, because fewer images give a larger distance. None of the
    real images was used to train the classifier, which distinguishes memorised images better.
    """
    n = min(len(samples), len(real))
    spread = torch.linspace(0, len(samples) - 1, n, dtype=torch.float64).round().long()
    reference = judge.features(held.double())
    ours = frechet_distance(judge.features(samples[spread].double()), reference)
    floor = frechet_distance(judge.features(real[:n].double()), reference)
    error = math.hypot(ours.standard_error, floor.standard_error)
    note = "last hidden layer of a small classifier; floor: as many real digits"
    return [
        Row("feature Fréchet distance to held-out data", *ours, *floor, note=note),
        Row("the same, minus its floor", ours.value - floor.value, error, 0.0),
    ]


def image_sections(
    history: History, samples: Tensor, training: Tensor, held: Tensor, rows: Iterable[Row]
) -> list[Section]:
    """Return what a report on images ends with: their nearest neighbours, and how they were learned."""
    shown = samples[:: len(samples) // 16][:16]
    near = training[neighbours(shown, training)[1][:, 0]]
    pictures = (("real", held[:16]), ("new", shown), ("nearest", near))
    pixels = training[0].numel()
    return [
        Section(
            "Are they copies?",
            "New digits above their nearest neighbours in the training set. The table compares the "
            "distances of samples and of real held-out digits to the training set.",
            (
                ("neighbours",
                 "Real held-out digits, new digits, and the training digits nearest to these.",
                 partial(image_grid, pictures)),
            ),
            tuple(rows),
        ),
        Section(
            "Learning",
            f"Denoising loss ½‖ε̂ − ε‖² summed over {pixels} pixels, over all noise levels.",
            (("loss", "Training loss and held-out loss of the averaged weights.", history.draw),),
        ),
    ]  # fmt: skip


def finish(
    out: Path, title: str, lead: str, sections: Sequence[Section], began: float, seed: int,
    comparison: Comparison, model: ScoreModel, steps: int, **facts: object,
) -> Outcome:  # fmt: skip
    """Write the model and the report with its provenance, and return the result.

    A demonstration passes if it reaches its own goals. The verdict on its samples does not count
    for this: it is part of the report, whatever it says.
    """
    rows = tuple(row for section in sections for row in section.rows)
    passed = all(row.verdict is not False for row in rows if row not in comparison.rows)
    checkpoint.save(out / "model", model)
    n_weights = sum(p.numel() for p in model.parameters())
    facts["noise"] = model.schedule
    facts["network"] = f"{type(model.network).__name__}, {n_weights:,} weights, {steps} steps"
    page = write(out, title, lead, sections, provenance(began, seed=seed, **facts))
    return Outcome(page, rows, passed, comparison.verdict)
