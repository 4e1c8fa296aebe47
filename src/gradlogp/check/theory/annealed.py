r"""Claims on annealed Langevin dynamics: its exact law, the order of its levels, the step meant."""

from __future__ import annotations

import torch

from ...calculus import affine_map
from ...diffusion.transitions import AnnealedLangevin
from ...noise.schedules import Levels
from ...scores import as_score
from .claim import exact, false, table

SONG = "Song & Ermon 2019, 2020, arXiv 1907.05600, 2006.09011"
DOWN = (10.0, 3.0, 1.0, 0.3, 0.1)
UP = DOWN[::-1]


def _level(
    variance: float, data: float, sigma: float, n_steps: int, relative_step: float
) -> float:
    """The variance after the steps of a level, on data N(0, `data`), with the exact score."""
    move, t = AnnealedLangevin(n_steps, relative_step), torch.ones((), dtype=torch.float64)
    score = as_score(lambda x, t: -x / (data + sigma**2), "score", Levels([sigma, sigma / 2]))
    found = affine_map(lambda x, g: move(x, t, t, score, generator=g), 1)
    return float(found.M**2 * variance + found.Q)


def _annealed(sigmas: tuple[float, ...]) -> float:
    """The variance left on N(0, 1) data by 20 steps a level, η = 0.2."""
    variance = 1 + sigmas[0] ** 2
    for sigma in sigmas:
        variance = _level(variance, 1.0, sigma, 20, 0.2)
    return variance


def _annealed_by_formula(sigmas: tuple[float, ...]) -> float:
    variance = 1 + sigmas[0] ** 2
    for sigma in sigmas:
        lam, h = 1 / (1 + sigma**2), 0.2 * sigma**2
        rest, a = 1 / (lam * (1 - h * lam / 2)), (1 - h * lam) ** 40
        variance = rest + (variance - rest) * a
    return variance


def _at_rest(relative_step: float) -> float:
    """The variance of a level over σ² that 100 steps end with on point-mass data, σ = 0.3."""
    return _level(0.0, 0.0, 0.3, 100, relative_step) / 0.3**2


CHECKS = table(
    __name__,
    annealed_law=(
        exact, "annealed Langevin on N(0, 1): variance left by 5 levels of 20 steps, η = 0.2",
        SONG, 1e-10, lambda: (_annealed_by_formula(DOWN), _annealed(DOWN))),
    annealed_order=(
        false, "“the levels go from the smallest σ to the largest”: variance left, no longer near "
        "1 + σ_L²", SONG, 1e-9, lambda: (1.01, _annealed(UP), _annealed_by_formula(UP))),
    annealed_step_of_the_code=(
        exact, "NCSN's step as in its code, ε/σ_L² = 0.2: variance of a level over σ²",
        SONG, 1e-9, lambda: (1 / 0.9, _at_rest(0.2))),
    annealed_step_of_the_paper=(
        false, "“the paper's α/2, √α is the same step”: with the same ε it is half of it",
        SONG, 1e-8, lambda: (1 / 0.9, _at_rest(0.1), 1 / 0.95)),
)  # fmt: skip
