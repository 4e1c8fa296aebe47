"""Log-likelihoods against exact densities, and their lower bound."""

import math

import pytest
import torch
from numpy.polynomial.hermite_e import hermegauss
from scipy.integrate import quad
from support import COV, MEAN, MIXTURE, close, order, z_score

from gradlogp import (
    ExactScore,
    Gaussian,
    GaussianMixture,
    as_score,
    log_likelihood,
    variational_bound,
)
from gradlogp.calculus.ode import Step
from gradlogp.core import Moments, Streams, per_sample
from gradlogp.diffusion.likelihood import _Path, _spread, bits_per_dim, dequantise
from gradlogp.noise.schedules import DDPM, EDM, VE, VP, Cosine, Levels, Rectified, SubVP

SCHEDULES = [VE(0.3, 4.0), VP(0.1, 4.0), SubVP(0.1, 4.0), Cosine(alpha_min=0.3)]
T_MIN = 1e-2
by_name, fewer_by_name = (
    pytest.mark.parametrize("schedule", which, ids=lambda s: type(s).__name__)
    for which in (
        SCHEDULES,
        # SubVP takes twice the steps, and the formulas are those of VP in another time
        [
            pytest.param(s, marks=pytest.mark.slow if isinstance(s, SubVP) else ())
            for s in SCHEDULES
        ],
    )
)
GAUSSIAN = Gaussian(MEAN, COV)


def laws(density, schedule, t_min=T_MIN):
    """The law at t_min, and the law at t = 1."""
    return (density.noised(*schedule(torch.tensor(t))) for t in (t_min, 1.0))


def likelihood(density, schedule, x, **options):
    return log_likelihood(ExactScore(density, schedule), x, **{"t_min": T_MIN, **options})


def normal(schedule, score=lambda z, t: -z):
    """A function of (z, t) as a noisy score of data N(0, I)."""
    return as_score(score, "score", schedule, moments=Moments(torch.zeros(()), torch.ones(())))


@fewer_by_name
def test_order_of_the_steps(schedule, generator):
    """A divergence at the wrong (x, t) pair would leave order 1 or 2."""
    start, _ = laws(GAUSSIAN, schedule)
    x = start.sample(4, generator=generator)
    n = 240 if isinstance(schedule, SubVP) else 120  # from where the order shows
    results = [likelihood(GAUSSIAN, schedule, x, n_steps=k) for k in (n, 2 * n)]
    expected = start.log_prob(x)
    errors = [float((r.log_prob - expected).norm()) for r in results]
    assert errors[-1] < 1e-5
    slope = float(order(errors))
    assert 2.8 < slope < 4.5
    assert torch.equal(results[0].standard_error, torch.zeros(4))
    assert [r.nfe for r in results] == [n + 1, 2 * n + 1]
    assert float((GAUSSIAN.log_prob(x) - expected).abs().max()) > 1e-4  # σ(t_min) counts


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_exact_density_through_full_noise(scale, generator):
    """Rectified ends at α = 0, where only the denoiser knows x_0; of wide data more is left before."""
    schedule, law = Rectified(), Gaussian(scale * MEAN, scale**2 * COV)
    start, _ = laws(law, schedule)
    x = start.sample(12, generator=generator)
    result = log_likelihood(ExactScore(law, schedule), x, t_min=T_MIN, n_steps=100)
    close(result.log_prob, start.log_prob(x), 1e-4)


def test_it_is_a_probability_density():
    p = GaussianMixture([0.4, 0.6], torch.tensor([[-1.0], [1.5]]), [0.3, 0.2])
    grid = torch.linspace(-6, 7, 400).unsqueeze(1)
    result = likelihood(p, VP(0.1, 4.0), grid, n_steps=60)
    close(torch.trapezoid(result.log_prob.exp(), grid[:, 0]), 1.0, 1e-4)


