"""Objectives against closed forms: a sign, a factor 2 or a dimension off fails here."""

import pytest
import torch
from scipy import stats
from support import COV, MEAN, close, gauss_hermite, z_score

import gradlogp as glp
from gradlogp import Gaussian, GaussianMixture, objectives
from gradlogp.core import Injected, per_sample
from gradlogp.learn.objectives import implicit, weights
from gradlogp.learn.objectives.denoising import noised
from gradlogp.learn.objectives.weights import likelihood, sigma2, unweighted
from gradlogp.noise.predictions import from_prediction, to_prediction
from gradlogp.noise.schedules import DDPM, VE, VP, Cosine, Levels, Rectified, SubVP
from gradlogp.scores import as_score
from gradlogp.scores.exact import ExactScore

W = torch.tensor([[-0.9, 0.4], [-0.2, -1.7]], dtype=torch.float64)
C = torch.tensor([0.3, -0.5], dtype=torch.float64)
I2 = torch.eye(2, dtype=torch.float64)


def affine_noisy_score(W, c, schedule):
    return as_score(lambda x, t: x @ W.mT + c, "score", schedule)


def shrink(schedule=VP()):  # noqa: B008
    """A score that asks for nothing but x."""
    return as_score(lambda x, t: -x, "score", schedule)


def joint_quadrature():
    """Nodes of x ~ N(MEAN, COV) and ε ~ N(0, I), exact for every quadratic loss."""
    nodes, weight = gauss_hermite(4)
    return MEAN + nodes[:, :2] @ torch.linalg.cholesky(COV).mT, nodes[:, 2:], weight


def expected_multilevel(noisy_score, t, **options):
    x, eps, weight = joint_quadrature()
    times = t.expand(len(x))
    loss = objectives.multilevel(noisy_score, x, times, generator=Injected(eps), **options)
    return weight @ loss


# ---------------------------------------------------------------------------- one level


@pytest.mark.parametrize("event", [(1,), (3, 4), (1, 3, 3)])
def test_denoising_per_sample(event, generator):
    x, eps = torch.randn(2, 6, *event, generator=generator)
    sigma = torch.linspace(0.1, 2, 6)
    score = lambda x: -torch.tanh(x)
    loss = objectives.denoising(score, x, sigma, generator=Injected(eps))
    assert loss.shape == (6,)
    for i in range(6):  # each sample on its own, by hand
        x_t = x[i] + sigma[i] * eps[i]
        expected = 0.5 * (score(x_t) + eps[i] / sigma[i]).square().sum()
        close(loss[i], expected, 1e-12)
        alone = objectives.denoising(
            score, x[i : i + 1], sigma[i : i + 1], generator=Injected(eps[i : i + 1])
        )
        close(alone[0], loss[i], 1e-12)


def test_a_scalar_sigma_serves_every_sample(generator):
    x, eps = torch.randn(2, 5, 3, generator=generator)
    score = lambda x: -x
    one = objectives.denoising(score, x, 0.3, generator=Injected(eps))
    tensor = objectives.denoising(score, x, torch.tensor(0.3), generator=Injected(eps))
    each = objectives.denoising(score, x, torch.full((5,), 0.3), generator=Injected(eps))
    close(one, each, 1e-14)
    close(one, tensor, 1e-14)


def test_losses_follow_the_dtype_and_the_generator(generator):
    x = torch.randn(4, 2, generator=generator, dtype=torch.float32)
    state = generator.get_state()
    t = torch.full((4,), 0.5, dtype=torch.float32)
    for loss in (
        lambda: objectives.denoising(lambda x: -x, x, 0.3, generator=generator),
        lambda: objectives.multilevel(shrink(), x, generator=generator),
        lambda: objectives.multilevel(shrink(), x, weight=weights.v, generator=generator),
        lambda: objectives.excess(
            shrink(), as_score(lambda x, t: x, "score", VP()), x, t, generator=generator
        ),
    ):
        generator.set_state(state)
        first = loss()
        assert not torch.equal(loss(), first)
        generator.set_state(state)
        assert torch.equal(loss(), first)
        assert first.dtype == torch.float32


