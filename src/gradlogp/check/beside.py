"""Classical estimators beside a model: the same rows, the same held-out data, the same classifier."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core import Estimate
from ..show.report import Row
from .baselines import baselines
from .looks import View, classifier_look, split
from .metrics.classifier import Distinction
from .metrics.columns import effective, weights_of

AHEAD = 0.05
"""Nats by which a classical estimator has to be ahead, beside its error, to count."""


class Beside(NamedTuple):
    """A classical estimator: name, log-densities of held-out rows, how detectable its draws are."""

    name: str
    log_prob: Tensor
    distinction: Distinction


def fitted_beside(v: View, generator: torch.Generator | None) -> list[Beside]:
    """Fit classical estimators to the training rows, except to columns without a density."""
    x, held = v.joint["train"], v.joint["held_out"]
    if v.joint_names != v.names or bool((x.std(0) == 0).any()):
        return []
    found = []
    for b in baselines(x, generator=generator):
        drawn = b.sample(len(v.joint["samples"]))
        joint = {**v.joint, "samples": drawn}
        equal = {**v.weights, "samples": weights_of(drawn, None)}
        parts = split(v._replace(joint=joint, weights=equal), generator)
        found.append(Beside(b.name, b.log_prob(held), classifier_look(parts, generator)[1]))
    return found


def rows_beside(
    found: list[Beside], v: View, log_prob: Tensor | None, ours: Distinction
) -> tuple[list[Row], list[str]]:
    """Return rows of classical estimators, and a sentence for those that do better than the model."""
    if not found:
        note = "classical densities need numeric columns without holes that are not constant"
        return [Row("classical estimators", "not fitted", note=note)], []
    w = v.weights["held_out"]
    table = [
        Row(
            f"log-likelihood, {b.name}",
            *weighted_mean(b.log_prob, w),
            note="nats per held-out row",
        )
        for b in found
    ]
    sentences = []
    if log_prob is not None:
        gaps = [(weighted_mean(b.log_prob - log_prob, w), b.name) for b in found]
        gap, name = max(gaps, key=lambda pair: pair[0].value)
        ahead = gap.value > AHEAD + 3 * gap.standard_error
        table.append(
            Row(f"model minus {name}", -gap.value, gap.standard_error, verdict=not ahead,
                note="nats per held-out row")
        )  # fmt: skip
        if ahead:
            sentences.append(f"a {name} does better by {gap} nats per held-out row")
    for b in found:
        auc = b.distinction.auc
        noise = math.hypot(auc.standard_error, ours.auc.standard_error)
        harder = ours.auc.value - auc.value > 3 * noise
        note = "its draws, by the same classifier" + (
            "; harder to detect than the samples" * harder
        )
        table.append(Row(f"classifier, {b.name}", *auc[:2], 0.5, note=note))
    return table, sentences


def weighted_mean(values: Tensor, w: Tensor) -> Estimate:
    """Return a weighted mean and its standard error."""
    mean = float(w @ values)
    return Estimate(mean, math.sqrt(float(w @ (values - mean).square()) / (effective(w) - 1)))
