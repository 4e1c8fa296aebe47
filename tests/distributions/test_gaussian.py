"""The Gaussian against explicit inverses, finite differences, quadrature and z-tests."""

import math

import pytest
import torch
from support import close, spd

from gradlogp.core import Analytic
from gradlogp.distributions.analytic import Gaussian

KINDS = ("full", "diagonal", "scalar")
CASES = [(D, kind) for D in range(1, 7) for kind in KINDS]


def random_gaussian(D, kind, g):
    """Return the law, its mean and its covariance as a matrix made without the library."""
    mu = torch.randn(D, generator=g)
    if kind == "full":
        cov = S = spd(D, g)
    elif kind == "diagonal":
        cov = 0.3 + torch.rand(D, generator=g)
        S = torch.diag(cov)
    else:
        cov = 0.3 + torch.rand((), generator=g)
        S = cov * torch.eye(D)
    return Gaussian(mu, cov), mu, S


def points(law, n, g):
    return law.mean + 1.5 * torch.randn(n, *law.event_shape, generator=g)


# ---------------------------------------------------------------------------- density


@pytest.mark.parametrize(("D", "kind"), CASES)
def test_log_prob_score_and_hessian_from_the_inverse_covariance(D, kind, generator):
    law, mu, S = random_gaussian(D, kind, generator)
    x = points(law, 7, generator)
    P = torch.linalg.inv(S)
    quad = torch.einsum("bi,ij,bj->b", x - mu, P, x - mu)
    close(law.log_prob(x), -0.5 * (quad + torch.logdet(S) + D * math.log(2 * math.pi)))
    close(law.score(x), -(x - mu) @ P)
    close(law.hessian(x), -P.expand(7, D, D))
    close(law.cov, S)
    assert law.event_shape == (D,)
    assert isinstance(law, Analytic)


