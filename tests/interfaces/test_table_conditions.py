"""Rows of a table given some of their cells: in Python and on the command line."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from few_support import at_few_levels
from support import close

import gradlogp as glp
from gradlogp.interfaces.cli import main
from gradlogp.interfaces.tables.given import score_of

pytestmark = pytest.mark.usefixtures("as_user", "few_levels")

N, RHO = 1500, 0.8
QUICK = {"max_iter": 50, "width": 32, "depth": 2, "random_state": 0}


@pytest.fixture(scope="module")
def table():
    """Three towns, a number whose mean is that of the town, another of correlation 0.8 with it."""
    rng = np.random.default_rng(0)
    town = rng.choice(["Bern", "Chur", "St. Gallen, SG"], N, p=[0.6, 0.3, 0.1])
    x = np.where(town == "Chur", 3.0, 0.0) + rng.normal(size=N)
    y = RHO * x + 0.6 * rng.normal(size=N)
    since = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, N), unit="D")
    return pd.DataFrame({"town": town, "x": 50 + 10 * x, "y": y, "since": since})


@pytest.fixture(scope="module")
def model(table):
    settings = glp.TrainingSettings(condition_dropout=0.2)
    estimator = glp.ScoreEstimator(settings=settings, **QUICK)
    with at_few_levels():
        return glp.TableEstimator(estimator, condition=["town"]).fit(table)


def test_what_is_given_comes_back_and_the_rest_follows_it(model, table):
    n = 1000
    for town, mean in (("Chur", 80), ("Bern", 50)):
        new = model.sample(n, given={"town": town})
        own = table[table["town"] == town]
        error = 10 * math.sqrt(1 / n + 1 / len(own))
        assert (new["town"] == town).all()
        assert (new.dtypes == table.dtypes).all()
        assert abs(new["x"].mean() - mean) < 4.5 * error
        assert abs(new["x"].mean() - (130 - mean)) > 20 * error  # negative control
        assert abs(new["x"].corr(new["y"]) - RHO) < 4.5 * 0.4 * math.sqrt(1 / n + 1 / len(own))
    whole = model.sample(n)  # towns as often as they are met
    for town, p in table["town"].value_counts(normalize=True).items():
        assert abs((whole["town"] == town).mean() - p) < 4.5 * math.sqrt(p * (1 - p) / n)
    rows = pd.DataFrame({"x": [45.0, 65.0] * 500, "since": pd.Timestamp("2021-05-06")})
    some = model.sample(n, given=rows)  # any other cells too, others for each row
    pd.testing.assert_frame_equal(some[["x", "since"]], rows.astype(table.dtypes[["x", "since"]]))
    gap = some["y"][rows["x"] == 65].mean() - some["y"][rows["x"] == 45].mean()
    assert abs(gap - 2 * RHO) < 4.5 * 0.6 * math.sqrt(4 / n + 4 / N)


def test_guidance_moves_away_from_the_law_without_the_condition(model):
    means = [
        model.sample(400, given={"town": "Chur"}, guidance=w)["x"].mean() for w in (0.0, 1.0, 3.0)
    ]
    assert means[1] - means[0] > 4.5 * 10 * math.sqrt(2 / 400)
    assert means[2] > means[1]
    drawn = model.sample(300, guidance=0.5)["town"].value_counts(normalize=True)
    assert abs(drawn["Bern"] - 0.6) < 4.5 * math.sqrt(0.24 / 300 + 0.24 / N)
    with pytest.raises(ValueError, match="all columns of this condition, and no others"):
        model.sample(3, given={"town": "Chur", "x": 50.0}, guidance=1.0)


def test_without_its_condition_a_gaussian_law_is_the_marginal():
    """In closed form before any training: the second score of guidance does not see the condition."""
    rng = np.random.default_rng(1)
    a = rng.normal(size=500)
    frame = pd.DataFrame({"a": a, "b": 0.9 * a + math.sqrt(0.19) * rng.normal(size=500)})
    settings = glp.TrainingSettings(condition_dropout=0.2)
    estimator = glp.ScoreEstimator(settings=settings, **QUICK | {"max_iter": 1})
    table = glp.TableEstimator(estimator, condition=["a"]).fit(frame)
    model = table.estimator_.model_
    model.condition.share.zero_()
    score, _ = score_of(table, {"a": 1.0}, 1, 1.0, torch.Generator().manual_seed(0))
    law = model.condition
    t = torch.tensor(0.5)
    alpha, sigma = model.schedule(t)
    m, c = model.z_mean, model.z_std
    S, at = law.cov * torch.outer(c, c), m + law.mean * c
    z = torch.tensor([[2.0, -1.0], [-3.0, -1.0]])
    free, given = score.free(z, t)[:, 1], score.score(z, t)[:, 1]
    close(free, -(z[:, 1] - alpha * at[1]) / (alpha**2 * S[1, 1] + sigma**2), 1e-4)
    assert (given - free).abs().min() > 0.05  # negative control: with it, it does


def test_what_cannot_be_given(model, table):
    for given, says in (
        ({"town": "Genf"}, "'Genf'"), ({"twon": "Bern"}, "no column 'twon'"),
        ({"town": "G" * 10**5}, "G…, which"),
        ({"x": math.nan}, "a hole"), ({}, "holds no known cell"),
        (pd.DataFrame({"x": [1.0, 2.0]}), "one row, or one for each of 3; got 2"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says) as error:
            model.sample(3, given=given)
        assert len(str(error.value)) < 200
    for condition, says in ((["z"], "'z'"), (list(table), "leaves no column")):
        with pytest.raises(ValueError, match=says):
            glp.TableEstimator(condition=condition).fit(table)
    with pytest.raises(ValueError, match="holes=True"):
        glp.TableEstimator(condition=["x"], holes=False)
    settings = glp.TrainingSettings(condition_dropout=0.1)
    with pytest.raises(ValueError, match="named by condition="):
        glp.TableEstimator(glp.ScoreEstimator(settings=settings)).fit(table)
    with pytest.raises(ValueError, match="needs given="):
        glp.TableEstimator(glp.ScoreEstimator(**QUICK | {"max_iter": 1})).fit(table[:40]).sample(
            2, guidance=1.0
        )


def test_conditions_of_a_table_on_the_command_line(table, tmp_path, capsys):
    """The output has all columns, and so says what each row was drawn for."""
    path, m, out = (tmp_path / name for name in ("t.csv", "m", "new.csv"))
    table[:300].round({"x": 2, "y": 2}).to_csv(path, index=False, sep=";", decimal=",")

    def call(*words, code=0):
        assert main([str(word) for word in (*words, "--quiet")]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    quick = ("--steps", 10, "--width", 16, "--depth", 2, "--condition-dropout", 0.2)
    call("fit", path, "--out", m, "--condition", "town,since", *quick)
    new = call("sample", m, "--given", "town=St. Gallen, SG,since=2021-05-06", "--n", 20)
    assert new.splitlines()[0] == "town;x;y;since"
    assert all(";2021-05-06" in line for line in new.splitlines()[1:])
    assert new.count("St. Gallen, SG") == 20
    rows = tmp_path / "rows.csv"
    rows.write_text("x;town;more\n31,5;Bern;1\n88,25;Chur;2\n")
    call("sample", m, "--given", rows, "--n", 2, "--out", out)
    drawn = pd.read_csv(out, sep=";", decimal=",")
    assert drawn["x"].tolist() == [31.5, 31.5, 88.25, 88.25]
    assert drawn["town"].tolist() == ["Bern", "Bern", "Chur", "Chur"]
    pushed = call("sample", m, "--guidance", 1, "--n", 40)
    assert len(pushed.splitlines()) == 41
    for words, says in (
        (("--given", "town=Genf"), "'Genf'"), (("--given", "nothing"), "column=value"),
        (("--given", tmp_path / "no.csv"), "no.csv"), (("--class", "Bern"), "--given column=value"),
        (("--guidance", 1, "--given", "x=50"), "all columns of this condition"),
        (("--given", "town=Bern,sinse=2021-05-06"), "no column 'sinse'; did you mean 'since'?"),
        (("--given", "x=abc"), "column 'x' was learned as Float64, and is string here with 'abc'\n"),
    ):  # fmt: skip
        for code in (1, 2):
            if main(["sample", str(m), *map(str, words), "--quiet"]) == code:
                break
        err = capsys.readouterr().err
        assert says in err
        assert "Traceback" not in err
    err = call("fit", path, "--out", tmp_path / "x", "--condition", "twon", code=2)
    assert "no column 'twon'" in err
