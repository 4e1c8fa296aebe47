"""Trials of two trainings: within minutes they take their part of them, and the better one goes on."""

from dataclasses import replace

import pytest
import torch
from support import MIXTURE, seeded

import gradlogp as glp
from gradlogp.interfaces import base as bases
from gradlogp.interfaces.base import try_whole
from gradlogp.interfaces.kept import training_of
from gradlogp.interfaces.pipeline import OBJECTIVE
from gradlogp.learn import pace
from gradlogp.learn.settings import DENSE
from gradlogp.noise.schedules import VE

ROW = 1e-3
"""Seconds of a row in the network, on the clock of these tests."""


class Worked(glp.MLP):
    """A network whose rows take time, and nothing else does."""

    now = 0.0

    def forward(self, z, *rest):
        Worked.now += ROW * len(z)
        return super().forward(z, *rest)


@pytest.fixture
def short(monkeypatch):
    """Trials of few steps, and a model that is judged in no time."""
    monkeypatch.setattr(bases, "TRIED", (40, 20))
    monkeypatch.setattr(bases, "LEAST", (1000, 60))
    monkeypatch.setattr(bases, "COMPONENTS", (2,))
    monkeypatch.setattr(bases, "ROWS", 16)
    monkeypatch.setattr(bases, "STEPS", 4)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("minutes", "tried"), [(4.0, True), (1.6, False), (0.8, False)])
def test_a_trial_and_the_training_fill_the_minutes(minutes, tried, monkeypatch):
    monkeypatch.setattr(pace, "clock", lambda: Worked.now)
    x, aside = (MIXTURE.sample(n, generator=seeded(n)) for n in (1500, 500))
    model = glp.ScoreModel(Worked(2, 8, 1, generator=seeded(0)), VE(0.05, 20.0), "v", base=MIXTURE)
    how = glp.TrainingSettings(minutes=minutes, batch_size=512)
    trainings, began = (how, replace(how, batch_size=1024)), Worked.now
    first = try_whole(
        model, x, aside, trainings, standardize=False, augment=None, generator=seeded(0), seed=0,
        quiet=True,
    )  # fmt: skip
    fallback = bool(model.base.fallback)
    assert len(first.records) == ((40, 20)[fallback] if tried else 0)
    records = glp.fit(
        model, x, OBJECTIVE, settings=trainings[fallback], held_out=aside, begun=first,
        generator=seeded(0),
    )  # fmt: skip
    for record in records:
        if record.step == record.steps - 1:  # what follows the last step is not measured here
            break
    assert 0.5 < (Worked.now - began) / (60 * minutes) < 1


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("stop", [5, 45])
def test_within_minutes_a_resumed_run_is_the_unbroken_one(stop, monkeypatch, tmp_path):
    """With a trial, which is not repeated, whatever the speed is then."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(pace, "clock", lambda: 0.0625 * next(ticks))
    monkeypatch.setattr(bases, "JUDGED", 2)  # which would leave too little of so short a time
    x = MIXTURE.sample(1300, generator=seeded(0)).numpy()
    how = glp.TrainingSettings(minutes=0.15, batch_size=32)
    options = {"settings": how, "width": 8, "random_state": 0}

    class Stop(Exception):
        pass

    def stopped(record):
        if record.step == stop:
            raise Stop

    seen = []
    whole = glp.ScoreEstimator(callback=seen.append, **options).fit(x)
    assert [r.step for r in seen] == list(range(1, seen[-1].steps + 1))
    assert 50 < len(seen) < 120
    with pytest.raises(Stop):
        glp.ScoreEstimator(checkpoint=tmp_path, callback=stopped, **options).fit(x)
    run = glp.learn.checkpoint.read_run(tmp_path)
    assert run["step"] == max(stop, 40)
    assert (run["settings"]["minutes"], run["settings"]["steps"]) == (0.15, len(seen))
    monkeypatch.setattr(bases, "try_whole", None)
    rest = glp.ScoreEstimator(checkpoint=tmp_path, resume=True, **options).fit(x)
    states = (e.model_.state_dict().values() for e in (whole, rest))
    assert all(map(torch.equal, *states))
    assert rest.held_out_loss_ == whole.held_out_loss_


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("fallback", [False, True])
def test_what_is_chosen_is_what_it_would_be_without_a_trial(fallback, monkeypatch):
    """Bit for bit: a trial costs the steps of the other training, and no others."""
    x = MIXTURE.sample(1300, generator=seeded(0)).numpy()
    options = {"max_iter": 80, "batch_size": 32, "width": 8, "random_state": 0}
    losses = iter(
        [torch.ones(9) + torch.arange(9) / 9, torch.arange(9) / 9][:: 1 if fallback else -1]
    )
    monkeypatch.setattr(bases, "_losses", lambda *arguments: next(losses))
    taken = []
    monkeypatch.setattr(bases.Beginning, "take", _counted(bases.Beginning.take, taken))
    seen = []
    tried = glp.ScoreEstimator(callback=seen.append, **options).fit(x)
    assert tried.model_.base.fallback is fallback
    assert taken == [40, 20]
    assert [r.step for r in seen] == list(range(1, 81))

    def settled(model, *rest, **more):
        model.base.fallback = fallback

    monkeypatch.setattr("gradlogp.interfaces.estimator.try_whole", settled)
    plain = glp.ScoreEstimator(**options).fit(x)
    states = (e.model_.state_dict().values() for e in (tried, plain))
    assert all(map(torch.equal, *states))
    assert tried.held_out_loss_ == plain.held_out_loss_


def _counted(take, taken):
    def counted(run, n):
        taken.append(n)
        return take(run, n)

    return counted


def test_minutes_alone_leave_the_rest_to_be_chosen():
    """As steps of the estimator do; settings of one's own stay as they are."""
    asked = lambda **how: training_of(
        glp.ScoreEstimator(settings=glp.TrainingSettings(**how)), dense=True
    )
    own = {"minutes": 2.0, "learning_rate": 1e-3}
    expected = DENSE | {"minutes": 2.0, "steps": glp.TrainingSettings.steps}
    assert asked(minutes=2.0) == glp.TrainingSettings(**expected)
    assert asked(**own) == glp.TrainingSettings(**own)
    assert asked() == glp.TrainingSettings()
    few = glp.ScoreEstimator(settings=glp.TrainingSettings(minutes=2.0), batch_size=64)
    assert training_of(few, dense=True).batch_size == 64
    assert training_of(few) == glp.TrainingSettings(minutes=2.0, batch_size=64)
