"""Variants of ULA and MALA: averaged noise, tamed drifts, preconditioners that depend on x."""

import math

import pytest
import torch
from kernel_support import DENSE, GAUSSIAN, I2, PRECISION, QUARTIC, SKEWED, grid, product, step
from support import COV, MEAN, close, gauss_hermite, order, seeded

from gradlogp import as_target, run
from gradlogp.check.conformance.laws import hermite
from gradlogp.core import Injected
from gradlogp.langevin.kernels import (
    HMC,
    MALA,
    MCLMC,
    NUTS,
    ULA,
    AdjustedMCLMC,
    LeimkuhlerMatthews,
    PositionDependentULA,
    PreconditionedULA,
    TamedULA,
)
from gradlogp.langevin.kernels.position import matrix_divergence

# ---------------------------------------------------------------------------- averaged noise


def test_leimkuhler_matthews_is_its_formula(generator):
    h, tau = 0.07, 1.7
    kernel = LeimkuhlerMatthews(h, tau)
    x, z1, z2 = torch.randn(3, 5, 2, 3, generator=generator)
    zero = kernel.init(x, SKEWED)
    assert not zero.z.any()
    one, info = kernel.step(zero, SKEWED, generator=Injected(z1))
    two, _ = kernel.step(one, SKEWED, generator=Injected(z2))
    close(one.x, x + h * (1 - x.exp()) + math.sqrt(2 * h * tau) * z1 / 2, 1e-12)
    close(two.x, one.x + h * (1 - one.x.exp()) + math.sqrt(2 * h * tau) * (z1 + z2) / 2, 1e-12)
    assert torch.equal(two.z, z2)
    assert not info.diverging.any()


# ---------------------------------------------------------------------------- tamed


@pytest.mark.parametrize("event", [(1,), (2, 3)])
def test_tamed_is_its_formula(event, generator):
    h, tau = 0.3, 0.6
    x, z = torch.randn(2, 5, *event, generator=generator)
    s = 1 - x.exp()
    noise = math.sqrt(2 * h * tau) * z
    for n, row in enumerate(s):  # the norm is that of one chain
        new, _ = step(TamedULA(h, tau), SKEWED, x, z)
        close(new.x[n], x[n] + h * row / (1 + h * row.norm()) + noise[n], 1e-12)
    new, _ = step(TamedULA(h, tau, coordinatewise=True), SKEWED, x, z)
    close(new.x, x + h * s / (1 + h * s.abs()) + noise, 1e-12)


def test_tamed_walks_in_where_ula_explodes():
    x, h, silent = torch.full((1, 1), 100.0), 0.1, [torch.zeros(1, 1)] * 8
    for coordinatewise in (False, True):
        kernel = TamedULA(h, coordinatewise=coordinatewise)
        chain = run(kernel, QUARTIC, x, 8, generator=Injected(*silent))
        close(chain.state.x, torch.full((1, 1), 92.0), 1e-5)
        assert not chain.info.diverging.any()
    with pytest.raises(FloatingPointError, match=r"1 of 1 chains.*step_size"):
        run(ULA(h, on_nonfinite="raise"), QUARTIC, x, 8, generator=Injected(*silent))
    with pytest.warns(RuntimeWarning, match="1 of 1 chains diverged"):
        assert run(ULA(h), QUARTIC, x, 8, generator=Injected(*silent)).info.diverging.any()


