"""The noise ladder: published constants, its defining equations, and the data it is read from."""

import math

import pytest
import torch
from support import close, seeded, spd

import gradlogp as glp
from gradlogp.noise.ladder import (
    ladder_ratio,
    largest_distance,
    nearest_distance,
    noise_span,
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
    assert nearest_distance(x) == pytest.approx(1.0)


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


def test_the_smallest_level_follows_the_thinnest_direction():
    """Whatever the axes: a rotation changes nothing, a direction n times thinner a level n times."""
    z = torch.randn(1500, 3, generator=seeded(0)).double()
    Q = torch.linalg.qr(torch.randn(3, 3, generator=seeded(1)).double())[0]
    low, high = noise_span(z)
    w = torch.linalg.eigvalsh(z.T.cov(correction=0))
    y = (z - z.mean(0)) @ torch.linalg.eigh(z.T.cov(correction=0))[1] / w.sqrt()
    spacing = 0.5 * nearest_distance(y) / 3**0.5
    assert spacing > 0.1 * 1500 ** (-1 / 7)
    close(low, float(w[0].sqrt()) * spacing)
    close(high, largest_distance(z, 1.0))
    thin = z.clone()
    thin[:, 2] /= 50
    close(noise_span(thin @ Q.T)[0], noise_span(thin)[0], rtol=1e-8)
    assert noise_span(thin)[0] == pytest.approx(low / 50, rel=0.1)


def test_never_below_what_points_support():
    """Spacing, bandwidth, a tenth of a deviation at most; a direction of no width is not seen."""
    few = torch.randn(30, 8, generator=seeded(2)).double() @ spd(8, seeded(3)).double()
    w = torch.linalg.eigvalsh(few.T.cov(correction=0))
    close(noise_span(few)[0], 0.1 * float(w[0].sqrt()))
    doubled = torch.cat([few, few.sum(1, keepdim=True)], 1)
    assert noise_span(doubled)[0] > 0.05 * float(w[0].sqrt())
    grid = torch.randn(1200, 1, generator=seeded(4)).double().round()
    close(noise_span(grid)[0], 0.1 * float(grid.std(correction=0)))  # its points lie 1 apart
    line = torch.randn(1200, 1, generator=seeded(4)).double()
    close(noise_span(line)[0], 0.1 * 1200**-0.2 * float(line.std(correction=0)))
    flat = torch.randn(1200, 2, generator=seeded(5)).double()
    flat[:, 1] = flat[:, 0] + 0.01 * flat[:, 1]
    close(noise_span(flat)[0], 1e-3 * float(flat.var(0, correction=0).mean().sqrt()), rtol=1e-6)


@pytest.mark.usefixtures("as_user")
def test_refuses_points_that_coincide():
    with pytest.raises(ValueError, match="all points coincide"):
        noise_span(torch.ones(20, 2))
