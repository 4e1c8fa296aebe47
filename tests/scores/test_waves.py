"""The Gaussian from which large images start, and corrections without a linear part."""

import pytest
import torch
from support import Wave, close, seeded
from torch import nn

import gradlogp as glp
from gradlogp.calculus.reverse import jacobian
from gradlogp.diffusion import UniPC, evolve
from gradlogp.distributions.analytic import Gaussian, GaussianMixture
from gradlogp.interfaces.base import base_for
from gradlogp.interfaces.pipeline import build_model, objective_for
from gradlogp.learn import checkpoint
from gradlogp.learn.share import fit_linear, level_times
from gradlogp.noise.grids import time_grid
from gradlogp.noise.schedules import VE, VP
from gradlogp.noise.terminal import terminal
from gradlogp.scores.exact import ExactScore
from gradlogp.scores.shared import Noised
from gradlogp.scores.waves import Waves, controlled, cosines

TIMES = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
EVENT = torch.Size([2, 4, 6])


@pytest.fixture
def base(generator):
    found = Waves(EVENT).double()
    found.colours.copy_(torch.linalg.qr(torch.randn(2, 2, generator=generator))[0])
    found.mean.normal_(generator=generator)
    found.variances.copy_(0.1 + 3 * torch.rand(EVENT, generator=generator))
    return found


def whole(base):
    """The same law, as a vector with a covariance."""
    d = EVENT.numel()
    Q = base.waves(torch.eye(d, dtype=torch.float64).reshape(d, *EVENT)).flatten(1)  # rows: Q e_i
    return Gaussian(base.mean.flatten(), Q @ torch.diag(base.variances.flatten()) @ Q.mT)


def modelled(base, network, schedule):
    model = glp.ScoreModel(network, schedule, "v").double()
    model.base = base
    return model


class Scaled(nn.Module):
    event_shape = EVENT

    def forward(self, x, coordinate):
        return 0.3 * (1 + coordinate.reshape(-1, 1, 1, 1)) * x


def test_the_basis_is_orthonormal_and_made_of_cosines(base, generator):
    close(cosines(5, TIMES) @ cosines(5, TIMES).mT, torch.eye(5).double(), atol=1e-12)
    flat = torch.ones(1, *EVENT, dtype=torch.float64)
    w = base.waves(flat)  # of one colour in each pixel all is in the first wave
    assert float(w.flatten(2)[:, :, 1:].abs().max()) < 1e-12
    close(w.square().sum(), flat.square().sum())
    z = torch.randn(3, *EVENT, generator=generator)
    close(base.image(base.waves(z)), z)
    close(base.waves(z).square().sum(), z.square().sum())


def test_score_and_denoiser_are_those_of_the_mixture(base, generator):
    base.weights.copy_(torch.rand(base.weights.shape, generator=generator).softmax(0))
    base.centres.normal_(generator=generator).mul_(0.3)
    base.factors.copy_(0.5 + torch.rand(base.factors.shape, generator=generator))
    Q = base.image(torch.eye(EVENT.numel()).double().reshape(-1, *EVENT)).flatten(1)  # rows: waves
    means = base.mean.flatten() + base.centres.flatten(1) @ Q
    v = (base.factors[:, base.band] * base.variances).flatten(1)
    law = GaussianMixture(base.weights, means, Q.mT @ v.diag_embed() @ Q)
    exact, z = ExactScore(law, VP()), torch.randn(4, *EVENT, generator=generator)
    for t in (TIMES, TIMES[1]):
        a, b = (v.reshape(-1, 1) for v in VP()(t))
        close(base.score(z, a, b).flatten(1), exact(z.flatten(1), t), rtol=1e-9)
        close(base.denoise(z, a, b).flatten(1), exact.denoise(z.flatten(1), t), rtol=1e-9)
    a, b = torch.full((1, 1), 0.7).double(), torch.full((1, 1), 0.4).double()
    value, trace = base.denoise_trace(z, a, b)
    close(value, base.denoise(z, a, b), rtol=1e-9)
    right = jacobian(lambda y: base.denoise(y, a, b), z).diagonal(dim1=1, dim2=2).sum(1)
    close(trace, right, rtol=1e-8)
    law_t = law.noised(0.7, 0.4)
    level = torch.tensor([[[0.7]], [[0.4]]], dtype=torch.float64)
    close(base.log_prob(z, *level), law_t.log_prob(z.flatten(1)), rtol=1e-9)
    draws = Noised(base, *level).sample(4000, generator=generator).flatten(1)
    for found, right in ((draws, law_t.mean), ((draws - law_t.mean) ** 2, law_t.cov.diagonal())):
        assert float(((found.mean(0) - right) / found.std(0)).abs().max()) < 4.5 / 4000**0.5


