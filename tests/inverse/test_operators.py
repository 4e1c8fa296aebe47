"""Operators and their adjoints, observations and their noise, in the units of data and of models."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from support import close

from gradlogp.core import Injected
from gradlogp.inverse import (
    Blur,
    Correlated,
    Identity,
    Inpainting,
    LinearOperator,
    Matrix,
    Observation,
    Subsampling,
    observe,
)
from gradlogp.inverse.observation import solve_isotropic
from gradlogp.inverse.operators import Linearised, Scaled, Separating, as_matrix, gram_diagonal
from gradlogp.noise.coordinates import IDENTITY, AffineCoordinates

RNG = np.random.default_rng(0)
MASK = torch.tensor(RNG.random((2, 4, 6)) < 0.4)
KERNEL = torch.tensor(RNG.normal(size=(3, 5)))
R3 = torch.tensor([[0.5, 0.2, 0.0], [0.2, 0.3, -0.1], [0.0, -0.1, 0.4]], dtype=torch.float64)
OPERATORS = {
    "identity": (Identity(), (2, 4, 6)),
    "inpainting": (Inpainting(MASK), (2, 4, 6)),
    "inpainting a vector": (Inpainting(torch.tensor([True, False, True])), (3,)),
    "subsampling": (Subsampling((1, 2, 3)), (2, 4, 6)),
    "subsampling a vector": (Subsampling(3), (6,)),
    "blur": (Blur(KERNEL), (2, 4, 6)),
    "blur, zero outside": (Blur(KERNEL, "zero"), (2, 4, 6)),
    "blur of a vector": (Blur(KERNEL[0]), (6,)),
    "blur in three axes": (Blur(torch.tensor(RNG.normal(size=(1, 3, 3)))), (2, 4, 6)),
    "matrix": (Matrix(torch.tensor(RNG.normal(size=(4, 6)))), (6,)),
}
each_operator = pytest.mark.parametrize(
    ("operator", "event"), OPERATORS.values(), ids=OPERATORS.keys()
)


def inner(a, b):
    return (a * b).flatten(1).sum(1)


@each_operator
def test_adjoint(operator, event, generator):
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩."""
    assert isinstance(operator, LinearOperator)
    x = torch.randn(3, *event, generator=generator)
    seen = operator.apply(x)
    y = torch.randn(seen.shape, generator=generator)
    back = operator.adjoint(y)
    assert back.shape == x.shape
    close(inner(seen, y), inner(x, back), 1e-12)
    assert float(inner(seen, y).abs().min()) > 1e-3


@each_operator
def test_matrix_of_an_operator(operator, event, generator):
    x = torch.randn(3, *event, generator=generator)
    A = as_matrix(operator, torch.Size(event), x)
    close(operator.apply(x).flatten(1), x.flatten(1) @ A.mT, 1e-12)


@each_operator
def test_gram_of_what_keeps_entries_apart(operator, event, generator):
    """A W Aᵀ is diagonal for any weights where it is said to be; the diagonal is that of the matrix."""
    separating = isinstance(operator, Separating)
    assert separating == isinstance(operator, Identity | Inpainting | Subsampling)
    scale = 0.5 + torch.rand(event, generator=generator)
    A = as_matrix(operator, torch.Size(event), scale)
    for seen, B in ((operator, A), (Scaled(operator, scale), A * scale.flatten())):
        gram = gram_diagonal(seen)
        assert (gram is not None) == separating
        if gram is not None:
            close(torch.diag(torch.as_tensor(gram).flatten().expand(len(A))), B @ B.mT, 1e-12)


def test_inpainting_by_hand():
    A = Inpainting(torch.tensor([[True, False], [False, True]]))
    x = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert A.apply(x).tolist() == [[1.0, 4.0]]
    assert A.adjoint(torch.tensor([[5.0, 6.0]])).tolist() == [[[5.0, 0.0], [0.0, 6.0]]]


def test_subsampling_by_hand():
    x = torch.arange(8.0).reshape(1, 2, 4)
    assert Subsampling((2, 2)).apply(x).tolist() == [[[2.5, 4.5]]]
    assert Subsampling((1, 4)).apply(x).tolist() == [[[1.5], [5.5]]]
    y = torch.tensor([[8.0, 4.0]])
    assert Subsampling(2).adjoint(y).tolist() == [[4.0, 4.0, 2.0, 2.0]]


