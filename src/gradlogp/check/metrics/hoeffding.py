r"""Variances of statistics over pairs of points, by Hoeffding's decomposition, estimated without bias.

A kernel k(X, X') is the sum of its mean, a function of each single point, and a remainder with
mean 0 given either point. These parts are uncorrelated, so that the variance of a mean over pairs
is the sum of their variances: those of single points fall like 1/n, that of the remainder like
1/n². Only the latter remains if the parts of single points vanish, as they do when a distance is
0. The plug-in estimate of the single-point part includes the remainder and counts it twice.

References:
    | A Class of Statistics with Asymptotically Normal Distribution (Hoeffding, 1948)
    | https://doi.org/10.1214/aoms/1177730196
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor


def components(rows: Float[Tensor, " n"], squares: Tensor) -> tuple[float, float]:
    """Return ζ_1 = Cov(k_12, k_13) and ζ_2 = Var k_12 from sums over rows and squares of k, n ≥ 4.

    The diagonal of k is omitted. Sums over distinct indices make the estimates of E k_12², E k_12
    k_13 and (E k_12)² unbiased.
    """
    n, total, linked = len(rows), rows.sum(), rows.square().sum()
    pairs = n * (n - 1)
    second = squares / pairs
    triple = (linked - squares) / (pairs * (n - 2))
    mean_2 = (total**2 - 4 * linked + 2 * squares) / (pairs * (n - 2) * (n - 3))
    return float(triple - mean_2), float(second - mean_2)


def between(K: Float[Tensor, "n m"]) -> tuple[float, float, float]:
    """Return Var E[k(X, Y) | X], Var E[k(X, Y) | Y] and Var k(X, Y) from all pairs, unbiased."""
    (n, m), r, c = K.shape, K.sum(1), K.sum(0)
    squares, total, in_rows, in_columns = (
        K.square().sum(),
        K.sum(),
        r.square().sum(),
        c.square().sum(),
    )
    mean_2 = (total**2 - in_rows - in_columns + squares) / (n * (n - 1) * m * (m - 1))
    of_x = (in_rows - squares) / (n * m * (m - 1)) - mean_2
    of_y = (in_columns - squares) / (n * m * (n - 1)) - mean_2
    return float(of_x), float(of_y), float(squares / (n * m) - mean_2)


def mmd_variance(K: Float[Tensor, "pooled pooled"], n: int) -> tuple[float, float]:
    r"""Return the variance of the unbiased MMD² in two parts: of single points, and the remainder.

    .. math::
        \frac4n \mathrm{Var}\, a(X) + \frac4m \mathrm{Var}\, b(Y), \qquad
        \frac{2 ζ_{xx}}{n (n-1)} + \frac{2 ζ_{yy}}{m (m-1)} + \frac{4 ζ_{xy}}{n m}

    with a(x) = E k(x, X) − E k(x, Y), b(y) = E k(y, Y) − E k(y, X), and ζ the variances of the
    remainders. Each estimate is unbiased, and the first may be negative where it is near 0.

    Arguments:
        K: The kernel of the pooled sample, 0 on the diagonal; the first n points are x.
        n: The number of points of x, at least 4 on either side.
    """
    m, across = len(K) - n, K[:n, n:]
    of_x, of_y, of_both = between(across)
    single, rest = 0.0, 4 * (of_both - of_x - of_y) / (n * m)
    for k, crossed, other in ((K[:n, :n], across, of_x), (K[n:, n:], across.mT, of_y)):
        size, against = crossed.shape
        rows, beside = k.sum(1), crossed.sum(1)
        one, two = components(rows, k.square().sum())
        linked = rows @ beside  # E k(X, X') k(X, Y) − E k(X, X') E k(X, Y), over distinct points
        apart = (rows.sum() * beside.sum() - 2 * linked) / (size - 2)
        both = float((linked - apart) / (size * (size - 1) * against))
        single += 4 * (one + other - 2 * both) / size
        rest += 2 * (two - 2 * one) / (size * (size - 1))
    return single, rest
