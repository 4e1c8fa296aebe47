"""The variational bound against its closed form on a Gaussian, and against the likelihood."""

import math

import pytest
import torch
from scipy.integrate import quad
from support import close

from gradlogp import ExactScore, Gaussian, GaussianMixture, variational_bound
from gradlogp.noise.schedules import VE, VP, Cosine, Rectified

SCHEDULES = [VP(), VE(0.02, 30.0), Cosine()]
names = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
M, V = 0.4, 0.3


def closed_form(schedule, x, wrong, t_min=1e-3):
    """The bound at a number x for data N(M, V) and the score of N(wrong, V), by quadrature."""
    one, least = (torch.tensor(t) for t in (1.0, t_min))
    low, high = float(schedule.log_snr(one)), float(schedule.log_snr(least))
    vp = isinstance(schedule, VP | Cosine)

    def error(lam):  # E‖ε − ε̂‖² with ε̂ = σ (x_t − α wrong)/(α² V + σ²)
        snr = math.exp(lam)
        a2 = snr / (1 + snr) if vp else 1.0
        b2 = a2 / snr
        total = a2 * V + b2
        # ε − ε̂ = ε (1 − b²/total) − b a (x − wrong)/total
        return (1 - b2 / total) ** 2 + b2 * a2 * (x - wrong) ** 2 / total**2

    integral = quad(error, low, high, epsabs=1e-10, limit=400)[0]
    a, b = (float(q) for q in schedule(one))
    total = a**2 * V + b**2
    ratio = b**2 / total
    kl = 0.5 * (ratio - 1 - math.log(ratio) + (a * (x - M)) ** 2 / total)
    return -0.5 * (1 + math.log(2 * math.pi) - high) - kl - 0.5 * integral


@names
@pytest.mark.parametrize("wrong", [M, -0.5])
def test_bound_is_its_closed_form(schedule, wrong, generator):
    point = 0.9
    x = torch.full((400, 1), point)
    score = ExactScore(Gaussian(torch.tensor([wrong]), V), schedule)
    found = variational_bound(score, x, n_strata=24, generator=generator)
    expected = closed_form(schedule, point, wrong)
    error = float(found.log_prob.std()) / math.sqrt(len(x))
    assert abs(float(found.log_prob.mean()) - expected) < 4 * error
    assert error < 0.1
    stated = float(found.standard_error.square().mean().sqrt())
    assert 0.7 < stated / float(found.log_prob.std()) < 1.4
    other = closed_form(schedule, point, -0.5 if wrong == M else M)
    assert abs(float(found.log_prob.mean()) - other) > 10 * error  # it can fail


def test_bound_lies_below_the_likelihood_of_a_mixture(generator):
    law = GaussianMixture([0.4, 0.6], [[-1.0, 0.2], [1.5, -0.3]], [0.3, 0.2])
    x = law.sample(200, generator=generator)
    score = ExactScore(law, VP())
    found = variational_bound(score, x, generator=generator)
    gap = law.log_prob(x).mean() - found.log_prob.mean()
    error = float(found.standard_error.square().sum().sqrt()) / len(x)
    assert -3 * error < float(gap) < 0.2


def test_chunks_draw_the_same(generator):
    law, x = Gaussian(torch.zeros(2), 1.0), torch.randn(9, 2, generator=generator)
    outs = [
        variational_bound(
            ExactScore(law, VP()), x, n_strata=3, chunk_size=size,
            generator=torch.Generator().manual_seed(1),
        )
        for size in (None, 4)
    ]  # fmt: skip
    close(outs[1].log_prob, outs[0].log_prob, 1e-12)
    assert outs[0].nfe == 6


def test_refusals(as_user):
    score = ExactScore(Gaussian(torch.zeros(2), 1.0), VP())
    with pytest.raises(ValueError, match="t_min > 0"):
        variational_bound(score, torch.ones(2, 2), t_min=0.0)
    with pytest.raises(ValueError, match="signal"):
        variational_bound(ExactScore(score.density, Rectified()), torch.ones(2, 2))
    with pytest.raises(ValueError, match="shape"):
        variational_bound(score, torch.ones(2))
