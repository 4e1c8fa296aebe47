"""Kernels with momentum: stationary laws in closed form, orders, and detailed balance."""

import math

import pytest
import torch
from kernel_support import (
    GAUSSIAN,
    I2,
    PRECISION,
    SKEWED,
)
from support import COV, MEAN, close, z_score

from gradlogp import as_target, run
from gradlogp.calculus import kernel_map
from gradlogp.check.conformance.laws import Observed, Quartic
from gradlogp.core import Injected, sum_event
from gradlogp.langevin.kernels import (
    BAOA,
    BAOAB,
    GHMC,
    OBABO,
    SGHMC,
    LeimkuhlerMatthews,
    Splitting,
)

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
