"""How many steps fit into a given time, from the speed of real steps, and whether they are enough."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

SHARE, MOST, LEAST = 0.02, 10.0, 3
"""Of the time, and seconds, that measuring may take; steps that it takes at least."""

CHECKS, LAST = 28, 3
"""Measurements on held-out data in a training of 100 steps or more, by the usual `check_interval`, and
those at its end."""

FIFTH = 0.2
"""Of the time, what is left for steps in any case."""

FEW = 500
"""Steps below which a network of images has hardly begun."""

LONG = 3600.0
"""Seconds from which a training on a CPU is said to be slow."""


def clock() -> float:
    """Return seconds."""
    return time.perf_counter()


def steps_within(
    minutes: float, step: Callable[[], Any], check: Callable[[], Any], agree: Callable[[Any], Any],
    ended: Callable[[], Any], after: float = 0.0, taken: float = 0.0, every: int | None = None,
) -> tuple[int, float]:  # fmt: skip
    """Return how many steps fit into the given minutes, including the measurements between them.

    Arguments:
        minutes: The time, including this measurement and what comes after the last step.
        step: Takes one step; the first, which includes one-time work, is not counted.
        check: Measures once on held-out data.
        agree: Returns the value of the first of several processes.
        ended: Waits for the end of the last step, which a device may still be doing.
        after: How many measurements take as long as what comes after the last step.
        taken: Seconds that have been taken already.
        every: Steps between two measurements, if that is settled.

    Returns:
        The steps, and how many steps take as long as a measurement.
    """
    began, budget = clock(), 60 * minutes
    step()
    ended()
    check()
    checking = clock()
    check()
    between = clock() - checking
    started, n = clock(), 0
    while agree(n < LEAST or clock() - began < min(MOST, SHARE * budget)):
        step()
        n += 1
    ended()
    each = max(1e-9, (clock() - started) / n)
    left = budget - taken - (clock() - began)
    if every is None:
        steps = max(left - (CHECKS + after) * between, FIFTH * budget) / each
    else:
        steps = max(left - (LAST + after) * between, FIFTH * budget) / (each + between / every)
    found: tuple[int, float] = agree((max(1, math.floor(steps)), between / each))
    return found


def warn_if_slow(
    steps: int, seconds: float, batch: int, event: torch.Size, device: torch.device,
    minutes: float | None,
) -> None:  # fmt: skip
    """Warn if a CPU is too slow for images or sequences, and say what to do.

    A step takes so many seconds; the steps may follow from the `minutes` requested.
    """
    if device.type != "cpu" or len(event) < 2:
        return
    if minutes is None and steps * seconds > LONG:
        said = f"{steps} steps would take about {spoken(steps * seconds)}"
    elif minutes is not None and steps < FEW:
        said = f"{minutes:g} minutes are enough for only {steps} of them, too few to learn much"
    else:
        return
    sides = "×".join(map(str, event[1:]))
    fewer = f"smaller batches (batch_size={max(8, batch // 4)} in place of {batch}), " * (
        batch > 16
    )
    less = "fewer steps or minutes=" if minutes is None else "more minutes"
    warnings.warn(
        f"one step of {batch} × {sides} takes {spoken(seconds)} on this CPU: {said}. To speed it "
        f"up use "
        f'{fewer}smaller images, fewer channels in the network, {less}, or a GPU (device="cuda")',
        stacklevel=6,
    )


def spoken(seconds: float) -> str:
    """Return a time in words: "0.3 s", "4 min", "2.5 h"."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
