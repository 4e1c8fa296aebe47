r"""The steps of every kernel, for `LANES` chains at a time, with everything they need in cache.

Rows are coordinates and columns are chains, so that every inner loop runs over chains. A score is a
compiled function `score(constants, x, s, log_p, work, want)` that fills s `(D, LANES)` and, if that
is wanted, log_p `(LANES,)`; mixtures have theirs here, and `of_chain` makes one of a user's own
function.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.extending import overload

from .noise import INLINE, LANES, compiled, exp32, log32, normals, uniforms

ULA, AVERAGED, MALA, BAOAB = range(4)
"""Which kernel `tiles` steps."""


def exp(x: Any) -> Any:
    """Stand for exp x of x ≤ 0 in the precision of x."""


def log(x: Any) -> Any:
    """Stand for log x of a normal positive number in the precision of x."""


@overload(exp, jit_options=INLINE, strict=False)
def _exp(x: Any) -> Any:
    return (lambda x: exp32(x)) if x == numba.types.float32 else (lambda x: np.exp(x))


@overload(log, jit_options=INLINE, strict=False)
def _log(x: Any) -> Any:
    return (lambda x: log32(x)) if x == numba.types.float32 else (lambda x: np.log(x))


@compiled
def _softmax(K: int, l: Any, top: Any, want: bool) -> None:
    """Turn the first K rows of l into responsibilities, and put their log-sum-exp into top if wanted.

    Row K of l is working space.
    """
    zero, one = l.dtype.type(0), l.dtype.type(1)
    for i in range(LANES):
        top[i] = l[0, i]
        l[K, i] = zero
    for k in range(1, K):
        for i in range(LANES):
            top[i] = max(top[i], l[k, i])
    for k in range(K):
        for i in range(LANES):
            r = exp(l[k, i] - top[i])
            l[k, i] = r
            l[K, i] += r
    if want:
        for i in range(LANES):
            top[i] += log(l[K, i])
    for i in range(LANES):
        l[K, i] = one / l[K, i]
    for k in range(K):
        for i in range(LANES):
            l[k, i] *= l[K, i]


@compiled
def diagonal(constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Score and log-density of a mixture with means `(K, D)` and precisions `(K, D)`."""
    means, P, const = constants
    K, D = means.shape
    l = work
    for k in range(K):
        for i in range(LANES):
            l[k, i] = const[k]
        for d in range(D):
            mu, half = means[k, d], P[k, d] * x.dtype.type(0.5)
            for i in range(LANES):
                y = x[d, i] - mu
                l[k, i] -= half * y * y
    _softmax(K, l, log_p, want)
    s[:] = x.dtype.type(0)
    for k in range(K):
        for d in range(D):
            mu, p = means[k, d], P[k, d]
            for i in range(LANES):
                s[d, i] += l[k, i] * (p * (mu - x[d, i]))


