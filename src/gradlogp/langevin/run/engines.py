"""Which engine runs the chains, and what the fused one makes of a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ...core import Density, Generator, check_option, check_points, new_seed
from ...distributions.parameters import parameters_of
from .. import fused
from ..chain import Chain
from .resume import VERSION, check_saved, check_state
from .rounds import Thinning

Engine = Literal["auto", "torch", "fused"]

WORTH = 20.0
"""Seconds that `auto` must save, by counts alone, to compile for some ten seconds."""

LEAST_STEPS = 10_000
"""Steps below which `auto` does not look at a target at all."""

log = logging.getLogger("gradlogp")


def compiled(
    engine: Engine,
    kernel: Any,
    target: Density,
    x0: Tensor | None,
    n_steps: int,
    burn_in: int,
    thin: int,
    generator: Generator | None,
    resume: Any,
    plain: bool,
    progress: Callable[[int, int], None] | None,
) -> tuple[Chain, tuple[int, int, Thinning]] | None:
    """Run on the fused engine, or return None if PyTorch has to run this.

    Returns:
        The result, and the steps taken, the steps requested and which are kept.

    Raises:
        ValueError: For `fused`, or a `resume` of that engine, if it cannot run this, with the
            reason; or for an unknown name.
    """
    check_option(engine, "engine", Engine)
    given = resume.resume if isinstance(resume, Chain) else resume
    saved = given if isinstance(given, Mapping) and given.get("engine") == "fused" else None
    if engine == "torch" and saved is None:
        return None
    if saved is not None:
        saved = check_saved(saved, x0, generator)
        x0 = saved["state"]["x"]
    try:
        if engine == "torch":
            raise fused.CannotCompile("its noise is that of engine='fused'")
        if not plain or (resume is not None and saved is None):
            raise fused.CannotCompile(
                "it keeps draws in memory, in a single run, and resumes only its own"
            )
        if x0 is None or not isinstance(generator, torch.Generator | None):
            raise fused.CannotCompile("it needs starting points and a torch.Generator")
        taken = _ready(kernel, target, x0, n_steps, engine == "auto" and saved is None)
    except fused.CannotCompile as reason:
        if saved is not None:
            raise ValueError(
                f"resume is a run of the fused engine, which cannot continue this: {reason}; start "
                "from x0=chain.state.x"
            ) from None
        if engine == "fused":
            raise ValueError(f"engine='fused' cannot run this: {reason}") from None
        log.info("engine='auto' uses PyTorch: %s", reason)
        return None
    since = saved["since"] % max(thin, 1) if saved and not burn_in else 0
    assert not hasattr(generator, "draw")
    found = fused.run(
        kernel, taken, x0, n_steps, burn_in, thin, progress=progress, since=since,
        seed=0 if saved else new_seed(generator), threads=torch.get_num_threads(),
        go_on=_go_on(kernel, target, saved) if saved else None,
    )  # fmt: skip
    thinning, parameters = Thinning(burn_in, thin, since), parameters_of(target)
    draws = found.draws
    if parameters is not None:
        draws = parameters.constrain(draws.flatten(0, 1)).unflatten(0, draws.shape[:2])
    chain = Chain(
        draws, found.info, found.state, divergences=found.divergences,
        step_size=float(kernel.step_size), complete=not found.interrupted, parameters=parameters,
        resume={
            "version": VERSION, "engine": "fused", "state": found.state._asdict(),
            "noise": found.noise, "device": "cpu", "since": thinning.left_over(found.n_steps),
        },
    )  # fmt: skip
    return chain, (found.n_steps, n_steps, thinning)


def _ready(kernel: Any, target: Density, x0: Tensor, n_steps: int, ask: bool) -> Any:
    """Return the target as the engine takes it; `ask` if that is also to be worth it.

    Raises:
        CannotCompile: With the reason.
    """
    short = "compiling would take longer"
    if ask and n_steps < LEAST_STEPS:
        raise fused.CannotCompile(short)
    check_points(x0, "x0", getattr(target, "event_shape", None))
    found = fused.prepared(kernel, target, x0)
    if ask:
        if (reason := fused.slower(found, x0)) is not None:
            raise fused.CannotCompile(reason)
        if n_steps * fused.gain(found, x0) < WORTH:
            raise fused.CannotCompile(short)
    if isinstance(found, fused.Translated):
        fused.check(found, x0)
    return found


def _go_on(kernel: Any, target: Density, saved: Mapping[str, Any]) -> tuple[Any, Tensor]:
    """Return state and noise of a saved run."""
    state = check_state(kernel, kernel.init(saved["state"]["x"], target), saved["state"])
    return state, saved["noise"]
