"""Steps prepared together: their losses are those of `multilevel`, their draws those of each step."""

from functools import partial, wraps
from itertools import islice

import pytest
import torch
from support import seeded

import gradlogp as glp
from gradlogp.core import Processes
from gradlogp.learn.ahead import MOST, NUMBERS, Ahead, together
from gradlogp.learn.feed import Feed
from gradlogp.learn.objectives import ImportanceTimes, multilevel, weights
from gradlogp.noise.predictions import KINDS
from gradlogp.noise.schedules import VE, VP, Levels
from gradlogp.scores.affine import affine, is_affine
from gradlogp.scores.base import Base
from gradlogp.scores.networks import UNet

STRETCH = torch.tensor([[2.0, 0.0, 0.0], [1.9, 0.3, 0.0], [0.5, 0.2, 1.0]])
DATA = torch.randn(200, 3, generator=seeded(1)) @ STRETCH.T + 1
MIXTURE = glp.GaussianMixture([0.3, 0.7], [[1.0, 0.0, 0.0], [0.0, 2.0, 1.0]], [0.5, 1.5])


def network(**options):
    made = glp.MLP(3, 8, 1, generator=seeded(0), **options)
    with torch.no_grad():  # a new network says 0
        made.outlet.weight.normal_(generator=seeded(3))
    return made


def model(schedule=None, predicts="v", base=None, **options):
    schedule = VP() if schedule is None else schedule
    return glp.ScoreModel(network(**options), schedule, predicts, base=base)


def fallen_back():
    made = model(base=MIXTURE)
    made.base.fallback = True
    return made


def low_rank():
    made = model()
    made.base = Base(torch.Size([3]), 1, 1, follows=True, like=made.z_mean)
    return made


def in_place():
    def moved(_, given):
        given[0].add_(0.1)

    made = model(predicts="epsilon")  # of others z itself is a part of the score
    made.network.register_forward_pre_hook(moved)
    return made


def shared():
    made = model(predicts="epsilon", base="gaussian")
    made.base.share.copy_(torch.linspace(1, 0, len(made.base.share)))
    return made


def images():
    unet = UNet((1, 24, 24), (8, 16), start=True, generator=seeded(0))
    made = glp.ScoreModel(unet, VP(), base="gaussian")
    made.base.linear.fill_(0.3)
    return made


CLASSES, IMAGES = torch.arange(200) % 3, torch.randn(40, 1, 24, 24, generator=seeded(2))
EDM = partial(partial(multilevel, weight=weights.edm()), stratified=True)
ENDS = partial(multilevel, importance=ImportanceTimes.for_likelihood(), weight=weights.likelihood)
CASES = {
    **{kind: (partial(model, predicts=kind), {}) for kind in KINDS},
    "gaussian": (partial(model, base="gaussian"), {}),
    "mixture": (partial(model, VE(0.01, 20.0), base=MIXTURE), {}),
    "fallback": (fallen_back, {}),
    "low rank": (low_rank, {}),
    "ladder": (partial(model, Levels(torch.logspace(1, -2, 6))), {"standardize": True}),
    "stratified": (model, {"objective": partial(multilevel, stratified=True)}),
    "weight": (model, {"objective": EDM}),
    "importance": (model, {"objective": ENDS}),
    "classes": (partial(model, condition=3), {"condition": CLASSES, "condition_dropout": 0.3}),
    "values": (partial(model, condition=(2,)), {"condition": DATA[:, :2] + 0.1}),
    "values, dropout": (
        partial(model, condition=(2,)),
        {"condition": DATA[:, :2] + 0.1, "condition_dropout": 0.3},
    ),
    "in place": (in_place, {}),
    "parts": (partial(model, base=MIXTURE), {"accumulate": 3}),
    "images": (images, {"data": IMAGES, "batch_size": 7, "take": 2}),
}  # fmt: skip


def losses_of(make, objective, options):
    made = make().double()
    options = {"batch_size": 30, "take": MOST + 3, "data": DATA} | options
    data, n = options.pop("data").double(), options.pop("take")
    if "condition" in options and options["condition"].is_floating_point():
        options["condition"] = options["condition"].double()
    records = glp.fit(made, data, objective, generator=seeded(7), **options)
    losses = [record.loss for record in islice(records, n)]
    records.close()
    return losses, made


