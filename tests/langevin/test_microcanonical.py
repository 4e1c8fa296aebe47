"""Microcanonical dynamics: exact flows, volumes, and laws by quadrature, without sampling."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from kernel_support import DENSE, SKEWED
from scipy.special import gamma, hyp1f1, roots_genlaguerre, roots_jacobi
from support import close, order, z_score

from gradlogp import as_target
from gradlogp.check.conformance.kernel_paths import orthonormal
from gradlogp.core import Injected, sum_event
from gradlogp.langevin import MCLMC, AdjustedMCLMC, tune_mclmc
from gradlogp.langevin.kernels import Preconditioner
from gradlogp.langevin.kernels.microcanonical import (
    MicrocanonicalState,
    jittered_length,
    partly_renewed,
    path,
    turned,
)

NORMAL = as_target(score=lambda x: -x, log_prob=lambda x: -sum_event(x**2) / 2)
ONE = Preconditioner(1.0)


def unit(v):
    return v / v.norm(dim=1, keepdim=True)


def start(target, x, u):
    return MicrocanonicalState(x, target.score(x), target.log_prob(x), u)


# ---------------------------------------------------------------------------- the turn


def test_the_numbers_of_one_turn():
    u, s = torch.tensor([[0.6, 0.8, 0.0]]), torch.tensor([[1.0, -2.0, 2.0]])
    end, work = turned(u, s, torch.tensor([0.5]))
    close(end, torch.tensor([[0.82439875, 0.31087689, 0.47299287]]), 1e-8)
    close(work, torch.tensor([2 * 0.02036885]), 2e-8)


def test_the_turn_is_the_flow(generator):
    """du = (I − uuᵀ) s/(d − 1) dt, K = ∫ u·s, by a thousand Runge–Kutta steps."""
    u, s = (
        unit(torch.randn(20, 5, generator=generator)),
        3 * torch.randn(20, 5, generator=generator),
    )
    f = lambda u: (s - sum_event(u * s)[:, None] * u) / 4
    h, n, v, work = 0.7, 1000, u, torch.zeros(20)
    for _ in range(n):
        k1 = f(v)
        k2 = f(v + h / n / 2 * k1)
        k3 = f(v + h / n / 2 * k2)
        k4 = f(v + h / n * k3)
        stages = (v, v + h / n / 2 * k1, v + h / n / 2 * k2, v + h / n * k3)
        work = work + h / n / 6 * sum(
            w * sum_event(y * s) for w, y in zip((1, 2, 2, 1), stages, strict=True)
        )
        v = v + h / n / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    end, found = turned(u, s, torch.full((20,), h))
    close(end, v, 1e-11)
    close(found, work, 1e-11)


def test_the_turn_changes_volume_by_what_it_says(generator):
    """|du'/du| on the sphere of R³ = e^{−K}, from two tangent vectors."""
    u, s = (
        unit(torch.randn(50, 3, generator=generator)),
        4 * torch.randn(50, 3, generator=generator),
    )
    t = torch.full((50,), 0.6)
    basis = torch.linalg.svd(u[:, None])[2][:, 1:]  # two rows that span the plane

    def ahead(k):
        push = lambda u: turned(unit(u), s, t)[0]
        return torch.func.jvp(push, (u,), (basis[:, k],))[1]

    pushed = torch.stack([ahead(0), ahead(1)], 1)
    area = torch.linalg.det(pushed @ pushed.mT).sqrt()
    work = turned(u, s, t)[1]
    close(area.log(), -work, 1e-10)
    assert float(work.abs().min()) < 0.5 < float(work.abs().max())


