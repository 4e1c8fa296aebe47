"""A model whose network corrects the noised score of a Gaussian or a mixture."""

import math

import pytest
import torch
from support import MIXTURE, Wave, close, every_schedule, seeded, spd
from torch import nn

import gradlogp as glp
from gradlogp.calculus.reverse import jacobian, jacobian_trace
from gradlogp.check import check_density
from gradlogp.diffusion.evolve import first_time
from gradlogp.diffusion.transitions import DDIM, UniPC
from gradlogp.distributions.analytic import Gaussian, GaussianMixture
from gradlogp.learn.share import level_times
from gradlogp.noise.coordinates import AffineCoordinates
from gradlogp.noise.grids import least_time
from gradlogp.noise.predictions import KINDS, to_prediction
from gradlogp.noise.schedules import VE, VP, Rectified
from gradlogp.scores import base as bases
from gradlogp.scores.base import Base
from gradlogp.scores.exact import ExactScore
from gradlogp.scores.model import ScoreModel
from gradlogp.scores.networks import MLP
from gradlogp.scores.shared import Noised
from gradlogp.scores.shrinkage import shrunk_covariance

every_kind = pytest.mark.parametrize("kind", KINDS)
MEAN = torch.tensor([1.5, -0.7, 0.2], dtype=torch.float64)
STD = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
TIMES = torch.tensor([0.1, 0.4, 0.7, 0.95], dtype=torch.float64)
LEVEL = torch.tensor([[[0.7]], [[0.4]]], dtype=torch.float64)
"""α and σ."""


class Zero(Wave):
    def forward(self, x, coordinate):
        return 0 * x


def law(d=3, seed=0):
    g = seeded(seed)
    return Gaussian(torch.randn(d, generator=g).double(), spd(d, g).double())


LAWS = {
    "Gaussian": law(2),
    "mixture": MIXTURE,
    "diagonal": GaussianMixture([0.2, 0.8], [[0.0, 1.0], [2.0, -1.0]], [[0.5, 1.0], [0.8, 0.3]]),
}
every_law = pytest.mark.parametrize("base", LAWS.values(), ids=LAWS.keys())


# ---------------------------------------------------------------------------- closed forms


def low_rank(generator):
    base = Base(torch.Size([2, 3]), 1, 2).double()
    base.means.normal_(generator=generator)
    base.diagonal.copy_(torch.rand(6, generator=generator) + 0.1)
    base.values.copy_(torch.tensor([[3.0, 0.7]]))
    base.vectors.copy_(torch.linalg.qr(torch.randn(6, 2, generator=generator))[0])
    V, w = base.vectors[0], base.values[0]
    return base, Gaussian(base.means[0], torch.diag(base.diagonal) + V @ torch.diag(w) @ V.mT)


@every_schedule
@every_law
def test_without_a_correction_the_score_is_that_of_the_base(schedule, base, generator):
    model = ScoreModel(Zero(2), schedule, "v", base=base)
    exact = ExactScore(base, schedule)
    z = 3 * torch.randn(4, 2, generator=generator)
    for t in (*TIMES, TIMES):
        close(model(z, t), exact(z, t), rtol=1e-9)
        close(model.denoise(z, t), exact.denoise(z, t), rtol=1e-9, atol=1e-8)


@every_schedule
def test_a_normal_base_is_the_preconditioning_there_is_without_one(schedule, generator):
    """EDM's, and its generalisation to α, the mean and each entry's own scale."""
    plain = ScoreModel(Wave(3), schedule, "v")
    based = ScoreModel(Wave(3), schedule, "v", base=Gaussian(MEAN, STD**2))
    for model in (plain, based):
        model.z_mean.copy_(MEAN)
        model.z_std.copy_(STD)
    z = MEAN + 3 * torch.randn(4, 3, generator=generator)
    for t in (*TIMES, TIMES):
        close(based(z, t), plain(z, t), rtol=1e-12, atol=1e-12)
        close(based.denoise(z, t), plain.denoise(z, t), rtol=1e-12, atol=1e-12)