def test_change_of_units(generator):
    """Data and noise in units c times smaller have a density c^d times smaller, exactly."""
    c = 7.0
    x = MIXTURE.sample(6, generator=generator)
    scaled = GaussianMixture(MIXTURE.weights, c * MIXTURE.means, c**2 * MIXTURE.covs)
    one = likelihood(MIXTURE, VE(0.01, 20.0), x, n_steps=24)
    other = likelihood(scaled, VE(0.01 * c, 20.0 * c), c * x, n_steps=24)
    close(other.log_prob, one.log_prob - 2 * math.log(c), 1e-9)


@pytest.mark.parametrize("options", [{"n_steps": 48}, {"tolerance": 1e-7}], ids=str)
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
def test_images(divergence, options, generator):
    """N(1, 2 I) on images (1, 2, 2): its Jacobian is diagonal, so that ±1 probes are exact."""
    schedule, var = VP(0.1, 4.0), 2.0

    def score(x, t):
        a, b = (per_sample(v, x) for v in schedule(t))
        return -(x - a) / (a**2 * var + b**2)

    x = 1 + math.sqrt(var) * torch.randn(5, 1, 2, 2, generator=generator)
    moments = Moments(torch.ones(()), torch.tensor(var))
    noisy = as_score(score, "score", schedule, moments=moments)
    probes = {"divergence": divergence, "n_probes": 2, "generator": generator}
    result = log_likelihood(noisy, x, t_min=T_MIN, **probes, **options)
    a, b = schedule(torch.tensor(T_MIN))
    v = a**2 * var + b**2
    expected = -0.5 * ((x - a).square() / v + (2 * math.pi * v).log()).flatten(1).sum(1)
    close(result.log_prob, expected, 2e-4)
    close(result.standard_error, torch.zeros(5), 1e-9)


BY_DEFAULT = [VP(), VE(0.01, 30.0), EDM(), SubVP(), Cosine()]


@pytest.mark.parametrize("schedule", BY_DEFAULT, ids=lambda s: type(s).__name__)
def test_the_defaults_are_right_for_data_far_from_standard(schedule, generator):
    """Mean 3 and variance 9: the start, the solver and t_min all fit by default."""
    law = GaussianMixture([0.5, 0.5], torch.tensor([[0.3], [5.7]]), 9 - 2.7**2)
    x, score = law.sample(6, generator=generator), ExactScore(law, schedule)
    found = log_likelihood(score, x)
    expected = score.law(torch.tensor(found.t_min)).log_prob(x)
    torch.testing.assert_close(found.log_prob, expected, rtol=0, atol=1e-4)
    assert found.t_min == (0.0 if isinstance(schedule, VE | EDM) else 1e-3)


# ---------------------------------------------------------------------------- Hutchinson


@pytest.mark.parametrize("probe", ["rademacher", "gaussian", "sphere"])
def test_hutchinson_is_unbiased_within_its_own_error(probe, generator):
    schedule, n = VP(), 200
    x = MIXTURE.sample(n, generator=generator)
    exact = likelihood(MIXTURE, schedule, x, n_steps=4).log_prob
    options = {"divergence": "hutchinson", "n_steps": 4, "n_probes": 16, "probe": probe}
    result = likelihood(MIXTURE, schedule, x, generator=generator, **options)
    z = (result.log_prob - exact) / result.standard_error
    assert abs(z_score(z, 0.0)) < 4.5
    assert 0.8 < float(z.std()) < 1.3  # the error bar is neither too short nor too long
    assert float((result.log_prob - exact).abs().mean()) > 1e-3
    assert result.nfe == 5


def test_one_probe_has_no_error_bar(generator):
    x = MIXTURE.sample(4, generator=generator)
    result = likelihood(MIXTURE, VP(), x, divergence="hutchinson", n_steps=4, generator=generator)
    assert result.standard_error.isnan().all()
    assert torch.isfinite(result.log_prob).all()


