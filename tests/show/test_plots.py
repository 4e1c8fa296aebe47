"""Figures: what is on them, in both themes, and that nothing global is touched."""

import struct
from io import BytesIO

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.quiver import Quiver
from support import autoregression

from gradlogp.distributions.analytic.mixture import GaussianMixture
from gradlogp.show import plots

BOUNDS = (-4, 4, -3, 3)
MIXTURE = GaussianMixture([0.3, 0.7], [[-1.5, -0.8], [1.4, 0.9]], [0.3, 0.4])


@pytest.fixture(autouse=True)
def _arranged_where_it_is_seen(request):
    """Only where pixels are looked at are figures arranged, which takes longer than to draw them."""
    if "theme" not in request.fixturenames:
        request.getfixturevalue("quick_pictures")


def generator():
    return torch.Generator().manual_seed(0)


def points(n, scale=1.0):
    return scale * torch.randn(n, 2, generator=generator())


def chains(*shape):
    return autoregression(shape, 0.8, generator())


def paths(scale):
    start = scale * torch.randn(1, 6, 2, generator=generator())
    return start * torch.linspace(1, 0, 30)[:, None, None]


def digits(n, channels=1):
    return torch.rand(n, channels, 8, 8, generator=generator())


def normal(x):
    return (-x.square() / 2).exp() / (2 * torch.pi) ** 0.5


STEPS = list(range(0, 2000, 10))
FALLING = [10 * 0.97**i + 0.5 for i in range(200)]

FIGURES = {
    "loss_curve": lambda theme: plots.loss_curve(
        STEPS, FALLING, held_out=([0, 1000], [9.0, 0.6], [0.5, 0.1]), floor=0.4, theme=theme
    ),
    "levels": lambda theme: plots.levels(
        [1.0, 0.1], [0.1, 0.2], [0.1, 0.1], limit=1.0, theme=theme
    ),
    "fields": lambda theme: plots.fields(
        [("exact", MIXTURE.score)], bounds=BOUNDS, density=MIXTURE.log_prob, theme=theme
    ),
    "scatter_pair": lambda theme: plots.scatter_pair(points(500), points(400), theme=theme),
    "image_grid": lambda theme: plots.image_grid([("real", digits(4))], theme=theme),
    "trajectories": lambda theme: plots.trajectories(
        paths(9.0), bounds=BOUNDS, density=MIXTURE.log_prob, theme=theme
    ),
    "trace": lambda theme: plots.trace(chains(6, 400, 2), theme=theme),
    "autocorrelation": lambda theme: plots.autocorrelation(
        chains(6, 400, 1)[..., 0], exact=[0.8**k for k in range(80)], theme=theme
    ),
    "marginal": lambda theme: plots.marginal(
        chains(6, 400, 1)[..., 0], density=normal, theme=theme
    ),
    "walks": lambda theme: plots.walks(
        MIXTURE.score, chains(3, 50, 2), density=MIXTURE.log_prob, theme=theme
    ),
    "bars": lambda theme: plots.bars(["one", "other"], [0.5, 0.2], label="distance", theme=theme),
    "shares": lambda theme: plots.shares(["red", "blue"], [0.6, 0.4], [0.5, 0.5], theme=theme),
    "histograms": lambda theme: plots.histograms(
        [("width", points(200)[:, 0], points(300)[:, 1])], theme=theme
    ),
    "correlation_matrices": lambda theme: plots.correlation_matrices(
        ["a", "b"], torch.eye(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]), theme=theme
    ),
    "samples": lambda theme: plots.samples([("real", points(200))], theme=theme),
}


def pixels(data):
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    image = matplotlib.image.imread(BytesIO(data))
    assert image.shape[:2] == struct.unpack(">II", data[16:24])[::-1]
    return image


def texts(axes):
    return [t.get_text() for t in axes.texts]


def legend(axes):
    return [t.get_text() for t in axes.get_legend().get_texts()]


