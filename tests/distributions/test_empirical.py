"""The law of a data set against the mixture of Gaussians that it becomes under noise."""

from functools import partial

import pytest
import torch
from support import close

from gradlogp import GaussianMixture
from gradlogp.core import Analytic, Density
from gradlogp.distributions.analytic.empirical import Empirical

number = partial(torch.tensor, dtype=torch.float64)
LEVELS = {
    "()": (number(0.8), number(0.6)),
    "(B,)": (number([0.0, 0.3, 0.9, 1.0, 1.2]), number([0.7, 0.1, 0.4, 2.0, 0.05])),
    "mixed": (1.0, number([0.2, 0.3, 0.4, 0.5, 0.6])),
}
levels = pytest.mark.parametrize("level", LEVELS.values(), ids=LEVELS.keys())


def jacobian(f, x):
    """∇f at every point in forward mode, whatever level each point has."""
    columns = [
        torch.func.jvp(f, (x,), (e.expand_as(x).clone(),))[1] for e in torch.eye(x.shape[1])
    ]
    return torch.stack(columns, 2)


def clouds(generator, n=9, d=3):
    data = torch.randn(n, d, generator=generator)
    mixture = GaussianMixture(torch.full((n,), 1 / n), data, 0.0)
    return Empirical(data), mixture, 2 * torch.randn(5, d, generator=generator)


@levels
@pytest.mark.parametrize("first", [None, (0.9, 0.3)], ids=["points", "noised before"])
@pytest.mark.parametrize("d", [3, 11])
def test_agrees_with_the_mixture(level, first, d, generator):
    law, mixture, x = clouds(generator, d=d)
    if first is not None:
        law, mixture = law.noised(*first), mixture.noised(*first)
    noised, exact = law.noised(*level), mixture.noised(*level)
    for name in ("log_prob", "score", "hessian"):
        close(getattr(noised, name)(x), getattr(exact, name)(x), 1e-10)
    for name in ("posterior_mean", "posterior_cov"):
        close(getattr(law, name)(x, *level), getattr(mixture, name)(x, *level), 1e-10)


def test_a_posterior_without_further_noise_is_the_point(generator):
    law, _, x = clouds(generator)
    noised = law.noised(0.9, 0.3)
    close(noised.posterior_mean(2 * x, 2.0, 0.0), x, 1e-10)
    close(noised.posterior_cov(2 * x, 2.0, 0.0), torch.zeros(5, 3, 3), 1e-12)


@pytest.mark.parametrize("event", [(1,), (2, 3), (1, 2, 2)], ids=str)
def test_every_event_shape_is_its_flat_self(event, generator):
    data, x = (torch.randn(n, *event, generator=generator) for n in (7, 4))
    law, flat = Empirical(data), Empirical(data.flatten(1))
    assert law.event_shape == law.noised(1.0, 0.5).event_shape == event
    assert isinstance(law, Analytic)
    assert isinstance(law.noised(1.0, 0.5), Density)
    a, b = law.noised(0.7, 0.5), flat.noised(0.7, 0.5)
    close(a.log_prob(x), b.log_prob(x.flatten(1)), 1e-12)
    close(a.score(x).flatten(1), b.score(x.flatten(1)), 1e-12)
    mean = law.posterior_mean(x, 0.7, 0.5)
    close(mean.flatten(1), flat.posterior_mean(x.flatten(1), 0.7, 0.5), 1e-12)


@levels
@pytest.mark.parametrize("d", [3, 11])
def test_derivatives_in_every_mode(level, d, generator):
    """Tweedie, and score and Hessian by reverse, forward and second differentiation."""
    law, _, x = clouds(generator, d=d)
    p, (alpha, sigma) = law.noised(*level), level
    alpha = torch.as_tensor(alpha).expand(5)[:, None]
    sigma = torch.as_tensor(sigma).expand(5)[:, None]
    close(p.score(x), torch.func.grad(lambda y: p.log_prob(y).sum())(x), 1e-9)
    tweedie = alpha * law.posterior_mean(x, *level) - x
    close(sigma**2 * p.score(x), tweedie, 1e-12)
    H = p.hessian(x)
    close(jacobian(p.score, x), H, 1e-9)
    y = x.clone().requires_grad_()
    (s,) = torch.autograd.grad(p.log_prob(y).sum(), y, create_graph=True)
    (row,) = torch.autograd.grad(s[:, 0].sum(), y)
    close(row, H[:, 0], 1e-9)


@pytest.mark.parametrize("d", [3, 11])
def test_derivatives_at_a_data_point(d, generator):
    """Where a distance is 0 its root has no derivative: none is taken."""
    law, mixture, _ = clouds(generator, d=d)
    x, p, exact = law.data[:4], law.noised(1.0, 0.5), mixture.noised(1.0, 0.5)
    close(p.score(x), exact.score(x), 1e-10)
    close(torch.func.grad(lambda y: p.log_prob(y).sum())(x), exact.score(x), 1e-9)
    close(jacobian(p.score, x), exact.hessian(x), 1e-9)


