"""The command that reads the geometry of data from a learned score: geometry."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .common import (
    Misuse,
    load,
    positive,
    print_json,
    print_rows,
    say,
    set_threads,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from ...core import NoisyScore, ScoreFn
    from ...geometry import SigmaRange, Split
    from ...show.report import Row

MOST = 1024  # dimensions of which the spectrum is computed
LEVELS = 17  # noise levels tried where none is given


class _Field(NamedTuple):
    """A model as scores at single noise levels with α = 1, in its own coordinates.

    `unit` is the one scale that leads to the units of the data, None where each column has its own.
    """

    at: Callable[[float], ScoreFn]
    low: float
    high: float
    unit: float | None
    conditional: bool


def geometry(
    checkpoint: Path,
    *,
    data: str,
    sigma: float | None = None,
    points: int = 40,
    perturbations: int | None = None,
    columns: str | None = None,
    label: str | None = None,
    out: Path = Path("geometry.png"),
    seed: int = 0,
    threads: int | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Say what a learned score knows of the manifold of its data; exit code 1 if it sees none.

    Prints the intrinsic dimension by three estimators, the spectrum of the Jacobian, curvature, and
    the noise levels at which the dimension is steady; writes a picture of the score along and across
    the manifold (in two dimensions), or of the spectra. The dimension does not depend on units.
    Curvature and distances are in the units of the data, and need a model of one scale for all
    columns. σ and the picture are in the coordinates of the model.

    Args:
        checkpoint: Checkpoint folder.
        data: Points on or near the manifold: the data it was learned from, or others like them.
        sigma: Noise level, in the coordinates of the model; where not given, the middle of the range
            over which the dimension is steady.
        points: How many rows of the data to look at.
        perturbations: Perturbations a point for two of the estimators, at least twice the number of
            dimensions; by default eight times, or 64.
        columns: Columns to use, separated by commas.
        label: Column with the class of each row.
        out: Picture to write, .png.
        seed: Seed of everything random.
        threads: PyTorch threads.
        json: Print the numbers as JSON.
        quiet: No progress.
    """
    set_threads(threads)
    positive("--points", points)
    if out.suffix != ".png":
        raise Misuse(f"cannot write {out}: use a name that ends in .png")
    import torch

    from ...geometry import tangent_normal_split

    g = torch.Generator().manual_seed(seed)
    field, z, rows_of_data = _read(checkpoint, data, columns, label, points, g, quiet)
    D = z[0].numel()
    if perturbations is not None and perturbations < max(16, 2 * D):
        raise Misuse(
            f"--perturbations must be at least {max(16, 2 * D)} in {D} dimensions, got "
            f"{perturbations}: fewer cannot span the normal directions"
        )
    if sigma is not None and not field.low * (1 - 1e-9) <= sigma <= field.high * (1 + 1e-9):
        raise Misuse(
            f"--sigma {sigma:g} lies outside the noise levels learned, {field.low:.3g} to "
            f"{field.high:.3g}: the score there was never trained; choose one within"
        )
    flags: list[str] = []
    steady = _steady(field, z, flags)
    if sigma is None:
        sigma = math.sqrt(steady.low * steady.high) if steady is not None else field.low
    score = field.at(sigma)
    rows, k = _dimensions(score, z, sigma, perturbations, g, field.conditional)
    split = tangent_normal_split(score, z, sigma, k if k < D else None)
    rows += _shape(split, sigma, k, field.unit, flags)
    seen = k < D
    _judge(flags, k, D, rows_of_data, field, sigma)
    _draw(out, z, split, k)
    result = {
        "sigma": sigma, "learned": [field.low, field.high], "points": len(z), "dimensions": D,
        "dimension": k, "spectrum": split.space.spectrum.median(0).values.tolist(),
        "recommended_sigma": None if steady is None else [steady.low, steady.high],
        "rows": [row._asdict() for row in rows], "flags": flags, "picture": out,
    }  # fmt: skip
    if json:
        print_json(result)
    else:
        _print(result, rows)
    say(f"{out}: picture", quiet=quiet)
    return 0 if seen else 1


def _read(
    checkpoint: Path,
    data: str,
    columns: str | None,
    label: str | None,
    points: int,
    g: torch.Generator,
    quiet: bool,
) -> tuple[_Field, Tensor, int]:
    """Return the field, points in its coordinates, and the number of rows of the data."""
    from ...core import permutation
    from ...geometry import model_field
    from ...noise import noise_range
    from . import use

    estimator = use.load_estimator(checkpoint)
    found, model = load(data, columns, label, quiet=quiet), estimator.model_
    if found.x.shape[1:] != model.event_shape:
        raise Misuse(
            f"{data} has samples of shape {tuple(found.x.shape[1:])}, "
            f"the model of {tuple(model.event_shape)}"
        )
    if model.event_shape.numel() > MOST:
        raise Misuse(
            f"the spectrum of {model.event_shape.numel()} dimensions is too large, {MOST} at most; "
            "use glp.geometry.intrinsic_dimension(estimator='norm')"
        )
    model = model.cpu().double().requires_grad_(False)
    chosen = permutation(len(found.x), g)[:points]
    labels = None
    if estimator.class_conditional:
        if found.labels is None:
            raise Misuse("the model is class-conditional: name the column of classes with --label")
        labels = use.class_codes(estimator, found)[chosen]
    low, high = noise_range(model.schedule)
    score = model if labels is None else model.given(labels)
    at = lambda sigma: model_field(score, min(max(sigma, low), high)).score
    z = model.coordinates.encode(found.x[chosen].double())
    return _Field(at, low, high, _unit(score), labels is not None), z, len(found.x)


