"""Every public name meets hostile arguments: our refusal that names the argument, or a finite result.

`door_support` finds the names, makes the arguments and judges.
"""

import contextlib
import importlib
import io
import itertools
import math
import warnings
import zlib

import numpy as np
import pytest
import torch
from door_support import BY_BOTH, HOSTILE, X, call, called, judge, judged, parameters, public_names

import gradlogp as glp
from gradlogp import metrics, objectives
from gradlogp.core import check_count, check_points

FEW = 6
"""Hostile arguments for every parameter in the fast walk, others for every parameter."""

DEAR = (
    "survey", "table", "mixture_weight", "score_samples", "ScoreEstimator.score", "log_likelihood",
    "fisher_information", "variational_bound", "compare", "ScoreEstimator.fit", "tune_mclmc",
    "TableEstimator.fit", "TableEstimator.sample", "TableEstimator.impute", "fitted",
)  # fmt: skip
"""Where an accepted argument takes tens of milliseconds; these are walked when there is time."""

NOT_CALLED = {
    "learn.data.loading.load": "reads files: learn/test_data.py has hostile ones",
    "scores.diffusers.from_diffusers": "takes models of another library, as its own tests do",
}
"""Functions and constructors that are not walked, and why."""


def walk(paths, few=None):
    """Return what is wrong, a line each, and how many calls were made."""
    wrong, n = [], 0
    for path, f, given in paths:
        for name in given:
            start = zlib.crc32(f"{path}.{name}".encode()) % len(HOSTILE)
            chosen = itertools.islice(
                itertools.cycle(HOSTILE), start, start + (few or len(HOSTILE))
            )
            for hostile in chosen:
                with contextlib.redirect_stdout(io.StringIO()):
                    found = judge(path, f, given, name, hostile)
                n += 1
                if found:
                    wrong.append(f"{path}({name}={hostile.name}): {found}"[:300])
    return wrong, n


