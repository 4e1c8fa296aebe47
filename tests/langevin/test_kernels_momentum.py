"""Kernels with momentum against algebra, exact laws and detailed balance."""

import math

import pytest
import torch
from kernel_support import DENSE, GAUSSIAN, I2, PRECISION, QUARTIC, SKEWED
from support import COV, MEAN, close, z_score

from gradlogp import as_target, run
from gradlogp.calculus import kernel_map
from gradlogp.check.conformance.laws import Observed, Quartic
from gradlogp.core import Injected, sum_event
from gradlogp.langevin.kernels import (
    BAOA,
    BAOAB,
    GHMC,
    HMC,
    MALA,
    OBABO,
    SGHMC,
    LeimkuhlerMatthews,
    Preconditioner,
    Splitting,
)
from gradlogp.langevin.kernels.hamiltonian import PhaseState, leapfrog

NAMED = [BAOAB, OBABO, BAOA]
named = pytest.mark.parametrize("kernel", NAMED, ids=lambda k: k.__name__)


# ---------------------------------------------------------------------------- formulas


def test_schemes_are_their_formulas(generator):
    h, gamma, m, tau = 0.3, 0.8, 1.7, 0.6
    x, p, z1, z2 = torch.randn(4, 6, 2, 3, generator=generator)
    s = lambda x: 1 - x.exp()

    def friction(p, t, z):
        c = math.exp(-gamma * t)
        return c * p + math.sqrt(tau * m * (1 - c**2)) * z

    half = p + h / 2 * s(x)
    mid = x + h / 2 * half / m
    half = friction(half, h, z1)
    y = mid + h / 2 * half / m
    baoab = y, half + h / 2 * s(y)

    q = friction(p, h / 2, z1) + h / 2 * s(x)
    y = x + h * q / m
    obabo = y, friction(q + h / 2 * s(y), h / 2, z2)

    q = p + h * s(x)
    mid = x + h / 2 * q / m
    q = friction(q, h, z1)
    baoa = mid + h / 2 * q / m, q

    for cls, (y, q), noise in zip(
        NAMED, (baoab, obabo, baoa), ((z1,), (z1, z2), (z1,)), strict=True
    ):
        kernel = cls(h, gamma, m, tau)
        start = kernel.init(x, SKEWED)
        assert not start.momentum.any()
        source = Injected(*noise)
        new, info = kernel.step(start._replace(momentum=p), SKEWED, generator=source)
        close(new.x, y, 1e-12)
        close(new.momentum, q, 1e-12)
        close(new.score, s(y), 1e-12)
        assert not source.left
        assert not info.diverging.any()
        other = Splitting(h, cls.__name__, gamma, m, tau)
        again, _ = other.step(start._replace(momentum=p), SKEWED, generator=Injected(*noise))
        assert torch.equal(again.momentum, new.momentum)


@pytest.mark.parametrize(
    ("kernel", "scores"), [*((k(0.1), 1) for k in NAMED), (Splitting(0.1, "ABOBA"), 2)]
)
def test_scores_per_step(kernel, scores):
    calls = []
    target = as_target(score=lambda x: calls.append(1) or -x)
    state = kernel.init(torch.zeros(2, 1), target)
    calls.clear()
    for _ in range(3):
        state, _ = kernel.step(state, target)
    assert len(calls) == 3 * scores


# ---------------------------------------------------------------------------- stationary laws


def table(scheme, u, h, m, tau):
    """Var x, Var p and Cov(x, p) on N(μ, S) for u = h² S⁻¹ / m."""
    rest = torch.linalg.inv(I2 - u / 4)
    x, p, zero = tau * COV, tau * m * I2, torch.zeros(2, 2)
    return {
        "BAOAB": (x, p @ (I2 - u / 4), zero),
        "OBABO": (x @ rest, p, zero),
        "BAOA": (x, p, tau * h / 2 * I2),
        "ABOBA": (x, p @ rest, zero),
        "OABAO": (x @ (I2 - u / 4), p, zero),
    }[scheme]