def test_hutchinson_follows_its_generator(generator):
    x = MIXTURE.sample(5, generator=generator)
    options = {"divergence": "hutchinson", "n_steps": 4, "n_probes": 2}
    state = generator.get_state()
    whole = likelihood(MIXTURE, VP(), x, generator=generator, **options)
    other = likelihood(MIXTURE, VP(), x, generator=generator, **options)
    assert not torch.equal(whole.log_prob, other.log_prob)
    for size in (None, 2, 9):
        generator.set_state(state)
        again = likelihood(MIXTURE, VP(), x, generator=generator, chunk_size=size, **options)
        close(again.log_prob, whole.log_prob, 1e-11)
        close(again.standard_error, whole.standard_error, 1e-9)
    streams = [
        likelihood(MIXTURE, VP(), x, generator=Streams(3, 0, 5, 5), **options) for _ in "ab"
    ]
    assert torch.equal(streams[0].log_prob, streams[1].log_prob)


# ---------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize("options", [{"n_steps": 4}, {"tolerance": 1e-2}], ids=str)
def test_batch_independence(options, generator):
    """Also if every sample has its own steps."""
    x = MIXTURE.sample(3, generator=generator)
    found = lambda x, **chunks: likelihood(MIXTURE, VP(), x, **options, **chunks).log_prob
    whole, other = found(x), torch.cat([x[:1], 5 * x[1:]])
    close(found(other)[0], whole[0], 1e-9)
    close(found(x, chunk_size=2), whole, 1e-9)


def test_dtype_progress_and_graph(generator):
    x = MIXTURE.sample(5, generator=generator)
    seen, w = [], torch.ones((), requires_grad=True)
    result = log_likelihood(
        normal(VP(), lambda x, t: -w * x), x, n_steps=4, chunk_size=2,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(i, 12) for i in range(1, 13)]
    assert result.nfe == 5
    assert not result.log_prob.requires_grad
    single = likelihood(MIXTURE, VP(), x.float(), n_steps=4)
    assert single.log_prob.dtype == torch.float32
    double = likelihood(MIXTURE, VP(), x, n_steps=4)
    torch.testing.assert_close(single.log_prob.double(), double.log_prob, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda x: likelihood(MIXTURE, VP(), x[:, 0]), "shape"),
        (lambda x: likelihood(MIXTURE, VP(), x.long()), "floating"),
        (lambda x: likelihood(MIXTURE, VP(), x[:0]), "empty"),
        (lambda x: likelihood(MIXTURE, VP(), x, n_steps=0), "n_steps"),
        (lambda x: likelihood(MIXTURE, VP(), x, t_min=1.0), "t_min"),
        (lambda x: likelihood(MIXTURE, Levels([2.0, 1.0]), x), "ladder"),
        (lambda x: likelihood(MIXTURE, DDPM([0.1, 0.2]), x), "ladder"),
        (lambda x: log_likelihood(normal(VP(), lambda x, t: -x[:, :1]), x), "shape"),
        (lambda x: log_likelihood(lambda x, t: -x, x), "as_score"),
        (lambda x: log_likelihood(as_score(lambda x, t: -x, "score", VP()), x), "moments="),
        (lambda x: likelihood(MIXTURE, VP(), x * math.nan), "finite"),
        (lambda x: log_likelihood(normal(VP()), x, t_min=0.0), "t_min > 0"),
        (lambda x: dequantise(torch.tensor([[0.5]])), "integers from 0 to 255"),
        (lambda x: dequantise(torch.tensor([[16]]), 16), "integers from 0 to 15"),
        (lambda x: bits_per_dim(torch.zeros(2), (3,), 1), "levels"),
    ],
)
def test_bad_input_is_refused(case, message, as_user):
    with pytest.raises(ValueError, match=message):
        case(torch.ones(3, 2))


def test_exact_density_of_an_energy_model(generator):
    """The velocity of the flow is x plus a gradient: neither part may be lost from the divergence."""
    schedule, c = VP(), torch.tensor([0.5, 2.0])
    energy = lambda x, t: 0.5 * (x * x / (schedule(t)[0] ** 2 * c + schedule(t)[1] ** 2)).sum(1)
    law = Gaussian(torch.zeros(2), c)
    x = law.sample(4, generator=generator)
    moments = Moments(law.mean, law.cov.diagonal())
    model = as_score(energy, "energy", schedule, moments=moments)
    found = log_likelihood(model, x, n_steps=32).log_prob
    exact = log_likelihood(ExactScore(law, schedule), x, n_steps=32).log_prob
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9)


