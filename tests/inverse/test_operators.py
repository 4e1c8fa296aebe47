"""Operators and their adjoints, observations and their noise, conjugate gradients."""

import numpy as np
import pytest
import torch
from gradlogp.inverse.isotropic import solve_isotropic
from scipy import ndimage
from support import close

from gradlogp.calculus.conjugate_gradients import conjugate_gradients, solve_all
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
from gradlogp.inverse.operators import Linearised, Tight, as_matrix

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
    if isinstance(operator, Tight):
        close(A @ A.mT, operator.gram * torch.eye(len(A)), 1e-12)


def test_which_operators_are_tight():
    assert {type(o) for o, _ in OPERATORS.values() if isinstance(o, Tight)} == {
        Identity, Inpainting, Subsampling,
    }  # fmt: skip


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


def test_blur_of_a_spike_is_the_kernel():
    spike = torch.zeros(1, 7)
    spike[0, 3] = 1
    assert Blur(torch.tensor([1.0, 2.0, 3.0])).apply(spike).tolist() == [[0, 0, 1, 2, 3, 0, 0]]


def test_linearised_is_the_derivative(generator):
    f = lambda x: torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin()], 1)
    x, v, u = (torch.randn(4, n, generator=generator) for n in (3, 3, 2))
    L = Linearised(f, x)
    J = torch.stack([torch.autograd.functional.jacobian(lambda z: f(z[None])[0], z) for z in x])
    close(L.apply(v), (J @ v.unsqueeze(-1)).squeeze(-1), 1e-12)
    close(L.adjoint(u), (J.mT @ u.unsqueeze(-1)).squeeze(-1), 1e-12)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inpainting(torch.ones(3)), "boolean"),
        (lambda: Inpainting(torch.zeros(3, dtype=torch.bool)), "somewhere"),
        (lambda: Inpainting(MASK).apply(torch.zeros(1, 4, 6)), "shape"),
        (lambda: Inpainting(MASK).adjoint(torch.zeros(1, 3)), "shape"),
        (lambda: Subsampling(0), "at least 1"),
        (lambda: Subsampling(2).apply(torch.zeros(1, 4, 4)), "one factor for each"),
        (lambda: Subsampling(3).apply(torch.zeros(1, 4)), "not blocks of 3"),
        (lambda: Blur(torch.ones(2)), "odd"),
        (lambda: Blur(torch.ones(3), "reflect"), "boundary"),
        (lambda: Blur(torch.ones(7)).apply(torch.zeros(1, 2)), "at least"),
        (lambda: Blur(torch.ones(3, 3)).apply(torch.zeros(1, 5)), "at least 2 axes"),
        (lambda: Matrix(torch.zeros(3)), "matrix"),
        (lambda: Matrix(torch.zeros(2, 3)).apply(torch.zeros(1, 2)), "shape"),
        (lambda: Matrix(torch.zeros(2, 3)).adjoint(torch.zeros(1, 3)), "shape"),
    ],
)
def test_bad_operators(make, message):
    with pytest.raises(ValueError, match=message):
        make()


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
    with pytest.raises(ValueError, match="has 3 rows, x has 4"):
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
def test_bad_observations(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------- conjugate gradients


def systems(generator, d=6, n=4):
    """Symmetric positive definite matrices of very different conditions."""
    Q = torch.linalg.qr(torch.randn(n, d, d, generator=generator))[0]
    spread = torch.linspace(0, 1, d) * torch.linspace(0.1, 3, n).unsqueeze(1)
    M = (Q * (10**spread).unsqueeze(1)) @ Q.mT
    return (M + M.mT) / 2, torch.randn(n, d, generator=generator)


def times(M):
    return lambda v: (M @ v.unsqueeze(-1)).squeeze(-1)


def test_conjugate_gradients_solve(generator):
    M, b = systems(generator)
    found = conjugate_gradients(times(M), b)
    close(found.u, torch.linalg.solve(M, b), 1e-9)
    assert bool(found.converged.all())
    assert float(found.residual.max()) < 2e-12


def test_each_sample_is_on_its_own(generator):
    """Alone or among others: the same solution after the same number of steps."""
    M, b = systems(generator)
    b[1] = 0
    together = conjugate_gradients(times(M), b, tol=1e-6)
    alone = [conjugate_gradients(times(M[i : i + 1]), b[i : i + 1], tol=1e-6) for i in range(4)]
    assert together.steps.tolist() == [int(a.steps) for a in alone]
    assert together.steps[1] == 0
    assert len(set(together.steps.tolist())) > 2
    close(together.u, torch.cat([a.u for a in alone]), 1e-12)


def test_three_eigenvalues_take_three_steps(generator):
    Q = torch.linalg.qr(torch.randn(9, 9, generator=generator))[0]
    M = ((Q * torch.tensor([1.0, 2.0, 5.0]).repeat(3)) @ Q.mT)[None]
    found = conjugate_gradients(times(M), torch.randn(1, 9, generator=generator), tol=1e-10)
    assert int(found.steps) == 3


def test_truncated_solution_is_the_best_in_its_space(generator):
    """After two steps u minimises ½ uᵀMu − bᵀu over span{b, M b}."""
    M, b = systems(generator, n=1)
    found = conjugate_gradients(times(M), b, max_steps=2)
    V = torch.stack([b[0], M[0] @ b[0]], 1)
    best = V @ torch.linalg.solve(V.mT @ M[0] @ V, V.mT @ b[0])
    close(found.u[0], best, 1e-10)
    assert not bool(found.converged)
    assert int(found.steps) == 2
    close(found.residual[0], (b[0] - M[0] @ best).norm() / b.norm(), 1e-10)


def test_what_is_not_positive_definite_is_refused(generator):
    M = torch.diag_embed(torch.tensor([[1.0, 2.0, 3.0], [1.0, -2.0, 3.0]]))
    b = torch.tensor([[1.0, 1.0, 1.0], [3.0, 0.1, 0.1]])
    with pytest.raises(ValueError, match="not positive definite: at sample 1"):
        conjugate_gradients(times(M), b)
    stopped = conjugate_gradients(times(M), b, indefinite="stop")
    close(stopped.u[0], torch.tensor([1.0, 1 / 2, 1 / 3]), 1e-10)  # the other one goes on
    assert stopped.converged.tolist() == [True, False]
    assert int(stopped.steps[0]) == 3
    with pytest.raises(ValueError, match="not finite"):
        conjugate_gradients(lambda v: v * torch.nan, b, indefinite="stop")
    H = 1 / (torch.arange(40.0).unsqueeze(1) + torch.arange(40.0) + 1)  # Hilbert's matrix
    with pytest.raises(ValueError, match="did not converge in 80 steps, 1 of 1"):
        solve_all(times((H + 1e-13 * torch.eye(40))[None]), torch.ones(1, 40), tol=1e-15)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tol": 0.0}, "tol"),
        ({"max_steps": 0}, "max_steps"),
        ({"indefinite": "warn"}, "indefinite"),
        ({"product": lambda v: v[:, :1]}, "product with M"),
        ({"b": torch.tensor([[torch.inf, 0.0]])}, "not finite"),
    ],
)
def test_bad_systems(arguments, message):
    given = {"product": lambda v: v, "b": torch.ones(1, 2), **arguments}
    with pytest.raises(ValueError, match=message):
        conjugate_gradients(given.pop("product"), given.pop("b"), **given)


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
    u = solve_isotropic(operator, seen.R, a, b, r)
    M = a[:, None, None] * R + b[:, None, None] * (A @ A.mT)
    close(u.flatten(1), torch.linalg.solve(M, r.flatten(1)), 1e-8)
