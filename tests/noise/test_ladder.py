"""The noise ladder: published constants, its defining equations, and the data it is read from."""

import math

import pytest
import torch

import gradlogp as glp
from gradlogp.noise.ladder import (
    ladder_ratio,
    largest_distance,
    nearest_distance,
    overlap,
    variance_ratio,
)


def test_published_constants_of_cifar_10():
    ratio = (50 / 0.01) ** (1 / 231)  # NCSNv2, table 4: 232 levels from 50 to 0.01
    assert overlap(3072, ratio) == pytest.approx(0.567, abs=1e-3)
    assert variance_ratio(6.2e-6 / 0.01**2, 5, ratio) == pytest.approx(1.055, abs=1e-3)
    # the ten levels of NCSN do not overlap, and its step inflates the variance
    assert overlap(3072, 100 ** (1 / 9)) < 1e-10
    assert variance_ratio(2e-5 / 0.01**2, 100, 100 ** (1 / 9)) == pytest.approx(1.111, abs=1e-3)


@pytest.mark.parametrize("dim", [64, 784, 3072, 49152])
def test_the_ratio_solves_its_equation(dim):
    ratio = ladder_ratio(dim, 0.5)
    assert overlap(dim, ratio) == pytest.approx(0.5, abs=1e-9)
    assert overlap(dim, ratio * 1.01) < 0.5 < overlap(dim, ratio / 1.01)


def test_variance_ratio_is_the_recursion_of_langevin_on_a_point_mass():
    eta, ratio, variance = 0.13, 1.3, 1.3**2
    for _ in range(7):  # x' = (1 - eta) x + sqrt(2 eta) z at sigma = 1
        variance = (1 - eta) ** 2 * variance + 2 * eta
    assert variance_ratio(eta, 7, ratio) == pytest.approx(variance, rel=1e-12)


def test_distances_by_hand():
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [0.0, 1.0]])
    assert largest_distance(x, chunk_size=2) == pytest.approx(5.0)
    # nearest other point that is not a copy: 1, sqrt(18), sqrt(18), 1
    assert nearest_distance(x, chunk_size=3) == pytest.approx(1.0)


def test_distances_do_not_depend_on_where_the_data_lie(generator):
    x = torch.randn(300, 3, generator=generator).double()
    x = (x * 256).round() / 256  # so that the shift is exact in float32
    near, far = x.float(), (x + 4096).float()
    assert torch.equal(far - 4096, near)
    assert largest_distance(far) == pytest.approx(largest_distance(near), rel=1e-5)
    assert nearest_distance(far) == pytest.approx(nearest_distance(near), rel=1e-5)


def test_the_ladder_of_data(generator):
    x = torch.randn(500, 20, generator=generator)
    said = []
    levels = glp.noise_levels(x, tell=said.append, generator=generator)
    assert levels.sigmas[0] == pytest.approx(largest_distance(x))
    assert levels.sigmas[-1] == pytest.approx(0.5 * nearest_distance(x) / math.sqrt(20))
    ratios = [a / b for a, b in zip(levels.sigmas, levels.sigmas[1:], strict=False)]
    assert max(ratios) - min(ratios) < 1e-9
    assert overlap(20, ratios[0]) >= 0.5  # at least the requested overlap
    # no other step size ends nearer to the variance of the level
    best = abs(variance_ratio(levels.relative_step, levels.n_steps, ratios[0]) - 1)
    others = [variance_ratio(eta, levels.n_steps, ratios[0]) for eta in (0.05, 0.2, 0.5, 0.8)]
    assert best <= min(abs(v - 1) for v in others) + 1e-6
    assert said == [str(levels)]
    assert "largest distance" in said[0]
    assert glp.schedules.Levels(levels.sigmas).times is not None


def test_bad_data_is_refused(as_user):
    with pytest.raises(ValueError, match="all points coincide"):
        glp.noise_levels(torch.ones(5, 2), tell=None)
    with pytest.raises(ValueError, match=r"needs sigma_min < sigma_max, got 3\.0 and 1\.0"):
        glp.noise_levels(torch.randn(5, 2), sigma_min=3.0, sigma_max=1.0, tell=None)
    with pytest.raises(ValueError, match="floating point"):
        glp.noise_levels(torch.ones(5, 2).long(), tell=None)
