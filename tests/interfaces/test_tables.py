"""Tables: what columns are taken for, the same schema out, nothing impossible, a likelihood."""

import json
import math
from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from few_support import at_few_levels
from sklearn.datasets import load_wine
from support import seeded

import gradlogp as glp
from gradlogp.interfaces.cli import main
from gradlogp.interfaces.tables import TableEstimator
from gradlogp.interfaces.tables.coding import decode, encode
from gradlogp.interfaces.tables.columns import NOISE, recognise
from gradlogp.interfaces.tables.frames import far_values


def table(n=250, seed=0):
    """Every kind of column that a table has: a copy, which a test may change."""
    return made(n, seed).copy()


@cache
def made(n, seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    found = pd.DataFrame({
        "age": (40 + 12 * a).round().astype(int).clip(18, 90),
        "income": np.exp(10 + 0.5 * a + 0.3 * rng.normal(size=n)).round(2),
        "rain": np.where(rng.random(n) < 0.4, 0.0, rng.gamma(2, 3, n)),
        "month": rng.integers(1, 13, n),
        "children": rng.poisson(1.5, n),
        "city": rng.choice(["Bern", "Basel", "Chur", "Genf"], p=[0.5, 0.3, 0.18, 0.02], size=n),
        "size": pd.Categorical(
            rng.choice(["S", "M", "L"], size=n), categories=["S", "M", "L"], ordered=True
        ),
        "member": rng.random(n) < 0.3,
        "visits": pd.array(rng.integers(0, 50, n), dtype="Int64"),
        "joined": pd.Timestamp("2021-03-01", tz="Europe/Zurich")
        + pd.to_timedelta(rng.integers(0, 700, n), unit="D"),
        "weight": (70 + 8 * rng.normal(size=n)).astype(np.float32),
        "dose": rng.integers(1, 30, n) * 25,
        "name": [f"person {i}" for i in range(n)],
        "unit": "mm",
    })  # fmt: skip
    found.loc[rng.random(n) < 0.1, "income"] = np.nan
    found.loc[rng.random(n) < 0.1, "visits"] = pd.NA
    found.loc[rng.random(n) < 0.1, "city"] = None
    return found


def test_what_columns_are_taken_for():
    kinds = {c.name: c.describe() for c in map(recognise, (table()[c] for c in table()))}
    assert kinds["age"] == "number in steps of 1, from 18"
    assert kinds["income"] == "number with missing values, from 0"
    assert kinds["rain"] == "number, 0.0 kept separate, from 0"
    assert kinds["month"] == "number in steps of 1, from 1, below 13"
    assert kinds["city"] == "category of 4 levels, apart from missing"
    assert kinds["dose"].startswith("number in steps of 25")
    assert kinds["joined"] == "date in steps of 1" or kinds["joined"] == "date"
    assert kinds["name"].startswith("text that differs in nearly every row")
    assert kinds["unit"] == "the same in all rows"
    rows = pd.Series(np.arange(1, 61), name="id")
    assert recognise(rows).describe().startswith("numbers the rows")
    for other in (rows[::-1], rows + 1, rows.where(rows != 7), rows[:40]):
        assert not recognise(other).counts


def test_numbers_and_back_are_the_same_table():
    """decode(encode(x)) is x, to the bit where it has decimals, in every column that is learned."""
    frame = table()
    for name in frame:
        column = recognise(frame[name])
        z, nats = encode(column, frame[name], seeded())
        back = decode(column, z.nan_to_num(0.3), seeded(1))  # what stands in for no number
        assert z.shape == (len(frame), column.width)
        none = frame[name].isna() | frame[name].isin(column.spikes)
        number = column.transform is not None
        assert z.isnan().any(1).tolist() == [bool(v) and number for v in none]
        assert torch.isfinite(nats).all()
        assert back.dtype == frame[name].dtype, name
        if name == "name":
            assert set(back) <= set(frame["name"])
        elif name in ("weight", "rain"):
            np.testing.assert_allclose(back, frame[name], rtol=1e-6)
        else:
            pd.testing.assert_series_equal(back, frame[name], check_freq=False)


def test_nothing_impossible_comes_back_whatever_the_network_says():
    frame = table()
    for name in ("age", "rain", "month", "children", "dose", "visits", "income"):
        column = recognise(frame[name])
        z = 3 * torch.randn(2000, column.width, generator=seeded())
        back = decode(column, z, seeded()).dropna().astype(float)
        assert np.isfinite(back).all()
        assert (back >= 0).all()
        if name in ("age", "month", "children", "visits"):
            assert (back == back.round()).all()
        if name == "month":
            assert back.between(1, 12).all()
        if name == "dose":
            assert (back % 25 == 0).all()


def test_cells_of_a_grid_are_even_and_count_their_width():
    """P(k) = ∫ p over the cell: of u uniform in the cell, nats are log T'(x) + log of the width."""
    frame = pd.Series(np.repeat(np.arange(0, 500, 50), 30), name="a")
    column = recognise(frame)
    assert (column.grid, column.spread) == (50, True)
    z, nats = encode(column, frame, seeded())
    x = column.transform.inverse(z[:, 0])
    u = (x - torch.tensor(frame.to_numpy())) / 50
    assert float((u - 0.5).abs().max()) <= 0.5
    assert abs(float(u.mean()) - 0.5) < 4 / math.sqrt(12 * 300)
    expected = column.transform.log_derivative(x) + math.log(50)
    torch.testing.assert_close(nats, expected, rtol=1e-9, atol=1e-9)


def test_the_bound_on_the_probability_of_a_level_is_tight():
    """With the exact law of the noisy 0s and 1s, the bound is log π_k."""
    shares = {"u": 0.5, "v": 0.3, "w": 0.2}
    frame = pd.DataFrame({"k": np.repeat(list(shares), [50, 30, 20])})
    found = TableEstimator()
    found._kind, found.columns_ = "pandas", (recognise(frame["k"]),)
    blur = 0.03

    class Exact:
        sigma_min_ = blur

        class model_:
            class coordinates:
                scale = torch.ones(3)

        def _generator(self, random_state):
            return seeded()

        def score_samples(self, z):
            """A mixture at the corners, with the noise of levels and that of the smallest level."""
            width = math.hypot(NOISE, blur)
            law = glp.GaussianMixture(list(shares.values()), torch.eye(3), width**2)
            return law.log_prob(torch.as_tensor(z))

    found.estimator_ = Exact()
    nats = found.score_samples(frame, n_draws=200)
    for name, share in shares.items():
        assert nats[frame["k"] == name].mean() == pytest.approx(math.log(share), abs=0.02)


@pytest.fixture(scope="module")
def fitted():
    steps = {"n_sample_steps": 16, "n_likelihood_steps": 8}
    estimator = glp.ScoreEstimator(max_iter=30, width=32, random_state=0, **steps)
    with at_few_levels():
        return TableEstimator(estimator).fit(table())


def test_the_same_schema_comes_out(fitted):
    frame, new = table(), fitted.sample(300)
    assert list(new.columns) == list(frame.columns)
    assert (new.dtypes == frame.dtypes).all()
    assert list(new["size"].cat.categories) == ["S", "M", "L"]
    assert new["size"].cat.ordered
    assert new["month"].between(1, 12).all()
    assert set(new["city"].dropna()) <= set(frame["city"].dropna())
    for name in ("income", "city", "visits"):
        assert abs(new[name].isna().mean() - 0.1) < 0.1
    assert abs((new["rain"] == 0).mean() - 0.4) < 0.15
    assert new["income"].dropna().round(2).equals(new["income"].dropna())
    pd.testing.assert_frame_equal(new, fitted.sample(300))
    assert not new.equals(fitted.sample(300, random_state=5))


def test_saved_and_loaded(fitted, few_levels, tmp_path):
    fitted.save(tmp_path / "m")
    loaded = TableEstimator.load(tmp_path / "m")
    assert loaded.columns_ == fitted.columns_
    pd.testing.assert_frame_equal(loaded.sample(50), fitted.sample(50))
    path = tmp_path / "m" / "config.json"
    (tmp_path / "m" / "SHA256SUMS").unlink()
    kept = path.read_text()
    for change in (
        lambda c: c.pop("kind"), lambda c: c.update(levels=[*c["levels"], "more", "most"]),
        lambda c: c.update(transform=3),
    ):  # fmt: skip
        config = json.loads(kept)
        change(config["extra"]["table"]["columns"][0])
        path.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"config.json is damaged: extra\.table"):
            TableEstimator.load(tmp_path / "m")
    glp.ScoreEstimator(max_iter=2, width=8).fit(torch.randn(30, 2)).save(tmp_path / "plain")
    with pytest.raises(ValueError, match="holds no table; load it by ScoreEstimator"):
        TableEstimator.load(tmp_path / "plain")


