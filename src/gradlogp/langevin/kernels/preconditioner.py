r"""A constant preconditioner P, the step being h P s(x) + √(2 h) P^{1/2} z, and what estimates it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import check_batch, check_finite, check_number, check_option, check_points, sum_event

Kind = Literal["number", "diagonal", "low-rank", "matrix"]


@dataclass(frozen=True, eq=False)
class Preconditioner:
    r"""A symmetric positive definite P with a root R, P = R Rᵀ; R is symmetric except for `low-rank`.

    The best constant choice for Langevin dynamics on a Gaussian is P = S, its covariance: then
    every direction contracts by 1 − h in a step. Preconditioners with the same values are equal.

    Arguments:
        value: P as a positive number, a diagonal in the shape of an event, a symmetric positive
            definite matrix `(d, d)` for d entries per event; or `(1 + k, d)`, standard deviations
            σ and k orthogonal rows λ_j u_j, for D (I + Σ_j (λ_j − 1) u_j u_jᵀ) D with D = diag σ.
        kind: How to read `value`: `number`, `diagonal`, `matrix`, `low-rank`. Needed only for the
            last, and for the diagonal of square events: a square tensor is otherwise a matrix.

    Raises:
        ValueError: If it is not symmetric, positive definite and finite.

    Examples:
        >>> P = glp.langevin.Preconditioner(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
        >>> P.apply(torch.ones(1, 2))
        tensor([[4., 1.]])
        >>> P.sqrt(torch.ones(1, 2))
        tensor([[2., 1.]])
    """

    value: Tensor | float
    kind: Kind | None = None
    _root: Tensor | float = field(init=False, repr=False)
    _inverse_root: Tensor | float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        P = self.value
        if isinstance(P, Tensor):
            check_finite(P, "preconditioner")
        else:
            check_number(P, "preconditioner", above=0)
        if self.kind is not None:
            check_option(self.kind, "kind", Kind)
        if isinstance(P, Tensor) and P.ndim == 0:
            P = float(P)
        kind = self.kind or _kind(P)
        if (kind == "number") != (not isinstance(P, Tensor)):
            raise ValueError(f"a preconditioner of kind {kind!r} cannot be a {type(P).__name__}")
        powers: tuple[Tensor | float, ...]
        if not isinstance(P, Tensor):
            P = float(P)
            _check(P, math.isfinite(P))
            powers = (P, P**0.5, P**-0.5)
        elif kind == "diagonal":
            _check(float(P.min()), bool(torch.isfinite(P).all()))
            powers = (P, P.sqrt(), P.rsqrt())
        elif kind == "low-rank":
            powers = _factors(P)
        else:
            powers = _matrix_powers(P)
        values = dict(zip(("value", "_root", "_inverse_root"), powers, strict=True))
        for name, v in {**values, "kind": kind}.items():
            object.__setattr__(self, name, v)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Preconditioner) or self.kind != other.kind:
            return False
        if isinstance(self.value, Tensor) and isinstance(other.value, Tensor):
            return torch.equal(self.value, other.value)
        return bool(self.value == other.value)

    def __hash__(self) -> int:
        values = self.value.flatten().tolist() if isinstance(self.value, Tensor) else [self.value]
        return hash((self.kind, *values))

    def apply(self, v: Float[Tensor, "chain *event"]) -> Float[Tensor, "chain *event"]:
        """Return P v."""
        return (
            self.sqrt(self.pull_back(v)) if self.kind == "low-rank" else self._times(self.value, v)
        )

    def sqrt(self, v: Float[Tensor, "chain *event"]) -> Float[Tensor, "chain *event"]:
        """Return R v: of N(0, I) it makes N(0, P)."""
        return self._rooted(v, 1, stretched_first=True)

    def pull_back(self, score: Float[Tensor, "chain *event"]) -> Float[Tensor, "chain *event"]:
        """Return Rᵀ s, the score in the coordinates y of x = R y."""
        return self._rooted(score, 1, stretched_first=False)

    def inv_sqrt(self, v: Float[Tensor, "chain *event"]) -> Float[Tensor, "chain *event"]:
        """Return R⁻¹ v: of N(0, P) it makes N(0, I)."""
        return self._rooted(v, -1, stretched_first=False)

    def momentum(self, z: Float[Tensor, "chain *event"]) -> Float[Tensor, "chain *event"]:
        """Return R⁻ᵀ z: of N(0, I) it makes N(0, P⁻¹), a momentum for the inverse mass P."""
        check_batch(z, name="z")
        return self._rooted(z, -1, stretched_first=True)

    def inv_quadratic(self, v: Float[Tensor, "chain *event"]) -> Float[Tensor, " chain"]:
        """Return vᵀ P⁻¹ v."""
        return sum_event(self.inv_sqrt(v).square())

    def symmetric(self) -> Preconditioner:
        """Return the same P with a symmetric root: a matrix for a low rank, else itself."""
        if self.kind != "low-rank" or not isinstance(self.value, Tensor):
            return self
        return Preconditioner(self.apply(torch.eye(self.value.shape[1]).to(self.value)), "matrix")

    def _rooted(self, v: Tensor, power: int, *, stretched_first: bool) -> Tensor:
        """Return the root R to a power ±1 times v, or its transpose, which a low rank alone tells."""
        if self.kind != "low-rank":
            return self._times(self._root if power > 0 else self._inverse_root, v)
        if stretched_first:
            return self._scaled(self._stretched(v, power / 2), power)
        return self._stretched(self._scaled(v, power), power / 2)

    def _scaled(self, v: Tensor, power: int) -> Tensor:
        """Return D v, or D⁻¹ v."""
        scale, flat = self.value[0].to(v), v.flatten(1)  # type: ignore[index]
        self._fits(len(scale), v)
        return (flat * scale if power > 0 else flat / scale).reshape(v.shape)

    def _stretched(self, v: Tensor, power: float) -> Tensor:
        """Return (I + Σ_j (λ_j − 1) u_j u_jᵀ)^power v."""
        u, lam = self._root.to(v), self._inverse_root.to(v)  # type: ignore[union-attr]
        flat = v.flatten(1)
        return (flat + (flat @ u.mT * (lam**power - 1)) @ u).reshape(v.shape)

    def _fits(self, d: int, v: Tensor) -> None:
        if d != v.shape[1:].numel():
            raise ValueError(
                f"a preconditioner for {d} entries does not fit an event of shape "
                f"{tuple(v.shape[1:])}; a diagonal of square events needs "
                "Preconditioner(value, kind='diagonal')"
            )

    def _times(self, A: Tensor | float, v: Tensor) -> Tensor:
        if not isinstance(A, Tensor):
            return v if A == 1.0 else A * v
        if self.kind == "diagonal":
            if A.shape != v.shape[1:]:
                raise ValueError(
                    f"a diagonal preconditioner of shape {tuple(A.shape)} does not fit an event "
                    f"of shape {tuple(v.shape[1:])}"
                )
            return A.to(v) * v
        self._fits(len(A), v)
        A = A if A.dtype == v.dtype and A.device == v.device else A.to(v)
        return v @ A if v.ndim == 2 else (v.flatten(1) @ A).reshape(v.shape)  # A is symmetric

    @classmethod
    def from_ensemble(
        cls, x: Float[Tensor, "chain *event"], *, dense: bool = True
    ) -> Preconditioner:
        r"""Estimate the covariance from many chains, shrunk to its diagonal.

        .. math::
            P_{ij} = (1 - λ)\, S_{ij} \; (i ≠ j), \quad P_{ii} = S_{ii}, \quad
            λ = \frac{\sum_{i≠j} \widehat{\mathrm{Var}}(r_{ij})}{\sum_{i≠j} r_{ij}^2}

        with the sample covariance S and correlations r; λ is kept in [1/n, 1], so that P is
        positive definite for any number n ≥ 2 of chains in any dimension.

        References:
            | A Shrinkage Approach to Large-Scale Covariance Matrix Estimation and Implications for
              Functional Genomics (Schäfer & Strimmer, 2005)
            | https://doi.org/10.2202/1544-6115.1175

        Arguments:
            x: Positions of the chains.
            dense: Whether to estimate a matrix; otherwise only the variances.

        Raises:
            ValueError: For fewer than two chains, a coordinate in which all of them agree, or
                variances too far apart for a matrix.
        """
        check_points(x, least=2)
        n, var = len(x), x.var(0)
        if not bool((var > 0).all()):
            raise ValueError("x must differ between chains in every coordinate")
        check_finite(var, "the variance of x")
        if not dense:
            return cls(var, kind="diagonal")
        if float(var.min()) <= var.numel() * torch.finfo(x.dtype).eps * float(var.max()):
            raise ValueError(
                f"x has variances from {float(var.min()):.3g} to {float(var.max()):.3g}: no matrix in "
                f"{x.dtype} holds both; use other units, or dense=False"
            )
        scale = var.sqrt()
        w = ((x - x.mean(0)) / scale).flatten(1)
        r = w.mT @ w / (n - 1)
        # n/(n−1)³ Σ_k (w_ki w_kj − mean)², with the mean over chains (n−1)/n r_ij
        spread = w.square().mT @ w.square() - (n - 1) ** 2 / n * r.square()
        off = ~torch.eye(len(r), dtype=torch.bool, device=r.device)
        signal = float(r.square()[off].sum())
        noise = n / (n - 1) ** 3 * float(spread[off].sum())
        shrinkage = min(max(noise / signal, 1 / n), 1.0) if signal > 0 else 1.0
        r = torch.where(off, (1 - shrinkage) * r, torch.eye(len(r)).to(r))
        sd = scale.flatten()
        return cls(sd[:, None] * r * sd, kind="matrix")


def as_preconditioner(value: Preconditioner | Tensor | float) -> Preconditioner:
    """Return a preconditioner; one stays what it is."""
    return value if isinstance(value, Preconditioner) else Preconditioner(value)


def _kind(P: Tensor | float) -> Kind:
    if not isinstance(P, Tensor):
        return "number"
    return "matrix" if P.ndim == 2 and P.shape[0] == P.shape[1] else "diagonal"


def _check(smallest: float, finite: bool) -> None:
    if not finite:
        raise ValueError("preconditioner has entries that are not finite")
    if smallest <= 0:
        raise ValueError(
            "preconditioner must be positive definite, but its smallest entry or eigenvalue is "
            f"{smallest:.3g}"
        )


def _factors(P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return P itself, u_j as rows `(k, d)`, and λ `(k,)`."""
    if P.ndim != 2:
        raise ValueError(f"a low-rank preconditioner must be (1 + k, d), got {tuple(P.shape)}")
    lam = P[1:].norm(dim=1)
    _check(float(torch.cat([P[0], lam]).min()), bool(torch.isfinite(P).all()))
    u = P[1:] / lam[:, None]
    if bool(((u @ u.mT - torch.eye(len(u)).to(u)).abs() > 1e-4).any()):
        raise ValueError(
            "the rows of a low-rank preconditioner after the first must be orthogonal"
        )
    return P, u, lam


def _matrix_powers(P: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if P.ndim != 2 or P.shape[0] != P.shape[1]:
        raise ValueError(f"preconditioner must be a square matrix, got {tuple(P.shape)}")
    _check(1.0, bool(torch.isfinite(P).all()))
    if bool(((P - P.mT).abs() > 1e-5 * P.abs().max()).any()):
        raise ValueError(
            "preconditioner must be symmetric; for the diagonal of square events use "
            "Preconditioner(value, kind='diagonal')"
        )
    P = (P + P.mT) / 2
    w, U = torch.linalg.eigh(P)
    # eigh is backward stable: an eigenvalue within rounding of 0 is 0
    tiny = len(P) * torch.finfo(P.dtype).eps * w.abs().max()
    _check(float(torch.where(w.abs() <= tiny, 0.0, w).min()), True)
    return P, (U * w.sqrt()) @ U.mT, (U * w.rsqrt()) @ U.mT


IDENTITY = Preconditioner(1.0)


@dataclass(frozen=True, eq=False)
class Welford:
    r"""Count n, mean m and scatter M = Σ (x − m)(x − m)ᵀ of the draws seen so far.

    .. math::
        n = n_a + n_b, \quad δ = m_b - m_a, \quad m = m_a + δ\, n_b/n, \quad
        M = M_a + M_b + δ δ^\top n_a n_b / n

    Nothing is ever subtracted from a sum of squares, so that a large mean does not cost digits.
    `Welford.start(x)` begins; `add` and `merge` return new accumulators and leave the old ones
    unchanged.

    References:
        | Note on a Method for Calculating Corrected Sums of Squares and Products (Welford, 1962)
        | https://doi.org/10.1080/00401706.1962.10490022

    Arguments:
        count: n.
        mean: m, in the shape of an event.
        scatter: M `(d, d)`, or its diagonal in the shape of an event.
        dense: Whether the scatter is a matrix.
    """

    count: int
    mean: Tensor
    scatter: Tensor
    dense: bool

    @classmethod
    def start(cls, x: Float[Tensor, "draw *event"], *, dense: bool = False) -> Welford:
        """Return the accumulator of a batch of draws."""
        check_batch(x)
        if len(x) == 0:
            raise ValueError("x is empty: there is no draw to start from")
        mean = x.mean(0)
        centred = x - mean
        flat = centred.flatten(1)
        scatter = flat.mT @ flat if dense else centred.square().sum(0)
        return cls(len(x), mean, scatter, dense)

    def add(self, x: Float[Tensor, "draw *event"]) -> Welford:
        """Return the accumulator with a batch of draws added."""
        return self.merge(Welford.start(x, dense=self.dense))

    def merge(self, other: Welford) -> Welford:
        """Return the accumulator of the draws of both.

        Raises:
            ValueError: If one is dense and the other is not, or the events differ in shape.
        """
        if self.dense != other.dense or self.mean.shape != other.mean.shape:
            raise ValueError(
                f"other must be {'dense' if self.dense else 'diagonal'} with events of shape "
                f"{tuple(self.mean.shape)}, got {'dense' if other.dense else 'diagonal'} and "
                f"{tuple(other.mean.shape)}"
            )
        n = self.count + other.count
        delta = other.mean - self.mean
        flat = delta.flatten()
        square = torch.outer(flat, flat) if self.dense else delta.square()
        scatter = self.scatter + other.scatter + square * (self.count * other.count / n)
        return Welford(n, self.mean + delta * (other.count / n), scatter, self.dense)

    def covariance(self) -> Tensor:
        """Return the unbiased covariance `(d, d)`, or the variances in the shape of an event.

        Raises:
            ValueError: For fewer than two draws.
        """
        if self.count < 2:
            raise ValueError("a covariance needs at least two draws")
        return self.scatter / (self.count - 1)
