"""One noise level of a noisy score as a field whose noise is isotropic, for everything else here."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..core import NoisyScore, ScoreFn
from ..noise.blurred import blurred
from ..noise.coordinates import affine_part
from ..noise.grids import noise_range, time_at


class Field(NamedTuple):
    """The score of a law blurred by isotropic noise, and the deviation of that noise."""

    score: ScoreFn
    sigma: float


def model_field(score: NoisyScore, sigma: float | None = None) -> Field:
    r"""Return the field z ↦ α s(α z, t), σ_t/α_t = σ, in model coordinates.

    The intrinsic dimension does not depend on units, so here is where to ask for it.

    Arguments:
        score: The noisy score.
        sigma: σ; the smallest noise level by default.

    Raises:
        ValueError: If the schedule does not reach that noise level.
    """
    t = time_at(score.schedule, sigma)
    alpha = score.schedule(t)[0]

    def field(z: Tensor) -> Tensor:
        a = alpha.to(z)
        return a * score(a * z, t)

    low, _ = noise_range(score.schedule)
    return Field(field, low if sigma is None else sigma)


def data_field(score: NoisyScore, sigma: float | None = None) -> Field:
    """Return the field in the units of the data, where tangents, distances and curvature are meant.

    Arguments:
        score: The noisy score.
        sigma: Its noise level in model coordinates; the smallest by default. The field's σ is in the
            units of the data.

    Raises:
        ValueError: If columns or channels have scales of their own: noise that is isotropic for the
            model is not for the data, and angles and distances are others.
    """
    affine = affine_part(score.coordinates)
    if affine is not None and not affine.one_scale:
        raise ValueError(
            "tangents, distances and curvature in the units of the data need one scale for all "
            "columns, and this model has one for each; train it with standardize='one' (or False), "
            "or stay in model coordinates by model_field"
        )
    scale = 1.0 if affine is None else float(affine.scale.flatten()[0])
    low = noise_range(score.schedule)[0] if sigma is None else sigma
    return Field(blurred(score, sigma).score, low * scale)
