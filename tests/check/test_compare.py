"""Verdicts on samples: of the right law they pass, damaged ones fail, and reasons name the damage."""

import importlib.util
import math
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from support import close, seeded

import gradlogp as glp
from gradlogp.check.baselines import baselines
from gradlogp.check.compare import (
    KINDS,
    SIZE,
    Comparison,
    compare,
    difference_row,
    likelihood_row,
)
from gradlogp.check.metrics.columns import kolmogorov_smirnov
from gradlogp.check.metrics.copies import enrichment
from gradlogp.check.pages import sections
from gradlogp.check.rows import encode, image_columns
from gradlogp.check.values import _beyond, _rates, decimals
from gradlogp.show.plots import LIGHT

spec = importlib.util.spec_from_file_location(
    "benchmark", Path(__file__).parents[2] / "benchmarks" / "compare.py"
)
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

LAW = glp.GaussianMixture([0.3, 0.7], [[-2.0, 0.0], [2.0, 1.0]], 0.5)


def three(generator, n=700):
    return (LAW.sample(n, generator=generator) for _ in range(3))


def test_samples_of_the_right_law_pass(generator):
    """Of this seed two looks in some thirty are below the bar that there would be for one alone."""
    found = compare(*three(generator.manual_seed(10)), generator=generator)
    assert found.verdict.ok, str(found)
    assert found.verdict.reasons == ()
    assert all(row.verdict is not False for row in found.rows)


DAMAGES = {
    "one column zeroed": ("spread", "x[0]"),
    "one column × 0.75": ("spread of x[0] is off by -2",),
    "one column shifted by 0.2 sd": ("x[0] is shifted by +0.",),
    "two columns decorrelated": ("x[0] and x[1] have correlation",),
    "whole numbers where there were none": ("real values of x[0] are not integers",),
    "a mode of 5 % dropped": ("classifier", "look most like real rows"),
    "5 % copies of training rows": ("copies of training rows",),
    "wrong class rates (0.4, 0.35, 0.25 for 0.5, 0.3, 0.2)": ("x[3]",),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_samples_fail_and_the_reason_names_the_damage(name):
    refused, reasons = benchmark.refused(name, 1200, 4, seed=3)
    assert refused
    assert all(word in " ".join(reasons) for word in DAMAGES[name]), reasons


def test_the_benchmark_has_all_damages():
    assert set(benchmark.NAMES) == set(DAMAGES)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 200 comparisons
@pytest.mark.parametrize("n", [200, 2000])
@pytest.mark.parametrize("d", [2, 10, 60])
def test_size(n, d):
    """At most one in twenty of exact samples is refused, up to three errors of 200 runs."""
    refused = sum(benchmark.refused("", n, d, 1000 * k)[0] for k in range(200))
    assert refused <= 200 * SIZE + 3 * math.sqrt(200 * SIZE * (1 - SIZE))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [(name, 0.9) for name in DAMAGES])
def test_power(name, least):
    refused = [benchmark.refused(name, 2000, 10, 7 * k)[0] for k in range(20)]
    assert np.mean(refused) >= least


def test_a_copying_model_fails(generator):
    _, held_out, train = three(generator)
    copies = train + 1e-4 * torch.randn(700, 2, generator=generator)
    found = compare(copies, held_out, train, baselines=False, generator=generator)
    failed = {row.name for row in found.rows if row.verdict is False}
    assert failed == {"copies of training rows", "membership attack"}


def test_units_and_monotone_maps_do_not_matter(generator):
    samples, held_out, train = three(generator)
    scale = torch.tensor([1e-3, 1e4])
    a, b = (
        compare(f(samples), f(held_out), f(train), baselines=False, generator=seeded())
        for f in (lambda x: x, lambda x: x * scale)
    )
    for one, other in zip(a.rows, b.rows, strict=True):
        assert one.value == pytest.approx(other.value, abs=1e-9)
        assert one.verdict == other.verdict


def test_a_small_effect_is_no_fault_however_significant(generator):
    """A shift of 0.04 deviations among 40,000 rows: five standard errors, and below the bar."""
    held_out, samples = (torch.randn(40_000, 1, generator=generator) for _ in range(2))
    found = compare(
        samples - samples.mean() + held_out.mean() + 0.04,
        held_out,
        baselines=False,
        generator=generator,
    )
    look = next(look for look in found.looks if look.kind == "location")
    assert float(look.effects.p_value) < 1e-6
    assert found.verdict.ok, str(found)


