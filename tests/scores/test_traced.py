"""The divergence of a network written out by hand is that which differentiation finds."""

import pytest
import torch
from support import close, every_schedule, seeded
from torch import nn

import gradlogp as glp
from gradlogp.calculus.reverse import jacobian_trace
from gradlogp.noise.predictions import KINDS
from gradlogp.noise.schedules import VP, Rectified
from gradlogp.scores import ScoreModel
from gradlogp.scores.networks import MLP, mlp
from gradlogp.scores.traced import learned_and_trace

MIXTURE = glp.GaussianMixture(
    [0.3, 0.7], [[-1.0, 0.0, 0.5], [1.0, 0.4, 0.0]], [[0.5, 1.0, 0.3]] * 2
)
BASES = {
    "none": (None, False),
    "Gaussian": (glp.Gaussian(torch.zeros(3), torch.eye(3) + 0.3), False),
    "mixture": (MIXTURE, False),
    "fallback": (MIXTURE, True),
}


def model_of(kind="v", base=None, fallback=False, condition=None, frequencies=(), schedule=None):
    """A model of three columns in a frame of its own, whose network says something everywhere."""
    g = seeded(3)
    network = MLP(3, 16, 2, condition, frequencies, generator=g)
    nn.init.normal_(network.outlet.weight, generator=g)
    model = ScoreModel(network, schedule or VP(), kind, base=base).double().eval()
    model.z_mean.copy_(torch.tensor([1.5, -0.7, 0.2]))
    model.z_std.copy_(torch.tensor([0.5, 2.0, 1.0]))
    if base is not None:
        model.base.fallback = fallback
        model.base.share.copy_(torch.linspace(1, 0.2, len(model.base.share)))
    if model.gain is not None:
        model.gain.normal_(generator=g)
        model.left.copy_(torch.tensor([0.3, 0.6, 0.9]))
    return model


def found(model, z, t, condition=None):
    """Value and divergence by hand, and by differentiation."""
    with torch.no_grad():
        by_hand = learned_and_trace(model, z, t, condition)
        given = lambda y: model.denoise_given(y, t, condition, alone=True)
        return by_hand, jacobian_trace(given, z)


def same(by_hand, expected):
    close(by_hand[0], expected[0], rtol=1e-11, atol=1e-11)
    close(by_hand[1], expected[1], rtol=1e-10, atol=1e-10)
    assert float(expected[1].std()) > 1e-3  # it depends on where


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("base", BASES)
def test_of_every_prediction_and_base(kind, base, generator):
    law, fallback = BASES[base]
    model = model_of(kind, law, fallback)
    z = 2 * torch.randn(6, 3, generator=generator)
    for t in torch.tensor([0.05, 0.5, 0.9], dtype=torch.float64):
        same(*found(model, z, t))
        same(*found(model.tabulated([t]), z, t))


@every_schedule
def test_of_every_schedule(schedule, generator):
    model = model_of(schedule=schedule, frequencies=[1.0, 2.5])
    same(*found(model, torch.randn(4, 3, generator=generator), torch.tensor(0.4).double()))


@pytest.mark.parametrize("condition", [4, (2,)])
def test_with_conditions(condition, generator):
    model = model_of(condition=condition)
    z, t = torch.randn(5, 3, generator=generator), torch.tensor(0.3).double()
    classes = condition == 4
    y = torch.tensor([0, 3, 1, -1, 2]) if classes else torch.randn(5, 2, generator=generator)
    same(*found(model, z, t, y))
    score = model.given(torch.tensor([2]) if classes else y[:1])
    with torch.no_grad():
        same(score._learned_and_trace(z, t), jacobian_trace(lambda x: score._learned(x, t), z))


@pytest.mark.parametrize("cotangents", [1, 100, 2**17])
def test_rows_pulled_back_together_or_alone(cotangents, monkeypatch, generator):
    monkeypatch.setattr(mlp, "COTANGENTS", cotangents)
    model = model_of(frequencies=[1.0, 6.3])
    same(*found(model, torch.randn(5, 3, generator=generator), torch.tensor(0.4).double()))


