"""Steps from a time: how many, that measuring leaves no trace, and that a resumed run keeps them."""

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from support import seeded

import gradlogp as glp
from gradlogp.interfaces.base import IN_FLOAT64, Judge
from gradlogp.learn import pace
from gradlogp.learn.held_out import Measurement
from gradlogp.learn.keeping import Best, conclude, ending
from gradlogp.learn.share import evaluations
from gradlogp.noise.schedules import VP

QUICK = {"batch_size": 16, "ema": 0.9}


class Clock:
    """Time that only moves when somebody works."""

    def __init__(self, monkeypatch):
        self.now, self.each = 100.0, 0.25
        monkeypatch.setattr(pace, "clock", lambda: self.now)

    def works(self, seconds):
        def work(*arguments):
            self.now += seconds

        return work


def points(n=100):
    return torch.randn(n, 2, generator=seeded(1))


def make(seed=0):
    return glp.ScoreModel(glp.MLP(2, 8, 1, generator=seeded(seed)), VP())


def slow_loss(clock):
    def loss(score, z, *, generator=None):
        clock.now += clock.each
        return glp.objectives.multilevel(score, z, generator=generator)

    return loss


@pytest.mark.parametrize(("step", "check"), [(0.01, 0.0), (0.5, 0.0), (0.05, 0.4), (1.0, 30.0)])
def test_steps_and_measurements_fill_the_time(monkeypatch, step, check):
    clock = Clock(monkeypatch)
    known = lambda value: value
    n, each = pace.steps_within(2.0, clock.works(step), clock.works(check), known, clock.works(0))
    assert each == pytest.approx(check / step)
    spent = clock.now - 100
    assert spent <= max(0.02 * 120, 4 * step + 2 * check) + step + 2 * check + 1e-6
    left = 120 - spent
    work = n * step
    if 28 * check < 0.8 * left:
        assert abs(work + 28 * check - left) <= step + 1e-6
    else:  # measurements would take nearly all of it: then a fifth is for steps
        assert abs(work - 0.2 * 120) <= step + 1e-6


