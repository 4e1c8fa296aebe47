r"""What a network predicts, and the conversions between these, through (x_0, ε).

With x_t = α x_0 + σ ε every prediction is a linear function of a pair (x̂_0, ε̂) that satisfies
x_t = α x̂_0 + σ ε̂:

=========  =====================
kind       value
=========  =====================
score      −ε / σ
epsilon    ε
x0         x_0
v          α ε − σ x_0
velocity   ε − x_0
=========  =====================

A score turns into ε (and back) without passing through x_0.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from ..core import NoisyScore, check_batch, check_option, check_same_shape, per_sample
from .tabulated import numbers

Kind = Literal["score", "epsilon", "x0", "v", "velocity"]
KINDS: tuple[Kind, ...] = ("score", "epsilon", "x0", "v", "velocity")


def check_determines(kind: Kind, other: str, divisor: Tensor) -> None:
    """Raise `ValueError` if a prediction does not determine "x_0" at α = 0, or "epsilon" at σ = 0."""
    silent = ("score", "epsilon") if other == "x_0" else ("x0",)
    if kind in silent and bool((divisor == 0).any()):
        symbol = "alpha" if other == "x_0" else "sigma"
        raise ValueError(
            f"{kind} does not determine {other} where {symbol} = 0; avoid that end of the time range, "
            "or predict 'v' or 'velocity', which determine it at both ends"
        )


Part = Any
"""A tensor, or a number in its place."""


def to_x0(kind: Kind, value: Part, x_t: Part, a: Part, b: Part) -> Part:
    """Return x̂_0 of a prediction; α and σ as numbers, or tensors that broadcast against x_t.

    Not finite where the prediction does not determine it; values are not checked.
    """
    if kind == "x0":
        return value
    if kind == "v":
        return (a * x_t - b * value) / (a**2 + b**2)
    if kind == "velocity":
        return (x_t - b * value) / (a + b)
    eps = to_epsilon(kind, value, x_t, a, b)
    return (x_t - b * eps if isinstance(b, Tensor) else torch.sub(x_t, eps, alpha=b)) / a


def to_epsilon(kind: Kind, value: Part, x_t: Part, a: Part, b: Part) -> Part:
    """Return ε̂ of a prediction; arguments as for `to_x0`."""
    if kind == "epsilon":
        return value
    if kind == "x0":  # with one rounding less than by weights
        return (x_t - a * value) / b
    of_x, of_value = epsilon_weights(kind, a, b)
    return of_value * value if of_x is None else of_x * x_t + of_value * value


def epsilon_weights(
    kind: Kind, a: Part, b: Part, *, unit: bool = False
) -> tuple[Part | None, Part]:
    """Return p and q of ε̂ = p x_t + q value, None for a p of 0; `unit` says that α² + σ² = 1."""
    if kind == "x0":
        return 1 / b, -a / b
    if kind == "v":
        if unit:
            return b, a
        norm = a**2 + b**2
        return b / norm, a / norm
    if kind == "velocity":
        return 1 / (a + b), a / (a + b)
    return None, -b if kind == "score" else 1.0


def from_prediction(
    kind: Kind, value: Tensor, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> tuple[Tensor, Tensor]:
    r"""Return the pair (x̂_0, ε̂) that a prediction of `kind` stands for.

    .. math::
        \text{score, epsilon}: ε = -σ s, \; x_0 = (x_t - σ ε)/α \qquad
        \text{x0}: ε = (x_t - α x_0)/σ

        \text{v}: x_0 = \frac{α x_t - σ v}{α^2 + σ^2}, \; ε = \frac{σ x_t + α v}{α^2 + σ^2} \qquad
        \text{velocity}: x_0 = \frac{x_t - σ u}{α + σ}, \; ε = \frac{x_t + α u}{α + σ}

    Arguments:
        kind: What was predicted.
        value: The prediction, shape `(B, *event)`.
        x_t: The points of the prediction, shape `(B, *event)`.
        alpha: α, `()` or `(B,)`.
        sigma: σ, `()` or `(B,)`.

    Raises:
        ValueError: If the prediction does not determine the pair: a score or ε at α = 0, an x_0
            at σ = 0; or for a wrong shape or an unknown kind.

    References:
        | Progressive Distillation for Fast Sampling of Diffusion Models (Salimans & Ho, 2022)
        | https://arxiv.org/abs/2202.00512
    """
    check_option(kind, "kind", KINDS)
    check_batch(x_t, name="x_t")
    check_same_shape(value, x_t, "value")
    a, b = per_sample(alpha, x_t, "alpha"), per_sample(sigma, x_t, "sigma")
    check_determines(kind, "x_0", a)
    check_determines(kind, "epsilon", b)
    return to_x0(kind, value, x_t, a, b), to_epsilon(kind, value, x_t, a, b)


def to_prediction(
    kind: Kind, x0: Tensor, eps: Tensor, alpha: Tensor | float, sigma: Tensor | float
) -> Tensor:
    """Return the prediction of `kind` that stands for (x_0, ε): the inverse of `from_prediction`.

    Raises:
        ValueError: For the score at σ = 0, where it does not exist; for a wrong shape or an
            unknown kind.
    """
    check_option(kind, "kind", KINDS)
    check_batch(eps, name="eps")
    check_same_shape(x0, eps, "x0")
    a, b = per_sample(alpha, eps, "alpha"), per_sample(sigma, eps, "sigma")
    if kind == "x0":
        return x0
    if kind == "v":
        return a * eps - b * x0
    if kind == "velocity":
        return eps - x0
    if kind == "epsilon":
        return eps
    if bool((b == 0).any()):
        raise ValueError("there is no score where sigma = 0")
    return -eps / b


def predict(score: NoisyScore, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (ẑ_0, ε̂) at z_t = z with one evaluation of the model.

    From the score, ε̂ = −σ s and ẑ_0 = (z − σ ε̂)/α. Where α is 0 up to rounding, the score
    carries no information about z_0, and `denoise` of the model is used. Where σ = 0 there is no
    score, and ẑ_0 = z/α, ε̂ = 0.

    Raises:
        ValueError: If α = 0 and the model cannot denoise, or if it returns a different shape.
    """
    check_batch(z, name="z", held=False)
    a: Part
    b: Part
    if t.ndim:
        alpha, sigma = score.schedule(t)
        blind, bare = bool((alpha < 1e-6 * sigma).any()), bool((sigma == 0).all())
        a, b = per_sample(alpha, z), per_sample(sigma, z)
    else:
        a, b = numbers(score.schedule, t)
        blind, bare = a < 1e-6 * b, b == 0
    if blind:
        x0 = score.denoise(z, t)
        check_same_shape(x0, z, "the score's denoise")
        return x0, to_epsilon("x0", x0, z, a, b)
    if bare:
        return z / a, torch.zeros_like(z)
    s = score(z, t)
    check_same_shape(s, z, "the score")
    eps = to_epsilon("score", s, z, a, b)
    return to_x0("epsilon", eps, z, a, b), eps


