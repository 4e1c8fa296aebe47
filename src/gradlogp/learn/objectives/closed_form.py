r"""Score matching whose minimiser is known in closed form: exponential families and Gaussians.

If the score is linear in the parameters, the implicit loss ½‖s_θ‖² + tr ∇s_θ is quadratic in them,
and a linear system replaces training. The normalising constant is not needed.

References:
    | Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005)
    | https://jmlr.org/papers/v6/hyvarinen05a.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...calculus.reverse import score_from_log_prob
from ...core import (
    ScoreFn,
    check_batch,
    check_count,
    check_function,
    check_kind,
    check_number,
    check_option,
    check_points,
    evaluate,
)
from ...distributions.analytic import Gaussian

Statistics = Callable[[Tensor], Tensor]
"""T(x): `(B, *event) -> (B, k)`, each row a function of its own x only."""


@dataclass(frozen=True)
class ExponentialFit:
    r"""A fitted :math:`p(x) \propto h(x) \exp(θ^\top T(x))`.

    Attributes:
        theta: θ, `(k,)`.
        cov: The covariance of the estimate θ, `(k, k)`, from the spread over the data.
        statistics: T, followed by ∇ log h and log h, None for h = 1.
    """

    theta: Float[Tensor, " k"]
    cov: Float[Tensor, "k k"]
    statistics: Statistics
    base_score: ScoreFn | None = None
    base_log_prob: Callable[[Tensor], Tensor] | None = None

    @property
    def standard_error(self) -> Float[Tensor, " k"]:
        """The standard error of each entry of θ, `(k,)`."""
        return self.cov.diagonal().sqrt()

    def _exponent(self, x: Tensor) -> Tensor:
        return self.statistics(x) @ self.theta.to(x)

    def score(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return ∇ log h(x) + (∂T/∂x)ᵀ θ."""
        check_batch(x)
        s = score_from_log_prob(self._exponent)(x)
        return s if self.base_score is None else s + self.base_score(x)

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return log h(x) + θᵀ T(x), which is log p(x) up to a constant.

        Raises:
            ValueError: If the fit has ∇ log h but not log h.
        """
        check_batch(x)
        if self.base_log_prob is not None:
            return self.base_log_prob(x) + self._exponent(x)
        if self.base_score is not None:
            raise ValueError(
                "log_prob needs log h, but this fit received only its score; pass "
                "base_log_prob= to exponential_family"
            )
        return self._exponent(x)


def _derivatives(
    statistics: Statistics, weight: ScoreFn | None, x: Tensor, coordinates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ∂_i T and g_i ∂_i T, `(B, d, k)`, and Σ_i ∂_i (g_i ∂_i T), `(B, k)`."""
    B, d, J, GJ, divergence = len(x), x[0].numel(), [], [], []
    for index in torch.arange(d, device=x.device).split(coordinates):
        m = len(index)
        # one row for each (coordinate, point): forward mode twice, and T need not know of vmap
        y = x.repeat(m, *[1] * (x.ndim - 1))
        units = index[:, None] == torch.arange(d, device=x.device)
        e = units.to(x).repeat_interleave(B, 0).reshape(y.shape)

        def partial(y: Tensor, e: Tensor = e) -> tuple[Tensor, Tensor]:
            d_T = torch.func.jvp(statistics, (y,), (e,))[1]
            if weight is None:
                return d_T, d_T
            return (weight(y) * e).flatten(1).sum(1, keepdim=True) * d_T, d_T

        weighted, d_weighted, plain = torch.func.jvp(partial, (y,), (e,), has_aux=True)  # type: ignore[misc]
        J.append(plain.reshape(m, B, -1))
        GJ.append(weighted.reshape(m, B, -1))
        divergence.append(d_weighted.reshape(m, B, -1).sum(0))
    return torch.cat(J).movedim(0, 1), torch.cat(GJ).movedim(0, 1), torch.stack(divergence).sum(0)


def _inverse(A: Tensor, eps: float, advice: str) -> Tensor:
    """Return A⁻¹ of a symmetric positive definite A, after scaling to a unit diagonal.

    Raises:
        ValueError: If A is singular to the precision `eps` of its entries.
    """
    eps = max(eps, torch.finfo(A.dtype).eps)
    scale = A.diagonal().clamp(min=0).sqrt()
    flat = scale <= eps * scale.max()
    scale = torch.where(flat, 1.0, scale)
    unit = A / (scale * scale[:, None])
    w = torch.linalg.eigvalsh(unit)
    condition = float("inf") if bool(flat.any()) else float(w[-1] / w[0].clamp(min=1e-300))
    if not condition < 0.1 / (len(A) * eps):
        where = f", entries {flat.nonzero().flatten().tolist()} are 0" if bool(flat.any()) else ""
        raise ValueError(
            f"the linear system is singular (condition number {condition:.2g}{where}): {advice}"
        )
    return torch.linalg.inv(unit) / (scale * scale[:, None])