def _unit(score: NoisyScore) -> float | None:
    """Return the one scale of the data; None where each column has its own."""
    from ...geometry import data_field, model_field

    try:
        return data_field(score).sigma / model_field(score).sigma
    except ValueError:
        return None


def _steady(field: _Field, z: Tensor, flags: list[str]) -> SigmaRange | None:
    """Return the noise levels over which the dimension is steady, or flag that there are none."""
    import torch

    from ...geometry import recommend_sigma

    low, high = math.log(field.low), math.log(min(field.high, 1e3))  # ∞ where α ends at 0
    sigmas = torch.linspace(low, high, LEVELS, dtype=torch.float64).exp()
    try:
        return recommend_sigma(field.at, z, sigmas, tolerance=0.25)
    except ValueError as problem:
        flags.append(f"no steady dimension: {problem}")
        return None


def _dimensions(
    score: ScoreFn, z: Tensor, sigma: float, n: int | None, g: torch.Generator, conditional: bool
) -> tuple[list[Row], int]:
    """Return a row for each estimator, and k by the count of normal directions."""
    from ...core import Estimate, mean_and_error
    from ...geometry import intrinsic_dimension
    from ...show.report import Row

    D, rows, k = z[0].numel(), [], 0
    notes = {
        "normal_rank": "D minus the number of directions that the score takes",
        "norm": "D − σ² E‖s‖²",
        "divergence": "D + σ² ∇·s",
    }
    for estimator in ("normal_rank", "norm", "divergence"):
        perturbed = {} if estimator == "divergence" else {
            "n_perturbations": n, "stack": 1 if conditional else 16,
        }  # fmt: skip
        found = intrinsic_dimension(
            score, z, sigma, estimator=estimator, generator=g, **perturbed  # type: ignore[arg-type]
        )  # fmt: skip
        mean = mean_and_error(found.value)
        if len(z) == 1:
            mean = Estimate(float(found.value), float(found.standard_error))
        if estimator == "normal_rank":
            k = int(found.value.median().round())
        spread = f"; {found.value.min():.3g} to {found.value.max():.3g} over the points"
        name = f"intrinsic dimension, {estimator}"
        rows.append(Row(name, mean.value, mean.standard_error, note=notes[estimator] + spread))
    rows.append(Row("dimensions D", float(D)))
    return rows, k


def _shape(split: Split, sigma: float, k: int, unit: float | None, flags: list[str]) -> list[Row]:
    """Return rows on curvature, distance and the density along the manifold, in data units."""
    from ...core import mean_and_error
    from ...show.report import Row

    D = split.space.spectrum.shape[1]
    if k >= D:
        return []
    if unit is None:
        flags.append(
            "curvature and distances are not shown: the columns have scales of their own, so that the "
            "noise is not isotropic in the units of the data; fit with --standardize one"
        )
        return []
    across = split.normal.flatten(1).norm(dim=1)
    inside, off = mean_and_error(split.tangent.flatten(1).norm(dim=1) / unit), sigma * across
    away, bend = mean_and_error(unit * sigma * off), mean_and_error(2 * across / unit)
    if float(off.mean()) > 0.3 * math.sqrt(D - k):
        flags.append(
            f"the data lie off the manifold by about {away.value:.2g}, not small against "
            f"σ = {sigma:.3g}: twice the normal part of the score is their distance, not curvature"
        )
    return [
        Row("tangent part of the score", *inside, note="density on the manifold"),
        Row("curvature, twice the normal part", *bend, note="if the points lie on the manifold"),
        Row("distance to the manifold, at most", *away, note="σ² times the normal part"),
    ]


def _judge(flags: list[str], k: int, D: int, n: int, field: _Field, sigma: float) -> None:
    """Flag what makes the dimension worthless."""
    if k == D:
        flags.append(
            f"k = D = {D}: no normal direction was seen. The data fill the space, or σ = {sigma:.3g} "
            "is below what was learned well or above the thickness of the data: try --sigma"
        )
    elif k == 0:
        flags.append(
            f"k = 0: the score at σ = {sigma:.3g} sees single points; try a larger --sigma, or the "
            "model has memorised its data"
        )
    if n <= D:
        flags.append(
            f"{n} rows in {D} dimensions span at most {n - 1} directions: too few to tell a rank"
        )
    elif n < 10 * k:
        flags.append(
            f"{n} rows for {k} tangent directions are few: below about 10 for each, a score knows "
            "the points and not the manifold"
        )
    if sigma < 1.05 * field.low:
        flags.append(
            f"σ = {sigma:.3g} is at the lowest level learned, {field.low:.3g}, where scores are worst"
        )


def _draw(out: Path, z: Tensor, split: Split, k: int) -> None:
    from ...show.plots import png
    from ...show.plots.geometry import spectra, split_field

    D = z[0].numel()
    if D == 2 and k < D:
        figure = split_field(z.flatten(1), split.tangent.flatten(1), split.normal.flatten(1))
    else:
        figure = spectra(split.space.spectrum, k if k < D else None)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(png(figure))


def _print(result: dict[str, Any], rows: list[Row]) -> None:
    low, high = result["learned"]
    print(
        f"{result['points']} points at σ = {result['sigma']:.3g} "
        f"(learned: {low:.3g} to {high:.3g})"
    )
    print_rows(rows)
    if result["recommended_sigma"] is not None:
        a, b = result["recommended_sigma"]
        print(f"recommended σ: {a:.3g} to {b:.3g}, over which the dimension is steady")
    spectrum = result["spectrum"]
    shown = spectrum if len(spectrum) <= 12 else [*spectrum[:6], None, *spectrum[-6:]]
    text = ", ".join("…" if v is None else f"{v:.2f}" for v in shown)
    print(f"spectrum of −σ²∇s, medians: {text}")
    for flag in result["flags"]:
        print(f"! {flag}")
