r"""Log-likelihood by the probability-flow ODE, and bits of integer data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..calculus.ode import Step, integrate
from ..calculus.reverse import Probe, hutchinson_trace, jacobian_trace
from ..calculus.reverse import probe as draw_probe
from ..core import (
    ALONE,
    Generator,
    NoisyScore,
    Processes,
    Progress,
    ScoreFn,
    check_count,
    check_dtype,
    check_event_shape,
    check_finite,
    check_function,
    check_kind,
    check_number,
    check_option,
    check_points,
    chunks,
    per_sample,
    rand_like,
    shares,
    shown,
    sum_event,
)
from ..noise.blurred import encode
from ..noise.grids import MOST_RATIO, check_t_min, least_time, likelihood_grid
from ..noise.predictions import flow_velocity
from ..noise.score_base import ScoreBase, check_noisy_score
from ..noise.tabulated import numbers
from ..noise.terminal import start_of, terminal
from .transitions.coefficients import Level, combined, log_ratio
from .transitions.unipc import Corrected, Node, integral

ORDER = 3
"""Values of x̂_0 in a prediction of the multistep solver."""


class Likelihood(NamedTuple):
    """Log-likelihood in nats, its standard error over probes (0 if exact), the solver's, `(B,)`.

    The law is that at `t_min`.

    `solver_error` is the sum of what the local errors and roundings of a solver with a tolerance change
    in the log-density, and NaN, unknown, for a fixed number of steps. Without a step it is 0.
    """

    log_prob: Float[Tensor, " batch"]
    standard_error: Float[Tensor, " batch"]
    nfe: int
    solver_error: Float[Tensor, " batch"]
    t_min: float


def bits_per_dim(
    log_prob: Float[Tensor, " batch"], event_shape: tuple[int, ...], levels: int = 256
) -> Float[Tensor, " batch"]:
    r"""Return −log₂ P(k) per dimension of integer data k in 0 … levels − 1.

    .. math:: -\frac{\log p(y)}{d \ln 2} + \log_2 levels, \qquad y = (k + u)/levels

    with p the density of dequantised data in [0, 1], u uniform (`dequantise`). Averaged over u
    this is an upper bound for the bits that a code of k needs. If the log-density is that of other
    coordinates z = z(y), first add `log |det dz/dy|` (`score.coordinates.log_det`).

    Arguments:
        log_prob: log p(y) in nats, `(B,)`.
        event_shape: Shape of one sample.
        levels: Number of values that an entry can take.

    Raises:
        ValueError: For fewer than two levels or an empty event.

    References:
        | A Note on the Evaluation of Generative Models (Theis, van den Oord & Bethge, 2016)
        | https://arxiv.org/abs/1511.01844
    """
    check_finite(log_prob, "log_prob")
    check_event_shape(tuple(event_shape) if isinstance(event_shape, list) else event_shape)
    check_count(levels, "levels", 2)
    d = math.prod(event_shape)
    return -log_prob / (d * math.log(2)) + math.log2(levels)


def dequantise(
    k: Tensor, levels: int = 256, *, generator: Generator | None = None, like: Tensor | None = None
) -> Tensor:
    """Return (k + u)/levels in [0, 1] with u uniform: integers as continuous data.

    Arguments:
        k: Integers 0 … levels − 1, of any dtype, `(B, *event)`.
        levels: Number of values that an entry can take.
        generator: Source of u.
        like: A tensor with the dtype of the result; PyTorch's default if None.

    Raises:
        ValueError: For values that are not integers in the range.
    """
    check_kind(k, "k", Tensor, "a tensor of integers")
    check_count(levels, "levels", 2)
    if k.is_complex() or k.numel() == 0:
        raise ValueError(f"k must hold integers, got {shown(k)} of {k.dtype}")
    if like is not None:
        check_kind(like, "like", Tensor, "a tensor")
        check_dtype(like.dtype, "the dtype of like")
    x = k.to(torch.get_default_dtype() if like is None else like.dtype)
    if bool(((x != x.round()) | (x < 0) | (x > levels - 1)).any()):
        raise ValueError(
            f"k must hold integers from 0 to {levels - 1}, got values from {float(x.min()):g} to "
            f"{float(x.max()):g}; multiply data in [0, 1] by {levels - 1} and round"
        )
    return (x + rand_like(x, generator)) / levels


def log_likelihood(
    score: NoisyScore,
    x: Float[Tensor, "batch *event"],
    *,
    divergence: Literal["exact", "hutchinson"] = "exact",
    tolerance: float = 1e-5,
    n_steps: int | None = None,
    t_min: float | None = None,
    n_probes: int = 1,
    probe: Probe = "rademacher",
    generator: Generator | None = None,
    chunk_size: int | None = None,
    progress: Progress | None = None,
    differentiable: bool = False,
    processes: Processes = ALONE,
) -> Likelihood:
    r"""Log-density of x under a noisy score, by the probability flow from t_min to 1.

    .. math:: \log p_{t_{min}}(z) = \log p_1(z_1) + \int_{t_{min}}^1 \nabla \cdot v(z_t, t)\, dt

    with v = α' ẑ_0 + σ' ε̂ and p_1 = `terminal(score)`, plus `log |det dz/dx|` for x in its own
    units. Where the law of z_t is known in closed form before t = 1, from `score.start` on, the path
    ends there. The result is the density of the law at t_min: its noise is part of it, so that data are
    blurred by σ/α there (0.01 under VP, t_min = 1e-3).

    By default to a tolerance, by the Dormand–Prince pair of order 5(4), with separate steps and an
    error estimate for every sample. With `n_steps` by the predictor and corrector of `UniPC` in λ
    = log(α/σ), in which the integrand is smooth, in steps that grow as the data are forgotten:

    .. math:: \log\left|\det \frac{\partial z_s}{\partial z_t}\right|
        = d \log \frac{σ_s}{σ_t} + \int_{λ_t}^{λ_s} α \, \nabla \cdot \hat x_0 \; dλ

    This needs one evaluation per step, and one more; `plan_likelihood` measures how many steps are
    needed. A Hutchinson divergence uses the same probes along the whole path, so that the error
    over probes is the error of the result.

    Arguments:
        score: The noisy score, with its schedule.
        x: Points in the units of the data, `(B, *event)`.
        divergence: "exact" (d Jacobian-vector products per evaluation) or "hutchinson".
        tolerance: Relative and absolute tolerance, in z and in nats; each step must meet a tenth
            of it.
        n_steps: A fixed number of steps instead, the same for all points; at least four.
        t_min: The time identified with the data; by default the smallest time with noise.
        n_probes: Number of probes of the Hutchinson estimate; with one the standard error is NaN,
            unknown.
        probe: Law of the probes.
        generator: Source of the probes.
        chunk_size: Number of points processed together.
        progress: Called as progress(done, total) after every step; with a tolerance, every chunk.
        differentiable: Whether to keep the graph, to differentiate log p in x and in the
            parameters of the score; a model that is its base alone does not depend on these.
        processes: Processes that divide the points among them, as in `evolve`.

    Raises:
        ValueError: For an object that is not a noisy score, a wrong shape, points that are not
            finite, an unknown divergence, a tolerance that is not positive, an unknown law at t =
            1, or a t_min at which the flow has no finite velocity (0 under VP).
        ArithmeticError: If the tolerance cannot be met, or a result became NaN or infinite.

    References:
        | Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021)
        | https://arxiv.org/abs/2011.13456
        | FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models
          (Grathwohl et al., 2019)
        | https://arxiv.org/abs/1810.01367

    Examples:
        >>> law = glp.GaussianMixture([0.3, 0.7], [[-2.0], [2.0]], 1.0)
        >>> x = torch.tensor([[-2.0], [0.5]])
        >>> found = glp.log_likelihood(glp.ExactScore(law, glp.schedules.VP()), x)
        >>> bool((found.log_prob - law.log_prob(x)).abs().max() < 1e-3)
        True
    """
    check_noisy_score(score)
    check_points(x, event_shape=score.event_shape)
    schedule = score.schedule
    check_option(divergence, "divergence", ("exact", "hutchinson"))
    check_option(probe, "probe", Probe)
    if progress is not None:
        check_function(progress, "progress", takes=2)
    if schedule.times is not None:
        raise ValueError("a discrete ladder has no continuous flow; use the schedule it came from")
    if n_steps is not None:
        check_count(n_steps, "n_steps", ORDER + 1, "; with fewer, errors reach many nats")
    check_count(n_probes, "n_probes")
    check_number(tolerance, "tolerance", above=0)
    if t_min is None:
        t_min = float(least_time(schedule))
    check_t_min(t_min)
    rates = torch.stack(schedule.rates(torch.tensor(t_min, dtype=torch.float64)))
    if not bool(rates.isfinite().all()):
        raise ValueError(
            f"the flow has no finite velocity at t_min = {t_min:g} under {schedule}; choose t_min > 0"
        )
    Processes.check(processes)
    if differentiable and not processes.alone:
        raise ValueError("derivatives do not cross processes: drop processes= or differentiable=")
    processes.same_noise(generator)
    t_max = start_of(score)
    stops = () if n_steps is not None else getattr(score, "kinks", ())
    steps = 1 if n_steps is None or t_max <= t_min else n_steps
    total = len(shares(len(x), chunk_size, processes)) * steps
    ticks = itertools.count(1)

    def tick() -> None:
        if progress is not None:
            progress(next(ticks), total)

    def mine() -> tuple[list[Tensor], int]:
        parts, errors = [], []
        nfe = 0 if n_steps is None or t_max <= t_min else n_steps + 1
        for part, streams in chunks(x, chunk_size, generator, processes):
            inside, y = score.rows(part), encode(score, x[part])
            probes = None
            if divergence == "hutchinson":
                probes = torch.stack([draw_probe(probe, y, streams) for _ in range(n_probes)])
            path = _Path(inside, probes, y.shape[1:])
            if t_max <= t_min:  # the law is known where the data are
                end, gain = y, y.new_zeros(n_probes if probes is not None else 1, len(y))
                error = torch.zeros_like(gain[0])
                tick()
            elif n_steps is None:
                state = path.start(y)
                # what adds up over the steps is several times what one may leave
                step = max(tolerance / 10, 16 * torch.finfo(y.dtype).eps)
                found = integrate(
                    path, state, t_min, t_max, rtol=step, atol=step, stops=stops, told=path.told
                )
                state, nfe = found.y, max(nfe, found.nfe)
                (end, gain), error = path.split(found.y), found.error.mean(1)
                tick()
            else:
                grid = likelihood_grid(schedule, n_steps + 1, t_min, _spread(score), t_max)
                times = grid.flip(0).unbind()
                if isinstance(inside, ScoreBase) and not differentiable:
                    path = replace(path, score=inside.tabulated(times))
                end, gain = _multistep(path, y, times, tick)
                error = torch.full_like(gain[0], torch.nan)
            errors.append(error)
            gain = (gain + terminal(inside, max(t_max, t_min)).log_prob(end)).to(x)
            parts.append(gain + score.coordinates.log_det(x[part]))
        return [torch.cat(parts, 1).mT, torch.cat(errors).to(x)], nfe

    with torch.set_grad_enabled(differentiable):
        (gains, error), counts = processes.gather(mine)
    gains, nfe = gains.mT, max(counts)
    if not bool(gains.isfinite().all()):
        bad = int((~gains.isfinite()).any(0).sum())
        raise ArithmeticError(
            f"the log-likelihood of {bad} of {len(x)} points became NaN or infinite; check whether the "
            "points lie far outside the data, or raise t_min"
        )
    if divergence == "exact":
        return Likelihood(gains[0], torch.zeros_like(gains[0]), nfe, error, t_min)
    spread = gains.std(0) if n_probes > 1 else torch.full_like(gains[0], torch.nan)
    return Likelihood(gains.mean(0), spread / math.sqrt(n_probes), nfe, error, t_min)


def _spread(score: NoisyScore) -> float:
    """Return the largest standard deviation of an entry of z_0; 1 if it is not known."""
    moments = score.moments
    return 1.0 if moments is None else float(moments.var.detach().max().sqrt()) or 1.0


@dataclass(frozen=True, eq=False)
class _Path:
    """The flow and its divergence together, as one state `(B, d + n)`, exact or by n fixed probes.

    The integral of the divergence follows x, so that a solver meets its tolerance for both.
    """

    score: NoisyScore
    probes: Tensor | None
    event_shape: torch.Size

    def start(self, x: Tensor) -> Tensor:
        """Return the state at x, with nothing added up."""
        n = 1 if self.probes is None else len(self.probes)
        return torch.cat([x.flatten(1), x.new_zeros(len(x), n)], 1)

    def split(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and what the divergence added up to, `(n, B)`."""
        d = self.event_shape.numel()
        return state[:, :d].reshape(-1, *self.event_shape), state[:, d:].mT

    def __call__(self, state: Tensor, t: Tensor) -> Tensor:
        """Return the rate of the state."""
        x, _ = self.split(state)
        value, traces = self._by_derivatives(lambda y: flow_velocity(self.score, y, t), x)
        return torch.cat([value.flatten(1), traces.mT], 1)

    def told(self, step: Step, t: Tensor) -> Tensor:
        r"""Return what the defect of a step does to log p, `(B, n)`: that of the integral, and of z.

        Where z is off by δ, what is reached is off by s · δ, of the score s = −ε̂/σ, which is in
        z = α ẑ_0 + σ ε̂ and the velocity α' ẑ_0 + σ' ε̂.
        """
        (z, _), (v, _), (dz, gain) = (self.split(part) for part in step)
        schedule = self.score.schedule
        a, b, da, db = (per_sample(q, z) for q in (*schedule(t), *schedule.rates(t)))
        s = (a * v - da * z) / (b * (da * b - a * db))
        return gain.mT + sum_event(s * dz).unsqueeze(1)

    def denoised(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return x̂_0 and its divergence, `(n, B)`; that of a base in closed form."""
        score = self.score
        if not isinstance(score, ScoreBase):
            return self._by_derivatives(lambda y: score.denoise(y, t), z)
        score._check(z, t)
        known = score._known(z, t)
        by_hand = score._learned_and_trace(z, t) if self.probes is None else None
        if by_hand is not None:
            value, trace = by_hand[0], by_hand[1][None]
        else:
            learned = score.denoise if known is None else score._learned
            value, trace = self._by_derivatives(lambda y: learned(y, t), z)
        return (value, trace) if known is None else (known[0] + value, known[1] + trace)

    def _by_derivatives(self, field: ScoreFn, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.probes is not None:
            return hutchinson_trace(field, x, self.probes)
        value, trace = jacobian_trace(field, x)
        return value, trace[None]


def _multistep(
    path: _Path, z: Tensor, times: Sequence[Tensor], tick: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """Return where the flow leads from z, and what the divergence adds up to, `(n, B)`."""
    d, states, traces = z[0].numel(), Corrected(ORDER), list[Node]()
    levels = [numbers(path.score.schedule, t) for t in times]
    lams = list(map(log_ratio, levels))
    far = lams[-1] < -math.log(MOST_RATIO) - 1e-6  # a last step to where the data are forgotten
    gain, state, x0 = z.new_zeros(1, len(z)), z, z
    for i, t in enumerate(times[: len(times) - far]):
        z = states.leave(levels[i]) if i else z
        x0, trace = path.denoised(z, t)
        state = states.arrive(z, levels[i], x0)
        traces.insert(0, (lams[i], levels[i][0] * trace))
        if i:
            trace = combined(integral(traces, *lams[i - 1 : i + 1]))
            gain = gain + d * _log_ratio_of_noise(levels, i) + trace
            tick()
        del traces[ORDER:]
    if not far:
        return state, gain
    # there x̂_0 goes to the mean as e^λ does, and the trace to 0 as e^{2λ}
    (alpha, sigma), before = levels[-1], levels[-2]

    def end(x0: Tensor) -> Tensor:
        return alpha * x0 + sigma / before[1] * (state - before[0] * x0)

    mean = path.score.denoise(end(x0), times[-1])
    trace = traces[0][1] * math.expm1(2 * (lams[-1] - lams[-2])) / 2
    tick()
    return end((x0 + mean) / 2), gain + d * _log_ratio_of_noise(levels, -1) + trace


def _log_ratio_of_noise(levels: list[Level], i: int) -> float:
    return math.log(levels[i][1] / levels[i - 1][1])
