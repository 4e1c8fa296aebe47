"""Methods whose time grows faster than the number of points say so, above a number with a name."""

import importlib
import warnings

import pytest
import torch

import gradlogp as glp
from gradlogp import metrics, objectives

X = torch.randn(24, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LAW = glp.Gaussian([0.0, 0.0])

COSTS = {
    "ksd": (
        "check.metrics.ksd.MANY_POINTS", 12,
        lambda x: metrics.ksd(LAW.score, x, n_bootstrap=2), "mean_score",
    ),
    "mmd": (
        "check.metrics.two_sample.MANY_POOLED", 24,
        lambda x: metrics.mmd(x, x + 0.1, n_permutations=2), "sliced_wasserstein",
    ),
    "nearest_neighbours": (
        "check.metrics.memorisation.MANY_POINTS", 12,
        lambda x: metrics.nearest_neighbours(x, x + 0.1, x - 0.1), "random subset",
    ),
    "denoising_gap": (
        "check.metrics.memorisation.MANY_POINTS", 12,
        lambda x: metrics.denoising_gap(lambda y: y / 2, x, x + 0.1, 0.3), "random subset",
    ),
    "Empirical": (
        "distributions.analytic.empirical.MANY_DATA", 12, glp.Empirical, "fit",
    ),
    "EmpiricalScore": (
        "distributions.analytic.empirical.MANY_DATA", 12,
        lambda x: glp.EmpiricalScore(x, glp.schedules.VP()), "fit",
    ),
    "stein_gradient": (
        "learn.objectives.kernel_scores.MANY_UNKNOWNS", 12,
        lambda x: objectives.stein_gradient(x, 0.1), "fit",
    ),
    "kernel_exponential_family": (
        "learn.objectives.kernel_scores.MANY_UNKNOWNS", 24,
        lambda x: objectives.kernel_exponential_family(x, 0.1), "fit",
    ),
    "spectral_stein": (
        "learn.objectives.kernel_scores.MANY_UNKNOWNS", 12,
        lambda x: objectives.spectral_stein(x, 3), "fit",
    ),
    "nu_method": (
        "learn.objectives.kernel_scores.MANY_UNKNOWNS", 24,
        lambda x: objectives.nu_method(x, 3), "fit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTS)
def test_a_large_number_of_points_is_warned_of(name, monkeypatch):
    constant, most, call, instead = COSTS[name]
    module, _, attribute = f"gradlogp.{constant}".rpartition(".")
    owner = importlib.import_module(module)
    assert getattr(owner, attribute) >= 3000
    monkeypatch.setattr(owner, attribute, most)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(X[:12])
    with pytest.warns(UserWarning, match=f"is slow, above {most}: .*{instead}"):
        call(X[:14])


def test_chunks_follow_the_number_of_points():
    assert glp.Empirical(X).chunk_size > 1000 * glp.Empirical(X.repeat(2000, 1)).chunk_size