@levels
def test_chunks_change_nothing(level, generator):
    law, _, x = clouds(generator)
    for size in (1, 2, 4, 100):
        part = Empirical(law.data, chunk_size=size)
        for name in ("log_prob", "score", "hessian"):
            close(
                getattr(part.noised(*level), name)(x), getattr(law.noised(*level), name)(x), 1e-12
            )
        for name in ("posterior_mean", "posterior_cov"):
            close(getattr(part, name)(x, *level), getattr(law, name)(x, *level), 1e-12)
    assert law.noised(1.0, 0.5).score(x[:0]).shape == (0, 3)
    assert law.noised(1.0, 0.5).log_prob(x[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("dtype", "offset", "sigma", "bits", "tolerance"),
    [(torch.float64, 1e6, 1e-2, 20, 1e-5), (torch.float32, 8192.0, 1e-2, 10, 2e-3)],
    ids=["float64", "float32"],
)
@pytest.mark.parametrize("batched", [False, True], ids=["()", "(B,)"])
@pytest.mark.parametrize("d", [2, 9])
def test_far_from_the_origin(dtype, offset, sigma, bits, tolerance, batched, d, generator):
    """Data of spread σ at a great distance: nothing that was known gets lost."""
    grid = lambda v: (v * 2**bits).round() / 2**bits  # so that adding the offset is exact
    data = grid(2 * sigma * torch.randn(40, d, generator=generator)).to(dtype)
    x = grid(data[:6] + sigma * torch.randn(6, d, generator=generator)).to(dtype)
    s = torch.full((6,), sigma) if batched else sigma
    near = Empirical(data.double()).noised(1.0, s)
    far = Empirical(data + offset).noised(1.0, s)
    y = x + offset
    assert y.dtype == dtype
    assert (y - offset == x).all()
    scale = 1 / sigma
    for name, unit in (("log_prob", 1), ("score", scale), ("hessian", scale**2)):
        expected = getattr(near, name)(x.double()) / unit
        close(getattr(far, name)(y).double() / unit, expected, tolerance)
    assert near.score(x.double()).abs().max() > 0.5 * scale
    # negative control: distances by expansion, and the posterior mean at its full size
    expanded = (
        y.square().sum(1)[:, None] + (data + offset).square().sum(1) - 2 * y @ (data + offset).mT
    )
    assert (expanded - torch.cdist(x, data).square()).abs().max() > 0.1 * sigma**2


def test_far_away_every_point_underflows_and_the_score_does_not(generator):
    law, mixture, _ = clouds(generator)
    x = torch.tensor([[1e4, 0.0, 0.0], [-1e3, 1e3, 5e3]])
    close(law.noised(1.0, 0.01).score(x), mixture.noised(1.0, 0.01).score(x), 1e-10)
    close(law.noised(1.0, 0.01).log_prob(x), mixture.noised(1.0, 0.01).log_prob(x), 1e-10)


def test_dtype_follows_the_input_and_coefficients_keep_theirs(generator):
    data = torch.randn(6, 2, generator=generator).float()
    law, x = Empirical(data), torch.randn(3, 2, generator=generator)
    sigma = torch.tensor(0.1)
    assert law.noised(1.0, sigma).score(x.float()).dtype == torch.float32
    exact = Empirical(data.double()).noised(1.0, sigma)
    close(law.noised(1.0, sigma).score(x), exact.score(x), 1e-6)
    assert law.sample(2, generator=generator).dtype == torch.float32


def test_samples(generator):
    law = Empirical(torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, 2.0], [3.0, 3.0]]))
    x = law.sample(8000, generator=generator)
    counts = (x[:, None] == law.data).all(-1).sum(0)
    assert counts.sum() == 8000  # data points, and nothing else
    assert ((counts - 2000).abs() < 4.5 * (8000 * 3 / 16) ** 0.5).all()
    y = law.noised(0.5, 0.7).sample(20_000, generator=generator)
    cov = 0.25 * torch.cov(law.data.mT, correction=0) + 0.49 * torch.eye(2)
    close(y.mean(0), 0.5 * law.data.mean(0), 4.5 * (cov.max() / 20_000).sqrt().item())
    close(torch.cov(y.mT), cov, 0.05)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.usefixtures("as_user")
def test_refusals():
    law, x = Empirical(torch.randn(5, 2)), torch.zeros(3, 2)
    for call in (law.log_prob, law.score, law.hessian, law.noised(0.5, 0.0).score):
        with pytest.raises(ValueError, match=r"use \.noised\(alpha, sigma\) with sigma > 0"):
            call(x)
    with pytest.raises(ValueError, match="sigma > 0"):
        law.posterior_mean(x, 1.0, 0.0)
    for data in (torch.zeros(0, 2), torch.zeros(3, 0), torch.tensor([[1.0, float("nan")]])):
        with pytest.raises(ValueError, match="data"):
            Empirical(data)
    with pytest.raises(ValueError, match="data must have shape"):
        Empirical(torch.zeros(4))
    with pytest.raises(ValueError, match=r"shape \(B, 2\)"):
        law.noised(1.0, 1.0).score(torch.zeros(3, 4))
    images = Empirical(torch.randn(4, 1, 2, 2)).noised(1.0, 1.0)
    with pytest.raises(ValueError, match="flat data"):
        images.hessian(torch.zeros(3, 1, 2, 2))
    with pytest.raises(ValueError, match="flat data"):
        images.posterior_cov(torch.zeros(3, 1, 2, 2), 1.0, 1.0)


def test_plain_numbers_keep_double_precision(generator):
    """With a default of float32, α as a Python number must not be rounded to it."""
    law = Empirical(torch.randn(6, 2, generator=generator)).noised(1.0, 0.3)
    x = torch.randn(4, 2, generator=generator)
    exact = law.posterior_mean(x, torch.tensor(0.7), torch.tensor(0.6))
    torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(law.posterior_mean(x, 0.7, 0.6), exact, rtol=1e-13, atol=1e-13)