def flow_end(score: NoisyScore, z: Tensor, t: Tensor, z0: Tensor) -> Tensor:
    """Return where the flow from z_t = z ends, at σ = 0, as far as this is known.

    It is Tweedie's mean ẑ_0 = `z0`, plus the difference if the score knows it
    (`ScoreBase._beyond_mean`).
    """
    if numbers(score.schedule, t)[1] == 0:
        return z0
    beyond = beyond_mean(score, z, t)
    return z0 if beyond is None else z0 + beyond


def beyond_mean(score: NoisyScore, z: Tensor, t: Tensor) -> Tensor | None:
    """Return the end of the flow from z minus E[z_0 | z_t = z]; None if it is not known."""
    known = getattr(score, "_beyond_mean", None)  # a score of another make has none
    return None if known is None else known(z, t)


def flow_velocity(score: NoisyScore, z: Tensor, t: Tensor) -> Tensor:
    r"""Return the velocity of the probability flow, α' ẑ_0 + σ' ε̂, at times `()` or `(B,)`.

    It is f z − ½ g² s, without the division by α or σ.
    """
    z0, eps = predict(score, z, t)
    d_alpha, d_sigma = (per_sample(rate, z, "the rate") for rate in score.schedule.rates(t))
    return d_alpha * z0 + d_sigma * eps
