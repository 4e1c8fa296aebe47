r"""Claims on Langevin dynamics in continuous time: its invariant law, and the rate of convergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.sparse import diags_array
from scipy.sparse.linalg import expm_multiply
from torch import Tensor

from ...distributions.analytic import Gaussian
from ..metrics import gaussian_fisher, gaussian_kl, gaussian_wasserstein
from .claim import LAW, MIXTURE, derivative, exact, false, grid, table

JKO = "Jordan, Kinderlehrer & Otto 1998, doi 10.1137/S0036141096303359"
BAKRY = "Bakry & Émery 1985"
STURM = "von Renesse & Sturm 2005, doi 10.1002/cpa.20060"
MA = "Ma, Chen & Fox 2015, arXiv 1506.04696"
KRAMERS = "Kramers 1940; Nelson 1967"

S = LAW.cov
W, U = torch.linalg.eigh(S)
TARGET = Gaussian(torch.zeros(2).double(), S)
SLOWEST, RATE = 2 * U[:, -1], float(1 / W[-1])
"""A shift along the slowest axis, and the rate at which it decays."""


def _flow_of_density(noise: float) -> Tensor:
    """Return max |−(s p)' + ½ noise² p''| over max |p''| for p the mixture, derivatives by autograd."""
    x = grid(-8, 8)[0].requires_grad_()
    p = MIXTURE.log_prob(x).exp()
    (slope,) = torch.autograd.grad(p.sum(), x, create_graph=True)
    (curve,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
    (drift,) = torch.autograd.grad((MIXTURE.score(x)[:, 0] * p).sum(), x)
    return ((0.5 * noise**2 * curve - drift).abs().max() / curve.abs().max()).detach()


def _ornstein(t: float, m0: Tensor, S0: Tensor) -> Gaussian:
    """The law at time t of Langevin dynamics for N(0, S) from N(m0, S0)."""
    A = U @ torch.diag(torch.exp(-t / W)) @ U.mT
    return Gaussian(A @ m0, S + A @ (S0 - S) @ A)


def _from_afar(t: float) -> Gaussian:
    cov = torch.tensor([[0.6, 0.1], [0.1, 2.0]], dtype=torch.float64)
    return _ornstein(t, torch.tensor([1.0, -2.0], dtype=torch.float64), cov)


def _rate_of(distance: Callable[[Gaussian, Gaussian], float]) -> float:
    """The rate of log distance to N(0, S) over times 0 to 2, for a shift along the slowest axis."""
    start, end = (distance(_ornstein(t, SLOWEST, S), TARGET) for t in (0.0, 2.0))
    return math.log(end / start) / 2


@cache
def bimodal(t: float, n_cells: int = 1200) -> tuple[float, float]:
    """Return W2 and KL to p = ½N(±2, 0.7²) at time t, from ½N(−2, 0.7²) + ½N(−0.4, 0.15²).

    Probabilities of cells under the rates of a reversible chain between them, with p invariant.
    """
    edges = np.linspace(-6.5, 6.5, n_cells + 1)
    x, dx = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]

    def normal(m: float, sd: float) -> np.ndarray:
        return np.exp(-0.5 * ((x - m) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))

    p = 0.5 * (normal(-2, 0.7) + normal(2, 0.7))
    rho = 0.5 * (normal(-2, 0.7) + normal(-0.4, 0.15))
    p, rho = p / p.sum(), rho / rho.sum()
    up = np.sqrt(p[1:] / p[:-1]) / dx**2  # rate from a cell to the next: p_i up_i = p_{i+1} down_i
    down = np.sqrt(p[:-1] / p[1:]) / dx**2
    out = -np.append(up, 0) - np.append(0, down)
    generator = diags_array([up, out, down], offsets=[-1, 0, 1]).tocsc()
    law = rho if t == 0 else expm_multiply(generator * t, rho)
    kl = float(np.sum(np.where(law > 0, law * np.log(np.maximum(law, 1e-300) / p), 0.0)))
    levels = (np.arange(200_000) + 0.5) / 200_000
    quantile = lambda q: np.interp(levels, np.append(0, np.cumsum(q)), edges)
    return float(np.sqrt(np.mean((quantile(law) - quantile(p)) ** 2))), kl


