"""Matching without a look at the noise, at every level: its value, its mean and its minimiser."""

from functools import partial

import pytest
import torch
from support import close, z_score

import gradlogp as glp
from gradlogp.core import Injected
from gradlogp.learn.objectives import implicit, multilevel, sliced, sliced_vr
from gradlogp.learn.objectives.levels import noised
from gradlogp.learn.objectives.weights import likelihood, sigma2, unweighted
from gradlogp.noise.schedules import DDPM, VE, VP, Levels

LAW = glp.GaussianMixture(
    [0.3, 0.7],
    torch.tensor([[-2.0, 0.5], [1.0, -1.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.5], dtype=torch.float64),
)
MATCHING = {
    "implicit": lambda score, x, generator: implicit(score, x),
    "sliced": sliced,
    "sliced-vr": sliced_vr,
}
every_matching = pytest.mark.parametrize("matching", MATCHING.values(), ids=MATCHING.keys())
SCHEDULES = [VE(0.1, 5.0), VP(), DDPM([0.02] * 50), Levels([3.0, 1.0, 0.3])]


def wrong(schedule):
    """The score of no law at hand, and depends on the time of each sample."""
    f = lambda x, t: torch.sin(x) * (1 + t.reshape(-1, 1)) - 0.4 * x.roll(1, 1)
    return glp.as_score(f, "score", schedule)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("weight", [sigma2, unweighted], ids=["sigma2", "unweighted"])
def test_each_sample_is_matched_at_its_own_level(schedule, weight, generator):
    x, eps = LAW.sample(6, generator=generator), torch.randn(6, 2, generator=generator)
    t = torch.tensor([0.1, 0.2, 0.4, 0.6, 0.8, 1.0])
    got = noised(MATCHING["implicit"], wrong(schedule), x, t, weight, generator=Injected(eps))
    for i in range(6):
        alpha, sigma = schedule(t[i])
        one = implicit(
            lambda y, i=i: wrong(schedule)(y, t[i : i + 1]), alpha * x[[i]] + sigma * eps[[i]]
        )
        close(got[i], weight(alpha, sigma) * one[0], 1e-10)


@every_matching
@pytest.mark.parametrize("schedule", [VE(0.3, 5.0), VP()], ids=["VE", "VP"])
def test_the_mean_is_that_of_denoising_less_w_d_over_two_sigma_squared(
    matching, schedule, generator
):
    n = 20_000
    x, t = LAW.sample(n, generator=generator), torch.tensor(0.4).expand(n)
    above = multilevel(wrong(schedule), x, t, generator=generator)
    below = noised(matching, wrong(schedule), x, t, generator=generator)
    difference = above - below
    assert abs(z_score(difference, 1.0)) < 4  # σ² d/(2σ²), d = 2
    assert abs(z_score(difference, 0.5)) > 10  # negative control


def test_the_likelihood_weight_reads_the_time(generator):
    schedule, t = VP(), torch.tensor([0.2, 0.5, 0.9])
    x, eps = torch.randn(3, 2, generator=generator), torch.randn(3, 2, generator=generator)
    args = (MATCHING["implicit"], wrong(schedule), x, t)
    plain = noised(*args, unweighted, generator=Injected(eps))
    close(noised(*args, likelihood, generator=Injected(eps)), schedule.g2(t) * plain, 1e-8)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "sliced-vr")) for name in MATCHING],
)
def test_training_by_it_finds_the_score(name):
    g = torch.Generator().manual_seed(0)
    x, schedule = LAW.sample(4000, generator=g), VE(0.2, 5.0)
    model = glp.ScoreModel(glp.MLP(2, 32, 2, generator=g), schedule, "v")
    exact = glp.ExactScore(LAW, schedule)
    objective = partial(noised, MATCHING[name], stratified=True)
    options = {"steps": 250, "batch_size": 256, "learning_rate": 5e-3, "warm_up": 20}
    records = list(
        glp.fit(model, x, objective, exact=exact, check_every=50, generator=g, **options)
    )
    above = [r.excess.value for r in records if r.excess is not None]
    assert above[-1] < 0.5 * above[0]
    assert above[-1] < 0.06


@pytest.mark.usefixtures("as_user")
def test_bad_input():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"t must have shape \(3,\)"):
        noised(MATCHING["implicit"], wrong(VP()), x, torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"finite|NaN"):
        noised(MATCHING["implicit"], wrong(VP()), x / 0)
    with pytest.raises(ValueError, match="becomes one by as_score"):
        noised(MATCHING["implicit"], lambda z, t: -z, x)
