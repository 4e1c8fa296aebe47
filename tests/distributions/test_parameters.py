"""Named parameters: the density that is sampled is that of the values, whatever they are."""

import inspect
import math
from itertools import combinations

import pytest
import torch
from support import close
from torch import nn
from torch.distributions import (
    AffineTransform,
    Beta,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Independent,
    LKJCholesky,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    Pareto,
    Poisson,
    TransformedDistribution,
    Uniform,
    Wishart,
    constraints,
)
from torch.distributions import Categorical as Choice
from torch.func import functional_call

from gradlogp import as_target, run
from gradlogp.core import Density
from gradlogp.distributions import Observed, Parameters, Target, ordered
from gradlogp.distributions.parameters import parameters_of
from gradlogp.langevin import HMC, MALA, SGLD, Preconditioner

SPEC = {
    "beta": (3,),
    "sigma": constraints.positive,
    "p": ((4,), constraints.simplex),
    "L": ((2, 2), constraints.corr_cholesky),
    "c": (),
}


def density(beta, sigma, p, L, c):
    """A function of all of them, on a batch of chains."""
    return (
        -0.5 * (beta / sigma[:, None]).square().sum(1)
        - 3 * sigma.log()
        - 1 / sigma
        + (p.log() * torch.arange(1.0, 5.0).to(p)).sum(1)
        + 2 * L[:, 1, 1].log()
        - 0.5 * (c - beta[:, 0]).square()
    )


def density_of_one(beta, sigma, p, L, c):
    """The same for one chain."""
    return (
        -0.5 * (beta / sigma).square().sum()
        - 3 * sigma.log()
        - 1 / sigma
        + (p.log() * torch.arange(1.0, 5.0).to(p)).sum()
        + 2 * L[1, 1].log()
        - 0.5 * (c - beta[0]).square()
    )


# ------------------------------------------------------------------------ names and shapes


def test_names_shapes_and_where_everything_stands(generator):
    parameters = Parameters(SPEC)
    assert (parameters.n_free, parameters.n_flat) == (3 + 1 + 3 + 1 + 1, 3 + 1 + 4 + 4 + 1)
    assert parameters.names() == [
        "beta[0]", "beta[1]", "beta[2]", "sigma", "p[0]", "p[1]", "p[2]", "p[3]",
        "L[0,0]", "L[0,1]", "L[1,0]", "L[1,1]", "c",
    ]  # fmt: skip
    z = torch.randn(6, 9, generator=generator)
    named, log_det = parameters.unpack(z)
    assert {k: tuple(v.shape) for k, v in named.items()} == {
        "beta": (6, 3), "sigma": (6,), "p": (6, 4), "L": (6, 2, 2), "c": (6,),
    }  # fmt: skip
    close(named["beta"], z[:, :3], 0)
    close(named["sigma"], z[:, 3].exp(), 1e-14)
    close(named["c"], z[:, 8], 0)
    flat = parameters.constrain(z)
    for name, value in parameters.split(flat).items():
        assert torch.equal(value, named[name])
    assert torch.equal(flat, torch.cat([v.reshape(6, -1) for v in named.values()], 1))
    log_sech2 = 1 - z[:, 7].tanh() ** 2
    close(log_det, z[:, 3] + named["p"].log().sum(1) + log_sech2.log(), 1e-12)
    close(parameters.unconstrain(named), z, 1e-12)
    close(parameters.unconstrain(flat), z, 1e-12)
    assert parameters.constant == (False,) * 8 + (True, True, False, False, False)
    assert "sigma: () GreaterThan" in repr(parameters)
    nested = parameters.split(flat.reshape(2, 3, 13))
    assert nested["L"].shape == (2, 3, 2, 2)


