"""Figures of chains: that what is drawn is what the chains did."""

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.contour import ContourSet
from matplotlib.quiver import Quiver

from gradlogp import GaussianMixture
from gradlogp.show import plots
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
