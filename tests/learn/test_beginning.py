"""The first steps of a training: what goes on from them is the unbroken training, bit for bit."""

import pytest
import torch
from support import seeded
from test_pace import Clock, make, points, slow_loss

import gradlogp as glp
from gradlogp.learn import pace
from gradlogp.learn.arguments import Asked
from gradlogp.learn.beginning import Beginning
from gradlogp.noise.schedules import VP

SETTINGS = {"batch_size": 16, "ema": 0.9, "check_every": 4, "ema_half_lives": (5.0,)}


def shifted(x, generator):
    return x + torch.randn(1, generator=generator)


def beginning(loss, **settings):
    how = glp.TrainingSettings(**SETTINGS | settings)
    return Beginning(Asked(
        make(), points(), loss, None, how, True, augment=shifted, held_out=points(40),
        generator=seeded(7),
    ))  # fmt: skip


def begin(n, loss=glp.objectives.multilevel, **settings):
    run = beginning(loss, **settings)
    steps = run.planned()
    return run, steps, list(run.take(n))


def fit(model, loss=glp.objectives.multilevel, data=None, **options):
    options = {"generator": seeded(7)} | SETTINGS | options
    data = points() if data is None else data
    return glp.fit(
        model, data, loss, standardize=True, augment=shifted, held_out=points(40), **options
    )


def same(a, b):
    return all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("n", [0, 10])
def test_a_training_that_was_begun_is_the_unbroken_one(n, tmp_path):
    whole, rest, again = make(), make(3), make(4)
    expected = list(fit(whole, steps=25, checkpoint=tmp_path / "a"))
    run, steps, records = begin(n, steps=25)
    assert (steps, len(records)) == (25, n)
    options = {"steps": 25, "begun": run.begun, "generator": seeded(8)}
    for i, model in enumerate((rest, again)):  # what was begun does not change
        found = list(fit(model, checkpoint=tmp_path / f"{i}", **options))
        for name in ("step", "loss", "gradient_norm", "learning_rate", "held_out", "steps"):
            assert [getattr(r, name) for r in found] == [getattr(r, name) for r in expected], name
        assert same(model, whole)
        averages = (glp.learn.checkpoint.load(tmp_path / k, ema=5.0) for k in ("a", f"{i}"))
        assert same(*averages)


def test_steps_of_another_training_are_refused():
    run, *_ = begin(3, steps=25)
    options = {"steps": 25, "begun": run.begun}
    with pytest.raises(ValueError, match="begun was made with batch_size=16, got 7: pass"):
        fit(make(), batch_size=7, **options)
    with pytest.raises(ValueError, match="begun was made with n_samples=100, got 99: pass"):
        fit(make(), data=points(99), **options)


@pytest.mark.parametrize("stop", [6, 17])
def test_it_is_saved_when_stopped_and_resumed(stop, tmp_path):
    """Also while the records of what was begun are repeated."""
    whole, part, rest = make(), make(3), make(4)
    list(fit(whole, steps=25))
    run, *_ = begin(10, steps=25)
    records = fit(part, steps=25, begun=run.begun, checkpoint=tmp_path / "a")
    assert next(r for r in records if r.step == stop).steps == 25
    records.close()
    assert glp.learn.checkpoint.read_run(tmp_path / "a")["step"] == max(stop, 10)
    list(fit(rest, steps=25, checkpoint=tmp_path / "a", resume=True))
    assert same(rest, whole)


def test_a_time_is_settled_before_the_first_steps(monkeypatch, tmp_path):
    """The steps stay those that were planned, at any speed, and with the checkpoint are the minutes."""
    clock = Clock(monkeypatch)
    loss, whole, part, rest = slow_loss(clock), make(), make(3), make(4)
    run = beginning(loss, minutes=0.5)
    n = run.planned()
    assert run.check == pytest.approx(1)  # here a measurement takes as long as a step
    run.plan(n - 5)
    taken = list(run.take(8))
    list(fit(whole, loss, steps=n - 5))
    clock.each = 9.0
    options = {"minutes": 0.5, "checkpoint": tmp_path / "a"}
    records = fit(part, loss, begun=run.begun, **options)
    found = [next(records) for _ in range(12)]
    assert found[:8] == taken
    assert found[-1].steps == n - 5
    records.close()
    kept = glp.learn.checkpoint.read_run(tmp_path / "a")["settings"]
    assert (kept["steps"], kept["minutes"]) == (n - 5, 0.5)
    list(fit(rest, loss, resume=True, **options))
    assert same(rest, whole)


def test_what_is_no_beginning_is_refused():
    with pytest.raises(ValueError, match="begun must be the first steps of this training, got"):
        fit(make(), begun={})


def test_a_training_that_was_begun_says_how_slow_it_is(monkeypatch):
    monkeypatch.setattr(pace, "LONG", 0.0)
    x = torch.randn(20, 1, 8, 8, generator=seeded(1))
    new = lambda: glp.ScoreModel(glp.UNet((1, 8, 8), (8,), generator=seeded()), VP())
    how = glp.TrainingSettings(steps=8, batch_size=4)
    run = Beginning(Asked(new(), x, glp.objectives.multilevel, None, how, generator=seeded(2)))
    with pytest.warns(UserWarning, match="8 steps would take about"):
        list(run.take(4))
    with pytest.warns(UserWarning, match="8 steps would take about"):
        list(glp.fit(new(), x, settings=how, begun=run.begun, generator=seeded(2)))
