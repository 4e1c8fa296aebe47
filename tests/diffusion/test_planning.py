"""How many steps are measured to be enough, against what they leave."""

import math

import pytest
import torch
from support import MIXTURE

from gradlogp import ExactScore, evolve, log_likelihood, time_grid
from gradlogp.diffusion import AdaptiveFlow, Ancestral, UniPC, plan_levels, plan_likelihood
from gradlogp.diffusion.planning import MOST
from gradlogp.noise.schedules import DDPM, EDM, VE, VP

SCHEDULES = [VE(0.05, 30.0), VP(), EDM()]
by_name = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


@by_name
@pytest.mark.parametrize("tolerance", [0.03, 0.003])
def test_levels_leave_an_error_below_the_tolerance(schedule, tolerance, generator):
    """On their own draws, compared with the flow at a far smaller tolerance; half of them do not."""
    score = ExactScore(MIXTURE, schedule)
    plan = plan_levels(score, tolerance=tolerance, generator=generator)
    z = plan_start(score, generator)
    ends = [1.0, float(time_grid(schedule)[-1])]
    truth = evolve(AdaptiveFlow(1e-6, 1e-6), score, z, torch.tensor(ends, dtype=torch.float64))

    def error(n):
        x = evolve(UniPC(), score, z, time_grid(schedule, n, rho=math.inf))
        return float((x - truth).square().mean().sqrt() / truth.std(0).square().mean().sqrt())

    assert plan.error <= tolerance
    assert error(plan.n) < 3 * tolerance, plan  # the draws of the plan are 32
    assert error(plan.n // 2) > tolerance, plan


def plan_start(score, generator):
    return score.law(torch.tensor(1.0)).sample(100, generator=generator)


@by_name
def test_likelihood_within_the_tolerance(schedule, generator):
    score = ExactScore(MIXTURE, schedule)
    plan = plan_likelihood(score, generator=generator)
    x = MIXTURE.sample(60, generator=generator)
    truth = log_likelihood(score, x, tolerance=1e-5).log_prob
    errors = [
        float((log_likelihood(score, x, n_steps=n).log_prob - truth).square().mean().sqrt())
        for n in (plan.n, plan.n // 2)
    ]
    assert errors[0] < 5 * 0.005, (plan, errors)
    assert errors[1] > 0.005, (plan, errors)


def test_where_nothing_is_enough_the_error_says_so(generator):
    plan = plan_levels(ExactScore(MIXTURE, VP()), tolerance=1e-12, generator=generator)
    assert plan.n == MOST
    assert 1e-12 < plan.error < 1e-4


def test_what_is_refused(generator):
    with pytest.raises(ValueError, match="discrete ladder"):
        plan_levels(ExactScore(MIXTURE, DDPM(torch.linspace(1e-4, 0.02, 50))), generator=generator)
    with pytest.raises(ValueError, match="no continuous flow"):
        plan_likelihood(ExactScore(MIXTURE, DDPM(torch.linspace(1e-4, 0.02, 50))))
    with pytest.raises(ValueError, match="Ancestral draws noise"):
        plan_levels(ExactScore(MIXTURE, VP()), Ancestral())
    with pytest.raises(ValueError, match="tolerance"):
        plan_likelihood(ExactScore(MIXTURE, VP()), tolerance=0.0)


def test_a_probe_measures_the_same_steps(generator):
    """The error of the solver is that along one probe, the same for any number of steps."""
    score = ExactScore(MIXTURE, EDM())
    exact = plan_likelihood(score, generator=generator)
    probed = plan_likelihood(score, divergence="hutchinson", generator=generator)
    assert 0.5 <= probed.n / exact.n <= 2
    assert probed.error < 0.005
