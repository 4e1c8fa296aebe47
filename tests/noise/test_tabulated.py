"""Scores with what depends on time alone computed once for the times of a run."""

import copy

import pytest
import torch
from support import close
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gradlogp as glp
from gradlogp import schedules
from gradlogp.diffusion import DDIM, Ancestral, UniPC
from gradlogp.noise.predictions import KINDS
from gradlogp.noise.tabulated import Tabulated, numbers

SCHEDULES = [
    schedules.VE(0.01, 10.0), schedules.EDM(), schedules.VP(), schedules.SubVP(),
    schedules.Cosine(), schedules.Rectified(), schedules.Levels([4.0, 2.0, 1.0]),
]  # fmt: skip
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
TIMES = torch.linspace(0.9, 0.1, 5, dtype=torch.float64).unbind()
LAW = glp.GaussianMixture([0.3, 0.7], torch.tensor([[-2.0, 0.5], [2.0, 1.0]]).double(), 0.4)


@every_schedule
def test_the_levels_are_those_of_the_schedule(schedule):
    known = Tabulated(schedule, TIMES)
    for t in TIMES:
        expected = torch.stack(schedule(t))
        close(torch.stack(known(t)), expected, 1e-14)
        close(torch.tensor(numbers(known, t)), expected, 1e-14)
        assert numbers(schedule, t) == tuple(expected.tolist())


@every_schedule
def test_other_times_are_asked_of_the_schedule(schedule):
    """Also one of the same value, which may be differentiated or belong to a transformation."""
    known = Tabulated(schedule, TIMES)
    t = TIMES[2].clone()
    assert known.numbers(t) is None
    assert torch.equal(torch.stack(known(t)), torch.stack(schedule(t)))
    for rate in (known.rates, lambda t: torch.func.jvp(known, (t,), (torch.ones_like(t),))[1]):
        close(torch.stack(rate(TIMES[2])), torch.stack(schedule.rates(TIMES[2])), 1e-12)
    close(known.g2(TIMES[1]), schedule.g2(TIMES[1]), 1e-12)
    mapped = torch.vmap(lambda t: torch.stack(known(t)))(torch.stack(TIMES))
    close(mapped, torch.stack(schedule(torch.stack(TIMES)), 1), 1e-14)


def test_it_stands_for_the_schedule():
    schedule = schedules.VP(0.2, 15.0)
    known = Tabulated(schedule, TIMES)
    assert known == schedule == known
    assert known == Tabulated(schedule, TIMES[:1])
    assert known != schedules.VP()
    assert (hash(known), repr(known)) == (hash(schedule), repr(schedule))
    assert (known.beta_min, known.times) == (0.2, None)
    assert isinstance(known, schedules.VP)
    assert not isinstance(known, schedules.VE)
    assert schedule == known
    for other in (copy.copy(known), copy.deepcopy(known)):
        assert other == schedule
        close(torch.stack(other(TIMES[1])), torch.stack(schedule(TIMES[1])), 1e-14)


class Bent(nn.Module):
    """A network of the plane that depends on all it is given."""

    event_shape = torch.Size([2])

    def forward(self, z, c):
        return (z.flip(1) * 1.5 + 0.3).sin() + c[:, None] * z.cos()


def models(kind):
    generator = torch.Generator().manual_seed(0)
    base = glp.Gaussian([0.5, -0.2], torch.tensor([[1.0, 0.3], [0.3, 0.8]]))
    conditional = glp.MLP(2, 8, 1, condition=(1,), generator=generator)
    network = glp.MLP(2, 8, 2, generator=generator)
    nn.init.normal_(network.outlet.weight, generator=generator)
    made = [
        glp.ScoreModel(Bent(), schedules.VP(), kind),
        glp.ScoreModel(network, schedules.VP(), kind),
        glp.ScoreModel(network, schedules.VP(), kind, base=base),
        glp.ScoreModel(conditional, schedules.VP(), kind),
    ]
    for model in made:
        model.double()
        model.z_mean.copy_(torch.tensor([0.7, -3.0]))
        model.z_std.copy_(torch.tensor([1.5, 0.2]))
    nn.init.normal_(conditional.outlet.weight, generator=generator)
    made[3].gain.fill_(0.4)
    made[3].left.fill_(0.9)
    return [*made[:3], made[3].given(torch.tensor([[0.3]]).double())]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_the_same_with_its_frames_known(kind, generator):
    z = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    for model in models(kind):
        known = model.tabulated(TIMES)
        for t in TIMES:
            close(known(z, t), model(z, t), 1e-12)
            close(known.denoise(z, t), model.denoise(z, t), 1e-12)
            assert torch.equal(known(z, t.clone()), model(z, t))
            close(known.rows(slice(2))(z[:2], t), known(z, t)[:2], 1e-12)
        each = torch.stack(TIMES)[:4]
        assert torch.equal(known(z, each), model(z, each))
    assert type(known) is type(model)


