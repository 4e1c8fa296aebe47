r"""Monotone maps of one column onto the real line, with few parameters and a known derivative.

A column of skewed or heavy-tailed values is learned through z = T(x), and densities of x are those
of z times T'(x). T is onto: every z has an x, so a sampler cannot draw anything impossible.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

MOST_FITTED = 5000
"""Values that a transform is fitted to."""

FEW = 500
"""Values from which the kind of a boundary is chosen."""

GAIN = 3.0
"""Nats times log n that the shape parameters have to gain over all rows, to be taken."""


@dataclass(frozen=True)
class Monotone:
    r"""T(x) = sinh(δ asinh(v) − ε), v = (u − m)/s; u = x, or x with boundaries mapped to infinity.

    .. math::
        u = x, \quad l(x - a), \quad -l(b - x), \quad \log\frac{x - a}{b - x}, \qquad
        l(y) = \log y \ \text{or} \ c \log(e^{y / c} - 1)

    for columns without boundary, above a, below b, and between. The second l is a logarithm near
    the boundary and close to y beyond c, where a logarithm would turn small errors into large
    ones. δ < 1 removes heavy tails, ε removes skewness; δ = 1, ε = 0 is affine in u.

    The fields are a and b, None where there is no border, m, s > 0, δ > 0, ε, and c of a column with
    one border, None for the logarithm.

    References:
        | Sinh-arcsinh distributions (Jones & Pewsey, 2009)
        | https://doi.org/10.1093/biomet/asp053
    """

    low: float | None = None
    high: float | None = None
    middle: float = 0.0
    scale: float = 1.0
    tail: float = 1.0
    skew: float = 0.0
    bend: float | None = None

    def _inner(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return u and log du/dx."""
        a, b = self.low, self.high
        if a is not None and b is not None:
            return (x - a).log() - (b - x).log(), math.log(b - a) - (x - a).log() - (b - x).log()
        if a is None and b is None:
            return x, torch.zeros_like(x)
        y = x - a if a is not None else b - x  # type: ignore[operator]
        if self.bend is None:
            u, log_du = y.log(), -y.log()
        else:
            log_du = -(-torch.expm1(-y / self.bend)).log()
            u = y - self.bend * log_du
        return (u if a is not None else -u), log_du

    def __call__(self, x: Tensor) -> Tensor:
        """Return z."""
        v = (self._inner(x)[0] - self.middle) / self.scale
        return torch.sinh(self.tail * torch.asinh(v) - self.skew)

    def log_derivative(self, x: Tensor) -> Tensor:
        """Return log T'(x)."""
        u, log_du = self._inner(x)
        v = (u - self.middle) / self.scale
        w = self.tail * torch.asinh(v) - self.skew
        return (
            log_du
            + math.log(self.tail / self.scale)
            + _log_cosh(w)
            - 0.5 * torch.log1p(v.square())
        )

    def inverse(self, z: Tensor) -> Tensor:
        """Return x."""
        v = torch.sinh((torch.asinh(z) + self.skew) / self.tail)
        u, a, b = self.middle + self.scale * v, self.low, self.high
        if a is not None and b is not None:
            return a + (b - a) * torch.sigmoid(u)
        if a is None and b is None:
            return u
        u = u if a is not None else -u
        y = u.exp() if self.bend is None else self.bend * softplus(u / self.bend)
        return a + y if a is not None else b - y  # type: ignore[operator]


def _log_cosh(w: Tensor) -> Tensor:
    w = w.abs()
    return w + torch.log1p((-2 * w).exp()) - math.log(2)


