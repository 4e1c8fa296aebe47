"""A comparison as the sections of a report: worst columns first, then all looks."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..core import neighbours
from ..show.plots import (
    bars,
    correlation_matrices,
    histograms,
    image_grid,
    scatter_pair,
    shares,
)
from ..show.report import Row, Section
from .compare import KINDS, Comparison

SHOWN = 9
"""Columns with a histogram."""

MOST_SHARES, MOST_USED, MOST_NEIGHBOURS = 24, 15, 2000


def sections(c: Comparison) -> list[Section]:
    """Return the sections of a report on a comparison.

    Columns are sorted by their smallest p-value; the pair is the one that differs most; the
    importance for the classifier is how far its area falls when a column is shuffled.
    """
    found = [_verdict(c)]
    if c.view.image:
        found.append(_images(c))
    if c.view.names:
        found.append(_columns(c))
    if (rates := _shares(c)) is not None:
        found.append(rates)
    if c.pairs is not None:
        found.append(_pairs(c))
    found.append(_classifier(c))
    if "train" in c.view.points:
        found.append(_memory(c))
    return found


def _rows(c: Comparison, *kinds: str) -> tuple[Row, ...]:
    titles = {KINDS[kind].title for kind in kinds}
    return tuple(row for row in c.rows if row.name in titles)


def _verdict(c: Comparison) -> Section:
    judged = {kind.title for kind in KINDS.values()}
    beside = tuple(row for row in c.rows if row.name not in judged)
    head = "No test found a fault in the samples." if c.verdict.ok else "Not ok."
    text = "\n\n".join([head, *(f"• {reason}." for reason in c.verdict.reasons)])
    return Section("Verdict", text, rows=beside)


def _images(c: Comparison) -> Section:
    shape = c.view.event_shape
    assert shape is not None
    sets = [
        (title, c.view.joint[key][:32].unflatten(1, shape))
        for title, key in (("samples", "samples"), ("real (held out)", "held_out"))
    ]
    fits = len(shape) == 3 and shape[0] in (1, 3)
    figures = (("images", "Samples, and real images.", partial(image_grid, sets)),) if fits else ()
    return Section("Images", "As drawn, not selected.", figures)


def _columns(c: Comparison) -> Section:
    looks = {look.kind: look for look in c.looks}
    kinds = [k for k in ("location", "scale", "shape") if k in looks]
    p = torch.stack([looks[k].effects.p_value for k in kinds]).amin(0)
    order = p.argsort()[:SHOWN].tolist()
    v = c.view
    pairs = [(v.names[j], v.columns["samples"][:, j], v.columns["held_out"][:, j]) for j in order]
    text = (
        "Columns with the smallest p-value first. Values outside the range of real rows are "
        "counted in the end bins."
    )
    caption = f"{len(order)} of {len(v.names)} columns: samples over held-out rows."
    figure = ("columns", caption, partial(histograms, pairs))
    rows = _rows(c, "location", "scale", "shape", "values", "range", "missing")
    return Section("Columns", text, (figure,), rows)


def _shares(c: Comparison) -> Section | None:
    v = c.view
    names = v.joint_names[len(v.names) :]
    if v.image or not names:
        return None
    ours, real = (
        v.weights[key] @ v.joint[key][:, len(v.names) :] for key in ("samples", "held_out")
    )
    order = (ours - real).abs().argsort(descending=True)[:MOST_SHARES].tolist()
    draw = partial(shares, [names[i] for i in order], ours[order], real[order])
    figure = ("shares", "Shares of rows, largest difference first.", draw)
    return Section("Categories and holes", "", (figure,), _rows(c, "classes", "missing"))


def _pairs(c: Comparison) -> Section:
    v, pairs = c.view, c.pairs
    assert pairs is not None
    d = len(v.names) if len(v.names) > 1 else len(v.joint_names)  # of numbers, if there are two
    a, b = torch.triu_indices(d, d, offset=1)
    worst = int(pairs.p_value[a, b].argmin())
    i, j = int(a[worst]), int(b[worst])
    names = (v.joint_names[i], v.joint_names[j])
    two = lambda key: v.joint[key][:, [i, j]]
    figures = (
        ("worst-pair", f"The pair whose correlation differs most: {names[0]} and {names[1]}.",
         partial(scatter_pair, two("held_out"), two("samples"), names=names)),
        ("correlations", "Correlations of normal scores of ranks.",
         partial(correlation_matrices, v.joint_names, pairs.x, pairs.y)),
    )  # fmt: skip
    return Section(
        "Pairs", "", figures, _rows(c, "pairs", "direction location", "direction scale")
    )


def _classifier(c: Comparison) -> Section:
    order = c.distinction.importance.argsort(descending=True)[:MOST_USED].tolist()
    draw = partial(
        bars, [c.features[i] for i in order], c.distinction.importance[order],
        label="drop in the area under the curve when this column is shuffled",
    )  # fmt: skip
    text = (
        "Gradient-boosted trees learn to distinguish samples from real rows, and are tested on "
        "other rows. They see "
        "all columns, and linear combinations along the axes of real rows. An area of ½ means "
        "that they cannot."
    )
    figure = ("classifier", "What the classifier used, on rows it had not seen.", draw)
    return Section("All columns together", text, (figure,), _rows(c, "classifier", "sliced"))


def _memory(c: Comparison) -> Section:
    points = c.view.points
    train = points["train"][:10_000]
    spread: list[Tensor] = []
    for key in ("samples", "held_out"):
        first, second = neighbours(points[key][:MOST_NEIGHBOURS], train, 2)[0].unbind(1)
        spread.append(torch.where(second > 0, first / second, 1.0))
    draw = partial(histograms, [("nearest / next training row", spread[0], spread[1])])
    caption = (
        "Ratio of the distances to the nearest and second-nearest training rows; copies are at 0."
    )
    return Section(
        "Are they copies?",
        "A copy is close to one training row and far from all others.",
        (("copies", caption, draw),),
        _rows(c, "copies", "membership"),
    )
