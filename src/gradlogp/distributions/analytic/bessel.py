r"""Ratios and logarithms of modified Bessel functions I_ν(k), for k from 0 to 10⁸ and beyond.

For the order ν = d/2 − 1 and k ≥ 0, a law on the sphere in R^d needs

    A(k) = I_{ν+1}(k) / I_ν(k),   1 − A(k),   A'(k),   L(k) = log(Γ(ν+1) (2/k)^ν I_ν(k) e^{−k}).

None is formed from I_ν, which overflows. With q = k², G_n = I_{n+1}/(k I_n) and
e_n = k − q G_n − (n + ½), which is O(1/k), the recurrence of Bessel functions reads

    G_n = 1/(2(n+1) + q G_{n+1}),   1 − k G_n = (n + ½ − e_{n+1}) G_n,
    e_n = −G_n ((n + ½)² + (k − n − ½) e_{n+1}),

which is stable downwards and does not lose precision at large k. It starts at an order μ ≥ 32 with
Debye's uniform expansion in powers of 1/S with S = √(μ² + q), which holds for every k. All
functions are elementwise, smooth in q also at 0, and differentiable in every mode and any number
of times. Single precision is computed in double precision if the device supports it.

References:
    | NIST Digital Library of Mathematical Functions, 10.29 and 10.41
    | https://dlmf.nist.gov/10.41
    | Computation of Modified Bessel Functions and Their Ratios (Amos, 1974)
    | https://doi.org/10.1090/S0025-5718-1974-0333287-7
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

START, TERMS = 32, 13
"""The recurrence starts at this order or above; the last power of 1/S in the expansion there."""

SERIES = 12
"""Terms of the power series of L, used for k below 1."""


class Ratio(NamedTuple):
    """A = I_{d/2}(k)/I_{d/2−1}(k), and what cannot be computed from it accurately, shape of k.

    Attributes:
        A: The ratio, from 0 at k = 0 to 1.
        complement: 1 − A, about (d − 1)/(2k) for large k.
        A_over_k: A/k, 1/d at k = 0.
        slope: A'(k) = 1 − A² − (d − 1) A/k, about (d − 1)/(2k²) for large k.
    """

    A: Tensor
    complement: Tensor
    A_over_k: Tensor
    slope: Tensor


@cache
def _debye() -> tuple[list[list[float]], list[list[float]]]:
    """Return the coefficients of u_j and w_j, polynomials in v = (μ/S)², rows of equal length.

    U_j(p) = p^j u_j(p²) are those of DLMF 10.41.9, V_j − U_j = (1 − p²) p^j w_j(p²). The sums are
    U = Σ u_j S^−j and W = Σ w_j S^−j.
    """
    u, w = [[Fraction(1)]], [[Fraction(0)]]
    for j in range(TERMS):
        after = [Fraction(0)] * (j + 2)
        for i, c in enumerate(u[j]):  # ½ p² (1 − p²) U' + ⅛ ∫ (1 − 5p²) U
            n = j + 2 * i
            after[i] += c * (Fraction(n, 2) + Fraction(1, 8 * (n + 1)))
            after[i + 1] -= c * (Fraction(n, 2) + Fraction(5, 8 * (n + 3)))
        w.append([-(Fraction(1, 2) + j + 2 * i) * c for i, c in enumerate(u[j])])
        u.append(after)
    padded = [
        [[float(c) for c in row] + [0.0] * (TERMS + 1 - len(row)) for row in p] for p in (u, w)
    ]
    return padded[0], padded[1]


def _sums(t: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Return U_1 and W_2 with U = 1 + U_1/S and W = −1/(2S) + W_2/S², at t = 1/S."""
    u, w = _debye()
    coefficients = t.new_tensor([u[1:], [*w[2:], [0.0] * (TERMS + 1)]])  # (2, TERMS, TERMS + 1)
    base = torch.stack([t.reshape(-1), v.reshape(-1)])
    powers = torch.ones_like(base).unsqueeze(0)
    while len(powers) <= TERMS:  # 1, then 1 and z, then 1, z, z² and z³, …
        powers, base = torch.cat([powers, powers * base]), base * base
    in_v = coefficients @ powers[: TERMS + 1, 1]
    sums = (in_v * powers[:TERMS, 0]).sum(1).reshape(2, *t.shape)
    return sums[0], sums[1]


