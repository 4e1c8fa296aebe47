"""The share of a learned correction: least squares on rows that were held out."""

import pytest
import torch
from support import MIXTURE, close, every_schedule, seeded
from torch import nn

from gradlogp.distributions.analytic import Gaussian
from gradlogp.learn import share as shares
from gradlogp.learn.objectives.masked import Masks
from gradlogp.learn.share import fit_share, level_times
from gradlogp.noise.schedules import VE, VP
from gradlogp.scores.base import LEVELS
from gradlogp.scores.exact import ExactScore
from gradlogp.scores.model import ScoreModel

BASE = Gaussian(torch.zeros(2).double(), MIXTURE.cov + torch.outer(MIXTURE.mean, MIXTURE.mean))


class Planted(ScoreModel):
    """The right correction from the base to the mixture, times a number."""

    def __init__(self, factor, schedule):
        super().__init__(nn.Linear(2, 2).double(), schedule, "v", (2,), base=BASE)
        self.factor = factor

    def forward(self, z, t, condition=None):
        right, known = (ExactScore(law, self.schedule)(z, t) for law in (MIXTURE, BASE))
        return known + self._share(self._noise_input(t), z) * self.factor * (right - known)


def planted(factor, n=4000, schedule=VE(0.1, 4.0)):  # noqa: B008
    model = Planted(factor, schedule)
    z = MIXTURE.sample(n, generator=seeded(1)).double()
    fit_share(model, z, None, 0)
    return model.base.share


def test_of_twice_the_right_correction_half_is_kept():
    """And of one with the wrong sign nothing, of half of it all, of nothing nothing."""
    right = planted(1.0)
    assert ((right > 0.8) & (right < 1)).all()  # less one standard error
    close(planted(2.0), right / 2)
    close(planted(0.5), torch.ones(LEVELS))
    assert float(planted(-1.0).abs().max()) == 0


def test_one_standard_error_less(monkeypatch):
    """Over many sets of rows the share before the clamp lies one of its deviations below 0.5."""
    monkeypatch.setattr(shares, "level_times", lambda _: torch.tensor([0.5, 0.6]).double())
    found = []
    for seed in range(200):
        model = Planted(2.0, VE(0.1, 4.0))
        model.base.share = torch.ones(2)
        model.base.span = torch.tensor([-1.0, 1.0])
        fit_share(model, MIXTURE.sample(600, generator=seeded(seed)).double(), None, seed)
        found.append(model.base.share[0])
    found = torch.stack(found)
    shift = float((0.5 - found.mean()) / found.std())
    assert 0.8 < shift < 1.2  # its own error is 0.09


def test_the_loss_is_never_above_that_of_the_base():
    """Whatever the correction: the loss of the share on its rows is at most that of the base."""
    z = MIXTURE.sample(300, generator=seeded(1)).double()
    eps = torch.randn(300, 2, generator=seeded(2))
    for factor in (-1.0, 0.3, 1.0, 3.0, 10.0):
        model = Planted(factor, VE(0.1, 4.0))
        fit_share(model, z, None, 0)
        for t in torch.tensor([0.1, 0.5, 0.9]).double():
            sigma = model.schedule(t)[1]
            z_t = z + sigma * eps
            loss = lambda s: 0.5 * (sigma * s + eps).square().sum(1)  # noqa: B023
            gap = loss(model(z_t, t)) - loss(ExactScore(BASE, model.schedule)(z_t, t))
            assert float(gap.mean()) <= 2 * float(gap.std()) / 300**0.5


@every_schedule
def test_levels_are_geometric_and_where_they_are_looked_up(schedule):
    times = level_times(schedule)
    model = Planted(1.0, schedule)
    fit_share(model, MIXTURE.sample(60, generator=seeded(1)).double(), None, 0)
    model.base.share.copy_(torch.linspace(0, 1, LEVELS))
    assert len(times) == LEVELS
    if schedule.times is None:
        close(model.base.shared(model._noise_input(times)), model.base.share, rtol=1e-5, atol=1e-5)


class Shifted(nn.Module):
    """The right correction of N(0, 1) that is N(1, 1) indeed, entry by entry, times a number."""

    holes, event_shape, condition = True, torch.Size([3]), (2, 3)

    def __init__(self, factors):
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors, dtype=torch.float64))

    def forward(self, x, c, condition):
        r = torch.exp(4 * c).unsqueeze(1)  # c is −λ/8, of λ = −2 log σ
        return self.factors * r / (1 + r.square()).sqrt() + 0 * x


def test_of_parts_each_column_has_a_share_of_its_own():
    """Of twice the right correction half, of a wrong one nothing; what goes together has one."""
    masks = Masks(torch.zeros(1, 3), (0, 1, 2), (False,) * 3)
    model = ScoreModel(Shifted([2.0, -1.0, 0.5]), VE(0.1, 4.0), "v").double()
    z = torch.randn(4000, 3, generator=seeded(1)).double() + 1.0
    z[::3, 2] = torch.nan
    fit = lambda m: fit_share(
        model, z.nan_to_num(0.0), model.condition.encode(z), 0, m.objective()
    )
    fit(masks)
    first, second, third = model.condition.share.T
    assert float((first[4:] - 0.5).abs().max()) < 0.06  # at less noise little is to be seen of it
    assert float(second.abs().max()) == 0
    assert float(third[4:].min()) > 0.9
    fit(masks._replace(groups=(0, 0, 1)))  # (2·1 − 1·1)/(2² + 1²)
    together = model.condition.share
    assert torch.equal(together[:, 0], together[:, 1])
    assert float((together[4:, 0] - 0.2).abs().max()) < 0.06
    model.condition.share.fill_(1.0)
    fit_share(model, z.nan_to_num(0.0), model.condition.encode(z), 0, lambda score, z: z.sum(1))
    assert float(model.condition.share.min()) == 1  # of another loss it is not known


@pytest.mark.parametrize("n", [2, 30])
def test_few_rows(n):
    share = planted(1.0, n, VP())
    assert share.isfinite().all()
    assert ((share >= 0) & (share <= 1)).all()
