"""Affine steps read off the unit vectors, against matrices that are given."""

import math

import pytest
import torch
from support import close

from gradlogp import as_target
from gradlogp.calculus import Affine, affine_map, kernel_map
from gradlogp.core import rand_like, randn_like, sum_event
from gradlogp.langevin import BAOAB, MALA, ULA

M = torch.tensor([[0.5, -0.3, 0.1], [0.2, 0.4, 0.0], [0.0, 0.7, -0.6]], dtype=torch.float64)
b = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64)
K = torch.tensor([[1.0, 0.5], [0.0, 2.0], [-0.4, 0.0]], dtype=torch.float64)
L = torch.tensor([[0.3, 0.0, 0.0], [0.9, 0.1, 0.0], [-0.2, 0.5, 0.8]], dtype=torch.float64)
UNIT = as_target(score=lambda x: -x, log_prob=lambda x: -0.5 * sum_event(x**2))


def step(x, g):
    """Two draws, of which the first has fewer dimensions than x."""
    return x @ M.mT + b + randn_like(x[:, :2], g) @ K.mT + randn_like(x, g) @ L.mT


@pytest.mark.parametrize("n_draws", [2, None])
def test_every_matrix_comes_back(n_draws):
    found = affine_map(step, 3, n_draws)
    close(found.M, M, 1e-14)
    close(found.b, b, 1e-14)
    close(found.Q, K @ K.mT + L @ L.mT, 1e-14)


def test_a_map_without_noise():
    found = affine_map(lambda x, g: x @ M.mT, 3, 0)
    close(found.M, M, 1e-15)
    assert not found.b.any()
    assert not found.Q.any()


def test_steps_one_after_another_are_the_law_of_the_law():
    """M M m + M b + b and M (M C Mᵀ + Q) Mᵀ + Q."""
    m, C = torch.tensor([0.1, 0.2, -0.7]), torch.diag(torch.tensor([1.0, 2.0, 0.5]))
    one = affine_map(step, 3)
    two = affine_map(lambda x, g: step(step(x, g), g), 3, 4)
    for found, expected in zip(two.law(m, C), one.law(*one.law(m, C)), strict=True):
        close(found, expected, 1e-13)


def test_the_stationary_law_is_kept():
    found = affine_map(step, 3)
    law = found.stationary()
    for kept, expected in zip(found.law(*law), law, strict=True):
        close(kept, expected, 1e-13)
    line = Affine(torch.tensor([[0.8]]), torch.tensor([1.0]), torch.tensor([[0.9]]))
    assert line.radius == 0.8
    mean, var = line.stationary()
    close(mean, [5.0], 1e-12)
    close(var, [[2.5]], 1e-12)  # 0.9/(1 − 0.64)


def test_rotations_count_by_their_radius():
    turn = 0.9 * torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    close(Affine(turn, torch.zeros(2), torch.eye(2)).radius, 0.9, 1e-14)


@pytest.mark.parametrize("gain", [1.0, -1.5])
def test_what_grows_keeps_no_law(gain):
    with pytest.raises(ValueError, match=f"spectral radius is {abs(gain):g}"):
        Affine(gain * torch.eye(2), torch.zeros(2), torch.eye(2)).stationary()


@pytest.mark.parametrize("n_draws", [1, 3])
def test_another_number_of_draws_is_refused(n_draws):
    with pytest.raises(ValueError, match=f"draws noise 2 times, and n_draws is {n_draws}"):
        affine_map(step, 3, n_draws)


@pytest.mark.parametrize(
    "curved",
    [
        lambda x, g: x + 1e-6 * x**2,
        lambda x, g: x * randn_like(x, g),  # the noise depends on the state
        lambda x, g: x + randn_like(x, g) * randn_like(x, g),
        lambda x, g: x + randn_like(x, g).abs(),
        lambda x, g: x.where(x < 1.5, 0.0),  # affine on the unit vectors
        lambda x, g: x - x.mean(0),  # rows are not independent states
        lambda x, g: (x - 1e30).sqrt(),  # NaN
    ],
)
def test_what_is_not_affine_is_refused(curved):
    with pytest.raises(ValueError, match="not affine"):
        affine_map(curved, 2)


def test_uniform_noise_is_refused_unless_it_does_nothing():
    with pytest.raises(ValueError, match="uniform"):
        affine_map(lambda x, g: x + rand_like(x, g), 2)
    close(affine_map(lambda x, g: 2 * x + 0 * rand_like(x, g), 2).M, 2 * torch.eye(2), 1e-15)


def test_draws_that_depend_on_x_are_refused():
    more = lambda x, g: x + (randn_like(x, g) + randn_like(x, g) if len(x) == 1 else 0)
    with pytest.raises(ValueError, match="2 times fewer"):
        affine_map(more, 2)


def test_kernels_on_the_line():
    """x' = (1 − h) x + √(2h) z, and BAOAB with Var x = 1, Var v = 1 − h²/4 on (x, v)."""
    h = 0.3
    found = kernel_map(ULA(h), UNIT, 1, 1)
    close(found.M, [[1 - h]], 1e-14)
    close(found.Q, [[2 * h]], 1e-14)
    close(found.stationary()[1], [[1 / (1 - h / 2)]], 1e-12)
    _, cov = kernel_map(BAOAB(0.8), UNIT, 1, field="momentum").stationary()
    close(cov, [[1.0, 0.0], [0.0, 1 - 0.8**2 / 4]], 1e-12)
    assert math.isclose(kernel_map(ULA(2.0), UNIT, 1).radius, 1.0)


def test_a_kernel_that_may_reject_is_refused():
    with pytest.raises(ValueError, match="not affine"):
        kernel_map(MALA(0.5), UNIT, 1)
