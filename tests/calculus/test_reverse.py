"""Derivatives of fields whose Jacobians are known, and Var vᵀAv of the probes."""

import pytest
import torch

from gradlogp.calculus.reverse import (
    hutchinson_trace,
    jacobian,
    jacobian_trace,
    probe,
    score_from_log_prob,
)
from gradlogp.core import Streams

EVENTS = [(2,), (3, 4), (1, 2, 2)]
LAWS = ["gaussian", "rademacher", "sphere"]
by_event = pytest.mark.parametrize("event", EVENTS, ids=str)


def close(actual, expected, rtol=1e-12, atol=1e-12):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


def linear(event, g):
    """Return x -> A x + c on flattened events, and A, which is not symmetric."""
    d = torch.Size(event).numel()
    A, c = torch.randn(d, d, generator=g), torch.randn(d, generator=g)
    return lambda x: (x.flatten(1) @ A.T + c).reshape(x.shape), A


def swirl(x):
    """A nonlinear field: s_i = sin(x_i) x_{i+1}, with indices in a ring."""
    y = x.flatten(1)
    return (y.sin() * y.roll(-1, 1)).reshape(x.shape)


def swirl_jacobian(x):
    y = x.flatten(1)
    d = y.shape[1]
    J = torch.diag_embed(y.cos() * y.roll(-1, 1))
    for i in range(d):
        J[:, i, (i + 1) % d] += y[:, i].sin()
    return J


# ---------------------------------------------------------------------------- scores


@by_event
def test_score_of_a_log_density(event, generator):
    x = torch.randn(5, *event, generator=generator)
    d = x[0].numel()
    P = torch.randn(d, d, generator=generator)
    P = P @ P.T
    quadratic = lambda y: -0.5 * torch.einsum("bi,ij,bj->b", y.flatten(1), P, y.flatten(1)) + 7.0
    close(score_from_log_prob(quadratic)(x), -(x.flatten(1) @ P).reshape(x.shape))
    student = lambda y: -3.0 * (1 + y.flatten(1).square().sum(1)).log()
    radius2 = x.flatten(1).square().sum(1).reshape(-1, *[1] * len(event))
    score = score_from_log_prob(student)
    close(score(x), -6.0 * x / (1 + radius2))
    with torch.no_grad():
        close(score(x), -6.0 * x / (1 + radius2))
    close(score(x[2:3])[0], score(x)[2])


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("log_prob", "shape"),
    [
        (lambda x: -x, r"\(4, 3\)"),
        (lambda x: -x.square().sum(1, keepdim=True), r"\(4, 1\)"),
        (lambda x: -x.square().sum(), r"\(\)"),
    ],
)
def test_a_log_density_gives_one_number_per_sample(log_prob, shape):
    with pytest.raises(ValueError, match=rf"shape \(4,\).*got {shape}.*pass it as score="):
        score_from_log_prob(log_prob)(torch.zeros(4, 3))


# ---------------------------------------------------------------------------- Jacobians


@by_event
@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_exact_divergence(event, chunk_size, generator):
    x = torch.randn(5, *event, generator=generator)
    s, A = linear(event, generator)
    value, trace = jacobian_trace(s, x, chunk_size=chunk_size)
    close(value, s(x))
    close(trace, A.trace().expand(5))
    value, trace = jacobian_trace(swirl, x, chunk_size=chunk_size)
    close(value, swirl(x))
    y = x.flatten(1)
    close(trace, (y.cos() * y.roll(-1, 1)).sum(1))
    close(jacobian_trace(lambda y: 0 * y, x, chunk_size=chunk_size)[1], torch.zeros(5))


@by_event
def test_jacobian(event, generator):
    x = torch.randn(5, *event, generator=generator)
    s, A = linear(event, generator)
    close(jacobian(s, x), A.expand(5, *A.shape))  # [i, j] = ds_i/dx_j, not the transpose
    assert (A - A.T).abs().max() > 0.1
    close(jacobian(swirl, x), swirl_jacobian(x))
    h = 1e-5
    for j in range(x[0].numel()):
        e = h * torch.eye(x[0].numel())[j].reshape(event)
        slope = (swirl(x + e) - swirl(x - e)).flatten(1) / (2 * h)
        close(jacobian(swirl, x)[:, :, j], slope, rtol=1e-8, atol=1e-8)


def test_divergence_has_gradients(generator):
    w = torch.randn(3, generator=generator, requires_grad=True)
    x = torch.randn(4, 3, generator=generator)
    _, trace = jacobian_trace(lambda y: w * y**3, x)
    trace.sum().backward()
    close(w.grad, 3 * x.square().sum(0))