def test_what_was_not_looked_at_is_said(generator):
    samples, held_out, _ = three(generator, 40)
    found = compare(samples, held_out, generator=generator)
    assert found.verdict.ok
    copying, few = found.verdict.reasons
    assert "no training rows" in copying
    assert "40 samples and 40 held-out rows reveal only shifts of" in few


def test_a_single_wild_value_fails(generator):
    samples, held_out, train = three(generator)
    samples[0, 1] = 1e6
    reasons = compare(
        samples, held_out, train, baselines=False, generator=generator
    ).verdict.reasons
    assert any("x[1] are above the largest real value" in r and "1e+06" in r for r in reasons)


def test_weights_of_held_out_rows(generator):
    """Half of the held-out rows are of another law, and have weight 0: samples are of the first."""
    samples, held_out, train = three(generator)
    both = torch.cat([held_out, held_out + 3])
    weight = torch.cat([torch.ones(700), torch.zeros(700)])
    assert not compare(samples, both, train, baselines=False, generator=generator).verdict.ok
    weighted = compare(
        samples, both, train, sample_weight=weight, baselines=False, generator=generator
    )
    look = next(look for look in weighted.looks if look.kind == "shape")
    plain = [scipy.stats.ks_2samp(samples[:, j], held_out[:, j]).statistic for j in range(2)]
    close(look.effects.value, torch.tensor(plain))
    assert weighted.verdict.ok, str(weighted)
    with pytest.raises(ValueError, match="sample_weight must be keyed by what was given"):
        compare(samples, held_out, sample_weight={"train": weight})


def test_importance_weights_make_a_wide_law_the_right_one(generator):
    """Held-out rows of N(0, 4) with weights p/q of N(0, 1), next to nothing in their tails."""
    samples = torch.randn(1500, 2, generator=generator)
    wide = 2 * torch.randn(6000, 2, generator=generator)
    weight = torch.exp(-0.5 * wide.square().sum(1) * (1 - 1 / 4))
    found = compare(samples, wide, sample_weight=weight, baselines=False, generator=generator)
    assert found.verdict.ok, str(found)
    failed = {
        row.name
        for row in compare(samples, wide, baselines=False, generator=generator).rows
        if row.verdict is False
    }
    assert {"scale", "range not reached"} <= failed


def test_a_precedence_and_a_hypergeometric_p_value_by_enumeration():
    n, m, k = 6, 5, 3
    total = math.comb(n + m, n)
    extreme = sum(math.comb(n + m - k, n - k) for _ in range(1))
    assert _beyond(k, n, m) == pytest.approx(extreme / total)
    table = [[4, 2], [1, 4]]
    exact = scipy.stats.fisher_exact(table, alternative="greater").pvalue
    assert enrichment(4, 6, 1, 5) == pytest.approx(exact)


def test_class_rates_are_pearsons(generator):
    a, b = (torch.multinomial(torch.tensor(p), n, True, generator=generator)
            for p, n in (([0.5, 0.3, 0.2], 300), ([0.4, 0.4, 0.2], 200)))  # fmt: skip
    weights = {"samples": torch.full((300,), 1 / 300), "held_out": torch.full((200,), 1 / 200)}
    distance, _, p, fact = _rates(a, b, weights, ("u", "v", "w"))
    table = np.stack([np.bincount(v, minlength=3) for v in (a, b)])
    assert p == pytest.approx(
        scipy.stats.chi2_contingency(table, correction=False).pvalue, rel=1e-6
    )
    shares = table / table.sum(1, keepdims=True)
    assert distance == pytest.approx(abs(shares[0] - shares[1]).sum() / 2)
    assert fact["level"] == "uvw"[int(abs(shares[0] - shares[1]).argmax())]


