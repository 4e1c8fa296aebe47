"""Classifier-free guidance, on mixtures whose classes are known."""

import pytest
import torch
from support import close

from gradlogp import ExactScore, Gaussian, GaussianMixture, ScoreModel, as_score
from gradlogp.core import NoisyScore
from gradlogp.distributions.analytic.conditional import Joint
from gradlogp.noise import AffineCoordinates
from gradlogp.noise.schedules import VE, VP, Rectified
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
