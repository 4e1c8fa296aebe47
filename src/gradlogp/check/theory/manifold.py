r"""Claims on data on a manifold: what the noised score reveals about it, and at which rate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...core import Estimate, mean_and_error, randn_like
from ...distributions.analytic.manifolds import AffineSubspace, UniformSphere, VonMisesCircle
from ...distributions.analytic.products import Embedded, Product
from ...geometry import intrinsic_dimension, mean_curvature, tangent_normal_split
from ...learn.objectives.manifold import normal_denoising
from .claim import DERIVED, HYVARINEN, Numbers, exact, false, order, statistical, table

LI = "Li et al. 2025, arXiv 2509.24912"
STANCZUK = "Stanczuk et al. 2022, arXiv 2212.12611"
KAMKARI = "Kamkari et al. 2024, arXiv 2406.03537"

F64 = torch.float64
SPHERE = UniformSphere(5, torch.tensor(2.0, dtype=F64))
K_0, R = 1.5, 0.8
CIRCLE = VonMisesCircle(torch.tensor(R, dtype=F64), K_0)
UNIT_CIRCLE = VonMisesCircle(torch.tensor(1.0, dtype=F64), K_0)
TORUS = Product([CIRCLE, UniformSphere(2, torch.tensor(1.2, dtype=F64)), CIRCLE])
PLANE = AffineSubspace(
    torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.0, 0.0], [-1.0, 1.0]], dtype=F64),
    cov=torch.tensor([0.5, 2.0], dtype=F64),
)


def _radial(sigma: float, delta: float) -> float:
    """The outward part of the score of the noised sphere, at distance δ outside."""
    direction = torch.tensor([[0.6, 0.0, 0.0, -0.8, 0.0]], dtype=F64)
    x = (2.0 + delta) * direction
    return float((SPHERE.noised(1.0, sigma).score(x) * direction).sum())


def _at(angle: float) -> Tensor:
    return torch.tensor([[R * math.cos(angle), R * math.sin(angle)]], dtype=F64)


def _curvature_and_density() -> Numbers:
    x = torch.cat([_at(0.4), torch.tensor([[0.0, 1.2]], dtype=F64), _at(2.0)], 1)
    found = mean_curvature(TORUS.noised(1.0, 1e-3).score, x, 1e-3).normal_score
    half = torch.cat([-y / (2 * y.square().sum()) for y in x.split(2, 1)], 1)
    return 0.0, (found - half).norm()


LIMIT = -K_0 / R * math.sin(1.0)
"""Of the tangent part of the noised score on the circle, anticlockwise, at θ = 1."""


def _tangent(sigma: float, angle: float = 1.0) -> float:
    split = tangent_normal_split(CIRCLE.noised(1.0, sigma).score, _at(angle), sigma, 1)
    direction = torch.tensor([-math.sin(angle), math.cos(angle)], dtype=F64)
    return float((split.tangent * direction).sum())


def _norm_counts_normals(n: int, g: torch.Generator) -> Numbers:
    sigma = 0.02
    law = Embedded(UniformSphere(4, torch.tensor(1.0, dtype=F64)), 10).noised(1.0, sigma)
    s = law.score(law.sample(n // 8, generator=g))
    return 7.0, mean_and_error(sigma**2 * s.square().sum(1))


def _norm_on_a_plane(n: int, g: torch.Generator) -> Numbers:
    sigma = 0.5
    law = PLANE.noised(1.0, sigma)
    s = law.score(law.sample(n // 4, generator=g))
    V, cov = PLANE.basis, torch.tensor([0.5, 2.0], dtype=F64)
    S_y = cov.sqrt() * (V.mT @ V) * cov.sqrt().unsqueeze(1)  # has the nonzero spectrum of V S Vᵀ
    inside = torch.linalg.inv(S_y + sigma**2 * torch.eye(2, dtype=F64)).trace()
    return 3 / sigma**2 + inside, mean_and_error(s.square().sum(1))


def _information(sigma: float) -> Tensor:
    """E‖s_σ‖² = −E tr ∇s on the plane, where ∇s is constant."""
    x = torch.zeros(1, 5, dtype=F64)
    return -PLANE.noised(1.0, sigma).hessian(x).diagonal(dim1=1, dim2=2).sum()


def _rank_reads_the_dimension(n: int, g: torch.Generator) -> Numbers:
    law, sigma = Embedded(TORUS, 30), 0.02
    x = law.sample(4, generator=g).double()
    found = intrinsic_dimension(law.noised(1.0, sigma).score, x, sigma, generator=g, stack=60)
    return 3.0, found.value.mean()


def _divergence_reads_the_dimension(n: int, g: torch.Generator) -> Numbers:
    law = Embedded(SPHERE, 12).noised(1.0, 0.01)
    x = law.sample(5, generator=g)
    return 4.0, intrinsic_dimension(law.score, x, 0.01, estimator="divergence").value.mean()


def _log_density_reads_the_dimension(n: int, g: torch.Generator) -> Numbers:
    sigma, x = 0.01, SPHERE.sample(5, generator=g)
    found = intrinsic_dimension(SPHERE.noised(1.0, sigma).score, x, sigma, estimator="flipd")
    step = 1e-4
    up, down = (SPHERE.noised(1.0, sigma * math.exp(h)).log_prob(x) for h in (step, -step))
    return (5 + (up - down) / (2 * step)).mean(), found.value.mean()


def _noised_points(n: int, g: torch.Generator) -> Numbers:
    law = SPHERE.noised(1.0, 0.02)
    x = law.sample(n // 20, generator=g)
    found = intrinsic_dimension(law.score, x, 0.02, estimator="flipd")
    return 4.0, mean_and_error(found.value), 5.0


def _normal_noise_is_a_projection(n: int, g: torch.Generator) -> Numbers:
    """At x = y + σ ε n(y), y uniform on the circle of radius 1, the target is −ε n/σ."""
    sigma = 0.7
    y = VonMisesCircle(torch.tensor(1.0, dtype=F64), 0.0).sample(n, generator=g)
    eps = randn_like(y[:, :1], g)
    x, target = y + sigma * eps * y, -eps * y / sigma
    rho = x.norm(dim=1)
    radial = (-rho + torch.tanh(rho / sigma**2)) / sigma**2
    return 0.0, mean_and_error((target * x).sum(1) - radial * rho)


def _normal_noise_and_density(n: int, g: torch.Generator) -> Numbers:
    """The library's own loss at c sin θ along the circle: its slope in c at 0 gives the minimiser."""
    y = UNIT_CIRCLE.sample(n, generator=g)
    seed = int(torch.randint(2**31, (), generator=g))

    def loss(c: float) -> Tensor:
        def along(x: Tensor) -> Tensor:
            unit = x / x.norm(dim=1, keepdim=True)
            return c * unit[:, 1:] * torch.stack([-unit[:, 1], unit[:, 0]], 1)

        noise = torch.Generator().manual_seed(seed)
        return normal_denoising(along, y, 0.1, y[:, :, None], generator=noise)

    below, middle, above = loss(-1.0), loss(0.0), loss(1.0)
    slope, curvature = (above - below) / 2, (above - 2 * middle + below).mean()
    return -K_0, mean_and_error(-slope / curvature), 0.0