# ---------------------------------------------------------------------------- with a tolerance


@fewer_by_name
def test_tolerance_is_met_on_a_mixture(schedule, generator):
    law = GaussianMixture([0.4, 0.6], torch.tensor([[-1.0, 0.2], [1.5, -0.3]]), [0.3, 0.2])
    x = law.sample(5, generator=generator)
    at = torch.tensor(1e-3)
    found = log_likelihood(ExactScore(law, schedule), x, tolerance=1e-6, t_min=1e-3)
    exact = law.noised(*schedule(at)).log_prob(x)
    assert float((found.log_prob - exact).abs().max()) < 1e-5
    assert float((found.log_prob - exact).abs().max()) < 10 * float(found.solver_error.max())


def test_float32_is_right_within_its_own_error(generator):
    law = GaussianMixture([0.4, 0.6], torch.tensor([[-1.0, 0.2], [1.5, -0.3]]), [0.3, 0.2])
    x = law.sample(6, generator=generator)
    schedule = VP()
    small = GaussianMixture(law.weights.float(), law.means.float(), [0.3, 0.2])
    found = log_likelihood(ExactScore(small, schedule), x.float(), tolerance=1e-5)
    assert found.log_prob.dtype == torch.float32
    exact = law.noised(*schedule(torch.tensor(1e-3))).log_prob(x.float().double())
    error = (found.log_prob.double() - exact).abs()
    assert bool((error < 3 * found.solver_error).all()), (error, found.solver_error)
    assert float(found.solver_error.max()) < 1e-2


@pytest.mark.parametrize("options", [{"n_steps": 72}, {"tolerance": 1e-7}], ids=str)
def test_likelihood_can_be_differentiated(options, generator):
    """In x it gives the score, in a parameter the derivative of log p."""
    schedule, t_min = VP(0.1, 4.0), 1e-2
    x = torch.randn(3, 2, generator=generator).requires_grad_()
    scale = torch.tensor(0.6, requires_grad=True)

    def formula(y, t):
        a, b = schedule(t)
        variance = (a**2 * scale + b**2).reshape(-1, *[1] * (y.ndim - 1))
        return -y / variance

    moments = Moments(torch.zeros(()), scale)
    score = as_score(formula, "score", schedule, moments=moments)
    found = log_likelihood(score, x, t_min=t_min, differentiable=True, **options)
    by_x, by_scale = torch.autograd.grad(found.log_prob.sum(), (x, scale))
    a, b = schedule(torch.tensor(t_min))
    v = a**2 * scale.detach() + b**2
    close(by_x, -x.detach() / v, 1e-5)
    close(by_scale, float((a**2 * (x.detach() ** 2 / v**2 - 1 / v) / 2).sum()), 1e-5)
    assert not log_likelihood(score, x, **options).log_prob.requires_grad


# ---------------------------------------------------------------------------- bits


def test_bits_of_uniform_data_are_those_of_a_code(generator):
    """Under the uniform density on [0, 1] every one of 256 values costs 8 bits."""
    bits = bits_per_dim(torch.zeros(4), (3, 5), levels=256)
    close(bits, torch.full((4,), 8.0), 1e-12)


def test_dequantised_data_fill_their_cells(generator):
    k = torch.arange(4.0).repeat(5000)[:, None]
    y = dequantise(k, 4, generator=generator)
    assert torch.equal((4 * y).floor(), k)
    close(float((4 * y - k).mean()), 0.5, 0.01)
    # the bound: E log p(y) ≤ log P(k), Jensen
    law = Gaussian(torch.tensor([0.4]), 0.05)
    bits = bits_per_dim(law.log_prob(y), (1,), 4).reshape(-1, 4).mean(0)
    z = (torch.arange(5.0) / 4 - 0.4) / math.sqrt(0.05)
    mass = torch.special.ndtr(z).diff()
    assert bool((bits > -mass.log2() - 0.02).all())


def test_within_inference_mode(generator):
    schedule, law = VP(0.1, 4.0), GAUSSIAN
    with torch.inference_mode():
        x = law.sample(3, generator=generator)
        found = likelihood(law, schedule, x, n_steps=8)
    close(found.log_prob, likelihood(law, schedule, x.clone(), n_steps=8).log_prob, 1e-10)


