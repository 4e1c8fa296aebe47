"""A burn-in in which the kernel is tuned, with all chains together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    Density,
    Generator,
    Kernel,
    check_kernel,
    check_kind,
    check_points,
    check_target,
    chunks,
)
from ..kernels import Preconditioner, facts_of, started
from ..tuning.adaptation import Adaptation, DualAveraging, Polish
from ..tuning.metric import fit_metric
from .resume import Part, merge

AGREE, SLOW = 10.0, 0.5
"""Ratio of the median to the smallest tuned step up to which chains are given one step, and the part
of the acceptance to aim at that every one of them must then reach."""

STUCK, BELOW, CLIMBING = 1e-3, 10.0, 4.0
"""A chain is stuck that has moved less than this part of what the median chain has, in every
coordinate, at a log-density so many nats below the others'; and one has not arrived whose log-density
rises by more than so many typical deviations from one half of a window to the next."""

TROUBLED, SAFEST = 0.01, 0.9
"""Part of the steps of a window that diverge from which the acceptance to aim at moves half
way to 1, as long as it is below the second number."""

LONG, MARGIN = 80, 2.0
"""Steps of a window before which its divergences say nothing, and how many times the tuned step size
those may have that count: curvature that makes them diverge is near."""

ENOUGH, LOOK = 0.25, 200
"""Part of the steps before which the warm-up does not end, even if a window adds nothing, and steps
after which a longer window ends, if they add nothing."""

WIDEST, LONGEST = 10.0, 128
"""Most deviations by which a path is lengthened, and most leapfrog steps of a mean path."""


class Moved(NamedTuple):
    """A step of all chains, and what it says; None for what the kernel does not know."""

    step_size: Tensor
    x: Tensor
    score: Tensor | None
    log_prob: Tensor | None
    acceptance: Tensor
    diverging: Tensor | None


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """The result of tuning a kernel.

    Arguments:
        kernel: The tuned kernel, which changes no more.
        state: The last state of all chains.
        n_steps: Number of steps taken.
        target_acceptance: The target acceptance at the end.
        steps: The step size of each chain before they got a common one, `(chain,)`.
        restarts: How often each chain could not move and was started again, `(chain,)`.
    """

    kernel: Any
    state: Any
    n_steps: int
    target_acceptance: float
    steps: Tensor
    restarts: Tensor


def check_adapt(adapt: bool | Adaptation, burn_in: int, engine: str) -> Adaptation | None:
    """Return how to adapt, or None.

    Raises:
        ValueError: For an engine that cannot adapt, or an object that is not an adaptation.
    """
    if not isinstance(adapt, bool | Adaptation):
        raise ValueError(f"adapt must be True, False or an Adaptation, got {adapt!r}")
    if adapt is False:
        return None
    if engine == "fused":
        raise ValueError("engine='fused' cannot adapt: tune first, with warm_up")
    return Adaptation() if adapt is True else adapt


class Walkers:
    """All chains, in parts that take each step together: what is tuned does not depend on chunks."""

    def __init__(
        self, parts: list[Part], target: Density, tell: Callable[..., None] | None
    ) -> None:
        self.parts, self.target, self.tell = list(parts), target, tell

    def move(self, kernel: Any, step_size: Tensor) -> Moved:
        """Take one step of all chains, with one step size or `(chain,)`."""
        found: list[tuple[Any, ...]] = []
        for i, part in enumerate(self.parts):
            own = step_size[part.where].to(part.state.x) if step_size.ndim else float(step_size)
            moving = dataclasses.replace(kernel, step_size=own)
            state, info = moving.step(part.state, self.target, generator=part.noise)
            self.parts[i] = part._replace(state=state)
            if (acceptance := getattr(info, "acceptance", None)) is None:
                raise ValueError(
                    f"a step of {type(kernel).__name__} has no acceptance rate to tune its "
                    "step size to"
                )
            score, log_prob = getattr(state, "score", None), getattr(info, "log_prob", None)
            found.append((state.x, score, log_prob, acceptance, getattr(info, "diverging", None)))
            if self.tell is not None:
                self.tell(info)
        if len(found) == 1:
            return Moved(step_size, *found[0])
        columns: Any = zip(*found, strict=True)
        joined: Any = (None if c[0] is None else torch.cat(c) for c in columns)
        return Moved(step_size, *joined)

    def copy(self, source: Tensor) -> None:
        """Put every chain where the chain number `source` stands."""
        whole = merge(self.parts)
        whole = type(whole)(*(field[source.to(field.device)] for field in whole))
        for i, part in enumerate(self.parts):
            fields = (field[part.where] for field in whole)
            self.parts[i] = part._replace(state=type(whole)(*fields))


def tune(how: Adaptation, kernel: Any, walkers: Walkers, n_steps: int) -> WarmUp:
    """Return the kernel after at most n_steps of tuning.

    Raises:
        ValueError: If the kernel has nothing to tune or no acceptance, for too few steps, or for a
            window in which a coordinate never moved.
    """
    how.check(kernel, n_steps)
    rate, own = how.acceptance_for(kernel), facts_of(kernel).step_per_chain
    n = sum(len(part.state.x) for part in walkers.parts)
    h = torch.as_tensor(kernel.step_size, dtype=torch.float64).cpu()
    h = h.expand(n) if own else h
    restarts, time, taken = torch.zeros(n, dtype=torch.long), how.trajectory, 0
    *windows, (last, _) = how.windows(n_steps)

    def in_vain(seen: list[Moved]) -> bool:
        (moving, arrived), before = progress(seen), kernel.preconditioner
        late = taken + len(seen) >= ENOUGH * n_steps and bool((moving & arrived).all())
        return late and learnt(how, before, seen, arrived)[0] is before

    for length, learn in windows:
        h, seen = averaged(kernel, walkers, h, time, length, rate, in_vain if learn else None)
        taken += len(seen)
        if not seen:
            continue
        moving, arrived = progress(seen)
        if not bool(moving.any()):
            continue  # with smaller steps
        if learn:
            rate = safer_than(rate, how, seen, h, arrived)
            before = kernel.preconditioner
            P, widest = learnt(how, before, seen, arrived)
            kernel = dataclasses.replace(kernel, preconditioner=P)
            time = None if how.trajectory is None else how.trajectory * widest
            done = P is before and bool(arrived.all())
            if done and taken >= ENOUGH * n_steps:
                break
        if bool(moving.any()) and not bool(moving.all()):
            good = moving.nonzero()[:, 0]
            source = torch.arange(n)
            source[~moving] = good[torch.arange(int((~moving).sum())) % len(good)]
            walkers.copy(source)
            restarts += (~moving).long()
            h = h[source] if own else h
    if walkers.tell is not None and (skipped := n_steps - last - taken):
        walkers.tell(None, skipped * len(walkers.parts))
    polished = 2 * last // 3
    h, seen = averaged(kernel, walkers, h, time, last - polished, rate)
    if how.preconditioner != "none" and seen:
        rate = safer_than(rate, how, seen, h, torch.ones(n, dtype=torch.bool))
    steps = h.expand(n).clone()
    h = pooled(kernel, walkers, h, time, polished, rate)
    kernel = dataclasses.replace(paced(kernel, h, time), step_size=float(h))
    return WarmUp(kernel, merge(walkers.parts), taken + last, rate, steps, restarts)


def averaged(
    kernel: Any,
    walkers: Walkers,
    h: Tensor,
    time: float | None,
    n_steps: int,
    rate: float,
    in_vain: Callable[[list[Moved]], bool] | None = None,
) -> tuple[Tensor, list[Moved]]:
    """Return the steps after n_steps of dual averaging, and the states on the way.

    With `in_vain` all states are kept, to learn from, and the rest of the steps is skipped if it
    says so.
    """
    averaging, seen = DualAveraging.start(h, rate), list[Moved]()
    for _ in range(n_steps):
        step = averaging.log_step.exp()
        moved = walkers.move(paced(kernel, step, time), step)
        accepted = moved.acceptance.double().cpu()
        if in_vain is None:  # of positions no more than the first and last are asked for
            between = 0 < len(seen) < n_steps - 1
            moved = moved._replace(score=None, x=seen[0].x if between else moved.x)
        seen.append(moved)
        averaging = averaging.update(accepted if h.ndim else accepted.mean())
        if in_vain is not None and len(seen) == LOOK < n_steps and in_vain(seen):
            break
    return averaging.log_average.exp() if seen else h, seen


def paced(kernel: Any, step_size: Tensor, time: float | None) -> Any:
    """Return the kernel with as many leapfrog steps as the time of a path needs."""
    if time is None:
        return kernel
    n = math.ceil(time / float(step_size.median()))
    return dataclasses.replace(kernel, n_leapfrog=min(max(n, 1), LONGEST))


def progress(seen: list[Moved]) -> tuple[Tensor, Tensor]:
    """Return which chains can move, and which of them do not climb any more."""
    x = torch.stack([m.x for m in seen]).flatten(2).double().cpu()
    width = x.amax(0) - x.amin(0)
    moving = width.amax(1) > 0
    if not bool(moving.any()) or seen[0].log_prob is None:
        return moving, moving
    log_prob = torch.stack([m.log_prob for m in seen if m.log_prob is not None]).double().cpu()
    median = width[moving].median(0).values.clamp(min=1e-300)
    low = log_prob.amax(0) < float(log_prob.median(0).values.median()) - BELOW
    moving &= ~(low & ((width / median).amax(1) < STUCK))
    early, late = log_prob.tensor_split(2)
    if not len(early):
        return moving, moving
    rise = late.median(0).values - early.median(0).values
    # in d dimensions −log p of a normal law varies by √(d/2)
    typical = min(
        float(log_prob.std(0, correction=0)[moving].median()), 1 + (x.shape[2] / 2) ** 0.5
    )
    arrived = moving & (rise <= CLIMBING * max(typical, 1.0))
    return moving, arrived if bool(arrived.any()) else moving


def safer_than(
    rate: float, how: Adaptation, seen: list[Moved], h: Tensor, arrived: Tensor
) -> float:
    """Return a larger target acceptance if too many steps of the arrived chains diverged.

    Steps longer than twice the resulting h do not count: dual averaging swings to ten times that,
    where paths diverge even on a normal law.
    """
    free = how.target_acceptance is None and rate < SAFEST
    if not free or seen[0].diverging is None or len(seen) < LONG:
        return rate
    flags = torch.stack([m.diverging for m in seen if m.diverging is not None]).cpu()
    used = (
        torch.stack([(m.step_size <= MARGIN * h).expand(flags.shape[1]) for m in seen]) & arrived
    )
    share = float(flags[used].double().mean()) if bool(used.any()) else 0.0
    return 1 - (1 - rate) / 2 if share > TROUBLED else rate


def learnt(
    how: Adaptation, current: Any, seen: list[Moved], use: Tensor
) -> tuple[Preconditioner, float]:
    """Return the metric from the chains in `use`, and how wide the density still is under it.

    A metric of least Fisher divergence follows the steep parts. If the density is not normal, it
    may be several times wider than 1 along some direction, and paths must be correspondingly long.
    """
    mine = use.to(seen[0].x.device)
    x = torch.stack([m.x for m in seen])[:, mine].flatten(0, 1)
    score = torch.stack([m.score for m in seen if m.score is not None])[:, mine].flatten(0, 1)
    current = current if isinstance(current, Preconditioner) else None
    P = fit_metric(x, score, how.preconditioner, current)
    y = P.inv_sqrt(x).flatten(1).double()
    n, d = y.shape
    # the largest singular value of n draws of N(0, I_d) is about √n + √d
    widest = float(torch.linalg.matrix_norm(y - y.mean(0), 2)) / (n**0.5 + d**0.5)
    return P, min(max(widest, 1.0), WIDEST)


def pooled(
    kernel: Any, walkers: Walkers, h: Tensor, time: float | None, n_steps: int, rate: float
) -> Tensor:
    """Return one step for all chains: polished where they agree, else that of the slowest."""
    agree = float(h.median()) <= AGREE * float(h.min())
    polish, accepted = Polish(float(h.log().mean()), rate), list[Tensor]()
    one = h
    for _ in range(n_steps):
        one = torch.tensor(polish.log_step, dtype=torch.float64).exp() if agree else h
        moved = walkers.move(paced(kernel, one, time), one)
        accepted.append(moved.acceptance.double().cpu())
        polish = polish.update(float(accepted[-1].mean()))
    if not agree:
        return h.min()
    one = torch.tensor(polish.log_step, dtype=torch.float64).exp()
    # the error of such a mean is about 0.3/√n
    slow = torch.stack(accepted).mean(0) < SLOW * rate - 1 / n_steps**0.5 if accepted else h < 0
    return torch.minimum(one, h[slow].min()) if h.ndim and bool(slow.any()) else one


@torch.no_grad()
def warm_up(
    kernel: Kernel[Any, Any],
    target: Density,
    x0: Float[Tensor, "chain *event"],
    n_steps: int,
    adaptation: Adaptation | None = None,
    *,
    generator: Generator | None = None,
) -> WarmUp:
    """Tune a Metropolis kernel, as `run(..., adapt=)` and `sample` do before they keep draws.

    Arguments:
        kernel: A frozen dataclass such as `MALA(h)` or `HMC(ε, n)`, with the initial step size.
        target: The density.
        x0: Starting points.
        n_steps: Number of steps, which are a burn-in as well.
        adaptation: What is tuned; only the step size by default.
        generator: Source of the noise.

    Returns:
        `WarmUp`: continue with `run(found.kernel, target, found.state.x, …)`.

    Raises:
        ValueError: If the kernel has no step size or no acceptance, if no target acceptance is
            given or known, for too few steps, or for a window in which a coordinate never moved.
    """
    check_kernel(kernel)
    check_target(target)
    check_points(x0, "x0", getattr(target, "event_shape", None))
    how = Adaptation() if adaptation is None else adaptation
    check_kind(how, "adaptation", Adaptation, "an Adaptation")
    how.check(kernel, n_steps)
    where, noise = next(chunks(x0, None, generator))
    part = Part(where, noise, started(kernel, x0, target, noise), None)
    return tune(how, kernel, Walkers([part], target, None), n_steps)


def tuned_values(kernel: Any) -> dict[str, Any]:
    """Return what may have been tuned, as tensors, numbers and strings."""
    values: dict[str, Any] = {
        "kernel": type(kernel).__name__, "step_size": float(kernel.step_size),
    }  # fmt: skip
    if (n := getattr(kernel, "n_leapfrog", None)) is not None:
        values["n_leapfrog"] = n
    P = getattr(kernel, "preconditioner", None)
    if isinstance(P, Preconditioner):
        values |= {"preconditioner": P.value, "kind": P.kind}
    return values


def retuned(kernel: Any, values: Mapping[str, Any] | None) -> Any:
    """Return the kernel with the settings that a continued run had tuned.

    Raises:
        ValueError: If it is a different kind of kernel.
    """
    if values is None:
        return kernel
    changes: dict[str, Any] = {
        name: values[name] for name in ("step_size", "n_leapfrog") if name in values
    }
    if "preconditioner" in values:
        changes["preconditioner"] = Preconditioner(values["preconditioner"], values["kind"])
    fields = {f.name for f in dataclasses.fields(kernel)}
    if missing := changes.keys() - fields:
        raise ValueError(
            f"resume holds a tuned {' and '.join(sorted(missing))}, which {type(kernel).__name__} does "
            "not have: continue with the kernel of that run"
        )
    if values.get("kernel", type(kernel).__name__) != type(kernel).__name__:
        raise ValueError(
            f"resume holds a step size tuned for {values['kernel']}, but {type(kernel).__name__} was "
            "given: continue with the kernel of that run"
        )
    return dataclasses.replace(kernel, **changes)
