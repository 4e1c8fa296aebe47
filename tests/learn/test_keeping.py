"""What is kept of a training: the best weights, a share of the correction, what `finish` does."""

import pytest
import torch
from support import MIXTURE, close, seeded
from torch import nn

import gradlogp as glp
from gradlogp.learn import checkpoint
from gradlogp.learn.objectives import implicit
from gradlogp.noise.schedules import VE

FEW, HELD = (MIXTURE.sample(n, generator=seeded(n)).double() for n in (12, 200))
STEPS = {"steps": 160, "batch_size": 12, "learning_rate": 0.02, "check_every": 10, "ema": 0.8}
RISES = pytest.warns(UserWarning, match="the loss on held-out data rose from .* at step")


def model(base=None):
    net = glp.MLP(2, 32, 1, generator=seeded(0)).double()
    return glp.ScoreModel(net, VE(0.05, 5.0), "v", base=base)


def trained(made, data=FEW, held_out=HELD, **options):
    return list(glp.fit(made, data, held_out=held_out, generator=seeded(3), **STEPS, **options))


def test_the_weights_of_the_lowest_held_out_loss_are_kept():
    """12 rows learned by heart: the loss on others rises, which is said; the best is handed over."""
    made, seen = model(), {}
    with RISES:
        for record in glp.fit(made, FEW, held_out=HELD, generator=seeded(3), **STEPS):
            if record.held_out is not None:
                seen[record.step] = record.held_out
    best = min(s.value for s in list(seen.values())[:-1])
    assert seen[160].value == pytest.approx(best)  # the last record is that of what is kept
    step = next(step for step, s in seen.items() if s.value == best)
    assert 10 <= step < 150
    shorter, steps = model(), glp.TrainingSettings(**STEPS)
    run = glp.fit(shorter, FEW, generator=seeded(3), settings=steps, keep_best=False)
    for record in run:
        if record.step == step:
            run.close()  # broken off: the average of that step
    for a, b in zip(made.parameters(), shorter.parameters(), strict=True):
        close(a, b)
    last = model()
    trained(last, keep_best=False)
    assert not torch.equal(last.network.inlet.weight, made.network.inlet.weight)


def test_a_correction_is_kept_as_far_as_rows_support_it(tmp_path):
    """The share is fitted on held-out rows, stored, and a resumed run has the same, bit for bit."""
    made = model("gaussian")
    with RISES:
        trained(made, standardize=True, checkpoint=tmp_path / "whole")
    share = made.base.share
    assert 0 < float(share.mean()) < 1
    again = checkpoint.load(tmp_path / "whole")
    assert again.base.config == made.base.config
    for name, value in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    broken = model("gaussian")
    run = glp.fit(
        broken, FEW, held_out=HELD, generator=seeded(3), standardize=True,
        checkpoint=tmp_path / "broken", **STEPS,
    )  # fmt: skip
    for record in run:
        if record.step == 95:
            run.close()
    assert float(broken.base.share.min()) == 1  # settled at the end only
    resumed = model("gaussian")
    with RISES:
        trained(resumed, standardize=True, checkpoint=tmp_path / "broken", resume=True)
    for name, value in made.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name
    finished = model("gaussian")
    trained(finished, standardize=True, checkpoint=tmp_path / "broken", resume=True)
    assert torch.equal(finished.base.share, share)
    plain = model()
    with pytest.raises(ValueError, match="made with base="):
        trained(plain, standardize=True, checkpoint=tmp_path / "broken", resume=True)


@pytest.mark.usefixtures("as_user")
def test_finish_changes_what_is_kept(tmp_path):
    def nothing(final):
        final.base.share.zero_()

    made = model("gaussian")
    glp_fit = glp.fit(
        made, HELD, generator=seeded(3), steps=3, batch_size=50, finish=nothing,
        checkpoint=tmp_path / "run",
    )  # fmt: skip
    list(glp_fit)
    z, t = HELD[:5], torch.tensor(0.4)
    law = glp.Gaussian(HELD.mean(0), HELD.T.cov(correction=0))
    close(made(z, t), glp.ExactScore(law, made.schedule)(z, t), rtol=1e-8)
    assert torch.equal(checkpoint.load(tmp_path / "run")(z, t), made(z, t))
    with pytest.raises(ValueError, match="finish must be"):
        glp.fit(model(), FEW, finish=3)


def test_a_condition_is_that_of_the_held_out_rows():
    net = glp.MLP(2, 8, 1, 2, generator=seeded(0)).double()
    nn.init.normal_(net.outlet.weight, generator=seeded(1))
    made = glp.ScoreModel(net, VE(0.05, 5.0), "v", base="gaussian")
    classes = (HELD[:, 0] > 0).long()
    list(glp.fit(
        made, HELD, condition=classes, held_out=HELD[:60], held_out_condition=classes[:60],
        generator=seeded(3), steps=20, batch_size=50,
    ))  # fmt: skip
    assert made.given(0)(HELD[:3], torch.tensor(0.3)).isfinite().all()


def test_an_energy_without_second_derivatives_is_noticed():
    """A ReLU energy has a trace of exactly 0: its loss falls as the score vanishes."""
    relu, silu = (
        nn.Sequential(nn.Linear(2, 8), kind(), nn.Linear(8, 1)).double()
        for kind in (nn.ReLU, nn.SiLU)
    )
    score = lambda net: glp.as_target(energy=lambda x: net(x)[:, 0], event_shape=(2,)).score
    with pytest.warns(UserWarning, match="exactly 0 at every point while the score is not"):
        implicit(score(relu), HELD)
    implicit(score(silu), HELD)


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
            assert bool(
                (score.base.share == 1).all()
            )  # the share of the old data is no part of it
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
