"""The tests that compare samples with real rows: effects and p-values, without a verdict.

Every look is a test of "samples and held-out rows have the same law", for any law, and exact or
nearly so. `compare` decides which effects are too large, and has the wording.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core import check_finite, new_seed, permutation, rand_like, randn_like
from .metrics.classifier import Distinction, tell_apart
from .metrics.columns import (
    Effects,
    Pairs,
    correlations,
    effective,
    kolmogorov_smirnov,
    location,
    normal_scores,
    quantile,
    scale,
)
from .metrics.copies import copies, membership
from .metrics.two_sample import sliced_wasserstein
from .rows import Layout, Rows, filled, image_columns, indicators

MOST_LEARNED = 4000
"""Rows of each kind that the classifier learns from, and that it decides on."""

MOST_DIRECTIONS = 64
"""Linear combinations of columns that are looked at."""

FEW = 10
"""Rows of the smaller set that have to differ from the most common value of a column."""

MOST_DISTANCES = 4e9
"""Differences of numbers that a search for neighbours takes."""

PROJECTIONS, RELABELLINGS, MOST_PROJECTED = 48, 320, 500

Sets = dict[str, Tensor]
"""Rows `(n, d)` or weights `(n,)` by "samples", "held_out" and, if there are any, "train"."""

Fact = dict[str, float | str]


class Look(NamedTuple):
    """One kind of look at several places: effects, 0 under equal laws, and facts to be said of each."""

    kind: str
    places: Sequence[str]
    effects: Effects
    facts: Sequence[Fact]
    floor: float | None = 0.0


class View(NamedTuple):
    """Rows as numbers, the input of all looks.

    Attributes:
        names: Names of the columns of `columns`.
        columns: The columns for separate looks: numeric columns, or summaries of an image.
        joint_names: Names of the columns of `joint`.
        joint: The columns for joint looks: numeric columns and indicators, or pixels.
        points: The same in units in which distances make sense.
        weights: Weights of the rows, which sum to 1.
        event_shape: The shape of an image; None for a table.
    """

    names: tuple[str, ...]
    columns: Sets
    joint_names: tuple[str, ...]
    joint: Sets
    points: Sets
    weights: Sets
    event_shape: torch.Size | None

    @property
    def image(self) -> bool:
        """Whether these are images."""
        return self.event_shape is not None


def view(layout: Layout, rows: Mapping[str, Rows], weights: Sets) -> View:
    """Return rows as numbers."""
    numbers = filled(rows)
    if layout.event_shape is not None:
        names, found = image_columns(layout.event_shape, numbers)
        spread = _spread(torch.cat(list(numbers.values())), layout.event_shape)
        points = {k: x / spread for k, x in numbers.items()}
        return View(
            tuple(names), found, layout.numbers, numbers, points, weights, layout.event_shape
        )
    more, flags = indicators(layout, rows)
    joint = {k: torch.cat([numbers[k], flags[k]], 1) for k in numbers}
    z = normal_scores(list(joint.values()), list(weights.values()))
    points = dict(zip(joint, z, strict=True))
    return View(layout.numbers, numbers, (*layout.numbers, *more), joint, points, weights, None)


def _spread(x: Tensor, event_shape: torch.Size | None) -> Tensor:
    """Return the deviation of every column, of images that of the whole channel; 1 where it is 0."""
    variance = (x - x.mean(0)).square().mean(0)
    if event_shape is not None:
        channels = variance.reshape(event_shape[0], -1)
        variance = channels.mean(1, keepdim=True).expand_as(channels).flatten()
    return torch.where(variance > 0, variance, 1.0).sqrt()


def column_looks(v: View) -> list[Look]:
    """Look at every column: location, scale, distribution function."""
    x, y, w_x, w_y = _two(v.columns, v.weights)
    if not v.names:
        return []
    z_x, z_y = normal_scores((x, y), (w_x, w_y))
    of = lambda q: (quantile(x, w_x, q), quantile(y, w_y, q))
    middle, low, high = of(0.5), of(0.25), of(0.75)
    facts: list[Fact] = [
        {"ours": float(middle[0][j]), "real": float(middle[1][j]),
         "ours_width": float(high[0][j] - low[0][j]), "real_width": float(high[1][j] - low[1][j])}
        for j in range(len(v.names))
    ]  # fmt: skip
    n, m = effective(w_x), effective(w_y)
    usual = 0.8687 * math.sqrt(1 / n + 1 / m)  # the mean of D under equal laws
    return [
        Look("location", v.names, location(z_x, z_y, w_x, w_y), facts),
        Look("scale", v.names, scale(z_x, z_y, w_x, w_y), facts),
        Look("shape", v.names, kolmogorov_smirnov(x, y, w_x, w_y), facts, usual),
    ]


def _varied(v: View) -> Tensor:
    """Return the columns in which enough rows differ from the most common value for normal sums.

    Two rare levels that meet in one row have correlation 1, which means nothing.
    """
    n, m = (effective(v.weights[k]) for k in ("samples", "held_out"))
    pooled = torch.cat([v.joint["samples"], v.joint["held_out"]])
    others = (pooled != pooled.mode(0).values).double().mean(0)
    return (others * min(n, m) >= FEW).nonzero().flatten()


def pair_look(v: View) -> tuple[Look, Pairs] | None:
    """Look at the correlation of every pair of columns; None if there are not two."""
    varied = _varied(v)
    if len(varied) < 2:
        return None
    x, y, w_x, w_y = _two(v.joint, v.weights)
    z_x, z_y = normal_scores((x, y), (w_x, w_y))
    pairs = correlations(z_x, z_y, w_x, w_y)
    a, b = varied[torch.triu_indices(len(varied), len(varied), offset=1)]
    effects = Effects(pairs.difference[a, b], pairs.standard_error[a, b], pairs.p_value[a, b])
    names = [f"{v.joint_names[i]} and {v.joint_names[j]}" for i, j in zip(a, b, strict=True)]
    facts: list[Fact] = [
        {"ours": float(pairs.x[i, j]), "real": float(pairs.y[i, j])}
        for i, j in zip(a, b, strict=True)
    ]
    return Look("pairs", names, effects, facts), pairs


class Split(NamedTuple):
    """Rows to learn from and rows to decide on, with linear combinations that the former suggest."""

    learn_x: Tensor
    learn_y: Tensor
    decide_x: Tensor
    decide_y: Tensor
    weights: tuple[Tensor, Tensor, Tensor, Tensor]
    names: tuple[str, ...]
    n_directions: int


def split(v: View, generator: torch.Generator | None) -> Split:
    """Split rows for the classifier, and add the axes of its real training rows as columns.

    Half of the samples are used for training, with half of the held-out rows or, if there are more
    of these, with the training rows; then all held-out rows are used for the test. The axes are
    those of the correlations of normal scores: a combination of columns that hardly varies is one
    of them, and a fault there is not visible in any single column.
    """
    w = v.weights
    order = permutation(len(v.joint["samples"]), generator)
    half = len(order) // 2
    parts = [("samples", order[:half]), ("samples", order[half:])]
    order = permutation(len(v.joint["held_out"]), generator)
    half = len(order) // 2
    if len(v.joint.get("train", ())) > half:
        train = permutation(len(v.joint["train"]), generator)
        parts[1:1] = [("train", train)]
        parts.append(("held_out", order))
    else:
        parts[1:1] = [("held_out", order[:half])]
        parts.append(("held_out", order[half:]))
    parts = [(key, rows[:MOST_LEARNED]) for key, rows in parts]
    weights = [w[key][rows] / w[key][rows].sum() for key, rows in parts]
    joint = [v.joint[key][rows] for key, rows in parts]
    scores = normal_scores(joint, weights)
    real, mass = scores[1], weights[1]
    centred = real - mass @ real
    size = (mass @ centred.square()).sqrt()
    known = torch.zeros_like(size, dtype=torch.bool)
    known[_varied(v)] = True
    known &= size > 1e-6  # a column that is constant has no direction
    unit = centred[:, known] / size[known]
    _, axes = torch.linalg.eigh(unit.mT @ (mass.unsqueeze(1) * unit))
    axes = axes.flip(1)
    if axes.shape[1] == 1:  # a column alone
        axes = axes[:, :0]
    if axes.shape[1] > MOST_DIRECTIONS:  # the widest and the narrowest
        half = MOST_DIRECTIONS // 2
        axes = torch.cat([axes[:, :half], axes[:, -half:]], 1)
    turned = [(z[:, known] / size[known]) @ axes for z in scores]
    kept = [name for name, k in zip(v.joint_names, known, strict=True) if k]
    names = [_combination(kept, axis) for axis in axes.mT]
    more, labels = (v.columns, v.names) if v.image else (v.joint, v.joint_names)
    features = [
        torch.cat([t, more[key][rows]], 1) for t, (key, rows) in zip(turned, parts, strict=True)
    ]
    a, b, c, d = features
    p, q, r, s = weights
    return Split(a, b, c, d, (p, q, r, s), (*names, *labels), len(names))


def _combination(names: Sequence[str], axis: Tensor) -> str:
    """Name a linear combination by its largest terms."""
    top = axis.abs().argsort(descending=True)[:3]
    first = float(axis[top[0]].sign())
    terms = [
        f"{first * float(axis[i]):+.2f} {names[int(i)]}" for i in top if abs(float(axis[i])) > 0.1
    ]
    text = " ".join(terms).lstrip("+")
    return text + (" …" if len(axis) > len(terms) else "")


def direction_looks(s: Split) -> list[Look]:
    """Look at location and scale of each linear combination, in rows that did not suggest it."""
    if not s.n_directions:
        return []
    w_x, w_y = s.weights[2:]
    x, y = (rows[:, : s.n_directions] for rows in (s.decide_x, s.decide_y))
    z_x, z_y = normal_scores((x, y), (w_x, w_y))
    places = s.names[: s.n_directions]
    found = []
    for kind, statistic in (("direction location", location), ("direction scale", scale)):
        effects = statistic(z_x, z_y, w_x, w_y)
        found.append(Look(kind, places, effects, [{}] * len(places)))
    return found


def classifier_look(s: Split, generator: torch.Generator | None) -> tuple[Look, Distinction]:
    """Let a classifier look at all columns together."""
    d = tell_apart(s.learn_x, s.learn_y, s.decide_x, s.decide_y, s.weights, generator=generator)
    used = d.importance.argsort(descending=True)[:3]
    names = [s.names[int(i)] for i in used if float(d.importance[i]) > 0.005]
    share = d.fraction * (2 * d.share.value - 1)
    fact: Fact = {
        "auc": d.auc.value, "auc_error": d.auc.standard_error,
        "used": ", ".join(names) or "no single column",
        "share": d.share.value, "fraction": d.fraction, "alike": "samples" if d.of_x else "real rows",
    }  # fmt: skip
    value = torch.tensor([d.auc.value - 0.5, share], dtype=torch.float64)
    error = torch.tensor([d.auc.standard_error, d.fraction * 2 * d.share.standard_error]).double()
    p = torch.tensor([d.auc.p_value, d.p_value], dtype=torch.float64)
    places = ("everywhere", "in few rows")
    return Look("classifier", places, Effects(value, error, p), (fact, fact)), d


def sliced_look(v: View, generator: torch.Generator | None) -> Look:
    r"""Return the look at the sliced Wasserstein distance, in standard deviations of both.

    The distance and its floor, the same distance between real rows, use all rows; the p-value is
    that of a permutation test on at most 500 rows of each.
    """
    # of both: were it that of one, samples and real rows would not be alike under one law
    both = torch.cat([v.joint["samples"], v.joint["held_out"]])
    spread = _spread(both, v.event_shape)
    rows = {k: thinned(x / spread, v.weights[k], len(x), generator) for k, x in v.joint.items()}
    if "train" in rows:
        check_finite(
            rows["train"].square().square().sum(1),
            "the fourth power of train, in standard deviations of samples and held_out,",
        )
    x, y = rows["samples"], rows["held_out"]
    seed = new_seed(generator)  # the same projections for the distance and its floor
    other, real = (rows["train"], y) if "train" in rows else (y[1::2], y[::2])
    distance, floor = (
        sliced_wasserstein(a, b, PROJECTIONS, generator=torch.Generator().manual_seed(seed))
        for a, b in ((x, y), (other[: len(x)], real))
    )
    n = min(len(x), len(y), MOST_PROJECTED)
    pooled = torch.cat([x[:n], y[:n]])
    theta = randn_like(pooled.new_empty(PROJECTIONS, pooled.shape[1]), generator)
    theta = theta / theta.norm(dim=1, keepdim=True)
    values, order = (v.cpu().numpy().ravel() for v in (pooled @ theta.mT).T.contiguous().sort(1))

    def squared(first: Tensor) -> float:
        """Return the mean of W_2² where `first` says which rows are of the first kind."""
        is_first = first.numpy()[order]  # by NumPy, which picks ten times as fast
        u, w = (torch.from_numpy(values[np.flatnonzero(kind)]) for kind in (is_first, ~is_first))
        return float((u - w).reshape(PROJECTIONS, n).square().mean())

    first = torch.arange(2 * n) < n
    observed = squared(first)
    null = [squared(first[permutation(2 * n, generator)]) for _ in range(RELABELLINGS)]
    p = (1 + sum(value >= observed for value in null)) / (1 + RELABELLINGS)
    beyond = math.sqrt(max(observed - sum(null) / RELABELLINGS, 0.0))
    effects = Effects(*(torch.tensor([u]).double() for u in (beyond, distance.standard_error, p)))
    fact: Fact = {
        "distance": distance.value,
        "floor": floor.value,
        "floor_error": floor.standard_error,
    }
    return Look("sliced", ("",), effects, (fact,), floor.value)


def kept(w: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return which rows stay if each is kept in proportion to its weight: they are of equal weight."""
    return rand_like(w, generator) * float(w.max()) < w


