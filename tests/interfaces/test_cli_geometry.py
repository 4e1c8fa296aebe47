"""`gradlogp geometry`: what it reads from an exact score, what it flags, and what it refuses."""

import importlib
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.quiver import Quiver
from support import close
from torch import nn

import gradlogp as glp
from gradlogp import Gaussian
from gradlogp.distributions import UniformSphere, VonMisesCircle
from gradlogp.distributions.analytic.products import Embedded
from gradlogp.interfaces.cli import loading
from gradlogp.interfaces.cli.common import Misuse
from gradlogp.interfaces.cli.geometry import geometry
from gradlogp.show import plots
from gradlogp.show.plots.curves import spectra, split_field

pytestmark = pytest.mark.usefixtures("as_user", "bare_pictures", "few_levels")
LOW, HIGH = 0.01, 10.0


class Exact(nn.Module):
    """A network that predicts the noise of an exactly known law, under VE in data units."""

    def __init__(self, law):
        super().__init__()
        self.law, self.event_shape = law, law.event_shape
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x_unit, coordinate):
        sigma = torch.exp(4 * coordinate[0])
        x = x_unit * (1 + sigma**2).sqrt()
        return -sigma * self.law.noised(1.0, sigma).score(x)


@pytest.fixture
def known(tmp_path, monkeypatch, generator):
    """law -> the command line arguments for a checkpoint that knows it exactly, and 200 points.

    The range of a steady dimension is looked for at half of the levels: three in a decade.
    """
    monkeypatch.setattr(importlib.import_module("gradlogp.geometry.survey"), "LEVELS", 9)

    def make(law, n=200):
        model = glp.ScoreModel(Exact(law), glp.schedules.VE(LOW, HIGH))
        found = SimpleNamespace(model_=model, condition=None)
        monkeypatch.setattr(loading, "load_estimator", lambda _: found)
        path = tmp_path / "points.npy"
        np.save(path, law.sample(n, generator=generator).numpy())
        return {
            "checkpoint": tmp_path,
            "data": str(path),
            "out": tmp_path / "g.png",
            "quiet": True,
        }

    return make


def measured(capsys, **arguments):
    code = geometry(**arguments, force=True, json=True)
    return code, json.loads(capsys.readouterr().out)


def row(result, name):
    """The value and error of the row that begins or ends with a name."""
    (found,) = (
        r for r in result["rows"] if r["name"].startswith(name) or r["name"].endswith(f", {name}")
    )
    return found["value"], found["standard_error"]


def test_a_circle(known, capsys):
    r, k_0 = 0.8, 1.5
    arguments = known(VonMisesCircle(r, k_0))
    code, result = measured(capsys, **arguments, sigma=0.01)
    assert code == 0
    assert result["flags"] == [
        "σ = 0.01 is at the lowest learned level, 0.01, where scores are least accurate"
    ]
    assert (result["dimension"], result["dimensions"], result["points"]) == (1, 2, 40)
    for estimator in ("normal_rank", "norm", "divergence"):
        value, error = row(result, estimator)
        assert abs(value - 1) < 4.5 * error + 1e-3
        assert error < 0.1
    close(row(result, "curvature")[0], 1 / r, 1e-3)
    close(row(result, "distance")[0], 0.01**2 / (2 * r), 1e-6)
    close(result["spectrum"], [0.0, 1.0], 1e-3)
    assert arguments["out"].read_bytes()[:4] == b"\x89PNG"
    # E |k₀/r sin θ| of the 40 points, which is not that of the uniform law
    assert 0.5 < row(result, "tangent part")[0] < k_0 / r


