"""Score fields, points and paths in the plane."""

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.quiver import Quiver

from gradlogp.distributions.analytic.mixture import GaussianMixture
from gradlogp.show import plots

BOUNDS = (-4, 4, -3, 3)
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.5, -0.8], [1.4, 0.9]], [0.3, 0.4])


def generator():
    return torch.Generator().manual_seed(0)


def points(n, scale=1.0):
    return scale * torch.randn(n, 2, generator=generator())


def paths(scale):
    start = scale * torch.randn(1, 6, 2, generator=generator())
    return start * torch.linspace(1, 0, 30)[:, None, None]


def texts(axes):
    return [t.get_text() for t in axes.texts]


def legend(axes):
    return [t.get_text() for t in axes.get_legend().get_texts()]


def arrows(axes):
    (quiver,) = (c for c in axes.collections if isinstance(c, Quiver))
    return np.stack([quiver.U, quiver.V], -1), quiver.get_offsets()


def test_fields_share_one_scale_of_arrows():
    panels = [
        ("s", MIXTURE.score),
        ("2 s", lambda x: 2 * MIXTURE.score(x)),
        ("0", torch.zeros_like),
    ]
    figure = plots.fields(panels, bounds=BOUNDS, density=MIXTURE.log_prob)
    assert [axes.get_title("left") for axes in figure.axes] == ["s", "2 s", "0"]
    assert [axes.get_xlabel() for axes in figure.axes] == ["x₁"] * 3
    assert all(len(axes.images) == 1 for axes in figure.axes)
    (one, at), (two, _), (zero, _) = map(arrows, figure.axes)
    s = MIXTURE.score(torch.tensor(np.asarray(at))).numpy()
    norm, length, double = (np.linalg.norm(v, axis=1) for v in (s, one, two))
    assert (zero == 0).all()
    np.testing.assert_allclose((one * s).sum(1), norm * length, rtol=1e-5)  # parallel
    # length = k |s| / (c + |s|) is linear in (c, k)
    system = np.stack([length, -norm], 1)
    c, k = np.linalg.lstsq(system, -norm * length, rcond=None)[0]
    np.testing.assert_allclose(length, k * norm / (c + norm), rtol=1e-4)
    np.testing.assert_allclose(double, k * 2 * norm / (c + 2 * norm), rtol=1e-4)
    assert k < 8 / 20  # no longer than the spacing


def test_fields_on_points_and_in_axes_of_different_units():
    x = points(300) * torch.tensor([0.3, 5.0])
    figure = plots.fields([("s", lambda x: -x)], bounds=(-1, 1, -12, 12), points=x)
    (axes,) = figure.axes
    assert len(axes.images) == 1
    assert axes.get_box_aspect() == 1
    vectors, at = arrows(axes)
    steep = vectors[np.abs(at[:, 0]) > 0.9]  # −x in units of the frame: (−x₁, −144 x₂)
    assert (np.abs(steep[:, 1]) > 3 * np.abs(steep[:, 0])).mean() > 0.9
    both = plots.fields(
        [("s", MIXTURE.score)], bounds=BOUNDS, points=points(50), density=MIXTURE.log_prob
    )
    assert len(both.axes[0].images) == len(both.axes[0].lines) == 1


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"panels": []}, "one to three"),
        ({"panels": [("s", MIXTURE.score)] * 4}, "one to three"),
        ({"panels": [("bad", lambda x: x[:, 0])]}, "bad"),
        ({"bounds": (1, -1, 0, 1)}, "bounds"),
        ({"density": lambda x: x}, "density"),
        ({"points": torch.zeros(3, 3)}, "points"),
    ],
)
def test_fields_refuses(change, match):
    arguments = {"panels": [("s", MIXTURE.score)], "bounds": BOUNDS} | change
    with pytest.raises(ValueError, match=match):
        plots.fields(arguments.pop("panels"), **arguments)


