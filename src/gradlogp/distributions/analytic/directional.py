r"""The von Mises–Fisher law on a sphere, and that law with Gaussian noise.

With X = r U, U on the unit sphere of R^d with density ∝ exp(η_0 · u), and Y = X + σ Z, the law of U
given Y = x is von Mises–Fisher again, with η = r x/σ² + η_0, so that

    log p(x) = −(d/2) log(2πσ²) − (‖x‖² + r²)/(2σ²) + log J(‖η‖) − log J(‖η_0‖),
    s(x) = (r A(‖η‖) η/‖η‖ − x)/σ²,

J(k) = Γ(d/2) (2/k)^{d/2−1} I_{d/2−1}(k). Near the sphere both terms of s are large and nearly equal.
They are therefore subtracted by hand, in ‖η‖ − r²/σ² and 1 − A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import check_batch, check_count, rand_like, randn_like
from .bessel import Ratio, bessel_ratio, log_bessel
from .covariance import coefficients


class _Local(NamedTuple):
    """What the law is at x, columns `(B, 1)` but for η `(B, d)`.

    With R = r²/σ², g = (‖x‖² − r²)/σ², b = ‖η‖² − (r ‖x‖/σ²)², E = ‖η‖² − R² and T = ‖η‖ + R:
    `far` is true if ‖η‖ > 1, where the forms without cancellation hold; there T and ‖η‖ are not 0.
    """

    eta: Tensor
    size: Tensor
    far: Tensor
    R: Tensor
    g: Tensor
    b: Tensor
    E: Tensor
    T: Tensor
    r: Tensor
    sigma: Tensor


@dataclass(frozen=True, eq=False)
class Directional:
    r"""The law of r U + σ Z, U von Mises–Fisher with natural parameter η_0, uniform for η_0 = 0.

    .. math:: U \sim p(u) \propto \exp(η_0 \cdot u), \; \|u\| = 1

    Closed under noising: α X + b Z has radius α r, the same η_0, and variance α² σ² + b². Without
    noise (σ = 0) it has neither density nor score.

    Wikipedia:
        https://wikipedia.org/wiki/Von_Mises–Fisher_distribution

    References:
        | Directional Statistics (Mardia & Jupp, 1999)
        | https://doi.org/10.1002/9780470316979

    Arguments:
        radius: r, shape `()`, or `(B,)` if noised for B samples.
        natural: η_0, shape `(d,)`, d at least 2.
        sigma: σ, in the same shapes.
        dtype: The dtype of the samples.

    Raises:
        ValueError: From all methods but `sample` and `noised`, if there is no noise.
    """

    radius: Tensor
    natural: Tensor
    sigma: Tensor
    dtype: torch.dtype

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one draw, `(d,)`."""
        return self.natural.shape

    def _at(self, x: Tensor, name: str = "x") -> _Local:
        check_batch(x, self.event_shape, name)
        if self.radius.ndim and len(self.radius) != len(x):
            raise ValueError(f"this law was noised for {len(self.radius)} samples, got {len(x)}")
        if not bool((self.sigma > 0).all()):
            raise ValueError(
                "a law on a sphere has no density and no score without noise; use "
                ".noised(alpha, sigma) with sigma > 0"
            )
        r, sigma = (v.unsqueeze(-1).to(x) for v in (self.radius, self.sigma))
        natural = self.natural.to(x)
        precision = 1 / sigma / sigma
        a = r * precision
        R, eta = r * a, a * x + natural
        squared = eta.square().sum(1, keepdim=True)
        far = squared > 1
        nonzero = squared > 0  # the root of 0 has no derivative
        size = torch.where(nonzero, torch.where(nonzero, squared, 1.0).sqrt(), 0.0)
        g = (x.square().sum(1, keepdim=True) - r * r) * precision
        b = 2 * a * (x * natural).sum(1, keepdim=True) + natural.square().sum()
        T = R + torch.where(far, size, 1.0)
        return _Local(eta, size, far, R, g, b, R * g + b, T, r, sigma)

    def log_prob(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, " batch"]:
        """Return log p(x)."""
        at, d = self._at(x), len(self.natural)
        near = at.size - 0.5 * at.g - at.R
        exponent = torch.where(at.far, at.b / at.T - 0.5 * at.g * at.E / at.T / at.T, near)
        k_0 = self.natural.to(x).norm()
        log_J = log_bessel(d / 2 - 1, at.size) - log_bessel(d / 2 - 1, k_0)
        norm = d * (at.sigma.log() + 0.5 * math.log(2 * math.pi))
        return (exponent - k_0 + log_J - norm).squeeze(1)

    def _gain(self, at: _Local) -> tuple[Tensor, Ratio]:
        """Return (r²/σ²) A/‖η‖ − 1, and the ratios."""
        ratio = bessel_ratio(len(self.natural), at.size)
        far = (-at.E / at.T - at.R * ratio.complement) / torch.where(at.far, at.size, 1.0)
        return torch.where(at.far, far, at.R * ratio.A_over_k - 1), ratio

    def score(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d"]:
        """Return ∇ log p(x) = (r A(‖η‖) η/‖η‖ − x)/σ²."""
        at = self._at(x)
        gain, ratio = self._gain(at)
        return (gain * x + at.r * ratio.A_over_k * self.natural.to(x)) / at.sigma / at.sigma

    def hessian(self, x: Float[Tensor, "batch d"]) -> Float[Tensor, "batch d d"]:
        """Return ∇² log p(x) = (r²/σ⁴) Cov[U | x] − I/σ²."""
        at = self._at(x)
        gain, ratio = self._gain(at)
        precision = (1 / at.sigma / at.sigma).unsqueeze(-1)
        across = gain.unsqueeze(-1) * torch.eye(x.shape[1]).to(x)
        return precision * (across - at.R.unsqueeze(-1) * _radial(at, ratio))

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> Directional:
        """Return the law of α X + σ Z; α, σ `()` or one for each sample `(B,)`."""
        a, b = coefficients(alpha, sigma, self.radius)
        spread = (a.square() * self.sigma.square() + b.square()).sqrt()
        radius = (a * self.radius).expand_as(spread)
        return Directional(radius, self.natural, spread, self.dtype)

    def posterior_mean(
        self, x_t: Float[Tensor, "batch d"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch d"]:
        r"""Return E[X | α X + σ Z = x_t], :math:`r A(\|η\|) η/\|η\|` for X on the sphere."""
        at = self.noised(alpha, sigma)._at(x_t, "x_t")
        m = bessel_ratio(len(self.natural), at.size).A_over_k * at.eta
        r, own = (v.unsqueeze(-1).to(x_t) for v in (self.radius, self.sigma))
        a = coefficients(alpha, sigma, x_t)[0].unsqueeze(-1)
        return r * m + a * (own / at.sigma).square() * (x_t - at.r * m)

    def posterior_cov(
        self, x_t: Float[Tensor, "batch d"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch d d"]:
        r"""Return Cov[X | α X + σ Z = x_t], :math:`r^2 \mathrm{Cov}[U | x_t]` for X on the sphere."""
        at = self.noised(alpha, sigma)._at(x_t, "x_t")
        ratio = bessel_ratio(len(self.natural), at.size)
        r, own = (v.reshape(-1, 1, 1).to(x_t) for v in (self.radius, self.sigma))
        b = coefficients(alpha, sigma, x_t)[1].reshape(-1, 1, 1)
        total, identity = at.sigma.unsqueeze(-1), torch.eye(x_t.shape[1]).to(x_t)
        spread = ratio.A_over_k.unsqueeze(-1) * identity - _radial(at, ratio)
        return (r * (b / total).square()).square() * spread + (own * b / total).square() * identity

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
        """Draw n independent points."""
        if self.radius.ndim:
            raise ValueError("only a law noised with α and σ of shape () can be sampled, not (B,)")
        check_count(n, "n")
        device = self.natural.device
        like = torch.empty((n, len(self.natural)), dtype=self.dtype, device=device)
        x = self.radius.to(like) * _von_mises_fisher(self.natural.to(like), like, generator)
        return x + self.sigma.to(x) * randn_like(x, generator) if self.sigma > 0 else x


def _radial(at: _Local, ratio: Ratio) -> Tensor:
    """Return (A/k − A') e eᵀ, by which Cov[U | x] falls short of A/k I, e = η/‖η‖."""
    e = at.eta / torch.where(at.size > 0, at.size, 1.0)
    return (ratio.A_over_k - ratio.slope).unsqueeze(-1) * e.unsqueeze(2) * e.unsqueeze(1)


def _uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    z = randn_like(like, generator)
    return z / z.norm(dim=1, keepdim=True)


def _von_mises_fisher(
    natural: Tensor, like: Tensor, generator: torch.Generator | None
) -> Float[Tensor, "n d"]:
    """Draw points on the unit sphere by rejection, each from its own rows of noise.

    References:
        | Simulation of the von Mises Fisher distribution (Wood, 1994)
        | https://doi.org/10.1080/03610919408813161
    """
    k, d = natural.norm(), len(natural)
    if not bool(k > 0):
        return _uniform(like, generator)
    b = (d - 1) / (2 * k + (4 * k * k + (d - 1) ** 2).sqrt())
    x_0, gap = (1 - b) / (1 + b), 2 * b / (1 + b)  # gap = 1 − x_0
    u = torch.empty_like(like)
    left = torch.ones(len(like), dtype=torch.bool, device=like.device)
    while bool(left.any()):
        v = _uniform(like, generator)
        Z = (1 + v[:, :1]) / 2  # Beta((d−1)/2, (d−1)/2)
        below = 2 * b * Z / (1 - (1 - b) * Z)  # 1 − W, with W the cosine proposed
        log_ratio = k * (gap - below)
        log_ratio = log_ratio + (d - 1) * ((gap + x_0 * below) / (gap * (1 + x_0))).log()
        accepted = (rand_like(Z, generator).log() <= log_ratio).squeeze(1) & left
        tangent = v[:, 1:] / v[:, 1:].norm(dim=1, keepdim=True).clamp(min=1e-30)
        point = torch.cat([1 - below, (below * (2 - below)).sqrt() * tangent], 1)
        u = torch.where(accepted.unsqueeze(1), point, u)
        left = left & ~accepted
    # a reflection takes the first axis to ± the mean direction, away from cancellation
    sign = -1.0 if natural[0] > 0 else 1.0
    w = -sign * natural / k
    w[0] = w[0] + 1
    return sign * (u - (2 / w.square().sum()) * (u @ w).unsqueeze(1) * w)
