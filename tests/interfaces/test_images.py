"""Images and sequences as they come: shapes that may be two things, odd sides, folders of any size."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from support import seeded

import gradlogp as glp
from gradlogp.interfaces.cli.main import main
from gradlogp.interfaces.pipeline import levels_for
from gradlogp.learn import checkpoint

QUICK = {"max_iter": 2, "random_state": 0, "channels": (8, 8), "n_sample_steps": 2}


@pytest.mark.parametrize(
    ("shape", "convert"),
    [
        ((40, 8, 8, 3), "pass np.moveaxis(X, -1, 1), which is (N, 3, 8, 8)"),
        ((40, 8, 8), "pass X[:, None] for images (N, 1, 8, 8)"),
        ((40, 20, 2), "pass np.moveaxis(X, -1, 1), which is (N, 2, 20)"),
        ((40, 6, 6, 6), "pass X.reshape(-1, 1, 6, 6) for their slices"),
        ((40, 1, 6, 6, 6), "np.moveaxis(X, 2, 1).reshape(-1, 1, 6, 6)"),
    ],
)
def test_shapes_that_may_be_two_things(shape, convert):
    x = np.random.default_rng(0).normal(size=shape)
    with pytest.raises(ValueError) as caught:
        glp.ScoreEstimator(**QUICK).fit(x)
    assert convert in str(caught.value)


@pytest.mark.parametrize("event", [(1, 7, 5), (3, 16), (2, 1, 9)])
def test_images_of_any_sides_and_sequences_are_learned_by_a_unet(event, few_levels):
    x = np.random.default_rng(0).normal(size=(40, *event)).astype(np.float32)
    estimator = glp.ScoreEstimator(**QUICK).fit(x)
    assert isinstance(estimator.model_.network, glp.UNet)
    assert estimator.model_.network.config["attention"]
    assert (estimator.model_.base is not None) == (len(event) == 2)
    assert estimator.sample(3).shape == (3, *event)
    assert estimator.grad_log_prob(x[:2]).shape == (2, *event)


def test_levels_follow_the_sides():
    levels = {
        (3, 8, 8): 2,
        (1, 16, 9): 2,
        (3, 32, 32): 3,
        (1, 33, 20): 4,
        (3, 64, 64): 4,
        (2, 100): 5,
    }
    assert {event: len(levels_for(event)) for event in levels} == levels
    for event, n in levels.items():
        assert n == 2 or -(-max(event[1:]) // 2 ** (n - 1)) <= 8


@pytest.mark.slow
def test_the_field_of_a_sequence_at_its_ends_and_in_its_middle():
    """AR(1) of an odd length, whose score is known: without a base, learned places near an end are no
    worse than others, as they would be if something outside were seen."""
    n, phi = 17, 0.8
    place = torch.arange(n)
    cov = phi ** (place[:, None] - place).abs().double()
    law = glp.Gaussian(torch.zeros(n), cov)
    g = seeded(0)
    x = law.sample(2000, generator=g).float()[:, None]
    network = glp.UNet((1, n), (16, 32), attention=True, generator=g).float()
    model = glp.ScoreModel(network, glp.schedules.VE(0.2, 3.0), "v")
    for _ in glp.fit(model, x, steps=150, batch_size=48, learning_rate=8e-3, generator=g):
        pass
    for sigma in (0.3, 1.0):
        z = (law.sample(400, generator=g) + sigma * torch.randn(400, n, generator=g)).float()
        t = glp.noise.time_at(model.schedule, sigma)
        with torch.no_grad():
            found = model(z[:, None], t.float())[:, 0].double()
        exact = law.noised(1.0, sigma).score(z.double())
        share = (found - exact).square().mean(0) / exact.square().mean(0)
        assert share.max() < 0.06
        assert share[[0, 1, -2, -1]].max() < 4 * share[5:-5].mean() + 0.01
        alone = -z.double() / (1 + sigma**2)  # places that know nothing of one another
        assert ((alone - exact).square().mean() / exact.square().mean()) > 0.2


def test_a_folder_of_pictures_from_the_command_line(tmp_path, capsys, few_levels):
    """Odd sides; other sizes are refused, resized when asked, and for a model that knows its own."""
    rng = np.random.default_rng(0)
    (tmp_path / "mixed").mkdir()
    for i in range(24):
        sides = (9, 7) if i % 2 else (18, 16)
        pixels = rng.integers(0, 256, (*sides, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "mixed" / f"{i}.png")
    quick = ["--steps", "2", "--batch-size", "4", "--quiet"]
    mixed, out = str(tmp_path / "mixed"), str(tmp_path / "m")
    assert main(["fit", mixed, "--out", out, *quick]) == 1
    assert "all images must have the same size" in capsys.readouterr().err
    assert main(["fit", mixed, "--out", out, "--size", "9x7", "--json", *quick]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 24
    assert checkpoint.read_config(out)["event_shape"] == [3, 9, 7]
    more = [*quick, "--size", "9x7", "--start", out]
    assert main(["fit", mixed, "--out", str(tmp_path / "n"), *more]) == 0
    assert main(["evaluate", out, mixed, "--n", "8", "--quiet"]) in (0, 1)
    for wrong in ("9x", "a", "0", "9x7x3"):
        assert main(["fit", mixed, "--out", str(tmp_path / "o"), "--size", wrong, *quick]) == 2
    capsys.readouterr()
    assert main(["fit", "moons", "--out", str(tmp_path / "o"), "--size", "8", *quick]) == 2
    assert "--size is for folders of images" in capsys.readouterr().err
    assert (
        main(["fit", "moons", "--out", str(tmp_path / "o"), "--steps", "2", "--minutes", "1"]) == 2
    )
    assert "pass only one of them" in capsys.readouterr().err
