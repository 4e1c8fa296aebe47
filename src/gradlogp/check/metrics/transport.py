"""Transport distances between samples."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import Estimate, randn_like
from .two_sample import two_samples


def _quantile_coupling(n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return how much mass of order statistic i of n meets j of m: indices i, j and masses."""
    of_n = torch.arange(n + 1, dtype=torch.float64) / n
    of_m = torch.arange(1, m, dtype=torch.float64) / m
    cuts = torch.cat([of_n, of_m]).sort().values
    middle, mass = (cuts[1:] + cuts[:-1]) / 2, cuts.diff()
    keep = mass > 1e-12
    i, j = (middle[keep] * n).long(), (middle[keep] * m).long()
    return i.to(device), j.to(device), mass[keep].to(device)


def sliced_wasserstein(
    x: Float[Tensor, "n *event"],
    y: Float[Tensor, "m *event"],
    n_projections: int = 128,
    *,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""Sliced 2-Wasserstein distance, :math:`\left( E_θ W_2^2(θ^\top x, θ^\top y) \right)^{1/2}`.

    Each projection on a random direction of the unit sphere is solved exactly by sorting, also for
    n ≠ m. The standard error is that of the plug-in functional: the 1-D Kantorovich potentials,
    averaged over the projections, are its influence function; the finite set of projections is
    part of the definition (pass the same generator state to compare). Between two samples of one
    law it is about n^{-1/2}, not 0: compare with the floor.

    Arguments:
        x: Samples, `(n, *event)`.
        y: Samples, `(m, *event)`.
        n_projections: Number of directions.
        generator: Where the directions come from.

    References:
        | Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015)
        | https://doi.org/10.1007/s10851-014-0506-3
        | Central Limit Theorems for Empirical Transportation Cost in General Dimension
          (del Barrio & Loubes, 2019)
        | https://doi.org/10.1214/18-AOP1275
    """
    a, b = two_samples(x, y)
    if n_projections < 1:
        raise ValueError(f"n_projections must be at least 1, got {n_projections}")
    z = torch.empty(n_projections, a.shape[1], dtype=a.dtype, device=a.device)
    theta = randn_like(z, generator)
    theta = theta / theta.norm(dim=1, keepdim=True)
    i, j, mass = _quantile_coupling(len(a), len(b), a.device)
    total = torch.zeros((), dtype=a.dtype, device=a.device)
    potential_a, potential_b = a.new_zeros(len(a)), b.new_zeros(len(b))
    for directions in theta.split(32):
        (u, order_u), (v, order_v) = ((w @ directions.mT).sort(dim=0) for w in (a, b))
        gap = u[i] - v[j]
        total += (mass.unsqueeze(1) * gap.square()).sum()
        # phi'(u) = 2 (u - T(u)), integrated by the trapezoid rule over the order statistics
        for w, order, index, sign, potential in (
            (u, order_u, i, 1.0, potential_a),
            (v, order_v, j, -1.0, potential_b),
        ):
            slope = torch.zeros_like(w).index_add(0, index, 2 * sign * mass.unsqueeze(1) * gap)
            slope = slope * len(w)
            steps = 0.5 * (slope[1:] + slope[:-1]) * w.diff(dim=0)
            phi = torch.cat([w.new_zeros(1, w.shape[1]), steps.cumsum(0)])
            potential += torch.zeros_like(phi).scatter(0, order, phi - phi.mean(0)).sum(1)
    squared = float(total) / n_projections
    variance = sum(float((p / n_projections).var()) / len(p) for p in (potential_a, potential_b))
    value = math.sqrt(squared)
    return Estimate(value, math.sqrt(variance) / (2 * value) if value > 0 else 0.0)
