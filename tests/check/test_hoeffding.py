"""Variances of means over pairs: by sums over distinct points, and over all samples of a small law."""

import itertools

import pytest
import torch
from support import close

from gradlogp.check.metrics.two_sample import between, components, mmd_variance


def mean(values):
    values = list(values)
    return float(sum(values)) / len(values)


def test_all_pairs_of_two_samples_by_sums_over_distinct_points(generator):
    n, m = 4, 5
    K = torch.randn(n, m, generator=generator)
    rows, columns = (list(itertools.permutations(range(size), 2)) for size in (n, m))
    square = mean(K[i, j] * K[k, l] for i, k in rows for j, l in columns)
    of_x = mean(K[i, j] * K[i, l] for i in range(n) for j, l in columns)
    of_y = mean(K[i, j] * K[k, j] for i, k in rows for j in range(m))
    of_both = float(K.square().mean())
    close(torch.tensor(between(K)), [of_x - square, of_y - square, of_both - square], 1e-12)


def test_single_points_by_sums_over_distinct_points(generator):
    """Var a(X) = Var E[k | X] of both kinds, less twice their covariance; likewise of Y."""
    n, m = 4, 5
    K = torch.randn(n + m, n + m, generator=generator)
    K = (K + K.mT).fill_diagonal_(0)
    expected = 0.0
    for here, there in ((range(n), range(n, n + m)), (range(n, n + m), range(n))):
        k = K[list(here)][:, list(here)]
        other, _, _ = between(K[list(here)][:, list(there)])
        linked = mean(K[i, j] * K[i, y] for i, j in itertools.permutations(here, 2) for y in there)
        apart = mean(
            K[i, j] * K[l, y] for i, j, l in itertools.permutations(here, 3) for y in there
        )
        one, _ = components(k.sum(1), k.square().sum())
        expected += 4 * (one + other - 2 * (linked - apart)) / len(here)
    close(mmd_variance(K, n)[0], expected, 1e-12)


def statistic(K, n):
    m = len(K) - n
    x, y, across = K[:n, :n].sum(), K[n:, n:].sum(), K[:n, n:].sum()
    return float(x / (n * (n - 1)) + y / (m * (m - 1)) - 2 * across / (n * m))


def plug_in(K, n):
    """The single points' part as it was: the variance of what is seen of them."""
    m = len(K) - n
    a = K[:n, :n].sum(1) / (n - 1) - K[:n, n:].mean(1)
    b = K[n:, n:].sum(1) / (m - 1) - K[n:, :n].mean(1)
    return 4 * float(a.var()) / n + 4 * float(b.var()) / m


@pytest.mark.parametrize("one_law", [True, False])
def test_the_mean_over_all_samples_is_the_variance_over_all_samples(one_law):
    """Of laws on three points, with 4 and 5 draws: 3⁹ samples, weighted by their probability."""
    points = torch.tensor([0.0, 0.7, 2.0])
    p = torch.tensor([0.5, 0.3, 0.2])
    q = p if one_law else torch.tensor([0.1, 0.2, 0.7])
    n, m = 4, 5
    kernel = torch.exp(-0.5 * (points[:, None] - points).square())
    # the statistic does not depend on the order of the draws: multisets with their multiplicity
    weights, values, found, old = [], [], [], []
    multisets = [list(itertools.combinations_with_replacement(range(3), size)) for size in (n, m)]
    for x, y in itertools.product(*multisets):
        index = torch.tensor([*x, *y])
        K = kernel[index][:, index].fill_diagonal_(0)
        weights.append(multinomial(x, p) * multinomial(y, q))
        values.append(statistic(K, n))
        single, rest = mmd_variance(K, n)
        found.append(single + rest)
        old.append(plug_in(K, n) + rest)
    w, v, f, g = (torch.tensor(e, dtype=torch.float64) for e in (weights, values, found, old))
    close(w.sum(), 1.0, 1e-6)
    variance = w @ (v - w @ v).square()
    close(w @ f, variance, 1e-6)
    assert float(w @ g) > (1.5 if one_law else 1.02) * float(variance)  # the negative control


def multinomial(draws, p):
    """The probability of a multiset of draws."""
    counts = torch.bincount(torch.tensor(draws), minlength=len(p)).double()
    log = (
        torch.lgamma(counts.sum() + 1)
        - torch.lgamma(counts + 1).sum()
        + (counts @ p.double().log())
    )
    return float(log.exp())
