"""What every law that is closed under noising keeps: derivatives, noise, posteriors, rows, seeds."""

import math

import pytest
import torch
from support import close, seeded

from gradlogp import Empirical, Gaussian, GaussianMixture
from gradlogp.calculus.reverse import jacobian, score_from_log_prob
from gradlogp.core import Analytic
from gradlogp.distributions.analytic import (
    AffineSubspace,
    Classes,
    Embedded,
    Joint,
    Product,
    UniformSphere,
    VonMisesCircle,
)

TURN = torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double())[0]
BASIS = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0], [0.5, -1.0]], dtype=torch.float64)
OFFSET = torch.tensor([1.0, -2.0, 0.0, 0.5], dtype=torch.float64)

COV = torch.tensor([[1.5, 0.6, 0.1], [0.6, 0.5, -0.2], [0.1, -0.2, 0.9]], dtype=torch.float64)
MEANS = torch.tensor([[-2.0, 0.3, 1.0], [1.0, -0.5, 0.0]], dtype=torch.float64)
COVS = torch.stack([COV, COV.flip(0, 1)])
SINGULAR = {
    "sphere": UniformSphere(5, 2.0),
    "circle": UniformSphere(2, 1.5),
    "von Mises": VonMisesCircle(1.3, 2.5, 0.7),
    "peaked": VonMisesCircle(0.8, 200.0, -2.0),
    "torus": Product([UniformSphere(2, 1.0), VonMisesCircle(0.5, 1.0)]),
    "subspace": AffineSubspace(BASIS, OFFSET, torch.tensor([0.4, 2.0], dtype=torch.float64)),
    "embedded": Embedded(VonMisesCircle(1.3, 2.5, 0.7), TURN),
    "padded": Embedded(UniformSphere(3), 7),
    "data": Empirical(torch.cat([MEANS, MEANS.flip(0, 1), 0.3 * MEANS])),
}
LAWS = SINGULAR | {
    "Gaussian": Gaussian(MEANS[0], COV),
    "Gaussian, diagonal": Gaussian(MEANS[0], COV.diagonal()),
    "Gaussian, one variance": Gaussian(MEANS[0], 0.7),
    "mixture": GaussianMixture([0.3, 0.7], MEANS, COVS),
    "mixture, diagonal": GaussianMixture([0.3, 0.7], MEANS, COVS.diagonal(dim1=1, dim2=2)),
    "mixture, a variance each": GaussianMixture([0.3, 0.7], MEANS, [0.4, 1.2]),
    "mixture, one variance": GaussianMixture([0.3, 0.7], MEANS, 0.4),
    "joint": Joint(GaussianMixture([0.3, 0.7], MEANS, COVS), 1),
    "classes": Classes([Gaussian(MEANS[0], COV), GaussianMixture([0.5, 0.5], MEANS, COVS)]),
}
every_law = pytest.mark.parametrize("name", LAWS)
levels = pytest.mark.parametrize("sigma", [0.05, 0.6, 3.0])


def somewhere(law, alpha, sigma, generator, n=20):
    """Points where the noised law has mass, one at 0, and one near the manifold."""
    x = law.noised(alpha, sigma).sample(n, generator=generator).double()
    x[0] = 0.0
    x[1] = alpha * law.sample(1, generator=generator)[0]
    return x


@every_law
def test_protocol(name, generator):
    law = LAWS[name]
    assert isinstance(law, Analytic)
    assert isinstance(law.noised(1.0, 0.5), Analytic)
    assert law.sample(3, generator=generator).shape == (3, *law.event_shape)
    if name not in SINGULAR:
        return
    with pytest.raises(ValueError, match=r"\.noised\(alpha, sigma\)"):
        law.score(law.sample(2, generator=generator))
    with pytest.raises(ValueError, match="no density"):
        law.log_prob(law.sample(2, generator=generator))


@every_law
@levels
def test_derivatives_and_tweedie(name, sigma, generator):
    """Score and Hessian are derivatives of log p; posteriors are those of Tweedie's formula."""
    law, alpha = LAWS[name], 0.8
    x = somewhere(law, alpha, sigma, generator)
    noised, identity, v = law.noised(alpha, sigma), torch.eye(x.shape[1]), sigma**2
    score, hessian = noised.score(x), noised.hessian(x)
    close(v * score, v * score_from_log_prob(noised.log_prob)(x), 1e-11)
    close(v * hessian, v * jacobian(noised.score, x), 1e-10)
    close(law.posterior_mean(x, alpha, sigma), (x + v * score) / alpha, 1e-11)
    expected = v / alpha**2 * (identity + v * hessian)
    close(law.posterior_cov(x, alpha, sigma), expected, 1e-11)


@every_law
@levels
def test_noising_twice(name, sigma, generator):
    """Noise on noise is noise, and the posterior of a noised law is that of Tweedie's formula."""
    law = LAWS[name].noised(0.9, sigma)
    x = somewhere(LAWS[name], 0.45, sigma, generator)
    twice, once = law.noised(0.5, 0.3), LAWS[name].noised(0.45, math.hypot(0.5 * sigma, 0.3))
    close(twice.log_prob(x), once.log_prob(x), 1e-11)
    close(twice.score(x), once.score(x), 1e-10)
    close(law.posterior_mean(x, 0.5, 0.3), (x + 0.09 * twice.score(x)) / 0.5, 1e-11)
    cov = 0.36 * (torch.eye(x.shape[1]) + 0.09 * twice.hessian(x))
    close(law.posterior_cov(x, 0.5, 0.3), cov, 1e-11)


@every_law
def test_one_noise_level_a_sample(name, generator):
    law = LAWS[name]
    alpha, sigma = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.1, 0.7, 1.0])
    x = torch.randn(3, *law.event_shape, generator=generator)
    many = law.noised(alpha, sigma)
    for method in ("log_prob", "score", "hessian"):
        rows = [getattr(law.noised(a, b), method)(x[i : i + 1]) for i, (a, b) in
                enumerate(zip(alpha, sigma, strict=True))]  # fmt: skip
        close(getattr(many, method)(x), torch.cat(rows), 1e-11)
    for method in ("posterior_mean", "posterior_cov"):
        rows = [getattr(law, method)(x[i : i + 1], a, b) for i, (a, b) in
                enumerate(zip(alpha, sigma, strict=True))]  # fmt: skip
        close(getattr(law, method)(x, alpha, sigma), torch.cat(rows), 1e-11)
    close(many.score(x)[2], -x[2], 1e-12)  # nothing but noise
    again = many.noised(0.5, sigma)
    close(again.score(x)[1], law.noised(0.25, math.hypot(0.35, 0.7)).score(x[1:2])[0], 1e-11)
    with pytest.raises(ValueError, match="3 samples"):
        many.score(x[:2])
    with pytest.raises(ValueError, match=r"shape \(\)"):
        many.sample(3, generator=generator)


@every_law
def test_single_precision_and_seeds(name):
    law = LAWS[name]
    x = torch.randn(4, *law.event_shape, generator=seeded())
    noised = law.noised(0.9, 0.4)
    for method in ("log_prob", "score", "hessian"):
        single = getattr(noised, method)(x.float())
        assert single.dtype == torch.float32
        close(single.double(), getattr(noised, method)(x.float().double()), 2e-4)
    before = torch.get_rng_state()
    first, second, other = (law.sample(9, generator=seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())