def test_a_list_is_a_shape_too_and_vectors_of_numbers_are_free(generator):
    parameters = Parameters({"a": [2], "b": ((2,), constraints.real_vector)})
    z = torch.randn(3, 4, generator=generator)
    assert torch.equal(parameters.constrain(z), z)
    assert not bool(parameters.unpack(z)[1].any())


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({}, "at least one entry"),
        ([("a", (3,))], "must be a dictionary"),
        ({"a b": (3,)}, "a valid keyword name"),
        ({"a": 3}, "a must be a shape such as"),
        ({"a": (3.0,)}, "a must be a shape"),
        ({"a": (0,)}, "a must be a shape"),
        ({"a": ((3,), "positive")}, "a must be a shape"),
        ({"a": constraints.interval}, "a must be a shape"),
        ({"p": constraints.simplex}, r"p: Simplex\(\) constrains 1 dimensions jointly"),
        ({"p": ((1,), constraints.simplex)}, "at least 2 entries"),
        ({"L": ((2, 3), constraints.corr_cholesky)}, r"shape \(d, d\) with d >= 2"),
        ({"L": ((1, 1), constraints.corr_cholesky)}, r"shape \(d, d\) with d >= 2"),
        (
            {"a": constraints.interval(torch.zeros(2), torch.ones(2))},
            r"must broadcast to \(\); with them it is \(2,\)",
        ),
        ({"n": constraints.nonnegative_integer}, "n: .* discrete values have no score"),
        (nn.Tanh(), "at least one entry"),
    ],
)
def test_refuses_declarations(declared, message):
    with pytest.raises(ValueError, match=message):
        Parameters(declared)


@pytest.mark.usefixtures("as_user")
def test_refuses_values_that_have_no_free_numbers():
    parameters = Parameters({"a": (2,), "s": constraints.positive, "u": constraints.unit_interval})
    good = {"a": torch.zeros(3, 2), "s": torch.ones(3), "u": torch.full((3,), 0.5)}
    assert parameters.unconstrain(good).shape == (3, 4)
    for change, message in (
        ({"a": torch.zeros(2)}, r"a must have shape \(B, 2\), got \(2,\)"),
        ({"s": torch.tensor([1.0, -1.0, 2.0])}, "s must satisfy GreaterThan"),
        ({"s": torch.tensor([1.0, math.inf, 2.0])}, "s must lie strictly inside"),
        ({"a": torch.full((3, 2), math.nan)}, "a must"),
        ({"b": torch.zeros(3)}, "values must have the names a, s, u, got a, s, u, b"),
    ):
        with pytest.raises(ValueError, match=message):
            parameters.unconstrain(good | change)
    with pytest.raises(ValueError, match="are 4 numbers"):
        parameters.unconstrain(torch.zeros(3, 5))
    with pytest.raises(
        ValueError, match=r"4 unconstrained numbers, z of shape \(B, 4\), got \(3, 5\)"
    ):
        parameters.unpack(torch.zeros(3, 5))


# ------------------------------------------------------------------------ targets


def test_the_density_of_free_numbers_has_the_jacobian_once(generator):
    target = as_target(log_prob=density, parameters=SPEC)
    assert isinstance(target, Density)
    assert target.event_shape == (9,)
    z = torch.randn(5, 9, generator=generator)
    named, log_det = target.parameters.unpack(z)
    close(target.log_prob(z), density(**named) + log_det, 1e-13)
    value, score = target.log_prob_and_score(z)
    close(value, target.log_prob(z), 1e-13)
    close(score, target.score(z), 1e-13)
    h = 1e-5
    for i in range(9):
        step = h * torch.eye(9)[i]
        slope = (target.log_prob(z + step) - target.log_prob(z - step)) / (2 * h)
        close(score[:, i], slope, 1e-7)
    close(target.constrain(z), target.parameters.constrain(z), 0)


