"""Whole models in data units: what goes in and comes out has the units of the data."""

import numpy as np
import pytest
import torch

import gradlogp as glp
from gradlogp.interfaces import pipeline
from gradlogp.interfaces.pipeline import FREQUENCIES, build_model, chunk_of
from gradlogp.learn.settings import DENSE, dense
from gradlogp.noise import AffineCoordinates
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
    model.coordinates = AffineCoordinates(mean, std, torch.float64)
    return model


MEAN = torch.tensor([10.0, -3.0], dtype=torch.float64)
STD = torch.tensor([0.01, 50.0], dtype=torch.float64)


@pytest.mark.parametrize("schedule", [VE(0.01, 20.0), VP()])
def test_log_likelihood_is_in_data_units(schedule, generator):
    model = gaussian_model(schedule, MEAN, STD)
    x = MEAN + STD * torch.randn(20, 2, generator=generator)
    found = glp.log_likelihood(model, x, tolerance=1e-7)
    alpha, sigma = schedule(torch.tensor(found.t_min))
    # the law of z_t = α z_0 + σ ε at the least noise, read as one of data
    law = glp.Gaussian(MEAN, STD**2 * (alpha**2 + sigma**2))
    assert torch.allclose(found.log_prob, law.log_prob(x), atol=1e-6)


def test_the_estimator_denoises_by_the_posterior_mean(generator):
    estimator = glp.ScoreEstimator()
    estimator.model_, estimator.n_features_in_ = gaussian_model(VE(0.01, 20.0), MEAN, STD), 2
    estimator._tensors = True
    z = torch.randn(20, 2, generator=generator)
    expected = MEAN + STD * z / (1 + 0.7**2)  # shrinks towards the mean
    assert torch.allclose(estimator.denoise(MEAN + STD * z, 0.7), expected, rtol=1e-9)
    with pytest.raises(ValueError, match=r"outside the noise levels .*, 0\.01 to 20"):
        estimator.denoise(MEAN + STD * z, 100.0)


def test_float64_far_from_zero_keeps_its_digits(as_user, few_levels):
    """Nothing is cast before it is centred, and what is drawn is decoded in float64."""
    g = torch.Generator().manual_seed(0)
    unit = torch.randn(600, 2, generator=g)
    for shift, scale, given in (
        (1e7, 1.0, torch.as_tensor),
        (1.7e9, 1000.0, np.asarray),  # an hour
        (1.7e9, 17.0, torch.as_tensor),  # a minute
        (1.7e9, 17.0, np.asarray),
    ):
        settings = {"max_iter": 15, "width": 16, "random_state": 0, "n_sample_steps": 12}
        estimator = glp.ScoreEstimator(**settings).fit(given(shift + scale * unit))
        drawn = torch.as_tensor(estimator.sample(500))
        assert drawn.dtype == torch.float64
        assert len(drawn.unique(dim=0)) >= 0.95 * 500
        assert abs(float(drawn[:, 0].std()) / scale - 1) < 0.25
        assert abs(float(drawn.mean()) - shift) < 0.3 * scale


def test_build_model_suits_the_data(generator):
    vectors = build_model(torch.randn(200, 5, generator=generator), generator=generator)
    assert isinstance(vectors.network, glp.MLP)
    assert isinstance(vectors.schedule, VE)
    assert 0.05 < vectors.schedule.sigma_min <= 0.1  # 200 points in 5 dimensions lie far apart
    assert vectors.base is None
    images = torch.randn(50, 1, 8, 8, generator=generator)
    assert isinstance(build_model(images, generator=generator).network, glp.UNet)
    assert isinstance(build_model(images[..., :7], generator=generator).network, glp.UNet)
    assert isinstance(build_model(images[:, 0], generator=generator).network, glp.UNet)
    assert isinstance(build_model(images[..., :2, :2], generator=generator).network, glp.MLP)
    with pytest.raises(ValueError, match="constant"):
        build_model(torch.ones(20, 2))


def test_frequencies_where_rows_are_many_for_the_columns(generator):
    x = torch.randn(60, 3, generator=generator)
    for data, width, many in ((x, 8, True), (x[:59], 8, False), (x, 2, False)):
        network = build_model(data, width=width, base="gaussian", generator=generator).network
        assert network.config["frequencies"] == (list(FREQUENCIES) if many else [])


