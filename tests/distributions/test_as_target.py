"""Any callable as a target: the sign, the gaps filled, and what is refused."""

import pytest
import torch

from gradlogp import as_target
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