def _slow_rate(m: float) -> float:
    """The slow rate of m x'' = −λ x − γ x' at λ = 1, γ = 2."""
    return (2 - math.sqrt(4 - 4 * m)) / (2 * m)


def _residual(with_divergence: bool, over_G: bool = False) -> tuple[Tensor, Tensor]:
    """Return max |∂_t q| of dX = (G s + [G']) dt + √(2G) dW, G = 1 + ½ sin 2x, and max |(G' p)'|.

    At q = p = N(0, 1), or at q = p/G.
    """
    x = grid(-8, 8)[0].requires_grad_()
    G = 1 + 0.5 * torch.sin(2 * x)
    p = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
    q = p / G if over_G else p
    (d_G,) = torch.autograd.grad(G.sum(), x, create_graph=True)
    drift = -G * x + (d_G if with_divergence else 0)
    (d_Gq,) = torch.autograd.grad((G * q).sum(), x, create_graph=True)
    (flow,) = torch.autograd.grad((d_Gq - drift * q).sum(), x, retain_graph=True)
    (missing,) = torch.autograd.grad((d_G * p).sum(), x)
    return flow.abs().max().detach(), missing.abs().max().detach()


CHECKS = table(
    __name__,
    stationarity=(
        exact, "Fokker–Planck: ∂_t p = −∇·(s p) + Δp = 0 on a mixture, over max |Δp|", JKO, 1e-10,
        lambda: (0.0, _flow_of_density(math.sqrt(2)))),
    stationarity_without_root_2=(
        false, "“dX = s dt + dW leaves p invariant”: it lacks the factor √2", JKO, 1e-9,
        lambda: (0.0, _flow_of_density(1.0), 0.5)),
    dissipation=(
        exact, "along Langevin dynamics dKL(ρ_t‖p)/dt = −2 D_F(ρ_t‖p)", JKO, 1e-6,
        lambda: (-2 * gaussian_fisher(_from_afar(0.3), TARGET),
                 derivative(lambda t: gaussian_kl(_from_afar(t), TARGET), 0.3))),
    decay=(
        exact, "log-Sobolev: KL falls as e^{−2ρt}; exactly, for a shift along the slowest axis",
        BAKRY, 1e-9, lambda: (-2 * RATE, _rate_of(gaussian_kl))),
    contraction=(
        exact, "strong log-concavity: W2 falls as e^{−ρt}; exactly, for the same shift", STURM, 1e-9,
        lambda: (-RATE, _rate_of(gaussian_wasserstein))),
    distance_may_grow=(
        exact, "W2 to ½N(±2, 0.7²) at t = 0.3 from a start that has 1.736 at t = 0", STURM, 1e-3,
        lambda: (1.907, bimodal(0.3)[0])),
    no_contraction_from_log_sobolev=(
        false, "“a log-Sobolev inequality makes W2 contract”: W2(0.3)/W2(0) on that mixture, which "
        "has one", STURM, 2e-3, lambda: (1.0, bimodal(0.3)[0] / bimodal(0.0)[0], 1.098)),
    divergence_falls_meanwhile=(
        exact, "meanwhile KL(0.3)/KL(0) falls by 65 %", BAKRY, 0.01,
        lambda: (0.35, bimodal(0.3)[1] / bimodal(0.0)[1])),
    overdamped=(
        exact, "small mass: slow rate of kinetic Langevin minus λ/γ, over m λ²/γ³", KRAMERS, 2e-3,
        lambda: (1.0, (_slow_rate(1e-3) - 0.5) / (1e-3 / 8))),
    preconditioner_with_divergence=(
        exact, "dX = (G s + ∇·G) dt + √(2G) dW leaves p invariant, G a function of x: max "
        "|∂_t p|", MA, 1e-10,
        lambda: (0.0, _residual(True)[0])),
    preconditioner_without_divergence=(
        false, "“dX = G s dt + √(2G) dW leaves p invariant, G a function of x”: max |∂_t p| is that "
        "of (G'p)'",
        MA, 1e-9, lambda: (0.0, *_residual(False))),
    preconditioner_keeps_another=(
        exact, "dX = G s dt + √(2G) dW leaves p/G invariant in one dimension: max |∂_t (p/G)|",
        MA, 1e-10,
        lambda: (0.0, _residual(False, over_G=True)[0])),
)  # fmt: skip