@every_schedule
@every_kind
def test_the_correction_is_what_the_prediction_lacks(schedule, kind, generator):
    """F = prediction of the law less that of the base, in the frame, makes the score of the law."""
    truth, start = law(3, 1), Gaussian(MEAN, STD**2)

    class Lacking(nn.Module):
        event_shape = torch.Size([3])

        def forward(self, unit, coordinate):
            alpha, sigma = schedule(t)
            norm = (alpha**2 * STD**2 + sigma**2).sqrt()
            pair = []
            for exact in (ExactScore(truth, schedule), ExactScore(start, schedule)):
                s, z0 = exact(z, t), exact.denoise(z, t)
                a, b = alpha * STD / norm, sigma / norm
                eps, x0 = -sigma * s, (z0 - MEAN) / STD
                pair.append(torch.stack([
                    to_prediction(kind, x0[:, i : i + 1], eps[:, i : i + 1], a[i], b[i])
                    for i in range(3)
                ], 1)[..., 0])  # fmt: skip
            return pair[0] - pair[1]

    model = ScoreModel(Lacking(), schedule, kind, base=start)
    model.z_mean.copy_(MEAN)
    model.z_std.copy_(STD)
    z = MEAN + torch.randn(4, 3, generator=generator)
    for t in TIMES[::3]:
        close(model(z, t), ExactScore(truth, schedule)(z, t), rtol=1e-8, atol=1e-8)
        close(model.denoise(z, t), ExactScore(truth, schedule).denoise(z, t), rtol=1e-7, atol=1e-7)


@every_kind
@every_law
def test_score_and_denoiser_obey_tweedie(base, kind, generator):
    model = ScoreModel(Wave(2), VP(), kind, base=base)
    model.base.share.copy_(torch.linspace(0, 1, bases.LEVELS))
    z = torch.randn(4, 2, generator=generator)
    alpha, sigma = (v[:, None] for v in VP()(TIMES))
    close(model.denoise(z, TIMES), (z + sigma**2 * model(z, TIMES)) / alpha, rtol=1e-9, atol=1e-7)


@every_kind
@every_law
def test_both_ends_of_time(base, kind, generator):
    """Where σ = 0 the state is denoised already, where α = 0 the answer is the mean of the base."""
    z = torch.randn(4, 2, generator=generator)
    model = ScoreModel(Zero(2), VP(), kind, base=base)
    close(model.denoise(z, torch.zeros(())), z)
    end = ScoreModel(Zero(2), Rectified(), kind, base=base)
    close(end.denoise(z, torch.ones(())), base.mean.expand(4, 2))
    flat = ScoreModel(Zero(2), VP(), kind, base=Gaussian([0.3, -1.0], [[1.0, 1.0], [1.0, 1.0]]))
    assert flat(z, TIMES).isfinite().all()  # a law without a density has one when it is noised
    assert flat.denoise(z, torch.zeros(())).isfinite().all()


@every_law
def test_its_trace_is_carried_forward(base, generator):
    """tr ∇s of Gaussians and mixtures is −Σ 1/(α²w + σ²) and its like, and no reverse mode is used."""
    model = ScoreModel(Wave(2), VP(), "v", base=base)
    z, t = torch.randn(4, 2, generator=generator), torch.tensor(0.3)
    zero = ScoreModel(Zero(2), VP(), "v", base=base)
    _, trace = bases_trace(zero.forward, z, t)
    hessian = ExactScore(base, VP()).law(t).hessian(z)
    close(trace, hessian.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-9)
    net = MLP(2, 8, 1, generator=generator).double()
    nn.init.normal_(net.outlet.weight, generator=generator)
    model = ScoreModel(net, VP(), "v", base=base)
    for f in (model.forward, model.denoise):
        _, trace = bases_trace(f, z, t)
        whole = jacobian(lambda y, f=f: f(y, t), z)
        close(trace, whole.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-9)