def test_standard_normal_is_the_default():
    law = Gaussian([0.0, 0.0])
    x = torch.tensor([[1.0, -2.0]])
    close(law.score(x), -x)
    close(law.log_prob(x), torch.tensor([-2.5 - math.log(2 * math.pi)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_finite_and_right_at_ten_thousand_standard_deviations(kind, dtype, generator):
    law, mu, S = random_gaussian(4, kind, generator)
    direction = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=1)
    x = (mu + 1e4 * direction).to(dtype)
    s, P = law.score(x), torch.linalg.inv(S)
    assert s.dtype == law.log_prob(x).dtype == law.hessian(x).dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    close(s.double(), -(x.double() - mu) @ P, rtol=tolerance, atol=tolerance * 1e4)
    assert law.log_prob(x).isfinite().all()


def test_no_cancellation_far_from_the_origin(generator):
    S = spd(2, generator)
    z = torch.randn(5, 2, generator=generator).mul(2**20).round() / 2**20  # z + 1e6 is exact
    near, far = Gaussian([0.0, 0.0], 1e-4 * S), Gaussian([1e6, 1e6], 1e-4 * S)
    close(far.score(z + 1e6), near.score(z))
    close(far.log_prob(z + 1e6), near.log_prob(z))


def test_dtypes():
    single = Gaussian(torch.zeros(2, dtype=torch.float32), 2.0)
    assert single.sample(3).dtype == torch.float32
    assert single.noised(0.5, 1.0).sample(3).dtype == torch.float32
    assert single.score(torch.zeros(3, 2, dtype=torch.float64)).dtype == torch.float64
    assert Gaussian([0, 1]).sample(2).dtype == torch.get_default_dtype()


# ---------------------------------------------------------------------------- noising


@pytest.mark.parametrize(("D", "kind"), CASES)
def test_noised_is_the_closed_form(D, kind, generator):
    law, mu, S = random_gaussian(D, kind, generator)
    noised = law.noised(0.6, 0.9)
    close(noised.mean, 0.6 * mu)
    close(noised.cov, 0.36 * S + 0.81 * torch.eye(D))
    other = Gaussian(0.6 * mu, 0.36 * S + 0.81 * torch.eye(D))
    x = points(law, 4, generator)
    close(noised.log_prob(x), other.log_prob(x))
    close(noised.score(x), other.score(x))
    close(noised.hessian(x), other.hessian(x))
    assert noised.event_shape == (D,)


# ---------------------------------------------------------------------------- posterior


def test_posterior_at_the_ends_of_time():
    law = Gaussian([1.0, 2.0], [[1.0, 0.5], [0.5, 1.0]])
    x = torch.tensor([[3.0, -1.0]])
    close(law.posterior_mean(x, 0.0, 1.0), law.mean[None])
    close(law.posterior_cov(x, 0.0, 1.0), law.cov[None])
    close(law.posterior_mean(x, 0.5, 0.0), x / 0.5)
    close(law.posterior_cov(x, 0.5, 0.0), torch.zeros(1, 2, 2))


# ---------------------------------------------------------------------------- singular laws


def test_a_point_mass_can_be_sampled_and_noised():
    law = Gaussian([1.0, -2.0], 0.0)
    assert torch.equal(law.sample(3), torch.tensor([[1.0, -2.0]] * 3))
    x = torch.tensor([[0.5, 0.5]])
    close(law.noised(0.5, 0.3).score(x), -(x - 0.5 * law.mean) / 0.09)
    close(law.posterior_mean(x, 0.5, 0.3), law.mean[None])
    close(law.posterior_cov(x, 0.5, 0.3), torch.zeros(1, 2, 2))


def test_a_law_on_a_line():
    """x = u y: the score of the noised law is −tangent/(2 + σ²) − normal/σ²."""
    u = torch.tensor([0.6, 0.8])
    law = Gaussian([0.0, 0.0], 2.0 * u.outer(u))
    sigma, x = 0.1, torch.tensor([[0.3, -0.2], [1.0, 1.0]])
    tangent = (x @ u)[:, None] * u
    expected = -tangent / (2.0 + sigma**2) - (x - tangent) / sigma**2
    close(law.noised(1.0, sigma).score(x), expected)
    normal = torch.tensor([-0.8, 0.6])
    close(law.sample(100) @ normal, torch.zeros(100))


@pytest.mark.parametrize("cov", [0.0, [1.0, 0.0], [[1.0, 1.0], [1.0, 1.0]]])
def test_a_singular_law_has_no_density(cov):
    law, x = Gaussian([0.0, 0.0], cov), torch.zeros(1, 2)
    for name in ("log_prob", "score", "hessian"):
        with pytest.raises(ValueError, match=r"singular.*use \.noised\(alpha, sigma\)"):
            getattr(law, name)(x)
    with pytest.raises(ValueError, match="singular"):
        law.posterior_mean(x, 1.0, 0.0)
    assert law.noised(1.0, 0.1).score(x).isfinite().all()


# ---------------------------------------------------------------------------- bad input


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("mean", "cov", "match"),
    [
        (torch.zeros(2, 2), 1.0, r"mean must have shape \(D,\), got \(2, 2\)"),
        ([], 1.0, r"mean is empty, shape \(0,\)"),
        ([0.0, 0.0], [1.0, 1.0, 1.0], r"cov must have shape .* got \(3,\)"),
        ([0.0, 0.0], [[1.0, 0.5], [0.2, 1.0]], "not symmetric"),
        ([0.0, 0.0], -1.0, "negative eigenvalue"),
        ([0.0, 0.0], [1.0, -0.1], "negative eigenvalue.*variances"),
        ([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], "negative eigenvalue"),
        ([0.0, float("nan")], 1.0, r"mean must be finite, got a tensor of shape \(2,\)"),
        ([0.0, 0.0], float("inf"), "cov must be finite, got inf"),
    ],
)
def test_refuses_bad_parameters(mean, cov, match):
    with pytest.raises(ValueError, match=match):
        Gaussian(mean, cov)


@pytest.mark.usefixtures("as_user")
def test_refuses_bad_points_and_coefficients():
    law = Gaussian([0.0, 0.0])
    for name in ("log_prob", "score", "hessian"):
        for x in (torch.zeros(2), torch.zeros(3, 3), torch.zeros(3, 2, 1)):
            with pytest.raises(ValueError, match=r"x must have shape \(B, 2\)"):
                getattr(law, name)(x)
    with pytest.raises(ValueError, match="floating point"):
        law.score(torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"x_t must have shape \(B, 2\)"):
        law.posterior_mean(torch.zeros(3, 3), 1.0, 1.0)
    two, three = torch.ones(2), torch.ones(3)
    for alpha, sigma, match in (
        (-1.0, 1.0, r"alpha must be at least 0 and finite, got -1\.0"),
        (1.0, float("nan"), "sigma must be at least 0 and finite"),
        (torch.ones(2, 2), 1.0, r"alpha must have shape \(\) or \(B,\)"),
        (two, three, r"alpha has shape \(2,\), but sigma \(3,\)"),
    ):
        with pytest.raises(ValueError, match=match):
            law.noised(alpha, sigma)
