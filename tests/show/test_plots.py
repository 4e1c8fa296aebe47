"""Figures: what is on them, in both themes, and that nothing global is touched."""

import struct
from io import BytesIO

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb

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


def digits(n, channels=1):
    return torch.rand(n, channels, 8, 8, generator=generator())


def autoregression(n_chains, n_draws, k=1):
    """Draws `(chain, draw, k)` of x' = 0.8 x + 0.6 z."""
    z = torch.randn(n_chains, n_draws, k, generator=generator())
    x = torch.empty_like(z)
    x[:, 0] = z[:, 0]
    for i in range(1, n_draws):
        x[:, i] = 0.8 * x[:, i - 1] + 0.6 * z[:, i]
    return x


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
    "trace": lambda theme: plots.trace(autoregression(6, 400, 2), theme=theme),
    "autocorrelation": lambda theme: plots.autocorrelation(
        autoregression(6, 400)[..., 0], exact=[0.8**k for k in range(80)], theme=theme
    ),
    "marginal": lambda theme: plots.marginal(
        autoregression(6, 400)[..., 0], density=normal, theme=theme
    ),
    "walks": lambda theme: plots.walks(
        MIXTURE.score, autoregression(3, 50, 2), density=MIXTURE.log_prob, theme=theme
    ),
}


def pixels(figure):
    data = plots.png(figure, dpi=50)
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    image = matplotlib.image.imread(BytesIO(data))
    assert image.shape[:2] == struct.unpack(">II", data[16:24])[::-1]
    return image


def texts(axes):
    return [t.get_text() for t in axes.texts]


def legend(axes):
    return [t.get_text() for t in axes.get_legend().get_texts()]


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=lambda theme: theme.name)
@pytest.mark.parametrize("name", FIGURES)
def test_both_themes_draw_on_their_background_and_leave_no_trace(name, theme):
    before = dict(mpl.rcParams)
    figure = FIGURES[name](theme)
    image = pixels(figure)
    assert dict(mpl.rcParams) == before
    np.testing.assert_allclose(image[-1, -1, :3], to_rgb(theme.background), atol=1 / 255)
    painted = (np.abs(image[..., :3] - to_rgb(theme.background)) > 0.1).any(-1).mean()
    assert 0.005 < painted < 0.95
    assert plots.png(FIGURES[name](theme), dpi=50) == plots.png(figure, dpi=50)


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"image_grid"}))
def test_nothing_is_cut_off(name):
    image = pixels(FIGURES[name](plots.LIGHT))[..., :3]
    edge = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert (edge > 0.98).all()


@pytest.mark.parametrize("theme", [plots.LIGHT, plots.DARK], ids=lambda theme: theme.name)
def test_ramps_are_ordered_and_text_has_contrast(theme):
    def luminance(colour):
        c = np.asarray(to_rgb(colour))
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

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
