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
