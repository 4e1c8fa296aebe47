"""Lanczos against dense eigenvalues and the Krylov space written out."""

import torch
from support import close

from gradlogp.calculus.conjugate_gradients import lanczos


def symmetric(n, d, generator):
    A = torch.randn(n, d, d, generator=generator)
    return A + A.mT


def products(A):
    return lambda v: torch.einsum("bij,bj->bi", A, v)


def test_after_d_iterations_all_eigenvalues_are_known(generator):
    """Of matrices with d eigenvalues, of some with two, of the identity and of 0, side by side."""
    few = torch.diag(torch.tensor([3.0, 3.0, 3.0, 3.0, 0.2])).expand(4, 5, 5)
    A = torch.cat([symmetric(2, 5, generator), few, torch.eye(5)[None], torch.zeros(1, 5, 5)])
    T, beyond = lanczos(products(A), torch.zeros(8, 5), 9, generator)
    close(torch.linalg.eigvalsh(T), torch.linalg.eigvalsh(A), 1e-12)
    close(T.triu(2), torch.zeros(8, 5, 5), 0.0)
    assert not beyond.any()


def test_fewer_iterations_give_the_ritz_values_of_the_krylov_space(generator):
    """T is A in span(q, A q, A² q), and β |u_k| the residual of each pair, for the same start q."""
    A, state = symmetric(3, 6, generator), generator.get_state()
    T, beyond = lanczos(products(A), torch.zeros(3, 6), 3, generator)
    q = torch.randn(3, 6, generator=generator.set_state(state))
    Q = torch.linalg.qr(torch.stack([q, products(A)(q), products(A)(products(A)(q))], -1)).Q
    ritz, u = torch.linalg.eigh(Q.mT @ A @ Q)
    values, vectors = torch.linalg.eigh(T)
    close(values, ritz, 1e-11)
    residual = (A @ Q @ u - Q @ u * ritz[:, None]).norm(dim=1)
    close(beyond[:, None] * vectors[:, -1].abs(), residual, 1e-11)
    assert float(residual.min()) > 1e-3
