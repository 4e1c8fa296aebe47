"""The Lanczos iteration: extreme eigenvalues of symmetric matrices from their products."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Generator, randn_like


class Lanczos(NamedTuple):
    """Tridiagonal matrices T, and the coupling β to what was not reached, 0 if all was."""

    T: Float[Tensor, "batch k k"]
    beyond: Float[Tensor, " batch"]


def lanczos(
    product: Callable[[Tensor], Tensor],
    like: Float[Tensor, "batch d"],
    n_iterations: int,
    generator: Generator | None,
) -> Lanczos:
    r"""Reduce a symmetric matrix for each sample, known by its products, to tridiagonal form.

    .. math:: A Q = Q T + β\, q_{k+1} e_k^\top, \quad Q^\top Q = I

    from a random unit vector. An eigenvector u of T with eigenvalue θ gives one of A up to
    :math:`\|A Q u - θ Q u\| = β |u_k|`. The basis is orthogonalised twice in every iteration. If a
    subspace is exhausted, the iteration continues with a new vector in its complement, without
    coupling, so that d iterations find all eigenvalues.

    References:
        | An Iteration Method for the Solution of the Eigenvalue Problem of Linear Differential and
          Integral Operators (Lanczos, 1950)
        | https://doi.org/10.6028/jres.045.026

    Arguments:
        product: v -> A v, both `(batch, d)`.
        like: A tensor of the shape, dtype and device of the vectors, `(batch, d)`.
        n_iterations: Number of products; at most d are computed.
        generator: Source of the starting vectors.
    """
    n, d = like.shape
    k = min(n_iterations, d)
    basis, T = [_unit(randn_like(like, generator))], like.new_zeros(n, k, k)
    beyond, tiny = like.new_zeros(n), 100 * torch.finfo(like.dtype).eps
    for j in range(k):
        w = product(basis[j])
        T[:, j, j] = (w * basis[j]).sum(1)
        size = w.norm(dim=1)
        w = _orthogonal(w, basis)
        beta = w.norm(dim=1)
        fresh = _orthogonal(randn_like(like, generator), basis) if j + 1 < d else w
        done = beta <= tiny * (size + T.abs().amax((1, 2)))
        beta = torch.where(done, 0.0, beta)
        basis.append(_unit(torch.where(done[:, None], fresh, w)))
        if j + 1 < k:
            T[:, j, j + 1] = T[:, j + 1, j] = beta
        else:
            beyond = beta if k < d else beyond
    return Lanczos(T, beyond)


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)


def _orthogonal(w: Tensor, basis: list[Tensor]) -> Tensor:
    Q = torch.stack(basis, 2)  # (batch, d, j)
    for _ in range(2):
        w = w - (Q @ (Q.mT @ w[..., None]))[..., 0]
    return w
