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
from .claim import (
    DERIVED,
    HYVARINEN,
    LAW,
    MIXTURE,
    Numbers,
    derivative,
    exact,
    false,
    grid,
    statistical,
    table,
)

LYU = "Lyu 2009, arXiv 1205.2629"
STAM = "Stam 1959; Barron 1986"
BLIND = "Wenliang & Kanagawa 2020"

OTHER = GaussianMixture([0.6, 0.4], torch.tensor([[-1.0], [1.5]]).double(), [0.8, 0.4])
P, Q = LAW, Gaussian(
    torch.tensor([0.0, -1.0], dtype=torch.float64),
    torch.tensor([[0.8, -0.2], [-0.2, 1.1]], dtype=torch.float64),
)  # fmt: skip
PAIR = GaussianMixture([0.5, 0.5], torch.tensor([[-2.0, 0.0], [2.0, 0.0]]).double(), 0.7**2)
PLANE = GaussianMixture([0.4, 0.6], torch.tensor([[-2.0, 0.0], [1.0, 1.0]]).double(), [0.5, 1.0])


def _exponential(n: int, g: torch.Generator) -> Tensor:
    return torch.empty(n, 1, dtype=torch.float64).exponential_(generator=g)


def _minus_one(x: Tensor) -> Tensor:
    return 0 * x - 1


def _mean(n: int, g: torch.Generator) -> Numbers:
    found = mean_score(MIXTURE.score, MIXTURE.sample(n, generator=g))
    return 0.0, Estimate(float(found.value[0]), float(found.standard_error[0]))


def _drawn_kl(x: Tensor) -> Estimate:
    return mean_and_error(P.log_prob(x) - Q.log_prob(x))


def _transport(n: int, g: torch.Generator) -> Numbers:
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


def _information(p: Density) -> float:
    x, dx = grid(-16, 16)
    return float((p.log_prob(x).exp() * p.score(x).square()[:, 0]).sum()) * dx


def _entropy(p: Density) -> float:
    x, dx = grid(-16, 16)
    return -float((p.log_prob(x).exp() * p.log_prob(x)).sum()) * dx


def _heat(law: GaussianMixture, t: float) -> GaussianMixture:
    return law.noised(1.0, math.sqrt(t))


def _heat_slope() -> tuple[float, float]:
    """d/dt KL(p_t‖q_t) under p_t = p * N(0, t) at t = ½, and D_F(p_t‖q_t)."""
    slope = derivative(lambda t: _kl(_heat(MIXTURE, t), _heat(OTHER, t)), 0.5)
    return slope, _fisher(_heat(MIXTURE, 0.5), _heat(OTHER, 0.5))


def _information_and_error() -> Numbers:
    """I(X; √snr X + Z) = H(√snr X + Z) − H(Z), and mmse by the posterior variance."""
    x, dx = grid(-16, 16)
    a = math.sqrt(0.8)
    p = MIXTURE.noised(a, 1.0).log_prob(x).exp() * dx
    mmse = float((p * MIXTURE.posterior_cov(x, a, 1.0)[:, 0, 0]).sum())
    return 0.5 * mmse, derivative(lambda snr: _entropy(MIXTURE.noised(math.sqrt(snr), 1.0)), 0.8)


def _location() -> Numbers:
    moved = GaussianMixture(
        MIXTURE.weights, MIXTURE.means + 1e-3, torch.tensor([0.3, 0.5]).double()
    )
    return _information(MIXTURE), _kl(MIXTURE, moved) * 2 / 1e-3**2


def _contamination() -> Numbers:
    """The tails of q lie inside those of p, so that χ² is finite."""
    x, dx = grid(-16, 16)
    q = MIXTURE.log_prob(x).exp()
    p = Gaussian(torch.zeros(1).double(), 2.0).log_prob(x).exp()
    chi2 = float(((q - p).square() / p).sum()) * dx
    eps = 1e-4
    kl = float((p * (p / ((1 - eps) * p + eps * q)).log()).sum()) * dx
    return chi2, 2 * kl / eps**2


def _weights() -> tuple[GaussianMixture, GaussianMixture]:
    means = torch.tensor([[-5.0], [5.0]]).double()
    return GaussianMixture([0.5, 0.5], means, 1.0), GaussianMixture([0.9, 0.1], means, 1.0)


def _heavy_tails() -> Numbers:
    student = as_target(log_prob=lambda x: -2.5 * (1 + x.square() / 4).log()[:, 0])  # ν = 4
    near, far = student.score(torch.tensor([[2.0], [40.0]]).double())
    return 1.0, (far / near).abs(), (40 / 1604) / (2 / 8)


def _rotation(n: int, g: torch.Generator) -> Numbers:
    A = torch.tensor([[-1.0, 0.5], [-0.5, -1.0]], dtype=torch.float64)
    return 0.0, conservativity(lambda y: y @ A.mT, P.sample(100, generator=g)).ratio.value, 0.2


def _path() -> Numbers:
    a, b = torch.tensor([[-2.0, 0.3]]).double(), torch.tensor([[1.2, 0.7]]).double()
    found = log_density_difference(PLANE.score, a, b)
    return PLANE.log_prob(b) - PLANE.log_prob(a), found.value