def bases_trace(f, z, t):
    from gradlogp.calculus import jets

    return jets.partial_trace(lambda y: f(y, t), z, torch.arange(z.shape[1]))


def test_low_rank_and_diagonal(generator):
    """S = D + V diag(w) Vᵀ by Woodbury's identity, for states and times of any shape."""
    base, whole = low_rank(generator)
    exact = ExactScore(whole, VP())
    z = torch.randn(4, 2, 3, generator=generator)
    for t in (TIMES, TIMES[1]):
        a, b = (v.reshape(-1, 1) for v in VP()(t))
        close(base.score(z, a, b).flatten(1), exact(z.flatten(1), t), rtol=1e-9)
        close(base.denoise(z, a, b).flatten(1), exact.denoise(z.flatten(1), t), rtol=1e-9)


@pytest.mark.parametrize("rows", [12, 400])
def test_directions_kept_are_the_principal_ones(rows, generator):
    """Of few rows as well, which span fewer; the global generator is not drawn from."""
    scales = torch.linspace(2, 0.01, 20) ** 4
    x = torch.randn(rows, 20, generator=generator) * scales + 3
    state = torch.get_rng_state()
    base = Base(torch.Size([20]), 1, 15).double()
    base.fit(x, AffineCoordinates(torch.zeros(20), torch.ones(20)))
    assert torch.equal(torch.get_rng_state(), state)
    y = x - x.mean(0)
    w = torch.linalg.eigvalsh(y.T @ y / rows).flip(0)
    close(base.values[0], w[:15], rtol=1e-6, atol=1e-9)
    V = base.vectors[0]
    kept = V @ torch.diag(base.values[0]) @ V.T + torch.diag(base.diagonal)
    close(kept, y.T @ y / rows, rtol=1e-3, atol=1e-3)


@every_law
def test_the_divergence_is_that_of_the_denoiser(base, generator):
    of_law = Base.of_law(base, torch.Size([2]), torch.empty(0).double())
    few, _ = low_rank(generator)
    for law_, z in (
        (of_law, 3 * torch.randn(5, 2, generator=generator)),
        (few, torch.randn(5, 2, 3, generator=generator)),
    ):
        for a, b in ((0.7, 0.4), (1.0, 1e-3), (1.0, 30.0), (0.0, 1.0)):
            level = (torch.full((1, 1), v) for v in (a, b))
            divergence_is_exact(law_, z, *level)


def divergence_is_exact(law_, z, a, b):
    value, trace = law_.denoise_trace(z, a, b)
    close(value, law_.denoise(z, a, b), rtol=1e-9)
    right = jacobian(lambda y: law_.denoise(y, a, b), z).diagonal(dim1=1, dim2=2).sum(1)
    close(trace, right, rtol=1e-6, atol=1e-9)


def test_the_divergence_far_out_is_right_in_float32(generator):
    """Where one component is left, what its score is multiplied by is rounding."""
    means = 3 * torch.randn(5, 10, generator=generator)
    U = torch.linalg.qr(torch.randn(10, 10, generator=generator))[0]
    cov = U @ torch.logspace(0, -7, 10).diag() @ U.mT
    law_ = GaussianMixture(torch.full((5,), 0.2), means, cov.expand(5, 10, 10))
    fine, coarse = (
        Base.of_law(law_, torch.Size([10]), torch.empty(0, dtype=dtype))
        for dtype in (torch.float64, torch.float32)
    )
    z = 10 * means
    one = torch.ones(1, 1)
    right = fine.denoise_trace(z, one, 1e-3 * one)[1]
    found = coarse.denoise_trace(z.float(), one.float(), 1e-3 * one.float())[1]
    close(found.double(), right, rtol=0, atol=1e-2)


