r"""Densities of incomplete rows: of the unknown entries given the rest, and of the known entries."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Generator, NoisyScore, check_count, check_generator, check_kind, check_points
from ..noise.blurred import encode
from ..noise.coordinates import affine_part
from ..noise.score_base import check_noisy_score
from .evolve import check_times, evolve
from .likelihood import log_likelihood
from .transitions.flow import ProbabilityFlow


def conditional_log_likelihood(
    score: NoisyScore, x: Float[Tensor, "batch D"], known: Tensor, **options: Any
) -> Float[Tensor, " batch"]:
    r"""Return :math:`\log p(x_{unknown} \mid x_{known})` in nats, in the units of the data.

    From the flow of `score.given(rows with holes)`, whose known entries are independent and
    normal: their contribution is known and subtracted.

    Arguments:
        score: A score that can be conditioned on any part of x: a `ScoreModel` whose network was
            created with `holes=True`, or an `ExactScore` of a law `WithHoles`.
        x: Complete rows.
        known: Which entries are known, bool, shape of x.
        **options: Options of `log_likelihood`.

    Raises:
        ValueError: For a different kind of score, shapes that do not fit, or what `log_likelihood`
            refuses.
    """
    check_noisy_score(score)
    check_points(x, event_shape=score.event_shape)
    check_kind(known, "known", Tensor, "a bool tensor like x")
    if known.dtype != torch.bool or known.shape != x.shape:
        raise ValueError(
            f"known must be bool of shape {tuple(x.shape)}, got {known.dtype} {tuple(known.shape)}"
        )
    given = score.given(torch.where(known, x, torch.nan))
    if score.moments is None:
        raise ValueError("the score has no moments, which the known entries need")
    mean, var = score.moments
    at_mean = score.coordinates.decode(mean[None].expand(x.shape)).to(x)
    y = torch.where(known, at_mean, x)
    found = log_likelihood(given, y, **options)
    a, b = (q.to(x) for q in score.schedule(torch.tensor(found.t_min, dtype=torch.float64)))
    v = a**2 * var.to(x) + b**2
    off = encode(score, y).to(x) - a * mean.to(x)
    normal = -0.5 * (off.square() / v + (2 * math.pi * v).log())
    affine = affine_part(score.coordinates)
    if affine is not None:
        normal = normal - affine.scale.to(x).log()
    return found.log_prob - torch.where(known, normal, 0.0).sum(1)


def marginal_log_likelihood(
    score: NoisyScore,
    x: Float[Tensor, "batch D"],
    *,
    n_draws: int = 1,
    times: Tensor | None = None,
    generator: Generator | None = None,
    **options: Any,
) -> Float[Tensor, " batch"]:
    r"""Return :math:`\log p(x_{known})` in nats, of rows that are NaN where an entry is missing.

    .. math:: p(x_k) = E_{x_u \sim p(\cdot \mid x_k)} \left[ \frac{p(x_k, x_u)}{p(x_u \mid x_k)} \right]

    If joint and conditional law are consistent, the ratio is p(x_k) for any x_u: for an exact
    score one draw is exact. For a learned score the mean over draws tends to the marginal of the
    joint law that it has learned.

    Arguments:
        score: As in `conditional_log_likelihood`.
        x: Rows, NaN in unknown entries.
        n_draws: Number of draws of the unknown entries.
        times: The grid of the draws; that of `evolve` by default.
        generator: Source of the draws.
        **options: Options of `log_likelihood`.

    Raises:
        ValueError: For what `conditional_log_likelihood` refuses, or a row without known entries.
    """
    check_noisy_score(score)
    check_count(n_draws, "n_draws")
    check_generator(generator)
    if times is not None:
        check_times(times)
    check_kind(x, "x", Tensor, "rows with holes")
    known = ~x.isnan()
    if x.ndim != 2 or not bool(known.any(1).all()):
        raise ValueError("x must have shape (B, D), with at least one known entry in each row")
    whole = known.all(1)
    ratios = []
    for _ in range(n_draws):
        y = x.clone()
        if not bool(whole.all()):
            drawn = evolve(
                ProbabilityFlow(), score.given(x), len(x), times, generator=generator,
                chunk_size=options.get("chunk_size"),
            )  # fmt: skip
            y = torch.where(known, x, drawn.to(x))
        joint = log_likelihood(score, y, **options).log_prob
        ratios.append(joint - conditional_log_likelihood(score, y, known, **options))
    return torch.stack(ratios).logsumexp(0) - math.log(n_draws)
