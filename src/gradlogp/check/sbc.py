r"""Simulation-based calibration: are these draws from the posterior?

If θ is drawn from the prior, y given θ, and θ_1 … θ_L from the posterior given y, then θ and the
θ_l are exchangeable: the rank of θ among them is uniform on 0 … L, coordinate by coordinate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..core import Generator, Verdict, check_count, check_function, check_generator, rand_like

LEVEL = 0.01
"""A p-value below which the verdict is not ok."""

INFLATED = 0.02
"""By how much the variance of ranks may differ from that of uniform ones, after thinning."""

FEW = 9
"""Draws after thinning below which ranks tell little."""


@runtime_checkable
class _Sampled(Protocol):
    def sample(self, n: int, *, generator: Any = None) -> Tensor: ...


class Calibration(NamedTuple):
    """The result of `sbc`.

    Attributes:
        ranks: The rank of every θ among its draws, `(n_simulations, *theta)`, in 0 … n_draws.
        p_value: The p-value of "these are draws from the posterior", for all coordinates and
            tests.
        verdict: Whether it is at least `LEVEL`, and the kind of the fault.
    """

    ranks: Int64[Tensor, "n_simulations *theta"]
    p_value: float
    verdict: Verdict

    def __str__(self) -> str:
        n, d = len(self.ranks), self.ranks[0].numel()
        return (
            f"ranks of {n} simulations in {d} coordinate{'s' * (d > 1)}: p-value {self.p_value:.3g}\n"
            f"{self.verdict}"
        )

    def __repr__(self) -> str:
        return str(self)


def rank_variance(n_draws: int, correlation: Float[Tensor, " lags"]) -> float:
    r"""Return the variance of the rank of θ among L correlated normal draws.

    .. math:: \frac{L}{4} + 2 \sum_{k=1}^{L-1} (L - k) \frac{\arcsin((1 + ρ_k)/2)}{2π}

    which is L (L + 2)/12, that of a uniform rank, if all ρ_k are 0.

    Arguments:
        n_draws: L.
        correlation: ρ_1, ρ_2, … between draws; 0 beyond these.
    """
    k = torch.arange(1, n_draws, dtype=torch.float64)
    rho = torch.zeros_like(k)
    n = min(len(k), len(correlation))
    rho[:n] = correlation[:n].double()
    pairs = ((1 + rho) / 2).clamp(-1, 1).asin() / (2 * math.pi)
    return float(n_draws / 4 + 2 * ((n_draws - k) * pairs).sum())


def ranks_of(
    theta: Float[Tensor, "n *theta"],
    draws: Float[Tensor, "n L *theta"],
    generator: Generator | None = None,
) -> Int64[Tensor, "n *theta"]:
    r"""Return the rank #{θ_l < θ} + U, U uniform on 0 … #{θ_l = θ}: uniform also for discrete θ."""
    below = (draws < theta.unsqueeze(1)).sum(1)
    ties = (draws == theta.unsqueeze(1)).sum(1)
    u = rand_like(theta.double(), generator)
    return below + (u * (ties + 1)).long().clamp(max=ties)


