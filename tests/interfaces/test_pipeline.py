"""Whole models in data units: what goes in and comes out has the units of the data."""

import pytest
import torch

import gradlogp as glp
from gradlogp.interfaces.pipeline import (
    build_model,
    denoised,
    field,
    first_time,
    generate,
    log_density,
)
from gradlogp.noise.schedules import VE, VP


class Perfect(torch.nn.Module):
    """Predicts x_0 = 0 in the network's frame: exact for a point mass; v, for N(0, I), is 0."""

    def __init__(self, event):
        super().__init__()
        self.event_shape = torch.Size(event)
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, c):
        return 0 * x + 0 * self.unused


def gaussian_model(schedule, mean, std):
    """A model that is exact for data N(mean, diag std²), through its change of coordinates."""
    model = glp.ScoreModel(Perfect(mean.shape), schedule, "v").double()
    model.shift.copy_(mean)
    model.scale.copy_(std)
    return model


MEAN = torch.tensor([10.0, -3.0], dtype=torch.float64)
STD = torch.tensor([0.01, 50.0], dtype=torch.float64)


@pytest.mark.parametrize("schedule", [VE(0.01, 20.0), VP()])
def test_log_density_is_in_data_units(schedule, generator):
    model = gaussian_model(schedule, MEAN, STD)
    x = MEAN + STD * torch.randn(50, 2, generator=generator)
    alpha, sigma = schedule(first_time(schedule))
    # the law learned is that of (alpha z + sigma noise) with alpha nearly 1, in data units
    law = glp.Gaussian(MEAN, STD**2 * (alpha**2 + sigma**2))
    z_t = model.decode(model.encode(x))
    expected = law.noised(1.0, 0.0).log_prob(z_t)
    assert torch.allclose(log_density(model, x, n_steps=48), expected, atol=1e-6)


def test_field_is_the_gradient_of_the_log_density(generator):
    schedule = VE(0.01, 20.0)
    model = gaussian_model(schedule, MEAN, STD)
    x = MEAN + STD * torch.randn(20, 2, generator=generator)
    law = glp.Gaussian(MEAN, STD**2 * (1 + 0.01**2))
    assert torch.allclose(field(model, x), law.score(x), rtol=1e-10)


def test_generate_has_the_law_of_the_data_in_its_units(generator):
    model = gaussian_model(VE(0.01, 20.0), MEAN, STD)
    x = generate(model, 20_000, n_steps=40, generator=generator)
    z = (x - MEAN) / STD
    assert float(z.mean().abs()) < 5 / 200  # 5 standard errors of 40,000 numbers
    assert float((z.var() - 1).abs()) < 5 * 2**0.5 / 200 + 5e-3  # and Heun's error


def test_generate_is_reproducible_in_any_chunk(generator, monkeypatch):
    model = gaussian_model(VE(0.01, 20.0), MEAN, STD)
    ancestral = glp.diffusion.Ancestral()
    seeded = lambda: torch.Generator().manual_seed(3)
    whole = generate(model, 300, transition=ancestral, n_steps=6, generator=seeded())
    monkeypatch.setattr("gradlogp.interfaces.pipeline.CHUNK", 77)
    parts = generate(model, 300, transition=ancestral, n_steps=6, generator=seeded())
    assert torch.allclose(whole, parts, rtol=1e-12)
    other = generate(
        model, 300, transition=ancestral, n_steps=6, generator=torch.Generator().manual_seed(4)
    )
    assert not torch.allclose(whole, other)


def test_denoised_is_the_posterior_mean(generator):
    schedule = VE(0.01, 20.0)
    model = gaussian_model(schedule, MEAN, STD)
    z = torch.randn(20, 2, generator=generator)
    expected = MEAN + STD * z / (1 + 0.7**2)  # shrinks towards the mean
    assert torch.allclose(denoised(model, MEAN + STD * z, 0.7), expected, rtol=1e-9)
    with pytest.raises(ValueError, match=r"outside the noise levels learned, 0\.01 to 20"):
        denoised(model, MEAN + STD * z, 100.0)


def test_build_model_suits_the_data(generator):
    vectors = build_model(torch.randn(200, 5, generator=generator), generator=generator)
    assert isinstance(vectors.network, glp.MLP)
    assert isinstance(vectors.schedule, VE)
    assert vectors.schedule.sigma_min <= 0.05
    images = torch.randn(50, 1, 8, 8, generator=generator)
    assert isinstance(build_model(images, generator=generator).network, glp.UNet)
    assert isinstance(build_model(images[..., :7], generator=generator).network, glp.MLP)
    with pytest.raises(ValueError, match="constant"):
        build_model(torch.ones(20, 2))
