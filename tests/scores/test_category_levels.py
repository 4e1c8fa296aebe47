"""Levels of columns: the law of each column alone, beside the mixture that it is."""

import math

import torch
from support import close, seeded
from torch import nn

from gradlogp import MLP, ExactScore, GaussianMixture, ScoreModel, evolve, fit, time_grid
from gradlogp.diffusion import ProbabilityFlow
from gradlogp.learn import checkpoint
from gradlogp.learn.objectives.masked import Masks
from gradlogp.noise import AffineCoordinates
from gradlogp.noise.schedules import VE, VP
from gradlogp.scores.levels import SEEN, Levels

BLUR = 0.05
GROUPS = (0, 0, 0, 1, 2, 2)  # three levels; one entry of two; a number and whether it is there
LEVELS = (True, True, True, True, True, False)
SHARES = torch.tensor([0.01, 0.3, 0.69], dtype=torch.float64)


def rows_of(n, g):
    """Rows of such columns, independent, with exactly these shares."""
    counts = [round(n * float(p)) for p in SHARES]
    state = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    flags = torch.nn.functional.one_hot(state, 3).double()
    two = (torch.arange(n) % 5 == 0).double()[torch.randperm(n, generator=g)]
    there = (torch.arange(n) % 4 > 0).double()[torch.randperm(n, generator=g)]
    x = torch.cat([flags, two[:, None], there[:, None]], 1)
    x = x + BLUR * torch.randn(n, 5, generator=g, dtype=torch.float64)
    return torch.cat([x, torch.randn(n, 1, generator=g, dtype=torch.float64)], 1)


def exact_of(mean, share, scale, schedule):
    """The law of one column in the frame, as a mixture."""
    cov = torch.diag((BLUR / scale).square()).expand(len(mean), -1, -1)
    return ExactScore(GaussianMixture(share, mean, cov), schedule)


def test_a_column_of_levels_is_the_mixture_that_it_is(generator):
    """Before any training, and where the network says that a level is e^f times as likely."""
    n = 1000
    x = rows_of(n, generator)
    x[:100, 3] = math.nan  # of rows where it is unknown nothing is learned
    frame = AffineCoordinates(x.nanmean(0), torch.tensor([0.1, 0.5, 0.4, 0.4, 0.5, 1.0]).double())
    levels = Levels(6).double()
    levels.choose(tuple(g if k else -1 for g, k in zip(GROUPS, LEVELS, strict=True)), BLUR)
    levels.fit(x, frame)
    u = 3 * torch.randn(7, 6, generator=generator, dtype=torch.float64)
    f = torch.tensor([2.0, 0.0, -1.0, 1.5, 0.0, 0.0]).double()
    two = (x[100:, 3] > 0.5).double().mean()
    three = (n * SHARES + SEEN) / (n + 3 * SEEN)
    one = (900 * two + SEEN) / (900 + 2 * SEEN)
    for schedule in (VP(), VE(0.02, 30.0)):
        for out in (torch.zeros(6).double(), f):
            odds = three * out[:3].exp()
            ones = torch.stack([1 - one, one * out[3].exp()])
            cases = ((slice(0, 3), torch.eye(3), odds), (slice(3, 4), torch.eye(2)[:, 1:], ones))
            for t in (0.05, 0.4, 0.9):
                a, s = (v.double() for v in schedule(torch.tensor(t).double()))
                found = levels.denoise(u, a, s.expand(6), out.expand_as(u))
                for own, at, share in cases:
                    shift, scale = frame.shift[own], frame.scale[own]
                    law = exact_of(
                        (at.double() - shift) / scale, share / share.sum(), scale, schedule
                    )
                    close(found[:, own], law.denoise(u[:, own], torch.tensor(t).double()), 1e-9)


def untrained(x, schedule):
    """A model that knows what its rows say before any training."""
    model = ScoreModel(MLP(6, 8, 1, holes=True, generator=seeded()), schedule, "v").double()
    nn.init.zeros_(model.network.outlet.bias)
    Masks(x, GROUPS, (False,) * 6, LEVELS, BLUR).prepare(model.condition)
    model.fit_frame(x, "each")
    model.fit_condition(x, x, 0.0)
    return model


def test_rare_levels_are_drawn_as_often_as_they_are_met(tmp_path):
    """By the flow of a model that has learned nothing, and one that a file brought back."""
    g = seeded(1)
    model = untrained(rows_of(2000, g), VE(0.01, 40.0))
    n = 4000
    drawn = evolve(ProbabilityFlow(), model, n, time_grid(model.schedule, 60), generator=g)
    met = torch.bincount(drawn[:, :3].argmax(1), minlength=3).double() / n
    assert bool(((met - SHARES).abs() < 4.5 * (SHARES * (1 - SHARES) / n).sqrt()).all()), met
    assert abs(float((drawn[:, 3] > 0.5).double().mean()) - 0.2) < 4.5 * math.sqrt(0.16 / n)
    assert float((drawn[:, :3].sort(1).values - torch.tensor([0.0, 0.0, 1.0])).abs().max()) < 0.4
    again = checkpoint.load(checkpoint.save(tmp_path / "m", model))
    z, t = drawn[:5], torch.tensor(0.6).double()
    close(again.denoise(z, t), model.denoise(z, t), 0.0)


def test_a_dependence_between_levels_is_learned():
    """Of two equal columns each says the other; alone they would agree in 0.5 of draws."""
    g = seeded(2)
    flag = (torch.rand(600, 1, generator=g) < 0.5).float().expand(600, 2)
    x = flag + BLUR * torch.randn(600, 2, generator=g)
    model = ScoreModel(MLP(2, 16, 1, holes=True, generator=g), VE(0.02, 10.0), "v")
    masks = Masks(x, (0, 1), (False, False), (True, True), BLUR)
    masks.prepare(model.condition)
    options = {"steps": 150, "batch_size": 256, "learning_rate": 1e-2, "standardize": True}
    list(fit(model, x, masks.objective(), condition=x, generator=g, **options))
    drawn = evolve(ProbabilityFlow(), model, 500, time_grid(model.schedule, 30), generator=g) > 0.5
    assert float((drawn[:, 0] == drawn[:, 1]).double().mean()) > 0.97
    assert 0.4 < float(drawn[:, 0].double().mean()) < 0.6
