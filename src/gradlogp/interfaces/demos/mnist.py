"""Handwritten digits, 28×28, by class: bits per pixel, features of a classifier, copies."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...check.compare import compare
from ...check.metrics.features import Classifier
from ...core import Estimate, mean_and_error, proportion
from ...diffusion.likelihood import bits_per_dim, dequantise, log_likelihood
from ...learn import data, fit
from ...noise.schedules import Cosine
from ...scores.guided import GuidedScore
from ...scores.model import ScoreModel
from ...scores.networks import UNet
from ...show.plots import image_grid
from ...show.progress import bar
from ...show.report import Row, Section
from ..pipeline import draw
from .common import Outcome, feature_rows, finish, image_sections, train

STEPS = 1200
CHANNELS = (32, 64)
GENERATED = 500
SCORED = 100  # held-out images whose likelihood is computed
LEVELS = 256
GUIDED = 200  # digits drawn with guidance, which takes two calls of the network for one
GOAL = 0.6
LEAD = (
    "A class-conditional score learned from {n:,} handwritten digits of 28×28 pixels, in minutes "
    "on a CPU: a small network, trained briefly. Each row of new digits was requested by class."
)


def bits(
    model: ScoreModel, k: Tensor, labels: Tensor, g: torch.Generator, *, quiet: bool
) -> Tensor:
    """Return the bits per pixel of grey levels k given their classes, `(n,)`.

    For dequantised images, by the probability flow with one Hutchinson probe each.
    """
    y = dequantise(k, LEVELS, generator=g, like=model.like)
    with bar("likelihood", quiet=quiet) as update:
        found = log_likelihood(
            model.given(labels), y, divergence="hutchinson", n_steps=48, generator=g,
            progress=update,
        )  # fmt: skip
    return bits_per_dim(found.log_prob, k.shape[1:], LEVELS)


@torch.no_grad()
def guided(model: ScoreModel, labels: Tensor, weight: float, g: torch.Generator) -> Tensor:
    """Draw one image for each label by the flow of classifier-free guidance."""
    score = GuidedScore(model.given(labels), model.unconditional(), weight)
    return draw(score, len(labels), 16, generator=g, quiet=True)


def grey(y: Tensor) -> Tensor:
    """Return the grey levels 0 … 255 that the data has."""
    return (y * LEVELS).floor().clamp(0, LEVELS - 1)


def _accuracy(judge: Classifier, x: Tensor, labels: Tensor) -> Estimate:
    """Return the fraction of x that a classifier takes for what it should be."""
    return proportion(int((judge.predict(x.double()) == labels).sum()), len(labels))


def run(out: Path, *, seed: int = 0, steps: int = STEPS, quiet: bool = False) -> Outcome:
    """Learn the digits, generate new ones, and hold them and their likelihood against real ones."""
    began = time.perf_counter()
    g = torch.Generator().manual_seed(seed)
    digits = data.load("mnist")
    training, held = data.train_held_out(digits, 0.2, generator=g)
    assert training.labels is not None
    assert held.labels is not None
    network = UNet(training.x.shape[1:], CHANNELS, patch=2, condition=10, generator=g)
    model = ScoreModel(network, Cosine(), "v")
    records = fit(
        model, dequantise(training.x, LEVELS, generator=g, like=training.x), condition=training.labels,
        steps=steps, batch_size=64, ema=0.995, condition_dropout=0.1, standardize=True,
        held_out=dequantise(held.x, LEVELS, generator=g, like=held.x)[:256],
        held_out_condition=held.labels[:256], generator=g,
    )  # fmt: skip
    history = train(records, steps, quiet=quiet)
    labels = torch.arange(10).repeat_interleave(GENERATED // 10)
    samples = grey(draw(model.given(labels), len(labels), 16, generator=g, quiet=quiet))
    stronger = torch.arange(10).repeat_interleave(GUIDED // 10)
    pushed = grey(guided(model, stronger, 1.0, g))

    coded = bits(model, held.x[:SCORED], held.labels[:SCORED], g, quiet=quiet)
    half = len(training.x) // 2  # one half for the classifier, the other for what it has not seen
    judge = Classifier(training.x[:half], training.labels[:half], generator=g)
    asked = _accuracy(judge, samples, labels)
    real = _accuracy(judge, held.x, held.labels)
    rows_likelihood = [
        Row(
            "bits per pixel of held-out digits", *mean_and_error(coded),
            note=f"given the class; {len(coded)} digits, dequantised, 256 grey levels; noise alone: 8",
        ),
    ]  # fmt: skip
    rows_judge = [
        Row(
            "generated digits in the requested class", *asked, *real, verdict=asked.value >= GOAL,
            note="by a classifier of real ones; floor: its accuracy on held-out digits",
        ),
        Row(
            "the same with guidance, w = 1",
            *_accuracy(judge, pushed, stronger), *real,
            note=f"{len(pushed)} digits; clearer in class, but no longer the law of the data",
        ),
        *feature_rows(judge, samples, training.x[half:], held.x),
    ]  # fmt: skip
    comparison = compare(samples, held.x, training.x, baselines=False, generator=g)

    plain, led = (
        [(f"new {k}", x[of == k][:12]) for k in range(10)]
        for x, of in ((samples, labels), (pushed, stronger))
    )
    sections = [
        Section(
            "New digits",
            "Twelve of each class, as drawn, not selected; rounded to the 256 grey levels of the data.",
            (
                ("digits", "Generated digits, one row per class.", partial(image_grid, plain)),
                (
                    "guided",
                    "The same with classifier-free guidance, w = 1.",
                    partial(image_grid, led),
                ),
            ),
            tuple(rows_judge),
        ),
        Section(
            "How likely are unseen digits?",
            "The log-likelihood from the probability flow, as code length per pixel.",
            (),
            tuple(rows_likelihood),
        ),
        *image_sections(history, samples, training.x, held.x, comparison.rows),
    ]
    return finish(
        out, "MNIST: a class-conditional score of images", LEAD.format(n=len(training.x)), sections,
        began, seed, comparison, model, steps,
        data=f"{digits.name}: {len(training.x):,} to learn from, {len(held.x):,} held out",
    )  # fmt: skip
