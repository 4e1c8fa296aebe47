"""Preconditioners and the running covariance they come from."""

import math

import numpy as np
import pytest
import torch
from support import COV, MEAN, close

from gradlogp import Gaussian
from gradlogp.langevin.kernels import PreconditionedULA, Preconditioner, Welford


def as_matrix(P, shape):
    """P as a matrix, by applying it to a basis."""
    d = math.prod(shape)
    return P.apply(torch.eye(d).reshape(d, *shape)).reshape(d, d).mT


def example(kind, d=6):
    g = torch.Generator().manual_seed(d)
    A = torch.randn(d, d, generator=g)
    diagonal = torch.rand(2, 3, generator=g) + 0.1
    return {"number": 1.7, "diagonal": diagonal, "matrix": A @ A.mT + 0.3 * torch.eye(d)}[kind]


@pytest.mark.parametrize("kind", ["number", "diagonal", "matrix"])
def test_roots_and_quadratic_forms(kind, generator):
    value = example(kind)
    P = Preconditioner(value)
    assert P.kind == kind
    M = as_matrix(P, (2, 3))
    if kind == "number":
        close(M, value * torch.eye(6), 1e-14)
    else:
        close(M, value if kind == "matrix" else torch.diag(value.flatten()), 1e-13)
    v = torch.randn(5, 2, 3, generator=generator)
    close(P.sqrt(P.sqrt(v)), P.apply(v), 1e-11)
    close(P.inv_sqrt(P.sqrt(v)), v, 1e-11)
    expected = (v.flatten(1) @ torch.linalg.inv(M) * v.flatten(1)).sum(1)
    close(P.inv_quadratic(v), expected, 1e-10)
    assert P.apply(v.float()).dtype == torch.float32
    assert P.apply(v).shape == v.shape


