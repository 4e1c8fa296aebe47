"""Laws on manifolds against independent forms, and the Bessel functions they stand on."""

import math

import mpmath as mp
import pytest
import torch
from density_support import BASIS, LAWS, OFFSET, TURN, somewhere
from support import close, z_score

from gradlogp import ExactScore, Gaussian, evolve
from gradlogp.diffusion import Ancestral, ProbabilityFlow
from gradlogp.distributions.analytic.bessel import bessel_ratio, log_bessel
from gradlogp.distributions.analytic.manifolds import AffineSubspace, UniformSphere, VonMisesCircle
from gradlogp.distributions.analytic.products import Embedded, Product
from gradlogp.noise.schedules import VE, VP

levels = pytest.mark.parametrize("sigma", [0.05, 0.6, 3.0])


@pytest.mark.parametrize("name", ["circle", "von Mises", "peaked"])
@levels
def test_density_by_quadrature_on_the_circle(name, sigma, generator):
    """p(x) = ∫ p(θ) N(x; r u(θ), σ²) dθ, and the score as its posterior mean."""
    law = LAWS[name].law
    x = somewhere(LAWS[name], 1.0, sigma, generator, 8)
    theta = torch.arange(4000) * (2 * math.pi / 4000)
    u = torch.stack([theta.cos(), theta.sin()], 1)
    log_p = u @ law.natural.double()
    log_p = log_p - log_p.logsumexp(0)
    y = law.radius * u
    log_joint = log_p - (x[:, None] - y).square().sum(2) / (2 * sigma**2)
    expected = log_joint.logsumexp(1) - math.log(2 * math.pi * sigma**2)
    noised = LAWS[name].noised(1.0, sigma)
    close(noised.log_prob(x), expected, 1e-11)
    mean = log_joint.softmax(1) @ y
    close(sigma**2 * noised.score(x), mean - x, 1e-11)


def test_the_printed_formulas():
    """The circle and the sphere as they stand in texts, where these lose no digits."""
    x = torch.tensor([[0.3, 0.4, 0.0], [1.0, -2.0, 0.5]])
    r, sigma, d = 1.5, 0.7, 3
    rho = x.norm(dim=1)
    k = rho * r / sigma**2
    A = 1 / torch.tanh(k) - 1 / k
    law = UniformSphere(d, r).noised(1.0, sigma)
    close(law.score(x), (r * A / rho - 1).unsqueeze(1) * x / sigma**2, 1e-12)
    log_p = -d / 2 * math.log(2 * math.pi * sigma**2) - (rho - r) ** 2 / (2 * sigma**2)
    log_p = log_p + (-torch.expm1(-2 * k) / (2 * k)).log()  # sinh(k)/k, but for e^k
    close(law.log_prob(x), log_p, 1e-12)


@pytest.mark.parametrize("dim", [2, 3, 50, 1000])
def test_near_the_sphere_at_small_noise(dim):
    """On the sphere −(d−1)/(2r) x̂ up to O(σ²), where σ⁻² is 10⁸; off it −δ/σ²."""
    r, sigma = 2.0, 1e-4
    direction = torch.zeros(1, dim)
    direction[0, -1] = 1.0  # exact, so that the point is on the sphere to the last bit
    law = UniformSphere(dim, r).noised(1.0, sigma)
    limit = -(dim - 1) / (2 * r)
    close(law.score(r * direction)[0, -1] / limit, 1.0, 1e-5)
    off = law.score((r + 0.25) * direction)[0, -1]
    w = (dim - 1) / 2 * (1 - (dim - 3) / 4 * sigma**2 / (r * (r + 0.25)))  # k (1 − A)
    close(off * sigma**2, -0.25 - w / (r + 0.25) * sigma**2, 1e-14)
    single = UniformSphere(dim, r).noised(1.0, 0.01).score(r * direction.float())
    assert single.dtype == torch.float32
    close(single[0, -1].double() / limit, 1.0, 0.01 if dim < 1000 else 0.1)


def test_subspace_is_the_singular_gaussian(generator):
    """Against a Gaussian with a singular covariance; the basis need not be orthonormal."""
    cov = torch.tensor([[0.5, 0.3], [0.3, 2.0]])
    law = AffineSubspace(BASIS, OFFSET, cov)
    gaussian = Gaussian(OFFSET, BASIS @ cov @ BASIS.mT)
    x = torch.randn(5, 4, generator=generator)
    for method in ("log_prob", "score", "hessian"):
        ours, theirs = (getattr(p.noised(0.7, 0.3), method)(x) for p in (law, gaussian))
        close(ours, theirs, 1e-10)
    close(law.posterior_cov(x, 0.7, 0.3), gaussian.posterior_cov(x, 0.7, 0.3), 1e-11)
    draws = law.sample(4000, generator=generator) - OFFSET
    normal = torch.linalg.svd(BASIS)[0][:, 2:]
    assert (draws @ normal).abs().max() < 1e-12
    assert (draws.mT @ draws / 4000 - BASIS @ cov @ BASIS.mT).abs().max() < 0.6