@pytest.mark.parametrize(
    ("name", "theme"),
    [
        pytest.param(
            name, theme, id=f"{name}-{theme.name}",
            marks=[pytest.mark.slow] * (theme is plots.LIGHT and name not in ("levels", "bars")),
        )
        for name in FIGURES for theme in (plots.LIGHT, plots.DARK)
    ],
)  # fmt: skip
def test_both_themes_draw_all_on_their_background_and_leave_no_trace(name, theme):
    before = dict(mpl.rcParams)
    data = plots.png(FIGURES[name](theme), dpi=50)
    assert dict(mpl.rcParams) == before
    image = pixels(data)
    np.testing.assert_allclose(image[-1, -1, :3], to_rgb(theme.background), atol=1 / 255)
    painted = (np.abs(image[..., :3] - to_rgb(theme.background)) > 0.1).any(-1)
    assert 0.005 < painted.mean() < 0.95
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])[:, :3]
    nothing_cut = np.abs(edge - to_rgb(theme.background)) < 0.02
    assert nothing_cut.all() or name == "image_grid"
    if theme is plots.LIGHT:
        assert plots.png(FIGURES[name](theme), dpi=50) == data


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=lambda theme: theme.name)
def test_ramps_are_ordered_and_text_has_contrast(theme):
    def luminance(colour):
        c = np.asarray(to_rgb(colour))
        linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    for ramp in (theme.density_map, theme.time_map):
        steps = np.diff([luminance(ramp(v)[:3]) for v in np.linspace(0, 1, 64)])
        assert (steps < 0).all() or (steps > 0).all()
    assert theme.density[0] == theme.background
    paper = luminance(theme.background)
    for colour, least in [(theme.ink, 12), (theme.muted, 4.5), (theme.real, 3), (theme.model, 3)]:
        low, high = sorted([luminance(colour), paper])
        assert (high + 0.05) / (low + 0.05) > least


# ---------------------------------------------------------------------------- curves


def test_loss_curve_shows_raw_average_held_out_and_floor():
    figure = FIGURES["loss_curve"](plots.LIGHT)
    (axes,) = figure.axes
    assert axes.get_xlabel() == "optimisation step"
    assert legend(axes) == ["training, moving average", "held out, ± standard error"]
    assert texts(axes) == ["exact floor\n0.4"]
    raw, average, *_ = axes.lines
    np.testing.assert_allclose(raw.get_ydata(), FALLING)
    np.testing.assert_allclose(average.get_ydata()[10], np.mean(FALLING[7:14]))
    assert any(np.all(np.asarray(line.get_ydata()) == 0.4) for line in axes.lines)
    assert axes.get_yscale() == "log"


@pytest.mark.parametrize(
    ("loss", "scale"),
    [(FALLING, "log"), ([v - 0.6 for v in FALLING], "linear"), ([1, 2, 3] * 9, "linear")],
)
def test_loss_is_logarithmic_only_if_positive_and_over_a_decade(loss, scale):
    figure = plots.loss_curve(list(range(len(loss))), loss)
    assert figure.axes[0].get_yscale() == scale


def test_loss_curve_keeps_the_floor_in_view_and_its_sign():
    figure = plots.loss_curve(torch.arange(3), torch.tensor([1.0, 2.0, 1.0]), floor=-1.7431)
    assert figure.axes[0].get_ylim()[0] < -1.7431
    assert texts(figure.axes[0]) == ["exact floor\n−1.743"]


def test_loss_curve_counts_what_is_not_finite():
    figure = plots.loss_curve([0, 1, 2], [1.0, float("nan"), 2.0])
    assert legend(figure.axes[0]) == ["training, moving average (1 not finite)"]
    with pytest.raises(ValueError, match="finite"):
        plots.loss_curve([0], [float("inf")])


@pytest.mark.parametrize(("steps", "loss"), [([0, 1], [1.0]), ([], [])])
def test_loss_curve_refuses_lists_that_do_not_fit(steps, loss):
    with pytest.raises(ValueError, match="steps"):
        plots.loss_curve(steps, loss)


