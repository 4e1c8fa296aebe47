"""Langevin kernels against algebra, exact stationary laws and detailed balance."""

import math
import re

import pytest
import torch
from kernel_support import DENSE, GAUSSIAN, SKEWED, cliff, step
from scipy import stats
from scipy.linalg import expm
from support import COV, MEAN, close

from gradlogp import Gaussian, as_target, run
from gradlogp.calculus import kernel_map
from gradlogp.check.conformance.report import Watched
from gradlogp.core import Injected, Streams, sum_event
from gradlogp.langevin import SGLD, SVRG
from gradlogp.langevin.kernels import (
    BAOA,
    BAOAB,
    GHMC,
    HMC,
    MALA,
    MCLMC,
    NUTS,
    OBABO,
    ULA,
    AdjustedMCLMC,
    LeimkuhlerMatthews,
    PositionDependentULA,
    PreconditionedULA,
    Preconditioner,
    Splitting,
    TamedULA,
)
from gradlogp.langevin.kernels.overdamped import ExponentialEuler, langevin_step, log_proposal

P = torch.linalg.inv(COV)
L = float(torch.linalg.eigvalsh(P)[-1])
I2 = torch.eye(2, dtype=torch.float64)
TARGET = Gaussian(MEAN, COV)


def gaussian_ula(h, tau=1.0):
    return kernel_map(ULA(h, tau), TARGET, 2, 1)


# ---------------------------------------------------------------------------- ULA


@pytest.mark.parametrize("event", [(1,), (3,), (2, 2, 3)])
@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
def test_ula_is_its_formula(event, tau, generator):
    x, z = torch.randn(2, 5, *event, generator=generator)
    h = 0.07
    kernel = ULA(h, tau)
    state = kernel.init(x, SKEWED)
    new, info = kernel.step(state, SKEWED, generator=Injected(z))
    close(new.x, x + h * (1 - x.exp()) + math.sqrt(2 * h * tau) * z, 1e-12)
    close(new.score, 1 - new.x.exp(), 1e-12)
    assert not info.diverging.any()


def test_ula_transient_law():
    h, n = 0.05, 17
    step = gaussian_ula(h)
    m0, S0 = torch.tensor([4.0, 3.0]), torch.tensor([[0.2, -0.1], [-0.1, 0.9]])
    m, S = m0, S0
    for _ in range(n):
        m, S = step.law(m, S)
    A = torch.linalg.matrix_power(I2 - h * P, n)
    S_h = COV @ torch.linalg.inv(I2 - h * P / 2)
    close(m, MEAN + A @ (m0 - MEAN), 1e-11)
    close(S, S_h + A @ (S0 - S_h) @ A, 1e-11)
    silent = Injected(*[torch.zeros(1, 2)] * n)
    close(run(ULA(h), TARGET, m0[None], n, generator=silent).state.x[0], m, 1e-11)


# ---------------------------------------------------------------------------- MALA


def metropolis(kernel, target, x, z, u):
    state = kernel.init(x, target)
    return kernel.step(state, target, generator=Injected(z, u))


def test_log_proposal_is_the_normal_log_density(generator):
    x, y, s = torch.randn(3, 20, 3, generator=generator)
    h, tau = 0.3, 1.7
    law = stats.norm((x + h * s).numpy(), math.sqrt(2 * h * tau))
    density = torch.as_tensor(law.logpdf(y.numpy())).sum(1)
    constant = 1.5 * math.log(4 * math.pi * h * tau)
    close(log_proposal(x_to=y, x_from=x, score_from=s, h=h, tau=tau), density + constant, 1e-11)
    close(langevin_step(x, s, h, y, tau), x + h * s + math.sqrt(2 * h * tau) * y, 1e-12)


def test_mala_accepts_below_the_ratio_and_stays_above(generator):
    h, n = 0.25, 300
    x, z = torch.randn(2, n, 2, generator=generator)
    state = MALA(h).init(x, TARGET)
    acceptance = metropolis(MALA(h), TARGET, x, z, torch.zeros(n))[1].acceptance
    assert ((acceptance > 0.01) & (acceptance < 0.99)).sum() > 20
    below, info = metropolis(MALA(h), TARGET, x, z, acceptance * (1 - 1e-9))
    assert torch.equal(info.accepted, acceptance > 0)
    some = (acceptance > 0) & (acceptance < 1)
    above, info = metropolis(MALA(h), TARGET, x, z, acceptance * (1 + 1e-9))
    assert not info.accepted[some].any()
    for new, old in zip(above, state, strict=True):  # position, score and log-density stay
        assert torch.equal(new[some], old[some])
    y = below.x[some]
    close(below.score[some], TARGET.score(y), 1e-12)
    close(below.log_prob[some], TARGET.log_prob(y), 1e-12)
    assert torch.equal(info.log_prob, above.log_prob)


