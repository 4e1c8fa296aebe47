"""Posterior covariance by products and by probes, against the closed form of a mixture."""

import pytest
import torch
from support import close, z_score

from gradlogp import GaussianMixture
from gradlogp.noise import tweedie_product, tweedie_variance

MIXTURE = GaussianMixture(
    [0.3, 0.7],
    torch.tensor([[-2.0, 0.5, 0.1], [1.0, -1.0, 0.4]], dtype=torch.float64),
    torch.tensor([[0.5, 0.2, 0.3], [0.4, 0.1, 0.6]], dtype=torch.float64),
)


@pytest.mark.parametrize(
    ("alpha", "sigma"), [(0.8, 0.6), (1.0, 2.5), (torch.tensor([0.9, 0.5, 0.3, 1.0]), 0.7)]
)
def test_product_is_that_of_the_matrix(alpha, sigma, generator):
    x, v = torch.randn(2, 4, 3, generator=generator)
    alpha = alpha.double() if isinstance(alpha, torch.Tensor) else alpha
    C = MIXTURE.posterior_cov(x, alpha, sigma)
    out = tweedie_product(MIXTURE.noised(alpha, sigma).score, x, v, alpha, sigma)
    close(out, torch.einsum("bij,bj->bi", C, v), 1e-10)


def test_exact_variance_is_the_diagonal(generator):
    x = torch.randn(4, 3, generator=generator)
    found = tweedie_variance(MIXTURE.noised(0.8, 0.6).score, x, 0.8, 0.6)
    C = MIXTURE.posterior_cov(x, 0.8, 0.6)
    close(found.value, C.diagonal(dim1=1, dim2=2), 1e-10)
    assert float(found.standard_error.max()) == 0


def test_probed_variance_is_unbiased_and_knows_its_error(generator):
    x = torch.randn(1, 3, generator=generator)
    C = MIXTURE.posterior_cov(x, 0.8, 0.6)[0]
    many = x.expand(4000, 3).clone()
    found = tweedie_variance(
        MIXTURE.noised(0.8, 0.6).score, many, 0.8, 0.6, n_probes=4, generator=generator
    )
    for i in range(3):
        assert abs(z_score(found.value[:, i], C[i, i])) < 4
        wrong = C[i].sum()  # what leaving out the second sign would estimate
        assert abs(z_score(found.value[:, i], wrong)) > 10
        stated, seen = found.standard_error[:, i].square().mean(), found.value[:, i].var()
        assert abs(float(stated / seen) - 1) < 0.1


def test_one_probe_has_an_unknown_error(generator):
    x = torch.randn(2, 3, generator=generator)
    found = tweedie_variance(
        MIXTURE.noised(0.8, 0.6).score, x, 0.8, 0.6, n_probes=1, generator=generator
    )
    assert found.standard_error.isnan().all()


def test_events_of_any_shape(generator):
    noised = MIXTURE.noised(0.8, 0.6)
    score = lambda y: noised.score(y.flatten(1)).reshape(y.shape)
    x, v = torch.randn(2, 4, 3, 1, generator=generator)
    flat = tweedie_product(noised.score, x.flatten(1), v.flatten(1), 0.8, 0.6)
    close(tweedie_product(score, x, v, 0.8, 0.6), flat.reshape(x.shape), 1e-12)
    assert tweedie_variance(score, x, 0.8, 0.6).value.shape == x.shape


def test_refusals(as_user):
    x, score = torch.ones(2, 3), MIXTURE.noised(0.8, 0.6).score
    with pytest.raises(ValueError, match="alpha = 0"):
        tweedie_product(score, x, x, 0.0, 1.0)
    with pytest.raises(ValueError, match="shape"):
        tweedie_product(score, x, x[:, :1], 0.8, 0.6)
