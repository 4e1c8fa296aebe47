"""Tests of columns and pairs against SciPy's, against closed forms, and weights against repetitions."""

import math

import pytest
import scipy.stats
import torch
from support import close

from gradlogp.check.metrics.classifier import auc, tell_apart
from gradlogp.check.metrics.columns import (
    correlations,
    effective,
    kolmogorov_smirnov,
    location,
    normal_scores,
    scale,
    weights_of,
)
from gradlogp.check.metrics.copies import copies, membership


def two(generator, n=60, m=45, d=3):
    return torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator)


def equal(*sets):
    return [weights_of(x, None) for x in sets]


def test_normal_scores_are_those_of_van_der_waerden(generator):
    x, y = two(generator)
    pooled = torch.cat([x, y])
    rank = torch.from_numpy(scipy.stats.rankdata(pooled, axis=0))
    z = torch.special.ndtri((rank - 0.5) / len(pooled))
    z = z / z.square().mean(0).sqrt()
    found = normal_scores((x, y), equal(x, y))
    close(torch.cat(found), z, 1e-12)
    monotone = normal_scores((torch.exp(3 * x), torch.exp(3 * y)), equal(x, y))
    close(torch.cat(monotone), z, 1e-12)  # no units, no tails


def test_ties_have_one_score_and_a_constant_column_none():
    x = torch.tensor([[0.0, 5.0], [0.0, 5.0], [1.0, 5.0]])
    a, b = normal_scores((x, x), equal(x, x))
    assert a[0, 0] == a[1, 0] == b[0, 0] < 0 < a[2, 0]
    assert (a[:, 1] == 0).all()


def test_location_against_the_law_of_all_relabellings(generator):
    """z is the difference over its exact standard deviation under relabelling."""
    x, y = two(generator, 5, 4, 1)
    z_x, z_y = normal_scores((x, y), equal(x, y))
    pooled = torch.cat([z_x, z_y])[:, 0]
    gaps = []
    for first in torch.combinations(torch.arange(9), 5):
        mask = torch.zeros(9, dtype=torch.bool)
        mask[first] = True
        gaps.append(pooled[mask].mean() - pooled[~mask].mean())
    gaps = torch.stack(gaps)
    close(gaps.mean(), 0.0, 1e-12)
    found = location(z_x, z_y, *equal(x, y))
    close(found.value[0], z_x.mean() - z_y.mean(), 1e-12)
    z = float(found.value[0]) / float(gaps.std(correction=0))
    close(found.p_value[0], 2 * scipy.stats.norm.sf(abs(z)), 1e-10)


def test_a_shift_and_a_scale_are_measured_in_their_units(generator):
    n = 200_000
    u = (torch.arange(n) + 0.5) / n
    x = torch.special.ndtri(u)[:, None]
    w = equal(x, x)
    found = location(*normal_scores((x + 0.1, x), w), *w)
    close(found.value, [0.1], 0.0, 2e-3)  # to first order in the shift
    close(found.standard_error / math.sqrt(2 / n), [1.0], 1e-2)
    found = scale(*normal_scores((1.1 * x, x), w), *w)
    close(found.value, [0.1], 0.0, 5e-3)
    # relative variance of |z|: (1 − 2/π)/(2/π), in both samples
    close(found.standard_error / (1.1 * math.sqrt((math.pi / 2 - 1) * 2 / n)), [1.0], 3e-2)
    D = kolmogorov_smirnov(0.75 * x, x, *w).value
    close(D, [0.0691348], 0.0, 1e-5)  # the largest difference of the two normal functions


def test_scale_is_brown_and_forsythes_ratio(generator):
    x, y = two(generator, 61, 45)
    w = equal(x, y)
    a, b = ((z - z.median(0).values).abs() for z in (x, y))
    found = scale(x, y, *w)
    close(found.value, a.mean(0) / b.mean(0) - 1, 1e-12)
    p = [scipy.stats.levene(x[:, j], y[:, j], center="median").pvalue for j in range(3)]
    close(found.p_value, torch.tensor(p), 0.0, 5e-3)  # F there, its normal limit here


