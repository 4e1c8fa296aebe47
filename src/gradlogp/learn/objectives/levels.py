r"""Score matching without a known score or a known noise, at every noise level."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    Generator,
    NoisyScoreFn,
    Schedule,
    ScoreFn,
    check_points,
    per_sample,
    randn_like,
)
from .denoising import Weight, _weight_at
from .times import draw_times
from .weights import sigma2


def noised(
    matching: Callable[..., Tensor],
    noisy_score: NoisyScoreFn,
    x: Float[Tensor, "batch *event"],
    schedule: Schedule,
    t: Float[Tensor, " batch"] | None = None,
    weight: Weight = sigma2,
    *,
    stratified: bool = False,
    generator: Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Return the loss `matching` of the noised data at each sample's level, w(α,σ) ℓ(s_θ(·, t), x_t).

    With x_t = α x + σ ε the noise is part of the data, and the loss does not look at ε. For
    `implicit`, `sliced` and `sliced_vr` it is an unbiased estimate of w (½ E‖s_θ − s_t‖² − ½ E‖s_t‖²)
    at each level: the minimiser is that of `multilevel`, whose mean is larger by w d/(2σ²).

    `partial(noised, sliced_vr)` is an objective for `fit`.

    Arguments:
        matching: A loss of one score, called as matching(score, x, generator=…) -> `(B,)`, that asks
            the score for as many points as it is given: `sliced`, `sliced_vr`, or
            `lambda s, x, generator: implicit(s, x)`.
        noisy_score: The model, (x_t, t) -> `(B, *event)`.
        x: Clean data, `(B, *event)`.
        schedule: The noise schedule.
        t: Times `(B,)`; drawn by `draw_times` where not given.
        weight: A function of (α, σ), or `weights.likelihood(schedule)`.
        stratified: Whether times that are drawn spread evenly over the batch.
        generator: Where times, noise and probes come from.

    Returns:
        The loss of each sample, `(B,)`.

    Raises:
        ValueError: For a wrong shape, an empty batch or points that are not finite.

    References:
        | Sliced Score Matching: A Scalable Approach to Density and Score Estimation (Song et al., 2020)
        | https://arxiv.org/abs/1905.07088
    """
    check_points(x)
    if t is None:
        t = draw_times(schedule, x.new_empty(len(x)), generator, stratified=stratified)
    if t.shape != x.shape[:1]:
        raise ValueError(f"t must have shape ({len(x)},), got {tuple(t.shape)}")
    alpha, sigma = schedule(t)
    a, b = per_sample(alpha, x, "alpha"), per_sample(sigma, x, "sigma")
    x_t = torch.addcmul(a * x, b, randn_like(x, generator))
    score: ScoreFn = lambda y: noisy_score(y, t)
    return _weight_at(weight, alpha, sigma, t).to(x) * matching(score, x_t, generator=generator)