def test_tamed_tends_to_ula(generator):
    x, z = torch.randn(2, 4, 3, generator=generator)
    for coordinatewise in (False, True):
        gaps = []
        for h in (1e-3, 5e-4, 2.5e-4):
            tamed = step(TamedULA(h, coordinatewise=coordinatewise), SKEWED, x, z)[0]
            gaps.append(float((tamed.x - step(ULA(h), SKEWED, x, z)[0].x).norm()))
        close(order(gaps), torch.full((2,), 2.0), 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tamed_drift_never_exceeds_one(dtype):
    """Scores whose squares overflow, and scores of 0, which have no direction."""
    huge = torch.finfo(dtype).max / 10
    for size, expected in ((huge, 2**-0.5), (0.0, 0.0)):
        target = as_target(score=lambda x, size=size: torch.full_like(x, size))
        x = torch.zeros(3, 2, dtype=dtype)
        new, _ = step(TamedULA(0.1, temperature=0.0), target, x, x)
        close(new.x, torch.full_like(x, expected), 1e-6)


# ---------------------------------------------------------------------------- preconditioned

SHAPES = [0.7, torch.tensor([0.4, 1.9], dtype=torch.float64), DENSE]


def matrix(P):
    return P * I2 if not isinstance(P, torch.Tensor) else torch.diag(P) if P.ndim == 1 else P


def root(P):
    w, U = torch.linalg.eigh(matrix(P))
    return U @ torch.diag(w.sqrt()) @ U.mT


@pytest.mark.parametrize("P", SHAPES, ids=["number", "diagonal", "matrix"])
def test_preconditioned_ula_is_its_formula(P, generator):
    h, tau = 0.2, 0.5
    x, z = torch.randn(2, 6, 2, generator=generator)
    new, _ = step(PreconditionedULA(h, P, tau), SKEWED, x, z)
    drift, noise = (1 - x.exp()) @ matrix(P), z @ root(P)
    close(new.x, x + h * drift + math.sqrt(2 * h * tau) * noise, 1e-12)


@pytest.mark.parametrize(
    ("plain", "preconditioned"),
    [
        (ULA(0.3), PreconditionedULA(0.3, DENSE)),
        (MALA(0.3, 1.4), MALA(0.3, 1.4, DENSE)),
        (HMC(0.8, 3, temperature=1.4), HMC(0.8, 3, DENSE, temperature=1.4)),
        (NUTS(0.4), NUTS(0.4, preconditioner=DENSE)),
        (MCLMC(0.3, 1.0), MCLMC(0.3, 1.0, preconditioner=DENSE)),
        (AdjustedMCLMC(0.5, 2), AdjustedMCLMC(0.5, 2, preconditioner=DENSE)),
    ],
    ids=lambda k: type(k).__name__,
)
def test_preconditioning_is_plain_dynamics_in_whitened_coordinates(
    plain, preconditioned, generator
):
    C = root(DENSE)  # x = C y
    white = as_target(
        score=lambda y: SKEWED.score(y @ C) @ C, log_prob=lambda y: SKEWED.log_prob(y @ C)
    )
    y = torch.randn(200, 2, generator=generator)
    go = lambda k, target, x: k.step(k.init(x, target), target, generator=seeded(4))
    (one, info), (two, other) = go(plain, white, y), go(preconditioned, SKEWED, y @ C)
    close(two.x, one.x @ C, 1e-11)
    for name in {"acceptance", "accepted", "energy_change", "n_leapfrog"} & set(info._fields):
        close(getattr(other, name), getattr(info, name), 1e-10)
    wrong, _ = go(plain, SKEWED, y @ C)  # negative control
    assert float((wrong.x - two.x).abs().max()) > 0.1


def G(x):
    """A diagonal: 1 + tanh(x)/2."""
    return 1 + x.tanh() / 2


def div_G(x):
    return (1 - x.tanh() ** 2) / 2


def dense(x):
    """a(x) aᵀ(x) + I with a = (sin x_2, cos x_1): every entry depends on x."""
    a = torch.stack([x[:, 1].sin(), x[:, 0].cos()], -1)
    return a[:, :, None] * a[:, None, :] + torch.eye(2).to(x)


def div_dense(x):
    """Σ_j ∂_j G_ij by hand: ∂_1 sin² = 0, ∂_2 (sin x_2 cos x_1), and so on."""
    u, v = x[:, 0], x[:, 1]
    first = v.cos() * u.cos()  # ∂_1 G_11 + ∂_2 G_12
    second = -u.sin() * v.sin()  # ∂_1 G_21 + ∂_2 G_22, where G_22 does not depend on x_2
    return torch.stack([first, second], -1)


@pytest.mark.parametrize("divergence", [div_G, "autograd"], ids=["by hand", "autograd"])
@pytest.mark.parametrize("event", [(1,), (2, 3)])
def test_diagonal_formula(divergence, event, generator):
    h, tau = 0.2, 0.6
    x, z = torch.randn(2, 7, *event, generator=generator)
    new, info = step(PositionDependentULA(h, G, divergence, tau), SKEWED, x, z)
    drift = G(x) * (1 - x.exp()) + tau * div_G(x)
    close(new.x, x + h * drift + (2 * h * tau * G(x)).sqrt() * z, 1e-12)
    close(new.score, 1 - new.x.exp(), 1e-12)
    assert not info.diverging.any()


@pytest.mark.parametrize("divergence", [div_dense, "autograd"], ids=["by hand", "autograd"])
def test_dense_formula(divergence, generator):
    h, tau = 0.2, 0.6
    x, z = torch.randn(2, 7, 2, generator=generator)
    kernel = PositionDependentULA(h, dense, divergence, tau)
    centre = step(kernel, SKEWED, x, torch.zeros(7, 2))[0].x
    drift = torch.stack([A @ s for A, s in zip(dense(x), 1 - x.exp(), strict=True)])
    close(centre, x + h * (drift + tau * div_dense(x)), 1e-12)
    columns = [step(kernel, SKEWED, x, e.expand(7, 2))[0].x - centre for e in torch.eye(2)]
    root = torch.stack(columns, -1)  # of the noise: any root of 2 h τ G
    close(root @ root.mT, 2 * h * tau * dense(x), 1e-12)
    close(step(kernel, SKEWED, x, z)[0].x, centre + (root @ z[..., None])[..., 0], 1e-12)


def test_a_diagonal_written_as_a_matrix(generator):
    """The same drift, also where G couples the coordinates."""

    def coupled(x):
        return 1 + 1 / (1 + x.square().sum(1, keepdim=True)) + 0 * x

    x, z = torch.randn(2, 5, 3, generator=generator)
    one = PositionDependentULA(0.1, coupled, "autograd")
    two = PositionDependentULA(0.1, lambda x: torch.diag_embed(coupled(x)), "autograd")
    close(step(one, SKEWED, x, z)[0].x, step(two, SKEWED, x, z)[0].x, 1e-12)
    close(matrix_divergence(coupled, x), torch.func.vmap(torch.func.grad(
        lambda v: coupled(v[None])[0, 0]))(x), 1e-12)  # fmt: skip


def test_a_constant_is_preconditioned_ula(generator):
    x, z = torch.randn(2, 5, 2, generator=generator)
    P = torch.tensor([0.5, 2.0])
    kernel = PositionDependentULA(0.1, lambda x: P.expand_as(x), "autograd")
    close(step(kernel, SKEWED, x, z)[0].x,
          step(PreconditionedULA(0.1, P), SKEWED, x, z)[0].x, 1e-12)  # fmt: skip


# ---------------------------------------------------------------------------- the law

STEPS = [0.02, 0.01, 0.005]
TESTS = (lambda x: x**2, torch.sin, lambda x: (1 + x**2).reciprocal(), lambda x: x)
SLOPES = (lambda x: 2 * x, torch.cos, lambda x: -2 * x / (1 + x**2) ** 2, torch.ones_like)


def rates(log_prob, divergence, tau=1.0):
    """The change of E[f] in one step of size h from the law of a log-density, divided by h."""
    (x, z), weight = product(grid(log_prob, -40, 4, 1500), hermite(10))
    found = []
    for h in STEPS:
        new = step(PositionDependentULA(h, G, divergence, tau), SKEWED, x, z)[0].x
        found.append([float((weight * (f(new) - f(x))[:, 0]).sum()) / h for f in TESTS])
    return torch.tensor(found)


def limit(r):
    """The rate at h = 0, extrapolated from h, h/2 and h/4."""
    return (8 * r[2] - 6 * r[1] + r[0]) / 3


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_with_the_divergence_the_law_is_the_target(tau):
    """From exact draws one step changes means by O(h²), as ULA does: the law's error is O(h)."""
    log_p = lambda x: (x - x.exp()) / tau
    for divergence in (div_G, "autograd"):
        found = rates(log_p, divergence, tau)
        close(order(found[:, :3].abs()), torch.ones(2, 3), 0.1)
        close(found[:, 3], torch.zeros(3), 1e-12)  # the drift itself has mean 0
        close(limit(found), torch.zeros(4), 1e-5)


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_without_the_divergence_it_is_the_target_divided_by_g(tau):
    """Claim 15: left out, E[f] changes at the rate −τ E[f' G'] at every step size; p/G is kept."""
    log_p = lambda x: (x - x.exp()) / tau
    x, w = grid(log_p, -40, 4, 1500)
    bias = torch.stack([(w * f(x) * div_G(x)).sum() for f in SLOPES])
    assert float(bias.abs().min()) > 0.005
    close(limit(rates(log_p, torch.zeros_like, tau)), -tau * bias, 1e-5)
    over = lambda x: log_p(x) - G(x).log()
    close(limit(rates(over, torch.zeros_like, tau)), torch.zeros(4), 1e-5)
    if tau != 1:  # nor may τ be left out beside it
        short = rates(log_p, lambda x: div_G(x) / tau, tau)
        close(limit(short), (1 - tau) * bias, 1e-5)


def test_the_law_of_a_dense_one_is_the_target():
    """The same in two dimensions: without div G, E[f] changes at the rate −E[∇f · div G]."""
    (nodes, wx), (z, wz) = gauss_hermite(2, 24), gauss_hermite(2, 5)
    x = MEAN + nodes @ torch.linalg.cholesky(COV).mT
    u, v = x.T
    bias = torch.stack([(wx * term).sum() for term in (
        2 * u * div_dense(x)[:, 0],
        v.cos() * div_dense(x)[:, 1],
        v * div_dense(x)[:, 0] + u * div_dense(x)[:, 1],
    )])  # fmt: skip
    assert float(bias.abs().min()) > 0.02
    weight = torch.outer(wx, wz).flatten()
    x, z = x.repeat_interleave(len(z), 0), z.repeat(len(x), 1)
    f = lambda x: torch.stack([x[:, 0] ** 2, x[:, 1].sin(), x[:, 0] * x[:, 1]])
    for divergence, expected in (("autograd", 0 * bias), (torch.zeros_like, -bias)):
        found = []
        for h in STEPS:
            new = step(PositionDependentULA(h, dense, divergence), GAUSSIAN, x, z)[0].x
            found.append(((f(new) - f(x)) * weight).sum(1) / h)
        close(limit(torch.stack(found)), expected, 1e-4)


def test_newton_direction(generator):
    """G = (−Hessian)⁻¹ on a Gaussian contracts every direction by 1 − h."""
    H = torch.linalg.inv(PRECISION)
    kernel = PositionDependentULA(0.3, lambda x: H.expand(len(x), 2, 2), "autograd", 0.0)
    x = torch.randn(4, 2, generator=generator)
    close(step(kernel, GAUSSIAN, x, x)[0].x - MEAN, 0.7 * (x - MEAN), 1e-12)


def test_a_funnel_stays_finite(generator):
    """Small steps where the target is narrow: G follows the width."""
    target = as_target(log_prob=lambda x: -x[:, 0] ** 2 / 2 - x[:, 0] / 2
                       - x[:, 1] ** 2 * (-x[:, 0]).exp() / 2)  # fmt: skip
    width = lambda x: torch.stack([torch.ones_like(x[:, 0]), x[:, 0].exp()], 1)
    kernel = PositionDependentULA(0.1, width, torch.zeros_like, on_nonfinite="raise")
    x = torch.stack([torch.full((50,), -6.0), torch.zeros(50)], 1)
    assert torch.isfinite(run(kernel, target, x, 50, generator=generator).draws).all()
    assert torch.equal(matrix_divergence(width, x), torch.zeros_like(x))  # each of its entry alone


# ---------------------------------------------------------------------------- refusals


def test_refusals(as_user):
    with pytest.raises(TypeError, match="divergence"):
        PositionDependentULA(0.1, G)
    for bad in (None, "zero", 0.0):
        with pytest.raises(ValueError, match=r"divergence.*wrong law"):
            PositionDependentULA(0.1, G, bad)
    with pytest.raises(ValueError, match=r"G must be a function.*PreconditionedULA"):
        PositionDependentULA(0.1, 2.0, "autograd")
    x = torch.randn(3, 2)
    for bad in (lambda x: x[:, :1].exp(), lambda x: x.exp().sum(), lambda x: x.exp()[None]):
        with pytest.raises(ValueError, match="G must return"):
            step(PositionDependentULA(0.1, bad, torch.zeros_like), SKEWED, x, x)
    for bad in (lambda x: -x.exp(), lambda x: -torch.eye(2).expand(len(x), 2, 2)):
        with pytest.raises(ValueError, match="positive definite"):
            step(PositionDependentULA(0.1, bad, "autograd"), SKEWED, x, x)
    with pytest.raises(ValueError, match="divergence"):
        step(PositionDependentULA(0.1, G, lambda x: x[:, :1]), SKEWED, x, x)