@pytest.mark.parametrize("fallback", [False, True])
def test_base_and_network_add_up_to_the_denoiser(fallback, generator):
    """Value and divergence, of a model and given a class."""
    for condition in (None, 3):
        net = MLP(2, 8, 1, condition, generator=generator).double()
        nn.init.normal_(net.outlet.weight, generator=generator)
        model = ScoreModel(net, VP(), "v", base=MIXTURE).eval()
        model.base.share.copy_(torch.linspace(0.2, 1, bases.LEVELS))
        model.base.fallback = fallback
        score = model if condition is None else model.given(torch.tensor([0, 2, 1, 0]))
        z = torch.randn(4, 2, generator=generator)
        for t in TIMES:
            known, divergence = score._known(z, t)
            learned, trace = jacobian_trace(lambda y, t=t, s=score: s._learned(y, t), z)
            whole, right = jacobian_trace(lambda y, t=t, s=score: s.denoise(y, t), z)
            close(known + learned, whole, rtol=1e-9)
            close(divergence + trace, right, rtol=1e-7)
    assert ScoreModel(Wave(2), VP())._known(z, TIMES[0]) is None


# ---------------------------------------------------------------------------- fitted


def test_it_is_fitted_with_the_frame(generator):
    true = law(3, 2)
    x = 40 * true.sample(2000, generator=generator).double() + 1e3
    model = ScoreModel(
        MLP(3, 8, 1, generator=generator).double(), VE(0.01, 30.0), "v", base="gaussian"
    )
    model.fit_frame(x, "each")
    z = model.coordinates.encode(x)
    law_ = Gaussian(z.mean(0), z.T.cov(correction=0))
    close(model(z[:5], TIMES[0]), ExactScore(law_, VE(0.01, 30.0))(z[:5], TIMES[0]), rtol=1e-8)
    kept = ScoreModel(MLP(3, 8, 1).double(), VE(0.01, 30.0), "v", base=true)
    kept.fit_frame(x, "each")
    close(kept.base.means[0], true.mean)


def test_data_in_pieces_have_the_same_covariance(generator, monkeypatch):
    x = law(3, 2).sample(600, generator=generator).double()
    found = []
    for rows in (10**6, 100):
        monkeypatch.setattr(bases, "ROWS", rows)
        model = ScoreModel(Wave(3), VE(0.01, 30.0), "v", base="gaussian").double()
        model.fit_frame(x if rows > 100 else x.numpy())
        found.append(model(x[:4], TIMES[0]))
    close(found[1], found[0], rtol=1e-9)


def test_many_entries_get_few_directions_and_a_diagonal(generator, monkeypatch):
    monkeypatch.setattr(bases, "FULL", 4)
    monkeypatch.setattr(bases, "RANK", 2)
    V = torch.linalg.qr(torch.randn(8, 2, generator=generator))[0]
    D = torch.rand(8, generator=generator) * 0.2 + 0.05
    S = torch.diag(D) + V @ torch.diag(torch.tensor([9.0, 4.0])) @ V.mT
    x = Gaussian(torch.zeros(8), S).sample(20_000, generator=generator)
    model = ScoreModel(Wave(8), VE(0.01, 30.0), "v", base="gaussian").double()
    model.fit_frame(x)
    assert model.base.config == {"components": 1, "rank": 2, "follows": True}
    B = model.base
    got = torch.diag(B.diagonal) + B.vectors[0] @ torch.diag(B.values[0]) @ B.vectors[0].mT
    assert (
        float((got - S).abs().max()) < 0.15
    )  # 3 errors of the largest entry; the rank-2 part has 9
    close(got.diagonal(), x.var(0, correction=0), rtol=1e-6)


