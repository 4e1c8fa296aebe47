r"""Claims on densities: what the score says about them, and what it does not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core import Density, Estimate, mean_and_error
from ...distributions.analytic import Gaussian, GaussianMixture
from ...distributions.as_target import as_target
from ...geometry.modes import find_modes, gradient_flow
from ..metrics import (
    conservativity,
    fisher_divergence,
    fisher_information,
    gaussian_fisher,
    gaussian_kl,
    gaussian_wasserstein,
    log_density_difference,
    mean_score,
)
from .claim import Numbers, claim, collect, exact, false, grid, statistical

HYVARINEN = "Hyvärinen 2005, jmlr.org/papers/v6/hyvarinen05a"
LYU = "Lyu 2009, arXiv 1205.2629"
STAM = "Stam 1959; Barron 1986"
DERIVED = "derived, docs/theory.md"

BIMODAL = GaussianMixture([0.3, 0.7], torch.tensor([[-2.0], [1.0]]).double(), [0.3, 0.5])
OTHER = GaussianMixture([0.6, 0.4], torch.tensor([[-1.0], [1.5]]).double(), [0.8, 0.4])
P = Gaussian(
    torch.tensor([0.7, -1.2], dtype=torch.float64),
    torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64),
)
Q = Gaussian(
    torch.tensor([0.0, -1.0], dtype=torch.float64),
    torch.tensor([[0.8, -0.2], [-0.2, 1.1]], dtype=torch.float64),
)


def _exponential(n: int, g: torch.Generator) -> Tensor:
    return torch.empty(n, 1, dtype=torch.float64).exponential_(generator=g)


def _minus_one(x: Tensor) -> Tensor:
    return 0 * x - 1


def _first(value: Tensor, error: Tensor) -> Estimate:
    return Estimate(float(value.flatten()[0]), float(error.flatten()[0]))


@claim(statistical, "E[s] = 0 on a mixture", HYVARINEN, 0.02)
def score_has_mean_zero(n: int, g: torch.Generator) -> Numbers:
    found = mean_score(BIMODAL.score, BIMODAL.sample(n, generator=g))
    return 0.0, _first(*found[:2])


@claim(false, "“E[s] = 0 for every density”: on Exp(1), which jumps at 0, it is −1", DERIVED)
def score_has_another_mean(n: int, g: torch.Generator) -> Numbers:
    found = mean_score(_minus_one, _exponential(n, g))
    return 0.0, float(found.value[0]), -1.0


@claim(statistical, "E‖s‖² + E tr ∇s = 0 on a mixture", STAM, 0.1)
def information_two_ways(n: int, g: torch.Generator) -> Numbers:
    found = fisher_information(BIMODAL.score, BIMODAL.sample(n, generator=g))
    return 0.0, found.difference


@claim(false, "“E‖s‖² = −E tr ∇s for every density”: on Exp(1) they differ by 1", DERIVED)
def information_at_a_boundary(n: int, g: torch.Generator) -> Numbers:
    found = fisher_information(_minus_one, _exponential(n, g))
    return 0.0, found.difference.value, 1.0


@claim(statistical, "D_F(p‖q) = ½ [tr (P_q−P_p) S_p (P_q−P_p) + ‖P_q(m_p−m_q)‖²]", DERIVED, 0.2)
def fisher_of_gaussians(n: int, g: torch.Generator) -> Numbers:
    found = fisher_divergence(Q.score, P.score, P.sample(n, generator=g))
    return gaussian_fisher(P, Q), found


@claim(statistical, "KL of Gaussians in closed form", "textbook", 0.05)
def kl_of_gaussians(n: int, g: torch.Generator) -> Numbers:
    x = P.sample(n, generator=g)
    found = mean_and_error(P.log_prob(x) - Q.log_prob(x))
    return gaussian_kl(P, Q), found


@claim(
    statistical, "W2² of Gaussians is the cost of the map S_p^-½ (S_p^½ S_q S_p^½)^½ S_p^-½",
    "Dowson & Landau 1982", 0.02,
)  # fmt: skip
def transport_of_gaussians(n: int, g: torch.Generator) -> Numbers:
    """The cost of the map x -> m_q + T (x − m_p), T S_p T = S_q, which no map undercuts."""
    w, U = torch.linalg.eigh(P.cov)
    root, inverse = U @ torch.diag(w.sqrt()) @ U.mT, U @ torch.diag(w.rsqrt()) @ U.mT
    w, U = torch.linalg.eigh(root @ Q.cov @ root)
    T = inverse @ U @ torch.diag(w.sqrt()) @ U.mT @ inverse
    x = P.sample(n, generator=g)
    cost = (x - Q.mean - (x - P.mean) @ T).square().sum(1)
    return gaussian_wasserstein(P, Q) ** 2, mean_and_error(cost)


def _kl(p: Density, q: Density) -> float:
    x, dx = grid(-16, 16)
    log_p, log_q = p.log_prob(x), q.log_prob(x)
    return float((log_p.exp() * (log_p - log_q)).sum()) * dx


def _fisher(p: Density, q: Density) -> float:
    x, dx = grid(-16, 16)
    return 0.5 * float((p.log_prob(x).exp() * (p.score(x) - q.score(x)).square()[:, 0]).sum()) * dx


def _heat_slope() -> tuple[float, float]:
    """d/dt KL(p_t‖q_t) under p_t = p * N(0, t) by central differences, and D_F(p_t‖q_t)."""
    t, h = 0.5, 1e-3
    at = lambda u: (BIMODAL.noised(1.0, math.sqrt(u)), OTHER.noised(1.0, math.sqrt(u)))
    values = [_kl(*at(t + k * h)) for k in (-2, -1, 1, 2)]
    slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    return slope, _fisher(*at(t))


@claim(exact, "under heat flow dKL(p_t‖q_t)/dt = −D_F(p_t‖q_t)", LYU, 1e-7)
def heat_flow() -> Numbers:
    slope, fisher = _heat_slope()
    return -fisher, slope


@claim(
    false, "“dKL/dt = −2 D_F along heat flow”: that is Langevin dynamics; here it is −D_F",
    LYU, 1e-7,
)  # fmt: skip
def heat_flow_is_not_langevin() -> Numbers:
    slope, fisher = _heat_slope()
    return -2 * fisher, slope, -fisher


@claim(exact, "de Bruijn: dH(p_t)/dt = ½ J(p_t)", STAM, 1e-7)
def entropy() -> Numbers:
    x, dx = grid(-16, 16)
    t, h = 0.5, 1e-3

    def H(u: float) -> float:
        log_p = BIMODAL.noised(1.0, math.sqrt(u)).log_prob(x)
        return -float((log_p.exp() * log_p).sum()) * dx

    slope = (H(t - 2 * h) - 8 * H(t - h) + 8 * H(t + h) - H(t + 2 * h)) / (12 * h)
    law = BIMODAL.noised(1.0, math.sqrt(t))
    J = float((law.log_prob(x).exp() * law.score(x).square()[:, 0]).sum()) * dx
    return 0.5 * J, slope


@claim(exact, "I-MMSE: dI(X; √snr X + Z)/dsnr = ½ mmse", "Guo, Shamai & Verdú 2005", 1e-7)
def information_and_error() -> Numbers:
    """I(X; √snr X + Z) = H(√snr X + Z) − H(Z), and mmse by the posterior variance."""
    x, dx = grid(-16, 16)

    def mutual(snr: float) -> float:
        log_p = BIMODAL.noised(math.sqrt(snr), 1.0).log_prob(x)
        entropy = -float((log_p.exp() * log_p).sum()) * dx
        return entropy - 0.5 * math.log(2 * math.pi * math.e)

    snr, h = 0.8, 1e-3
    values = [mutual(snr + k * h) for k in (-2, -1, 1, 2)]
    slope = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    a = math.sqrt(snr)
    p = BIMODAL.noised(a, 1.0).log_prob(x).exp() * dx
    mmse = float((p * BIMODAL.posterior_cov(x, a, 1.0)[:, 0, 0]).sum())
    return 0.5 * mmse, slope


@claim(exact, "KL(p‖p(·−δ)) = ½ δ² J + o(δ²), at δ = 0.001, over δ²/2", DERIVED, 1e-3)
def location() -> Numbers:
    delta = 1e-3
    moved = GaussianMixture(
        BIMODAL.weights, BIMODAL.means + delta, torch.tensor([0.3, 0.5]).double()
    )
    x, dx = grid(-16, 16)
    J = float((BIMODAL.log_prob(x).exp() * BIMODAL.score(x).square()[:, 0]).sum()) * dx
    return J, _kl(BIMODAL, moved) * 2 / delta**2


@claim(exact, "(2/ε²) KL(p‖(1−ε)p + εq) → χ²(q‖p), at ε = 1e-4", DERIVED, 2e-3)
def contamination() -> Numbers:
    """The tails of q lie inside those of p, so that χ² is finite."""
    p = GaussianMixture([1.0], torch.zeros(1, 1).double(), 2.0)
    eps = 1e-4
    x, dx = grid(-16, 16)
    q = BIMODAL.log_prob(x).exp()
    density = p.log_prob(x).exp()
    chi2 = float(((q - density).square() / density).sum()) * dx
    mixed = (1 - eps) * density + eps * q
    kl = float((density * (density / mixed).log()).sum()) * dx
    return chi2, 2 * kl / eps**2


def _weights() -> tuple[GaussianMixture, GaussianMixture]:
    means = torch.tensor([[-5.0], [5.0]]).double()
    return GaussianMixture([0.5, 0.5], means, 1.0), GaussianMixture([0.9, 0.1], means, 1.0)


@claim(
    exact, "D_F between weights .5/.5 and .9/.1 of modes at ±5", "Wenliang & Kanagawa 2020", 5e-8
)
def blindness() -> Numbers:
    return 7.6e-6, _fisher(*_weights())


@claim(
    false, "“a small Fisher divergence means a small KL”: the KL of the same pair",
    "Wenliang & Kanagawa 2020", 1e-3,
)  # fmt: skip
def blindness_in_kl() -> Numbers:
    return 0.0, _kl(*_weights()), 0.5 * math.log(0.25 / 0.09)


@claim(
    false, "“the score is large where the density is small”: on a Student law |s(40)|/|s(2)|",
    DERIVED, 1e-9,
)  # fmt: skip
def heavy_tails() -> Numbers:
    student = as_target(log_prob=lambda x: -2.5 * (1 + x.square() / 4).log()[:, 0])  # ν = 4
    near, far = student.score(torch.tensor([[2.0], [40.0]]).double())
    return 1.0, (far / near).abs(), (40 / 1604) / (2 / 8)


@claim(
    exact, "the Jacobian of a score is symmetric: ‖(J−Jᵀ)/2‖² / ‖J‖² on a mixture",
    "Schwarz's theorem", 1e-12,
)  # fmt: skip
def gradient_field(n: int, g: torch.Generator) -> Numbers:
    x = P.sample(100, generator=g)
    law = GaussianMixture([0.4, 0.6], torch.tensor([[-2.0, 0.0], [1.0, 1.0]]).double(), [0.5, 1.0])
    return 0.0, conservativity(law.score, x).ratio.value


@claim(
    false, "“every vector field is a score”: ‖(J−Jᵀ)/2‖² / ‖J‖² of a rotating one",
    "Schwarz's theorem", 1e-9,
)  # fmt: skip
def rotation(n: int, g: torch.Generator) -> Numbers:
    A = torch.tensor([[-1.0, 0.5], [-0.5, -1.0]], dtype=torch.float64)
    x = P.sample(100, generator=g)
    return 0.0, conservativity(lambda y: y @ A.mT, x).ratio.value, 0.2


@claim(exact, "∫ s·dx from a to b is log p(b) − log p(a)", "fundamental theorem", 1e-9)
def path() -> Numbers:
    law = GaussianMixture([0.4, 0.6], torch.tensor([[-2.0, 0.0], [1.0, 1.0]]).double(), [0.5, 1.0])
    a, b = torch.tensor([[-2.0, 0.3]]).double(), torch.tensor([[1.2, 0.7]]).double()
    found = log_density_difference(law.score, a, b)
    return law.log_prob(b) - law.log_prob(a), found.value


PAIR = GaussianMixture([0.5, 0.5], torch.tensor([[-2.0, 0.0], [2.0, 0.0]]).double(), 0.7**2)


@claim(exact, "along dx/dt = s, d log p/dt = ‖s‖²", "textbook", 2e-6)
def lyapunov() -> Numbers:
    """The rise of log p along the flow, against the integral of ‖s‖² by Simpson's rule."""
    n_steps, length = 40, 0.5
    points = [torch.tensor([[0.5, 1.0]]).double()]
    for _ in range(n_steps):
        step = gradient_flow(PAIR.score, points[-1], length / n_steps, tolerance=1e-9)
        points.append(step.x)
    speed = torch.stack([PAIR.score(x).square().sum() for x in points])
    weight = torch.tensor([1.0, *[4.0, 2.0] * (n_steps // 2 - 1), 4.0, 1.0]).double()
    weight = weight * length / n_steps / 3
    rise = PAIR.log_prob(points[-1]) - PAIR.log_prob(points[0])
    return (weight * speed).sum(), rise


@claim(exact, "two modes at ±a: one saddle between them, eigenvalue a²/s⁴ − 1/s²", DERIVED, 1e-8)
def saddle() -> Numbers:
    starts = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [-3.0, 1.0], [2.5, 0.1]]).double()
    found = find_modes(PAIR, starts, also_saddles=True)
    at = [i for i, kind in enumerate(found.kind) if kind == "saddle"]
    steepest = found.eigenvalues[at[0]].max() if len(at) == 1 else math.nan
    return 4 / 0.7**4 - 1 / 0.7**2, steepest


CHECKS = collect(globals())
"""The claims of this file, in the order of the report."""
