"""Quasi-Newton minimisation against minima in closed form, whatever the units and the obstacles."""

import math

import pytest
import torch
from support import close

from gradlogp.calculus.quasi_newton import minimise, minimise_each


def differentiated(f):
    """Value and gradient of f, and a list that counts the calls."""
    calls = []

    def both(x):
        calls.append(x)
        x = x.detach().requires_grad_()
        value = f(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    return both, calls


def regression(x):
    """−log p of a line through 60 years that are not centred: condition number 10¹¹."""
    year = torch.arange(1950.0, 2010.0)
    y = 0.02 * (year - 1980) + torch.sin(year) + 9
    return 0.5 * (y - x[:, :1] - x[:, 1:2] * year).square().sum(1)


def rosenbrock(x):
    return 100 * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2


def gamma(x):
    """−log of a product of Gamma(3, 1) laws: not a number below 0; the minimum is at 2."""
    return (x - 2 * x.log()).sum(1)


def test_the_path_is_that_of_the_function():
    f, calls = differentiated(rosenbrock)
    path = minimise(f, torch.tensor([[-1.2, 1.0]]))
    assert path.converged
    assert path.evaluations == len(calls) < 110
    close(path.points[-1], torch.ones(2), 1e-6)
    close(path.points[0], [-1.2, 1.0], 1e-15)
    values, gradients = f(path.points)
    close(path.values, values, 1e-9, 1e-15)
    close(path.gradients, gradients, 1e-9)
    assert bool((path.values.diff() <= 0).all())
    assert len(path.points) == len(path.values) == len(path.gradients) > 10


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_condition_and_units(scale, generator):
    """The same path in every unit of length, to the minimum of normal equations."""
    year = torch.arange(1950.0, 2010.0)
    X = torch.stack([torch.ones(60), year - 1980], 1)
    slope = torch.linalg.lstsq(X, 0.02 * (year - 1980) + torch.sin(year) + 9).solution
    exact = torch.stack([slope[0] - 1980 * slope[1], slope[1]])
    least = regression(exact[None])[0]
    for _ in range(4):
        x0 = 4 * torch.rand(1, 2, generator=generator) - 2
        path = minimise(differentiated(lambda x: regression(x / scale))[0], scale * x0)
        assert path.converged
        assert path.evaluations < 150
        close(path.values[-1], least, 1e-8)
        close(path.points[-1] / scale, exact, 1e-3)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_in_many_dimensions(scale, generator):
    """Above 200 dimensions the search is another; its path in other units is the same path."""
    w, x0 = torch.logspace(0, 2, 250), torch.randn(1, 250, generator=generator)
    paths = [
        minimise(differentiated(lambda x, s=s: 0.5 * (w * (x / s - 1) ** 2).sum(1))[0], s * x0)
        for s in (1.0, scale)
    ]
    assert all(path.converged for path in paths)
    assert paths[0].evaluations == paths[1].evaluations
    close(paths[1].points / scale, paths[0].points, 1e-6)


def test_directions_of_units_far_apart(generator):
    unit = torch.logspace(-4, 4, 5)
    f, _ = differentiated(lambda x: 0.5 * ((x / unit - 1) ** 2).sum(1) + (x / unit).pow(4).sum(1))
    path = minimise(f, unit * torch.randn(1, 5, generator=generator))
    assert path.converged
    close(path.points[-1] / unit, torch.full((5,), 0.5), 1e-4)  # x − 1 + 4x³ = 0


@pytest.mark.parametrize("obstacle", ["nan", "infinite", "raises"])
def test_it_backs_off_where_f_cannot_be_computed(obstacle):
    seen = []

    def f(x):
        outside = bool((x <= 0).any())
        seen.append(outside)
        if outside and obstacle == "raises":
            raise torch.linalg.LinAlgError("not positive definite")
        value, gradient = differentiated(gamma)[0](x)
        return (value.nan_to_num(nan=torch.inf) if obstacle == "infinite" else value), gradient

    path = minimise(f, torch.tensor([[1e-3, 50.0]]))
    assert any(seen)
    assert path.converged
    close(path.points[-1], [2.0, 2.0], 1e-4)
    assert bool(path.values.isfinite().all())
    assert bool((path.points > 0).all())


def test_many_dimensions(generator):
    w = torch.logspace(0, 3, 400)
    f, _ = differentiated(lambda x: 0.5 * (w * x.flatten(1) ** 2).sum(1))
    path = minimise(f, torch.randn(1, 20, 20, generator=generator))
    assert path.converged
    assert path.values[-1] < 1e-6
    assert path.points.shape == path.gradients.shape == (len(path.values), 20, 20)


def test_single_precision():
    path = minimise(differentiated(rosenbrock)[0], torch.tensor([[-1.2, 1.0]]).float())
    assert path.converged
    assert path.points.dtype == path.gradients.dtype == torch.float32
    close(path.points[-1].double(), torch.ones(2), 1e-3)


def test_what_does_not_converge_says_so():
    linear = minimise(differentiated(lambda x: x.sum(1))[0], torch.zeros(1, 2))
    wrong = minimise(lambda x: (x.square().sum(1) / 2, -x), torch.ones(1, 2))  # the sign of ∇f
    wall = minimise(
        lambda x: (torch.where((x > 0).all(1), x.sum(1), math.nan), x / x), torch.ones(1, 2)
    )
    short = minimise(differentiated(rosenbrock)[0], torch.tensor([[-1.2, 1.0]]), max_evaluations=9)
    assert not any(path.converged for path in (linear, wrong, wall, short))
    assert short.evaluations == 9
    assert len(wrong.points) == 1
    still = minimise(differentiated(rosenbrock)[0], torch.ones(1, 2))
    assert still.converged
    assert still.evaluations == 1


@pytest.mark.parametrize("d", [2, 250])
def test_several_starts_are_searched_as_each_alone(d, generator):
    """The same paths, with fewer calls of f where the search is ours."""
    w = torch.logspace(0, 2, d)

    def trap(x):
        value = 0.5 * (w * (x - 1) ** 2).sum(1) + (x[:, 0] - 1) ** 4
        return torch.where(x[:, 0] < -3, torch.nan, value)

    f, calls = differentiated(trap)
    x0 = 2 * torch.rand(5, d, generator=generator) - 1
    x0[1, 0], x0[3] = -2.99, 1.0  # beside a place without values, and at the minimum
    paths, together = minimise_each(f, x0), len(calls)
    alone = [minimise(f, row[None]) for row in x0]
    for a, b in zip(paths, alone, strict=True):
        assert a.converged
        assert a.evaluations == b.evaluations
        close(a.points, b.points, 1e-9)
        close(a.values, b.values, 1e-9, 1e-12)
    assert len(paths[3].points) == 1
    if d == 2:
        assert together < 0.6 * sum(a.evaluations for a in alone)


def test_an_error_in_one_search_is_no_error_in_others():
    def f(x):
        if bool((x[:, 0] <= 0).any()):
            raise torch.linalg.LinAlgError("not positive definite")
        return differentiated(gamma)[0](x)

    paths = minimise_each(f, torch.tensor([[1e-3, 50.0], [1.0, 3.0], [2.5, 0.5]]))
    for path in paths:
        assert path.converged
        close(path.points[-1], [2.0, 2.0], 1e-4)
    with pytest.raises(torch.linalg.LinAlgError, match="not positive"):
        minimise_each(f, torch.tensor([[1.0, 1.0], [-1.0, 1.0]]))


def test_refusals(as_user):
    f, _ = differentiated(gamma)
    with pytest.raises(ValueError, match="f or its gradient is not finite at x0"):
        minimise(f, -torch.ones(1, 2))
    with pytest.raises(ValueError, match="x0 has 2 rows: call minimise_each for several starts"):
        minimise(f, torch.ones(2, 2))
    with pytest.raises(TypeError, match=r"f must return shapes \(1,\) and \(1, 2\)"):
        minimise(lambda x: (x.sum(), x), torch.ones(1, 2))

    def broken(x):
        raise ValueError("a mistake in f")

    with pytest.raises(ValueError, match="a mistake in f"):  # at the start it is said, not hidden
        minimise(broken, torch.ones(1, 2))