def test_scores_around_others_hand_it_on(generator):
    z = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    one, other = (glp.ExactScore(law, schedules.VP()) for law in (LAW, LAW.noised(1.0, 0.5)))
    guided = glp.GuidedScore(one, other, 0.5)
    for score in (one, guided, glp.RescheduledScore(guided, schedules.EDM(0.01, 10.0))):
        known = score.tabulated(TIMES)
        assert isinstance(known.schedule, Tabulated)
        close(known(z, TIMES[3]), score(z, TIMES[3]), 1e-12)


def test_a_law_is_noised_once_for_a_time_that_is_asked_for_again(generator):
    """By identity, and never where a derivative may go through it."""
    z = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    score = glp.ExactScore(LAW, schedules.VP())
    known = score.tabulated(TIMES)
    with torch.no_grad():
        for t in (TIMES[1], TIMES[1], TIMES[2], TIMES[1], 2 * TIMES[3]):
            close(known(z, t), score(z, t), 1e-12)
        assert known.law(TIMES[2]) is known.law(TIMES[2])
        again = TIMES[2].clone()
        assert known.law(again) is not known.law(again)
        field = lambda x: known(x, TIMES[3])
        for transform in (
            lambda: torch.func.jvp(field, (z,), (z,)),
            lambda: torch.func.vjp(field, z),
        ):
            known.law(TIMES[2])
            transform()  # which leaves nothing of its own behind
            close(known(z, TIMES[3]), score(z, TIMES[3]), 1e-12)
    assert known.law(TIMES[3]) is not known.law(TIMES[3])


class Counted(TorchDispatchMode):
    """Counts operations."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


def operations(work):
    """Return the operations of a step: those of six less those of three."""
    found = []
    for n in (3, 6):
        with Counted() as counted:
            work(n)
        found.append(counted.n)
    return (found[1] - found[0]) / 3


def test_a_step_is_no_more_than_the_network():
    """It is asked for less than a bare call does, as what it makes of a level is known: that pays."""
    model = glp.ScoreModel(glp.MLP(2, 8, 3), schedules.VP(), "v")
    x, c = torch.zeros(4, 2), torch.zeros(4)
    with torch.no_grad():
        network = operations(lambda n: [model.network(x, c) for _ in range(n)])
    for transition in (DDIM(), Ancestral(), UniPC()):
        run = lambda n, tr=transition: glp.evolve(tr, model, x, torch.linspace(0.9, 0.3, n + 4))
        assert operations(run) <= network, transition


def test_what_a_step_adds_to_training():
    """Batch, noise, frame, clipping and averages: about 80 operations, beside 208 of a bare loop."""
    model = glp.ScoreModel(glp.MLP(2, 8, 3), schedules.VP(), "v")
    x, c = torch.randn(64, 2), torch.zeros(8)
    bare, steps = glp.MLP(2, 8, 3), glp.fit(model, x, steps=100, batch_size=8, check_every=100)
    optimizer = torch.optim.AdamW(bare.parameters(), fused=True)

    def step():
        optimizer.zero_grad()
        (bare(x[:8], c) - x[:8]).square().mean().backward()
        optimizer.step()

    step()
    next(steps)
    floor = operations(lambda n: [step() for _ in range(n)])
    assert operations(lambda n: [next(steps) for _ in range(n)]) < floor + 84
    steps.close()


def test_a_network_with_its_own_forward_is_called_as_ever():
    class Halved(glp.MLP):
        def forward(self, x, c, condition=None):  # type: ignore[override]
            return super().forward(x, c, condition) / 2

    halved = Halved(2, 8, 1, generator=torch.Generator().manual_seed(0))
    plain = copy.deepcopy(halved)
    plain.__class__ = glp.MLP
    nn.init.ones_(halved.outlet.weight)
    nn.init.constant_(plain.outlet.weight, 0.5)
    z = torch.randn(3, 2)
    one, other = (
        glp.evolve(DDIM(), glp.ScoreModel(n, schedules.VP()), z) for n in (halved, plain)
    )
    close(one, other, 1e-6)
