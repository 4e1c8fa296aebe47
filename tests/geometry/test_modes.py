"""The gradient flow against matrix exponentials, and stationary points against root finding."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq, root
from support import COV, MEAN, close

from gradlogp import Gaussian, GaussianMixture, as_target
from gradlogp.geometry.modes import find_modes, gradient_flow

P = torch.linalg.inv(COV)
PAIR = GaussianMixture([0.5, 0.5], [[-1.5, 0.0], [1.5, 0.0]], 0.49)
THREE = GaussianMixture(
    [0.2, 0.5, 0.3],
    [[-2.0, 0.0], [1.5, 1.0], [0.5, -2.0]],
    [[[0.5, 0.2], [0.2, 0.4]], [[0.8, -0.3], [-0.3, 0.6]], [[0.3, 0.0], [0.0, 0.9]]],
)


def ring(x):
    """log p of a ring of radius 2 whose ridge is a continuum of modes."""
    return -0.5 * (x.square().sum(1) - 4).square()


# ---------------------------------------------------------------------------- the flow


def test_the_flow_on_a_gaussian_contracts_by_the_matrix_exponential(generator):
    x0 = 3 * torch.randn(6, 2, generator=generator)
    t = torch.tensor([0.0, 1e-3, 0.1, 1.0, 3.0, 30.0])
    result = gradient_flow(Gaussian(MEAN, COV).score, x0, t)
    exact = MEAN + torch.einsum(
        "bij,bj->bi", torch.linalg.matrix_exp(-t[:, None, None] * P), x0 - MEAN
    )
    close(result.x, exact, 1e-8)
    assert bool((result.t == t).all())
    assert result.n_steps[0] == 0
    # the defect of a step is of order h⁵ and steps are chosen by it: error follows tolerance
    errors = [
        (
            gradient_flow(Gaussian(MEAN, COV).score, x0, 1.0, tolerance=tol).x
            - (MEAN + (x0 - MEAN) @ torch.linalg.matrix_exp(-P))
        )
        .abs()
        .max()
        for tol in (1e-3, 1e-6, 1e-9)
    ]
    assert errors[0] < 1e-2 and errors[1] < 1e-5 and errors[2] < 1e-8  # noqa: PT018


def test_the_flow_against_another_solver_and_in_any_shape(generator):
    x0 = torch.randn(3, 2, generator=generator)
    result = gradient_flow(THREE.score, x0, 0.8)
    field = lambda _, v: THREE.score(torch.as_tensor(v).reshape(3, 2)).flatten().numpy()
    start = x0.flatten().numpy()
    other = solve_ivp(field, (0, 0.8), start, method="DOP853", rtol=1e-11, atol=1e-11)
    close(result.x.flatten(), other.y[:, -1], 1e-8)
    shaped = gradient_flow(
        lambda x: THREE.score(x.flatten(1)).reshape(x.shape), x0[:, :, None], 0.8
    )
    close(shaped.x[:, :, 0], result.x, 1e-12)
    # units of length do not matter: x -> c x turns s into s / c and t into c² t
    c = 1e-5
    tiny = gradient_flow(lambda x: THREE.score(x / c) / c, c * x0, 0.8 * c**2)
    close(tiny.x / c, result.x, 1e-8)


def test_log_p_rises_by_the_squared_score_along_the_flow(generator):
    x0 = torch.randn(1, 2, generator=generator)
    u, weight = (torch.as_tensor(v) for v in np.polynomial.legendre.leggauss(24))
    times = torch.cat([torch.tensor([0.6, 0.3 + 1e-4, 0.3 - 1e-4, 0.3]), 0.3 * (u + 1)])
    x = gradient_flow(THREE.score, x0.expand(28, 2), times).x
    squared = THREE.score(x[3:]).square().sum(1)
    end, after, before = THREE.log_prob(x[:3])
    close(end - THREE.log_prob(x0)[0], 0.3 * weight @ squared[1:], 1e-8)
    close((after - before) / 2e-4, squared[0], 1e-5)


def test_rows_do_not_depend_on_those_beside_them(generator):
    x0 = 2 * torch.randn(5, 2, generator=generator)
    together = gradient_flow(THREE.score, x0, 1.0)
    found = find_modes(THREE, x0)
    for i in (3,):
        alone = gradient_flow(THREE.score, x0[i : i + 1], 1.0)
        close(alone.x, together.x[i : i + 1], 1e-12)
        assert alone.n_steps[0] == together.n_steps[i]
        one = find_modes(THREE, x0[i : i + 1])
        close(one.points[0], found.points[found.basin[i]], 1e-12)
        assert one.n_steps[0] == found.n_steps[i]


def test_a_flow_that_does_not_arrive_says_how_far_it_came():
    x0 = torch.tensor([[1.0], [0.0]])
    result = gradient_flow(lambda x: x**3, x0, torch.tensor([1.0, 1.0]), max_steps=200)
    assert 0.4 < result.t[0] <= 0.5  # 1/√(1 − 2t) ends at t = ½
    assert result.t[1] == 1.0
    assert result.n_steps[0] == 200


# ---------------------------------------------------------------------------- modes


def test_a_gaussian_has_one_mode(generator):
    law = Gaussian(MEAN, COV)
    result = find_modes(law, 5 * torch.randn(4, 2, generator=generator))
    assert result.kind == ("mode",)
    assert result.index.tolist() == [0]
    assert result.basin.tolist() == [0, 0, 0, 0]
    close(result.points, MEAN[None], 1e-12)
    close(result.eigenvalues[0], -torch.linalg.eigvalsh(P).flip(0), 1e-12)
    close(result.log_prob, law.log_prob(MEAN[None]), 1e-12)


def test_modes_of_a_mixture_are_roots_of_the_score(generator):
    x0 = 2 * torch.randn(20, 2, generator=generator)
    result = find_modes(THREE, x0)
    assert result.kind == ("mode",) * 3
    for point, mean in zip(result.points, result.points, strict=True):
        exact = root(lambda v: THREE.score(torch.as_tensor(v)[None])[0].numpy(), mean, tol=1e-14).x
        close(point, exact, 1e-10)
    assert float(THREE.score(result.points).abs().max()) < 1e-12
    close(result.eigenvalues, torch.linalg.eigvalsh(THREE.hessian(result.points)), 1e-10)
    # basins: where the flow itself ends after a long time
    ends = gradient_flow(THREE.score, x0, 60.0, tolerance=1e-9).x
    nearest = torch.cdist(ends, result.points)
    assert float(nearest.min(1).values.max()) < 1e-6
    assert bool((nearest.argmin(1) == result.basin).all())


def test_basins_of_a_symmetric_pair_are_half_planes(generator):
    x0 = torch.cat(
        [3 * torch.randn(200, 2, generator=generator), torch.tensor([[1e-4, 2.0], [-1e-4, 9.0]])]
    )
    result = find_modes(PAIR, x0)
    assert result.kind == ("mode", "mode")
    assert bool((result.points[result.basin, 0].sign() == x0[:, 0].sign()).all())
    x = brentq(lambda v: PAIR.score(torch.tensor([[v, 0.0]]))[0, 0].item(), 1.0, 2.0, xtol=1e-14)
    close(result.points.sort(0).values, torch.tensor([[-x, 0.0], [x, 0.0]]), 1e-10)


def test_the_saddle_of_a_symmetric_pair(generator):
    """At 0 the eigenvalue along the axis is a²/s⁴ − 1/s², and −1/s² across."""
    x0 = torch.tensor([[1.0, 0.5], [-2.0, 0.3]])
    plain, result = find_modes(PAIR, x0), find_modes(PAIR, x0, also_saddles=True)
    assert plain.kind == ("mode", "mode")
    assert result.kind == ("mode", "mode", "saddle")
    close(result.points[2], torch.zeros(2), 1e-10)
    assert result.index.tolist() == [0, 0, 1]
    close(result.eigenvalues[2], [-1 / 0.49, 2.25 / 0.49**2 - 1 / 0.49], 1e-10)
    assert result.basin.tolist() == [0, 1]
    # a start on the border flows to the saddle, and says so
    border = find_modes(PAIR, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    assert border.kind == ("saddle",)
    assert border.basin.tolist() == [0, 0]


def test_saddles_of_an_asymmetric_mixture(generator):
    result = find_modes(THREE, 2 * torch.randn(20, 2, generator=generator), also_saddles=True)
    n = {kind: result.kind.count(kind) for kind in ("mode", "saddle", "minimum", "degenerate")}
    # a smooth density on the plane that falls at infinity: modes − saddles + minima = 1
    assert n["mode"] - n["saddle"] + n["minimum"] == 1
    assert n["mode"] == 3
    assert n["degenerate"] == 0
    assert float(THREE.score(result.points).abs().max()) < 1e-11
    assert result.index.tolist() == [
        {"mode": 0, "saddle": 1, "minimum": 2}[k] for k in result.kind
    ]


def test_a_mixture_on_the_line_has_a_minimum_between_its_modes():
    law = GaussianMixture([0.3, 0.7], [[-1.0], [2.0]], [0.3, 0.6])
    result = find_modes(law, torch.tensor([[-3.0], [3.0]]), also_saddles=True)
    assert result.kind == ("mode", "mode", "minimum")
    exact = brentq(lambda v: law.score(torch.tensor([[v]])).item(), -0.5, 1.5, xtol=1e-14)
    close(result.points[2, 0], exact, 1e-10)
    assert result.index[2] == 1
    # bimodal or not: a²/s⁴ − 1/s² changes sign at a = s
    for a, n in ((0.95, 1), (1.05, 3)):
        pair = GaussianMixture([0.5, 0.5], [[-a], [a]])
        found = find_modes(pair, torch.tensor([[-3.0], [3.0]]), also_saddles=True)
        assert len(found.kind) == n
        if n == 3:
            close(found.eigenvalues[2, 0], a**2 - 1, 1e-10)


@pytest.mark.parametrize("known", ["log_prob", "score"])
def test_targets_without_a_hessian_or_a_log_density(known, generator):
    x0 = torch.randn(6, 2, 1, generator=generator)
    part = getattr(THREE, known)
    function = (
        (lambda x: part(x.flatten(1)).reshape(x.shape))
        if known == "score"
        else (lambda x: part(x.flatten(1)))
    )
    result = find_modes(as_target(**{known: function}), x0)
    expected = find_modes(THREE, x0[..., 0])
    close(result.points[..., 0], expected.points, 1e-10)
    close(result.eigenvalues, expected.eigenvalues, 1e-9)
    assert result.basin.tolist() == expected.basin.tolist()
    assert (result.log_prob is None) == (known == "score")


def test_a_flat_direction_is_degenerate(generator):
    x0 = torch.randn(5, 2, generator=generator) + 0.1
    result = find_modes(as_target(log_prob=ring), x0)
    assert set(result.kind) == {"degenerate"}
    assert bool((result.basin >= 0).all())
    ends = result.points[result.basin]
    close(ends.norm(dim=1), torch.full((5,), 2.0), 1e-10)
    # by symmetry the flow is radial
    close(ends / 2, x0 / x0.norm(dim=1, keepdim=True), 1e-8)
    close(result.eigenvalues, torch.tensor([-16.0, 0.0]).expand(len(ends), 2), 1e-9)
    ridge = find_modes(as_target(score=lambda x: torch.stack([-x[:, 0], 0 * x[:, 1]], 1)), x0)
    close(ridge.points, torch.stack([torch.zeros(5), x0[:, 1]], 1), 1e-12)
    assert find_modes(as_target(score=lambda x: 0 * x), x0).kind == ("degenerate",) * 5
    quartic = find_modes(
        as_target(log_prob=lambda x: -(x**4).sum(1)), torch.tensor([[1.0], [-2.0]])
    )
    assert set(quartic.kind) == {"degenerate"}
    assert float(quartic.points.abs().max()) < 1e-3


def test_a_start_that_does_not_converge_has_no_basin():
    x0 = torch.tensor([[0.0, 1.0], [2.0, -1.0]])
    for score in (lambda x: torch.ones_like(x) + 0 * x, lambda x: x.abs() + 1):
        with pytest.warns(RuntimeWarning, match=r"2 of 2 starts reached no stationary point"):
            result = find_modes(as_target(score=score), x0, also_saddles=True, max_steps=40)
        assert result.basin.tolist() == [-1, -1]
        assert result.kind == ()
        assert result.points.shape == (0, 2)
    climbs = as_target(log_prob=lambda x: x.exp().log1p().sum(1))
    with pytest.warns(RuntimeWarning, match=r"2 of 2 starts reached no stationary point"):
        assert find_modes(climbs, x0, max_steps=40).basin.tolist() == [-1, -1]
    with pytest.warns(RuntimeWarning, match=r"of 2 starts reached no stationary point"):
        short = find_modes(THREE, torch.tensor([[9.0, 9.0], [0.0, 0.3]]), max_steps=1)
    assert -1 in short.basin.tolist()


class Regression:
    """y ~ N(a + b x, e^l) with flat priors, on years that are not centred; it counts evaluations."""

    def __init__(self, unit=1.0):
        self.year = torch.arange(1950.0, 2010.0)
        self.y = 0.02 * (self.year - 1980) + torch.sin(self.year) + 9
        self.unit, self.n = unit, 0
        self.target = as_target(log_prob=self._log_prob)

    def _log_prob(self, x):
        self.n += len(x)
        x = x / self.unit
        rest = (self.y - x[:, :1] - x[:, 1:2] * self.year) / x[:, 2:].exp()
        return -0.5 * rest.square().sum(1) - (len(self.y) - 1) * x[:, 2]

    def mode(self):
        X = torch.stack([torch.ones(60), self.year - 1980], 1)
        slope = torch.linalg.lstsq(X, self.y).solution
        rest = (self.y - X @ slope).square().sum()
        return torch.stack([slope[0] - 1980 * slope[1], slope[1], 0.5 * (rest / 59).log()])


@pytest.mark.parametrize("unit", [pytest.param(1.0, marks=pytest.mark.slow), 1e-5])
def test_a_regression_on_raw_units(unit, generator):
    """Condition number 10¹¹: the flow needs as many steps, quasi-Newton a hundred evaluations."""
    model = Regression(unit)
    x0 = unit * (4 * torch.rand(4, 3, generator=generator) - 2)
    found = find_modes(model.target, x0)
    assert model.n < 4000
    assert found.kind == ("mode",)
    assert found.basin.tolist() == [0, 0, 0, 0]
    assert not bool(found.by_flow.any())
    close(found.points[0] / unit, model.mode(), 1e-5)
    # on a law that is not stiff the flow does it all
    assert bool(find_modes(THREE, torch.randn(4, 2, generator=generator)).by_flow.all())


def test_a_flat_eigenvalue_is_not_a_small_one():
    """Both have condition numbers beyond 1/√eps: one direction is long, or log p is flat along it."""
    long = as_target(log_prob=lambda x: -0.5 * (x[:, 0] ** 2 + (1e-6 * x[:, 1]) ** 2))
    x0 = torch.tensor([[1.0, 1.0], [0.5, -2e6], [-1.0, 10.0]])
    found = find_modes(long, x0)
    assert found.kind == ("mode",)
    close(found.points / torch.tensor([1.0, 1e6]), torch.zeros(1, 2), 1e-6)
    contact = as_target(log_prob=lambda x: -0.5 * x[:, 0] ** 2 - (1e-3 * x[:, 1]) ** 4)
    assert set(find_modes(contact, x0[:1]).kind) == {"degenerate"}


def test_steps_that_lower_log_p_are_refused():
    """A score that points the wrong way: with log p known nothing moves, without it all does."""
    wrong = lambda x: x.clone()
    x0 = torch.ones(1, 2)
    with pytest.warns(RuntimeWarning, match="1 of 1 starts"):
        result = find_modes(as_target(wrong, lambda x: -x.square().sum(1) / 2), x0, max_steps=50)
    assert result.basin.tolist() == [-1]
    # Newton alone would have gone to 0, where this score vanishes too
    assert result.kind == ()


def test_units_origin_and_dtype(generator):
    x0 = 2 * torch.randn(8, 2, generator=generator)
    expected = find_modes(THREE, x0)
    for c, shift in ((1e-6, 0.0), (1e4, 0.0), (1.0, 1e4)):
        score = lambda x: THREE.score((x - shift) / c) / c  # noqa: B023
        result = find_modes(as_target(score), c * x0 + shift)
        close((result.points - shift) / c, expected.points, 1e-9)
        assert result.basin.tolist() == expected.basin.tolist()
    single = find_modes(THREE, x0.float())
    assert single.points.dtype == torch.float32
    close(single.points.double(), expected.points, 1e-5)
    assert single.kind == expected.kind


def test_many_dimensions_and_stiffness(generator):
    w = torch.logspace(0, 2.5, 6)
    U = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    H = (U * w) @ U.mT
    x0 = 0.3 * torch.randn(2, 6, generator=generator)
    # log p = −½ xᵀHx − ¼ (xᵀHx)²: convex, not quadratic, condition number 300
    log_p = lambda x: -0.5 * (q := torch.einsum("bi,ij,bj->b", x, H, x)) - 0.25 * q**2
    result = find_modes(as_target(log_prob=log_p), x0)
    assert result.kind == ("mode",)
    assert float(result.points.abs().max()) < 1e-9
    close(result.eigenvalues[0] / -w.flip(0), torch.ones(6), 1e-6)
    assert math.isfinite(float(result.log_prob[0]))


def test_bad_input_is_refused(as_user):
    x0 = torch.zeros(3, 1)
    for function in (lambda x: find_modes(THREE, x), lambda x: gradient_flow(THREE.score, x, 1.0)):
        with pytest.raises(ValueError, match="x0 has 1 of 2 rows that are not finite"):
            function(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]))
        with pytest.raises(ValueError, match="x0 must be floating point"):
            function(torch.zeros(2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"score at x0 is not finite in rows \[0, 1, 2\]"):
        find_modes(as_target(score=lambda x: 1 / x), x0)
    with pytest.raises(ValueError, match="target must be a density"):
        find_modes(lambda x: x, x0)
    with pytest.raises(ValueError, match="t must be at least 0 and finite"):
        gradient_flow(torch.neg, x0, -1.0)
    with pytest.raises(ValueError, match=r"t must have shape \(\) or \(3,\)"):
        gradient_flow(torch.neg, x0, torch.ones(2))
    with pytest.raises(ValueError, match="score returned shape"):
        gradient_flow(lambda x: x[:, 0], x0, 1.0)
