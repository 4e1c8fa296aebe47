r"""The law of a finite data set, and its noised laws: kernel density estimates, exactly.

With X uniform on x_1 … x_N the law of α X + σ Z is the mixture of the N(α x_i, σ² I), so that with

    w = softmax(−‖x − α x_i‖² / 2σ²),   m = Σ_i w_i x_i,   C = Σ_i w_i (x_i − m)(x_i − m)ᵀ

    s = (α m − x)/σ²,   ∇² log p = (α²/σ²) C/σ² − I/σ²,   E[X | x] = m,   Cov[X | x] = C.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    check_batch,
    check_count,
    check_points,
    choice,
    distances,
    per_sample,
    randn_like,
    rows_held,
    sent,
    warn_of_cost,
)
from .covariance import coefficients

MANY_DATA = 100_000
"""Data above which a warning comes: a score at 1,000 points then takes seconds."""


def _squared_distances(x: Tensor, y: Tensor, a: Tensor) -> Tensor:
    """Return ‖x − a y‖², `(B, N)`, for a of shape `()` or `(B,)`, differentiable in every mode."""
    if a.ndim or x.shape[1] <= 8:  # coordinate by coordinate, which stores no (B, N, D)
        squared = x.new_zeros(len(x), len(y))
        for u, v in zip(x.unbind(1), y.unbind(1), strict=True):
            squared = squared + (u[:, None] - a.reshape(-1, 1) * v).square()
        return squared
    y = a * y
    value = distances(x.detach(), y.detach())
    # cdist has no forward mode and no second derivatives. The expansion has both, exactly, and
    # cancels in its value only, which does not enter.
    expansion = x.square().sum(1, keepdim=True) + y.square().sum(1) - 2 * x @ y.mT
    return value.square() + (expansion - expansion.detach())


# Functions of flat x and y, α and σ, and u = ‖x − α y‖²/σ², `(B, N)`.


def _log_density(x: Tensor, y: Tensor, a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    log_norm = y.shape[1] * (b.log() + 0.5 * math.log(2 * math.pi)) + math.log(len(y))
    return (-0.5 * u).logsumexp(1) - log_norm.reshape(-1)


def _mean(x: Tensor, y: Tensor, a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    return (-0.5 * u).softmax(1) @ y


def _covariance(x: Tensor, y: Tensor, a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    w = (-0.5 * u).softmax(1)
    z = w.sqrt().unsqueeze(-1) * (y - (w @ y).unsqueeze(1))
    return z.mT @ z


class Empirical:
    r"""The law that puts mass 1/N on each data point, closed under Gaussian noising.

    .. math:: α X + σ Z \sim \frac1N \sum_i N(α x_i, σ^2 I)

    The law itself has neither density nor score; the result of `noised` has both. Distances are
    computed as differences of centred data, so that there is no cancellation far from the origin.
    Density, score and posterior mean at B points take time of order B N D for N data points with D
    entries each; from 100,000 data points on a warning says so.

    Arguments:
        data: The points, `(N, *event)`.
        chunk_size: Number of points x processed together, so that memory is of order chunk_size ·
            N; by default as many as need some 64 MB.

    Raises:
        ValueError: For data without a batch dimension, empty or not finite; for a chunk_size below
            1; from all methods but `sample` and `noised`, if there is no noise.

    References:
        | On Estimation of a Probability Density Function and Mode (Parzen, 1962)
        | https://doi.org/10.1214/aoms/1177704472

    Examples:
        >>> law = glp.Empirical(torch.tensor([[-1.0], [1.0]])).noised(1.0, 0.5)
        >>> law.score(torch.tensor([[0.0], [1.0]]))
        tensor([[ 0.0000],
                [-0.0027]])
    """

    def __init__(self, data: Float[Tensor, "n *event"], chunk_size: int | None = None) -> None:
        check_points(data, "data")
        warn_of_cost(
            len(data), MANY_DATA, "every evaluation of an empirical law",
            "use a random subset of the data, or train a score on all of it with fit",
        )  # fmt: skip
        chunk_size = rows_held(4 * len(data)) if chunk_size is None else chunk_size
        check_count(chunk_size, "chunk_size")
        self.data, self.chunk_size, self.dtype = data, chunk_size, data.dtype
        self._origin = data.mean(0)
        one = torch.ones((), dtype=data.dtype)  # on the host, where it can be looked at
        self._alpha, self._sigma = one, torch.zeros_like(one)

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one draw."""
        return self.data.shape[1:]

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> Empirical:
        """Return the law of α X + σ Z, X of this law; α, σ `()` or one for each sample `(B,)`."""
        like = self._alpha
        for v in (alpha, sigma):  # coefficients in double precision stay so
            if isinstance(v, Tensor) and v.is_floating_point():
                like = like.to(torch.promote_types(like.dtype, v.dtype))
        a, b = coefficients(alpha, sigma, like)
        law = object.__new__(Empirical)
        law.data, law.chunk_size, law.dtype = self.data, self.chunk_size, self.dtype
        law._origin = self._origin
        law._alpha = a * self._alpha
        law._sigma = (a.square() * self._sigma.square() + b.square()).sqrt()
        return law

    def _coefficients(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Check x and return α and σ in its dtype; refuse σ = 0."""
        check_batch(x, self.event_shape)
        if self._alpha.ndim and len(self._alpha) != len(x):
            raise ValueError(f"this law was noised for {len(self._alpha)} samples, got {len(x)}")
        a, b = self._alpha.to(x.dtype), self._sigma.to(x.dtype)
        if not bool((b > 0).all()):
            raise ValueError(
                "point masses have no density and no score at sigma = 0; use "
                ".noised(alpha, sigma) with sigma > 0"
            )
        return sent(a, x.device), sent(b, x.device)

    def _map(
        self, f: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor], x: Tensor, rows: int
    ) -> Tensor:
        """Apply f(x, y, α, σ, ‖x − α y‖²/σ²) to flat chunks of x, with the data mean moved to 0."""
        alpha, sigma = self._coefficients(x)
        y, origin = (self.data - self._origin).flatten(1).to(x), self._origin.to(x)
        parts = []
        for start in range(0, max(len(x), 1), rows):
            part = x[start : start + rows]
            a, b = (v[start : start + rows] if v.ndim else v for v in (alpha, sigma))
            flat = (part - per_sample(a, part) * origin).flatten(1)
            squared, a, b = _squared_distances(flat, y, a), *(per_sample(v, flat) for v in (a, b))
            parts.append(f(flat, y, a, b, squared / b / b))  # b² may underflow
        return torch.cat(parts)

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return log p(x), the log of a kernel density estimate."""
        return self._map(_log_density, x, self.chunk_size)

    def score(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return ∇ log p(x) = (α Σ_i w_i x_i − x)/σ²."""
        f = lambda x, y, a, b, u: (a * _mean(x, y, a, b, u) - x) / b / b
        return self._map(f, x, self.chunk_size).reshape(x.shape)

    def _flat(self, what: str) -> int:
        if len(self.event_shape) != 1:
            raise ValueError(
                f"{what} needs flat data (N, D), got events {tuple(self.event_shape)}"
            )
        return self.event_shape[0]

    def _spread(self, x: Tensor) -> Tensor:
        """Return Cov_w = Σ_i w_i (x_i − m)(x_i − m)ᵀ at x, `(B, D, D)`."""
        return self._map(_covariance, x, max(1, self.chunk_size // self._flat("a covariance")))

    def hessian(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D D"]:
        """Return ∇² log p(x) = (α²/σ⁴) Cov_w − I/σ², for flat events.

        Raises:
            ValueError: Without noise, or for data that are not `(N, D)`.
        """
        D = self._flat("the Hessian")
        a, b = (v.reshape(-1, 1, 1) for v in self._coefficients(x))
        return (a / b / b).square() * self._spread(x) - torch.eye(D).to(x) / b / b

    def sample(
        self, n: int, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n *event"]:
        """Draw n independent points α x_i + σ z; without noise, data points with replacement."""
        check_count(n, "n")
        if self._alpha.ndim:
            raise ValueError("only a law noised with α and σ of shape () can be sampled, not (B,)")
        k = choice(torch.ones(len(self.data), device=self.data.device), n, generator)
        x = self._alpha.to(self.data) * self.data[k]
        return x + self._sigma.to(x) * randn_like(x, generator) if self._sigma > 0 else x

    def posterior_mean(
        self, x_t: Float[Tensor, "batch *event"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch *event"]:
        r"""Return E[X | α X + σ Z = x_t], :math:`\sum_i w_i x_i` where this law has no noise itself."""
        check_batch(x_t, self.event_shape, "x_t")
        law = self.noised(alpha, sigma)
        m = law._map(_mean, x_t, self.chunk_size).reshape(x_t.shape) + self._origin.to(x_t)
        A, a_t, gain = (
            per_sample(v, x_t) for v in (self._alpha, law._alpha, law._gain(self, alpha))
        )
        return A * m + gain * (x_t - a_t * m)

    def _gain(self, clean: Empirical, alpha: Tensor | float) -> Tensor:
        """Return the coefficient α S²/S_t² of x_t in E[X | x_t, i], S² the noise of X itself."""
        a = torch.as_tensor(alpha, dtype=self._sigma.dtype, device=self._sigma.device)
        return a * (clean._sigma.to(self._sigma) / self._sigma).square()

    def posterior_cov(
        self, x_t: Float[Tensor, "batch D"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch D D"]:
        """Return Cov[X | α X + σ Z = x_t], for flat events.

        Raises:
            ValueError: If neither this law nor σ has any noise; for data that are not `(N, D)`.
        """
        check_batch(x_t, self.event_shape, "x_t")
        D, law = self._flat("the posterior covariance"), self.noised(alpha, sigma)
        b = coefficients(alpha, sigma, x_t)[1]
        A, S, S_t = (v.to(x_t) for v in (self._alpha, self._sigma, law._sigma))
        between, within = ((b / S_t).square() * A).square(), (S * b / S_t).square()
        spread = between.reshape(-1, 1, 1) * law._spread(x_t)
        return spread + within.reshape(-1, 1, 1) * torch.eye(D).to(x_t)
