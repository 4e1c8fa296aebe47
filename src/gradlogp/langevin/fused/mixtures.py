r"""Scores and log-densities of Gaussians and their mixtures, for tiles of chains (see `engine`).

With exponents l_k = log π_k N(x; μ_k, S_k) and r = softmax(l) the score is −Σ_k r_k S_k⁻¹ (x − μ_k).
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
def _softmax(w: Any, K: int, l: Any, top: Any, want: bool) -> None:
    """Turn the first K rows of l into e^{l − max}, and row K into one over their sum.

    On request the log-sum-exp is written to top. With three or more components, negligible terms
    are set to 0: their products would be denormal numbers, which take a processor a hundred times
    as long.
    """
    lanes = VECTOR * len(w)
    one, zero, low = (
        l.dtype.type(1),
        l.dtype.type(0),
        l.dtype.type(-70 if l.itemsize == 4 else -670),
    )
    if K == 1:
        for i in range(lanes):
            top[i] = l[0, i]
            l[0, i] = one
            l[1, i] = one
        return
    if K == 2:  # one exponential will do
        for i in range(lanes):
            first, a, b = l[0, i] >= l[1, i], max(l[0, i], l[1, i]), min(l[0, i], l[1, i])
            r = exp(b - a)
            top[i] = a
            l[0, i] = one if first else r
            l[1, i] = r if first else one
            l[2, i] = one / (one + r)
        if want:
            for i in range(lanes):
                top[i] -= log(l[2, i])
        return
    for i in range(lanes):
        top[i] = max(l[0, i], l[1, i])
    for k in range(2, K):
        for i in range(lanes):
            top[i] = max(top[i], l[k, i])
    for i in range(lanes):
        a, b = l[0, i] - top[i], l[1, i] - top[i]
        a, b = zero if a < low else exp(a), zero if b < low else exp(b)
        l[0, i] = a
        l[1, i] = b
        l[K, i] = a + b
    for k in range(2, K):
        for i in range(lanes):
            r = l[k, i] - top[i]
            r = zero if r < low else exp(r)  # NaN stays
            l[k, i] = r
            l[K, i] += r
    if want:
        for i in range(lanes):
            top[i] += log(l[K, i])
    for i in range(lanes):
        l[K, i] = one / l[K, i]


@compiled
def diagonal(w: Any, constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Score and log-density of a mixture with means `(K, D)` and precisions `(K, D)`."""
    lanes = VECTOR * len(w)
    means, P, const = constants
    K, D = means.shape
    l, zero = work, x.dtype.type(0)
    for k in range(K):
        for d in range(D):
            mu, half, c = means[k, d], P[k, d] * x.dtype.type(0.5), const[k]
            if d == 0:
                for i in range(lanes):
                    l[k, i] = c - half * (x[d, i] - mu) * (x[d, i] - mu)
            else:
                for i in range(lanes):
                    l[k, i] -= half * (x[d, i] - mu) * (x[d, i] - mu)
    _softmax(w, K, l, log_p, want)
    for d in range(D):
        for k in range(0, K, 2):  # two at a time: what a loop costs is its beginning
            mu, p = means[k, d], P[k, d]
            last = min(k + 1, K - 1)
            nu, q = means[last, d], P[last, d] if last > k else zero
            if k == 0:
                for i in range(lanes):
                    s[d, i] = l[k, i] * (p * (mu - x[d, i])) + l[last, i] * (q * (nu - x[d, i]))
            else:
                for i in range(lanes):
                    s[d, i] += l[k, i] * (p * (mu - x[d, i])) + l[last, i] * (q * (nu - x[d, i]))
        for i in range(lanes):
            s[d, i] *= l[K, i]


@compiled
def full(w: Any, constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Score and log-density of a mixture; W `(K, D, D)` holds U diag(w)^{-1/2} of each component.

    Four terms of a product at a time, because starting a loop is what costs time.
    """
    lanes = VECTOR * len(w)
    means, W, const = constants
    K, D = means.shape
    l, half, zero = work, x.dtype.type(0.5), x.dtype.type(0)
    y = work[K + 1 :]  # S_k^{-1/2} (x − μ_k), `(K D, lanes)`
    for k in range(K):
        for i in range(lanes):
            l[k, i] = const[k]
        for b in range(D):
            row = k * D + b
            for i in range(lanes):
                y[row, i] = zero
            for a in range(0, D, 4):
                a1, a2, a3 = min(a + 1, D - 1), min(a + 2, D - 1), min(a + 3, D - 1)
                w0, w1 = W[k, a, b], W[k, a1, b] if a + 1 < D else zero
                w2, w3 = W[k, a2, b] if a + 2 < D else zero, W[k, a3, b] if a + 3 < D else zero
                m0, m1, m2, m3 = means[k, a], means[k, a1], means[k, a2], means[k, a3]
                if a + 2 >= D:  # one or two are left
                    for i in range(lanes):
                        y[row, i] += w0 * (x[a, i] - m0) + w1 * (x[a1, i] - m1)
                    continue
                for i in range(lanes):
                    first = w0 * (x[a, i] - m0) + w1 * (x[a1, i] - m1)
                    y[row, i] += first + (w2 * (x[a2, i] - m2) + w3 * (x[a3, i] - m3))
            for i in range(lanes):
                l[k, i] -= half * y[row, i] * y[row, i]
    _softmax(w, K, l, log_p, want)
    s[:] = zero
    for k in range(K):
        some = np.int32(0)
        for i in range(lanes):
            some |= np.int32(l[k, i] != zero)
        if some == 0:  # for no chain of the tile
            continue
        for b in range(D):
            for i in range(lanes):
                y[k * D + b, i] *= l[k, i] * l[K, i]
        for a in range(D):
            for b in range(0, D, 4):
                b1, b2, b3 = min(b + 1, D - 1), min(b + 2, D - 1), min(b + 3, D - 1)
                w0, w1 = W[k, a, b], W[k, a, b1] if b + 1 < D else zero
                w2, w3 = W[k, a, b2] if b + 2 < D else zero, W[k, a, b3] if b + 3 < D else zero
                b0, b1, b2, b3 = k * D + b, k * D + b1, k * D + b2, k * D + b3
                if b + 2 >= D:
                    for i in range(lanes):
                        s[a, i] -= w0 * y[b0, i] + w1 * y[b1, i]
                    continue
                for i in range(lanes):
                    s[a, i] -= (w0 * y[b0, i] + w1 * y[b1, i]) + (w2 * y[b2, i] + w3 * y[b3, i])
