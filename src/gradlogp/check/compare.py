"""Can samples be distinguished from real rows? Each look is a row of a report, with one verdict.

The thresholds and the wording are here. A look fails if its effect is significant, corrected for
all looks, and larger than its bar: with enough rows anything is significant, and with few rows
anything can be large.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    ALONE,
    Processes,
    Verdict,
    check_finite,
    check_generator,
    check_kind,
    mean_and_error,
    new_seed,
)
from ..diffusion.likelihood import bits_per_dim
from ..show.report import Row
from .baselines import fitted_beside, rows_beside, weighted_mean
from .looks import (
    Look,
    View,
    classifier_look,
    column_looks,
    copy_looks,
    direction_looks,
    pair_look,
    sliced_look,
    split,
    view,
)
from .metrics.classifier import Distinction
from .metrics.columns import Pairs, effective, weights_of
from .rows import Rows, encode
from .values import value_looks

SIZE = 0.05
"""How often samples of exactly the right law fail, at most; shared equally by all kinds of looks."""

LEAST = 20
"""Rows of each, below which nothing is judged."""

MOST = 2
"""Places that reasons name; of more it is said how many."""

BLUNT = 0.25
"""A shift, in standard deviations, that must not go unnoticed silently."""


class Kind(NamedTuple):
    """A kind of look: its name in the table, the bar, and the sentence for a fault.

    An effect is a fault if it is significant and larger than the bar, in the units of the sentence.
    """

    title: str
    bar: float
    sentence: str
    note: str = ""


KINDS = {
    "location": Kind(
        "location", 0.05, "{place} is shifted by {value:+.2f} ± {error:.2f} standard deviations "
        "(median {ours:.4g}, of real rows {real:.4g})", "in standard deviations",
    ),
    "scale": Kind(
        "scale", 0.05, "the spread of {place} is off by {value:+.0%} ± {error:.0%} (quartiles "
        "{ours_width:.4g} apart, of real rows {real_width:.4g})", "relative",
    ),
    "shape": Kind(
        "distribution function", 0.02, "{place} has a different distribution: the distribution "
        "functions differ by {value:.3f} ± {error:.3f}", "largest difference (Kolmogorov–Smirnov)",
    ),
    "values": Kind(
        "impossible values", 0.0, "{value:.2%} of {what}", "share of samples",
    ),
    "range": Kind(
        "range not reached", 0.002, "no sample of {place} lies {end} {ours:.4g}, but {value:.1%} of "
        "real rows do, up to {real:.4g}", "share of real rows",
    ),
    "missing": Kind(
        "missing values", 0.01, "{place} is missing in {ours:.1%} of samples, and in {real:.1%} of "
        "real rows", "share of rows",
    ),
    "classes": Kind(
        "frequencies of categories", 0.01, "categories of {place} have wrong frequencies: {level!r} in "
        "{ours:.1%} of samples, in {real:.1%} of real rows", "share of rows in the wrong one",
    ),
    "pairs": Kind(
        "correlations", 0.05, "{place} have correlation {ours:.2f}, {real:.2f} in real rows",
        "difference in arctanh r",
    ),
    "direction location": Kind(
        "location of combinations", 0.05, "the combination {place} is shifted by {value:+.2f} ± "
        "{error:.2f} standard deviations", "in standard deviations, along the axes of real rows",
    ),
    "direction scale": Kind(
        "scale of combinations", 0.05, "the spread of the combination {place} is off by {value:+.0%} ± "
        "{error:.0%}", "relative, along the axes of real rows",
    ),
    "classifier": Kind(
        "classifier", 0.01, "a classifier distinguishes samples from real rows it has not seen: "
        "area under the curve {auc:.3f} ± {auc_error:.3f}, and of the {fraction:.0%} that look most "
        "like {alike} {share:.0%} are; it used {used}", "",
    ),
    "sliced": Kind(
        "sliced Wasserstein distance", 0.02, "the sliced Wasserstein distance to real rows is "
        "{distance:.3f}, between real rows {floor:.3f}", "in standard deviations",
    ),
    "copies": Kind(
        "copies of training rows", 0.002, "{ours:.1%} of samples are copies of training rows, or "
        "nearly: next to one and far from all others, as {real:.1%} of held-out rows are by chance",
        "share of samples",
    ),
    "membership": Kind(
        "membership attack", 0.02, "the samples reveal the training rows: samples lie closer "
        "to training rows than to held-out rows, area under the curve {auc:.3f}", "",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """The result of comparing samples with held-out rows.

    Attributes:
        rows: One for each kind of look, with the name of the worst column or pair.
        verdict: Whether the samples passed, and if not, why.
        looks: All results: effect, standard error and p-value for every column, pair or other
            place.
        pairs: Correlations of all columns; None for images, or a single column.
        distinction: The result of the classifier, with the importance of `features`.
        features: The columns of the classifier.
        view: The rows as numbers, in the form used by the looks.
    """

    rows: tuple[Row, ...]
    verdict: Verdict
    looks: tuple[Look, ...]
    pairs: Pairs | None
    distinction: Distinction
    features: tuple[str, ...]
    view: View

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        lines = []
        for row in self.rows:
            error = "" if row.standard_error is None else f" ± {row.standard_error:.2g}"
            value = row.value if isinstance(row.value, str) else f"{row.value:.4g}{error}"
            mark = {True: "pass", False: "FAIL", None: ""}[row.verdict]
            lines.append(f"{row.name:<{width}}  {value:<20} {mark:<5} {row.note}".rstrip())
        return "\n".join([*lines, str(self.verdict)])


def likelihood_row(name: str, log_prob: Tensor, note: str = "") -> Row:
    """Return the mean log-likelihood of held-out data, in nats."""
    return Row(name, *mean_and_error(log_prob), note=note)


def bits_row(log_prob: Tensor, event_shape: torch.Size, levels: int) -> Row:
    """Return the bits per dimension of integer data from log p of dequantised data x = k + u − ½."""
    log_p_unit = log_prob + math.prod(event_shape) * math.log(levels)  # of (x + ½)/levels
    bits = mean_and_error(bits_per_dim(log_p_unit, tuple(event_shape), levels))
    note = f"upper bound for integers 0 … {levels - 1}"
    return Row("bits per dimension", *bits, note=note)


def difference_row(name: str, ours: Tensor, theirs: Tensor, note: str = "") -> Row:
    """Return the paired difference of two log-likelihoods of the same points; it should be ≥ 0."""
    gap = mean_and_error(ours.double() - theirs.double())
    return Row(name, *gap, verdict=gap.value + 2 * gap.standard_error >= 0, note=note)


def compare(
    samples: Any,
    held_out: Any,
    train: Any = None,
    *,
    names: Sequence[str] | None = None,
    log_prob: Float[Tensor, " m"] | Float[np.ndarray, " m"] | None = None,
    sample_weight: Tensor | Mapping[str, Tensor] | None = None,
    baselines: bool = True,
    generator: torch.Generator | None = None,
    processes: Processes = ALONE,
) -> Comparison:
    r"""Compare samples with held-out data, and say whether they can be distinguished.

    For tables the looks are at every column (location, scale, distribution function, values that
    no real row has, ranges, missing values, frequencies of categories); every pair (correlation);
    linear combinations along the axes of the real rows; and all columns together, by a classifier
    on rows that it has not seen, and by the sliced Wasserstein distance. For images, means,
    standard deviations, extremes and power spectra of each channel replace the columns. With
    training data there are also looks for copies of them and a membership attack, and classical
    estimators fitted to the same rows for comparison.

    A look fails if its effect is significant and larger than its bar (`KINDS`). Significance is
    corrected for all looks together: samples of exactly the right law fail at most once in 20
    times (`SIZE`). Passing means that these rows show no such fault, not that there is none; the
    verdict says if they are too few to detect a shift of a quarter of a standard deviation.

    The classifier, neighbours and mixtures use at most a few thousand rows. Otherwise time grows
    as n log n with the number of rows n, and as n d² with the number of columns d.

    Arguments:
        samples: Generated samples: a tensor `(n, *event)`, or a frame of pandas or polars.
        held_out: Data that were not used in training, of the same kind.
        train: Training data, used to find copies, to train the classifier and to fit the classical
            estimators.
        names: Column names of tensors.
        log_prob: The model's log-density of the held-out rows, in nats, to be compared with that of
            the classical estimators.
        sample_weight: Weights of the held-out rows, or a dictionary of weights by the names of
            these arguments.
        baselines: Whether to fit classical estimators (to numeric columns without missing values).
        generator: Source of splits, subsamples, projections, relabellings and starts.
        processes: Processes that divide the looks among them, `core.Processes.here()`; all need
            the same rows, and have the same result.

    Raises:
        TypeError: For an object that is neither a tensor nor a frame.
        ValueError: For shapes or columns that differ, values that are not finite, fewer than 20
            rows of each, or invalid weights.

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> real, good, bad = (torch.randn(400, 2, generator=g) + m for m in (0.0, 0.0, 0.5))
        >>> glp.compare(good, real).verdict.ok, glp.compare(bad, real).verdict.ok
        (True, False)
    """
    sets = {"samples": samples, "held_out": held_out} | ({} if train is None else {"train": train})
    if names is not None:
        check_kind(names, "names", list | tuple, "a list of names")
    if isinstance(log_prob, np.ndarray):  # of `score_samples`
        log_prob = torch.as_tensor(log_prob)
    if log_prob is not None:
        check_finite(log_prob, "log_prob")
        check_finite(log_prob.double().square().sum(), "the square of log_prob")
    check_generator(generator)
    layout, rows = encode(sets, names)
    for name, found in rows.items():
        if len(found.numbers) < LEAST:
            raise ValueError(f"{name} must have at least {LEAST} rows, got {len(found.numbers)}")
    if log_prob is not None and log_prob.shape != (len(rows["held_out"].numbers),):
        n = len(rows["held_out"].numbers)
        raise ValueError(f"log_prob must have shape ({n},), got {tuple(log_prob.shape)}")
    weights = _weights(sample_weight, rows)
    seen = {name: w > 0 for name, w in weights.items()}  # a row of weight 0 is not there
    rows = {
        name: r._replace(numbers=r.numbers[seen[name]], levels=r.levels[seen[name]])
        for name, r in rows.items()
    }
    if log_prob is not None:
        log_prob = log_prob.detach().cpu().double()[seen["held_out"]]
    v = view(layout, rows, {name: w[seen[name]] for name, w in weights.items()})
    Processes.check(processes)
    processes.same_noise(generator)
    by_values, by_classifier, by_distance, by_copies, by_others = (  # whoever looks draws the same
        torch.Generator().manual_seed(new_seed(generator)) for _ in range(5)
    )

    def at_columns() -> tuple[list[Look], Pairs | None]:
        looks = column_looks(v)
        if v.image:
            return looks, None
        looks += value_looks(layout, rows, v.weights, by_values)
        look, pairs = pair_look(v) or (None, None)
        return looks if look is None else [*looks, look], pairs

    def together() -> tuple[list[Look], Distinction, tuple[str, ...]]:
        parts = split(v, by_classifier)
        look, distinction = classifier_look(parts, by_classifier)
        return [*direction_looks(parts), look], distinction, parts.names

    def at_distances() -> list[Look]:
        return [sliced_look(v, by_distance), *([] if train is None else copy_looks(v, by_copies))]

    beside = baselines and train is not None and not v.image
    others = lambda: fitted_beside(v, by_others) if beside else None
    (looks, pairs), (more, distinction, names_of_parts), distances, found = processes.each(
        (at_columns, together, at_distances, others)
    )
    looks = [*looks, *more, *distances]
    table, reasons = [], []
    for look in looks:
        row, faults = _judge(look, len(looks))
        table.append(row)
        reasons += faults
    if log_prob is not None:
        own = weighted_mean(log_prob, v.weights["held_out"])
        table.append(Row("log-likelihood", *own, note="nats per held-out row"))
    if beside:
        more, faults = rows_beside(found, v, log_prob, distinction)
        table += more
        reasons += faults
    ok = not reasons
    if train is None:
        reasons.append("copies of training rows were not checked: no training rows were given")
    reasons += _blind(v, looks)
    return Comparison(
        tuple(table),
        Verdict(ok, tuple(reasons)),
        tuple(looks),
        pairs,
        distinction,
        names_of_parts,
        v,
    )


def _weights(
    given: Tensor | Mapping[str, Tensor] | None, rows: Mapping[str, Rows]
) -> dict[str, Tensor]:
    """Return weights of all rows, of sum 1."""
    by_name = given if isinstance(given, Mapping) else {"held_out": given}
    if unknown := set(by_name) - set(rows):
        raise ValueError(
            f"sample_weight must be keyed by what was given, {', '.join(rows)}; got "
            f"{', '.join(unknown)}"
        )
    return {name: weights_of(r.numbers, by_name.get(name)) for name, r in rows.items()}


def _judge(look: Look, n_looks: int) -> tuple[Row, list[str]]:
    """Return the row of a look, that of its worst place, and a sentence for each fault."""
    kind, effects = KINDS[look.kind], look.effects
    n = len(look.places)
    level = SIZE / (n_looks * n)
    faulty = (effects.p_value < level) & (effects.value.abs() > kind.bar)
    relevant = torch.where(faulty, effects.p_value - 2, effects.p_value)  # faults come first
    order = sorted(range(n), key=lambda i: (float(relevant[i]), -abs(float(effects.value[i]))))
    sentences = []
    bad = [i for i in order if bool(faulty[i])]
    for i in bad[:MOST]:
        value, error = float(effects.value[i]), float(effects.standard_error[i])
        sentence = kind.sentence
        if math.isinf(value):
            sentence = "{place} varies, but is constant in real rows"
        sentences.append(
            sentence.format(place=look.places[i], value=value, error=error, **look.facts[i])
        )
    if look.kind == "classifier":
        sentences = sentences[:1]  # both of its places say the same
    elif len(bad) > MOST:
        sentences.append(f"{kind.title}: {len(bad) - MOST} more of {n} columns or pairs fail")
    worst = order[0]
    p = float(effects.p_value[worst])
    at = f"worst of {n}: {look.places[worst]}" if n > 1 else look.places[worst]
    note = "; ".join(part for part in (kind.note, at, f"p = {p:.2g}, bar {level:.1g}") if part)
    value, error = float(effects.value[worst]), float(effects.standard_error[worst])
    floor = look.floor
    if look.kind in ("classifier", "membership"):
        value, error, floor = float(look.facts[0]["auc"]), float(effects.standard_error[0]), 0.5
        note = f"area under the curve; {note}"
    floor_error = None
    if look.kind == "sliced":
        value, floor_error = (float(look.facts[0][k]) for k in ("distance", "floor_error"))
    row = Row(kind.title, value, error, floor, floor_error, verdict=not bad, note=note)
    return row, sentences


def _blind(v: View, looks: Sequence[Look]) -> list[str]:
    """Say if there are too few rows to see a shift of a quarter of a deviation."""
    places = max((len(look.places) for look in looks if look.kind == "location"), default=0)
    if not places:
        return []
    n, m = (effective(v.weights[k]) for k in ("samples", "held_out"))
    level = torch.tensor(SIZE / (len(looks) * places) / 2, dtype=torch.float64)
    least = -float(torch.special.ndtri(level)) * math.sqrt(1 / n + 1 / m)
    if least <= BLUNT:
        return []
    return [
        f"{n:.0f} samples and {m:.0f} held-out rows reveal only shifts of {least:.2f} standard "
        "deviations or more; more rows reveal smaller ones"
    ]
