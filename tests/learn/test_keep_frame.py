"""Training on and fine-tuning: what a model knows stays, but for its weights."""

import pytest
import torch
from support import seeded

import gradlogp as glp
from gradlogp.noise.schedules import VE

QUICK = {"batch_size": 64, "learning_rate": 3e-3}


def points(n=600, shift=0.0, seed=1):
    return torch.randn(n, 2, generator=seeded(seed)) * torch.tensor([2.0, 0.5]) + 3 + shift


def make(seed=0, **options):
    return glp.ScoreModel(
        glp.MLP(2, 16, 1, generator=seeded(seed)), VE(0.05, 10.0), "v", **options
    )


def train(model, data, steps=30, seed=7, **options):
    return [
        r.loss
        for r in glp.fit(model, data, steps=steps, generator=seeded(seed), **(QUICK | options))
    ]


def frame(model):
    state = model.state_dict()
    return {
        k: v.clone() for k, v in state.items() if not k.startswith("network.") and "share" not in k
    }


def test_the_frame_stays_and_the_weights_are_where_it_begins():
    """The first loss is that of the model as it is, on data of another place and width."""
    model = make(base="gaussian")
    train(model, points(), standardize=True, held_out=points(100, seed=2))
    before, weights = frame(model), {k: v.clone() for k, v in model.network.state_dict().items()}
    assert float(model.base.share.max()) < 1
    other, losses = 3 * points(shift=1.0), []

    def spy(score, z, *, generator=None):
        if not losses:
            for name, value in score.network.state_dict().items():
                assert torch.equal(value, weights[name])
            assert bool((score.base.share == 1).all())  # without the share of the old data
            expected = (other - before["coordinates.shift"]) / before["coordinates.scale"]
            assert torch.isclose(z[0], expected).all(1).any()
        losses.append(0)
        return glp.objectives.multilevel(score, z, generator=generator)

    list(glp.fit(model, other, spy, keep_frame=True, steps=5, generator=seeded(3), **QUICK))
    after = frame(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    train(model, other, steps=2)
    assert not torch.equal(frame(model)["z_mean"], before["z_mean"])  # what it is without


def test_training_on_goes_on_learning(tmp_path):
    """Beyond the steps that were planned, from the checkpoint: better than before and than anew."""
    law = glp.GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], 0.3)
    x = law.sample(2000, generator=seeded(1))
    exact = glp.ExactScore(law, VE(0.05, 10.0))

    def excess(model, **options):
        options = QUICK | {"steps": 100, "learning_rate": 0.01, "exact": exact} | options
        return list(glp.fit(model, x, generator=seeded(4), **options))[-1].excess.value

    short = excess(make(), checkpoint=tmp_path / "run")
    model = glp.learn.checkpoint.load(tmp_path / "run").double()
    longer = excess(model, keep_frame=True, steps=500)
    assert longer < 0.85 * short


def test_a_frame_cannot_be_kept_and_fitted():
    with pytest.raises(
        ValueError, match="keeps the coordinates of the model, but standardize= would"
    ):
        train(make(), points(), standardize=True, keep_frame=True)


def test_an_estimator_begins_from_another(tmp_path):
    quick = {"max_iter": 20, "width": 16, "random_state": 0, "base": "none"}
    x = points(100).numpy()
    first = glp.ScoreEstimator(**quick).fit(x)
    first.save(tmp_path / "a")
    second = glp.ScoreEstimator(**quick | {"width": 128}, start=tmp_path / "a").fit(x + 1)
    assert second.model_.network.config["width"] == 16
    before, after = frame(first.model_), frame(second.model_)
    assert all(torch.equal(before[name], after[name]) for name in before)
    second.save(tmp_path / "b")
    assert glp.ScoreEstimator.load(tmp_path / "b").start is None
    for change, data, message in (
        ({}, x[:, :1], r"samples of shape \[2\], but this training has \[1\]"),
        ({"condition": "classes"}, x, "has condition None, but this training has 'classes'"),
        ({"schedule": VE(0.1, 5.0)}, x, "has schedule VE"),
    ):
        other = glp.ScoreEstimator(**quick, start=tmp_path / "a", **change)
        with pytest.raises(ValueError, match=message):
            other.fit(data, [0, 1] * 50)


def test_classes_of_another_training_are_refused(tmp_path):
    quick = {"max_iter": 3, "width": 8, "random_state": 0, "base": "none"}
    quick["condition"] = "classes"
    x, y = points(100).numpy(), ["a", "b"] * 50
    glp.ScoreEstimator(**quick).fit(x, y).save(tmp_path / "a")
    glp.ScoreEstimator(**quick, start=tmp_path / "a").fit(x, y)
    with pytest.raises(
        ValueError, match=r"has classes \['a', 'b'\], but this training has \['a', 'c'\]"
    ):
        glp.ScoreEstimator(**quick, start=tmp_path / "a").fit(x, ["a", "c"] * 50)
