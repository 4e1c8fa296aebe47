"""The choice of the engine: PyTorch, or compiled loops on the CPU."""

from __future__ import annotations

import logging
from typing import Any, Literal

import torch
from torch import Tensor

from ...core import Density, Generator, Progress, check_option, new_seed
from .. import fused
from ..chain import Chain

Engine = Literal["auto", "torch", "fused"]

WORTH = 2 * 10**7
"""Steps of all chains together from which `auto` finds compiling, some ten seconds, worth it."""

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
    plain: bool,
    progress: Progress | None,
) -> tuple[Chain, fused.Fused] | None:
    """Run on the fused engine and return the result, or None if PyTorch has to run this.

    Raises:
        ValueError: For `fused` if that engine cannot run this, with the reason; or for an unknown
            name.
    """
    check_option(engine, "engine", Engine)
    if engine == "torch":
        return None
    reason = "it keeps draws in memory, in a single run, and cannot resume" if not plain else None
    if reason is None and (x0 is None or not isinstance(generator, torch.Generator | None)):
        reason = "it needs starting points and a torch.Generator"
    if reason is None:
        reason = fused.objection(kernel, target, x0)
    if reason is not None:
        if engine == "fused":
            raise ValueError(f"engine='fused' cannot run this: {reason}")
        log.info("engine='auto' uses PyTorch: %s", reason)
        return None
    assert x0 is not None
    if engine == "auto":
        reason = fused.slower(target, x0)
        if n_steps * len(x0) < WORTH:
            reason = "compiling would take longer"
        if reason is not None:
            log.info("engine='auto' uses PyTorch: %s", reason)
            return None
    assert not hasattr(generator, "draw")
    seed = new_seed(generator)
    found = fused.run(
        kernel, target, x0, n_steps, burn_in, thin, seed=seed, progress=progress,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    chain = Chain(
        found.draws, found.info, found.state, divergences=found.divergences,
        step_size=float(kernel.step_size), complete=not found.interrupted,
    )  # fmt: skip
    return chain, found
