"""Kernel estimates of the score: each formula again by other means, and the truth on known laws."""

import math
from importlib import import_module

import pytest
import torch
from scipy.special import eval_jacobi
from support import COV, MEAN, close

from gradlogp import Gaussian, GaussianMixture
from gradlogp.learn.objectives.kernel_scores import (
    kernel_exponential_family,
    nu_method,
    spectral_stein,
    stein_gradient,
)

ESTIMATORS = [stein_gradient, spectral_stein, kernel_exponential_family, nu_method]
every_estimator = pytest.mark.parametrize("estimate", ESTIMATORS, ids=lambda e: e.__name__)
shapes = pytest.mark.parametrize("shape", ["rbf", "imq"])
H = 1.3


def k(shape, x, y, h=H):
    """One kernel value k(x, y), for torch.func to differentiate."""
    u = (x - y).square().sum() / h**2
    return torch.exp(-u / 2) if shape == "rbf" else (1 + u) ** -0.5


def gram(shape, x, y):
    return torch.stack([torch.stack([k(shape, a, b) for b in y]) for a in x])


def jacobian(f, x):
    """∇f at every point, without the library."""
    return torch.func.vmap(torch.func.jacfwd(lambda z: f(z.unsqueeze(0)).squeeze(0)))(x)


def settings(estimate):
    """A strength of regularisation for tests of formulas."""
    return {spectral_stein: 3, nu_method: 7}.get(estimate, 0.05)


# ---------------------------------------------------------------------------- formulas


@shapes
def test_stein_gradient_at_the_data(shape, generator):
    """−(K + η)⁻¹ ⟨∇, K⟩ with the gradients of the kernel by differentiation."""
    x, lam = torch.randn(6, 2, generator=generator), 0.03
    gradient = torch.func.grad(lambda y, z: k(shape, z, y))
    steepness = torch.stack([sum(gradient(y, z) for y in x) for z in x])
    expected = -torch.linalg.solve(gram(shape, x, x) + 6 * lam * torch.eye(6), steepness)
    close(stein_gradient(x, lam, bandwidth=H, shape=shape)(x), expected, 1e-9)


@pytest.mark.parametrize("curl_free", [False, True])
@shapes
def test_tikhonov_solves_its_equation_everywhere(curl_free, shape, generator):
    """λ s + L s + ζ = 0 at points that are not data, Γ and its divergence by differentiation."""
    x, y, lam = (
        torch.randn(4, 2, generator=generator),
        torch.randn(3, 2, generator=generator),
        0.03,
    )

    def matrix(a, b):
        if curl_free:
            return -(H**2) * torch.func.hessian(lambda z: k(shape, z, b))(a)
        return k(shape, a, b) * torch.eye(2)

    def zeta(a):
        return sum(
            torch.func.jacrev(lambda b: matrix(a, b))(b).diagonal(dim1=1, dim2=2).sum(1) for b in x
        ) / len(x)

    estimate = kernel_exponential_family if curl_free else stein_gradient
    s = estimate(x, lam, bandwidth=H, shape=shape)
    Ls = torch.stack([sum(matrix(a, b) @ v for b, v in zip(x, s(x), strict=True)) / 4 for a in y])
    close(lam * s(y) + Ls, -torch.stack([zeta(a) for a in y]), 1e-9)


def test_kernel_exponential_family_minimises_its_penalised_loss(generator):
    """Over all combinations of the ∂_i k(x_m, ·) and ∂_i² k(x_m, ·), by plain least squares."""
    x, y, lam = (
        torch.randn(4, 2, generator=generator),
        torch.randn(3, 2, generator=generator),
        0.02,
    )

    def features(a):
        """The 16 basis functions of f at the point a."""
        first = torch.func.vmap(torch.func.grad(lambda b: H**2 * k("rbf", b, a)))(x)
        second = torch.func.vmap(torch.func.hessian(lambda b: H**2 * k("rbf", b, a)))(x)
        return torch.cat([first.flatten(), second.diagonal(dim1=1, dim2=2).flatten()])

    def functionals(f):
        """∂_i and ∂_i² at the data of a function: the basis, as evaluations."""
        first = torch.func.vmap(torch.func.jacrev(f))(x)  # (m, basis, i)
        second = torch.func.vmap(torch.func.jacfwd(torch.func.jacrev(f)))(x)
        second = second.diagonal(dim1=2, dim2=3)
        return torch.cat([v.movedim(1, 2).flatten(0, 1) for v in (first, second)])

    G = functionals(features)  # inner products, by the reproducing property
    close(G, G.mT, 1e-9)
    gradients, curvatures = G[:8], G[8:]
    A = gradients.mT @ gradients / 4 + lam * G
    theta = -torch.linalg.lstsq(A, curvatures.sum(0) / 4, driver="gelsd").solution
    expected = torch.stack([torch.func.jacrev(features)(a).mT @ theta for a in y])
    fit = kernel_exponential_family(x, lam, bandwidth=H)
    close(fit(y), expected, 1e-7)
    wrong = kernel_exponential_family(x, 2 * lam, bandwidth=H)(y)
    assert (wrong - expected).abs().max() > 1e-3


