r"""The steps of every kernel, for a tile of chains at a time, with everything they need in cache.

Rows are coordinates and columns are chains, so that every inner loop runs over chains. A score is
a compiled function `score(w, constants, x, s, log_p, work, want)` that fills s `(D, lanes)` and,
on request, log_p `(lanes,)`: those of mixtures are in `mixtures`, those of the known targets in
`known`, and `of_chain` makes one from a user's function.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..kernels.hamiltonian import ENERGY_ERROR
from .noise import (
    VECTOR,
    compiled,
    exp,
    normals,
    uniforms,
)

ULA, AVERAGED, MALA, BAOAB, HMC = range(5)
"""Which kernel `tiles` steps."""


def of_chain(score: Any, log_prob: Any | None) -> Any:
    """Return a score of tiles from compiled functions score(x, out) and log_prob(x) of one chain."""
    if log_prob is None:

        @compiled
        def log_prob(x: Any) -> Any:
            return x[0] * 0

    @compiled
    def own(w: Any, constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
        lanes = VECTOR * len(w)
        at, out = np.empty(x.shape[0], x.dtype), np.empty(x.shape[0], x.dtype)
        for i in range(lanes):
            for d in range(len(at)):  # compiled in half the time that a slice takes
                at[d] = x[d, i]
            score(at, out)
            for d in range(len(at)):
                s[d, i] = out[d]
            if want:
                log_p[i] = log_prob(at)

    return own


@compiled
def _odd(w: Any, x: Any, s: Any) -> Any:
    """Return 0 if all of x and s is finite, else 1."""
    lanes = VECTOR * len(w)
    odd, zero = np.int32(0), x.dtype.type(0)
    for d in range(x.shape[0]):
        for i in range(lanes):
            odd |= np.int32((x[d, i] - x[d, i]) + (s[d, i] - s[d, i]) != zero)
    return odd


@compiled
def _nan(w: Any, x: Any, s: Any, nan: Any) -> None:
    """Add to nan, for each lane, a number that is 0 where x and s are finite, else NaN."""
    lanes = VECTOR * len(w)
    for d in range(x.shape[0]):
        for i in range(lanes):
            nan[i] += (x[d, i] - x[d, i]) + (s[d, i] - s[d, i])


@compiled
def _copy(w: Any, a: Any, b: Any) -> None:
    """Fill b `(rows, lanes)` with as many rows of a."""
    lanes = VECTOR * len(w)
    for d in range(b.shape[0]):
        for i in range(lanes):
            b[d, i] = a[d, i]


@compiled
def _stay(w: Any, take: Any, new: Any, old: Any) -> None:
    """Put the old numbers of the lanes that do not take the new ones in their place."""
    lanes = VECTOR * len(w)
    for d in range(new.shape[0]):
        for i in range(lanes):
            new[d, i] = new[d, i] if take[i] else old[d, i]


@compiled
def tiles(
    w: Any, kind: int, c: Any, score: Any, constants: Any, rows: int, first: int, last: int, n: int,
    rng: Any, x: Any, s: Any, extra: Any, log_p: Any, counts: Any,
    step: int, n_steps: int, burn_in: int, thin: int, draws: Any, flags: Any, accepted: Any,
    acceptance: Any, kept_log_p: Any, energy: Any, lengths: Any, reached: Any,
) -> None:  # fmt: skip
    r"""Move the tiles first … last − 1 by n_steps steps; the arrays hold the state before and after.

    Arguments:
        w: Width of a tile, `noise.NARROW` or `noise.WIDE`.
        kind: `ULA`, `AVERAGED`, `MALA`, `BAOAB` or `HMC`.
        c: The numbers of the kernel: h, √(2hτ), then √(hτ/2) for `AVERAGED` or 1/τ and 1/(4hτ) for
            `MALA`; for `BAOAB` h/2, h/(2m), e^{−γh} and √(τm(1 − e^{−2γh})); for `HMC` h, √τ, 1/τ and
            1/(2τ).
        score: Fills scores and log-densities of a tile.
        constants: Its constants.
        rows: Rows of working space that it needs.
        first: First tile.
        last: One past the last tile.
        n: Total number of chains; the lanes beyond them are idle.
        rng: `(tile, 4 lanes)`.
        x: Positions `(tile, D, lanes)`.
        s: Scores.
        extra: Momenta, or the noise of the last step.
        log_p: Log-densities `(tile, lanes)`.
        counts: Diverging steps of each chain, `(chain,)`.
        step: Steps already taken.
        n_steps: Steps to take.
        burn_in: Steps dropped.
        thin: Keep every `thin`-th draw.
        draws: `(chain, draw, D)`.
        flags: `(chain, draw)`, diverging.
        accepted: `(chain, draw)`, for `MALA` and `HMC`.
        acceptance: Likewise.
        kept_log_p: Likewise.
        energy: `(chain, draw)`, for `HMC`.
        lengths: Leapfrog steps of each step, `(n_steps,)`, for `HMC`.
        reached: `(1,)`, set to the total number of steps at the end, because Python may notice an
            interrupt before or after this function.
    """
    lanes = VECTOR * len(w)
    D, zero = x.shape[1], x.dtype.type(0)
    c0, c1, c2, c3 = c[0], c[1], c[2], c[3]
    z = np.empty((D + D % 2, lanes), np.float32)
    work = np.empty((rows, lanes), x.dtype)
    here, there = np.empty((D, lanes), x.dtype), np.empty((D, lanes), x.dtype)
    y, g = np.empty((D, lanes), x.dtype), np.empty((D, lanes), x.dtype)
    moving, metropolis = extra.shape[1], kind == MALA or kind == HMC
    more, e = np.empty((moving, lanes), x.dtype), np.empty((moving, lanes), x.dtype)
    old_lp, lp = np.empty(lanes, x.dtype), np.empty(lanes, x.dtype)
    ratio, nan = np.empty(lanes, x.dtype), np.empty(lanes, x.dtype)
    q, before = np.empty((D, lanes), x.dtype), np.empty(lanes, x.dtype)
    u = np.empty(lanes, np.float32)
    take, wrong = np.empty(lanes, np.bool_), np.empty(lanes, np.bool_)
    for tile in range(first, last):
        _copy(w, x[tile], here)
        _copy(w, s[tile], there)
        _copy(w, extra[tile], more)
        for i in range(lanes):
            old_lp[i] = log_p[tile, i]
        r = rng[tile]
        busy = min(lanes, n - tile * lanes)
        for t in range(step + 1, step + n_steps + 1):
            normals(w, r, z, D)
            for d in range(D):
                if kind == BAOAB:
                    for i in range(lanes):
                        p = more[d, i] + c0 * there[d, i]
                        half = here[d, i] + c1 * p
                        p = c2 * p + c3 * z[d, i]
                        e[d, i] = p
                        y[d, i] = half + c1 * p
                elif kind == HMC:
                    for i in range(lanes):
                        q[d, i] = c1 * z[d, i] + c0 / 2 * there[d, i]
                        y[d, i] = here[d, i] + c0 * q[d, i]
                elif kind == AVERAGED:
                    for i in range(lanes):
                        y[d, i] = here[d, i] + c0 * there[d, i] + c2 * (more[d, i] + z[d, i])
                    for i in range(lanes):
                        e[d, i] = z[d, i]
                else:
                    for i in range(lanes):
                        y[d, i] = here[d, i] + c0 * there[d, i] + c1 * z[d, i]
            left = lengths[t - step - 1] if kind == HMC else 1
            while True:  # one call of the score, which is compiled where it is called
                left -= 1
                score(w, constants, y, g, lp, work, metropolis and left == 0)
                if left == 0:
                    break
                for d in range(D):
                    for i in range(lanes):
                        q[d, i] += c0 * g[d, i]
                        y[d, i] += c0 * q[d, i]
            some = _odd(w, y, g)
            if kind == BAOAB:
                for d in range(D):
                    for i in range(lanes):
                        e[d, i] += c0 * g[d, i]
                some |= _odd(w, e, e)
            for i in range(lanes):
                nan[i] = zero
            if some:
                _nan(w, y, g, nan)
                if kind == BAOAB:
                    _nan(w, e, e, nan)
            if kind == HMC:
                for i in range(lanes):
                    ratio[i] = before[i] = zero
                for d in range(D):
                    for i in range(lanes):
                        q[d, i] += c0 / 2 * g[d, i]
                        on, back = c1 * z[d, i], q[d, i]
                        before[i] += on * on / 2
                        ratio[i] += on * on - back * back
            elif kind == MALA:
                for i in range(lanes):
                    ratio[i] = zero
                for d in range(D):
                    for i in range(lanes):
                        back = here[d, i] - y[d, i] - c0 * g[d, i]
                        on = y[d, i] - here[d, i] - c0 * there[d, i]
                        ratio[i] += on * on - back * back
            if metropolis:
                uniforms(w, r, u)
                some = np.int32(0)
                for i in range(lanes):
                    value = (lp[i] - old_lp[i]) * c2 + ratio[i] * c3
                    off = nan[i] + (value - value) + (lp[i] - lp[i])
                    outside = lp[i] == -np.inf and nan[i] == zero
                    bad = (off != zero and not outside) or (
                        kind == HMC and off == zero and value < -ENERGY_ERROR
                    )
                    before[i] -= old_lp[i]
                    after = before[i] - value / c2
                    value = exp(min(value, zero))
                    value = value if off == zero else zero
                    ratio[i] = value
                    take[i] = u[i] < value
                    before[i] = after if take[i] else before[i]
                    wrong[i] = bad
                    some |= np.int32(bad)
                for i in range(lanes):
                    lp[i] = lp[i] if take[i] else old_lp[i]
                old_lp, lp = lp, old_lp
            elif some:
                for i in range(lanes):
                    take[i] = nan[i] == zero
                    wrong[i] = not take[i]
            if some or metropolis:
                _stay(w, take, y, here)
                _stay(w, take, g, there)
                if kind == BAOAB or kind == AVERAGED:
                    _stay(w, take, e, more)
            here, y = y, here
            there, g = g, there
            if kind == BAOAB or kind == AVERAGED:
                more, e = e, more
            if some:
                for i in range(busy):
                    counts[tile * lanes + i] += wrong[i]
            if t <= burn_in or (t - burn_in) % thin != 0:
                continue
            j = (t - burn_in) // thin - 1
            for i in range(busy):
                k = tile * lanes + i
                for d in range(D):
                    draws[k, j, d] = here[d, i]
                if some:
                    flags[k, j] = wrong[i]
                if kind == HMC:
                    energy[k, j] = before[i]
                if metropolis:
                    accepted[k, j], acceptance[k, j] = take[i], ratio[i]
                    kept_log_p[k, j] = old_lp[i]
        _copy(w, here, x[tile])
        _copy(w, there, s[tile])
        _copy(w, more, extra[tile])
        for i in range(lanes):
            log_p[tile, i] = old_lp[i]
    reached[0] = step + n_steps
