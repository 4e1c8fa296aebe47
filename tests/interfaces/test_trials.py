"""Trials of two trainings: held-out rows decide, and the one that is chosen goes on from its steps."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from support import MIXTURE, seeded

import gradlogp as glp
from gradlogp.interfaces import base as bases
from gradlogp.interfaces import trials
from gradlogp.interfaces.kept import training_of
from gradlogp.interfaces.pipeline import OBJECTIVE
from gradlogp.interfaces.trials import choose
from gradlogp.learn import pace
from gradlogp.learn.arguments import Asked
from gradlogp.learn.held_out import CHECK_POINTS
from gradlogp.learn.settings import DENSE
from gradlogp.learn.share import fit_share, of_share
from gradlogp.noise.schedules import VE

WRONG = glp.GaussianMixture([0.5, 0.5], [[-1.0, 0.5], [1.0, -0.5]], 0.05)


class Stop(Exception):
    """What a callback raises."""


@pytest.fixture
def short(monkeypatch):
    """Trials of few steps, and a model that is judged in no time."""
    monkeypatch.setattr(trials, "TRIED", (20, 10))
    monkeypatch.setattr(trials, "LEAST", (1000, 40))
    monkeypatch.setattr(bases, "COMPONENTS", (2,))
    monkeypatch.setattr(bases, "ROWS", 16)
    monkeypatch.setattr(bases, "STEPS", 4)


def asked_of(network, base, x, aside, settings):
    model = glp.ScoreModel(network, VE(0.05, 20.0), "v", base=base)
    return Asked(model, x, OBJECTIVE, None, settings, held_out=aside, generator=seeded(1))


def stop_at(n):
    def callback(record):
        if record.step == n:
            raise Stop

    return callback


@pytest.mark.parametrize(("base", "whole"), [(WRONG, True), (MIXTURE, False)])
def test_a_trial_decides_whether_the_network_learns_the_whole_score(base, whole, monkeypatch):
    """A mixture that would have to be undone is only fallen back on; the right one is corrected."""
    monkeypatch.setattr(trials, "TRIED", (40, 40))
    x, aside = (MIXTURE.sample(n, generator=seeded(n)).double() for n in (1000, 300))
    settings = glp.TrainingSettings(steps=1000)
    few = replace(settings, steps=999)
    cases = [
        (x, base, settings, True), (x[:999], base, settings, False), (x, base, few, False),
        (x, "gaussian", settings, False), (x, None, settings, False),
    ]  # fmt: skip
    for rows, law, how, tried in cases:
        network = glp.MLP(2, 32, 1, generator=seeded(0))
        asked = asked_of(network, law, rows, aside, how)
        before = [p.clone() for p in asked.model.parameters()]
        first = choose(asked, how, seed=0, quiet=True)
        assert (first is not None) is tried
        assert getattr(asked.model.base, "fallback", False) is (whole and tried)
        assert all(map(torch.equal, before, asked.model.parameters()))
        assert torch.equal(asked.generator.get_state(), seeded(1).get_state())
    asked = asked_of(network, base, x, aside, settings)
    first = choose(asked, replace(settings, learning_rate=1e30), seed=0, quiet=True)
    assert not asked.model.base.fallback
    assert len(first.records) == 40  # of the other one


ROW = 1e-3
"""Seconds of a row in the network, on the clock of these tests."""


class Worked(glp.MLP):
    """A network whose rows take time, and nothing else does."""

    now = 0.0

    def forward(self, z, *rest):
        Worked.now += ROW * len(z)
        return super().forward(z, *rest)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(("minutes", "tried"), [(5.0, True), (3.0, False)])
def test_a_trial_and_the_training_fill_the_minutes(minutes, tried, monkeypatch):
    monkeypatch.setattr(pace, "clock", lambda: Worked.now)
    x, aside = (MIXTURE.sample(n, generator=seeded(n)) for n in (1500, 500))
    how = glp.TrainingSettings(minutes=minutes, batch_size=512)
    asked = asked_of(Worked(2, 8, 1, generator=seeded(0)), MIXTURE, x, aside, how)
    large, began = replace(how, batch_size=1024), Worked.now
    found = trials.settled(asked, large, None, seed=0, quiet=True)
    second = bool(asked.model.base.fallback)
    assert found.settings == (large if second else how)
    assert len(found.begun.records) == ((20, 10)[second] if tried else 0)
    records = glp.fit(
        asked.model, x, OBJECTIVE, settings=found.settings, held_out=aside, begun=found.begun
    )
    for _ in records:
        pass
    assert 0.8 < (Worked.now - began) / (60 * minutes) < 1.01


@pytest.mark.usefixtures("short")
def test_within_minutes_a_resumed_run_is_the_unbroken_one(monkeypatch, tmp_path):
    """With a trial, which is not repeated, whatever the speed is then; stopped in it and after it."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(pace, "clock", lambda: 0.0625 * next(ticks))
    monkeypatch.setattr(trials, "APART", -300)  # which would leave too little of so short a time
    x = MIXTURE.sample(1300, generator=seeded(0)).numpy()
    how = glp.TrainingSettings(minutes=0.25, batch_size=32)
    options = {"settings": how, "width": 8, "random_state": 0}
    seen = []
    whole = glp.ScoreEstimator(callback=seen.append, **options).fit(x)
    assert [r.step for r in seen] == list(range(1, seen[-1].steps + 1))
    assert 40 < len(seen) < 200
    for stop in (5, 30):
        made = {"checkpoint": tmp_path / str(stop), **options}
        with pytest.raises(Stop):
            glp.ScoreEstimator(callback=stop_at(stop), **made).fit(x)
        run = glp.learn.checkpoint.read_run(tmp_path / str(stop))
        assert run["step"] == max(stop, 20)
        assert (run["settings"]["minutes"], run["settings"]["steps"]) == (0.25, len(seen))
        with monkeypatch.context() as patch:
            patch.setattr(trials, "choose", None)
            rest = glp.ScoreEstimator(resume=True, **made).fit(x)
        states = (e.model_.state_dict().values() for e in (whole, rest))
        assert all(map(torch.equal, *states))
        assert rest.held_out_loss_ == whole.held_out_loss_


