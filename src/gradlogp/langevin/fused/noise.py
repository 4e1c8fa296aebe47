r"""Random numbers and elementary functions that a compiler turns into vector instructions.

Every chain has its own generator, xoshiro128++, whose state follows from the seed of the run and
the number of the chain. Two outputs give two normals: with u uniform on (0, 1) and θ uniform on
[−π/4, π/4), a random quarter of the circle completes

.. math:: (z_1, z_2) = \sqrt{-2 \log u}\, (\cos θ, \sin θ).

They are computed in single precision and reach 6.6 standard deviations. A tile of chains moves
together.

References:
    | Scrambled Linear Pseudorandom Number Generators (Blackman & Vigna, 2021)
    | https://arxiv.org/abs/1805.01407
    | A Note on the Generation of Random Normal Deviates (Box & Muller, 1958)
    | https://doi.org/10.1214/aoms/1177706645
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba.extending import overload

VECTOR = 16
"""Chains in the narrowest tile: as many single-precision numbers as a register has at most."""

NARROW, WIDE = (0,), (0, 0, 0, 0)
"""Widths of a tile as tuples of so many times `VECTOR`: the type tells, so a compiler knows it."""

OPTIONS: dict[str, Any] = {
    "nogil": True, "error_model": "numpy", "fastmath": {"contract"}, "no_cfunc_wrapper": True,
}  # fmt: skip
"""Fused multiply-add, and no other liberty: sums keep their order, and NaN stays what it is."""

INLINE: Any = {**OPTIONS, "forceinline": True}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function when it is first called, without what may have been wrapped around it."""
    return numba.njit(**OPTIONS)(inspect.unwrap(function))


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Do the same for a function that is part of every caller."""
    return numba.njit(**INLINE)(inspect.unwrap(function))


_f, _i, _u = np.float32, np.int32, np.uint32
ANGLE, SQRT_HALF = _f(math.pi / 4 * 2**-31), _f(0.5**0.5)
LN2, LOG2E = _f(math.log(2)), _f(1 / math.log(2))
HALF, ONE, FINE = _f(0.5), _f(1), _f(2.0**-31)


@inlined
def rotl(x: Any, k: Any) -> Any:
    """Return the 32 bits of x turned to the left by k."""
    return _u(_u(x << _u(k)) | _u(x >> _u(32 - k)))


@inlined
def log32(u: Any) -> Any:
    """Return log u of a normal positive float32, to a few units in the last place (after Cephes)."""
    bits = _f(u).view(_i)
    e = _f(_i((bits >> _i(23)) - _i(126)))
    m = _i((bits & _i(0x007FFFFF)) | _i(0x3F000000)).view(_f)  # [1/2, 1)
    small = m < SQRT_HALF
    e = e - ONE if small else e
    m = m + m - ONE if small else m - ONE
    p = _f(7.0376836292e-2)
    p = p * m + _f(-1.1514610310e-1)
    p = p * m + _f(1.1676998740e-1)
    p = p * m + _f(-1.2420140846e-1)
    p = p * m + _f(1.4249322787e-1)
    p = p * m + _f(-1.6668057665e-1)
    p = p * m + _f(2.0000714765e-1)
    p = p * m + _f(-2.4999993993e-1)
    p = p * m + _f(3.3333331174e-1)
    square = m * m
    return m + (p * m * square - HALF * square) + e * LN2


@inlined
def exp32(x: Any) -> Any:
    """Return exp x of a float32, 0 below −87 and ∞ from 88.3 on (after Cephes)."""
    y = x if x > _f(-87) else _f(-87)
    y = y if y < _f(88.3) else _f(88.3)
    n = np.floor(y * LOG2E + HALF)
    r = y - n * _f(0.693359375) - n * _f(-2.12194440e-4)
    p = _f(1.9875691500e-4)
    p = p * r + _f(1.3981999507e-3)
    p = p * r + _f(8.3334519073e-3)
    p = p * r + _f(4.1665795894e-2)
    p = p * r + _f(1.6666665459e-1)
    p = p * r + _f(5.0000001201e-1)
    value = (p * (r * r) + r + ONE) * _i(_i(_i(n) + _i(127)) << _i(23)).view(_f)
    value = value if x < _f(88.3) else _f(np.inf)
    return value if x > _f(-87) else (_f(0) if x <= _f(-87) else x)


def exp(x: Any) -> Any:
    """Return exp x in the precision of x; compiled, `exp32` for a float32."""
    return np.exp(x)


def log(x: Any) -> Any:
    """Return log x of a normal positive number in the precision of x; compiled, by `log32`."""
    return np.log(x)


@overload(exp, jit_options=INLINE, strict=False)
def _exp(x: Any) -> Any:
    return (lambda x: exp32(x)) if x == numba.types.float32 else (lambda x: np.exp(x))


@overload(log, jit_options=INLINE, strict=False)
def _log(x: Any) -> Any:
    return (lambda x: log32(x)) if x == numba.types.float32 else (lambda x: np.log(x))


@inlined
def advance(rng: Any, i: Any, lanes: Any) -> Any:
    """Step the generator of lane i and return 32 bits."""
    s0, s1 = rng[i], rng[lanes + i]
    s2, s3 = rng[2 * lanes + i], rng[3 * lanes + i]
    out = _u(rotl(_u(s0 + s3), 7) + s0)
    t = _u(s1 << _u(9))
    s2 = _u(s2 ^ s0)
    s3 = _u(s3 ^ s1)
    rng[lanes + i] = _u(s1 ^ s2)
    rng[i] = _u(s0 ^ s3)
    rng[2 * lanes + i] = _u(s2 ^ t)
    rng[3 * lanes + i] = rotl(s3, 11)
    return out


@compiled
def normals(w: Any, rng: Any, z: Any, d: int) -> None:
    """Fill d rows of z `(d rounded up to even, lanes)` with normals."""
    lanes = VECTOR * len(w)
    for row in range(0, d, 2):
        one, two = z[row], z[row + 1]
        for i in range(lanes):
            a = advance(rng, i, lanes)
            b = advance(rng, i, lanes)
            u = (_f(_i(a >> _u(1))) + HALF) * FINE
            radius = np.sqrt(_f(-2) * log32(u))
            t = _f(_i(b)) * ANGLE
            square = t * t
            s = _f(-1.9515295891e-4) * square + _f(8.3321608736e-3)
            s = (s * square + _f(-1.6666654611e-1)) * square * t + t
            c = _f(2.443315711809948e-5) * square + _f(-1.388731625493765e-3)
            c = (c * square + _f(4.166664568298827e-2)) * square * square - HALF * square + ONE
            c = c if b & _u(1) else -c
            swap = b & _u(2)
            one[i] = radius * (s if swap else c)
            two[i] = radius * (c if swap else s)


@compiled
def uniforms(w: Any, rng: Any, u: Any) -> None:
    """Fill u with uniform numbers in (0, 1), one for each lane."""
    lanes = VECTOR * len(w)
    for i in range(lanes):
        u[i] = (_f(_i(advance(rng, i, lanes) >> _u(8))) + HALF) * _f(2.0**-24)