def test_a_covariance_of_few_rows_is_shrunk(generator):
    """Of 60 rows in 30 dimensions the likelihood of new rows is better, of 2,000 it is the sample's."""
    true = Gaussian(torch.zeros(30), spd(30, seeded(1)))
    few, new = (true.sample(n, generator=generator).double() for n in (60, 2000))
    gains = [
        Gaussian(few.mean(0), S).log_prob(new).mean()
        for S in (shrunk_covariance(few), few.T.cov(correction=0))
    ]
    assert gains[0] > gains[1] + 5
    close(shrunk_covariance(new), new.T.cov(correction=0))
    singular = shrunk_covariance(few[:20])
    assert torch.linalg.eigvalsh(singular).min() > 1e-3
    units = torch.logspace(-3, 3, 30).double()
    close(shrunk_covariance(few * units), shrunk_covariance(few) * torch.outer(units, units))


# ---------------------------------------------------------------------------- the share


def test_the_share_of_the_correction(generator):
    """A share of 0 leaves the base, of 1 all, and between two levels it is linear."""
    base = LAWS["Gaussian"]
    model = ScoreModel(Wave(2), VP(), "v", base=base)
    z = torch.randn(4, 2, generator=generator)
    whole = model(z, TIMES)
    model.base.share.zero_()
    close(model(z, TIMES), ExactScore(base, VP())(z, TIMES), rtol=1e-9)
    model.base.share.fill_(0.25)
    close(model(z, TIMES), 0.25 * whole + 0.75 * ExactScore(base, VP())(z, TIMES), rtol=1e-9)
    B = model.base
    B.span.copy_(torch.tensor([-2.0, 3.0]))
    B.share.copy_(torch.linspace(0, 1, bases.LEVELS).square())
    at = torch.linspace(-2, 3, bases.LEVELS)
    close(B.shared(at), B.share)
    close(B.shared((at[1:] + at[:-1]) / 2), (B.share[1:] + B.share[:-1]) / 2)
    close(B.shared(torch.tensor([-9.0, 9.0])), B.share[[0, -1]])


@every_kind
def test_with_a_fallback_the_network_learns_the_whole_score(kind, tmp_path, generator):
    """The score is (1 − share) s_base + share s, the denoiser too; training sees s alone."""
    network = MLP(2, 4, 1, generator=generator)
    torch.nn.init.normal_(network.outlet.weight, generator=generator)
    plain = ScoreModel(network.double(), VP(), kind)
    mixed = ScoreModel(network.double(), VP(), kind, base=MIXTURE)
    mixed.base.fallback = True
    for model in (plain, mixed):
        model.z_mean.copy_(MEAN[:2])
        model.z_std.copy_(STD[:2])
    z, exact = torch.randn(4, 2, generator=generator), ExactScore(MIXTURE, VP())
    mixed.base.share.fill_(0.25)
    mixed.eval()
    glp.learn.checkpoint.save(tmp_path / "kept", mixed)
    for model in (mixed, glp.learn.checkpoint.load(tmp_path / "kept").double()):
        for t in (*TIMES, TIMES):
            close(model(z, t), 0.25 * plain(z, t) + 0.75 * exact(z, t), rtol=1e-5)
            x0 = 0.25 * plain.denoise(z, t) + 0.75 * exact.denoise(z, t)
            close(model.denoise(z, t), x0, rtol=1e-5, atol=1e-6)
    close(mixed.train()(z, TIMES), plain(z, TIMES))


# ---------------------------------------------------------------------------- as one graph