# ---------------------------------------------------------------------------- many levels


def errors_of(kind, s, x0, eps, x_t, a, b):
    """½‖predicted − true‖² of a kind of prediction, for each sample."""
    x0_hat, eps_hat = from_prediction("score", s, x_t, a, b)
    difference = to_prediction(kind, x0_hat, eps_hat, a, b) - to_prediction(kind, x0, eps, a, b)
    return 0.5 * difference.square().sum(1)


def snr_clipped(s, x0, eps, x_t, a, b):
    return (a / b).square().clamp(max=5.0) * errors_of("x0", s, x0, eps, x_t, a, b)


def edm(s, x0, eps, x_t, a, b):
    """EDM: (σ² + c²)/(σ c)² on the denoiser's error, for data of standard deviation c = 1."""
    return (b**2 + 1) / b**2 * errors_of("x0", s, x0, eps, x_t, a, b)


def of_kind(kind):
    return lambda *args: errors_of(kind, *args)


DEFINITIONS = [
    (weights.unweighted, of_kind("score"), VP()),
    (weights.unweighted, of_kind("score"), SubVP()),
    (weights.sigma2, of_kind("epsilon"), SubVP()),
    (weights.sigma2, of_kind("epsilon"), VE(0.1, 20.0)),
    (weights.x0, of_kind("x0"), SubVP()),
    (weights.x0, of_kind("x0"), VE(0.1, 20.0)),
    (weights.v, of_kind("v"), VP()),
    (weights.v, of_kind("v"), Cosine()),
    (weights.v, edm, VE(0.1, 20.0)),
    (weights.min_snr, snr_clipped, VP()),
    (weights.min_snr, snr_clipped, SubVP()),
]


@pytest.mark.parametrize(("weight", "definition", "schedule"), DEFINITIONS)
def test_weights_are_what_they_say(weight, definition, schedule, generator):
    x, eps = torch.randn(2, 200, 3, generator=generator)
    t = torch.linspace(0.02, 0.98, 200)
    model = as_score(lambda x, t: torch.sin(3 * x) - per_sample(t, x) * x, "score", schedule)
    loss = objectives.multilevel(model, x, t, weight, generator=Injected(eps))
    a, b = schedule(t)
    x_t = a[:, None] * x + b[:, None] * eps
    torch.testing.assert_close(
        loss, definition(model(x_t, t), x, eps, x_t, a, b), rtol=1e-11, atol=1e-12
    )