def test_a_likelihood_for_every_row(fitted):
    nats = fitted.score_samples(table().head(8))
    assert nats.shape == (8,)
    assert np.isfinite(nats).all()
    with pytest.raises(ValueError, match="lacks columns: age"):
        fitted.score_samples(table().drop(columns="age"))
    with pytest.raises(ValueError, match="'city' has 'Lugano', which no training row had"):
        fitted.score_samples(table().head(3).assign(city="Lugano"))
    with pytest.raises(ValueError, match=r"'month' has 14; training values lie from 1 to 13"):
        fitted.score_samples(table().head(3).assign(month=14))


def test_heavy_tails_keep_their_quantiles(few_levels):
    """exp(2N): quartiles within 10 %, no negative value."""
    z = np.random.default_rng(0).normal(size=2000)
    frame = pd.DataFrame({"x": np.exp(2 * z), "y": np.roll(z, 1)})
    few = {"max_iter": 25, "width": 16, "n_sample_steps": 24}
    new = TableEstimator(glp.ScoreEstimator(random_state=0, **few)).fit(frame)
    drawn = new.sample(4000)["x"]
    assert (drawn > 0).all()
    for q in (0.25, 0.5):
        assert np.quantile(drawn, q) == pytest.approx(np.quantile(frame["x"], q), rel=0.1)


