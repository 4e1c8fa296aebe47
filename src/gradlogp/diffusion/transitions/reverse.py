r"""The reverse-time SDE, and the family between it and the probability flow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...core import Generator, NoisyScore, check_number, check_option, check_same_shape, randn_like
from ...noise.predictions import flow_end, predict
from .coefficients import combined, interval
from .facts import POINT, Facts

Method = Literal["exponential", "euler", "heun"]
METHODS: tuple[Method, ...] = ("exponential", "euler", "heun")


@dataclass(frozen=True)
class ReverseSDE:
    r"""The reverse SDE with noise level η, all of whose members have the marginals p_t.

    .. math::
        dX = \left[ f X - \tfrac{1 + η^2}{2} g^2 s(X, t) \right] dt + η g\, d\bar W, \quad dt < 0

    η = 1 is Anderson's time reversal, η = 0 the probability flow. With r = σ/α, ρ = r_s/r_t and
    y = x/α it reads dy = (1 + η²) ε̂ dr + η dW(r²), and a step is one of

    exponential (order 1, the default)
        x̂_0 frozen, the linear part exact:
        :math:`x_s = \tfrac{σ_s}{σ_t} ρ^{η^2} x + α_s (1 - ρ^{1+η^2}) \hat x_0
        + σ_s \sqrt{1 - ρ^{2η^2}}\, z`; with η = 1 it is DDPM's ancestral step of variance β̃.
    euler (order 1)
        Euler–Maruyama in t: :math:`x_s = x + h\,[\tfrac{1+η^2}{2} g^2 s - f x] + η g \sqrt{h} z`,
        h = t − s.
    heun (weak order 2, two scores)
        In r: :math:`y_s = y + (1 + η^2)(r_s - r_t) \bar ε + η \sqrt{r_t^2 - r_s^2}\, z`, with
        ε̄ the mean of ε̂ at t and at the Euler step's end, which has the same z.

    At the noise-free end all of them return the Tweedie mean x̂_0; with η = 0 the flow of a model with
    a base ends where that of the base does.

    References:
        | Reverse-Time Diffusion Equation Models (Anderson, 1982)
        | https://doi.org/10.1016/0304-4149(82)90051-5
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456
        | gDDIM: Generalized Denoising Diffusion Implicit Models (Zhang et al., 2023)
        | https://arxiv.org/abs/2206.05564

    Arguments:
        eta: η ≥ 0.
        method: "exponential", "euler" or "heun".

    Examples:
        >>> score = glp.ExactScore(glp.Gaussian([3.0]), glp.schedules.VP())
        >>> x = glp.evolve(glp.diffusion.ReverseSDE(), score, 2000, generator=torch.Generator())
        >>> abs(float(x.mean()) - 3.0) < 0.1
        True
    """

    eta: float = 1.0
    method: Method = "exponential"

    def __post_init__(self) -> None:
        check_number(self.eta, "eta", least=0)
        check_option(self.method, "method", METHODS)

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        draws, whole = int(self.eta > 0), self.method == "exponential"
        exact = whole or (self.method == "heun" and self.eta == 0)
        order = 2 if self.method == "heun" else 1
        return Facts(
            order, order, draws, divides_by_alpha=not whole, exact=POINT if exact else None
        )

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
            ValueError: If α_t = 0 (or g is infinite), unless the step is exponential.
        """
        (alpha_t, sigma_t), (alpha_s, sigma_s) = interval(score.schedule, t, s)
        if s is None or (sigma_s == 0 and self.method == "exponential"):
            x0 = predict(score, z, t)[0]
            return alpha_s * (x0 if self.eta else flow_end(score, z, t, x0))
        if (alpha_s, sigma_s) == (alpha_t, sigma_t):
            return z
        if self.method == "euler":
            return self._euler(z, t, s, score, generator)
        x0, eps = predict(score, z, t)
        rho = sigma_s * alpha_t / (alpha_s * sigma_t) if sigma_t > 0 else 1.0
        more = self.eta**2
        if self.method == "exponential":
            decay = sigma_s / sigma_t * rho**more if sigma_t > 0 else 1.0
            parts = [(decay, z), (alpha_s * (1 - rho ** (1 + more)), x0)]
            if self.eta:
                spread = sigma_s * math.sqrt(max(0.0, 1 - rho ** (2 * more)))
                parts.append((spread, randn_like(z, generator)))
            return combined(parts)
        if alpha_t == 0:
            raise ValueError(
                "Heun's step divides by alpha, which is 0 at this time; start at a slightly "
                "smaller t or use method='exponential'"
            )
        r_t, r_s = sigma_t / alpha_t, sigma_s / alpha_s
        start = z / alpha_t
        if self.eta:
            noise = randn_like(z, generator)
            start = start + self.eta * math.sqrt(max(0.0, r_t**2 - r_s**2)) * noise
        length = (1 + more) * (r_s - r_t)
        end = alpha_s * (start + length * eps)
        if sigma_s == 0:  # no score there: the Euler step
            return end
        eps_s = predict(score, end, s)[1]
        return alpha_s * (start + length * (eps + eps_s) / 2)

    def _euler(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor,
        score: NoisyScore,
        generator: Generator | None,
    ) -> Tensor:
        f, g2, h = float(score.schedule.f(t)), float(score.schedule.g2(t)), float(t - s)
        if not (math.isfinite(f) and math.isfinite(g2)):
            raise ValueError(
                f"the SDE has no finite coefficients at t = {float(t):.4g} under "
                f"{score.schedule}; start at a slightly smaller t or use method='exponential'"
            )
        drift = score(z, t)
        check_same_shape(drift, z, "the score")
        out = z + h * ((1 + self.eta**2) / 2 * g2 * drift - f * z)
        if self.eta == 0:
            return out
        return out + self.eta * math.sqrt(g2 * h) * randn_like(z, generator)


