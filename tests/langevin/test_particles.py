"""SVGD against its definition, its fixed points, and gradient ascent."""

import pytest
import torch
from support import COV, MEAN, close

from gradlogp import Gaussian, as_target, run
from gradlogp.langevin import ULA
from gradlogp.langevin.kernels.particles import RBF, SVGD, Linear

TARGET = Gaussian(MEAN, COV)


def rbf(l):
    return lambda x, y: torch.exp(-(x - y).square().sum() / (2 * l**2))


@pytest.mark.parametrize(
    ("kernel", "k"), [(RBF(0.7), rbf(0.7)), (Linear(), lambda x, y: x @ y + 1)]
)
def test_svgd_is_its_definition(kernel, k, generator):
    x = torch.randn(6, 2, 1, generator=generator)
    target = as_target(score=lambda x: 1 - x.exp())
    state = SVGD(0.3, kernel).init(x, target)
    new, info = SVGD(0.3, kernel).step(state, target)
    flat = x.flatten(1)
    for i in range(6):
        phi = sum(
            k(flat[j], flat[i]) * (1 - flat[j].exp()) + torch.func.grad(k, 0)(flat[j], flat[i])
            for j in range(6)
        )
        close(new.x[i].flatten(), flat[i] + 0.3 * phi / 6, 1e-12)
    close(new.score, 1 - new.x.exp(), 1e-12)
    assert not info.diverging.any()


def test_the_median_rule(generator):
    x = torch.randn(9, 3, generator=generator)
    gaps = torch.pdist(x)
    l = float(gaps.median()) / (2 * torch.log(torch.tensor(10.0))).sqrt()
    for a, b in zip(RBF()(x), RBF(float(l))(x), strict=True):
        close(a, b, 1e-12)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_linear_kernel_matches_mean_and_variance(n, generator):
    """N(1.5, 2): any number of particles ends with mean 1.5 and variance (divisor n) 2."""
    x0 = torch.randn(n, 1, generator=generator)
    x = run(SVGD(0.1, Linear()), Gaussian([1.5], 2.0), x0, 1500).state.x[:, 0]
    close(x.mean(), 1.5, 1e-10)
    close(x.var(correction=0), 2.0, 1e-10)
    assert abs(float(x.var()) - 2.0) > 0.1 or n > 20


def test_the_linear_kernel_in_the_plane(generator):
    x0 = torch.randn(7, 2, generator=generator)
    x = run(SVGD(0.05, Linear()), TARGET, x0, 2500).state.x
    close(x.mean(0), MEAN, 1e-9)
    close(torch.cov(x.mT, correction=0), COV, 1e-9)


def test_one_particle_climbs(generator):
    x0 = torch.randn(1, 2, generator=generator)
    one = run(SVGD(0.1), TARGET, x0, 20).draws
    close(one, run(ULA(0.1, 0.0), TARGET, x0, 20).draws, 1e-12)


def test_rbf_fills_the_law(generator):
    """60 particles on the line: near the quantiles of N(1, 1), unlike as many at the mode."""
    x0 = 0.1 * torch.randn(60, 1, generator=generator)
    x = run(SVGD(0.5), Gaussian([1.0], 1.0), x0, 500).state.x[:, 0].sort().values
    levels = (torch.arange(60) + 0.5) / 60
    quantiles = 1 + torch.distributions.Normal(0.0, 1.0).icdf(levels)
    assert float((x - quantiles).square().mean().sqrt()) < 0.15


def test_particles_are_one_sample(generator, as_user):
    x0 = torch.randn(6, 1, generator=generator)
    whole = run(SVGD(0.1), Gaussian([0.0], 1.0), x0, 5).draws
    part = run(SVGD(0.1), Gaussian([0.0], 1.0), x0[:3], 5).draws
    assert not torch.allclose(whole[:3], part)
    again = run(SVGD(0.1), Gaussian([0.0], 1.0), x0, 5, generator=generator).draws
    assert torch.equal(whole, again)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    close(run(SVGD(0.1), Gaussian([0.0], 1.0), x0[order], 5).draws, whole[order], 1e-12)
    with pytest.raises(ValueError, match="one sample"):
        run(SVGD(0.1), Gaussian([0.0], 1.0), x0, 5, chunk_size=3)


def test_what_is_not_finite_is_frozen():
    quartic = as_target(score=lambda x: -(x**3))
    x0 = torch.tensor([[1e150], [0.0], [1.0]])
    with pytest.warns(RuntimeWarning, match="chains diverged"):
        chain = run(SVGD(1.0, RBF(1.0)), quartic, x0, 3)
    assert chain.info.diverging[0].all()
    assert torch.isfinite(chain.draws).all()


REFUSED = [
    (lambda: SVGD(0.0), "step_size"),
    (lambda: RBF(0.0), "bandwidth"),
    (lambda: run(SVGD(0.1), TARGET, torch.zeros(4, 2), 1), "coincide"),
    (lambda: SVGD(0.1).init(torch.zeros(3), TARGET), "x0"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call, message, as_user):
    with pytest.raises(ValueError, match=message):
        call()