@shapes
def test_spectral_stein_is_the_nystrom_expansion(shape, generator):
    """s = Σ_j β_j ψ_j with β_j = −mean ∇ψ_j(x_m), the gradients by finite differences."""
    x, y, J = torch.randn(7, 2, generator=generator), torch.randn(4, 2, generator=generator), 3
    w, U = torch.linalg.eigh(gram(shape, x, x))
    w, U = w.flip(0)[:J], U.flip(1)[:, :J]
    psi = lambda z: math.sqrt(7) * gram(shape, z, x) @ U / w
    close(psi(x).mT @ psi(x) / 7, torch.eye(J), 1e-9)
    step = 1e-5 * torch.eye(2)
    beta = torch.stack([-(psi(x + e) - psi(x - e)).mean(0) / 2e-5 for e in step], 1)
    close(spectral_stein(x, J, bandwidth=H, shape=shape)(y), psi(y) @ beta, 1e-7)


@pytest.mark.parametrize("nu", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_nu_method_has_the_residual_of_jacobi(nu, steps, generator):
    """1 − σ g(σ) = P(1 − 2σ) / P(1) for Jacobi polynomials with (2ν − ½, −½)."""
    x = torch.randn(6, 2, generator=generator)
    fit = nu_method(x, steps, nu=nu, curl_free=False, bandwidth=H)
    w, U = torch.linalg.eigh(gram("rbf", x, x) / 6)
    zeta = torch.stack([sum((b - a) / H**2 * k("rbf", a, b) for a in x) / 6 for b in x])
    jacobi = lambda z: torch.as_tensor(eval_jacobi(steps, 2 * nu - 0.5, -0.5, z))
    gain = (1 - jacobi((1 - 2 * w).numpy()) / jacobi(1.0)) / w
    expected = -(U * gain) @ (U.mT @ zeta)
    assert (expected.abs() > 1e-3).any()
    close(fit(x), expected, 1e-8)


@pytest.mark.parametrize("curl_free", [False, True])
def test_many_iterations_reach_the_unregularised_solution(curl_free, generator):
    x = 3 * torch.randn(5, 2, generator=generator)
    estimate = kernel_exponential_family if curl_free else stein_gradient
    limit = estimate(x, 1e-9, bandwidth=0.7)
    close(nu_method(x, 400, curl_free=curl_free, bandwidth=0.7)(x), limit(x), 1e-5)


# ---------------------------------------------------------------------------- fields


@every_estimator
@shapes
def test_divergence_and_potential(estimate, shape, generator):
    """tr ∇s by differentiation; a curl-free field has a symmetric Jacobian and a potential."""
    x, y = torch.randn(12, 3, generator=generator), torch.randn(5, 3, generator=generator)
    fit = estimate(x, settings(estimate), bandwidth=H, shape=shape)
    J = jacobian(fit, y)
    close(fit.divergence(y), J.diagonal(dim1=1, dim2=2).sum(1), 1e-9)
    asymmetry = (J - J.mT).abs().max() / J.abs().max()
    if fit.kernel.curl_free:
        assert asymmetry < 1e-10
        close(torch.func.grad(lambda z: fit.log_prob(z).sum())(y), fit(y), 1e-9)
    else:
        assert asymmetry > 1e-3
        with pytest.raises(ValueError, match="no gradient"):
            fit.log_prob(y)


@every_estimator
def test_units_offsets_chunks_and_event_shapes_change_nothing(estimate, generator, monkeypatch):
    x, y = torch.randn(20, 4, generator=generator), torch.randn(9, 4, generator=generator)
    fit = estimate(x, settings(estimate))
    s = fit(y)
    assert fit.event_shape == (4,)
    scaled = estimate(100 * x, settings(estimate))
    close(scaled(100 * y) * 100, s, 1e-8)
    far = estimate(x + 1e4, settings(estimate))
    close(far(y + 1e4), s, 1e-6)
    for size in (1, 4, 13):
        monkeypatch.setattr(
            import_module("gradlogp.core.chunks"), "HELD", 3 * size * fit.points.numel()
        )
        close(fit(y), s, 1e-10)
    image = estimate(x.reshape(20, 1, 2, 2), settings(estimate))(y.reshape(9, 1, 2, 2))
    close(image.flatten(1), s, 1e-12)
    assert fit(y.float()).dtype == torch.float32
    assert fit(y[:0]).shape == (0, 4)


@every_estimator
def test_duplicates_are_harmless(estimate, generator):
    x = torch.randn(15, 2, generator=generator)
    fit = estimate(torch.cat([x, x, x]), settings(estimate), bandwidth=H)
    once = estimate(x, settings(estimate), bandwidth=H)
    close(fit(x), once(x), 1e-7)  # the same empirical law
    assert torch.isfinite(fit(2 * x)).all()


# ---------------------------------------------------------------------------- the truth

LAWS = {
    "1-D": Gaussian([0.7], [1.5]),
    "2-D": Gaussian(MEAN, COV),
    "two modes": GaussianMixture([0.4, 0.6], [[-1.5, 0.0], [1.5, 0.5]], [0.5, 0.5]),
}
MARGINS = {"1-D": 0.35, "2-D": 0.1, "two modes": 0.13}  # measured: up to 0.29, 0.07 and 0.10


def relative_error(s, law, y):
    truth = law.score(y)
    return float((s(y) - truth).square().sum() / truth.square().sum())


QUICK = {
    "stein_gradient": ("1-D", "two modes"), "spectral_stein": ("1-D", "2-D"),
    "kernel_exponential_family": ("2-D",), "nu_method": ("2-D",),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "estimate"),
    [
        pytest.param(
            law, f, id=f"{law}-{f.__name__}",
            marks=[pytest.mark.slow] * (law not in QUICK[f.__name__]),
        )
        for law in LAWS for f in ESTIMATORS
    ],
)  # fmt: skip
def test_error_is_small_and_falls_with_the_sample(estimate, name):
    """Mean relative squared errors over some samples: those of one scatter by a factor of 2."""
    law, errors = LAWS[name], {}
    for n, samples in ((60, 4), (300, 2)):
        errors[n] = 0.0
        for seed in range(samples):
            g = torch.Generator().manual_seed(seed)
            x, y = law.sample(n, generator=g), law.sample(1000, generator=g)
            fit = estimate(x, folds=3, generator=g)
            errors[n] += relative_error(fit, law, y) / samples
    assert errors[300] < MARGINS[name]
    assert errors[300] < 0.7 * errors[60]
    # negative control: the wrong sign has an error of about 4, nothing at all one of 1
    assert relative_error(lambda z: -fit(z), law, y) > 2