@pytest.mark.parametrize(("dtype", "far"), [(torch.float64, 800.0), (torch.float32, 100.0)])
def test_long_turns_and_turns_from_the_far_pole(dtype, far):
    """Where cosh δ overflows, and where 1 + e·u has no digits."""
    e = torch.tensor([1.0, 0.0], dtype=dtype)
    time = lambda delta: torch.tensor([delta], dtype=dtype)
    tight = 1e-11 if dtype == torch.float64 else 2e-6
    end, work = turned(torch.tensor([[0.0, 1.0]], dtype=dtype), e[None], time(far))
    close(work, time(far - math.log(2)), tight)
    close(end, e[None], tight)
    end, work = turned(torch.tensor([[-1.0, 1e-9]], dtype=dtype), e[None], time(30.0))
    close(work, time(-12.832825999987), tight)
    half = math.exp(-30.0) / 5e-10  # tan θ'/2, θ/2 being 5e-10 short of a right angle
    angle = 2 * math.atan(half)
    close(end, torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=dtype), tight)
    for pole in (1.0, -1.0):  # nothing turns what points along s or against it
        end, work = turned(pole * e[None], e[None], time(far))
        close(end, pole * e[None], tight)
        close(work, time(pole * far), tight)
    end, work = turned(torch.tensor([[0.6, 0.8]], dtype=dtype), 0 * e[None], time(1.0))
    close(end, torch.tensor([[0.6, 0.8]], dtype=dtype), 1e-12)
    assert float(work) == 0


def test_directions_keep_their_length(generator):
    u = unit(torch.randn(100, 3, generator=generator)).float()
    for _ in range(1000):
        s = torch.randn(100, 3, generator=generator).float().exp()
        u = turned(u, s, torch.ones(100))[0]
    close(u.norm(dim=1), torch.ones(100).float(), 3e-7)


# ---------------------------------------------------------------------------- forgetting


@pytest.mark.parametrize(
    ("d", "nu", "expected"), [(10, 0.3, 0.7300156435), (100, 0.05, 0.8950546561)]
)
def test_how_much_of_a_direction_is_left(d, nu, expected):
    """E u·u' in closed form and by quadrature over z·u, and the rest of z, whose square is χ²."""
    closed = gamma((d + 1) / 2) / gamma(d / 2 + 1) * hyp1f1(0.5, d / 2 + 1, -1 / (2 * nu**2))
    close(closed / (nu * math.sqrt(2)), expected, 1e-9)
    a, wa = np.polynomial.hermite_e.hermegauss(60)
    b, wb = roots_genlaguerre(60, (d - 1) / 2 - 1)
    along, across = (torch.as_tensor(v) for v in (a, np.sqrt(2 * b)))
    weight = torch.outer(torch.as_tensor(wa / wa.sum()), torch.as_tensor(wb / wb.sum())).flatten()
    z = torch.zeros(len(weight), d)
    z[:, :2] = torch.cartesian_prod(along, across)
    u = torch.zeros(len(weight), d)
    u[:, 0] = 1
    length = 0.7
    t = torch.full((len(weight),), length / 2 * math.log1p(nu**2 * d))
    end = partly_renewed(u, z, t, length)
    close((weight * end[:, 0]).sum(), expected, 1e-8)
    close(end, unit(u + nu * z), 1e-13)


def test_at_length_zero_a_direction_is_forgotten(generator):
    z, t = torch.randn(5, 3, generator=generator), torch.ones(5)
    u = unit(torch.randn(5, 3, generator=generator))
    assert torch.equal(partly_renewed(u, z, t, 0.0), unit(z))
    close(partly_renewed(u, z, t, 1e-3), unit(z), 1e-12)
    close(partly_renewed(u, z, t, 1e12), u, 1e-5)


# ---------------------------------------------------------------------------- paths

INTEGRATORS = pytest.mark.parametrize("integrator", ["leapfrog", "minimal norm", "two-stage"])


@INTEGRATORS
def test_a_path_undoes_itself_and_the_law_flows_along_it(integrator, generator):
    """Forth and back with −u; log p − K is kept up to W, and W changes its sign."""
    x, u = torch.randn(40, 3, generator=generator), unit(torch.randn(40, 3, generator=generator))
    P, h = Preconditioner(torch.tensor([0.5, 1.0, 2.0]).double()), torch.full((40,), 0.6)
    there = path(start(SKEWED, x, u), SKEWED, h, 4, integrator, P)
    back = path(MicrocanonicalState(*there[:3], -there.direction), SKEWED, h, 4, integrator, P)
    close(back.x, x, 1e-10)
    close(-back.direction, u, 1e-10)
    close(back.work, -there.work, 1e-10)
    steps = start(SKEWED, x, u)
    work = 0.0
    for _ in range(4):  # one at a time: neighbouring turns are one
        end = path(steps, SKEWED, h, 1, integrator, P)
        steps, work = MicrocanonicalState(*end[:4]), work + end.work
    close(end.x, there.x, 1e-11)
    close(work, there.work, 1e-11)
    assert float((there.x - x).abs().min()) > 1e-3


