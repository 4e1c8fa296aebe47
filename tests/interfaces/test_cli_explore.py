"""`gradlogp explore`: pages of names, files and checkpoints, and what is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from few_support import at_few_levels
from support import read_page

import gradlogp as glp
from gradlogp.core import Moments
from gradlogp.interfaces.cli import loading, main
from gradlogp.interfaces.cli.explore import moons
from gradlogp.learn.data import toy
from gradlogp.show import planes

pytestmark = pytest.mark.usefixtures("as_user", "few_levels")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planes, "NODES", 64)  # a ninth of the work
    return tmp_path


def call(capsys, *line):
    code = main(["explore", *map(str, line)])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_mixture_by_default(here, capsys):
    code, out, err = call(capsys, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["bytes"] == (here / "explore.html").stat().st_size < 100_000
    text, data = read_page(here / "explore.html")
    assert "<h1>The score of mixture</h1>" in text
    np.testing.assert_allclose(data["fields"][0]["weights"], [0.3, 0.7], rtol=1e-12)
    code, _, err = call(capsys)
    assert code == 2
    assert "explore.html exists" in err
    assert call(capsys, "moons", "--force", "--quiet") == (0, "", "")
    assert "The score of moons" in (here / "explore.html").read_text(encoding="utf-8")


def test_a_gaussian_is_closed_form(here, capsys):
    assert call(capsys, "gaussian", "--out", "g.html")[0] == 0
    assert read_page(here / "g.html")[1]["fields"][0]["kind"] == "mixture"


def test_the_ring_is_a_table_that_states_its_error(here, capsys):
    assert call(capsys, "ring", "--out", "ring.html")[0] == 0
    text, data = read_page(here / "ring.html")
    assert len(text) < 3_000_000
    assert data["fields"][0]["error"] < 0.005
    assert f"off by {100 * data['fields'][0]['error']:.2g} %" in text
    np.testing.assert_allclose(data["mean"], [0, 0], atol=1e-9)


def test_a_circle_has_normals_and_tangents(here, capsys):
    assert call(capsys, "circle", "--picture", "split", "--out", "c.html")[0] == 0
    _, data = read_page(here / "c.html")
    assert (data["around"], data["picture"], data["fields"][0]["channels"]) == ([0, 0], "split", 3)
    np.testing.assert_allclose(data["mean"], [0.6978, 0], atol=2e-3)  # I_1(2)/I_0(2)
    code, _, err = call(capsys, "banana", "--picture", "split", "--out", "b.html")
    assert (code, err.count("\n")) == (1, 1)
    assert "needs something this field does not have" in err


def test_the_law_of_the_moons_is_that_of_the_toy_set(generator):
    """Moments and mean log-density of draws of both, within their errors; normalised weights."""
    n, law = 20_000, moons()
    a, b = toy("moons", n, generator).x.double(), law.sample(n, generator=generator).double()
    for f in (lambda x: x, lambda x: x.square(), lambda x: x.prod(1, keepdim=True),
              lambda x: law.log_prob(x)[:, None]):  # fmt: skip
        u, v = f(a), f(b)
        error = ((u.var(0) + v.var(0)) / n).sqrt()
        assert float(((u.mean(0) - v.mean(0)) / error).abs().max()) < 4.5


def test_a_file_is_run(here, capsys):
    (here / "laws.py").write_text(
        "import torch\n"
        "def f(x):\n    return -x.square().sum(1) / 2\n"
        "def raises(x):\n    raise KeyError('no')\n"
        "def flat(x):\n    return 0 * x[:, 0]\n"
        "class Score:\n    event_shape = (2,)\n    def score(self, x):\n        return -x\n"
        "s = Score()\n"
    )
    assert call(capsys, "laws.py:s", "--out", "s.html")[0] == 0
    assert not read_page(here / "s.html")[1]["levels"]
    assert call(capsys, "laws.py:f", "--out", "f.html")[0] == 0
    _, data = read_page(here / "f.html")
    np.testing.assert_allclose(data["cov"], [1, 0, 1], atol=1e-3)
    for name, says in (
        ("raises", "laws.py:raises failed: KeyError"),
        ("flat", "does not decay"),
    ):
        code, _, err = call(capsys, f"laws.py:{name}", "--out", "x.html")
        assert (code, err.count("\n")) == (1, 1)
        assert says in err
    assert not (here / "x.html").exists()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of two columns, two steps old."""
    torch.set_default_dtype(torch.float32)
    at, rng = tmp_path_factory.mktemp("models"), np.random.default_rng(0)
    x = rng.normal(size=(60, 2)) * [1, 7] + [0, 100]
    (at / "x.csv").write_text("\n".join(["left,right", *(f"{a},{b}" for a, b in x)]))
    quick = ["--steps", "2", "--width", "4", "--quiet", "--no-table"]
    with at_few_levels():
        assert main(["fit", str(at / "x.csv"), "--out", str(at / "model"), *quick]) == 0
    return at / "model"


