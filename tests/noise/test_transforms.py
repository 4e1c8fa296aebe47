"""Monotone maps: onto, with the derivative they say, and a log-normal likelihood that is exact."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from support import close

from gradlogp.noise.transforms import Monotone, fit_monotone

SHAPES = [
    Monotone(middle=0.3, scale=2.0, tail=0.5, skew=-0.7),
    Monotone(low=1.0, middle=0.2, scale=0.8, tail=0.9, skew=0.4),
    Monotone(high=2.0, middle=-0.5, scale=1.5, tail=0.7, skew=0.1),
    Monotone(low=-1.0, high=3.0, scale=1.2, tail=1.0, skew=0.0),
    Monotone(low=1.0, middle=0.2, scale=0.8, tail=0.9, skew=0.4, bend=0.5),
    Monotone(high=2.0, middle=-0.5, scale=1.5, tail=0.7, skew=0.1, bend=1.5),
]


@pytest.mark.parametrize("T", SHAPES)
def test_every_z_has_an_x_inside_the_borders(T):
    z = torch.linspace(-4, 4, 101)
    x = T.inverse(z)
    close(T(x), z, 1e-8)
    assert (x.diff() > 0).all()
    if T.low is not None:
        assert (x > T.low).all()
    if T.high is not None:
        assert (x < T.high).all()


@pytest.mark.parametrize("T", SHAPES)
def test_the_derivative(T):
    x = T.inverse(torch.linspace(-4, 4, 41)).requires_grad_()
    (slope,) = torch.autograd.grad(T(x).sum(), x)
    close(T.log_derivative(x.detach()), slope.log(), 1e-9)


def test_what_is_fitted_is_the_best():
    """Its likelihood falls whichever parameter changes; a slope that is wrong ends elsewhere."""
    x = torch.from_numpy(np.sinh(2 * scipy.stats.norm.ppf((np.arange(900) + 0.5) / 900) + 0.5))
    T = fit_monotone(x)
    assert T.tail < 0.7
    assert abs(T.skew) > 0.05

    def nats(T):
        return float((-0.5 * T(x).square() + T.log_derivative(x)).mean())

    for name in ("middle", "scale", "tail", "skew"):
        for change in (-0.002, 0.002):
            other = replace(T, **{name: getattr(T, name) + change})
            assert nats(other) < nats(T) + 1e-7, name


def test_a_log_normal_density_is_exact():
    """Log-normal(0.5, 0.8²): log p(1.7) = −1.2271561156, a normal law in T(x) times T'(x)."""
    T = Monotone(low=0.0, middle=0.5, scale=0.8)
    x = torch.tensor(1.7)
    nats = -0.5 * T(x).square() - 0.5 * math.log(2 * math.pi) + T.log_derivative(x)
    close(nats, -1.2271561156, 0.0, 1e-10)


def test_a_border_that_bends():
    """l(y) = c log(e^{y/c} − 1) is log(y/c) c near the border and y far from it: at y = 2, c = ½ it is
    1.9907572766; large errors do not become huge ones, as they do under the logarithm."""
    T = Monotone(low=1.0, bend=0.5)
    close(T(torch.tensor(3.0)), 1.9907572766, 0.0, 1e-9)
    close(T(torch.tensor(1.0 + 1e-9)) - 0.5 * math.log(2e-9), 0.0, 0.0, 1e-6)
    close(T.inverse(torch.tensor(100.0)), 101.0, 1e-9)
    ages = torch.from_numpy(scipy.stats.norm(30, 14).ppf((np.arange(2000) + 0.5) / 2000)).abs()
    bent = fit_monotone(ages, low=0.0)
    assert bent.bend is not None
    assert float(bent.inverse(torch.tensor(5.0))) < 150
    assert fit_monotone(ages.exp(), low=0.0).bend is None


def test_a_normal_and_a_log_normal_column_need_no_shape(generator):
    z = torch.randn(4000, generator=generator)
    plain = fit_monotone(3 + 2 * z)
    assert (plain.tail, plain.skew) == (1.0, 0.0)
    close(
        (plain.middle, plain.scale),
        (3 + 2 * float(z.mean()), 2 * float(z.std(correction=0))),
        1e-9,
    )
    T = fit_monotone(torch.exp(2 * z), low=0.0)
    close(T(torch.exp(2 * z)), (z - z.mean()) / z.std(correction=0), 1e-9)


@pytest.mark.parametrize(
    "law", [scipy.stats.t(3), scipy.stats.expon(), scipy.stats.beta(2, 5), scipy.stats.gamma(2)]
)
def test_fitted_columns_cost_little(law, generator):
    """Nats a row that the fitted transform loses to the true density, by quantiles of the law."""
    u = (torch.arange(4000) + 0.5) / 4000
    x = torch.from_numpy(law.ppf(u.numpy()))
    positive = law.support()[0] == 0
    T = fit_monotone(x, low=0.0 if positive else None, high=1.0 if law.support()[1] == 1 else None)
    nats = -0.5 * T(x).square() - 0.5 * math.log(2 * math.pi) + T.log_derivative(x)
    gap = float((torch.from_numpy(law.logpdf(x.numpy())) - nats).mean())
    assert 0 <= gap + 1e-3 < 0.02
    affine = scipy.stats.norm(x.mean(), x.std()).logpdf(x.numpy()).mean()
    assert float(nats.mean()) > affine  # a normal law does worse


def test_two_modes_stay_two(generator):
    """The density that is learned is in z: no shape may press modes into each other."""
    z = torch.randn(4000, generator=generator)
    T = fit_monotone(z + 4 * z.sign())
    y = T(z + 4 * z.sign())
    assert float((y.abs() < 0.3).double().mean()) < 0.01


def test_what_cannot_be_transformed():
    with pytest.raises(ValueError, match=r"strictly inside 0.0 and None, got 0 to 1"):
        fit_monotone(torch.tensor([0.0, 1.0]), low=0.0)
    with pytest.raises(ValueError, match="all values are equal"):
        fit_monotone(torch.ones(5))
