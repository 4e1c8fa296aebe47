r"""Transitions that add noise on purpose: Langevin corrections after a step, and churn before it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ...core import (
    Generator,
    NoisyScore,
    Transition,
    check_count,
    check_number,
    check_option,
    check_same_shape,
    check_transition,
    per_sample,
    randn_like,
)
from ...noise.predictions import predict
from ...noise.schedules import invert_log_snr
from .coefficients import interval
from .facts import POINT, Facts, facts_of
from .flow import ProbabilityFlow
from .reverse import ReverseSDE


@dataclass(frozen=True)
class PredictorCorrector:
    r"""A step of any transition, and then Langevin steps at the level it has reached.

    Langevin steps leave p_s invariant, so they correct errors of the predictor:

    .. math:: x \leftarrow x + h\, s(x, s) + \sqrt{2h}\, z

    The signal-to-noise ratio q = ‖h s‖/√(2hd) determines their size by one of two rules.

    level (the default)
        h = min(2 q², 1) σ_s², which has this ratio for a score of size √d/σ_s, as noise gives it,
        up to q = 0.71: a step of more than σ_s² would overshoot where the data are narrow.
    sample
        :math:`h = \min(2 q^2 d / \|s(x, s)\|^2,\; σ_s^2)`, from each sample's own score. Then h
        depends on x, and steps without a term for its divergence leave p_s/h invariant and not p_s.
        This rule is included because it is in use; on a Gaussian its bias is several times that of
        "level".

    (The original uses norms averaged over the batch, so that a sample depends on its batch.)

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456

    Arguments:
        predictor: The transition that moves from t to s.
        snr: q > 0.
        n_steps: Number of Langevin steps after each step of the predictor.
        rule: "level" or "sample".
    """

    predictor: Transition = field(default_factory=ReverseSDE)
    snr: float = 0.16
    n_steps: int = 1
    rule: Literal["level", "sample"] = "level"

    def __post_init__(self) -> None:
        check_transition(self.predictor, "predictor")
        check_number(self.snr, "snr", above=0)
        check_option(self.rule, "rule", ("level", "sample"))
        check_count(self.n_steps, "n_steps")
        if hasattr(self.predictor, "begin"):
            raise ValueError(
                "the predictor must be without memory: the stored values of a multistep solver belong "
                "to a path that the corrector leaves; use ReverseSDE, DDIM or ProbabilityFlow"
            )

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        inner = facts_of(self.predictor)
        return Facts(
            None,
            inner.evaluations + self.n_steps,
            inner.draws + self.n_steps,
            inner.divides_by_alpha,
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
        """Return x_s; without noise at s, where there is no score, the predictor's."""
        z = self.predictor(z, t, s, score, generator=generator)
        sigma2 = 0.0 if s is None else float(score.schedule(s)[1]) ** 2
        if s is None or sigma2 == 0:
            return z
        d = z.shape[1:].numel()
        h = z.new_full([1] * z.ndim, min(2 * self.snr**2, 1.0) * sigma2)
        for _ in range(self.n_steps):
            drift = score(z, s)
            check_same_shape(drift, z, "the score")
            if self.rule == "sample":
                norm2 = drift.flatten(1).square().sum(1)
                h = (2 * self.snr**2 * d / norm2).clamp(max=sigma2)  # also where the score is 0
                h = per_sample(h, z, "h")
            z = z + h * drift + (2 * h).sqrt() * randn_like(z, generator)
        return z


@dataclass(frozen=True)
class Churn:
    r"""EDM's stochastic sampler: noise is added to each sample before a step of the flow.

    In y = x/α and r = σ/α, where r_min ≤ r_t ≤ r_max,

    .. math:: \hat r = (1 + γ)\, r_t, \qquad \hat y = y + \sqrt{\hat r^2 - r_t^2}\; S\, z

    and a step of the probability flow (Heun's) leads from r̂ to r_s. With S = 1 the noised state
    has exactly the law at r̂. In the paper's terms γ is min(S_churn/N, √2 − 1).

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        gamma: γ ≥ 0.
        r_min: Below this σ/α no noise is added.
        r_max: Above this σ/α no noise is added.
        s_noise: S, the paper's correction for networks that remove slightly too much noise.
        order: Order of the flow's step: 1, 2 or 4.
    """

    gamma: float = 0.1
    r_min: float = 0.0
    r_max: float = math.inf
    s_noise: float = 1.0
    order: int = 2

    def __post_init__(self) -> None:
        check_number(self.gamma, "gamma", least=0)
        check_number(self.s_noise, "s_noise", above=0)
        check_number(self.r_min, "r_min", least=0)
        if not (isinstance(self.r_max, float) and self.r_max == math.inf):
            check_number(self.r_max, "r_max", least=self.r_min)
        ProbabilityFlow(self.order)  # refuses what is no order

    @property
    def facts(self) -> Facts:
        """What is known of this transition."""
        noisy = self.gamma > 0
        exact = self.order < 4 and (self.s_noise == 1 or not noisy)
        order = None if noisy else self.order  # finer times leave the flow's step from r̂ as it is
        return Facts(order, self.order, draws=int(noisy), exact=POINT if exact else None)

    def __call__(
        self,
        z: Tensor,
        t: Tensor,
        s: Tensor | None,
        score: NoisyScore,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Return x_s. Above the schedule's largest σ/α no noise is added: the model ends there."""
        (alpha, sigma), _ = interval(score.schedule, t, s)
        if s is None:
            return predict(score, z, t)[0]
        flow = ProbabilityFlow(self.order)
        one = torch.ones((), dtype=torch.float64)
        top = score.schedule(one)
        r = sigma / alpha if alpha > 0 else math.inf
        if self.gamma == 0 or not self.r_min <= r <= self.r_max or r == math.inf:
            return flow(z, t, s, score)
        r_hat = min((1 + self.gamma) * r, float(top[1] / top[0]) if top[0] > 0 else math.inf)
        if r_hat <= r:
            return flow(z, t, s, score)
        t_hat = invert_log_snr(
            score.schedule, torch.tensor(-2 * math.log(r_hat), dtype=torch.float64)
        )
        alpha_hat = score.schedule(t_hat)[0]
        spread = self.s_noise * math.sqrt(r_hat**2 - r**2)
        noised = alpha_hat * (z / alpha + spread * randn_like(z, generator))
        return flow(noised, t_hat, s, score)
