r"""From data to a noise level, and the score at one noise level in the units of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    Density,
    Generator,
    NoisyScore,
    check_level,
    check_points,
    per_sample,
    randn_like,
)
from .grids import time_at
from .score_base import ScoreBase, check_noisy_score


def encode(score: NoisyScore, x: Tensor) -> Tensor:
    """Return z of data x, in the dtype and on the device in which the score computes."""
    z = score.coordinates.encode(x)
    return z.to(score.like) if isinstance(score, ScoreBase) and score.fixed_dtype else z


def perturb(
    score: NoisyScore,
    x0: Float[Tensor, "batch *event"],
    t: Tensor,
    *,
    generator: Generator | None = None,
) -> Float[Tensor, "batch *event"]:
    r"""Return z_t = α_t z_0 + σ_t ε for data x_0: from the units of the data to a state.

    Arguments:
        score: The noisy score, for its coordinates and schedule.
        x0: Data, `(B, *event)`.
        t: Times, `()` or `(B,)`.
        generator: Source of ε.

    Raises:
        ValueError: For a wrong shape, an empty batch, or entries that are not finite.

    Examples:
        >>> score = glp.ExactScore(glp.Gaussian([0.0]), glp.schedules.VE())
        >>> x, g = torch.zeros(10_000, 1), torch.Generator().manual_seed(0)
        >>> z = glp.perturb(score, x, torch.tensor(0.5), generator=g)
        >>> abs(float(z.std() / score.schedule(torch.tensor(0.5))[1]) - 1) < 0.02
        True
    """
    check_noisy_score(score)
    check_points(x0, "x0", score.event_shape)
    check_level(t, x0, "t", zero=True)
    t = t if isinstance(t, Tensor) else torch.tensor(float(t))
    z = encode(score, x0)
    alpha, sigma = (per_sample(v, z) for v in score.schedule(t))
    return alpha * z + sigma * randn_like(z, generator)


@dataclass(frozen=True, eq=False)
class Blurred:
    """The law of the data blurred by one noise level, in the units of the data; see `blurred`."""

    noisy_score: NoisyScore
    t: Tensor

    def _state(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = encode(self.noisy_score, x)
        alpha = self.noisy_score.schedule(self.t)[0].to(z)
        return alpha * z, alpha

    def score(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return ∇ log p(x), of the dtype of x."""
        z, alpha = self._state(x)
        s = (alpha * self.noisy_score(z, self.t)).to(x)
        return self.noisy_score.coordinates.pull_back(x, s)

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return log p(x).

        Raises:
            ValueError: If the noisy score has no log-density.
        """
        z, alpha = self._state(x)
        log_p = noisy_log_prob(self.noisy_score, z, self.t).to(x)
        gain = x.shape[1:].numel() * alpha.log().to(x)
        return log_p + gain + self.noisy_score.coordinates.log_det(x)


def blurred(score: NoisyScore, sigma: float | None = None) -> Density:
    r"""Return the field of a noisy score in the units of the data: a density with score and log_prob.

    .. math::
        p(x) = \text{the law of } x_0 \text{ blurred by noise of standard deviation } σ, \qquad
        \nabla \log p(x) = \left(\frac{dz}{dx}\right)^\top α_t\, s(α_t z(x), t), \quad σ_t/α_t = σ

    A larger σ gives a smoother and more accurate field: an error δ of ε̂ is an error δ/σ of the
    score.

    Arguments:
        score: The noisy score.
        sigma: The noise level in model coordinates, that is in units of each column's standard
            deviation for a model with standardised coordinates; the smallest noise level by
            default.

    Raises:
        ValueError: If the schedule does not reach that noise level; when `log_prob` is called, if
            the score has no log-density.

    Examples:
        >>> score = glp.ExactScore(glp.Gaussian([0.0]), glp.schedules.VE(0.01, 10.0))
        >>> glp.blurred(score, 3.0).score(torch.tensor([[1.0]]))
        tensor([[-0.1000]])
    """
    check_noisy_score(score)
    return Blurred(score, time_at(score.schedule, sigma))


def noisy_log_prob(score: NoisyScore, z: Tensor, t: Tensor) -> Tensor:
    """Return log p_t(z) of a noisy score that has one, `(B,)`.

    Raises:
        ValueError: If it does not have one.
    """
    log_prob = getattr(score, "log_prob", None)
    if log_prob is None:
        raise ValueError(
            f"this noisy score ({type(score).__name__}) has no log-density, which Metropolis "
            "corrections need; use a kernel without one (ULA, LeimkuhlerMatthews, BAOAB) or a score "
            "with log_prob(z, t), as ExactScore"
        )
    return log_prob(z, t)
