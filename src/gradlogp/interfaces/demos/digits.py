"""Handwritten digits, 8×8, generated class by class, judged by a classifier."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ...check.compare import compare
from ...check.metrics.features import Classifier
from ...core import Estimate, proportion
from ...learn import data, fit
from ...show import strip
from ...show.plots import image_grid
from ...show.report import Row, Section
from ..pipeline import build_model, draw
from .common import Outcome, feature_rows, finish, image_sections, train

STEPS = 450
GENERATED = 1000
GOAL = 0.95
LEAD = (
    "A class-conditional score learned from {n:,} handwritten digits of 8×8 pixels. Each row of new "
    "digits was requested by class; none of them was in the data."
)


def _accuracy(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> Estimate:
    """Train a support vector machine on (x, y) and return its accuracy on the test set."""
    from sklearn.svm import SVC

    judge = SVC(C=10.0).fit(x.flatten(1).numpy(), y.numpy())
    right = judge.predict(x_test.flatten(1).numpy()) == y_test.numpy()
    return proportion(int(right.sum()), len(right))


def run(out: Path, *, seed: int = 0, steps: int = STEPS, quiet: bool = False) -> Outcome:
    """Learn the digits, generate new ones, and let a classifier judge them."""
    began = time.perf_counter()
    g = torch.Generator().manual_seed(seed)
    digits = data.load("digits")
    training, held = data.train_held_out(digits, 0.2, generator=g)
    assert training.labels is not None
    assert held.labels is not None
    model = build_model(training.x, condition=10, channels=(32, 64), generator=g)
    records = fit(
        model, training.x, condition=training.labels, steps=steps, batch_size=128, warm_up=100,
        standardize=True, held_out=held.x, held_out_condition=held.labels, generator=g,
    )  # fmt: skip
    history = train(records, steps, quiet=quiet)
    labels = torch.arange(10).repeat_interleave(GENERATED // 10)
    samples = draw(model.given(labels), len(labels), 12, generator=g, quiet=quiet)
    samples = samples.round().clamp(0, 16)  # the grey levels that the data has

    real = _accuracy(training.x, training.labels, held.x, held.labels)
    fake = _accuracy(samples, labels, held.x, held.labels)
    asked = _accuracy(training.x, training.labels, samples, labels)
    half = len(training.x) // 2  # for the classifier; the other half it has not seen
    g_judge = torch.Generator().manual_seed(seed + 1)
    judge = Classifier(training.x[:half], training.labels[:half], generator=g_judge)
    rows_judge = [
        Row(
            "trained on generated, tested on real", *fake, *real, verdict=fake.value >= GOAL,
            note="accuracy on held-out digits; floor: trained on real ones",
        ),
        Row(
            "trained on real, tested on generated", *asked,
            note="fraction of generated digits in the requested class",
        ),
        *feature_rows(judge, samples, training.x[half:], held.x),
    ]  # fmt: skip
    comparison = compare(samples, held.x, training.x, baselines=False, generator=g)

    grid = [(f"new {k}", samples[labels == k][:12]) for k in range(10)]
    sections = [
        Section(
            "New digits",
            "Twelve of each class, as drawn, not selected; rounded to the 17 grey levels of the data.",
            (("digits", "Generated digits, one row per class.", partial(image_grid, grid)),),
            tuple(rows_judge),
        ),
        Section(
            "Noised and denoised",
            "Held-out digits with more and more noise, and below them the mean of all digits of their "
            "class that could explain it. Sampling follows these means level by level.",
            pages=(
                (
                    "levels",
                    "Held-out digits at all noise levels, denoised by the learned score.",
                    partial(
                        strip,
                        model.given(held.labels[:8]),
                        held.x[:8],
                        title="Digits, noised and denoised",
                        generator=g,
                    ),
                ),
            ),
        ),
        *image_sections(history, samples, training.x, held.x, comparison.rows),
    ]
    return finish(
        out, "Digits: a class-conditional score of images", LEAD.format(n=len(training.x)), sections,
        began, seed, comparison, model, steps,
        data=f"{digits.name}: {len(training.x):,} to learn from, {len(held.x):,} held out",
    )  # fmt: skip
