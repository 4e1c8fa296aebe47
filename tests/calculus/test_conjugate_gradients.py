"""Conjugate gradients: the solution, what a truncated one is the best of; Lanczos beside them."""

import pytest
import torch
from support import close

from gradlogp.calculus.conjugate_gradients import conjugate_gradients, lanczos, solve_all


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
    close(stopped.u[0], torch.tensor([1.0, 1 / 2, 1 / 3]), 1e-10)  # the other one continues
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


def symmetric(n, d, generator):
    A = torch.randn(n, d, d, generator=generator)
    return A + A.mT


def test_after_d_iterations_all_eigenvalues_are_known(generator):
    """Of matrices with d eigenvalues, of some with two, of the identity and of 0, side by side.

    After one product with the identity the remainder is rounding error, and exactly 0 for about one
    start in five.
    """
    few = torch.diag(torch.tensor([3.0, 3.0, 3.0, 3.0, 0.2])).expand(4, 5, 5)
    one, zero = torch.eye(5).expand(20, 5, 5), torch.zeros(1, 5, 5)
    A = torch.cat([symmetric(2, 5, generator), few, one, zero])
    T, beyond = lanczos(times(A), torch.zeros(27, 5), 9, generator)
    close(torch.linalg.eigvalsh(T), torch.linalg.eigvalsh(A), 1e-12)
    close(T.triu(2), torch.zeros(27, 5, 5), 0.0)
    assert not beyond.any()


def test_fewer_iterations_give_the_ritz_values_of_the_krylov_space(generator):
    """T is A in span(q, A q, A² q), and β |u_k| the residual of each pair, for the same start q."""
    A, state = symmetric(3, 6, generator), generator.get_state()
    T, beyond = lanczos(times(A), torch.zeros(3, 6), 3, generator)
    q = torch.randn(3, 6, generator=generator.set_state(state))
    Q = torch.linalg.qr(torch.stack([q, times(A)(q), times(A)(times(A)(q))], -1)).Q
    ritz, u = torch.linalg.eigh(Q.mT @ A @ Q)
    values, vectors = torch.linalg.eigh(T)
    close(values, ritz, 1e-11)
    residual = (A @ Q @ u - Q @ u * ritz[:, None]).norm(dim=1)
    close(beyond[:, None] * vectors[:, -1].abs(), residual, 1e-11)
    assert float(residual.min()) > 1e-3