def test_a_value_far_from_all_others_is_named(few_levels):
    """A misplaced point, a wrong sign in a real column; none in a heavy tail, of two values, of few."""
    wine = load_wine(as_frame=True).frame[["alcohol", "ash"]]
    heavy = pd.DataFrame({"x": np.exp(np.linspace(-10, 20, 12))})
    far = lambda frame: far_values(frame, [recognise(frame[c]) for c in frame])
    assert far(wine) == far(heavy) == far(pd.DataFrame({"x": [0.0, 1.0] * 9 + [9.0]})[:-1]) == []
    assert far(pd.DataFrame({"x": [*np.linspace(1, 2, 8), 99.0]})) == []
    for factor in (10, -1):
        wrong = wine.copy()
        wrong.loc[6, "alcohol"] *= factor
        has = f"column 'alcohol' has {14.39 * factor:g} in row 7"
        named = f"{has}, far from all others, 11.03 to 14.83"
        assert far(wrong) == [named]
    with pytest.warns(UserWarning, match="'alcohol' has -14.39 in row 7, .* what is a mistake"):
        TableEstimator(glp.ScoreEstimator(max_iter=1, width=8)).fit(wrong)


def test_a_dtype_holds_what_comes_back():
    """Tails beyond int8 do not turn round, and dates in the hour that is there twice are dates."""
    small = pd.Series(np.random.default_rng(0).normal(70, 15, 200), name="a").astype("int8")
    column = recognise(small)
    back = decode(column, 6 * torch.randn(500, column.width, generator=seeded()), seeded())
    assert back.dtype == np.int8
    assert (back >= 0).all()
    zoned = pd.Series(pd.date_range("2020-10-24", "2020-10-26", 400, tz="Europe/Zurich"), name="t")
    column = recognise(zoned)
    z, _ = encode(column, zoned, seeded())
    assert not decode(column, z, seeded()).isna().any()