@pytest.mark.parametrize("case", CASES)
def test_prepared_losses_are_those_of_the_objective(case):
    """Over more steps than are prepared at once, so that draws and weights must agree as well."""
    make, options = CASES[case]
    objective = options.get("objective", multilevel)
    options = {k: v for k, v in options.items() if k != "objective"}
    plain = lambda score, z, *, generator: objective(score, z, generator=generator)
    (ours, mine), (theirs, other) = (losses_of(make, o, options) for o in (objective, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=0.0)
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [shared, fallen_back, low_rank, partial(model, predicts="x0")])
def test_a_score_is_affine_in_what_its_network_says(make, generator):
    """With a share of the correction, too, which is 1 in training."""
    made = make().double().train()
    z, t = torch.randn(6, 3, generator=generator), torch.linspace(0.05, 0.95, 6)
    seen, offset, gain = affine(made, z, t, None)
    out = gain * seen.through(made.network)
    torch.testing.assert_close(out if offset is None else out + offset, made(z, t))
    assert not is_affine(glp.ScoreModel(network(holes=True), VP()))


def ahead(data, size):
    made = model()
    feed = Feed(made, data, size, None, Processes(), 1)
    n = together(made, multilevel, size, 0.0, encoded=True)
    return Ahead(n, made, multilevel, feed, None, 0.0, Processes(), 0)


def test_few_numbers_are_prepared_for_many_steps():
    """As many as are worth it, and one where something may look at the weights or takes long."""

    class Own(glp.ScoreModel):
        def forward(self, *given):
            return 2 * super().forward(*given)

    def n(made, objective=multilevel, size=30, dropout=0.0, encoded=True):
        return together(made, objective, size, dropout, encoded=encoded)

    assert n(model()) == n(model(condition=3), dropout=0.1) == n(model(condition=(2,))) == MOST
    assert n(model(), size=NUMBERS // 12) == 4
    assert n(model(condition=(9,)), size=NUMBERS // 48) == 4
    assert n(model(), size=NUMBERS) == 1
    assert (
        n(model(), lambda score, z, *, generator: multilevel(score, z, generator=generator)) == 1
    )
    assert n(model(), partial(multilevel, t=torch.full((30,), 0.5))) == 1
    assert n(model(), encoded=False) == 1
    assert n(model(condition=(2,)), dropout=0.1) == 1  # a value in its place is learned
    assert n(Own(network(), VP())) == 1
    hooked = model()
    hooked.register_forward_hook(lambda *given: None)
    assert n(hooked) == 1


def test_resuming_amid_steps_with_a_function_around_the_objective_is_refused(tmp_path):
    """Before the model is changed."""
    made, path = model(), tmp_path / "run"
    wrapped = wraps(multilevel)(lambda *given, **options: multilevel(*given, **options))
    options = {"checkpoint": path, "steps": 9, "batch_size": 30, "generator": seeded(0)}
    records = glp.fit(made, DATA, **options)
    next(records)
    records.close()
    other = model()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match="not with a function around it"):
        list(glp.fit(other, DATA, wrapped, resume=True, **options))
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_state_within_steps_prepared_together_goes_on_with_the_next():
    whole, first, second = (ahead(DATA, 30) for _ in range(3))
    batches = [(whole.next(k), whole.done())[0] for k in range(2 * MOST)]
    for k in range(MOST + 5):
        assert torch.equal(first.next(k).residual, batches[k].residual)
        assert first.next(k) is first.next(k)
        first.done()
    second.restore(first.state())
    for k in range(MOST + 5, 2 * MOST):
        for mine, theirs in zip(second.next(k)[3:5], batches[k][3:5], strict=True):
            assert torch.equal(mine, theirs)
        second.done()


@pytest.mark.parametrize("wrong", [-1, 10, 1.0, 2**70])
def test_a_state_drawn_from_nowhere_is_damaged(tmp_path, wrong):
    options = {"checkpoint": tmp_path / "run", "steps": 9, "batch_size": 30}
    list(glp.fit(model(), DATA, generator=seeded(0), **options))
    file = tmp_path / "run" / "training.pt"
    state = torch.load(file, weights_only=True)
    assert state["drawn_from"] == 0
    torch.save(state | {"drawn_from": wrong}, file)
    with pytest.raises(ValueError, match="drawn_from cannot be"):
        glp.fit(model(), DATA, resume=True, **options)


def test_a_stop_while_steps_are_drawn_loses_none():
    whole, first, second = (ahead(DATA, 30) for _ in range(3))
    draw, calls = first.feed.next, 0

    def interrupted(step):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return draw(step)

    first.feed.next = interrupted
    with pytest.raises(KeyboardInterrupt):
        first.next(0)
    second.restore(first.state())
    assert torch.equal(second.next(0).residual, whole.next(0).residual)