def test_square_tensors_are_matrices_unless_told_otherwise(generator):
    diagonal = torch.rand(2, 2, generator=generator) + 0.1
    with pytest.raises(ValueError, match=r"symmetric.*kind='diagonal'"):
        Preconditioner(diagonal)
    v = torch.randn(3, 2, 2, generator=generator)
    close(Preconditioner(diagonal, kind="diagonal").apply(v), diagonal * v, 1e-14)
    assert Preconditioner(torch.eye(2)) != Preconditioner(torch.ones(2))
    assert Preconditioner(torch.tensor(2.0)) == Preconditioner(2)
    assert Preconditioner(2.0) != 2.0
    assert hash(Preconditioner(torch.eye(2))) == hash(Preconditioner(torch.eye(2)))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (0.0, "positive and finite"),
        (-1.0, "positive and finite"),
        (torch.tensor([1.0, 0.0]), "positive definite"),
        (torch.tensor([1, 2]), "float32 or float64"),
        (torch.tensor([[1.0, 2.0], [0.0, 1.0]]), "symmetric"),
        (torch.tensor([[1.0, 1.0], [1.0, 1.0]]), "positive definite"),
        (torch.tensor([[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
    ],
)
def test_refusals(value, why, as_user):
    with pytest.raises(ValueError, match=f"preconditioner.*{why}"):
        Preconditioner(value)


def test_refusals_of_shape(as_user):
    for value, kind in ((torch.ones(2), "matrix"), (2.0, "matrix"), (torch.eye(2), "number")):
        with pytest.raises(ValueError, match="preconditioner"):
            Preconditioner(value, kind=kind)
    for value in (torch.ones(3), torch.ones(1), torch.eye(3)):  # nothing is broadcast
        kernel = PreconditionedULA(0.1, value)
        state = kernel.init(torch.zeros(4, 2), Gaussian(MEAN, COV))
        with pytest.raises(ValueError, match=r"preconditioner.*does not fit an event"):
            kernel.step(state, Gaussian(MEAN, COV))


# ---------------------------------------------------------------------------- from chains


def test_from_ensemble_estimates_the_covariance(generator):
    x = Gaussian(MEAN, COV).sample(40_000, generator=generator)
    close(as_matrix(Preconditioner.from_ensemble(x), (2,)), COV, 0.04)
    variances = Preconditioner.from_ensemble(x, dense=False)
    assert torch.equal(variances.value, x.var(0))


def test_from_ensemble_shrinks_by_the_published_intensity(generator):
    """The sums over chains and pairs written out, as they stand in the paper."""
    n, d = 9, 4
    x = torch.randn(n, d, generator=generator) * torch.tensor([1.0, 5.0, 0.2, 1.0])
    x[:, 1] += 4 * x[:, 0]
    u = (x - x.mean(0)) / x.std(0)
    noise = signal = 0.0
    for i in range(d):
        for j in range(d):
            if i != j:
                w = u[:, i] * u[:, j]
                noise += float(n / (n - 1) ** 3 * (w - w.mean()).square().sum())
                signal += float(n / (n - 1) * w.mean()) ** 2
    shrinkage = noise / signal
    assert 1 / n < shrinkage < 1
    S = torch.as_tensor(np.cov(x.numpy().T))
    expected = torch.where(torch.eye(d).bool(), S, (1 - shrinkage) * S)
    close(Preconditioner.from_ensemble(x).value, expected, 1e-11)
    scaled = Preconditioner.from_ensemble(3 * x).value  # no unit is preferred
    close(scaled, 9 * expected, 1e-11)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_from_ensemble_is_positive_definite_with_few_chains(n, generator):
    x = torch.randn(n, 5, 4, generator=generator)
    P = Preconditioner.from_ensemble(x)
    close(torch.diagonal(P.value), x.var(0).flatten(), 1e-12)
    assert torch.linalg.matrix_rank(torch.as_tensor(np.cov(x.flatten(1).numpy().T))) < 20
    assert float(torch.linalg.eigvalsh(P.value).min()) > 1e-4
    one = Preconditioner.from_ensemble(torch.randn(n, 1, generator=generator))
    assert one.value.shape == (1, 1)


def test_from_ensemble_refusals(as_user):
    with pytest.raises(ValueError, match="x must have at least 2 rows"):
        Preconditioner.from_ensemble(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="differ between chains"):
        Preconditioner.from_ensemble(torch.tensor([[1.0, 2.0], [1.0, 3.0]]))


# ---------------------------------------------------------------------------- running covariance


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("event", [(3,), (2, 2)])
def test_welford_in_any_pieces(dense, event, generator):
    x = 1e6 + torch.randn(50, *event, generator=generator)  # a mean that costs no digits
    S = torch.as_tensor(np.cov(x.flatten(1).numpy().T))
    expected = S if dense else torch.diagonal(S).reshape(event)
    pieces = [x[:1], x[1:8], x[8:9], x[9:40], x[40:]]
    one = Welford.start(pieces[0], dense=dense)
    for piece in pieces[1:]:
        one = one.add(piece)
    left = Welford.start(x[:33], dense=dense)
    two = left.merge(Welford.start(x[33:], dense=dense))
    for w in (one, two, Welford.start(x, dense=dense)):
        assert w.count == 50
        close(w.mean, x.mean(0), 1e-12)
        close(w.covariance(), expected, 1e-8)
    close(left.covariance(), Welford.start(x[:33], dense=dense).covariance(), 1e-14)
    close(Preconditioner(one.covariance(), kind="matrix" if dense else "diagonal").value,
          expected, 1e-8)  # fmt: skip


def test_welford_refusals(as_user):
    with pytest.raises(ValueError, match="at least two draws"):
        Welford.start(torch.zeros(1, 2)).covariance()
    with pytest.raises(ValueError, match="no draw"):
        Welford.start(torch.zeros(0, 2))
    with pytest.raises(ValueError, match="other must be diagonal"):
        Welford.start(torch.zeros(2, 2)).merge(Welford.start(torch.zeros(2, 2), dense=True))
    with pytest.raises(ValueError, match="other must be diagonal"):
        Welford.start(torch.zeros(2, 2)).add(torch.zeros(2, 3))
