"""Whatever a network predicts, the score made of it is the exact one."""

import pytest
import torch
from support import close
from torch import nn

from gradlogp import ExactScore, GaussianMixture, as_score, objectives
from gradlogp.core import NoisyScore
from gradlogp.noise import Moments, terminal, to_prediction
from gradlogp.noise.schedules import VE, VP, Rectified

LAW = GaussianMixture([0.3, 0.7], [[-2.0, 0.5], [1.0, 0.0]], [0.4, 0.6])
KINDS = ["score", "epsilon", "x0", "v", "velocity"]


def oracle(kind, schedule):
    """The perfect network of a kind: (x, t) -> prediction."""
    exact = ExactScore(LAW, schedule)

    def network(x, t):
        alpha, sigma = schedule(t)
        law = LAW.noised(alpha, sigma)
        if kind == "log_prob":
            return law.log_prob(x) + 3.0
        if kind == "energy":
            return 5.0 - law.log_prob(x)
        if kind == "score":
            return exact(x, t)
        x0 = exact.denoise(x, t)
        b = sigma if sigma.ndim == 0 else sigma[:, None]
        return to_prediction(kind, x0, -b * exact(x, t), alpha, sigma)

    return network


@pytest.mark.parametrize("schedule", [VP(), VE(0.1, 10.0)], ids=["VP", "VE"])
@pytest.mark.parametrize("kind", [*KINDS, "log_prob", "energy"])
def test_every_kind_is_the_exact_score(kind, schedule, generator):
    x = 2 * torch.randn(5, 2, generator=generator)
    score = as_score(oracle(kind, schedule), kind, schedule)
    assert isinstance(score, NoisyScore)
    exact = ExactScore(LAW, schedule)
    for t in (torch.tensor(0.4), torch.linspace(0.1, 0.9, 5)):
        close(score(x, t), exact(x, t))
        close(score.denoise(x, t), exact.denoise(x, t))
    t = torch.tensor(0.4)
    close(score.at(t)(x), exact(x, t))
    times = torch.full((5,), 0.4)
    same = lambda: torch.Generator().manual_seed(0)
    close(
        objectives.multilevel(score, x, times, generator=same()),
        objectives.multilevel(exact, x, times, generator=same()),
    )


@pytest.mark.parametrize("kind", ["score", "epsilon"])
def test_a_score_or_epsilon_at_the_end_without_signal(kind, generator):
    """At α = 0 the score is what the network says; of z_0 neither of them says anything."""
    z, t = torch.randn(5, 2, generator=generator), torch.tensor([1.0, 0.3, 1.0, 0.9, 0.5])
    score = as_score(oracle(kind, Rectified()), kind, Rectified())
    close(score(z, t), ExactScore(LAW, Rectified())(z, t))
    close(score(z, torch.tensor(1.0)), -z)
    with pytest.raises(ValueError, match=f"{kind} does not determine x_0 where alpha = 0"):
        score.denoise(z, t)


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_the_state_is_the_answer(kind, generator):
    """E[z_0 | z_0 = z] = z, also for predictions that do not determine ε there; no score."""
    z = torch.randn(5, 2, generator=generator)
    network = lambda z, t: {"x0": z, "v": 0 * z}.get(kind, -z if kind == "velocity" else z)
    score = as_score(network, kind, VP())
    close(score.denoise(z, torch.tensor(0.0)), z)
    with pytest.raises(ValueError, match="no score at sigma = 0"):
        score(z, torch.tensor(0.0))


def oracle_at_the_end(kind):
    """What `to_prediction` gives at α = 0, without a division by it."""
    return lambda z, t: {"x0": LAW.mean - 0 * z, "velocity": z - LAW.mean, "v": -LAW.mean - 0 * z}[
        kind
    ]


@pytest.mark.parametrize("kind", ["x0", "v", "velocity"])
def test_all_else_denoises_at_the_end_without_signal(kind, generator):
    z = torch.randn(5, 2, generator=generator)
    score = as_score(oracle_at_the_end(kind), kind, Rectified())
    close(score(z, torch.tensor(1.0)), -z)
    close(score.denoise(z, torch.tensor(1.0)), LAW.mean.expand(5, 2))


