r"""Nonparametric score estimates in a space of vector fields with a matrix-valued kernel Γ.

For data x_1 … x_n let (L s)(x) = (1/n) Σ_m Γ(x, x_m) s(x_m) and ζ(x) = (1/n) Σ_m div_m Γ(x_m, x).
Partial integration makes ζ an estimate of −L ∇ log p, so that each estimator is a regularised
solution of L s = −ζ,

    s = −g(L) ζ = a ζ + Σ_m Γ(·, x_m) c_m

with a spectral filter g(σ) ≈ 1/σ. The kernel is Γ = φ I (diagonal) or Γ = −h² ∇∇ᵀ φ (curl-free, so
that s is a gradient), with φ(x − y) = exp(−r²/2) or (1 + r²)^{−1/2} of r = ‖x − y‖/h. Then Γ(x, x)
= I, no eigenvalue of L exceeds 1, and the regularisation does not depend on units. Far from all
data every estimate vanishes.

References:
    | Nonparametric Score Estimators (Zhou et al., 2020)
    | https://arxiv.org/abs/2005.10099
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, TypedDict, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    check_batch,
    check_count,
    check_number,
    check_option,
    check_points,
    distances,
    permutation,
    rows_held,
    sum_event,
    warn_of_cost,
)

Strength = float | Literal["cv"]
MANY_UNKNOWNS = 3000  # from there on one fit takes ten seconds and more, and "cv" many fits
MAX_DENSE = 8000  # unknowns of a linear system that is stored: half a gigabyte
LAMBDAS = tuple(10.0 ** (-k / 2) for k in range(11))
COUNTS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50)
ITERATIONS = (1, 2, 3, 5, 8, 12, 20, 30, 50, 80, 120, 200)
BANDWIDTHS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""What "cv" chooses from: λ, eigenfunctions, iterations, multiples of the median distance."""


class Options(TypedDict, total=False):
    """Options of all estimators; "cv" minimises ½‖s‖² + tr ∇s on held-out points.

    For n points with d entries a fit needs memory (n d)² with a curl-free kernel and n² with a
    diagonal one, and time proportional to the power 3/2 of that (the ν-method: to that itself,
    times the iterations). Above 3,000 unknowns, n d or n, there is a warning, and the maximum is
    8,000. "cv" needs `folds` more fits for each bandwidth. A score at B points takes time B n d.

    All refuse data that are not finite, too few or all equal, and numbers that are not positive.
    """

    bandwidth: float | Literal["median", "cv"]  # h; by default the median distance of two points
    shape: Literal["rbf", "imq"]  # φ, by default rbf
    folds: int  # of cross-validation, by default 5
    generator: torch.Generator | None  # deals the points out to the folds