@pytest.mark.parametrize("ties", [False, True])
def test_kolmogorov_smirnov_is_scipys(ties, generator):
    x, y = two(generator, 300, 211)
    if ties:
        x, y = x.round(), y.round()
    found = kolmogorov_smirnov(x, y, *equal(x, y))
    reference = [scipy.stats.ks_2samp(x[:, j], y[:, j]) for j in range(3)]
    close(found.value, torch.tensor([r.statistic for r in reference]), 1e-12)
    close(found.p_value, torch.tensor([r.pvalue for r in reference]), 0.0, 0.02)


def test_weights_are_repetitions(generator):
    x, y = two(generator, 40, 30)
    times = torch.randint(1, 4, (30,), generator=generator)
    repeated = y.repeat_interleave(times, 0)
    w_x, w_y = weights_of(x, None), weights_of(y, times.double())
    w_r = weights_of(repeated, None)
    close(
        kolmogorov_smirnov(x, y, w_x, w_y).value, kolmogorov_smirnov(x, repeated, w_x, w_r).value
    )
    close(auc(x[:, 0], y[:, 0], w_x, w_y).value, auc(x[:, 0], repeated[:, 0], w_x, w_r).value)
    for statistic in (location, scale):
        close(statistic(x, y, w_x, w_y).value, statistic(x, repeated, w_x, w_r).value)
    r, repeated_r = correlations(x, y, w_x, w_y).y, correlations(x, repeated, w_x, w_r).y
    close(r[0, 1], repeated_r[0, 1])
    assert effective(w_y) == pytest.approx(float(times.sum()) ** 2 / float(times.square().sum()))
    for bad in (-times.double(), 0 * times.double(), times[:-1].double(), times / 0.0):
        with pytest.raises(ValueError, match="sample_weight must"):
            weights_of(y, bad)


def test_correlations_and_the_variance_of_normal_pairs(generator):
    """Var arctanh r = 1/n for a bivariate normal, and (n − 1)-fold E ψ²/(1 − r²)² in general."""
    n, r = 100_000, 0.6
    a, b = torch.randn(2, n, generator=generator)
    x = torch.stack([a, r * a + math.sqrt(1 - r * r) * b], 1)
    found = correlations(x, x.flip(0), *equal(x, x))
    close(found.x[0, 1], torch.corrcoef(x.T)[0, 1], 1e-10)
    close(found.standard_error[0, 1] / math.sqrt(2 / n), 1.0, 0.02)
    assert found.p_value[0, 1] == 1.0
    # signs of one normal: squares move together, and the error is larger
    sign = torch.where(torch.rand(n, generator=generator) < 0.5, 1.0, -1.0)
    y = torch.stack([a, sign * a], 1)
    close(correlations(y, y, *equal(y, y)).standard_error[0, 1] / math.sqrt(6 / n), 1.0, 0.05)
    constant = torch.stack([a, torch.zeros(n)], 1)
    assert correlations(constant, x, *equal(x, x)).p_value[0, 1] == 1.0


def test_p_values_are_uniform_under_one_law(generator):
    """1,000 columns of several shapes; a share of at most α lies below α, up to 3.5 errors."""
    k, n, m = 1000, 150, 90
    shapes = (lambda z: z, lambda z: torch.exp(2 * z), lambda z: z / (1 + z.square()), torch.round)
    x, y = (torch.randn(size, k, generator=generator) for size in (n, m))
    x, y = (torch.cat([f(z[:, i::4]) for i, f in enumerate(shapes)], 1) for z in (x, y))
    w = equal(x, y)
    z = normal_scores((x, y), w)
    for found in (location(*z, *w), scale(*z, *w), kolmogorov_smirnov(x, y, *w)):
        for level in (0.05, 0.01):
            below = float((found.p_value < level).double().mean())
            assert below < level + 3.5 * math.sqrt(level * (1 - level) / k)
    shifted = normal_scores((x + 0.5 * x.std(0), y), w)
    assert float((location(*shifted, *w).p_value < 0.05).double().mean()) > 0.8  # it can fail