def _tangent_objective(n: int, g: torch.Generator) -> Numbers:
    """The minimiser c of E[½ c² sin² θ + c cos θ], implicit matching along the unit circle."""
    y = UNIT_CIRCLE.sample(n, generator=g)
    cosine, square = y[:, 0], y[:, 1].square()
    c = -cosine.mean() / square.mean()
    error = mean_and_error((cosine + c * square) / square.mean()).standard_error
    return -K_0, Estimate(float(c), error)


CHECKS = table(
    __name__,
    off_the_manifold=(
        exact, "at a fixed distance from a sphere the score grows as σ⁻²: slope in log σ", LI, 2e-3,
        lambda: (-2.0, order(_radial(0.01, 0.3), _radial(0.005, 0.3)))),
    at_the_distance_of_the_noise=(
        exact, "at distance σ from a sphere it grows as σ⁻¹: slope in log σ", DERIVED, 5e-3,
        lambda: (-1.0, order(_radial(0.002, 0.002), _radial(0.001, 0.001)))),
    on_the_manifold=(
        exact, "on a sphere of R⁵ the radial score tends to −(d−1)/(2r), half the mean curvature",
        DERIVED, 1e-5, lambda: (-1.0, _radial(1e-3, 0.0))),
    blows_up_everywhere=(
        false, "“the score of data on a manifold diverges as σ → 0”: on the manifold its slope is 0",
        DERIVED, 1e-4, lambda: (-1.0, order(_radial(2e-3, 0.0), _radial(1e-3, 0.0)), 0.0)),
    curvature_and_density=(
        exact, "on a torus with a density the normal part is still half the mean curvature: distance",
        DERIVED, 1e-4, _curvature_and_density),
    tangent_score=(
        exact, "the tangent score on the circle of von Mises tends to −(k₀/r) sin θ, at θ = 1",
        DERIVED, 1e-5, lambda: (LIMIT, _tangent(1e-3))),
    tangent_order=(
        exact, "and its error is of order 2 in σ", DERIVED, 5e-3,
        lambda: (2.0, order(_tangent(0.02) - LIMIT, _tangent(0.01) - LIMIT))),
    norm_counts_normals=(
        statistical, "σ² E‖s‖² → D − k: a sphere of dimension 3 in R¹⁰", DERIVED, 0.06,
        _norm_counts_normals),
    norm_on_a_plane=(
        statistical, "on a plane E‖s‖² = (D−k)/σ² + tr (S + σ²I)⁻¹ at every σ: at σ = 0.5",
        DERIVED, 0.08, _norm_on_a_plane),
    no_score_without_noise=(
        false, "“data on a manifold have a score, the limit of s_σ”: E‖s_σ‖² grows a hundredfold from "
        "σ = 0.1 to 0.01", DERIVED, lambda: (1.0, _information(0.01) / _information(0.1), 100.0)),
    rank_reads_the_dimension=(
        exact, "D minus the rank of scores around a point is k: a torus of dimension 3 in R³⁰",
        STANCZUK, 1e-12, _rank_reads_the_dimension),
    divergence_reads_the_dimension=(
        exact, "D + σ² div s is k, also at noised points: a sphere of dimension 4 in R¹²",
        DERIVED, 0.01, _divergence_reads_the_dimension),
    log_density_reads_the_dimension=(
        exact, "D + σ²(div s + ‖s‖²) = D + d log p_σ/d log σ on a sphere", KAMKARI, 1e-6,
        _log_density_reads_the_dimension),
    noised_points=(
        false, "“D + σ²(div s + ‖s‖²) reads k = 4 at noised points”: its mean there is D = 5",
        DERIVED, _noised_points),
    normal_noise_is_a_projection=(
        statistical, "denoising of normal noise on a circle learns −ρ/σ² + (r/σ²) tanh(ρr/σ²): "
        "E[(target − s)·x]", DERIVED, 0.02, _normal_noise_is_a_projection),
    normal_noise_and_density=(
        false, "“denoising of normal noise learns the density too”: its coefficient of sin θ is 0, "
        "not −k₀", DERIVED, 1e-9, _normal_noise_and_density),
    tangent_objective=(
        statistical, "implicit matching along the circle, on the same data, learns it: c = −k₀",
        HYVARINEN, 0.03, _tangent_objective),
)  # fmt: skip
