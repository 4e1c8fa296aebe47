"""Known targets: scores against differentiation, facts against quadrature and exact draws."""

import math

import numpy as np
import pytest
import torch
from density_support import small_logistic
from scipy import integrate, stats
from support import close, z_score

from gradlogp import as_target, run
from gradlogp.calculus.reverse import score_from_log_prob
from gradlogp.distributions.targets import (
    Banana,
    DoubleWell,
    Funnel,
    LogCosh,
    LogisticRegression,
    ManyWell,
    Ring,
    SkewedGumbel,
)
from gradlogp.langevin import MALA

on_the_line = pytest.mark.parametrize(
    "p", [DoubleWell(1), DoubleWell(1, 0.5, 1.3, -0.7), LogCosh(), SkewedGumbel()], ids=repr
)


@on_the_line
def test_law_on_the_line(p, generator):
    def density(u):
        return float(p.log_prob(torch.tensor([[u]]))[0].exp())

    def integral(f, a=-25.0, b=25.0):
        points = [v for v in (-6.0, -2.0, 0.0, 2.0, 6.0) if a < v < b]
        return integrate.quad(f, a, b, points=points, epsabs=1e-13, epsrel=1e-11, limit=400)[0]

    edges = (-60.0, 5.0) if isinstance(p, SkewedGumbel) else (-60.0, 60.0)
    Z = integral(density, *edges)
    close(math.log(Z), p.log_normalizer, 1e-10)
    mean = integral(lambda u: u * density(u), *edges) / Z
    close(mean, float(p.mean[0]), 1e-9)
    var = integral(lambda u: (u - mean) ** 2 * density(u), *edges) / Z
    close(var, float(p.cov[0, 0]), 1e-9)
    if isinstance(p, DoubleWell):
        close(integral(density, 0.0, edges[1]) / Z, p.right_weight, 1e-10)
    grid = np.linspace(-20, 5 if isinstance(p, SkewedGumbel) else 20, 40_001)
    values = p.log_prob(torch.as_tensor(grid)[:, None]).exp().numpy() / Z
    cdf = np.concatenate([[0.0], integrate.cumulative_trapezoid(values, grid)])
    x = p.sample(50_000, generator=generator)[:, 0].numpy()
    assert stats.kstest(x, lambda v: np.interp(v, grid, cdf)).pvalue > 1e-4
    assert stats.kstest(x + 0.05, lambda v: np.interp(v, grid, cdf)).pvalue < 1e-6


@pytest.mark.parametrize("p", [Ring(), Ring(0.5, 0.8)], ids=repr)
def test_the_ring_has_its_radius(p, generator):
    rho = p.sample(50_000, generator=generator).norm(dim=1).numpy()
    grid = np.linspace(0, p.radius + 9 * p.width, 20_001)
    values = grid * np.exp(-0.5 * ((grid - p.radius) / p.width) ** 2)
    cdf = np.concatenate([[0.0], integrate.cumulative_trapezoid(values, grid)])
    assert stats.kstest(rho, lambda v: np.interp(v, grid, cdf / cdf[-1])).pvalue > 1e-4
    # negative control: a normal radius, without the Jacobian
    assert stats.kstest(rho, stats.norm(p.radius, p.width).cdf).pvalue < 1e-6
    assert torch.equal(p.score(torch.zeros(1, 2)), torch.zeros(1, 2))


def test_published_normaliser_of_the_many_well():
    """Midgley et al. give 11784.50927 for the integral along the first coordinate."""
    assert abs(math.exp(DoubleWell(1).log_normalizer) / 11784.50927 - 1) < 1e-8
    close(ManyWell(32).log_normalizer, 16 * (math.log(11784.50927) + 0.91893853320467), 1e-8)


def test_far_out_nothing_overflows():
    x = torch.tensor([[1e3], [-1e3]])
    close(LogCosh().log_prob(x), torch.full((2,), math.log(2) - 1000), 1e-12)
    assert torch.isfinite(LogCosh().score(x)).all()


def test_logistic_score_and_its_parts(generator):
    p = small_logistic()
    x = torch.randn(7, 4, generator=generator)
    close(p.score(x), score_from_log_prob(p.log_prob)(x), 1e-10)
    close(p.log_prior(x) + p.log_likelihood(x, p.data).sum(1), p.log_prob(x), 1e-12)
    # by hand: the law of a Bernoulli variable
    chance = torch.sigmoid(x @ p.features.mT)
    bernoulli = torch.where(p.labels == 1, chance, 1 - chance).log().sum(1)
    close(p.log_prob(x) - p.log_prior(x), bernoulli, 1e-10)
    assert p.log_normalizer is None
    with pytest.raises(ValueError, match="no reference"):
        _ = p.mean


def test_reference_posterior(generator):
    """A fresh run agrees with the stored one; the mode, which is not the mean, does not."""
    p = LogisticRegression.breast_cancer()
    assert p.features.shape == (569, 31)
    close(p.features.mean(0)[1:], torch.zeros(30), 1e-12)
    assert torch.equal(p.features[:, 0], torch.ones(569))
    ref = p.reference
    close(ref.cov, ref.cov.mT, 1e-7)
    sd = ref.cov.diagonal().sqrt()
    assert float((ref.mean_error / sd).max()) < 0.002
    assert float((ref.cov_error.diagonal() / sd**2).max()) < 0.003
    x = torch.zeros(1, 31)
    root = torch.linalg.cholesky(ref.cov)
    for _ in range(200):  # the mode, by steps in the metric of the posterior
        x = x + 0.5 * p.score(x) @ ref.cov
    mode = x[0]
    close(p.score(x), torch.zeros(1, 31), 1e-9)

    def place(z):
        return ref.mean + z @ root.mT

    whitened = as_target(
        score=lambda z: p.score(place(z)) @ root, log_prob=lambda z: p.log_prob(place(z))
    )
    z0 = torch.randn(64, 31, generator=generator)
    draws = place(run(MALA(0.4), whitened, z0, 350, 50, 3, generator=generator).draws)
    means = draws.mean(1)
    for i in range(31):
        assert abs(z_score(means[:, i], ref.mean[i])) < 4.5
        assert abs(z_score((draws[..., i] - ref.mean[i]).square().mean(1), ref.cov[i, i])) < 4.5
    assert max(abs(z_score(means[:, i], mode[i])) for i in range(31)) > 8
    assert torch.equal(p.mean, ref.mean)
    assert torch.equal(p.cov, ref.cov)


REFUSED = [
    (lambda: Banana(width=0.0), "width"),
    (lambda: Funnel(1), "dim"),
    (lambda: Ring(radius=-1.0), "radius"),
    (lambda: DoubleWell(0), "dim"),
    (lambda: DoubleWell(quadratic=-1.0), "quadratic"),
    (lambda: ManyWell(5), "even"),
    (lambda: SkewedGumbel(0), "dim"),
    (lambda: Banana().score(torch.zeros(3, 3)), "x must have shape"),
    (lambda: LogCosh(2).log_prob(torch.zeros(3, 3)), "x must have shape"),
    (lambda: LogisticRegression(torch.zeros(3, 2), torch.zeros(4)), "labels"),
    (lambda: LogisticRegression(torch.zeros(3, 2), torch.full((3,), 2.0)), "0 or 1"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call, message, as_user):
    with pytest.raises(ValueError, match=message):
        call()
