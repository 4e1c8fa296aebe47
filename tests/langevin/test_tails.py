"""Heavy tails: Student's t has the shape 1/ν, and a variance for ν > 2."""

import math

import pytest
import torch
from test_chain import Nothing

import gradlogp as glp
from gradlogp import Chain, as_target
from gradlogp.langevin.tails import critical_shape, falls, tail_shape


def student(nu, shape, generator):
    """z/√(χ²/ν), with χ² as a sum of squares."""
    chi2 = torch.randn(*shape, nu, generator=generator).square().sum(-1)
    return torch.randn(shape, generator=generator) / (chi2 / nu).sqrt()


def product(nu):
    return lambda x: -(nu + 1) / 2 * (x.square() / nu).log1p().sum(1)


def joint(nu):
    return lambda x: -(nu + x.shape[1]) / 2 * (x.square().sum(1) / nu).log1p()


def laplace(x):
    return -x.abs().sum(1)


LAWS = {
    "normal": lambda shape, g: torch.randn(shape, generator=g),
    "exponential": lambda shape, g: -torch.rand(shape, generator=g).log(),
    "t5": lambda shape, g: student(5, shape, g),
    "t2": lambda shape, g: student(2, shape, g),
    "Cauchy": lambda shape, g: student(1, shape, g),
}


def refused(law, n, d, runs, generator):
    """How many runs of exact draws have a coordinate judged to have no variance."""
    fits = tail_shape(LAWS[law]((n, d * runs), generator))
    bar = critical_shape(torch.full((d,), float(fits.n)))
    return int((fits.shape.reshape(runs, d) > bar).any(1).sum())


@pytest.mark.parametrize("d", [1, 10])
def test_variances_that_exist_are_not_doubted(d, generator):
    """At most 5 % of 100: 12 or more have a probability of 0.4 %."""
    for law in ("normal", "exponential", "t5"):
        assert refused(law, 1000, d, 100, generator) < 12
    assert refused("Cauchy", 1000, d, 20, generator) == 20
    assert refused("t2", 1000, d, 50, generator) > (20 if d == 1 else 42)


def test_the_shape_is_that_of_the_tail(generator):
    for nu in (1, 2):
        fit = tail_shape(student(nu, (40_000, 4), generator))
        assert fit.n == 600
        error = (1 + 1 / nu) / (4 * fit.n) ** 0.5
        assert abs(float(fit.shape.mean()) - 1 / nu) < 3.5 * error
    x = student(2, (500, 1), generator)
    assert torch.allclose(tail_shape(5 + 1e3 * x).shape, tail_shape(x).shape)


def test_the_fit_is_that_of_arviz(generator):
    """Which draws it towards 1/2 as ten more draws would."""
    stats = pytest.importorskip("arviz_stats.base").array_stats
    x = student(3, (1000, 1), generator)
    fit = tail_shape(x)
    far = (x[:, 0] - x[:, 0].median()).abs().sort().values
    theirs, _ = stats._gpdfit((far[-fit.n :] - far[-fit.n - 1]).numpy())
    assert math.isclose(float(fit.shape), (theirs * (fit.n + 10) - 5) / fit.n, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("log_prob", "axes", "rays"),
    [(product(2), -3, -9), (joint(2), -5, -5), (joint(5), -8, -8), (product(1), -2, -6)],
)
def test_slopes_far_out_are_those_of_the_law(log_prob, axes, rays, generator):
    x = torch.randn(200, 3, generator=generator)
    found = falls(as_target(log_prob=log_prob), x)
    assert torch.allclose(found.axes, torch.full((3,), float(axes)), atol=1e-3)
    assert torch.allclose(found.rays, torch.full((16,), float(rays)), atol=1e-2)


def judged(log_prob, draws):
    state = type("State", (), {"x": draws[:, -1]})()
    return Chain(draws, Nothing(), state, target=as_target(log_prob=log_prob)).verdict


@pytest.mark.parametrize(
    ("log_prob", "heavy"),
    [(product(2), True), (joint(2), True), (joint(1), True), (lambda x: 0 * x.sum(1), True),
     (product(3), False), (joint(3), False), (laplace, False),
     (lambda x: -x.square().sum(1) / 2, False),
     (lambda x: torch.where((x.abs() < 4).all(1), 0 * x.sum(1), -torch.inf), False)],
)  # fmt: skip
def test_the_density_itself_says_whether_there_is_a_variance(log_prob, heavy, generator):
    """The draws are normal, so that nothing else is said of them."""
    verdict = judged(log_prob, torch.randn(4, 250, 3, generator=generator))
    assert any("may not exist" in reason for reason in verdict.reasons) == heavy, verdict


def test_draws_alone_say_it_too(generator):
    draws = student(1, (4, 500, 2), generator)
    verdict = Chain(draws, Nothing(), None).verdict
    assert any("the shape of its tails is" in reason for reason in verdict.reasons), verdict
    assert not verdict.ok


def test_free_names_change_nothing(generator):
    """Of 4,000 draws of t₂ the shape alone says too little."""
    names = {"a": (2,), "b": ()}
    log_prob = lambda a, b: product(2)(torch.cat([a, b[:, None]], 1))
    for target, heavy in (
        (as_target(log_prob=log_prob, parameters=names), True),
        (as_target(distribution=torch.distributions.StudentT(torch.full((3,), 2.0))), True),
        (as_target(distribution=torch.distributions.StudentT(torch.full((3,), 4.0))), False),
    ):
        x = torch.randn(4, 3, generator=generator)
        chain = glp.run(glp.langevin.MALA(0.5), target, x, 50, generator=generator)
        assert any("falls like its power" in reason for reason in chain.verdict.reasons) == heavy


def test_chains_that_stay_have_no_tails():
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    x[300:380, 0] = 9.0
    x[380:410, 0] = torch.linspace(10.0, 12.0, 30)
    shape = tail_shape(x).shape
    assert bool(shape[0].isnan())
    assert float(shape[1]) < 0.5


def test_on_the_sphere_nothing_is_far_out(generator):
    pole = torch.tensor([0.0, 0.0, 2.0])
    law = as_target(log_prob=lambda x: x @ pole, score=lambda x: pole.expand_as(x))
    x = torch.nn.functional.normalize(torch.randn(8, 3, generator=generator), dim=1)
    chain = glp.run(glp.langevin.SphereMALA(0.5), law, x, 200, generator=generator)
    assert not any("may not exist" in reason for reason in chain.verdict.reasons)
