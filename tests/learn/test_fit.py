"""Training: what a record says, what is averaged, and that nothing is lost or changed by a stop."""

import functools
import math
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support import seeded
from torch import nn

import gradlogp as glp
from gradlogp.distributions.analytic.conditional import Joint
from gradlogp.learn import checkpoint
from gradlogp.learn.gradients import Descent, clip
from gradlogp.learn.keeping import accelerated
from gradlogp.learn.objectives import excess, multilevel
from gradlogp.learn.settings import ema_decay
from gradlogp.noise.coordinates import AffineCoordinates
from gradlogp.noise.schedules import VE, VP
from gradlogp.scores.networks import NO_CLASS

MIXTURE = {"weights": [0.3, 0.7], "means": [[-2.0, 0.0], [1.0, 1.0]], "covs": [0.3, 0.5]}
QUICK = {"steps": 20, "batch_size": 32, "warm_up": 5, "ema": 0.9}


def points(n=300, seed=1):
    return glp.GaussianMixture(**MIXTURE).sample(n, generator=seeded(seed))


def make(seed=0, width=16, condition=None):
    network = glp.MLP(2, width, 1, condition, generator=seeded(seed))
    return glp.ScoreModel(network, VP())


def train(model, x, objective=multilevel, **options):
    return list(glp.fit(model, x, objective, generator=seeded(7), **(QUICK | options)))


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b):
    """Check that two nested structures are equal bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def refused(match, *parts, error=ValueError, **options):
    with pytest.raises(error, match=match) as caught:
        train(*parts, **options)
    assert "\n" not in str(caught.value)


class Two(nn.Module):
    """A network of one parameter with two entries."""

    event_shape = torch.Size([2])

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.5, -0.25]))

    def forward(self, x, c):
        return self.a * x


def linear(score, x, *, generator=None):
    """A loss whose gradient with respect to a is (3, 4)."""
    return (score.network.a * torch.tensor([3.0, 4.0])).sum().expand(len(x))


def read(path):
    return torch.load(path / "training.pt", weights_only=True)


# ---------------------------------------------------------------------------- records


def test_records_tell_loss_gradient_norm_and_rate(tmp_path):
    model = glp.ScoreModel(Two(), VP())
    before = model.network.a.detach().clone()
    path, losses, rates = tmp_path / "run", [], []
    n, w, peak = 30, 8, 0.05
    steps = {"steps": n, "warm_up": w, "learning_rate": peak, "clip": 1.0}
    for record in glp.fit(model, points(), linear, checkpoint=path, **steps):
        # Adam moves by the rate itself where the gradient never changes
        total = before - sum(rates)
        assert record.loss == pytest.approx(float(3 * total[0] + 4 * total[1]), abs=1e-6)
        losses.append(record.loss)
        assert record.step == len(losses)
        assert record.gradient_norm == pytest.approx(5.0, rel=1e-12)
        assert record.steps_per_second > 0
        assert record.held_out is None
        assert record.excess is None
        rates.append(record.learning_rate)
    rising = [peak * (i + 1) / (w + 1) for i in range(w)]
    falling = [peak * (1 + math.cos(math.pi * (i - w) / (n - w))) / 2 for i in range(w, n)]
    assert rates == pytest.approx(rising + falling, rel=1e-12)
    assert max(rates) == rates[w] == peak
    state = read(path)
    # Adam's average of clipped gradients: (3, 4)/5 (1 - 0.9^30)
    moment = state["optimizer"]["state"][0]["exp_avg"]
    expected = torch.tensor([0.6, 0.8]) * (1 - 0.9**n)
    torch.testing.assert_close(moment, expected, rtol=1e-5, atol=0)
    assert [row[1] for row in state["history"]] == losses
    torch.testing.assert_close(state["model"]["network.a"], before - sum(rates), rtol=1e-6, atol=0)


def test_weight_decay():
    # decoupled: a <- a (1 - rate · decay), then Adam's step of one rate
    model = glp.ScoreModel(Two(), VP())
    before = model.network.a.detach().clone()
    [record] = train(model, points(), linear, steps=1, weight_decay=0.5, warm_up=0)
    rate = glp.TrainingSettings().learning_rate
    assert record.learning_rate == rate
    expected = before * (1 - rate * 0.5) - rate
    torch.testing.assert_close(model.network.a.detach(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("steps", "warm_up", "check_every"), [(5, 0, 1), (99, 9, 4), (450, 45, 22), (2000, 100, 100)]
)
def test_what_follows_from_the_number_of_steps(steps, warm_up, check_every):
    settings = glp.TrainingSettings(steps=500, batch_size=16)
    settings = replace(settings, steps=steps)  # also where it is changed afterwards
    assert (settings.warm_up_steps, settings.check_interval) == (warm_up, check_every)
    rates = [settings.rate(i) for i in range(steps)]
    assert rates.index(max(rates)) == warm_up
    assert max(rates) == settings.learning_rate
    own = replace(settings, warm_up=3, check_every=7)
    assert (own.warm_up_steps, own.check_interval) == (3, 7)


def test_settings_are_changed_one_by_one():
    settings = glp.TrainingSettings(steps=7, batch_size=16)
    assert len(list(glp.fit(make(), points(), settings=settings, steps=3))) == 3
    assert len(list(glp.fit(make(), points(), settings=settings))) == 7
    with pytest.raises(TypeError, match="learning_rat"):
        glp.fit(make(), points(), learning_rat=1)


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0}, {"batch_size": 0}, {"warm_up": -1}, {"check_every": 0},
        {"learning_rate": 0.0}, {"clip": 0.0}, {"learning_rate": math.nan},
        {"weight_decay": -1.0}, {"ema": 1.0}, {"ema": -0.1},
        {"condition_dropout": -0.1}, {"condition_dropout": 1.0}, {"condition_dropout": math.nan},
        {"ema_half_lives": (0,)}, {"ema_half_lives": (5, 5.0)}, {"ema_half_lives": (math.inf,)},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        glp.TrainingSettings(**change)


def test_half_lives_may_be_a_list(as_user):
    assert glp.TrainingSettings(ema_half_lives=[10, 2.5]) == glp.TrainingSettings(
        ema_half_lives=(10.0, 2.5)
    )


# ---------------------------------------------------------------------------- data


def test_every_row_once_an_epoch_with_its_condition():
    x = torch.arange(64.0)[:, None].expand(64, 2).contiguous()
    seen = []

    def objective(score, batch, *, generator=None):
        seen.append((batch[:, 0], score.condition))
        return multilevel(score, batch, generator=generator)

    train(make(condition=8), x, objective, condition=x[:, 0].long() % 8, steps=12, batch_size=16)
    assert [len(batch) for batch, _ in seen] == [16] * 12
    epochs = [torch.cat([batch for batch, _ in seen[i : i + 4]]) for i in (0, 4, 8)]
    for epoch in epochs:
        assert epoch.sort()[0].tolist() == list(range(64))
    assert not torch.equal(epochs[0], epochs[1])
    assert all(torch.equal(batch.long() % 8, classes) for batch, classes in seen)


def test_a_memory_map_gives_the_same_run_as_memory(tmp_path):
    x = points().float()
    np.save(tmp_path / "x.npy", x.numpy())
    ends = []
    for data in (x, np.load(tmp_path / "x.npy", mmap_mode="r"), x.numpy(), x.double()):
        model = make().float()
        records = train(model, data, standardize=True, held_out=data, check_every=10)
        state = weights(model)
        assert float(state.pop("coordinates.bits")) == 8 * data.dtype.itemsize
        ends.append((state, [(r.loss, r.held_out) for r in records]))
    for end in ends[1:]:  # a tensor's steps are prepared together, which rounds differently
        torch.testing.assert_close(end, ends[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", [True, "one"])
def test_standardize_stores_the_change_of_coordinates(tmp_path, how):
    x = points() * torch.tensor([1.0, 50.0]) + torch.tensor([3.0, -100.0])
    seen = []

    def objective(score, batch, *, generator=None):
        seen.append(batch)
        return multilevel(score, batch, generator=generator)

    model = make()
    train(model, x, objective, standardize=how, batch_size=300, checkpoint=tmp_path / "run")
    axes = (0, 1) if how == "one" else 0
    mean, std = x.mean(axes).expand(2), x.std(axes, correction=0).expand(2)
    for m in (model, checkpoint.load(tmp_path / "run")):
        c = m.coordinates
        torch.testing.assert_close(c.shift, mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(c.scale, std, rtol=1e-12, atol=0)
        torch.testing.assert_close(m.z_mean, (x.mean(0) - mean) / std, rtol=1e-12, atol=0)
        torch.testing.assert_close(m.z_std, x.std(0, correction=0) / std, rtol=1e-12, atol=0)
        torch.testing.assert_close(c.decode(c.encode(x)), x, rtol=1e-14, atol=1e-13)
    torch.testing.assert_close(seen[0].sort(0)[0], ((x - mean) / std).sort(0)[0])


def test_data_far_from_zero_is_centred_before_the_cast(tmp_path):
    """1e7 ± 1 in float32 has a spacing of 1: what is learned from was never rounded so."""
    x = 1e7 + torch.randn(300, 2, generator=seeded(0)) * torch.tensor([1.0, 0.25])
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    rounded = lambda y: (y.float().double() - y).abs().max()
    assert rounded(x) > 0.4
    ends = []
    for data in (x, mapped):
        seen, model = [], make().float()

        def objective(score, z, *, generator=None, seen=seen):
            seen.append(z)
            return multilevel(score, z, generator=generator)

        train(model, data, objective, standardize=True, batch_size=300, steps=1, held_out=data)
        z, shown, *_ = seen  # the batch, and what is held out
        expected = (x - x.mean(0)) / x.std(0, correction=0)
        assert z.dtype == shown.dtype == torch.float32
        order = lambda v: v[v[:, 0].argsort()].double()
        torch.testing.assert_close(order(z), order(expected), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(order(shown), order(expected), rtol=1e-6, atol=1e-6)
        back = model.coordinates.decode(shown)
        assert back.dtype == torch.float64
        assert (back - x).abs().max() < 1e-6
        ends.append(weights(model))
    same(*ends)


@pytest.mark.parametrize("kind", [torch.int64, torch.int32])
def test_integers_keep_their_digits(kind):
    """Seconds since 1970, in one minute: float32 has a spacing of 128 there."""
    x = 1_700_000_000 + torch.randint(0, 60, (300, 2), generator=seeded(0))
    model, seen = make().float(), []

    def objective(score, z, *, generator=None):
        seen.append(z)
        return multilevel(score, z, generator=generator)

    train(model, x.to(kind), objective, standardize=True, batch_size=300, steps=1)
    back = model.coordinates.decode(seen[0])
    assert back.dtype == torch.float64
    assert torch.equal(back.round().long().sort(0).values, x.sort(0).values)


def test_data_that_a_cast_would_round_away_is_refused():
    x = 1e7 + torch.randn(300, 2, generator=seeded(0))
    refused(r"so far from 0 that torch\.float32 .*standardize=True", make().float(), x)
    train(make(), x, steps=1)  # a model in float64 holds it


def test_data_in_memory_is_encoded_once(tmp_path, monkeypatch):
    calls = []
    real = AffineCoordinates.encode
    monkeypatch.setattr(
        AffineCoordinates, "encode", lambda self, x: calls.append(len(x)) or real(self, x)
    )
    train(make(), points(), standardize=True)
    assert calls == [300]
    np.save(tmp_path / "x.npy", points().numpy())
    calls.clear()
    train(make(), np.load(tmp_path / "x.npy", mmap_mode="r"), standardize=True)
    assert calls == [32] * 20


def test_data_that_does_not_fit_is_refused_before_anything_is_done(as_user, tmp_path):
    x, model = points(), make()
    before = weights(model)
    bad = x.clone()
    bad[3, 1] = math.nan
    flat = torch.stack([x[:, 0], torch.full((300,), 2.0)], 1)
    refused(r"data has 1 of 300 rows that are not finite \(first: row 3\)", model, bad)
    refused(r"held_out has 1 of 300 rows that are not finite", model, x, held_out=bad)
    refused(r"rows of data must be an integer of at least 2", model, x[:1])
    refused(r"shape \(N, 2\), got \(300, 1\)", model, x[:, :1])
    refused(r"shape \(N, 2\), got \(300, 1\)", model, x, held_out=x[:, :1])
    refused(r"real numbers", model, x.to(torch.complex128))
    for standardize in (True, False):
        refused(r"column\(s\) \[1\] are constant", model, flat, standardize=standardize)
    refused(r"standardize.* must be 'one', got 'each'", model, x, standardize="each")
    extra = {"held_out": x, "held_out_condition": torch.zeros(300).long()}
    refused(r"^held_out_condition was given to a model without", model, x, **extra)
    refused(
        r"checkpoint_every must be an integer of at least 1, got 0", model, x, checkpoint_every=0
    )
    exact = glp.ExactScore(glp.GaussianMixture(**MIXTURE), VP())
    refused(r"different coordinates", make(), x, exact=exact, standardize=True)
    other = glp.ExactScore(glp.GaussianMixture(**MIXTURE), VE(0.1, 9.0))
    refused(r"different schedules.*RescheduledScore", make(), x, exact=other)
    same(weights(model), before)


def test_conditions_and_a_model_that_do_not_fit_are_refused(as_user):
    x, classes, values = points(), torch.arange(300) % 3, points(seed=4)
    refused(r"^condition was given to a model without", make(), x, condition=classes)
    for kind in (3, (2,)):
        refused(r"this model is conditional: pass condition=", make(condition=kind), x)
    refused(r"from 0 to 2 - 1; got 2", make(condition=2), x, condition=classes)
    refused(r"from 0 to 3 - 1; got -1", make(condition=3), x, condition=classes - 1)
    refused(r"must be a class.* got torch.float64", make(condition=3), x, condition=values)
    for bad in (classes, values[:, :1], values.long(), values[:, None]):
        refused(
            r"float values of shape \(1 or B, 2\); got", make(condition=(2,)), x, condition=bad
        )
    refused(r"not finite", make(condition=(2,)), x, condition=values / 0)
    refused(
        r"^condition has 299 rows, but .* 300",
        make(condition=3),
        x,
        condition=classes[1:],
    )
    flat = torch.stack([values[:, 0], torch.full((300,), 2.0)], 1)
    refused(r"column\(s\) \[1\] are constant", make(condition=(2,)), x, condition=flat)
    options = {"condition": classes, "held_out": x}
    refused(r"conditional: pass held_out_condition=", make(condition=3), x, **options)
    refused(r"condition_dropout= .*pass condition=", make(), x, condition_dropout=0.1)


# ---------------------------------------------------------------------------- conditions left out


def watched(seen):
    def objective(score, x, *, generator=None):
        loss = multilevel(score, x, generator=generator)
        seen.append((x, score.condition, torch.rand(3, generator=generator)))
        return loss

    return objective


@pytest.mark.parametrize("kind", [3, (2,)], ids=["classes", "values"])
def test_conditions_left_out_change_neither_batches_nor_noise(kind):
    x, runs = points(), {}
    condition = torch.arange(300) % 3 if kind == 3 else points(seed=4)
    for p in (0.0, 0.25):
        seen = runs[p] = []
        model = make(condition=kind)
        train(model, x, watched(seen), condition=condition, condition_dropout=p, steps=60)
        assert float(model.condition.dropout) == p
    gone, batches = 0, 0
    for (x0, c0, noise0), (x1, c1, noise1) in zip(*runs.values(), strict=True):
        assert torch.equal(x0, x1)
        assert torch.equal(noise0, noise1)
        same_row = (c0 == c1).reshape(len(c0), -1)
        kept = same_row.all(1)
        assert torch.equal(same_row.any(1), kept)
        if kind == 3:
            assert (c1[~kept] == NO_CLASS).all()
            assert (c0 >= 0).all()
        else:  # the null value of that step, one for all
            assert len(c1[~kept].unique(dim=0)) <= 1
            assert c1[~kept].numel() == 0 or c1[~kept].min() > c0.max()
        gone, batches = gone + int((~kept).sum()), batches + 1
    n = 32 * batches
    assert abs(gone / n - 0.25) < 5 * (0.25 * 0.75 / n) ** 0.5


def test_held_out_conditions_are_never_left_out():
    seen, labels = [], torch.arange(300) % 3
    options = {"condition": labels, "held_out": points(40), "held_out_condition": labels[:40]}
    train(make(condition=3), points(), watched(seen), condition_dropout=0.9, **options)
    assert torch.equal(seen[-1][1], labels[:40])


# ---------------------------------------------------------------------------- averaging


def test_decay_warms_up():
    assert [ema_decay(0.9, n) for n in (0, 1, 40, 79, 80, 81, 10**6)] == [
        0.1, 2 / 11, 41 / 50, 80 / 89, 81 / 90, 0.9, 0.9,
    ]  # fmt: skip
    assert ema_decay(0.9, 80) == 0.9


class Stop(Exception):
    pass


@pytest.mark.parametrize("how", ["end", "break", "error", "interrupt", "inside"])
def test_model_holds_the_hand_run_average_however_training_ends(how):
    model, raw, calls = make(), [], 0

    def objective(*arguments, generator=None):
        nonlocal calls
        calls += 1
        if how == "inside" and calls == 31:
            raise KeyboardInterrupt
        return multilevel(*arguments, generator=generator)

    def consume():
        options = QUICK | {"steps": 100 if how == "end" else 1000, "learning_rate": 0.01}
        for _ in glp.fit(model, points(), objective, generator=seeded(7), **options):
            raw.append(weights(model))
            if len(raw) == 30 and how != "end":
                if how == "break":
                    break
                if how != "inside":
                    raise Stop if how == "error" else KeyboardInterrupt

    if how in ("end", "break"):
        consume()
    else:
        with pytest.raises(Stop if how == "error" else KeyboardInterrupt):
            consume()
    assert len(raw) == (100 if how == "end" else 30)
    average = dict(raw[0])
    for n, theta in enumerate(raw[1:], 1):
        d = min(0.9, (1 + n) / (10 + n))
        average = {k: d * average[k] + (1 - d) * theta[k] for k in theta}
    got = weights(model)
    for name, value in average.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-13)
    distance = max(float((got[k] - raw[-1][k]).abs().max()) for k in got)
    assert distance > 1e-4  # not the raw weights
    assert not model.training


# ---------------------------------------------------------------------------- measurements


def halfway(score, x, *, generator=None):
    """A loss without noise: what ‖s‖² is at t = 1/2."""
    return (score(x, torch.tensor(0.5)) + x).square().sum(1)


def test_held_out_loss_and_its_standard_error():
    model, held_out = make(), points(80, seed=5)
    records = train(model, points(), halfway, held_out=held_out, check_every=7)
    assert [r.step for r in records if r.held_out is not None] == [7, 14, 20]
    with torch.no_grad():
        losses = halfway(model, held_out)
    assert records[-1].held_out.value == pytest.approx(float(losses.mean()), rel=1e-12)
    error = float((losses - losses.mean()).square().sum() / 79 / 80) ** 0.5
    assert records[-1].held_out.standard_error == pytest.approx(error, rel=1e-12)


def test_held_out_conditions_go_with_their_rows():
    held_out, labels = points(80, seed=5), torch.arange(80) % 3
    model = make(condition=3)
    options = {"condition": torch.arange(300) % 3, "held_out_condition": labels}
    record = train(model, points(), halfway, held_out=held_out, **options)[-1]
    with torch.no_grad():
        losses = halfway(model.given(labels), held_out)
    assert record.held_out.value == pytest.approx(float(losses.mean()), rel=1e-12)


def test_held_out_loss_is_measured_in_model_coordinates_on_the_same_noise_each_time():
    def objective(score, x, *, generator=None):
        noise = torch.rand(len(x), generator=generator)
        return noise + 0 * score(x, torch.tensor(0.5)).sum(1) + x[:, 0]

    x = points() * 10 + 5
    records = train(make(), x, objective, held_out=x, check_every=5, standardize=True)
    values = {r.held_out for r in records if r.held_out is not None}
    assert len(values) == 1
    assert abs(values.pop().value - 0.5) < 5 * (1 / 12 / 300) ** 0.5


def test_excess_of_the_exact_score_is_zero():
    # where the data is Gaussian and its moments are the frame's, v = 0 is exact, and MLPs start at 0
    x = points()
    model = glp.ScoreModel(glp.MLP(2, 8, 1, generator=seeded(0)), VP(), predicts="v")
    exact = glp.ExactScore(glp.Gaussian(x.mean(0), x.var(0, correction=0)), VP())
    [record] = train(model, x, exact=exact, steps=1, learning_rate=1e-30)
    assert record.excess.value < 1e-24
    shifted = glp.ExactScore(glp.Gaussian(x.mean(0) + 1, x.var(0, correction=0)), VP())
    [record] = train(model, x, exact=shifted, steps=1, learning_rate=1e-30)
    assert record.excess.value > 0.01


def test_the_excess_of_a_conditional_model_is_that_given_the_conditions():
    """Each row against the exact score given its own y: that of x alone would show a gap."""
    joint = glp.Gaussian([0.0, 1.0, 40.0], [[1.0, 0.2, 1.5], [0.2, 0.5, 0.3], [1.5, 0.3, 3.0]])
    xy = joint.sample(1000, generator=seeded(1))
    x, y = xy[:, :2].contiguous(), xy[:, 2:].contiguous()
    exact = glp.ExactScore(Joint(joint, 1), VP())
    model = glp.ScoreModel(glp.MLP(2, 8, 1, (1,), generator=seeded(0)), VP(), "v")
    options = {"exact": exact, "condition": y, "steps": 1, "learning_rate": 1e-30}
    [record] = train(model, x, **options)
    # an untrained model answers as for N(mean, var) entry by entry, whatever y is
    g = seeded(0)
    t = torch.rand(20_000, generator=g) * 0.999 + 0.001
    index = torch.randint(1000, (20_000,), generator=g)

    @torch.no_grad()
    def gap(score):
        return float(excess(model.given(y[index]), score, x[index], t, generator=g).mean())

    given, alone = gap(exact.given(y[index])), gap(exact)
    assert abs(record.excess.value - given) < 5 * record.excess.standard_error
    assert abs(record.excess.value - alone) > 10 * record.excess.standard_error
    alone = glp.ExactScore(glp.Gaussian([0.0, 1.0]), VP())
    refused("nothing to condition on", make(condition=(1,)), x, **options | {"exact": alone})


def test_measuring_does_not_change_training():
    plain, measured = make(), make()
    train(plain, points())
    exact = glp.ExactScore(glp.GaussianMixture(**MIXTURE), VP())
    train(measured, points(), held_out=points(50), exact=exact, check_every=3)
    same(weights(plain), weights(measured))


def test_measuring_switches_dropout_off():
    class Dropping(glp.MLP):
        def forward(self, x, c, condition=None):  # type: ignore[override]
            return nn.functional.dropout(super().forward(x, c, condition), 0.5, self.training)

    model = glp.ScoreModel(Dropping(2, 8, 1, generator=seeded(0)), VP())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        record = train(model, points(), halfway, held_out=points(50))[-1]
    with torch.no_grad():
        expected = halfway(model, points(50)).mean()
    assert record.held_out.value == pytest.approx(float(expected), rel=1e-12)


# ---------------------------------------------------------------------------- other arithmetic


def test_bfloat16_is_near_and_touches_only_the_network():
    ends, dtypes = [], set()

    def objective(score, x, *, generator=None):
        loss = multilevel(score, x, generator=generator)
        dtypes.update([x.dtype, score(x, torch.tensor(0.5).to(x)).dtype, loss.dtype])
        return loss

    for bfloat16 in (False, True):
        model = make(width=32).float()
        records = train(model, points().float(), objective, bfloat16=bfloat16, steps=30)
        ends.append((torch.tensor([r.loss for r in records]), model))
    (losses, one), (rounded, two) = ends
    assert dtypes == {torch.float32}
    assert rounded.isfinite().all()
    assert 0 < (rounded - losses).abs().max() < 0.05 * losses.max()
    assert {p.dtype for p in two.parameters()} == {torch.float32}
    assert type(two.network) is type(one.network)  # the model itself is not wrapped
    x, t = points(20).float(), torch.tensor(0.4)
    with torch.no_grad():
        gap = (one(x, t) - two(x, t)).norm() / one(x, t).norm()
    assert 0 < gap < 0.1


def stratified(score, z, *, generator):
    return multilevel(score, z, stratified=True, generator=generator)


@pytest.mark.parametrize("objective", [stratified, partial(multilevel, stratified=True)])
def test_parts_of_a_batch_change_nothing(objective):
    """Five parts of 16 rows, of noise and strata of times that are those of the whole batch."""
    ends = []
    for n in (1, 5):
        model = make()
        losses = [r.loss for r in train(model, points(), objective, steps=10, accumulate=n)]
        ends.append((torch.tensor(losses), torch.cat([p.flatten() for p in model.parameters()])))
    for one, five in zip(*ends, strict=True):
        torch.testing.assert_close(five, one, rtol=1e-9, atol=1e-9)


def test_accelerated_shares_weights_and_buffers():
    model = make()
    assert accelerated(model, bfloat16=False, compiled=False) is model
    fast = accelerated(model, bfloat16=True, compiled=False)
    assert {id(p) for p in fast.parameters()} == {id(p) for p in model.parameters()}
    assert fast.coordinates is model.coordinates
    assert fast.z_mean is model.z_mean
    assert fast.schedule is model.schedule
    x = points(8)
    fast(x, torch.tensor(0.5)).square().sum().backward()
    assert model.network.outlet.weight.grad is not None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # what the compiler warns of is its own
def test_a_compiled_network_trains_to_the_same_model(as_user, compiling):
    labels, ends = torch.arange(300) % 3, []
    for compiled in (False, True):
        model = make(condition=3)
        options = {"condition": labels, "condition_dropout": 0.2, "steps": 15}
        records = train(model, points(), compile=compiled, **options)
        ends.append((torch.tensor([r.loss for r in records]), weights(model)))
    (losses, one), (others, two) = ends
    torch.testing.assert_close(others, losses, rtol=1e-6, atol=1e-8)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------- reproducibility


def test_the_generator_decides():
    a, b, c = make(), make(), make()
    train(a, points())
    train(b, points())
    list(glp.fit(c, points(), generator=seeded(8), **QUICK))
    same(weights(a), weights(b))
    assert not torch.equal(a.network.inlet.weight, c.network.inlet.weight)
    state = torch.get_rng_state()
    train(a, points())
    assert torch.equal(torch.get_rng_state(), state)


# ---------------------------------------------------------------------------- stops and resuming


def interrupt(model, after):
    """Interrupt the call number after + 1 of the network, its copies included."""
    calls = 0

    def interrupted(*_):
        nonlocal calls
        calls += 1
        if calls == after + 1:
            raise KeyboardInterrupt

    return model.network.register_forward_hook(interrupted)


def options_of(case):
    return (
        QUICK
        | {
            "plain": {},
            "classes": {"condition": torch.arange(300) % 3},
            "measured": {"held_out": points(60, seed=5), "check_every": 10, "standardize": True},
            "averages": {"ema_half_lives": (3.0, 20.0)},
            "dropout": {"condition": torch.arange(300) % 3, "condition_dropout": 0.3},
            "values": {"condition": points(seed=4) + 50, "condition_dropout": 0.3},
        }[case]
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A model, its losses and its checkpoint of a case, learned on first use."""

    @functools.cache
    def learned(case):
        path = tmp_path_factory.mktemp("unbroken")
        whole, options = make(condition=CONDITIONS.get(case)), options_of(case) | UNBROKEN
        losses = [r.loss for r in train(whole, points(), checkpoint=path, **options)]
        return whole, losses, path, read(path)

    return learned