@pytest.mark.parametrize("concentration", [0.0, 0.3, 5.0, 1e4])
def test_samples_of_the_circle(concentration, generator):
    """On the circle, with E cos = A(k₀), E cos² = ½(1 + I₂/I₀) and no preferred side."""
    law = VonMisesCircle(2.0, concentration, 2.5)
    x = law.sample(20_000, generator=generator) / 2
    close(x.norm(dim=1), torch.ones(len(x)), 1e-12)
    e = torch.tensor([math.cos(2.5), math.sin(2.5)])
    across = x @ torch.tensor([-e[1], e[0]])
    A = bessel_ratio(2, torch.tensor(concentration))
    assert abs(z_score(1 - x @ e, A.complement)) < 4
    assert abs(z_score(across, 0.0)) < 4
    assert abs(z_score(across.square(), A.A_over_k)) < 4
    if concentration == 5.0:
        assert abs(z_score(x @ e, bessel_ratio(2, torch.tensor(4.0)).A)) > 10  # negative control


def test_samples_in_space(generator):
    """Three dimensions, by the law with its natural parameter; and with noise."""
    base = UniformSphere(3, 1.5).law
    natural = torch.tensor([1.0, -2.0, 0.5])
    law = type(base)(base.radius, natural, base.sigma, base.dtype)
    x, k = law.sample(20_000, generator=generator), natural.norm()
    assert abs(z_score(x @ natural / k / 1.5, 1 / torch.tanh(k) - 1 / k)) < 4
    noisy = law.noised(0.5, 0.2)
    y = noisy.sample(20_000, generator=generator)
    assert abs(z_score(y.square().sum(1), 0.75**2 + 3 * 0.04)) < 4
    assert abs(z_score(noisy.score(y) @ natural, 0.0)) < 4
    s, trace = noisy.score(y), noisy.hessian(y).diagonal(dim1=1, dim2=2).sum(1)
    assert abs(z_score(s.square().sum(1) + trace, 0.0)) < 4