def test_auc_is_mann_and_whitneys(generator):
    x, y = (
        torch.randn(50, generator=generator).round(),
        torch.randn(40, generator=generator).round(),
    )
    u = scipy.stats.mannwhitneyu(x, y, alternative="greater", use_continuity=False)
    found = auc(x, y, *equal(x, y))
    close(found.value, u.statistic / 2000, 1e-12)
    x, y = torch.randn(50, generator=generator), torch.randn(40, generator=generator)
    p = scipy.stats.mannwhitneyu(x, y, alternative="greater", use_continuity=False).pvalue
    close(auc(x, y, *equal(x, y)).p_value, p, 1e-9)
    values = torch.stack(
        [torch.tensor(auc(torch.randn(50, generator=generator) + 0.5,
                          torch.randn(40, generator=generator), *equal(x, y))[:2])
         for _ in range(400)]
    )  # fmt: skip
    exact = scipy.stats.norm.cdf(0.5 / math.sqrt(2))
    assert abs(float(values[:, 0].mean()) - exact) < 4 * float(values[:, 0].std()) / 20
    close(values[:, 1].mean() / values[:, 0].std(), 1.0, 0.12)  # the error bar, against the spread


def halves(x, y):
    a, b = len(x) // 2, len(y) // 2
    parts = (x[:a], y[:b], x[a:], y[b:])
    return *parts, tuple(equal(*parts))


def test_a_classifier_sees_what_is_wrong_in_few_rows(generator):
    """A mode of 5 % that samples lack: the area hardly moves, the rows most like real ones do."""
    x, y = two(generator, 1500, 1500, 2)
    y[:75] = 0.3 * y[:75] + torch.tensor([0.0, 2.5])
    y = y[torch.randperm(1500, generator=generator)]
    found = tell_apart(*halves(x, y), generator=generator)
    assert found.auc.value < 0.6
    assert found.p_value < 1e-4
    assert found.share.value > 0.8
    assert not found.of_x
    same = tell_apart(*halves(x, torch.randn(1500, 2, generator=generator)), generator=generator)
    assert min(same.p_value, same.auc.p_value) > 0.01


def test_copies_are_counted_and_fresh_rows_are_not(generator):
    train, held = (
        torch.randn(800, 3, generator=generator),
        torch.randn(500, 3, generator=generator),
    )
    fresh = torch.randn(600, 3, generator=generator)
    assert copies(fresh, train, held).p_value > 0.05
    assert copies(0.2 * fresh, train, held).p_value > 0.01  # rows close together are not copies
    some = fresh.clone()
    some[:30] = train[:30]
    found = copies(some, train, held)
    assert found.samples.value >= 0.05
    assert found.ratio == 0.0
    assert found.p_value < 1e-4
    near = fresh.clone()
    near[:60] = train[:60] + 1e-3 * near[:60]
    assert copies(near, train, held).p_value < 1e-4
    assert copies(train, train.repeat(2, 1), held).p_value == 1.0  # equal rows say nothing


def test_a_membership_attack_works_on_samples_that_sit_on_training_rows(generator):
    train, held = torch.randn(2, 500, 4, generator=generator).unbind()
    fresh = torch.randn(800, 4, generator=generator)
    assert abs(membership(fresh, train, held, generator=generator).value - 0.5) < 0.07
    near = train[torch.randint(500, (800,), generator=generator)] + 0.3 * fresh
    found = membership(near, train, held, generator=generator)
    assert found.value > 0.6
    assert found.p_value < 1e-4