@every_estimator
def test_cross_validation_of_the_bandwidth(estimate):
    """The choice is repeatable, and that with the least loss of points held out."""
    law, g = LAWS["2-D"], torch.Generator().manual_seed(3)
    x, y = law.sample(40, generator=g), law.sample(100, generator=g)
    seeded = lambda seed, **o: estimate(
        x, folds=2, generator=torch.Generator().manual_seed(seed), **o
    )
    chosen, again, median = seeded(1, bandwidth="cv"), seeded(1, bandwidth="cv"), seeded(1)
    assert (chosen(y) == again(y)).all()
    close(median.bandwidth, torch.pdist(x).median(), 1e-12)
    close(estimate(x, chosen.regularization, bandwidth=chosen.bandwidth)(y), chosen(y), 1e-12)

    def loss(strength, bandwidth):
        order, total = torch.randperm(40, generator=torch.Generator().manual_seed(1)), 0.0
        for test, train in (order.chunk(2), order.chunk(2)[::-1]):
            fit, z = estimate(x[train], strength, bandwidth=bandwidth), x[test]
            trace = jacobian(fit, z).diagonal(dim1=1, dim2=2).sum(1)
            total += (0.5 * fit(z).square().sum(1) + trace).mean()
        return total

    least = loss(chosen.regularization, chosen.bandwidth)
    assert least <= loss(median.regularization, median.bandwidth) + 1e-9
    assert least < loss(1, median.bandwidth)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.usefixtures("as_user")
@every_estimator
def test_refusals(estimate, generator):
    x = torch.randn(12, 2, generator=generator)
    for data, message in (
        (x[:1], "data must have at least 10 rows"),
        (torch.full((12, 2), 3.0), "coincide"),
        (torch.where(x == x[3, 0], float("nan"), x), "not finite"),
        (x[:, 0], "must have shape"),
        (
            torch.zeros(12, 2).index_fill(0, torch.tensor([0]), 1.0),
            "more than half of all pairs of points of data coincide",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            estimate(data)
    for strength in (0, -1, "auto"):
        with pytest.raises(ValueError, match=r"regularization|n_eigen|iterations"):
            estimate(x, strength)
    with pytest.raises(ValueError, match="folds must be an integer of at least 2"):
        estimate(x, folds=1)
    with pytest.raises(TypeError):
        estimate(x, bandwith=1.0)
    with pytest.raises(ValueError, match=r"shape \(B, 2\)"):
        estimate(x, settings(estimate))(torch.zeros(3, 4))


@pytest.mark.usefixtures("as_user")
def test_refusals_of_counts_and_sizes():
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    for call in (lambda: nu_method(x, 2.5), lambda: spectral_stein(x, 0.5)):
        with pytest.raises(ValueError, match="must be an integer"):
            call()
    with pytest.raises(ValueError, match="nu must be positive"):
        nu_method(x, 3, nu=0.0)
    many = torch.randn(90, 100, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="9000 unknowns are more than the limit of 8000"):
        kernel_exponential_family(many, 0.1)
