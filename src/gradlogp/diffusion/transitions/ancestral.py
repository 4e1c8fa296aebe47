r"""DDPM's ancestral step, with each of its variances.

Written in (x̂_0, ε̂), with x_t = α_t x̂_0 + σ_t ε̂, it needs no derivative of the schedule and stays
finite at both ends of time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...core import Generator, NoisyScore, check_count, check_option, randn_like
from ...noise.predictions import predict
from ...noise.tweedie import tweedie_variance
from .coefficients import combined, interval
from .facts import DIAGONAL, FORWARD, POINT, Facts

VARIANCES = ("posterior", "forward", "optimal")


@dataclass(frozen=True)
class Ancestral:
    r"""DDPM's ancestral step.

    With a = α_t/α_s and σ²_{t|s} = σ_t² − a² σ_s², the exact posterior of x_s given x_t and x_0 is
    Gaussian; x̂_0 replaces x_0:

    .. math::
        x_s = a \frac{σ_s^2}{σ_t^2} x_t + α_s \frac{σ_{t|s}^2}{σ_t^2} \hat x_0 + \sqrt{v}\, z

    The posterior variance v = σ_{t|s}² σ_s²/σ_t² (DDPM's β̃) is exact for a point mass; the
    forward variance v = σ_{t|s}² (DDPM's β) is exact under VP for data N(0, I). The optimal
    variance adds the uncertainty of x̂_0 to β̃,

    .. math::
        v = \tilde β + \frac{α_s^2 σ_{t|s}^4}{σ_t^4}\, \mathrm{diag}\, \mathrm{Cov}[x_0 | x_t]
          = \mathrm{diag}\, \frac{β}{1 - β} \left( I + β \nabla s(x_t) \right)

    where the second form uses DDPM's β = 1 − a². It is the true variance of every entry of x_s for
    any law. So a step of any length is exact for Gaussians with diagonal covariance, and of order
    1 for other laws, whose correlations it misses; it needs the diagonal of the score's Jacobian.

    References:
        | Denoising Diffusion Probabilistic Models (Ho et al., 2020)
        | https://arxiv.org/abs/2006.11239
        | Analytic-DPM: an Analytic Estimate of the Optimal Reverse Variance in Diffusion Probabilistic
          Models (Bao et al., 2022)
        | https://arxiv.org/abs/2201.06503

    Arguments:
        variance: "posterior" (β̃), "forward" (β) or "optimal".
        n_probes: Number of probes for the diagonal that "optimal" needs; by default it is exact,
            by d vector-Jacobian products. With few probes an estimated variance can be negative;
            it is then set to 0, which makes the spread slightly too large on average.

    Examples:
        >>> score = glp.ExactScore(glp.Gaussian([3.0]), glp.schedules.VP())
        >>> g = torch.Generator().manual_seed(0)
        >>> x = glp.evolve(glp.diffusion.Ancestral(), score, 2000, generator=g)
        >>> abs(float(x.mean()) - 3.0) < 0.1
        True
    """

    variance: Literal["posterior", "forward", "optimal"] = "posterior"
    n_probes: int | None = None

    def __post_init__(self) -> None:
        check_option(self.variance, "variance", VARIANCES)
        if self.n_probes is not None:
            check_count(self.n_probes, "n_probes")
            if self.variance != "optimal":
                raise ValueError("n_probes go with variance='optimal'")

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        exact = {"posterior": POINT, "forward": FORWARD}
        optimal = self.variance == "optimal"
        known = exact.get(self.variance, DIAGONAL)
        probes = self.n_probes or 0
        more = 0 if not optimal else probes or 2  # the mean once more, and the whole Jacobian
        return Facts(1, 1 + more, draws=1 + probes, divides_by_alpha=optimal, exact=known)

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x_s.

        Raises:
            ValueError: For the optimal variance if α_t = 0, or times that are not numbers.
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = interval(score.schedule, t, s)
        if s is not None and (alpha_s, sigma_s) == (alpha_t, sigma_t):
            return z
        x0, _ = predict(score, z, t)
        if sigma_s == 0:  # the limit, also where σ_t = 0 too
            return alpha_s * x0
        a = alpha_t / alpha_s
        var_ts = sigma_t**2 - a**2 * sigma_s**2
        parts = [(a * sigma_s**2 / sigma_t**2, z), (alpha_s * var_ts / sigma_t**2, x0)]
        v = var_ts if self.variance == "forward" else var_ts * sigma_s**2 / sigma_t**2
        if self.variance == "optimal":
            rest = tweedie_variance(
                lambda y: score(y, t), z, alpha_t, sigma_t,
                n_probes=self.n_probes, generator=generator,
            ).value  # fmt: skip
            spread = (v + (alpha_s * var_ts / sigma_t**2) ** 2 * rest).clamp(min=0).sqrt()
            return torch.addcmul(combined(parts), spread, randn_like(z, generator))
        return combined([*parts, (math.sqrt(max(v, 0.0)), randn_like(z, generator))])
