"""Values that are met more often than those near them: probabilities exact, and back as they were."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from support import close, seeded
from torch.special import ndtr

import gradlogp as glp
from gradlogp.interfaces.tables.coding import decode, encode
from gradlogp.interfaces.tables.columns import recognise

N = 4000


def wages():
    """Two decimals, a third of the rows are integers."""
    rng = np.random.default_rng(0)
    x = np.exp(rng.normal(2.2, 0.5, N))
    return pd.Series(np.where(rng.random(N) < 0.35, x.round(), x.round(2)).clip(0.5), name="wage")


def ages():
    """Integers on a coarse grid, more of those that end in 0."""
    rng = np.random.default_rng(1)
    x = rng.normal(42, 12, N).round()
    heaped = rng.random(N) < 0.25
    return pd.Series(np.where(heaped, 10 * (x / 10).round(), x).clip(18).astype(int), name="age")


def floats():
    """On no grid, and half of the rows with one of twenty values."""
    rng = np.random.default_rng(3)
    x, often = rng.gamma(3.0, 2.0, N), np.sort(rng.gamma(3.0, 2.0, 20))
    return pd.Series(np.where(rng.random(N) < 0.5, rng.choice(often, N), x), name="dose")


COLUMNS = {"wage": wages(), "age": ages(), "dose": floats()}


@pytest.mark.parametrize("name", COLUMNS)
def test_heaps_come_back(name):
    """Every value, to the bit; numbers that are normal; and as often as they are met, if z is."""
    series = COLUMNS[name]
    column = recognise(series)
    assert sum(a for _, a in column.atoms) > 0.15
    unit = {"wage": 1, "age": 10}.get(name)
    large = [v for v, a in column.atoms if a > 0.005]
    assert all(unit is None or v % unit == 0 for v in large)
    z, _ = encode(column, series, seeded())
    again = decode(column, z, seeded())
    pd.testing.assert_series_equal(again, series, rtol=1e-9)
    heaped = series.isin([v for v, _ in column.atoms])
    assert (again[heaped] == series[heaped]).all()
    order = z[:, -1].sort().values
    uniform = (torch.arange(N) + 0.5) / N
    assert float((ndtr(order) - uniform).abs().max()) < 0.03  # also where heaps are large
    drawn = decode(column, torch.randn(N, 1, generator=seeded(1)).double(), seeded())
    for value, _ in column.atoms:
        p, ours = (series == value).mean(), (drawn == value).mean()
        assert abs(p - ours) < 4.5 * math.sqrt(2 * p * (1 - p) / N)
    other = set(series) - {
        v for v, _ in column.atoms
    }  # a negative control: the rest is not heaped
    rest = series[series.isin(other)].value_counts().iloc[0] / N
    assert rest < max(share for _, share in column.atoms)


def test_the_probability_of_a_value_is_that_of_the_law():
    """On a wide grid: the mean of φ(z) e^nats over draws is a_k + (1 − A)(Φ(T(v+1)) − Φ(T(v)))."""
    column = recognise(COLUMNS["age"])
    T, A = column.transform, sum(a for _, a in column.atoms)
    total = 0.0
    for value in (40, 43, 50, 57):
        z, nats = encode(column, pd.Series([value] * 40_000, name="age"), seeded(value))
        log_p = -0.5 * z[:, 0].square() - 0.5 * math.log(2 * math.pi) + nats
        found = log_p.exp()
        own = dict(column.atoms).get(float(value), 0.0)
        cell = T(torch.tensor([value, value + 1.0]).double())
        right = own + (1 - A) * float(ndtr(cell[1]) - ndtr(cell[0]))
        error = float(found.std()) / math.sqrt(len(found))
        assert abs(float(found.mean()) - right) < 4.5 * error + 1e-9
        assert own == 0 or own > 20 * error  # a negative control: without the heap
        total += right
    assert 0.05 < total < 0.5


def test_a_smooth_column_has_next_to_none():
    rng = np.random.default_rng(2)
    for values in (rng.normal(size=N), rng.normal(60, 9, N).round(), rng.gamma(2, 3, N).round(2)):
        column = recognise(pd.Series(values, name="x"))
        assert sum(a for _, a in column.atoms) < 0.01


def test_a_step_of_a_heap_has_its_density():
    """Where the grid is fine, a heap's row has log a_k in all: log φ(z) + nats is constant."""
    column = recognise(COLUMNS["wage"])
    value, share = column.atoms[4]
    z, nats = encode(column, pd.Series([value] * 100, name="wage"), seeded())
    log_p = -0.5 * z[:, 0].square() - 0.5 * math.log(2 * math.pi) + nats
    close(log_p, torch.full((100,), math.log(share)).double(), 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("places", [None, 2])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_heavy_tails(seed, places):
    """exp(2 N): quantiles within a tenth, 5 standard errors of so many rows; and nothing negative."""
    rng = np.random.default_rng(seed)
    n = 20_000
    z = rng.normal(size=(n, 2)) @ np.array([[1.0, 0.6], [0.0, 0.8]])
    x = np.exp(2 * z[:, 0])
    frame = pd.DataFrame({"x": x if places is None else x.round(places), "y": z[:, 1]})
    new = glp.TableEstimator(glp.ScoreEstimator(random_state=seed)).fit(frame).sample(n)
    for p, exact in ((0.25, 0.25949), (0.5, 1.0)):
        assert abs(new["x"].quantile(p) / exact - 1) < 0.1
        assert abs(new["x"].quantile(p) / frame["x"].quantile(p) - 1) < 0.1
    assert (new["x"] >= 0).all()
    assert (places is not None) or (new["x"] > 0).all()
    assert (
        abs(np.log(new["x"] + 0.01).corr(new["y"]) - np.log(frame["x"] + 0.01).corr(frame["y"]))
        < 0.03
    )
