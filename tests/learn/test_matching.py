"""Score matching without noise, and on manifolds: values, minimisers, what is refused."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from support import COV, MEAN, close, gauss_hermite, z_score

from gradlogp import Gaussian, as_score, as_target, objectives
from gradlogp.calculus.reverse import GradientField, score_from_log_prob
from gradlogp.core import Injected, Streams
from gradlogp.distributions import VonMisesCircle
from gradlogp.distributions.analytic.bessel import bessel_ratio
from gradlogp.distributions.analytic.directional import Directional
from gradlogp.learn.objectives import denoising, sliced_vr
from gradlogp.learn.objectives.manifold import (
    implicit_on_sphere,
    normal_denoising,
    tangent_normal_denoising,
    tangential,
    von_mises_fisher,
)
from gradlogp.noise.schedules import VP

W = torch.tensor([[-0.9, 0.4], [-0.2, -1.7]], dtype=torch.float64)
C = torch.tensor([0.3, -0.5], dtype=torch.float64)
P = torch.linalg.inv(COV)
ESTIMATES = ["sliced", "sliced_vr", "finite_difference"]


def affine(W, c):
    return lambda x: x @ W.mT + c


def values(S=COV):
    """ISM, ESM and ½ E‖s‖² of s = W x + c on N(MEAN, S) (Hyvärinen, 2005)."""
    v = W @ MEAN + C
    ism = torch.trace(W) + 0.5 * (torch.trace(W @ S @ W.mT) + v @ v)
    esm = 0.5 * (torch.trace((W + P) @ S @ (W + P).mT) + v @ v)
    return ism, esm, torch.trace(P) / 2


def quadrature():
    nodes, weight = gauss_hermite(2)
    return MEAN + nodes @ torch.linalg.cholesky(COV).mT, weight


# ---------------------------------------------------------------------------- values


def test_energies_and_their_laplacian():
    x, weight = quadrature()
    A = torch.tensor([[2.0, 0.3], [0.3, 0.7]])
    energy = lambda y: 0.5 * ((y - 1) @ A * (y - 1)).sum(1)
    v = -A @ (MEAN - 1)
    expected = -torch.trace(A) + 0.5 * (torch.trace(A @ COV @ A) + v @ v)
    for score in (GradientField(lambda y: -energy(y)), as_target(energy=energy).score):
        close(weight @ objectives.implicit(score, x), expected, 1e-12)
    # downhill: with the sign turned the trace changes sign and the norm does not
    wrong = weight @ objectives.implicit(GradientField(energy), x)
    close(wrong - expected, 2 * torch.trace(A), 1e-12)


def test_slices_are_averaged(generator):
    x = Gaussian(MEAN, COV).sample(20_000, generator=generator)
    for name in ESTIMATES:
        one, ten = (
            getattr(objectives, name)(
                affine(W, C), x[:1].expand(20_000, 2), n, generator=generator
            )
            for n in (1, 10)
        )
        ratio = float((one.var() / ten.var()).detach())
        assert abs(ratio - 10) < 10 * 4 * math.sqrt(4 / 20_000) * 2, (name, ratio)


def cubic(x):
    return -(x**3) - x


def test_finite_differences_have_no_first_order_bias(generator):
    x = torch.randn(2000, 3, generator=generator)
    same = lambda: torch.Generator().manual_seed(1)
    exact = objectives.sliced_vr(cubic, x, generator=same()).mean()
    errors = [
        float(objectives.finite_difference(cubic, x, step=h, generator=same()).mean() - exact)
        for h in (0.2, 0.1, 0.05)
    ]
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - 2) < 0.05
    default = objectives.finite_difference(cubic, x, generator=same())
    close(default.mean(), exact, 1e-8)
    in_single = objectives.finite_difference(cubic, x.float(), generator=same())
    assert in_single.dtype == torch.float32
    close(in_single.mean(), exact.float(), 2e-4)
    # far from the origin the step grows with x, so that x ± h v differ from x
    shifted = lambda y: 1e6 - y
    far = objectives.finite_difference(shifted, x.float() + 1e6, generator=same())
    exact = objectives.sliced_vr(shifted, x.float() + 1e6, generator=same())
    close(far.mean(), exact.mean(), 1e-3)


# ---------------------------------------------------------------------------- boundaries


def test_generalised_matching_is_its_formula(generator):
    x = torch.rand(7, 2, generator=generator)
    score = lambda y: -y.exp() + y.roll(1, 1)
    g, dg = x * x, 2 * x
    expected = (dg * score(x) - g * x.exp() + 0.5 * g * score(x) ** 2).sum(1)
    close(objectives.generalised(score, x), expected, 1e-12)
    g, dg = (x + 1) * (3 - x), 2 - 2 * x
    expected = (dg * score(x) - g * x.exp() + 0.5 * g * score(x) ** 2).sum(1)
    close(objectives.generalised(score, x, objectives.box(-1, 3)), expected, 1e-12)
    ones = objectives.generalised(score, x, torch.ones_like)
    close(ones, objectives.implicit(score, x), 1e-12)
    many = objectives.generalised(score, x[:1].expand(20_000, 2), n_slices=1, generator=generator)
    assert abs(z_score(many, float(objectives.generalised(score, x[:1])))) < 4


# ---------------------------------------------------------------------------- bad input


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize("name", ["implicit", "explicit", "generalised", "denoising", *ESTIMATES])
def test_bad_input_is_refused_by_name(name):
    f = getattr(objectives, name)
    extra: dict[str, Any] = {}
    if name == "explicit":
        extra["target_score"] = lambda y: -y
    if name == "denoising":
        extra["sigma"] = 0.5
    good = lambda y: -y
    cases = [
        (torch.ones(3), r"x must have shape \(B, \*event\)"),
        (torch.ones(3, 2, dtype=torch.int64), "x must be floating point"),
        (torch.ones(0, 2), "x is empty"),
        (torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), "x has 1 of 2 rows that are not finite"),
        (torch.tensor([[1.0, torch.inf], [torch.inf, 1.0]]), "x has 2 of 2 rows"),
        ([[1.0, 2.0]], "x must be a torch.Tensor, got list"),
    ]
    for x, message in cases:
        with pytest.raises(ValueError, match=message):
            f(good, x, **extra)
    wrong = [lambda y: -y[:, :1], lambda y: -y.sum(1), lambda y: -y[:, None]]
    for score in wrong:  # (B, 1, d) would broadcast to (B, B, d)
        with pytest.raises(ValueError, match=r"returned shape \(4.*for x of \(4, 2\)|size"):
            f(score, torch.rand(4, 2), **extra)
    large = torch.tensor([[3e38, 3e38], [0.5, 0.5]]).float() * 0.9e-19  # its squares overflow
    if name == "generalised":
        with pytest.raises(ValueError, match="weight has 1 of 2 rows that are not finite"):
            f(good, large, **extra)
    else:
        assert not f(good, large, **extra).isnan().any()


@pytest.mark.usefixtures("as_user")
def test_bad_options_are_refused_by_name():
    x, s = torch.rand(4, 2), lambda y: -y
    for step in (0.0, -1e-3, float("nan"), float("inf"), torch.ones(4)):
        with pytest.raises(ValueError, match="step must be positive"):
            objectives.finite_difference(s, x, step=step)
    with pytest.raises(ValueError, match="target_score returned shape"):
        objectives.explicit(s, x, lambda y: y.sum(1))
    for sigma in (0.0, -0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sigma must be positive"):
            objectives.denoising(s, x, sigma)
    with pytest.raises(ValueError, match=r"x must be non-negative, got a minimum of -0\.5"):
        objectives.generalised(s, x - 0.5 - x.min())
    with pytest.raises(ValueError, match=r"x must lie in \[0.0, 0.1\]"):
        objectives.generalised(s, x + 1, objectives.box(0.0, 0.1))
    with pytest.raises(ValueError, match="low must be below high"):
        objectives.box(1.0, 1.0)
    with pytest.raises(ValueError, match="weight must be at least 0"):
        objectives.generalised(s, x, lambda y: -y)
    with pytest.raises(ValueError, match="weight varies with x, but not through differentiable"):
        objectives.generalised(s, x, lambda y: y.detach() ** 2)
    for number in (lambda y: 1.0, lambda y: None):
        for name in ("implicit", "sliced", "finite_difference", "generalised"):
            says = r"must return a torch\.Tensor, got|returned shape (float|NoneType)"
            with pytest.raises(ValueError, match=says):
                getattr(objectives, name)(number, x)
    with pytest.raises(ValueError, match=r"t must be a torch\.Tensor, got 0\.5"):
        objectives.multilevel(as_score(lambda y, t: -y, "score", VP()), x, 0.5)
    with pytest.raises(ValueError, match="weight returned shape"):
        objectives.generalised(s, x, lambda y: y.sum(1))
    cut = lambda y: -y.detach()
    for name in ("implicit", "generalised", "sliced", "sliced_vr"):
        with pytest.raises(ValueError, match="does not depend on x through differentiable"):
            getattr(objectives, name)(cut, x)


# On manifolds every loss is ½ E‖s − s*‖² plus a constant. With the noise on a grid both sides are
# sums, so that loss(s* + φ) − loss(s*) = ½ E‖φ‖² has to hold to rounding, for any φ, and fails for
# any other s*.

R, K_0 = 0.8, 1.5


def perturbation(x):
    """A generic field: smooth, with parts in every direction."""
    a, b = x[:, 0], x[:, 1]
    return torch.stack([0.3 + 0.5 * b + 0.6 * a, a.square() - 0.4 - 0.2 * a * b], 1)


def circle_grid(k_0, n_angles=64, reach=9.0, n_nodes=97, both=False):
    """Points of the circle of radius R, normals, noise, tangents and weights, of a product grid."""
    nodes = torch.linspace(-reach, reach, n_nodes)
    w = torch.exp(-(nodes**2) / 2)
    w = w / w.sum()
    angle = torch.arange(n_angles) * (2 * math.pi / n_angles) + 0.1
    p = torch.softmax(k_0 * angle.cos(), 0)
    axes = [angle, nodes, nodes] if both else [angle, nodes]
    weights = [p, w, w] if both else [p, w]
    grid = [v.reshape(-1) for v in torch.meshgrid(*axes, indexing="ij")]
    weight = math.prod(v.reshape(-1) for v in torch.meshgrid(*weights, indexing="ij"))
    n = torch.stack([grid[0].cos(), grid[0].sin()], 1)
    t = torch.stack([-n[:, 1], n[:, 0]], 1)
    z_t = grid[2] if both else torch.full_like(grid[1], 7.0)
    return R * n, n.unsqueeze(2), grid[1][:, None] * n + z_t[:, None] * t, weight


def check_minimiser(loss, star, at, weight, tolerance=1e-9):
    """loss(s) -> (B,); the minimiser of its mean over the noised points `at` is `star`."""
    base = weight @ loss(star)
    for scale in (1.0, -0.7):
        moved = weight @ loss(lambda y, c=scale: star(y) + c * perturbation(y))
        expected = 0.5 * scale**2 * (weight @ perturbation(at).square().sum(1))
        close(moved - base, expected, tolerance)


# ---------------------------------------------------------------------------- normal noise


def radial_field(sigma, k_0=0.0, wrong=1.0):
    def field(x):
        rho = x.norm(dim=1, keepdim=True)
        inside = R * rho / sigma**2 + k_0 * x[:, :1] / rho
        return wrong * (-rho + R * torch.tanh(inside)) / sigma**2 * x / rho

    return field


@pytest.mark.parametrize("sigma", [0.2, 0.7])
@pytest.mark.parametrize("k_0", [0.0, K_0])
def test_normal_noise_learns_the_projection(sigma, k_0):
    """The minimiser −ρ/σ² + (r/σ²) tanh(ρr/σ² + k₀ cos θ); its tangent part is 0, density or not."""
    x, N, z, weight = circle_grid(k_0)
    across = (z * x).sum(1, keepdim=True) / R**2 * x
    loss = lambda s: normal_denoising(s, x, sigma, N, generator=Injected(z))
    check_minimiser(loss, radial_field(sigma, k_0), x + sigma * across, weight)
    with pytest.raises(AssertionError):
        check_minimiser(loss, radial_field(sigma, k_0, -1.0), x + sigma * across, weight)
    exact = VonMisesCircle(R, k_0).noised(1.0, sigma).score  # of isotropic noise: not this one
    with pytest.raises(AssertionError):
        check_minimiser(loss, exact, x + sigma * across, weight)


# ---------------------------------------------------------------------------- both


def test_equal_noise_is_denoising():
    x, N, z, weight = circle_grid(K_0, 24, 8.0, 41, both=True)
    s = lambda y: perturbation(y) - y
    ours = tangent_normal_denoising(s, x, 0.3, 0.3, N, generator=Injected(z))
    close(ours, denoising(s, x, 0.3, generator=Injected(z)), 1e-10)
    sigma = 0.4
    loss = lambda s: tangent_normal_denoising(s, x, sigma, sigma, N, generator=Injected(z))
    exact = VonMisesCircle(R, K_0).noised(1.0, sigma).score
    check_minimiser(loss, exact, x + sigma * z, weight)


def circle_kernel_law(sigma_t, sigma_n, n_angles=2000):
    """log density of x + σ_T T z_T + σ_N N z_N on the circle of von Mises, by quadrature of angles."""
    angle = torch.arange(n_angles) * (2 * math.pi / n_angles)
    log_p = torch.log_softmax(K_0 * angle.cos(), 0)
    n = torch.stack([angle.cos(), angle.sin()], 1)
    t = torch.stack([-angle.sin(), angle.cos()], 1)

    def log_prob(x):
        along, across = x @ t.T, x @ n.T - R
        quadratic = along.square() / sigma_t**2 + across.square() / sigma_n**2
        return torch.logsumexp(log_p - quadratic / 2, 1)

    return log_prob


def test_unequal_noise_learns_the_score_of_its_own_law():
    sigma_t, sigma_n = 0.45, 0.2
    x, N, z, weight = circle_grid(K_0, 24, 8.0, 49, both=True)
    normal = N[:, :, 0]
    across = (z * normal).sum(1, keepdim=True) * normal
    at = x + sigma_n * across + sigma_t * (z - across)
    unique = score_from_log_prob(circle_kernel_law(sigma_t, sigma_n, 160))
    cached = {}

    def star(y):
        if y.shape not in cached:
            cached[y.shape] = unique(y)
        return cached[y.shape]

    loss = lambda s: tangent_normal_denoising(s, x, sigma_t, sigma_n, N, generator=Injected(z))
    check_minimiser(loss, star, at, weight, 1e-6)
    swapped = lambda s: tangent_normal_denoising(s, x, sigma_n, sigma_t, N, generator=Injected(z))
    with pytest.raises(AssertionError):
        check_minimiser(swapped, star, at, weight, 1e-6)


# ---------------------------------------------------------------------------- the sphere


def sphere_rule(d, eta, n=40):
    """Nodes and weights of the law ∝ exp(η·x) on the circle or on S²."""
    phi = torch.arange(2 * n) * (math.pi / n)
    if d == 2:
        x, w = torch.stack([phi.cos(), phi.sin()], 1), torch.ones(2 * n)
    else:
        import numpy as np

        u, wu = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(n))
        u, f = (v.reshape(-1) for v in torch.meshgrid(u, phi, indexing="ij"))
        rho = (1 - u**2).sqrt()
        x, w = torch.stack([rho * f.cos(), rho * f.sin(), u], 1), wu.repeat_interleave(2 * n)
    w = w * torch.exp(x @ eta)
    return x, w / w.sum()


def network(d, seed=3):
    g = torch.Generator().manual_seed(seed)
    A, b = torch.randn(8, d, generator=g).double(), torch.randn(8, generator=g).double()
    C = torch.randn(d, 8, generator=g).double()
    return lambda y: torch.tanh(y @ A.T + b) @ C.T + y.square()


F64 = torch.float64
ETAS = {2: torch.tensor([1.2, -0.5], dtype=F64), 3: torch.tensor([0.9, -0.4, 1.1], dtype=F64)}


@pytest.mark.parametrize("radius", [1.0, 2.0])
@pytest.mark.parametrize("d", [2, 3])
def test_integration_by_parts_on_the_sphere(d, radius):
    """E[½‖Ps‖² + div Ps] = ½ E‖Ps − s_S‖² − ½ E‖s_S‖² for a field with every kind of part."""
    x, w = sphere_rule(d, ETAS[d])
    x = radius * x
    project = lambda v: v - (v * x).sum(1, keepdim=True) * x / radius**2
    s = network(d)
    truth = project((ETAS[d] / radius).expand_as(x))
    explicit = 0.5 * (project(s(x)) - truth).square().sum(1) - 0.5 * truth.square().sum(1)
    ours = implicit_on_sphere(s, x, radius)
    close(w @ ours, w @ explicit, 1e-10)
    # tr(P ∇s) without the curvature of the normal part is another number
    J = torch.func.vmap(torch.func.jacrev(lambda y: s(y[None])[0]))(x)
    P = torch.eye(d) - x[:, :, None] * x[:, None] / radius**2
    short = 0.5 * project(s(x)).square().sum(1) + (P * J).sum((1, 2))
    assert abs(float(w @ short - w @ explicit)) > 0.05
    curved = short - (d - 1) * (x * s(x)).sum(1) / radius**2
    close(ours, curved, 1e-10)


@pytest.mark.parametrize("d", [2, 3])
def test_loss_of_von_mises_fisher(d):
    """s = κ P μ: ½ ηᵀ(I − E xxᵀ)η − (d − 1) η·E x; what is added along x does not count."""
    x, w = sphere_rule(d, ETAS[d])
    eta = torch.linspace(-1, 0.7, d)
    mean, second = w @ x, x.T @ (w[:, None] * x)
    expected = 0.5 * eta @ (torch.eye(d) - second) @ eta - (d - 1) * eta @ mean
    close(w @ implicit_on_sphere(lambda y: eta.expand_as(y), x), expected, 1e-12)
    close(
        w @ implicit_on_sphere(lambda y: eta + 3.0 * y.pow(3).sum(1, keepdim=True) * y, x),
        expected,
        1e-11,
    )
    # its minimiser in closed form is the truth, by the moments of the law
    kappa = ETAS[d].norm()
    A = bessel_ratio(d, kappa).A
    close(mean, A * ETAS[d] / kappa, 1e-12)
    close((d - 1) * torch.linalg.solve(torch.eye(d) - second, mean), ETAS[d], 1e-10)


def test_sliced_is_unbiased_on_the_sphere():
    x, w = sphere_rule(3, ETAS[3], 12)
    s = network(3)
    exact = implicit_on_sphere(s, x)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3)
    from gradlogp.calculus.reverse import hutchinson_trace

    field, forms = hutchinson_trace(tangential(s), x, signs[:, None].expand(8, len(x), 3))
    close(forms.mean(0) + 0.5 * field.square().sum(1), exact, 1e-10)
    g = torch.Generator().manual_seed(1)
    draws = torch.stack([w @ sliced_vr(tangential(s), x, generator=g) for _ in range(400)])
    assert abs(z_score(draws, w @ exact)) < 4.5


@pytest.mark.parametrize("d", [2, 3, 10])
def test_von_mises_fisher_fit(d, generator):
    eta = torch.linspace(-1.0, 2.0, d)
    law = Directional(torch.ones(()), eta, torch.zeros(()), torch.float64)
    fits = [von_mises_fisher(law.sample(4000, generator=generator)) for _ in range(40)]
    off = torch.stack(
        [torch.linalg.solve(torch.linalg.cholesky(f.cov), f.natural - eta) for f in fits]
    )
    # standardised errors: mean 0 and second moment 1, up to the error of 40 d of them
    assert abs(z_score(off.reshape(-1), 0.0)) < 4.5
    assert abs(z_score(off.square().reshape(-1), 1.0)) < 4.5
    assert fits[0].concentration == float(fits[0].natural.norm())


def test_closed_form_is_the_minimiser_of_the_loss(generator):
    x = torch.nn.functional.normalize(torch.randn(60, 4, generator=generator) + 0.5, dim=1)
    eta = von_mises_fisher(x).natural.clone().requires_grad_()
    implicit_on_sphere(lambda y: eta.expand_as(y), x).mean().backward()
    close(eta.grad, torch.zeros(4), 1e-12)


# ---------------------------------------------------------------------------- conduct


def losses():
    def on(name, x, generator=None):
        n = torch.nn.functional.normalize(x, dim=1).unsqueeze(2)
        return {
            "normal": lambda s: normal_denoising(s, x, 0.3, n, generator=generator),
            "both": lambda s: tangent_normal_denoising(s, x, 0.3, 0.2, n, generator=generator),
            "sphere": lambda s: implicit_on_sphere(s, x),
        }[name]

    return on


@pytest.mark.parametrize("name", ["normal", "both", "sphere"])
def test_samples_are_independent(name, generator):
    x = torch.nn.functional.normalize(torch.randn(1026, 3, generator=generator), dim=1)
    s = network(3)
    whole = losses()(name, x, Streams(3, 0, 1026, 1026))(s)
    part = losses()(name, x[1024:], Streams(3, 1024, 1026, 1026))(s)
    assert whole.shape == (1026,)
    close(whole[1024:], part, 1e-12)


def test_noise_levels_for_each_sample():
    x = torch.nn.functional.normalize(torch.tensor([[1.0, 2.0], [0.3, -1.0]]), dim=1)
    N, z = x.unsqueeze(2), torch.tensor([[0.5, 1.0], [-0.2, 0.7]])
    levels = torch.tensor([0.1, 0.4])
    s = lambda y: -y
    for i in range(2):
        one = tangent_normal_denoising(
            s, x[i : i + 1], 0.3, float(levels[i]), N[i : i + 1], generator=Injected(z[i : i + 1])
        )
        both = tangent_normal_denoising(s, x, 0.3, levels, N, generator=Injected(z))
        close(both[i], one[0], 1e-12)
        single = normal_denoising(
            s, x[i : i + 1], float(levels[i]), N[i : i + 1], generator=Injected(z[i : i + 1])
        )
        close(normal_denoising(s, x, levels, N, generator=Injected(z))[i], single[0], 1e-12)


def test_refusals(as_user):
    x = torch.eye(3)
    N = x.unsqueeze(2)
    s = lambda y: -y
    for sigma in (0.0, -1.0, math.nan, torch.tensor([1.0, 0.0, 1.0])):
        with pytest.raises(ValueError, match="sigma must be positive"):
            normal_denoising(s, x, sigma, N)
    with pytest.raises(ValueError, match="sigma_tangent"):
        tangent_normal_denoising(s, x, 0.0, 1.0, N)
    with pytest.raises(ValueError, match="sigma_normal"):
        tangent_normal_denoising(s, x, 1.0, 0.0, N)
    with pytest.raises(ValueError, match="normals must have shape"):
        normal_denoising(s, x, 0.1, x)
    with pytest.raises(ValueError, match="fill the space: use denoising"):
        normal_denoising(s, x, 0.1, torch.zeros(3, 3, 0))
    with pytest.raises(ValueError, match=r"orthonormal.*qr"):
        normal_denoising(s, x, 0.1, 2 * N)
    with pytest.raises(ValueError, match="score returned shape"):
        normal_denoising(lambda y: y.sum(1), x, 0.1, N)
    with pytest.raises(ValueError, match="divide the rows by their norms"):
        implicit_on_sphere(s, 2 * x)
    with pytest.raises(ValueError, match="one line through 0"):
        von_mises_fisher(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="at least 2"):
        von_mises_fisher(torch.ones(3, 1))
