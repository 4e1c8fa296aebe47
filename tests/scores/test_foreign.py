"""Foreign networks as scores and scores as foreign denoisers, through exact laws and back."""

import pytest
import torch
from support import MIXTURE, close, every_schedule
from torch import nn

from gradlogp import ExactScore, evolve, time_grid
from gradlogp.core import NoisyScore
from gradlogp.diffusion import ProbabilityFlow
from gradlogp.distributions.analytic import Empirical
from gradlogp.noise.predictions import KINDS, to_prediction
from gradlogp.noise.schedules import DDPM, EDM, VE, VP
from gradlogp.scores.foreign import (
    ForeignScore,
    Steps,
    from_edm,
    from_epsilon,
    from_k_diffusion,
    to_k_diffusion,
)

BETAS = torch.linspace(0.02, 0.4, 10, dtype=torch.float64)
T = len(BETAS)


def prediction(kind, schedule, x, t, law=MIXTURE):
    """What a perfect network of that kind returns at x_t = x, by an independent path."""
    alpha, sigma = schedule(t)
    x0 = law.posterior_mean(x, alpha, sigma)
    eps = -sigma.reshape(-1, *[1] * (x.ndim - 1)) * law.noised(alpha, sigma).score(x)
    return to_prediction(kind, x0, eps, alpha, sigma)


@every_schedule
@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_network_is_the_exact_score(kind, schedule, generator):
    x = 2 * torch.randn(6, 2, generator=generator)
    t = torch.tensor([0.2, 0.35, 0.5, 0.6, 0.75, 0.9])
    seen = []

    def network(x, c):
        seen.append(c)
        return prediction(kind, schedule, x, c)

    score, exact = (
        ForeignScore(network, schedule, kind, noise_input="time"),
        ExactScore(MIXTURE, schedule),
    )
    assert isinstance(score, NoisyScore)
    close(score(x, t), exact(x, t), 1e-10)
    close(score.denoise(x, t), exact.denoise(x, t), 1e-10)
    close(score(x, t[2]), exact(x, t[2]), 1e-10)
    assert [tuple(c.shape) for c in seen] == [(6,)] * 3  # never ()


def test_what_an_epsilon_network_is_given(generator):
    x, schedule = torch.randn(3, 2, generator=generator), DDPM(BETAS)
    t = torch.tensor([0.1, 0.5, 1.0])
    seen = []

    def network(x, c):
        seen.append(c)
        return x

    for what in ("step", "time", "sigma", lambda t: T * t, Steps(T, between=True)):
        from_epsilon(network, schedule, noise_input=what)(x, t)
    steps, times, sigmas, counted_from_one, either = seen
    assert steps.dtype == either.dtype == torch.int64
    assert steps.tolist() == either.tolist() == [0, 4, 9]  # β_1 is number 0
    close(times, t, 0)
    close(sigmas, (1 - (1 - BETAS).cumprod(0)[steps]).sqrt(), 1e-12)
    close(counted_from_one, steps + 1.0, 1e-12)


def test_epsilon_by_steps_is_the_exact_score_of_ddpm(generator):
    """The network has its own table of ᾱ."""
    abar = (1 - BETAS).cumprod(0)

    def network(x, i):
        a, b = abar[i].sqrt(), (1 - abar[i]).sqrt()
        return -b[:, None] * MIXTURE.noised(a, b).score(x)

    schedule, x = DDPM(BETAS), torch.randn(T, 2, generator=generator)
    score = from_epsilon(network, schedule, noise_input="step", event_shape=(2,))
    exact = ExactScore(MIXTURE, schedule)
    close(score(x, schedule.times), exact(x, schedule.times), 1e-10)
    t = schedule.times.float()  # i/T in float32 is still step i
    assert bool(((score(x.float(), t) - exact(x, schedule.times)).abs() < 1e-4).all())
    with pytest.raises(ValueError, match="nowhere between them"):
        score(x[:1], torch.tensor(0.55))


