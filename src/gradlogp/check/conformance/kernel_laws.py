"""A kernel on a Gaussian: the affine map of a step, and its stationary covariance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...calculus import kernel_map
from ...calculus.affine import Affine
from ...core import Kernel
from ...langevin.kernels.facts import Facts
from .laws import COV, GAUSSIAN, MEAN, PRECISION, Observed
from .report import ConformanceError, Report, Watched, off_by, seeded

Made = Callable[[float], Kernel[Any, Any]]
"""Step size -> kernel."""

D = len(MEAN)

MEMORY = ("momentum", "z")
"""What a state may carry from step to step beside its position, and a step is affine in."""

STEPS = (0.05, 0.4)
"""Step sizes on the Gaussian, whose largest precision allows Langevin steps below 0.44."""


class Shown:
    """A kernel with the settings that formulas read, where it does not name them itself."""

    mass, temperature = 1.0, 1.0

    def __init__(self, kernel: Any, step_size: float) -> None:
        self.kernel, self.step_size = kernel, getattr(kernel, "step_size", step_size)
        self.temperature = getattr(kernel, "temperature", 1.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.kernel, name)


def memory_of(kernel: Any, target: Any, x: Tensor) -> str | None:
    """Return the name of what a state carries beside its position, or None."""
    fields = kernel.init(x, target)._fields
    return next((field for field in MEMORY if field in fields), None)


def tau_of(kernel: Any) -> float:
    """Return the temperature of a kernel, 1 where it has none."""
    return float(getattr(kernel, "temperature", 1.0))


# ---------------------------------------------------------------------------- on a Gaussian


def gaussian(report: Report, make: Made, facts: Facts) -> None:
    """Whether a step is affine, and the covariance that it keeps."""
    off = max(_off_affine(make(h)) for h in (*STEPS, 1.5))
    report.measure("off an affine map on a Gaussian", off)
    if facts.affine is not None and (off < 1e-10) != facts.affine:
        raise ConformanceError(
            "off an affine map on a Gaussian", off,
            "rounding" if facts.affine else "a map that is not affine, as the facts say",
            "a drift or noise that is not linear in x and in its noise" if facts.affine
            else "a Metropolis step that is left out, or facts of a different kernel",
        )  # fmt: skip
    if off > 1e-10:
        return
    field = memory_of(make(STEPS[0]), Observed(GAUSSIAN), MEAN[None])
    read = lambda h: kernel_map(make(h), Observed(GAUSSIAN), D, facts.draws, field)
    try:
        steps = {h: read(h) for h in STEPS}
    except ValueError:  # uniform numbers that matter: no matrix says it all
        return
    _covariances(report, make, facts, steps, field)
    _limit(report, make, read)


def _off_affine(kernel: Any) -> float:
    """Return the largest f(u + v) − f(u) − f(v) + f(0) on 12 steps with the same noise for all four."""
    target = Observed(GAUSSIAN, 0.1)
    u, v = torch.cat(
        [torch.eye(D).double(), torch.randn(9, D, generator=seeded(7), dtype=torch.float64)]
    ).split(6)
    x, source, off = torch.cat([0 * u, u, v, u + v]), Watched(shared=True, seed=8), 0.0
    for _ in range(12):
        f = kernel.step(kernel.init(x, target), target, generator=source)[0].x
        zero, at_u, at_v, at_both = f.split(6)
        off = max(off, float((at_both - at_u - at_v + zero).abs().max()))
    return off


def _covariances(
    report: Report, make: Made, facts: Facts, steps: dict[float, Affine], field: str | None
) -> None:
    """Compare what the step keeps with the formula of the facts, in all entries and in size."""
    tau, name = (
        tau_of(make(STEPS[0])),
        "covariance kept on a Gaussian, over that of the facts, h = {}",
    )
    sizes, laws = {}, {}
    for h, step in steps.items():
        if not step.radius < 1:
            if facts.stationary is None and h > STEPS[0]:  # nobody says that it is stable there
                continue
            backwards = field is None and bool((torch.linalg.eigvals(step.M).real > 1).any())
            raise ConformanceError(
                f"spectral radius of a step on a Gaussian, h = {h}", step.radius, "below 1",
                "a wrong sign: the drift goes down the density" if backwards
                else "a step longer than step_size says, or a friction of the wrong sign",
            )  # fmt: skip
        mean, cov = step.stationary()
        report.small(
            f"mean kept on a Gaussian, off, h = {h}", off_by(mean[:D], MEAN), 1e-8,
            "a drift that does not vanish where the score does",
        )  # fmt: skip
        right = _of_facts(facts, make, h)
        if right is not None:
            laws[h] = cov[:D, :D], right
            sizes[h] = float((torch.linalg.solve(right, cov[:D, :D])).trace()) / D
    for h, size in sizes.items():
        slips = {
            "noise √h z in place of √(2h) z": 0.5,
            "noise 2 √h z in place of √(2h) z, or a drift of h/2 beside it": 2.0,
            "a missing square root: noise 2h z in place of √(2h) z": 2 * h,
            "a missing square root: noise h z in place of √(2h) z": h / 2,
            "a squared temperature: √(2h) τ z in place of √(2hτ) z": tau,
            "a missing temperature": 1 / tau,
        }
        if facts.stationary is not None:
            for words, other in (("half", h / 2), ("twice", 2 * h)):
                kept = _of_facts(facts, make, other)
                scale = float(torch.linalg.solve(laws[h][1], kept).trace()) / D
                slips[f"a step {words} as long: ε with ε/2 s and √ε z is h = ε/2"] = scale
        slips = {
            slip: value for slip, value in slips.items() if abs(value - 1) > 1e-6
        }  # no slip at τ = 1
        report.hold(name.format(h), size, 1.0, 1e-8, slips, d=D)
        report.small(
            f"covariance kept on a Gaussian, largest entry off, h = {h}", off_by(*laws[h]), 1e-8,
            "a matrix that is transposed, or not applied to both drift and noise",
        )  # fmt: skip


def _of_facts(facts: Facts, make: Made, h: float) -> Tensor | None:
    """Return the covariance that the facts state for x, or None where they state none."""
    kernel = make(h)
    if facts.stationary is not None:
        return facts.stationary(Shown(kernel, h), PRECISION)
    return tau_of(kernel) * COV if facts.exact else None


def _limit(report: Report, make: Made, read: Callable[[float], Affine]) -> None:
    """As h → 0 the covariance is that of the target, whatever the facts state."""
    laws = [read(h) for h in (0.01, 0.005)]
    if not all(step.radius < 1 for step in laws):
        return
    tau = tau_of(make(0.01))
    coarse, fine = (float((PRECISION @ step.stationary()[1][:D, :D]).trace()) / D for step in laws)
    slips = {
        "noise √h z in place of √(2h) z": tau / 2,
        "noise 2 √h z in place of √(2h) z, or a drift of h/2 beside it": 2 * tau,
        "a missing square root: the noise is of order h": 0.0,
    }
    name = "covariance on a Gaussian as h → 0, over that of p"
    report.hold(name, 2 * fine - coarse, tau, 2e-3 * tau, slips, d=D)
