r"""Claims on diffusion models: their loss, their dialects, the posterior, the likelihood.

Expectations are quadratures over data and noise, passed to the library's objectives as their
noise; nothing is drawn here.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ...core import Injected, NoisyScore, Schedule
from ...diffusion.bound import variational_bound
from ...diffusion.likelihood import log_likelihood
from ...distributions.analytic import Gaussian, GaussianMixture
from ...learn import objectives
from ...learn.objectives.weights import Weight
from ...noise.predictions import from_prediction
from ...noise.schedules import DDPM, VE, VP, Levels, SubVP
from ...noise.tweedie import tweedie_product, tweedie_variance
from ...scores import as_score
from ...scores.exact import ExactScore
from ...scores.guided import RescheduledScore
from ..metrics import gaussian_kl
from .claim import DERIVED, MIXTURE, Numbers, apart, at_most, exact, false, grid, order, table

HO = "Ho, Jain & Abbeel 2020, arXiv 2006.11239"
NCSN = "Song & Ermon 2019, arXiv 1907.05600"
SONG = "Song et al. 2021, arXiv 2011.13456"
LIKELIHOOD = "Song, Durkan, Murray & Ermon 2021, arXiv 2101.09258"
KINGMA = "Kingma et al. 2021, arXiv 2107.00630"
EFRON = "Efron 2011, doi 10.1198/jasa.2011.tm11181"

F64 = torch.float64
T = torch.tensor(0.4, dtype=F64)
CHAIN = DDPM(torch.linspace(1e-3, 0.2, 100, dtype=F64))
WIDE = Levels([1000.0, 0.001])
PLANE = GaussianMixture(
    [0.3, 0.7], torch.tensor([[-2.0, 0.5], [1.0, -1.0]], dtype=F64),
    torch.tensor([[[0.5, 0.2], [0.2, 0.3]], [[0.4, -0.1], [-0.1, 0.6]]], dtype=F64),
)  # fmt: skip
POINTS = torch.tensor([[0.3, -0.8], [2.0, 1.0], [-1.5, 0.2], [0.0, 0.0]], dtype=F64)


def _normal_nodes(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of N(0, 1), `(n,)`."""
    nodes, weights = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(n))
    return nodes, weights / math.sqrt(2 * math.pi)