@pytest.mark.parametrize(("boundary", "mode"), [("periodic", "wrap"), ("zero", "constant")])
def test_blur_is_a_convolution(boundary, mode, generator):
    """Against SciPy, whose convolve mirrors the kernel as the definition says."""
    x = torch.randn(2, 3, 5, 7, generator=generator)
    seen = Blur(KERNEL, boundary).apply(x)
    for i in range(2):
        for c in range(3):
            expected = ndimage.convolve(x[i, c].numpy(), KERNEL.numpy(), mode=mode)
            close(seen[i, c], expected, 1e-12)


def test_linearised_is_the_derivative(generator):
    f = lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)
    x, v, u = (torch.randn(4, n, generator=generator) for n in (3, 3, 2))
    L = Linearised(f, x)
    J = torch.stack([torch.autograd.functional.jacobian(lambda z: f(z[None])[0], z) for z in x])
    close(L.apply(v), (J @ v.unsqueeze(-1)).squeeze(-1), 1e-12)
    close(L.adjoint(u), (J.mT @ u.unsqueeze(-1)).squeeze(-1), 1e-12)


# ---------------------------------------------------------------------------- observations


@pytest.mark.parametrize("noise", [0.3, torch.tensor([0.1, 0.4, 0.7]), R3], ids=["σ", "σᵢ", "R"])
def test_likelihood_is_the_gaussian(noise, generator):
    A = torch.randn(3, 5, generator=generator)
    y, x, x2 = (torch.randn(4, n, generator=generator) for n in (3, 5, 5))
    seen = Observation(y, Matrix(A), noise)
    cov = R3 if noise is R3 else torch.diag((torch.ones(3) * noise).square())
    law = torch.distributions.MultivariateNormal(y, cov)
    expected = law.log_prob(x @ A.mT) - law.log_prob(x2 @ A.mT)
    close(seen.log_likelihood(x) - seen.log_likelihood(x2), expected, 1e-10)
    x.requires_grad_()
    by_autograd = torch.autograd.grad(law.log_prob(x @ A.mT).sum(), x)[0]
    close(seen.score(x.detach()), by_autograd, 1e-10)
    as_function = Observation(y, lambda x: x @ A.mT, noise)
    close(as_function.score(x.detach()), by_autograd, 1e-10)
    v = torch.randn(4, 3, generator=generator)
    close(seen.R.solve(seen.R.product(v)), v, 1e-12)
    close(seen.R.product(v), v @ cov, 1e-12)


def test_one_row_serves_all_samples(generator):
    x, y = torch.randn(4, 3, generator=generator), torch.randn(1, 3, generator=generator)
    one = Observation(y, Identity(), 0.5)
    close(one.score(x), Observation(y.repeat(4, 1), Identity(), 0.5).score(x), 1e-15)
    with pytest.raises(ValueError, match="has 3 rows, but x has 4"):
        Observation(torch.zeros(3, 3), Identity(), 0.5).score(x)