def test_mala_acceptance_scaling(generator):
    """Roberts & Rosenthal: on N(0, I_d) with h = l² d^{-1/3}/2 it tends to 2 Φ(−l³/8)."""
    d, l = 1000, 1.65
    x0 = torch.randn(400, d, generator=generator)
    target = as_target(score=lambda x: -x, log_prob=lambda x: -0.5 * sum_event(x**2))
    chain = run(MALA(l**2 * d ** (-1 / 3) / 2), target, x0, 10, generator=generator)
    close(chain.info.acceptance.mean(), 2 * stats.norm.cdf(-(l**3) / 8), 0.015)


# ---------------------------------------------------------------------------- exponential Euler


@pytest.mark.parametrize("tau", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(
    "C",
    [0.7, torch.tensor([0.7, 2.0], dtype=torch.float64), DENSE],
    ids=["number", "diag", "dense"],
)
def test_exponential_euler_is_its_formula(C, tau, generator):
    """On the eigenvalues of C, with scipy's exponential of a matrix."""
    x, z = torch.randn(2, 5, 2, generator=generator)
    h = 0.6
    full = (C * I2 if isinstance(C, float) or C.ndim == 1 else C).numpy()
    E = torch.as_tensor(expm(-h * torch.linalg.inv(torch.as_tensor(full)).numpy()))
    full = torch.as_tensor(full)
    w, U = torch.linalg.eigh(full @ (I2 - E @ E))
    root = (U * w.sqrt()) @ U.mT
    kernel = ExponentialEuler(h, C, tau)
    new, info = kernel.step(kernel.init(x, SKEWED), SKEWED, generator=Injected(z))
    close(new.x, x + (1 - x.exp()) @ (full @ (I2 - E)).mT + math.sqrt(tau) * z @ root, 1e-12)
    close(new.score, 1 - new.x.exp(), 1e-12)
    assert not info.diverging.any()


@pytest.mark.parametrize("h", [1e-3, 0.3, 1.9 / L, 7.0, 500.0])
@pytest.mark.parametrize("tau", [1.0, 2.5])
def test_exponential_euler_is_the_dynamics_itself_on_its_gaussian(h, tau):
    """An Ornstein-Uhlenbeck process at any h: also beyond 2/L, where ULA explodes."""
    step = kernel_map(ExponentialEuler(h, COV, tau), TARGET, 2, 1)
    E = torch.as_tensor(expm(-h * P.numpy()))
    close(step.M, E, 1e-11)
    close(step.Q, tau * (COV - E @ COV @ E), 1e-11)
    mean, cov = step.stationary()
    close(mean, MEAN, 1e-9)
    close(cov, tau * COV, 1e-10)


def test_exponential_euler_about_another_gaussian():
    """x' − μ = (I − A P)(x − μ) + N(0, B): biased, stable for any h if C is at most 2/L."""
    C = 1.9 / L
    for h in (0.01, 1.0, 1e4):
        step = kernel_map(ExponentialEuler(h, C), TARGET, 2, 1)
        gain, noise = -C * math.expm1(-h / C), -C * math.expm1(-2 * h / C)
        close(step.M, I2 - gain * P, 1e-11)
        close(step.Q, noise * I2, 1e-11)
        assert float(torch.linalg.eigvals(step.M).abs().max()) < 1


def test_exponential_euler_tends_to_ula(generator):
    x, z = torch.randn(2, 40, 3, generator=generator)
    ends = [
        k.step(k.init(x, SKEWED), SKEWED, generator=Injected(z))[0].x
        for k in (ExponentialEuler(0.2, 1e9), ULA(0.2))
    ]
    close(ends[0], ends[1], 1e-8)


# ---------------------------------------------------------------------------- metamorphic

EACH = [
    ULA(0.1), LeimkuhlerMatthews(0.1), ExponentialEuler(0.1, 0.8), PreconditionedULA(0.1, 0.7),
    MALA(0.4), HMC(0.5, 3), GHMC(0.6), BAOAB(0.3),
]  # fmt: skip
each = pytest.mark.parametrize("kernel", EACH, ids=lambda k: type(k).__name__)


@each
def test_translation(kernel, generator):
    """The target moved by a, from starts moved by a: the same chains moved by a."""
    x0, a = torch.randn(6, 2, generator=generator), torch.tensor([3.0, -7.0])
    moved = as_target(
        score=lambda x: SKEWED.score(x - a), log_prob=lambda x: SKEWED.log_prob(x - a)
    )
    one = run(kernel, SKEWED, x0, 20, generator=Streams(3, 0, 6, 6)).draws
    two = run(kernel, moved, x0 + a, 20, generator=Streams(3, 0, 6, 6)).draws
    close(two, one + a, 1e-9)


@each
@pytest.mark.parametrize("tau", [0.5, 3.0])
def test_temperature_is_another_target(kernel, tau, generator):
    """p^{1/τ} at step h τ (a time: h and a mass of 1 at momenta √τ) is p at temperature τ."""
    x0 = torch.randn(6, 2, generator=generator)
    flat = as_target(
        score=lambda x: SKEWED.score(x) / tau, log_prob=lambda x: SKEWED.log_prob(x) / tau
    )
    given = {k: v for k, v in vars(kernel).items() if not k.startswith("_") and k != "scheme"}
    warm = type(kernel)(**{**given, "temperature": tau})
    if isinstance(kernel, HMC | GHMC | BAOAB):
        changed = {"step_size": given["step_size"] * math.sqrt(tau)}
        if "friction" in given:
            changed["friction"] = given["friction"] / math.sqrt(tau)
    else:
        changed = {"step_size": given["step_size"] * tau}
    if isinstance(kernel, ExponentialEuler):
        changed["covariance"] = 0.8 * tau
    cold = type(kernel)(**{**given, **changed})
    one = run(warm, SKEWED, x0, 20, generator=Streams(3, 0, 6, 6)).draws
    two = run(cold, flat, x0, 20, generator=Streams(3, 0, 6, 6)).draws
    close(two, one, 1e-9)


# ---------------------------------------------------------------------------- exact errors


def test_averages_over_time_err_as_an_autoregression_says(generator):
    """Within 4.5 exact errors of ULA's own law on N(0, 1), and not of the target's.

    A stationary AR(1) of coefficient a = 1 − h: a mean over n steps has variance
    v/n (1 + a)/(1 − a), and of squares 2 v²/n (1 + a²)/(1 − a²), but for its two ends.
    """
    h, n = 0.1, 1500
    a, v = 1 - h, 1 / (1 - h / 2)
    x0 = math.sqrt(v) * torch.randn(400, 1, generator=generator)
    draws = run(ULA(h), Gaussian([0.0], 1.0), x0, n, generator=generator).draws

    def error(variance, a):
        ends = 1 - 2 * a / (n * (1 - a**2))  # which have fewer neighbours
        return math.sqrt(variance / draws.numel() * (1 + a) / (1 - a) * ends)

    square, spread = float(draws.square().mean()), error(2 * v**2, a**2)
    assert abs(float(draws.mean())) < 4.5 * error(v, a)
    assert abs(square - v) < 4.5 * spread
    assert abs(square - 1) > 8 * spread


# ---------------------------------------------------------------------------- calibration


class Normals:
    """θ ~ N(0, 1), y_i ~ N(θ, 1): every chain has its own N observations."""

    def __init__(self, y, factor=True):
        self.y, self.factor, self.n_data = y, factor, y.shape[1]

    def log_prob(self, x):
        return -0.5 * (x[:, 0].square() + (self.y - x).square().sum(1))

    def score(self, x):
        return -x + (self.y - x).sum(1, keepdim=True)

    def minibatch_score(self, x, index):
        seen = (self.y.gather(1, index) - x).sum(1, keepdim=True)
        return -x + (self.n_data / index.shape[1] if self.factor else 1.0) * seen


def ranks(kernel, generator, factor=True, n=1000, n_data=10, kept=19, thin=25):
    """The p-value of uniform ranks of the true θ among draws from its posterior, which is wanted."""
    theta = torch.randn(n, 1, generator=generator)
    y = theta + torch.randn(n, n_data, generator=generator)
    start = torch.randn(n, 1, generator=generator)
    target = Normals(y, factor)
    draws = run(kernel, target, start, 40 + kept * thin, 40, thin, generator=generator).draws
    rank = (draws[..., 0] < theta).sum(1)
    return stats.chisquare(torch.bincount(rank, minlength=kept + 1).numpy()).pvalue


def test_posteriors_are_calibrated(generator):
    """Simulation-based calibration: over draws of θ and y, ranks are uniform on 0 … 19.

    References: Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et
    al., 2018), https://arxiv.org/abs/1804.06788. Marginal tests of one posterior cannot see all
    that is wrong with a kernel; here prior, likelihood and minibatches enter together.
    """
    assert ranks(MALA(0.12), generator, thin=8) > 1e-4
    assert ranks(ULA(0.12), generator, thin=8) < 1e-10  # the bias of a large step
    anchored = SGLD(0.006, 5, estimator=SVRG(10**9))  # exact: these scores are affine
    assert ranks(anchored, generator) > 1e-4
    assert ranks(SGLD(0.03, 2), generator, factor=False, thin=10) < 1e-10  # without N/n


def softened(x):
    return 1 / (1 + x**2) + 0.5


EVERY = [
    ULA(0.1),
    LeimkuhlerMatthews(0.1),
    TamedULA(0.1),
    TamedULA(0.1, coordinatewise=True),
    PreconditionedULA(0.1, 0.7),
    PositionDependentULA(0.1, softened, "autograd"),
    MALA(0.3),
    HMC(0.7, 2),
    GHMC(0.7),
    NUTS(0.5),
    MCLMC(0.5, 2.0),
    AdjustedMCLMC(0.5, 2),
    BAOAB(0.3),
    OBABO(0.3),
    BAOA(0.3),
    Splitting(0.3, "ABOBA"),
]


def label(kernel):
    """What a kernel is, without addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(kernel))


every = pytest.mark.parametrize("kernel", EVERY, ids=label)


class Permuted:
    """The same noise with the coordinates in another order; uniform numbers have none."""

    def __init__(self, generator, index):
        self.generator, self.index = generator, index

    def draw(self, law, shape, like):
        z = law(shape, generator=self.generator)
        return z[:, self.index] if law is torch.randn else z


@every
def test_coordinates_have_no_order(kernel, generator):
    x = torch.randn(9, 3, generator=generator)
    index = torch.tensor([2, 0, 1])
    draws = []
    for i in (torch.arange(3), index):
        noise = Permuted(torch.Generator().manual_seed(3), i)
        draws.append(run(kernel, SKEWED, x[:, i], 6, generator=noise).draws)
    close(draws[0][..., index], draws[1], 1e-11)


@pytest.mark.parametrize(
    "kernel",
    [
        ULA(0.2, 0.0),
        LeimkuhlerMatthews(0.2, 0.0),
        PreconditionedULA(0.4, DENSE, 0.0),
        PositionDependentULA(0.2, softened, lambda x: -2 * x / (1 + x**2) ** 2, 0.0),
        TamedULA(0.2, 0.0),
        BAOAB(0.3, temperature=0.0),
    ],
    ids=lambda k: type(k).__name__,
)
def test_at_temperature_zero_there_is_no_noise(kernel):
    x = run(kernel, GAUSSIAN, torch.full((2, 2), 2.0), 300).state.x
    assert torch.equal(x[0], x[1])
    close(x[0], MEAN, 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        MALA,
        lambda h: HMC(h, 3),
        NUTS,
        lambda h: MCLMC(h, 1.0),
        lambda h: AdjustedMCLMC(h, 2),
    ],
    ids=["MALA", "HMC", "NUTS", "MCLMC", "AdjustedMCLMC"],
)
def test_a_step_for_each_chain_is_that_chain_alone(make, generator):
    x, steps, source = (
        torch.randn(9, 3, generator=generator),
        torch.linspace(0.05, 1.5, 9),
        Watched(),
    )
    together, info = make(steps).step(make(steps).init(x, SKEWED), SKEWED, generator=source)
    noise = [law(shape, generator=generator) for law, shape in source.asked]
    together, info = step(make(steps), SKEWED, x, *noise)
    for i, h in enumerate(steps.tolist()):
        alone, told = step(make(h), SKEWED, x[i : i + 1], *(z[i : i + 1] for z in noise))
        for one, all_of in zip((*alone, *told), (*together, *info), strict=True):
            close(one[0], all_of[i], 1e-12)
    with pytest.raises(ValueError, match=r"step_size must have shape \(\) or \(9,\), got \(4,\)"):
        step(make(torch.ones(4)), SKEWED, x, *noise)


# ---------------------------------------------------------------------------- not finite


@pytest.mark.parametrize(
    "kernel",
    [MALA(0.5), HMC(1.0, 1), GHMC(1.0, math.inf), AdjustedMCLMC(1.0, 2, False)],
    ids=label,
)
@pytest.mark.parametrize(
    ("value", "diverging"), [(-math.inf, False), (math.nan, True), (math.inf, True)]
)
def test_outside_the_support_is_an_ordinary_rejection(kernel, value, diverging):
    x, u = torch.zeros(3, 2), torch.zeros(3)
    z = torch.tensor([[5.0, 0.0], [-0.1, 0.03], [math.inf, 0.0]])  # the last leads nowhere
    noise = [z, u, 0 * x][: kernel.facts.draws]
    new, info = step(kernel, cliff(value), x, *noise)
    assert info.diverging.tolist() == [diverging, False, True]
    assert info.accepted.tolist() == [False, True, False]
    assert torch.equal(info.acceptance[::2], torch.zeros(2))
    assert torch.equal(new.x[::2], x[::2])
    assert all(torch.isfinite(field[:2]).all() for field in new)
    loud, noise = type(kernel)(**{**vars(kernel), "on_nonfinite": "raise"}), [v[:2] for v in noise]
    if diverging:
        with pytest.raises(FloatingPointError, match="1 of 2 proposals"):
            step(loud, cliff(value), x[:2], *noise)
    else:
        assert torch.equal(step(loud, cliff(value), x[:2], *noise)[0].x, new.x[:2])


UNADJUSTED = [k for k in EVERY if not k.facts.needs_log_prob]


@pytest.mark.parametrize("kernel", UNADJUSTED, ids=label)
def test_an_unadjusted_chain_freezes_or_raises(kernel):
    target = as_target(score=lambda x: torch.where(x.abs() > 3, torch.nan, -x))
    x = torch.tensor([[0.5], [1.0], [-0.4]])
    noise = [torch.tensor([[0.2], [1e3], [-0.1]])] * kernel.facts.draws
    start = kernel.init(x, target)
    new, info = kernel.step(start, target, generator=Injected(*noise))
    assert info.diverging.tolist() == [False, True, False]
    for field, old in zip(new, start, strict=True):  # all of its state stays
        assert torch.equal(field[1], old[1])
        assert torch.isfinite(field).all()
    assert not torch.equal(new.x[0], x[0])
    changed = {k: v for k, v in vars(kernel).items() if k != "scheme" or type(kernel) is Splitting}
    loud = type(kernel)(**{**changed, "on_nonfinite": "raise"})
    with pytest.raises(FloatingPointError, match=r"1 of 3 chains.*step_size"):
        loud.step(start, target, generator=Injected(*noise))


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("make", [MALA, lambda h, **k: HMC(h, 2, **k), GHMC])
def test_adjusted_kernels_need_a_temperature_and_a_log_density(make, as_user):
    with pytest.raises(ValueError, match=r"needs temperature > 0"):
        make(0.1, temperature=0.0)
    with pytest.raises(ValueError, match=r"log-density.*ULA"):
        make(0.1).init(torch.zeros(3, 2), as_target(score=lambda x: -x))
    with pytest.raises(ValueError, match="1 of 3"):
        make(0.1).init(torch.tensor([[0.0], [2.0], [0.5]]), cliff(-math.inf))


def test_kernels_of_equal_preconditioners_are_equal():
    assert PreconditionedULA(0.1, 2.0) == PreconditionedULA(0.1, Preconditioner(2.0))
    assert MALA(0.1, preconditioner=DENSE) == MALA(0.1, preconditioner=DENSE.clone())
    assert MALA(0.1, preconditioner=DENSE) != MALA(0.1)
    assert MALA(0.1) == MALA(0.1, preconditioner=1.0)
    with pytest.raises(TypeError):
        PreconditionedULA(0.1)
