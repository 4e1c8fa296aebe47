"""Matching without a look at the noise, at every level: sample by sample, and its weights."""

import pytest
import torch
from support import close

import gradlogp as glp
from gradlogp.core import Injected
from gradlogp.learn.objectives import implicit
from gradlogp.learn.objectives.denoising import noised
from gradlogp.learn.objectives.weights import likelihood, sigma2, unweighted
from gradlogp.noise.schedules import DDPM, VE, VP, Levels

LAW = glp.GaussianMixture(
    [0.3, 0.7],
    torch.tensor([[-2.0, 0.5], [1.0, -1.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.5], dtype=torch.float64),
)


def match(score, x, generator):
    return implicit(score, x)


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
    got = noised(match, wrong(schedule), x, t, weight, generator=Injected(eps))
    for i in range(6):
        alpha, sigma = schedule(t[i])
        one = implicit(
            lambda y, i=i: wrong(schedule)(y, t[i : i + 1]), alpha * x[[i]] + sigma * eps[[i]]
        )
        close(got[i], weight(alpha, sigma) * one[0], 1e-10)


def test_the_likelihood_weight_reads_the_time(generator):
    schedule, t = VP(), torch.tensor([0.2, 0.5, 0.9])
    x, eps = torch.randn(3, 2, generator=generator), torch.randn(3, 2, generator=generator)
    args = (match, wrong(schedule), x, t)
    plain = noised(*args, unweighted, generator=Injected(eps))
    close(noised(*args, likelihood, generator=Injected(eps)), schedule.g2(t) * plain, 1e-8)


@pytest.mark.usefixtures("as_user")
def test_bad_input():
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"t must have shape \(3,\)"):
        noised(match, wrong(VP()), x, torch.tensor(0.5))
    with pytest.raises(ValueError, match=r"finite|NaN"):
        noised(match, wrong(VP()), x / 0)
    with pytest.raises(ValueError, match="with as_score"):
        noised(match, lambda z, t: -z, x)
