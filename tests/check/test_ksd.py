"""The kernel Stein discrepancy against differentiation, enumeration, and laws that are known."""

import itertools
import math
from functools import partial

import pytest
import torch
from support import COV, MEAN, close, z_score

from gradlogp import Gaussian, GaussianMixture
from gradlogp.check.metrics.ksd import ksd, stein_kernel
from gradlogp.check.metrics.two_sample import components

NORMAL = Gaussian([0.0], 1.0)
TARGET = Gaussian(MEAN, COV)
SETTINGS = [(1.0, -0.5), (0.6, -0.3), (2.0, -0.9)]


@pytest.mark.parametrize(("c", "beta"), SETTINGS)
@pytest.mark.parametrize("d", [1, 3])
def test_stein_kernel_by_differentiation(c, beta, d, generator):
    x, y, a, b = torch.randn(4, 3, d, generator=generator)
    mixed = stein_kernel(x, a, y, b, c=c, beta=beta)

    def k(u, v):
        return (c**2 + (u - v).square().sum()) ** beta

    grad_x, grad_y = torch.func.grad(k, 0), torch.func.grad(k, 1)
    both = torch.func.jacrev(grad_y, 0)
    for i, j in itertools.product(range(3), range(3)):
        u, v = x[i], y[j]
        expected = (
            k(u, v) * (a[i] @ b[j])
            + a[i] @ grad_y(u, v)
            + b[j] @ grad_x(u, v)
            + both(u, v).trace()
        )
        close(mixed[i, j], expected, 1e-10)
    close(mixed, stein_kernel(y, b, x, a, c=c, beta=beta).mT, 1e-12)


@pytest.mark.parametrize(("c", "beta"), SETTINGS)
def test_the_mean_is_zero_by_quadrature(c, beta):
    """∫ k_0(x, y) p(x) dx = 0 for every y."""
    x = torch.linspace(-12, 12, 4001).unsqueeze(1)
    mixture = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0], [1.5]]), 0.6)
    y = torch.tensor([[-2.0], [0.1], [3.0]])
    weight = mixture.log_prob(x).exp() * 0.006
    k_0 = stein_kernel(x, mixture.score(x), y, mixture.score(y), c=c, beta=beta)
    close(weight @ k_0, torch.zeros(3), 1e-10)
    wrong = stein_kernel(x, mixture.score(x) * 0.9, y, mixture.score(y) * 0.9, c=c, beta=beta)
    assert float((weight @ wrong).abs().max()) > 0.01


def test_the_statistic_is_a_sum_over_pairs(generator):
    x = torch.randn(9, 2, 2, generator=generator)
    score = lambda x: 0.3 - x
    flat = x.flatten(1)
    k_0 = stein_kernel(flat, 0.3 - flat, flat, 0.3 - flat)
    expected = sum(k_0[i, j] for i, j in itertools.permutations(range(9), 2)) / 72
    one, *others = (
        ksd(score, x, chunk_size=size, generator=generator.manual_seed(1)) for size in (1, 4, 100)
    )
    close(one.value, float(expected), 1e-12)
    for other in others:
        close(torch.tensor(other), torch.tensor(one), 1e-12)