class _Start(NamedTuple):
    """Where the recurrence starts: the order μ, S, U, and there G and e = w − (μ + ½)."""

    mu: float
    S: Tensor
    U: Tensor
    G: Tensor
    e: Tensor


def _start(order: float, k: Tensor) -> tuple[_Start, int]:
    """Return the expansion at the order μ = ν + steps, and the number of steps down, at least 1."""
    steps = max(1, math.ceil(START - order))
    mu = order + steps
    S = (k * k + mu * mu).sqrt()
    t = 1 / S
    v = (mu * t).square()
    U_1, W_2 = _sums(t, v)
    U = 1 + t * U_1
    G = 1 / (S + mu) + t * t * (t * W_2 - 0.5) / U
    # the terms −½ − k² t W/U of e with what cancels for large k left out
    rest = (k * t).square() * W_2 + 0.5 * U_1
    e = -mu * mu / (k + S) - (0.5 * v + t * rest) / U
    return _Start(mu, S, U, G, e), steps


def _wide(k: Tensor) -> Tensor:
    """Return k in double precision, where the device has it."""
    return k if k.device.type == "mps" else k.double()


def bessel_ratio(dim: int, k: Tensor) -> Ratio:
    r"""Return A_d(k), 1 − A_d(k), A_d(k)/k and A_d'(k).

    .. math::
        A_d(k) = \frac{I_{d/2}(k)}{I_{d/2-1}(k)}, \qquad A_d' = 1 - A_d^2 - \frac{d-1}{k} A_d

    The relative error is about 1e-15 in double precision, and below 1e-10 for A'.

    Arguments:
        dim: d, at least 2.
        k: At least 0, any shape.

    Raises:
        ValueError: For d below 2.
    """
    if dim < 2:
        raise ValueError(f"dim must be at least 2, got {dim}; on two points the ratio is tanh(k)")
    order, z = dim / 2 - 1, _wide(k)
    (_, _, _, G, e), steps = _start(order, z)
    q, f, above, half = z * z, -e, e, order + 0.5
    for n in reversed(range(steps)):
        half, above = order + n + 0.5, f
        G = 1 / (q * G + (2 * half + 1))
        f = G * ((half - z) * f + half * half)
    found = z * G, (half + above) * G, G, (above - f) * G
    return Ratio(*(v.to(k.dtype) for v in found))


def log_bessel(order: float, k: Tensor) -> Tensor:
    r"""Return L(k) = log(Γ(ν+1) (2/k)^ν I_ν(k) e^{−k}), which is 0 at k = 0 for every order.

    .. math:: e^{k + L(k)} = {}_0F_1(; ν + 1; k^2/4), \qquad k + L(k) \approx \frac{k^2}{4(ν+1)}

    Arguments:
        order: ν, at least 0.
        k: At least 0, any shape.

    Raises:
        ValueError: For a negative order.
    """
    if order < 0:
        raise ValueError(f"order must be at least 0, got {order}")
    z = _wide(k)
    (mu, S, U, G, _), steps = _start(order, z)
    q = z * z
    delta = q / (S + mu)  # S − μ
    U_0 = 1 + _sums(z.new_tensor(1 / mu), z.new_ones(()))[0] / mu
    L = mu * mu / (S + z) - mu - mu * torch.log1p(delta / (2 * mu))
    L = L - 0.5 * torch.log1p(delta / mu) + (U / U_0).log()
    for n in reversed(range(steps)):
        c = 2 * (order + n + 1)
        growth = q * G
        L, G = L + torch.log1p(growth / c), 1 / (c + growth)
    # near 0, where k + L is the small difference of large numbers, by its series
    small = z < 1
    y = torch.where(small, q / 4, 0.25)
    rest = torch.ones_like(y)
    for m in range(SERIES, 1, -1):
        rest = 1 + rest * y / (m * (order + m))
    return torch.where(small, torch.log1p(y / (order + 1) * rest) - z, L).to(k.dtype)