UNBROKEN = {"steps": 14, "checkpoint_every": 4, "check_every": 5}
CONDITIONS = {"classes": 3, "dropout": 3, "values": (2,)}


@pytest.mark.parametrize(
    ("stop", "case"),
    [
        *(("break", case) for case in ("plain", "classes", "averages", "dropout", "values")),
        ("inside", "measured"), ("after a save", "averages"),
        *(pytest.param(*pair, marks=pytest.mark.slow) for pair in [
            ("break", "measured"),
            *(("inside", case) for case in ("plain", "classes", "averages", "dropout", "values")),
            *(("after a save", case)
              for case in ("plain", "classes", "measured", "dropout", "values")),
        ]),
    ],
)  # fmt: skip
def test_a_resumed_run_is_the_unbroken_run_bit_for_bit(tmp_path, case, stop, unbroken):
    options = options_of(case) | UNBROKEN
    whole, losses, there, ours = unbroken(case)
    first, second = (make(seed, condition=CONDITIONS.get(case)) for seed in (0, 5))
    step = 8 if stop == "after a save" else 10
    calls = 12 if case == "measured" else 10  # 10 batches, and two measurements
    hook = interrupt(first, calls if stop == "inside" else 10**9)
    stopped = glp.fit(first, points(), generator=seeded(7), checkpoint=tmp_path / "b", **options)
    if stop == "inside":
        with pytest.raises(KeyboardInterrupt):
            list(stopped)
    else:
        next(record for record in stopped if record.step == step)
        stopped.close()
    hook.remove()
    kept = checkpoint.load(tmp_path / "b")
    same(weights(kept), weights(first))  # averaged, both
    assert all(value.isfinite().all() for value in kept.state_dict().values())
    assert checkpoint.read_run(tmp_path / "b")["step"] == read(tmp_path / "b")["step"] == step
    resumed = [
        r.loss
        for r in glp.fit(
            second, points(), generator=seeded(99), checkpoint=tmp_path / "b", resume=True,
            **options,
        )
    ]  # fmt: skip
    theirs = read(tmp_path / "b")
    assert losses == [row[1] for row in theirs["history"]]
    assert losses[step:] == resumed
    same(weights(second), weights(whole))
    same(*({k: v for k, v in state.items() if k != "seconds"} for state in (ours, theirs)))
    names = ("model.safetensors", "config.json", *["averages.safetensors"] * (case == "averages"))
    for name in names:
        assert (there / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_interrupt_while_measuring_keeps_the_step(tmp_path):
    whole, first, second = make(), make(), make(5)
    options = options_of("measured")
    losses = [r.loss for r in train(whole, points(), **options)]
    interrupt(first, 10)
    with pytest.raises(KeyboardInterrupt):
        train(first, points(), checkpoint=tmp_path / "run", **options)
    assert read(tmp_path / "run")["step"] == 10
    train(second, points(), checkpoint=tmp_path / "run", resume=True, **options)
    same(weights(second), weights(whole))
    rows = read(tmp_path / "run")["history"]
    assert [row[1] for row in rows] == losses
    assert [row[0] for row in rows if row[2] is not None] == [20]  # that of step 10 is not made up


def test_an_interrupt_amid_the_change_of_weights_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    whole, first, second = make(), make(), make(5)
    options = {"steps": 30, "checkpoint_every": 5}
    train(whole, points(), **options)
    real, calls = Descent.__call__, 0

    def step(*given):
        nonlocal calls
        calls += 1
        real(*given)
        if calls == 13:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Descent, "__call__", step)
        with pytest.raises(KeyboardInterrupt):
            train(first, points(), checkpoint=tmp_path / "run", **options)
    assert all(value.isfinite().all() for value in first.state_dict().values())
    assert read(tmp_path / "run")["step"] == 10
    train(second, points(), checkpoint=tmp_path / "run", resume=True, **options)
    same(weights(second), weights(whole))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_amid_the_change_of_weights_waits_for_its_end(tmp_path, monkeypatch, number):
    whole, first, second = make(), make(), make(5)
    options = {"steps": 30, "checkpoint_every": 100}
    train(whole, points(), **options)
    real, calls = Descent.__call__, 0

    def step(*given):
        nonlocal calls
        calls += 1
        if calls == 13:
            os.kill(os.getpid(), number)
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(Descent, "__call__", step)
        with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
            train(first, points(), checkpoint=tmp_path / "run", **options)
    assert getattr(caught.value, "code", 130) == 128 + number
    assert read(tmp_path / "run")["step"] == 13
    train(second, points(), checkpoint=tmp_path / "run", resume=True, **options)
    same(weights(second), weights(whole))


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    a, b = make(), make(5)
    train(a, points(), checkpoint=tmp_path / "run")
    assert train(b, points(), checkpoint=tmp_path / "run", resume=True) == []
    same(weights(a), weights(b))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 61}, "steps=60, got 61"),
        ({"ema_half_lives": (3,)}, r"ema_half_lives=\(\), got \(3.0,\)"),
        ({"standardize": True}, "standardize=False, got True"),
        ({"data": points(299)}, "n_samples=300, got 299"),
        ({"model": make(5, width=24)}, r"network=.*'width': 16.*, got .*'width': 24"),
        ({"model": glp.ScoreModel(make(5).network, VE())}, "schedule=.*'VP'.*, got .*'VE'"),
        ({"model": glp.ScoreModel(make(5).network, VP(), "x0")}, "predicts=.*, got 'x0'"),
        ({"objective": partial(multilevel, stratified=True)}, "objective=.*stratified=True"),
        ({"objective": linear}, "objective='.*multilevel', got '.*linear'"),
        (
            {"model": make(5, condition=3), "condition": torch.zeros(300).long()},
            "condition=None, got [0-9]+",
        ),
    ],
)
def test_resuming_another_run_is_refused(tmp_path, change, message):
    path = tmp_path / "run"
    for record in glp.fit(make(), points(), checkpoint=path, **(QUICK | {"steps": 60})):
        if record.step == 3:
            break
    files = {item.name: item.read_bytes() for item in path.iterdir()}
    model, data = change.pop("model", make(5)), change.pop("data", points())
    before, objective = weights(model), change.pop("objective", multilevel)
    refused(
        message, model, data, objective, checkpoint=path, resume=True, **({"steps": 60} | change)
    )
    same(weights(model), before)
    assert {item.name: item.read_bytes() for item in path.iterdir()} == files