def learn(parts, **options):
    """Learn 1,300 rows of a mixture, or of a table in which some cells are missing."""
    x = MIXTURE.sample(1300, generator=seeded(0)).numpy()
    estimator = glp.ScoreEstimator(max_iter=40, batch_size=32, width=8, random_state=0, **options)
    if not parts:
        return estimator.fit(x)
    x[np.random.default_rng(0).uniform(size=x.shape) < 0.2] = np.nan
    return glp.TableEstimator(estimator).fit(pd.DataFrame(x, columns=["a", "b"])).estimator_


@pytest.mark.usefixtures("few_levels", "short")
@pytest.mark.parametrize(
    ("second", "parts"),
    [
        (False, True), (True, False),
        pytest.param(False, False, marks=pytest.mark.slow),
        pytest.param(True, True, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_what_is_chosen_is_what_it_would_be_without_a_trial(parts, second, monkeypatch, tmp_path):
    """Bit for bit, and resumed: a trial costs the steps of the other training, and no others."""
    monkeypatch.setattr("gradlogp.learn.share.ENTRIES", 2**10)
    seen, taken, take = [], [], trials.Beginning.take
    losses = [torch.arange(9) / 9 + k for k in ((1, 0) if second else (0, 1))]

    def counted(run, n):
        taken.append(n)
        return take(run, n)

    def stop(record):
        seen.append(record.step)
        stop_at(30)(record)

    def without(asked, large, directory, **options):
        if not parts:
            asked.model.base.fallback = second
        return replace(asked, settings=large if second else asked.settings)

    with monkeypatch.context() as patch:
        patch.setattr(trials, "_losses", lambda *arguments: losses.pop(0))
        patch.setattr(trials.Beginning, "take", counted)
        with pytest.raises(Stop):
            learn(parts, checkpoint=tmp_path, callback=stop)
    assert taken == [20, 10]
    assert seen == list(range(1, 31))
    used = glp.learn.checkpoint.read_run(tmp_path)["settings"]
    how = glp.TrainingSettings(**(DENSE if second else {}) | {"steps": 40, "batch_size": 32})
    assert used == json.loads(json.dumps(vars(how)))
    monkeypatch.setattr(trials, "choose", None)
    tried = learn(parts, checkpoint=tmp_path, resume=True)
    monkeypatch.setattr("gradlogp.interfaces.estimator.settled", without)
    plain = learn(parts)
    assert getattr(tried.model_.base, "fallback", False) is (second and not parts)
    assert all(map(torch.equal, *(e.model_.state_dict().values() for e in (tried, plain))))
    assert tried.held_out_loss_ == plain.held_out_loss_


def test_only_trainings_of_the_estimator_are_tried(monkeypatch):
    """Not with a network, a loss or a condition of one's own."""
    asked = []
    monkeypatch.setattr(trials, "choose", lambda *arguments, **options: asked.append(1))
    x = MIXTURE.sample(100, generator=seeded(0)).numpy()
    fit = lambda y=None, **k: glp.ScoreEstimator(max_iter=2, width=4, **k).fit(x, y)
    fit()
    assert len(asked) == 1
    fit(network=glp.MLP(2, 4, 1, generator=seeded(0)))
    fit(objective=OBJECTIVE)
    fit(np.repeat([0, 1], 50), condition="classes")
    assert len(asked) == 1


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


def test_the_price_of_a_comparison_is_that_of_the_shares_it_fits():
    """In rows that the network sees, of few held-out rows and of many, of which some are looked at."""
    for n in (100, 700, 5000):
        x = MIXTURE.sample(n, generator=seeded(n))
        asked = asked_of(
            Worked(2, 8, 1, generator=seeded(0)), MIXTURE, x, x, glp.TrainingSettings()
        )
        looked_at, before = min(n, CHECK_POINTS), Worked.now
        fit_share(asked.model, x[:looked_at], None, 0)
        assert of_share(asked.model, looked_at) == round((Worked.now - before) / ROW)
