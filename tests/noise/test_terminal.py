"""The one law at t = 1: exact where it is known, of moments else, and of one class among many."""

import math

import pytest
import torch
from support import clone, close, every_schedule, z_score
from torch import nn

from gradlogp import (
    ExactScore,
    Gaussian,
    GaussianMixture,
    GuidedScore,
    ScoreModel,
    as_score,
    evolve,
)
from gradlogp.core import Moments, Streams
from gradlogp.diffusion import ProbabilityFlow
from gradlogp.distributions import Classes
from gradlogp.noise import terminal
from gradlogp.noise.coordinates import AffineCoordinates
from gradlogp.noise.schedules import DDPM, EDM, VE, VP, Cosine, Levels, Rectified, SubVP
from gradlogp.noise.terminal import ExactTerminal, GaussianTerminal

LAW = GaussianMixture([0.3, 0.7], torch.tensor([[-2.0, 0.5], [1.0, -1.0]]).double(), [0.3, 0.5])
ONE = torch.ones((), dtype=torch.float64)
M, V = torch.tensor([10.0, -3.0]).double(), torch.tensor([0.5, 4.0]).double()


def of_moments(schedule, mean=M, var=V, event_shape=(2,), score=lambda z, t: -z):
    moments = Moments(torch.as_tensor(mean), torch.as_tensor(var))
    return as_score(score, "score", schedule, moments=moments, event_shape=event_shape)


@every_schedule
def test_a_known_law_is_the_one(schedule, generator):
    found, law = terminal(ExactScore(LAW, schedule)), LAW.noised(*schedule(ONE))
    assert isinstance(found, ExactTerminal)
    x = law.sample(5, generator=generator)
    close(found.log_prob(x), law.log_prob(x), 1e-13)
    draws = found.sample(20_000, generator=generator)
    assert max(abs(z_score(draws[:, i], law.mean[i])) for i in (0, 1)) < 4.5
    with pytest.raises(ValueError, match=r"torch\.Generator"):
        found.sample(3, generator=Streams(0, 0, 3, 3))


@every_schedule
def test_the_law_of_moments(schedule, generator):
    """N(α_1 m, α_1² v + σ_1²), where α_1 is not 0."""
    found = terminal(of_moments(schedule))
    a, b = schedule(ONE)
    if a == 0:
        m, v = torch.zeros(2), torch.ones(2) * b**2
    else:
        m, v = a * M, a**2 * V + b**2
    z = torch.randn(6, 2, generator=clone(generator))
    close(found.sample(6, generator=generator), m + v.sqrt() * z, 1e-13)
    normal = torch.distributions.Normal(m, v.sqrt())
    x = m + 3 * torch.randn(4, 2, generator=generator)
    close(found.log_prob(x), normal.log_prob(x).sum(1), 1e-12)
    z0 = M + torch.randn(4, 2, generator=generator)
    q = torch.distributions.Normal(a * z0, b)
    expected = torch.distributions.kl_divergence(q, normal).sum(1)
    close(found.kl(z0, a, b), expected, 1e-11)
    for wrong in ((0 * M, V), (M, 0 * V)):  # negative control: a moment forgotten
        if isinstance(schedule, VE | Levels):
            other = terminal(of_moments(schedule, *wrong)).kl(z0, a, b)
            assert float((other - expected).abs().max()) > 0.02 * float(expected.max())


