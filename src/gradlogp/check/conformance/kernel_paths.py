"""A kernel on other laws: its order on a quartic, pointwise balance, units, exact draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...core import Injected, Kernel, mean_and_error
from ...distributions import Gaussian
from ...langevin.kernels.facts import Facts
from ...langevin.kernels.steps import started
from ...langevin.run import run
from .kernel_laws import Made, memory_of, tau_of
from .laws import Observed, Quartic, Rule, Skewed, hermite, product
from .report import BEYOND, ConformanceError, Report, Watched, off_by, seeded

BOLD = (1.2, 0.8, 0.5, 0.3, 0.1)
"""Step sizes from exact draws, the largest first."""

SMALL, SMALL_TIMES = (0.02, 0.01), (0.05, 0.025)
"""Step sizes at which an order shows; where a step is a time, as with a momentum, it is its root."""


# ---------------------------------------------------------------------------- on a quartic


def quartic(report: Report, make: Made, facts: Facts) -> None:
    """The order of the error of E x² under the law that a kernel keeps on p ~ exp(−x⁴/4)."""
    if facts.order is None or facts.draws is None or tau_of(make(0.1)) != 1:
        return
    timed = memory_of(make(0.1), Observed(Quartic()), torch.zeros(1, 1).double()) == "momentum"
    try:
        biases = [quartic_bias(make(h)) for h in (SMALL_TIMES if timed else SMALL)]
    except ValueError:  # batches of more than the two observations there
        return
    if None in biases:
        return
    coarse, fine = (abs(bias) for bias in biases if bias is not None)
    found = math.log2(coarse / fine) if coarse > 1e-13 and fine > 0 else math.inf
    slips = {"an error that does not fall with h: noise and drift do not belong together": 0.0}
    report.measure("bias of E x² on a quartic", coarse)
    report.hold(
        "order of the bias on a quartic", found, facts.order, 0.1, slips,
        else_="a step of a different order: a score at the wrong place, or a stale one",
    )  # fmt: skip


def quartic_bias(kernel: Any) -> float | None:
    """Return the error of E x² under the stationary law of a kernel on p ~ exp(−x⁴/4).

    The law is g p (times N(0, 1) for a momentum or a last noise), g a polynomial such that a step
    preserves the mean of every polynomial of the same degrees; expectations are sums over a grid,
    and over both batches of one observation. None for kernels whose noise has no known quadrature
    rule.
    """
    target, source = Observed(Quartic(), 1.0, n_data=2), Watched()
    start = torch.zeros(1, 1, dtype=torch.float64)
    field = memory_of(kernel, target, start)
    kernel.step(kernel.init(start, target), target, generator=source)
    grid = torch.linspace(-5, 5, 121, dtype=torch.float64)
    rules: list[Rule] = [(grid, (-(grid**4) / 4).softmax(0))] + [hermite(16)] * (field is not None)
    degrees, n = ((8, 4) if field == "momentum" else (10, 6)), len(rules)
    for law, shape in source.asked:
        if shape.numel() != 1:
            return None
        batch = (torch.tensor([0.25, 0.75]).double(), torch.tensor([0.5, 0.5]).double())
        rules.append(hermite(8) if law is torch.randn else batch)
    points, weight = product(*rules)
    columns = [points[:, k : k + 1] for k in range(len(rules))]
    state = kernel.init(columns[0], target)
    if field is not None:
        state = state._replace(**{field: columns[1]})
    shapes = [(len(weight), *shape[1:]) for _, shape in source.asked]
    noise = (z.reshape(shape) for z, shape in zip(columns[n:], shapes, strict=True))
    new, _ = kernel.step(state, target, generator=Injected(*noise))
    bases = [orthonormal(rule, k) for rule, k in zip(rules[:n], degrees, strict=False)]

    def basis(state: Any) -> Tensor:
        coordinates = [state.x] if field is None else [state.x, getattr(state, field)]
        parts = [f(v[:, 0]) for f, v in zip(bases, coordinates, strict=True)]
        return parts[0] if field is None else torch.einsum("ni,nj->nij", *parts).flatten(1)

    now, then = basis(state), basis(new)
    change = ((then - now) * weight[:, None]).mT @ now  # <K φ_i − φ_i, φ_j>
    g = torch.linalg.lstsq(change[1:, 1:], -change[1:, :1]).solution[:, 0]
    moment = (now * (weight * columns[0][:, 0] ** 2)[:, None]).sum(0)
    return float(moment[1:] @ g)


def orthonormal(rule: Rule, degree: int) -> Callable[[Tensor], Tensor]:
    """Return x -> the polynomials up to a degree, orthonormal under a rule, `(n, degree + 1)`."""
    nodes, weights = rule
    a: list[Tensor] = []
    b: list[Tensor] = [torch.zeros(())]
    before, now = torch.zeros_like(nodes), torch.ones_like(nodes)
    for _ in range(degree):
        a.append((weights * nodes * now**2).sum())
        then = (nodes - a[-1]) * now - b[-1] * before
        b.append((weights * then**2).sum().sqrt())
        before, now = now, then / b[-1]

    def basis(x: Tensor) -> Tensor:
        values = [torch.zeros_like(x), torch.ones_like(x)]
        for k in range(degree):
            values.append(((x - a[k]) * values[-1] - b[k] * values[-2]) / b[k + 1])
        return torch.stack(values[1:], -1)

    return basis


# ---------------------------------------------------------------------------- point by point


def balance(report: Report, make: Made, facts: Facts, h: float = 0.4) -> None:
    """p(x) q(y|x) a(x, y) = p(y) q(x|y) a(y, x), for a kernel with one normal number per step.

    The step as a function of its noise z is inverted at y, so that q(y|x) = φ(z)/|∂y/∂z|. The
    acceptance must follow log p(y)/p(x) and log q(x|y)/q(y|x) with coefficients 1 and 1.
    """
    kernel, skewed = make(h), Skewed()
    target = Observed(skewed)
    x, y = -2 + 2.5 * torch.rand(2, 300, 1, generator=seeded(9), dtype=torch.float64)
    there, back = (_moves(kernel, target, *ends) for ends in ((x, y), (y, x)))
    if there is None or back is None:
        return
    (q_there, a_there), (q_back, a_back) = there, back
    p = (skewed.log_prob(y) - skewed.log_prob(x)) / tau_of(kernel)
    q, a = q_back - q_there, a_there - a_back
    off = float((p + q - a).abs().max())
    report.measure("detailed balance, largest deviation of its logarithm", off)
    if facts.reversible is None or (off < 1e-7) == facts.reversible:
        return
    if not facts.reversible:
        raise ConformanceError(
            "detailed balance, largest deviation of its logarithm", off, "not rounding",
            "facts of a different kernel: this one is reversible",
        )  # fmt: skip
    of_p, of_q = torch.linalg.lstsq(torch.stack([p, q], 1), a[:, None]).solution[:, 0]
    report.hold(
        "log p(y)/p(x) in the log of what is accepted, its coefficient", of_p, 1.0, 1e-5,
        {
            "an inverted ratio": -1.0, "no Metropolis step": 0.0,
            "a missing temperature": tau_of(kernel),
        },
        else_="a log-density evaluated somewhere other than at the proposal",
    )  # fmt: skip
    report.hold(
        "log q(x|y)/q(y|x) in the log of what is accepted, its coefficient", of_q, 1.0, 1e-5,
        {
            "an inverted ratio: x and y are swapped": -1.0,
            "the proposal density is left out": 0.0,
            "an exponent with 4h where 2h belongs, or no ½": 0.5,
            "an exponent with 2h where 4h belongs": 2.0,
        },
        else_="a different variance in the proposal density from that of the proposal",
    )  # fmt: skip
    raise ConformanceError(
        "detailed balance, largest deviation of its logarithm", off, "rounding",
        "a proposal density that is not the density of the proposal",
    )  # fmt: skip


def _moves(kernel: Any, target: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return log q(y|x) and log a(x, y), or None where a step is not one normal number."""
    state, source = kernel.init(x, target), Watched()
    info = kernel.step(state, target, generator=source)[1]
    normal = [law is torch.randn for law, _ in source.asked]
    decides = hasattr(info, "acceptance")
    if sum(normal) != 1 or len(normal) != 1 + decides or not normal[0]:
        return None
    if not set(state._fields) <= {"x", "score", "log_prob", "number"} or len(info._fields) > 5:
        return None  # more memory, or a path that chooses among its points
    extra = [torch.zeros(shape, dtype=x.dtype) for _, shape in source.asked[1:]]

    def ends(z: Tensor) -> Any:
        return kernel.step(state, target, generator=Injected(z, *extra))

    z, slope = torch.zeros_like(x), torch.ones_like(x)
    for _ in range(50):
        z.requires_grad_()
        end = ends(z)[0].x
        if not end.requires_grad:
            return None
        slope = torch.autograd.grad(end.sum(), z)[0]
        if float((end - y).detach().abs().max()) < 1e-12:
            break
        z = (z - ((end - y) / slope).clamp(-1, 1)).detach()
    z = z.detach()
    new, info = ends(z)
    if off_by(new.x, y) > 1e-9:  # some points are not reached, or what is refused is not accepted
        return None
    accepted = info.acceptance.log() if decides else torch.zeros(len(x)).double()
    return -(z.square() / 2 + slope.abs().log())[:, 0], accepted


