"""Closed-form score matching: the exact minimisers, and the laws of the estimates."""

import pytest
import torch
from support import COV, MEAN, close

from gradlogp import Gaussian
from gradlogp.learn.objectives.closed_form import exponential_family, gaussian_precision


def polynomial(x):
    """Five statistics of two coordinates, not all of them quadratic."""
    a, b = x.flatten(1).unbind(1)
    return torch.stack([a, b, a * b, a.square() * b, torch.cos(a) + b.square().square()], 1)


def implicit_loss(score, x):
    """½‖s‖² + tr ∇s, point by point and by reverse mode: written apart from the library."""

    def one(y):
        s = lambda z: score(z.unsqueeze(0)).flatten()
        jacobian = torch.func.jacrev(s)(y).reshape(y.numel(), y.numel())
        return 0.5 * s(y).square().sum() + jacobian.trace()

    return torch.stack([one(y) for y in x])


def moments(x):
    """T = (x_i, x_i x_j), whose family is that of all Gaussians."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1])
    return torch.cat([x, x[:, i] * x[:, j]], 1)


# ---------------------------------------------------------------------------- minimisers


@pytest.mark.parametrize(("event", "base"), [((2,), False), ((1, 2), True)], ids=str)
def test_theta_is_where_the_implicit_loss_is_stationary(event, base, generator):
    x = torch.randn(12, *event, generator=generator)
    h = (lambda y: -y.flatten(1).pow(4).sum(1) / 4) if base else None
    fit = exponential_family(polynomial, x, base_log_prob=h)

    def loss(theta):
        def log_p(y):
            total = polynomial(y) @ theta
            return (total if h is None else total + h(y)).sum()

        return implicit_loss(torch.func.grad(log_p), x).mean()

    gradient = torch.func.grad(loss)
    assert gradient(fit.theta).abs().max() < 1e-10
    assert gradient(-fit.theta).abs().max() > 1e-2  # the wrong sign is not a minimum
    assert torch.linalg.eigvalsh(torch.func.jacrev(gradient)(fit.theta))[0] > 0


def test_weighted_theta_is_where_the_weighted_loss_is_stationary(generator):
    """A weight of which each entry depends on all coordinates, so that ∂_i g_i is really taken."""
    x = torch.randn(30, 2, generator=generator)
    weight = lambda y: torch.stack(
        [y[:, 0] ** 2 + y[:, 1] ** 2, 1 + y[:, 0] ** 2 * y[:, 1] ** 2], 1
    )
    fit = exponential_family(polynomial, x, weight=weight)

    def loss(theta):
        s = torch.func.grad(lambda y: (polynomial(y) @ theta).sum())

        def one(y):
            gs = lambda z: (weight(z[None]) * s(z[None]))[0]
            return 0.5 * (gs(y) * s(y[None])[0]).sum() + torch.func.jacrev(gs)(y).trace()

        return torch.stack([one(y) for y in x]).mean()

    assert torch.func.grad(loss)(fit.theta).abs().max() < 1e-10
    plain = exponential_family(polynomial, x)
    assert torch.func.grad(loss)(plain.theta).abs().max() > 1e-3


@pytest.mark.parametrize("d", [1, 3])
def test_quadratic_statistics_fit_the_gaussian(d, generator):
    x = torch.randn(40, d, generator=generator) @ torch.randn(d, d, generator=generator) + 3
    fit = exponential_family(moments, x)
    S = torch.cov(x.mT, correction=0).reshape(d, d)
    P = torch.linalg.inv(S)
    i, j = torch.triu_indices(d, d)
    quadratic = -torch.where(i == j, 0.5, 1.0) * P[i, j]
    close(fit.theta, torch.cat([P @ x.mean(0), quadratic]), 1e-9)
    law = Gaussian(x.mean(0), S)
    close(fit.score(x), law.score(x), 1e-9)
    difference = fit.log_prob(x) - law.log_prob(x)
    close(difference, difference[:1].expand(40), 1e-8)


def test_score_is_the_gradient_of_log_prob(generator):
    x = torch.randn(20, 2, generator=generator)
    fit = exponential_family(polynomial, x, base_log_prob=Gaussian(MEAN, COV).log_prob)
    close(fit.score(x), torch.func.grad(lambda y: fit.log_prob(y).sum())(x), 1e-10)
    by_score = exponential_family(polynomial, x, Gaussian(MEAN, COV).score)
    close(by_score.theta, fit.theta, 1e-10)
    with pytest.raises(ValueError, match="base_log_prob="):
        by_score.log_prob(x)


def test_chunks_change_nothing_and_ridge_shrinks(generator):
    x = torch.randn(13, 2, generator=generator)
    whole = exponential_family(polynomial, x)
    for size in (1, 5):
        part = exponential_family(polynomial, x, chunk_size=size)
        close(
            torch.cat([part.theta[None], part.cov]),
            torch.cat([whole.theta[None], whole.cov]),
            1e-10,
        )
    ridge = exponential_family(polynomial, x, ridge=1e3)
    assert ridge.theta.norm() < 0.1 * whole.theta.norm()
    single = exponential_family(polynomial, x.float())
    assert single.theta.dtype == torch.float32
    close(single.theta.double(), whole.theta, 1e-4)


# ---------------------------------------------------------------------------- Gaussians


def test_gaussian_minimisers(generator):
    x = torch.randn(25, 3, generator=generator) @ torch.randn(3, 3, generator=generator) - 2
    m, d = x.mean(0), 3
    S = (x - m).mT @ (x - m) / 25
    full = gaussian_precision(x)
    close(full.cov, S, 1e-12)
    close(gaussian_precision(x, "diagonal").cov, torch.diag(S.diagonal()), 1e-12)
    close(gaussian_precision(x, "isotropic").cov, torch.eye(3) * torch.trace(S) / d, 1e-12)
    close(full.mean, m, 1e-12)
    everything = torch.ones(3, 3, dtype=torch.bool)
    close(gaussian_precision(x, everything).cov, S, 1e-9)
    close(gaussian_precision(x, torch.eye(3).bool()).cov, torch.diag(S.diagonal()), 1e-10)


def test_gaussian_fit_far_from_the_origin(generator):
    x = torch.randn(50, 1, generator=generator)
    close(gaussian_precision(x + 1e4).cov, gaussian_precision(x).cov, 1e-9)


def chain(d):
    """A Markov chain's graph: the precision is tridiagonal."""
    i = torch.arange(d)
    return (i[:, None] - i).abs() <= 1