def test_moments_and_the_event_shape_are_carried(generator):
    """With them a function has a law at t = 1, and knows what shape to draw."""
    moments = Moments(torch.tensor([0.3, -2.0]), torch.tensor([0.5, 4.0]))
    score = as_score(lambda z, t: -z, "score", VP(), moments=moments, event_shape=(2,))
    assert (score.event_shape, score.schedule) == (torch.Size([2]), VP())
    alpha, sigma = VP()(torch.tensor(1.0))
    law = terminal(score)
    close(law.mean[0], alpha * moments.mean)
    close(law.var[0], alpha**2 * moments.var + sigma**2)
    assert law.sample(7, generator=generator).shape == (7, 2)
    bare = as_score(lambda z, t: -z, "score", VP())
    assert (bare.event_shape, bare.moments) == (None, None)
    with pytest.raises(ValueError, match="pass moments="):
        terminal(bare)
    for extra in ({"moments": moments}, {"event_shape": (2,)}):
        with pytest.raises(ValueError, match="only apply to a noisy score: pass schedule= too"):
            as_score(lambda z: -z, "score", **extra)


def test_without_a_schedule(generator):
    x = torch.randn(5, 2, generator=generator)
    close(as_score(LAW.log_prob, "log_prob")(x), LAW.score(x))
    close(as_score(lambda y: -LAW.log_prob(y), "energy")(x), LAW.score(x))
    close(as_score(LAW.score)(x), LAW.score(x))
    close(
        objectives.implicit(as_score(LAW.log_prob, "log_prob"), x),
        objectives.implicit(LAW.score, x),
    )


def test_an_energy_is_trained_as_an_energy(generator):
    """The gradient of the loss goes through ∇E, so that a Gaussian is learned with the right sign."""
    x = torch.randn(1000, 2, generator=generator) * torch.tensor([1.0, 0.5])
    precision = nn.Parameter(torch.zeros(2))
    energy = lambda y: 0.5 * (precision * y.square()).sum(1)
    loss = lambda: objectives.implicit(as_score(energy, "energy"), x).mean()
    optimizer = torch.optim.LBFGS([precision], max_iter=50)

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    close(precision.detach(), 1 / x.square().mean(0), 1e-4)
    score = as_score(energy, "energy")(x).detach()
    assert (
        torch.nn.functional.cosine_similarity(score, -x / torch.tensor([1.0, 0.25])).mean() > 0.99
    )


@pytest.mark.usefixtures("as_user")
def test_what_is_refused():
    x, t = torch.ones(4, 2), torch.tensor(0.5)
    vector = lambda y, *t: y
    for kind in ("energy", "log_prob"):
        for score in (as_score(vector, kind), lambda y, k=kind: as_score(vector, k, VP())(y, t)):
            with pytest.raises(ValueError, match=r"must return shape \(4,\).*pass it as score="):
                score(x)
        with pytest.raises(ValueError, match="got float"):
            as_score(lambda y: 1.0, kind)(x)
        with pytest.raises(ValueError, match="does not depend on x through differentiable"):
            as_score(lambda y: y.detach().sum(1), kind)(x)
    for kind in ("epsilon", "x0", "v", "velocity"):
        with pytest.raises(ValueError, match=f"predicts {kind} is a score only together with"):
            as_score(vector, kind)
        with pytest.raises(ValueError, match=rf"predicts {kind} returned shape \(4, 1\)"):
            as_score(lambda y, t: y[:, :1], kind, VP())(x, t)
    with pytest.raises(
        ValueError, match="kind must be 'log_prob', 'energy', 'score', 'epsilon', 'x0', 'v' or"
    ):
        as_score(vector, "noise")
    with pytest.raises(ValueError, match=r"the score returned shape \(4,\)"):
        as_score(lambda y: y.sum(1))(x)
    with pytest.raises(ValueError, match=r"x must have shape"):
        as_score(vector)(torch.ones(3))
    with pytest.raises(ValueError, match="sigma = 0"):
        as_score(vector, "epsilon", VP())(x, torch.tensor(0.0))