def test_an_energy_turns_the_sign_of_the_function_and_not_of_the_jacobian(generator):
    z = torch.randn(5, 9, generator=generator)
    target = as_target(energy=lambda **named: -density(**named), parameters=SPEC)
    close(target.log_prob(z), as_target(log_prob=density, parameters=SPEC).log_prob(z), 1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_function_of_one_chain(dtype, generator):
    z = torch.randn(5, 9, generator=generator).to(dtype)
    target = as_target(log_prob=density_of_one, parameters=SPEC, vectorized=False)
    other = as_target(log_prob=density, parameters=SPEC)
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    close(target.log_prob(z), other.log_prob(z), rtol)
    close(target.score(z), other.score(z), rtol)
    value, score = target.log_prob_and_score(z)
    assert value.dtype == score.dtype == dtype
    close(score, other.score(z), rtol)


def test_functions_of_one_chain_without_names(generator):
    x = torch.randn(4, 3, generator=generator)
    one = as_target(log_prob=lambda x: -x.square().sum() / 2, event_shape=(3,), vectorized=False)
    close(one.log_prob(x), -x.square().sum(1) / 2, 1e-14)
    close(one.score(x), -x, 1e-14)
    only = as_target(score=lambda x: -x, vectorized=False)
    close(only.score(x), -x, 0)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3\), got \(4, 2\)"):
        one.score(x[:, :2])


@pytest.mark.usefixtures("as_user")
def test_refuses_what_does_not_fit():
    positive = {"x": constraints.positive}
    for options, message in (
        ({"score": torch.neg, "parameters": positive}, "needs log_prob= or energy="),
        ({"parameters": positive}, "as_target needs score="),
        ({"log_prob": density, "parameters": positive}, "log_prob must take x by keyword"),
        ({"log_prob": lambda p: p, "parameters": SPEC}, "must take beta, sigma, p, L, c by keyw"),
        ({"energy": 3.0, "parameters": positive}, "energy must be a function"),
        (
            {"log_prob": lambda x: x, "parameters": positive, "event_shape": (1,)},
            "event_shape= or parameters=",
        ),
        ({"distribution": Gamma(2.0, 1.0), "parameters": positive}, "distribution= alone"),
        ({"distribution": Gamma(2.0, 1.0), "log_prob": density}, "distribution= alone"),
        ({"distribution": Poisson(2.0)}, "no density: discrete distributions"),
        ({"distribution": density}, "one of torch.distributions, got function"),
    ):
        with pytest.raises(ValueError, match=message):
            as_target(**options)
    with pytest.raises(
        ValueError, match=r"log_prob must return shape \(4,\), one number per chain"
    ):
        as_target(log_prob=lambda x: x.sum(), parameters=positive).score(torch.zeros(4, 1))
    target = as_target(log_prob=lambda x: -x, parameters=positive)
    for call in (target.log_prob, target.score, target.log_prob_and_score):
        with pytest.raises(ValueError, match=r"x must have shape \(B, 1\)"):
            call(torch.zeros(4, 2))


def test_the_method_of_a_module_is_no_parameters():
    assert parameters_of(nn.Linear(2, 1)) is None
    assert parameters_of(as_target(score=torch.neg)) is None


# ------------------------------------------------------------------------ proposals far out


def careful(mu, sigma):
    """As people write it: the law checks its arguments, and raises for all chains."""
    return Normal(mu, sigma).log_prob(torch.tensor(0.3)) + Gamma(2.0, 1.0).log_prob(sigma)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize(
    "bad", [[0.0, -800.0], [math.nan, 0.0], [0.0, math.nan], [math.inf, 0.0], [0.0, 800.0]]
)
def test_a_chain_that_overflows_is_nan_and_no_error_for_the_others(vectorized, bad, generator):
    if not vectorized and "_is_all_true" not in inspect.getsource(Distribution):
        pytest.skip("this PyTorch cannot check arguments of laws inside vmap: refused, in words")
    parameters = {"mu": (), "sigma": constraints.positive}
    target = as_target(log_prob=careful, parameters=parameters, vectorized=vectorized)
    z = torch.randn(3, 2, generator=generator)
    expected = target.log_prob_and_score(z)
    wrong = torch.stack([z[0], torch.tensor(bad), z[2]])
    value, score = target.log_prob_and_score(wrong)
    for found, right in zip((value, score), expected, strict=True):
        close(found[[0, 2]], right[[0, 2]], 1e-13)
        assert not bool(torch.isfinite(found[1]).all())
    assert not bool(torch.isfinite(target.score(wrong)[1]).all())


