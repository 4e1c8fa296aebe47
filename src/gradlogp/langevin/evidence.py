r"""The normalising constant of a density, log Z, by annealing from a wide law and back.

Between a base p_0, wide and normalised, and the target p_1 lie the levels p_b ∝ p_0^{1−b} p_1^b. A
particle that starts at b = 0 and is moved by kernels that leave each level invariant has the
weight

.. math:: \log w = \sum_k (b_{k+1} - b_k) \left(\log p_1(x_k) - \log p_0(x_k)\right), \quad E\, w = Z

however well the kernels mix; in the reverse direction, starting from the target, the mean weight
is 1/Z. Together these are two samples of one quantity whose densities differ by a factor w/Z, from
which log Z follows with the smallest variance (Bennett).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    Analytic,
    Density,
    Estimate,
    Kernel,
    Verdict,
    check_analytic,
    check_count,
    check_kernel,
    check_points,
    check_target,
    choice,
    shown,
)
from ..distributions import Gaussian
from ..distributions.analytic.covariance import as_parameter
from .annealing import Bridge, Level, anneal, bridge, log_mean, moved
from .chain import Chain
from .kernels import MALA, facts_of

WIDER = 2.0
"""Variance of the base in that of the draws."""

LEAST_ESS = 0.9
"""What one level may cost: the effective part of equal weights after its increment."""

TUNING = 16
"""Steps in which the step size of a level is tuned."""

FEW = 30
"""Fewer particles than this in the overlap of both directions are too few."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """An estimate of log Z, and whether it can be trusted.

    Arguments:
        log_z: log ∫ exp(log_prob(x)) dx.
        standard_error: Its error, from both directions and their particles.
        forward: log Z from the particles that start at the base alone.
        reverse: log Z from the particles that start at the target alone.
        ess: Effective numbers of particles of these two estimates, (Σ w)²/Σ w².
        overlap: Number of particles in which both directions overlap, Σ f (1 − f), which
            determines the error.
        levels: b_0 = 0 < … < b_K = 1, `(K + 1,)`.
        increments: Contribution of each level to log Z, `(2, K)`: the mean of log w forward, whose
            sum is too small, and of −log w in reverse, whose sum is too large; better mixing
            narrows the gap.
        acceptance: Mean acceptance at the inner levels, `(K − 1,)`; NaN for kernels without one.
        verdict: Whether both directions agree and are based on enough particles.
    """

    log_z: float
    standard_error: float
    forward: Estimate
    reverse: Estimate
    ess: tuple[float, float]
    overlap: float
    levels: Float[Tensor, " levels"]
    increments: Float[Tensor, "2 K"]
    acceptance: Float[Tensor, " inner"]
    verdict: Verdict

    def __str__(self) -> str:
        return f"log Z = {Estimate(self.log_z, self.standard_error)}, {self.verdict}"


def _fitted(x: Tensor) -> Gaussian:
    """Return the normal law with the mean of draws and `WIDER` times their covariance."""
    if x.ndim != 2:
        raise ValueError(
            f"a base is fitted to draws of shape (d,), these have {tuple(x.shape[1:])}; pass base="
        )
    n, d = x.shape
    if n < d + 2:
        raise ValueError(f"a base needs more than {d + 1} draws of {d} coordinates, got {n}")
    S = torch.atleast_2d(torch.cov(x.mT))
    ridge = 1e-3 * S.diagonal().diag_embed()
    return Gaussian(x.mean(0), WIDER * (n / (n + 5) * S + 5 / (n + 5) * ridge))


Make = Callable[[float], Kernel[Any, Any]]


def _maker(kernel: Kernel[Any, Any] | None, base: Analytic, d: int) -> tuple[Make, float | None]:
    """Return step size -> kernel, and the step size to begin with, None where there is none."""
    if kernel is None:
        scale = base.cov if isinstance(base, Gaussian) else 1.0
        return (lambda h: MALA(h, preconditioner=scale)), 0.5 / d ** (1 / 3)
    facts = facts_of(kernel)
    if facts.exact is False:
        raise ValueError(
            f"{type(kernel).__name__} does not leave its target invariant; use one with a "
            f"Metropolis step"
        )
    if facts.reversible is False:
        raise ValueError(
            f"{type(kernel).__name__} is not reversible, which the way back needs; use MALA or HMC"
        )
    h = getattr(kernel, "step_size", None)
    if not isinstance(h, float | int) or facts.target_acceptance is None:
        return (lambda _: kernel), None
    return (lambda h: dataclasses.replace(kernel, step_size=h)), float(h)  # type: ignore[type-var]


def _planned(
    x: Tensor,
    target: Density,
    base: Density,
    make: Make,
    h: float | None,
    levels: Sequence[float] | None,
    n_steps: int,
    generator: torch.Generator | None,
) -> tuple[list[float], list[Kernel[Any, Any]]]:
    """Choose levels and step sizes with particles that are weighted and resampled at each level.

    The choice depends on these particles, so the estimate needs new ones.
    """
    path, kernels, b = [0.0], [], 0.0
    while b < 1:
        ratio = Level(base, target, b).log_ratio(x)
        b = _next(ratio, b) if levels is None else levels[len(path)]
        path.append(b)
        if b == 1:
            break
        weights = ((b - path[-2]) * (ratio - ratio.max())).exp()
        x = x[choice(weights, len(x), generator)]
        level = Level(base, target, b)
        if h is not None:
            steps, delta = [], facts_of(make(h)).target_acceptance or 0.5
            for _ in range(TUNING):
                x, accepted = moved(make(h), level, x, 1, generator)
                h *= math.exp(accepted - delta)
                steps.append(math.log(h))
            h = math.exp(sum(steps[TUNING // 2 :]) / len(steps[TUNING // 2 :]))
        kernels.append(make(h if h is not None else 0.0))
        x, _ = moved(kernels[-1], level, x, n_steps, generator)
    return path, kernels


def _next(ratio: Tensor, b: float) -> float:
    """Return the level at which equal weights keep the effective part `LEAST_ESS`."""

    def part(step: float) -> float:
        w = (step * (ratio - ratio.max())).exp()
        return float(w.mean() ** 2 / w.square().mean())

    low, high = 0.0, 1 - b
    if part(high) >= LEAST_ESS:
        return 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if part(middle) >= LEAST_ESS else (low, middle)
    return b + max(low, 1e-6)


def evidence(
    target: Density,
    draws: Float[Tensor, "n *event"] | Chain,
    base: Analytic | None = None,
    *,
    kernel: Kernel[Any, Any] | None = None,
    levels: Sequence[float] | None = None,
    n_particles: int = 1000,
    n_steps: int = 5,
    generator: torch.Generator | None = None,
) -> Evidence:
    r"""Estimate log Z = log ∫ exp(log_prob(x)) dx of a density from draws of it.

    Particles move from the base to the target and others from draws of the target back, through
    the same levels p_b ∝ p_0^{1−b} p_1^b with the same kernels; `bridge` combines them. The base
    must be the wide end. If the target is wider by a factor of 2 in variance along any direction,
    weights have infinite variance whenever kernels mix slowly, and their spread does not show it:
    the verdict then says so. Weights cannot reveal a part of the target that neither end has seen,
    nor that the draws contain only one of two mirror images.

    References:
        | Annealed Importance Sampling (Neal, 2001)
        | https://doi.org/10.1023/A:1008923215028
        | Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo (Grosse et al., 2015)
        | https://arxiv.org/abs/1511.02543

    Arguments:
        target: A density with log_prob, up to the unknown constant.
        draws: Draws of it: independent ones `(n, *event)`, or a `Chain`, whose draws are spread over
            the run and may be correlated.
        base: p_0, normalised; by default the normal law with the mean of the draws and twice their
            covariance.
        kernel: A reversible kernel with a Metropolis step; its step size is tuned at every level. By
            default `MALA` with the covariance of the base as its preconditioner.
        levels: 0 = b_0 < … < b_K = 1; by default each step is such that the effective number of
            particles falls to nine tenths.
        n_particles: Number of particles from the base; as many move back, or as many as there are
            draws.
        n_steps: Number of steps of the kernel at each level.
        generator: Source of the noise.

    Raises:
        ValueError: For levels that do not rise from 0 to 1, a kernel that does not leave its
            target invariant or is not reversible, or draws that are not finite or too few to fit a
            base.

    Examples:
        >>> target = glp.as_target(log_prob=lambda x: -x.square().sum(1) / 2, event_shape=(1,))
        >>> g = torch.Generator().manual_seed(0)
        >>> found = glp.langevin.evidence(target, torch.randn(2000, 1, generator=g), generator=g)
        >>> abs(found.log_z - 0.919) < 0.1  # ½ log 2π
        True
    """
    correlated = isinstance(draws, Chain)
    x = draws.draws.flatten(0, 1) if isinstance(draws, Chain) else draws
    if isinstance(draws, Chain) and draws.parameters is not None:
        x = draws.parameters.unconstrain(x)  # the space of the target's density
    check_target(target)
    check_points(x, "draws")
    check_count(n_particles, "n_particles", 2)
    check_count(n_steps, "n_steps")
    if kernel is not None:
        check_kernel(kernel)
    if base is not None:
        check_analytic(base, "base")
        check_points(x, "draws", base.event_shape)
    if levels is not None:
        given = as_parameter(levels, "levels")
        if given.ndim != 1:
            raise ValueError(f"levels must be numbers from 0 to 1, got {shown(levels)}")
        levels = given.tolist()
    if levels is not None and (
        len(levels) < 2 or (levels[0], levels[-1]) != (0, 1) or sorted({*levels}) != [*levels]
    ):
        raise ValueError(f"levels must increase from 0 to 1, got {list(levels)}")
    base = _fitted(x) if base is None else base
    start = base.sample(n_particles, generator=generator).to(x)
    make, h = _maker(kernel, base, x[0].numel())
    pilot = base.sample(min(n_particles, 500), generator=generator).to(x)
    path, kernels = _planned(pilot, target, base, make, h, levels, n_steps, generator)
    m = min(len(x), n_particles)
    back = x[torch.arange(m, device=x.device) * len(x) // m]
    go = anneal(start, target, base, path, kernels, n_steps=n_steps, generator=generator)
    come = anneal(
        back, target, base, path[::-1], kernels[::-1], n_steps=n_steps, generator=generator
    )
    batches = max(2, round(m**0.5)) if correlated else None
    found = bridge(go.log_w, come.log_w, batches)
    forward, n_forward = log_mean(go.log_w)
    backward, n_backward = log_mean(come.log_w, batches)
    reverse = Estimate(-backward.value, backward.standard_error)
    acceptance = (go.acceptance + come.acceptance.flip(0)) / 2
    reasons = [*_disagreement(found, forward, reverse), *_widening(start, x)]
    reasons += _stuck(acceptance, path)
    return Evidence(
        found.log_z, found.standard_error, forward, reverse, (n_forward, n_backward), found.overlap,
        torch.tensor(path, dtype=torch.float64),
        torch.stack([go.increments, -come.increments.flip(0)]), acceptance,
        Verdict(not reasons, tuple(reasons)),
    )  # fmt: skip


def _disagreement(found: Bridge, forward: Estimate, reverse: Estimate) -> Iterator[str]:
    if abs(found.contradiction) > 4:
        yield (
            f"the two directions contradict each other by {abs(found.contradiction):.2g} standard "
            f"errors "
            f"(log Z is {forward} from the base, {reverse} from the draws): particles from the "
            "base miss part of the target, or the draws do; check the chain, and use more n_steps "
            "or levels"
        )
    if found.overlap < FEW:
        yield (
            f"forward and backward particles overlap in {found.overlap:.2g} of "
            f"them, fewer than {FEW}: use more n_particles, n_steps or levels"
        )


def _widening(start: Tensor, draws: Tensor) -> list[str]:
    """Compare the draws of both ends along the direction in which the target is widest."""
    p, q = (torch.atleast_2d(torch.cov(v.flatten(1).double().mT)) for v in (start, draws))
    w, U = torch.linalg.eigh(p)
    whiten = U / w.clamp(min=torch.finfo(w.dtype).tiny).sqrt()
    most = float(torch.linalg.eigvalsh(whiten.mT @ q @ whiten)[-1])
    if most < 2:
        return []
    return [
        f"the target is {most:.2g} times as wide as the base in variance along one direction: on a "
        "path that widens by 2 or more, weights can have infinite variance without showing it; use a "
        "base at least as wide as the target"
    ]


def _stuck(acceptance: Tensor, path: Sequence[float]) -> list[str]:
    if not bool((acceptance < 0.1).any()):
        return []
    k = int(acceptance.where(~acceptance.isnan(), 1.0).argmin())
    return [
        f"moves are accepted with probability {float(acceptance[k]):.2g} at level {path[k + 1]:.3g}: "
        "particles hardly move there; use a smaller step_size, or a different kernel"
    ]