@every_schedule
def test_the_closed_form_of_kl_is_the_mean_of_the_estimator_of_an_exact_law(schedule, generator):
    """The same Gaussian as an exact law: one draw a sample, without bias."""
    law = Gaussian(torch.tensor([1.0, -0.5]).double(), torch.tensor([0.5, 2.0]).double())
    exact = terminal(ExactScore(law, schedule))
    assert isinstance(exact, ExactTerminal)
    a, b = schedule(ONE)
    z0 = torch.tensor([[1.5, 0.7]], dtype=torch.float64)
    closed = GaussianTerminal(
        (a * law.mean)[None], (a**2 * law.cov.diagonal() + b**2)[None], law.event_shape
    ).kl(z0, a, b)
    draws = exact.kl(z0.expand(40_000, 2), a, b, generator)
    if float(draws.std()) < 1e-9:  # nothing is left of the data: every draw is the answer
        close(draws, closed.expand(40_000), 1e-9)
    else:
        assert abs(z_score(draws, float(closed))) < 4.5
    if isinstance(schedule, VE | Levels | DDPM):  # of which enough is left to distinguish laws
        wrong = terminal(ExactScore(Gaussian(law.mean, 4 + 30 * float(b) ** 2), schedule))
        draws = wrong.kl(z0.expand(40_000, 2), a, b, generator)
        assert abs(z_score(draws, float(closed))) > 10


def test_nothing_is_left_where_alpha_is_zero(generator):
    """N(0, σ_1²), of any shape and without moments."""
    blind = as_score(lambda z, t: -z, "score", Rectified())
    x = torch.randn(4, 3, 2, generator=generator)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(x).flatten(1).sum(1)
    close(terminal(blind).log_prob(x), expected, 1e-12)
    with pytest.raises(ValueError, match="event_shape="):
        terminal(blind).sample(3)
    shaped = as_score(lambda z, t: -z, "score", Rectified(), event_shape=(3, 2))
    z = torch.randn(5, 3, 2, generator=clone(generator))
    close(terminal(shaped).sample(5, generator=generator), z, 1e-15)


def test_without_moments_it_is_refused():
    with pytest.raises(ValueError, match="moments="):
        terminal(as_score(lambda z, t: -z, "score", VP(), event_shape=(2,)))


@pytest.mark.parametrize(
    ("mean", "var"),
    [
        (torch.zeros(3), 1.0),
        (0.0, torch.ones(3)),
        (torch.zeros(4, 2), 1.0),
        (0.0, -1.0),
        (0.0, torch.tensor([1.0, -1e-3])),
    ],
)
def test_bad_moments_are_refused(mean, var, as_user):
    with pytest.raises(ValueError, match=r"mean|var"):
        terminal(of_moments(VP(), mean, var))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_draws_have_the_dtype_of_the_model_and_follow_the_generator(dtype, generator):
    model = ScoreModel(nn.Identity(), VP(), event_shape=(2,)).to(dtype)
    same = [terminal(model).sample(3, generator=clone(generator)) for _ in range(2)]
    assert same[0].dtype == dtype
    assert torch.equal(*same)
    exact = terminal(ExactScore(LAW, VP())).sample(3, generator=generator)
    assert exact.dtype == torch.float64


def test_the_law_of_as_many_samples_as_it_was_made_for():
    rows = GaussianTerminal(torch.zeros(3, 2), torch.ones(1, 2), torch.Size([2]))
    assert rows.sample(3).shape == (3, 2)
    with pytest.raises(ValueError, match="law of 3 samples, but 4 were requested"):
        rows.sample(4)


# ---------------------------------------------------------------------------- one class of many

CLASSES = Classes([Gaussian(torch.tensor([c], dtype=torch.float64), 0.25) for c in (-2.0, 2.0)])
POOLED = Moments(torch.zeros(1).double(), torch.tensor([4.25]).double())
FAR = [VP(), VE(0.01, 10.0), EDM(0.01, 10.0), SubVP(), Cosine()]
far = pytest.mark.parametrize("schedule", FAR, ids=lambda s: type(s).__name__)


class Answer(nn.Module):
    """A network that answers the score in the frame of the model for the exact law of a class."""

    event_shape, condition = torch.Size([1]), 2

    def __init__(self, schedule):
        super().__init__()
        self.exact, self.schedule = ExactScore(CLASSES, schedule), schedule
        self.model, self.t = [], None

    def forward(self, z, c, condition):
        model = self.model[0]
        a, b = self.schedule(self.t)
        m, s = model.z_mean, model.z_std
        norm = (a**2 * s**2 + b**2).sqrt()
        return norm * self.exact.given(condition)(norm * z + a * m, self.t)


