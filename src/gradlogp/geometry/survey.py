"""What a noisy score reveals about the manifold of some points, and when this is unreliable."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    Estimate,
    Generator,
    NoisyScore,
    ScoreFn,
    check_count,
    check_points,
    mean_and_error,
)
from ..noise.blurred import blurred
from ..noise.coordinates import affine_part
from ..noise.grids import noise_range, time_at
from ..noise.score_base import check_noisy_score
from .dimension import Estimator, SigmaRange, intrinsic_dimension, recommend_sigma
from .tangent import Split, tangent_normal_split


class Field(NamedTuple):
    """The score of a law blurred by isotropic noise, and the deviation of that noise."""

    score: ScoreFn
    sigma: float


def model_field(score: NoisyScore, sigma: float | None = None) -> Field:
    r"""Return the field z ↦ α s(α z, t), σ_t/α_t = σ, in model coordinates.

    The intrinsic dimension does not depend on units, so it can be estimated from this field.

    Arguments:
        score: The noisy score.
        sigma: σ; the smallest noise level by default.

    Raises:
        ValueError: If the schedule does not reach that noise level.
    """
    check_noisy_score(score)
    t = time_at(score.schedule, sigma)
    alpha = score.schedule(t)[0]

    def field(z: Tensor) -> Tensor:
        a = alpha.to(z)
        return a * score(a * z, t)

    low, _ = noise_range(score.schedule)
    return Field(field, low if sigma is None else sigma)


def data_field(score: NoisyScore, sigma: float | None = None) -> Field:
    """Return the field in the units of the data, for tangents, distances and curvature.

    Arguments:
        score: The noisy score.
        sigma: Its noise level in model coordinates; the smallest by default. The field's σ is in the
            units of the data.

    Raises:
        ValueError: If columns or channels have different scales: noise that is isotropic for the
            model is not isotropic for the data, and angles and distances differ.
    """
    check_noisy_score(score)
    affine = affine_part(score.coordinates)
    if affine is not None and not affine.one_scale:
        raise ValueError(
            "tangents, distances and curvature in the units of the data need one scale for all "
            "columns, but this model has one per column; train it with standardize='one' (or False), "
            "or stay in model coordinates with model_field"
        )
    scale = 1.0 if affine is None else float(affine.scale.flatten()[0])
    low = noise_range(score.schedule)[0] if sigma is None else sigma
    return Field(blurred(score, sigma).score, low * scale)


LEVELS = 17
"""Noise levels among which the range of a steady dimension is looked for."""

ESTIMATORS: tuple[Estimator, ...] = ("normal_rank", "norm", "divergence")

Parts = tuple[Estimate | None, Estimate | None, Estimate | None]


class Survey(NamedTuple):
    """The results of `survey`.

    Attributes:
        sigma: The noise level, in model coordinates.
        low, high: The range of noise levels of the score.
        steady: The range over which the dimension does not change, None if there is none.
        dimensions: The mean over the points by each estimator, with the smallest and largest
            value.
        k: The dimension, from the number of normal directions.
        split: Tangent and normal parts, in model coordinates.
        tangent: Length of the tangent part of the score, in the units of the data; None if columns
            have different scales, or no normal direction was found.
        curvature: Twice the length of the normal part, in the same cases.
        distance: σ² times the length of the normal part, in the same cases.
        flags: Sentences on what makes the numbers unreliable.
    """

    sigma: float
    low: float
    high: float
    steady: SigmaRange | None
    dimensions: dict[str, tuple[Estimate, float, float]]
    k: int
    split: Split
    tangent: Estimate | None
    curvature: Estimate | None
    distance: Estimate | None
    flags: tuple[str, ...]


def survey(
    score: NoisyScore,
    x: Float[Tensor, "n *event"],
    sigma: float | None = None,
    *,
    n_data: int | None = None,
    n_perturbations: int | None = None,
    stack: int = 16,
    generator: Generator | None = None,
) -> Survey:
    """Survey the manifold of points by a noisy score.

    Arguments:
        score: The noisy score.
        x: Points on or near the manifold, in the units of the data.
        sigma: A noise level in model coordinates; by default the middle of the range where the
            dimension is stable.
        n_data: Number of training points of the score; that of x by default.
        n_perturbations: Perturbations per point, for two of the estimators.
        stack: Number of perturbations passed to the score at once; 1 for a score bound to its
            rows.
        generator: Source of the perturbations.

    Raises:
        ValueError: If the score does not know that noise level; for a wrong shape.
    """
    check_noisy_score(score)
    check_points(x, event_shape=score.event_shape, least=2)
    check_count(stack, "stack")
    if n_data is not None:
        check_count(n_data, "n_data")
    z = score.coordinates.encode(x)
    D, flags = z[0].numel(), []
    low, high = noise_range(score.schedule)
    at = lambda level: model_field(score, min(max(level, low), high)).score
    steady: SigmaRange | None = None
    # where α ends at 0 the largest level is infinite
    levels = torch.linspace(math.log(low), math.log(min(high, 1e3)), LEVELS, dtype=torch.float64)
    try:
        steady = recommend_sigma(at, z, levels.exp(), tolerance=0.25)
    except ValueError as problem:
        flags.append(f"no stable dimension: {problem}")
    if sigma is None:
        sigma = low if steady is None else math.sqrt(steady.low * steady.high)
    field = model_field(score, sigma).score
    found, k = _dimensions(field, z, sigma, n_perturbations, stack, generator)
    split = tangent_normal_split(field, z, sigma, k if k < D else None)
    parts = _parts(score, split, sigma, D - k, flags) if k < D else (None, None, None)
    flags += _worthless(k, D, len(x) if n_data is None else n_data, low, sigma)
    return Survey(sigma, low, high, steady, found, k, split, *parts, tuple(flags))


def _dimensions(
    field: ScoreFn, z: Tensor, sigma: float, n: int | None, stack: int, g: Generator | None
) -> tuple[dict[str, tuple[Estimate, float, float]], int]:
    """Return the dimension by each estimator, and k by the count of normal directions."""
    dimensions: dict[str, tuple[Estimate, float, float]] = {}
    k = 0
    for estimator in ESTIMATORS:
        perturbed = estimator != "divergence"
        found = intrinsic_dimension(
            field, z, sigma, estimator=estimator, generator=g,
            n_perturbations=n if perturbed else None, stack=stack if perturbed else 1,
        )  # fmt: skip
        if estimator == "normal_rank":
            k = int(found.value.median().round())
        dimensions[estimator] = found.mean, float(found.value.min()), float(found.value.max())
    return dimensions, k


def _parts(
    score: NoisyScore, split: Split, sigma: float, codimension: int, flags: list[str]
) -> Parts:
    """Return tangent part, curvature and distance in the units of the data, if they have one scale."""
    across = split.normal.flatten(1).norm(dim=1)
    if float((sigma * across).mean()) > 0.3 * math.sqrt(codimension):
        away = mean_and_error(sigma**2 * across).value
        flags.append(
            f"the data lie off the manifold by about {away:.2g} in model coordinates, not small "
            f"compared "
            f"with σ = {sigma:.3g}: twice the normal part of the score is their distance, not "
            "curvature"
        )
    try:
        unit = data_field(score, sigma).sigma / sigma
    except ValueError as problem:
        flags.append(f"curvature and distances are omitted: {problem}")
        return None, None, None
    along = split.tangent.flatten(1).norm(dim=1)
    return (
        mean_and_error(along / unit),
        mean_and_error(2 * across / unit),
        mean_and_error(unit * sigma**2 * across),
    )


def _worthless(k: int, D: int, n: int, low: float, sigma: float) -> list[str]:
    """Return what makes the dimension worthless."""
    flags = []
    if k == D:
        flags.append(
            f"k = D = {D}: no normal direction was seen. The data fill the space, or σ = {sigma:.3g} "
            "is below the levels learned well or above the thickness of the data: try a different sigma"
        )
    elif k == 0:
        flags.append(
            f"k = 0: the score at σ = {sigma:.3g} resolves single points; try a larger sigma, or the "
            "model has memorised its data"
        )
    if n <= D:
        flags.append(
            f"{n} rows in {D} dimensions span at most {n - 1} directions: too few to determine a rank"
        )
    elif n < 10 * k:
        flags.append(
            f"{n} rows for {k} tangent directions are few: with fewer than about 10 per "
            f"direction, a score learns the points, not the manifold"
        )
    if sigma < 1.05 * low:
        flags.append(
            f"σ = {sigma:.3g} is at the lowest learned level, {low:.3g}, where scores are least "
            f"accurate"
        )
    return flags