def test_objectives_by_name():
    """What is another objective has another name; the same one, made again, has the same."""
    from gradlogp.learn.objectives import implicit, sliced, weights
    from gradlogp.learn.objectives.denoising import noised
    from gradlogp.learn.resuming import objective_name

    class Loss:
        def __call__(self, score, z, *, generator=None):
            return z.flatten(1).sum(1)

    def scaled(factor):
        def loss(score, z, *, generator=None):
            return factor * z.flatten(1).sum(1)

        return loss

    def wrapped(objective):
        return functools.wraps(objective)(lambda *given, **options: objective(*given, **options))

    def every():
        return [
            multilevel, linear, partial(multilevel, stratified=True),
            partial(multilevel, weight=weights.v), partial(multilevel, weight=weights.x0),
            partial(noised, sliced), partial(noised, lambda s, x, generator: implicit(s, x)),
            lambda s, x, generator: sliced(s, x), lambda s, x, generator: 2 * sliced(s, x),
            scaled(1.0), scaled(2.0), Loss(),
        ]  # fmt: skip

    names = [objective_name(o) for o in every()]
    assert len(set(names)) == len(names)
    assert names == [objective_name(o) for o in every()]
    assert not [name for name in names if " at 0x" in name]
    assert objective_name(wrapped(multilevel)) == objective_name(multilevel)