def test_scatter_pair_frames_both_sets_alike_and_says_what_is_outside():
    real, samples = points(2000), torch.cat([points(950), torch.full((50, 2), 99.0)])
    figure = plots.scatter_pair(real, samples, names=("colour", "magnitude"), invert_y=True)
    left, right, first, second, *_ = figure.axes
    assert [left.get_title("left"), right.get_title("left")] == ["real (held out)", "samples"]
    assert texts(left)[0].startswith("n = 1,000 of 2,000")
    assert texts(right)[0].endswith("% outside")
    assert 5 <= float(texts(right)[0].split("·")[1].split("%")[0]) < 5.5
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()
    assert left.yaxis_inverted()
    assert (left.get_xlabel(), left.get_ylabel()) == ("colour", "magnitude")
    assert (first.get_xlabel(), second.get_xlabel()) == ("colour", "magnitude")
    assert legend(first) == ["real (held out)", "samples"]
    meshes = [
        next(c for c in axes.collections if isinstance(c, QuadMesh)) for axes in (left, right)
    ]
    assert meshes[0].norm is meshes[1].norm
    assert [m.get_array().sum() for m in meshes] == pytest.approx([1000, 950], abs=6)


def test_scatter_pair_of_dots_and_of_sets_that_are_equal():
    figure = plots.scatter_pair(points(50), points(50), density=False, labels=("a", "b"))
    dots = [line for axes in figure.axes[:2] for line in axes.lines]
    assert [len(line.get_xdata()) for line in dots] == [50, 50]
    assert texts(figure.axes[0])[0].startswith("n = 50")
    constant = torch.zeros(20, 2)
    assert plots.png(plots.scatter_pair(constant, constant), dpi=50)
    with pytest.raises(ValueError, match="samples"):
        plots.scatter_pair(points(5), torch.zeros(0, 2))


def test_trajectories_start_and_end_and_run_from_noise_to_data():
    x = paths(1.0)
    figure = plots.trajectories(x, bounds=BOUNDS, density=MIXTURE.log_prob, title="a run")
    (axes,) = figure.axes
    assert axes.get_title("left") == "a run"
    assert legend(axes) == ["start", "end"]
    (lines,) = (c for c in axes.collections if isinstance(c, LineCollection))
    assert len(lines.get_segments()) == 29 * 6
    np.testing.assert_allclose(lines.get_segments()[0], x[:2, 0].double())
    np.testing.assert_allclose(lines.get_array()[:29], np.linspace(0, 1, 29))
    start, end = axes.lines
    np.testing.assert_allclose(start.get_xydata(), x[0].double())
    np.testing.assert_allclose(end.get_xydata(), x[-1].double())
    (bar,) = axes.child_axes
    assert [t.get_text() for t in bar.get_yticklabels()] == ["noise", "data"]


def test_trajectories_from_far_get_a_panel_that_holds_all():
    x = paths(20.0)
    wide, near = plots.trajectories(x, bounds=BOUNDS).axes
    assert near.get_xlim() == BOUNDS[:2]
    assert wide.get_xlim()[0] < x[..., 0].min() < x[..., 0].max() < wide.get_xlim()[1]
    assert wide.get_ylim()[0] < x[..., 1].min() < x[..., 1].max() < wide.get_ylim()[1]


def test_trajectories_thin_out_many_steps_and_refuse_what_diverged():
    figure = plots.trajectories(torch.zeros(5000, 1, 2), bounds=BOUNDS)
    (lines,) = (c for c in figure.axes[0].collections if isinstance(c, LineCollection))
    assert len(lines.get_segments()) == 399
    with pytest.raises(ValueError, match="diverged"):
        plots.trajectories(torch.full((3, 1, 2), float("nan")), bounds=BOUNDS)
    with pytest.raises(ValueError, match="steps, n, 2"):
        plots.trajectories(torch.zeros(3, 2), bounds=BOUNDS)


def test_tensors_that_carry_gradients_are_drawn():
    x = points(30).requires_grad_()
    assert isinstance(
        plots.scatter_pair(x, x, density=False).axes[0].lines[0].get_xdata(), np.ndarray
    )
    network = torch.nn.Linear(2, 2)
    quivers = plots.fields([("network", network)], bounds=BOUNDS).axes[0].collections
    assert any(isinstance(c, PolyCollection) for c in quivers)