def test_a_sphere_in_six_dimensions(known, capsys):
    A = torch.linalg.qr(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    code, result = measured(capsys, **known(Embedded(UniformSphere(3, 2.0), A)))
    assert code == 0
    assert result["flags"] == []
    assert result["dimension"] == 2
    low, high = result["recommended_sigma"]
    close(result["sigma"], math.sqrt(low * high), 1e-12)
    assert LOW <= low < 0.1 < high < 2.0
    close(row(result, "curvature")[0], 2 / 2.0, 0.05)
    close(sorted(result["spectrum"]), [0.0, 0.0, 1.0, 1.0, 1.0, 1.0], 0.05)
    assert row(result, "tangent part")[0] < 1e-6  # uniform


def test_the_text_says_the_same(known, capsys):
    assert geometry(**known(UniformSphere(2)), sigma=0.02, points=5) == 0
    out = capsys.readouterr().out
    assert "5 points at σ = 0.02 (learned: 0.01 to 10)" in out
    assert "normal_rank" in out
    assert "recommended σ: 0.01 to" in out
    assert "spectrum of −σ²∇s, medians: " in out


def test_data_that_fill_the_space(known, capsys):
    code, result = measured(capsys, **known(Gaussian(torch.zeros(2))))
    assert code == 1
    flags = " ".join(result["flags"])
    assert "k = D = 2" in flags
    assert "no stable dimension" in flags
    assert result["recommended_sigma"] is None
    assert not any(r["name"].startswith("curvature") for r in result["rows"])


def test_points_only(known, capsys):
    law = glp.Empirical(torch.randn(20, 3, generator=torch.Generator().manual_seed(1)))
    code, result = measured(capsys, **known(law), sigma=0.02)
    assert code == 0
    assert result["dimension"] == 0
    assert any("memorised" in flag for flag in result["flags"])


@pytest.mark.parametrize(("n", "flag"), [
    (6, "6 rows in 8 dimensions span at most 5"), (12, "12 rows for 2 tangent directions are few"),
])  # fmt: skip
def test_too_few_rows(n, flag, known, capsys):
    _, result = measured(capsys, **known(Embedded(UniformSphere(3), 8), n=n), sigma=0.05, points=5)
    assert any(flag in found for found in result["flags"])


def test_data_off_the_manifold(known, capsys, generator):
    arguments = known(UniformSphere(2))
    x = np.load(arguments["data"])
    np.save(arguments["data"], x * (1 + 0.05 * np.random.default_rng(0).normal(size=(len(x), 1))))
    _, result = measured(capsys, **arguments, sigma=0.05)
    assert any("not curvature" in flag for flag in result["flags"])
    assert 0.02 < row(result, "distance")[0] < 0.08


def test_same_seed_same_numbers(known, capsys):
    arguments = known(VonMisesCircle(1.0, 1.0))
    first, again = (measured(capsys, **arguments, sigma=0.1, points=4) for _ in range(2))
    other = measured(capsys, **arguments, sigma=0.1, points=4, seed=1)
    assert first == again
    assert first[1]["rows"] != other[1]["rows"]


def test_refusals(known, tmp_path):
    arguments = known(UniformSphere(2))
    for sigma in (0.001, 20.0, -1.0):
        with pytest.raises(Misuse, match=r"outside the noise levels learned, 0\.01 to 10"):
            geometry(**arguments, sigma=sigma)
    with pytest.raises(Misuse, match="at least 16 in 2 dimensions"):
        geometry(**arguments, perturbations=8)
    with pytest.raises(Misuse, match="--points must be at least 1"):
        geometry(**arguments, points=0)
    with pytest.raises(Misuse, match=r"ends in \.png"):
        geometry(**arguments | {"out": tmp_path / "x.pdf"})
    np.save(tmp_path / "three.npy", np.zeros((5, 3)))
    with pytest.raises(Misuse, match=r"shape \(3,\), but the model has \(2,\)"):
        geometry(**arguments | {"data": str(tmp_path / "three.npy")})


@pytest.mark.parametrize("classes", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_learned_model(classes, tmp_path, capsys, generator):
    """A real checkpoint, by class or not: that all goes through in double precision."""
    torch.set_default_dtype(torch.float32)
    x = VonMisesCircle(1.0, 1.0).sample(300, generator=generator).float()
    side = ["up" if v > 0 else "down" for v in x[:, 1]]
    out = tmp_path / "model"
    estimator = glp.ScoreEstimator(
        max_iter=20,
        width=16,
        depth=1,
        checkpoint=out,
        condition="classes" if classes else None,
        random_state=0,
    )
    estimator.fit(x.numpy(), np.array(side) if classes else None).save(out)
    rows = "\n".join(f"{a:.6f},{b:.6f},{s}" for (a, b), s in zip(x.tolist(), side, strict=True))
    (tmp_path / "x.csv").write_text(f"a,b,side\n{rows}\n")
    code = geometry(
        out, data=str(tmp_path / "x.csv"), columns="a,b", label="side" if classes else None,
        sigma=0.3, points=6, out=tmp_path / "g.png", json=True, quiet=True,
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    assert code in (0, 1)
    assert len(result["rows"]) >= 4
    if classes:
        with pytest.raises(Misuse, match="--label"):
            geometry(out, data=str(tmp_path / "x.csv"), columns="a,b", out=tmp_path / "h.png")


# ---------------------------------------------------------------------------- pictures


def test_arrows_are_the_parts(generator):
    x = torch.randn(7, 2, generator=generator)
    t, n = torch.randn(7, 2, generator=generator), 3 * torch.randn(7, 2, generator=generator)
    figure = split_field(x, t, n)
    for axes, part, name in zip(figure.axes, (t, n), ("tangent", "normal"), strict=True):
        (arrows,) = [c for c in axes.collections if isinstance(c, Quiver)]
        np.testing.assert_allclose(arrows.XY, x.numpy())
        drawn = np.stack([arrows.U, arrows.V], 1)
        factor = drawn[0, 0] / float(part[0, 0])
        np.testing.assert_allclose(drawn, factor * part.numpy())
        assert axes.get_title(loc="left") == f"{name} part, longest {part.norm(dim=1).max():.3g}"
    assert len(plots.png(split_field(x, t, 0 * n))) > 1000
    with pytest.raises(ValueError, match=r"\(n, 2\)"):
        split_field(x, t, n[:3])


def test_spectra_show_the_quantiles(generator):
    values = torch.rand(30, 5, generator=generator).sort(1).values
    (axes,) = spectra(values, 2).axes
    median = next(line for line in axes.lines if line.get_label() == "median")
    np.testing.assert_allclose(median.get_ydata(), values.median(0).values.numpy(), atol=0.1)
    np.testing.assert_array_equal(median.get_xdata(), [1, 2, 3, 4, 5])
    mark = next(line for line in axes.lines if line.get_label() == "k = 2")
    assert list(mark.get_xdata()) == [2.5, 2.5]
    with pytest.raises(ValueError, match=r"shape \(n, D\)"):
        spectra(values[0])
