"""Rotation of vector fields, and log-density differences along paths, against exact values."""

import math
from functools import partial

import pytest
import torch
from support import COV, MEAN, close

from gradlogp import Gaussian, GaussianMixture, as_target
from gradlogp.check.metrics.fields import conservativity, log_density_difference
from gradlogp.core import Streams

MIXTURE = GaussianMixture(
    [0.3, 0.7], [[-1.0, 0.5], [2.0, 0.0]], [COV.tolist(), [[0.6, 0.0], [0.0, 1.0]]]
)
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


def swirl(x):
    """A field with a Jacobian that is neither symmetric nor constant, and known below."""
    u, v = x[:, 0], x[:, 1]
    return torch.stack([u * v, v.sin() + u**2], 1)


def swirl_jacobian(x):
    u, v = x[:, 0], x[:, 1]
    return torch.stack([torch.stack([v, u], 1), torch.stack([2 * u, v.cos()], 1)], 1)


# ---------------------------------------------------------------------------- conservativity


@pytest.mark.parametrize("n_probes", [None, 3])
def test_a_gradient_has_no_rotation(n_probes, generator):
    x = torch.randn(7, 2, generator=generator)
    energy = as_target(energy=lambda x: (x**4).sum(1) + x.prod(1))
    for score in (Gaussian(MEAN, COV).score, MIXTURE.score, energy.score):
        result = conservativity(score, x, n_probes, generator=generator)
        assert 0 <= result.rotation.value < 1e-20
        assert 0 <= result.ratio.value < 1e-20
    # in one dimension every field is a gradient
    assert conservativity(lambda x: x.sin(), x[:, :1], n_probes, generator=generator).ratio[0] == 0


@pytest.mark.parametrize("n_probes", [None, 2])
def test_an_antisymmetric_field_is_all_rotation(n_probes, generator):
    A = torch.randn(6, 6, generator=generator)
    A = A - A.mT
    x = torch.randn(5, 2, 3, generator=generator)
    score = lambda x: (x.flatten(1) @ A.mT).reshape(x.shape)
    result = conservativity(score, x, n_probes, generator=generator)
    close(result.ratio.value, 1.0, 1e-12)
    if n_probes is None:
        close(result.rotation.value, A.square().sum(), 1e-12)
        assert result.rotation.standard_error < 1e-10


def test_an_affine_field_is_exact(generator):
    W = torch.randn(4, 4, generator=generator)
    x = torch.randn(9, 4, generator=generator)
    result = conservativity(lambda x: x @ W.mT + 1.0, x, chunk_size=4)
    close(result.rotation.value, ((W - W.mT) / 2).square().sum(), 1e-12)
    close(result.ratio.value, ((W - W.mT) / 2).square().sum() / W.square().sum(), 1e-12)
    assert result.ratio.standard_error < 1e-12


def test_a_nonlinear_field_and_its_error_bars(generator):
    x = torch.randn(300, 2, generator=generator)
    J = swirl_jacobian(x)
    rotation = ((J - J.mT) / 2).square().sum((1, 2))
    close(rotation, x[:, 0] ** 2 / 2, 1e-14)
    total = J.square().sum((1, 2))
    result = conservativity(swirl, x, chunk_size=77)
    close(result.rotation.value, rotation.mean(), 1e-12)
    close(result.rotation.standard_error, rotation.std() / math.sqrt(300), 1e-12)
    close(result.ratio.value, rotation.mean() / total.mean(), 1e-12)
    # leave-one-out: the jackknife error of a ratio agrees with the delta method to O(1/n)
    left_out = (rotation.sum() - rotation) / (total.sum() - total)
    jackknife = ((left_out - left_out.mean()).square().sum() * 299 / 300).sqrt()
    close(result.ratio.standard_error / jackknife, 1.0, 0.02)