def test_divergence_of_one_sample_does_not_depend_on_the_others(generator):
    x = torch.randn(5, 3, generator=generator)
    _, trace = jacobian_trace(swirl, x)
    for i in range(5):
        close(jacobian_trace(swirl, x[i : i + 1])[1][0], trace[i])


@by_event
def test_hutchinson_is_the_quadratic_form(event, generator):
    x = torch.randn(4, *event, generator=generator)
    probes = torch.randn(6, 4, *event, generator=generator)
    v = probes.flatten(2)
    s, A = linear(event, generator)
    for field, J in ((s, A.expand(4, *A.shape)), (swirl, swirl_jacobian(x))):
        value, forms = hutchinson_trace(field, x, probes)
        close(value, field(x))
        close(forms, torch.einsum("pbi,bij,pbj->pb", v, J, v))
    # along the basis vectors the forms add up to the divergence
    d = x[0].numel()
    basis = torch.eye(d).reshape(d, 1, *event).expand(d, 4, *event)
    close(hutchinson_trace(swirl, x, basis)[1].sum(0), jacobian_trace(swirl, x)[1])


@pytest.mark.usefixtures("as_user")
def test_refuses_bad_shapes():
    x = torch.zeros(4, 3)
    for f in (jacobian_trace, jacobian):
        with pytest.raises(ValueError, match=r"x must have shape \(B, \*event\)"):
            f(swirl, torch.zeros(4))
    with pytest.raises(
        ValueError, match=r"the score \(a vector field\) returned shape \(4, 1\) for x of \(4, 3\)"
    ):
        jacobian_trace(lambda y: y.sum(1, keepdim=True), x)
    for probes in (torch.zeros(4, 3), torch.zeros(2, 4, 2), torch.zeros(0, 4, 3)):
        with pytest.raises(ValueError, match=r"probes must have shape \(n_probes, 4, 3\)"):
            hutchinson_trace(swirl, x, probes)
    with pytest.raises(ValueError, match="probe must be 'gaussian', 'rademacher' or 'sphere'"):
        probe("uniform", x)


# ---------------------------------------------------------------------------- probes


def z_score(values, expected):
    """(mean - expected) in standard errors, along the first axis."""
    error = values.std(0) / len(values) ** 0.5
    return (values.mean(0) - expected) / error.clamp(min=1e-12)


@pytest.mark.parametrize("law", LAWS)
def test_probes_have_identity_covariance(law, generator):
    v = probe(law, torch.empty(40_000, 2, 2), generator).flatten(1)
    assert z_score(v, 0.0).abs().max() < 4.5
    products = (v[:, :, None] * v[:, None]).flatten(1)
    # where a square is constant its error is rounding
    assert z_score(products, torch.eye(4).flatten()).abs().max() < 4.5
    assert z_score(products, torch.eye(4).flatten() / 4).abs().max() > 50  # the unit sphere


def test_the_laws_are_what_they_are_called(generator):
    like = torch.empty(2000, 3, 2)
    sphere = probe("sphere", like, generator)
    close(sphere.flatten(1).norm(dim=1), torch.full((2000,), 6**0.5))
    assert probe("rademacher", like, generator).unique().tolist() == [-1.0, 1.0]
    # fourth moments: 3 for the normal law, 1 for +-1, 3 d/(d + 2) on the sphere
    for law, fourth in (("gaussian", 3.0), ("rademacher", 1.0), ("sphere", 18 / 8)):
        v = probe(law, torch.empty(40_000, 6), generator)
        assert abs(float(z_score(v[:, 0] ** 4, fourth))) < 4.5


def test_rademacher_is_exact_on_a_diagonal_jacobian(generator):
    x = torch.randn(7, 5, generator=generator)
    v = probe("rademacher", x, generator)[None]
    close(hutchinson_trace(torch.sin, x, v)[1][0], x.cos().sum(1))
    with torch.inference_mode():
        close(hutchinson_trace(torch.sin, x.clone(), v.clone())[1][0], x.cos().sum(1))


@pytest.mark.parametrize("law", LAWS)
def test_probes_are_reproducible_and_follow_the_input(law):
    like = torch.empty(5, 3, dtype=torch.float32)
    a, b = (probe(law, like, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.dtype == torch.float32
    whole = probe(law, torch.empty(1500, 3), Streams(5, 0, 1500, 1500))
    part = probe(law, torch.empty(500, 3), Streams(5, 1000, 1500, 1500))
    assert torch.equal(whole[1000:], part)
