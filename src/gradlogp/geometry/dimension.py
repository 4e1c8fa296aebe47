"""The dimension of the manifold of data at each point, and noise levels at which to estimate it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..calculus.reverse import hutchinson_trace, jacobian_trace, probe
from ..core import (
    Estimate,
    Generator,
    NoiseSource,
    ScoreFn,
    check_count,
    check_finite,
    check_function,
    check_generator,
    check_number,
    check_option,
    check_points,
    mean_and_error,
    sum_event,
)
from ..distributions.analytic.covariance import as_parameter
from .tangent import (
    GROUPS,
    count,
    noise_level,
    perturbations,
    perturbed_scores,
    rank_threshold,
    score_moments,
)

Estimator = Literal["normal_rank", "norm", "divergence", "flipd"]


class IntrinsicDimension(NamedTuple):
    """The dimension k at every point, `(B,)`, with a standard error over the random draws.

    Attributes:
        value: k, not rounded.
        standard_error: Of the value over perturbations or probes; 0 for an exact divergence.
        full: Whether no normal direction was found, k > D − ½. Then either the data fill the
            space, or σ is larger than their thickness, or so small that the score is not known
            there.
    """

    value: Float[Tensor, " batch"]
    standard_error: Float[Tensor, " batch"]
    full: Bool[Tensor, " batch"]

    @property
    def mean(self) -> Estimate:
        """The mean over the points; the error of a single one is its own."""
        if len(self.value) > 1:
            return mean_and_error(self.value)
        return Estimate(float(self.value), float(self.standard_error))


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

    All are based on s_σ ≈ −P_N (x − π(x))/σ² near the manifold, P_N the projection onto D − k
    normals.

    - "normal_rank": D minus the number of directions of σ s(x + σ z): the eigenvalues of
      σ² E[s sᵀ] are near 1 for normals and 0 for tangents. Integers, and no derivative.
    - "norm": :math:`D - σ^2 E\|s(x + σ z)\|^2`; no derivative. The noise of ‖z‖² is subtracted.
    - "divergence": :math:`D + σ^2 \nabla \cdot s(x)`, the same on the manifold and within a few σ
      of it.
    - "flipd": :math:`D + σ^2 (\nabla \cdot s(x) + \|s(x)\|^2)`, which is
      D + d log p_σ(x)/d log σ. At noised points its mean is D, so x must be data.

    The error of each is O(σ²). Along a direction in which data are Gaussian with the standard
    deviation τ, the mean over data of what it counts as is

    - :math:`τ^2/(τ^2 + σ^2)` in "norm" and "divergence",
    - :math:`τ^2 (τ^2 + 2σ^2)/(τ^2 + σ^2)^2` in "flipd",
    - 0 or 1 in "normal_rank". Its eigenvalue, at the coordinate u of the point along it,
      :math:`σ^2 (u^2 + σ^2)/(τ^2 + σ^2)^2`, has the mean σ²/(τ² + σ²). It is tangent where this is
      below ½ (1 − √(D/n))² for n perturbations; by default from τ of about 1 to 2 σ on.

    Curvature and gaps between data points have the same effect. `recommend_sigma` finds the range
    of σ between them.

    Arguments:
        score: s at noise level σ, with α = 1.
        x: Points on the manifold, `(B, *event)`.
        sigma: σ, `()` or `(B,)`.
        estimator: One of the four.
        n_perturbations: For the first two; at least 2D for "normal_rank". By default max(64, 8D).
        n_probes: For the last two: Rademacher probes for the divergence; exact by default.
        generator: Source of perturbations and probes.
        stack: Perturbations handed to the score at once, as in `tangent_space`.

    Raises:
        ValueError: For σ ≤ 0, too few perturbations or probes, or an argument of a different
            estimator.

    References:
        | Your diffusion model secretly knows the dimension of the data manifold
          (Stanczuk et al., 2022)
        | https://arxiv.org/abs/2212.12611
        | A Geometric View of Data Complexity: Efficient Local Intrinsic Dimension Estimation with
          Diffusion Models (Kamkari et al., 2024)
        | https://arxiv.org/abs/2406.03537

    Examples:
        >>> law = glp.distributions.UniformSphere(3)
        >>> x = law.sample(5, generator=torch.Generator().manual_seed(0))
        >>> glp.geometry.intrinsic_dimension(law.noised(1.0, 0.05).score, x, 0.05).value
        tensor([2., 2., 2., 2., 2.])
    """
    b, D = noise_level(sigma, x), x.shape[1:].numel()
    check_function(score, "score")
    check_option(estimator, "estimator", Estimator)
    check_generator(generator, NoiseSource)
    check_count(stack, "stack")
    if estimator in ("normal_rank", "norm"):
        if n_probes is not None:
            raise ValueError(f'{estimator!r} takes n_perturbations; n_probes is for "divergence"')
        if estimator == "normal_rank":
            n = perturbations(n_perturbations, D)
            value, error = _normal_rank(score, x, b, n, generator, stack)
        else:
            why = "they must give a slope and an error"
            n = count(n_perturbations, max(64, 8 * D), 8, "n_perturbations", why)
            value, error = _norm(score, x, b, n, generator, stack)
    else:
        if n_perturbations is not None:
            raise ValueError(f'{estimator!r} takes n_probes; n_perturbations is for "norm"')
        if n_probes is not None:
            count(
                n_probes,
                0,
                2,
                "n_probes",
                "one probe has no standard error; None computes exactly",
            )
        value, error = _divergence(score, x, b, n_probes, generator, estimator == "flipd")
        check_finite(value, "the derivative of score")
    return IntrinsicDimension(value, error, value > D - 0.5)


