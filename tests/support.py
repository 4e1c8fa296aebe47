"""What several test files share: noise that the test chooses, and laws carried through a step."""

import math
from typing import NamedTuple

import numpy as np
import torch

from gradlogp.core import Moments, Streams
from gradlogp.noise.terminal import terminal
from gradlogp.scores import as_score


class Given(Streams):
    """A source of noise that hands out the tensors it was given, in order."""

    def __init__(self, *noise):
        self.left = list(noise)

    def draw(self, law, shape, like):
        z = self.left.pop(0)
        assert z.shape == shape, f"noise of {tuple(shape)} was drawn, {tuple(z.shape)} given"
        return z.to(like)


class Affine(NamedTuple):
    """A Markov step x' = M x + b + N(0, Q)."""

    M: torch.Tensor
    b: torch.Tensor
    Q: torch.Tensor

    def law(self, m, C):
        """The mean and covariance of x' for x of mean m and covariance C."""
        return self.M @ m + self.b, self.M @ C @ self.M.mT + self.Q


def affine(step, d, n_draws):
    """Recover M, b and Q of step(x, generator), which draws n_draws times, on a basis.

    The step must be affine in x and in every draw; that it is gets checked at a random point.
    """
    # row 0: nothing; then the basis as x; then the basis as each of the draws; then anything
    rows = 1 + d + n_draws * d
    basis = torch.zeros(rows, 1 + n_draws, d)
    for k in range(1 + n_draws):
        basis[1 + k * d : 1 + (k + 1) * d, k] = torch.eye(d)
    rng = torch.Generator().manual_seed(0)
    anything = torch.randn(5, 1 + n_draws, d, generator=rng)
    x, *noise = torch.cat([basis, anything]).unbind(1)
    source = Given(*noise)
    out = step(x, source)
    assert not source.left, "fewer draws than announced"
    b = out[0]
    gains = (out[1:rows] - b).reshape(1 + n_draws, d, d)  # gains[k] is transposed
    expected = b + torch.einsum("nki,kij->nj", anything, gains)
    torch.testing.assert_close(out[rows:], expected, rtol=1e-10, atol=1e-10)
    return Affine(gains[0].mT, b, torch.einsum("kij,kil->jl", gains[1:], gains[1:]))


def gauss_hermite(d, n=3):
    """Nodes `(n^d, d)` and weights of N(0, I) in d dimensions, exact up to degree 2n − 1."""
    nodes, weights = (torch.as_tensor(v) for v in np.polynomial.hermite_e.hermegauss(n))
    grid = torch.cartesian_prod(*[nodes] * d).reshape(-1, d)
    weight = torch.cartesian_prod(*[weights / math.sqrt(2 * math.pi)] * d).reshape(-1, d)
    return grid, weight.prod(1)


def close(value, expected, tolerance):
    """Assert equality up to tolerance · max(1, |expected|)."""
    torch.testing.assert_close(
        torch.as_tensor(value), torch.as_tensor(expected), rtol=tolerance, atol=tolerance
    )


def z_score(draws, expected):
    """How many standard errors the mean of independent draws `(n,)` is from what was expected."""
    draws = draws.detach()
    return float((draws.mean() - expected) / (draws.std() / math.sqrt(len(draws))))


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
