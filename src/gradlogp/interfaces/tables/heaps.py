r"""Values that people write more often than others near them: wages of 5.00, prices in hundreds.

No smooth law has them. With T the transform of the column, Φ and φ of N(0, 1), atoms v_k with
probabilities a_k in addition to the smooth law, and A their sum, the distribution function of the
column is

.. math:: F(x) = (1 - A)\, Φ(T(x)) + \sum_{v_k \le x} a_k

and its number z = Φ⁻¹(F(x)), where an atom is spread evenly over its step: so z is smooth, and is
converted back to the atom. A row that could be of either kind, on a coarse grid, is assigned at
random with the probability from Bayes' rule.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from ...core import rand_like
from ...noise.transforms import Monotone

CHANCE = 0.01
"""Probability under the smooth law of as many rows, below which a value is an atom."""

DISCOUNT = 1.0
"""Rows that an atom has by chance: on some tables that loses least on rows that were held out."""

MOST = 500
"""Atoms of a column."""

Atoms = tuple[tuple[float, float], ...]
"""Values and their probabilities, in ascending order."""


def find_atoms(values: np.ndarray, T: Monotone, grid: float, *, spread: bool) -> Atoms:
    r"""Return values in c rows where e are expected, P(Poisson(e) ≥ c) < 0.01, c > 1.

    The probability of each is (c − e − 1)/n, from the excess of the c rows beyond one.

    On no grid none is expected twice. A value is spread over the cell above it, else it is the middle.
    """
    found, counts = np.unique(values, return_counts=True)
    low = torch.from_numpy(found if spread else found - grid / 2)
    z = torch.stack([_inside(T, low), _inside(T, low + grid)])
    expected = len(values) * (ndtr(z[1]) - ndtr(z[0])).numpy()
    c, e = torch.from_numpy(counts).double(), torch.from_numpy(expected)
    chosen = (torch.special.gammainc(c, e) < CHANCE).numpy()
    more = counts - expected - DISCOUNT
    chosen &= (counts > 1) & (more > 0)
    chosen &= more >= np.sort(more)[-min(MOST, len(more))]
    return tuple(
        (float(v), float(m) / len(values))
        for v, m in zip(found[chosen], more[chosen], strict=True)
    )


def smooth_part(values: np.ndarray, atoms: Atoms) -> np.ndarray:
    """Return the rows that are not in excess: what the smooth law is fitted to."""
    gone = np.zeros(len(values), dtype=bool)
    for value, share in atoms:
        gone[np.flatnonzero(values == value)[: round(share * len(values))]] = True
    return values[~gone]


def _inside(T: Monotone, x: Tensor) -> Tensor:
    """Return T(x), infinite beyond its boundaries."""
    above = torch.zeros_like(x, dtype=torch.bool) if T.low is None else x <= T.low
    below = torch.zeros_like(x, dtype=torch.bool) if T.high is None else x >= T.high
    middle = T.inverse(torch.zeros(1, dtype=x.dtype))
    z = T(torch.where(above | below, middle, x))
    return torch.where(above, -math.inf, torch.where(below, math.inf, z))


def _steps(T: Monotone, atoms: Atoms) -> tuple[Tensor, Tensor, Tensor]:
    """Return atoms, their probabilities, and where the step of each begins in F."""
    v, a = torch.tensor(atoms, dtype=torch.float64).T.contiguous()
    return v, a, (1 - a.sum()) * ndtr(_inside(T, v)) + a.cumsum(0) - a


def to_normal(
    x: Tensor, value: Tensor, T: Monotone, atoms: Atoms, grid: float, g: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return z of numbers x, and the nats to add to its log-density.

    Without atoms z is T(x). `value` are the numbers as they are; x are these spread over cells of the
    width `grid`, 0 if they are not, inside the borders of T.
    """
    log_smooth = T.log_derivative(x) + (math.log(grid) if grid else 0.0)
    z = T(x)
    if not atoms:
        return z, log_smooth
    v, a, begin = _steps(T, atoms)
    rest = 1 - a.sum()
    at = torch.searchsorted(v, value).clamp(max=len(v) - 1)
    met = v[at] == value
    if grid:  # of the rows with this value, those that the smooth law has too
        cell = rest * (ndtr(_inside(T, v + grid)) - ndtr(_inside(T, v)))
        odds = a / (a + cell)
        heap = met & (rand_like(x, g) < odds[at])
        log_choice = torch.where(met, torch.where(heap, odds[at].log(), (1 - odds[at]).log()), 0.0)
    else:
        heap, log_choice = met, torch.zeros_like(x)
    below = torch.searchsorted(v, x, right=True)
    total = torch.cat([a.new_zeros(1), a.cumsum(0)])
    u = rest * ndtr(z) + total[below]
    u = torch.where(heap, begin[at] + a[at] * rand_like(x, g), u).clamp(1e-15, 1 - 1e-15)
    found = ndtri(u)
    log_smooth = log_smooth - 0.5 * z.square() + rest.log()
    nats = torch.where(heap, a[at].log() + 0.5 * math.log(2 * math.pi), log_smooth)
    return found, nats + 0.5 * found.square() - log_choice


def from_normal(z: Tensor, T: Monotone, atoms: Atoms, grid: float) -> Tensor:
    """Return numbers from z: an atom, or what lies between; in the middle of its cell if it has one."""
    if not atoms:
        return T.inverse(z)
    v, a, begin = _steps(T, atoms)
    rest = 1 - a.sum()
    u = ndtr(z)
    at = torch.searchsorted(begin + a, u)
    near = at.clamp(max=len(v) - 1)
    heap = (at < len(v)) & (u >= begin[near])
    total = torch.cat([a.new_zeros(1), a.cumsum(0)])
    inner = ((u - total[at]) / rest).clamp(1e-15, 1 - 1e-15)
    return torch.where(heap, v[near] + grid / 2, T.inverse(ndtri(inner)))
