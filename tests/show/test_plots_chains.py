"""Figures of chains: that what is drawn is what the chains did."""

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.contour import ContourSet
from matplotlib.quiver import Quiver
from PIL import Image

import gradlogp as glp
from gradlogp import GaussianMixture
from gradlogp.diffusion import AnnealedLangevin
from gradlogp.noise.schedules import VE
from gradlogp.show import animate, plots
from gradlogp.show.plots import DARK
from gradlogp.show.plots.chains import autocorrelations

MIXTURE = GaussianMixture([0.3, 0.7], [[-1.5, -0.8], [1.4, 0.9]], [0.3, 0.4])


def legend(axes):
    return [t.get_text() for t in axes.get_legend().get_texts()]


def heights(axes):
    (stairs,) = axes.patches
    return stairs.get_data()


def test_trace_shows_chains_and_all_of_them_at_the_side(generator):
    x = torch.randn(9, 30, 2, generator=generator)
    figure = plots.trace(x, names=["a", "b"])
    first, side, second, _ = figure.axes
    assert (first.get_ylabel(), second.get_ylabel()) == ("a", "b")
    assert legend(first) == ["chain 1", "chain 4", "chain 6", "chain 9"]
    for line, chain in zip(second.lines, (0, 3, 5, 8), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 31))
        np.testing.assert_array_equal(line.get_ydata(), x[chain, :, 1])
    assert heights(side).values.sum() == 9 * 30
    assert side.get_title(loc="left") == "all 9"


def test_trace_of_many_draws_thins_the_lines_only(generator):
    x = torch.randn(2, 5000, generator=generator)
    axes, side = plots.trace(x).figure.axes
    at = axes.lines[1].get_xdata()
    assert len(at) == 2000
    assert (at[0], at[-1]) == (1, 5000)
    np.testing.assert_array_equal(axes.lines[1].get_ydata(), x[1, at - 1])
    assert heights(side).values.sum() == 10_000
    assert axes.get_ylabel() == "x₁"


def test_draws_over_their_density(generator):
    """Contours of √p at tenths of its largest value, dots of all draws, and NaN off a support."""
    x = MIXTURE.sample(2000, generator=generator).reshape(4, 500, 2)
    half = lambda y: torch.where(y[:, 0] > -1, MIXTURE.log_prob(y), torch.nan)
    figure = plots.over_density(x, half, names=["a", "b"])
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("a", "b")
    assert axes.get_title(loc="left") == "4 chains × 500 draws"
    (dots,) = axes.lines
    np.testing.assert_array_equal(dots.get_xydata(), x.reshape(-1, 2))
    (contours,) = (c for c in axes.collections if isinstance(c, ContourSet))
    np.testing.assert_allclose(contours.levels, np.linspace(0.1, 1, 10))
    outer = contours.get_paths()[0].vertices
    assert outer[:, 0].min() > -1.05
    # the outermost line is where p is a hundredth of its maximum, off the edge of the support
    on = torch.as_tensor(outer[outer[:, 0] > -0.9])
    top = MIXTURE.log_prob(torch.tensor([[-1.5, -0.8], [1.4, 0.9]])).max()
    levels = ((MIXTURE.log_prob(on) - top) / 2).exp()
    assert float((levels - 0.1).abs().min()) < 0.003
    many = plots.over_density(x.repeat(1, 4, 1), MIXTURE.log_prob).axes[0]
    assert many.get_title(loc="left") == "4 chains × 2,000 draws, 5,000 shown"
    with pytest.raises(ValueError, match=r"shape \(chain, draw, 2\)"):
        plots.over_density(x[..., :1], MIXTURE.log_prob)
    with pytest.raises(ValueError, match="0 or infinite on the whole grid"):
        plots.over_density(x, lambda y: y.new_full((len(y),), -torch.inf))


def test_autocorrelations_are_the_sums(generator):
    x = torch.randn(3, 40, generator=generator).cumsum(1).numpy()
    y, found = x - x.mean(), autocorrelations(x, 39)
    for k in range(40):
        expected = (y[:, : 40 - k] * y[:, k:]).sum(1) / (40 * y.var())
        np.testing.assert_allclose(found[:, k], expected, atol=1e-12)
    np.testing.assert_allclose(found[:, 0].mean(), 1, atol=1e-12)


