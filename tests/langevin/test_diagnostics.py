"""R-hat and effective sizes beside ArviZ's, and on chains whose effective size is known."""

import warnings

import numpy as np
import pytest
import torch
from support import autoregression

from gradlogp.langevin.diagnostics import ess, mixing, normal_scores


@pytest.mark.parametrize(
    ("n_chains", "n_draws", "phi"),
    [(4, 500, 0.9), (4, 501, -0.5), (2, 7, 0.0), (1, 50, 0.5), (4, 4, 0.0), (3, 5, 0.2),
     (4, 6, 0.0), (8, 33, 0.99), (4, 200, -0.95)],
)  # fmt: skip
def test_the_statistics_are_those_of_arviz(n_chains, n_draws, phi, generator):
    stats = pytest.importorskip("arviz_stats.base").array_stats
    x = autoregression((n_chains, n_draws, 6), phi, generator)
    x[..., 1], x[..., 2], x[..., 3] = (2 * x[..., 1]).round(), x[..., 2].exp(), 7.0  # ties, skew
    x[0, :, 4] += 3
    x[-1, -1, 5] = torch.nan
    y, axes = x.numpy(), {"chain_axis": 0, "draw_axis": 1}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        square = (y - y.mean((0, 1))) ** 2
        theirs = (
            stats.rhat(y, **axes),
            stats.ess(y, method="bulk", **axes),
            stats.ess(y, method="tail", prob=(0.05, 0.95), **axes),
            stats.ess(square, method="bulk", **axes),
            stats.mcse(y, method="mean", **axes),
        )
    mine = mixing(x)
    assert mine.n_split == 2 * n_chains
    for name, a, b in zip(mine._fields[1:6], mine[1:6], theirs, strict=True):
        b = torch.as_tensor(b)
        if name == "r_hat":  # 0/0 where all the draws agree
            b[3] = a[3] = torch.nan
        torch.testing.assert_close(
            a, b, rtol=1e-10, atol=1e-12, equal_nan=True, msg=f"{name}: {a}, {b}"
        )


def test_the_effective_size_of_an_autoregression(generator):
    """N (1 − φ)/(1 + φ)."""
    for phi in (0.6, 0.0, -0.4):
        x = autoregression((8, 8000, 1), phi, generator).permute(2, 0, 1)
        exact = x.numel() * (1 - phi) / (1 + phi)
        assert abs(float(ess(x)) / exact - 1) < 0.06


def test_normal_scores_of_equal_draws_are_equal():
    z = normal_scores(torch.tensor([[[1.0, 3.0, 3.0, 8.0]]]))
    ranks = (torch.tensor([1.0, 2.5, 2.5, 4.0]) - 0.375) / 4.25
    assert torch.allclose(torch.special.ndtr(z), ranks)


def test_few_draws_are_not_judged():
    found = mixing(torch.randn(4, 3, 2))
    assert all(bool(column.isnan().all()) for column in found[1:6])


def test_coordinates_do_not_depend_on_one_another(generator):
    x = autoregression((4, 100, 5), 0.5, generator)
    for whole, one in zip(mixing(x)[1:6], mixing(x[..., 2:3])[1:6], strict=True):
        assert torch.allclose(whole[2], one[0], rtol=1e-12)
