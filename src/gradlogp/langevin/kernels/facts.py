"""What is known about a kernel: tuning, tests and pages read it from here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

Stationary = Callable[[Any, Tensor], Tensor]
"""Kernel, precision Λ `(d, d)` of a Gaussian -> covariance `(d, d)` of x in its stationary law."""


@dataclasses.dataclass(frozen=True)
class Facts:
    r"""What is known about a kernel that samples p^{1/τ}; None: does not apply, or is not known.

    Arguments:
        affine: Whether a step on a Gaussian is an affine map of the state (with its momentum or its
            last noise) and of the normal numbers drawn, for a given batch of observations: then
            Gaussian laws stay Gaussian.
        stationary: On N(μ, Λ⁻¹), (kernel, Λ) -> the covariance of x under the stationary law of
            the kernel, for every stable step; its mean is μ. The docstring is the formula.
        order: r, if expectations of x under the stationary law differ from those of p^{1/τ} by a
            term of order h^r in the step size h, for a smooth law that is not Gaussian.
        reversible: Whether a step is in detailed balance with p^{1/τ}; with a momentum, up to the
            sign of that.
        exact: Whether a step leaves p^{1/τ} itself invariant, for every step size.
        draws: How often a step draws noise: normal or uniform numbers for all chains, or batches.
        target_acceptance: The mean acceptance to which the step size is tuned, the best in high
            dimension; None if nothing is accepted or rejected.
        needs_log_prob: Whether the log-density is used in addition to the score.
        step_per_chain: Whether `step_size` may be a tensor `(chain,)`, as long as it is tuned.
        partial_refresh: Whether a step keeps a part of the momentum; E-BFMI is then meaningless.
    """

    affine: bool | None
    stationary: Stationary | None
    order: int | None
    reversible: bool | None
    exact: bool | None
    draws: int | None
    target_acceptance: float | None
    needs_log_prob: bool | None
    step_per_chain: bool = False
    partial_refresh: bool = False


UNKNOWN = Facts(None, None, None, None, None, None, None, None)


def facts_of(kernel: object) -> Facts:
    """Return the facts of a kernel: its `facts`, or nothing known for one that has none."""
    found = getattr(kernel, "facts", UNKNOWN)
    return found if isinstance(found, Facts) else UNKNOWN


def target_covariance(kernel: Any, precision: Tensor) -> Tensor:
    """Return τ Λ⁻¹."""
    return kernel.temperature * torch.linalg.inv(precision)


def own_covariance(kernel: Any, precision: Tensor) -> Tensor:
    """Return Λ⁻¹."""
    return torch.linalg.inv(precision)


def metropolis_facts(
    target_acceptance: float,
    draws: int = 2,
    stationary: Stationary | None = target_covariance,
    **more: bool,
) -> Facts:
    """Return the facts of a step that is accepted or rejected by the Metropolis rule.

    References:
        | Optimal Scaling of Discrete Approximations to Langevin Diffusions
          (Roberts & Rosenthal, 1998)
        | https://doi.org/10.1111/1467-9868.00123
        | Optimal Tuning of the Hybrid Monte Carlo Algorithm (Beskos et al., 2013)
        | https://arxiv.org/abs/1001.4460
        | Optimizing The Integrator Step Size for Hamiltonian Monte Carlo
          (Betancourt, Byrne & Girolami, 2014)
        | https://arxiv.org/abs/1411.6669

    Arguments:
        target_acceptance: `LANGEVIN`, `HAMILTONIAN` or `NO_U_TURN`.
        draws: Number of calls for noise.
        stationary: That of p^{1/τ}, or of p if a kernel has no temperature.
        more: `step_per_chain`, `partial_refresh`.
    """
    return Facts(
        affine=False, stationary=stationary, order=None, reversible=True, exact=True,
        draws=draws, target_acceptance=target_acceptance, needs_log_prob=True, **more,
    )  # fmt: skip


LANGEVIN, HAMILTONIAN = 0.574, 0.8
"""The best acceptance of one Langevin step, and a good one of a path of several leapfrog steps.

For those the best is 0.651 in the limit of high dimension, and all from 0.6 to 0.9 are nearly as
good. In 5 to 30 dimensions the shorter steps of 0.8 pay: paths of two or three of them turn x round, so
that draws are less correlated, and skewed directions are followed more safely.
"""

NO_U_TURN = 0.8
"""The acceptance along an orbit at which NUTS is usually best: its mean is no Metropolis rate."""


def unadjusted_facts(
    order: int | None = 1, stationary: Stationary | None = None, *, affine: bool, draws: int = 1
) -> Facts:
    """Return the facts of a step that is taken as it is."""
    return Facts(
        affine=affine, stationary=stationary, order=order, reversible=False, exact=False,
        draws=draws, target_acceptance=None, needs_log_prob=False,
    )  # fmt: skip


def table(kernels: Iterable[Any]) -> str:
    """Return the facts of some kernels as a table in Markdown, a row a kernel, as in the docs."""
    head = (
        "kernel", "bias", "covariance on N(μ, Λ⁻¹)", "affine there", "reversible", "draws",
        "acceptance", "needs",
    )  # fmt: skip
    rows = [head, ("---",) * len(head), *(_row(kernel) for kernel in kernels)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(kernel: Any) -> tuple[str, ...]:
    facts, powers = facts_of(kernel), {1: "h", 2: "h²"}
    needed = [
        f.name if not isinstance(value := getattr(kernel, f.name), str) else f'"{value}"'
        for f in dataclasses.fields(kernel)
        if f.init and f.default is dataclasses.MISSING
    ]
    formula = (getattr(facts.stationary, "__doc__", None) or "").splitlines()[:1]
    bias = "none" if facts.exact else "" if facts.order is None else f"order {powers[facts.order]}"
    return (
        f"`glp.langevin.{type(kernel).__name__}({', '.join(needed)})`",
        bias,
        *(text.removeprefix("Return ").removesuffix(".") for text in formula or [""]),
        *(
            "" if flag is None else "yes" if flag else "no"
            for flag in (facts.affine, facts.reversible)
        ),
        "" if facts.draws is None else str(facts.draws),
        "" if facts.target_acceptance is None else str(facts.target_acceptance),
        "score, log-density" if facts.needs_log_prob else "score",
    )