def test_numbers_far_from_0_keep_their_digits():
    far = pd.Series(2**40 + np.random.default_rng(0).integers(0, 10**6, 300), name="a")
    column = recognise(far)
    assert column.transform.low > 2**39  # a logarithm from 0 would see no difference
    z, _ = encode(column, far, seeded())
    pd.testing.assert_series_equal(decode(column, z, seeded()), far)


def test_texts_that_look_like_states_are_texts():
    frame = pd.DataFrame({"a": ["missing", "present", "others", None, "(others)"] * 20})
    column = recognise(frame["a"])
    z, _ = encode(column, frame["a"], seeded())
    pd.testing.assert_series_equal(decode(column, z, seeded()), frame["a"])


def test_what_can_be_overridden_and_what_cannot(few_levels):
    frame = table(60)[["age", "month", "city", "name"]]
    found = TableEstimator(glp.ScoreEstimator(max_iter=2, width=8, n_sample_steps=8), drop=["name"],
                           kinds={"month": "category"})  # fmt: skip
    found.fit(frame)
    assert [c.kind for c in found.columns_ if c.name == "month"] == ["category"]
    assert "name" not in found.sample(3).columns
    for bad, text in (
        ({"drop": ["nome"]}, "there is no column 'nome'"),
        ({"kinds": {"city": "number"}}, "column 'city' cannot be a number: 'B"),
        ({"kinds": {"age": "date"}}, "column 'age' cannot be a date: it has dtype int64"),
    ):
        with pytest.raises(ValueError, match=text):
            TableEstimator(**bad).fit(frame)
    bad = pd.DataFrame({"a": [1.0, np.inf] * 9, "b": range(18), "c": [-np.inf, 2.0] * 9})
    with pytest.raises(
        ValueError,
        match=r"column 'a' has 9 infinite values, the first in row 2; column 'c' has 9 infinite "
        r"values, the first in row 1; drop=\['a', 'c'\] drops them",
    ):
        TableEstimator().fit(bad)
    wide = pd.DataFrame({f"c{i}": [1.0, np.inf] * 9 for i in range(200)})
    with pytest.raises(ValueError, match=r"; and 190 more; drop=.*'c9', .*…") as error:
        TableEstimator().fit(wide)
    assert len(str(error.value)) < 2000  # a screen
    with pytest.raises(ValueError, match="no column can be learned"):
        TableEstimator().fit(pd.DataFrame({"a": [1, 1, 1]}))
    with pytest.raises(TypeError, match="X must be a frame of pandas or polars, got ndarray"):
        TableEstimator().fit(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="has not been fitted"):
        TableEstimator().sample(3)


