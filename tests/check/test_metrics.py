"""Metrics against closed forms, brute force and their own error bars."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm
from support import COV, MEAN, clone, close, gauss_hermite, z_score

from gradlogp import Gaussian, GaussianMixture
from gradlogp.check.metrics import (
    c2st,
    fisher_divergence,
    fisher_information,
    frechet_distance,
    mmd,
    nearest_neighbours,
    sliced_wasserstein,
)
from gradlogp.check.metrics.gaussians import (
    gaussian_fisher,
    gaussian_kl,
    gaussian_wasserstein,
    mean_score,
)
from gradlogp.check.metrics.two_sample import between, components, mmd_variance


def normal(n, d, generator, shift=0.0):
    x = torch.randn(n, d, generator=generator)
    x[:, 0] += shift
    return x


def test_fisher_divergence_on_samples_and_its_error(generator):
    x = torch.randn(50_000, 2, 3, generator=generator)
    result = fisher_divergence(lambda x: -0.4 * x, lambda x: -x, x)
    expected, terms = 0.5 * 0.36 * 6, 0.18 * x.square().flatten(1).sum(1)
    assert abs(result.value - expected) < 4.5 * result.standard_error
    close(result.value, terms.mean(), 1e-12)
    close(result.standard_error, terms.std() / math.sqrt(50_000), 1e-12)
    assert abs(result.value - 2 * expected) > 20 * result.standard_error


def test_points_whose_squares_overflow_are_refused():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    x[3] = 1e200
    for metric in (
        lambda: fisher_divergence(torch.neg, lambda x: -2 * x, x),
        lambda: sliced_wasserstein(x, x + 1),
        lambda: frechet_distance(x / 1e110, x[4:]),
        lambda: fisher_information(torch.neg, x),
    ):
        with pytest.raises(ValueError, match=r"became NaN or infinite; rescale x"):
            metric()


# ---------------------------------------------------------------------------- sliced W2


def w2_squared(u, v):
    """W2² of two 1-D samples: replicate both to a common size and sort."""
    n = math.lcm(len(u), len(v))
    u, v = (w.repeat_interleave(n // len(w)).sort().values for w in (u, v))
    return (u - v).square().mean()


def directions(n, d, generator):
    theta = torch.randn(n, d, generator=generator)
    return theta / theta.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 20), (7, 12), (13, 5), (2, 3)])
def test_sliced_wasserstein_in_one_dimension(n, m, generator):
    x, y = normal(n, 1, generator), 1.5 * normal(m, 1, generator) - 0.3
    value = sliced_wasserstein(x, y, 5, generator=generator).value
    close(value**2, w2_squared(x[:, 0], y[:, 0]), 1e-12)
    close(sliced_wasserstein(y, x, 3, generator=generator).value, value, 1e-12)
    if n == m:
        by_sorting = (x.sort(0).values - y.sort(0).values).square().mean().sqrt()
        close(value, by_sorting, 1e-12)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (24, 36), (11, 30)])
def test_sliced_wasserstein_by_brute_force(n, m, generator):
    x, y = normal(n, 3, generator), 0.7 * normal(m, 3, generator, 0.5)
    theta = directions(70, 3, clone(generator))
    expected = torch.stack([w2_squared(x @ w, y @ w) for w in theta]).mean()
    value = sliced_wasserstein(x, y, 70, generator=clone(generator)).value
    close(value**2, expected, 1e-12)
    images = [v.reshape(-1, 1, 3, 1) for v in (x, y)]
    close(sliced_wasserstein(*images, 70, generator=generator).value, value, 1e-12)


def test_sliced_wasserstein_of_a_translation_and_a_scaling(generator):
    """y = x + m costs (θᵀm)² in every direction, |m|²/d in the mean over the sphere."""
    x, m = normal(30, 3, generator), torch.tensor([3.0, 0.0, -4.0])
    theta = directions(6000, 3, clone(generator))
    value = sliced_wasserstein(x, x + m, 6000, generator=clone(generator)).value
    projected = (theta @ m).square()
    close(value**2, projected.mean(), 1e-12)
    assert abs(z_score(projected, 25 / 3)) < 4.5
    close(value, 5 / math.sqrt(3), 0.02)
    y = normal(40, 3, generator)
    one = sliced_wasserstein(x, y, generator=clone(generator))
    scaled = sliced_wasserstein(10 * x, 10 * y, generator=clone(generator))
    close(scaled.value, 10 * one.value, 1e-12)
    close(scaled.standard_error, 10 * one.standard_error, 1e-12)
    assert sliced_wasserstein(x, x).value == 0.0


@pytest.mark.parametrize(
    ("n", "m", "shift"),
    [(300, 200, 1.5), pytest.param(200, 200, 0.5, marks=pytest.mark.slow)],
)
def test_sliced_wasserstein_error_bar(n, m, shift, generator):
    """The spread over fresh samples, for fixed directions, within 30 %."""
    seeds = torch.Generator().manual_seed(1)
    results = [
        sliced_wasserstein(normal(n, 2, generator), 1.3 * normal(m, 2, generator, shift), 24,
                           generator=clone(seeds))
        for _ in range(150)
    ]  # fmt: skip
    spread = np.std([r.value for r in results])
    assert 0.7 < np.mean([r.standard_error for r in results]) / spread < 1.3


def test_sliced_wasserstein_does_not_depend_on_the_default_dtype(generator):
    """The masses of unequal samples are 1/(n m) apart, below the resolution of float32."""
    x, y = normal(4001, 1, generator), normal(3999, 1, generator, 0.3)
    double = sliced_wasserstein(x, y, 1)
    torch.set_default_dtype(torch.float32)
    single = sliced_wasserstein(x, y, 1)
    close(single.value, double.value, 1e-13)
    i, j = (np.sort(v[:, 0].numpy()) for v in (x, y))
    # masses of 1/(4001 · 3999), between places where either quantile jumps
    ends = np.union1d(3999 * np.arange(4002), 4001 * np.arange(4000))
    gaps = i[ends[:-1] // 3999] - j[ends[:-1] // 4001]
    expected = np.diff(ends) @ gaps**2 / (4001 * 3999)
    assert abs(double.value**2 - expected) < 1e-9


# ---------------------------------------------------------------------------- MMD


def mmd_by_loops(x, y):
    pooled = torch.cat([x, y])
    total = len(pooled)
    pairs = [float((pooled[i] - pooled[j]).square().sum()) for i in range(total) for j in range(i)]
    median = sorted(pairs)[(len(pairs) - 1) // 2]  # of the squared distances, the lower one

    def k(a, b):
        r2 = float((a - b).square().sum())
        return sum(math.exp(-r2 / (2 * c**2 * median)) for c in (0.5, 1.0, 2.0))

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


@pytest.mark.parametrize(("n", "m"), [(7, 9), (12, 12), (4, 5)])
def test_mmd_by_brute_force(n, m, generator):
    x, y = normal(n, 3, generator), normal(m, 3, generator, 0.8)
    result = mmd(x, y, n_permutations=20, generator=generator)
    close(result.value, mmd_by_loops(x, y), 1e-12)
    images = mmd(x.reshape(n, 1, 3), y.reshape(m, 1, 3), n_permutations=20)
    close(images.value, result.value, 1e-12)
    close(mmd(5 * x, 5 * y, n_permutations=20).value, result.value, 1e-11)  # the median's scale


def test_mmd_p_value_is_uniform_under_the_null(generator):
    results = [
        mmd(normal(25, 2, generator), normal(20, 2, generator), generator=generator)
        for _ in range(150)
    ]
    p = np.array([r.p_value for r in results])
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    assert (p < 0.1).mean() < 0.1 + 4 * math.sqrt(0.09 / 150)
    values = torch.tensor([r.value for r in results])
    assert abs(z_score(values, 0.0)) < 4.5  # unbiased, not the V-statistic
    assert float(values.min()) < 0


def test_mmd_p_value_under_the_alternative(generator):
    result = mmd(normal(150, 2, generator), normal(150, 2, generator, 1.0), n_permutations=99)
    assert result.p_value == 0.01
    assert result.value > 3 * result.standard_error


@pytest.mark.parametrize(
    ("n", "m", "shift"),
    [(80, 60, 0.0), pytest.param(80, 60, 1.0, marks=pytest.mark.slow), (30, 200, 1.0)],
)
def test_mmd_error_bar(n, m, shift, generator):
    """The spread over fresh samples, which 150 of them show within some 7 % (one sigma).

    With the plug-in estimate, which counts the remainder twice, the ratio is 1.85 at the null.
    """
    results = [
        mmd(normal(n, 2, generator), normal(m, 2, generator, shift), n_permutations=2,
            generator=generator)
        for _ in range(150)
    ]  # fmt: skip
    ratio = np.mean([r.standard_error for r in results]) / np.std([r.value for r in results])
    assert 0.8 < ratio < (1.25 if shift else 1.35)


def test_mmd_subsamples(generator):
    x, y = normal(60, 2, generator), normal(50, 2, generator)
    all_, few = (
        mmd(x, y, max_points=n, n_permutations=10, generator=clone(generator)).value
        for n in (60, 20)
    )
    assert all_ != few
    again = mmd(x, y, max_points=20, n_permutations=10, generator=clone(generator))
    assert again.value == few


# ---------------------------------------------------------------------------- C2ST


def test_c2st_under_the_null(generator):
    results = [
        c2st(normal(600, 3, generator), normal(700, 3, generator), generator=generator)
        for _ in range(6)
    ]
    for r in results:
        assert abs(r.value - 0.5) < 4.5 * r.standard_error
        assert r.p_value > 1e-5
    assert abs(np.mean([r.value for r in results]) - 0.5) < 4.5 * results[0].standard_error / 2
    assert max(r.p_value for r in results) > 0.2


@pytest.mark.parametrize("shift", [1.0, 2.5])
def test_c2st_against_the_bayes_accuracy(shift, generator):
    """No classifier distinguishes N(0, I) and N(δ e₁, I) better than Φ(δ/2); trees come close."""
    x, y = normal(2000, 3, generator), normal(2000, 3, generator, shift)
    result = c2st(x, y, generator=generator)
    best = stats.norm.cdf(shift / 2)
    assert result.value < best + 4.5 * result.standard_error
    assert result.value > best - 0.05
    assert result.p_value < 1e-10
    n = round(result.value * (1 - result.value) / result.standard_error**2)
    close(n, 2000, 1e-9)  # binomial over the decisions on held-out points


@pytest.mark.slow
def test_c2st_error_bar(generator):
    results = [
        c2st(normal(150, 2, generator), normal(150, 2, generator, 1.0), generator=generator)
        for _ in range(30)
    ]
    ratio = np.mean([r.standard_error for r in results]) / np.std([r.value for r in results])
    assert 0.6 < ratio < 1.4


# ---------------------------------------------------------------------------- memorisation


def test_nearest_neighbours_by_brute_force(generator):
    samples, train, held_out = (normal(n, 2, generator) for n in (40, 30, 30))
    result = nearest_neighbours(samples, train, held_out)

    def nearest(a, b):
        return (a[:, None] - b[None]).square().sum(-1).sqrt().amin(1)

    to_train, to_held_out = nearest(samples, train), nearest(samples, held_out)
    close(result.to_train.value, to_train.mean(), 1e-12)
    close(result.to_train.standard_error, to_train.std() / math.sqrt(40), 1e-12)
    close(result.to_held_out.value, to_held_out.mean(), 1e-12)
    close(result.real_to_train.value, nearest(held_out, train).mean(), 1e-12)
    close(result.nearer_train.value, (to_train < to_held_out).double().mean(), 1e-12)


def test_nearest_neighbours_error_bar(generator):
    """That over all ways to divide train and held-out data: here over many random ones."""
    samples, pool = normal(60, 2, generator), normal(50, 2, generator)
    results = []
    for _ in range(400):
        divided = pool[torch.randperm(50, generator=generator)]
        results.append(nearest_neighbours(samples, divided[:25], divided[25:]).nearer_train)
    values = torch.tensor([r.value for r in results])
    assert abs(z_score(values, 0.5)) < 4.5
    assert 0.85 < results[0].standard_error / float(values.std()) < 1.15
    assert results[0].standard_error > 0.5 / math.sqrt(60)  # longer than a binomial one


def test_nearest_neighbours_flags_copies_and_not_fresh_draws(generator):
    train, held_out = normal(400, 3, generator), normal(600, 3, generator)
    copies = train[torch.randperm(400, generator=generator)[:200]]
    copied = nearest_neighbours(copies, train, held_out, generator=generator)
    assert copied.nearer_train.value == 1.0
    assert copied.to_train.value < 1e-12
    assert copied.nearer_train.standard_error > 0
    blurred = copies + 0.02 * normal(200, 3, generator)
    noisy = nearest_neighbours(blurred, train, held_out, generator=generator)
    assert noisy.nearer_train.value > 0.9
    assert noisy.to_train.value < noisy.real_to_train.value / 3
    fresh = nearest_neighbours(normal(2000, 3, generator), train, held_out, generator=generator)
    assert abs(fresh.nearer_train.value - 0.5) < 4.5 * fresh.nearer_train.standard_error
    close(fresh.to_train.value, fresh.real_to_train.value, 0.1)


def test_nearest_neighbours_compares_sets_of_one_size(generator):
    """With all of a larger training set every sample would seem nearer to it."""
    train, held_out = normal(4000, 2, generator), normal(100, 2, generator)
    result = nearest_neighbours(normal(1000, 2, generator), train, held_out, generator=generator)
    assert abs(result.nearer_train.value - 0.5) < 4.5 * result.nearer_train.standard_error < 0.3


def test_identical_references_are_a_tie(generator):
    x, train = normal(30, 2, generator), normal(20, 2, generator)
    assert nearest_neighbours(x, train, train).nearer_train.value == 0.5


# ---------------------------------------------------------------------------- refusals

TWO_SAMPLE = {
    "sliced_wasserstein": sliced_wasserstein,
    "mmd": mmd,
    "c2st": c2st,
    "nearest_neighbours": lambda x, y: nearest_neighbours(x, y, y),
    "nearest_neighbours held out": lambda x, y: nearest_neighbours(x, x, y),
}


@pytest.mark.parametrize("metric", TWO_SAMPLE)
def test_bad_samples_are_refused(metric, generator, as_user):
    x = normal(20, 2, generator)
    broken = torch.where(torch.arange(40).reshape(20, 2) == 7, torch.nan, x)
    with pytest.raises(ValueError, match="1 of 20 rows that are not finite"):
        TWO_SAMPLE[metric](x, broken)
    for y in (x[:, :1], x[:, 0], x[:1], x.long(), x.reshape(20, 1, 2), x[:0]):
        with pytest.raises(ValueError):
            TWO_SAMPLE[metric](x, y)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda x: mmd(x, x, n_permutations=1), "n_permutations"),
        (lambda x: mmd(torch.zeros(20, 2), torch.zeros(20, 2)), "coincide"),
        (lambda x: c2st(x[:6], x), "x must have at least 10 rows"),
        (lambda x: fisher_divergence(lambda x: x[:, :1], lambda x: x, x), "shape"),
        (lambda x: fisher_divergence(lambda x: x, lambda x: x[:, :1], x), "shape"),
        (lambda x: fisher_divergence(lambda x: x, lambda x: x, x[:, 0]), "shape"),
    ],
)
def test_bad_arguments_are_refused(case, message, generator, as_user):
    with pytest.raises(ValueError, match=message):
        case(normal(20, 2, generator))


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


P = Gaussian(MEAN, COV)
Q = Gaussian([0.2, 0.3], [[0.9, -0.3], [-0.3, 1.4]])


def random_law(d, generator, rank=None):
    root = torch.randn(d, rank or d, generator=generator)
    return Gaussian(torch.randn(d, generator=generator), root @ root.mT / d)


def nodes(law, n=3):
    """Nodes and weights under which the mean of a quadratic over the law is exact."""
    z, weight = gauss_hermite(len(law.mean), n)
    return law.mean + z @ torch.linalg.cholesky(law.cov).mT, weight


# ---------------------------------------------------------------------------- distances


@pytest.mark.parametrize("d", [1, 2, 4])
def test_fisher_and_kl_are_means_over_p(d, generator):
    """Both integrands are quadratic, so that Gauss–Hermite integrates them exactly."""
    p, q = random_law(d, generator).noised(1.0, 0.3), random_law(d, generator).noised(1.0, 0.4)
    x, weight = nodes(p)
    squares = (p.score(x) - q.score(x)).square().sum(1)
    close(gaussian_fisher(p, q), 0.5 * weight @ squares, 1e-10)
    close(gaussian_kl(p, q), weight @ (p.log_prob(x) - q.log_prob(x)), 1e-10)


def test_fisher_and_kl_are_not_symmetric_and_vanish_for_one_law():
    for distance in (gaussian_fisher, gaussian_kl):
        assert abs(distance(P, Q) - distance(Q, P)) > 0.1
        assert 0 <= distance(P, Gaussian(MEAN, COV)) < 1e-14


@pytest.mark.parametrize("d", [1, 2, 5])
def test_wasserstein_against_matrix_roots_and_the_optimal_map(d, generator):
    p, q = random_law(d, generator).noised(1.0, 0.3), random_law(d, generator)
    S, T = p.cov.numpy(), q.cov.numpy()
    root = sqrtm(S)
    cross = sqrtm(root @ T @ root).real
    expected = (p.mean - q.mean).square().sum() + torch.tensor((S + T - 2 * cross).trace())
    value = gaussian_wasserstein(p, q)
    close(value**2, expected, 1e-10)
    close(gaussian_wasserstein(q, p), value, 1e-12)
    # the map that carries p to q costs exactly this
    inverse = torch.linalg.inv(torch.as_tensor(root))
    M = inverse @ torch.as_tensor(cross) @ inverse
    close(M @ p.cov @ M, q.cov, 1e-8)
    x, weight = nodes(p)
    cost = (x - q.mean - (x - p.mean) @ M).square().sum(1)
    close(value**2, weight @ cost, 1e-8)


def test_wasserstein_of_rotated_axes():
    a, b = torch.tensor([4.0, 0.01, 1e-12]), torch.tensor([1.0, 0.25, 1e-6])
    expected = (a.sqrt() - b.sqrt()).square().sum().sqrt()
    close(gaussian_wasserstein(Gaussian([0.0] * 3, a), Gaussian([0.0] * 3, b)), expected, 1e-14)
    U = torch.linalg.qr(torch.tensor([[1.0, 2, 3], [0, 1, 4], [5, 6, 0]])).Q
    turned = [Gaussian(torch.ones(3), U @ torch.diag(w) @ U.mT) for w in (a, b)]
    close(gaussian_wasserstein(*turned), expected, 1e-8)


def test_wasserstein_of_singular_and_of_close_laws(generator):
    point, line = Gaussian([1.0, 2.0], 0.0), Gaussian([1.0, 2.0], [9.0, 0.0])
    close(gaussian_wasserstein(point, line), 3.0, 1e-14)
    close(gaussian_wasserstein(point, point), 0.0, 1e-14)
    across = Gaussian([1.0, 2.0], [0.0, 16.0])
    close(gaussian_wasserstein(line, across), 5.0, 1e-14)
    for rank in (1, 2, 4):
        law = random_law(4, generator, rank)
        assert gaussian_wasserstein(law, Gaussian(law.mean, law.cov)) < 1e-7
    # W2 of N(0, S) and N(0, (1+e)² S) is e √tr S, however small e
    e = 1e-9
    close(
        gaussian_wasserstein(P, Gaussian(MEAN, (1 + e) ** 2 * COV)) / e, COV.trace().sqrt(), 1e-5
    )
    # float32 laws are compared in float64
    single = Gaussian(MEAN.float(), COV.float())
    close(gaussian_wasserstein(single, Gaussian(MEAN.float(), COV.float())), 0.0, 1e-12)


@pytest.mark.usefixtures("as_user")
def test_laws_that_do_not_fit_are_refused():
    three, point = Gaussian([0.0, 0.0, 0.0]), Gaussian([0.0, 0.0], [1.0, 0.0])
    mixture = GaussianMixture([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], 1.0)
    for distance in (gaussian_fisher, gaussian_kl, gaussian_wasserstein):
        with pytest.raises(ValueError, match="same dimension, got 2 and 3"):
            distance(P, three)
        with pytest.raises(ValueError, match="q was noised for 2 samples"):
            distance(P, P.noised(torch.ones(2), torch.ones(2)))
        with pytest.raises(ValueError, match="p must be a Gaussian, got GaussianMixture"):
            distance(mixture, P)  # and not taken for its mean and covariance
    for distance in (gaussian_fisher, gaussian_kl):
        with pytest.raises(ValueError, match="covariance of p is singular"):
            distance(point, P)
        with pytest.raises(ValueError, match="covariance of q is singular"):
            distance(P, point)


# ---------------------------------------------------------------------------- Stein


def test_fisher_information_of_a_gaussian_and_its_errors(generator):
    x = P.sample(20_000, generator=generator)
    result = fisher_information(P.score, x)
    expected = float(torch.linalg.inv(COV).trace())
    close(result.curvature.value, expected, 1e-12)
    assert result.curvature.standard_error < 1e-12
    squares = P.score(x).square().sum(1)
    close(result.squared.value, squares.mean(), 1e-12)
    close(result.squared.standard_error, squares.std() / math.sqrt(len(x)), 1e-12)
    assert abs(result.squared.value - expected) < 4.5 * result.squared.standard_error
    close(result.difference.value, result.squared.value - expected, 1e-10)


def test_fisher_information_of_a_mixture_is_paired(generator):
    law = GaussianMixture([0.3, 0.7], [[-1.0, 0.0], [1.0, 1.0]], [0.4, 0.9])
    x = law.sample(20_000, generator=generator)
    result = fisher_information(law.score, x)
    terms = law.score(x).square().sum(1) + law.hessian(x).diagonal(dim1=1, dim2=2).sum(1)
    close(result.difference.value, terms.mean(), 1e-10)
    close(result.difference.standard_error, terms.std() / math.sqrt(len(x)), 1e-10)
    assert abs(z_score(terms, 0.0)) < 4.5
    wrong = fisher_information(lambda y: 0.5 * law.score(y), x).difference
    assert abs(wrong.value) > 20 * wrong.standard_error


def test_mean_score_is_a_t_test_in_one_dimension(generator):
    x = 0.1 + torch.randn(60, 1, generator=generator)
    result = mean_score(lambda x: -x, x)
    close(result.p_value, stats.ttest_1samp(-x[:, 0].numpy(), 0.0).pvalue, 1e-10)
    close(result.value, -x.mean(0), 1e-14)
    close(result.standard_error, x.std(0) / math.sqrt(60), 1e-14)


def test_mean_score_has_uniform_p_values_and_finds_a_shift(generator):
    P_inverse = Gaussian(torch.zeros(6), torch.diag(torch.arange(1.0, 7.0)))
    score = lambda x: P_inverse.score(x.flatten(1)).reshape(x.shape)
    draw = lambda n: P_inverse.sample(n, generator=generator).reshape(n, 2, 3)
    p_values = [mean_score(score, draw(30)).p_value for _ in range(400)]
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4
    moved = mean_score(score, draw(2000) + 0.2)
    assert moved.value.shape == moved.standard_error.shape == (2, 3)
    assert moved.p_value < 1e-6


def test_mean_score_without_variance_in_a_direction(generator):
    x = torch.randn(50, 2, generator=generator)
    line = mean_score(lambda x: torch.stack([-x[:, 0], 0 * x[:, 0]], 1), x)
    close(line.p_value, mean_score(lambda x: -x, x[:, :1]).p_value, 1e-10)
    assert mean_score(lambda x: torch.stack([-x[:, 0], 1 + 0 * x[:, 0]], 1), x).p_value == 0.0
    assert mean_score(torch.zeros_like, x).p_value == 1.0


def test_bad_gaussian_samples_are_refused(as_user):
    with pytest.raises(ValueError, match="more samples than its 6 coordinates, got 6"):
        mean_score(lambda x: -x, torch.zeros(6, 2, 3))
    for function in (mean_score, fisher_information):
        with pytest.raises(ValueError, match="floating point"):
            function(lambda x: -x, torch.zeros(9, 2, dtype=torch.long))
    with pytest.raises(ValueError, match="score returned shape"):
        mean_score(lambda x: x.sum(1), torch.zeros(9, 2))
