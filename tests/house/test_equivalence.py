"""NCSN and DDPM are one model: the same network, data and noise under two schedules.

With a = √ᾱ and b = √(1 − ᾱ) the score of NCSN at noise b/a is s_VE(x/a; b/a) = a s_VP(x; a, b), and
L_simple = ½‖ε − ε̂‖² is NCSN's loss λ ½‖s + ε/σ‖² with λ = σ².
"""

from functools import partial

import pytest
import torch
from support import close, seeded
from torch import nn

import gradlogp as glp
from gradlogp.core import Injected
from gradlogp.learn.objectives import multilevel
from gradlogp.learn.objectives.weights import unweighted
from gradlogp.noise.schedules import DDPM, EDM, VE, VP, Cosine, Levels, Rectified, invert_log_snr

BETAS = torch.linspace(1e-4, 0.2, 40, dtype=torch.float64)
RATIO = ((1 - (1 - BETAS).cumprod(0)) / (1 - BETAS).cumprod(0)).sqrt()  # NCSN's σ of each step
PAIRS = {
    "VP-VE": (VP(), VE(1e-3, 1e3)),
    "cosine-EDM": (Cosine(), EDM(1e-4, 1e3)),
    "rectified-VE": (Rectified(), VE(1e-3, 1e3)),
    "DDPM-levels": (DDPM(BETAS), Levels(RATIO.flip(0))),
}
every_pair = pytest.mark.parametrize(("vp", "ve"), PAIRS.values(), ids=PAIRS.keys())
LAW = glp.GaussianMixture(
    [0.3, 0.7],
    torch.tensor([[-2.0, 0.5], [1.0, -1.0]], dtype=torch.float64),
    torch.tensor([0.3, 0.5], dtype=torch.float64),
)


def model(schedule, predicts="epsilon", seed=0):
    network = glp.MLP(2, 24, 2, generator=seeded(seed))
    nn.init.normal_(network.outlet.weight, 0.0, 0.3, generator=seeded(seed + 1))
    return glp.ScoreModel(network, schedule, predicts)


def matched(vp, ve, n, generator):
    """Times of both schedules at which σ/α is the same."""
    if vp.times is not None:
        i = torch.randint(len(vp.times), (n,), generator=generator)
        return vp.times[i], ve.times[i]
    t = 0.02 + 0.95 * torch.rand(n, generator=generator)
    return t, invert_log_snr(ve, vp.log_snr(t))


@every_pair
@pytest.mark.parametrize("predicts", ["score", "epsilon", "x0", "v", "velocity"])
def test_losses_and_gradients_are_equal_sample_by_sample(vp, ve, predicts, generator):
    x = LAW.sample(50, generator=generator)
    eps = torch.randn(50, 2, generator=generator)
    found = []
    for schedule, t in zip((vp, ve), matched(vp, ve, 50, generator), strict=True):
        m = model(schedule, predicts)
        loss = multilevel(m, x, t, generator=Injected(eps))
        weights = torch.linspace(0.5, 2.0, 50)  # so that no two samples may change places
        (weights * loss).sum().backward()
        found.append((loss.detach(), [p.grad for p in m.network.parameters()]))
    (simple, grads), (ncsn, others) = found
    close(ncsn, simple, 1e-10)
    assert simple.std() > 0.1
    for a, b in zip(others, grads, strict=True):
        close(a, b, 1e-10)


@every_pair
def test_what_breaks_it(vp, ve, generator):
    """Negative controls: NCSN's σ taken for √(1 − ᾱ), and its loss without λ = σ²."""
    x = LAW.sample(50, generator=generator)
    eps = torch.randn(50, 2, generator=generator)
    t, u = matched(vp, ve, 50, generator)
    simple = multilevel(model(vp), x, t, generator=Injected(eps))
    wrong = invert_log_snr(ve, -2 * vp(t)[1].log())
    assert (multilevel(model(ve), x, wrong, generator=Injected(eps)) - simple).abs().max() > 0.01
    bare = [
        multilevel(model(s), x, at, unweighted, generator=Injected(eps))
        for s, at in ((vp, t), (ve, u))
    ]
    close(bare[1], bare[0] * vp(t)[0] ** 2, 1e-9)  # they differ by α² where no λ makes up for it
    assert (bare[1] / bare[0] - 1).abs().max() > 0.01


def at_equal_ratio(vp, score, x, *, generator=None):
    """The loss at times drawn uniformly under `vp`, wherever these are under the score's schedule."""
    t = 0.02 + 0.95 * torch.rand(len(x), generator=generator)
    if score.schedule != vp:
        t = invert_log_snr(score.schedule, vp.log_snr(t))
    return multilevel(score, x, t, generator=generator)


@every_pair
@pytest.mark.parametrize("standardize", [False, True])
def test_one_trained_model_is_the_other_rescheduled(vp, ve, standardize, generator):
    """After twenty steps the weights agree: trained under VE and read under VP, and back.

    Discrete ladders need nothing: the same generator draws the same rung of both.
    """
    objective = multilevel if vp.times is not None else partial(at_equal_ratio, vp)
    x, ends = 3 * LAW.sample(500, generator=seeded(1)) + 5, []
    for schedule in (vp, ve):
        m = model(schedule)
        records = glp.fit(
            m, x, objective, steps=20, batch_size=64, learning_rate=5e-3, warm_up=5,
            standardize=standardize, ema=0.9, generator=seeded(2),
        )  # fmt: skip
        ends.append((torch.tensor([r.loss for r in records]), m))
    (losses, ddpm), (others, ncsn) = ends
    close(others, losses, 1e-9)
    start, end, other = (m.network.state_dict() for m in (model(vp), ddpm, ncsn))
    for name, value in end.items():
        close(other[name], value, 1e-8)
    assert max(float((end[name] - start[name]).abs().max()) for name in start) > 0.02
    t, u = matched(vp, ve, 20, generator)
    y = 2 * torch.randn(20, 2, generator=generator)
    read = glp.RescheduledScore(ncsn, vp)
    close(read(y, t), ddpm(y, t), 1e-8)
    close(read.denoise(y, t), ddpm.denoise(y, t), 1e-8)
    if vp.times is None:  # a ladder ends at its lowest level, where DDPM continues to data
        back = glp.RescheduledScore(ddpm, ve)
        close(back(y, u), ncsn(y, u), 1e-8)
    assert (ncsn(y, u) - ddpm(y, t)).abs().max() > 0.05  # not without the change of coordinates