def test_the_time_before_and_after_the_steps_is_part_of_it(monkeypatch):
    clock, known = Clock(monkeypatch), lambda value: value
    step, check, ended = (clock.works(s) for s in (0.05, 0.1, 0.0))
    n, _ = pace.steps_within(2.0, step, check, known, ended, 300, 20.0)
    left = 120 - 20 - (clock.now - 100)
    assert abs(0.05 * n + (28 + 300) * 0.1 - left) <= 0.05 + 1e-6
    before = clock.now
    n, _ = pace.steps_within(2.0, step, check, known, ended, 300, 20.0, every=10)
    left = 120 - 20 - (clock.now - before)
    assert abs(0.05 * n + (n // 10 + 3 + 300) * 0.1 - left) <= 0.15
    assert pace.steps_within(2.0, step, check, known, ended, 0.0, 500.0)[0] == 480  # a fifth


def test_time_before_the_first_step_is_asked_for_is_not_counted(monkeypatch):
    found = []
    for pause in (0.0, 70.0):
        clock = Clock(monkeypatch)
        run = glp.fit(
            make(), points(), slow_loss(clock), minutes=1.0, generator=seeded(7), **QUICK
        )
        clock.now += pause
        found.append(next(run).steps)
        run.close()
    assert found[0] == found[1] > 100


@pytest.mark.parametrize(("event", "n"), [((2,), 90), ((2,), 5000), ((1, 8, 8), 70)])
def test_what_is_done_after_the_last_step_is_counted(event, n, monkeypatch):
    """In rows that the network is asked of, by those that it sees."""
    monkeypatch.setattr("gradlogp.interfaces.base.PARTS", (1.0,))  # a random network is worse
    seen = []
    x = torch.randn(n, *event, generator=seeded(2))
    network = glp.MLP(event, 8, 1, generator=seeded(0))
    model = glp.ScoreModel(network, VP(), "v", base="gaussian")
    measure = Measurement(model, glp.objectives.multilevel, x, None, x, None, None, model.like)
    judge = Judge(x, None, 0)
    network.register_forward_hook(lambda network, inputs, out: seen.append(len(out)))
    conclude(model, Best(), measure, 0)
    assert sum(seen) == evaluations(model, x, len(measure.z))
    after = sum(seen) / len(measure.z)
    assert ending(model, measure, None) == pytest.approx(after)
    seen.clear()
    model.base.share.fill_(1.0)
    judge(model)
    judged = sum(seen) * (3 if event == (2,) else 2) * IN_FLOAT64  # a value and its derivatives
    assert judge.evaluations(model) == judged > 0
    assert ending(model, measure, judge) == pytest.approx(after + judged / len(measure.z))


def test_there_is_one_step_at_least(monkeypatch):
    clock = Clock(monkeypatch)
    step, check, ended = (clock.works(s) for s in (100.0, 0.0, 0.0))
    assert pace.steps_within(0.1, step, check, lambda value: value, ended) == (1, 0.0)


def test_a_step_that_a_device_has_not_ended_is_waited_for(monkeypatch):
    """The host is one step ahead: the last step has not ended when the next could begin."""
    found = []
    for ahead in (False, True):
        clock = Clock(monkeypatch)
        under_way = []

        def ended(clock=clock, under_way=under_way):
            clock.now += sum(under_way)
            under_way.clear()

        def step(ahead=ahead, ended=ended, under_way=under_way):
            if ahead:
                ended()
            under_way.append(5.0)
            if not ahead:
                ended()

        check = clock.works(0.0)
        found.append(pace.steps_within(2.0, step, check, lambda value: value, ended))
    assert found[0] == found[1]


def test_a_run_of_a_time_is_the_run_of_its_steps(monkeypatch, tmp_path):
    """Bit for bit, resumed or not: what measured the speed has left no trace."""
    clock = Clock(monkeypatch)
    loss, options = slow_loss(clock), {"held_out": points(40), "check_every": 10, **QUICK}
    timed, plain, again = make(), make(), make(3)
    run = glp.fit(
        timed,
        points(),
        loss,
        minutes=0.3,
        checkpoint=tmp_path / "a",
        generator=seeded(7),
        **options,
    )
    first = [next(run) for _ in range(10)]
    assert first[0].step == 1
    n = first[0].steps
    assert 20 < n < 60
    assert first[-1].seconds_left == (n - 10) / first[-1].steps_per_second
    run.close()
    assert json.loads((tmp_path / "a" / "run.json").read_text())["settings"]["steps"] == n
    expected = list(glp.fit(plain, points(), loss, steps=n, generator=seeded(7), **options))
    clock.each = 9.0  # another speed: the steps stay
    rest = list(
        glp.fit(
            again, points(), loss, minutes=0.3, checkpoint=tmp_path / "a", resume=True,
            generator=seeded(9), **options,
        )
    )  # fmt: skip
    assert [r.loss for r in (*first, *rest)] == [r.loss for r in expected]
    for name, value in again.state_dict().items():
        assert torch.equal(value, plain.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"made with minutes=0\.3, got 0\.5"):
        list(
            glp.fit(
                again,
                points(),
                loss,
                minutes=0.5,
                checkpoint=tmp_path / "a",
                resume=True,
                **options,
            )
        )


def test_a_stop_while_the_speed_is_measured_saves_nothing(monkeypatch, tmp_path):
    def stopped(score, z, *, generator=None):
        raise KeyboardInterrupt

    model = make()
    with pytest.raises(KeyboardInterrupt):
        list(glp.fit(model, points(), stopped, minutes=1.0, checkpoint=tmp_path / "a"))
    assert not (tmp_path / "a").exists()


def test_steps_or_minutes_but_not_both():
    with pytest.raises(ValueError, match="steps follow from minutes"):
        glp.TrainingSettings(steps=10, minutes=1)
    with pytest.raises(ValueError, match="minutes must be"):
        glp.TrainingSettings(minutes=0)


def test_a_processor_that_is_too_slow_for_images_is_warned_of():
    say = pace.warn_if_slow
    cpu, images = torch.device("cpu"), torch.Size([3, 64, 64])
    long = (
        r"256 × 64×64 takes 27 s on this CPU: 2000 steps would take about 15.0 h. "
        r".*batch_size=64 in place of 256.*fewer steps or minutes="
    )
    with pytest.warns(UserWarning, match=long):
        say(2000, 27.0, 256, images, cpu, None)
    with pytest.warns(UserWarning, match="5 minutes are enough for only 11 of them"):
        say(11, 27.0, 16, images, cpu, 5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        say(2000, 1.0, 16, images, cpu, None)
        say(2000, 27.0, 256, torch.Size([30]), cpu, None)
        say(11, 27.0, 256, images, torch.device("cuda"), 5.0)


def test_batches_follow_the_places_of_an_event():
    settings = glp.TrainingSettings()
    sizes = {
        (30,): 256,
        (1, 8, 8): 256,
        (3, 16, 16): 64,
        (3, 32, 32): 16,
        (3, 256, 256): 16,
        (2, 128): 128,
    }
    assert {event: settings.batch(event) for event in sizes} == sizes
    assert glp.TrainingSettings(batch_size=7).batch((3, 32, 32)) == 7


def test_a_training_warns_once_its_speed_is_known():
    model = glp.ScoreModel(glp.UNet((1, 8, 8), (8,), generator=seeded()), VP())
    x = torch.randn(20, 1, 8, 8, generator=seeded(1))
    with pytest.warns(
        UserWarning, match="on this CPU: 0.0001 minutes are enough for only 1 of them"
    ):
        list(glp.fit(model, x, minutes=1e-4, generator=seeded(2)))


def test_what_follows_the_last_step_is_no_part_of_the_speed_that_is_warned_of(monkeypatch):
    """One step takes no time, and what follows it three hours: the step is not slow."""
    clock = Clock(monkeypatch)
    watch = SimpleNamespace(perf_counter=lambda: clock.now)
    monkeypatch.setattr("gradlogp.learn.training.time", watch)
    model = glp.ScoreModel(glp.UNet((1, 8, 8), (8,), generator=seeded()), VP())
    x = torch.randn(20, 1, 8, 8, generator=seeded(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(glp.fit(model, x, steps=1, generator=seeded(2), finish=clock.works(10_000.0)))
    assert clock.now > 10_000