def _uniform_nodes(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the uniform law on (0, 1), `(n,)`."""
    nodes, weights = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(n))
    return (nodes + 1) / 2, weights / 2


def _expected(score: NoisyScore, t: float, weight: Weight) -> float:
    """The expected loss at a time on the mixture, by quadrature over x₀ and the noise."""
    z, w = _normal_nodes(40)
    x = (MIXTURE.means + torch.tensor([[0.3], [0.5]], dtype=F64).sqrt() * z).flatten()
    mass = torch.outer((MIXTURE.weights[:, None] * w).flatten(), w).flatten()
    x, eps = torch.cartesian_prod(x, z).unbind(1)
    noise = Injected(eps[:, None])
    losses = objectives.multilevel(
        score, x[:, None], torch.full_like(x, t), weight, generator=noise
    )
    return float(mass @ losses)


def _bent(x: Tensor, t: Tensor) -> Tensor:
    """A score that is not optimal."""
    return -torch.tanh(x) - 0.2 * x


def _bent_under(schedule: Schedule) -> NoisyScore:
    return as_score(_bent, "score", schedule)


def _marginal(schedule: Schedule, t: float) -> tuple[float, Tensor, Tensor, Tensor]:
    """σ at t, and on a grid x, p_t dx and the score there."""
    alpha, sigma = schedule(torch.tensor(t, dtype=F64))
    noised, reach = MIXTURE.noised(alpha, sigma), 8 + 10 * float(sigma)
    x, dx = grid(-reach, reach, 20_001)
    return float(sigma), x, noised.log_prob(x).exp() * dx, noised.score(x)


def _ddpm_loss_is_denoising() -> Numbers:
    sigma, x, p, s = _marginal(VP(), 0.3)
    distance = float(p @ (_bent(x, T) - s).square()[:, 0])
    floor = 1 / sigma**2 - float(p @ s.square()[:, 0])
    found = _expected(_bent_under(VP()), 0.3, objectives.weights.sigma2)
    return 0.5 * sigma**2 * (distance + floor), found


def _ddpm_loss_is_ncsn_loss() -> Numbers:
    """σ² ½‖s + ε/σ‖² by `denoising`, ½‖ε − ε̂‖² by `multilevel` and by hand, sample by sample."""
    x, ladder = POINTS, Levels([3.0, 0.5])
    eps, t = POINTS.flip(0) - 0.3, torch.zeros(len(POINTS), dtype=F64)
    ncsn = 0.25 * objectives.denoising(lambda y: _bent(y, T), x, 0.5, generator=Injected(eps))
    ddpm = objectives.multilevel(_bent_under(ladder), x, t, generator=Injected(eps))
    x_t = x + 0.5 * eps
    _, predicted = from_prediction("score", _bent(x_t, T), x_t, 1.0, 0.5)
    by_hand = 0.5 * (eps - predicted).square().sum(1)
    return 0.0, apart(torch.stack([ncsn, ddpm]), by_hand)


def _loss_is_bounded() -> Numbers:
    score, weight = ExactScore(MIXTURE, WIDE), objectives.weights.sigma2
    return 0.5, max(
        abs(2 * _expected(score, t, weight) - 0.5) for t in torch.linspace(0, 1, 13).tolist()
    )


def _size(sigma: float) -> float:
    """E‖s_σ‖² on the mixture."""
    _, _, p, s = _marginal(Levels([sigma, sigma / 2]), 1.0)
    return float(p @ s.square()[:, 0])


def _likelihood_weight() -> Numbers:
    """With s_θ the score of another Gaussian, noised, the bound is met."""
    p, q = (
        Gaussian(torch.tensor([m], dtype=F64), torch.tensor(v, dtype=F64))
        for m, v in ((0.5, 0.36), (0.0, 1.2))
    )
    schedule, (z, w), (u, v) = VP(), _normal_nodes(3), _uniform_nodes(40)
    t, x, eps = torch.cartesian_prod(u, 0.5 + 0.6 * z, z).unbind(1)
    loss = objectives.excess(
        ExactScore(q, schedule), ExactScore(p, schedule), x[:, None], t,
        objectives.weights.likelihood, generator=Injected(eps[:, None]),
    )  # fmt: skip
    total = float(torch.cartesian_prod(v, w, w).prod(1) @ loss)
    alpha, sigma = schedule(torch.ones((), dtype=F64))
    total += gaussian_kl(p.noised(alpha, sigma), q.noised(alpha, sigma))
    return gaussian_kl(p, q), total


def _drift_and_diffusion() -> Numbers:
    beta = 0.1 + 19.9 * T
    a4 = SubVP()(T)[0] ** 4
    errors = (
        VP().f(T) + beta / 2, VP().g2(T) - beta, SubVP().g2(T) - beta * (1 - a4),
        VE(0.1, 10.0).g2(T) - 2 * VE(0.1, 10.0)(T)[1] ** 2 * math.log(100.0),
    )  # fmt: skip
    return 0.0, max(abs(float(e)) for e in errors)


def _chain_against_sde(n: int) -> Tensor:
    """The largest difference of log ᾱ between n steps of DDPM with β(i/n)/n and the VP SDE."""
    t = torch.arange(1, n + 1, dtype=F64) / n
    return apart(DDPM((0.1 + 19.9 * t) / n)(t)[0].log(), VP()(t)[0].log())


def _exploding_is_preserving() -> Numbers:
    ve, vp = VE(0.01, 200.0), VP()
    moved = RescheduledScore(ExactScore(PLANE, ve), vp)
    return 0.0, apart(moved(POINTS, T), ExactScore(PLANE, vp)(POINTS, T))


def _level_of_ncsn() -> Numbers:
    t = CHAIN.times[40]
    alpha, sigma = CHAIN(t)
    wanted = alpha * ExactScore(PLANE, CHAIN)(POINTS, t)

    def distance(level: float) -> float:
        return float((PLANE.noised(1.0, level).score(POINTS / alpha) - wanted).square().sum())

    found = minimize_scalar(
        distance, bounds=(0.3, 30.0), method="bounded", options={"xatol": 1e-9}
    )
    return sigma, found.x, sigma / alpha


def _epsilon_is_the_score() -> Numbers:
    alpha, sigma = VP()(T)
    x0 = PLANE.posterior_mean(POINTS, alpha, sigma)
    return 0.0, apart((POINTS - alpha * x0) / sigma, -sigma * ExactScore(PLANE, VP())(POINTS, T))


def _tweedie_without_the_matrix() -> Numbers:
    alpha, sigma = VP()(T)
    s, v = PLANE.noised(alpha, sigma).score, POINTS.flip(1) + 0.4
    cov = PLANE.posterior_cov(POINTS, alpha, sigma)
    product = apart(tweedie_product(s, POINTS, v, alpha, sigma), (cov @ v[..., None])[..., 0])
    variance = tweedie_variance(s, POINTS, alpha, sigma).value
    return 0.0, torch.maximum(product, apart(variance, cov.diagonal(dim1=1, dim2=2)))


def _likelihood_by_the_flow() -> Numbers:
    x, schedule = torch.tensor([[-2.3], [0.4], [1.2]], dtype=F64), VP()
    found = log_likelihood(ExactScore(MIXTURE, schedule), x, tolerance=1e-7)
    law = MIXTURE.noised(*schedule(torch.tensor(found.t_min, dtype=F64)))
    return 0.0, apart(found.log_prob, law.log_prob(x))


def _bound_is_tight() -> Numbers:
    """The variational bound at 0.4, by quadrature over the λ of each stratum and the noise."""
    (u, v), (e, w) = _uniform_nodes(5), _normal_nodes(40)
    times, eps = torch.cartesian_prod(u, e).unbind(1)
    x = torch.full((len(eps), 1), 0.4, dtype=F64)
    found = variational_bound(
        ExactScore(MIXTURE, VP()), x, n_strata=30, t_min=1e-5,
        generator=Injected(*[times, eps[:, None]] * 60, *[eps[:, None]] * 2),
    ).log_prob  # fmt: skip
    return MIXTURE.log_prob(x[:1]), float(torch.cartesian_prod(v, w).prod(1) @ found)


CHECKS = table(
    __name__,
    ddpm_loss_is_denoising=(
        exact, "DDPM's ½E‖ε − ε̂‖² = σ² (½E‖s_θ − s_t‖² + R), R = d/(2σ²) − ½E‖s_t‖², s_θ not "
        "optimal", f"{HO}; constant {DERIVED}", 1e-9, _ddpm_loss_is_denoising),
    ddpm_loss_is_ncsn_loss=(
        exact, "σ²‖s + ε/σ‖² (NCSN) = ‖ε − ε̂‖² (DDPM), ε̂ = −σ s: largest difference",
        f"{NCSN}; {HO}", 1e-12, _ddpm_loss_is_ncsn_loss),
    loss_is_bounded=(
        at_most, "weighted by σ², E‖ε − ε̂‖² of the exact score lies in [0, d], σ from 10⁻³ to 10³: "
        "largest |loss/d − ½|", NCSN, _loss_is_bounded),
    loss_unweighted=(
        exact, "unweighted it grows as d/σ²: E‖s + ε/σ‖² · σ²/d at σ = 10⁻³", NCSN, 1e-4,
        lambda: (
            1.0, 2e-6 * _expected(ExactScore(MIXTURE, WIDE), 0.0, objectives.weights.unweighted))),
    score_grows_with_noise=(
        false, "“the more noise, the larger the score”: slope of log E‖s_σ‖² in log σ, large σ",
        "lecture notes", 1e-3, lambda: (2.0, order(_size(100.0), _size(50.0)), -2.0)),
    likelihood_weight=(
        exact, "∫ g² ½E‖s_θ − s_t‖² dt + KL(p₁‖q₁) = KL(p₀‖q₀), s_θ the score of q noised",
        LIKELIHOOD, 1e-9, _likelihood_weight),
    drift_and_diffusion=(
        exact, "f = −β/2 and g² = β (VP), β(1 − α⁴) (sub-VP), 2σ² log(σ₁/σ₀) (VE): largest error",
        SONG, 1e-10, _drift_and_diffusion),
    chain_becomes_sde=(
        exact, "DDPM's chain with β(i/N)/N tends to the VP SDE as 1/N: order of log ᾱ", SONG, 0.02,
        lambda: (1.0, order(_chain_against_sde(1000), _chain_against_sde(2000)))),
    exploding_is_preserving=(
        exact, "α s_VP(x; α, σ) = s_VE(x/α; σ/α): a VE score read under VP, largest difference",
        SONG, 1e-10, _exploding_is_preserving),
    level_of_ncsn=(
        false, "“NCSN's σ is DDPM's √(1 − ᾱ)”: the σ at which both have one score at step 60 of 100",
        "lecture notes", 1e-5, _level_of_ncsn),
    epsilon_is_the_score=(
        exact, "E[ε | x_t] = −σ s_t(x_t) on a mixture, largest error", EFRON, 1e-12,
        _epsilon_is_the_score),
    tweedie_without_the_matrix=(
        exact, "Tweedie's covariance times a vector, and its diagonal, on a mixture", EFRON, 1e-10,
        _tweedie_without_the_matrix),
    likelihood_by_the_flow=(
        exact, "log p by the probability flow to a tolerance of 10⁻⁷: largest error on a mixture",
        SONG, 1e-6, _likelihood_by_the_flow),
    bound_is_tight=(
        exact, "the variational bound of the exact score is log p: on a mixture, at 0.4", KINGMA,
        1e-4, _bound_is_tight),
)  # fmt: skip