@pytest.mark.parametrize("scheme", ["BAOAB", "OBABO", "BAOA", "ABOBA", "OABAO"])
@pytest.mark.parametrize(("h", "gamma"), [(0.1, 0.3), (0.5, 1.0), (0.5, 20.0), (0.8, math.inf)])
@pytest.mark.parametrize(("m", "tau"), [(1.0, 1.0), (2.5, 0.4)])
def test_stationary_laws(scheme, h, gamma, m, tau):
    kernel = Splitting(h, scheme, gamma, m, tau)
    mean, cov = kernel_map(kernel, GAUSSIAN, 2, scheme.count("O"), "momentum").stationary()
    x, p, cross = table(scheme, h**2 * PRECISION / m, h, m, tau)
    close(mean, torch.cat([MEAN, torch.zeros(2)]), 1e-9)
    close(cov[:2, :2], x, 1e-9)
    close(kernel.facts.stationary(kernel, PRECISION), x, 1e-9)
    close(cov[2:, 2:], p, 1e-9)
    close(cov[:2, 2:], cross, 1e-9)


@pytest.mark.parametrize(("factor", "stable"), [(1.99, True), (2.01, False)])
@named
def test_stability_limit(kernel, factor, stable):
    h = factor / math.sqrt(float(torch.linalg.eigvalsh(PRECISION)[-1]))
    found = kernel_map(kernel(h), GAUSSIAN, 2, kernel(h).scheme.count("O"), "momentum")
    assert (float(torch.linalg.eigvals(found.M).abs().max()) < 1) == stable


def test_infinite_friction_is_averaged_noise(generator):
    h, m, tau = 0.5, 2.0, 0.7
    x, z0, z1, z2 = torch.randn(4, 8, 2, generator=generator)
    one, two = BAOAB(h, math.inf, m, tau), LeimkuhlerMatthews(h**2 / (2 * m), tau)
    momentum = math.sqrt(tau * m) * z0 + h / 2 * SKEWED.score(x)
    kinetic = one.init(x, SKEWED)._replace(momentum=momentum)
    averaged = two.init(x, SKEWED)._replace(z=z0)
    for z in (z1, z2):
        kinetic, _ = one.step(kinetic, SKEWED, generator=Injected(z))
        averaged, _ = two.step(averaged, SKEWED, generator=Injected(z))
        close(kinetic.x, averaged.x, 1e-12)


# ---------------------------------------------------------------------------- starts

MOVING = [GHMC(0.5, 1.0), BAOAB(0.5), OBABO(0.5), BAOA(0.5), Splitting(0.5, "ABOBA")]


@pytest.mark.parametrize("kernel", MOVING, ids=lambda k: getattr(k, "scheme", "GHMC"))
def test_chains_that_start_with_their_law_keep_it_from_the_first_step(kernel, generator):
    """N(0, 1), 40,000 exact draws: E x² of the first steps. From rest it falls to about .88."""
    n, target = 40_000, as_target(score=lambda x: -x, log_prob=lambda x: -sum_event(x**2) / 2)
    x = torch.randn(n, 1, generator=generator)
    chain = run(kernel, target, x, 4, generator=generator)
    law = kernel.facts.stationary(kernel, torch.eye(1))
    bias = float(law) - 1  # of OBABO, .066
    for k in range(4):
        assert abs(z_score(chain.draws[:, k, 0].square() - bias / 2, 1.0)) < 4.5 + 350 * bias / 2
    state = kernel.init(x, target)  # at rest: the negative control
    for _ in range(2):
        state, _ = kernel.step(state, target, generator=generator)
    assert z_score(state.x[:, 0].square(), 1.0) < -5


@pytest.mark.parametrize(
    ("kernel", "variance"),
    [
        (GHMC(0.1, mass=2.0, temperature=0.6), 1.2), (BAOAB(0.1, mass=3.0), 3.0),
        (Splitting(0.1, "OABAO", temperature=0.5), 0.5), (SGHMC(0.1, 1, temperature=0.7), 0.7),
    ],
    ids=["GHMC", "BAOAB", "OABAO", "SGHMC"],
)  # fmt: skip
def test_the_law_of_new_momenta(kernel, variance, generator):
    n = 20_000
    state = kernel.init(torch.zeros(n, 2), Observed(Quartic()))
    new = kernel.refresh(state, generator=generator)
    assert all(
        torch.equal(getattr(new, f), getattr(state, f)) for f in set(state._fields) - {"momentum"}
    )
    for k in range(2):
        assert abs(z_score(new.momentum[:, k], 0.0)) < 4.5
        assert abs(z_score(new.momentum[:, k].square(), variance)) < 4.5
    assert abs(z_score(new.momentum.prod(1), 0.0)) < 4.5