def test_it_has_the_second_moments_and_the_spectrum_of_the_data(generator):
    """For every channel, and for every wave; those between waves are left out."""
    colours = torch.tensor([[2.0, 0.0], [1.5, 0.5]], dtype=torch.float64)
    x = torch.randn(500, *EVENT, generator=generator).cumsum(2).cumsum(3)
    x = (colours @ x.flatten(2)).reshape(x.shape) + 7
    model = modelled(Waves(EVENT), Scaled(), VE(0.01, 30.0))
    model.fit_frame(x, "each")
    z = model.coordinates.encode(x)
    close(model.base.variances, model.base.waves(z - z.mean(0)).square().mean(0))
    S = whole(model.base).cov.diagonal().reshape(EVENT)
    close(S.sum((1, 2)), z.var(0, correction=0).sum((1, 2)), rtol=1e-9)


def test_pictures_of_two_kinds(generator):
    """Smooth and bright or rough and dark ones, in their shares; each band has its variance."""
    smooth, n = torch.rand(3000, generator=generator) < 0.3, 3000
    x = torch.randn(n, *EVENT, generator=generator) * torch.where(smooth, 0.1, 1.0).reshape(
        -1, 1, 1, 1
    )
    x = x + torch.where(smooth, 3.0, -1.0).reshape(-1, 1, 1, 1)
    model = modelled(Waves(EVENT), Scaled(), VE(0.01, 30.0))
    model.fit_frame(x)
    base = model.base
    v = base.factors[:, base.band] * base.variances
    is_smooth = v[:, 0, -1, -1] < 0.1
    close(base.weights[is_smooth].sum(), smooth.double().mean(), rtol=1e-3)
    close(v[is_smooth][:, :, -1, -1].mean(), torch.tensor(0.01).double(), rtol=0.1)
    bright = base.image(base.centres) + base.mean
    assert float(bright[is_smooth].mean()) > 2
    second = (v + (base.centres - 0.0).square()).mul(base.weights.reshape(-1, 1, 1, 1)).sum(0)
    relative = base._by_band((second / base.variances).reshape(1, -1))[0]
    size = base.band.flatten().bincount(minlength=len(relative)).double()
    close(relative, size, rtol=1e-3, atol=1e-3)
    few = modelled(Waves(EVENT), Scaled(), VE(0.01, 30.0))
    few.fit_frame(x[:60])  # too few for two components: one, several times
    close(few.base.weights.sum(), torch.ones(()).double())
    assert float((few.base.factors - few.base.factors[0]).abs().max()) == 0


def test_at_the_start_all_directions_have_their_variance(base, generator):
    model = modelled(base, Scaled(), VE(0.01, 3.0))
    law, t = terminal(model), torch.ones(()).double()
    alpha, sigma = model.schedule(t)
    exact = whole(base).noised(alpha, sigma)
    z, z0 = (torch.randn(5, *EVENT, generator=generator) for _ in range(2))
    close(law.log_prob(z), exact.log_prob(z.flatten(1)), rtol=1e-9)
    n, d = 20_000, EVENT.numel()
    draws = law.sample(n, generator=generator).flatten(1).double()
    error = (draws.T.cov() - exact.cov).abs() / (2 * exact.cov.diagonal().max() / n**0.5)
    assert float(error.max()) < 5
    noise = Gaussian((alpha * z0[0]).flatten(), sigma**2 * torch.eye(d).double())
    y = noise.sample(n, generator=generator).double()
    gain = noise.log_prob(y) - exact.log_prob(y)
    assert abs(float(gain.mean() - law.kl(z0[:1], alpha, sigma))) < 5 * float(gain.std()) / n**0.5


@pytest.mark.parametrize("schedule", [VE(0.05, 20.0), VP()])
def test_a_correction_that_is_linear_leaves_the_base(schedule, base, generator):
    """Of a network F = k z̃ nothing is left, where variances are those of the frame."""
    base.variances.fill_(1.7)
    model = modelled(base, Scaled(), schedule)
    model.z_mean.copy_(base.mean)
    model.z_std.fill_(1.7**0.5)
    data = torch.randn(50, *EVENT, generator=generator)
    fit_linear(model, data, None, 0)
    assert float(base.linear.abs().max()) > 0.1
    z, span = data[:4], torch.linspace(*base.span.tolist(), 24).double()
    t = level_times(schedule)
    close(model._noise_input(t), span, rtol=1e-6)  # the levels at which it is known
    for time in t[::5]:
        a, b = (v.reshape(-1, 1) for v in model.schedule(time))
        close(model(z, time), base.score(z, a, b), rtol=1e-6)
        close(model.denoise(z, time), base.denoise(z, a, b), rtol=1e-5, atol=1e-6)