def test_observe_adds_the_noise_it_says(generator):
    x, z = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    seen = observe(x, Identity(), torch.tensor([0.1, 1.0, 2.0]), generator=Injected(z))
    close(seen.y, x + torch.tensor([0.1, 1.0, 2.0]) * z, 1e-14)
    basis = observe(torch.zeros(3, 3), Identity(), R3, generator=Injected(torch.eye(3))).y
    close(basis.mT @ basis, R3, 1e-14)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inpainting(torch.ones(3)), "boolean"),
        (lambda: Inpainting(torch.zeros(3, dtype=torch.bool)), "at least one True"),
        (lambda: Inpainting(MASK).apply(torch.zeros(1, 4, 6)), "shape"),
        (lambda: Inpainting(MASK).adjoint(torch.zeros(1, 3)), "shape"),
        (lambda: Subsampling(2).apply(torch.zeros(1, 4, 4)), "one factor per axis"),
        (lambda: Subsampling(3).apply(torch.zeros(1, 4)), "blocks of 3 do not divide"),
        (lambda: Blur(torch.ones(2)), "odd"),
        (lambda: Blur(torch.ones(7)).apply(torch.zeros(1, 2)), "at least"),
        (lambda: Blur(torch.ones(3, 3)).apply(torch.zeros(1, 5)), "at least 2 axes"),
        (lambda: Matrix(torch.zeros(3)), "matrix"),
        (lambda: Matrix(torch.zeros(2, 3)).apply(torch.zeros(1, 2)), "shape"),
        (lambda: Matrix(torch.zeros(2, 3)).adjoint(torch.zeros(1, 3)), "shape"),
        (lambda: Observation(torch.zeros(3), Identity(), 0.1), "shape"),
        (lambda: Observation(torch.full((1, 3), torch.nan), Identity(), 0.1), "not finite"),
        (lambda: Observation(torch.zeros(1, 3), "blur", 0.1), "apply and adjoint"),
        (lambda: Observation(torch.zeros(1, 3), Identity(), -0.1), "at least 0"),
        (lambda: Observation(torch.zeros(1, 3), Identity(), torch.ones(2)), r"\(3, 3\)"),
        (lambda: Observation(torch.zeros(1, 3), Identity(), -R3), "positive definite"),
        (lambda: Correlated(torch.triu(R3)), "symmetric"),
        (lambda: Observation(torch.zeros(1, 3), lambda x: x, 0.1).linear, "linear operator"),
        (
            lambda: Observation(torch.zeros(1, 3), Identity(), 0).score(torch.zeros(1, 3)),
            "no noise",
        ),
        (
            lambda: Observation(torch.zeros(1, 3), lambda x: x[:, :1], 0.1).score(
                torch.zeros(2, 3)
            ),
            "the operator returned",
        ),
    ],
)
def test_bad_operators_and_observations(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@each_operator
@pytest.mark.parametrize("correlated", [False, True])
def test_isotropic_system(operator, event, correlated, generator):
    """In closed form and by iteration, with coefficients of each sample."""
    x = torch.randn(3, *event, generator=generator)
    A = as_matrix(operator, torch.Size(event), x)
    m = len(A)
    r = operator.apply(x)
    std = 0.2 + torch.rand(r.shape[1:], generator=generator)
    R = torch.diag(std.flatten().square())
    if correlated:
        R = R + 0.1 * torch.ones(m, m)
    seen = Observation(r, operator, R if correlated else std)
    a, b = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([3.0, 0.1, 1.0])
    scale = 0.5 + torch.rand(event, generator=generator)
    for op, B in ((operator, A), (Scaled(operator, scale), A * scale.flatten())):
        u = solve_isotropic(op, seen.R, a, b, r)
        M = a[:, None, None] * R + b[:, None, None] * (B @ B.mT)
        close(u.flatten(1), torch.linalg.solve(M, r.flatten(1)), 1e-8)


@each_operator
@pytest.mark.parametrize("form", ["linear", "function"])
def test_an_observation_of_model_coordinates(operator, event, form, generator):
    """Its residual, likelihood and score in z are those in x: y − A(shift + scale z)."""
    shift, scale = (
        5 * torch.randn(event, generator=generator),
        0.1 + torch.rand(event, generator=generator),
    )
    coordinates = AffineCoordinates(shift, scale)
    A = operator if form == "linear" else lambda x: operator.apply(x).sin()
    x = shift + scale * torch.randn(3, *event, generator=generator)
    z = coordinates.encode(x)
    seen = observe(x, A, 0.3, generator=generator)
    moved = seen.encoded(coordinates)
    assert (form == "linear") == isinstance(moved.operator, LinearOperator)
    close(moved.residual(z), seen.residual(x), 1e-12)
    close(moved.log_likelihood(z), seen.log_likelihood(x), 1e-11)
    close(moved.score(z), scale * seen.score(x), 1e-10)
    assert seen.encoded(IDENTITY) is seen
    # negative controls: the scale or the shift forgotten
    assert float((moved.score(z) - seen.score(x)).abs().max()) > 0.1
    assert float((seen.residual(z) - seen.residual(x)).abs().max()) > 0.1


def test_rows_of_an_observation(generator):
    y = torch.randn(5, 3, generator=generator)
    seen, one = Observation(y, Identity(), 0.5), Observation(y[:1], Identity(), 0.5)
    assert torch.equal(seen.take(slice(1, 3)).y, y[1:3])
    assert torch.equal(seen.take(torch.tensor([4, 0])).y, y[[4, 0]])
    assert one.take(slice(1, 3)) is one
