r"""Claims on data that lie on a manifold: what the noised score knows of it, and at which rate."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ...core import Estimate, mean_and_error, randn_like
from ...distributions.analytic.manifolds import AffineSubspace, UniformSphere, VonMisesCircle
from ...distributions.analytic.products import Embedded, Product
from ...geometry import intrinsic_dimension, mean_curvature, tangent_normal_split
from ...learn.objectives.manifold import normal_denoising
from .claim import Numbers, claim, collect, exact, false, statistical

LI = "Li et al. 2025, arXiv 2509.24912"
STANCZUK = "Stanczuk et al. 2022, arXiv 2212.12611"
KAMKARI = "Kamkari et al. 2024, arXiv 2406.03537"
HYVARINEN = "Hyvärinen 2005, jmlr.org/papers/v6/hyvarinen05a"
DERIVED = "derived, docs/theory.md"

F64 = torch.float64
SPHERE = UniformSphere(5, torch.tensor(2.0, dtype=F64))
K_0, R = 1.5, 0.8
CIRCLE = VonMisesCircle(torch.tensor(R, dtype=F64), K_0)
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


def _slope(high: float, low: float, factor: float = 2.0) -> float:
    """The slope in log σ of a quantity that is `high` at σ and `low` at σ/factor."""
    return math.log(abs(high / low)) / math.log(factor)


def _at(angle: float) -> Tensor:
    return torch.tensor([[R * math.cos(angle), R * math.sin(angle)]], dtype=F64)


@claim(exact, "at a fixed distance from a sphere the score grows as σ⁻²: slope in log σ", LI, 2e-3)
def off_the_manifold() -> Numbers:
    return -2.0, _slope(_radial(0.01, 0.3), _radial(0.005, 0.3))


@claim(exact, "at distance σ from a sphere it grows as σ⁻¹: slope in log σ", DERIVED, 5e-3)
def at_the_distance_of_the_noise() -> Numbers:
    return -1.0, _slope(_radial(0.002, 0.002), _radial(0.001, 0.001))


@claim(
    exact, "on a sphere of R⁵ the radial score tends to −(d−1)/(2r), half the mean curvature",
    DERIVED, 1e-5,
)  # fmt: skip
def on_the_manifold() -> Numbers:
    return -1.0, _radial(1e-3, 0.0)


@claim(
    false, "“the score of data on a manifold diverges as σ → 0”: on the manifold its slope is 0",
    DERIVED, 1e-4,
)  # fmt: skip
def blows_up_everywhere() -> Numbers:
    return -1.0, _slope(_radial(2e-3, 0.0), _radial(1e-3, 0.0)), 0.0


@claim(
    exact, "on a torus with a density the normal part is still half the mean curvature: distance",
    DERIVED, 1e-4,
)  # fmt: skip
def curvature_and_density() -> Numbers:
    x = torch.cat([_at(0.4), torch.tensor([[0.0, 1.2]], dtype=F64), _at(2.0)], 1)
    found = mean_curvature(TORUS.noised(1.0, 1e-3).score, x, 1e-3).normal_score
    half = torch.cat([-y / (2 * y.square().sum()) for y in x.split(2, 1)], 1)
    return 0.0, (found - half).norm()


def _tangent(sigma: float, angle: float = 1.0) -> Tensor:
    """The tangent part of the noised score on the circle, anticlockwise."""
    split = tangent_normal_split(CIRCLE.noised(1.0, sigma).score, _at(angle), sigma, 1)
    direction = torch.tensor([-math.sin(angle), math.cos(angle)], dtype=F64)
    return (split.tangent * direction).sum()


@claim(
    exact, "the tangent score on the circle of von Mises tends to −(k₀/r) sin θ, at θ = 1",
    DERIVED, 1e-5,
)  # fmt: skip
def tangent_score() -> Numbers:
    return -K_0 / R * math.sin(1.0), _tangent(1e-3)


@claim(exact, "and its error is of order 2 in σ", DERIVED, 5e-3)
def tangent_order() -> Numbers:
    limit = -K_0 / R * math.sin(1.0)
    coarse, fine = (float(_tangent(sigma)) - limit for sigma in (0.02, 0.01))
    return 2.0, _slope(coarse, fine)


@claim(statistical, "σ² E‖s‖² → D − k: a sphere of dimension 3 in R¹⁰", DERIVED, 0.06)
def norm_counts_normals(n: int, g: torch.Generator) -> Numbers:
    sigma = 0.02
    law = Embedded(UniformSphere(4, torch.tensor(1.0, dtype=F64)), 10).noised(1.0, sigma)
    s = law.score(law.sample(n // 8, generator=g))
    return 7.0, mean_and_error(sigma**2 * s.square().sum(1))


@claim(
    statistical, "on a plane E‖s‖² = (D−k)/σ² + tr (S + σ²I)⁻¹ at every σ: at σ = 0.5",
    DERIVED, 0.08,
)  # fmt: skip
def norm_on_a_plane(n: int, g: torch.Generator) -> Numbers:
    sigma = 0.5
    law = PLANE.noised(1.0, sigma)
    s = law.score(law.sample(n // 4, generator=g))
    V, cov = PLANE.basis, torch.tensor([0.5, 2.0], dtype=F64)
    S_y = cov.sqrt() * (V.mT @ V) * cov.sqrt().unsqueeze(1)  # has the nonzero spectrum of V S Vᵀ
    inside = torch.linalg.inv(S_y + sigma**2 * torch.eye(2, dtype=F64)).trace()
    return 3 / sigma**2 + inside, mean_and_error(s.square().sum(1))


@claim(
    false, "“data on a manifold have a score, the limit of s_σ”: E‖s_σ‖² grows a hundredfold from "
    "σ = 0.1 to 0.01",
    DERIVED,
)  # fmt: skip
def no_score_without_noise() -> Numbers:
    x = torch.zeros(1, 5, dtype=F64)
    coarse, fine = (  # E‖s‖² = −E tr ∇s, and ∇s is constant
        -PLANE.noised(1.0, sigma).hessian(x).diagonal(dim1=1, dim2=2).sum()
        for sigma in (0.1, 0.01)
    )
    return 1.0, fine / coarse, 100.0


@claim(
    exact, "D minus the rank of scores around a point is k: a torus of dimension 3 in R³⁰",
    STANCZUK, 1e-12,
)  # fmt: skip
def rank_reads_the_dimension(n: int, g: torch.Generator) -> Numbers:
    law, sigma = Embedded(TORUS, 30), 0.02
    x = law.sample(4, generator=g).double()
    found = intrinsic_dimension(law.noised(1.0, sigma).score, x, sigma, generator=g, stack=60)
    return 3.0, found.value.mean()


@claim(
    exact, "D + σ² div s is k, also at noised points: a sphere of dimension 4 in R¹²",
    DERIVED, 0.01,
)  # fmt: skip
def divergence_reads_the_dimension(n: int, g: torch.Generator) -> Numbers:
    law, sigma = Embedded(SPHERE, 12), 0.01
    x = law.noised(1.0, sigma).sample(5, generator=g)
    found = intrinsic_dimension(law.noised(1.0, sigma).score, x, sigma, estimator="divergence")
    return 4.0, found.value.mean()


@claim(exact, "D + σ²(div s + ‖s‖²) = D + d log p_σ/d log σ on a sphere", KAMKARI, 1e-6)
def log_density_reads_the_dimension(n: int, g: torch.Generator) -> Numbers:
    sigma, x = 0.01, SPHERE.sample(5, generator=g)
    found = intrinsic_dimension(SPHERE.noised(1.0, sigma).score, x, sigma, estimator="flipd")
    step = 1e-4
    up, down = (SPHERE.noised(1.0, sigma * math.exp(h)).log_prob(x) for h in (step, -step))
    return (5 + (up - down) / (2 * step)).mean(), found.value.mean()


@claim(
    false, "“D + σ²(div s + ‖s‖²) reads k = 4 at noised points”: its mean there is D = 5", DERIVED
)
def noised_points(n: int, g: torch.Generator) -> Numbers:
    law = SPHERE.noised(1.0, 0.02)
    x = law.sample(n // 20, generator=g)
    found = intrinsic_dimension(law.score, x, 0.02, estimator="flipd")
    return 4.0, mean_and_error(found.value), 5.0


# ---------------------------------------------------------------------------- noise along normals


def _normal_noise(sigma: float, k_0: float, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw x = y + σ ε n(y) on the circle of radius 1, and the target −ε n/σ."""
    y = VonMisesCircle(torch.tensor(1.0, dtype=F64), k_0).sample(n, generator=g)
    eps = randn_like(y[:, :1], g)
    return y + sigma * eps * y, -eps * y / sigma


