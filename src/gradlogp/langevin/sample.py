"""From a density to draws with a verdict, in one call."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    ALONE,
    Density,
    Kernel,
    Processes,
    Progress,
    Update,
    check_count,
    check_generator,
    check_kernel,
    check_points,
    check_target,
)
from ..distributions.as_target import has_log_prob
from .chain import Chain
from .guard import Guarded, check_rows
from .kernels import BAOAB, HMC, MCLMC, facts_of
from .run import run
from .run.driver import check_progress, show
from .run.reading import kernel_of
from .run.stream import Keep, Place, check_keep
from .tuning import Adaptation, choose_step
from .tuning.adaptation import LEAST
from .tuning.start import ONE_POINT, find_start
from .tuning_mclmc import LEAST as LEAST_MCLMC
from .tuning_mclmc import tune_mclmc, whitened

TRAJECTORY = math.pi / 2
"""Mean time of a path: lengths uniform on (0, π) leave no correlation of x on a normal law."""


def sample(
    target: Density,
    n_draws: int = 1000,
    n_chains: int = 4,
    *,
    n_warmup: int = 1000,
    start: Float[Tensor, "chain *event"] | None = None,
    kernel: Kernel[Any, Any] | None = None,
    keep: Keep = "memory",
    generator: torch.Generator | None = None,
    progress: Update | Progress | None = None,
    resume: str | os.PathLike[str] | None = None,
    processes: Processes = ALONE,
) -> Chain:
    """Sample a density: find starts, warm up, run, and judge the draws.

    1. Starts: the best normal laws along quasi-Newton paths (`langevin.find_start`).
    2. Warm-up: step sizes for each chain and one metric for all (`langevin.warm_up`).
    3. Draws, with a kernel that no longer changes: `HMC` with jittered paths, whose mean length
       follows from the step; `BAOAB` for a target without a log-density.
    4. `Chain.verdict`, computed on first access: look at it before anything else.

    Arguments:
        target: A density, made by `as_target` from any function.
        n_draws: Number of draws of each chain.
        n_chains: Number of chains; a single chain is never judged ok.
        n_warmup: Maximum number of steps of the warm-up; below 40 nothing is tuned.
        start: Starting points, instead of a search for them.
        kernel: A kernel to use instead: its step size and preconditioner are tuned, if it has an
            acceptance. For `MCLMC` step size and length are tuned by `tune_mclmc` in the first
            half of the warm-up, in the metric of the start unless it has one; the verdict states
            the remaining bias.
        keep: Where to store draws, as in `run`.
        generator: Source of all randomness.
        progress: Called as progress(done, total, note=...), as in `run`.
        resume: The path that an earlier call had as `keep`: performs the remaining draws, however
            that call ended. An unfinished warm-up is repeated from its start. Only the target is
            needed, and the kernel if one was passed.
        processes: Processes that divide the chains among them, as in `run`; starts and warm-up are
            computed in each.

    Raises:
        ValueError: For counts below 1, a target without event shape and start, one that is not
            finite at the start, or one whose value at a point depends on the other points of a
            batch; for a `resume` of a different run.
        OSError: As in `run`.

    Examples:
        >>> target, g = glp.Gaussian([1.0, -1.0]), torch.Generator().manual_seed(0)
        >>> chain = glp.sample(target, 500, n_warmup=200, generator=g)
        >>> chain.draws.shape
        torch.Size([4, 500, 2])
        >>> bool((chain.draws.mean((0, 1)) - target.mean).abs().max() < 0.2)
        True
    """
    Processes.check(processes)
    if resume is not None:
        given = n_draws, n_chains, n_warmup
        counts = all(isinstance(n, int) for n in given) and given == (1000, 4, 1000)
        if not (counts and start is None and generator is None):
            raise ValueError(
                "pass resume= without counts, start or generator: those of that run apply"
            )
        with _divergences_untold():
            return run(
                kernel or kernel_of(resume), target, resume=resume, keep=keep, progress=progress,
                processes=processes,
            )  # fmt: skip
    processes.same_noise(generator)
    check_count(n_draws, "n_draws")
    check_count(n_chains, "n_chains")
    check_count(n_warmup, "n_warmup", 0)
    check_target(target)
    if kernel is not None:
        check_kernel(kernel)
    check_progress(progress)
    check_generator(generator)
    if start is not None:
        check_points(start, "start", getattr(target, "event_shape", None))
    place = check_keep(keep, torch.get_default_dtype() if start is None else start.dtype)
    found, metric, known = None, None, has_log_prob(target)
    if start is not None:
        if len(start) != n_chains:
            raise ValueError(
                f"start has {len(start)} points for {n_chains} chains: pass one per chain"
            )
        x = start
    elif not known:
        raise ValueError(
            "a target without a log-density needs start=, (chain, *event): without one nothing shows "
            "where the density is large"
        )
    else:
        if progress is not None:
            show(progress, 0, n_warmup + n_draws, "finding a start")
        try:
            found = find_start(target, n_chains, generator=generator)
        except IndexError as error:
            raise ValueError(
                f"the target cannot take a batch (1, *event): {error}; {ONE_POINT}"
            ) from error
        x, metric = found.x, found.metric
    check_rows(target, x)
    trajectory = None
    if kernel is None:
        kernel, trajectory = _default(target, x, metric, known, generator), TRAJECTORY
    adapt: bool | Adaptation = False
    facts = facts_of(kernel)
    if isinstance(kernel, MCLMC) and n_warmup >= 2 * LEAST_MCLMC:
        if metric is not None:
            kernel = whitened(kernel, metric, x[0].numel())
        tuning = n_warmup // 2
        guarded = Guarded(target)
        guarded.lenient = True
        kernel = tune_mclmc(kernel, guarded, x, tuning, generator=generator)
        n_warmup -= tuning
    if (
        n_warmup >= LEAST
        and facts.needs_log_prob is not False
        and facts.target_acceptance is not None
    ):
        fields = getattr(kernel, "__dataclass_fields__", {})
        adapt = Adaptation(
            preconditioner="auto" if "preconditioner" in fields else "none",
            trajectory=trajectory,
        )
    with _divergences_untold():
        chain = run(
            kernel, target, x, n_warmup + n_draws, n_warmup, generator=generator,
            keep=keep if place is None else Place(place.path, found), progress=progress,
            adapt=adapt, processes=processes,
        )  # fmt: skip
    return dataclasses.replace(chain, start=found)


@contextmanager
def _divergences_untold() -> Iterator[None]:
    """Keep quiet about divergent steps: the verdict judges them, and says more."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* chains diverged", RuntimeWarning)
        yield


def _default(
    target: Density, x: Tensor, metric: Any, known: bool, generator: torch.Generator | None
) -> Kernel[Any, Any]:
    """Return the kernel that what is known of the target calls for."""
    if not known:
        return choose_step(BAOAB, target, x, generator=generator)
    step = x.shape[1:].numel() ** -0.25
    return HMC(step, 2) if metric is None else HMC(step, 2, metric)