def sbc(
    prior: Callable[[int, Generator | None], Tensor] | _Sampled,
    simulate: Callable[[Tensor, Generator | None], Tensor],
    posterior: Callable[[Tensor, int, Generator | None], Tensor],
    *,
    n_simulations: int = 200,
    n_draws: int = 100,
    generator: Generator | None = None,
) -> Calibration:
    r"""Check a posterior sampler by simulation-based calibration.

    .. math:: θ \sim p(θ), \quad y \sim p(y \mid θ), \quad θ_1, …, θ_L \sim p(θ \mid y)
        \quad \Rightarrow \quad \#\{l: θ_l < θ\} \text{ uniform on } 0, …, L

    Ranks r become u = (r + V)/(L + 1) with V uniform, and z = Φ⁻¹(u), which are exactly uniform
    and normal. There are three tests for every coordinate: mean of z (bias), sum of z² (draws too
    narrow or too wide), Kolmogorov's distance of u (any other shape). The p-value is the smallest
    of all, times their number. Draws that are correlated in their order, such as those of a chain,
    are thinned for the tests until the variance of ranks is that of independent draws within 2 %,
    with correlations estimated from all simulations together.

    References:
        | Validation of Software for Bayesian Models Using Posterior Quantiles (Cook et al., 2006)
        | https://doi.org/10.1198/106186006X136976
        | Validating Bayesian Inference Algorithms with Simulation-Based Calibration
          (Talts et al., 2018)
        | https://arxiv.org/abs/1804.06788

    Arguments:
        prior: n, generator -> θ `(n, *theta)`; or a law with `sample(n, generator=)`.
        simulate: θ `(*theta)`, generator -> y, one observation of any shape.
        posterior: y, n_draws, generator -> draws `(n_draws, *theta)`.
        n_simulations: Number of θ.
        n_draws: Number of draws from each posterior.
        generator: Source of all randomness.

    Raises:
        ValueError: For counts below 1, fewer than 10 simulations, shapes that do not fit, or draws
            that are not finite.

    Examples:
        >>> prior = lambda n, g: torch.randn(n, 1, generator=g)
        >>> simulate = lambda theta, g: theta + torch.randn(theta.shape, generator=g)
        >>> exact = lambda y, n, g: y / 2 + 0.5**0.5 * torch.randn(n, 1, generator=g)
        >>> g = torch.Generator().manual_seed(0)
        >>> found = glp.check.sbc(prior, simulate, exact, generator=g)
        >>> found.verdict.ok
        True
    """
    check_count(n_simulations, "n_simulations", 10)
    check_count(n_draws, "n_draws")
    check_function(simulate, "simulate")
    check_function(posterior, "posterior")
    check_generator(generator)
    sample = getattr(prior, "sample", None)
    if sample is None:
        check_function(prior, "prior")
    theta = (
        prior(n_simulations, generator)  # type: ignore[operator]
        if sample is None
        else sample(n_simulations, generator=generator)
    )
    if not isinstance(theta, Tensor) or theta.shape[:1] != (n_simulations,):
        shape = tuple(theta.shape) if isinstance(theta, Tensor) else type(theta).__name__
        raise ValueError(f"the prior must return ({n_simulations}, *theta), got {shape}")
    _check_finite(theta, "the prior")
    rows = []
    for one in theta:
        drawn = posterior(simulate(one, generator), n_draws, generator)
        shape = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
        if shape != (n_draws, *one.shape):
            raise ValueError(
                f"the posterior must return {(n_draws, *one.shape)}, n_draws times theta, got {shape}"
            )
        _check_finite(drawn, "the posterior")
        rows.append(drawn.double())
    theta, draws = theta.double(), torch.stack(rows).to(theta.device)
    ranks = ranks_of(theta, draws, generator)
    thin = thinning(draws.reshape(*draws.shape[:2], -1), generator)
    kept = draws[:, thin - 1 :: thin]
    judged = ranks if thin == 1 else ranks_of(theta, kept, generator)
    return Calibration(ranks, *_judged(judged, kept.shape[1], thin, generator))


def _check_finite(x: Tensor, name: str) -> None:
    if bad := int((~x.isfinite()).sum()):
        raise ValueError(f"{bad} of the {x.numel()} numbers that {name} returned are not finite")


def thinning(draws: Float[Tensor, "n L d"], generator: Generator | None = None) -> int:
    """Return k such that every k-th of the draws has ranks as independent ones, in all coordinates."""
    L = draws.shape[1]
    if L < 3:
        return 1
    rho = correlations(draws, generator)
    n = rho.shape[1]
    # what independent draws show by chance is no correlation
    seen = rho[:, 0].abs() > 4 / (draws.shape[0] * L) ** 0.5
    for k in range(1, L + 1):
        m = L // k
        uniform = m * (m + 2) / 12
        at = torch.arange(k - 1, n, k)
        if all(abs(rank_variance(m, row[at]) / uniform - 1) <= INFLATED for row in rho[seen]):
            return k
    return L


