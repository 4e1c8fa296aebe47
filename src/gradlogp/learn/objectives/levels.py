r"""Score matching without a known score or a known noise, at every noise level."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from ...core import Generator, NoisyScore, ScoreFn, check_function, check_points, check_same_shape
from ...noise.score_base import check_noisy_score
from .times import noised_at, times_of
from .weights import Weight, sigma2, weight_at


def noised(
    matching: Callable[..., Tensor],
    score: NoisyScore,
    z: Float[Tensor, "batch *event"],
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
        score: The model, a noisy score with its schedule.
        z: Clean data in model coordinates, `(B, *event)`.
        t: Times `(B,)`; drawn by `draw_times` by default.
        weight: A function of (α, σ), or `weights.likelihood`.
        stratified: Whether times that are drawn spread evenly over the batch.
        generator: Where times, noise and probes come from.

    Raises:
        ValueError: For a wrong shape, an empty batch or points that are not finite.

    References:
        | Sliced Score Matching: A Scalable Approach to Density and Score Estimation (Song et al., 2019)
        | https://arxiv.org/abs/1905.07088
    """
    check_noisy_score(score)
    check_points(z, "z", score.event_shape, wait=False)
    check_function(matching, "matching", takes=2, by_name=("generator",))
    schedule = score.schedule
    t = times_of(schedule, z, t, generator, stratified)
    z_t, _, _ = noised_at(schedule, z, t, generator)
    at_level: ScoreFn = lambda y: score(y, t)
    loss = matching(at_level, z_t, generator=generator)
    check_same_shape(loss, t, "matching")
    return weight_at(weight, schedule, t).to(z) * loss
