"""The command that estimates the geometry of data from a learned score: geometry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    Misuse,
    claim_output,
    generator_of,
    positive,
    print_json,
    print_rows,
    say,
    set_threads,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...core import NoisyScore
    from ...geometry import Split, Survey
    from ...show.report import Row

MOST = 1024  # dimensions of which the spectrum is computed


def geometry(
    checkpoint: Path,
    *,
    data: str,
    sigma: float | None = None,
    points: int = 40,
    perturbations: int | None = None,
    columns: str | None = None,
    label: str | None = None,
    header: bool | None = None,
    out: Path = Path("geometry.png"),
    force: bool = False,
    seed: int = 0,
    threads: int | None = None,
    json: bool = False,
    quiet: bool = False,
) -> int:
    """Show what a learned score knows about the manifold of its data; exit code 1 if there is none.

    Prints the intrinsic dimension by three estimators, the spectrum of the Jacobian, curvature,
    and the noise levels at which the dimension is stable; writes a picture of the score along and
    across the manifold (in two dimensions), or of the spectra. The dimension does not depend on
    units. Curvature and distances are in the units of the data, and need a model with one scale
    for all columns. σ and the picture are in the coordinates of the model.

    Args:
        checkpoint: Checkpoint folder.
        data: Points on or near the manifold: the training data, or similar data.
        sigma: Noise level, in the coordinates of the model; by default the middle of the range
            where the dimension is stable.
        points: Number of rows of the data to use.
        perturbations: Perturbations per point for two of the estimators, at least twice the number
            of dimensions; by default eight times that number, or 64.
        columns: Columns to use, separated by commas; by default those that the model learned.
        label: Column with the class of each row.
        header: Whether the first line of a .csv file holds names; detected by default.
        out: Picture to write, .png.
        force: Replace an existing picture.
        seed: Random seed.
        threads: PyTorch threads.
        json: Print the numbers as JSON.
        quiet: No progress.
    """
    set_threads(threads)
    positive("--points", points)
    if out.suffix != ".png":
        raise Misuse(f"cannot write {out}: use a name that ends in .png")
    claim_output(out, force=force)
    from ...geometry import survey
    from ...noise import noise_range

    g = generator_of(seed)
    score, x, rows_of_data = _read(checkpoint, data, columns, label, header, points, g, quiet)
    D = x[0].numel()
    if perturbations is not None and perturbations < max(16, 2 * D):
        raise Misuse(
            f"--perturbations must be at least {max(16, 2 * D)} in {D} dimensions, got "
            f"{perturbations}: fewer cannot span the normal directions"
        )
    low, high = noise_range(score.schedule)
    if sigma is not None and not low * (1 - 1e-9) <= sigma <= high * (1 + 1e-9):
        raise Misuse(
            f"--sigma {sigma:g} lies outside the noise levels learned, {low:.3g} to {high:.3g}: the "
            "score was never trained there; choose one inside the range"
        )
    found = survey(
        score, x, sigma, n_data=rows_of_data, n_perturbations=perturbations, generator=g,
        stack=16 if score.rows(slice(0, 1)) is score else 1,
    )  # fmt: skip
    rows = _rows(found, D)
    _draw(out, score.coordinates.encode(x), found.split, found.k)
    result = {
        "sigma": found.sigma, "learned": [low, high], "points": len(x), "dimensions": D,
        "dimension": found.k, "spectrum": found.split.space.spectrum.median(0).values.tolist(),
        "recommended_sigma": None if found.steady is None else [found.steady.low, found.steady.high],
        "rows": [row._asdict() for row in rows], "flags": list(found.flags), "picture": out,
    }  # fmt: skip
    if json:
        print_json(result)
    else:
        _print(result, rows)
    say(f"{out}: picture", quiet=quiet)
    return 0 if found.k < D else 1


def _rows(found: Survey, D: int) -> list[Row]:
    """Return the rows of the table."""
    from ...show.report import Row

    notes = {
        "normal_rank": "D minus the rank of the scores",
        "norm": "D − σ² E‖s‖²",
        "divergence": "D + σ² ∇·s",
    }
    rows = [
        Row(
            f"intrinsic dimension, {name}", *mean,
            note=f"{notes[name]}; {least:.3g} to {most:.3g} over the points",
        )
        for name, (mean, least, most) in found.dimensions.items()
    ]  # fmt: skip
    rows.append(Row("dimensions D", float(D)))
    for name, value, note in (
        ("tangent part of the score", found.tangent, "density on the manifold"),
        ("curvature, twice the normal part", found.curvature, "if the points lie on the manifold"),
        ("distance to the manifold, at most", found.distance, "σ² times the normal part"),
    ):
        if value is not None:
            rows.append(Row(name, *value, note=note))
    return rows


def _read(
    checkpoint: Path,
    data: str,
    columns: str | None,
    label: str | None,
    header: bool | None,
    points: int,
    g: torch.Generator,
    quiet: bool,
) -> tuple[NoisyScore, Tensor, int]:
    """Return the score, points in the units of the data, and the number of rows of the data."""
    from ...core import permutation
    from .loading import load_estimator, load_for

    estimator = load_estimator(checkpoint)
    (found, labels), model = (
        load_for(estimator, data, columns, label, header=header, quiet=quiet),
        estimator.model_,
    )
    if model.event_shape.numel() > MOST:
        raise Misuse(
            f"the spectrum of {model.event_shape.numel()} dimensions is too large (at most {MOST}); "
            "use glp.geometry.intrinsic_dimension(estimator='norm')"
        )
    model = model.cpu().double().requires_grad_(False)
    chosen = permutation(len(found.x), g)[:points]
    score = model if labels is None else model.given(labels[chosen])
    return score, found.x[chosen].double(), len(found.x)


def _draw(out: Path, z: Tensor, split: Split, k: int) -> None:
    from ...core.files import write_atomically
    from ...show.plots import png
    from ...show.plots.curves import spectra, split_field

    D = z[0].numel()
    if D == 2 and k < D:
        figure = split_field(z.flatten(1), split.tangent.flatten(1), split.normal.flatten(1))
    else:
        figure = spectra(split.space.spectrum, k if k < D else None)
    write_atomically(out, png(figure))


def _print(result: dict[str, Any], rows: list[Row]) -> None:
    low, high = result["learned"]
    print(
        f"{result['points']} points at σ = {result['sigma']:.3g} "
        f"(learned: {low:.3g} to {high:.3g})"
    )
    print_rows(rows)
    if result["recommended_sigma"] is not None:
        a, b = result["recommended_sigma"]
        print(f"recommended σ: {a:.3g} to {b:.3g}, where the dimension is stable")
    spectrum = result["spectrum"]
    shown = spectrum if len(spectrum) <= 12 else [*spectrum[:6], None, *spectrum[-6:]]
    text = ", ".join("…" if v is None else f"{v:.2f}" for v in shown)
    print(f"spectrum of −σ²∇s, medians: {text}")
    for flag in result["flags"]:
        print(f"! {flag}")
