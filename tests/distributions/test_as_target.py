"""Any callable as a target: the sign, the gaps filled, and what is refused."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from gradlogp import as_target, sample
from gradlogp.core import Density
from gradlogp.distributions.analytic import GaussianMixture


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def double_well(x):
    return (x.square() - 1).square().flatten(1).sum(1)


def double_well_score(x):
    return -4 * x * (x.square() - 1)


@pytest.mark.parametrize("event", [(1,), (3,), (2, 2)], ids=str)
def test_energy_turns_the_sign_once(event, generator):
    x = torch.randn(5, *event, generator=generator)
    target = as_target(energy=double_well)
    close(target.log_prob(x), -double_well(x))
    close(target.score(x), double_well_score(x))  # downhill in energy
    assert isinstance(target, Density)


def test_log_prob(generator):
    x = torch.randn(5, 2, generator=generator)
    law = GaussianMixture([0.3, 0.7], [[0.0, 1.0], [2.0, 0.0]], [1.0, 0.5])
    target = as_target(log_prob=lambda y: law.log_prob(y) + 3.0)  # up to a constant
    close(target.log_prob(x), law.log_prob(x) + 3.0)
    close(target.score(x), law.score(x))
    with torch.no_grad():
        close(target.score(x), law.score(x))


def test_a_given_score_is_used_as_it_is(generator):
    x = torch.randn(5, 2, generator=generator)
    mark = lambda y: torch.full_like(y, 7.0)
    close(as_target(score=mark).score(x), torch.full_like(x, 7.0))
    for other in ({"log_prob": lambda y: -double_well(y)}, {"energy": double_well}):
        target = as_target(score=mark, **other)
        close(target.score(x), torch.full_like(x, 7.0))
        close(target.log_prob(x), -double_well(x))


def test_samples_are_on_their_own_and_dtype_follows(generator):
    x = torch.randn(5, 3, generator=generator)
    target = as_target(energy=double_well)
    for i in range(5):
        close(target.score(x[i : i + 1])[0], target.score(x)[i])
    assert target.score(x.float()).dtype == torch.float32


@pytest.mark.usefixtures("as_user")
def test_a_vector_valued_energy_is_refused_with_advice():
    x = torch.ones(4, 3)
    for field in (lambda y: y, lambda y: y.square().sum(1, keepdim=True), lambda y: y.sum()):
        target = as_target(energy=field)
        with pytest.raises(ValueError, match=r"must return shape \(4,\).*pass it as score="):
            target.score(x)
        with pytest.raises(ValueError, match=r"log-density must return shape \(4,\)"):
            target.log_prob(x)


@pytest.mark.usefixtures("as_user")
def test_a_score_alone_has_no_log_density_and_says_what_to_do():
    target = as_target(score=lambda y: -y)
    with pytest.raises(ValueError, match=r"as_target\(log_prob=.*unadjusted kernel \(ULA\)"):
        target.log_prob(torch.ones(4, 3))


def _arrays(f):
    return lambda x: torch.from_numpy(f(x.detach().numpy()))


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("f", "vectorized"),
    [
        (lambda x: -np.sum(x**2, axis=1), True),
        (lambda x: norm.logpdf(x).sum(1), True),
        (lambda x: -(np.asarray(x.detach()) ** 2).sum(1), True),
        (lambda x: -np.dot(x, x), False),
    ],
)
def test_a_function_of_numpy_is_refused_with_what_to_write(f, vectorized):
    target = as_target(log_prob=f, event_shape=(2,), vectorized=vectorized)
    for call in (lambda: sample(target, 10), lambda: target.score(torch.ones(4, 2))):
        with pytest.raises(TypeError, match=r"computed by NumPy or SciPy.*torch\.from_numpy"):
            call()
    with pytest.raises(TypeError, match="the score is computed by NumPy"):
        as_target(score=lambda x: -np.asarray(x)).score(torch.ones(4, 2))  # type: ignore[return-value]


@pytest.mark.usefixtures("as_user")
def test_errors_of_numpy_itself_are_what_they_are():
    target = as_target(log_prob=_arrays(lambda x: np.linalg.cholesky(-np.eye(2))[0] + x[:, 0]))
    with pytest.raises(np.linalg.LinAlgError):
        target.log_prob(torch.ones(4, 2))
    cut_off = as_target(log_prob=lambda x: -x.detach().square().sum(1))
    with pytest.raises(ValueError, match="does not depend on x"):
        cut_off.score(torch.ones(4, 2))


@pytest.mark.filterwarnings("ignore:overflow encountered")  # NumPy's, where a step is too long
def test_arrays_with_a_gradient_of_their_own_are_sampled():
    scale = np.array([1.0, 4.0])
    f, g = lambda x: -(x**2 * scale).sum(1) / 2, lambda x: -x * scale
    target = as_target(log_prob=_arrays(f), score=_arrays(g), event_shape=(2,))
    chain = sample(target, 300, n_warmup=100, generator=torch.Generator().manual_seed(0))
    assert chain.verdict.ok
    var = chain.draws.var((0, 1)) * torch.tensor(scale)
    assert bool(((var - 1).abs() < 4.5 * (2 / 300) ** 0.5).all())  # of at least 300 draws of x²
    twice = as_target(log_prob=_arrays(f), score=_arrays(lambda x: 2 * g(x)), event_shape=(2,))
    chain = sample(twice, 60, n_warmup=30, generator=torch.Generator().manual_seed(0))
    assert "check the score you supplied" in str(chain.verdict)


@pytest.mark.usefixtures("as_user")
def test_refuses_bad_arguments_and_shapes():
    with pytest.raises(ValueError, match="needs score=, log_prob=, energy= or distribution="):
        as_target()
    with pytest.raises(ValueError, match="pass log_prob or energy, not both"):
        as_target(log_prob=double_well, energy=double_well)
    target = as_target(score=lambda y: y.sum(1, keepdim=True), energy=double_well)
    with pytest.raises(ValueError, match=r"the score returned shape \(4, 1\)"):
        target.score(torch.ones(4, 3))
    for x in (torch.ones(3), torch.ones(4, 3).int()):
        with pytest.raises(ValueError, match="x must"):
            target.score(x)
        with pytest.raises(ValueError, match="x must"):
            target.log_prob(x)
