"""Langevin on a sphere: exact transition operators on the circle, detailed balance, moments on S²."""

import math

import pytest
import torch
from support import close, order, z_score

from gradlogp import as_target, run
from gradlogp.core import Injected
from gradlogp.distributions.analytic.bessel import bessel_ratio
from gradlogp.distributions.analytic.directional import Directional
from gradlogp.langevin.kernels.sphere import (
    SphereMALA,
    SphereULA,
    geodesic,
    tangent,
)

KAPPA = 1.3


def fisher(eta):
    """The von Mises–Fisher law, with a part of the score across the sphere that must not matter."""
    return as_target(
        log_prob=lambda x: x @ eta + 0.7 * x.square().sum(1), score=lambda x: eta + 1.4 * x
    )


def on_sphere(n, d, radius=1.0, generator=None):
    z = torch.randn(n, d, generator=generator)
    return radius * z / z.norm(dim=1, keepdim=True)


def circle_moments(kernel, kappa, radius=1.0, modes=24, n_angles=96):
    """E cos(mθ) under the stationary law of the kernel, from its transition operator.

    The operator comes from the kernel itself, with noise on a grid; its matrix on e^{imθ} by FFT.
    """
    angle = torch.arange(n_angles) * (2 * math.pi / n_angles)
    nodes = torch.linspace(-8, 8, 129)
    weight = torch.exp(-(nodes**2) / 2)
    weight = weight / weight.sum()
    theta, w = (v.reshape(-1) for v in torch.meshgrid(angle, nodes, indexing="ij"))
    x = radius * torch.stack([theta.cos(), theta.sin()], 1)
    along = torch.stack([-theta.sin(), theta.cos()], 1)
    z = w[:, None] * along + 17.0 * x  # the part across must be projected out
    target = fisher(torch.tensor([kappa / radius, 0.0]))
    state, _ = kernel.step(kernel.init(x, target), target, generator=Injected(z))
    after = torch.atan2(state.x[:, 1], state.x[:, 0]).reshape(n_angles, -1)
    m = torch.arange(-modes, modes + 1)
    Kf = (torch.exp(1j * m * after[..., None]) * weight[:, None]).sum(1)  # (angle, m)
    coefficients = torch.fft.fft(Kf, dim=0) / n_angles  # row k: that of e^{ikθ}
    matrix = coefficients[m % n_angles].T  # μ_m = Σ_k matrix[m, k] μ_k
    free = m != 0
    A = torch.eye(len(m) - 1) - matrix[free][:, free]
    mu = torch.linalg.solve(A, matrix[free][:, ~free])[:, 0]
    return mu[modes].real  # m = 1


def expected_slope(kappa):
    """First order of the bias of ULA in E cos θ: Cov(g, cos θ), g = ¼ U'² − ½ U''."""
    theta = torch.arange(400) * (2 * math.pi / 400)
    p = torch.softmax(kappa * theta.cos(), 0)
    g = (kappa * theta.sin()).square() / 4 - kappa * theta.cos() / 2
    g = g - (p * g).sum()
    return float((p * g * theta.cos()).sum())


# ---------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("d", [2, 3, 7])
def test_geodesics(d, generator):
    x = on_sphere(20, d, 1.7, generator)
    v = tangent(x, 3 * torch.randn(20, d, generator=generator))
    close((v * x).sum(1), torch.zeros(20), 1e-12)
    y, velocity = geodesic(x, v, 1.7)
    close(y.norm(dim=1), torch.full((20,), 1.7), 1e-12)
    close((y * velocity).sum(1), torch.zeros(20), 1e-12)
    close(velocity.norm(dim=1), v.norm(dim=1), 1e-12)
    back = geodesic(y, -velocity, 1.7)
    close(back.x, x, 1e-12)
    close(back.velocity, -v, 1e-11)
    # the velocity is the derivative of the end in time, and a short one is the point plus v
    ahead, behind = (geodesic(x, (1 + e) * v, 1.7).x for e in (1e-5, -1e-5))
    close((ahead - behind) / 2e-5, velocity, 1e-7)
    close(geodesic(x, 1e-9 * v, 1.7).x, x + 1e-9 * v, 1e-15)
    close(geodesic(x, 0 * v, 1.7).x, x, 1e-15)