@dataclass(frozen=True)
class DDIM:
    r"""The non-Markovian sampler of DDIM.

    .. math::
        x_s = α_s \hat x_0 + \sqrt{σ_s^2 - v}\; \hat ε + \sqrt{v}\, z, \qquad
        v = η^2 \frac{σ_s^2}{σ_t^2} \left( σ_t^2 - \frac{α_t^2}{α_s^2} σ_s^2 \right)

    η = 0 is deterministic, the Euler step of the probability flow in (x̂_0, ε̂); η = 1 is DDPM's
    ancestral step of variance β̃.

    References:
        | Denoising Diffusion Implicit Models (Song et al., 2021)
        | https://arxiv.org/abs/2010.02502

    Arguments:
        eta: η in [0, 1].

    Examples:
        >>> score = glp.ExactScore(glp.Gaussian([3.0]), glp.schedules.VP())
        >>> z, t, s = torch.tensor([[0.5]]), torch.tensor(0.8), torch.tensor(0.7)
        >>> glp.diffusion.DDIM()(z, t, s, score)
        tensor([[0.6333]])
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        check_number(self.eta, "eta", least=0, most=1)

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        return Facts(1, 1, draws=int(self.eta > 0), exact=POINT)

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x_s."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = interval(score.schedule, t, s)
        if s is not None and (alpha_s, sigma_s) == (alpha_t, sigma_t):
            return z
        x0, eps = predict(score, z, t)
        if sigma_s == 0:  # the limit, also where σ_t = 0 too
            return alpha_s * (x0 if self.eta else flow_end(score, z, t, x0))
        part = self.eta**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2)
        parts = [(alpha_s, x0), (sigma_s * math.sqrt(1 - part), eps)]
        if self.eta:
            parts.append((sigma_s * math.sqrt(max(part, 0.0)), randn_like(z, generator)))
        return combined(parts)