def model_of_classes(schedule):
    """A ScoreModel whose class-conditional score is the exact one, with the pooled moments."""
    network = Answer(schedule)
    model = ScoreModel(network, schedule, "score").double()
    model.z_mean.copy_(POOLED.mean)
    model.z_std.copy_(POOLED.var.sqrt())
    network.model.append(model)
    inside = model._frame

    def frame(z, t, *more):  # the network is given λ alone, and this one needs t
        network.t = t
        return inside(z, t, *more)

    model._frame, model.tabulated = frame, lambda times: model  # asked at every step
    return model


@pytest.mark.parametrize(
    "schedule",  # of those of one kind in another time one is enough
    [pytest.param(s, marks=pytest.mark.slow if isinstance(s, EDM | SubVP) else ()) for s in FAR],
    ids=lambda s: type(s).__name__,
)
def test_the_mean_of_one_class_is_found_among_all(schedule, generator):
    """The start is of the class, so its samples are too; the pooled start leaves a bias."""
    model, n, times = model_of_classes(schedule), 2000, None
    x = torch.tensor([[0.3], [-1.0]], dtype=torch.float64)
    t = torch.tensor(0.4, dtype=torch.float64)
    close(model.given(1)(x, t), ExactScore(CLASSES, schedule).given(1)(x, t), 1e-10)
    a, b = (float(v) for v in schedule(ONE))
    for c, mean in ((0, -2.0), (1, 2.0)):
        found = terminal(model.given(c))
        close(found.mean, torch.full((1, 1), a * mean), 1e-3 * max(a, b))
        # the flow is affine on a Gaussian: two points determine the means
        ends = torch.stack([found.mean[0], found.mean[0] + 1])
        out = evolve(ProbabilityFlow(), model.given(c), ends, times, generator=generator)
        middle = float(out[0])
        assert abs(middle - mean) < 0.01 * 0.5
        draws = evolve(ProbabilityFlow(), model.given(c), n, times, generator=generator)
        error = float(draws.std()) / math.sqrt(n)
        assert abs(float(draws.mean()) - mean) < 4.5 * error + 0.01 * 0.5
        gain = float(out[1] - out[0])
        pooled = middle + gain * (0 - float(found.mean))  # from α_1 times the mean of all
        if isinstance(schedule, VE | EDM):
            assert abs(pooled - mean) > 0.1 * 0.5


@far
def test_rows_of_classes_have_means_of_their_own(schedule):
    model, labels = model_of_classes(schedule), torch.tensor([0, 1, 1, 0])
    a, b = (float(v) for v in schedule(ONE))
    found = terminal(model.given(labels)).mean
    close(found, a * torch.tensor([[-2.0], [2.0], [2.0], [-2.0]]), 1e-3 * max(a, b))


def test_a_guided_score_starts_at_its_own_mean():
    """E[z_0 | z_1] of the guided score, at its fixed point; not that of all data."""
    schedule = VE(0.01, 20.0)
    model = model_of_classes(schedule)
    free = ExactScore(CLASSES, schedule)
    guided = GuidedScore(model.given(1), as_score(free, "score", schedule), 0.5)
    mean = terminal(guided).mean
    fixed = guided.denoise(mean, ONE)
    assert float((fixed - mean).abs().max()) < 0.05
    assert float(mean) > 1.9


def test_the_coordinates_are_not_part_of_the_law(generator):
    """Moments are those of z_0, so the law at t = 1 is one of model coordinates."""
    model = ScoreModel(nn.Identity(), VE(0.01, 20.0), event_shape=(2,)).double()
    model.coordinates = AffineCoordinates(torch.tensor([100.0, 0.0]), torch.tensor([10.0, 0.1]))
    found = terminal(model)
    close(found.mean, torch.zeros(1, 2), 1e-12)
    close(found.var, torch.full((1, 2), 401.0), 1e-9)
