"""Classifier-free guidance on mixtures whose classes are known, and other schedules."""

import pytest
import torch
from support import MIXTURE, close

from gradlogp import ExactScore, Gaussian, GaussianMixture, ScoreModel, as_score
from gradlogp.core import NoisyScore
from gradlogp.distributions.analytic.conditional import Joint
from gradlogp.noise import AffineCoordinates
from gradlogp.noise.schedules import DDPM, EDM, VE, VP, Cosine, Levels, Rectified, SubVP
from gradlogp.scores.guided import GuidedScore, RescheduledScore

MEANS = torch.tensor([[-2.0, 0.0], [-1.0, 1.0], [1.5, 0.5]], dtype=torch.float64)
ALL = GaussianMixture([0.3, 0.3, 0.4], MEANS, 0.3)
CLASS = GaussianMixture([0.5, 0.5], MEANS[:2], 0.3)  # the first two components
T = torch.tensor(0.3, dtype=torch.float64)


def scores(schedule):
    return ExactScore(CLASS, schedule), ExactScore(ALL, schedule)


@pytest.mark.parametrize("schedule", [VP(), VE(0.01, 20.0)], ids=["VP", "VE"])
@pytest.mark.parametrize("w", [-1.0, 0.0, 0.7, 3.0])
def test_score_is_that_of_the_conditional_times_a_power_of_the_class(schedule, w, generator):
    """∇ log p(x|c) p(c|x)^w, with p(c|x) from the responsibilities of the noised mixture."""
    given, free = scores(schedule)
    x = torch.randn(6, 2, generator=generator).requires_grad_()
    alpha, sigma = schedule(T)
    class_given_x = ALL.noised(alpha, sigma).responsibilities(x)[:, :2].sum(1)
    log_p = CLASS.noised(alpha, sigma).log_prob(x) + w * class_given_x.log()
    expected = torch.autograd.grad(log_p.sum(), x)[0]
    close(GuidedScore(given, free, w)(x.detach(), T), expected, 1e-9)


def test_0_is_the_conditional_and_minus_1_the_unconditional(generator):
    given, free = scores(VP())
    x = torch.randn(6, 2, generator=generator)
    assert torch.equal(GuidedScore(given, free, 0.0)(x, T), given(x, T))
    close(GuidedScore(given, free, -1.0)(x, T), free(x, T), 1e-12)
    assert torch.equal(GuidedScore(given, free)(x, T), GuidedScore(given, free, 1.0)(x, T))


def test_denoised_belongs_to_the_score(generator):
    given, free = scores(VP())
    guided, x = GuidedScore(given, free, 2.0), torch.randn(6, 2, generator=generator)
    alpha, sigma = VP()(T)
    assert isinstance(guided, NoisyScore)
    close(guided.denoise(x, T), (x + sigma**2 * guided(x, T)) / alpha, 1e-10)
    given, free = scores(Rectified())  # α = 0 at the start
    x0 = GuidedScore(given, free, 2.0).denoise(x, torch.tensor(1.0))
    close(x0, (3 * CLASS.mean - 2 * ALL.mean).expand(6, 2), 1e-6)


def test_interval(generator):
    """Each sample by its own time; the ends belong to it."""
    given, free = scores(VP())
    x, t = torch.randn(4, 2, generator=generator), torch.tensor([0.1, 0.3, 0.5, 0.8])
    limited = GuidedScore(given, free, 2.0, interval=(0.3, 0.5))
    inside = torch.tensor([[False], [True], [True], [False]])
    expected = torch.where(inside, GuidedScore(given, free, 2.0)(x, t), given(x, t))
    close(limited(x, t), expected, 1e-12)
    asked = []
    counted = as_score(lambda x, t: asked.append(t) or free(x, t), "score", VP())
    limited = GuidedScore(given, counted, 2.0, interval=(0.3, 0.5))
    for time in t:
        limited(x, time)
    assert len(asked) == 2


def short(schedule):
    return as_score(lambda z, t: z[:1], "score", schedule)


def model(scale):
    """A model whose coordinates are x/scale."""
    made = ScoreModel(torch.nn.Identity(), VP(), event_shape=(2,))
    made.coordinates = AffineCoordinates(torch.zeros(2), torch.full((2,), scale))
    return made


def test_two_scores_in_one_frame_are_taken(generator):
    """Equal coordinates of two models, or a score read under the other's schedule."""
    GuidedScore(model(2.0), model(2.0))
    GuidedScore(scores(VP())[0], model(1.0))  # the identity, in two ways
    given, _ = scores(VP())
    free = ExactScore(ALL, VE(1e-3, 1e4))
    z = torch.randn(6, 2, generator=generator)
    mixed = GuidedScore(given, RescheduledScore(free, VP()), 1.5)
    close(mixed(z, T), GuidedScore(*scores(VP()), 1.5)(z, T), 1e-9)


def test_rows_belong_to_both_scores(generator):
    """A chunk of samples takes its own rows of the conditional and of the free score."""
    joint = Joint(
        Gaussian([0.5, -1.0, 2.0], [[1.0, 0.3, 0.2], [0.3, 2.0, 0.5], [0.2, 0.5, 1.5]]), 1
    )
    y = torch.randn(5, 1, generator=generator)
    exact = ExactScore(joint, VP())
    guided = GuidedScore(exact.given(y), exact.given(-y), 0.7)
    z, index = torch.randn(5, 2, generator=generator), torch.tensor([3, 0])
    close(guided.rows(index)(z[index], T), guided(z, T)[index], 1e-12)
    close(guided.rows(slice(1, 4)).denoise(z[1:4], T), guided.denoise(z, T)[1:4], 1e-12)
    assert (guided.rows(slice(0, 2))(z[index], T) - guided(z, T)[index]).abs().max() > 1e-3
    swapped = GuidedScore(exact, exact.given(-y), 0.7).given(y)  # the conditional half alone
    close(swapped(z, T), guided(z, T), 1e-12)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GuidedScore(*scores(VP()), interval=(0.5, 0.2)), "interval"),
        (lambda: GuidedScore(*scores(VP()))(torch.zeros(2), T), "shape"),
        (lambda: GuidedScore(*scores(VP()))(torch.zeros(3, 2), torch.zeros(2)), "t must have"),
        (lambda: GuidedScore(scores(VP())[0], lambda z, t: -z), "with as_score"),
        (lambda: GuidedScore(lambda z, t: -z, scores(VP())[0]), "with as_score"),
        (
            lambda: GuidedScore(scores(VP())[0], short(VP()))(torch.zeros(3, 2), T),
            "returned shape",
        ),
        (
            lambda: GuidedScore(short(VP()), scores(VP())[1])(torch.zeros(3, 2), T),
            "returned shape",
        ),
        (
            lambda: GuidedScore(scores(VP())[0], scores(VE(0.01, 20.0))[1]),
            r"different schedules, VP\(.*VE\(.*RescheduledScore\(score, schedule\)",
        ),
        (lambda: GuidedScore(scores(VP())[0], scores(VP(0.1, 19.0))[1]), "different schedules"),
        (lambda: GuidedScore(model(1.0), model(2.0)), "different coordinates"),
        (lambda: GuidedScore(scores(VP())[0], model(2.0)), "different coordinates"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


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
