r"""Products of laws: wells between quartic walls, and laws on the line in every coordinate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import check_batch, check_count, check_kind, check_number, rand_like, randn_like
from .common import Known, blank, facts


class _Line(NamedTuple):
    """Facts of the law on the line ∝ exp(−a x⁴ + b x² + c x)."""

    log_z: float
    mean: float
    var: float
    right: float


@dataclass(frozen=True)
class DoubleWell(Known):
    r"""Two wells along the first coordinate and standard normals along the others, unnormalised.

    .. math:: \log p(x) = -a x_1^4 + b x_1^2 + c x_1 - \tfrac12 \sum_{i \ge 2} x_i^2

    The wells are near ±√(b/2a), behind a barrier of b²/4a. Normaliser and moments are one-dimensional
    integrals, found by the trapezoidal rule to rounding.

    References:
        | Boltzmann Generators (Noé et al., 2019)
        | https://arxiv.org/abs/1812.01729

    Arguments:
        dim: d ≥ 1.
        quartic: a > 0.
        quadratic: b > 0.
        tilt: c; positive makes the right well the deeper one.

    Raises:
        ValueError: For a parameter outside its range.

    Examples:
        >>> target = glp.distributions.DoubleWell(dim=2, tilt=0.5)
        >>> target.score(torch.tensor([[0.0, 1.0]]))
        tensor([[ 0.5000, -1.0000]])
    """

    dim: int = 2
    quartic: float = 1.0
    quadratic: float = 6.0
    tilt: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.quartic, "quartic", above=0)
        check_number(self.quadratic, "quadratic", above=0)
        check_number(self.tilt, "tilt")

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """The exact mean."""
        return facts([self._line.mean] + [0.0] * (self.dim - 1))

    @property
    def cov(self) -> Float[Tensor, "D D"]:
        """The exact covariance matrix, a diagonal."""
        return torch.diag(facts([self._line.var] + [1.0] * (self.dim - 1)))

    @property
    def log_normalizer(self) -> float:
        """Log Z."""
        return self._line.log_z + (self.dim - 1) / 2 * math.log(2 * math.pi)

    @property
    def right_weight(self) -> float:
        """P(x_1 > 0), the weight of the right well: what a sampler that is stuck gets wrong."""
        return self._line.right

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x) + log Z."""
        check_batch(x, self.event_shape)
        return self._log_line(x[:, 0]) - 0.5 * x[:, 1:].square().sum(1)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x)."""
        check_batch(x, self.event_shape)
        u = x[:, :1]
        first = -4 * self.quartic * u**3 + 2 * self.quadratic * u + self.tilt
        return torch.cat([first, -x[:, 1:]], 1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points, the first coordinate by rejection."""
        check_count(n, "n", 0)
        a, c, m = self.quartic, self.tilt, math.sqrt(self.quadratic / (2 * self.quartic))
        # (x² − m²)² ≥ m² (|x| − m)², so that two normals at ±m, tilted too, cover the law
        var = 1 / (2 * a * m**2)
        right = 1 / (1 + math.exp(min(-2 * c * m, 700.0)))
        kept, left = [], n
        while left > 0:
            part = blank(3 * left + 16, 2, generator)
            pick, accept = rand_like(part, generator).unbind(1)
            z = randn_like(part[:, 0], generator)
            u = torch.where(pick < right, m, -m) + c * var + math.sqrt(var) * z
            walls = -((u - m).square()) / (2 * var), -((u + m).square()) / (2 * var)
            log_ratio = -a * (u**2 - m**2).square() - torch.logaddexp(*walls)
            kept.append(u[accept < log_ratio.exp()][:left])
            left -= len(kept[-1])
        rest = randn_like(blank(n, self.dim - 1, generator), generator)
        first = torch.cat(kept) if kept else blank(0, 1, generator)[:, 0]
        return torch.cat([first.unsqueeze(1), rest], 1)

    def _log_line(self, u: Tensor) -> Tensor:
        return -self.quartic * u**4 + self.quadratic * u**2 + self.tilt * u

    @cached_property
    def _line(self) -> _Line:
        m = math.sqrt(self.quadratic / (2 * self.quartic))
        # a (x² − m²)² ≥ a (|x| − m)⁴ beyond m; 1e-22 is left out
        end = m + (50 / self.quartic) ** 0.25 + 2 * (abs(self.tilt) / self.quartic) ** (1 / 3)
        u = torch.linspace(-end, end, 20_001, dtype=torch.float64)
        log_weight = self._log_line(u)
        log_sum = torch.logsumexp(log_weight, 0)
        weight = (log_weight - log_sum).exp()
        mean = (weight * u).sum()
        var = (weight * (u - mean).square()).sum()
        log_z = float(log_sum) + math.log(2 * end / (len(u) - 1))
        # the half line begins where the density is not flat: there Simpson's rule is needed
        v = torch.linspace(0, end, 20_001, dtype=torch.float64)
        simpson = torch.full_like(v, 2 / 3)
        simpson[1::2] = 4 / 3
        simpson[0] = 1 / 3
        right = ((self._log_line(v) - log_z).exp() * simpson).sum() * end / (len(v) - 1)
        return _Line(log_z, float(mean), float(var), float(right))