pytestmark = pytest.mark.usefixtures("as_user", "few_levels")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A text that is not an existing path is that of a new folder."""
    monkeypatch.chdir(tmp_path)


def test_every_function_and_constructor_is_called():
    """The tables of valid arguments know all but a short list, and most methods too."""
    good, bad = called()
    missing = {path: why for path, f, why in bad if path in public_names()}
    assert set(missing) == set(NOT_CALLED), missing
    assert len(good) > 0.8 * (len(good) + len(bad))
    assert len(good) > 400


def test_no_door_lets_a_hostile_argument_through():
    good, _ = called()
    wrong, n = walk([d for d in good if not d[0].endswith(DEAR)], FEW)
    assert n > 5000
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_all_hostile_arguments_at_all_doors():
    wrong, _ = walk(called()[0])
    assert not wrong, "\n".join(wrong)


def test_known_members_are_refused():
    """What once gave numbers for NaN rows and empty batches, by name."""
    nan, empty = X.clone(), X[:0]
    nan[3, 1] = torch.nan
    score = torch.neg
    calls = {
        "mean_score": lambda x: glp.metrics.mean_score(score, x),
        "fisher_divergence": lambda x: glp.metrics.fisher_divergence(score, score, x),
        "fisher_information": lambda x: glp.metrics.fisher_information(score, x),
        "conservativity": lambda x: glp.metrics.conservativity(score, x),
        "intrinsic_dimension": lambda x: glp.geometry.intrinsic_dimension(score, x, 0.1),
        "tangent_space": lambda x: glp.geometry.tangent_space(score, x, 0.1),
        "project": lambda x: glp.geometry.project(score, x, 0.1),
        "find_modes": lambda x: glp.find_modes(glp.Gaussian([0.0, 0.0]), x),
        "noise_levels": lambda x: glp.noise_levels(x, tell=None),
        "run": lambda x: glp.run(glp.langevin.ULA(0.1), glp.Gaussian([0.0, 0.0]), x, 3),
    }
    for f in calls.values():
        f(X)
        for x, message in ((nan, "1 of 12 rows that are not finite"), (empty, "is empty")):
            with pytest.raises(ValueError, match=message):
                f(x)


OUT_OF_RANGE = {
    ("chunk_size", "max_steps", "n_probes", "n_slices", "n_strata", "stack", "max_depth"): (
        0, -1, 1.5, True,
    ),
    ("n_cells", "n_bisections", "n_projections", "n_bootstrap", "max_evaluations", "width", "depth",
     "patch", "blocks", "batch_size", "n_leapfrog", "n_particles", "n_simulations", "n_draws",
     "n_perturbations", "n_permutations", "n_steps", "n_levels", "max_points", "every", "epochs",
     "n_chains", "swap_every", "n_resamples", "folds", "n_eigen", "iterations", "factors", "dim"): (0,),
    ("step_size", "tolerance", "radius", "prior_scale", "bandwidth", "friction", "mass"): (
        0.0, -1.0, math.nan,
    ),
    ("temperature", "decoherence_length", "zeta", "eta", "sigma", "gamma", "ridge"): (-1.0,),
    ("on_nonfinite", "probe", "integrator", "estimator", "method", "boundary", "predicts", "scales",
     "correction", "rule", "variance", "shape", "divergence", "scheme"): ("none such",),
    ("beta_min", "data_var", "max_energy_error", "flip", "accuracy", "alpha_min", "sigma_min",
     "regularizer", "step", "trajectory"): (0.0,),
}  # fmt: skip
"""Parameters, by name, and values that no function takes."""


def test_what_is_out_of_range_is_refused_by_name():
    values = {name: bad for group, bad in OUT_OF_RANGE.items() for name in group}
    wrong = []
    for path, f, given in called()[0]:
        for name in values.keys() & given.keys():
            for value in values[name] if judged(path, f, name) else ():
                try:
                    call(f, given | {name: value})
                    wrong.append(f"{path}({name}={value!r}) was accepted")
                except ValueError as error:
                    if name not in str(error):
                        wrong.append(f"{path}({name}={value!r}): {error}")
    assert not wrong, "\n".join(wrong)


# ---------------------------------------------------------------------------- the walk itself


def sloppy(x: torch.Tensor, n: int) -> float:
    return float(x[:n].mean())


def lenient(x: torch.Tensor, n: int) -> float:
    """Refuses what is not a tensor, and lets NaN through."""
    if not isinstance(x, torch.Tensor):
        raise ValueError(f"x must be a tensor, got {x!r}")
    return float(np.nan_to_num(x.detach().double().sum().item()))


def nameless(x: torch.Tensor, n: int) -> float:
    raise ValueError("something is wrong")


def tight(x: torch.Tensor, n: int) -> float:
    check_points(x)
    check_count(n, "n", most=12)
    return float(x.flatten(1)[:n].mean())


@pytest.mark.parametrize(
    ("f", "complaints"),
    [
        (sloppy, {"TypeError from elsewhere", "AttributeError", "NaN without a word"}),
        (lenient, {"accepted"}),
        (nameless, {"does not name"}),
        (tight, set()),
    ],
)
def test_the_walk_sees_a_sloppy_function(f, complaints, monkeypatch):
    monkeypatch.setattr("door_support.SOURCE", (str(glp.__path__[0]), __file__))
    wrong, _ = walk([(f"here.{f.__name__}", f, {"x": X, "n": 4})])
    for complaint in complaints:
        assert any(complaint in line for line in wrong), complaint
    assert complaints or not wrong, wrong


def test_the_tables_are_used():
    """A valid argument that belongs to no parameter is a leftover of one that is gone."""
    every = [*itertools.chain(*called())]
    known = {f"{path.rpartition('.')[2]}.{p.name}" for path, f, _ in every for p in parameters(f)}
    known |= {
        f"{'.'.join(path.split('.')[-2:])}.{p.name}" for path, f, _ in every for p in parameters(f)
    }
    assert set(BY_BOTH) <= known, set(BY_BOTH) - known


POINTS = torch.randn(24, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
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
        call(POINTS[:12])
    with pytest.warns(UserWarning, match=f"is slow, above {most}: .*{instead}"):
        call(POINTS[:14])


def test_chunks_follow_the_number_of_points():
    assert (
        glp.Empirical(POINTS).chunk_size > 1000 * glp.Empirical(POINTS.repeat(2000, 1)).chunk_size
    )