def correlations(
    draws: Float[Tensor, "n L d"], generator: Generator | None = None
) -> Float[Tensor, "d lags"]:
    r"""Return the autocorrelation of draws in each coordinate, from all simulations together.

    .. math:: ρ_k = 1 - \frac{γ_k}{s^2} (1 - v), \quad γ_k = \tfrac12 E (x_{i+k} - x_i)^2, \quad
        v = \frac{1}{L^2} \left(L + 2 \sum_k (L - k) ρ_k\right)

    of ranks x within each simulation, with variance s². The mean over L correlated draws removes
    the fraction v of their variance, for which the equation is solved. Lags end before the first
    without a significant correlation.
    """
    n, L, d = draws.shape
    order = rand_like(draws, generator).argsort(1)  # equal draws take their ranks at random
    x = draws.gather(1, order).argsort(dim=1, stable=True).argsort(1).double()
    x = x.gather(1, order.argsort(1)).cpu()
    s2 = (L**2 - 1) / 12
    lags = torch.arange(1, L)
    gamma = torch.stack([(x[:, k:] - x[:, :-k]).square().mean((0, 1)) / 2 for k in range(1, L)], 1)
    least = max(0.02, 2 / (n * L) ** 0.5)
    v = torch.full((d, 1), 1 / L, dtype=torch.float64)
    rho = torch.zeros(d, L - 1, dtype=torch.float64)
    for _ in range(50):
        rho = 1 - gamma / s2 * (1 - v)
        rho = rho * (rho.abs() > least).long().cumprod(1)
        before, v = v, (L + 2 * ((L - lags) * rho).sum(1, keepdim=True)) / L**2
        v = v.clamp(max=0.9)
        if torch.equal(v, before):
            break
    return rho


def _judged(
    ranks: Tensor, L: int, thin: int, generator: Generator | None
) -> tuple[float, Verdict]:
    """Return the p-value of all tests together, and what they say."""
    from scipy import stats

    flat = ranks.flatten(1).double() if ranks.ndim > 1 else ranks.double().unsqueeze(1)
    n, d = flat.shape
    u = ((flat + rand_like(flat, generator)) / (L + 1)).cpu()
    z = torch.special.ndtri(u.clamp(1e-300, 1 - 1e-16))
    mean, square = z.sum(0) / n**0.5, z.square().sum(0)
    ordered, grid = u.sort(0).values, torch.arange(n + 1).double().unsqueeze(1) / n
    distance = torch.maximum(grid[1:] - ordered, ordered - grid[:-1]).amax(0)
    p = torch.stack([
        torch.as_tensor(2 * stats.norm.sf(mean.abs().numpy())),
        torch.as_tensor(2 * stats.chi2.sf(square.numpy(), n)).minimum(
            torch.as_tensor(2 * stats.chi2.cdf(square.numpy(), n))
        ),
        torch.as_tensor(stats.kstwo.sf(distance.numpy(), n)),
    ])  # fmt: skip
    p_value = min(1.0, float(p.min()) * p.numel())
    reasons = []
    for j in range(d):
        worst = int(p[:, j].argmin())
        if float(p[worst, j]) * p.numel() >= LEVEL:
            continue
        found = (
            f"draws lie too {'low' if mean[j] > 0 else 'high'}",
            "draws are too narrow, θ falls outside too often" if square[j] > n
            else "draws are too wide, θ falls in the middle too often",
            "the histogram of ranks is not flat",
        )[worst]  # fmt: skip
        where = "" if ranks.ndim == 1 else f" in coordinate {j}"
        reasons.append(f"{found}{where} (p = {float(p[worst, j]):.1g} before {p.numel()} tests)")
    ok = p_value >= LEVEL
    if thin > 1:
        few = f", too few to detect much: raise n_draws to {FEW * thin}" if L < FEW else ""
        reasons.append(f"draws are correlated: one in {thin} was used, {L} of each{few}")
    return p_value, Verdict(ok, tuple(reasons))