def test_the_error_of_class_rates(generator):
    """Of two classes the distance is |p − q|, with the error of a difference of two shares."""
    weights = {"samples": torch.full((300,), 1 / 300), "held_out": torch.full((200,), 1 / 200)}
    draw = lambda p, n: torch.multinomial(torch.tensor(p), n, True, generator=generator)
    found = _rates(draw([0.7, 0.3], 300), draw([0.5, 0.5], 200), weights, ("u", "v"))
    p, q = found[3]["ours"], found[3]["real"]
    assert found[0] == pytest.approx(abs(p - q))
    assert found[1] == pytest.approx(math.sqrt(p * (1 - p) / 300 + q * (1 - q) / 200))
    # of four, the spread over repetitions
    laws = [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]
    runs = torch.tensor(
        [
            _rates(draw(laws[0], 300), draw(laws[1], 200), weights, tuple("uvwx"))[:2]
            for _ in range(400)
        ]
    )
    assert float(runs[:, 1].mean() / runs[:, 0].std()) == pytest.approx(1, abs=0.12)


def test_the_floor_of_a_distribution_function(generator):
    """E D = (π/2)^½ log 2 (1/n + 1/m)^½ under one law, for many rows."""
    x, y = torch.randn(2, 800, 300, generator=generator).unbind()
    equal = torch.full((800,), 1 / 800)
    D = kolmogorov_smirnov(x, y, equal, equal)
    usual = math.sqrt(math.pi / 2) * math.log(2) * math.sqrt(2 / 800)
    close(torch.tensor(0.8687 * math.sqrt(2 / 800)), usual, 1e-4)
    assert abs(float(D.value.mean()) - usual) < 0.05 * usual  # D is smaller by O(1/n)


def test_decimals():
    eps = 2.0**-52
    assert decimals(torch.tensor([1.0, -3.0, 1e9]), eps) == 0
    assert decimals(torch.tensor([0.25, 1.1, 3.0]), eps) == 2
    assert decimals(torch.tensor([math.pi, 1.0]), eps) is None
    # float32 has 7 digits: of 12345.67 it does not say how many decimals there were
    assert decimals(torch.tensor([12345.67], dtype=torch.float32).double(), 2.0**-23) is None
    assert decimals(torch.tensor([0.23], dtype=torch.float32).double(), 2.0**-23) == 2


def test_a_fine_grid_is_no_fault(generator):
    """Real values have two decimals; samples need not, unless that is coarse beside the spread."""
    samples, held_out = torch.randn(2, 300, 1, generator=generator).unbind()
    fine, coarse = (compare(k * samples, (k * held_out).round(decimals=2), generator=generator)
                    for k in (1.0, 0.1))  # fmt: skip
    assert fine.verdict.ok, str(fine)
    assert "not numbers with 2 decimals" in " ".join(coarse.verdict.reasons)


def frame(rng, n, rates=(0.5, 0.3, 0.2), missing=0.1):
    a = rng.normal(size=n)
    found = pd.DataFrame({
        "age": (30 + 8 * a).round().astype(int),
        "income": np.exp(10 + 0.8 * a + 0.6 * rng.normal(size=n)).round(2),
        "city": rng.choice(["Bern", "Basel", "Chur"], p=rates, size=n),
        "member": rng.random(n) < 0.3,
        "joined": pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, n), unit="D"),
        "id": [f"row {i} {rng.integers(10**9)}" for i in range(n)],
    })  # fmt: skip
    found.loc[rng.random(n) < missing, "income"] = np.nan
    return found


def test_frames_are_judged_in_their_own_types(generator):
    rng = np.random.default_rng(1)
    held_out, train = frame(rng, 600), frame(rng, 600)
    right = compare(frame(rng, 600), held_out, train, baselines=False, generator=generator)
    assert right.verdict.ok, str(right)
    wrong = frame(rng, 600, rates=(0.4, 0.35, 0.25), missing=0.2)
    wrong["age"] = wrong["age"] + 0.25
    wrong.loc[:80, "city"] = "Atlantis"
    found = compare(wrong, held_out, train, baselines=False, generator=generator)
    reasons = " ".join(found.verdict.reasons)
    for text in (
        "samples of age are not integers", "income is missing in", "categories of city",
        "a city that no real row has, such as 'Atlantis'",
    ):  # fmt: skip
        assert text in reasons


def test_rare_levels_that_meet_by_chance_are_no_correlation(generator):
    """Levels of 4 % in 40 held-out rows: where two of them are in one row only, it is 1."""
    rng = np.random.default_rng(4)
    for _ in range(5):
        a, b = (
            pd.DataFrame({k: np.where(rng.random(n) < 0.04, "u", "v") for k in "pqrst"})
            for n in (400, 40)
        )
        assert compare(a, b, generator=generator).verdict.ok