def test_a_mean_with_controls_and_its_error(generator):
    """Of y = 3 + 2 c₁ − c₂ + noise of deviation 0.1, over 2,000 repetitions of 50 rows."""
    controls = torch.randn(50, 2, 2000, generator=generator)
    y = 3 + 2 * controls[:, 0] - controls[:, 1] + 0.1 * torch.randn(50, 2000, generator=generator)
    mean, error = controlled(y, controls)
    assert abs(float(mean.mean()) - 3) < 4 * 0.1 / (50 * 2000) ** 0.5
    assert abs(float(((mean - 3) / error).square().mean()) - 1) < 0.2
    assert float(error.mean()) < 0.015  # without controls 0.3
    scaled = controls * torch.tensor([1e8, 1e-8]).double()[:, None]
    close(controlled(y, scaled)[0], mean, rtol=1e-6)
    assert bool(controlled(y[:3], controls[:3])[1].isinf().all())  # no more rows than slopes


def test_of_an_exact_score_hardly_anything_seems_to_be_lacking(base, generator):
    """Of smooth and rough pictures: a third of what the plain ratio finds, and much of it 0."""
    base.factors[:8], base.factors[8:] = 0.2, 1.8
    one = torch.ones(1, 1).double()
    data = base.sample(4000, one, 1e-3 * one, generator)
    squares = base.squares(data).mean(0, keepdim=True)
    z0, there, found, plain = data[:256], base.band.unique(), [], []
    sums = lambda v: base._by_band(v.sum(0).flatten()[None])[0, there]
    for sigma in (0.3, 1.0, 3.0):
        eps = torch.randn(z0.shape, generator=generator)
        z = z0 + sigma * eps
        s = base.score(z, one, sigma * one)
        w, c = base.waves(z - base.mean), base.variances + sigma**2
        found.append(base.lacks(s, z0, eps, one, sigma * one, squares)[there])
        plain.append(-1 - sums(base.waves(s) * w) / sums(w.square() / c))
    left = torch.stack(found)
    assert float(left.abs().mean()) < 0.33 * float(torch.stack(plain).abs().mean())
    assert float((left == 0).double().mean()) > 0.4


def test_variances_of_samples_are_right_without_a_linear_part(base, generator):
    """A network that was never trained takes variance from a Gaussian, unless it is balanced."""
    model = modelled(base, Wave(*EVENT), VE(0.05, 20.0))
    base.share.fill_(0.3)
    data = base.mean + base.image(
        base.variances.sqrt() * torch.randn(2000, *EVENT, generator=generator)
    )
    found = []
    for balanced in (False, True):
        if balanced:
            fit_linear(model, data, None, 1)
            base.share.fill_(0.3)
        times = time_grid(model.schedule, 24, rho=float("inf"))
        x = evolve(UniPC(), model, 400, times, generator=seeded(3)).double()
        found.append(float(x.var(0).sum() / base.variances.sum()))
    error = (2 / 400 * base.variances.square().sum()).sqrt() / base.variances.sum()
    assert abs(found[1] - 1) < 4 * float(error) < abs(found[0] - 1), (found, error)


def test_score_and_denoiser_obey_tweedie(base, generator):
    model = modelled(base, Wave(*EVENT), VP())
    base.linear.normal_(generator=generator)
    base.share.copy_(torch.linspace(0, 1, len(base.share)))
    z = torch.randn(4, *EVENT, generator=generator)
    alpha, sigma = (v[:, None, None, None] for v in VP()(TIMES))
    close(model.denoise(z, TIMES), (z + sigma**2 * model(z, TIMES)) / alpha, rtol=1e-9, atol=1e-7)


@pytest.mark.usefixtures("few_steps")
def test_large_images_start_from_waves(generator, tmp_path):
    x = torch.randn(12, 1, 24, 24, generator=generator).cumsum(2)
    made = {"channels": (8, 8), "schedule": VE(0.05, 20.0)}
    asked = {"condition": None, "standardize": True, "seed": 0}
    assert base_for("auto", x, x[:0], **asked) == "gaussian"
    assert base_for("auto", x[:, :, 2:], x[:0], **asked) == "gaussian"
    assert base_for("auto", x[:, :, 3:], x[:0], **asked) is None  # of at most 512 entries
    assert not build_model(x, **made).network.start
    model = build_model(x, base="gaussian", **made)
    assert isinstance(model.base, Waves)
    assert objective_for(model).keywords["weight"] is glp.objectives.weights.truncated_v
    list(glp.fit(model, x, steps=1, generator=generator))
    whole = (20 * x).round().to(torch.int16)
    own = {"held_out": whole[:4], "standardize": True, "generator": generator}
    list(glp.fit(build_model(whole.float(), base="gaussian", **made), whole, steps=1, **own))
    checkpoint.save(tmp_path / "model", model)
    again, z, t = checkpoint.load(tmp_path / "model"), x[:2], torch.tensor(0.5)
    close(again(z, t), model(z, t), atol=0)
    with pytest.raises(ValueError, match="start=True"):
        model.network(z, torch.zeros(2))


def test_it_is_one_graph_under_vmap(base, generator):
    model = modelled(base, Wave(*EVENT), VP())
    z = torch.randn(3, *EVENT, generator=generator)
    single = torch.func.vmap(lambda y: model.forward(y[None], TIMES[1])[0])(z)
    close(single, model(z, TIMES[1]))
