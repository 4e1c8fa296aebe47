"""Distances between Gaussians against quadrature and other formulas; Stein's identities."""

import math

import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm
from support import COV, MEAN, close, gauss_hermite, z_score

from gradlogp import Gaussian, GaussianMixture
from gradlogp.check.metrics.gaussians import (
    fisher_information,
    gaussian_fisher,
    gaussian_kl,
    gaussian_wasserstein,
    mean_score,
)

P = Gaussian(MEAN, COV)
Q = Gaussian([0.2, 0.3], [[0.9, -0.3], [-0.3, 1.4]])


def random_law(d, generator, rank=None):
    root = torch.randn(d, rank or d, generator=generator)
    return Gaussian(torch.randn(d, generator=generator), root @ root.mT / d)


def nodes(law, n=3):
    """Nodes and weights under which the mean of a quadratic over the law is exact."""
    z, weight = gauss_hermite(len(law.mean), n)
    return law.mean + z @ torch.linalg.cholesky(law.cov).mT, weight


# ---------------------------------------------------------------------------- distances


@pytest.mark.parametrize("d", [1, 2, 4])
def test_fisher_and_kl_are_means_over_p(d, generator):
    """Both integrands are quadratic, so that Gauss–Hermite integrates them exactly."""
    p, q = random_law(d, generator).noised(1.0, 0.3), random_law(d, generator).noised(1.0, 0.4)
    x, weight = nodes(p)
    squares = (p.score(x) - q.score(x)).square().sum(1)
    close(gaussian_fisher(p, q), 0.5 * weight @ squares, 1e-10)
    close(gaussian_kl(p, q), weight @ (p.log_prob(x) - q.log_prob(x)), 1e-10)


def test_fisher_and_kl_are_not_symmetric_and_vanish_for_one_law():
    for distance in (gaussian_fisher, gaussian_kl):
        assert abs(distance(P, Q) - distance(Q, P)) > 0.1
        assert 0 <= distance(P, Gaussian(MEAN, COV)) < 1e-14


@pytest.mark.parametrize("d", [1, 2, 5])
def test_wasserstein_against_matrix_roots_and_the_optimal_map(d, generator):
    p, q = random_law(d, generator).noised(1.0, 0.3), random_law(d, generator)
    S, T = p.cov.numpy(), q.cov.numpy()
    root = sqrtm(S)
    cross = sqrtm(root @ T @ root).real
    expected = (p.mean - q.mean).square().sum() + torch.tensor((S + T - 2 * cross).trace())
    value = gaussian_wasserstein(p, q)
    close(value**2, expected, 1e-10)
    close(gaussian_wasserstein(q, p), value, 1e-12)
    # the map that carries p to q costs exactly this
    inverse = torch.linalg.inv(torch.as_tensor(root))
    M = inverse @ torch.as_tensor(cross) @ inverse
    close(M @ p.cov @ M, q.cov, 1e-8)
    x, weight = nodes(p)
    cost = (x - q.mean - (x - p.mean) @ M).square().sum(1)
    close(value**2, weight @ cost, 1e-8)


def test_wasserstein_of_rotated_axes():
    a, b = torch.tensor([4.0, 0.01, 1e-12]), torch.tensor([1.0, 0.25, 1e-6])
    expected = (a.sqrt() - b.sqrt()).square().sum().sqrt()
    close(gaussian_wasserstein(Gaussian([0.0] * 3, a), Gaussian([0.0] * 3, b)), expected, 1e-14)
    U = torch.linalg.qr(torch.tensor([[1.0, 2, 3], [0, 1, 4], [5, 6, 0]])).Q
    turned = [Gaussian(torch.ones(3), U @ torch.diag(w) @ U.mT) for w in (a, b)]
    close(gaussian_wasserstein(*turned), expected, 1e-8)


def test_wasserstein_of_singular_and_of_close_laws(generator):
    point, line = Gaussian([1.0, 2.0], 0.0), Gaussian([1.0, 2.0], [9.0, 0.0])
    close(gaussian_wasserstein(point, line), 3.0, 1e-14)
    close(gaussian_wasserstein(point, point), 0.0, 1e-14)
    across = Gaussian([1.0, 2.0], [0.0, 16.0])
    close(gaussian_wasserstein(line, across), 5.0, 1e-14)
    for rank in (1, 2, 4):
        law = random_law(4, generator, rank)
        assert gaussian_wasserstein(law, Gaussian(law.mean, law.cov)) < 1e-7
    # W2 of N(0, S) and N(0, (1+e)² S) is e √tr S, however small e
    e = 1e-9
    close(
        gaussian_wasserstein(P, Gaussian(MEAN, (1 + e) ** 2 * COV)) / e, COV.trace().sqrt(), 1e-5
    )
    # float32 laws are compared in float64
    single = Gaussian(MEAN.float(), COV.float())
    close(gaussian_wasserstein(single, Gaussian(MEAN.float(), COV.float())), 0.0, 1e-12)