@dataclass(frozen=True)
class _Kernel:
    """Γ and its derivatives in units of the bandwidth, as functions of u = ‖x − y‖²."""

    shape: str
    curl_free: bool
    d: int

    def phi(self, u: Tensor, k: int) -> Tensor:
        """Return the k-th derivative of φ with respect to u."""
        if self.shape == "rbf":
            return (-0.5) ** k * torch.exp(-0.5 * u)
        return math.prod(-0.5 - i for i in range(k)) * (1 + u) ** (-0.5 - k)

    def parts(self, u: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return P and R of Γ = P I + R D Dᵀ, D = x − y."""
        if self.curl_free:
            return -2 * self.phi(u, 1), -4 * self.phi(u, 2)
        return self.phi(u, 0), None

    def divergence(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return Z and dZ/du, where the divergence of Γ in its second argument is Z D."""
        f = lambda k: self.phi(u, k)
        if self.curl_free:
            z = 4 * (self.d + 2) * f(2) + 8 * u * f(3)
            return z, 4 * (self.d + 4) * f(3) + 8 * u * f(4)
        return -2 * f(1), -2 * f(2)


@dataclass(frozen=True)
class KernelScore:
    """A fitted score: a function of x, with the bandwidth and regularisation given or chosen."""

    bandwidth: float
    regularization: float
    event_shape: torch.Size
    kernel: _Kernel
    points: Float[Tensor, "n d"]
    coefficients: Float[Tensor, "n d"]
    a: float

    def _map(self, f: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        """Apply f(D, u, D·c) to chunks of x, in the units of the bandwidth."""
        check_batch(x, self.event_shape)
        z, parts = x.flatten(1).to(self.points) / self.bandwidth, []
        for part in z.split(rows_held(3 * self.points.numel())):
            D = part.unsqueeze(1) - self.points
            parts.append(f(D, D.square().sum(-1), (D * self.coefficients).sum(-1)))
        return torch.cat(parts).to(x)

    def score(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return the estimate of ∇ log p(x)."""
        return self._map(self._field, x).reshape(x.shape) / self.bandwidth

    __call__ = score

    def _field(self, D: Tensor, u: Tensor, Dc: Tensor) -> Tensor:
        P, R = self.kernel.parts(u)
        w = self.a / len(self.points) * self.kernel.divergence(u)[0]
        w = w if R is None else w + R * Dc
        return P @ self.coefficients + torch.einsum("bn,bnd->bd", w, D)

    def divergence(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return tr ∇s(x), in closed form."""
        return self._map(self._trace, x) / self.bandwidth**2

    def _trace(self, D: Tensor, u: Tensor, Dc: Tensor) -> Tensor:
        z, dz = self.kernel.divergence(u)
        return (self.a / len(self.points) * (self.kernel.d * z + 2 * u * dz) - z * Dc).sum(1)

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return log p(x) up to a constant, whose gradient is the score.

        Raises:
            ValueError: For a diagonal kernel, whose field is not a gradient.
        """
        if not self.kernel.curl_free:
            raise ValueError("a diagonal kernel gives no gradient; use a curl-free estimator")
        return self._map(self._potential, x)

    def _potential(self, D: Tensor, u: Tensor, Dc: Tensor) -> Tensor:
        slope = self.kernel.phi(u, 1)
        laplacian = 2 * self.kernel.d * slope + 4 * u * self.kernel.phi(u, 2)
        return (self.a / len(self.points) * laplacian - 2 * slope * Dc).sum(1)


class System(NamedTuple):
    """L at the n data points, `(N, N)`, and ζ there, `(N, r)`; N = n, or n d if curl-free."""

    L: Tensor
    zeta: Tensor
    n: int


def _system(points: Tensor, kernel: _Kernel) -> System:
    """Return the matrix of L at the data and ζ there; the curl-free L mixes coordinates."""
    n, d = points.shape
    N = n * d if kernel.curl_free else n
    if N > MAX_DENSE:
        raise ValueError(
            f"{N} unknowns are more than the limit of {MAX_DENSE}; fit a subset of the data"
        )
    warn_of_cost(
        N, MANY_UNKNOWNS, "a kernel estimator",
        "these are its unknowns; fit a random subset of the data, or train a network with fit",
    )  # fmt: skip
    zeta = KernelScore(1.0, 0.0, points.shape[1:], kernel, points, 0 * points, 1.0)(points)
    u = distances(points, points).square()
    P, R = kernel.parts(u)
    if R is None:
        return System(P / n, zeta, n)
    D = points.unsqueeze(1) - points
    blocks = torch.einsum("mn,ij->minj", P, torch.eye(d).to(P))
    blocks = blocks + torch.einsum("mn,mni,mnj->minj", R, D, D)
    return System(blocks.reshape(N, N) / n, zeta.reshape(N, 1), n)


def _tikhonov(system: System, strengths: Sequence[float]) -> list[tuple[float, Tensor]]:
    """g(σ) = 1/(σ + λ): a = −1/λ, c = (L + λ)⁻¹ ζ / (n λ)."""
    w, U = torch.linalg.eigh(system.L)
    inner, w, n = U.mT @ system.zeta, w.clamp(min=0).unsqueeze(1), system.n
    return [(-1 / lam, U @ (inner / (w + lam)) / (n * lam)) for lam in strengths]


def _cutoff(system: System, strengths: Sequence[float]) -> list[tuple[float, Tensor]]:
    """g(σ) = 1/σ on the leading eigenvectors: a = 0, c = −Σ_j u_j u_jᵀ ζ / (n σ_j²)."""
    w, U = (v.flip(-1) for v in torch.linalg.eigh(system.L))
    w = torch.where(w > 1e-10 * w[0], w, math.inf)  # beyond it the eigenvectors are rounding
    terms = (U.mT @ system.zeta) / w.square().unsqueeze(1) / system.n
    return [(0.0, -U[:, : int(j)] @ terms[: int(j)]) for j in strengths]


def _nu(system: System, strengths: Sequence[float], nu: float) -> list[tuple[float, Tensor]]:
    """s_k = s_{k−1} + u_k (s_{k−1} − s_{k−2}) − ω_k (ζ + L s_{k−1}) from s_0 = 0."""
    found, a, a_old = {}, 0.0, 0.0
    c = c_old = torch.zeros_like(system.zeta)
    for k in range(1, int(max(strengths)) + 1):
        p = (k + 2 * nu - 1) * (2 * k + 4 * nu - 1)
        u = 0.0  # also where ν = ½ makes it 0/0
        if k > 1:
            u = (k - 1) * (2 * k - 3) * (2 * k + 2 * nu - 1) / (p * (2 * k + 2 * nu - 3))
        omega = 4 * (2 * k + 2 * nu - 1) * (k + nu - 1) / p
        s = a * system.zeta + system.n * (system.L @ c)
        a, a_old = a + u * (a - a_old) - omega, a
        c, c_old = c + u * (c - c_old) - omega / system.n * s, c
        found[k] = (a, c)
    return [found[int(k)] for k in strengths]


def _fit(
    solver: Callable[[System, Sequence[float]], list[tuple[float, Tensor]]],
    data: Tensor,
    strength: float | str,
    name: str,
    grid: Sequence[float],
    curl_free: bool,
    bandwidth: float | str = "median",
    shape: str = "rbf",
    folds: int = 5,
    generator: torch.Generator | None = None,
) -> KernelScore:
    """Check the data, choose what is to be chosen by cross-validation, and solve."""
    check_count(folds, "folds", 2)
    chosen = [v for v in (bandwidth, strength) if isinstance(v, str) and v == "cv"]
    check_points(data, "data", least=2 * folds if chosen else 2)
    check_option(shape, "shape", ("rbf", "imq"))
    z = data.flatten(1).double()
    apart = torch.pdist(z)
    if not bool((apart > 0).any()):
        raise ValueError("all points of data coincide")
    median = float(apart.median())
    if isinstance(bandwidth, str):
        check_option(bandwidth, "bandwidth, if it is not a number,", ("median", "cv"))
        if median == 0:
            raise ValueError(
                "more than half of all pairs of points of data coincide; pass a number as bandwidth"
            )
        hs = [median] if bandwidth == "median" else [factor * median for factor in BANDWIDTHS]
    else:
        check_number(bandwidth, "bandwidth", above=0)
        hs = [bandwidth]
    if isinstance(strength, str):
        check_option(strength, f"{name}, if it is not a number,", ("cv",))
        strengths = grid
    else:
        check_number(strength, name, above=0)
        if grid is not LAMBDAS and strength % 1:
            raise ValueError(f"{name} must be an integer, got {strength}")
        strengths = [strength]
    form = _Kernel(shape, curl_free, z.shape[1])

    def solve(points: Tensor, h: float, strengths: Sequence[float]) -> Iterator[KernelScore]:
        points = points / h
        found = solver(_system(points, form), strengths)
        for s, (a, c) in zip(strengths, found, strict=True):
            yield KernelScore(h, s, data.shape[1:], form, points, c.reshape(points.shape), a)

    if len(hs) * len(strengths) > 1:
        order = permutation(len(z), generator).to(z.device)
        losses = torch.zeros(len(hs), len(strengths))
        for held_out in order.chunk(folds):
            train, test = z[order[~torch.isin(order, held_out)]], data.double()[held_out]
            for i, h in enumerate(hs):
                for j, fit in enumerate(solve(train, h, strengths)):
                    loss = 0.5 * sum_event(fit(test).square()) + fit.divergence(test)
                    losses[i, j] += loss.sum().cpu()
        i, j = divmod(int(torch.where(losses.isnan(), math.inf, losses).argmin()), len(strengths))
        hs, strengths = [hs[i]], [strengths[j]]
    fit = next(solve(z, hs[0], strengths))
    if not math.isfinite(fit.a) or not bool(fit.coefficients.isfinite().all()):
        raise ValueError(
            f"the fit became NaN or infinite at {name} = {fit.regularization:g}; data, bandwidth, "
            f"{name} or nu are far too large or too small"
        )
    return fit


def stein_gradient(
    data: Float[Tensor, "n *event"], regularization: Strength = "cv", **options: Unpack[Options]
) -> KernelScore:
    """Stein gradient estimator: −(K + n λ)⁻¹ ⟨∇, K⟩ at the data, extended with a diagonal Γ.

    References:
        | Gradient Estimators for Implicit Models (Li & Turner, 2018)
        | https://arxiv.org/abs/1705.07107
    """
    return _fit(_tikhonov, data, regularization, "regularization", LAMBDAS, False, **options)


def spectral_stein(
    data: Float[Tensor, "n *event"], n_eigen: Strength = "cv", **options: Unpack[Options]
) -> KernelScore:
    """SSGE: the score in the first `n_eigen` Nyström eigenfunctions of a diagonal kernel.

    References:
        | A Spectral Approach to Gradient Estimation for Implicit Distributions (Shi et al., 2018)
        | https://arxiv.org/abs/1806.02925
    """
    check_points(data, "data")
    if not isinstance(n_eigen, str):  # as many eigenvectors as points
        check_number(n_eigen, "n_eigen", above=0, most=len(data))
    return _fit(_cutoff, data, n_eigen, "n_eigen", COUNTS, False, **options)


def kernel_exponential_family(
    data: Float[Tensor, "n *event"], regularization: Strength = "cv", **options: Unpack[Options]
) -> KernelScore:
    r"""Kernel exponential family p ∝ exp(f): f minimises mean(½‖∇f‖² + Δf) + ½ λ ‖f‖².

    Exact in the RKHS of h² φ, by one system with n d unknowns: Tikhonov with the curl-free Γ.

    References:
        | Density Estimation in Infinite Dimensional Exponential Families (Sriperumbudur et al., 2017)
        | https://jmlr.org/papers/v18/16-011.html
    """
    return _fit(_tikhonov, data, regularization, "regularization", LAMBDAS, True, **options)


def nu_method(
    data: Float[Tensor, "n *event"],
    iterations: Strength = "cv",
    nu: float = 1.0,
    curl_free: bool = True,
    **options: Unpack[Options],
) -> KernelScore:
    """ν-method: accelerated iterations stopped early; k of them act like λ = k⁻²."""
    check_number(nu, "nu", above=0)
    return _fit(
        partial(_nu, nu=nu), data, iterations, "iterations", ITERATIONS, curl_free, **options
    )
