r"""A multistep solver that corrects each state by the score it has evaluated there anyway.

In λ = log(α/σ) the flow is, exactly, as in `multistep`,

.. math:: x_s = \frac{σ_s}{σ_t} x_t + α_s \int_{0}^{h} e^{-(h-u)} \hat x_0(λ_t + u)\, du

The predictor inserts the polynomial through the last k values of x̂_0 into the integral. The next
step evaluates one more value at the predicted x_s; the same integral with the polynomial through
all k + 1 values, at no extra cost, gives the corrected state from which that step continues.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...core import Generator, NoisyScore, Transition, check_count
from ...noise.predictions import flow_end, predict
from .coefficients import Level, combined, interval, log_ratio
from .facts import POINT, Facts
from .multistep import exponential_weights

Node = tuple[float, Tensor]
"""λ and a value there, or a weight and what it multiplies."""


def integral(
    nodes: Sequence[Node], start: float, end: float, growth: float = 0.0, scale: float = 1.0
) -> list[Node]:
    r"""Return :math:`\int_0^h e^{growth (h-u)} p(λ + u)\, du`, p the polynomial through the nodes.

    As the sum of values that it is, each with its weight.

    Arguments:
        nodes: (λ_j, value) with all λ_j different.
        start: λ.
        end: λ + h; h may be negative.
        growth: The exponent of the weight.
        scale: A factor of the integral.
    """
    weights = exponential_weights([node - start for node, _ in nodes], end - start, growth)
    return [(scale * w, value) for w, (_, value) in zip(weights, nodes, strict=True)]


class Corrected:
    """The states of one path: each is predicted, evaluated, corrected and gone on from."""

    def __init__(self, order: int) -> None:
        self.order = order
        self.nodes: list[Node] = []
        self.origin: tuple[Tensor, Level] | None = None

    def arrive(self, z: Tensor, level: Level, x0: Tensor) -> Tensor:
        """Return the state at a level, corrected by x̂_0 at the predicted z."""
        self.nodes.insert(0, (log_ratio(level), x0))
        if self.origin is not None:
            z = self._moved(level, self.nodes)
        del self.nodes[self.order :]
        self.origin = z, level
        return z

    def leave(self, level: Level) -> Tensor:
        """Return the prediction at another level."""
        return self._moved(level, self.nodes)

    def _moved(self, level: Level, nodes: list[Node]) -> Tensor:
        assert self.origin is not None  # arrive comes first
        (z, before), (alpha, sigma) = self.origin, level
        x0 = integral(nodes, log_ratio(before), log_ratio(level), -1.0, alpha)
        return combined([(sigma / before[1], z), *x0])


@dataclass(frozen=True)
class UniPC:
    r"""Predictor and corrector in λ = log(α/σ), one score per step: the fewest for a given error.

    Each step predicts with the polynomial through the last k values of x̂_0 and corrects with that
    through k + 1, both integrated exactly against the exponential (the paper's variant with
    varying coefficients). The first step predicts by DDIM, and its correction is of order 2, which
    leaves an error of order 3. Use it on times that are uniform in λ, `time_grid(schedule, n,
    rho=math.inf)`, as the estimators do by default; `plan_levels` measures how many it needs.

    References:
        | UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models
          (Zhao et al., 2023)
        | https://arxiv.org/abs/2302.04867

    Arguments:
        order: 1 to 3, the number of values of x̂_0 in a prediction.
    """

    order: int = 3

    def __post_init__(self) -> None:
        check_count(self.order, "order", most=3)

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        return Facts(min(self.order + 1, 3), 1, memory=True, exact=POINT)

    def begin(self) -> Transition:
        """Return a transition that remembers the steps it takes, for one run."""
        return _Run(self.order)

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x_s by a step without memory, which is DDIM's."""
        return self.begin()(z, t, s, score, generator=generator)


class _Run:
    """One run of the solver."""

    def __init__(self, order: int) -> None:
        self.path = Corrected(order)

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
        del generator  # deterministic
        level_t, level_s = interval(score.schedule, t, s)
        alpha_s, sigma_s = level_s
        if sigma_s == level_t[1] == 0:
            return z
        x0, eps = predict(score, z, t)
        blind = not math.isfinite(log_ratio(level_t))  # from α = 0, of which nothing is remembered
        z = z if blind else self.path.arrive(z, level_t, x0)
        if sigma_s == 0:  # x̂_0 of the prediction, the rest at the state that is corrected by it
            return alpha_s * flow_end(score, z, t, x0)
        if blind:
            return combined([(alpha_s, x0), (sigma_s, eps)])
        return z if log_ratio(level_s) == log_ratio(level_t) else self.path.leave(level_s)
