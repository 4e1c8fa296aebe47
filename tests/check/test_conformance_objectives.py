"""Every objective against the public checks, and losses that are wrong in a known way."""

from functools import partial

import pytest
import torch

from gradlogp import objectives
from gradlogp.calculus.reverse import jacobian_trace
from gradlogp.check import ConformanceError, check_objective
from gradlogp.check.conformance.laws import PRECISION
from gradlogp.core import per_sample, randn_like, sum_event
from gradlogp.learn.objectives import weights

MATCHING = ("sliced", "sliced_vr", "finite_difference")
EVERY = {
    name: getattr(objectives, name)
    for name in ("explicit", "implicit", *MATCHING, "denoising", "multilevel")
}
EVERY |= {
    f"{name}, {probe}": partial(getattr(objectives, name), probe=probe)
    for name in MATCHING
    for probe in ("gaussian", "sphere")
}
EVERY |= {
    f"multilevel, {weight.__name__}": partial(objectives.multilevel, weight=weight)
    for weight in (weights.unweighted, weights.x0, weights.v, weights.min_snr)
}
EVERY |= {
    "sliced, 2 slices": partial(objectives.sliced, n_slices=2),
    "denoising, σ = 2": partial(objectives.denoising, sigma=2.0),
    "generalised": partial(objectives.generalised, weight=torch.ones_like),
    "generalised, probed": partial(objectives.generalised, weight=torch.ones_like, n_slices=1),
    "noised": partial(objectives.noised, objectives.sliced_vr),
    "multilevel, likelihood": partial(objectives.multilevel, weight=weights.likelihood),
    "multilevel, stratified": partial(objectives.multilevel, stratified=True),
}
CONSTANTS = {
    "explicit": float(PRECISION.trace()) / 2,
    "denoising": 3 / (2 * 0.6**2),
    "denoising, σ = 2": 3 / 8,
}
ELSEWHERE = {
    "excess": "against an exact score", "implicit_on_sphere": "on a sphere",
    "normal_denoising": "a projection", "tangent_normal_denoising": "noise that depends on x",
    "von_mises_fisher": "a fit", "exponential_family": "a fit", "gaussian_precision": "a fit",
    "kernel_exponential_family": "a fit", "nu_method": "a fit", "spectral_stein": "a fit",
    "stein_gradient": "a fit", "box": "a weight", "half_line": "a weight",
    "tangential": "a field", "draw_times": "times", "masked": "of any part of a row",
}  # fmt: skip
"""Objectives that are not score matching on R^d; each has its closed forms in tests/learn."""


@pytest.mark.parametrize("name", EVERY)
def test_every_objective(name):
    """Its coefficients, its minimiser, and the constant of its docstring."""
    found = check_objective(EVERY[name])
    constant = found["constant"]
    if name in CONSTANTS:
        assert constant.value == pytest.approx(CONSTANTS[name], abs=1e-9)
    elif not name.startswith("multilevel"):
        assert abs(constant.value) < 5 * constant.standard_error + 1e-7
    assert ("mean over drawn times" in found) == name.startswith(("multilevel", "noised"))


def test_none_is_left_out():
    public = {k for k, v in vars(objectives).items() if callable(v) and not isinstance(v, type)}
    assert public == {name.split(",")[0] for name in EVERY} | set(ELSEWHERE)


# ---------------------------------------------------------------------------- wrong losses


def implicit(score, x, trace=1.0, square=0.5, to=lambda loss: loss):
    s, divergence = jacobian_trace(score, x)
    return to(trace * divergence + square * sum_event(s.square()))


def denoising(score, x, *, sigma=0.6, generator=None, target=lambda e, b: e / b, half=0.5):
    eps = randn_like(x, generator)
    return half * sum_event((score(x + sigma * eps) + target(eps, sigma)).square())


def several(score, z, t=None, *, generator=None, of=lambda u: u):
    """A loss over noise levels, whose times are of the test's choice."""
    if t is None:
        u = torch.rand(len(z), generator=generator).to(z)
        t = 1e-3 + (1 - 1e-3) * of(u)
    a, b = (per_sample(v, z) for v in score.schedule(t))
    eps = randn_like(z, generator)
    return 0.5 * sum_event((b * score(a * z + b * eps, t) + eps).square())


WRONG = {
    "of the trace": partial(implicit, trace=-1.0),
    "probes on the unit sphere": partial(implicit, trace=1 / 3),
    "½ left out": partial(implicit, square=1.0),
    "½ twice": partial(implicit, square=0.25),
    "½ of both terms": partial(implicit, trace=0.5),
    "½ of one term alone": partial(implicit, trace=2.0),
    "no divergence": partial(implicit, trace=0.0),
    "a mean over d = 3": partial(implicit, trace=1 / 3, square=1 / 6),
    "depends on θ": lambda score, x: implicit(score, x) + sum_event(score(x).tanh()),
    "or of the noise in the target": partial(denoising, target=lambda e, b: -e / b),
    "ε/σ² for ε/σ": partial(denoising, target=lambda e, b: e / b**2),
    "ε for ε/σ": partial(denoising, target=lambda e, b: e),
    "½ left out ": partial(denoising, half=1.0),
    "mean over the batch": lambda score, x: implicit(score, x).mean(),
    "a sum over one event dimension only: use sum over all dimensions but": lambda score, x: (
        0.5 * score(x).square().sum(1)
    ),
    "no sum over the event: ": lambda score, x: 0.5 * score(x).square(),
    "the sum over the event keeps": lambda score, x: sum_event(score(x).square())[:, None, None],
    "a constant that changes the dtype": lambda score, x: implicit(score, x).double(),
    "coupled batch": lambda score, x: implicit(score, x) + 0.01 * x.mean(),
    "one dimension of the event": lambda score, x: score(x).square().flatten(2).mean(-1).sum(-1)
    if x.ndim > 2 else 0.5 * score(x).square().sum(1),
    r"detach\(\)": lambda score, x: implicit(score, x).detach(),
    "density is not divided out": partial(several, of=lambda u: u**2),
}  # fmt: skip


def test_losses_of_ones_own():
    for loss in (implicit, denoising):
        check_objective(loss)


@pytest.mark.parametrize("likely", WRONG)
def test_what_is_wrong_is_named(likely):
    with pytest.raises(ConformanceError, match=likely):
        check_objective(WRONG[likely])


@pytest.mark.usefixtures("as_user")
def test_what_is_no_objective_is_refused():
    with pytest.raises(ValueError, match="o must be a function"):
        check_objective(3)