@pytest.mark.usefixtures("as_user", "compiling")
@pytest.mark.parametrize(
    ("base", "condition"),
    [
        pytest.param(LAWS[key], condition, id=key, marks=[pytest.mark.slow] * (key != "mixture"))
        for key, condition in (*dict.fromkeys(LAWS).items(), ("mixture", 3))
    ],
)
def test_compiled_exported_and_mapped_it_is_the_same(base, condition, generator):
    net = MLP(2, 8, 1, condition, generator=generator).double()
    nn.init.normal_(net.outlet.weight, generator=generator)
    model = ScoreModel(net, VP(), "v", base=base).requires_grad_(False)
    model.base.share.copy_(torch.linspace(0, 1, bases.LEVELS))
    z = torch.randn(4, 2, generator=generator)
    given = () if condition is None else (torch.tensor([0, 2, 1, 0]),)
    out = model.forward(z, TIMES, *given)
    whole = torch.compile(model.forward, fullgraph=True, backend="eager")
    close(whole(z, TIMES, *given), out, rtol=1e-12, atol=1e-12)
    if condition is None:
        exported = torch.export.export(model, (z, TIMES)).module()
        close(exported(2 * z, TIMES.flip(0)), model.forward(2 * z, TIMES.flip(0)))
        meta = ScoreModel(MLP(2, 8, 1), VP(), "v", base=base).to("meta")
        empty = torch.empty(4, 2, device="meta")
        assert meta(empty, torch.empty(4, device="meta")).shape == (4, 2)
    one = lambda *row: model.forward(*(v.unsqueeze(0) for v in row)).squeeze(0)
    close(torch.func.vmap(one)(z, TIMES, *given), out, rtol=1e-12, atol=1e-12)
    if condition is not None:
        score = model.given(given[0])
        close(score(z, TIMES), out)
        close(score.denoise(z, TIMES), model.denoise_given(z, TIMES, *given))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_out_a_component_that_cannot_be_told_counts_for_nothing(dtype):
    """The energy of the thin one overflows, and the other remains."""
    law = glp.GaussianMixture(
        [0.5, 0.5], torch.zeros(2, 2), torch.tensor([[1e-6, 1.0], [1.0, 1.0]])
    )
    base = bases.Base.of_law(law, torch.Size([2]), torch.empty(0, dtype=dtype))
    far = 0.9 * torch.finfo(dtype).max ** 0.5
    z = torch.tensor([[far, 0.1]], dtype=dtype)
    one = torch.ones(1, 1, dtype=dtype)
    close(base.score(z, one, 1e-3 * one), -z, rtol=1e-5)


# ---------------------------------------------------------------------------- known in closed form


@every_law
def test_noised_it_is_the_noised_law(base, generator):
    found = Noised(Base.of_law(base, torch.Size([2]), torch.empty(0).double()), *LEVEL)
    check_density(found)
    z = 3 * torch.randn(4, 2, generator=generator)
    close(found.log_prob(z), base.noised(*LEVEL.flatten()).log_prob(z), rtol=1e-10)


def test_noised_it_is_the_noised_law_of_few_directions(generator):
    base, whole = low_rank(generator)
    check_density(Noised(base, *LEVEL))
    z = torch.randn(4, 2, 3, generator=generator)
    right = whole.noised(*LEVEL.flatten()).log_prob(z.flatten(1))
    close(base.log_prob(z, *LEVEL), right, rtol=1e-10)


def test_what_a_noised_base_refuses(as_user):
    found = Noised(Base.of_law(MIXTURE, torch.Size([2]), torch.empty(0).double()), *LEVEL)
    for x in (torch.zeros(3, 1, 2), torch.zeros(3, 1), torch.zeros(2)):
        for call in (found.log_prob, found.score, lambda x: found.posterior_mean(x, 0.5, 0.5)):
            with pytest.raises(ValueError, match=r"must have shape \(B, 2\)"):
                call(x)
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError, match="n must be"):
            found.sample(n)
    with pytest.raises(ValueError, match="only a law noised with"):
        found.noised(torch.tensor([1.0, 0.5]), torch.tensor([0.1, 0.2])).sample(2)
    with pytest.raises(ValueError, match="alpha must not be 0"):
        found.posterior_mean(torch.zeros(2, 2), 0.0, 1.0)


def learned(schedule, base, first, last):
    """A model whose correction is kept at levels from first to last."""
    model = ScoreModel(Wave(2), schedule, "v", base=base)
    model.z_mean.copy_(base.mean)
    model.z_std.copy_(base.cov.diagonal().sqrt())
    model.base.span.copy_(model._noise_input(level_times(schedule)[[0, -1]]))
    model.base.share.zero_()[first : last + 1] = 0.5
    return model


