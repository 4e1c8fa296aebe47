"""What is kept of a training: the best weights, a share of the correction, what `finish` does."""

import pytest
import torch
from support import MIXTURE, close, every_schedule, seeded
from torch import nn

import gradlogp as glp
from gradlogp.distributions.analytic import Gaussian
from gradlogp.learn import checkpoint
from gradlogp.learn import share as shares
from gradlogp.learn.objectives import implicit
from gradlogp.learn.objectives.masked import Masks
from gradlogp.learn.share import fit_share, level_times
from gradlogp.noise.schedules import VE, VP
from gradlogp.scores.base import LEVELS
from gradlogp.scores.exact import ExactScore
from gradlogp.scores.model import ScoreModel

FEW, HELD = (MIXTURE.sample(n, generator=seeded(n)).double() for n in (12, 200))
STEPS = {"steps": 160, "batch_size": 12, "learning_rate": 0.02, "check_every": 10, "ema": 0.8}
RISES = pytest.warns(UserWarning, match="the loss on held-out data rose from .* at step")


def model(base=None):
    net = glp.MLP(2, 32, 1, generator=seeded(0)).double()
    return glp.ScoreModel(net, VE(0.05, 5.0), "v", base=base)


def trained(made, data=FEW, held_out=HELD, **options):
    return list(glp.fit(made, data, held_out=held_out, generator=seeded(3), **STEPS, **options))


def test_the_weights_of_the_lowest_held_out_loss_are_kept():
    """12 memorised rows: the loss on others rises, with a warning; the best weights are kept."""
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
        options = QUICK | {"steps": 60, "learning_rate": 0.01, "exact": exact} | options
        return list(glp.fit(model, x, generator=seeded(4), **options))[-1].excess.value

    short = excess(make(), checkpoint=tmp_path / "run")
    model = glp.learn.checkpoint.load(tmp_path / "run").double()
    longer = excess(model, keep_frame=True, steps=250)
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


BASE = Gaussian(torch.zeros(2).double(), MIXTURE.cov + torch.outer(MIXTURE.mean, MIXTURE.mean))


class Planted(ScoreModel):
    """The right correction from the base to the mixture, times a number."""

    def __init__(self, factor, schedule):
        super().__init__(nn.Linear(2, 2).double(), schedule, "v", (2,), base=BASE)
        self.factor = factor

    def forward(self, z, t, condition=None):
        right, known = (ExactScore(law, self.schedule)(z, t) for law in (MIXTURE, BASE))
        return self.base.beside(known, self.factor * (right - known), self._noise_input(t))


def planted(factor, n=4000, schedule=VE(0.1, 4.0)):  # noqa: B008
    model = Planted(factor, schedule)
    z = MIXTURE.sample(n, generator=seeded(1)).double()
    fit_share(model, z, None, 0)
    return model.base.share


def test_of_twice_the_right_correction_half_is_kept():
    """And of one with the wrong sign nothing, of half of it all, of nothing nothing."""
    right = planted(1.0)
    assert ((right > 0.8) & (right < 1)).all()  # less one standard error
    close(planted(2.0), right / 2)
    close(planted(0.5), torch.ones(LEVELS))
    assert float(planted(-1.0).abs().max()) == 0


def test_one_standard_error_less(monkeypatch):
    """Over many sets of rows the share before the clamp lies one of its deviations below 0.5."""
    monkeypatch.setattr(shares, "level_times", lambda _: torch.tensor([0.5]).double())
    found = []
    for seed in range(200):
        model = Planted(2.0, VE(0.1, 4.0))
        model.base.share = torch.ones(1)
        model.base.span = torch.tensor([-1.0, 1.0])
        fit_share(model, MIXTURE.sample(600, generator=seeded(seed)).double(), None, seed)
        found.append(model.base.share[0])
    found = torch.stack(found)
    shift = float((0.5 - found.mean()) / found.std())
    assert 0.8 < shift < 1.2  # its own error is 0.09


def test_the_loss_is_never_above_that_of_the_base():
    """Whatever the correction: the loss of the share on its rows is at most that of the base."""
    z = MIXTURE.sample(300, generator=seeded(1)).double()
    eps = torch.randn(300, 2, generator=seeded(2))
    for factor in (-1.0, 0.3, 1.0, 3.0, 10.0):
        model = Planted(factor, VE(0.1, 4.0))
        fit_share(model, z, None, 0)
        for t in torch.tensor([0.1, 0.5, 0.9]).double():
            sigma = model.schedule(t)[1]
            z_t = z + sigma * eps
            loss = lambda s: 0.5 * (sigma * s + eps).square().sum(1)  # noqa: B023
            gap = loss(model(z_t, t)) - loss(ExactScore(BASE, model.schedule)(z_t, t))
            assert float(gap.mean()) <= 2 * float(gap.std()) / 300**0.5


@every_schedule
def test_levels_are_geometric_and_where_they_are_looked_up(schedule):
    times = level_times(schedule)
    model = Planted(1.0, schedule)
    fit_share(model, MIXTURE.sample(60, generator=seeded(1)).double(), None, 0)
    model.base.share.copy_(torch.linspace(0, 1, LEVELS))
    assert len(times) == LEVELS
    if schedule.times is None:
        close(model.base.shared(model._noise_input(times)), model.base.share, rtol=1e-5, atol=1e-5)


class Shifted(nn.Module):
    """The right correction of N(0, 1) that is N(1, 1) indeed, entry by entry, times a number."""

    holes, event_shape, condition = True, torch.Size([3]), (2, 3)

    def __init__(self, factors):
        super().__init__()
        self.factors = nn.Parameter(torch.tensor(factors, dtype=torch.float64))

    def forward(self, x, c, condition):
        r = torch.exp(4 * c).unsqueeze(1)  # c is −λ/8, of λ = −2 log σ
        return self.factors * r / (1 + r.square()).sqrt() + 0 * x


def test_of_parts_each_column_has_a_share_of_its_own():
    """Of twice the right correction half, of a wrong one nothing; what goes together has one."""
    masks = Masks(torch.zeros(1, 3), (0, 1, 2), (False,) * 3)
    model = ScoreModel(Shifted([2.0, -1.0, 0.5]), VE(0.1, 4.0), "v").double()
    z = torch.randn(2000, 3, generator=seeded(1)).double() + 1.0
    z[::3, 2] = torch.nan
    fit = lambda m: fit_share(
        model, z.nan_to_num(0.0), model.condition.encode(z), 0, m.objective()
    )
    fit(masks)
    first, second, third = model.condition.share.T
    assert float((first[4:] - 0.5).abs().max()) < 0.06  # at less noise little is to be seen of it
    assert float(second.abs().max()) == 0
    assert float(third[4:].min()) > 0.9
    fit(masks._replace(groups=(0, 0, 1)))  # (2·1 − 1·1)/(2² + 1²)
    together = model.condition.share
    assert torch.equal(together[:, 0], together[:, 1])
    assert float((together[4:, 0] - 0.2).abs().max()) < 0.06
    model.condition.share.fill_(1.0)
    fit_share(model, z.nan_to_num(0.0), model.condition.encode(z), 0, lambda score, z: z.sum(1))
    assert float(model.condition.share.min()) == 1  # of another loss it is not known


@pytest.mark.parametrize("n", [2, 30])
def test_few_rows(n):
    share = planted(1.0, n, VP())
    assert share.isfinite().all()
    assert ((share >= 0) & (share <= 1)).all()