def thinned(x: Tensor, w: Tensor, most: int, generator: torch.Generator | None) -> Tensor:
    """Return at most so many rows of equal weight."""
    rows = x[kept(w, generator).to(x.device)]
    return rows[permutation(len(rows), generator)[:most]]


def copy_looks(v: View, generator: torch.Generator | None) -> list[Look]:
    """Look for copies of training rows, and for what the samples betray of them."""
    s, h, t = (
        thinned(v.points[k], v.weights[k], most, generator)
        for k, most in (("samples", MOST_LEARNED), ("held_out", MOST_LEARNED), ("train", 10**9))
    )
    most = int(MOST_DISTANCES / ((len(s) + len(h)) * s.shape[1]))
    t = t[: max(most, len(h))]
    c = copies(s, t, h)
    fact: Fact = {
        "ours": c.samples.value, "real": c.real.value, "ratio": c.ratio, "rows": float(len(t))
    }  # fmt: skip
    error = math.hypot(c.samples.standard_error, c.real.standard_error)
    one = lambda *values: Effects(*(torch.tensor([u], dtype=torch.float64) for u in values))
    found = [Look("copies", ("",), one(c.samples.value - c.real.value, error, c.p_value), (fact,))]
    a = membership(s, t[: 2 * len(h)], h, generator=generator)
    effects = one(a.value - 0.5, a.standard_error, a.p_value)
    return [*found, Look("membership", ("",), effects, ({"auc": a.value},))]


def _two(sets: Sets, weights: Sets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return sets["samples"], sets["held_out"], weights["samples"], weights["held_out"]
