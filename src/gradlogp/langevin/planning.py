r"""Step sizes of unadjusted Langevin dynamics from curvature, and sufficient numbers of steps.

Where −∇² log p has its eigenvalues in [m, L], m > 0, the density is m-strongly log-concave and its
score L-Lipschitz.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..calculus.conjugate_gradients import lanczos
from ..core import (
    Density,
    Generator,
    along,
    check_count,
    check_number,
    check_option,
    check_points,
    check_target,
    shown,
)
from ..distributions.analytic import Gaussian


class Curvature(NamedTuple):
    """The extreme eigenvalues m ≤ L of −∇² log p over some points.

    `residual` bounds the distance of both from an eigenvalue. The largest eigenvalue is never
    overestimated, and the smallest never underestimated.
    """

    m: float
    L: float
    residual: float


class Steps(NamedTuple):
    """A step size and a number of steps."""

    step_size: float
    n_steps: int


class Plan(NamedTuple):
    """A step size and a number of steps of `ULA` that are sufficient by a theorem.

    `exact_gaussian` has those that are sufficient for a Gaussian with the same curvature.
    """

    step_size: float
    n_steps: int
    theorem: str
    conditions: tuple[str, ...]
    exact_gaussian: Steps


def step_for_bias(curvature_L: float, relative_bias: float) -> float:
    r"""Return the step of `ULA` at which no variance of a Gaussian is too large by more than b.

    .. math:: h = \frac{2 b}{(1 + b) L}

    because on N(μ, S) the variance 1/l along an eigenvector of S⁻¹ becomes (1/l) / (1 − h l/2),
    and the relative error is largest in the stiffest direction l = L, where this is (1 + b)/L.

    Arguments:
        curvature_L: L, the largest eigenvalue of −∇² log p.
        relative_bias: b > 0.

    Raises:
        ValueError: Unless both are positive and finite.

    Examples:
        >>> h = glp.langevin.step_for_bias(100.0, 0.01)
        >>> round(1 / (1 - h * 100 / 2) - 1, 6)  # the excess variance of ULA where it is stiffest
        0.01
    """
    check_number(curvature_L, "curvature_L", above=0)
    check_number(relative_bias, "relative_bias", above=0)
    return 2 * relative_bias / ((1 + relative_bias) * curvature_L)


# ---------------------------------------------------------------------------- curvature


def estimate_curvature(
    target: Density,
    x: Float[Tensor, "batch *event"],
    *,
    n_iterations: int = 32,
    generator: Generator | None = None,
) -> Curvature:
    """Estimate the extreme eigenvalues of −∇² log p at points x, by the Lanczos iteration.

    Each iteration needs one product of the Hessian with a vector, by differentiating the score,
    which must therefore be a gradient; with as many iterations as coordinates it is exact.

    Arguments:
        target: The density; its score must be differentiable by autograd.
        x: Points; the result is a bound for all x only if the curvature is extreme at these.
        n_iterations: Number of iterations, limited by the number of coordinates.
        generator: Source of the starting vectors.

    Raises:
        ValueError: For no points or iterations, a score that autograd cannot differentiate, or
            products that are not finite.
    """
    check_target(target)
    check_points(x)
    check_count(n_iterations, "n_iterations")
    with torch.enable_grad():
        y = x.detach().clone().requires_grad_()
        score = target.score(y)
    if not score.requires_grad:
        raise ValueError("the score does not depend on x through differentiable operations")

    def product(v: Tensor) -> Tensor:
        (Hv,) = torch.autograd.grad(along(-v.reshape(x.shape), score), y, retain_graph=True)
        return Hv.flatten(1)

    T, beyond = lanczos(product, x.detach().flatten(1), n_iterations, generator)
    if not bool(torch.isfinite(T).all()):
        raise ValueError("the curvature is not finite at some of the points x")
    values, vectors = torch.linalg.eigh(T)
    low, high = values[:, 0].min(0), values[:, -1].max(0)
    residuals = (beyond[:, None] * vectors[:, -1]).abs()
    residual = max(float(residuals[low.indices, 0]), float(residuals[high.indices, -1]))
    return Curvature(float(low.values), float(high.values), residual)


# ---------------------------------------------------------------------------- plans


def gaussian_bias(eigenvalues: Float[Tensor, " d"], step_size: float) -> float:
    r"""Return the W₂ distance between N(μ, S) and the stationary law of `ULA`.

    .. math:: W_2^2 = \sum_l \frac1l \left((1 - h l/2)^{-1/2} - 1\right)^2

    over the eigenvalues l of S⁻¹; infinite from h = 2/L on.
    """
    l = eigenvalues.double()
    if step_size * float(l.max()) >= 2:
        return math.inf
    root = torch.expm1(-torch.log1p(-step_size * l / 2) / 2)  # no digits lost for a small h
    return float((root.square() / l).sum().sqrt())


def plan_steps(
    problem: Gaussian | tuple[float, float, int],
    accuracy: float,
    *,
    metric: Literal["w2"] = "w2",
    distance: float | None = None,
) -> Plan:
    r"""Return a step size and a number of steps for which `ULA` provably reaches an accuracy.

    .. math::
        h \le \frac{2}{m + L}: \quad
        W_2(ν_K, p) \le (1 - m h)^K\, W_2(ν_0, p) + 1.65\, \frac{L}{m} \sqrt{h d}

    Each term gets half of the accuracy. The bound holds for every density with this curvature and
    is far from sharp for most: on a Gaussian the bias is of order h. `exact_gaussian` has what is
    needed there: h for a `gaussian_bias` of half the accuracy, and (1 − m h)^K (W₂(ν_0, p) + bias)
    for the rest; if only (m, L, d) are known, all eigenvalues are assumed to be L.

    References:
        | User-Friendly Guarantees for the Langevin Monte Carlo with Inaccurate Gradient
          (Dalalyan & Karagulyan, 2019)
        | https://arxiv.org/abs/1710.00095

    Arguments:
        problem: A Gaussian, or (m, L, d): the extreme eigenvalues of −∇² log p over all x, as from
            `estimate_curvature`, and the dimension.
        accuracy: The W₂ distance to reach.
        metric: Only `w2`.
        distance: W₂(ν_0, p); √(d/m) by default, which holds for chains that start at the
            mode.

    Raises:
        ValueError: For a metric other than `w2`, numbers that are not positive, or m > L.
    """
    check_option(metric, "metric", ("w2",))
    if isinstance(problem, Gaussian):
        l = 1 / torch.linalg.eigvalsh(problem.cov.double())
        m, L, d = float(l.min()), float(l.max()), len(l)
    else:
        if not isinstance(problem, tuple) or len(problem) != 3:
            raise ValueError(f"problem must be a Gaussian, or (m, L, d), got {shown(problem)}")
        m, L, d = problem
        check_number(m, "m of the problem", above=0)
        check_number(L, "L of the problem", least=m)
        check_count(d, "d of the problem")
        l = torch.full((d,), L, dtype=torch.float64)
    start = math.sqrt(d / m) if distance is None else distance
    check_number(accuracy, "accuracy", above=0)
    check_number(start, "distance", above=0)
    half, largest = accuracy / 2, 2 / (m + L)
    h = min(largest, (half * m / (1.65 * L)) ** 2 / d)
    exact = _gaussian_step(l, half, largest)
    at = "chains that start at the mode" if distance is None else f"W2(start, p) <= {start:.4g}"
    return Plan(
        h,
        _steps(m * h, start / half),
        "Dalalyan & Karagulyan (2019), Theorem 1",
        (
            f"-log p is {m:.4g}-strongly convex and its gradient {L:.4g}-Lipschitz, everywhere",
            f"step_size <= 2/(m + L) = {largest:.4g}",
            at,
        ),
        Steps(exact, _steps(m * exact, (start + half) / half)),
    )


def _steps(rate: float, ratio: float) -> int:
    """Return the least K ≥ 1 with (1 − rate)^K ratio ≤ 1."""
    if rate >= 1:
        return 1
    return max(1, math.ceil(math.log(ratio) / -math.log1p(-rate)))


def _gaussian_step(l: Tensor, bias: float, largest: float) -> float:
    """Return the largest h with at most that bias, by bisection."""
    if gaussian_bias(l, largest) <= bias:
        return largest
    low, high = 0.0, largest
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_bias(l, middle) <= bias else (low, middle)
    return low
