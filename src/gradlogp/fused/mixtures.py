r"""Scores and log-densities of Gaussians and their mixtures, for tiles of chains (see `engine`).

With exponents l_k = log π_k N(x; μ_k, S_k) and r = softmax(l) the score is −Σ_k r_k S_k⁻¹ (x − μ_k).
"""

from __future__ import annotations

from typing import Any

from .noise import VECTOR, compiled, exp, log


@compiled
def _softmax(w: Any, K: int, l: Any, top: Any, want: bool) -> None:
    """Turn the first K rows of l into e^{l − max}, and row K into one over their sum.

    If wanted, the log-sum-exp is put into top.
    """
    lanes = VECTOR * len(w)
    one = l.dtype.type(1)
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
        a, b = exp(l[0, i] - top[i]), exp(l[1, i] - top[i])
        l[0, i] = a
        l[1, i] = b
        l[K, i] = a + b
    for k in range(2, K):
        for i in range(lanes):
            r = exp(l[k, i] - top[i])
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
    """Score and log-density of a mixture; W `(K, D, D)` holds U diag(w)^{-1/2} of each component."""
    lanes = VECTOR * len(w)
    means, W, const = constants
    K, D = means.shape
    l, y, half = work, work[K + 1 :], x.dtype.type(0.5)  # y: S_k^{-1/2} (x − μ_k), `(K D, lanes)`
    y[:] = x.dtype.type(0)
    for k in range(K):
        for a in range(D):
            for b in range(D):
                mu, root = means[k, a], W[k, a, b]
                for i in range(lanes):
                    y[k * D + b, i] += root * (x[a, i] - mu)
        for i in range(lanes):
            l[k, i] = const[k]
        for b in range(D):
            for i in range(lanes):
                l[k, i] -= half * y[k * D + b, i] * y[k * D + b, i]
    _softmax(w, K, l, log_p, want)
    s[:] = x.dtype.type(0)
    for k in range(K):
        for b in range(D):
            for i in range(lanes):
                y[k * D + b, i] *= l[k, i] * l[K, i]
            for a in range(D):
                root = W[k, a, b]
                for i in range(lanes):
                    s[a, i] -= root * y[k * D + b, i]