@pytest.mark.parametrize(
    ("name", "transition", "schedule"),
    [
        ("von Mises", Ancestral(), VP()),
        ("von Mises", ProbabilityFlow(), VE(0.01, 10.0)),
        ("padded", Ancestral(), VE(0.01, 10.0)),
        ("padded", ProbabilityFlow(), VP()),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_diffusion_samplers_end_on_the_manifold(name, transition, schedule, generator):
    law = LAWS[name]
    score = ExactScore(law, schedule)
    moments = law.sample(20_000, generator=generator).double()
    times = torch.linspace(1, 1e-3, 50)
    x = evolve(transition, score, 1000, times, generator=generator)
    if name == "padded":
        assert x[:, 3:].abs().max() < 1e-3
        x, radius = x[:, :3], 1.0
    else:
        radius = 1.3
    assert (x.norm(dim=1) - radius).abs().max() < 2e-3
    direction = torch.eye(x.shape[1])[0]
    expected = moments[:, : x.shape[1]] @ direction
    assert abs(z_score(x @ direction, expected.mean())) < 5


def test_transforms(generator):
    """vmap and forward mode go through the score."""
    law = VonMisesCircle(1.0, 2.0).noised(1.0, 0.3)
    x = torch.randn(4, 2, generator=generator)
    rows = torch.func.vmap(lambda y: law.score(y[None])[0])(x)
    close(rows, law.score(x), 1e-12)
    v = torch.randn(4, 2, generator=generator)
    along = torch.func.jvp(law.score, (x,), (v,))[1]
    close(along, (law.hessian(x) @ v.unsqueeze(2)).squeeze(2), 1e-9)


def test_bad_input(as_user):
    for make, message in [
        (lambda: UniformSphere(1), "at least 2"),
        (lambda: UniformSphere(3, -1.0), "positive"),
        (lambda: VonMisesCircle(1.0, -0.1), "at least 0"),
        (
            lambda: VonMisesCircle(torch.ones(2)),
            r"radius must be positive and finite, got a tensor of shape \(2,\)",
        ),
        (lambda: VonMisesCircle(1.0, 1.0, math.inf), "angle must be a finite number"),
        (lambda: AffineSubspace(torch.ones(3, 2)), "linearly dependent"),
        (lambda: AffineSubspace(torch.ones(3)), r"\(D, k\)"),
        (lambda: AffineSubspace(BASIS, OFFSET[:3]), r"offset must have shape \(4,\)"),
        (lambda: AffineSubspace(BASIS, OFFSET, torch.ones(3)), "cov must have shape"),
        (lambda: Embedded(UniformSphere(2), 2 * TURN), "orthonormal"),
        (lambda: Embedded(UniformSphere(3), TURN), r"\(D, 3\)"),
        (lambda: Embedded(UniformSphere(3), 2), "basis must be an integer of at least 3"),
        (lambda: Embedded(UniformSphere(2), 3, sigma=-1.0), "at least 0"),
        (lambda: Embedded(lambda x: x, 3), "law must be an analytic law"),
        (lambda: Product([]), "the number of laws"),
        (lambda: Product([3]), "must be an analytic law"),  # type: ignore[list-item]
        (lambda: UniformSphere(3).noised(1.0, 0.1).score(torch.zeros(2, 2)), r"\(B, 3\)"),
        (lambda: UniformSphere(3).noised(1.0, -0.1), "at least 0"),
        (lambda: UniformSphere(3).posterior_mean(torch.zeros(2, 3), 1.0, 0.0), "without noise"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


ARGUMENTS = [0.0, 1e-8, 1e-3, 0.3, 0.99, 1.0, 3.0, 20.0, 47.0, 60.0, 300.0, 1e4, 1e6, 1e8]
DIMS = [2, 3, 4, 5, 10, 33, 97, 98, 99, 100, 250, 1000, 1001]


def reference(dim, k):
    """A, 1 − A, A/k, A' and L with 60 digits."""
    order, k = mp.mpf(dim) / 2 - 1, mp.mpf(k)
    if k == 0:
        return [mp.mpf(0), mp.mpf(1), mp.mpf(1) / dim, mp.mpf(1) / dim, mp.mpf(0)]
    low, high = (mp.besseli(order + j, k, maxterms=10**6) for j in (0, 1))
    A = high / low
    L = mp.loggamma(order + 1) + order * mp.log(2 / k) + mp.log(low) - k
    return [A, 1 - A, A / k, 1 - A * A - (dim - 1) * A / k, L]


@pytest.mark.parametrize("dim", DIMS)
def test_against_sixty_digits(dim):
    # A, 1 − A, A/k, A', L: double precision, then single
    bounds = {torch.float64: [1e-13, 1e-13, 1e-13, 1e-10, 1e-12], torch.float32: [2e-7] * 5}
    with mp.workdps(60):
        for dtype, tolerances in bounds.items():
            k = torch.tensor(ARGUMENTS, dtype=dtype)
            found = [*bessel_ratio(dim, k), log_bessel(dim / 2 - 1, k)]
            assert all(v.dtype == dtype for v in found)
            for i, value in enumerate(k.tolist()):
                exacts = reference(dim, value)
                for v, exact, tolerance in zip(found, exacts, tolerances, strict=True):
                    error = abs(mp.mpf(float(v[i])) - exact)
                    assert error <= tolerance * abs(exact), (value, exact, float(v[i]))


def test_three_dimensions_are_elementary():
    k = torch.tensor([0.2, 0.5, 2.0, 30.0])  # the elementary forms cancel below
    close(bessel_ratio(3, k).A, 1 / torch.tanh(k) - 1 / k, 1e-12)
    close(bessel_ratio(3, k).slope, 1 / k**2 - 1 / torch.sinh(k) ** 2, 1e-12)


@pytest.mark.parametrize("dim", [2, 5, 300])
def test_derivatives_in_every_mode(dim):
    """dA/dk = A' and dL/dk = A − 1, also under transforms, and finite at 0."""
    k = torch.tensor([0.0, 1e-3, 0.7, 5.0, 80.0, 1e4])
    A = lambda k: bessel_ratio(dim, k).A
    L = lambda k: log_bessel(dim / 2 - 1, k)
    ratio = bessel_ratio(dim, k)
    reverse = torch.func.vmap(torch.func.grad(A))(k)
    forward = torch.func.jvp(A, (k,), (torch.ones_like(k),))[1]
    close(reverse / ratio.slope, torch.ones(6), 1e-9)
    close(forward / ratio.slope, torch.ones(6), 1e-9)
    close(torch.func.vmap(torch.func.grad(L))(k), ratio.A - 1, 1e-11)
    second = torch.func.vmap(torch.func.grad(torch.func.grad(L)))(k)
    close(second[1:] / ratio.slope[1:], torch.ones(5), 1e-7)
    assert torch.autograd.gradcheck(A, k[1:5].clone().requires_grad_())


def test_the_ratio_is_a_ratio():
    """Bounds of Amos, and 1 − A that 1 minus A does not have."""
    k = torch.logspace(-3, 8, 23)
    for dim in (2, 3, 40):
        order, ratio = dim / 2 - 1, bessel_ratio(dim, k)
        upper = k / (order + 0.5 + (k**2 + (order + 0.5) ** 2).sqrt())
        lower = k / (order + 0.5 + (k**2 + (order + 1.5) ** 2).sqrt())
        assert ((lower * (1 - 1e-14) <= ratio.A) & (ratio.A <= upper * (1 + 1e-14))).all()
        naive = ((1 - ratio.A) / ratio.complement - 1).abs().max()
        assert naive > 1e-10  # what the careful form avoids
        assert (ratio.slope > 0).all()


def test_rows_are_alone():
    """The value at one k does not depend on the others, to the last bit."""
    k = torch.tensor([0.0, 0.5, 1e8, 30.0])
    together = bessel_ratio(4, k)
    for i in range(4):
        for a, b in zip(bessel_ratio(4, k[i : i + 1]), together, strict=True):
            close(a[0], b[i], 1e-15)


def test_bad_orders():
    with pytest.raises(ValueError, match="at least 2"):
        bessel_ratio(1, torch.ones(1))
    with pytest.raises(ValueError, match="at least 0"):
        log_bessel(-0.5, torch.ones(1))