def test_probes_are_unbiased_and_independent_of_chunks(generator):
    x = torch.randn(20_000, 2, generator=generator)
    exact = conservativity(swirl, x, chunk_size=20_000)
    x3 = torch.cat([x, x[:, :1] ** 2], 1)
    W = torch.randn(3, 3, generator=generator)
    probed = conservativity(lambda x: x @ W.mT, x3, 1, generator=generator, chunk_size=20_000)
    expected = ((W - W.mT) / 2).square().sum()
    assert abs(probed.rotation.value - expected) < 4.5 * probed.rotation.standard_error
    ratio = expected / W.square().sum()
    assert abs(probed.ratio.value - ratio) < 4.5 * probed.ratio.standard_error
    assert probed.rotation.standard_error > 0
    # in two dimensions ‖(J − Jᵀ)v‖² is the same for all v = (±1, ±1)
    by_probe = conservativity(swirl, x, 2, generator=generator, chunk_size=20_000)
    close(by_probe.rotation.value, exact.rotation.value, 1e-12)
    again = [
        conservativity(swirl, x[:50], 2, generator=Streams(3, 0, 50, 50), chunk_size=size)
        for size in (7, 50)
    ]
    close(again[0].ratio.value, again[1].ratio.value, 1e-13)


@pytest.mark.parametrize("n_probes", [None, 4])
def test_scores_that_differentiate_and_networks_with_parameters(n_probes, generator):
    x = torch.randn(6, 3, generator=generator)

    def by_autograd(x):
        x = x if x.requires_grad else x.detach().requires_grad_()
        return torch.autograd.grad(-(x**4).sum() - x[:, 0] @ x[:, 1], x, create_graph=True)[0]

    assert conservativity(by_autograd, x, n_probes, generator=generator).ratio.value < 1e-20
    network = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    with torch.no_grad():  # also without gradients
        result = conservativity(network, x, n_probes, generator=generator)
    assert 0.01 < result.ratio.value < 1
    assert all(p.grad is None for p in network.parameters())
    if n_probes is None:
        J = torch.func.vmap(torch.func.jacrev(network))(x).detach()
        close(result.rotation.value, ((J - J.mT) / 2).square().sum((1, 2)).mean(), 1e-12)


def test_fields_without_a_jacobian_are_refused(as_user):
    x = torch.ones(3, 2)
    network = torch.nn.Linear(2, 2)
    for score in (torch.no_grad()(network), lambda x: network(x.detach()), torch.ones_like):
        for n_probes in (None, 1):
            with pytest.raises(ValueError, match="does not depend on x through differentiable"):
                conservativity(score, x, n_probes)
    with pytest.raises(ValueError, match="returned shape"):
        conservativity(lambda x: x[:, :1], x)
    assert math.isnan(conservativity(lambda x: 0 * x, x).ratio.value)


# ---------------------------------------------------------------------------- differences


@pytest.mark.parametrize("law", [Gaussian(MEAN, COV), MIXTURE])
def test_differences_of_known_laws(law, generator):
    a, b = torch.randn(2, 5, 2, generator=generator).unbind()
    b = 2 * b + 1
    result = log_density_difference(law.score, a, b, n_panels=4)
    close(result.value, law.log_prob(b) - law.log_prob(a), 1e-10)
    assert float(result.path_dependence.max()) < 1e-10
    assert float(result.quadrature_error.max()) < 1e-6
    arc = lambda u: a + u[:, None] * (b - a) + (math.pi * u).sin()[:, None] * torch.ones(2)
    bent = log_density_difference(law.score, a, b, arc, n_panels=4)
    close(bent.value, result.value, 1e-9)
    assert float(bent.path_dependence.max()) < 1e-9


def test_the_path_dependence_is_the_enclosed_circulation(generator):
    """Stokes: around a triangle with edges δ and w a linear field Wx circulates ½ δᵀ(Wᵀ−W)w."""
    d = 3
    W = torch.randn(d, d, generator=generator)
    a, b, c = torch.randn(3, 4, d, generator=generator).unbind()
    result = log_density_difference(lambda x: x @ W.mT, a, b, via=c, n_nodes=2, n_panels=2)
    circulation = 0.5 * torch.einsum("bi,ij,bj->b", b - a, W - W.mT, c - a)
    close(result.path_dependence, circulation.abs(), 1e-12)
    close(result.value, torch.einsum("bi,ij,bj->b", b - a, W, (a + b) / 2), 1e-12)
    default = log_density_difference(lambda x: x @ W.mT, a, b, n_nodes=2, n_panels=2)
    assert bool((default.path_dependence > 1e-3 * (b - a).square().sum(1)).all())