@compiled
def full(constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Score and log-density of a mixture; W `(K, D, D)` holds U diag(w)^{-1/2} of each component."""
    means, W, const = constants
    K, D = means.shape
    l, y, half = work, work[K + 1 :], x.dtype.type(0.5)  # y: S_k^{-1/2} (x − μ_k), `(K D, LANES)`
    y[:] = x.dtype.type(0)
    for k in range(K):
        for a in range(D):
            for b in range(D):
                mu, w = means[k, a], W[k, a, b]
                for i in range(LANES):
                    y[k * D + b, i] += w * (x[a, i] - mu)
        for i in range(LANES):
            l[k, i] = const[k]
        for b in range(D):
            for i in range(LANES):
                l[k, i] -= half * y[k * D + b, i] * y[k * D + b, i]
    _softmax(K, l, log_p, want)
    s[:] = x.dtype.type(0)
    for k in range(K):
        for b in range(D):
            for i in range(LANES):
                y[k * D + b, i] *= l[k, i]
            for a in range(D):
                w = W[k, a, b]
                for i in range(LANES):
                    s[a, i] -= w * y[k * D + b, i]


def of_chain(score: Any, log_prob: Any | None) -> Any:
    """Return a score of tiles from compiled functions score(x, out) and log_prob(x) of one chain."""
    if log_prob is None:

        @compiled
        def log_prob(x: Any) -> Any:
            return x[0] * 0

    @compiled
    def own(constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
        at, out = np.empty_like(x[:, 0].copy()), np.empty_like(x[:, 0].copy())
        for i in range(LANES):
            at[:] = x[:, i]
            score(at, out)
            s[:, i] = out
            if want:
                log_p[i] = log_prob(at)

    return own


@compiled
def _finite(x: Any, s: Any, bad: Any) -> None:
    """Add to bad, for each lane, a number that is 0 where x and s are finite, else NaN."""
    for d in range(x.shape[0]):
        for i in range(LANES):
            bad[i] += (x[d, i] - x[d, i]) + (s[d, i] - s[d, i])


@compiled
def tiles(
    kind: int, c: Any, score: Any, constants: Any, rows: int, first: int, last: int, n: int,
    rng: Any, x: Any, s: Any, extra: Any, log_p: Any, counts: Any,
    step: int, n_steps: int, burn_in: int, thin: int, draws: Any, flags: Any, accepted: Any,
    acceptance: Any, kept_log_p: Any,
) -> None:  # fmt: skip
    r"""Move the tiles first … last − 1 by n_steps steps; the arrays hold the state before and after.

    Arguments:
        kind: `ULA`, `AVERAGED`, `MALA` or `BAOAB`.
        c: The numbers of the kernel: h, √(2hτ), then √(hτ/2) for `AVERAGED` or 1/τ and 1/(4hτ) for
            `MALA`; for `BAOAB` h/2, h/(2m), e^{−γh} and √(τm(1 − e^{−2γh})).
        score: Fills scores and log-densities of a tile.
        constants: What it wants.
        rows: Rows of working space that it wants.
        first: First tile.
        last: One past the last tile.
        n: Chains in all; the lanes beyond them are idle.
        rng: `(tile, 4 LANES)`.
        x: Positions `(tile, D, LANES)`.
        s: Scores.
        extra: Momenta, or the noise of the last step.
        log_p: Log-densities `(tile, LANES)`.
        counts: Diverging steps of each chain, `(chain,)`.
        step: Steps already taken.
        n_steps: Steps to take.
        burn_in: Steps dropped.
        thin: Keep one in so many.
        draws: `(chain, draw, D)`.
        flags: `(chain, draw)`, diverging.
        accepted: `(chain, draw)`, for `MALA`.
        acceptance: `(chain, draw)`, for `MALA`.
        kept_log_p: `(chain, draw)`, for `MALA`.
    """
    D = x.shape[1]
    zero = x.dtype.type(0)
    z = np.empty((D + D % 2, LANES), np.float32)
    y, g, e = np.empty_like(x[0]), np.empty_like(x[0]), np.empty_like(x[0])
    work = np.empty((rows, LANES), x.dtype)
    lp, ratio, bad = np.empty_like(log_p[0]), np.empty_like(log_p[0]), np.empty_like(log_p[0])
    u, take = np.empty(LANES, np.float32), np.empty(LANES, np.bool_)
    for tile in range(first, last):
        here, there, more, old_lp, r = x[tile], s[tile], extra[tile], log_p[tile], rng[tile]
        lanes = min(LANES, n - tile * LANES)
        for t in range(step + 1, step + n_steps + 1):
            normals(r, z, D)
            for d in range(D):
                if kind == BAOAB:
                    for i in range(LANES):
                        p = more[d, i] + c[0] * there[d, i]
                        half = here[d, i] + c[1] * p
                        p = c[2] * p + c[3] * z[d, i]
                        e[d, i] = p
                        y[d, i] = half + c[1] * p
                elif kind == AVERAGED:
                    for i in range(LANES):
                        noise = c[2] * (more[d, i] + z[d, i])
                        y[d, i] = here[d, i] + c[0] * there[d, i] + noise
                        e[d, i] = z[d, i]
                else:
                    for i in range(LANES):
                        y[d, i] = here[d, i] + c[0] * there[d, i] + c[1] * z[d, i]
            score(constants, y, g, lp, work, kind == MALA)
            bad[:] = zero
            _finite(y, g, bad)
            if kind == BAOAB:
                for d in range(D):
                    for i in range(LANES):
                        e[d, i] += c[0] * g[d, i]
                _finite(e, e, bad)
            if kind == MALA:
                ratio[:] = zero
                for d in range(D):
                    for i in range(LANES):
                        back = here[d, i] - y[d, i] - c[0] * g[d, i]
                        on = y[d, i] - here[d, i] - c[0] * there[d, i]
                        ratio[i] += on * on - back * back
                uniforms(r, u)
                for i in range(LANES):
                    value = (lp[i] - old_lp[i]) * c[2] + ratio[i] * c[3]
                    outside = lp[i] == -np.inf and bad[i] == zero
                    if not outside:
                        bad[i] += (value - value) + (lp[i] - lp[i])
                    fine = bad[i] == zero and not outside
                    value = np.exp(min(value, zero)) if fine else zero
                    ratio[i] = value
                    take[i] = u[i] < value
            else:
                for i in range(LANES):
                    take[i] = bad[i] == zero
            for d in range(D):
                for i in range(LANES):
                    here[d, i] = y[d, i] if take[i] else here[d, i]
                    there[d, i] = g[d, i] if take[i] else there[d, i]
            if kind == BAOAB or kind == AVERAGED:
                for d in range(D):
                    for i in range(LANES):
                        more[d, i] = e[d, i] if take[i] else more[d, i]
            for i in range(LANES):
                old_lp[i] = lp[i] if take[i] else old_lp[i]
            some = np.int32(0)
            for i in range(LANES):
                some |= np.int32(bad[i] != zero)
            if some:
                for i in range(lanes):
                    counts[tile * LANES + i] += bad[i] != zero
            if t <= burn_in or (t - burn_in) % thin != 0:
                continue
            j = (t - burn_in) // thin - 1
            for i in range(lanes):
                k = tile * LANES + i
                for d in range(D):
                    draws[k, j, d] = here[d, i]
                if some:
                    flags[k, j] = bad[i] != zero
                if kind == MALA:
                    accepted[k, j], acceptance[k, j] = take[i], ratio[i]
                    kept_log_p[k, j] = old_lp[i]
