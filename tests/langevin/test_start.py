"""Where chains start: densities without second derivatives have starts too."""

import pytest
import torch

from gradlogp import as_target, sample
from gradlogp.langevin import find_start
from gradlogp.langevin.tuning.metric import fit_metric

MEAN = torch.tensor([3.0, -1.0], dtype=torch.float64)
COV = torch.tensor([[4.0, 0.6], [0.6, 0.25]], dtype=torch.float64)
PRECISION = torch.linalg.inv(COV)


class ByHand:
    """N(3, −1; COV), computed by NumPy."""

    event_shape = torch.Size([2])

    def log_prob(self, x):
        y = (x - MEAN).numpy()
        return torch.as_tensor(-(y @ PRECISION.numpy() * y).sum(1) / 2)

    def score(self, x):
        return torch.as_tensor(-(x - MEAN).numpy() @ PRECISION.numpy())


def once(x):
    """The same from distances, whose second derivative PyTorch does not have."""
    y = (x - MEAN) @ torch.linalg.cholesky(PRECISION)
    return -torch.cdist(y, torch.zeros(1, 2))[:, 0].square() / 2


@pytest.mark.parametrize(
    "target", [ByHand(), as_target(log_prob=once, event_shape=(2,))], ids=["by hand", "once"]
)
def test_a_score_without_derivatives_has_starts(target, generator):
    """The curvature comes from the path: on a normal law it is near the precision at its end."""
    found = find_start(target, 400, generator=generator)
    y = (found.x - MEAN) @ torch.linalg.cholesky(PRECISION)
    assert float(y.square().sum(1).median()) < 4  # of χ² with two degrees 1.4
    chain = sample(target, 300, n_warmup=200, generator=generator)
    assert chain.verdict.ok, chain.verdict
    assert abs(float(chain.draws[..., 0].var()) / 4 - 1) < 0.25


def test_directions_without_curvature_are_as_wide_as_their_slope(generator):
    """Laplace's law bends nowhere but at 0: its Hessian would give a width of 10¹⁵⁰, or 10⁷."""
    rate = torch.tensor([1.0, 4.0])
    for log_prob in (
        lambda x: -(x.abs() * rate).sum(1),
        lambda x: -(x[:, :2].abs() * rate).sum(1) - 50 * x[:, 2:].square().sum(1),
    ):
        d = 2 if log_prob(torch.ones(1, 2)) == -5 else 3
        start = find_start(as_target(log_prob=log_prob, event_shape=(d,)), 4, generator=generator)
        width = start.metric.value.diagonal()
        assert bool(((width > 0.009) & (width < 4.1)).all())  # at 0 itself there is no slope
        assert float(start.x.abs().max()) < 20


def test_laws_without_a_slope_are_doubted():
    """A flat one is none; where one ends at a border its scores say nothing."""
    g = torch.Generator().manual_seed(0)
    flat = as_target(log_prob=lambda x: 0 * x.sum(1), event_shape=(2,))
    assert not sample(flat, 100, n_warmup=100, generator=g).verdict.ok
    x = torch.rand(400, 2, generator=g)
    torch.testing.assert_close(fit_metric(x, torch.zeros(400, 2)).value, x.var(0))