def test_autocorrelation_shows_the_average_and_what_is_expected(generator):
    x = torch.randn(4, 200, generator=generator)
    axes = plots.autocorrelation(x, max_lag=10, exact=[1.0] + [0.0] * 30).axes[0]
    assert legend(axes) == ["average of all chains", "exact"]
    average, exact = axes.lines[-2:]
    np.testing.assert_allclose(average.get_ydata(), autocorrelations(x.numpy(), 10).mean(0))
    np.testing.assert_array_equal(exact.get_ydata(), [1.0] + [0.0] * 10)
    assert len(plots.autocorrelation(x[:1]).axes[0].lines[-1].get_xdata()) == 51
    assert len(plots.autocorrelation(x[:1, :20]).axes[0].lines[-1].get_xdata()) == 11


def test_marginal_is_a_density(generator):
    x = torch.randn(4, 5000, generator=generator)
    normal = lambda v: (-v.square() / 2).exp() / (2 * torch.pi) ** 0.5
    axes = plots.marginal(x, density=normal, name="θ").axes[0]
    stairs, (curve,) = heights(axes), axes.lines
    inside = (x.numpy() >= stairs.edges[0]) & (x.numpy() <= stairs.edges[-1])
    total = (stairs.values * np.diff(stairs.edges)).sum()
    np.testing.assert_allclose(total, inside.mean(), atol=1e-12)
    at = torch.as_tensor(curve.get_xdata())
    np.testing.assert_allclose(curve.get_ydata(), normal(at), atol=1e-12)
    assert (
        abs(np.interp(0, (stairs.edges[:-1] + stairs.edges[1:]) / 2, stairs.values) - 0.4) < 0.05
    )
    assert axes.get_xlabel() == "θ"
    assert legend(axes)[0].startswith("20,000 draws")
    assert legend(plots.marginal(torch.ones(2, 3)).axes[0]) == ["6 draws"]


def test_walks_go_where_the_chains_went(generator):
    x = torch.randn(20, 700, 2, generator=generator)
    axes = plots.walks(MIXTURE.score, x).axes[0]
    (lines,) = (c for c in axes.collections if isinstance(c, LineCollection))
    (_,) = (c for c in axes.collections if isinstance(c, Quiver))
    segments = lines.get_segments()
    assert len(segments) == 8
    np.testing.assert_array_equal(segments[0], x[0, :500])
    np.testing.assert_array_equal(segments[-1], x[19, :500])
    starts, ends = axes.lines
    np.testing.assert_array_equal(starts.get_xydata()[0], x[0, 0])
    np.testing.assert_array_equal(ends.get_xydata()[-1], x[19, 499])
    assert legend(axes) == ["start", "end"]
    left, right = axes.get_xlim()
    assert left < float(x[[0, 19], :500, 0].min())
    assert right > float(x[[0, 19], :500, 0].max())
    assert plots.walks(MIXTURE.score, x, bounds=(-9, 9, -8, 8)).axes[0].get_xlim() == (-9, 9)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda: plots.trace(torch.zeros(3)), "draws must have shape"),
        (lambda: plots.trace(torch.zeros(3, 4, 7)), "at most 6"),
        (lambda: plots.trace(torch.zeros(3, 4, 2), names=["a"]), "names"),
        (lambda: plots.trace(torch.full((3, 4), torch.nan)), "finite"),
        (lambda: plots.autocorrelation(torch.zeros(3, 4, 1)), r"chain\.draws\[\.\.\., 0\]"),
        (lambda: plots.autocorrelation(torch.zeros(3, 4)), "all equal"),
        (lambda: plots.autocorrelation(torch.rand(3, 4), max_lag=4), "max_lag"),
        (lambda: plots.marginal(torch.zeros(3, 0)), "draws"),
        (lambda: plots.marginal(torch.rand(3, 4), density=lambda x: x[:1]), "density"),
        (lambda: plots.walks(MIXTURE.score, torch.zeros(3, 4)), "draws"),
        (lambda: plots.walks(MIXTURE.score, torch.zeros(3, 1, 2)), "draws"),
    ],
)
def test_bad_draws_are_refused(case, message, as_user):
    with pytest.raises(ValueError, match=message):
        case()


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
    times = torch.linspace(1, 0, 8)
    end = glp.evolve(AnnealedLangevin(1, 0.3), score, 40, times, generator=generator,
                     callback=lambda z, t: states.append(z))  # fmt: skip
    sigmas = [score.schedule(t)[1] for t in times]
    laws = [*(law.noised(1.0, s).log_prob for s in sigmas), law.log_prob]
    path = animate({"one": torch.stack([*states, end]), "the same": torch.stack([*states, end])},
                   tmp_path / "a.gif", density=laws, captions=[f"{i}" for i in range(9)],
                   bounds=BOUNDS, theme=DARK, hold=0.0)  # fmt: skip
    seen = frames(path)
    assert len(seen) == 9
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