def test_a_checkpoint_beside_what_it_should_be(here, model, capsys):
    (here / "law.py").write_text(
        "import gradlogp as glp\nlaw = glp.Gaussian([0.0, 100.0], [[1.0, 0.0], [0.0, 49.0]])\n"
    )
    done = call(capsys, model, "--target", "law.py:law", "--out", "m.html", "--quiet")
    assert done == (0, "", "")
    text, data = read_page(here / "m.html")
    assert [f["name"] for f in data["fields"]] == ["learned", "exact"]
    assert data["names"] == ["left", "right"]
    assert 95 < data["shift"][1] < 105
    assert 5 < data["scale"][1] < 9
    np.testing.assert_allclose(data["cov"], [1, 0, 1], atol=0.6)  # in the model's coordinates
    assert "in the coordinates of the model" in text
    assert call(capsys, model, "--out", "alone.html")[0] == 0
    assert len(read_page(here / "alone.html")[1]["fields"]) == 1


def test_misuse(here, model, capsys):
    for line, says in (
        ("funnel", "events of shape (5,), but the page shows two"),
        ("rang", "did you mean 'ring'?"),
        ("missing.py:f", "there is no file missing.py"),
        ("mixture --out x.htm", "use a name that ends in .html"),
        ("mixture --target ring", "--target is for a checkpoint"),
        (f"{model} --target rang", "--target 'rang' is not a target"),
        ("mixture --picture far", "--picture"),
        ("mixture --threads 0", "--threads must be at least 1"),
    ):
        code, out, err = call(capsys, *line.split())
        assert (code, out, err.count("\n")) == (2, "", 1), (line, err)
        assert says in err
    assert not list(here.glob("*.html"))


@pytest.mark.parametrize(
    ("shape", "condition", "says"),
    [((3,), None, "samples of shape (3,)"), ((2,), "classes", "is conditional")],
)
def test_checkpoints_that_have_no_page(here, model, capsys, monkeypatch, shape, condition, says):
    found = SimpleNamespace(model_=SimpleNamespace(event_shape=shape), condition=condition)
    monkeypatch.setattr(loading, "load_estimator", lambda _: found)
    code, _, err = call(capsys, model)
    assert (code, err.count("\n")) == (2, 1)
    assert says in err
    assert not list(here.glob("*.html"))


def test_a_model_of_images_has_a_strip(here, model, capsys, monkeypatch):
    schedule = glp.schedules.VE(0.01, 20.0)
    normal = lambda z, t: -z / (1 + schedule(t)[1] ** 2)
    normal_moments = Moments(torch.tensor(0.0), torch.tensor(1.0))
    score = glp.as_score(normal, "score", schedule, event_shape=(1, 4, 4), moments=normal_moments)
    score.condition = None
    found = SimpleNamespace(model_=score, condition=None)
    monkeypatch.setattr(loading, "load_estimator", lambda _: found)
    code, out, _ = call(capsys, model, "--out", "i.html", "--json")
    assert (code, json.loads(out)["page"]) == (0, "i.html")
    _, data = read_page(here / "i.html")
    assert data["shape"] == [8, 1, 4, 4]
    code, _, err = call(capsys, model, "--target", "ring", "--out", "j.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "--target is for a checkpoint of two columns" in err