def test_frames_that_do_not_fit(generator):
    rng = np.random.default_rng(0)
    one = frame(rng, 30)
    with pytest.raises(ValueError, match="held_out lacks columns that samples has: city, id"):
        compare(one, one.drop(columns=["city", "id"]))
    with pytest.raises(ValueError, match="held_out has columns that samples lacks: more"):
        compare(one, one.assign(more=1))
    with pytest.raises(ValueError, match=r"column 'age' must have one dtype: int64 in samples, "):
        compare(one, one.assign(age="old"))
    with pytest.raises(ValueError, match="samples has infinite values in income"):
        compare(one.assign(income=np.inf), one)
    with pytest.raises(TypeError, match="either all must be tensors, or all data frames"):
        compare(one, torch.zeros(30, 6))
    with pytest.raises(
        TypeError, match=r"samples must be a tensor .* or a data frame, got ndarray"
    ):
        compare(np.zeros((30, 2)), torch.zeros(30, 2))


def test_tensors_that_do_not_fit(as_user):
    x = torch.randn(30, 2, generator=seeded())
    for bad, text in (
        (x[:, :1], "held_out must have shape"), (x[:10], "held_out must have at least 20 rows, got 10"),
        (x / 0.0, "held_out has 30 of 30 rows that are not finite"), (x.long(), "floating point"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            compare(x, bad)
    for zeros in (torch.zeros(3), np.zeros(3)):
        with pytest.raises(ValueError, match="log_prob must have shape"):
            compare(x, x, log_prob=zeros)
    with pytest.raises(ValueError, match="names must be 2 different column names"):
        compare(x, x, names=["a", "a"])


def images(generator, n, blur=False):
    """White noise, and noise of neighbours that has the same law in every pixel."""
    x = torch.randn(n, 2, 8, 8, generator=generator)
    return (x + x.roll(1, 3)) / math.sqrt(2) if blur else x


def test_images_are_judged_by_channel_and_spectrum(generator):
    held_out, train = images(generator, 120), images(generator, 120)
    judged = partial(compare, held_out=held_out, train=train, generator=generator)
    assert judged(images(generator, 120)).verdict.ok
    blurred = judged(images(generator, 120, True))
    assert "log power up to" in " ".join(blurred.verdict.reasons)
    zero = images(generator, 120)
    zero[:, 1] = 0.0
    reasons = judged(zero).verdict.reasons
    assert any("channel 1: " in reason for reason in reasons)
    assert not any("channel 0: " in reason for reason in reasons)


def test_power_in_bands_is_that_of_a_wave():
    """cos(2π k i/n) has all its power at frequency k/n."""
    n, k = 24, 5
    wave = torch.cos(2 * math.pi * k * torch.arange(n) / n)
    x = wave.expand(1, 1, n, n).flatten(1)
    names, found = image_columns(torch.Size([1, n, n]), {"x": x})
    power = {
        name: float(v) for name, v in zip(names, found["x"][0], strict=True) if "power" in name
    }
    loudest = max(power, key=power.get)
    assert loudest == "log power up to 0.25 cycles per pixel"
    assert sorted(power.values())[-2] < power[loudest] - 20
    assert found["x"][0, 1] == pytest.approx(math.sqrt(0.5))  # the deviation


def test_baselines_are_what_they_say(generator):
    x, y, _ = (z.double() for z in three(generator, 1000))
    found = {b.name: b for b in baselines(x, generator=generator)}
    normal, mixture, kernel = found.values()
    law = torch.distributions.MultivariateNormal(x.mean(0), torch.cov(x.T, correction=0))
    close(normal.log_prob(y), law.log_prob(y), 1e-4)  # scikit-learn adds 1e-6 to variances
    assert mixture.name == "mixture of 2 normal laws"
    gap = float((mixture.log_prob(y) - LAW.log_prob(y)).mean())
    assert -0.05 < gap < 0.01
    grid = torch.cartesian_prod(*[torch.linspace(-7, 7, 141)] * 2)
    for b in found.values():
        assert float(b.log_prob(grid).exp().sum()) * 0.01 == pytest.approx(1, abs=0.01)
        drawn = b.sample(4000)
        assert abs(float(drawn.mean()) - float(x.mean())) < 0.15
    assert kernel.name.startswith("kernel density")
    with pytest.raises(ValueError, match=r"train has constant columns, \[1\]"):
        baselines(torch.cat([x[:, :1], torch.ones(1000, 1)], 1))


def test_a_mixture_that_does_better_is_named(generator):
    samples, held_out, train = three(generator, 300)
    law = torch.distributions.MultivariateNormal(train.mean(0), torch.cov(train.T))
    nats = law.log_prob(held_out).numpy()  # as estimators return them
    found = compare(samples, held_out, train, log_prob=nats, generator=generator)
    assert not found.verdict.ok
    assert any("mixture of 2 normal laws does better by" in r for r in found.verdict.reasons)
    row = {row.name: row for row in found.rows}["model minus mixture of 2 normal laws"]
    gap = law.log_prob(held_out) - LAW.log_prob(held_out)
    assert row.value == pytest.approx(float(gap.mean()), abs=0.05)
    exact = compare(samples, held_out, train, log_prob=LAW.log_prob(held_out), generator=generator)
    assert not any("does better" in reason for reason in exact.verdict.reasons)


def test_every_kind_of_look_has_a_bar_and_a_sentence(generator):
    rng = np.random.default_rng(2)
    shown = [
        compare(frame(rng, 60), frame(rng, 60), frame(rng, 60), generator=generator),
        compare(images(generator, 60), images(generator, 60), generator=generator),
    ]
    kinds = {look.kind for c in shown for look in c.looks}
    assert kinds == set(KINDS)
    for c in shown:
        assert isinstance(c, Comparison)
        for look in c.looks:
            for i in range(min(3, len(look.places))):
                fact = look.facts[i]
                text = KINDS[look.kind].sentence.format(
                    place=look.places[i], value=0.5, error=0.1, **fact
                )
                assert "{" not in text


def test_one_law_of_degenerate_rows(generator):
    """No finding, and no division by zero: constant columns, a single column."""
    flat = torch.ones(50, 3)
    assert compare(flat, flat, flat, generator=generator).verdict.ok
    one = torch.randn(150, 1, generator=seeded(1))
    assert compare(one[:50], one[50:100], one[100:], generator=generator).verdict.ok


def test_encoding_of_holes_and_infinite_eps():
    layout, rows = encode(
        {"samples": pd.DataFrame({"a": [1.0, None] * 10, "b": [True, None] * 10})}
    )
    assert layout.numbers == ("a",)
    assert layout.categories == ("b",)
    assert rows["samples"].numbers.isnan().sum() == 10
    assert (rows["samples"].levels < 0).sum() == 10


@pytest.mark.usefixtures("quick_pictures")
def test_a_report_names_the_columns_and_the_worst_comes_first(generator):
    rng = np.random.default_rng(3)
    wrong = frame(rng, 200)
    wrong["income"] *= 3
    found = compare(wrong, frame(rng, 200), frame(rng, 200), baselines=False, generator=generator)
    parts = sections(found)
    titles = [part.title for part in parts]
    assert titles == ["Verdict", "Columns", "Categories and holes", "Pairs", "All columns together",
                      "Are they copies?"]  # fmt: skip
    histograms = parts[1].figures[0][2]
    assert histograms.args[0][0][0] == "income"
    assert "income is shifted by" in parts[0].text
    shown = sections(compare(images(generator, 50), images(generator, 50), generator=generator))
    (pictures,) = (part for part in shown if part.title == "Images")
    for _, _, draw in (figure for part in (*parts, pictures) for figure in part.figures):
        assert draw(theme=LIGHT).axes


def test_likelihood_rows():
    row = likelihood_row("ours", torch.tensor([1.0, 2.0, 3.0]))
    assert (row.value, row.standard_error) == (2.0, 1 / 3**0.5)
    for theirs, value, verdict in ((1.0, 1.0, True), (3.1, -1.1, True), (3.2, -1.2, False)):
        gap = difference_row("gap", torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), theirs))
        assert (round(gap.value, 9), gap.verdict) == (value, verdict)  # two errors are 1.155
