"""A score under another schedule is the score of the law under that schedule."""

import pytest
import torch
from support import MIXTURE, close

from gradlogp import ExactScore, GaussianMixture, as_score
from gradlogp.noise.schedules import DDPM, EDM, VE, VP, Cosine, Levels, Rectified, SubVP
from gradlogp.scores import RescheduledScore

WIDE = [VE(1e-3, 1e4), EDM(1e-3, 1e4), VP(0.01, 40.0), Cosine(alpha_min=1e-5), Rectified()]
ASKED = [VE(0.05, 50.0), VP(), SubVP(), Levels([20.0, 3.0, 0.5, 0.1]), DDPM([0.02] * 300)]
names = lambda s: type(s).__name__


@pytest.mark.parametrize("source", WIDE, ids=names)
@pytest.mark.parametrize("target", ASKED, ids=names)
def test_score_and_denoiser_are_those_of_the_other_schedule(source, target, generator):
    x = 3 * torch.randn(7, 2, generator=generator)
    t = 0.1 + 0.8 * torch.rand(7, generator=generator)
    moved = RescheduledScore(ExactScore(MIXTURE, source), target)
    exact = ExactScore(MIXTURE, target)
    close(moved(x, t), exact(x, t), 1e-10)
    close(moved.denoise(x, t), exact.denoise(x, t), 1e-10)
    close(moved(x, t[0]), exact(x, t[0]), 1e-10)


@pytest.mark.parametrize("source", WIDE, ids=names)
@pytest.mark.parametrize("target", ASKED, ids=names)
def test_the_law_and_its_density_are_those_of_the_other_schedule(source, target, generator):
    z = 3 * torch.randn(7, 2, generator=generator)
    t = 0.1 + 0.8 * torch.rand(7, generator=generator)
    moved = RescheduledScore(ExactScore(MIXTURE, source), target)
    exact = ExactScore(MIXTURE, target)
    for time in (t, t[0]):
        close(moved.log_prob(z, time), exact.log_prob(z, time), 1e-9)
        close(moved.law(time).log_prob(z), exact.log_prob(z, time), 1e-9)
        close(moved.law(time).score(z), exact(z, time), 1e-9)
    one = moved.law(t[0])
    alpha, sigma = target(t[0])
    close(one.mean, alpha * MIXTURE.mean, 1e-9)
    close(one.cov, alpha**2 * MIXTURE.cov + sigma**2 * torch.eye(2), 1e-9)
    far = (moved.log_prob(z, t) - ExactScore(MIXTURE, source).log_prob(z, t)).abs().max()
    assert far > 0.01  # negative control: it is not the law under its own schedule


@pytest.mark.parametrize("target", ASKED, ids=names)
def test_a_density_known_without_a_law_gains_the_change_of_scale(target, generator):
    """log p'(z') = log p(r z') + d log r, for a function with an unknown law."""
    source = VP(0.01, 40.0)
    exact = ExactScore(MIXTURE, source)
    moved = RescheduledScore(as_score(exact.log_prob, "log_prob", source), target)
    z, t = torch.randn(5, 2, generator=generator), torch.linspace(0.2, 0.8, 5)
    assert moved.law(t) is None
    close(moved.log_prob(z, t), ExactScore(MIXTURE, target).log_prob(z, t), 1e-9)
    close(moved(z, t), ExactScore(MIXTURE, target)(z, t), 1e-9)


def test_a_plain_score_will_do(generator):
    """Without a denoiser, E[x_0 | x_t] comes from the score."""
    source, target = VP(), VE(0.05, 50.0)
    exact = ExactScore(MIXTURE, source)
    moved = RescheduledScore(as_score(lambda x, t: exact(x, t), "score", source), target)
    x, t = torch.randn(5, 2, generator=generator), torch.tensor(0.5)
    close(moved.denoise(x, t), ExactScore(MIXTURE, target).denoise(x, t), 1e-9)


def test_float32_stays_float32(generator):
    law = GaussianMixture([0.5, 0.5], torch.tensor([[-1.0], [1.0]], dtype=torch.float32), 0.2)
    moved = RescheduledScore(ExactScore(law, VP()), VE(0.05, 20.0))
    x, t = torch.zeros(3, 1, dtype=torch.float32), torch.tensor(0.5, dtype=torch.float32)
    assert moved(x, t).dtype == torch.float32
    close(moved(x, t), ExactScore(law, VE(0.05, 20.0))(x, t), 1e-5)


def test_levels_the_model_does_not_know_are_refused(as_user):
    moved = RescheduledScore(ExactScore(MIXTURE, VE(0.05, 5.0)), VE(0.01, 50.0))
    x = torch.ones(2, 2)
    for t in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"0\.05 to 5"):
            moved(x, torch.tensor(t))
    with pytest.raises(ValueError, match=r"\(\) or \(2,\)"):
        moved(x, torch.tensor([0.5, 0.5, 0.5]))
