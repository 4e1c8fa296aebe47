"""The theory as checks that users can run: every claim is measured and gets a verdict.

A file is a topic and ends with the table of its claims. Common false statements are claims too,
shown to be false next to the true one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import torch

from . import (
    annealed,
    denoising,
    density,
    diffusion,
    dimension,
    dynamics,
    manifold,
    matching,
    particles,
    reversal,
    samplers,
    solvers,
    statistics,
)
from .claim import Check as Check
from .claim import Claim as Claim

CHECKS: tuple[Check, ...] = (
    *matching.CHECKS, *denoising.CHECKS, *density.CHECKS, *statistics.CHECKS,
    *dynamics.CHECKS, *samplers.CHECKS, *annealed.CHECKS, *particles.CHECKS,
    *diffusion.CHECKS, *reversal.CHECKS, *solvers.CHECKS, *manifold.CHECKS,
    *dimension.CHECKS,
)  # fmt: skip
"""Every check, in the order of the report."""

DRAWS, QUICK_DRAWS = 400_000, 100_000
"""Random draws that a check may spend."""


def select(text: str) -> tuple[Check, ...]:
    """Return the checks whose name contains a text, as in "matching.sliced" or "density"."""
    return tuple(check for check in CHECKS if text.lower() in check.name)


def verify(
    *, quick: bool = False, seed: int = 0, checks: tuple[Check, ...] = CHECKS
) -> Iterator[Claim]:
    """Run checks one after the other and yield their claims.

    Each check draws from its own generator, seeded by its name, so that its result does not depend
    on which other checks run.

    Arguments:
        quick: Whether to use a quarter of the random draws.
        seed: Seed of the random draws.
        checks: The checks to run; all by default.
    """
    n = QUICK_DRAWS if quick else DRAWS
    for check in checks:
        key = (zlib.crc32(check.name.encode()) + 0x9E3779B97F4A7C15 * seed) % 2**63
        yield check(n, torch.Generator().manual_seed(key))
