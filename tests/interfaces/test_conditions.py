"""What an estimator learns to be conditional on, and posteriors from simulations alone."""

import copy
import math

import numpy as np
import pandas as pd
import pytest
import torch
from support import seeded

import gradlogp as glp
from gradlogp.interfaces.cli import main

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
    """Three measurements, each in its own units."""
    eps = torch.randn(*theta.shape[:-1], 3, generator=generator).double()
    return (theta @ A.T + NOISE * eps) * UNITS


def posterior(y):
    """The exact law of θ given one y."""
    P, R = torch.linalg.inv(PRIOR.cov), torch.diag(NOISE**-2)
    cov = torch.linalg.inv(P + A.T @ R @ A)
    return glp.Gaussian(cov @ (P @ PRIOR.mean + A.T @ R @ (y / UNITS)), (cov + cov.T) / 2)


def learn(theta, y, **options):
    chosen = {"max_iter": 120, "width": 32, "depth": 2, "condition": "values", "random_state": 0}
    return glp.ScoreEstimator(**chosen | options).fit(theta, y)


@pytest.fixture(scope="module")
def fitted():
    g = seeded(0)
    theta = PRIOR.sample(N, generator=g)
    y = simulate(theta, g)
    return learn(theta, y), theta, y


@pytest.mark.parametrize("row", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
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
    points = exact.sample(100, generator=seeded(row))
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
        width=32, depth=1, condition="classes", settings=settings, random_state=0,
        n_sample_steps=16, n_likelihood_steps=12,
    ).fit(x, y)  # fmt: skip
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


def test_the_command_line_has_conditions(tmp_path, capsys, few_levels):
    """Columns to condition on, values for all or in a file, and rows that say what they are of."""
    torch.set_default_dtype(torch.float32)
    g = np.random.default_rng(0)
    a, b = g.normal(size=500), g.uniform(-1, 1, 500)
    kind = np.where(g.random(500) < 0.9, "calm", "wild")
    table = pd.DataFrame({"u": 100 * (a + b) + g.normal(size=500), "v": b, "a": a, "kind": kind})
    path = tmp_path / "t.csv"
    table.to_csv(path, index=False)
    quick = ["--steps", "40", "--width", "16", "--depth", "1", "--quiet"]

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