def test_a_half_circle_in_a_rotation():
    """Around s = (−y, x) the half circle of radius 1 collects π, and the diameter nothing."""
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]])
    half = lambda u: torch.stack([(math.pi * u).cos(), (math.pi * u).sin()], 1)
    result = log_density_difference(lambda x: x @ TURN.mT, a, b, half, via=a, n_panels=2)
    close(result.value, [math.pi], 1e-12)
    close(result.path_dependence, [math.pi], 1e-12)


def test_default_detours_see_the_rotation_of_a_coordinate_plane(generator):
    """Also where a and b differ in one coordinate only, and in every shape of event."""
    d = 6
    a, b = torch.zeros(d, d), torch.eye(d)
    for i in range(d):
        for j in range(i):
            W = torch.zeros(d, d)
            W[i, j], W[j, i] = 1.0, -1.0
            score = lambda x: (x.flatten(1) @ W.mT).reshape(x.shape)  # noqa: B023
            shaped = [v.reshape(d, 2, 3) for v in (a, b)]
            found = log_density_difference(score, *shaped, n_nodes=1, n_panels=2).path_dependence
            close(found > 1e-3, (torch.arange(d) == i) | (torch.arange(d) == j), 0)


def test_the_quadrature_error_tells_when_nodes_are_few():
    a, b = torch.full((1, 1), -4.0), torch.full((1, 1), 3.7)
    law = GaussianMixture([0.4, 0.6], [[-2.0], [2.0]], 0.16)
    exact = law.log_prob(b) - law.log_prob(a)
    for n_nodes in (1, 4):
        few = log_density_difference(law.score, a, b, n_nodes=n_nodes, n_panels=2)
        assert abs(few.value - exact) > 1e-3
        assert float(few.quadrature_error) > 0.1 * float(abs(few.value - exact))
    fine = log_density_difference(law.score, a, b, n_panels=32)
    close(fine.value, exact, 1e-8)
    assert float(fine.path_dependence) < 1e-10  # there is no other path on a line


def test_rows_are_on_their_own_and_the_dtype_follows(generator):
    a, b = torch.randn(2, 6, 2, generator=generator).unbind()
    difference = partial(log_density_difference, MIXTURE.score, n_nodes=6, n_panels=2)
    together, alone = difference(a, b), difference(a[2:3], b[2:3])
    for one, of_all in zip(alone, together, strict=True):
        close(one, of_all[2:3], 1e-12)
    single = difference(a.float(), b.float())
    assert single.value.dtype == torch.float32
    close(single.value.double(), together.value, 1e-5)
    same = difference(a, a)
    assert float(same.value.abs().max()) == float(same.path_dependence.abs().max()) == 0


def test_paths_that_do_not_fit_are_refused(as_user):
    a, b = torch.zeros(2, 2), torch.ones(2, 2)
    for path, match in (
        (lambda u: a + (1 + u[:, None]) * b, r"path\(0\) is not a"),
        (lambda u: a + 0.5 * u[:, None] * b, r"path\(1\) is not b"),
        (lambda u: u, "path returned shape"),
    ):
        with pytest.raises(ValueError, match=match):
            log_density_difference(torch.neg, a, b, path)
    with pytest.raises(ValueError, match="b must have shape"):
        log_density_difference(torch.neg, a, torch.ones(2, 3))
    with pytest.raises(ValueError, match="one shape and dtype"):
        log_density_difference(torch.neg, a, torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"via must have shape \(2, 2\)"):
        log_density_difference(torch.neg, a, b, via=torch.ones(1, 2))
    with pytest.raises(ValueError, match="n_panels must be even"):
        log_density_difference(torch.neg, a, b, n_panels=3)
