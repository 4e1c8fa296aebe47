r"""Metrics learned from draws and scores: the normal law of smallest Fisher divergence.

For a target p and the normal law q = N(m, S) with a root S = R Rᵀ the affine-invariant Fisher
divergence is

.. math:: D(p, q) = E_p \lVert R^\top s(x) + R^{-1} (x - m) \rVert^2

It needs no density, costs nothing beyond the scores that a chain has anyway, and is 0 only for q =
p: score matching, applied to the warm-up. Its minimum over all S solves S C_s S = C_x, with the
covariances of the draws and of their scores; over diagonal S it is √(Var x_i / Var s_i). On a
normal law both are exact with a few draws, since s is a linear function of x.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    check_finite,
    check_kind,
    check_option,
    check_points,
    check_same_shape,
    finite_result,
)
from ..kernels import Preconditioner

Learn = Literal["none", "diagonal", "matrix", "auto"]
"""What is learnt of the metric; `auto` takes what predicts held-out scores best."""

LARGE = 64
"""Dimensions from which a low rank is tried, and rank up to which it is."""

KEPT, NOTHING = 1.05, 0.1
"""The current metric stays unless another has a divergence smaller than by this factor, and by so much:
that of one direction whose variance is off by a factor 1.37, since λ + 1/λ − 2 is 0.1 there."""

BORDER = 0.01
"""Product of the variances of draws and scores below which the scores say nothing."""

DENSE = 400
"""Dimensions up to which a matrix is tried."""


def fisher_divergence(
    P: Preconditioner, x: Float[Tensor, "n *event"], s: Float[Tensor, "n *event"], m: Tensor
) -> float:
    """Return the mean of ‖Rᵀ s + R⁻¹ (x − m)‖² over draws x and their scores s."""
    check_kind(P, "P", Preconditioner, "a Preconditioner")
    check_points(x)
    check_points(s, "s", x.shape[1:])
    check_same_shape(s, x, "s")
    check_finite(m, "m")
    if m.shape != x.shape[1:]:
        raise ValueError(f"m must have shape {tuple(x.shape[1:])}, got {tuple(m.shape)}")
    # ‖Rᵀs + R⁻¹y‖² = sᵀPs + 2 sᵀy + yᵀP⁻¹y needs no Rᵀ
    y = x - m
    cross = s.flatten(1) * (P.apply(s).flatten(1) + 2 * y.flatten(1))
    return finite_result(float((cross.sum(1) + P.inv_quadratic(y)).mean()))


def _held_out(P: Preconditioner, x: Tensor, s: Tensor, new_x: Tensor, new_s: Tensor) -> float:
    """Return the divergence on new draws, with the mean x̄ + S s̄ that is the best on the old ones."""
    return fisher_divergence(P, new_x, new_s, x.mean(0) + P.apply(s.mean(0, keepdim=True))[0])


def fit_metric(
    x: Float[Tensor, "n *event"],
    score: Float[Tensor, "n *event"],
    kind: Learn = "auto",
    current: Preconditioner | None = None,
) -> Preconditioner:
    r"""Return the metric of smallest Fisher divergence from n draws and their scores.

    With `auto` a diagonal, low-rank metrics (from 64 dimensions) and matrices with different
    shrinkage are fitted to each half of the draws and judged on the other, together with the
    current metric. The best is fitted to all. If scores hardly vary, as for laws that end at a
    boundary, the variances of the draws are used: on all of R^d the product of both variances is
    at least 1.

    References:
        | Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005)
        | https://jmlr.org/papers/v6/hyvarinen05a.html

    Arguments:
        x: Draws, in order.
        score: Their scores.
        kind: `diagonal`, `matrix`, or `auto` for the one that the draws support.
        current: A metric that is returned itself if no other predicts clearly better.

    Raises:
        ValueError: For fewer than 4 draws, or a coordinate whose draws do not vary.
    """
    check_points(x, least=4)
    check_points(score, "score", x.shape[1:])
    check_same_shape(score, x, "score")
    check_option(kind, "kind", [k for k in get_args(Learn) if k != "none"])
    if current is not None:
        check_kind(current, "current", Preconditioner, "a Preconditioner")
    event = x.shape[1:]
    x, score = x.flatten(1).double(), score.flatten(1).double()
    if not bool((torch.isfinite(x.var(0)) & (x.var(0) > 0)).all()):
        raise ValueError("a coordinate of x did not move at all; start from a smaller step_size")
    var = x.var(0)
    if bool((var * score.var(0) < BORDER).any()):
        return Preconditioner(var.reshape(event), "diagonal")
    halves = x.tensor_split(2), score.tensor_split(2)
    best, least = None, torch.inf
    names = list(_candidates(x.shape[1], kind))
    for name in names if len(names) > 1 else ():
        value = 0.0
        for a, b in ((0, 1), (1, 0)):
            old = halves[0][a], halves[1][a]
            value += _held_out(_fitted(*old, *name), *old, halves[0][b], halves[1][b])
        if value < least:
            best, least = name, value
    if current is not None and kind == "auto":
        flat = _flattened(current)
        value = 2 * _held_out(flat, x, score, x, score)
        if value <= KEPT * least + 2 * NOTHING:
            return current
    P = _fitted(x, score, *(best or names[0]))
    fitted = torch.as_tensor(P.value)  # in float64: rounded, a stiff one would be singular
    return Preconditioner(fitted.reshape(event) if P.kind == "diagonal" else fitted, P.kind)


def _flattened(P: Preconditioner) -> Preconditioner:
    if P.kind == "number":
        return P
    value = P.value.double()  # type: ignore[union-attr]
    return Preconditioner(value.flatten() if P.kind == "diagonal" else value, P.kind)


def _candidates(d: int, kind: Learn) -> Iterator[tuple[str, float]]:
    """Yield families with the number of draws that the shrinkage counts for."""
    if kind != "matrix":
        yield "diagonal", 0.0
    if kind == "diagonal":
        return
    if d <= DENSE:
        yield "matrix", 1e-9
        yield "matrix", 0.5 * d
    if kind == "auto" and d >= LARGE:
        yield "low-rank", 1.0


def _fitted(x: Tensor, s: Tensor, kind: str, kappa: float) -> Preconditioner:
    """Return the best metric of a family for draws and scores `(n, d)`."""
    tiny = torch.finfo(x.dtype).tiny
    sd = (x.var(0) / s.var(0).clamp(min=tiny)).clamp(min=tiny).pow(0.25)  # √ of the diagonal S
    if kind == "diagonal":
        return Preconditioner(sd.square(), kind="diagonal")
    y, r, n = (x - x.mean(0)) / sd, (s - s.mean(0)) * sd, len(x)
    if kind == "low-rank":
        # both covariances differ from the identity along few directions, which either shows
        k = min(LARGE, n // 4, x.shape[1] // 2)
        directions = [torch.linalg.svd(a, full_matrices=False).Vh[:k] for a in (y, r)]
        basis = torch.linalg.qr(torch.cat(directions).mT).Q
        S = _geometric(_shrunk(y @ basis, kappa), _shrunk(r @ basis, kappa))
        w, U = torch.linalg.eigh(S)
        keep = w.log().abs() > 0.5
        rows = (basis @ U[:, keep] * w[keep]).mT
        return Preconditioner(torch.cat([sd[None], rows]), kind="low-rank")
    S = _geometric(_shrunk(y, kappa), _shrunk(r, kappa))
    return Preconditioner(sd[:, None] * S * sd, kind="matrix")


def _shrunk(y: Tensor, kappa: float) -> Tensor:
    """Return the second moment of y, shrunk to the identity as by κ more draws of N(0, I)."""
    n = len(y)
    return (y.mT @ y + kappa * torch.eye(y.shape[1]).to(y)) / (n - 1 + kappa)


def _geometric(A: Tensor, B: Tensor) -> Tensor:
    """Return the S for which S B S = A: B^{-1/2} (B^{1/2} A B^{1/2})^{1/2} B^{-1/2}."""
    root, inverse = _power(B, 0.5), _power(B, -0.5)
    S = inverse @ _power(root @ A @ root, 0.5) @ inverse
    return (S + S.mT) / 2


def _power(A: Tensor, power: float) -> Tensor:
    w, U = torch.linalg.eigh((A + A.mT) / 2)
    w = w.clamp(min=1e-14 * float(w.max()))
    return (U * w**power) @ U.mT
