"""How well chains mix: R-hat and effective sizes of few long chains, or of many short ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

MANY = 64
"""Chains from which errors come from the means of chains, not from autocorrelations."""

BLOCK_ENTRIES = 2**23
"""Entries of the draws that are turned into NumPy doubles together: 64 MiB."""


class Mixing(NamedTuple):
    """How well chains mix, coordinate by coordinate.

    Attributes:
        n_split: Half chains, or groups of them, which R-hat compares.
        r_hat: The larger of rank-normalised split R-hat and the same of folded draws; nested for
            many chains.
        ess_bulk: Effective size of x; for many chains from the means of chains.
        ess_tail: The smaller of those of the indicators of the 5 % and 95 % quantiles.
        ess_square: Effective size of (x − mean)².
        mcse_mean: Standard error of the mean.
        memory: Correlation of the last with the first draw over many chains; else None.
        drift: Standard errors from the first half of the draws to the second over many chains;
            else None.
    """

    n_split: int
    r_hat: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    ess_square: Tensor
    mcse_mean: Tensor
    memory: Tensor | None = None
    drift: Tensor | None = None


def array_stats() -> Any:
    """Return the functions of ArviZ on arrays."""
    from arviz_stats.base import array_stats

    return array_stats


def mixing(x: Float[Tensor, "chain draw d"]) -> Mixing:
    """Return how well chains mix, with the statistics of ArviZ, or those of many short chains.

    References:
        | Rank-Normalization, Folding, and Localization: An Improved R-hat for Assessing
          Convergence of MCMC (Vehtari, Gelman, Simpson, Carpenter & Bürkner, 2021)
        | https://doi.org/10.1214/20-BA1221
        | Nested R-hat: Assessing the Convergence of Markov Chain Monte Carlo When Running Many
          Short Chains
          (Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari & Gelman, 2024)
        | https://doi.org/10.1214/24-BA1453
    """
    if len(x) >= MANY:
        return _many(x)
    import numpy as np

    stats, axes = array_stats(), {"chain_axis": 0, "draw_axis": 1}
    width = max(1, BLOCK_ENTRIES // max(1, x.shape[0] * x.shape[1]))
    columns: list[list[Any]] = []
    for piece in x.double().split(width, 2):
        y = piece.cpu().numpy()
        # 0/0 where all the draws agree, and a chain that diverged may hold very large numbers
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            square = (y - y.mean((0, 1))) ** 2
            columns.append(
                [
                    stats.rhat(y, **axes),
                    stats.ess(y, method="bulk", **axes),
                    stats.ess(y, method="tail", prob=(0.05, 0.95), **axes),
                    stats.ess(square, method="bulk", **axes),
                    stats.mcse(y, method="mean", **axes),
                ]
            )
    joined = [torch.as_tensor(np.concatenate(part)) for part in zip(*columns, strict=True)]
    return Mixing(2 * len(x), *joined)


def _many(x: Tensor) -> Mixing:
    """Return the same from M independent chains: their means are independent numbers."""
    m, x = len(x), x.double()
    mean, var = x.mean((0, 1)), x.var((0, 1), correction=1)

    def size(y: Tensor) -> tuple[Tensor, Tensor]:
        error2 = y.mean(1).var(0) / m
        return y.var((0, 1)) / error2, error2.sqrt()

    low, high = (torch.quantile(_thinned(x), q, dim=0) for q in (0.05, 0.95))
    bulk, error = size(x)
    tail = torch.minimum(size((x <= low).double())[0], size((x <= high).double())[0])
    square = size((x - mean).square())[0]
    groups = 16
    # groups of chains, each chain from a start of its own: their means differ by their error alone
    split = torch.stack([x[k::groups].mean((0, 1)) for k in range(groups)])
    folded = (x - x.flatten(0, 1).median(0).values).abs()
    split2 = torch.stack([folded[k::groups].mean((0, 1)) for k in range(groups)])
    r_hat = torch.maximum(
        (1 + split.var(0) / var).sqrt(), (1 + split2.var(0) / folded.var((0, 1))).sqrt()
    )
    first, last = x[:, 0] - x[:, 0].mean(0), x[:, -1] - x[:, -1].mean(0)
    memory = (first * last).mean(0) / (first.std(0) * last.std(0)).clamp(min=1e-300)
    drifts = []
    for y in (x, (x - mean).square()):
        early, late = y.tensor_split(2, 1)
        gap = late.mean(1) - early.mean(1)
        drifts.append(gap.mean(0).abs() / (gap.std(0) / m**0.5).clamp(min=1e-300))
    return Mixing(groups, r_hat, bulk, tail, square, error, memory, torch.maximum(*drifts))


def _thinned(x: Tensor, most: int = 100_000) -> Tensor:
    flat = x.flatten(0, 1)
    return flat[:: max(1, len(flat) // most)][:most]


def e_bfmi(energy: Float[Tensor, "chain draw"]) -> Float[Tensor, " chain"]:
    r"""Return the energy Bayesian fraction of missing information of each chain.

    .. math:: \frac{\sum_n (H_n - H_{n-1})^2}{\sum_n (H_n - \bar H)^2}

    of energies H after steps with a fresh momentum: 1 on N(0, I). Under partial refreshment it is
    1 − α² there by construction and says nothing.

    References:
        | Diagnosing Suboptimal Cotangent Disintegrations in Hamiltonian Monte Carlo (Betancourt, 2016)
        | https://arxiv.org/abs/1604.00695
    """
    spread = (energy - energy.mean(1, keepdim=True)).square().sum(1)
    return energy.diff(dim=1).square().sum(1) / spread