def test_a_pattern_of_zeros_minimises_the_loss_and_is_not_maximum_likelihood(generator):
    x = torch.randn(30, 4, generator=generator) @ (torch.eye(4) + 0.3) + 1
    mask = chain(4)
    fit = gaussian_precision(x, mask)
    P = torch.linalg.inv(fit.cov)
    assert P[~mask].abs().max() < 1e-10
    assert P[mask].abs().min() > 1e-3
    # ISM of s = −P (x − x̄): −tr P + ½ mean |P (x − x̄)|²
    loss = lambda Q: -torch.trace(Q) + 0.5 * ((x - x.mean(0)) @ Q.mT).square().sum(1).mean()
    gradient = torch.func.grad(loss)(P)
    assert ((gradient + gradient.mT) / 2)[mask].abs().max() < 1e-10
    assert gradient.abs().max() > 1e-3  # it does not vanish where Λ is held at 0
    # the maximum likelihood would match the covariance on the mask: it is another point
    S = torch.cov(x.mT, correction=0)
    assert (fit.cov - S)[mask].abs().max() > 1e-3


# ---------------------------------------------------------------------------- error bars


def test_standard_error_of_a_gaussian_is_that_of_its_limit_law(generator):
    """n Var λ̂ → 2 λ² and n Var μ̂ = S, here from one large sample."""
    x = Gaussian([0.5], [0.4]).sample(200_000, generator=generator)
    fit = exponential_family(moments, x, chunk_size=50_000)
    lam = 1 / 0.4
    close(fit.cov[1, 1] * len(x) * 4, 2 * lam**2, 0.03)  # λ = −2 θ₂
    assert abs(fit.theta[1] + lam / 2) < 4 * fit.standard_error[1]
    a, b = fit.theta
    gradient = torch.stack([-1 / (2 * b), a / (2 * b**2)])  # of μ = −θ₁ / 2θ₂
    close(gradient @ fit.cov @ gradient * len(x), 0.4, 0.01)


def test_location_of_a_logistic_base(generator):
    """T = x tilts a logistic h; at θ = 0 the variance is J(p)/n = 1/(3n), J = E s² = ⅓."""
    u = torch.rand(20_000, 1, generator=generator)
    x = (u / (1 - u)).log()
    h = lambda y: -(y + 2 * torch.nn.functional.softplus(-y)).sum(1)
    fit = exponential_family(lambda y: y, x, base_log_prob=h)
    close(fit.theta, torch.tanh(x / 2).mean(0), 1e-12)
    close(fit.cov[0, 0] * len(x), 1 / 3, 0.01)
    assert abs(fit.theta) < 4 * fit.standard_error


# ---------------------------------------------------------------------------- with a boundary