@pytest.mark.usefixtures("as_user")
def test_a_mistake_in_the_function_is_still_raised():
    def wrong(sigma):
        return Normal(0.0, -sigma).log_prob(torch.tensor(0.3))

    for vectorized in (True, False):
        target = as_target(
            log_prob=wrong, parameters={"sigma": constraints.positive}, vectorized=vectorized
        )
        with pytest.raises((ValueError, RuntimeError)):
            target.log_prob(torch.zeros(3, 1))
    target = as_target(log_prob=lambda x: x @ torch.ones(7), parameters={"x": (3,)})
    with pytest.raises(RuntimeError, match="size"):
        target.score(torch.zeros(2, 3))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.usefixtures("as_user")
def test_laws_that_branch_inside_vmap_are_named(generator):
    """A positive definite value is checked by a branch, which `torch.func.vmap` cannot take."""
    spec = {"S": ((2, 2), constraints.positive_definite)}

    def density(S, **options):
        return Wishart(torch.tensor(5.0), torch.eye(2), **options).log_prob(S)

    z = torch.randn(3, 3, generator=generator)
    with pytest.raises(ValueError, match="pass them validate_args=False"):
        as_target(log_prob=density, parameters=spec, vectorized=False).score(z)
    unchecked = lambda S: density(S, validate_args=False)
    target = as_target(log_prob=unchecked, parameters=spec, vectorized=False)
    close(target.score(z), as_target(log_prob=density, parameters=spec).score(z), 1e-12)


@pytest.mark.usefixtures("as_user")
def test_a_wild_step_is_a_rejection(generator):
    parameters = {"mu": (), "sigma": constraints.positive}
    target = as_target(log_prob=careful, parameters=parameters)
    x0 = 0.1 * torch.randn(8, 2, generator=generator)
    with pytest.warns(RuntimeWarning, match="diverged"):
        chain = run(HMC(60.0, 10), target, x0, 10, generator=generator)
    assert bool(torch.isfinite(chain.draws).all())


# ------------------------------------------------------------------------ laws of PyTorch


def laws():
    one, two = torch.tensor(1.0), torch.tensor([0.5, 2.0])
    V = torch.tensor([[0.8, 0.3], [0.3, 0.5]])
    mixture = Choice(torch.tensor([0.3, 0.7]))
    return {
        "log-normal": LogNormal(0.3 * one, 0.5 * one),
        "gamma": Gamma(two, one),
        "independent": Independent(Gamma(two, one), 1),
        "beta": Beta(2 * one, 5 * one),
        "pareto": Pareto(one, 3 * one),
        "uniform": Uniform(-one, 2 * one),
        "exponential": Exponential(two),
        "dirichlet": Dirichlet(torch.tensor([2.0, 3.0, 4.0])),
        "dirichlets": Dirichlet(torch.tensor([[2.0, 3.0], [4.0, 0.5]])),
        "correlations": LKJCholesky(3, 2.0),
        "normal": MultivariateNormal(two, V),
        "mixture": MixtureSameFamily(mixture, Normal(two, one)),
        "positive mixture": MixtureSameFamily(mixture, Gamma(two, one)),
        "covariances": Wishart(5 * one, V),
        "turned": TransformedDistribution(Normal(one, one), [AffineTransform(1.0, -2.0)]),
    }


@pytest.mark.parametrize("name", laws())
def test_a_law_is_its_own_density_times_the_jacobian(name, generator):
    law = laws()[name]
    target = as_target(distribution=law)
    z = torch.randn(6, *target.event_shape, generator=generator)
    named, log_det = target.parameters.unpack(z)
    assert named["x"].shape == (6, *law.batch_shape, *law.event_shape)
    close(target.log_prob(z), law.log_prob(named["x"]).reshape(6, -1).sum(1) + log_det, 1e-12)
    assert target.score(z).shape == z.shape


def test_laws_whose_free_numbers_have_a_known_law(generator):
    z = torch.randn(9, 2, generator=generator)
    target = as_target(distribution=LogNormal(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0])))
    normal = Normal(torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0]))
    close(target.log_prob(z), normal.log_prob(z).sum(1), 1e-12)
    close(target.score(z), (normal.mean - z) / normal.variance, 1e-12)
    logistic = -z.abs() - 2 * torch.log1p((-z.abs()).exp())
    uniform = as_target(distribution=Uniform(torch.full((2,), -1.0), torch.full((2,), 2.0)))
    close(uniform.log_prob(z), logistic.sum(1), 1e-12)
    flat = as_target(distribution=Dirichlet(torch.ones(2)))
    close(flat.log_prob(z[:, :1]), logistic[:, 0], 1e-12)