@pytest.mark.usefixtures("as_user")
def test_laws_that_do_not_fit_are_refused():
    three, point = Gaussian([0.0, 0.0, 0.0]), Gaussian([0.0, 0.0], [1.0, 0.0])
    mixture = GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], 1.0)
    for distance in (gaussian_fisher, gaussian_kl, gaussian_wasserstein):
        with pytest.raises(ValueError, match="same dimension, got 2 and 3"):
            distance(P, three)
        with pytest.raises(ValueError, match="q was noised for 2 samples"):
            distance(P, P.noised(torch.ones(2), torch.ones(2)))
        with pytest.raises(ValueError, match="p must be a Gaussian, got GaussianMixture"):
            distance(mixture, P)  # and not taken for its mean and covariance
    for distance in (gaussian_fisher, gaussian_kl):
        with pytest.raises(ValueError, match="covariance of p is singular"):
            distance(point, P)
        with pytest.raises(ValueError, match="covariance of q is singular"):
            distance(P, point)


# ---------------------------------------------------------------------------- Stein


def test_fisher_information_of_a_gaussian_and_its_errors(generator):
    x = P.sample(20_000, generator=generator)
    result = fisher_information(P.score, x)
    expected = float(torch.linalg.inv(COV).trace())
    close(result.curvature.value, expected, 1e-12)
    assert result.curvature.standard_error < 1e-12
    squares = P.score(x).square().sum(1)
    close(result.squared.value, squares.mean(), 1e-12)
    close(result.squared.standard_error, squares.std() / math.sqrt(len(x)), 1e-12)
    assert abs(result.squared.value - expected) < 4.5 * result.squared.standard_error
    close(result.difference.value, result.squared.value - expected, 1e-10)


def test_fisher_information_of_a_mixture_is_paired(generator):
    law = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 1.0]], [0.4, 0.9])
    x = law.sample(20_000, generator=generator)
    result = fisher_information(law.score, x)
    terms = law.score(x).square().sum(1) + law.hessian(x).diagonal(dim1=1, dim2=2).sum(1)
    close(result.difference.value, terms.mean(), 1e-10)
    close(result.difference.standard_error, terms.std() / math.sqrt(len(x)), 1e-10)
    assert abs(z_score(terms, 0.0)) < 4.5
    wrong = fisher_information(lambda y: 0.5 * law.score(y), x).difference
    assert abs(wrong.value) > 20 * wrong.standard_error


def test_mean_score_is_a_t_test_in_one_dimension(generator):
    x = 0.1 + torch.randn(60, 1, generator=generator)
    result = mean_score(lambda x: -x, x)
    close(result.p_value, stats.ttest_1samp(-x[:, 0].numpy(), 0.0).pvalue, 1e-10)
    close(result.value, -x.mean(0), 1e-14)
    close(result.standard_error, x.std(0) / math.sqrt(60), 1e-14)


def test_mean_score_has_uniform_p_values_and_finds_a_shift(generator):
    P_inverse = Gaussian(torch.zeros(6), torch.diag(torch.arange(1.0, 7.0)))
    score = lambda x: P_inverse.score(x.flatten(1)).reshape(x.shape)
    draw = lambda n: P_inverse.sample(n, generator=generator).reshape(n, 2, 3)
    p_values = [mean_score(score, draw(30)).p_value for _ in range(400)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4
    moved = mean_score(score, draw(2000) + 0.2)
    assert moved.value.shape == moved.standard_error.shape == (2, 3)
    assert moved.p_value < 1e-6


def test_mean_score_without_variance_in_a_direction(generator):
    x = torch.randn(50, 2, generator=generator)
    line = mean_score(lambda x: torch.stack([-x[:, 0], 0 * x[:, 0]], 1), x)
    close(line.p_value, mean_score(lambda x: -x, x[:, :1]).p_value, 1e-10)
    assert mean_score(lambda x: torch.stack([-x[:, 0], 1 + 0 * x[:, 0]], 1), x).p_value == 0.0
    assert mean_score(torch.zeros_like, x).p_value == 1.0


def test_bad_samples_are_refused(as_user):
    with pytest.raises(ValueError, match="more samples than its 6 coordinates, got 6"):
        mean_score(lambda x: -x, torch.zeros(6, 2, 3))
    for function in (mean_score, fisher_information):
        with pytest.raises(ValueError, match="floating point"):
            function(lambda x: -x, torch.zeros(9, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="score returned shape"):
        mean_score(lambda x: x.sum(1), torch.zeros(9, 2))
