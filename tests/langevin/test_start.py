"""Where chains start: densities without second derivatives have starts too."""

import pytest
import torch

from gradlogp import as_target, sample
from gradlogp.langevin import find_start

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