@pytest.mark.parametrize("kind", ["score", "epsilon"])
def test_where_the_state_says_nothing_of_the_data_the_divergence_is_zero(kind, generator):
    model, t = model_of(kind, schedule=Rectified()), torch.tensor(1.0).double()
    by_hand, expected = found(model, torch.randn(4, 3, generator=generator), t)
    close(by_hand[0], expected[0])
    assert not by_hand[1].any()
    assert not expected[1].any()


class Doubled(MLP):
    def forward(self, *given, **known):
        return 2 * super().forward(*given, **known)


class Shifted(ScoreModel):
    def denoise_given(self, z, t, condition, *, alone=False):
        return z.square()


def hooked(model):
    model.network.blocks[0].first.register_forward_hook(lambda module, given, out: out.square())
    return model


def replaced(model):
    model.network.blocks[1].second = nn.Sequential(nn.Linear(16, 16), nn.Tanh()).double()
    return model


def doubled(model):
    model.network.__class__ = Doubled
    return model


def shifted(model):
    model.__class__ = Shifted
    return model


class Otherwise(ScoreModel):
    def _denoise(self, z, t):
        return 2 * super()._denoise(z, t)


def otherwise(model):
    model.__class__ = Otherwise
    return model


def patched(model):
    layer = model.network.blocks[0].first
    forward = layer.forward
    layer.forward = lambda h: forward(h).square()
    return model


def of_low_rank(model):
    parts = nn.Linear(16, 4), nn.Linear(4, 16)
    model.network.blocks[1].second = nn.Sequential(*parts).double()
    return model


def by_itself(model):
    forward = model.network.forward
    model.network.forward = lambda *given, **known: 3 * forward(*given, **known)
    return model


@pytest.mark.parametrize(
    "change",
    [hooked, replaced, doubled, shifted, otherwise, patched, of_low_rank, by_itself],
)
def test_what_the_formula_does_not_know_is_differentiated(change, generator):
    """A model that was changed is not taken for what it was built of."""
    model, t = change(model_of(schedule=VP())), torch.tensor(0.3).double()
    z = torch.randn(3, 3, generator=generator)
    with torch.no_grad():
        assert learned_and_trace(model, z, t, None) is None
    assert learned_and_trace(model_of(), z, t, None) is None  # gradients may be wanted


def test_a_likelihood_is_the_same_and_differentiable_as_before(generator):
    model = model_of("v", MIXTURE, frequencies=[1.0])
    x = torch.randn(5, 3, generator=generator)
    steps = {"n_steps": 6, "t_min": 0.05}
    by_hand = glp.log_likelihood(model, x, **steps).log_prob
    by_graph = glp.log_likelihood(model, x, **steps, differentiable=True).log_prob
    assert by_graph.requires_grad
    close(by_hand, by_graph.detach(), rtol=1e-9)
    (slope,) = torch.autograd.grad(by_graph.sum(), model.network.outlet.weight)
    assert float(slope.abs().max()) > 1e-3


def test_beside_waves_it_is_differentiated(generator):
    """What they lack linearly depends on every pixel, so that the formula would be wrong."""
    model = ScoreModel(MLP((1, 23, 23), 8, 1, generator=generator), VP(), "v", base="gaussian")
    z, t = torch.randn(2, 1, 23, 23, generator=generator).float(), torch.tensor(0.3)
    with torch.no_grad():
        assert model.float().eval()._learned_and_trace(z, t) is None


def test_conditions_of_other_rows_are_refused_as_such(as_user, generator):
    score = model_of(condition=4).given(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="holds 3 rows of conditions"):
        glp.log_likelihood(score, torch.randn(5, 3, generator=generator), n_steps=6)


def test_far_from_zero_no_digits_are_lost(generator):
    """In float32, of data whose mean is 10,000 of their deviations."""
    model = model_of().float()
    model.z_mean.fill_(1e4)
    model.z_std.fill_(1.0)
    fine = model_of()
    fine.z_mean.fill_(1e4)
    fine.z_std.fill_(1.0)
    t = torch.tensor(0.3)
    z = (model.schedule(t)[0] * 1e4 + torch.randn(6, 3, generator=generator)).float()
    with torch.no_grad():
        found, right = (
            model._learned_and_trace(z, t),
            fine._learned_and_trace(z.double(), t.double()),
        )
    assert float((found[1].double() - right[1]).abs().max()) < 3e-4
