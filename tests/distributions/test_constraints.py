"""Bijections: Jacobians against autograd, integrals against 1, moments, and digits far out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import close, seeded
from torch.distributions import (
    Beta,
    Dirichlet,
    HalfNormal,
    LKJCholesky,
    Normal,
    Wishart,
    constraints,
)

from gradlogp.distributions import Parameters, as_target, bijection, ordered


def lower(offset):
    """Read the entries of a lower triangle, row by row."""
    return lambda x: x[..., *torch.tril_indices(x.shape[-1], x.shape[-1], offset)]


INTERVAL = constraints.interval(
    torch.tensor([-1.0, 0.0]).double(), torch.tensor([2.0, 0.5]).double()
)
TABLE = {
    "real": ((3,), constraints.real, lambda x: x),
    "positive": ((3,), constraints.positive, lambda x: x),
    "greater": ((2,), constraints.greater_than(1.5), lambda x: x),
    "less": ((2,), constraints.less_than(-1.5), lambda x: x),
    "interval": ((3,), constraints.interval(-1.0, 2.0), lambda x: x),
    "intervals": ((2,), INTERVAL, lambda x: x),
    "unit": ((), constraints.unit_interval, lambda x: x),
    "ordered": ((4,), ordered, lambda x: x),
    "ordered one": ((1,), ordered, lambda x: x),
    "simplex": ((4,), constraints.simplex, lambda x: x[..., :-1]),
    "simplices": ((2, 3), constraints.simplex, lambda x: x[..., :-1]),
    "correlations 2": ((2, 2), constraints.corr_cholesky, lower(-1)),
    "correlations 4": ((4, 4), constraints.corr_cholesky, lower(-1)),
    "lower triangle": ((3, 3), constraints.lower_cholesky, lower(0)),
    "covariance 1": ((1, 1), constraints.positive_definite, lower(0)),
    "covariance 3": ((3, 3), constraints.positive_definite, lower(0)),
    "many ordered": ((2, 3), constraints.independent(ordered, 1), lambda x: x),
}
"""Shape, constraint, and the entries in which densities are."""

each = pytest.mark.parametrize("name", TABLE)


@each
def test_the_jacobian_is_that_of_autograd(name, generator):
    shape, constraint, entries = TABLE[name]
    parameters = Parameters({"x": (shape, constraint)})
    z = 1.5 * torch.randn(5, parameters.n_free, generator=generator)

    def of(z):
        return entries(parameters.unpack(z[None])[0]["x"][0]).flatten()

    named, log_det = parameters.unpack(z)
    assert named["x"].shape == (5, *shape)
    assert bool(constraint.check(named["x"]).all())
    for i in range(5):
        J = torch.func.jacrev(of)(z[i])
        assert J.shape[0] == J.shape[1]  # as many free numbers as entries that vary on their own
        close(log_det[i], torch.linalg.slogdet(J)[1], 1e-9)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_there_and_back(name, dtype, generator):
    shape, constraint, _ = TABLE[name]
    parameters = Parameters({"x": (shape, constraint)})
    z = torch.randn(7, parameters.n_free, generator=generator).to(dtype)
    x = parameters.constrain(z)
    assert x.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    close(parameters.unconstrain(x), z, 100 * tolerance)
    close(parameters.constrain(parameters.unconstrain(x)), x, 10 * tolerance)


@each
def test_a_chain_is_alone(name, generator):
    shape, constraint, _ = TABLE[name]
    parameters = Parameters({"x": (shape, constraint)})
    z = torch.randn(4, parameters.n_free, generator=generator)
    x, log_det = parameters.unpack(z)
    alone, log_alone = parameters.unpack(z[2:3])
    close(alone["x"][0], x["x"][2], 1e-14)
    close(log_alone[0], log_det[2], 1e-14)


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    kind=st.sampled_from(["greater", "less", "interval", "ordered", "simplex", "corr", "cov"]),
    n=st.integers(2, 6), low=st.floats(-1e3, 1e3), width=st.floats(1e-3, 1e3),
    size=st.floats(0, 4), seed=st.integers(0, 999),
)  # fmt: skip
def test_any_bounds_and_sizes(kind, n, low, width, size, seed):
    """What comes out fulfils the constraint, leads back, and falls as its Jacobian says."""
    shape, constraint = {
        "greater": ((n,), constraints.greater_than(low)),
        "less": ((n,), constraints.less_than(low)),
        "interval": ((n,), constraints.interval(low, low + width)),
        "ordered": ((n,), ordered),
        "simplex": ((n,), constraints.simplex),
        "corr": ((n, n), constraints.corr_cholesky),
        "cov": ((n, n), constraints.positive_definite),
    }[kind]
    parameters = Parameters({"x": (shape, constraint)})
    z = size * (2 * torch.rand(3, parameters.n_free, generator=seeded(seed)) - 1)
    named, log_det = parameters.unpack(z)
    assert bool(constraint.check(named["x"]).all())
    x = parameters.constrain(z)
    close(
        parameters.unconstrain(x), z, 1e-6
    )  # of low = 1000 and width = 0.001 six digits are left
    close(parameters.constrain(parameters.unconstrain(x)), x, 1e-10)
    if kind in ("greater", "less", "interval"):  # entry by entry: log |dx/dz|
        slope = torch.func.vmap(torch.func.grad(lambda v: parameters.constrain(v[None]).sum()))(z)
        close(log_det, slope.abs().log().sum(1), 1e-9)


# ------------------------------------------------------------------------ formulas


def test_the_formulas_at_a_point():
    """By hand: every map, and its Jacobian, at z of which all terms differ."""
    z = torch.tensor([0.3, -0.7, 1.1])
    x = bijection(ordered)(z)
    close(x, torch.tensor([0.3, 0.3 + math.exp(-0.7), 0.3 + math.exp(-0.7) + math.exp(1.1)]))
    close(bijection(ordered).log_abs_det_jacobian(z, x), -0.7 + 1.1)
    v = [1 / (1 + math.exp(-(z[k] - math.log(3 - k)))) for k in range(3)]
    sticks = [v[0], v[1] * (1 - v[0]), v[2] * (1 - v[0]) * (1 - v[1])]
    sticks.append((1 - v[0]) * (1 - v[1]) * (1 - v[2]))
    simplex = bijection(constraints.simplex)
    close(simplex(z), torch.tensor(sticks))
    close(simplex(torch.zeros(3)), torch.full((4,), 0.25))
    logs = sum(math.log(a) + math.log(1 - b) for a, b in zip(sticks, v, strict=False))
    close(simplex.with_log_det(z)[1], logs)
    t = z.tanh()
    L = torch.tensor([
        [1.0, 0.0, 0.0],
        [t[0], (1 - t[0] ** 2).sqrt(), 0.0],
        [t[1], t[2] * (1 - t[1] ** 2).sqrt(), ((1 - t[1] ** 2) * (1 - t[2] ** 2)).sqrt()],
    ])  # fmt: skip
    correlations = bijection(constraints.corr_cholesky)
    close(correlations(z), L)
    logs = (1 - t**2).log().sum() + 0.5 * (1 - t[1] ** 2).log()
    close(correlations.with_log_det(z)[1], logs)
    factor = torch.tensor([[math.exp(0.3), 0.0], [-0.7, math.exp(1.1)]])
    close(bijection(constraints.lower_cholesky)(z), factor)
    covariance = bijection(constraints.positive_definite)
    close(covariance(z), factor @ factor.T)
    close(covariance.with_log_det(z)[1], 2 * math.log(2) + 3 * 0.3 + 2 * 1.1)


def test_the_same_maps_as_pytorch_near_the_centre(generator):
    """An independent implementation, where it does not clip."""
    z = torch.randn(9, 6, generator=generator)
    kinds = constraints.simplex, constraints.corr_cholesky, constraints.interval(-1.0, 2.0)
    for constraint in (*kinds, constraints.half_open_interval(0.0, 3.0)):
        theirs, ours = torch.distributions.biject_to(constraint), bijection(constraint)
        x = theirs(z)
        close(ours(z), x, 1e-12)
        close(ours.log_abs_det_jacobian(z, x), theirs.log_abs_det_jacobian(z, x), 1e-10)
        close(ours.inv(x), theirs.inv(x), 1e-10)


# ------------------------------------------------------------------------ digits far out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("far", [10.0, 30.0, 40.0])
def test_digits_far_out(dtype, far):
    """Values, Jacobians and their gradients where 1 − σ(z) and 1 − tanh² z are lost to rounding."""
    rtol = 3e-6 if dtype == torch.float32 else 1e-13
    small = math.exp(-far) / (1 + math.exp(-far))
    z = torch.tensor([far], dtype=dtype, requires_grad=True)
    simplex = bijection(constraints.simplex)
    close(simplex(z).double(), torch.tensor([1 - small, small]), rtol, 0.0)
    for constraint, expected, slope in (
        (constraints.simplex, -far + 2 * math.log1p(-small), -(1 - small) + small),
        (constraints.corr_cholesky, math.log(4) - 2 * far, -2.0),
    ):
        z = torch.tensor([far], dtype=dtype, requires_grad=True)
        transform = bijection(constraint)
        value = transform.log_abs_det_jacobian(z, transform(z))
        close(value.double().detach(), expected, max(rtol, 4 * math.exp(-2 * far)))
        (gradient,) = torch.autograd.grad(value, z)
        close(gradient.double(), torch.tensor([slope]), max(rtol, 8 * math.exp(-2 * far)))
    for sign in (1.0, -1.0):
        z = torch.tensor(sign * far, dtype=dtype, requires_grad=True)
        x, value = bijection(constraints.interval(-1.0, 2.0)).with_log_det(z)
        close(value.double().detach(), math.log(3) - far + 2 * math.log1p(-small), rtol)
        (gradient,) = torch.autograd.grad(value, z)
        close(gradient.double(), sign * (2 * small - 1), rtol)
        close(x.double().detach(), 0.5 + sign * (1.5 - 3 * small), rtol)
    # rows of three: log |J| = Σ log cosh⁻² z + ½ log cosh⁻² z_31, and L_33 = e^{−2 far} · 4
    z = torch.tensor([far, -far, far], dtype=dtype)
    correlations = bijection(constraints.corr_cholesky)
    x, log_sech2 = correlations(z), math.log(4) - 2 * far
    close(x[2, 2].double(), 4 * math.exp(-2 * far), 40 * rtol + 4 * math.exp(-2 * far), 0.0)
    value = correlations.log_abs_det_jacobian(z, x).double()
    close(value, 3.5 * log_sech2, rtol + 4 * math.exp(-2 * far))


def test_a_tail_beyond_rounding_is_not_bent():
    """Beta(2, 0.05) has mass where 1 − x rounds to 0: there it is not finite, and no other law."""
    law = as_target(distribution=Beta(torch.tensor(2.0), torch.tensor(0.05)))
    z = torch.tensor([[10.0], [14.0], [20.0]], dtype=torch.float32)
    value = law.log_prob(z)
    close(value[1] - value[0], -0.05 * 4, 0.02)  # the tail e^{−0.05 z}
    assert not bool(torch.isfinite(value[2]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_entries_keep_their_constraint(dtype, generator):
    """Rounding adds up over a hundred sticks, and PyTorch's checks allow 1e-6."""
    simplex, correlations = constraints.simplex, constraints.corr_cholesky
    z = 3 * torch.randn(50, 999, generator=generator).to(dtype)
    assert bool(simplex.check(bijection(simplex)(z)).all())
    z = 3 * torch.randn(50, 30 * 29 // 2, generator=generator).to(dtype)
    assert bool(correlations.check(bijection(correlations)(z)).all())


# ------------------------------------------------------------------------ integrals and moments


def grid(*ranges):
    """Points of a grid `(n, d)` and its cell; sums over analytic functions that decay are exact."""
    axes = [torch.linspace(a, b, n) for a, b, n in ranges]
    cell = math.prod((b - a) / (n - 1) for a, b, n in ranges)
    return torch.cartesian_prod(*axes).reshape(-1, len(axes)), cell


def moments(target, points, cell, jacobian=True):
    """Return the integral, mean and variance of the values, with or without the Jacobian."""
    log_p = target.log_prob(points)
    if not jacobian:
        log_p = log_p - target.parameters.unpack(points)[1]
    x, weight = target.constrain(points), cell * log_p.exp()
    total = weight.sum()
    mean = (weight[:, None] * x).sum(0) / total
    return total, mean, (weight[:, None] * (x - mean) ** 2).sum(0) / total


def of(f, constraint):
    return as_target(log_prob=f, parameters={"x": constraint})


def test_gamma():
    points, cell = grid((-40, 8, 4801))
    law = of(lambda x: 3 * math.log(2) - math.log(2) + 2 * x.log() - 2 * x, constraints.positive)
    total, mean, var = moments(law, points, cell)
    close(total, 1.0, 1e-12)
    close((mean, var), (torch.tensor([1.5]), torch.tensor([0.75])), 1e-12)
    close(moments(law, points, cell, jacobian=False)[1], torch.tensor([1.0]), 1e-12)


def test_beta():
    points, cell = grid((-40, 40, 8001))
    law = of(
        lambda x: math.log(30) + x.log() + 4 * torch.log1p(-x), constraints.unit_interval
    )  # B(2, 5) = 1/30
    total, mean, var = moments(law, points[200:-200], cell)
    close(total, 1.0, 1e-12)
    close((mean, var), (torch.tensor([2 / 7]), torch.tensor([10 / 392])), 1e-12)
    without = moments(law, points[200:-200], cell, jacobian=False)[1]
    close(without, torch.tensor([0.2]), 1e-12)


def test_a_truncated_normal():
    points, cell = grid((-60, 60, 12001))
    mass = 0.5 * (math.erf(2 / math.sqrt(2)) + math.erf(1 / math.sqrt(2)))
    law = of(
        lambda x: Normal(0.0, 1.0).log_prob(x) - math.log(mass), constraints.interval(-1.0, 2.0)
    )
    total, mean, var = moments(law, points, cell)
    close(total, 1.0, 1e-12)
    close((mean, var), (torch.tensor([0.2296371791]), torch.tensor([0.5197625392])), 1e-9)
    # without the Jacobian it is improper: twice the grid, twice the integral
    twice = moments(law, *grid((-120, 120, 24001)), jacobian=False)[0]
    assert float(twice / moments(law, points, cell, jacobian=False)[0]) > 1.9


def test_dirichlet():
    points, cell = grid((-40, 40, 401), (-40, 40, 401))
    law = as_target(distribution=Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    total, mean, var = moments(law, points, cell)
    close(total, 1.0, 1e-12)
    close(mean, torch.tensor([2.0, 3.0, 4.0]) / 9, 1e-12)
    close(var[0], 14 / 810, 1e-12)
    without = moments(law, points, cell, jacobian=False)[1]
    close(without, torch.tensor([1 / 6, 1 / 3, 1 / 2]), 1e-12)


def test_ordered_is_the_law_of_order_statistics():
    """Twice the product of N(0, 1) on x_1 < x_2: means ∓ 1/√π, variances 1 − 1/π."""
    points, cell = grid((-9, 9, 301), (-40, 4, 881))
    law = of(lambda x: math.log(2) + Normal(0.0, 1.0).log_prob(x).sum(1), ((2,), ordered))
    total, mean, var = moments(law, points, cell)
    close(total, 1.0, 1e-12)
    close(mean, torch.tensor([-1.0, 1.0]) / math.sqrt(math.pi), 1e-12)
    close(var, torch.full((2,), 1 - 1 / math.pi), 1e-12)
    assert abs(float(moments(law, points, cell, jacobian=False)[0]) - 1) > 0.5


def test_correlations():
    """The volume π²/2 of correlation matrices, Var r = 1/(2η + d − 1), the density of LKJ at I."""
    points, cell = grid(*[(-8, 8, 41)] * 3)
    law = as_target(distribution=LKJCholesky(3, 2.0))
    total, _, _ = moments(law, points, cell)
    close(total, 1.0, 1e-5)
    L = law.parameters.unpack(points)[0]["x"]
    weight = law.log_prob(points).exp()
    r = (L @ L.mT)[:, *torch.tril_indices(3, 3, -1)]
    close((weight[:, None] * r**2).sum(0) / weight.sum(), torch.full((3,), 1 / 6), 1e-5)
    close(law.log_prob(torch.zeros(1, 3)), torch.tensor([-0.6154833]), 1e-6)
    # to the entries of L Lᵀ: + Σ (d − i) log L_ii
    log_det = law.parameters.unpack(points)[1] + L[:, 1, 1].log()
    close(cell * log_det.exp().sum(), math.pi**2 / 2, 1e-5)
    assert abs(float(cell * (log_det - L[:, 1, 1].log()).exp().sum()) / (math.pi**2 / 2) - 1) > 0.1


def test_covariances():
    """Wishart in two dimensions: integral 1, mean ν V; without the Jacobian it is another law."""
    V = torch.tensor([[0.8, 0.3], [0.3, 0.5]])
    law = as_target(distribution=Wishart(torch.tensor(5.0), V))
    points, cell = grid((-6, 2.5, 54), (-9, 9, 73), (-6, 2.5, 54))
    total, mean, _ = moments(law, points, cell)
    close(total, 1.0, 1e-6)
    close(mean, 5 * V.flatten(), 1e-6)
    total, mean, _ = moments(law, points, cell, jacobian=False)
    assert abs(float(mean[0] / (5 * V[0, 0])) - 1) > 0.1


def test_lower_triangles():
    """Free entries N(0, 1), diagonal half-normal: E L_ii = √(2/π)."""
    law = of(
        lambda x: (
            Normal(0.0, 1.0).log_prob(x[:, 1, 0])
            + HalfNormal(1.0).log_prob(x.diagonal(dim1=1, dim2=2)).sum(1)
        ),
        ((2, 2), constraints.lower_cholesky),
    )
    points, cell = grid((-26, 3, 146), (-8, 8, 33), (-26, 3, 146))
    total, mean, _ = moments(law, points, cell)
    close(total, 1.0, 1e-10)
    close(mean, torch.tensor([math.sqrt(2 / math.pi), 0, 0, math.sqrt(2 / math.pi)]), 1e-10)


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (constraints.interval, "must be an object"),
        ("positive", "must be an object"),
        (constraints.boolean, "no bijection with a Jacobian"),
        (constraints.nonnegative_integer, "discrete values have no score"),
        (constraints.positive_semidefinite, "no bijection"),
        (constraints.dependent, "no bijection"),
        (constraints.independent(constraints.boolean, 1), "no bijection"),
        (constraints.interval(0.0, math.inf), "bounds .* must be finite; for a half-line"),
        (constraints.greater_than(-math.inf), "for the whole line constraints.real"),
        (constraints.interval(1.0, 1.0), "lower bound .* must be below"),
    ],
)
@pytest.mark.usefixtures("as_user")
def test_refuses(constraint, message):
    with pytest.raises(ValueError, match=message):
        bijection(constraint)


def test_ordered_says_which_vectors_are():
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 3.0], [2.0, 1.0, 3.0]])
    assert ordered.check(x).tolist() == [True, False, False]
