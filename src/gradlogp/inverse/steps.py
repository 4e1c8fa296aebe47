r"""Transitions that move a sample towards an observation after every step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from torch import Tensor

from ..core import (
    Generator,
    NoisyScore,
    Transition,
    check_batch,
    check_count,
    check_kind,
    check_number,
    check_transition,
    per_sample,
    randn_like,
    sum_event,
)
from ..diffusion.transitions.facts import Facts, facts_of
from ..noise.coordinates import affine_part
from ..noise.predictions import beyond_mean
from ..noise.score_base import ScoreWrapper
from .guidance import Denoised, denoised
from .observation import Independent, Observation
from .operators import Inpainting


class _Known(ScoreWrapper):
    """A noisy score of which one value is already known."""

    def __init__(self, score: NoisyScore, z: Tensor, t: Tensor, at: Denoised) -> None:
        self.score, self.z, self.t, self.at = score, z, t, at

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        return -self.at.eps / self.at.sigma if z is self.z and t is self.t else self.score(z, t)

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        return self.score.denoise(z, t)

    def _beyond_mean(self, z: Tensor, t: Tensor) -> Tensor | None:
        return beyond_mean(self.score, z, t)


class _Observing:
    """What steps share that hold a transition and an observation."""

    transition: Transition
    observation: Observation

    def __post_init__(self) -> None:
        check_transition(self.transition)
        if hasattr(
            self.transition, "begin"
        ):  # whose values belong to a path left after every step
            raise ValueError(
                "the transition must be without memory; use Ancestral, ReverseSDE, DDIM or "
                "ProbabilityFlow"
            )
        check_kind(
            self.observation, "observation", Observation, "an Observation, such as from observe"
        )

    def rows(self, index: slice | Tensor) -> Self:
        """Return the same for these rows of the observation."""
        return replace(cast(Any, self), observation=self.observation.take(index))


@dataclass(frozen=True, eq=False)
class DPSStep(_Observing):
    r"""The step of diffusion posterior sampling, by the norm of the residual.

    .. math:: x_s = \mathrm{step}(x_t) - ζ\, \nabla_{x_t} \| y - A(\hat x_0(x_t)) \|

    Each sample has its own norm. ζ is that of the authors' code; the paper's formula (ζ'/‖r‖)
    ∇‖r‖² has ζ' = ζ/2. The step depends neither on the noise of the observation nor on the step
    size: ζ must be tuned, and the law of the samples depends on it and on the grid, and is not the
    posterior. The model is evaluated once for both parts of a step.

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2023)
        | https://arxiv.org/abs/2209.14687

    Arguments:
        transition: The step without an observation, such as `Ancestral()`.
        observation: The observation.
        zeta: ζ ≥ 0.

    Raises:
        ValueError: For a negative zeta, or a transition with memory.
    """

    transition: Transition
    observation: Observation
    zeta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.zeta, "zeta", least=0)

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        inner = facts_of(self.transition)
        return inner._replace(order=None, divides_by_alpha=True, exact=None)

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
        at = denoised(score, z, t)
        seen = self.observation.encoded(score.coordinates)
        r = seen.residual(at.x0)
        norm = sum_event(r.square()).sqrt()
        unit = r / per_sample(torch.where(norm > 0, norm, 1.0), r, "the norm")
        # −∇‖r‖ = Jᵀ Aᵀ r/‖r‖, and 0 where the residual is
        pull = at.pull_back(seen.linearised(at.x0).adjoint(unit))
        blind = bool((at.alpha < 1e-6 * at.sigma).any())
        known = score if blind else _Known(score, z, t, at)
        return self.transition(z, t, s, known, generator=generator) + self.zeta * pull


@dataclass(frozen=True, eq=False)
class RePaint(_Observing):
    r"""Inpainting by replacement, with resampling.

    The observed entries are inserted at the current noise level. To make the rest consistent with
    them, the step is undone by noise and repeated, n times in total:

    .. math::
        x_s = \begin{cases} α_s y + σ_s ε & \text{where seen} \\
        \mathrm{step}(x_t) & \text{elsewhere} \end{cases}, \qquad
        x_t ← \frac{α_t}{α_s} x_s + \sqrt{σ_t^2 - α_t^2 σ_s^2 / α_s^2}\; z

    n = 1 is the replacement method, which conditions on a noised y that is independent of the path
    of the rest, and is biased on any grid. Resampling reduces this bias at n times the cost, but
    repeats the errors of a step as often, so that it needs a finer grid. The length of a jump is
    one step of the grid. The observation must be without noise.

    References:
        | RePaint: Inpainting Using Denoising Diffusion Probabilistic Models (Lugmayr et al., 2022)
        | https://arxiv.org/abs/2201.09865
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456

    Arguments:
        transition: The step without an observation, such as `Ancestral()`.
        observation: The observed entries, `Inpainting` without noise.
        n_resamples: n ≥ 1.

    Raises:
        ValueError: For a different operator, noise, n below 1, or a transition with memory.
    """

    transition: Transition
    observation: Observation
    n_resamples: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.observation.operator, Inpainting):
            raise ValueError("the operator of the observation must be Inpainting, for RePaint")
        R = self.observation.R
        if not isinstance(R, Independent) or bool((R.std != 0).any()):
            raise ValueError(
                "RePaint treats its observation y as exact; pass noise=0, or use "
                "MomentMatching, which handles noise"
            )
        check_count(self.n_resamples, "n_resamples")

    def _encoded(self, score: NoisyScore) -> Observation:
        """Return the observation with y in model coordinates, which keep entries apart."""
        affine = affine_part(score.coordinates)
        if affine is None:
            return self.observation
        shift, scale = (self.observation.apply(v[None]) for v in (affine.shift, affine.scale))
        y = self.observation.y
        z = (y.double() - shift.to(y.device)) / scale.to(y.device)
        return replace(self.observation, y=z.to(y))

    def _replace(self, z: Tensor, y: Tensor) -> Tensor:
        operator = self.observation.linear  # entries: the same of z as of x
        return z + operator.adjoint(y - operator.apply(z))

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        inner, n = facts_of(self.transition), self.n_resamples
        return Facts(
            None, n * inner.evaluations, n * (inner.draws + 2) - 1, inner.divides_by_alpha
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
        """Return x_s; at the noise-free end the seen entries are y."""
        check_batch(z)
        y = self._encoded(score).rows(z)
        if s is None:
            moved = self.transition(z, t, None, score, generator=generator)
            return self._replace(moved, y)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = score.schedule(t), score.schedule(s)
        ratio = alpha_t / alpha_s
        back = (sigma_t**2 - ratio**2 * sigma_s**2).clamp(min=0).sqrt()
        for k in range(self.n_resamples):
            moved = self.transition(z, t, s, score, generator=generator)
            seen = self.observation.linear.apply(randn_like(z, generator))
            at_s = self._replace(moved, alpha_s * y + sigma_s * seen)
            if k + 1 < self.n_resamples:
                z = ratio * at_s + back * randn_like(z, generator)
        return at_s
