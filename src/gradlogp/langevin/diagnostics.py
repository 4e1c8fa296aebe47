"""How well chains mix: R-hat and effective sizes of few long chains, or of many short ones."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

MANY = 64
"""Chains from which errors come from the means of chains, not from autocorrelations."""

BLOCK_ENTRIES = 2**23
"""Entries of the draws that are looked at together, as doubles: 64 MiB."""


class Mixing(NamedTuple):
    """How well chains mix, coordinate by coordinate.

    Attributes:
        n_split: Number of half chains, or groups of them, that R-hat compares.
        r_hat: The larger of rank-normalised split R-hat and that of folded draws; nested for many
            chains.
        ess_bulk: Effective size of x; for many chains from the means of chains.
        ess_tail: The smaller effective size of the indicators of the 5 % and 95 % quantiles.
        ess_square: Effective size of (x − mean)².
        mcse_mean: Standard error of the mean.
        memory: Correlation of the last with the first draw over many chains; otherwise None.
        drift: Difference of the halves of the draws in standard errors, over many chains;
            otherwise None.
    """

    n_split: int
    r_hat: Tensor
    ess_bulk: Tensor
    ess_tail: Tensor
    ess_square: Tensor
    mcse_mean: Tensor
    memory: Tensor | None = None
    drift: Tensor | None = None


def mixing(x: Float[Tensor, "chain draw d"]) -> Mixing:
    """Return how well chains mix: as in ArviZ, or from the means of many short chains.

    R-hat of one chain, and everything for fewer than 4 draws, is NaN.

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
    width = max(1, BLOCK_ENTRIES // max(1, x.shape[0] * x.shape[1]))
    columns = [_few(piece.double().cpu().permute(2, 0, 1)) for piece in x.split(width, 2)]
    joined = [torch.cat(part) for part in zip(*columns, strict=True)]
    return Mixing(2 * len(x), *joined)


def _few(x: Tensor) -> list[Tensor]:
    """Return R-hat, three effective sizes and the error of the mean, of `(d, chain, draw)`."""
    d, m, n = x.shape
    if n < 4:
        return [x.new_full((d,), torch.nan)] * 5
    split, size = halves(x), x.shape[1:].numel()
    z = normal_scores(split)
    r_hat = x.new_full((d,), torch.nan)
    if m > 1:
        folded = (split - median(split)[:, None, None]).abs()
        r_hat = torch.maximum(split_r_hat(z), split_r_hat(normal_scores(folded)))
    tails = [ess(halves((x <= quantile(x, q)[:, None, None]).double())) for q in (0.05, 0.95)]
    square = halves((x - x.mean((1, 2), keepdim=True)).square())
    error = x.var((1, 2)).sqrt() / ess(split).sqrt() if size > 1 else r_hat
    found = [r_hat, ess(z), torch.minimum(*tails), ess(normal_scores(square)), error]
    bad = x.isnan().any(2).any(1)
    return [torch.where(bad, torch.nan, column) for column in found]


def halves(x: Float[Tensor, "d chain draw"]) -> Float[Tensor, "d half_chain half"]:
    """Return each chain as two, without the draw in the middle of an odd number."""
    half = x.shape[2] // 2
    return torch.cat([x[..., :half], x[..., -half:]], 1)


def quantile(x: Float[Tensor, "d chain draw"], q: float) -> Float[Tensor, " d"]:
    """Return a quantile over all draws, interpolated between two of them."""
    ordered = x.flatten(1).sort(1).values
    at = q * (ordered.shape[1] - 1)
    low = ordered[:, math.floor(at)]
    return torch.lerp(low, ordered[:, math.ceil(at)], at - math.floor(at))


def median(x: Float[Tensor, "d chain draw"]) -> Float[Tensor, " d"]:
    """Return the median, halfway between two in the middle.

    These two are equally far from it but for rounding, which decides whether their folded ranks are
    equal: it is rounded as in NumPy, so that R-hat of few draws is that of ArviZ too.
    """
    ordered = x.flatten(1).sort(1).values
    n = ordered.shape[1]
    return (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2


def normal_scores(x: Float[Tensor, "d chain draw"]) -> Float[Tensor, "d chain draw"]:
    r"""Return Φ⁻¹((r − 3/8)/(N + 1/4)) of the ranks r among all N draws; equal ones share theirs."""
    flat = x.flatten(1).contiguous()
    ordered = flat.sort(1).values
    below = torch.searchsorted(ordered, flat)
    rank = (below + torch.searchsorted(ordered, flat, right=True) + 1).double() / 2
    return torch.special.ndtri((rank - 0.375) / (flat.shape[1] + 0.25)).reshape(x.shape)


def split_r_hat(x: Float[Tensor, "d chain draw"]) -> Float[Tensor, " d"]:
    """Return √((n − 1)/n + B/(n W)) with the variances between and within chains."""
    n = x.shape[2]
    between, within = n * x.mean(2).var(1), x.var(2).mean(1)
    return ((between / within + n - 1) / n).sqrt()


def ess(x: Float[Tensor, "d chain draw"]) -> Float[Tensor, " d"]:
    r"""Return the effective sample size of the mean of x over all chains.

    .. math:: \frac{M n}{τ}, \quad τ = -1 + 2 \sum_{j < K} P_j + ρ_{2K}, \quad
        P_j = \min_{i ≤ j}(ρ_{2i} + ρ_{2i + 1})

    with autocorrelations ρ over chains with different means, up to the first pair K that is not
    positive; τ is at least 1/log₁₀(M n), for chains that are better than independent draws.

    References:
        | Practical Markov Chain Monte Carlo (Geyer, 1992): the initial monotone sequence
        | https://doi.org/10.1214/ss/1177011137
    """
    _, m, n = x.shape
    size = m * n
    spread = x.amax((1, 2)) - x.amin((1, 2))
    mean = x.mean(2, keepdim=True)
    length = 1 << (2 * n - 1).bit_length()
    power = torch.fft.rfft(x - mean, length).abs().square()
    covariance = torch.fft.irfft(power, length)[..., :n].mean(1) / n  # lag by lag, over chains
    within = covariance[:, :1] * n / (n - 1)
    total = covariance[:, :1] + (mean[..., 0].var(1)[:, None] if m > 1 else 0.0)
    rho = 1 - (within - covariance) / total
    rho[:, 0] = 1
    last = max(0, (n - 3) // 2)
    pairs = rho[:, : 2 * last + 2].unflatten(1, (last + 1, 2)).sum(2)
    K = (pairs > 0).long().cumprod(1).sum(1).clamp(max=last)[:, None]
    use = torch.arange(last + 1) < K
    least = pairs.cummin(1).values
    end, sum_end = rho.gather(1, 2 * K)[:, 0], pairs.gather(1, K)[:, 0]
    end = torch.where((end > 0) | (sum_end >= 0), end, 0.0)
    tau = 2 * torch.where(use, least, 0.0).sum(1) - 1 + end
    tau = tau.clamp(min=1 / math.log10(size))
    tau = torch.where(rho[:, 1].isnan(), torch.nan, tau)
    return torch.where(spread < 1e-15, float(size), size / tau)


def _many(x: Tensor) -> Mixing:
    """Return the same from M independent chains: their means are independent numbers."""
    m, x = len(x), x.double()
    mean, var = x.mean((0, 1)), x.var((0, 1), correction=1)

    def size(y: Tensor) -> tuple[Tensor, Tensor]:
        error2 = y.mean(1).var(0) / m
        return y.var((0, 1)) / error2, error2.sqrt()

    low, high = (
        torch.quantile(thinned(x.flatten(0, 1), 100_000)[:100_000], q, dim=0) for q in (0.05, 0.95)
    )
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


def thinned(x: Tensor, most: int) -> Tensor:
    """Return about so many rows, evenly spread, or all where there are no more."""
    return x[:: max(1, len(x) // most)]


def e_bfmi(energy: Float[Tensor, "chain draw"]) -> Float[Tensor, " chain"]:
    r"""Return the energy Bayesian fraction of missing information of each chain.

    .. math:: \frac{\sum_n (H_n - H_{n-1})^2}{\sum_n (H_n - \bar H)^2}

    of energies H after steps with a new momentum: 1 on N(0, I). With partial refreshment it is 1 −
    α² there by construction and carries no information.

    References:
        | Diagnosing Suboptimal Cotangent Disintegrations in Hamiltonian Monte Carlo (Betancourt, 2016)
        | https://arxiv.org/abs/1604.00695
    """
    spread = (energy - energy.mean(1, keepdim=True)).square().sum(1)
    return energy.diff(dim=1).square().sum(1) / spread
