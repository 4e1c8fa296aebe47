r"""Denoising score matching, at one noise level and at many.

With x_t = α x_0 + σ ε the regression of s_θ(x_t) on −ε/σ has the score of the noised law as its
minimiser, and for every σ > 0 and every s_θ exactly

    ½ E‖s_θ(x_t) + ε/σ‖² = ½ E‖s_θ(x_t) − s_t(x_t)‖² + R,   R = mmse/(2 σ⁴) = d/(2σ²) − ½ E‖s_t‖²

(α = 1; mmse = E tr Cov[x_0 | x_t]). R is the loss of the perfect score, and is not 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    Generator,
    NoisyScore,
    Schedule,
    ScoreFn,
    check_function,
    check_kind,
    check_level,
    check_number,
    check_points,
    check_same_shape,
    evaluate,
    randn_like,
)
from ...noise.score_base import ScoreBase, check_noisy_score, check_same_frame
from .times import ImportanceTimes, noised_with, times_of
from .weights import Weight, sigma2, weight_at


def half_square(r: Tensor, factor: Tensor | None = None) -> Tensor:
    """Return ½‖r‖² for each sample, times a factor."""
    flat = r.flatten(1)
    half = 0.5 * torch.linalg.vecdot(flat, flat)
    return half if factor is None else half * factor


def denoising(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    sigma: Tensor | float,
    *,
    generator: Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Denoising score matching at one noise level, :math:`\tfrac12 \|s_θ(x + σ ε) + ε/σ\|^2`.

    An unbiased estimate of J(θ) = ½ E‖s_θ − s_σ‖² plus the constant R(σ) = d/(2σ²) − ½ E‖s_σ‖²,
    where s_σ is the score of the noised law.

    Arguments:
        score: The model at this noise level, `(B, *event) -> (B, *event)`.
        x: Clean data, `(B, *event)`.
        sigma: σ > 0, `()` or `(B,)`.
        generator: Source of the noise.

    Raises:
        ValueError: For σ ≤ 0, a wrong shape, an empty batch, points that are not finite, or a model
            that changes the shape.

    References:
        | A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011)
        | https://doi.org/10.1162/NECO_a_00142

    Examples:
        >>> g = torch.Generator().manual_seed(0)
        >>> x = torch.randn(100_000, 1, generator=g)
        >>> right = glp.objectives.denoising(lambda x: -x / 1.25, x, 0.5, generator=g).mean()
        >>> wrong = glp.objectives.denoising(lambda x: -x, x, 0.5, generator=g).mean()
        >>> bool(right < wrong)
        True
    """
    check_points(x)
    b: Tensor | float
    if isinstance(sigma, Tensor):
        b = check_level(sigma, x)
    else:
        check_number(sigma, "sigma", above=0)
        b = float(sigma)
    eps = randn_like(x, generator)
    x_t = torch.add(x, eps, alpha=b) if isinstance(b, float) else torch.addcmul(x, b, eps)
    s = evaluate(score, x_t)
    return half_square(s.add(eps, alpha=1 / b) if isinstance(b, float) else s + eps / b)


