"""Single values of a table: outside the range of real values, off their grid, missing, wrong classes.

All tests are exact for any law, because they count rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from .looks import Fact, Look, Sets, kept
from .metrics.columns import Effects, effective
from .metrics.copies import enrichment
from .rows import Layout, Rows

GRAIN = 0.02
"""Spacing of numbers, in standard deviations, from which on it matters that they lie on a grid."""

Entry = tuple[str, float, float, float, Fact]
"""Place, effect, standard error, p-value, facts."""


def value_looks(
    layout: Layout,
    rows: Mapping[str, Rows],
    weights: Sets,
    generator: torch.Generator | None,
) -> list[Look]:
    """Return looks at single values of a table: ranges, grids, missing values, categories.

    Tests that count rows (ranges, grids, unknown levels) need rows of equal weight.
    """
    stay = {
        k: kept(w, generator) if bool((w < w.max()).any()) else w > 0 for k, w in weights.items()
    }
    equal = {
        k: r._replace(numbers=r.numbers[stay[k]], levels=r.levels[stay[k]])
        for k, r in rows.items()
    }
    found: dict[str, list[Entry]] = {"values": [], "range": [], "missing": [], "classes": []}
    real_rows = [equal[k] for k in rows if k != "samples"]
    for j, name in enumerate(layout.numbers):
        ours = equal["samples"].numbers[:, j]
        real = torch.cat([r.numbers[:, j] for r in real_rows])
        holes = tuple(rows[k].numbers[:, j].isnan() for k in ("samples", "held_out"))
        if any(bool(h.any()) for h in holes):
            found["missing"].append((name, *_shares(holes[0], holes[1], weights)))
        ours, real = ours[~ours.isnan()], real[~real.isnan()]
        if len(ours) and len(real):
            found["range"] += _lost(name, ours, real)
            found["values"] += _beyond_real(name, ours, real)
            found["values"] += _off_grid(name, ours, real, rows)
    for j, name in enumerate(layout.categories):
        a, b = (rows[k].levels[:, j] for k in ("samples", "held_out"))
        known = torch.cat([r.levels[:, j] for r in real_rows])
        if bool((a < 0).any() or (b < 0).any()):
            found["missing"].append((name, *_shares(a < 0, b < 0, weights)))
        if len(known.unique()) > 0.5 * len(known):
            continue  # different in nearly every row: a name, not a category
        found["classes"].append((name, *_rates(a, b, weights, layout.levels[j])))
        a = equal["samples"].levels[:, j]
        unseen = ~torch.isin(a, known)
        k = int(unseen.sum())
        # the same of real rows: those of levels that no sample has, as many rows looked at
        lost = int((~torch.isin(known, a)).sum())
        p = enrichment(k, len(a), lost, len(known))
        example = layout.levels[j][int(a[unseen][0])] if k else ""
        what = f"the samples have a {name} that no real row has, such as {example!r}"
        found["values"].append((name, k / len(a), _error(k, len(a)), p, {"what": what}))
    looks = []
    for kind, entries in found.items():
        if entries:
            numbers = torch.tensor([entry[1:4] for entry in entries], dtype=torch.float64)
            places, facts = [entry[0] for entry in entries], [entry[4] for entry in entries]
            looks.append(Look(kind, places, Effects(*numbers.unbind(1)), facts))
    return looks


def _error(k: float, n: float) -> float:
    p = k / n
    return math.sqrt(max(p * (1 - p), 1 / n) / n)


def _shares(ours: Tensor, real: Tensor, weights: Sets) -> tuple[float, float, float, Fact]:
    """Return the difference of two shares of rows, its error, and Fisher's exact p-value, two-sided."""
    w_x, w_y = weights["samples"], weights["held_out"]
    n, m = effective(w_x), effective(w_y)
    p, q = float(w_x @ ours.double()), float(w_y @ real.double())
    a, b, N, M = round(p * n), round(q * m), round(n), round(m)
    tail = min(enrichment(a, N, b, M), enrichment(b, M, a, N))
    error = math.hypot(_error(p * n, n), _error(q * m, m))
    return p - q, error, min(1.0, 2 * tail), {"ours": p, "real": q}


