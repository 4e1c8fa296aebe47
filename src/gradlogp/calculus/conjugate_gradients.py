r"""Conjugate gradients, M u = b for every sample of a batch, and the Lanczos iteration.

Both know a matrix by its products only; the second finds the extreme eigenvalues of symmetric ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    Generator,
    check_count,
    check_function,
    check_number,
    check_option,
    check_points,
    check_same_shape,
    per_sample,
    randn_like,
    sum_event,
)

Indefinite = Literal["raise", "stop"]


class Solution(NamedTuple):
    """The solution of M u = b and its residual, sample by sample.

    Attributes:
        u: Shape of b.
        residual: ‖b − M u‖/‖b‖ by the recursion, `(B,)`; 0 where b = 0.
        steps: Number of products with M, `(B,)`.
        converged: Whether the residual is below the tolerance, `(B,)`.
    """

    u: Tensor
    residual: Tensor
    steps: Tensor
    converged: Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    b: Float[Tensor, "batch *event"],
    *,
    tol: float | None = None,
    max_steps: int | None = None,
    indefinite: Indefinite = "raise",
) -> Solution:
    r"""Solve M u = b for a symmetric positive definite M of each sample.

    From u = 0 the k-th iterate minimises ½ uᵀ M u − bᵀ u over span{b, M b, …, M^{k−1} b}. Every
    sample has its own step and no longer changes once it has converged, whatever the others in its
    batch do.

    Wikipedia:
        https://wikipedia.org/wiki/Conjugate_gradient_method

    Arguments:
        product: v -> M v, `(B, *event) -> (B, *event)`, sample by sample.
        b: Right-hand sides, `(B, *event)`; d is the number of entries of one of them.
        tol: Tolerance for ‖b − M u‖/‖b‖; by default ε^{3/4} of the dtype (2e-12 in double, 6e-6 in
            single precision).
        max_steps: Maximum number of products; by default max(50, 2d). `converged` says whether
            that was enough.
        indefinite: At a direction p with pᵀ M p ≤ 0 either "raise", or "stop" that sample at the
            previous iterate.

    Raises:
        ValueError: If M turns out not to be positive definite; for numbers that are not finite, a
            wrong shape or option.

    References:
        | Methods of Conjugate Gradients for Solving Linear Systems (Hestenes & Stiefel, 1952)
        | https://doi.org/10.6028/jres.049.044
    """
    check_points(b, "b")
    check_function(product, "product")
    check_option(indefinite, "indefinite", Indefinite)
    most = max(50, 2 * b[0].numel()) if max_steps is None else max_steps
    check_count(most, "max_steps")
    tol = torch.finfo(b.dtype).eps ** 0.75 if tol is None else tol
    check_number(tol, "tol", above=0, below=1)
    u, r, p = torch.zeros_like(b), b, b
    start = rr = sum_event(b.square())
    active = rr > 0
    steps = torch.zeros_like(rr, dtype=torch.long)
    for _ in range(most):
        if not bool(active.any()):
            break
        q = product(p)
        check_same_shape(q, p, "the product with M")
        curvature = sum_event(p * q)
        wrong = active & ~(curvature > 0)
        if bool(wrong.any()):
            _refuse(wrong, curvature, sum_event(p.square()), indefinite)
            active = active & ~wrong
        step = torch.where(active, rr / torch.where(active, curvature, 1.0), 0.0)
        on, step = per_sample(active.to(b), b, "active") > 0, per_sample(step, b, "step")
        u, r = torch.where(on, u + step * p, u), torch.where(on, r - step * q, r)
        new = torch.where(active, sum_event(r.square()), rr)
        steps = steps + active
        active = active & (new > tol**2 * start)
        ratio = torch.where(active, new / torch.where(active, rr, 1.0), 0.0)
        p, rr = r + per_sample(ratio, b, "ratio") * p, new
    residual = torch.where(start > 0, (rr / torch.where(start > 0, start, 1.0)).sqrt(), 0.0)
    return Solution(u, residual, steps, residual <= tol)


def _refuse(wrong: Tensor, curvature: Tensor, norm2: Tensor, indefinite: Indefinite) -> None:
    """Raise for directions of no positive curvature, unless samples shall stop there."""
    i = int(wrong.nonzero()[0])
    if not bool(torch.isfinite(curvature[wrong]).all()):
        raise ValueError(f"the product with M is not finite (first at sample {i})")
    if indefinite == "raise":
        raise ValueError(
            f"the matrix is not positive definite: at sample {i} pᵀMp/‖p‖² is "
            f"{float(curvature[i] / norm2[i]):.3g}. Give the observation (more) noise, or pass "
            "indefinite='stop' to keep what was found before"
        )


def solve_all(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    tol: float | None = None,
    max_steps: int | None = None,
    indefinite: Indefinite = "raise",
) -> Tensor:
    """Return u of all samples; a requested number of steps need not be enough to converge.

    Raises:
        ValueError: If no number of steps was requested and a sample has not converged; and in the
            same cases as `conjugate_gradients`.
    """
    found = conjugate_gradients(product, b, tol=tol, max_steps=max_steps, indefinite=indefinite)
    if max_steps is None and indefinite == "raise" and not bool(found.converged.all()):
        raise ValueError(
            f"conjugate gradients did not converge in {int(found.steps.max())} steps, "
            f"{int((~found.converged).sum())} of {len(b)} samples have a relative residual of up to "
            f"{float(found.residual.max()):.2g}; raise tol, or pass max_steps to accept the "
            f"result after that many steps"
        )
    return found.u


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