def exponential_family(
    statistics: Statistics,
    x: Float[Tensor, "n *event"],
    base_score: ScoreFn | None = None,
    weight: ScoreFn | None = None,
    ridge: float = 0.0,
    chunk_size: int = 1024,
    *,
    base_log_prob: Callable[[Tensor], Tensor] | None = None,
) -> ExponentialFit:
    r"""Fit :math:`p(x) \propto h(x) \exp(θ^\top T(x))` by (generalised) score matching.

    With J = ∂T/∂x and G = diag(g(x)), the loss E[½ Σ_i g_i s_i² + Σ_i ∂_i (g_i s_i)] is smallest at

    .. math::
        θ = -\bar A^{-1} \bar b, \quad A = J G J^\top, \quad
        b = \sum_i \partial_i (g_i \partial_i T) + J G \nabla \log h

    (bars are means over the data; g = 1 is implicit score matching, with b = ΔT + J ∇ log h), and
    θ has the covariance Ā⁻¹ Cov(A θ + b) Ā⁻¹ / n. All derivatives are exact, in forward mode.

    On a half-line or in a box g = 1 is wrong unless p vanishes at the boundary. Use a `weight`
    that vanishes there: x or x² on [0, ∞), x (1 − x) on [0, 1]. Whether exp(θᵀT) is integrable is
    not checked.

    Arguments:
        statistics: T, `(B, *event) -> (B, k)`, twice differentiable.
        x: Data, `(n, *event)`.
        base_score: ∇ log h; by default derived from `base_log_prob`, or h = 1.
        weight: g ≥ 0, one number for each coordinate, `(B, *event) -> (B, *event)`.
        ridge: A number added to the diagonal of Ā.
        chunk_size: Number of (point, coordinate) pairs differentiated together.
        base_log_prob: log h, for `ExponentialFit.log_prob`.

    Returns:
        The fit, with θ, its covariance, score and log-density.

    Raises:
        ValueError: For fewer than two points, data or derivatives that are not finite, a function
            that returns a wrong shape, a negative weight or ridge, or a singular system.

    References:
        | Some Extensions of Score Matching (Hyvärinen, 2007)
        | https://doi.org/10.1016/j.csda.2006.09.003
        | Generalized Score Matching for Non-Negative Data (Yu, Drton & Shojaie, 2019)
        | https://jmlr.org/papers/v20/18-278.html
    """
    check_points(x, least=2)
    n, d = len(x), x[0].numel()
    check_number(ridge, "ridge", least=0)
    check_count(chunk_size, "chunk_size")
    check_function(statistics, "statistics")
    for name, f in (("base_score", base_score), ("base_log_prob", base_log_prob)):
        if f is not None:
            check_function(f, name)
    found = statistics(x[:2])
    check_kind(found, "the return value of statistics", Tensor, "a tensor")
    shape = found.shape
    if len(shape) != 2 or shape[0] != 2 or shape[1] == 0:
        raise ValueError(f"statistics must return shape (B, k), got {tuple(shape)} for B = 2")
    k = shape[1]
    if base_score is None and base_log_prob is not None:
        base_score = score_from_log_prob(base_log_prob)
    coordinates = min(d, chunk_size)
    points = max(1, chunk_size // coordinates)

    def terms() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield J, G J and b of some points, in double precision."""
        for part in x.split(points):
            if weight is not None:
                g = evaluate(weight, part, "weight")
                if not bool((g >= 0).all()):
                    raise ValueError("weight must be at least 0 at every data point")
            J, GJ, b = (v.double() for v in _derivatives(statistics, weight, part, coordinates))
            if base_score is not None:
                s = evaluate(base_score, part, "base_score")
                b = b + torch.einsum("bdk,bd->bk", GJ, s.flatten(1).double())
            yield J, GJ, b

    with torch.no_grad():
        b = torch.zeros(k, dtype=torch.float64, device=x.device)
        A = torch.outer(b, b)
        for J, GJ, b_x in terms():
            A += torch.einsum("bdk,bdl->kl", J, GJ) / n
            b += b_x.sum(0) / n
        if not bool(torch.isfinite(A).all() and torch.isfinite(b).all()):
            raise ValueError(
                "derivatives of statistics, weight or base are not finite on the data"
            )
        inverse = _inverse(
            A + ridge * torch.eye(k).to(A),
            torch.finfo(x.dtype).eps ** 2,  # J enters squared
            "drop statistics that are constant or linearly dependent, use more points "
            f"({n * d} derivatives for {k} statistics), or pass ridge > 0",
        )
        theta = -inverse @ b
        # a second pass, since the spread needs θ and A(x) of all points would not fit
        spread = torch.zeros_like(A)
        for J, GJ, b_x in terms():
            psi = torch.einsum("bdk,bd->bk", GJ, J @ theta) + b_x + ridge * theta
            spread += psi.mT @ psi / n
    cov = inverse @ spread @ inverse / n
    return ExponentialFit(theta.to(x), cov.to(x), statistics, base_score, base_log_prob)


def gaussian_precision(
    x: Float[Tensor, "n d"],
    structure: Literal["full", "diagonal", "isotropic"] | Bool[Tensor, "d d"] = "full",
) -> Gaussian:
    r"""Fit a Gaussian N(x̄, Λ⁻¹) with Λ of a given structure by implicit score matching.

    For s(x) = −Λ (x − μ) the loss is ½ tr(Λ S Λ) − tr Λ at μ = x̄, S the biased covariance:

    .. math::
        Λ = S^{-1} \text{ (full)}, \quad Λ_{ii} = 1 / S_{ii} \text{ (diagonal)}, \quad
        Λ = \frac{d}{\operatorname{tr} S} I \text{ (isotropic)},

    and for a pattern of zeros the linear system ½ (Λ S + S Λ)_ij = δ_ij over the free entries. The
    first three are maximum likelihood too; a pattern of zeros is not.

    Arguments:
        x: Data, `(n, d)`.
        structure: full, diagonal, isotropic, or a symmetric mask `(d, d)`, True where Λ is free.

    Raises:
        ValueError: For a mask that is not symmetric or does not free the diagonal, or if the fit
            is not a Gaussian: a singular S, a constant coordinate, a Λ that is not positive.

    References:
        | Estimation of High-Dimensional Graphical Models Using Regularized Score Matching (Lin et al., 2016)
        | https://doi.org/10.1214/16-EJS1126

    Examples:
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> law = glp.objectives.gaussian_precision(x)
        >>> law.mean, law.cov
        (tensor([2.5000], dtype=torch.float64), tensor([[1.2500]], dtype=torch.float64))
    """  # noqa: E501
    check_batch(x)
    if x.ndim != 2:
        raise ValueError(f"x must have shape (n, d), got {tuple(x.shape)}; flatten it first")
    check_points(x, least=2)
    d, mean = x.shape[1], x.double().mean(0)
    centred = x.double() - mean
    S = centred.mT @ centred / len(x)
    mean = mean.to(x)
    advice = f"use more than d = {d} distinct points, or a structure with fewer parameters"
    if not isinstance(structure, Tensor):
        check_option(
            structure, "structure, if it is not a mask,", ("full", "diagonal", "isotropic")
        )
        if structure == "isotropic" and float(S.trace()) > 0:
            return Gaussian(mean, S.trace() / d)
        if structure == "diagonal" and bool((S.diagonal() > 0).all()):
            return Gaussian(mean, S.diagonal())
        if structure == "full":
            _inverse(S, 0.0, advice)  # refuses a singular S
            return Gaussian(mean, S)
        raise ValueError("a coordinate has variance 0, so its precision is infinite; drop it")
    check_kind(structure, "structure", Tensor, "a mask")
    mask = structure.to(x.device)
    fits = mask.shape == (d, d) and mask.dtype == torch.bool
    if not fits or not bool((mask == mask.mT).all() and mask.diagonal().all()):
        raise ValueError(
            f"a mask as structure must be boolean ({d}, {d}), symmetric, True on the diagonal"
        )
    i, j = mask.triu().nonzero().unbind(1)
    same = lambda p, q: (p[:, None] == q).to(S)
    # tr(B_e S B_f) for the symmetric units B_e = e_i e_jᵀ + e_j e_iᵀ (halved where i = j)
    M = S[j][:, i] * same(i, j) + S[j][:, j] * same(i, i)
    M = M + S[i][:, i] * same(j, j) + S[i][:, j] * same(j, i)
    half = torch.where(i == j, 0.5, 1.0).to(S)
    entries = _inverse(M * half * half[:, None], 0.0, advice) @ (i == j).to(S)
    precision = torch.zeros_like(S)
    precision[i, j] = precision[j, i] = entries
    smallest = float(torch.linalg.eigvalsh(precision)[0])
    if not smallest > 0:
        raise ValueError(
            f"the fitted precision is not positive definite (smallest eigenvalue {smallest:.3g}), "
            "so this is not a Gaussian: use more points, or free more entries of the mask"
        )
    cov = torch.linalg.inv(precision)
    return Gaussian(mean, (cov + cov.mT) / 2)
