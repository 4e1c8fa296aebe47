"""ScoreModel with networks that know the answer, ExactScore, and the score of finite data."""

import pytest
import torch
from support import Wave, close, every_schedule, seeded
from torch import nn

from gradlogp.distributions.analytic import Gaussian, GaussianMixture
from gradlogp.noise.coordinates import same_coordinates
from gradlogp.noise.predictions import KINDS
from gradlogp.noise.schedules import VE, VP, Rectified
from gradlogp.scores.exact import EmpiricalScore, ExactScore
from gradlogp.scores.model import ScoreModel
from gradlogp.scores.networks import MLP, UNet

every_kind = pytest.mark.parametrize("kind", KINDS)

MEAN = torch.tensor([1.5, -0.7, 0.2], dtype=torch.float64)
STD = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)


class Answer(nn.Module):
    """The posterior mean of what is predicted, for data N(0, I) in the standardised frame.

    With a^2 + b^2 = 1 and x = a x_0 + b eps: E x_0 = a x, E eps = b x. It finds a and b in the noise
    coordinate -log(alpha rms(c) / sigma) / 4 and the ratios c_i / rms(c).
    """

    def __init__(self, kind, std=STD):
        super().__init__()
        self.kind, self.event_shape = kind, std.shape
        self.ratio = std / std.square().mean().sqrt()

    def forward(self, x, coordinate):
        snr = torch.exp(-4 * coordinate)[:, None] * self.ratio
        a, b = snr / (1 + snr**2).sqrt(), 1 / (1 + snr**2).sqrt()
        # v = a eps - b x_0 has mean 0
        return {"score": -x, "epsilon": b * x, "x0": a * x, "v": 0 * x, "velocity": (b - a) * x}[
            self.kind
        ]


def standardised(network, schedule, kind, mean=MEAN, std=STD):
    model = ScoreModel(network, schedule, kind)
    model.z_mean.copy_(mean)
    model.z_std.copy_(std)
    return model


# ---------------------------------------------------------------------------- the learned score


@every_schedule
@every_kind
def test_the_right_network_makes_the_exact_score(schedule, kind, generator):
    model = standardised(Answer(kind), schedule, kind)
    law = Gaussian(MEAN, STD**2)
    exact = ExactScore(law, schedule)
    x = MEAN + 3 * torch.randn(6, 3, generator=generator)
    for t in (
        *torch.tensor([0.05, 0.3, 0.7, 0.99]),
        torch.rand(6, generator=generator) * 0.9 + 0.05,
    ):
        close(model(x, t), exact(x, t), rtol=1e-9)
        close(model.denoise(x, t), exact.denoise(x, t), rtol=1e-9, atol=1e-8)
        close(model.denoise(x, t), law.posterior_mean(x, *schedule(t)), rtol=1e-9, atol=1e-8)


@every_schedule
def test_v_in_this_frame_is_the_preconditioning_of_edm(schedule, generator):
    """D = c_skip x + c_out F(c_in x), F of the opposite sign, generalised to alpha and the mean."""
    model = standardised(Wave(3), schedule, "v", MEAN, torch.full((3,), 0.5))
    x, t = torch.randn(4, 3, generator=generator), torch.tensor(0.4)
    alpha, sigma = schedule(t)
    s = sigma / alpha  # EDM works with x / alpha
    y = x / alpha - MEAN
    c_in, c_skip = 1 / (s**2 + 0.25).sqrt(), 0.25 / (s**2 + 0.25)
    c_out = s * 0.5 / (s**2 + 0.25).sqrt()
    c_noise = ((s / 0.5).log() / 4).expand(4)  # EDM's log(sigma)/4, in units of the data
    F = Wave(3)(c_in * y, c_noise)
    close(model.denoise(x, t), MEAN + c_skip * y - c_out * F)
    close(model(x, t), (alpha * model.denoise(x, t) - x) / sigma**2, rtol=1e-9)


@every_kind
def test_images_and_vectors_alike(kind, generator):
    """The frame works entry by entry on any event shape, and t per sample goes with the batch."""
    flat, image = ScoreModel(Wave(4), VP(), kind), ScoreModel(Wave(1, 1, 4), VP(), kind)
    mean, std = torch.randn(4, generator=generator), torch.rand(4, generator=generator) + 0.5
    for model in (flat, image):
        model.z_mean.copy_(mean.reshape(model.event_shape))
        model.z_std.copy_(std.reshape(model.event_shape))
    x, t = torch.randn(4, 4, generator=generator), torch.tensor([0.1, 0.4, 0.6, 0.9])
    close(image(x.reshape(4, 1, 1, 4), t).flatten(1), flat(x, t))
    close(image.denoise(x.reshape(4, 1, 1, 4), t).flatten(1), flat.denoise(x, t))