def test_resuming_from_nothing_is_refused(tmp_path):
    refused("resume=True needs checkpoint=", make(), points(), resume=True)
    refused("there is no checkpoint at", make(), points(), resume=True, checkpoint=tmp_path / "x")
    checkpoint.save(tmp_path / "model", make())
    options = {"resume": True, "checkpoint": tmp_path / "model"}
    refused("holds no training state to resume from", make(), points(), **options)


# ---------------------------------------------------------------------------- when things go wrong


@pytest.fixture
def ahead(monkeypatch):
    """As on a GPU: the numbers of a step are looked at when the next one has been prepared."""
    monkeypatch.setattr("gradlogp.learn.record.AHEAD", ("cpu",))
    there = SimpleNamespace(synchronize=lambda: None)
    monkeypatch.setattr("gradlogp.learn.record.arrival", lambda device: there)


def test_looking_later_changes_nothing(tmp_path, request):
    options = {"checkpoint_every": 7, "held_out": points(100, 2), "check_every": 5}
    found = []
    for where in ("at once", "later"):
        if where == "later":
            request.getfixturevalue("ahead")
        model, path = make(), tmp_path / where
        for step in glp.fit(
            model, points(), generator=seeded(7), checkpoint=path, **QUICK | options
        ):
            if step.step == 13:
                halfway = read(path)["history"]
        state = read(path)
        del state["seconds"]
        found.append([weights(model), halfway, state])
    same(*found)
    assert all(row[1] is not None for row in state["history"])


