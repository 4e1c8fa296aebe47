r"""Claims on annealed Langevin dynamics: its exact law, the order of its levels, the step meant."""

from __future__ import annotations

import torch
from torch import Tensor

from ...calculus import Affine, affine_map
from ...core import NoisyScore
from ...diffusion.transitions import AnnealedLangevin
from ...noise.schedules import Levels
from ...scores import as_score
from .claim import Numbers, claim, collect, exact, false

SONG = "Song & Ermon 2019, 2020, arXiv 1907.05600, 2006.09011"


def _steps_at(transition: AnnealedLangevin, score: NoisyScore, t: Tensor) -> Affine:
    """The map of all steps at a level, on the line, for a score that is affine in x."""
    return affine_map(lambda x, g: transition(x, t, t, score, generator=g), 1)


def _annealed(sigmas: list[float], n_steps: int, relative_step: float) -> float:
    """The variance that annealed Langevin leaves on N(0, 1) data, with the exact score, unit draws."""
    step, schedule = AnnealedLangevin(n_steps, relative_step), Levels(sorted(sigmas, reverse=True))
    score = as_score(lambda x, t: -x / (1 + schedule(t)[1] ** 2), "score", schedule)
    variance = 1 + sigmas[0] ** 2
    for sigma in sigmas:
        times = schedule.times
        t = times[schedule(times)[1].sub(sigma).abs().argmin()]
        found = _steps_at(step, score, t)
        variance = float(found.M**2 * variance + found.Q)
    return variance


def _annealed_by_formula(sigmas: list[float], n_steps: int, eta: float) -> float:
    variance = 1 + sigmas[0] ** 2
    for sigma in sigmas:
        lam, h = 1 / (1 + sigma**2), eta * sigma**2
        rest, a = 1 / (lam * (1 - h * lam / 2)), (1 - h * lam) ** (2 * n_steps)
        variance = rest + (variance - rest) * a
    return variance


LADDER = [10.0, 3.0, 1.0, 0.3, 0.1]


@claim(
    exact, "annealed Langevin on N(0, 1): variance left by 5 levels of 20 steps, η = 0.2",
    SONG, 1e-10,
)  # fmt: skip
def annealed_law() -> Numbers:
    return _annealed_by_formula(LADDER, 20, 0.2), _annealed(LADDER, 20, 0.2)


@claim(
    false,
    "“the levels go from the smallest σ to the largest”: variance left, no longer near 1 + σ_L²",
    SONG, 1e-9,
)  # fmt: skip
def annealed_order() -> Numbers:
    return 1.01, _annealed(LADDER[::-1], 20, 0.2), _annealed_by_formula(LADDER[::-1], 20, 0.2)


def _level(relative_step: float, n_steps: int = 100) -> float:
    """The variance of a level over σ² that annealed Langevin ends with on point-mass data, σ = 0.3."""
    sigma = 0.3
    t = torch.ones((), dtype=torch.float64)
    score = as_score(lambda x, t: -x / sigma**2, "score", Levels([sigma, 0.1]))
    return float(_steps_at(AnnealedLangevin(n_steps, relative_step), score, t).Q) / sigma**2


@claim(exact, "NCSN's step as in its code, ε/σ_L² = 0.2: variance of a level over σ²", SONG, 1e-9)
def annealed_step_of_the_code() -> Numbers:
    return 1 / 0.9, _level(0.2)


@claim(
    false, "“the paper's α/2, √α is the same step”: with the same ε it is half of it", SONG, 1e-8
)
def annealed_step_of_the_paper() -> Numbers:
    return 1 / 0.9, _level(0.1), 1 / 0.95


CHECKS = collect(globals())
"""The claims of this file, in the order of the report."""