@INTEGRATORS
def test_the_volume_of_a_path(integrator):
    """log |J| = −K over (x, angle), by automatic differentiation in two dimensions."""
    angle = torch.linspace(0.3, 6, 6)
    z = torch.stack([angle.sin(), angle.cos() - 1, angle], 1)

    def go(z):
        x, u = z[None, :2], torch.stack([z[2].cos(), z[2].sin()])[None]
        end = path(start(SKEWED, x, u), SKEWED, torch.full((1,), 0.7), 3, integrator, ONE)
        v = end.direction[0]
        return torch.cat([end.x[0], torch.atan2(v[1], v[0])[None]]), end.work[0]

    J = torch.stack([torch.autograd.functional.jacobian(lambda z: go(z)[0], row) for row in z])
    work = torch.stack([go(row)[1] for row in z])
    close(torch.linalg.det(J).log(), -work, 1e-9)
    assert float(work.abs().max()) > 0.5


@INTEGRATORS
def test_the_order_of_a_step_and_of_a_path(integrator, generator):
    x, u = torch.randn(60, 4, generator=generator), unit(torch.randn(60, 4, generator=generator))
    first = start(SKEWED, x, u)

    def error(h, n):
        end = path(first, SKEWED, torch.full((60,), h), n, integrator, ONE)
        return float((end.work - end.log_prob + first.log_prob).square().mean().sqrt())

    steps = [error(0.05 / 2**k, 1) for k in range(4)]
    paths = [error(0.2 / 2**k, 4 * 2**k) for k in range(4)]
    close(order(steps)[-1], 3.0, 0.1)
    close(order(paths)[-1], 2.0, 0.1)


# ---------------------------------------------------------------------------- laws by quadrature


def gaussian_rule(d, n=40):
    """Points (x, u) and weights of N(0, I_d) times the uniform law, for functions of r² and x·u/r."""
    if d < 1000:
        a, wa = roots_genlaguerre(n, d / 2 - 1)
        c, wc = roots_jacobi(n, (d - 3) / 2, (d - 3) / 2)
    else:  # both laws are nearly normal
        r, c = math.sqrt(d) + np.linspace(-5, 5, n), np.linspace(-7, 7, n) / math.sqrt(d)
        a, wa = r**2 / 2, np.exp((d - 1) * np.log(r / math.sqrt(d)) - (r**2 - d) / 2)
        wc = (1 - c**2) ** ((d - 3) / 2)
    square, cosine = torch.cartesian_prod(torch.as_tensor(2 * a), torch.as_tensor(c)).unbind(1)
    weight = torch.outer(torch.as_tensor(wa / wa.sum()), torch.as_tensor(wc / wc.sum())).flatten()
    x, u = torch.zeros(2, n * n, d)
    x[:, 0], u[:, 0], u[:, 1] = square.sqrt(), cosine, (1 - cosine**2).sqrt()
    return x, u, weight, (torch.as_tensor(a), torch.as_tensor(wa / wa.sum()))


def proposed(kernel, x, u):
    state = kernel.init(x, NORMAL)
    return kernel.step(state, NORMAL, generator=Injected(3 * u, torch.zeros(len(x))))


@INTEGRATORS
@pytest.mark.parametrize(("d", "h", "n"), [(2, 0.5, 3), (3, 0.5, 4), (10, 1.0, 5), (100, 4.0, 3)])
def test_the_mean_of_exp_minus_w_is_one(d, h, n, integrator):
    """What keeps p: with d in place of d − 1 it is 2.25, 1.43, 1.09 and .998."""
    x, u, weight, _ = gaussian_rule(d, 120 if d < 10 else 40)
    _, info = proposed(AdjustedMCLMC(h, n, jitter=False, integrator=integrator), x, u)
    W = info.energy_change
    close((weight * (-W).exp()).sum(), 1.0, {2: 2e-5, 3: 5e-8}.get(d, 1e-10))
    close(info.acceptance, (-W).clamp(max=0).exp(), 1e-13)
    assert float((weight * W.square()).sum()) > 1e-9


@pytest.mark.parametrize(
    ("d", "h", "n", "expected"), [(10, 1.0, 5, 0.98624), (100, 4.0, 3, 0.943183)]
)
def test_the_acceptance_on_a_gaussian(d, h, n, expected):
    x, u, weight, _ = gaussian_rule(d, 120)
    _, info = proposed(AdjustedMCLMC(h, n, jitter=False), x, u)
    close((weight * info.acceptance).sum(), expected, 1e-5)