def test_a_law_that_hides_its_support_is_not_continued_beyond_it():
    """An affine map of an exponential law says that its support is all numbers."""
    law = TransformedDistribution(Exponential(torch.tensor(1.0)), [AffineTransform(5.0, 1.0)])
    with pytest.raises(ValueError, match="support"):
        as_target(distribution=law).log_prob(torch.zeros(3, 1))


# ------------------------------------------------------------------------ networks


def test_a_bayesian_network_takes_ten_lines():
    """Ten lines from the data to predictions, sampled for all weights."""

    def ten_lines(x, y, new):
        net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

        def log_prob(weights):
            error = y - functional_call(net, weights, x)
            return -50 * error.square().sum() - sum(w.square().sum() / 2 for w in weights.values())

        target = as_target(log_prob=log_prob, parameters=net, vectorized=False)
        start = 0.5 * torch.randn(4, *target.event_shape, generator=torch.manual_seed(0))
        chain = run(HMC(0.01, 15), target, start, 110, burn_in=60, adapt=True)
        predict = lambda weights: {"y": functional_call(net, weights, new)}
        return chain, chain.derived(predict, vectorized=False)["y"]

    body = inspect.getsource(ten_lines).splitlines()[1:]
    assert len([line for line in body if line.strip()]) <= 10
    x = torch.linspace(-2, 2, 30).unsqueeze(1)
    chain, predicted = ten_lines(x, torch.sin(2 * x), torch.tensor([[-0.7], [0.4]]))
    assert chain["0.weight"].shape == (4, 50, 8, 1)
    assert chain["2.bias"].shape == (4, 50, 1)
    assert chain.draws.shape == (4, 50, 25)
    assert chain.summary().rows[0].name == "0.weight[0,0]"
    assert predicted.shape == (4, 50, 2, 1)
    truth = torch.sin(2 * torch.tensor([-0.7, 0.4]))
    assert bool((predicted.mean((0, 1))[:, 0] - truth).abs().max() < 0.1)


def linear_regression(generator):
    """Data, and the exact posterior of weights and bias under N(0, 1) priors and noise 0.5."""
    x = torch.randn(40, 2, generator=generator)
    y = x @ torch.tensor([1.0, -0.5]) + 0.3 + 0.5 * torch.randn(40, generator=generator)
    features = torch.cat([x, torch.ones(40, 1)], 1)
    precision = torch.eye(3) + features.T @ features / 0.25
    return x, y, torch.linalg.solve(precision, features.T @ y / 0.25), precision


def test_the_posterior_of_a_linear_network_is_gaussian(generator):
    x, y, mean, precision = linear_regression(generator)
    net = nn.Linear(2, 1)

    def log_prob(weights):
        prior = -0.5 * sum(w.square().sum() for w in weights.values())
        return prior - 2 * (y - functional_call(net, weights, x)[:, 0]).square().sum()

    target = as_target(log_prob=log_prob, parameters=net, vectorized=False)
    z = torch.randn(5, 3, generator=generator)
    close(target.score(z), (mean - z) @ precision, 1e-10)
    assert list(target.parameters.shapes) == ["weight", "bias"]


def test_frozen_weights_are_not_sampled(generator):
    net = nn.Linear(2, 1)
    net.bias.requires_grad_(False)
    assert Parameters(net).names() == ["weight[0,0]", "weight[0,1]"]


# ------------------------------------------------------------------------ observations


DATA = torch.tensor([[1.2, 0.4], [-0.3, 1.0], [0.7, -2.0], [2.0, 0.1], [0.2, 0.6]]).double()


def log_prior(w, sigma):
    return -0.5 * w.square().sum(1) - 2 * sigma.log() - 1 / sigma