class SigmaRange(NamedTuple):
    """A range of σ over which the estimated dimension is constant, and all estimates.

    Attributes:
        low, high: The range.
        dimension: The mean over the points, at the middle of the range.
        sigmas: All levels, ascending, `(n,)`.
        values: The mean over the points at each, `(n,)`.
        standard_errors: The standard errors of those means, `(n,)`.
    """

    low: float
    high: float
    dimension: Estimate
    sigmas: Float[Tensor, " n"]
    values: Float[Tensor, " n"]
    standard_errors: Float[Tensor, " n"]


def recommend_sigma(
    score_at: Callable[[float], ScoreFn],
    x: Float[Tensor, "batch *event"],
    sigmas: Tensor | Sequence[float],
    *,
    estimator: Estimator = "divergence",
    tolerance: float = 0.1,
    **options: Any,
) -> SigmaRange:
    r"""Find the range of σ over which the estimated dimension of a manifold is constant.

    Below it the estimate sees points instead of a manifold (or a score that was not learned at
    such small scales), above it curvature, and finally a single blob: k → 0. The result is the
    widest range of levels, in log σ, over which the mean estimate changes by no more than the
    tolerance. Ranges with k < ½ or k > D − ½ are those two ends and do not count.

    Arguments:
        score_at: σ -> the score at noise level σ, such as `lambda b: law.noised(1.0, b).score`.
        x: Points on the manifold, `(B, *event)`.
        sigmas: The levels to try, at least four, positive; use three to five per decade.
        estimator: The estimator of `intrinsic_dimension` to use.
        tolerance: How much k may change over the range; above the noise of perturbations or probes.
        options: `n_perturbations`, `n_probes`, `generator` and `stack` of `intrinsic_dimension`.

    Raises:
        ValueError: For fewer than four levels or one that is not positive; if no three consecutive
            levels agree on a dimension, with the estimates at all levels.
    """
    check_points(x)
    check_function(score_at, "score_at")
    check_number(tolerance, "tolerance", above=0)
    levels = as_parameter(sigmas, "sigmas").double().flatten().sort().values
    if len(levels) < 4 or not bool((levels > 0).all()):
        raise ValueError(f"sigmas must hold at least four positive levels, got {levels.tolist()}")
    D, means = x.shape[1:].numel(), []
    for sigma in levels.tolist():
        score = score_at(sigma)
        check_function(score, "the return value of score_at")
        found = intrinsic_dimension(score, x, sigma, estimator=estimator, **options)
        means.append(found.mean)
    value = torch.tensor([m.value for m in means], dtype=torch.float64)
    error = torch.tensor([m.standard_error for m in means], dtype=torch.float64)
    best: tuple[float, int, int] | None = None
    for i in range(len(levels)):
        for j in range(i + 2, len(levels)):
            run = value[i : j + 1]
            flat = float(run.max() - run.min()) <= tolerance
            width = float((levels[j] / levels[i]).log())
            inside = 0.5 <= float(run.mean()) <= D - 0.5
            if flat and inside and (best is None or width > best[0]):
                best = (width, i, j)
    if best is None:
        table = ", ".join(f"{s:.3g}: {v:.2f}" for s, v in zip(levels, value, strict=True))
        raise ValueError(
            f"no three consecutive noise levels agree on a dimension between 0 and {D} (sigma: k = "
            f"{table}); try a finer or wider range of sigmas, or more points, or a larger tolerance"
        )
    _, i, j = best
    low, high = float(levels[i]), float(levels[j])
    return SigmaRange(low, high, means[(i + j) // 2], levels, value, error)
