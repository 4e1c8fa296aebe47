"""Foreign networks as scores and scores as foreign denoisers, through exact laws and back."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from support import MIXTURE, close, every_schedule
from torch import nn

from gradlogp import ExactScore, evolve, time_grid
from gradlogp.core import NoisyScore
from gradlogp.diffusion import Ancestral, ProbabilityFlow
from gradlogp.distributions.analytic import Empirical
from gradlogp.noise.predictions import KINDS, to_prediction
from gradlogp.noise.schedules import DDPM, EDM, VE, VP
from gradlogp.scores.diffusers import from_diffusers
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
    short = from_epsilon(lambda x, c: x[:, :1], VP(), noise_input="time")
    with pytest.raises(ValueError, match=r"the network returned shape \(3, 1\)"):
        short(torch.zeros(3, 2), torch.tensor(0.5))
    with pytest.raises(ValueError, match="must have shape"):
        short(torch.zeros(3, 2), torch.zeros(2))
    with pytest.raises(ValueError, match="no score at sigma = 0"):
        from_epsilon(lambda x, c: x, VP(), noise_input="time")(
            torch.zeros(3, 2), torch.tensor(0.0)
        )


COUNT = 20
LINEAR = torch.linspace(1e-3, 0.3, COUNT, dtype=torch.float64)
EVENT = (1, 2, 2)
PREDICTS = ("epsilon", "sample", "v_prediction")


def law():
    return Empirical(torch.randn(5, *EVENT, generator=torch.Generator().manual_seed(0)))


def scheduler(kind="epsilon", betas=LINEAR):
    """What is asked of a scheduler: ᾱ and the kind of prediction."""
    return SimpleNamespace(
        alphas_cumprod=(1 - betas).cumprod(0),
        config={"prediction_type": kind, "clip_sample": True},
    )


class Perfect(nn.Module):
    """A UNet that knows the law, from the number of the step and its own table of ᾱ."""

    def __init__(self, kind="epsilon", betas=LINEAR, **config):
        super().__init__()
        self.kind, self.abar = kind, (1 - betas).cumprod(0)
        self.config = {"in_channels": 1, "sample_size": 2, **config}
        self.asked = []

    def predict(self, x, step):
        log_abar = self.abar.log()
        low = step.long().clamp(max=COUNT - 2)  # log ᾱ is linear between steps
        abar = (log_abar[low] + (step - low) * (log_abar[low + 1] - log_abar[low])).exp()
        a, b = (v[:, None, None, None] for v in (abar.sqrt(), (1 - abar).sqrt()))
        x0 = law().posterior_mean(x, abar.sqrt(), (1 - abar).sqrt())
        eps = (x - a * x0) / b
        return {"epsilon": eps, "sample": x0, "v_prediction": a * eps - b * x0}[self.kind]

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        assert not return_dict
        assert timestep.shape == sample.shape[:1]
        self.asked.append(timestep)
        return (self.predict(sample, timestep),)


@pytest.mark.parametrize("kind", PREDICTS)
def test_each_prediction_is_the_exact_score(kind, generator):
    x = torch.randn(4, *EVENT, generator=generator)
    t = torch.tensor([0.05, 0.5, 0.95, 1.0])
    model = from_diffusers(Perfect(kind), scheduler(kind))
    exact = ExactScore(law(), DDPM(LINEAR))
    assert isinstance(model, NoisyScore)
    assert model.event_shape == EVENT
    assert isinstance(model.schedule, DDPM)
    close(torch.tensor(model.schedule.betas), LINEAR, 1e-12)
    close(model(x, t), exact(x, t), 1e-9)
    close(model.denoise(x, t), exact.denoise(x, t), 1e-9)
    assert model.network.unet.asked[0].tolist() == [0, 9, 18, 19]  # t = i/COUNT is given as i − 1
    assert model.network.unet.asked[0].dtype == torch.int64


def test_between_steps(generator):
    x, t = torch.randn(3, *EVENT, generator=generator), torch.tensor([0.07, 0.512, 0.99])
    model, exact = from_diffusers(Perfect(), scheduler()), ExactScore(law(), DDPM(LINEAR))
    close(model(x, t), exact(x, t), 1e-9)
    close(model.network.unet.asked[0], COUNT * t - 1, 1e-12)
    table = from_diffusers(Perfect(time_embedding_type="learned"), scheduler())
    table(x, torch.tensor(0.5))
    with pytest.raises(ValueError, match="nowhere between them"):
        table(x, t)
    for score in (model, table):
        with pytest.raises(ValueError, match="from 1/20 to 1"):
            score(x, torch.tensor(0.04))


@pytest.mark.parametrize("kind", PREDICTS[1:])
def test_a_schedule_that_ends_without_signal(kind, generator):
    """At ᾱ_T = 0 the posterior mean is that of the data, and steps from there are finite."""
    betas = LINEAR.clone()
    betas[-1] = 1.0
    x = torch.randn(4, *EVENT, generator=generator)
    model = from_diffusers(Perfect(kind, betas), scheduler(kind, betas))
    t = torch.ones(())
    assert float(model.schedule(t)[0]) < 1e-6
    mean = law().posterior_mean(x, 0.0, 1.0)[0]
    with torch.no_grad():
        model.network.unet.predict = lambda x, step: (
            mean if kind == "sample" else -mean
        ).expand_as(x)
        close(model.denoise(x, t), mean.expand_as(x), 1e-6)
        moved = Ancestral("forward")(x, t, None, model)
    close(moved, mean.expand_as(x), 1e-6)


def test_an_epsilon_without_signal_is_refused():
    betas = LINEAR.clone()
    betas[-1] = 1.0
    with pytest.raises(ValueError, match="epsilon carries no information about x_0"):
        from_diffusers(Perfect(), scheduler(betas=betas))


def test_classes_of_diffusers(generator):
    class Shifted(Perfect):
        def forward(self, sample, timestep, class_labels=None, return_dict=True):
            shift = class_labels[:, None, None, None].to(sample)
            return (super().forward(sample, timestep, return_dict=False)[0] + shift,)

    x, t = torch.randn(3, *EVENT, generator=generator), torch.tensor(0.5)
    sigma = DDPM(LINEAR)(t)[1]
    plain = from_diffusers(Perfect(), scheduler())
    for config in ({"num_class_embeds": 4}, {"class_embed_type": "timestep"}):
        model = from_diffusers(Shifted(**config), scheduler())
        labels = torch.tensor([0, 3, 1])
        gap = plain(x, t) - model.given(labels)(x, t)
        close(gap, (labels / sigma)[:, None, None, None].expand_as(x), 1e-9)
        close(model.given(2)(x, t), plain(x, t) - 2 / sigma, 1e-9)
        with pytest.raises(ValueError, match=r"model\.given\(labels\)"):
            model(x, t)
    with pytest.raises(ValueError, match="has no classes"):
        plain.given(1)(x, t)


def test_the_mean_of_a_network_that_predicts_a_variance_too(generator):
    class Both(Perfect):
        def predict(self, x, step):
            return torch.cat([super().predict(x, step), torch.full_like(x, 1e6)], 1)

    x, t = torch.randn(3, *EVENT, generator=generator), torch.tensor(0.5)
    model, plain = (from_diffusers(unet, scheduler()) for unet in (Both(), Perfect()))
    close(model(x, t), plain(x, t), 0)


def test_what_is_refused(tmp_path):
    for unet, other, message in (
        (Perfect(), SimpleNamespace(config={}), "has no alphas_cumprod"),
        (Perfect(), scheduler("flow_prediction"), "prediction_type is 'flow_prediction'"),
        (Perfect(time_embedding_type="fourier"), scheduler(), "noise_input='sigma'"),
        (Perfect(cross_attention_dim=768), scheduler(), "text or other embedding"),
        (Perfect(sample_size=None), scheduler(), "event_shape="),
        (nn.Linear(2, 2), scheduler(), "unet must be a diffusers model"),
        (tmp_path / "nothing", None, r"holds no config\.json"),
    ):
        with pytest.raises(ValueError, match=message):
            from_diffusers(unet, other)
    assert from_diffusers(Perfect(sample_size=[3, 4]), scheduler()).event_shape == (1, 3, 4)
    assert (
        from_diffusers(Perfect(sample_size=None), scheduler(), event_shape=EVENT).event_shape
        == EVENT
    )
    double = from_diffusers(Perfect(), scheduler())
    double.network.unet.dtype = torch.float32
    with pytest.raises(ValueError, match=r"x is torch\.float64 and the network torch\.float32"):
        double(torch.zeros(1, *EVENT), torch.tensor(0.5))


def test_a_folder_without_diffusers_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match=r"pip install 'gradlogp\[diffusers\]'"):
        from_diffusers(tmp_path, scheduler())


def test_a_folder_is_read_by_the_class_that_it_names(tmp_path, monkeypatch):
    asked = []

    class UNet:
        @staticmethod
        def from_pretrained(folder, **options):
            asked.append((folder, options["local_files_only"]))
            return Perfect("sample")

    class Scheduler:
        @staticmethod
        def from_pretrained(folder, **options):
            asked.append((folder, options["local_files_only"]))
            return scheduler("sample")

    monkeypatch.setitem(sys.modules, "diffusers", SimpleNamespace(U=UNet, S=Scheduler))
    for part, file, name in (
        ("unet", "config.json", "U"),
        ("scheduler", "scheduler_config.json", "S"),
    ):
        (tmp_path / part).mkdir()
        (tmp_path / part / file).write_text(json.dumps({"_class_name": name}))
    assert from_diffusers(tmp_path).predicts == "x0"
    assert from_diffusers(str(tmp_path / "unet"), tmp_path / "scheduler").predicts == "x0"
    assert asked == [(tmp_path / "unet", True), (tmp_path / "scheduler", True)] * 2
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": "Nope"}))
    with pytest.raises(ValueError, match="names the class 'Nope'"):
        from_diffusers(tmp_path)