NETWORKS = {
    "mlp": lambda k: MLP(6, width=16, depth=1, condition=k, generator=seeded()),
    "unet": lambda k: UNet((1, 8, 8), channels=(8, 16), condition=k, generator=seeded()),
}


every_condition = pytest.mark.parametrize("condition", [None, 3, (2,)], ids=str)


def awake(network, kind, condition, schedule=VP()):  # noqa: B008
    """A model that depends on all arguments, with its own frame; and its condition, 4 rows."""
    model = ScoreModel(network(condition), schedule, kind)
    g = seeded(1)
    nn.init.normal_(model.network.outlet.weight, 0.0, 0.3, generator=g)
    model.z_mean.copy_(torch.randn(model.event_shape, generator=g))
    model.z_std.copy_(torch.rand(model.event_shape, generator=g) + 0.5)
    if condition is None:
        return model, ()
    value = (
        torch.tensor([0, 2, 1, 0]) if condition == 3 else torch.randn(4, *condition, generator=g)
    )
    return model, (value,)


# ---------------------------------------------------------------------------- as one graph


class Forward(nn.Module):
    """`forward` as a separate module: called, a model takes no condition beside z and t."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, z, t, condition):
        return self.model.forward(z, t, condition)


@pytest.mark.usefixtures("as_user", "compiling")
@pytest.mark.parametrize(
    ("network", "condition", "kind"),
    [
        ("mlp", 3, "v"),
        *(pytest.param(*case, "epsilon", marks=pytest.mark.slow)
          for case in (("mlp", None), ("mlp", (1, 8, 8)), ("unet", (1, 8, 8)))),
    ],
)  # fmt: skip
def test_compiled_exported_and_mapped_it_is_the_same(network, condition, kind, generator):
    """Nothing in `forward` depends on the numbers: one graph, and one sample at a time under vmap.

    Tracing takes the time. Both networks embed labels and vectors in the same lines; images each
    in its own.
    """
    model, given = awake(NETWORKS[network], kind, condition)
    model.requires_grad_(False)
    x = torch.randn(4, *model.event_shape, generator=generator)
    t = torch.tensor([0.2, 0.5, 0.7, 1.0])
    out = model.forward(x, t, *given)
    whole = torch.compile(model.forward, fullgraph=True, backend="eager")
    close(whole(x, t, *given), out, rtol=1e-12, atol=1e-12)
    close(whole(x, t[1], *given)[1], out[1], rtol=1e-12, atol=1e-12)
    exported = torch.export.export(Forward(model) if given else model, (x, t, *given)).module()
    close(exported(x, t, *given), out, rtol=1e-12, atol=1e-12)
    close(exported(2 * x, t.flip(0), *given), model.forward(2 * x, t.flip(0), *given))
    one = lambda *row: model.forward(*(v.unsqueeze(0) for v in row)).squeeze(0)
    close(torch.func.vmap(one)(x, t, *given), out, rtol=1e-12, atol=1e-12)
    # forward mode along a direction is the difference of two values
    v = torch.randn(x.shape, generator=generator)
    f = lambda y: model.forward(y, t, *given)
    value, tangent = torch.func.jvp(f, (x,), (v,))
    close(value, out, rtol=1e-12, atol=1e-12)
    h = 1e-6
    close(tangent, (f(x + h * v) - f(x - h * v)) / (2 * h), rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("as_user")
@every_kind
@every_condition
def test_forward_never_looks_at_a_number(condition, kind):
    """The meta device has no numbers: a branch on data, or a wait for it, would raise."""
    model, given = awake(NETWORKS["mlp"], kind, condition)
    model = model.to("meta")
    x, t = torch.empty(4, 6, device="meta"), torch.empty(4, device="meta")
    if condition == 3:  # the network itself looks whether classes are in range, in the open
        return
    extra = [v.to("meta") for v in given]
    assert model.forward(x, t, *extra).shape == x.shape
    assert model.denoise_given(x, t, *extra or (None,)).shape == x.shape
    if condition is None:
        assert model(x, t).shape == model.denoise(x, t).shape == x.shape
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool((t > 0).any())  # negative control: this is what raises


def test_a_model_refuses_no_noise_and_forward_does_not_branch():
    model, _ = awake(NETWORKS["mlp"], "epsilon", None)
    x, zero = torch.ones(2, 6), torch.zeros(())
    with pytest.raises(ValueError, match="no score at sigma = 0"):
        model(x, zero)
    assert not model.forward(x, zero).isfinite().any()
    mixed = torch.tensor([0.0, 0.4])
    out = model.forward(x, mixed)
    assert not out[0].isfinite().any()
    close(out[1:], model(x[1:], mixed[1:]), rtol=1e-12, atol=1e-12)  # alone, as it should be
    ve, _ = awake(NETWORKS["mlp"], "epsilon", None, VE(0.01, 50.0))
    assert ve(x, zero).isfinite().all()  # σ_0 > 0: time 0 is a level like others


def test_the_dtype_follows_the_input(generator):
    model = standardised(Wave(3), VP(), "v")
    x, t = torch.randn(4, 3, generator=generator), torch.tensor(0.3)
    single = model(x.float(), t.float())
    assert single.dtype == model.denoise(x.float(), t.float()).dtype == torch.float32
    assert model(x.float(), t).dtype == torch.float32
    close(single.double(), model(x, t), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------- both ends of time


@every_kind
def test_the_noise_free_end(kind, generator):
    model = standardised(Answer(kind), VP(), kind)
    x, t = torch.randn(4, 3, generator=generator), torch.tensor(0.0)
    close(model.denoise(x, t), x, atol=1e-5)  # Answer reads the coordinate, clamped at e^-15
    for time in (t, torch.tensor([0.5, 0.5, 0.0, 0.5])):
        with pytest.raises(ValueError, match="no score at sigma = 0; evaluate it at a larger t"):
            model(x, time)


@every_kind
def test_the_end_where_nothing_of_the_data_is_left(kind, generator):
    model = standardised(Answer(kind), Rectified(), kind)
    x = torch.randn(4, 3, generator=generator)
    for t in (torch.tensor(1.0), torch.tensor([1.0, 0.5, 1.0, 0.2])):
        close(model(x, t), ExactScore(Gaussian(MEAN, STD**2), Rectified())(x, t))
        close(model(x, t)[0], -x[0])
        mean = model.denoise(x, t)
        close(mean, Gaussian(MEAN, STD**2).posterior_mean(x, *Rectified()(t)), atol=1e-5)
        close(mean[0], MEAN, atol=1e-5)


@every_kind
def test_a_constant_entry(kind, generator):
    """Data of standard deviation 0 in one entry: its score is -(x - alpha m) / sigma^2."""
    std = torch.tensor([0.5, 0.0, 1.0])
    model = standardised(Answer(kind, std), VP(), kind, std=std)
    x, t = torch.randn(4, 3, generator=generator), torch.tensor(0.3)
    close(model(x, t), ExactScore(Gaussian(MEAN, std**2), VP())(x, t))
    close(model.denoise(x, t), Gaussian(MEAN, std**2).posterior_mean(x, *VP()(t)))


# ---------------------------------------------------------------------------- what is stored


def test_the_frame_is_stored_with_the_weights(generator):
    model = standardised(MLP(3, width=8, depth=1, generator=generator), VP(), "v")
    x = 5 + 3 * torch.randn(50, 3, generator=generator)
    model.fit_frame(x, "each")
    model.z_mean.copy_(MEAN)
    again = ScoreModel(MLP(3, width=8, depth=1), VP(), "v")
    again.load_state_dict(model.state_dict())
    for a, b in zip(again.moments, model.moments, strict=True):
        assert torch.equal(a, b)
    assert same_coordinates(again.coordinates, model.coordinates)
    close(again.coordinates.encode(x).std(0, correction=0), torch.ones(3))
    z, t = torch.randn(4, 3, generator=generator), torch.tensor(0.3)
    assert torch.equal(again(z, t), model(z, t))


def test_the_frame_of_data_is_their_moments_in_model_coordinates(generator):
    """Whether the coordinates were fitted to all columns together, to each, or not at all."""
    x = torch.randn(60, 3, generator=generator) * STD * 40 + MEAN * 1e3
    for scales in (None, "each", "one"):
        model = ScoreModel(Wave(3), VP())
        model.fit_frame(x, scales)
        z = model.coordinates.encode(x)
        close(model.moments.mean, z.mean(0), rtol=1e-11, atol=1e-11)
        close(model.moments.var, z.var(0, correction=0), rtol=1e-11, atol=1e-11)


# ---------------------------------------------------------------------------- bad input


@pytest.mark.usefixtures("as_user")
def test_refuses_bad_shapes_and_arguments():
    model, t = ScoreModel(Wave(3), VP()), torch.tensor(0.4)
    for call in (model, model.denoise):
        for x in (torch.zeros(3), torch.zeros(2, 4), torch.zeros(2, 3, 1)):
            with pytest.raises(ValueError, match=r"z must have shape \(B, 3\)"):
                call(x, t)
        for time in (torch.tensor([0.1, 0.2]), torch.full((4, 1), 0.1)):
            with pytest.raises(ValueError, match=r"t must have shape \(\) or \(4,\)"):
                call(torch.zeros(4, 3), time)
    for call in (model.given, lambda _: model.given(torch.zeros(1, 2))):
        with pytest.raises(ValueError, match="created without a condition: it accepts none"):
            call(0)
    assert model.unconditional() is model
    with pytest.raises(
        ValueError, match="predicts must be 'score', 'epsilon', 'x0', 'v' or 'velocity', got"
    ):
        ScoreModel(Wave(3), VP(), "noise")
    with pytest.raises(ValueError, match="pass event_shape="):
        ScoreModel(nn.Identity(), VP())
    network = MLP(2, 8, 1, (3,))
    assert ScoreModel(network, VP(), event_shape=(2,), condition=(3,)).condition.kind == (3,)
    with pytest.raises(ValueError, match=r"event_shape=\(3,\), but that of the network is"):
        ScoreModel(network, VP(), event_shape=(3,))
    for own, other in ((network, 4), (MLP(2, 8, 1), 4)):
        with pytest.raises(ValueError, match="condition=4, but that of the network is"):
            ScoreModel(own, VP(), condition=other)

    class Narrow(nn.Module):
        def forward(self, x, coordinate):
            return x[:, :1]

    narrow = ScoreModel(Narrow(), VP(), event_shape=(3,))
    with pytest.raises(ValueError, match=r"the network returned shape \(2, 1\) for x of \(2, 3\)"):
        narrow(torch.zeros(2, 3), t)


# ---------------------------------------------------------------------------- the exact score


@every_schedule
def test_exact_score_is_that_of_the_noised_law(schedule, generator):
    law = GaussianMixture([0.4, 0.6], [[0.0, 1.0], [2.0, -1.0]], [[0.5, 1.0], [0.8, 0.3]])
    exact = ExactScore(law, schedule)
    assert exact.event_shape == (2,)
    x, t = torch.randn(4, 2, generator=generator), torch.tensor([0.1, 0.4, 0.7, 0.9])
    for i in range(4):
        alpha, sigma = schedule(t[i])
        noised, y = law.noised(alpha, sigma), x[i : i + 1]
        close(exact(x, t)[i], noised.score(y)[0])
        close(exact(y, t[i])[0], noised.score(y)[0])
        close(exact.log_prob(x, t)[i], noised.log_prob(y)[0])
        close(exact.denoise(x, t)[i], law.posterior_mean(y, alpha, sigma)[0])


# ---------------------------------------------------------------------------- finite data


@every_schedule
@pytest.mark.parametrize("event", [(1,), (3,), (1, 2, 2)], ids=str)
def test_empirical_score_is_a_mixture_of_point_masses(schedule, event, generator):
    data = torch.randn(7, *event, generator=generator)
    flat = data.flatten(1)
    law = GaussianMixture(torch.full((7,), 1 / 7), flat, 0.0)
    score, exact = EmpiricalScore(data, schedule), ExactScore(law, schedule)
    assert score.event_shape == event
    close(score.moments.mean, data.mean(0))
    close(score.moments.var, data.var(0, correction=0))
    x = 2 * torch.randn(5, *event, generator=generator)
    for t in (torch.tensor(0.3), torch.tensor([0.1, 0.4, 0.6, 0.9, 0.99])):
        close(score(x, t).flatten(1), exact(x.flatten(1), t), rtol=1e-9)
        close(score.denoise(x, t).flatten(1), exact.denoise(x.flatten(1), t), rtol=1e-9)
        close(score.log_prob(x, t), exact.log_prob(x.flatten(1), t), rtol=1e-9)


@pytest.mark.usefixtures("as_user")
def test_empirical_score_refuses_bad_shapes():
    with pytest.raises(ValueError, match="data must have shape"):
        EmpiricalScore(torch.zeros(5), VP())
    score, t = EmpiricalScore(torch.zeros(5, 2), VP()), torch.tensor(0.3)
    for call in (score, score.log_prob, score.denoise):
        with pytest.raises(ValueError, match=r"z must have shape \(B, 2\)"):
            call(torch.zeros(4, 3), t)
        with pytest.raises(ValueError, match="must have shape"):
            call(torch.zeros(4, 2), torch.full((3,), 0.5))