@pytest.fixture(scope="module")
def correlated():
    """ρ = 0.9 with 30 % holes in both columns, learned in a short training."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 2))
    x[:, 1] = 0.9 * x[:, 0] + math.sqrt(0.19) * x[:, 1]
    frame = pd.DataFrame(x, columns=["a", "b"]).mask(rng.random((2000, 2)) < 0.3)
    estimator = glp.ScoreEstimator(
        max_iter=150, width=32, depth=2, learning_rate=0.005, random_state=0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradlogp.learn.share.ENTRIES", 2**14)
        return TableEstimator(estimator).fit(frame), frame


def test_imputed_draws_have_the_conditional_law(correlated):
    """E[b | a = 1] = 0.9, Var = 0.19, either way round; a hole's chance of being one says nothing."""
    model, frame = correlated
    whole, n = frame.dropna(), 1000
    for known, other in (("a", "b"), ("b", "a")):
        asked = pd.DataFrame({known: np.ones(n), other: np.nan})[["a", "b"]]
        drawn = model.impute(asked)
        assert list(drawn) == ["a", "b"]
        assert (drawn[known] == 1).all()
        error = math.sqrt(0.19 / n + 2 * 0.19 / len(whole))  # of the draws, of a regression
        assert abs(drawn[other].mean() - 0.9) < 4.5 * error
        spread = 0.19 * math.sqrt(2 / n + 2 / len(whole))
        assert abs(drawn[other].var() - 0.19) < 4.5 * spread
        assert (
            abs(0.627 - 0.9) > 4.5 * error
        )  # what replacement would give, apart from its variance
        assert abs(0.311 - 0.19) > 4.5 * spread
    both = model.impute(pd.DataFrame({"a": [np.nan] * n, "b": np.nan}))
    assert abs(both["a"].corr(both["b"]) - 0.9) < 0.04
    new = model.sample(n)  # the same model draws whole rows, holes among them
    assert new.isna().mean().tolist() == pytest.approx(frame.isna().mean().tolist(), abs=0.06)
    assert abs(new.dropna().corr().iloc[0, 1] - 0.9) < 0.06


def test_every_row_has_holes_of_its_own(fitted):
    """Known cells stay as they are, also their dtype; draws differ, and the seed decides them."""
    frame, model = table(), fitted
    rng = np.random.default_rng(1)
    asked = frame.mask(rng.random(frame.shape) < 0.2)
    asked.index = np.arange(len(asked)) % 7  # an index need not be one
    asked["more"] = "x"
    filled, again = model.impute(asked, 2, random_state=3)
    assert list(filled) == list(asked)
    assert not filled.drop(columns="more").isna().any().any()
    assert filled.index.equals(asked.index)
    for name in frame:
        known = asked[name].notna().to_numpy()
        kept = filled[name].to_numpy()[known].astype(object)
        assert (kept == asked[name].to_numpy()[known].astype(object)).all(), name
        if name not in ("income", "visits", "city"):
            assert filled[name].dtype == frame[name].dtype, name
    differ = (filled["income"] != again["income"]).to_numpy()
    assert (differ == asked["income"].isna().to_numpy()).mean() > 0.95
    pd.testing.assert_frame_equal(filled, model.impute(asked, 2, random_state=3)[0])
    assert set(filled["city"]) <= set(frame["city"].dropna())
    assert filled["month"].between(1, 12).all()
    pd.testing.assert_frame_equal(model.impute(frame.dropna()), frame.dropna())
    with pytest.raises(ValueError, match="lacks columns: age"):
        model.impute(frame.drop(columns="age"))