def test_many_rows_of_two_columns(generator):
    """A narrow network that learns all of the score, in large steps; else nothing changes."""
    law = glp.GaussianMixture(torch.ones(2) / 2, torch.eye(2), 0.1)
    for many, width in ((True, 64), (False, 128)):
        x = torch.randn(60, 2, generator=generator)
        model = build_model(x, base=law, dense=many, generator=generator)
        assert (model.network.config["width"], model.base.fallback) == (width, many)
        assert not build_model(x, base="gaussian", dense=many).base.fallback
    assert dense(4000, (2,))
    assert not any(dense(n, event) for n, event in ((3999, (2,)), (4000, (3,)), (4000, (2, 1))))
    x, rates = torch.randn(4000, 2, generator=generator), []
    y = np.arange(4000) % 2 == 0
    for rows, of, changes in (
        (x, None, {}), (x[1:], None, {}), (x, y, {"condition": "classes"}),
        (x, None, {"settings": glp.TrainingSettings()}),
    ):  # fmt: skip
        found = glp.ScoreEstimator(
            max_iter=1, batch_size=16, base="none", random_state=0,
            callback=lambda record: rates.append(record.learning_rate), **changes,
        ).fit(rows, of)  # fmt: skip
    assert rates == [DENSE["learning_rate"]] + 3 * [glp.TrainingSettings().learning_rate]
    assert found.model_.network.config["width"] == 64


@pytest.mark.slow
def test_frequencies_find_modes_that_are_narrow_and_many(monkeypatch):
    """Eight modes of deviation 0.04: within 0.25 nats of their law, and 0.8 away without."""
    law = glp.GaussianMixture(torch.ones(8) / 8, torch.linspace(-1.6, 1.6, 8)[:, None], 0.04**2)
    generator = torch.Generator().manual_seed(0)
    x, new = (law.sample(n, generator=generator) for n in (2000, 400))
    apart = []
    for frequencies in (FREQUENCIES, ()):
        monkeypatch.setattr(pipeline, "FREQUENCIES", frequencies)
        found = glp.ScoreEstimator(
            base="gaussian", max_iter=600, width=64, depth=2, random_state=0
        )
        nats = found.fit(x.numpy()).score_samples(new.numpy())
        blurred = law.noised(1.0, found.sigma_min_ * float(x.std()))
        apart.append(float((blurred.log_prob(new) - torch.as_tensor(nats)).mean()))
    assert apart[0] < 0.25
    assert apart[1] > 0.5  # negative control


def test_a_network_that_is_narrower_than_the_data(generator):
    x = torch.randn(100, 20, generator=generator)
    with pytest.warns(UserWarning, match="20 directions and the network a width of 8: .* base="):
        build_model(x, width=8, generator=generator)
    build_model(x, width=8, base="gaussian", generator=generator)
    build_model(x[:, :4] @ torch.randn(4, 20, generator=generator), width=8, generator=generator)


@pytest.mark.slow
def test_three_channels_in_units_far_apart():
    """Temperature, pressure and moisture in K, Pa and kg/kg, each an AR(1) of 0.8 over 16 points."""
    g = torch.Generator().manual_seed(0)
    mean, std = torch.tensor([[285.0, 101_325.0, 8e-3], [12.0, 900.0, 3e-3]]).double()[..., None]
    z = torch.randn(2000, 3, 16, generator=g, dtype=torch.float64)
    for k in range(1, 16):
        z[..., k] = 0.8 * z[..., k - 1] + 0.6 * z[..., k]
    torch.set_default_dtype(torch.float32)
    model = glp.ScoreModel(glp.MLP((3, 16), generator=g), glp.schedules.EDM(0.002, 80.0), "v")
    settings = {"steps": 2000, "batch_size": 512, "standardize": True}
    for _ in glp.fit(model, mean + std * z, generator=g, **settings):
        pass
    new = glp.evolve(glp.diffusion.ProbabilityFlow(), model, 4000, generator=g)
    z = (new.double() - mean) / std
    assert float(z.mean((0, 2)).abs().max()) < 0.05
    assert float((z.std((0, 2)) - 1).abs().max()) < 0.03
    z = z - z.mean(0)
    later, earlier = z[..., 1:], z[..., :-1]
    lag = (later * earlier).sum((0, 2)) / (
        later.square().sum((0, 2)) * earlier.square().sum((0, 2))
    ).sqrt()
    assert float((lag - 0.8).abs().max()) < 0.03


def test_images_are_handled_in_portions_that_a_cache_holds():
    """The entries together count, down to one image; vectors are small and go by thousands."""
    for shape, n, expected in (
        ((2,), 10_000, 4096),
        ((200,), 300, 300),
        ((3, 32, 32), 5000, 42),
        ((2, 4096), 5000, 16),
        ((1, 1000, 1000), 5, 1),
    ):
        score = glp.as_score(lambda z, t: z, "x0", VP(), event_shape=shape)
        assert chunk_of(score, n) == expected
    assert chunk_of(glp.as_score(lambda z, t: z, "x0", VP()), 10_000) == 4096
