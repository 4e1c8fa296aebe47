"""Estimators and tables given conditions, and posteriors from simulations alone."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from support import close, seeded

import gradlogp as glp
from gradlogp.interfaces.cli import main
from gradlogp.interfaces.tables.given import score_of

pytestmark = pytest.mark.usefixtures("as_user")

N, DRAWS = 2000, 1000
PRIOR = glp.Gaussian(
    torch.tensor([5e4, 2e-3], dtype=torch.float64),
    torch.tensor([[1e6, 0.5], [0.5, 1e-6]], dtype=torch.float64),
)
A = torch.tensor([[1e-3, 0.0], [1e-3, -1e3], [5e-4, 2e3]], dtype=torch.float64)
NOISE = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64)
UNITS = torch.tensor([1.0, 1e4, 1e-4], dtype=torch.float64)


def simulate(theta, generator):
    """Three measurements, in units of their own."""
    eps = torch.randn(*theta.shape[:-1], 3, generator=generator).double()
    return (theta @ A.T + NOISE * eps) * UNITS


def posterior(y):
    """The exact law of θ given one y."""
    P, R = torch.linalg.inv(PRIOR.cov), torch.diag(NOISE**-2)
    cov = torch.linalg.inv(P + A.T @ R @ A)
    return glp.Gaussian(cov @ (P @ PRIOR.mean + A.T @ R @ (y / UNITS)), (cov + cov.T) / 2)


def learn(theta, y, **options):
    chosen = {"max_iter": 300, "width": 32, "depth": 2, "condition": "values", "random_state": 0}
    return glp.ScoreEstimator(**chosen | options).fit(theta, y)


@pytest.fixture(scope="module")
def fitted():
    g = seeded(0)
    theta = PRIOR.sample(N, generator=g)
    y = simulate(theta, g)
    return learn(theta, y), theta, y


@pytest.mark.parametrize("row", [0, 1, 2])
def test_a_linear_posterior_at_any_scale(fitted, row):
    """Errors in units of the standard error that N simulations and the draws leave; 4.5 at most."""
    estimator, _, y = fitted
    exact, other = posterior(y[row]), posterior(y[row + 3])
    x = estimator.sample(DRAWS, y=y[row])
    sd = exact.cov.diagonal().sqrt()
    far = ((y - y.mean(0)) / y.std(0, correction=0))[row].square().sum() + 4
    error = math.sqrt(1 / DRAWS + float(far) / N)
    off = lambda law: ((x.mean(0) - law.mean) / sd).abs().max() / error
    assert off(exact) < 4.5
    assert off(other) > 20  # negative control: another observation
    ratio = x.std(0) / sd - 1
    assert float(ratio.abs().max()) < 4.5 * math.sqrt(1 / (2 * DRAWS) + 1 / (2 * N))
    correlation = float(torch.corrcoef(x.T)[0, 1] - exact.cov[0, 1] / sd.prod())
    assert abs(correlation) < 4.5 * math.sqrt(1 / DRAWS + 1 / N)
    points = exact.sample(200, generator=seeded(row))
    gap = estimator.score_samples(points, y=y[row]) - exact.log_prob(points)
    assert abs(float(gap.mean())) < 0.03  # nats: what N simulations leave is 10/(2 N)
    assert float((other.log_prob(points) - exact.log_prob(points)).mean()) < -0.3
    uphill = estimator.grad_log_prob(points, y=y[row], sigma=0.1) * sd
    wider = exact.cov + torch.diag(0.1 * estimator.model_.coordinates.scale).square()
    right = glp.Gaussian(exact.mean, wider).score(points) * sd
    assert float((uphill - right).norm() / right.norm()) < 0.15


@pytest.mark.slow
def test_a_learned_posterior_is_calibrated(fitted):
    estimator, _, _ = fitted
    draw = lambda y, n, g: estimator.sample(
        n, y=y, random_state=int(torch.randint(2**31, (), generator=g))
    )
    found = glp.check.sbc(PRIOR, simulate, draw, n_draws=50, generator=seeded(1))
    assert found.verdict.ok, found
    wide = lambda y, n, g: 2 * draw(y, n, g) - draw(y, n, g).mean(0)
    assert not glp.check.sbc(PRIOR, simulate, wide, n_draws=50, generator=seeded(1)).verdict.ok


def test_y_is_one_row_a_sample_or_one_for_all(fitted):
    estimator, theta, y = fitted
    estimator = copy.copy(estimator).set_params(n_likelihood_steps=4)
    few = theta[:3]
    each = estimator.score_samples(few, y=y[:3])
    for i in (0, 2):
        one = estimator.score_samples(few, y=y[i])
        torch.testing.assert_close(one[i], each[i], rtol=1e-9, atol=1e-9)
    same = estimator.sample(3, y=y[:1])
    torch.testing.assert_close(same, estimator.sample(3, y=y[:1].expand(3, 3)))
    for call in (
        lambda y: estimator.sample(3, y=y), lambda y: estimator.score_samples(theta[:3], y=y),
    ):  # fmt: skip
        for wrong, says in (
            (None, "needs y"), (y[:2], "one row per sample"), (y[:3, :2], r"shape \(n, 3\)"),
            (["a", "b", "c"], 'condition="classes"'), (y[:3] * math.inf, "infinite"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=says):
                call(wrong)


@pytest.mark.parametrize("shape", [(), (2,), (1, 4, 4)])
def test_values_are_numbers_vectors_or_images(shape, tmp_path):
    """Saved and loaded with their shape; one number a row may come as (N,)."""
    g = np.random.default_rng(0)
    x, y = g.normal(size=(60, 2)).astype(np.float32), g.normal(size=(60, *shape))
    estimator = learn(x, y, max_iter=3, width=8)
    assert estimator.condition_shape_ == (shape or (1,))
    again = glp.ScoreEstimator.load(estimator.save(tmp_path / "m"))
    assert again.condition == "values"
    assert np.array_equal(again.sample(5, y=y[:5]), estimator.sample(5, y=y[:5]))
    assert np.array_equal(again.sample(2, y=y[0]), estimator.sample(2, y=y[:1]))


def test_a_float_is_never_a_class():
    x, y = np.random.default_rng(0).normal(size=(2, 4000, 2))
    make = lambda **options: glp.ScoreEstimator(max_iter=2, width=8, **options)
    with pytest.raises(ValueError, match='condition="values"') as refused:
        make(condition="classes").fit(x, y[:, 0])
    assert "4,000 different" in str(refused.value)
    for wrong in (y[:, 0].round(), y[:, 0].astype(object), [None] * 4000, pd.Series(y[:, 0])):
        with pytest.raises(ValueError, match="y "):
            make(condition="classes").fit(x, wrong)
    with pytest.raises(ValueError, match="condition, if it is not None"):
        make(condition="class").fit(x, y)
    many = make(condition="classes", random_state=0).fit(x, np.arange(4000) // 2)
    for y_unknown in (5000, list(range(5000, 8000)), ["x" * 9000]):
        with pytest.raises(ValueError, match="unknown class") as refused:
            many.sample(np.size(y_unknown), y=y_unknown)
        assert len(str(refused.value)) < 400  # no longer than a screen


def test_a_model_without_a_condition_takes_no_y():
    x = np.random.default_rng(0).normal(size=(50, 2))
    plain = glp.ScoreEstimator(max_iter=2, width=8, random_state=0).fit(x, np.arange(50))
    for call in (plain.score_samples, plain.grad_log_prob, lambda X, y: plain.sample(50, y=y)):
        with pytest.raises(ValueError, match="this model is unconditional"):
            call(x, y=np.arange(50))
    with pytest.raises(ValueError, match="needs y"):
        plain.sample(3, guidance=1.0)
    assert np.isfinite(plain.score(x, np.arange(50)))  # as scikit-learn has it


def test_classes_are_drawn_as_often_as_they_are(tmp_path):
    """0.8 and 0.2 of classes at −5 and 5, with guidance and without y; kept in a checkpoint."""
    g = torch.Generator().manual_seed(0)
    y = np.array(["a", "a", "a", "a", "b"] * 300)
    x = (
        torch.from_numpy(np.where(y == "a", -2.0, 2.0))[:, None]
        + torch.randn(1500, 1, generator=g)
    ).numpy()
    settings = glp.TrainingSettings(steps=300, condition_dropout=0.2)
    estimator = glp.ScoreEstimator(
        width=32, depth=1, condition="classes", settings=settings, random_state=0
    ).fit(x, y)
    assert estimator.class_prior_.tolist() == [0.8, 0.2]
    estimator = glp.ScoreEstimator.load(estimator.save(tmp_path / "m"))
    share = (estimator.sample(2000) < 0).mean()
    right = 0.8 * 0.977 + 0.2 * 0.023
    assert abs(share - right) < 4.5 * math.sqrt(0.16 / 2000) + 0.01
    means = [estimator.sample(1000, y="b", guidance=w).mean() for w in (-1.0, 0.0, 1.5)]
    assert means[0] < 0  # w = −1 is the law of all
    assert abs(means[1] - 2) < 0.4
    assert means[2] > means[1] + 0.3  # further away from the others
    with pytest.raises(ValueError, match="guidance"):
        estimator.sample(2, y="b", guidance=math.nan)
    free = estimator.score_samples(x[:5])  # the null condition is known
    assert np.isfinite(free).all()


def test_the_command_line_has_conditions(tmp_path, capsys):
    """Columns to condition on, values for all or in a file, and rows that say what they are of."""
    torch.set_default_dtype(torch.float32)
    g = np.random.default_rng(0)
    a, b = g.normal(size=500), g.uniform(-1, 1, 500)
    kind = np.where(g.random(500) < 0.9, "calm", "wild")
    table = pd.DataFrame({"u": 100 * (a + b) + g.normal(size=500), "v": b, "a": a, "kind": kind})
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    quick = ["--steps", "60", "--width", "16", "--depth", "1", "--quiet"]

    def call(*words):
        code = main([str(word) for word in words])
        said = capsys.readouterr()
        return code, said.out, said.err

    m = tmp_path / "m"
    columns = ["--columns", "u,v", "--condition", "a"]
    assert call("fit", path, *columns, "--out", m, *quick)[0] == 0
    code, out, _ = call("sample", m, "--given", "a=2", "--n", 40, "--quiet")
    u = np.array([line.split(",")[0] for line in out.splitlines()], dtype=float)
    assert code == 0
    assert abs(u.mean() - 200) < 4.5 * 60 / math.sqrt(40)
    rows = tmp_path / "rows.csv"
    rows.write_text("a,more\n-3,x\n3,y\n")
    found = tmp_path / "found.csv"
    assert call("sample", m, "--given", rows, "--n", 2, "--out", found, "--quiet")[0] == 0
    drawn = pd.read_csv(found)
    assert list(drawn) == ["u", "v", "a"]
    assert drawn["a"].tolist() == [-3, -3, 3, 3]
    assert ((drawn["u"] > 0) == (drawn["a"] > 0)).all()
    assert call("evaluate", m, path, "--columns", "u,v", "--n", 100, "--no-likelihood", "--quiet")[
        0
    ] in (0, 1)
    for words, says in (
        (["sample", m], "--given"), (["sample", m, "--given", "b=1"], "a=…"),
        (["sample", m, "--given", "a=x"], "numbers"), (["sample", m, "--given", "no.csv"], "no.csv"),
        (["sample", m, "--class", "x"], "has no classes"),
        (["fit", path, "--condition", "w", "--columns", "u", "--out", tmp_path / "x"], "w"),
        (["fit", path, "--condition", "a", "--label", "kind", "--out", tmp_path / "x"], "one of them"),
    ):  # fmt: skip
        code, _, err = call(*words)
        assert (code in (1, 2), err.count("\n")) == (True, 1), words
        assert says in err

    c = tmp_path / "c"
    dropout = ["--condition-dropout", "0.2"]
    assert (
        call("fit", path, "--columns", "u,v", "--label", "kind", "--out", c, *dropout, *quick)[0]
        == 0
    )
    code, out, _ = call("sample", c, "--n", 300, "--steps", 2, "--guidance", 1, "--quiet")
    lines = out.splitlines()
    assert lines[0] == "u,v,class"
    calm = sum(line.endswith(",calm") for line in lines[1:]) / 300
    assert abs(calm - (kind == "calm").mean()) < 4.5 * math.sqrt(0.09 / 300)
    npz = tmp_path / "c.npz"
    assert call("sample", c, "--n", 20, "--steps", 2, "--out", npz, "--quiet")[0] == 0
    with np.load(npz) as written:
        assert set(written["labels"]) <= {"calm", "wild"}
    code, _, err = call(
        "sample", c, "--n", 20, "--steps", 2, "--out", tmp_path / "c.npy", "--force"
    )
    assert code == 2
    assert "cannot record which row has" in err


N_ROWS, RHO = 1500, 0.8
QUICK = {"max_iter": 200, "width": 32, "depth": 2, "random_state": 0}


@pytest.fixture(scope="module")
def table():
    """Three towns, a number whose mean is that of the town, another of correlation 0.8 with it."""
    rng = np.random.default_rng(0)
    town = rng.choice(["Bern", "Chur", "St. Gallen, SG"], N_ROWS, p=[0.6, 0.3, 0.1])
    x = np.where(town == "Chur", 3.0, 0.0) + rng.normal(size=N_ROWS)
    y = RHO * x + 0.6 * rng.normal(size=N_ROWS)
    since = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, N_ROWS), unit="D")
    return pd.DataFrame({"town": town, "x": 50 + 10 * x, "y": y, "since": since})


@pytest.fixture(scope="module")
def model(table):
    settings = glp.TrainingSettings(condition_dropout=0.2)
    estimator = glp.ScoreEstimator(settings=settings, **QUICK)
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
    assert abs(gap - 2 * RHO) < 4.5 * 0.6 * math.sqrt(4 / n + 4 / N_ROWS)


def test_guidance_moves_away_from_the_law_without_the_condition(model):
    means = [
        model.sample(400, given={"town": "Chur"}, guidance=w)["x"].mean() for w in (0.0, 1.0, 3.0)
    ]
    assert means[1] - means[0] > 4.5 * 10 * math.sqrt(2 / 400)
    assert means[2] > means[1]
    drawn = model.sample(300, guidance=0.5)["town"].value_counts(normalize=True)
    assert abs(drawn["Bern"] - 0.6) < 4.5 * math.sqrt(0.24 / 300 + 0.24 / N_ROWS)
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
        glp.TableEstimator(glp.ScoreEstimator(**QUICK | {"max_iter": 1})).fit(table).sample(
            2, guidance=1.0
        )


def test_conditions_of_a_table_on_the_command_line(table, tmp_path, capsys):
    """The output has all columns, and so says what each row was drawn for."""
    path, m, out = (tmp_path / name for name in ("t.csv", "m", "new.csv"))
    table.round({"x": 2, "y": 2}).to_csv(path, index=False, sep=";", decimal=",")

    def call(*words, code=0):
        assert main([str(word) for word in (*words, "--quiet")]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    quick = ("--steps", 100, "--width", 32, "--depth", 2, "--condition-dropout", 0.2)
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