# ---------------------------------------------------------------------------- exact laws


def test_uniform_law_is_kept_and_decays_as_it_must():
    """On the circle E[x' | x] = e^{−h/r²} x exactly; with another power of 2 or of r it is not."""
    nodes = torch.linspace(-8, 8, 161)
    weight = torch.exp(-(nodes**2) / 2)
    weight = weight / weight.sum()
    flat = as_target(log_prob=lambda x: 0 * x[:, 0], score=torch.zeros_like)
    for h, r in ((0.3, 1.0), (0.3, 2.0)):
        x = torch.tensor([[0.0, r]]).expand(161, 2)
        kernel = SphereULA(h, r)
        z = torch.stack([nodes, torch.full_like(nodes, 5.0)], 1)
        y = kernel.step(kernel.init(x, flat), flat, generator=Injected(z))[0].x
        close(weight @ y, torch.tensor([0.0, r * math.exp(-h / r**2)]), 1e-12)


def test_bias_is_of_order_h_with_its_constant():
    exact = float(bessel_ratio(2, torch.tensor(KAPPA)).A)
    steps = [0.08, 0.04, 0.02, 0.01]
    biases = [float(circle_moments(SphereULA(h), KAPPA)) - exact for h in steps]
    close(order([abs(b) for b in biases])[-1], float(SphereULA.facts.order), 0.02)
    close(2 * biases[3] / 0.01 - biases[2] / 0.02, expected_slope(KAPPA), 1e-3)
    assert abs(biases[-1]) > 1e-4  # there is a bias to speak of


def test_radius_is_a_unit_of_length():
    """The circle of radius r with step h r² is the unit circle with step h."""
    close(
        circle_moments(SphereULA(0.1 * 2.5**2, 2.5), KAPPA, 2.5),
        circle_moments(SphereULA(0.1), KAPPA), 1e-11,
    )  # fmt: skip


@pytest.mark.parametrize("h", [0.05, 0.7, 6.0])  # the last goes round the sphere
@pytest.mark.parametrize("d", [2, 3, 6])
def test_detailed_balance_pointwise(d, h, generator):
    """p(x) N(p) a(x → y) = p(y) N(p') a(y → x), for the momentum that leads back."""
    tau, radius = 1.4, 1.3
    eta = torch.linspace(-1, 2, d)
    target, kernel = fisher(eta), SphereMALA(h, radius, tau)
    x = on_sphere(200, d, radius, generator)
    z = torch.randn(200, d, generator=generator)
    accept = torch.zeros(200)
    state, info = kernel.step(kernel.init(x, target), target, generator=Injected(z, accept))
    assert info.accepted.all()
    y, eps = state.x, math.sqrt(2 * h)
    p = math.sqrt(tau) * tangent(x, z) + eps / 2 * tangent(x, target.score(x))
    arrived = geodesic(x, eps * p, radius).velocity / eps
    z_back = -(arrived + eps / 2 * tangent(y, target.score(y))) / math.sqrt(tau)
    state, back = kernel.step(kernel.init(y, target), target, generator=Injected(z_back, accept))
    close(state.x, x, 1e-9)
    forward = target.log_prob(x) / tau - tangent(x, z).square().sum(1) / 2
    backward = target.log_prob(y) / tau - z_back.square().sum(1) / 2
    close(forward + info.acceptance.log(), backward + back.acceptance.log(), 1e-8)
    assert float(info.acceptance.min()) < 0.999
    assert kernel.facts.reversible


