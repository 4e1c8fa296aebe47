"""`gradlogp fit`: schedules, objectives, weights, averages and labels left out."""

import json
import re

import numpy as np
import pytest
import torch

from gradlogp.interfaces.cli import main
from gradlogp.learn import TrainingSettings, checkpoint
from gradlogp.noise.schedules import DDPM, EDM, VE, VP, Cosine, Rectified, SubVP

pytestmark = pytest.mark.usefixtures("as_user", "float32", "few_levels")
QUICK = ("--steps", "3", "--width", "8", "--depth", "1", "--batch-size", "16", "--quiet", "--json")
SCHEDULES = {
    "ve": VE, "edm": EDM, "vp": VP, "sub-vp": SubVP, "cosine": Cosine, "rectified": Rectified,
    "ddpm": DDPM, "auto": VE,
}  # fmt: skip


@pytest.fixture
def points(tmp_path):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(60, 2, generator=g)
    rows = "".join(f"{a:.4f},{b:.4f},{i % 3}\n" for i, (a, b) in enumerate(x.tolist()))
    (tmp_path / "points.csv").write_text("a,b,kind\n" + rows)
    return str(tmp_path / "points.csv")


def fit(capsys, *arguments):
    code = main(["fit", *map(str, arguments), *QUICK])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule(name, points, tmp_path, capsys):
    out = tmp_path / "m"
    code, said, err = fit(capsys, points, "--columns", "a,b", "--out", out, "--schedule", name)
    assert code == 0, err
    assert json.loads(said)["steps"] == 3
    assert type(checkpoint.load(out).schedule) is SCHEDULES[name]


LOSSES = {}
"""Those of a run -> the requested ones."""


FEW = [("implicit", "sigma2"), ("sliced", "min-snr"), ("sliced-vr", "likelihood")]


@pytest.mark.parametrize(
    ("objective", "weight"),
    [
        pytest.param(o, w, marks=[pytest.mark.slow] * (o != "denoising" and (o, w) not in FEW))
        for o in ("denoising", "implicit", "sliced", "sliced-vr")
        for w in ("sigma2", "min-snr", "likelihood", "x0")
    ],
)
def test_every_objective(objective, weight, points, tmp_path, capsys):
    """Each trains; no two pairs are one loss."""
    code, _, err = fit(
        capsys, points, "--columns", "a,b", "--out", tmp_path / "m", "--schedule", "vp",
        "--objective", objective, "--weight", weight, "--base", "none",
    )  # fmt: skip
    assert code == 0, err
    losses = tuple(row[1] for row in checkpoint.read_run(tmp_path / "m")["history"]["rows"])
    assert LOSSES.setdefault(losses, (objective, weight)) == (objective, weight)


def test_every_setting_of_training_is_an_option_and_shows_its_default(capsys):
    assert main(["fit", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, value in vars(TrainingSettings()).items():
        option = f" --{name.replace('_', '-')} "
        assert option in said
        if value is not None:
            assert re.search(rf"{option}.*?\[default: (.*?)\]", said)[1] == str(value), name


def test_averages_and_labels_left_out_reach_the_checkpoint(points, tmp_path, capsys):
    out = tmp_path / "m"
    lives = ("--ema-half-lives", 2, "--ema-half-lives", 50)
    options = (*lives, "--condition-dropout", 0.2, "--ema", 0.9)
    code, _, err = fit(capsys, points, "--label", "kind", "--out", out, *options)
    assert code == 0, err
    settings = checkpoint.read_run(out)["settings"]
    assert settings["ema_half_lives"] == [2, 50]
    assert settings["ema"] == 0.9
    model = checkpoint.load(out, ema=50)
    assert float(model.condition.dropout) == pytest.approx(0.2)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert model.unconditional()(x, torch.tensor(0.5)).shape == (4, 2)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--condition-dropout", 0.1), 2, "--class-conditional"),
        (("--schedule", "vq"), 2, "vq"),
        (("--objective", "explicit"), 2, "explicit"),
        (("--weight", "edm"), 2, "edm"),
        (("--ema-half-lives", 0), 2, "ema_half_lives"),
        (("--ema", 1.0), 2, "ema must lie"),
    ],
)
def test_misuse(options, code, says, points, tmp_path, capsys):
    found, _, err = fit(capsys, points, "--columns", "a,b", "--out", tmp_path / "m", *options)
    assert found == code
    assert says in err
    assert err.count("\n") == 1


def test_classes_go_by_their_names(tmp_path, capsys):
    """In a file of pears alone pears are still pears, though they are numbered 0 there."""
    g = torch.Generator().manual_seed(0)
    x = 0.3 * torch.randn(300, 2, generator=g)
    rows = [f"{a:.4f},{b:.4f},apple" for a, b in (x[:150] - 5).tolist()]
    pears = [f"{a:.4f},{b:.4f},pear" for a, b in (x[150:] + 5).tolist()]
    both, only = tmp_path / "both.csv", tmp_path / "pears.csv"
    both.write_text("a,b,c\n" + "\n".join(rows + pears) + "\n")
    only.write_text("a,b,c\n" + "\n".join(pears) + "\n")
    model = tmp_path / "m"
    quick = ["--steps", "80", "--learning-rate", "0.01", "--width", "16", "--quiet"]
    assert main(["fit", str(both), "--label", "c", "--out", str(model), *quick]) == 0
    capsys.readouterr()
    found = {}
    for path in (both, only):
        few = ["--n", "50", "--json", "--quiet"]
        main(["evaluate", str(model), str(path), "--label", "c", *few])
        found[path] = {
            row["name"]: row["value"] for row in json.loads(capsys.readouterr()[0])["rows"]
        }
    name = "log-likelihood"
    assert abs(found[both][name] - found[only][name]) < 3  # the other class's would be far off
    assert main(["sample", str(model), "--n", "20", "--class", "pear", "--quiet"]) == 0
    out = capsys.readouterr()[0]
    assert min(float(line.split(",")[0]) for line in out.strip().splitlines()) > 0
    other = tmp_path / "plums.csv"
    other.write_text(only.read_text().replace("pear", "plum"))
    assert main(["evaluate", str(model), str(other), "--label", "c", "--quiet"]) == 1
    assert "plum" in capsys.readouterr()[1]


def test_resuming_with_other_data_or_another_seed_is_refused(tmp_path, capsys):
    g = torch.Generator().manual_seed(0)
    data = tmp_path / "x.npy"
    np.save(data, torch.randn(200, 2, generator=g).numpy())
    common = ["--out", str(tmp_path / "m"), "--width", "8", "--quiet"]
    assert main(["fit", str(data), "--steps", "5", *common]) == 0
    assert main(["fit", str(data), "--steps", "5", "--resume", *common]) == 0
    assert main(["fit", str(data), "--steps", "5", "--resume", "--seed", "1", *common]) == 1
    assert "data" in capsys.readouterr()[1]
    for wrong in (
        ["--device", "none"],
        ["--device", "meta"],
        ["--ema", "1.5"],
        ["--learning-rate", "-1"],
    ):
        assert main(["fit", str(data), "--steps", "5", *wrong, *common]) == 2
        assert "Traceback" not in capsys.readouterr()[1]