@every_schedule
def test_a_model_is_its_base_where_nothing_is_kept(schedule, generator):
    """Above the last level with a share, and not below it; of a ladder from its next step on."""
    model = learned(schedule, MIXTURE, 2, 9)
    exact, z = ExactScore(MIXTURE, schedule), torch.randn(4, 2, generator=generator)
    after = torch.tensor(model.start).double()
    if schedule.times is None:
        close(after, level_times(schedule)[10], atol=1e-4)
    close(model(z, after), exact(z, after), rtol=1e-9, atol=1e-9)
    close(model.law(after).score(z), exact(z, after), rtol=1e-9, atol=1e-9)
    before = after - 1e-3 if schedule.times is None else schedule.times[schedule.times < after][0]
    assert model.law(before) is None
    assert float((model(z, before) - exact(z, before)).abs().max()) > 1e-6
    assert learned(schedule, MIXTURE, 2, bases.LEVELS - 1).start == 1
    assert learned(schedule, MIXTURE, 2, bases.LEVELS - 1).law(torch.ones(())) is None
    nothing = learned(schedule, MIXTURE, 0, -1)
    assert nothing.start == float(least_time(schedule))
    assert ScoreModel(Wave(2), schedule).start == 1  # without a base


def test_a_likelihood_ends_where_the_law_is_known(generator):
    """The flow from there to t = 1 would add nothing; and it takes fewer evaluations."""
    model = learned(VE(0.05, 300.0), MIXTURE, 2, 9)
    x = MIXTURE.sample(3, generator=generator).double()
    found, fixed = glp.log_likelihood(model, x), glp.log_likelihood(model, x, n_steps=60)
    model.base.share[-1] = 1e-30
    assert model.start == 1
    whole = glp.log_likelihood(model, x)
    close(found.log_prob, whole.log_prob, atol=2e-4)
    close(fixed.log_prob, whole.log_prob, atol=2e-3)  # steps that go across kinks of the share
    assert found.nfe < whole.nfe


def test_where_nothing_is_learned_all_is_known(generator):
    """log p is that of the blurred law, and samples are drawn from it; the network is not evaluated."""
    schedule = VE(0.05, 30.0)
    model = learned(schedule, MIXTURE, 0, -1)
    model.network = None
    x = MIXTURE.sample(5, generator=generator).double()
    for how in ({"n_steps": 10}, {}):
        told = []
        found = glp.log_likelihood(model, x, **how, progress=lambda *n, told=told: told.append(n))
        assert told == [(1, 1)]
        close(found.log_prob, MIXTURE.noised(1.0, 0.05).log_prob(x), rtol=1e-10)
        assert found.nfe == 0
        assert not found.solver_error.any()
    times = glp.time_grid(schedule, 10, t_max=model.start)
    assert times.tolist() == [model.start]
    z = glp.evolve(DDIM(), model, 7, times, generator=seeded(3), denoise=False)
    close(model.law(times[0]).log_prob(z).mean(), MIXTURE.log_prob(z).mean(), atol=0.1)


def test_samples_start_where_the_law_is_known(generator):
    """Their law is that of a start at t = 1, whatever the size of chunks."""
    model = learned(VE(0.05, 60.0), MIXTURE, 2, 9)
    early = glp.time_grid(model.schedule, 30, rho=math.inf, t_max=model.start)
    draws = glp.evolve(UniPC(), model, 4000, early, generator=generator)
    whole = glp.time_grid(model.schedule, 60, rho=math.inf)
    others = glp.evolve(UniPC(), model, 4000, whole, generator=generator)
    for moment in (lambda x: x, torch.square, lambda x: x.prod(1)):
        a, b = moment(draws), moment(others)
        error = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert float(((a.mean(0) - b.mean(0)) / error).abs().max()) < 4
    parts = glp.evolve(UniPC(), model, 40, early, generator=seeded(1), chunk_size=7)
    close(parts, glp.evolve(UniPC(), model, 40, early, generator=seeded(1)), rtol=1e-9)
    assert first_time(UniPC(), model) == model.start
    seen = glp.inverse.Observation(torch.zeros(1, 2), glp.inverse.Identity(), 0.1)
    for transition in (glp.inverse.DPSStep(DDIM(), seen), lambda z, t, s, score, *, generator: z):
        with pytest.raises(ValueError, match="needs a start at t = 1"):
            glp.evolve(transition, model, 4, early)
        assert first_time(transition, model) == 1
    with pytest.raises(ValueError, match=r"from t = 0\.\d+ on"):
        glp.terminal(model, 0.01)