@claim(
    statistical,
    "denoising of normal noise on a circle learns −ρ/σ² + (r/σ²) tanh(ρr/σ²): E[(target − s)·x]",
    DERIVED, 0.02,
)  # fmt: skip
def normal_noise_is_a_projection(n: int, g: torch.Generator) -> Numbers:
    sigma = 0.7
    x, target = _normal_noise(sigma, 0.0, n, g)
    rho = x.norm(dim=1)
    radial = (-rho + torch.tanh(rho / sigma**2)) / sigma**2
    residual = (target * x).sum(1) - radial * rho
    return 0.0, mean_and_error(residual)


@claim(
    false,
    "“denoising of normal noise learns the density too”: its coefficient of sin θ is 0, not −k₀",
    DERIVED, 1e-9,
)  # fmt: skip
def normal_noise_and_density(n: int, g: torch.Generator) -> Numbers:
    """The library's own loss at c sin θ along the circle: its slope in c at 0 gives the minimiser."""
    law = VonMisesCircle(torch.tensor(1.0, dtype=F64), K_0)
    y = law.sample(n, generator=g)

    def along(c: float, x: Tensor) -> Tensor:
        unit = x / x.norm(dim=1, keepdim=True)
        return c * unit[:, 1:] * torch.stack([-unit[:, 1], unit[:, 0]], 1)

    seed = int(torch.randint(2**31, (), generator=g))
    losses = [
        normal_denoising(
            partial(along, c), y, 0.1, y[:, :, None],
            generator=torch.Generator().manual_seed(seed),
        )
        for c in (-1.0, 0.0, 1.0)
    ]  # fmt: skip
    slope = (losses[2] - losses[0]) / 2
    curvature = (losses[2] - 2 * losses[1] + losses[0]).mean()
    fitted = mean_and_error(-slope / curvature)
    return -K_0, fitted, 0.0


@claim(
    statistical, "implicit matching along the circle, on the same data, learns it: c = −k₀",
    HYVARINEN, 0.03,
)  # fmt: skip
def tangent_objective(n: int, g: torch.Generator) -> Numbers:
    """The minimiser c of E[½ c² sin² θ + c cos θ], implicit matching along the unit circle."""
    y = VonMisesCircle(torch.tensor(1.0, dtype=F64), K_0).sample(n, generator=g)
    cosine, square = y[:, 0], y[:, 1].square()
    c = -cosine.mean() / square.mean()
    error = mean_and_error((cosine + c * square) / square.mean()).standard_error
    return -K_0, Estimate(float(c), error)


CHECKS = collect(globals())
"""The claims of this file, in the order of the report."""