def test_a_density_where_a_hole_says_nothing(few_levels, tmp_path):
    """Columns without holes when learned: log p of the cells that are there, of a correlated law."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 2))
    x[:, 1] = 3 + 2 * (0.8 * x[:, 0] + 0.6 * x[:, 1])
    frame = pd.DataFrame(x, columns=["a", "b"])
    estimator = glp.ScoreEstimator(
        max_iter=30, width=16, depth=1, random_state=0, n_sample_steps=16, n_likelihood_steps=12
    )
    model = TableEstimator(estimator).fit(frame)
    b = np.array([-1.0, 3.0, 5.0])
    found = model.score_samples(pd.DataFrame({"a": [np.nan] * 3, "b": b}))
    right = -0.5 * ((b - 3) / 2) ** 2 - math.log(2) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(found, right, atol=0.25)
    model = TableEstimator.load(model.save(tmp_path / "m"))
    np.testing.assert_allclose(
        model.score_samples(pd.DataFrame({"a": [np.nan] * 3, "b": b})), found, atol=1e-4
    )
    plain = TableEstimator(glp.ScoreEstimator(max_iter=2, width=8, random_state=0), holes=False)
    plain.fit(frame.head(60))
    with pytest.raises(ValueError, match="holes=True"):
        plain.impute(frame)
    with pytest.raises(ValueError, match="no training row had"):
        plain.score_samples(pd.DataFrame({"a": [np.nan], "b": [1.0]}))


def test_the_command_fills_a_file(few_levels, tmp_path, capsys):
    frame = table(60)[["age", "rain", "city", "visits", "dose"]]
    estimator = glp.ScoreEstimator(max_iter=5, width=8, depth=1, random_state=0, n_sample_steps=4)
    TableEstimator(estimator).fit(frame).save(tmp_path / "m")
    asked = frame.mask(np.random.default_rng(1).random(frame.shape) < 0.2)
    asked.to_csv(tmp_path / "holes.csv", index=False)
    line = ["impute", str(tmp_path / "m"), str(tmp_path / "holes.csv"), "--out"]
    assert main([*line, str(tmp_path / "filled.csv"), "--n-draws", "3", "--quiet"]) == 0
    filled = pd.read_csv(tmp_path / "filled.csv")
    assert not filled.isna().any().any()
    assert filled["draw"].value_counts().to_dict() == {1: 60, 2: 60, 3: 60}
    known = asked["dose"].notna()
    assert (filled["dose"][:60][known] == asked["dose"][known]).all()
    for wrong in (["none.csv"], [str(tmp_path / "m")]):
        code = main(["impute", str(tmp_path / "m"), *wrong, "--out", str(tmp_path / "x.csv")])
        assert code == 2
    assert main([*line, str(tmp_path / "filled.csv")]) == 2  # it is there
    assert capsys.readouterr().err.count("\n") == 3


def test_weights_of_rows_are_those_of_levels_and_names(few_levels):
    """Rows of weight 0 are not there; frequencies of what is drawn as seen are weighted."""
    n = 300
    frame = pd.DataFrame({
        "x": np.random.default_rng(0).normal(size=n), "k": np.repeat(["u", "v", "w"], 100),
        "name": [f"p{i % 200}" for i in range(n)],
    })  # fmt: skip
    weight = np.repeat([3.0, 1.0, 0.0], 100)
    steps = {"max_iter": 25, "n_sample_steps": 16}
    found = TableEstimator(glp.ScoreEstimator(width=16, random_state=0, **steps))
    found.fit(frame, sample_weight=weight)
    column = {c.name: c for c in found.columns_}
    assert column["k"].levels == ("u", "v")
    assert dict(column["name"].others)["p0"] == pytest.approx(3 / 400)
    assert dict(column["name"].others)["p150"] == pytest.approx(1 / 400)
    share = (found.sample(2000)["k"] == "u").mean()
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 * (1 / 160 + 1 / 2000))


def test_whole_numbers_of_any_size_are_exact():
    rng = np.random.default_rng(0)
    for values in (
        2**60 + rng.integers(0, 10**6, 200), np.array([2**53 + 1, 2**53 + 3] * 40),
        (2**64 - 1 - rng.integers(0, 10**5, 200).astype(object)).astype("uint64"),
        np.full(30, 2**62 + 1), pd.array([2**60 + 1, None, *range(2**60 + 2, 2**60 + 90)], "Int64"),
    ):  # fmt: skip
        series = pd.Series(values, name="a")
        column = recognise(series)
        z, _ = encode(column, series, seeded())
        pd.testing.assert_series_equal(decode(column, z, seeded()), series)
    wide = pd.Series(rng.integers(-(2**62), 2**62, 200), name="id")
    column = recognise(wide)
    assert column.kind == "name"
    assert set(decode(column, encode(column, wide, seeded())[0], seeded())) <= set(wide)
    with pytest.raises(ValueError, match="'id' cannot be a number: float64 cannot hold all from"):
        recognise(wide, "number")


def test_edges_of_grids():
    """Few Decembers, storms that leave months out, days of a year, counts that end by chance."""
    rng = np.random.default_rng(0)
    months = pd.Series(rng.choice(12, 600, p=[0.1] * 9 + [0.09, 0.005, 0.005]) + 1, name="month")
    storms = pd.Series(rng.choice([1, 4, 5, 6, 7, 8, 9, 10, 11, 12], 900), name="month")
    days = pd.Series(rng.integers(1, 367, 2000), name="day")
    share = pd.Series(rng.random(500).round(3), name="share")
    counts = pd.Series(rng.poisson(1.5, 600), name="count")
    for series in (months, storms, days, share, counts):
        column = recognise(series)
        back = decode(column, 4 * torch.randn(3000, column.width, generator=seeded()), seeded())
        assert back.between(series.min(), series.max()).all(), series.name
        assert back.nunique() > 0.5 * series.nunique()
    assert set(decode(recognise(storms), torch.randn(500, 10), seeded())) <= set(storms)
    # a count larger than all that were seen is unlikely, and not impossible
    column = recognise(counts)
    _, nats = encode(column, pd.Series([counts.max() + 1], name="count"), seeded())
    assert torch.isfinite(nats).all()


def test_dates_keep_their_units_and_extremes_are_dates():
    for series, unit in (
        (pd.Series(pd.date_range("2020-01-01", periods=300, freq="MS"), name="t"), "M"),
        (pd.Series(pd.date_range("1800-01-01", periods=300, freq="YS"), name="t"), "Y"),
        (pd.Series(pd.date_range("2020-01-01", periods=300, freq="13ns"), name="t"), "ns"),
        (pd.Series(np.array(["0101-01-01", "9998-12-31"] * 40, "M8[s]"), name="t"), ""),
    ):  # fmt: skip
        column = recognise(series)
        assert column.unit == unit
        z, _ = encode(column, series, seeded())
        pd.testing.assert_series_equal(decode(column, z, seeded()), series, check_freq=False)
        back = decode(column, 8 * torch.randn(500, column.width, generator=seeded()), seeded())
        assert back.dtype == series.dtype
        if unit == "M":
            assert (back.dt.day == 1).all()


def test_numbers_drawn_by_a_network_that_knows_nothing_are_finite():
    heavy = pd.Series(np.exp(3 * np.random.default_rng(0).normal(size=300)), name="a")
    column = recognise(heavy)
    back = decode(column, 40 * torch.randn(500, column.width, generator=seeded()), seeded())
    assert np.isfinite(back).all()
    assert (back > 0).all()
    assert back.max() <= 11 * heavy.max()


def test_columns_without_a_value_come_back_without(few_levels):
    frame = pd.DataFrame({"a": [None] * 40, "b": np.arange(40.0), "c": [np.nan] * 40})
    found = TableEstimator(glp.ScoreEstimator(max_iter=2, width=8, random_state=0)).fit(frame)
    new = found.sample(10)
    assert new[["a", "c"]].isna().all(axis=None)
    assert (new.dtypes == frame.dtypes).all()
    assert [c.describe() for c in found.columns_][::2] == ["missing in all rows"] * 2


def test_holes_where_there_were_none(few_levels):
    """pandas makes floats of integers with holes; a row without known cells carries no information."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "target": rng.integers(0, 3, 80), "flag": rng.integers(0, 2, 80), "const": 1,
        "yes": rng.random(80) < 0.5, "x": rng.normal(size=80).round(2),
    })  # fmt: skip
    few = {"max_iter": 5, "width": 8, "n_sample_steps": 8, "n_likelihood_steps": 8}
    model = TableEstimator(glp.ScoreEstimator(random_state=0, **few)).fit(frame)
    where = np.eye(12, 5, dtype=bool)
    asked = frame.head(12).mask(where)
    filled = model.impute(asked)
    assert not filled.isna().any(axis=None)
    assert set(filled["target"]) <= {0, 1, 2}
    nats = model.score_samples(asked)
    assert np.isfinite(nats).all()
    assert model.score_samples(frame.head(2).mask(np.array([[True] * 5, [False] * 5])))[0] == 0
    with pytest.raises(ValueError, match="base='gaussian'"):
        TableEstimator(glp.ScoreEstimator(base="gaussian")).fit(frame)