@dataclass(frozen=True)
class ManyWell(Known):
    r"""A product of d/2 independent double wells in the plane: 2^{d/2} modes, log Z known.

    .. math:: \log p(x) = \sum_{k=1}^{d/2} \log p_2(x_{2k-1}, x_{2k})

    with p_2 the unnormalised `DoubleWell(2)`.

    References:
        | Flow Annealed Importance Sampling Bootstrap (Midgley et al., 2023)
        | https://arxiv.org/abs/2208.01893

    Arguments:
        dim: d, even.

    Raises:
        ValueError: For a dimension that is odd or below 2.
    """

    dim: int = 32
    well: DoubleWell = field(default=DoubleWell(2), repr=False)

    def __post_init__(self) -> None:
        check_count(self.dim, "dim", 2)
        check_kind(self.well, "well", DoubleWell, "a DoubleWell")
        if self.dim % 2 or self.well.dim != 2:
            raise ValueError(f"dim must be even, with the well in the plane, got dim={self.dim}")

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """The exact mean."""
        return self.well.mean.repeat(self.dim // 2)

    @property
    def cov(self) -> Float[Tensor, "D D"]:
        """The exact covariance matrix, a diagonal."""
        return torch.block_diag(*[self.well.cov] * (self.dim // 2))

    @property
    def log_normalizer(self) -> float:
        """Log Z."""
        return self.dim // 2 * self.well.log_normalizer

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x) + log Z."""
        check_batch(x, self.event_shape)
        return self.well.log_prob(x.reshape(-1, 2)).reshape(len(x), self.dim // 2).sum(1)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x)."""
        check_batch(x, self.event_shape)
        return self.well.score(x.reshape(-1, 2)).reshape(x.shape)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points."""
        check_count(n, "n", 0)
        pairs = self.well.sample(n * (self.dim // 2), generator=generator)
        return pairs.reshape(n, self.dim)


@dataclass(frozen=True)
class LogCosh(Known):
    r"""The hyperbolic secant law in every coordinate, unnormalised.

    .. math:: \log p(x) = -\sum_i \log\cosh x_i, \quad Z = π^d

    Log-concave with exponential tails; the score −tanh x is bounded by 1. The mean is 0, the
    variance π²/4, the distribution function (2/π) arctan e^x.

    Arguments:
        dim: d ≥ 1.

    Raises:
        ValueError: For a dimension below 1.
    """

    dim: int = 1

    @property
    def cov(self) -> Float[Tensor, "D D"]:
        """The exact covariance matrix, π²/4 I."""
        return math.pi**2 / 4 * torch.eye(self.dim, dtype=torch.float64)

    @property
    def log_normalizer(self) -> float:
        """Log Z = d log π."""
        return self.dim * math.log(math.pi)

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x) + log Z."""
        check_batch(x, self.event_shape)
        size = x.abs()  # cosh overflows where its logarithm does not
        return -(size + torch.log1p((-2 * size).exp()) - math.log(2)).sum(1)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x) = −tanh x."""
        check_batch(x, self.event_shape)
        return -torch.tanh(x)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points by the inverse distribution function."""
        u = rand_like(blank(n, self.dim, generator), generator)
        u = u.clamp(min=torch.finfo(u.dtype).tiny)  # the one draw whose logarithm is infinite
        return (math.pi / 2 * u).tan().log()


@dataclass(frozen=True)
class SkewedGumbel(Known):
    r"""The law of log E for a standard exponential E, in every coordinate (a reflected Gumbel law).

    .. math:: \log p(y) = \sum_i (y_i - e^{y_i})

    Skewed to the left, so that a wrong sign shows; the mean is −γ = −0.5772…, the variance π²/6.

    Arguments:
        dim: d ≥ 1.

    Raises:
        ValueError: For a dimension below 1.
    """

    dim: int = 1

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """The exact mean, −γ."""
        return torch.full((self.dim,), -0.57721566490153286, dtype=torch.float64)

    @property
    def cov(self) -> Float[Tensor, "D D"]:
        """The exact covariance matrix, π²/6 I."""
        return math.pi**2 / 6 * torch.eye(self.dim, dtype=torch.float64)

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x)."""
        check_batch(x, self.event_shape)
        return (x - x.exp()).sum(1)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x) = 1 − e^x."""
        check_batch(x, self.event_shape)
        return 1 - x.exp()

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points."""
        u = rand_like(blank(n, self.dim, generator), generator)
        u = u.clamp(min=torch.finfo(u.dtype).tiny)  # as above
        return (-torch.log1p(-u)).log()