@pytest.mark.parametrize("n", [10, 1000, 10_000])
def test_float32_times_are_still_steps(n):
    i = torch.arange(1, n + 1)
    assert torch.equal(Steps(n)((i.double() / n).float()), i - 1)


def test_steps():
    close(
        Steps(10, between=True)(torch.tensor([0.1, 0.55, 1.0])),
        torch.tensor([0.0, 4.5, 9.0]),
        1e-12,
    )
    for t in (0.0, 0.05, 0.0999, 1.01, float("nan")):
        with pytest.raises(ValueError, match="times from 1/10 to 1"):
            Steps(10, between=True)(torch.tensor([0.5, t]))
    with pytest.raises(ValueError, match="n must be an integer of at least 1, got 0"):
        Steps(0)


def edm_network(x, sigma):
    return MIXTURE.posterior_mean(x, torch.ones_like(sigma), sigma)


def test_edm(generator):
    x, score = 3 * torch.randn(5, 2, generator=generator), from_edm(edm_network, 0.01, 20.0)
    exact, t = ExactScore(MIXTURE, EDM(0.01, 20.0)), torch.linspace(0, 1, 5)
    assert score.schedule == exact.schedule
    close(score(x, t), exact(x, t), 1e-10)
    close(score.denoise(x, t), exact.denoise(x, t), 1e-12)
    times = time_grid(score.schedule, 12, t_min=0.0)
    samples = [evolve(ProbabilityFlow(2), s, 20 * x, times) for s in (score, exact)]
    close(*samples, 1e-10)


# ---------------------------------------------------------------------------- k-diffusion


def inner(schedule):
    """Times that are not too near to an end where σ/α has no digits left."""
    return torch.linspace(0.97, 0.03, 6, dtype=torch.float64)


@every_schedule
def test_a_score_as_a_denoiser_in_sigma(schedule, generator):
    x = 2 * torch.randn(6, 2, generator=generator)
    alpha, sigma = schedule(inner(schedule))
    denoiser, r = to_k_diffusion(ExactScore(MIXTURE, schedule)), sigma / alpha
    expected = MIXTURE.posterior_mean(x, torch.ones(6), r)
    close(denoiser(x, r), expected, 1e-10)  # per sample
    for i in range(6):
        close(denoiser(x, r[i])[i], expected[i], 1e-10)


@every_schedule
def test_there_and_back(schedule, generator):
    """s_VE(x; σ/α) = α s(α x; α, σ), and the denoiser of that score is the one it was made of."""
    x, t = 2 * torch.randn(6, 2, generator=generator), inner(schedule)
    exact, (alpha, sigma) = ExactScore(MIXTURE, schedule), schedule(t)
    r, a = sigma / alpha, alpha[:, None]
    low, high = float(r[-1]), float(r[0])
    back = from_k_diffusion(to_k_diffusion(exact), low, high)
    time = (r ** (1 / 7) - low ** (1 / 7)) / (high ** (1 / 7) - low ** (1 / 7))
    torch.testing.assert_close(back(x, time), a * exact(a * x, t), rtol=1e-10, atol=1e-10)
    forth = to_k_diffusion(back)
    close(forth(x, r), exact.denoise(a * x, t), 1e-10)


@pytest.mark.parametrize("event", [(1,), (2, 3), (1, 2, 2)], ids=str)
def test_any_event_shape(event, generator):
    law = Empirical(torch.randn(7, *event, generator=generator))
    schedule, x = VP(), torch.randn(4, *event, generator=generator)
    denoiser = to_k_diffusion(ExactScore(law, schedule))
    sigma = torch.tensor([0.2, 0.7, 2.0, 9.0])
    close(denoiser(x, sigma), law.posterior_mean(x, torch.ones(4), sigma), 1e-10)
    score = from_k_diffusion(denoiser, 0.01, 50.0, event_shape=event)
    exact, t = ExactScore(law, EDM(0.01, 50.0)), torch.tensor([0.3, 0.5, 0.7, 0.9])
    close(score(x, t), exact(x, t), 1e-9)
    with pytest.raises(ValueError, match="z must have shape"):
        score(torch.zeros(4, 5), t)