# ---------------------------------------------------------------------------- units


def units(report: Report, make: Made, c: float = 4.0, h: float = 0.05) -> None:
    """The power r such that x at step h, in units c times smaller, is c x at step c^r h.

    2 for a step that multiplies the score, 1 for a step that is a time; NaN if a kernel depends on
    the unit of x, or has other settings with units.
    """
    x = torch.randn(6, 2, generator=seeded(10), dtype=torch.float64)

    def draws(kernel: Any, c: float) -> Tensor:
        return run(kernel, Observed(Skewed(c)), c * x, 5, generator=seeded(11)).draws / c

    one = draws(make(h), 1.0)
    fits = [r for r in (2, 1) if off_by(draws(make(c**r * h), c), one) < 1e-9]
    report.measure("power of the units of x in the step size", fits[0] if fits else math.nan)


# ---------------------------------------------------------------------------- from exact draws


def invariance(
    report: Report, make: Made, facts: Facts, target: Any, n: int = 20_000, steps: int = 10
) -> None:
    """Means over exact draws after some steps are those before, if a kernel keeps p itself."""
    if not facts.exact or tau_of(make(0.3)) != 1.0 or not hasattr(target or Skewed, "sample"):
        return
    law = Skewed() if target is None else target
    where, g = (Observed(law) if target is None else law), seeded(12)
    x = law.sample(n, generator=g).double()
    try:
        make(0.3).init(x, where)
    except ValueError:  # a kernel that needs two dimensions
        law = _Pair(law)
        where, x = Observed(law), law.sample(n, generator=g)
    kernel = _bold(make, where, x[:500])
    state = started(kernel, x, where, g)
    if "replicas" in state._fields:  # which start where x is, and that is not their law
        return
    for _ in range(steps):
        state, _ = kernel.step(state, where, generator=g)
    before, after = x.flatten(1), state.x.flatten(1)
    for name, power in (("E x", 1), ("E x²", 2), ("E x⁴", 4)):
        change = (after**power - before**power).mean(1)
        report.mean(
            f"change of {name} from exact draws", change, 0.0,
            else_="a step that does not leave p invariant: its Metropolis step is missing or wrong, "
            "or its momentum does not start from its stationary law",
        )  # fmt: skip
    seen = BEYOND * report["change of E x² from exact draws"].standard_error
    report.measure("relative bias of E x² that is seen", seen / float(before.square().mean()))