def _lyapunov() -> Numbers:
    """The rise of log p along the flow, against the integral of ‖s‖² by Simpson's rule."""
    n_steps, length = 40, 0.5
    points = [torch.tensor([[0.5, 1.0]]).double()]
    for _ in range(n_steps):
        step = gradient_flow(PAIR.score, points[-1], length / n_steps, tolerance=1e-9)
        points.append(step.x)
    speed = torch.stack([PAIR.score(x).square().sum() for x in points])
    weight = torch.tensor([1.0, *[4.0, 2.0] * (n_steps // 2 - 1), 4.0, 1.0]).double()
    rise = PAIR.log_prob(points[-1]) - PAIR.log_prob(points[0])
    return (weight * speed).sum() * length / n_steps / 3, rise


def _saddle() -> Numbers:
    starts = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [-3.0, 1.0], [2.5, 0.1]]).double()
    found = find_modes(PAIR, starts, also_saddles=True)
    at = [i for i, kind in enumerate(found.kind) if kind == "saddle"]
    steepest = found.eigenvalues[at[0]].max() if len(at) == 1 else math.nan
    return 4 / 0.7**4 - 1 / 0.7**2, steepest


CHECKS = table(
    __name__,
    score_has_mean_zero=(statistical, "E[s] = 0 on a mixture", HYVARINEN, 0.02, _mean),
    score_has_another_mean=(
        false, "“E[s] = 0 for every density”: on Exp(1), which jumps at 0, it is −1", DERIVED,
        lambda n, g: (0.0, mean_score(_minus_one, _exponential(n, g)).value[0], -1.0)),
    information_two_ways=(
        statistical, "E‖s‖² + E tr ∇s = 0 on a mixture", STAM, 0.1,
        lambda n, g: (
            0.0, fisher_information(MIXTURE.score, MIXTURE.sample(n, generator=g)).difference)),
    information_at_a_boundary=(
        false, "“E‖s‖² = −E tr ∇s for every density”: on Exp(1) they differ by 1", DERIVED,
        lambda n, g: (
            0.0, fisher_information(_minus_one, _exponential(n, g)).difference.value, 1.0)),
    fisher_of_gaussians=(
        statistical, "D_F(p‖q) = ½ [tr (P_q−P_p) S_p (P_q−P_p) + ‖P_q(m_p−m_q)‖²]", DERIVED, 0.2,
        lambda n, g: (
            gaussian_fisher(P, Q), fisher_divergence(Q.score, P.score, P.sample(n, generator=g)))),
    kl_of_gaussians=(
        statistical, "KL of Gaussians in closed form", "textbook", 0.05,
        lambda n, g: (gaussian_kl(P, Q), _drawn_kl(P.sample(n, generator=g)))),
    transport_of_gaussians=(
        statistical, "W2² of Gaussians is the cost of the map S_p^-½ (S_p^½ S_q S_p^½)^½ S_p^-½",
        "Dowson & Landau 1982", 0.02, _transport),
    heat_flow=(
        exact, "under heat flow dKL(p_t‖q_t)/dt = −D_F(p_t‖q_t)", LYU, 1e-7,
        lambda: (-_heat_slope()[1], _heat_slope()[0])),
    heat_flow_is_not_langevin=(
        false, "“dKL/dt = −2 D_F along heat flow”: that is Langevin dynamics; here it is −D_F",
        LYU, 1e-7, lambda: (-2 * _heat_slope()[1], _heat_slope()[0], -_heat_slope()[1])),
    entropy=(
        exact, "de Bruijn: dH(p_t)/dt = ½ J(p_t)", STAM, 1e-7,
        lambda: (0.5 * _information(_heat(MIXTURE, 0.5)),
                 derivative(lambda t: _entropy(_heat(MIXTURE, t)), 0.5))),
    information_and_error=(
        exact, "I-MMSE: dI(X; √snr X + Z)/dsnr = ½ mmse", "Guo, Shamai & Verdú 2005", 1e-7,
        _information_and_error),
    location=(
        exact, "KL(p‖p(·−δ)) = ½ δ² J + o(δ²), at δ = 0.001, over δ²/2", DERIVED, 1e-3, _location),
    contamination=(
        exact, "(2/ε²) KL(p‖(1−ε)p + εq) → χ²(q‖p), at ε = 1e-4", DERIVED, 2e-3, _contamination),
    blindness=(
        exact, "D_F between weights .5/.5 and .9/.1 of modes at ±5", BLIND, 5e-8,
        lambda: (7.6e-6, _fisher(*_weights()))),
    blindness_in_kl=(
        false, "“a small Fisher divergence means a small KL”: the KL of the same pair", BLIND, 1e-3,
        lambda: (0.0, _kl(*_weights()), 0.5 * math.log(0.25 / 0.09))),
    heavy_tails=(
        false, "“the score is large where the density is small”: on a Student law |s(40)|/|s(2)|",
        DERIVED, 1e-9, _heavy_tails),
    gradient_field=(
        exact, "the Jacobian of a score is symmetric: ‖(J−Jᵀ)/2‖² / ‖J‖² on a mixture",
        "Schwarz's theorem", 1e-12,
        lambda n, g: (0.0, conservativity(PLANE.score, P.sample(100, generator=g)).ratio.value)),
    rotation=(
        false, "“every vector field is a score”: ‖(J−Jᵀ)/2‖² / ‖J‖² of a rotating one",
        "Schwarz's theorem", 1e-9, _rotation),
    path=(
        exact, "∫ s·dx from a to b is log p(b) − log p(a)", "fundamental theorem", 1e-9, _path),
    lyapunov=(exact, "along dx/dt = s, d log p/dt = ‖s‖²", "textbook", 2e-6, _lyapunov),
    saddle=(
        exact, "two modes at ±a: one saddle between them, eigenvalue a²/s⁴ − 1/s²", DERIVED, 1e-8,
        _saddle),
)  # fmt: skip
