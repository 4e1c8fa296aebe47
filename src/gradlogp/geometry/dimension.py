"""The dimension of the manifold that data lie on, point by point, from a score at one noise level."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..calculus.reverse import hutchinson_trace, jacobian_trace, probe
from ..core import Generator, ScoreFn, sum_event
from .perturb import GROUPS, count, noise_level, perturbed_scores, rank_threshold, score_moments
from .tangent import perturbations

Estimator = Literal["normal_rank", "norm", "divergence", "flipd"]


class IntrinsicDimension(NamedTuple):
    """The dimension k at every point, `(B,)`, with a standard error over what was drawn.

    Attributes:
        value: k, not rounded.
        standard_error: Of the value over perturbations or probes; 0 for an exact divergence.
        full: Whether no normal direction was seen, k > D − ½. Then either the data fill the space, or
            σ is larger than they are thick, or so small that the score is not known there.
    """

    value: Float[Tensor, " batch"]
    standard_error: Float[Tensor, " batch"]
    full: Bool[Tensor, " batch"]


def _normal_rank(
    score: ScoreFn, x: Tensor, b: Tensor, n: int, generator: Generator | None, stack: int
) -> tuple[Tensor, Tensor]:
    """Return D minus the number of normal eigenvalues, and its jackknife over groups left out."""
    total, sizes = score_moments(score, x, b, n, generator, stack)
    D, whole = x.shape[1:].numel(), total.sum(0)
    left_out = []
    for part, size in zip([0 * whole, *total], [0 * n, *sizes.tolist()], strict=True):
        spectrum = torch.linalg.eigvalsh((whole - part) / (n - size))
        left_out.append((spectrum < rank_threshold(n - size, D)).sum(1).to(x))
    value, others = left_out[0], torch.stack(left_out[1:])
    spread = (others - others.mean(0)).square().sum(0) * (GROUPS - 1) / GROUPS
    return value, spread.sqrt()


def _norm(
    score: ScoreFn, x: Tensor, b: Tensor, n: int, generator: Generator | None, stack: int
) -> tuple[Tensor, Tensor]:
    """Return D − mean of ‖σ s(x + σ z)‖², with ‖z‖² − D as a control variate."""
    pairs = [
        (z.square().sum(2), s.square().sum(2))
        for z, s in perturbed_scores(score, x, b, n, generator, stack)
    ]
    noise, norm = (torch.cat(values) for values in zip(*pairs, strict=True))
    D = x.shape[1:].numel()
    control = noise - D
    values = []
    for here in (slice(0, None, 2), slice(1, None, 2)):  # the slope is that of the other half
        there = slice(1 - (here.start or 0), None, 2)
        c, y = control[there] - control[there].mean(0), norm[there] - norm[there].mean(0)
        slope = (c * y).sum(0) / c.square().sum(0)
        values.append(D - norm[here] + slope * control[here])
    result = torch.cat(values)
    return result.mean(0), result.std(0) / n**0.5


def _divergence(
    score: ScoreFn,
    x: Tensor,
    b: Tensor,
    n_probes: int | None,
    generator: Generator | None,
    with_norm: bool,
) -> tuple[Tensor, Tensor]:
    """Return D + σ² div s, plus σ² ‖s‖² where asked, and the error over probes."""
    variance, D = b.reshape(-1).square(), x.shape[1:].numel()
    if n_probes is None:
        s, trace = jacobian_trace(score, x)
        error = torch.zeros_like(trace)
    else:
        v = torch.stack([probe("rademacher", x, generator) for _ in range(n_probes)])
        s, forms = hutchinson_trace(score, x, v)
        trace, error = forms.mean(0), forms.std(0) / n_probes**0.5
    value = D + variance * (trace + sum_event(s.square()) if with_norm else trace)
    return value.detach(), (variance * error).detach()


def intrinsic_dimension(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    sigma: Tensor | float,
    *,
    estimator: Estimator = "normal_rank",
    n_perturbations: int | None = None,
    n_probes: int | None = None,
    generator: Generator | None = None,
    stack: int = 1,
) -> IntrinsicDimension:
    r"""Dimension k of the manifold at each point x on it, from the score s at noise level σ.

    All rest on s_σ ≈ −P_N (x − π(x))/σ² near the manifold, P_N the projection on D − k normals.

    - "normal_rank": D minus the number of directions that σ s(x + σ z) takes: the eigenvalues of
      σ² E[s sᵀ] are near 1 for normals and 0 for tangents. Whole numbers, and no derivative.
    - "norm": :math:`D - σ^2 E\|s(x + σ z)\|^2`; no derivative. The noise of ‖z‖² is taken out.
    - "divergence": :math:`D + σ^2 \nabla \cdot s(x)`, the same on the manifold and within a few σ
      of it.
    - "flipd": :math:`D + σ^2 (\nabla \cdot s(x) + \|s(x)\|^2)`, which is
      D + d log p_σ(x)/d log σ. At noised points it reads D on average, so x must be data.

    The error of each is O(σ²): a direction in which data have the standard deviation τ counts as about
    τ²/(τ² + σ²) in the last three, and as tangent in the first if τ is above 1 to 2 σ. Curvature and
    gaps between data points act in the same way. `recommend_sigma` looks for the range of σ between
    them.

    Arguments:
        score: s at noise level σ, with α = 1.
        x: Points on the manifold, `(B, *event)`.
        sigma: σ, `()` or `(B,)`.
        estimator: One of the four.
        n_perturbations: For the first two; at least 2D for "normal_rank". max(64, 8D) where not given.
        n_probes: For the last two: Rademacher probes for the divergence; exact where not given.
        generator: Where perturbations and probes come from.
        stack: Perturbations handed to the score at once, as stack · B rows. More than 1 is faster
            with few points, and needs a score that treats all rows alike.

    Raises:
        ValueError: For σ ≤ 0, too few perturbations or probes, or an argument of another estimator.

    References:
        | Your diffusion model secretly knows the dimension of the data manifold
          (Stanczuk et al., 2022)
        | https://arxiv.org/abs/2212.12611
        | A Geometric View of Data Complexity: Efficient Local Intrinsic Dimension Estimation with
          Diffusion Models (Kamkari et al., 2024)
        | https://arxiv.org/abs/2406.03537
    """
    b, D = noise_level(sigma, x), x.shape[1:].numel()
    if estimator in ("normal_rank", "norm"):
        if n_probes is not None:
            raise ValueError(f'{estimator!r} takes n_perturbations; n_probes is for "divergence"')
        if estimator == "normal_rank":
            n = perturbations(n_perturbations, D)
            value, error = _normal_rank(score, x, b, n, generator, stack)
        else:
            why = "a slope and an error have to come from them"
            n = count(n_perturbations, max(64, 8 * D), 8, "n_perturbations", why)
            value, error = _norm(score, x, b, n, generator, stack)
    elif estimator in ("divergence", "flipd"):
        if n_perturbations is not None:
            raise ValueError(f'{estimator!r} takes n_probes; n_perturbations is for "norm"')
        if n_probes is not None:
            count(n_probes, 0, 2, "n_probes", "one probe has no standard error; None is exact")
        value, error = _divergence(score, x, b, n_probes, generator, estimator == "flipd")
    else:
        raise ValueError(
            f'unknown estimator {estimator!r}; one of "normal_rank", "norm", "divergence", "flipd"'
        )
    return IntrinsicDimension(value, error, value > D - 0.5)
