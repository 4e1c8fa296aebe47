r"""The machine that carries out a traced density, for tiles of chains (see `engine` and `tracing`).

It is compiled once and carries out any program, so that a new density needs no compilation. An
instruction is decoded once for all chains of a tile, whose numbers stand side by side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from . import operations as op
from .noise import compiled, exp, inlined

CHUNK = 32
"""Results of an instruction that are computed together, in one loop over numbers and chains."""

SCRATCH = 3 * CHUNK
"""Rows of working space beyond the places of a program: operands that do not stand in order."""


@inlined
def digamma(x: Any) -> Any:
    """Return the derivative of log Γ, by recurrence and its asymptotic series."""
    if x == 0:
        return -np.inf
    total = 0.0
    if x < 0:
        if x == math.floor(x):
            return np.nan
        total, x = -math.pi / math.tan(math.pi * x), 1 - x
    while x < 10:
        total -= 1 / x
        x += 1
    y = 1 / (x * x)
    series = 1 / 12 - y * (
        1 / 120 - y * (1 / 252 - y * (1 / 240 - y * (1 / 132 - y * 691 / 32760)))
    )
    return total + math.log(x) - 0.5 / x - y * series


@inlined
def reference(tables: Any, code: Any, k: int, at: int, j: int, r: int) -> Any:
    """Return the reference to an operand."""
    ref = code[k, at] + j * code[k, at + 1] + r * code[k, at + 2]
    table = code[k, at + 3]
    return tables[table + ref] if table >= 0 else ref


@compiled
def gathered(
    cells: Any,
    numbers: Any,
    tables: Any,
    code: Any,
    k: int,
    at: int,
    first: int,
    m: int,
    spare: int,
) -> Any:
    """Return the first of m rows with operands, copied to spare rows unless they are in order."""
    start = code[k, at] + first * code[k, at + 1]
    if code[k, at + 3] < 0 and start >= 0 and (m == 1 or code[k, at + 1] == 1):
        return start
    for j in range(m):
        ref = reference(tables, code, k, at, first + j, 0)
        if ref < 0:
            number = numbers[-1 - ref]
            for i in range(cells.shape[1]):
                cells[spare + j, i] = number
        else:
            for i in range(cells.shape[1]):
                cells[spare + j, i] = cells[ref, i]
    return spare


@compiled
def score(w: Any, constants: Any, x: Any, s: Any, log_p: Any, work: Any, want: bool) -> None:
    """Constants: code, tables, numbers, ends, count of instructions for the score, lanes in use."""
    code, tables, numbers, ends, for_score, lanes = constants
    D, zero = x.shape[0], x.dtype.type(0)
    rows, flat = work.shape[0], work.reshape(-1)[: work.shape[0] * lanes]
    cells, spare = flat.reshape(rows, lanes), rows - SCRATCH
    # as variables: of a literal argument Numba compiles a variant for every value
    zeroth, at_one, at_two, at_three = np.int64(0), np.int64(4), np.int64(8), np.int64(12)
    for d in range(D):
        for i in range(lanes):
            cells[d, i] = x[d, i]
    for k in range(len(code) if want else for_score):
        kind, n, o = code[k, 0], code[k, 1], code[k, 3]
        if kind == op.SUM or kind == op.DOT or kind == op.MOST:
            reduced(kind, cells, numbers, tables, code, k)
            continue
        for first in range(0, n, CHUNK):
            m = min(CHUNK, n - first)
            a = gathered(cells, numbers, tables, code, k, at_one, first, m, spare)
            out = flat[(o + first) * lanes : (o + first + m) * lanes]
            one = flat[a * lanes : (a + m) * lanes]
            if kind >= op.NEG:
                unary(kind, one, out)
                continue
            b = gathered(cells, numbers, tables, code, k, at_two, first, m, spare + CHUNK)
            two = flat[b * lanes : (b + m) * lanes]
            if kind != op.WHERE:
                binary(kind, one, two, out)
                continue
            c = gathered(cells, numbers, tables, code, k, at_three, first, m, spare + 2 * CHUNK)
            three = flat[c * lanes : (c + m) * lanes]
            for i in range(len(out)):
                out[i] = two[i] if one[i] != zero else three[i]
    for d in range(D):
        a = gathered(cells, numbers, tables, ends, d, zeroth, zeroth, np.int64(1), spare)
        for i in range(x.shape[1]):
            s[d, i] = cells[a, i] if i < lanes else zero
    a = gathered(cells, numbers, tables, ends, D, zeroth, zeroth, np.int64(1), spare)
    for i in range(x.shape[1]):
        log_p[i] = cells[a, i] if want and i < lanes else zero


@compiled
def reduced(kind: int, cells: Any, numbers: Any, tables: Any, code: Any, k: int) -> None:
    """Do a reduction, for four chains at a time."""
    n, R, o = code[k, 1], code[k, 2], code[k, 3]
    one, none = 1.0, 0.0 if kind != op.MOST else -np.inf  # sums in double precision
    for j in range(n):
        for i in range(0, cells.shape[1], 4):
            s0, s1, s2, s3 = none, none, none, none
            for r in range(R):
                a, c = reference(tables, code, k, 4, j, r), one
                if kind == op.DOT:
                    b = reference(tables, code, k, 8, j, r)
                    if b < 0:
                        c = numbers[-1 - b]
                if a < 0:
                    v0 = numbers[-1 - a]
                    v1, v2, v3 = v0, v0, v0
                else:
                    v0, v1, v2, v3 = cells[a, i], cells[a, i + 1], cells[a, i + 2], cells[a, i + 3]
                if kind == op.MOST:
                    s0 = v0 if v0 > s0 or v0 != v0 else s0
                    s1 = v1 if v1 > s1 or v1 != v1 else s1
                    s2 = v2 if v2 > s2 or v2 != v2 else s2
                    s3 = v3 if v3 > s3 or v3 != v3 else s3
                elif kind == op.DOT and b >= 0:
                    s0 += v0 * cells[b, i]
                    s1 += v1 * cells[b, i + 1]
                    s2 += v2 * cells[b, i + 2]
                    s3 += v3 * cells[b, i + 3]
                else:
                    s0 += v0 * c
                    s1 += v1 * c
                    s2 += v2 * c
                    s3 += v3 * c
            cells[o + j, i], cells[o + j, i + 1] = s0, s1
            cells[o + j, i + 2], cells[o + j, i + 3] = s2, s3


@compiled
def binary(kind: int, a: Any, b: Any, out: Any) -> None:
    """Do an operation on two numbers."""
    zero, one = a.dtype.type(0), a.dtype.type(1)
    if kind == op.ADD:
        for i in range(len(out)):
            out[i] = a[i] + b[i]
    elif kind == op.SUB:
        for i in range(len(out)):
            out[i] = a[i] - b[i]
    elif kind == op.MUL:
        for i in range(len(out)):
            out[i] = a[i] * b[i]
    elif kind == op.DIV:
        for i in range(len(out)):
            out[i] = a[i] / b[i]
    elif kind == op.MAX:
        for i in range(len(out)):
            out[i] = a[i] if a[i] > b[i] or a[i] != a[i] else b[i]
    elif kind == op.MIN:
        for i in range(len(out)):
            out[i] = a[i] if a[i] < b[i] or a[i] != a[i] else b[i]
    elif kind == op.LT:
        for i in range(len(out)):
            out[i] = one if a[i] < b[i] else zero
    elif kind == op.LE:
        for i in range(len(out)):
            out[i] = one if a[i] <= b[i] else zero
    elif kind == op.EQ:
        for i in range(len(out)):
            out[i] = one if a[i] == b[i] else zero
    elif kind == op.ATAN2:
        for i in range(len(out)):
            out[i] = math.atan2(a[i], b[i])
    elif kind == op.POW:
        for i in range(len(out)):
            out[i] = a[i] ** b[i]


@compiled
def unary(kind: int, a: Any, out: Any) -> None:
    """Do an operation on one number."""
    zero, one = a.dtype.type(0), a.dtype.type(1)
    if kind == op.NEG:
        for i in range(len(out)):
            out[i] = -a[i]
    elif kind == op.EXP:
        for i in range(len(out)):
            out[i] = exp(a[i])
    elif kind == op.SIGMOID:
        for i in range(len(out)):
            out[i] = one / (one + exp(-a[i]))
    elif kind == op.ABS:
        for i in range(len(out)):
            out[i] = abs(a[i])
    elif kind == op.SQRT:
        for i in range(len(out)):
            out[i] = np.sqrt(a[i])
    else:
        for i in range(len(out)):
            v = a[i]
            if kind == op.LOG:
                out[i] = np.log(v)
            elif kind == op.LOG1P:
                out[i] = np.log1p(v)
            elif kind == op.EXPM1:
                out[i] = np.expm1(v)
            elif kind == op.TANH:
                out[i] = np.tanh(v)
            elif kind == op.SIN:
                out[i] = np.sin(v)
            elif kind == op.COS:
                out[i] = np.cos(v)
            elif kind == op.ATAN:
                out[i] = np.arctan(v)
            elif kind == op.ERF:
                out[i] = math.erf(v)
            elif kind == op.ERFC:
                out[i] = math.erfc(v)
            elif kind == op.LGAMMA:
                out[i] = math.lgamma(v)
            elif kind == op.DIGAMMA:
                out[i] = digamma(v)
            elif kind == op.SIGN:
                out[i] = one if v > zero else (-one if v < zero else zero)
            elif kind == op.FLOOR:
                out[i] = np.floor(v)