def nearly(report: Report, make: Made, facts: Facts, h: float = 0.1, steps: int = 60) -> None:
    """From exact draws of N(0, I) in the plane a step of order r keeps E x² to about h^r."""
    if facts.exact or facts.order is None:
        return
    law, g = Observed(Gaussian(torch.zeros(2).double(), 1.0)), seeded(15)
    kernel, x = make(h), torch.randn(10_000, 2, generator=g, dtype=torch.float64)
    state = started(kernel, x, law, g)
    for _ in range(steps):
        state, _ = kernel.step(state, law, generator=g)
    found = mean_and_error((state.x.square() - x.square()).mean(1))
    name = "change of E x² from exact draws of N(0, I)"
    likely = "a law p^{1/τ} with a different τ, such as d for d − 1, or a step of lower order"
    report.hold(
        name, found.value, 0.0, BEYOND * found.standard_error + h**facts.order, else_=likely
    )
    report[name] = found


def _bold(make: Made, where: Any, x: Tensor) -> Kernel[Any, Any]:
    """Return the kernel at a step where a good part is refused: there a wrong ratio shows most."""
    for h in BOLD:
        kernel = make(h)
        info = kernel.step(started(kernel, x, where, seeded(13)), where, generator=seeded(14))[1]
        acceptance = getattr(info, "acceptance", None)
        if acceptance is None or float(acceptance.mean()) > 0.7:
            return kernel
    return kernel


class _Pair:
    """Two independent coordinates of a law on the line."""

    def __init__(self, law: Any) -> None:
        self.log_prob, self.score, self.law = law.log_prob, law.score, law

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.cat([self.law.sample(n, generator=generator) for _ in range(2)], 1)