def test_the_likelihood_of_the_base_is_that_of_its_law(generator):
    """With nothing learned the flow gives log p of the blurred law."""
    schedule = VE(0.05, 30.0)
    base = LAWS["mixture"]
    model = ScoreModel(MLP(2, 8, 1).double(), schedule, "v", base=base)
    model.z_mean.copy_(base.mean)
    model.z_std.copy_(base.cov.diagonal().sqrt())
    x = base.sample(5, generator=generator).double()
    found = glp.log_likelihood(model, x, n_steps=40).log_prob
    # the law at t = 1 is taken to be normal with the variances alone: (v/σ²)² is 1e-6 here
    close(found, base.noised(1.0, 0.05).log_prob(x), rtol=1e-3, atol=5e-3)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.usefixtures("as_user")
def test_refuses_what_is_no_base():
    with pytest.raises(ValueError, match="base, as a string, must be 'gaussian', got 'normal'"):
        ScoreModel(Wave(2), VP(), base="normal")
    with pytest.raises(
        ValueError, match="base must be 'gaussian', a Gaussian or a mixture, got 3"
    ):
        ScoreModel(Wave(2), VP(), base=3)
    with pytest.raises(ValueError, match="base must be a law over the 3 entries"):
        ScoreModel(Wave(3), VP(), base=law(2))
    with pytest.raises(ValueError, match="base must be a law over the 2 entries"):
        ScoreModel(Wave(2), VP(), base=law(2).noised(torch.ones(4), torch.ones(4)))


def test_the_error_told_of_a_likelihood_is_right_where_the_share_bends(generator, monkeypatch):
    """Between the levels at which the share is known it is straight: steps end there."""
    network = MLP(3, 16, 2, generator=generator)
    nn.init.normal_(network.outlet.weight, std=0.3, generator=generator)
    model = ScoreModel(network, VP(), "v", base=Gaussian(MEAN, STD**2)).double().eval()
    model.z_mean.copy_(MEAN)
    model.z_std.copy_(STD)
    model.base.share.copy_(torch.tensor([0.4, 0.4, 0.2] + [0.6] * (bases.LEVELS - 3)))
    times = torch.tensor(model.kinks, dtype=torch.float64)
    low, high = model.base.span.tolist()
    levels = (model._noise_input(times) - low) / (high - low) * (bases.LEVELS - 1)
    close(levels, torch.tensor([1.0, 2.0, 3.0]), rtol=0, atol=1e-4)
    model.base.share.copy_(torch.rand(bases.LEVELS, generator=generator))
    assert len(model.kinks) == bases.LEVELS
    x = MEAN + STD * torch.randn(6, 3, generator=generator)
    right = glp.log_likelihood(model, x, tolerance=1e-6).log_prob
    told = glp.log_likelihood(model, x, tolerance=1e-3)
    error = (told.log_prob - right).abs()
    assert float(error.max()) < 1e-4
    assert float((error / told.solver_error).max()) < 3
    monkeypatch.setattr(ScoreModel, "kinks", [])
    across = glp.log_likelihood(model, x, tolerance=1e-3)
    error = (across.log_prob - right).abs()
    assert float(error.max()) > 1e-3
    assert float((error / across.solver_error).max()) > 5