def test_at_temperature_zero_momenta_are_0():
    kernel = BAOAB(0.1, temperature=0.0)
    state = kernel.refresh(kernel.init(torch.ones(2, 2), SKEWED))
    assert not state.momentum.any()


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("scheme", ["", "AB", "BO", "BAOAX", "baoab"])
def test_bad_schemes(scheme, as_user):
    with pytest.raises(ValueError, match="scheme"):
        Splitting(0.1, scheme)


# ---------------------------------------------------------------------------- HMC


@pytest.mark.parametrize("target", [SKEWED, QUARTIC])
@pytest.mark.parametrize("tau", [1.0, 1.8])
@pytest.mark.parametrize("P", [1.0, torch.tensor([0.4, 1.9]), DENSE], ids=lambda p: str(type(p)))
def test_mala_is_hmc_with_one_leapfrog_step(target, tau, P, generator):
    h, n = 0.4, 200
    x, z = torch.randn(2, n, 2, generator=generator)
    u = torch.rand(n, generator=generator)
    P = P if isinstance(P, float) else P.double()
    one, two = MALA(h, tau, P), HMC(math.sqrt(2 * h), 1, P, tau)

    def step(kernel):
        return kernel.step(kernel.init(x, target), target, generator=Injected(z, u))

    (a, info), (b, other) = step(one), step(two)
    close(other.acceptance, info.acceptance, 1e-11)
    assert torch.equal(other.accepted, info.accepted)
    assert other._fields[:4] == info._fields
    for left, right in zip(a, b[:3], strict=True):
        close(left, right, 1e-11)
    assert 0 < int(info.accepted.sum()) < n
    far = HMC(math.sqrt(h), 1, P, tau)  # negative control
    assert not torch.allclose(step(far)[0].x, a.x)


@pytest.mark.parametrize("P", [1.0, DENSE], ids=["unit", "dense"])
def test_leapfrog_keeps_volume_and_undoes_itself(P, generator):
    P = Preconditioner(P)

    def flow(y):
        x, q = y[:, :2], y[:, 2:]
        start = PhaseState(x, SKEWED.score(x), SKEWED.log_prob(x), q)
        end = leapfrog(start, SKEWED, 0.4, 5, P)
        return torch.cat([end.x, end.momentum], 1)

    y = torch.randn(10, 4, generator=generator)
    J = torch.func.vmap(torch.func.jacrev(lambda v: flow(v[None])[0]))(y)
    close(torch.linalg.det(J), torch.ones(10), 1e-11)
    turn = torch.tensor([1.0, 1.0, -1.0, -1.0])
    close(turn * flow(turn * flow(y)), y, 1e-11)
    assert float((flow(y) - y).abs().min()) > 1e-4


# ---------------------------------------------------------------------------- GHMC


