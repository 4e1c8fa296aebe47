r"""Targets of awkward shape: a bent one, one whose scale varies, one around a hole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import check_batch, check_count, check_number, rand_like, randn_like
from .common import Known, blank, facts


@dataclass(frozen=True)
class Banana(Known):
    r"""The Rosenbrock-type law of x_1 ~ N(m, a²), x_2 | x_1 ~ N(b x_1², c²).

    .. math::
        \log p(x) = -\frac{(x_1 - m)^2}{2a^2} - \frac{(x_2 - b x_1^2)^2}{2c^2} - \log(2π a c)

    Its mean is (m, b(m² + a²)), its variances are a² and c² + 2b²a²(a² + 2m²), its covariance is
    2bma². Rosenbrock's function divided by −20 has m = 1, a² = 10, b = 1, c² = 1/10.

    References:
        | An n-dimensional Rosenbrock Distribution for MCMC Testing (Pagani et al., 2022)
        | https://arxiv.org/abs/1903.09556

    Arguments:
        location: m.
        scale: a > 0, the standard deviation of x_1.
        curvature: b.
        width: c > 0, the standard deviation of x_2 given x_1.

    Raises:
        ValueError: For a standard deviation that is not positive.

    Examples:
        >>> target = glp.distributions.Banana()
        >>> target.score(torch.tensor([[0.0, 0.5]]))
        tensor([[ 1.0000, -5.5556]])
    """

    location: float = 1.0
    scale: float = 1.0
    curvature: float = 1.0
    width: float = 0.3

    def __post_init__(self) -> None:
        check_number(self.location, "location")
        check_number(self.curvature, "curvature")
        check_number(self.scale, "scale", above=0)
        check_number(self.width, "width", above=0)

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """The exact mean."""
        return facts([self.location, self.curvature * (self.location**2 + self.scale**2)])

    @property
    def cov(self) -> Float[Tensor, "D D"]:
        """The exact covariance matrix."""
        m, a2, b, c2 = self.location, self.scale**2, self.curvature, self.width**2
        cross = 2 * b * m * a2
        return facts([a2, cross, cross, c2 + 2 * b**2 * a2 * (a2 + 2 * m**2)]).reshape(2, 2)

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x)."""
        u, v = self._whiten(x)
        return -0.5 * (u**2 + v**2) - math.log(2 * math.pi * self.scale * self.width)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x)."""
        u, v = self._whiten(x)
        first = -u / self.scale + 2 * self.curvature * x[:, 0] * v / self.width
        return torch.stack([first, -v / self.width], 1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points."""
        z = randn_like(blank(n, 2, generator), generator)
        first = self.location + self.scale * z[:, 0]
        return torch.stack([first, self.curvature * first**2 + self.width * z[:, 1]], 1)

    def _whiten(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_batch(x, self.event_shape)
        first, second = x.unbind(1)
        u = (first - self.location) / self.scale
        return u, (second - self.curvature * first**2) / self.width


@dataclass(frozen=True)
class Funnel(Known):
    r"""Neal's funnel: v ~ N(0, a²), then d − 1 coordinates x_i | v ~ N(0, e^v).

    .. math::
        \log p(v, x) = \log N(v; 0, a^2) + \sum_{i=2}^d \log N(x_i; 0, e^v)

    The first coordinate is v. Means are 0; var v = a² and var x_i = e^{a²/2}. Few draws of x show
    this variance, because it comes from the widest part.

    References:
        | Slice Sampling (Neal, 2003)
        | https://doi.org/10.1214/aos/1056562461

    Arguments:
        dim: d ≥ 2.
        scale: a > 0.

    Raises:
        ValueError: For a dimension below 2 or a scale that is not positive.
    """

    dim: int = 10
    scale: float = 3.0

    def __post_init__(self) -> None:
        check_count(self.dim, "dim", 2)
        check_number(self.scale, "scale", above=0)

    @property
    def cov(self) -> Float[Tensor, "D D"]:
        """The exact covariance matrix, a diagonal."""
        wide = math.exp(self.scale**2 / 2)
        return torch.diag(facts([self.scale**2] + [wide] * (self.dim - 1)))

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x)."""
        v, square = self._parts(x)
        quad = (v / self.scale).square() + square + (self.dim - 1) * v
        return -0.5 * (quad + self.dim * math.log(2 * math.pi)) - math.log(self.scale)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x)."""
        v, square = self._parts(x)
        first = -v / self.scale**2 + 0.5 * (square - (self.dim - 1))
        return torch.cat([first.unsqueeze(1), -x[:, 1:] * (-v).exp().unsqueeze(1)], 1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points."""
        z = randn_like(blank(n, self.dim, generator), generator)
        v = self.scale * z[:, :1]
        return torch.cat([v, (v / 2).exp() * z[:, 1:]], 1)

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_batch(x, self.event_shape)
        return x[:, 0], x[:, 1:].square().sum(1) * (-x[:, 0]).exp()


@dataclass(frozen=True)
class Ring(Known):
    r"""A ring in the plane, unnormalised.

    .. math::
        \log p(x) = -\frac{(\|x\| - r)^2}{2w^2}, \quad Z = 2π I_1, \quad
        I_k = \int_0^\infty ρ^k e^{-(ρ - r)^2 / (2w^2)} dρ

    with I_0 = w √(π/2) (1 + erf(r/(w√2))), I_1 = r I_0 + w² e^{−r²/(2w²)} and I_{k+1} = r I_k + k
    w² I_{k−1}. The mean is 0 and the covariance ½ (I_3/I_1) I. The score has no limit at the
    centre, and is set to 0 there.

    Arguments:
        radius: r > 0.
        width: w > 0.

    Raises:
        ValueError: For a radius or width that is not positive.
    """

    radius: float = 2.0
    width: float = 0.2

    def __post_init__(self) -> None:
        check_number(self.radius, "radius", above=0)
        check_number(self.width, "width", above=0)

    @property
    def cov(self) -> Float[Tensor, "D D"]:
        """The exact covariance matrix, ½ E‖x‖² I."""
        I_1, I_3 = self._integrals()
        return 0.5 * I_3 / I_1 * torch.eye(2, dtype=torch.float64)

    @property
    def log_normalizer(self) -> float:
        """Log Z in closed form."""
        return math.log(2 * math.pi * self._integrals()[0])

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x) + log Z."""
        check_batch(x, self.event_shape)
        return -0.5 * ((x.norm(dim=1) - self.radius) / self.width).square()

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x) = −(‖x‖ − r) x / (‖x‖ w²)."""
        check_batch(x, self.event_shape)
        rho = x.norm(dim=1, keepdim=True)
        unit = x / torch.where(rho == 0, 1.0, rho)  # 0 at the centre
        return -(rho - self.radius) / self.width**2 * unit

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points, the radius by rejection."""
        check_count(n, "n", 0)
        r, w = self.radius, self.width
        # ρ ≤ r + |u| with u = ρ − r, so that (r + |u|) e^{−u²/2w²} covers the law of the radius:
        # a normal u with weight r w √(2π), and a Rayleigh |u| of either sign with weight 2 w²
        normal = r * math.sqrt(2 * math.pi) / (r * math.sqrt(2 * math.pi) + 2 * w)
        kept, left = [], n
        while left > 0:
            part = blank(2 * left + 16, 4, generator)
            pick, sign, rayleigh, accept = rand_like(part, generator).unbind(1)
            length = (-2 * torch.log1p(-rayleigh)).sqrt() * torch.where(sign < 0.5, -1.0, 1.0)
            z = randn_like(part[:, 0], generator)
            u = w * torch.where(pick < normal, z, length)
            rho = (r + u)[accept * (r + u.abs()) < r + u]
            kept.append(rho[:left])
            left -= len(kept[-1])
        angle = 2 * math.pi * rand_like(blank(n, 1, generator), generator)
        rho = torch.cat(kept).unsqueeze(1) if kept else angle
        return rho * torch.cat([angle.cos(), angle.sin()], 1)

    def _integrals(self) -> tuple[float, float]:
        """Return I_1 and I_3."""
        r, w = self.radius, self.width
        I_0 = w * math.sqrt(math.pi / 2) * (1 + math.erf(r / (w * math.sqrt(2))))
        I_1 = r * I_0 + w**2 * math.exp(-(r**2) / (2 * w**2))
        I_2 = r * I_1 + w**2 * I_0
        return I_1, r * I_2 + 2 * w**2 * I_1