def test_levels_has_bars_limit_and_plain_ticks():
    sigmas, excess = torch.logspace(1, -2, 5), torch.tensor([0.01, 0.02, 0.01, -0.01, 0.0])
    figure = plots.levels(sigmas, excess, torch.full((5,), 0.01), limit=0.05)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "linear")
    (bars,) = (c for c in axes.collections if isinstance(c, LineCollection))
    assert len(bars.get_segments()) == 5
    assert texts(axes) == ["limit\n0.05"]
    figure.draw_without_rendering()
    assert {"0.1", "1", "10"} <= {t.get_text() for t in axes.get_xticklabels()}


def test_levels_is_logarithmic_over_a_decade_and_bars_do_not_rule_the_axis():
    figure = plots.levels([1.0, 0.1], [1.0, 0.001], [0.1, 0.01])
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_ylim()[0] > 1e-4


# ---------------------------------------------------------------------------- images


def test_what_is_missing_of_an_image_has_a_colour_of_its_own():
    """NaN is orange; the rest keeps its grey, in the limits that are given."""
    images = torch.full((1, 1, 2, 2), 5.0)
    images[0, 0, 0, 1] = torch.nan
    (axes,) = plots.image_grid([("seen", images)], limits=(0.0, 10.0)).axes
    shown = np.asarray(axes.images[0].get_array())
    assert shown.shape == (2, 2, 3)
    np.testing.assert_allclose(shown[0, 1], to_rgb(plots.LIGHT.model))
    np.testing.assert_allclose(shown[1], 0.5)
    (axes,) = plots.image_grid([("seen", images)]).axes  # of one value only
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array())[1], 0.0)


def test_image_grid_places_every_image_and_wraps_long_rows():
    rows = [("real", digits(3)), ("nearest training image", digits(20)), ("colour", digits(2, 3))]
    figure = plots.image_grid(rows)
    (axes,) = figure.axes
    assert len(axes.images) == 25
    assert texts(axes) == ["real", "nearest\ntraining image", "colour"]
    boxes = [tuple(image.get_extent()) for image in axes.images]
    assert len(set(boxes)) == 25
    assert len({box[0] for box in boxes}) == 16
    assert {image.get_interpolation() for image in axes.images} == {"nearest"}
    width, height = figure.get_size_inches()
    assert all(0 < x0 < x1 <= width and 0 < y0 < y1 <= height for x0, x1, y1, y0 in boxes)


def test_image_grid_takes_the_range_of_the_first_row():
    first = torch.tensor([-1.0, 3.0]).reshape(1, 1, 1, 2)
    second = torch.tensor([1.0, 9.0]).reshape(1, 1, 1, 2)
    axes = plots.image_grid([("a", first), ("b", second)]).axes[0]
    np.testing.assert_allclose(
        [image.get_array().ravel() for image in axes.images], [[0, 1], [0.5, 1]]
    )


def test_image_grid_refuses():
    with pytest.raises(ValueError, match="row"):
        plots.image_grid([])
    with pytest.raises(ValueError, match="flat"):
        plots.image_grid([("flat", torch.zeros(3, 64))])


# ---------------------------------------------------------------------------- the plane


def arrows(axes):
    (quiver,) = (c for c in axes.collections if isinstance(c, Quiver))
    return np.stack([quiver.U, quiver.V], -1), quiver.get_offsets()


def test_fields_share_one_scale_of_arrows():
    twice = lambda x: 2 * MIXTURE.score(x)
    panels = [("s", MIXTURE.score), ("2 s", twice), ("0", torch.zeros_like)]
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


def test_scatter_pair_of_points_that_are_equal():
    constant = torch.zeros(20, 2)
    assert plots.png(plots.scatter_pair(constant, constant), dpi=50)
    with pytest.raises(ValueError, match="samples"):
        plots.scatter_pair(points(5), torch.zeros(0, 2))


def test_trajectories_start_and_end_and_run_from_noise_to_data():
    x = paths(1.0)
    figure = plots.trajectories(x, bounds=BOUNDS, density=MIXTURE.log_prob)
    (axes,) = figure.axes
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
    assert plots.png(plots.scatter_pair(x, x), dpi=50)
    network = torch.nn.Linear(2, 2)
    quivers = plots.fields([("network", network)], bounds=BOUNDS).axes[0].collections
    assert any(isinstance(c, PolyCollection) for c in quivers)