def ghmc_paths(kernel, x, p, q, u, turn=True):
    """One step of a kernel from (x, p) through momentum q after the first friction.

    Returns the end, the logarithm of the density of the path, and the same for the path that goes
    back from the end with its momentum turned round, up to the law of the second friction's noise.
    """
    h, gamma, m, tau = kernel.step_size, kernel.friction, kernel.mass, kernel.temperature
    c = math.exp(-gamma * h / 2)
    sd = math.sqrt(tau * m * (1 - c**2))
    z1 = (q - c * p) / sd
    z2 = torch.full_like(p, 0.3)
    start = kernel.init(x, SKEWED)._replace(momentum=p)
    new, info = kernel.step(start, SKEWED, generator=Injected(z1, u, z2))
    inner = (new.momentum - sd * z2) / c  # after the Metropolis step
    if not turn:  # a kernel that forgets to turn the momentum round
        inner = torch.where(info.accepted[:, None], inner, -inner)
        new = new._replace(momentum=c * inner + sd * z2)
    chance = torch.where(info.accepted, info.acceptance, 1 - info.acceptance)

    def density(x, p, z, w):
        weight = SKEWED.log_prob(x) / tau - p.square().sum(1) / (2 * tau * m)
        return weight - (z.square() + w.square()).sum(1) / 2 + chance.log()

    there = density(x, p, z1, z2)
    z1_back, z2_back = (c * new.momentum - inner) / sd, (c * q - p) / sd
    back_start = kernel.init(new.x, SKEWED)._replace(momentum=-new.momentum)
    end, info_back = kernel.step(back_start, SKEWED, generator=Injected(z1_back, u, z2_back))
    chance = torch.where(info_back.accepted, info_back.acceptance, 1 - info_back.acceptance)
    return there, density(new.x, new.momentum, z1_back, z2_back), end, info


@pytest.mark.parametrize(("m", "tau"), [(1.0, 1.0), (2.0, 0.6)])
@pytest.mark.parametrize("u", [0.0, 1.0])
def test_ghmc_is_reversible_up_to_the_sign_of_the_momentum(m, tau, u, generator):
    """π(x,p) T((x,p), (y,q)) = π(y,q) T((y,−q), (x,−p)), path by path, accepted or not."""
    n = 300
    x, p, q = torch.randn(3, n, 2, generator=generator)
    kernel = GHMC(0.9, 0.7, m, tau)
    assert kernel.facts.reversible
    there, back, end, info = ghmc_paths(kernel, x, p, q, torch.full((n,), u))
    some = (info.acceptance > 1e-8) & (info.acceptance < 1 - 1e-8)
    assert int(some.sum()) > 80
    assert info.accepted[some].all() == (u == 0)
    close(there[some], back[some], 1e-6)
    close(end.x[some], x[some], 1e-9)
    close(end.momentum[some], -p[some], 1e-9)
    if u == 1:  # negative control: without the turn a rejected path does not come back
        _, _, end, _ = ghmc_paths(kernel, x, p, q, torch.full((n,), u), turn=False)
        assert float((end.momentum + p)[some].abs().max()) > 0.1


def test_ghmc_turns_round_on_a_rejection_and_is_obabo_otherwise(generator):
    n = 200
    x, p, z1, z2 = torch.randn(4, n, 2, generator=generator)
    kernel, free = GHMC(0.9, 0.7, 1.3), OBABO(0.9, 0.7, 1.3)
    start = kernel.init(x, SKEWED)._replace(momentum=p)
    new, info = kernel.step(start, SKEWED, generator=Injected(z1, torch.rand(n), z2))
    kinetic = free.init(x, SKEWED)._replace(momentum=p)
    moved, _ = free.step(kinetic, SKEWED, generator=Injected(z1, z2))
    yes = info.accepted
    assert 20 < int(yes.sum()) < n - 10
    close(new.x[yes], moved.x[yes], 1e-12)
    close(new.momentum[yes], moved.momentum[yes], 1e-12)
    c = math.exp(-0.7 * 0.45)
    sd = math.sqrt(1.3 * (1 - c**2))
    assert torch.equal(new.x[~yes], x[~yes])
    close(new.momentum[~yes], (-c * (c * p + sd * z1) + sd * z2)[~yes], 1e-12)


def test_ghmc_at_infinite_friction_is_mala(generator):
    h, m, n = 0.8, 2.0, 100
    x, z = torch.randn(2, n, 2, generator=generator)
    u = torch.rand(n, generator=generator)
    kernel, plain = GHMC(h, math.inf, m), MALA(h**2 / (2 * m))
    new, info = kernel.step(kernel.init(x, SKEWED), SKEWED, generator=Injected(z, u, z))
    other, expected = plain.step(plain.init(x, SKEWED), SKEWED, generator=Injected(z, u))
    close(info.acceptance, expected.acceptance, 1e-11)
    close(new.x, other.x, 1e-11)
