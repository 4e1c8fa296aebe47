"""Moving pictures: as many frames as states, points where they belong, refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

import gradlogp as glp
from gradlogp.diffusion import AnnealedLangevin
from gradlogp.noise.schedules import VE
from gradlogp.show import animate
from gradlogp.show.plots import DARK

ORANGE = np.array([209, 85, 11])
BOUNDS = (-3.0, 3.0, -2.0, 2.0)


def frames(path):
    found = []
    with Image.open(path) as image:
        for i in range(image.n_frames):
            image.seek(i)
            found.append((np.asarray(image.convert("RGB")).astype(int), image.info["duration"]))
    return found


def orange(frame):
    """The pixels of points: the middle of them, (column, row), and how many."""
    rows, columns = np.nonzero(np.abs(frame - ORANGE).sum(2) < 60)
    return np.array([columns.mean(), rows.mean()]), len(rows)


@pytest.mark.parametrize("invert_y", [False, True])
def test_points_are_where_they_are(tmp_path, invert_y):
    """One point on the corners of a square: its pixels are those of an affine map of it."""
    corners = torch.tensor([[-2.0, -1.0], [2.0, -1.0], [2.0, 1.0], [-2.0, 1.0], [1.0, 0.5]])
    path = animate(corners[:, None], tmp_path / "a.gif", bounds=BOUNDS, trail=0, invert_y=invert_y)
    seen = frames(path)
    assert len(seen) == 5
    assert [t for _, t in seen] == [50, 50, 50, 50, 1550]
    at = np.array([orange(frame)[0] for frame, _ in seen])
    across, up = (at[1] - at[0])[0] / 4, (at[2] - at[1])[1] / 2
    assert across > 20
    assert up == pytest.approx(across if invert_y else -across, rel=0.03)  # rows go down
    np.testing.assert_allclose(at[4], at[0] + [3 * across, 1.5 * up], atol=1.5)


def test_every_langevin_step_is_a_frame(tmp_path, generator):
    """An annealed run with one step a level: the callback sees each; the last frame is the result."""
    law = glp.GaussianMixture([0.5, 0.5], [[-1.5, 0.0], [1.5, 0.0]], 0.01)
    score, states = glp.ExactScore(law, VE(0.05, 5.0)), []
    times = torch.linspace(1, 0, 12)
    end = glp.evolve(AnnealedLangevin(1, 0.3), score, 40, times, generator=generator,
                     callback=lambda z, t: states.append(z))  # fmt: skip
    sigmas = [score.schedule(t)[1] for t in times]
    laws = [*(law.noised(1.0, s).log_prob for s in sigmas), law.log_prob]
    path = animate({"one": torch.stack([*states, end]), "the same": torch.stack([*states, end])},
                   tmp_path / "a.gif", density=laws, captions=[f"{i}" for i in range(13)],
                   bounds=BOUNDS, theme=DARK, hold=0.0)  # fmt: skip
    seen = frames(path)
    assert len(seen) == 13
    left, right = np.hsplit(seen[-1][0], 2)
    dots = lambda half: np.nonzero((np.abs(half - [255, 160, 77]).sum(2) < 60).any(0))[0]
    for half in (left, right):  # two clouds, and nothing between them
        columns = dots(half)
        assert np.diff(columns).max() > 30
    assert len(path.read_bytes()) < 300_000


X = torch.zeros(4, 3, 2)


@pytest.mark.parametrize(
    ("states", "given", "message"),
    [
        (X[0], {}, r"must have shape \(frames, n, 2\)"),
        (X[:1], {}, "with 2 to 1000 frames"),
        (X / 0, {}, "states"),
        ({}, {}, "at least one panel"),
        ({"a": X, "b": X[:3]}, {}, "same number of frames"),
        (X, {"captions": ["a"]}, "captions must have one entry for each of the 4 frames, got 1"),
        (X, {"density": [torch.sum]}, "density must have one entry for each of the 4 frames"),
        (X, {"fps": 0}, "fps must be an integer from 1 to 50"),
        (X, {"trail": -1}, "trail"),
        (X, {"hold": -1.0}, "hold"),
    ],
)
def test_refusals(states, given, message, tmp_path, as_user):
    with pytest.raises(ValueError, match=message):
        animate(states, tmp_path / "a.gif", **given)
    assert not list(tmp_path.iterdir())
