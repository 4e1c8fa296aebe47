"""Ranks that are uniform in closed form, posteriors that are right, and posteriors that are not."""

import math

import pytest
import torch
from support import close, z_score

import gradlogp
from gradlogp import Gaussian
from gradlogp.check.sbc import correlations, rank_variance, ranks_of, sbc, thinning

S = torch.tensor([[1.0, 0.6], [0.6, 2.0]], dtype=torch.float64)
A = torch.tensor([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
"""θ ~ N(0, S) and y = A θ + N(0, I): the posterior is N(C Aᵀ y, C), C = (S⁻¹ + Aᵀ A)⁻¹."""
C = torch.linalg.inv(torch.linalg.inv(S) + A.T @ A)
ROOT = torch.linalg.cholesky(C)


def simulate(theta, generator):
    return A @ theta + torch.randn(3, generator=generator)


def linear(scale=1.0, shift=0.0):
    def posterior(y, n_draws, generator):
        z = torch.randn(n_draws, 2, generator=generator)
        return C @ A.T @ y + shift * C.diagonal().sqrt() + scale * z @ ROOT.T

    return posterior


def prior(n, generator):
    return torch.randn(n, 2, generator=generator) @ torch.linalg.cholesky(S).T


def autoregressive(rho, n, L, generator):
    """θ and L draws of one normal law, these an AR(1) process in its stationary state."""
    z = torch.randn(n, L + 1, generator=generator)
    x = [z[:, 0]]
    for i in range(1, L):
        x.append(rho * x[-1] + math.sqrt(1 - rho**2) * z[:, i])
    return z[:, -1], torch.stack(x, 1)


# ---------------------------------------------------------------------------- ranks


def test_ranks_of_discrete_laws_are_uniform(generator):
    """θ and three draws, all of them fair coins: without ties 1/16 + ½, 3/16, 3/16, 1/16 come out."""
    n = 40_000
    coins = torch.randint(2, (n, 4), generator=generator).double()
    theta, draws = coins[:, 0], coins[:, 1:]
    strict = (draws < theta.unsqueeze(1)).sum(1)
    for k, p in enumerate((0.5625, 0.1875, 0.1875, 0.0625)):
        assert abs(z_score((strict == k).double(), p)) < 4
        assert abs(z_score((ranks_of(theta, draws, generator) == k).double(), 0.25)) < 4


def test_the_variance_of_ranks_of_correlated_draws(generator):
    close(rank_variance(99, torch.zeros(98)), 99 * 101 / 12, 1e-12)
    close(rank_variance(99, torch.tensor([])), 99 * 101 / 12, 1e-12)
    rho = 0.9 ** torch.arange(1, 99)
    assert abs(rank_variance(99, rho) / (99 * 101 / 12) - 1.2045) < 5e-5
    theta, draws = autoregressive(0.9, 40_000, 99, generator)
    ranks = ranks_of(theta, draws, generator).double()
    assert abs(z_score((ranks - 49.5).square(), rank_variance(99, rho))) < 4
    # draws that are all the same have ranks 0 and L, each half of the time
    close(rank_variance(5, torch.ones(4)), 25 / 4, 1e-12)


@pytest.mark.parametrize(("rho", "least"), [(0.5, 2), (0.8, 6), (-0.5, 1)])
def test_correlations_and_thinning(rho, least, generator):
    """Few draws of a chain have to be taken apart; among hundreds a short memory does no harm."""
    theta, draws = autoregressive(rho, 4000, 60, generator)
    found = correlations(draws.unsqueeze(2))[0]
    normal = 6 / math.pi * torch.asin(rho ** torch.arange(1, 5) / 2)  # ranks of normal numbers
    close(found[:4], normal, 0.05)
    k = thinning(draws.unsqueeze(2))
    assert least <= k <= 3 * least
    kept = draws[:, k - 1 :: k]
    L = kept.shape[1]
    ranks = ranks_of(theta, kept, generator).double()
    assert abs(z_score((ranks - L / 2).square(), L * (L + 2) / 12)) < 4
    assert thinning(torch.randn(200, 50, 3, generator=generator)) == 1
    assert thinning(autoregressive(0.5, 200, 1000, generator)[1].unsqueeze(2)) == 1


# ---------------------------------------------------------------------------- verdicts


def test_the_exact_posterior_passes(generator):
    assert gradlogp.check.sbc is sbc
    for law in (prior, Gaussian(torch.zeros(2), S)):
        ranks, p_value, verdict = sbc(law, simulate, linear(), generator=generator)
        assert ranks.shape == (200, 2)
        assert ranks.min() >= 0
        assert ranks.max() <= 100
        assert p_value > 0.01
        assert verdict.ok
        assert verdict.reasons == ()


def test_the_size(generator):
    """A true posterior has p < α in no more than α of the times, and in not much less."""
    p = torch.tensor([
        sbc(prior, simulate, linear(), n_simulations=20, n_draws=9, generator=generator).p_value
        for _ in range(200)
    ])  # fmt: skip
    for alpha in (0.01, 0.05, 0.2):
        error = 4 * (alpha * (1 - alpha) / len(p)) ** 0.5
        assert 0.3 * alpha - error < (p < alpha).double().mean() < alpha + error


@pytest.mark.parametrize(
    ("posterior", "words"),
    [
        (linear(scale=0.7), "too narrow"),
        (linear(scale=1.4), "too wide"),
        (linear(shift=0.4), "draws lie too high"),
        (linear(shift=-0.4), "draws lie too low"),
        (lambda y, n, generator: prior(n, generator), "too"),
    ],
)
def test_wrong_posteriors_fail(posterior, words, generator):
    _, p_value, verdict = sbc(prior, simulate, posterior, n_simulations=300, generator=generator)
    if words == "too":  # the prior is calibrated as well: ranks cannot see that y was not used
        assert verdict.ok
        return
    assert p_value < 0.01
    assert not verdict.ok
    assert words in " ".join(verdict.reasons)
    assert "in coordinate" in verdict.reasons[0]


def test_another_shape_fails(generator):
    """Right mean and variance, and the wrong law: exponential for normal."""

    def posterior(y, n_draws, generator):
        u = torch.rand(n_draws, 2, generator=generator)
        return C @ A.T @ y + (-(1 - u).log() - 1) @ torch.diag(C.diagonal().sqrt())

    verdict = sbc(prior, simulate, posterior, n_simulations=600, generator=generator).verdict
    assert not verdict.ok


def test_chains_are_thinned(generator):
    """Draws of an exact but slow chain: uniform ranks only after thinning."""

    def chain(y, n_draws, generator):
        z = torch.randn(n_draws, 2, generator=generator)
        x = [z[0]]
        for i in range(1, n_draws):
            x.append(0.9 * x[-1] + math.sqrt(1 - 0.81) * z[i])
        return C @ A.T @ y + torch.stack(x) @ ROOT.T

    ranks, p_value, verdict = sbc(
        prior, simulate, chain, n_simulations=400, n_draws=60, generator=generator
    )
    assert verdict.ok
    assert p_value > 0.01
    assert "draws are correlated: one in" in verdict.reasons[0]
    assert "raise n_draws" in verdict.reasons[0]
    # negative control: the ranks of all draws are wider than uniform ones
    assert z_score((ranks[:, 0] - 30.0).square(), 60 * 62 / 12) > 3


def test_parameters_without_a_shape_and_discrete_ones(generator):
    """A coin θ seen through noise, P(y = θ) = 0.8, and its exact posterior."""

    def coin(n, generator):
        return torch.randint(2, (n,), generator=generator)

    def noisy(theta, generator):
        return torch.where(torch.rand((), generator=generator) < 0.8, theta, 1 - theta)

    def posterior(y, n_draws, generator):
        return torch.where(torch.rand(n_draws, generator=generator) < 0.8, y, 1 - y)

    ranks, _, verdict = sbc(coin, noisy, posterior, n_draws=7, generator=generator)
    assert ranks.shape == (200,)
    assert verdict.ok
    wrong = lambda y, n, g: coin(n, g) * 0 + y
    verdict = sbc(coin, noisy, wrong, n_draws=7, n_simulations=600, generator=generator).verdict
    assert not verdict.ok
    assert "coordinate" not in verdict.reasons[0]


def test_the_same_seed_gives_the_same_ranks():
    a, b = (
        sbc(
            prior, simulate, linear(), n_simulations=20, generator=torch.Generator().manual_seed(1)
        )
        for _ in range(2)
    )
    assert bool((a.ranks == b.ranks).all())
    assert a.p_value == b.p_value


def test_refusals(as_user, generator):
    with pytest.raises(ValueError, match=r"the prior must return \(20, \*theta\), got \(19, 2\)"):
        sbc(lambda n, g: prior(n - 1, g), simulate, linear(), n_simulations=20)
    with pytest.raises(
        ValueError, match=r"must return \(9, 2\), n_draws times theta, got \(2, 9\)"
    ):
        sbc(prior, simulate, lambda y, n, g: linear()(y, n, g).T, n_simulations=20, n_draws=9)
    with pytest.raises(
        ValueError, match="18 of the 18 numbers that the posterior returned are not finite"
    ):
        sbc(prior, simulate, linear(scale=math.nan), n_simulations=20, n_draws=9)
    with pytest.raises(ValueError, match="40 of the 40 numbers that the prior returned"):
        sbc(lambda n, g: prior(n, g) / 0, simulate, linear(), n_simulations=20)


def test_what_was_found_prints_in_a_few_lines(generator):
    found = sbc(prior, simulate, linear(), n_simulations=50, n_draws=20, generator=generator)
    assert str(found).startswith("ranks of 50 simulations in 2 coordinates: p-value ")
    assert repr(found) == str(found)
    assert str(found.verdict) in str(found)
    assert len(str(found)) < 300