def multilevel(
    score: NoisyScore,
    z: Float[Tensor, "batch *event"],
    t: Float[Tensor, " batch"] | None = None,
    weight: Weight = sigma2,
    *,
    stratified: bool = False,
    importance: ImportanceTimes | None = None,
    generator: Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Denoising score matching over noise levels, :math:`w(α,σ) \, \tfrac12 \|s_θ(x_t, t) + ε/σ\|^2`.

    An unbiased estimate of E_t[w ½‖s_θ − s_t‖²] plus a constant; with the default w = σ² (the
    DDPM and NCSN weight) it is ½‖ε − ε̂‖², between 0 and d/2 for any sensible model.

    Arguments:
        score: The model, a noisy score with its schedule.
        z: Clean data in model coordinates, `(B, *event)`.
        t: Times `(B,)`; drawn by `draw_times` by default.
        weight: A function of (α, σ), number by number, or `weights.likelihood`; see
            `objectives.weights`.
        stratified: Whether drawn times are spread evenly over the batch (`draw_times`).
        importance: A non-uniform law of the times; the loss is multiplied by the ratio of
            densities, so that its mean stays that of uniform times.
        generator: Source of times and noise.

    Raises:
        ValueError: For a wrong shape, an empty batch, points that are not finite, a time at which
            σ = 0, times together with `importance`, or a model that changes the shape.

    References:
        | Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019)
        | https://arxiv.org/abs/1907.05600
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239

    Examples:
        >>> score, g = glp.ExactScore(glp.Gaussian([0.0]), glp.schedules.VP()), torch.Generator()
        >>> glp.objectives.multilevel(score, torch.zeros(5, 1), generator=g).shape
        torch.Size([5])
    """
    check_noisy_score(score)
    check_points(z, "z", score.event_shape, wait=False)
    draws = draw(score.schedule, z, t, stratified, importance, generator)
    asked = regression(score.schedule, z, draws, weight)
    # scores of ours look themselves; on a device it would be a wait
    b = asked.b
    if not (isinstance(score, ScoreBase) or b.device.type != "cpu" or bool(b.min() > 0)):
        raise ValueError("some times have sigma = 0, where there is no noise to predict")
    s = score(asked.z_t, asked.t)
    check_same_shape(s, z, "the score")
    return half_square(torch.addcmul(asked.eps, b, s), asked.factor)  # finite for every σ


class Draws(NamedTuple):
    """What `multilevel` draws for each sample: its time, the ratio of densities there, and ε."""

    t: Tensor
    ratio: Tensor | None
    eps: Tensor


class Regression(NamedTuple):
    """What `multilevel` asks of a score: σ s(z_t, t) ≈ −ε."""

    z_t: Tensor
    t: Tensor
    eps: Tensor
    b: Tensor  # σ as it multiplies z
    factor: Tensor | None  # of ½‖ε + σ s‖²; None: 1


def draw(
    schedule: Schedule,
    z: Tensor,
    t: Tensor | None = None,
    stratified: bool = False,
    importance: ImportanceTimes | None = None,
    generator: Generator | None = None,
) -> Draws:
    """Draw what `multilevel` draws; arguments as there."""
    if importance is None:
        t = times_of(schedule, z, t, generator, stratified)
        return Draws(t, None, randn_like(z, generator))
    check_kind(importance, "importance", ImportanceTimes, "ImportanceTimes")
    if t is not None:
        raise ValueError("pass times t or a law to draw them from (importance), not both")
    t, ratio = importance.draw(schedule, z.new_empty(len(z)), generator, stratified=stratified)
    return Draws(t, ratio, randn_like(z, generator))


def regression(schedule: Schedule, z: Tensor, draws: Draws, weight: Weight) -> Regression:
    """Return what `multilevel` asks for these draws."""
    t, factor, eps = draws
    z_t, b = noised_with(schedule, z, t, eps)
    if weight is not sigma2:
        w = (weight_at(weight, schedule, t) / schedule(t)[1] ** 2).to(z)
        factor = w if factor is None else w * factor
    return Regression(z_t, t, eps, b, factor)


def options_of(objective: object) -> dict[str, Any] | None:
    """Return the options with which `multilevel` draws for each batch anew, of a partial of it.

    None: it is another objective, or its times and source of noise are given.
    """
    options: dict[str, Any] = {}
    while isinstance(objective, partial) and not objective.args:
        options, objective = objective.keywords | options, objective.func
    known = options.keys() <= {"weight", "stratified", "importance"}
    return options if objective is multilevel and known else None


def excess(
    score: NoisyScore,
    exact: NoisyScore,
    z: Float[Tensor, "batch *event"],
    t: Float[Tensor, " batch"],
    weight: Weight = sigma2,
    *,
    generator: Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""The loss of a model above the floor R, :math:`w(α,σ) \, \tfrac12 \|s_θ(x_t, t) - s_t(x_t)\|^2`.

    The same expectation as `multilevel` minus its floor, with far less variance, because the exact
    score replaces the noise. 0 for the exact score.

    Arguments:
        score: The model.
        exact: The exact noisy score of the law of the data.
        z: Clean data in model coordinates, `(B, *event)`.
        t: Times `(B,)`.
        weight: A function of (α, σ).
        generator: Source of the noise.

    Raises:
        ValueError: For two scores with different schedules or coordinates, or a wrong shape.
    """
    check_noisy_score(score)
    check_noisy_score(exact, "exact")
    check_same_frame(score, exact, "score and exact, the model and the exact score,")
    check_points(z, "z", score.event_shape, wait=False)
    t = times_of(score.schedule, z, t, generator, False)
    z_t, _ = noised_with(score.schedule, z, t, randn_like(z, generator))
    s, target = score(z_t, t), exact(z_t, t)
    check_same_shape(s, z_t, "the score")
    check_same_shape(target, z_t, "the exact score")
    return weight_at(weight, score.schedule, t).to(z) * half_square(s - target)


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
        matching: A loss of one score, called as matching(score, x, generator=…) -> `(B,)`, that
            evaluates the score at as many points as it receives: `sliced`, `sliced_vr`, or `lambda
            s, x, generator: implicit(s, x)`.
        score: The model, a noisy score with its schedule.
        z: Clean data in model coordinates, `(B, *event)`.
        t: Times `(B,)`; drawn by `draw_times` by default.
        weight: A function of (α, σ), or `weights.likelihood`.
        stratified: Whether drawn times are spread evenly over the batch.
        generator: Source of times, noise and probes.

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
    z_t, _ = noised_with(schedule, z, t, randn_like(z, generator))
    at_level: ScoreFn = lambda y: score(y, t)
    loss = matching(at_level, z_t, generator=generator)
    check_same_shape(loss, t, "matching")
    return weight_at(weight, schedule, t).to(z) * loss
