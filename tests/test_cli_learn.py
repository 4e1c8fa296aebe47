"""`gradlogp fit`: schedules, objectives, weights, averages and labels left out."""

import json

import pytest
import torch

from gradlogp import checkpoint
from gradlogp.cli import main
from gradlogp.schedules import DDPM, EDM, VE, VP, Cosine, Rectified, SubVP

pytestmark = pytest.mark.usefixtures("as_user", "float32")
QUICK = ("--steps", "3", "--width", "8", "--depth", "1", "--batch-size", "16", "--quiet", "--json")
SCHEDULES = {
    "ve": VE, "edm": EDM, "vp": VP, "sub-vp": SubVP, "cosine": Cosine, "rectified": Rectified,
    "ddpm": DDPM, "auto": VE,
}  # fmt: skip


@pytest.fixture
def float32():
    torch.set_default_dtype(torch.float32)


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


@pytest.mark.parametrize("objective", ["denoising", "implicit", "sliced", "sliced-vr"])
@pytest.mark.parametrize("weight", ["sigma2", "min-snr", "likelihood"])
def test_every_objective(objective, weight, points, tmp_path, capsys):
    """Each trains; no two pairs are one loss."""
    losses = []
    for chosen in ((objective, weight), ("denoising", "x0")):
        out = tmp_path / chosen[0]
        code, _, err = fit(
            capsys, points, "--columns", "a,b", "--out", out, "--schedule", "vp",
            "--objective", chosen[0], "--weight", chosen[1],
        )  # fmt: skip
        assert code == 0, err
        rows = checkpoint.read_run(out)["history"]["rows"]
        losses.append([row[1] for row in rows])
    assert losses[0] != losses[1]


def test_averages_and_labels_left_out_reach_the_checkpoint(points, tmp_path, capsys):
    out = tmp_path / "m"
    options = ("--ema-half-life", 2, "--ema-half-life", 50, "--label-dropout", 0.2, "--ema", 0.9)
    code, _, err = fit(capsys, points, "--label", "kind", "--out", out, *options)
    assert code == 0, err
    settings = checkpoint.read_run(out)["settings"]
    assert settings["ema_half_lives"] == [2, 50]
    assert settings["ema"] == 0.9
    model = checkpoint.load(out, ema=50)
    assert float(model.label_dropout) == pytest.approx(0.2)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    assert model.unconditional()(x, torch.tensor(0.5)).shape == (4, 2)


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--label-dropout", 0.1), 2, "--class-conditional"),
        (("--schedule", "vq"), 2, "vq"),
        (("--objective", "explicit"), 2, "explicit"),
        (("--weight", "edm"), 2, "edm"),
        (("--ema-half-life", 0), 1, "ema_half_lives"),
        (("--ema", 1.0), 1, "ema must lie"),
    ],
)
def test_misuse(options, code, says, points, tmp_path, capsys):
    found, _, err = fit(capsys, points, "--columns", "a,b", "--out", tmp_path / "m", *options)
    assert found == code
    assert says in err
    assert err.count("\n") == 1