identity = lambda y: y
powers = pytest.mark.parametrize("power", [1, 2])


@powers
def test_rate_of_an_exponential_on_the_half_line(power, generator):
    x = -torch.rand(20_000, 1, generator=generator).log()
    fit = exponential_family(identity, x, weight=lambda y: y**power)
    moment = {1: 1 / x.mean(), 2: 2 * x.mean() / x.square().mean()}[power]
    close(fit.theta, -moment.reshape(1), 1e-10)
    assert abs(fit.theta + 1) < 4 * fit.standard_error
    assert fit.standard_error < 0.02
    # the delta method on these moments of Exp(1): n Var = 1 and 2
    close(fit.cov[0, 0] * len(x), {1: 1.0, 2: 2.0}[power], 0.15)


def test_without_a_weight_the_boundary_is_overlooked(generator):
    x = -torch.rand(1000, 1, generator=generator).log()
    fit = exponential_family(identity, x)
    assert fit.theta == 0  # wherever the data are: a rate of 0, and no error bar
    assert fit.standard_error == 0


def test_density_in_a_box():
    """exp(1.5 x − 2 y + x²) in [0, 1]²: quantiles for data, so that the fit has no noise."""
    u = (torch.arange(400) + 0.5) / 400
    grid = torch.linspace(0, 1, 400_001)

    def quantiles(log_p):
        cdf = torch.cumsum(log_p.exp(), 0)
        return grid[torch.searchsorted(cdf / cdf[-1], u)]

    x = torch.cartesian_prod(quantiles(1.5 * grid + grid**2), quantiles(-2 * grid))
    T = lambda z: torch.stack([z[:, 0], z[:, 1], z[:, 0] ** 2], 1)
    truth = torch.tensor([1.5, -2.0, 1.0])
    fit = exponential_family(T, x, weight=lambda z: z * (1 - z), chunk_size=100_000)
    close(fit.theta, truth, 3e-3)
    plain = exponential_family(T, x, chunk_size=100_000)
    assert (plain.theta - truth).abs().min() > 0.5


# ---------------------------------------------------------------------------- refusals

refusal = pytest.mark.usefixtures("as_user")


@refusal
def test_statistics_that_do_not_determine_theta(generator):
    x = torch.randn(8, 2, generator=generator)
    for statistics, message in (
        (lambda y: torch.cat([y, 2 * y], 1), "condition number .* linearly dependent"),
        (lambda y: torch.cat([y, torch.ones_like(y)], 1), r"entries \[2, 3\] are 0.*constant"),
        (lambda y: torch.cat([y**k for k in range(1, 30)], 1), "use more points"),
        (lambda y: y.sum(1), r"shape \(B, k\)"),
        (lambda y: y.sum(0, keepdim=True), r"shape \(B, k\)"),
        (lambda y: (y - 5).sqrt(), "not finite on the data"),
    ):
        with pytest.raises(ValueError, match=message):
            exponential_family(statistics, x)


@refusal
def test_bad_arguments():
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    column = lambda y: y[:, :1].square()
    wrong = {
        "ridge": [-1.0],
        "chunk_size": [0],
        "weight": [identity, column],
        "base_score": [column],
    }
    for name, value in [(name, value) for name, values in wrong.items() for value in values]:
        with pytest.raises(ValueError, match=name):
            exponential_family(moments, x, **{name: value})
    for fit in (gaussian_precision, lambda y: exponential_family(moments, y)):
        with pytest.raises(ValueError, match="x must have at least 2 rows"):
            fit(x[:1])
        with pytest.raises(ValueError, match="1 of 6 rows"):
            fit(torch.where(torch.arange(6)[:, None] == 2, float("nan"), x))


@refusal
def test_structures_that_cannot_be_fitted(generator):
    x = torch.randn(6, 3, generator=generator)
    for structure in ("banded", torch.ones(2, 2).bool(), torch.ones(3, 3), ~torch.eye(3).bool()):
        with pytest.raises(ValueError, match=r"structure|mask"):
            gaussian_precision(x, structure)
    with pytest.raises(ValueError, match="more than d = 3"):
        gaussian_precision(x[:3])
    with pytest.raises(ValueError, match="variance 0"):
        gaussian_precision(x * torch.tensor([1.0, 0.0, 1.0]), "diagonal")
    with pytest.raises(ValueError, match="flatten"):
        gaussian_precision(x.reshape(2, 3, 3))


def test_a_fit_that_is_no_gaussian_is_refused():
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(3)) @ (torch.eye(4) * 0.2 + 1)
    with pytest.raises(ValueError, match="not positive definite"):
        gaussian_precision(x, chain(4))