def log_likelihood(rows, w, sigma):
    error = (rows[:, 1] - w @ rows[:, :1].mT.expand(2, -1)) / sigma[:, None]
    return -0.5 * error.square() - sigma.log()[:, None]


def prior_of_one(w, sigma):
    return -0.5 * w.square().sum() - 2 * sigma.log() - 1 / sigma


def likelihood_of_one(rows, w, sigma):
    return -0.5 * ((rows[:, 1] - w.sum() * rows[:, 0]) / sigma).square() - sigma.log()


NAMED = {"w": (2,), "sigma": constraints.positive}
POSTERIORS = {
    True: Observed(log_prior, log_likelihood, DATA, NAMED),
    False: Observed(prior_of_one, likelihood_of_one, DATA, NAMED, vectorized=False),
}


@pytest.mark.parametrize("vectorized", [True, False])
def test_minibatches_count_the_jacobian_once(vectorized, generator):
    """The mean over all subsets of each size is the score, exactly; the Jacobian is not part of it."""
    posterior = POSTERIORS[vectorized]
    z = torch.randn(3, 3, generator=generator)
    w, sigma = z[:, :2], z[:, 2].exp()
    whole = log_prior(w, sigma) + log_likelihood(DATA, w, sigma).sum(1) + z[:, 2]
    close(posterior.log_prob(z), whole, 1e-12)
    value, score = posterior.log_prob_and_score(z)
    close(value, whole, 1e-12)
    close(score, posterior.score(z), 1e-13)
    for n in (1, 2, 5):
        subsets = [torch.tensor(s) for s in combinations(range(5), n)]
        shared = [posterior.minibatch_score(z, s) for s in subsets]
        own = [posterior.minibatch_score(z, s.expand(3, -1)) for s in subsets]
        close(torch.stack(shared).mean(0), score, 1e-11)
        close(torch.stack(own), torch.stack(shared), 1e-11)


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_minibatch_kernel_keeps_values(vectorized, generator):
    posterior = POSTERIORS[vectorized]
    chain = run(SGLD(1e-3, 2), posterior, torch.zeros(4, 3), 20, generator=generator)
    assert chain["sigma"].shape == (4, 20)
    close(chain["sigma"][:, -1], chain.state.x[:, 2].exp(), 1e-13)


@pytest.mark.parametrize("vectorized", [True, False])
def test_pointwise_likelihoods_and_predictions_are_those_of_values(
    vectorized, generator, monkeypatch
):
    posterior = POSTERIORS[vectorized]
    z = torch.randn(7, 3, generator=generator)
    draws, (w, sigma) = posterior.constrain(z), (z[:, :2], z[:, 2].exp())
    close(posterior.pointwise(draws), log_likelihood(DATA, w, sigma), 1e-12)

    def mean(rows, w, sigma):
        return w.sum(-1, keepdim=True) * rows[:, 0]

    close(posterior.predict(draws, mean), w.sum(1)[:, None] * DATA[:, 0], 1e-12)
    monkeypatch.setattr(
        "gradlogp.distributions.observed.POINTWISE_ENTRIES", 11
    )  # two draws a time
    close(posterior.pointwise(draws), log_likelihood(DATA, w, sigma), 1e-12)
    close(posterior.predict(draws, mean), w.sum(1)[:, None] * DATA[:, 0], 1e-12)
    with pytest.raises(ValueError, match=r"must have shape \(2, 5, …\)"):
        posterior.predict(draws, lambda rows, w, sigma: w)


def test_without_names_functions_take_points(generator):
    y = torch.randn(5, 1, generator=generator)
    posterior = Observed(
        lambda x: -0.5 * x.square().sum(1), lambda x, r: -0.5 * (x - r.mT).square(), y
    )
    x = torch.randn(3, 1, generator=generator)
    assert posterior.event_shape is None
    close(posterior.pointwise(x), -0.5 * (x - y.mT).square(), 1e-14)
    close(posterior.predict(x, lambda x, r: x + 0 * r.mT), x.expand(3, 5), 0)
    close(posterior.log_prob_and_score(x)[1], posterior.score(x), 1e-14)
    assert posterior.constrain(x) is x