SCHEDULES = [VP(), SubVP(), VE(0.1, 10.0), Cosine(), Rectified(), Levels([3.0, 1.0, 0.2])]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("weight", [weights.sigma2, weights.unweighted, weights.x0])
def test_multilevel_is_excess_plus_floor(schedule, weight):
    x, eps, w = joint_quadrature()
    score = affine_noisy_score(W, C, schedule)
    exact = ExactScore(Gaussian(MEAN, COV), schedule)
    for t in torch.tensor([0.05, 0.4, 0.9]):
        a, b = schedule(t)
        P = torch.linalg.inv(a**2 * COV + b**2 * I2)
        v = W @ (a * MEAN) + C
        fisher = 0.5 * (torch.trace((W + P) @ torch.linalg.inv(P) @ (W + P).mT) + v @ v)
        floor = 1 / b**2 - 0.5 * torch.trace(P)
        scale = weight(a, b)
        loss = expected_multilevel(score, t, weight=weight)
        above = w @ objectives.excess(
            score, exact, x, t.expand(len(x)), weight, generator=Injected(eps)
        )
        close(loss / scale, fisher + floor, 1e-10)
        close(above / scale, fisher, 1e-10)
        close(expected_multilevel(exact, t, weight=weight) / scale, floor, 1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_excess_of_the_exact_score_is_zero(schedule, generator):
    p = GaussianMixture([0.3, 0.7], [[-2.0, 0.0], [1.0, 1.0]], [0.3, 0.5])
    exact = ExactScore(p, schedule)
    x, t = p.sample(20, generator=generator), torch.linspace(0.05, 0.95, 20)
    value = objectives.excess(exact, exact, x, t, generator=generator)
    assert torch.equal(value, torch.zeros(20))


def test_multilevel_draws_its_times(generator):
    x, eps = torch.randn(2, 5, 2, generator=generator)
    u = torch.tensor([0.0, 0.2, 0.5, 0.7, 0.999])
    seen = []

    def model(x, t):
        seen.append(t)
        return -x

    objectives.multilevel(as_score(model, "score", VP()), x, generator=Injected(u, eps))
    close(seen[0], 1e-3 + (1 - 1e-3) * u, 1e-15)


def test_times_are_uniform(generator):
    like = torch.empty(100_000)
    t = objectives.draw_times(VP(), like, generator)
    assert float(t.min()) >= 1e-3
    assert float(t.max()) <= 1.0
    assert stats.kstest(t.numpy(), stats.uniform(1e-3, 1 - 1e-3).cdf).pvalue > 1e-4
    assert stats.kstest(t.square().numpy(), stats.uniform(0, 1).cdf).pvalue < 1e-10


@pytest.mark.parametrize("schedule", [Levels([3.0, 1.0, 0.2]), DDPM([0.1, 0.2, 0.3, 0.4])])
def test_times_are_uniform_over_the_levels_of_a_ladder(schedule, generator):
    levels = schedule.times
    n = 40_000
    t = objectives.draw_times(schedule, torch.empty(n), generator)
    counts = torch.stack([(t == level).sum() for level in levels])
    assert int(counts.sum()) == n
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    L = len(levels)
    u = torch.cat([(torch.arange(L) + 0.5) / L, torch.tensor([0.0, 1 - 1e-16, 1.0])])
    picked = objectives.draw_times(schedule, torch.empty(L + 3), Injected(u))
    expected = torch.cat([levels, levels[[0, -1, -1]]])
    assert torch.equal(picked, expected)


@pytest.mark.parametrize("schedule", [VP(), Levels([3.0, 2.0, 1.0, 0.5, 0.2])], ids=str)
def test_stratified_times_spread_evenly_and_each_is_uniform(schedule, generator):
    B, repeats = 10, 4000
    t = torch.stack(
        [
            objectives.draw_times(schedule, torch.empty(B), generator, stratified=True)
            for _ in range(repeats)
        ]
    )
    if schedule.times is not None:  # two samples of the ten at each of five levels, always
        expected = schedule.times.repeat_interleave(2).expand(repeats, B)
        close(t.sort(1, descending=True).values, expected, 1e-12)
        for level in schedule.times:  # and each sample is at each level equally often
            assert float(((t == level).double().mean(0) - 0.2).abs().max()) < 4.5 * 0.4 / 63
        return
    u = (t - 1e-3) / (1 - 1e-3)
    assert torch.equal((u * B).long().sort(1).values, torch.arange(B).expand(repeats, B))
    for i in (0, 4, 9):
        assert stats.kstest(u[:, i].numpy(), "uniform").pvalue > 1e-4
    assert abs(float(torch.corrcoef(u[:, :2].mT)[0, 1]) + 1 / (B - 1)) < 0.07
    x = torch.zeros(B, 2)
    seen = []
    watched = as_score(lambda x, t: seen.append(t) or -x, "score", schedule)
    objectives.multilevel(watched, x, stratified=True, generator=generator)
    inside = ((seen[0] - 1e-3) / (1 - 1e-3) * B).long()
    assert torch.equal(inside.sort().values, torch.arange(B))


# ---------------------------------------------------------------------------- refusals


def broken(x, t=None):
    return x[:, :1]


def dropping():
    return as_score(broken, "score", VP())


BAD = {
    "one sigma zero": lambda x: objectives.denoising(
        lambda x: -x, x, torch.tensor([1.0, 0, 1, 1])
    ),
    "sigma column": lambda x: objectives.denoising(lambda x: -x, x, torch.ones(4, 1)),
    "sigma length": lambda x: objectives.denoising(lambda x: -x, x, torch.ones(3)),
    "noisy model drops a column": lambda x: objectives.multilevel(dropping(), x),
    "t length": lambda x: objectives.multilevel(shrink(), x, torch.ones(3)),
    "t column": lambda x: objectives.multilevel(shrink(), x, torch.ones(4, 1)),
    "t without noise": lambda x: objectives.multilevel(
        shrink(), x, torch.tensor([0.5, 0.0, 0.5, 0.5])
    ),
    "a plain function": lambda x: objectives.multilevel(lambda x, t: -x, x),
    "excess over another schedule": lambda x: objectives.excess(
        shrink(), shrink(VE(0.1, 9.0)), x, torch.full((4,), 0.5)
    ),
    "excess of a broken model": lambda x: objectives.excess(
        dropping(), shrink(), x, torch.full((4,), 0.5)
    ),
    "excess over a broken score": lambda x: objectives.excess(
        shrink(), dropping(), x, torch.full((4,), 0.5)
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, as_user):
    with pytest.raises(ValueError):
        BAD[case](torch.ones(4, 2))


# ---------------------------------------------------------------------------- more weights and times


def test_weights_are_those_of_the_papers():
    alpha, sigma = torch.tensor([1.0, 0.8, 0.2]), torch.tensor([0.1, 0.6, 0.9])
    snr = (alpha / sigma) ** 2
    x0 = sigma**4 / alpha**2  # ½‖x̂_0 − x_0‖² in units of ½‖s + ε/σ‖²
    close(weights.snr(alpha, sigma), snr * x0, 1e-12)
    close(weights.snr(alpha, sigma), weights.sigma2(alpha, sigma), 1e-12)
    close(weights.truncated_snr(alpha, sigma), snr.clamp(min=1) * x0, 1e-12)
    ratio, sigma_data = sigma / alpha, 0.5
    edm = (ratio**2 + sigma_data**2) / (ratio * sigma_data) ** 2 * x0
    close(weights.edm(0.5)(alpha, sigma), edm, 1e-12)
    close(weights.edm(1.0)(alpha, sigma), weights.v(alpha, sigma), 1e-12)
    over = 1 / weights.truncated_v(alpha, sigma) - 1 / weights.sigma2(alpha, sigma) / 25
    close(over, (1 - 1 / 25) / weights.v(alpha, sigma), 1e-9)  # v, at most 25 times σ²
    with pytest.raises(ValueError, match="sigma_data must be positive and finite, got 0"):
        weights.edm(0)


@pytest.mark.parametrize(
    "schedule", [VP(), VE(0.02, 20.0), Cosine()], ids=lambda s: type(s).__name__
)
def test_the_likelihood_weight_is_g2(schedule):
    t, score = torch.linspace(0.01, 0.97, 7), shrink(schedule)
    close(weights.weight_at(weights.likelihood, schedule, t), schedule.g2(t), 1e-12)
    plain, weighted = (
        objectives.multilevel(
            score, torch.ones(7, 2), t, weight, generator=Injected(torch.ones(7, 2))
        )
        for weight in (weights.unweighted, weights.likelihood)
    )
    close(weighted, schedule.g2(t) * plain, 1e-10)
    above, other = (
        objectives.excess(
            score, ExactScore(Gaussian(MEAN, COV), schedule), torch.ones(7, 2), t, weight,
            generator=Injected(torch.ones(7, 2)),
        )
        for weight in (weights.unweighted, weights.likelihood)
    )  # fmt: skip
    close(other, schedule.g2(t) * above, 1e-10)


def test_importance_keeps_the_mean_and_lowers_the_variance(generator):
    schedule = VP()
    exact = ExactScore(Gaussian(MEAN, COV), schedule)
    wrong = as_score(lambda x, t: exact(x, t) * 1.1, "score", schedule)
    x = Gaussian(MEAN, COV).sample(50_000, generator=generator)
    weight = weights.likelihood
    times = objectives.ImportanceTimes.for_likelihood()
    plain, better = (
        objectives.multilevel(wrong, x, weight=weight, generator=generator, **options)
        for options in ({}, {"importance": times})
    )
    difference = float(plain.mean() - better.mean())
    error = float((plain.var() / 50_000 + better.var() / 50_000).sqrt())
    assert abs(difference) < 4.5 * error
    assert float(better.var()) < 0.1 * float(plain.var())


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("schedule", [VP(), Levels((8.0, 3.0, 1.0, 0.2))], ids=["VP", "Levels"])
def test_importance_times_have_the_law_and_the_ratio_they_claim(schedule, stratified, generator):
    density = lambda t: 1 + 3 * t
    times = objectives.ImportanceTimes(lambda _, t: density(t), n_cells=50)
    t, ratio = times.draw(schedule, torch.empty(40_000), generator, stratified=stratified)
    assert abs(z_score(ratio, 1.0)) < 4.5  # E_q[u/q] = 1
    expected = torch.tensor(0.5005) if schedule.times is None else schedule.times.mean()
    assert abs(z_score(ratio * t, expected)) < 4.5  # the mean of uniform times
    assert float(t.mean()) > float(expected) + 0.02
    product = ratio * density(t)
    assert float(product.std() / product.mean()) < 0.05  # constant up to the cells
    if schedule.times is not None:
        assert set(t.tolist()) <= set(schedule.times.tolist())


def test_importance_times_are_those_of_the_schedule_they_are_drawn_for(generator):
    """One object serves scores of different schedules, one after another."""
    times, u = objectives.ImportanceTimes(lambda schedule, t: schedule.g2(t)), torch.rand(50)
    for schedule in (VP(), VE(0.1, 9.0), VP()):
        fresh = objectives.ImportanceTimes(lambda schedule, t: schedule.g2(t))
        for got, expected in zip(
            *(law.draw(schedule, u, Injected(u)) for law in (times, fresh)), strict=True
        ):
            assert torch.equal(got, expected)


def test_importance_refuses_what_makes_no_sense():
    draw = lambda f: objectives.ImportanceTimes(f).draw(VP(), torch.empty(3))
    with pytest.raises(ValueError, match="density must be positive and finite"):
        draw(lambda _, t: t - 0.5)
    with pytest.raises(ValueError, match=r"one number per time; got shape \(\)"):
        draw(lambda _, t: t.sum())
    times = objectives.ImportanceTimes(lambda _, t: torch.ones_like(t))
    with pytest.raises(ValueError, match="not both"):
        objectives.multilevel(shrink(), torch.ones(3, 2), torch.full((3,), 0.5), importance=times)


LAW = glp.GaussianMixture(
    [0.3, 0.7],
    torch.tensor([[-2.0, 0.5], [1.0, -1.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.5], dtype=torch.float64),
)


def match(score, x, generator):
    return implicit(score, x)


FOUR = [VE(0.1, 5.0), VP(), DDPM([0.02] * 50), Levels([3.0, 1.0, 0.3])]


def wrong(schedule):
    """The score of no law at hand, and depends on the time of each sample."""
    f = lambda x, t: torch.sin(x) * (1 + t.reshape(-1, 1)) - 0.4 * x.roll(1, 1)
    return glp.as_score(f, "score", schedule)


@pytest.mark.parametrize("schedule", FOUR, ids=lambda s: type(s).__name__)
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
