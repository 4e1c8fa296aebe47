"""Models of diffusers without diffusers: objects with their attributes, against exact laws."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from support import close
from torch import nn

from gradlogp import ExactScore
from gradlogp.core import NoisyScore
from gradlogp.diffusion import Ancestral
from gradlogp.distributions.analytic import Empirical
from gradlogp.noise.schedules import DDPM
from gradlogp.scores.diffusers import from_diffusers

T = 20
LINEAR = torch.linspace(1e-3, 0.3, T, dtype=torch.float64)
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
        low = step.long().clamp(max=T - 2)  # log ᾱ is linear between steps
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
    assert model.network.unet.asked[0].tolist() == [0, 9, 18, 19]  # t = i/T is given as i − 1
    assert model.network.unet.asked[0].dtype == torch.int64


def test_between_steps(generator):
    x, t = torch.randn(3, *EVENT, generator=generator), torch.tensor([0.07, 0.512, 0.99])
    model, exact = from_diffusers(Perfect(), scheduler()), ExactScore(law(), DDPM(LINEAR))
    close(model(x, t), exact(x, t), 1e-9)
    close(model.network.unet.asked[0], T * t - 1, 1e-12)
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


def test_classes(generator):
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