def _rates(
    a: Tensor, b: Tensor, weights: Sets, levels: Sequence[str]
) -> tuple[float, float, float, Fact]:
    """Return the share of rows that would have to change class, its error, and a chi-square p-value.

    Levels with fewer than five expected rows are combined.
    """
    from scipy.stats import chi2

    w_x, w_y = weights["samples"], weights["held_out"]
    n, m = effective(w_x), effective(w_y)
    k = len(levels) + 1
    p, q = (
        torch.zeros(k, dtype=torch.float64).index_add_(0, codes + 1, w)
        for codes, w in ((a, w_x), (b, w_y))
    )
    pooled = (n * p + m * q) / (n + m)
    rare = pooled * min(n, m) < 5
    at = int((p - q).abs().argmax())
    fact: Fact = {
        "level": "missing" if at == 0 else levels[at - 1], "ours": float(p[at]), "real": float(q[at])
    }  # fmt: skip
    distance = float((p - q).abs().sum()) / 2
    # ½ Σ ±(p − q): a difference of two means of ±½
    sign = torch.where(p >= q, 1.0, -1.0).double()
    spread = (1 - float(sign @ p) ** 2) / n + (1 - float(sign @ q) ** 2) / m
    error = math.sqrt(max(spread, 0.0)) / 2
    if bool(rare.any()):
        p, q, pooled = (torch.cat([v[~rare], v[rare].sum()[None]]) for v in (p, q, pooled))
    used = pooled > 0
    gap = (p - q)[used]
    statistic = float((gap.square() / pooled[used]).sum()) / (1 / n + 1 / m)
    freedom = int(used.sum()) - 1
    p_value = float(chi2.sf(statistic, freedom)) if freedom else 1.0
    return distance, error, p_value, fact


def decimals(x: Tensor, resolution: float) -> int | None:
    """Return the smallest number of decimals, at most 6, for all values; None if more are needed.

    The result is also None if the values do not have so many digits.
    """
    for k in range(7):
        scaled = x * 10.0**k
        rounding = 4 * resolution * scaled.abs() + 1e-9
        if float(rounding.max()) > 0.01:
            return None
        if bool(((scaled - scaled.round()).abs() <= rounding).all()):
            return k
    return None


def _beyond_real(name: str, ours: Tensor, real: Tensor) -> Iterator[Entry]:
    """Yield the share of samples above all real values, and below; with p-values, for any law.

    A single outlier is judged by how far out it is: if tails are no heavier than Cauchy's, one of
    n values is more than c times as far out as all m others with probability n/(n + cm).
    """
    n, m, middle = len(ours), len(real), real.median()
    for sign, end in ((1, "above the largest"), (-1, "below the least")):
        a, b = sign * (ours - middle), sign * (real - middle)
        k = int((a > b.max()).sum())
        reach, known = float(a.max()), float(b.max())
        p = _beyond(k, n, m)
        if k and known > 0:
            p = min(1.0, 2 * min(p, n / (n + m * reach / known)))
        reach, known = (sign * u + float(middle) for u in (reach, known))
        what = f"the samples of {name} are {end} real value, {known:.4g}, the last of them {reach:.4g}"
        yield name, k / n, _error(k, n), p, {"what": what}


def _lost(name: str, ours: Tensor, real: Tensor) -> Iterator[Entry]:
    """Yield the share of real values above all samples, and below, with p-values, for any law."""
    for sign, end in ((1, "above"), (-1, "below")):
        a, b = sign * ours, sign * real
        k = int((b > a.max()).sum())
        fact: Fact = {"end": end, "ours": sign * float(a.max()), "real": sign * float(b.max())}
        yield name, k / len(real), _error(k, len(real)), _beyond(k, len(real), len(ours)), fact


def _off_grid(name: str, ours: Tensor, real: Tensor, rows: Mapping[str, Rows]) -> Iterator[Entry]:
    """Yield the share of values that need more decimals than all values of the other kind.

    A grid that is fine compared with the spread of the column is not tested: rounding to it is the
    last step of sampling, and has no other visible effect.
    """
    resolution, spread = max(r.resolution for r in rows.values()), float(real.std())
    for of, other, whose, than in (
        (real, ours, "samples", "real values"),
        (ours, real, "real values", "samples"),
    ):
        k = decimals(of, resolution)
        if k is not None and 10.0**-k > GRAIN * spread:
            scaled = other * 10.0**k
            off = int(
                ((scaled - scaled.round()).abs() > 4 * resolution * scaled.abs() + 1e-9).sum()
            )
            n = len(other)
            p = enrichment(off, n, 0, len(of))
            kind = "integers" if k == 0 else f"numbers with {k} decimal{'s' * (k > 1)}"
            what = f"the {whose} of {name} are not {kind}, but all {than} are"
            yield name, off / n, _error(off, n), p, {"what": what}


def _beyond(k: int, n: int, m: int) -> float:
    """Return the chance that the k most extreme of n + m values of one law are all among the n."""
    if k == 0:
        return 1.0
    terms = torch.arange(k, dtype=torch.float64)
    return float(((n - terms).log() - (n + m - terms).log()).sum().exp())