def test_same_proposal_as_the_unadjusted_kernel(generator):
    target, x = fisher(torch.tensor([1.0, -2.0, 0.5])), on_sphere(50, 3, 1.0, generator)
    z = torch.randn(50, 3, generator=generator)
    kernels = SphereULA(0.2, temperature=0.6), SphereMALA(0.2, temperature=0.6)
    noises = Injected(z), Injected(z, torch.zeros(50))
    a, b = (
        k.step(k.init(x, target), target, generator=g)[0].x
        for k, g in zip(kernels, noises, strict=True)
    )
    close(a, b, 1e-12)


# ---------------------------------------------------------------------------- statistics on S²


@pytest.mark.parametrize("kernel", [SphereMALA(0.4), SphereULA(0.4)], ids=["mala", "ula"])
def test_moments_on_the_sphere(kernel, generator):
    """E x = A_3(κ) μ with A_3 = coth κ − 1/κ, from independent chains; ULA at this h is off."""
    kappa, mu = 2.0, torch.tensor([2.0, -1.0, 2.0]) / 3
    target = fisher(kappa * mu)
    x0 = on_sphere(4000, 3, 1.0, generator)
    chain = run(kernel, target, x0, 90, burn_in=30, generator=generator)
    cosine = (chain.draws @ mu).mean(1)
    exact = 1 / math.tanh(kappa) - 1 / kappa
    close(exact, bessel_ratio(3, torch.tensor(kappa)).A, 1e-12)
    z = z_score(cosine, exact)
    across = z_score((chain.draws @ torch.tensor([1.0, 2.0, 0.0])).mean(1), 0.0)
    assert abs(across) < 4.5
    assert abs(z) < 4.5 if kernel.facts.exact else abs(z) > 10
    second = (chain.draws @ mu).square().mean(1)
    if kernel.facts.exact:
        assert abs(z_score(second, 1 - 2 * exact / kappa)) < 4.5
    close(chain.draws.norm(dim=2), torch.ones(4000, 60), 1e-12)


def test_noised_law_of_a_model_can_be_the_target(generator):
    """The exact noised score on the sphere is a tangent field of von Mises–Fisher again."""
    eta, sigma = torch.tensor([0.0, 1.5, 0.0, 1.0]), 0.3
    law = Directional(torch.ones(()), eta, torch.tensor(sigma), torch.float64)
    x = on_sphere(9, 4, 1.0, generator)
    s = tangent(x, law.score(x))
    a = x / sigma**2 + eta
    gain = bessel_ratio(4, a.norm(dim=1)).A_over_k / sigma**2
    close(s, gain[:, None] * tangent(x, eta.expand(9, 4)), 1e-9)


# ---------------------------------------------------------------------------- conduct


def test_gradient_flow_climbs_to_the_mode(generator):
    target, x = fisher(torch.tensor([0.0, 3.0, 4.0])), on_sphere(20, 3, 1.0, generator)
    chain = run(SphereULA(0.05, temperature=0), target, x, 400, burn_in=399, generator=generator)
    close(chain.draws[:, -1], torch.tensor([[0.0, 0.6, 0.8]]).expand(20, 3), 1e-6)


def test_a_score_that_is_not_finite_freezes_the_chain(generator):
    bad = as_target(score=lambda x: torch.where(x[:, :1] > 0, torch.nan, 0.0) * x)
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    kernel = SphereULA(0.1)
    state, info = kernel.step(kernel.init(x, bad), bad, generator=generator)
    assert info.diverging[0]
    assert torch.equal(state.x[0], x[0])


@pytest.mark.parametrize("kernel", [SphereULA, SphereMALA], ids=["ula", "mala"])
def test_refusals(kernel, as_user):
    target = fisher(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="off by 1 of it; divide"):
        kernel(0.1).init(torch.tensor([[2.0, 0.0]]), target)
    with pytest.raises(ValueError, match="two coordinates"):
        kernel(0.1).init(
            torch.ones(3, 1), as_target(score=lambda x: x, log_prob=lambda x: x[:, 0])
        )
    if kernel is SphereMALA:
        with pytest.raises(ValueError, match="temperature"):
            kernel(0.1, temperature=0)