BOUNDED = [VP(), VE(0.02, 30.0), Cosine()]
names = pytest.mark.parametrize("schedule", BOUNDED, ids=lambda s: type(s).__name__)
M, V = 0.4, 0.3


def closed_form(schedule, x, wrong, t_min=1e-3):
    """The bound at a number x for data N(M, V) and the score of N(wrong, V), by quadrature."""
    one, least = (torch.tensor(t) for t in (1.0, t_min))
    low, high = float(schedule.log_snr(one)), float(schedule.log_snr(least))
    vp = isinstance(schedule, VP | Cosine)

    def error(lam):  # E‖ε − ε̂‖² with ε̂ = σ (x_t − α wrong)/(α² V + σ²)
        snr = math.exp(lam)
        a2 = snr / (1 + snr) if vp else 1.0
        b2 = a2 / snr
        total = a2 * V + b2
        # ε − ε̂ = ε (1 − b²/total) − b a (x − wrong)/total
        return (1 - b2 / total) ** 2 + b2 * a2 * (x - wrong) ** 2 / total**2

    integral = quad(error, low, high, epsabs=1e-10, limit=400)[0]
    a, b = (float(q) for q in schedule(one))
    total = a**2 * V + b**2
    ratio = b**2 / total
    kl = 0.5 * (ratio - 1 - math.log(ratio) + (a * (x - M)) ** 2 / total)
    return -0.5 * (1 + math.log(2 * math.pi) - high) - kl - 0.5 * integral


@names
@pytest.mark.parametrize("wrong", [M, -0.5])
def test_bound_is_its_closed_form(schedule, wrong, generator):
    point = 0.9
    x = torch.full((400, 1), point)
    score = ExactScore(Gaussian(torch.tensor([wrong]), V), schedule)
    found = variational_bound(score, x, n_strata=24, generator=generator)
    expected = closed_form(schedule, point, wrong)
    error = float(found.log_prob.std()) / math.sqrt(len(x))
    assert abs(float(found.log_prob.mean()) - expected) < 4 * error
    assert error < 0.1
    stated = float(found.standard_error.square().mean().sqrt())
    assert 0.7 < stated / float(found.log_prob.std()) < 1.4
    other = closed_form(schedule, point, -0.5 if wrong == M else M)
    assert abs(float(found.log_prob.mean()) - other) > 10 * error  # it can fail


def test_bound_lies_below_the_likelihood_of_a_mixture(generator):
    law = GaussianMixture([0.4, 0.6], [[-1.0, 0.2], [1.5, -0.3]], [0.3, 0.2])
    x = law.sample(200, generator=generator)
    score = ExactScore(law, VP())
    found = variational_bound(score, x, generator=generator)
    gap = law.log_prob(x).mean() - found.log_prob.mean()
    error = float(found.standard_error.square().sum().sqrt()) / len(x)
    assert -3 * error < float(gap) < 0.2


VALLEY = GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.2)


