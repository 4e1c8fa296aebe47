"""What several test files share: seeds, covariances, quadrature, comparisons, orders of convergence."""

import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from gradlogp import ExactScore, GaussianMixture
from gradlogp.calculus import affine_map
from gradlogp.core import Moments
from gradlogp.noise.schedules import DDPM, EDM, VE, VP, Cosine, Levels, Rectified, SubVP
from gradlogp.noise.terminal import terminal
from gradlogp.scores import as_score


def gauss_hermite(d, n=3):
    """Nodes `(n^d, d)` and weights of N(0, I) in d dimensions, exact up to degree 2n − 1."""
    nodes, weights = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(n))
    grid = torch.cartesian_prod(*[nodes] * d).reshape(-1, d)
    weight = torch.cartesian_prod(*[weights / math.sqrt(2 * math.pi)] * d).reshape(-1, d)
    return grid, weight.prod(1)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def read_page(path):
    """Return the text of an interactive page, and the data in it."""
    text = path.read_text(encoding="utf-8")
    return text, json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def clone(generator):
    return torch.Generator().set_state(generator.get_state())


def spd(D, g):
    """A covariance that is neither diagonal nor isotropic, eigenvalues in [0.3, 1.8]."""
    Q, _ = torch.linalg.qr(torch.randn(D, D, generator=g))
    return (Q * (0.3 + 1.5 * torch.rand(D, generator=g))) @ Q.T


def close(value, expected, rtol=1e-10, atol=None):
    """Assert equality up to atol + rtol · |expected|, atol being rtol unless it is given."""
    value, expected = (
        v if isinstance(v, tuple) else torch.as_tensor(v) for v in (value, expected)
    )
    torch.testing.assert_close(value, expected, rtol=rtol, atol=rtol if atol is None else atol)


def z_score(draws, expected):
    """How many standard errors the mean of independent draws `(n,)` is from what was expected."""
    draws = draws.detach()
    return float((draws.mean() - expected) / (draws.std() / math.sqrt(len(draws))))


def autoregression(shape, a, generator):
    """Stationary chains x' = a x + √(1 − a²) z, variance 1 and autocorrelation a^k."""
    x = torch.randn(shape, generator=generator)
    for i in range(1, shape[1]):
        x[:, i] = a * x[:, i - 1] + math.sqrt(1 - a**2) * x[:, i]
    return x


def order(errors, factor=2.0):
    """The observed orders of convergence when the step shrinks by factor from entry to entry."""
    e = torch.as_tensor(errors)
    return (e[:-1] / e[1:]).log() / math.log(factor)


def start(schedule, shape, mean=0.0, var=1.0, generator=None):
    """Draws of the law at t = 1 for data of which these moments are known."""
    moments = Moments(torch.as_tensor(mean), torch.as_tensor(var))
    score = as_score(lambda z, t: -z, "score", schedule, moments=moments, event_shape=shape[1:])
    return terminal(score).sample(shape[0], generator=generator)


MEAN = torch.tensor([0.7, -1.2], dtype=torch.float64)
COV = torch.tensor([[1.5, 0.6], [0.6, 0.5]], dtype=torch.float64)
"""A correlated Gaussian whose eigenvectors are not the axes."""

MIXTURE = GaussianMixture(
    [0.3, 0.7],
    torch.tensor([[-2.0, 0.5], [1.0, -1.0]], dtype=torch.float64),
    [[[0.5, 0.2], [0.2, 0.3]], [[0.4, -0.1], [-0.1, 0.6]]],
)


def noised_law(schedule, t, mean=MEAN, cov=COV):
    """Mean and covariance at time t of that Gaussian, or another."""
    a, b = schedule(t)
    return a * mean, a**2 * cov + b**2 * torch.eye(len(mean))


def step_law(transition, density, schedule, t, s, n_draws):
    """The affine map of a step in the plane from time t to s."""
    score = ExactScore(density, schedule)
    return affine_map(lambda x, g: transition(x, t, s, score, generator=g), 2, n_draws)


CONTINUOUS = [VE(0.05, 8.0), EDM(0.02, 20.0), VP(), SubVP(), Cosine(), Rectified()]
LADDERS = [Levels([8.0, 2.0, 0.5, 0.1]), DDPM(torch.linspace(0.02, 0.4, 20, dtype=torch.float64))]
SCHEDULES = [*CONTINUOUS, *LADDERS]
every_schedule, every_continuous = (
    pytest.mark.parametrize("schedule", which, ids=lambda s: type(s).__name__)
    for which in (SCHEDULES, CONTINUOUS)
)


class Wave(nn.Module):
    """A smooth network that depends on every input, also on the noise level."""

    def __init__(self, *event):
        super().__init__()
        self.event_shape = torch.Size(event)

    def forward(self, x, coordinate):
        c = coordinate.reshape(-1, *[1] * (x.ndim - 1))
        return torch.sin(1.3 * x + c) + 0.2 * x.roll(1, -1) * c
