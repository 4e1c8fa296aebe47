"""The command that restores images, on a tiny model: every task, what it writes, and misuse."""

import json

import numpy as np
import pytest
import torch
from few_support import at_few_levels
from PIL import Image

from gradlogp.interfaces.cli import main

pytestmark = pytest.mark.usefixtures("as_user", "float32", "few_levels", "bare_pictures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of 8×8 images that are bright on one half, and one such image."""
    torch.set_default_dtype(torch.float32)
    path = tmp_path_factory.mktemp("restore")
    rng = np.random.default_rng(0)
    level = rng.normal(10.0, 2.0, (200, 1, 1, 1))
    side = rng.integers(0, 2, (200, 1, 1, 1))
    left = (np.arange(8) < 4)[None, None, None, :]
    x = level * np.where(side == 1, left, ~left) + rng.normal(0, 0.3, (200, 1, 8, 8))
    np.save(path / "data.npy", x.astype(np.float32))
    np.save(path / "one.npy", (10.0 * left[0, 0] * np.ones((8, 1))).astype(np.float32))
    arguments = ["--steps", "25", "--quiet", "--batch-size", "32"]
    with at_few_levels():
        assert main(["fit", str(path / "data.npy"), "--out", str(path / "model"), *arguments]) == 0
    return path


def restore(capsys, folder, *arguments, image="one.npy"):
    out = folder / "restored.png"
    code = main([
        "restore", str(folder / "model"), "--image", str(folder / image), "--out", str(out),
        "--steps", "12", "--n", "4", "--quiet", "--force", *map(str, arguments),
    ])  # fmt: skip
    return code, *capsys.readouterr(), out


TASKS = {
    "denoise": ("--noise", 2.0), "inpaint": ("--box", 0, 8, 0, 4, "--noise", 0.5),
    "deblur": ("--blur", 0.8, "--noise", 0.5), "enlarge": ("--factor", 2, "--noise", 0.5),
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("denoise", "moment"), ("deblur", "pigdm"), ("enlarge", "pigdm"), ("inpaint", "dps"),
        *(pytest.param(*pair, marks=pytest.mark.slow)
          for pair in (("denoise", "pigdm"), ("inpaint", "pigdm"), ("deblur", "moment"),
                       ("enlarge", "dps"))),
    ],
)  # fmt: skip
def test_every_task_and_every_method(capsys, folder, task, method):
    code, out, _, path = restore(
        capsys, folder, "--task", task, *TASKS[task], "--method", method, "--simulate", "--json"
    )
    assert code == 0
    found = json.loads(out)
    assert path.read_bytes()[1:4] == b"PNG"
    draws = np.load(path.with_suffix(".npy"))
    assert draws.shape == (4, 1, 8, 8)
    truth = np.load(folder / "one.npy")
    rms = float(np.sqrt(((draws.mean(0)[0] - truth) ** 2).mean()))
    assert found["rms_error_of_the_mean"] == pytest.approx(rms, rel=1e-4)
    if method == "pigdm":  # the others are at the mercy of a network that has hardly learned
        assert found["residual_over_noise"] < 2.5
        assert rms < 3.5  # of a signal of 10; the mean over both sides is off by 5


def test_a_damaged_picture_is_taken_as_it_is(capsys, folder):
    """A .png in the units of --values, and a mask."""
    seen = np.zeros((8, 8), np.uint8)
    seen[:, 4:] = 255
    Image.fromarray(seen).save(folder / "seen.png")
    Image.fromarray(
        np.where(np.arange(8)[:, None] < 6, 255, 0).astype(np.uint8).repeat(8, 1)
    ).save(folder / "mask.png")
    code, out, _, path = restore(
        capsys, folder, "--task", "inpaint", "--mask", folder / "mask.png", "--values", 0, 10,
        "--noise", 0.5, image="seen.png",
    )  # fmt: skip
    assert code == 0, out
    assert "rms" not in out  # nothing is known of the original
    draws = np.load(path.with_suffix(".npy"))
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    rows = np.nonzero((np.abs(picture - [209, 85, 11]).sum(2) < 40).any(1))[0]
    assert (
        rows.max() < len(picture) / 3
    )  # what is missing is marked, in the first line: what was seen
    hidden = draws[:, 0, 6:]
    assert hidden[..., 4:].mean() > 6  # the bright side continues
    assert abs(hidden[..., :4].mean()) < 2


def test_misuse_is_two(capsys, folder, tmp_path):
    np.save(folder / "small.npy", np.zeros((4, 4), np.float32))
    for arguments, says in [
        (("--task", "inpaint"), "--box or --mask"),
        (("--task", "denoise", "--box", 0, 1, 0, 1), "belong"),
        (("--task", "inpaint", "--box", 0, 9, 0, 1), "does not lie"),
        (("--task", "inpaint", "--box", 0, 8, 0, 8), "no pixel of the image is observed"),
        (("--task", "enlarge", "--factor", 3), "divide"),
        (("--task", "deblur", "--blur", 5), "blur"),
        (("--task", "denoise", "--noise", 0), "noise"),
        (("--task", "paint"), "task"),
    ]:
        code, _, err, _ = restore(capsys, folder, *arguments)
        assert code == 2, (arguments, err)
        assert says in err
        assert "Traceback" not in err
    for image, says in (("none.npy", "no image"), ("small.npy", "is needed")):
        code, _, err, _ = restore(capsys, folder, "--task", "denoise", image=image)
        assert code == 2
        assert says in err
