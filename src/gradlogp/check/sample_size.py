r"""How many points an estimate of a score needs, if the law of the estimate is known.

All of these cases are parametric: a Gaussian, a location, one weight. The squared error of such an
estimate is a constant divided by n, and this constant is computed here. A network is different:
without a model of the data its error falls more slowly in higher dimension, and with n points it
may end with the score of those points (see `metrics.denoising_gap`). So these numbers are a scale
for comparison, and no guarantee for a richer model.

References:
    | Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005)
    | https://jmlr.org/papers/v6/hyvarinen05a.html
    | Statistical Efficiency of Score Matching: The View from Isoperimetry
      (Koehler, Heckett & Risteski, 2023)
    | https://arxiv.org/abs/2210.00726
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..calculus.reverse import score_from_log_prob
from ..core import (
    check_count,
    check_finite,
    check_function,
    check_number,
    check_points,
    check_same_shape,
)
from .theory.claim import grid
from .theory.statistics import efficiency, weight_information

NOISES = (1.0, 2.0, 4.0)
"""Noise levels at which `table` weighs two modes, in their standard deviations."""

LIMIT = 10**15
"""The largest number of points that is computed."""


class SampleSize(NamedTuple):
    """A number of points, and the formula behind it.

    Attributes:
        quantity: What is estimated, and how.
        n: The smallest sufficient number of points.
        formula: The formula for n.
        conditions: When the formula is valid.
    """

    quantity: str
    n: int
    formula: str
    conditions: str


def _accuracy(accuracy: float) -> float:
    check_number(accuracy, "accuracy", above=0)
    return float(accuracy)


def _dimension(dim: int | None, cov: Tensor | None) -> tuple[int, float]:
    """Return d and tr P; 1 in place of tr P where the error is relative."""
    if (dim is None) == (cov is None):
        raise ValueError("pass dim for a relative error, or cov for an absolute one")
    if cov is None:
        assert dim is not None
        check_count(dim, "dim")
        return dim, 1.0
    check_finite(cov, "cov")
    S = cov.double()
    if S.ndim != 2 or S.shape[0] != S.shape[1]:
        raise ValueError(f"cov must have shape (d, d), got {tuple(S.shape)}")
    w = torch.linalg.eigvalsh((S + S.mT) / 2)
    if not bool(w[0] > len(w) * torch.finfo(torch.float64).eps * w[-1]):
        raise ValueError(
            f"cov must be positive definite, but its eigenvalues are {float(w[0]):.3g} to "
            f"{float(w[-1]):.3g}: data on a subspace have no score without noise"
        )
    return len(w), float((1 / w).sum())


def _relative(n: int, d: int) -> float:
    """Return E‖ŝ − s‖²/tr P of a Gaussian fit to n points, ∞ where it has no mean."""
    nu = n - 1
    if nu - d - 3 <= 0:
        return math.inf
    # n² k2 + n k2 − 2n/(ν−d−1) + 1, k2 = (ν−1)/((ν−d)(ν−d−1)(ν−d−3)), over a common denominator,
    # in whole numbers: the terms cancel to d/n
    below = (nu - d) * (nu - d - 1) * (nu - d - 3)
    above = n * (n + 1) * (nu - 1) - 2 * n * (nu - d) * (nu - d - 3) + below
    return above / below


def gaussian_error(
    n: int, *, dim: int | None = None, cov: Float[Tensor, "d d"] | None = None
) -> float:
    r"""Return the root mean square error of the score of a Gaussian fitted to n points, exactly.

    .. math::
        E\|\hat s - s\|^2 = \mathrm{tr}(P) \left( n (n+1) κ_2 - \frac{2n}{ν-d-1} + 1 \right), \quad
        κ_2 = \frac{ν-1}{(ν-d)(ν-d-1)(ν-d-3)}, \quad ν = n - 1

    over new points of the law and over samples, P = S⁻¹, ŝ = −S_b⁻¹(x − x̄) with the biased
    covariance S_b: the minimiser of implicit score matching, and maximum likelihood. It is
    infinite for n < d + 5, and n times its square tends to (d + 2) tr P.

    Arguments:
        n: Number of points.
        dim: d, for the error relative to that of s = 0, √(E‖s‖²) = √(tr P); it depends only on d.
        cov: S, for the error itself.

    Raises:
        ValueError: For both or neither of dim and cov, or a covariance that is singular.
    """
    check_count(n, "n")
    d, trace = _dimension(dim, cov)
    return math.sqrt(trace * _relative(n, d))


def gaussian(
    accuracy: float, *, dim: int | None = None, cov: Float[Tensor, "d d"] | None = None
) -> SampleSize:
    r"""Return the smallest n at which a fitted Gaussian has a score of this accuracy.

    Inverts `gaussian_error`; for small accuracies ε this is n ≈ (d + 2) tr P/ε², or (d + 2)/ε² if
    the error is relative.

    Arguments:
        accuracy: ε, root mean square.
        dim: d, for an error relative to √(E‖s‖²).
        cov: S, for the error itself.

    Raises:
        ValueError: As in `gaussian_error`, or for an accuracy that is not positive or needs more
            than 10¹⁵ points.

    Examples:
        >>> glp.sample_size.gaussian(0.1, dim=2).n
        417
    """
    eps, (d, trace) = _accuracy(accuracy), _dimension(dim, cov)
    good = lambda n: trace * _relative(n, d) <= eps * eps
    low, high = d + 4, d + 5
    while not good(high):
        low, high = high, 2 * high
        if high > LIMIT:
            raise ValueError(f"accuracy {accuracy} needs more than 10¹⁵ points in {d} dimensions")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if good(middle) else (middle, high)
    what = "relative " if dim is not None else ""
    return SampleSize(
        f"score of a Gaussian in {d} dimensions to a {what}error of {eps:g}",
        high,
        "exact: n(n+1)κ₂ − 2n/(ν−d−1) + 1 ≤ ε²" + ("" if dim is not None else "/tr P"),
        "Gaussian data, unknown mean and covariance",
    )


def gaussian_limit(
    accuracy: float, *, dim: int | None = None, cov: Float[Tensor, "d d"] | None = None
) -> SampleSize:
    """Return (d + 2) tr P/ε², what `gaussian` tends to for small ε, with the same arguments."""
    eps, (d, trace) = _accuracy(accuracy), _dimension(dim, cov)
    formula = "(d + 2)/ε²" if dim is not None else "(d + 2) tr P/ε²"
    if (d + 2) * trace > LIMIT * eps**2:
        raise ValueError(f"accuracy {accuracy} needs more than 10¹⁵ points in {d} dimensions")
    n = math.ceil((d + 2) * trace / eps**2 - 1e-9)
    return SampleSize("the same to leading order", n, formula, "n much larger than d")


def denoising_slope(sigma: float, tau: float = 1.0, draws: int | None = None) -> float:
    r"""Return n times the relative variance of the slope that denoising fits to N(0, τ²).

    .. math::
        \frac{n \mathrm{Var}\, W}{W^2} = V_\infty + \frac{V_1 - V_\infty}{M}, \quad
        V_\infty = \frac{2 τ^4}{v^2}, \quad V_1 = \frac{τ^2}{σ^2}, \quad W = -\frac1v, \quad
        v = τ^2 + σ^2

    with M draws of noise for each point, and the limit M → ∞ for training over many epochs with
    new noise. V₁/V∞ is at least 2, at σ = τ, and grows as τ²/(2σ²) for small σ.

    Arguments:
        sigma: σ of the noise.
        tau: τ, standard deviation of the data.
        draws: M; None for M → ∞.

    Raises:
        ValueError: If σ or τ is not positive, their ratio overflows, or draws is below 1.
    """
    check_number(sigma, "sigma", above=0)
    check_number(tau, "tau", above=0)
    if draws is not None:
        check_count(draws, "draws")
    check_number(tau / sigma, "tau / sigma", above=0, most=1e150)
    one, all_noise = (tau / sigma) ** 2, 2 * (tau / math.hypot(tau, sigma)) ** 4
    return all_noise if draws is None else all_noise + (one - all_noise) / draws


class Efficiency(NamedTuple):
    """n Var of two estimates of one number, and their ratio.

    Attributes:
        score_matching: n Var of the estimate by score matching.
        likelihood: n Var of maximum likelihood, the smallest possible.
    """

    score_matching: float
    likelihood: float

    @property
    def value(self) -> float:
        """Return the efficiency: likelihood / score_matching, at most 1."""
        return self.likelihood / self.score_matching

    def n(self, accuracy: float) -> int:
        """Return the points at which score matching has that standard error."""
        return math.ceil(self.score_matching / _accuracy(accuracy) ** 2 - 1e-9)

    def n_likelihood(self, accuracy: float) -> int:
        """Return the points at which maximum likelihood has that standard error."""
        return math.ceil(self.likelihood / _accuracy(accuracy) ** 2 - 1e-9)


def location(
    log_density: Callable[[Float[Tensor, "n 1"]], Float[Tensor, " n"]],
    low: float,
    high: float,
    n_points: int = 20_001,
) -> Efficiency:
    r"""Efficiency of score matching for the location θ of p(x − θ) in one dimension.

    .. math::
        n \mathrm{Var}_\text{SM} = \frac{E[(s'' + s s')^2]}{E[s'^2]^2}, \qquad
        n \mathrm{Var}_\text{ML} = \frac{1}{E[s^2]}

    1 for a Gaussian, and 0.7 for the logistic law.

    Arguments:
        log_density: log p up to a constant, `(n, 1) -> (n,)`, three times differentiable.
        low: Lower end of the integral; p must be negligible there.
        high: Upper end of the integral; p must be negligible there.
        n_points: Number of points of the grid.

    Raises:
        ValueError: If p is not negligible at the ends, or is not finite.
    """
    check_number(low, "low")
    check_number(high, "high")
    check_count(n_points, "n_points", 3)
    if not low < high:
        raise ValueError(f"low must be below high, got {low} and {high}")
    check_function(log_density, "log_density")
    x, _ = grid(low, high, n_points)
    log_p = log_density(x)
    check_same_shape(log_p, x[:, 0], "log_density")
    log_p = log_p.detach()
    p = torch.softmax(log_p, 0)
    if not bool(torch.isfinite(p).all()) or float(log_p.max() - log_p[[0, -1]].max()) < 20:
        raise ValueError(
            f"log_density must be finite, and negligible at low = {low} and high = {high}; widen the "
            "interval"
        )
    score, one = score_from_log_prob(log_density), torch.ones_like(x)
    slope = lambda y: torch.func.jvp(score, (y,), (one,))[1]
    s, s1, s2 = (v[:, 0] for v in (score(x), slope(x), torch.func.jvp(slope, (x,), (one,))[1]))
    matching = (p * (s2 + s * s1).square()).sum() / (p * s1.square()).sum() ** 2
    return Efficiency(float(matching), float(1 / (p * s.square()).sum()))


@cache
def _logistic() -> Efficiency:
    return location(lambda x: -2 * torch.log(torch.cosh(x[:, 0] / 2)), -40.0, 40.0)


def mixture_weight(separation: float, sigma: float = 0.0) -> Efficiency:
    r"""Efficiency of score matching for the weight of ½ N(−a, 1) + ½ N(a, 1).

    The score hardly depends on the weights of modes that are far apart, so the efficiency falls
    like a Gaussian tail in a: 0.60, 0.11, 0.0072, 0.00018 at a = 1 … 4. Denoising at a σ that
    connects the modes restores it to a large extent: at a = 4 it is 0.17, 0.86, 0.98, 0.95 at σ =
    1, 2, 4, 8.

    Arguments:
        separation: a > 0, half the distance of the modes in their standard deviations; up to 5
            without noise or with σ < ½, above which rounding dominates; otherwise up to 20.
        sigma: σ of denoising score matching in the limit of all noise, 0.05 to 50; 0 is implicit
            matching.

    Raises:
        ValueError: For arguments out of their range.
    """
    check_number(sigma, "sigma", least=0, most=50)
    if 0 < sigma < 0.05:
        raise ValueError(f"sigma must be 0, or from 0.05 to 50 where it is computed, got {sigma}")
    why = f" at sigma = {sigma:g}; such a score does not determine the weights of modes further apart"
    check_number(separation, "separation", least=1e-6, most=5 if sigma < 0.5 else 20, why=why)
    least = 1 / weight_information(float(separation))
    return Efficiency(least / efficiency(float(separation), float(sigma)), least)


def span(x: Float[Tensor, "n *event"]) -> tuple[int, int]:
    """Return the number of points and of dimensions of data that span all dimensions.

    Raises:
        ValueError: If they lie in a lower-dimensional subspace, without a score unless noise is
            added.
    """
    check_points(x, least=2)
    flat = x.flatten(1).double()
    n, dim = flat.shape
    spread = flat.std(0)
    varies = spread > 0
    z = (flat - flat.mean(0))[:, varies] / spread[varies]  # the rank does not depend on units
    w = torch.linalg.eigvalsh(torch.cov(z.T).reshape(z.shape[1], z.shape[1]))
    rank = int((w > 1e-12 * dim * w[-1]).sum()) if len(w) else 0
    if rank < min(dim, n - 1):
        raise ValueError(
            f"the data span {rank} of {dim} dimensions, where they have no score without noise; "
            "pass the intrinsic dimension (gradlogp geometry estimates it), or choose columns"
        )
    return n, dim


def table(accuracy: float, dim: int, separation: float | None = None) -> list[SampleSize]:
    """Return how many points an accuracy needs, for all cases known in closed form.

    Arguments:
        accuracy: ε; each row says of which quantity.
        dim: The dimension of a Gaussian.
        separation: Half the distance of two modes, for the rows on their weights; by default there
            are none.
    """
    rows = [gaussian(accuracy, dim=dim), gaussian_limit(accuracy, dim=dim)]
    for sigma in (1.0, 0.1):
        what = f"slope of the score of N(0, τ²) noised by σ = {sigma:g} τ, by denoising"
        for draws, how, formula in ((None, "fresh noise at every step", "2τ⁴/(v²ε²), v = τ² + σ²"),
                                    (1, "one noise draw per point", "τ²/(σ²ε²)")):  # fmt: skip
            n = math.ceil(denoising_slope(sigma, draws=draws) / accuracy**2 - 1e-9)
            name = f"{what}, {how}" if draws is None else f"… {how}"
            rows.append(SampleSize(name, n, formula, "one dimension, large n"))
    law = _logistic()
    what = f"location of a logistic law to a standard error of {accuracy:g} scales"
    rows += [
        SampleSize(f"{what}, score matching", law.n(accuracy), "E[(s'' + s s')²]/(E[s'²]² ε²)",
                   f"efficiency {law.value:.3g}, large n"),
        SampleSize("… maximum likelihood", law.n_likelihood(accuracy), "1/(E[s²] ε²)", "large n"),
    ]  # fmt: skip
    if separation is None:
        return rows
    plain = mixture_weight(separation)
    what = f"weight of modes at ±{separation:g} to a standard error of {accuracy:g}"
    rows += [
        SampleSize(f"{what}, maximum likelihood", plain.n_likelihood(accuracy),
                   "1/(I ε²), I the Fisher information", "equal weights, large n"),
        SampleSize("… score matching without noise", plain.n(accuracy),
                   "Var(∂s' + s ∂s)/(E[(∂s)²]² ε²)", f"efficiency {plain.value:.3g}"),
    ]  # fmt: skip
    denoised = ((sigma, mixture_weight(separation, sigma)) for sigma in NOISES)
    return rows + [
        SampleSize(f"… denoising at σ = {sigma:g}", found.n(accuracy),
                   "the same at p_σ, averaged over the noise", f"efficiency {found.value:.3g}")
        for sigma, found in denoised
    ]  # fmt: skip