def fit_monotone(x: Tensor, *, low: float | None = None, high: float | None = None) -> Monotone:
    r"""Return the transform that makes the values closest to normal, by maximum likelihood.

    .. math:: \max \sum_i \left[ -\tfrac12 T(x_i)^2 + \log T'(x_i) \right]

    Middle and scale start from median and quartiles. The two shape parameters are used if they
    gain at least 3 log n nats in total; otherwise the transform is affine in u. With one boundary
    the logarithm is used if it gains as much over l with c a tenth of the standard deviation, and
    over c a half of it.

    Arguments:
        x: Values `(n,)`, finite, inside the boundaries.
        low: The lower boundary, if there is one.
        high: The upper boundary, if there is one.

    Raises:
        ValueError: If values are not inside the boundaries, or all are equal.
    """
    x = x.double()
    if (low is not None and float(x.min()) <= low) or (
        high is not None and float(x.max()) >= high
    ):
        raise ValueError(
            f"values must lie strictly inside {low} and {high}, got {float(x.min()):g} to "
            f"{float(x.max()):g}"
        )
    x = _evenly(x, MOST_FITTED)
    if (low is None) == (high is None):
        return _fit(x, low, high, None)[0]
    few, deviation = _evenly(x, FEW), float(x.std(correction=0))
    kinds = (None, 0.1 * deviation, 0.5 * deviation)
    logarithm, *bent = (_fit(few, low, high, c)[1] for c in kinds)
    straight = logarithm > max(bent) + GAIN * math.log(len(few)) / len(few)
    return _fit(x, low, high, None if straight else kinds[1 + bent.index(max(bent))])[0]


def _evenly(x: Tensor, most: int) -> Tensor:
    """Return values, of many an even choice of the order statistics: the same every time."""
    if len(x) <= most:
        return x
    at = torch.linspace(0, len(x) - 1, most, dtype=torch.float64).round().long()
    return x.sort().values[at]


def _fit(
    x: Tensor, low: float | None, high: float | None, bend: float | None
) -> tuple[Monotone, float]:
    """Return the best transform of this kind, and the mean log-likelihood under it."""
    u, log_du = Monotone(low, high, bend=bend)._inner(x)
    m, s = float(u.mean()), float(u.std(correction=0))
    if not s > 1e-12 * max(1.0, abs(m)):
        raise ValueError("all values are equal: there is nothing to transform")
    middle = float(u.median())
    quarter = (float(u.quantile(0.75)) - float(u.quantile(0.25))) / 1.349
    width = quarter if quarter > 1e-3 * s else s
    v0 = ((u - middle) / width).numpy()

    def negative(p: np.ndarray) -> tuple[float, np.ndarray]:
        """Return minus the mean log-likelihood for p = (shift, log scale, log δ, ε), and its slope."""
        with np.errstate(over="ignore", invalid="ignore"):
            shrink, tail = math.exp(-p[1]), math.exp(p[2])
            v = (v0 - p[0]) * shrink
            bent, square = np.arcsinh(v), 1 + v * v
            w = tail * bent - p[3]
            log_slope = p[2] - p[1] + np.logaddexp(w, -w) - math.log(2) - 0.5 * np.log(square)
            value = (0.5 * np.sinh(w) ** 2 - log_slope).mean()
            by_w = np.sinh(w) * np.cosh(w) - np.tanh(w)
            by_v = by_w * tail / np.sqrt(square) + v / square
            slope = (
                -shrink * by_v.mean(), 1 - (by_v * v).mean(),
                tail * (by_w * bent).mean() - 1, -by_w.mean(),
            )  # fmt: skip
        return float(value), np.array(slope)

    known = float(log_du.mean()) - math.log(width)
    affine = Monotone(low, high, m, s, bend=bend)
    start = np.array([(m - middle) / width, math.log(s / width), 0.0, 0.0])
    plain = negative(start)[0]
    from scipy.optimize import minimize

    best = None
    for first in (start, np.array([0.0, 0.0, math.log(0.8), 0.0])):
        tried = minimize(
            negative, first, jac=True, method="L-BFGS-B",
            bounds=[(-5, 5), (-3, 3), (-3, 0), (-3, 3)],  # δ > 1 would press two modes together
        )  # fmt: skip
        if math.isfinite(tried.fun) and (best is None or tried.fun < best.fun):
            best = tried
    if best is None or len(x) * (plain - best.fun) < GAIN * math.log(len(x)):
        return affine, known - plain
    shift, log_scale, log_tail, skew = (float(p) for p in best.x)
    found = Monotone(
        low,
        high,
        middle + width * shift,
        width * math.exp(log_scale),
        math.exp(log_tail),
        skew,
        bend,
    )
    return found, known - float(best.fun)
