r"""Scores and log-densities of the known targets, for tiles of chains (see `engine`).

Each is score(w, constants, x, s, log_p, work, want): x and s are `(D, lanes)`, log_p is `(lanes,)`, and
constants are what `pack.known` makes of the density. The formulas are those of `densities`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .noise import (
    VECTOR,
    compiled,
    exp,
    log,
)


@compiled
def banana(w: Any, constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Constants: m, 1/a, b, 1/c and the logarithm of the normaliser."""
    lanes = VECTOR * len(w)
    m, a, b, c, z = constants
    half = x.dtype.type(0.5)
    for i in range(lanes):
        u, v = (x[0, i] - m) * a, (x[1, i] - b * x[0, i] * x[0, i]) * c
        s[0, i] = (b + b) * x[0, i] * (v * c) - u * a
        s[1, i] = -v * c
        log_p[i] = -half * (u * u + v * v) - z


@compiled
def funnel(w: Any, constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Constants: 1/a² and the logarithm of the normaliser at v = 0."""
    lanes = VECTOR * len(w)
    precision, z = constants
    D, half = x.shape[0], x.dtype.type(0.5)
    rest = x.dtype.type(D - 1)
    for i in range(lanes):
        work[0, i] = exp(-x[0, i])
        work[1, i] = x.dtype.type(0)
    for d in range(1, D):
        for i in range(lanes):
            s[d, i] = -x[d, i] * work[0, i]
            work[1, i] += x[d, i] * x[d, i]
    for i in range(lanes):
        square = work[1, i] * work[0, i]
        s[0, i] = half * (square - rest) - precision * x[0, i]
        quad = precision * x[0, i] * x[0, i] + square + rest * x[0, i]
        log_p[i] = -half * quad - z


@compiled
def ring(w: Any, constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Constants: r and 1/w²."""
    lanes = VECTOR * len(w)
    r, precision = constants
    zero, one, half = x.dtype.type(0), x.dtype.type(1), x.dtype.type(0.5)
    for i in range(lanes):
        rho = np.sqrt(x[0, i] * x[0, i] + x[1, i] * x[1, i])
        pull = (r - rho) * precision
        pull = pull / (one if rho == zero else rho)  # 0 at the centre, as x is
        s[0, i] = pull * x[0, i]
        s[1, i] = pull * x[1, i]
        log_p[i] = -half * precision * (rho - r) * (rho - r)


@compiled
def wells(w: Any, constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Constants: a, b, c of `DoubleWell`, and the distance from one quartic coordinate to the next."""
    lanes = VECTOR * len(w)
    a, b, c, apart = constants
    zero, two, half = x.dtype.type(0), x.dtype.type(2), x.dtype.type(0.5)
    for i in range(lanes):
        log_p[i] = zero
    for d in range(x.shape[0]):
        if d % int(apart) == 0:
            for i in range(lanes):
                u = x[d, i]
                s[d, i] = two * u * (b - two * a * u * u) + c
                log_p[i] += u * (u * (b - a * u * u) + c)
        else:
            for i in range(lanes):
                s[d, i] = -x[d, i]
                log_p[i] -= half * x[d, i] * x[d, i]


@compiled
def log_cosh(w: Any, constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Constants: log 2 and a 0."""
    lanes = VECTOR * len(w)
    log2, zero = constants
    one, two = x.dtype.type(1), x.dtype.type(2)
    for i in range(lanes):
        log_p[i] = zero
    for d in range(x.shape[0]):
        for i in range(lanes):
            u = x[d, i]
            size = -u if u < zero else u
            e = exp(-two * size)
            t = (one - e) / (one + e)
            s[d, i] = t if u < zero else -t
        if want:
            for i in range(lanes):
                size = -x[d, i] if x[d, i] < zero else x[d, i]
                log_p[i] -= size + log(one + exp(-two * size)) - log2


@compiled
def gumbel(w: Any, constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Constants: 1 and a 0."""
    lanes = VECTOR * len(w)
    one, zero = constants
    for i in range(lanes):
        log_p[i] = zero
    for d in range(x.shape[0]):
        for i in range(lanes):
            e = exp(x[d, i])
            s[d, i] = one - e
            log_p[i] += x[d, i] - e


@compiled
def logistic(w: Any, constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Score and log-density of `LogisticRegression`, four rows of data and four columns at a time.

    Constants: features, rows and columns padded with zeros to multiples of four; labels with ½ where
    a row is padding; 1/τ²; and log 2 times the number of such rows.
    """
    lanes = VECTOR * len(w)
    features, labels, precision, padding = constants
    N, D = features.shape[0], x.shape[0]
    zero, one, half = x.dtype.type(0), x.dtype.type(1), x.dtype.type(0.5)
    for i in range(lanes):
        log_p[i] = padding
    for d in range(D):
        for i in range(lanes):
            s[d, i] = -precision * x[d, i]
            log_p[i] -= half * precision * x[d, i] * x[d, i]
    for n in range(0, N, 4):
        for row in range(4):
            for i in range(lanes):
                work[row, i] = zero
            for d in range(0, D, 4):
                e, f, g = min(d + 1, D - 1), min(d + 2, D - 1), min(d + 3, D - 1)
                a, b = features[n + row, d], features[n + row, d + 1]
                c, h = features[n + row, d + 2], features[n + row, d + 3]
                for i in range(lanes):
                    first, second = a * x[d, i] + b * x[e, i], c * x[f, i] + h * x[g, i]
                    work[row, i] += first + second
            y = labels[n + row]
            for i in range(lanes):
                t = work[row, i]
                e_t = exp(-t if t > zero else t)
                inverse = one / (one + e_t)
                work[row, i] = y - (inverse if t >= zero else e_t * inverse)
                work[4, i] = t
                work[5, i] = inverse
            if want:
                for i in range(lanes):
                    t = work[4, i]
                    log_p[i] += y * t - (t if t > zero else zero) + log(work[5, i])
        for d in range(D):
            a, b = features[n, d], features[n + 1, d]
            c, h = features[n + 2, d], features[n + 3, d]
            for i in range(lanes):
                first = a * work[0, i] + b * work[1, i]
                s[d, i] += first + (c * work[2, i] + h * work[3, i])
