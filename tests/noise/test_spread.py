"""Noise levels seen along the thinnest direction."""

import pytest
import torch
from support import close, seeded, spd

from gradlogp.noise.ladder import largest_distance, nearest_distance, noise_span


def test_the_smallest_level_follows_the_thinnest_direction():
    """Whatever the axes: a rotation changes nothing, a direction n times thinner a level n times."""
    z = torch.randn(3000, 3, generator=seeded(0)).double()
    Q = torch.linalg.qr(torch.randn(3, 3, generator=seeded(1)).double())[0]
    low, high = noise_span(z)
    w = torch.linalg.eigvalsh(z.T.cov(correction=0))
    y = (z - z.mean(0)) @ torch.linalg.eigh(z.T.cov(correction=0))[1] / w.sqrt()
    spacing = 0.5 * nearest_distance(y) / 3**0.5
    assert spacing > 0.1 * 3000 ** (-1 / 7)
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
    grid = torch.randn(3000, 1, generator=seeded(4)).double().round()
    close(noise_span(grid)[0], 0.1 * float(grid.std(correction=0)))  # its points lie 1 apart
    line = torch.randn(3000, 1, generator=seeded(4)).double()
    close(noise_span(line)[0], 0.1 * 3000**-0.2 * float(line.std(correction=0)))
    flat = torch.randn(3000, 2, generator=seeded(5)).double()
    flat[:, 1] = flat[:, 0] + 0.01 * flat[:, 1]
    close(noise_span(flat)[0], 1e-3 * float(flat.var(0, correction=0).mean().sqrt()), rtol=1e-6)


@pytest.mark.usefixtures("as_user")
def test_refuses_points_that_coincide():
    with pytest.raises(ValueError, match="all points coincide"):
        noise_span(torch.ones(20, 2))