@pytest.mark.parametrize("bad", [1, 13, 15, 20])
def test_a_bad_step_that_is_noticed_later_is_not_saved(tmp_path, ahead, bad):
    """Nor does it change the weights: neither amid others, before a save, at first nor at the end."""
    path, model, calls = tmp_path / "run", make(), 0

    def damage(*given):
        nonlocal calls
        calls += 1
        return given[-1] / (0 if calls == bad else 1)

    model.network.register_forward_hook(damage)
    options = {"checkpoint": path, "checkpoint_every": 5, "check_every": 100}
    refused(f"at step {bad} ", model, points(), error=FloatingPointError, **options)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert calls == min(20, bad + (bad % 5 > 0))
    if bad > 1:
        other, straight = make(), make()
        assert read(path)["step"] == (bad - 1) // 5 * 5
        train(other, points(), resume=True, **options)
        train(straight, points(), check_every=100)
        same(weights(other), weights(straight))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_training_and_leaves_the_checkpoint(tmp_path, what):
    path, model = tmp_path / "run", make()
    files, calls = {}, 0

    def damage(*given):
        nonlocal calls
        calls += 1
        if calls == 13:
            files.update({item.name: item.read_bytes() for item in path.iterdir()})
            return given[-1] / 0 if what == "loss" else given[-1] + (0 * given[-1]).sqrt()

    model.network.register_forward_hook(damage)
    match = r"not finite at step 13 \(loss (inf|\d).*lower learning_rate"
    options = {"checkpoint": path, "checkpoint_every": 5}
    refused(match, model, points(), error=FloatingPointError, **options)
    assert {item.name: item.read_bytes() for item in path.iterdir()} == files
    assert read(path)["step"] == 10
    kept = checkpoint.load(path)
    assert all(value.isfinite().all() for m in (model, kept) for value in m.state_dict().values())
    other = make()
    train(other, points(), checkpoint=path, resume=True)  # and it can be resumed from
    straight = make()
    train(straight, points())
    same(weights(other), weights(straight))