@pytest.mark.parametrize(
    ("law", "point", "violated"),
    [
        (Gaussian(torch.tensor([M]), V), M, 4),
        (Gaussian(torch.tensor([M]), V), M + 0.8, None),
        (VALLEY, 1.0, 4),
        (VALLEY, 0.0, 1),
    ],
    ids=["at the mean", "beside the mean", "at a mode", "between modes"],
)
def test_the_bound_is_for_the_law_blurred_twice(law, point, violated, generator):
    """With r² = σ²/α² at t_min and p_c, the law blurred by c r²: E log p_1(z + r ε) ≤ log p_2(z).

    At a mode the bound lies above log p_4, and between modes above log p_1. For N(M, V) the gap to
    log p_2 is that of N(z, r²) to the N of y given z under the decoder.
    """
    schedule, t_min = VP(0.1, 4.0), 0.243
    alpha, sigma = (float(q) for q in schedule(torch.tensor(t_min, dtype=torch.float64)))
    r2 = sigma**2 / alpha**2
    assert r2 == pytest.approx(0.15, rel=0.01)
    x = torch.full((1500, 1), point, dtype=torch.float64)
    found = variational_bound(
        ExactScore(law, schedule), x, n_strata=24, t_min=t_min, generator=generator
    ).log_prob
    mean, error = float(found.mean()), float(found.std()) / math.sqrt(len(x))
    assert error < 0.012
    blurred = lambda c, y: law.noised(1.0, math.sqrt(c * r2)).log_prob(y)
    nodes, weights = (torch.tensor(q) for q in hermegauss(60))
    exact = float(weights @ blurred(1, point + math.sqrt(r2) * nodes[:, None]) / weights.sum())
    assert abs(mean - exact) < 4 * error
    logs = {c: float(blurred(c, x[:1])) for c in (1, 2, 4)}
    above = {c: mean - value for c, value in logs.items()}
    assert exact < logs[2] - 0.02
    assert above[2] < 3 * error
    if violated is not None:
        assert above[violated] > 10 * error
    if isinstance(law, Gaussian):
        ratio = (V + r2) / (V + 2 * r2)  # y given z: variance r² (V + r²)/(V + 2r²)
        off = (point - M) * r2 / (V + 2 * r2)
        gap = 0.5 * (1 / ratio - 1 + math.log(ratio) + off**2 / (r2 * ratio))
        assert abs(above[2] + gap) < 4 * error
        if violated is not None:
            assert all(abs(above[c] + gap) > 10 * error for c in (1, 4))


def test_chunks_draw_the_same(generator):
    law, x = Gaussian(torch.zeros(2), 1.0), torch.randn(9, 2, generator=generator)
    outs = [
        variational_bound(
            ExactScore(law, VP()), x, n_strata=3, chunk_size=size,
            generator=torch.Generator().manual_seed(1),
        )
        for size in (None, 4)
    ]  # fmt: skip
    close(outs[1].log_prob, outs[0].log_prob, 1e-12)
    assert outs[0].nfe == 6


def test_refusals(as_user):
    score = ExactScore(Gaussian(torch.zeros(2), 1.0), VP())
    with pytest.raises(ValueError, match="t_min > 0"):
        variational_bound(score, torch.ones(2, 2), t_min=0.0)
    with pytest.raises(ValueError, match="signal"):
        variational_bound(ExactScore(score.density, Rectified()), torch.ones(2, 2))
    with pytest.raises(ValueError, match="shape"):
        variational_bound(score, torch.ones(2))


def test_the_widest_column_sets_the_steps():
    """In it structure lasts longest; where moments are unknown the width is taken to be 1."""
    law = Gaussian(torch.zeros(3), torch.tensor([9.0, 1.0, 0.25]).diag())
    assert _spread(ExactScore(law, VE(0.01, 30.0))) == pytest.approx(3.0)
    unknown = as_score(lambda z, t: -z, "score", VE(0.01, 30.0), event_shape=(3,))
    assert _spread(unknown) == 1.0


@pytest.mark.parametrize("schedule", [VP(), VE(0.05, 20.0), Rectified()], ids=repr)
def test_where_the_path_is_off_so_is_the_density_by_the_score(schedule, generator):
    """What a defect of a step changes in log p is s · δ and the defect of the integral."""
    score = ExactScore(GAUSSIAN, schedule)
    d = GAUSSIAN.mean.numel()
    path = _Path(score, None, torch.Size([d]))
    z, dz = torch.randn(2, 5, d, generator=generator)
    gain = torch.randn(5, 1, generator=generator)
    for at in (0.2, 0.9):
        t = torch.full((5,), at)
        state = path.start(z)
        step = Step(state, path(state, t), torch.cat([dz, gain], 1))
        close(path.told(step, t), gain + (score(z, t) * dz).sum(1, keepdim=True), 1e-9)
    z1 = path.start(z)
    last = Step(z1, torch.cat([torch.ones(5, d), gain], 1), torch.cat([dz, gain], 1))
    assert bool(path.told(last, torch.ones(5)).isfinite().all())  # α = 0 under Rectified