BIAS = [
    (2, 0.25, 4, 0.0044234, -0.0005779), (10, 0.5, 6, 0.0022982, -0.0002989),
    (10, 1.0, 3, 0.0092532, -0.0012155), (10, 2.0, 2, 0.0377574, -0.0051596),
    (100, 2.5, 4, 0.0052830, -0.0006896), (100, 5.0, 2, 0.0214068, -0.0028518),
    (100, 10.0, 1, 0.0902699, -0.0130009), (10, 0.5 * math.sqrt(10), 1, None, None),
]  # fmt: skip


def stationary_bias(d, h, n, integrator, degree=8):
    """E|x|²/d − 1 under what n steps and a new direction keep on N(0, I_d).

    The law is g p with a polynomial g in |x|² such that polynomials keep their means.
    """
    x, u, weight, rule = gaussian_rule(d, 160 if d == 2 else 60)
    end = path(start(NORMAL, x, u), NORMAL, torch.full((len(x),), h), n, integrator, ONE)
    basis = orthonormal(rule, degree)
    now, then = (basis(sum_event(v**2) / 2) for v in (x, end.x))
    change = ((then - now) * weight[:, None]).mT @ now
    g = torch.linalg.lstsq(change[1:, 1:], -change[1:, :1]).solution[:, 0]
    moment = (now * (weight * (sum_event(x**2) / d - 1))[:, None]).sum(0)
    return float(moment[1:] @ g)


@pytest.mark.parametrize(("d", "h", "n", "leapfrog", "minimal"), BIAS)
def test_the_bias_without_correction(d, h, n, leapfrog, minimal):
    if leapfrog is None:  # d = 10, h = √d/2: the leading term vanishes for λ = (3 − √3)/6
        close(stationary_bias(d, h, n, "two-stage"), -1.127e-4, 1e-3, 1e-7)
        assert abs(stationary_bias(d, h, n, "minimal norm")) > 1e-3
        return
    tight = 2e-6 if d == 2 else 1e-7
    close(stationary_bias(d, h, n, "leapfrog"), leapfrog, 1e-5, tight)
    close(stationary_bias(d, h, n, "minimal norm"), minimal, 1e-4, tight)