def test_the_error_is_made_of_unbiased_estimates(generator):
    """Row sums give the same numbers as sums over all triples and quadruples of distinct points."""
    n = 6
    K = torch.randn(n, n, generator=generator)
    K = (K + K.mT).fill_diagonal_(0)
    mean = lambda values: sum(values) / len(values)
    linked = mean([K[i, j] * K[i, l] for i, j, l in itertools.permutations(range(n), 3)])
    square = mean([K[i, j] * K[l, m] for i, j, l, m in itertools.permutations(range(n), 4)])
    second = mean([K[i, j] ** 2 for i, j in itertools.permutations(range(n), 2)])
    found = torch.tensor(components(K.sum(1), K.square().sum()))
    close(found, [linked - square, second - square], 1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_unbiased_with_an_honest_error_bar(shift, generator):
    """Over 400 samples the mean is E k_0, and the spread what the error bars say."""
    results = [
        ksd(
            NORMAL.score, shift + torch.randn(60, 1, generator=generator), n_bootstrap=99,
            generator=generator,
        )
        for _ in range(400)
    ]  # fmt: skip
    values, errors = (torch.tensor(v) for v in zip(*[r[:2] for r in results], strict=True))
    # E k_0(X, X') for X, X' ~ N(shift, 1): the score differs from X's own by a constant, so that
    # E k_0 = shift² E k(X, X')
    r = math.sqrt(2) * torch.linspace(-12, 12, 20_001)
    density = torch.exp(-(r**2) / 4) / math.sqrt(4 * math.pi)
    mean_k = float((density / (1 + r**2).sqrt()).sum() * (r[1] - r[0]))
    assert abs(z_score(values, shift**2 * mean_k)) < 4.5
    ratio = float(errors.square().mean() / values.var())
    assert 0.75 < ratio < (2.5 if shift == 0 else 1.4)  # under the null the bar is long
    if shift == 0.0:
        rejected = torch.tensor([r.p_value <= 0.05 for r in results]).double()
        assert abs(rejected.mean() - 0.05) < 4.5 * math.sqrt(0.05 * 0.95 / 400)
    else:
        assert float(torch.tensor([r.p_value <= 0.05 for r in results]).double().mean()) > 0.4


def test_exact_draws_pass_and_others_do_not(generator):
    x = TARGET.sample(1000, generator=generator)
    good = ksd(TARGET.score, x, generator=generator)
    assert good.p_value > 0.01
    assert abs(good.value) < 5 * good.standard_error
    for other in (x + 0.2, MEAN + 1.2 * (x - MEAN), MEAN - 2 * (x - MEAN).flip(1)):
        for c in (1.0, "median"):
            bad = ksd(TARGET.score, other, c=c, generator=generator)
            assert bad.p_value < 0.01
            assert bad.value > 3 * bad.standard_error


def test_a_chain_needs_its_own_signs(generator):
    """On a correlated chain with the right law independent signs reject too often."""
    a, n, runs = 0.8, 400, 60
    draws = [torch.randn(runs, 1, generator=generator)]
    for z in torch.randn(n - 1, runs, 1, generator=generator):
        draws.append(a * draws[-1] + math.sqrt(1 - a**2) * z)
    chains = torch.stack(draws, 1)

    def rejected(flip):
        judged = partial(ksd, NORMAL.score, flip=flip, n_bootstrap=99, generator=generator)
        p = [judged(x).p_value for x in chains]
        return sum(v <= 0.05 for v in p) / runs

    assert rejected(0.5) > 0.3
    assert rejected(0.05) < 0.2


def test_far_from_the_origin_no_digits_are_lost(generator):
    x = torch.randn(300, 2, generator=generator)
    near = ksd(lambda x: -x, x, generator=generator.manual_seed(1))
    far = ksd(lambda x: 1e6 - x, 1e6 + x, generator=generator.manual_seed(1))
    close(far.value, near.value, 1e-7)
    single = ksd(lambda x: -x, x.float(), generator=generator.manual_seed(1))
    close(single.value, near.value, 1e-5)


def test_refusals(as_user):
    x = torch.arange(10.0).unsqueeze(1)
    for score, points, wrong, message in (
        (NORMAL.score, x, {"beta": 0.5}, "beta"),
        (NORMAL.score, x, {"beta": -1.0}, "beta"),
        (NORMAL.score, x, {"c": 0.0}, "c must"),
        (NORMAL.score, x, {"c": "mean"}, "c must"),
        (NORMAL.score, x[:3], {}, "x must have at least 4 rows"),
        (lambda x: 1 / (x - x), x, {}, "score has 10 of 10 rows that are not finite"),
        (lambda x: x[:, :1], torch.zeros(5, 2), {}, "shape"),
        (NORMAL.score, torch.ones(5, 1), {"c": "median"}, "coincide"),
    ):
        with pytest.raises(ValueError, match=message):
            ksd(score, points, **wrong)