@pytest.mark.parametrize("scale", [1e300, 1e100, 1e-100])
def test_data_out_of_the_range_of_the_model_is_refused(scale):
    x = torch.randn(100, 2, generator=seeded(0)) * scale
    what = "for float64" if scale == 1e300 else "or too small for torch.float32"
    refused(f"too large {what}; rescale it", make().float(), x)
    if scale != 1e300:  # in coordinates of unit variance it is like any other
        train(make().float(), x, standardize=True, steps=1)


def test_a_full_disk_leaves_the_averaged_weights_in_the_model(tmp_path, monkeypatch):
    plain, model = make(), make()
    list(zip(range(5), glp.fit(plain, points(), generator=seeded(7), **QUICK), strict=False))

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        train(model, points(), checkpoint=tmp_path / "run", checkpoint_every=5)
    same(weights(model), weights(plain))
    assert not model.training
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_saved_is_refused_before_training(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to_anna.txt").write_text("Dear Anna")
    called = lambda *_, **__: pytest.fail("training began")
    refused("is not a gradlogp", make(), points(), called, checkpoint=tmp_path / "letters")
    (tmp_path / "file").write_text("")
    refused("is not a gradlogp", make(), points(), called, checkpoint=tmp_path / "file")

    class Own(VP):
        pass

    model = glp.ScoreModel(make().network, Own())
    refused(
        "cannot store your own schedule Own", model, points(), called, checkpoint=tmp_path / "run"
    )
    train(model, points(), steps=1)  # without a checkpoint any schedule will do


@pytest.mark.parametrize("most", [0.1, 1e3])
def test_gradients_are_clipped_as_torch_does(most, generator):
    shapes = [(3, 4), (4,), (2, 3, 1)]
    weights = [nn.Parameter(torch.zeros(s)) for s in shapes]
    for w in weights:
        w.grad = torch.randn(w.shape, generator=generator)
    gradients = [w.grad.clone() for w in weights]
    norm = clip(gradients, most)
    assert torch.equal(norm, nn.utils.clip_grad_norm_(weights, most))
    for mine, w in zip(gradients, weights, strict=True):
        assert torch.equal(mine, w.grad)


def test_the_optimiser_moves_as_its_own_step_does(generator):
    """Bit for bit, with a parameter that has a gradient only now and then."""
    start = [torch.randn(3, 2, generator=generator), torch.randn(4, generator=generator)]
    gradients = [[torch.randn(v.shape, generator=generator) for v in start] for _ in range(6)]
    found = []
    for make_step in (lambda optimizer: optimizer.step, Descent):
        weights = [nn.Parameter(v.clone()) for v in start]
        optimizer = torch.optim.AdamW(weights, lr=0.1, weight_decay=0.3, fused=True)
        step = make_step(optimizer)
        for k, (one, other) in enumerate(gradients):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + k)
            weights[0].grad, weights[1].grad = one, other if k in (2, 3, 5) else None
            step()
        found.append((*weights, *(v for m in optimizer.state.values() for v in m.values())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert [float(m["step"]) for m in optimizer.state.values()] == [6, 3]


def test_a_failed_step_moves_nothing_and_another_is_as_ever(generator):
    start, gradient = (torch.randn(4, generator=generator) for _ in range(2))
    weights = [nn.Parameter(start.clone()) for _ in range(2)]
    for w, failures in zip(weights, ([1.0, 0.0, 1.0, 0.0], [None, None]), strict=True):
        descend = Descent(torch.optim.AdamW([w], lr=0.1, fused=True))
        for failed in failures:
            w.grad = gradient / (0 if failed == 1 else 1)
            descend(None if failed is None else torch.tensor(failed).float())
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], start)