@pytest.mark.usefixtures("as_user")
def test_refuses_observations_that_do_not_fit():
    with pytest.raises(ValueError, match="log_prior must take w, sigma by keyword"):
        Observed(lambda w: w, log_likelihood, DATA, NAMED)
    with pytest.raises(ValueError, match="log_likelihood must take rows of the data and then w"):
        Observed(log_prior, lambda w, sigma: w, DATA, NAMED)
    with pytest.raises(ValueError, match="vectorized=False is for functions of named values"):
        Observed(log_prior, log_likelihood, DATA, vectorized=False)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3\), got \(2, 4\)"):
        POSTERIORS[True].log_prob(torch.zeros(2, 4))
    wrong = Observed(lambda w, sigma: w, log_likelihood, DATA, NAMED)
    with pytest.raises(ValueError, match=r"log_prior must return \(2,\), got \(2, 2\)"):
        wrong.score(torch.zeros(2, 3))


# ------------------------------------------------------------------------ end to end


def conjugate():
    """A precision with a Gamma prior and probabilities with a Dirichlet prior; both conjugate."""
    errors = torch.tensor([0.5, -1.2, 0.3, 2.0, -0.4]).double()
    counts = torch.tensor([3.0, 0.0, 5.0]).double()

    def log_prob(rate, p):
        normal = 2.5 * rate.log() - 0.5 * rate * errors.square().sum()
        prior = rate.log() - rate + (0.5 * p.log()).sum(1)  # Gamma(2, 1), Dirichlet(3/2, …)
        return normal + prior + (counts * p.log()).sum(1)

    a, b = 2 + 2.5, 1 + 0.5 * float(errors.square().sum())
    return log_prob, a, b, counts + 1.5


def test_hmc_on_a_conjugate_posterior(generator):
    log_prob, a, b, alpha = conjugate()
    spec = {"rate": constraints.positive, "p": ((3,), constraints.simplex)}
    target = as_target(log_prob=log_prob, parameters=spec)
    x0 = 0.3 * torch.randn(64, 3, generator=generator)
    chain = run(HMC(0.35, 5), target, x0, 130, burn_in=30, generator=generator)
    assert float(chain.info.acceptance.mean()) > 0.8
    rate, p = chain["rate"], chain["p"]

    def errors_from(values, expected):
        of_chains = values.mean(1)
        error = of_chains.std(0) / math.sqrt(len(of_chains))
        return ((of_chains.mean(0) - expected) / error).abs().max()

    assert errors_from(rate, a / b) < 4
    assert errors_from((rate - a / b) ** 2, a / b**2) < 4
    assert errors_from(p, alpha / alpha.sum()) < 4
    # negative control: what a chain without the Jacobian would have found
    assert errors_from(rate, (a - 1) / b) > 10
    assert errors_from(p, (alpha - 1) / (alpha - 1).sum()) > 10


def test_mala_with_a_preconditioner_on_ordered_values(generator):
    """Order statistics of three N(0, 1): ∓ 3/(2√π) and 0."""
    target = as_target(
        log_prob=lambda x: Normal(0.0, 1.0).log_prob(x).sum(1), parameters={"x": ((3,), ordered)}
    )
    kernel = MALA(0.3, preconditioner=Preconditioner(torch.tensor([0.6, 0.5, 0.5]), "diagonal"))
    x0 = 0.3 * torch.randn(400, 3, generator=generator)
    chain = run(kernel, target, x0, 150, burn_in=50, generator=generator)
    means = chain["x"].mean(1)
    error = means.std(0) / math.sqrt(len(means))
    expected = torch.tensor([-1.0, 0.0, 1.0]) * 3 / (2 * math.sqrt(math.pi))
    assert bool(((means.mean(0) - expected).abs() / error < 4).all())
    assert bool((chain["x"].diff(dim=2) > 0).all())


def test_a_target_is_what_as_target_returns():
    target = as_target(log_prob=lambda x: -x, parameters={"x": constraints.positive})
    assert isinstance(target, Target)
    assert parameters_of(target) is target.parameters
