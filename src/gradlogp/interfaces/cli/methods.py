"""Methods of sampling a learned score, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ...core import Transition

Method = Literal[
    "flow", "heun", "exponential", "dpm", "ddim", "adaptive", "ancestral", "sde", "corrector", "churn",
    "langevin",
]  # fmt: skip

STEPS: dict[Method, int] = {
    "heun": 32, "exponential": 32, "dpm": 32, "ddim": 100, "adaptive": 2, "ancestral": 250,
    "sde": 100, "corrector": 100, "churn": 64, "langevin": 60,
}  # fmt: skip
"""Noise levels to pass through by default; for the flow they are measured."""


def transition(method: Method) -> Transition:
    """Return the transition of that name."""
    from ...diffusion import transitions as ways

    table: dict[Method, Transition] = {
        "flow": ways.UniPC(), "heun": ways.ProbabilityFlow(), "exponential": ways.ExponentialAB(),
        "dpm": ways.DPMSolver(), "ddim": ways.DDIM(), "adaptive": ways.AdaptiveFlow(),
        "ancestral": ways.Ancestral(), "sde": ways.ReverseSDE(1.0, "heun"),
        "corrector": ways.PredictorCorrector(), "churn": ways.Churn(),
        "langevin": ways.AnnealedLangevin(),
    }  # fmt: skip
    return table[method]