@pytest.mark.parametrize(
    ("d", "leapfrog", "minimal"),
    [(2, 0.62659, 1.06520), (10, 1.93569, 3.53148), (100, 6.49381, 12.05728),
     pytest.param(1000, 20.65387, 38.41943, marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_step_of_a_given_variance_of_the_energy(d, leapfrog, minimal):
    """Var(W)/d = 5e-4 at these steps, h ∝ √d, and ∝ h⁶ around them."""
    x, u, weight, _ = gaussian_rule(d, 24 if d == 1000 else 60)

    def evpd(integrator, h):
        kernel = MCLMC(h, 0.0, integrator)
        state = kernel.init(x, NORMAL)
        W = kernel.step(state, NORMAL, generator=Injected(2 * u))[1].energy_change
        mean = (weight * W).sum()
        return float((weight * (W - mean).square()).sum()) / d

    for integrator, h in (("leapfrog", leapfrog), ("minimal norm", minimal)):
        close(evpd(integrator, h), 5e-4, 1e-3 if d == 2 else 2e-5, 0)
        close(evpd(integrator, h / 8) / evpd(integrator, h / 16), 64.0, 0.1 if d == 2 else 0.02)
    if d == 100:  # h = √d/2: from 2.0e-6 to 2.1e-9 a dimension
        close(evpd("minimal norm", 5.0), 2.0e-6, 0.05, 0)
        close(evpd("two-stage", 5.0), 2.1e-9, 0.05, 0)


# ---------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("length", [0.0, 2.0])
@pytest.mark.parametrize("P", [torch.eye(2).double(), DENSE], ids=["unit", "dense"])
def test_the_adjusted_kernel_is_reversible(length, P, generator):
    """π(x, u) a = π(x', u') a_back |J|, with J = e^{−K}, point by point, and W_back = −W."""
    n = 300
    x, z, other = torch.randn(3, n, 2, generator=generator)
    P = Preconditioner(P)
    kernel = AdjustedMCLMC(0.7, 3, False, length, "leapfrog", P)
    state = kernel.init(x, SKEWED)._replace(direction=unit(other))
    u = partly_renewed(unit(other), z, torch.full((n,), 2.1), length)
    new, info = kernel.step(state, SKEWED, generator=Injected(z, torch.zeros(n)))
    yes = info.accepted
    end = path(start(SKEWED, x, u), SKEWED, torch.full((n,), 0.7), 3, "leapfrog", P)
    close(new.x[yes], end.x[yes], 1e-12)
    close(new.direction[yes], end.direction[yes], 1e-12)
    full = AdjustedMCLMC(0.7, 3, False, 0.0, "leapfrog", P)
    sane = yes & (end.log_prob > -600)
    assert int(sane.sum()) > 250
    back = full.step(
        full.init(end.x[sane], SKEWED), SKEWED,
        generator=Injected(-end.direction[sane], torch.zeros(int(sane.sum()))),
    )[1]  # fmt: skip
    W = info.energy_change[sane]
    close(back.energy_change, -W, 1e-7)
    there = SKEWED.log_prob(x)[sane] + info.acceptance[sane].log()
    here = end.log_prob[sane] + back.acceptance.log() - end.work[sane]
    close(there, here, 1e-7)
    stay, _ = kernel.step(state, SKEWED, generator=Injected(z, torch.ones(n)))
    assert torch.equal(stay.x, x)
    close(stay.direction, -u, 1e-13)  # turned round on a rejection


def test_paths_have_the_lengths_they_should(generator):
    calls = []
    target = as_target(score=lambda x: calls.append(1) or -x, log_prob=NORMAL.log_prob)
    x = torch.randn(5, 3, generator=generator)
    for jitter, scores in ((True, 1), (False, 1), (True, 2)):
        kernel = AdjustedMCLMC(
            0.3, 3, jitter, integrator="leapfrog" if scores == 1 else "two-stage"
        )
        state = kernel.init(x, target)
        for k in range(6):
            calls.clear()
            state, _ = kernel.step(state, target, generator=generator)
            assert len(calls) == scores * (jittered_length(3, k) if jitter else 3)
            assert state.step.tolist() == [k + 1] * 5


def test_the_law_of_new_directions_is_uniform(generator):
    for kernel in (MCLMC(0.1, 1.0), AdjustedMCLMC(0.1, 2)):
        state = kernel.refresh(kernel.init(torch.zeros(20_000, 3), NORMAL), generator=generator)
        close(state.direction.norm(dim=1), torch.ones(20_000), 1e-12)
        for k in range(3):  # uniform on [−1, 1], after Archimedes
            c = state.direction[:, k]
            assert abs(z_score(c, 0.0)) < 4.5
            assert abs(z_score(c**2, 1 / 3)) < 4.5
            assert abs(z_score(c**4, 1 / 5)) < 4.5


@pytest.mark.slow
def test_order_of_the_bias_off_a_gaussian(generator):
    """E x² of a quartic in two dimensions: with a fourth of the step a sixteenth of the bias."""
    target = as_target(score=lambda x: -(x**3), log_prob=lambda x: -sum_event(x**4) / 4)
    exact = 2 * math.gamma(0.75) / math.gamma(0.25)
    n = 4000

    def bias(h, steps):
        kernel, total, at = MCLMC(h, 1.0), [], torch.randn(n, 2, generator=generator) * exact**0.5
        state = kernel.refresh(kernel.init(at, target), generator=generator)
        for k in range(steps):
            state, _ = kernel.step(state, target, generator=generator)
            if k * h > 10:
                total.append(state.x.square().mean(1))
        mean = torch.stack(total).mean(0) - exact
        return float(mean.mean()), float(mean.std()) / math.sqrt(n)

    (large, error), (small, other) = bias(0.8, 500), bias(0.4, 1000)
    assert MCLMC(0.1, 1.0).facts.order == 2
    assert abs(large / 4 - small) < 4.5 * math.hypot(error / 4, other) + large / 16
    assert large > 20 * error
    assert abs(large / 2 - small) > 4.5 * math.hypot(error / 2, other)  # not of order one


# ---------------------------------------------------------------------------- tuning


@pytest.mark.parametrize(
    ("integrator", "step", "bias", "begin", "P", "scale"),
    [
        ("leapfrog", 6.49381, 0.0365, 100.0, 1.0, 3.0),
        ("minimal norm", 12.05728, -0.02, 0.01, 9.0, 1.0),
    ],
)
def test_tuning_finds_the_step_and_the_length(integrator, step, bias, begin, P, scale, generator):
    """N(0, 9 I) in 100 dimensions. The chains keep the biased law, where W varies 5 % less or more."""
    target = as_target(score=lambda x: -x / 9, log_prob=lambda x: -sum_event(x**2) / 18)
    x = 3 * torch.randn(20, 100, generator=generator)
    kernel = MCLMC(begin, 1.0, integrator, P)
    found = tune_mclmc(kernel, target, x, 200, generator=generator)
    close(found.step_size, scale * step, 0.04, 0)
    close(found.decoherence_length, scale * 10 * math.sqrt(1 + bias), 0.02, 0)
    assert dataclasses.replace(found, step_size=begin, decoherence_length=1.0) == kernel


def test_tuning_smaller_variances_and_chains_that_diverge(generator):
    x = torch.rand(20, 10, generator=generator)
    steps = [
        tune_mclmc(
            MCLMC(0.1, 1.0), NORMAL, x, 200, energy_variance=v, generator=generator
        ).step_size
        for v in (5e-4, 5e-4 / 64)
    ]
    close(steps[0], 1.93569, 0.05, 0)
    close(steps[0] / steps[1], 2.0, 0.1, 0)
    cliff = as_target(  # a step of 50 leaves the cube, where there is no density
        score=lambda x: torch.zeros_like(x),
        log_prob=lambda x: torch.where((x.abs() < 2).all(1), 0.0, -torch.inf),
    )
    tuned = tune_mclmc(MCLMC(50.0, 1.0), cliff, x, 100, generator=generator)
    assert tuned.step_size < 5


def test_tuning_refuses(as_user):
    x, kernel = torch.zeros(3, 2), MCLMC(0.1, 1.0)
    with pytest.raises(ValueError, match="n_steps must be an integer of at least 30, got 5"):
        tune_mclmc(kernel, NORMAL, x, 5)
    with pytest.raises(ValueError, match="energy_variance"):
        tune_mclmc(kernel, NORMAL, x, 50, energy_variance=0.0)
    with pytest.raises(ValueError, match="x must"):
        tune_mclmc(kernel, NORMAL, x[0], 50)


# ---------------------------------------------------------------------------- not finite, refused


def test_a_chain_that_leaves_the_finite_numbers_turns_round():
    wall = as_target(score=lambda x: torch.where(x > 1, torch.nan, -x), log_prob=NORMAL.log_prob)
    x = torch.tensor([[0.9, 0.0], [0.0, 0.0]])
    kernel = MCLMC(0.5, 1e9)
    state = kernel.init(x, wall)
    new, info = kernel.step(state, wall, generator=Injected(torch.ones(2, 2)))
    assert info.diverging.tolist() == [True, False]
    assert torch.equal(new.x[0], x[0])
    close(new.direction[0], -state.direction[0], 1e-4)
    assert info.energy_change[0] == math.inf
    assert torch.isfinite(torch.cat([v.flatten() for v in new])).all()
    _, info = kernel.step(new, wall, generator=Injected(torch.ones(2, 2)))
    assert not info.diverging.any()
    with pytest.raises(FloatingPointError, match="1 of 2 chains"):
        dataclasses.replace(kernel, on_nonfinite="raise").step(
            state, wall, generator=Injected(torch.ones(2, 2))
        )


@pytest.mark.parametrize("make", [lambda **k: MCLMC(**{"decoherence_length": 1.0, **k}),
                                  lambda **k: AdjustedMCLMC(**{"n_steps": 3, **k})])  # fmt: skip
def test_bad_arguments(make, as_user):
    with pytest.raises(ValueError, match="step_size"):
        make(step_size=torch.tensor([0.1, 0.0]))
    with pytest.raises(ValueError, match=r"two dimensions or more.*HMC.*add a coordinate"):
        make(step_size=0.1).init(torch.zeros(3, 1), NORMAL)
    with pytest.raises(ValueError, match="log-density"):
        make(step_size=0.1).init(torch.zeros(3, 2), as_target(score=lambda x: -x))
