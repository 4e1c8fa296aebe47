"""Score matching without noise: values, minimisers, estimator laws, and what is refused."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from support import COV, MEAN, close, gauss_hermite, z_score

from gradlogp import Gaussian, as_score, as_target, objectives
from gradlogp.calculus.reverse import GradientField
from gradlogp.noise.schedules import VP

W = torch.tensor([[-0.9, 0.4], [-0.2, -1.7]], dtype=torch.float64)
C = torch.tensor([0.3, -0.5], dtype=torch.float64)
P = torch.linalg.inv(COV)
LAWS = ["gaussian", "rademacher", "sphere"]
ESTIMATES = ["sliced", "sliced_vr", "finite_difference"]


def affine(W, c):
    return lambda x: x @ W.mT + c


def values(S=COV):
    """ISM, ESM and ½ E‖s‖² of s = W x + c on N(MEAN, S) (Hyvärinen, 2005)."""
    v = W @ MEAN + C
    ism = torch.trace(W) + 0.5 * (torch.trace(W @ S @ W.mT) + v @ v)
    esm = 0.5 * (torch.trace((W + P) @ S @ (W + P).mT) + v @ v)
    return ism, esm, torch.trace(P) / 2


def quadrature():
    nodes, weight = gauss_hermite(2)
    return MEAN + nodes @ torch.linalg.cholesky(COV).mT, weight


# ---------------------------------------------------------------------------- values


def test_energies_and_their_laplacian():
    x, weight = quadrature()
    A = torch.tensor([[2.0, 0.3], [0.3, 0.7]])
    energy = lambda y: 0.5 * ((y - 1) @ A * (y - 1)).sum(1)
    v = -A @ (MEAN - 1)
    expected = -torch.trace(A) + 0.5 * (torch.trace(A @ COV @ A) + v @ v)
    for score in (GradientField(lambda y: -energy(y)), as_target(energy=energy).score):
        close(weight @ objectives.implicit(score, x), expected, 1e-12)
    # downhill: with the sign turned the trace changes sign and the norm does not
    wrong = weight @ objectives.implicit(GradientField(energy), x)
    close(wrong - expected, 2 * torch.trace(A), 1e-12)


def test_slices_are_averaged(generator):
    x = Gaussian(MEAN, COV).sample(20_000, generator=generator)
    for name in ESTIMATES:
        one, ten = (
            getattr(objectives, name)(
                affine(W, C), x[:1].expand(20_000, 2), n, generator=generator
            )
            for n in (1, 10)
        )
        ratio = float((one.var() / ten.var()).detach())
        assert abs(ratio - 10) < 10 * 4 * math.sqrt(4 / 20_000) * 2, (name, ratio)


def cubic(x):
    return -(x**3) - x


def test_finite_differences_have_no_first_order_bias(generator):
    x = torch.randn(2000, 3, generator=generator)
    same = lambda: torch.Generator().manual_seed(1)
    exact = objectives.sliced_vr(cubic, x, generator=same()).mean()
    errors = [
        float(objectives.finite_difference(cubic, x, step=h, generator=same()).mean() - exact)
        for h in (0.2, 0.1, 0.05)
    ]
    for coarse, fine in pairwise(errors):
        assert abs(math.log2(coarse / fine) - 2) < 0.05
    default = objectives.finite_difference(cubic, x, generator=same())
    close(default.mean(), exact, 1e-8)
    in_single = objectives.finite_difference(cubic, x.float(), generator=same())
    assert in_single.dtype == torch.float32
    close(in_single.mean(), exact.float(), 2e-4)
    # far from the origin the step grows with x, so that x ± h v differ from x
    shifted = lambda y: 1e6 - y
    far = objectives.finite_difference(shifted, x.float() + 1e6, generator=same())
    exact = objectives.sliced_vr(shifted, x.float() + 1e6, generator=same())
    close(far.mean(), exact.mean(), 1e-3)


# ---------------------------------------------------------------------------- boundaries


def test_generalised_matching_is_its_formula(generator):
    x = torch.rand(7, 2, generator=generator)
    score = lambda y: -y.exp() + y.roll(1, 1)
    g, dg = x * x, 2 * x
    expected = (dg * score(x) - g * x.exp() + 0.5 * g * score(x) ** 2).sum(1)
    close(objectives.generalised(score, x), expected, 1e-12)
    g, dg = (x + 1) * (3 - x), 2 - 2 * x
    expected = (dg * score(x) - g * x.exp() + 0.5 * g * score(x) ** 2).sum(1)
    close(objectives.generalised(score, x, objectives.box(-1, 3)), expected, 1e-12)
    ones = objectives.generalised(score, x, torch.ones_like)
    close(ones, objectives.implicit(score, x), 1e-12)
    many = objectives.generalised(score, x[:1].expand(20_000, 2), n_slices=1, generator=generator)
    assert abs(z_score(many, float(objectives.generalised(score, x[:1])))) < 4


# ---------------------------------------------------------------------------- bad input


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize("name", ["implicit", "explicit", "generalised", "denoising", *ESTIMATES])
def test_bad_input_is_refused_by_name(name):
    f = getattr(objectives, name)
    extra: dict[str, Any] = {}
    if name == "explicit":
        extra["target_score"] = lambda y: -y
    if name == "denoising":
        extra["sigma"] = 0.5
    good = lambda y: -y
    cases = [
        (torch.ones(3), r"x must have shape \(B, \*event\)"),
        (torch.ones(3, 2, dtype=torch.int64), "x must be floating point"),
        (torch.ones(0, 2), "x is empty"),
        (torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), "x has 1 of 2 rows that are not finite"),
        (torch.tensor([[1.0, torch.inf], [torch.inf, 1.0]]), "x has 2 of 2 rows"),
        ([[1.0, 2.0]], "x must be a torch.Tensor, got list"),
    ]
    for x, message in cases:
        with pytest.raises(ValueError, match=message):
            f(good, x, **extra)
    wrong = [lambda y: -y[:, :1], lambda y: -y.sum(1), lambda y: -y[:, None]]
    for score in wrong:  # (B, 1, d) would broadcast to (B, B, d)
        with pytest.raises(ValueError, match=r"returned shape \(4.*for x of \(4, 2\)|size"):
            f(score, torch.rand(4, 2), **extra)
    large = torch.tensor([[3e38, 3e38], [0.5, 0.5]]).float() * 0.9e-19  # its squares overflow
    if name == "generalised":
        with pytest.raises(ValueError, match="weight has 1 of 2 rows that are not finite"):
            f(good, large, **extra)
    else:
        assert not f(good, large, **extra).isnan().any()


@pytest.mark.usefixtures("as_user")
def test_bad_options_are_refused_by_name():
    x, s = torch.rand(4, 2), lambda y: -y
    for name in ESTIMATES:
        f = getattr(objectives, name)
        for n in (0, -1, 1.5, True):
            with pytest.raises(ValueError, match="n_slices must be an integer of at least 1"):
                f(s, x, n)
        with pytest.raises(
            ValueError,
            match="probe must be 'gaussian', 'rademacher' or 'sphere', got 'unit sphere'",
        ):
            f(s, x, 1, "unit sphere")
    for step in (0.0, -1e-3, float("nan"), float("inf"), torch.ones(4)):
        with pytest.raises(ValueError, match="step must be positive"):
            objectives.finite_difference(s, x, step=step)
    with pytest.raises(ValueError, match="target_score returned shape"):
        objectives.explicit(s, x, lambda y: y.sum(1))
    for sigma in (0.0, -0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="sigma must be positive"):
            objectives.denoising(s, x, sigma)
    with pytest.raises(ValueError, match=r"x must be non-negative, got a minimum of -0\.5"):
        objectives.generalised(s, x - 0.5 - x.min())
    with pytest.raises(ValueError, match=r"x must lie in \[0.0, 0.1\]"):
        objectives.generalised(s, x + 1, objectives.box(0.0, 0.1))
    with pytest.raises(ValueError, match="low must be below high"):
        objectives.box(1.0, 1.0)
    with pytest.raises(ValueError, match="weight must be at least 0"):
        objectives.generalised(s, x, lambda y: -y)
    with pytest.raises(ValueError, match="weight varies with x, but not through differentiable"):
        objectives.generalised(s, x, lambda y: y.detach() ** 2)
    for number in (lambda y: 1.0, lambda y: None):
        for name in ("implicit", "sliced", "finite_difference", "generalised"):
            says = r"must return a torch\.Tensor, got|returned shape (float|NoneType)"
            with pytest.raises(ValueError, match=says):
                getattr(objectives, name)(number, x)
    with pytest.raises(ValueError, match=r"t must be a torch\.Tensor, got 0\.5"):
        objectives.multilevel(as_score(lambda y, t: -y, "score", VP()), x, 0.5)
    with pytest.raises(ValueError, match="weight returned shape"):
        objectives.generalised(s, x, lambda y: y.sum(1))
    cut = lambda y: -y.detach()
    for name in ("implicit", "generalised", "sliced", "sliced_vr"):
        with pytest.raises(ValueError, match="does not depend on x through differentiable"):
            getattr(objectives, name)(cut, x)