def test_sigmas_that_a_model_does_not_know_are_refused():
    denoiser = to_k_diffusion(ExactScore(MIXTURE, VE(0.1, 10.0)))
    x = torch.zeros(2, 2)
    for sigma in (0.0999, 10.01):
        with pytest.raises(ValueError, match=r"covers 0\.1 to 10"):
            denoiser(x, torch.tensor([1.0, sigma]))
    for sigma in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="sigma must be positive"):
            denoiser(x, torch.tensor([1.0, sigma]))
    with pytest.raises(ValueError, match="must have shape"):
        denoiser(x, torch.ones(3))


def test_a_denoiser_of_k_diffusion_with_a_range_and_arguments(generator):
    class Discrete(nn.Module):
        sigma_min, sigma_max = torch.tensor(0.02), torch.tensor(9.0)

        def forward(self, x, sigma, scale=1.0):
            return scale * edm_network(x, sigma)

    x, t = torch.randn(3, 2, generator=generator), torch.tensor(0.4)
    score = from_k_diffusion(Discrete(), scale=0.5)
    assert score.schedule == EDM(float(Discrete.sigma_min), 9.0)
    close(2 * score.denoise(x, t), edm_network(x, score.schedule(t)[1]), 1e-12)
    with pytest.raises(ValueError, match="sigma_min= and sigma_max="):
        from_k_diffusion(edm_network)


# ---------------------------------------------------------------------------- conditions, bad input


class Classes(nn.Module):
    """x̂_0 is the mean of the class."""

    def __init__(self):
        super().__init__()
        self.means = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, -3.0]]))

    def forward(self, x, sigma, condition):
        return self.means[condition] + 0 * x


@torch.no_grad()
def test_classes(generator):
    x, t = torch.randn(3, 2, generator=generator), torch.tensor([0.2, 0.4, 0.9])
    model = from_edm(Classes(), 0.1, 10.0, event_shape=(2,))
    sigma = model.schedule(t)[1][:, None]
    means = Classes().means
    each = model.given(torch.tensor([0, 1, 1]))
    assert isinstance(each, NoisyScore)
    close(each.denoise(x, t), means[torch.tensor([0, 1, 1])], 1e-12)
    close(each(x, t), (means[torch.tensor([0, 1, 1])] - x) / sigma**2, 1e-12)
    close(model.given(1)(x, t), (means[1] - x) / sigma**2, 1e-12)
    start = 10 * torch.randn(5, 2, generator=generator)
    times = time_grid(model.schedule, 5, t_min=0.0)
    for chunk in (None, 2):  # one class for all does not depend on the chunk
        out = evolve(ProbabilityFlow(), model.given(1), start, times, chunk_size=chunk)
        close(out, means[1].expand(5, 2), 1e-10)
    assert len(list(model.parameters())) == 1  # a module: it moves to another device as a whole


def test_bad_input(as_user):
    for bad, message in (
        (
            dict(noise_input="t"),
            "noise_input, if it is not a function, must be 'time', 'step' or 'sigma',",
        ),
        (dict(noise_input="step"), "only DDPM has steps"),
    ):
        with pytest.raises(ValueError, match=message):
            from_epsilon(edm_network, VP(), **bad)
    with pytest.raises(ValueError, match="predicts must be 'score', 'epsilon'"):
        ForeignScore(edm_network, VP(), "noise", noise_input="time")
    with pytest.raises(ValueError, match="sigma_min must be positive"):
        from_edm(edm_network, 0.0, 80.0)
    short = from_epsilon(lambda x, c: x[:, :1], VP(), noise_input="time")
    with pytest.raises(ValueError, match=r"the network returned shape \(3, 1\)"):
        short(torch.zeros(3, 2), torch.tensor(0.5))
    with pytest.raises(ValueError, match="must have shape"):
        short(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="no score at sigma = 0"):
        from_epsilon(lambda x, c: x, VP(), noise_input="time")(
            torch.zeros(3, 2), torch.tensor(0.0)
        )
