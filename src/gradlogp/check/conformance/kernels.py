"""Does a kernel do what it claims: its interface, and then its laws."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from ...core import Density, check_function, check_kind
from ...core import check_kernel as check_is_kernel
from ...langevin.kernels.facts import Facts, facts_of
from ...langevin.run import run
from . import kernel_paths as paths
from .kernel_laws import Made, gaussian
from .laws import Observed, OnCircle, Skewed
from .report import ROUNDED, Report, Watched, coarsest, off_by, require, seeded, with_own_noise

STEP = 0.1

EVENTS = ((2,), (1, 3, 3))


def check_kernel(
    make: Made, *, facts: Facts | None = None, target: Density | None = None
) -> Report:
    r"""Check a kernel against what is known about it, and measure the rest.

    First its interface: types, shapes and dtypes; that the same noise gives the same step, that
    arguments are not changed, that chains depend neither on the rest of their batch nor on chunks,
    that a resumed run agrees up to rounding. Then its mathematics, mostly without random numbers:

    - On N(μ, S) the affine map of a step is determined, x' = M x + b + N(0, Q), and its stationary
      covariance, Σ = M Σ Mᵀ + Q, is compared with that of the facts, and in the limit h → 0 with S.
    - On p ~ exp(−x⁴/4) the error of E[x²] is computed by quadrature, and its order in h.
    - On a skewed law p(x) q(y|x) a(x, y) = p(y) q(x|y) a(y, x) is checked point by point.
    - Starting from exact draws of the target, means must not change. The last number of the report
      says how large a relative bias of E x² would have been detected.

    Only what the facts state can fail. A fact that is None is measured if possible.

    References:
        | Getting It Right: Joint Distribution Tests of Posterior Simulators (Geweke, 2004)
        | https://doi.org/10.1198/016214504000001132

    Arguments:
        make: make(step_size) -> kernel, such as `ULA` itself or `lambda h: HMC(h, 3)`. The order
            of a minibatch kernel is only measured with batches of one observation.
        facts: Facts to compare with; by default `kernel.facts`. To compare your kernel with one of
            the library pass `glp.langevin.ULA.facts`.
        target: A density to use instead of a skewed law, with `sample(n, generator=)`, or with an
            `event_shape` and without exact draws for a comparison. A kernel for a subset needs a
            target with draws in it; a kernel for a sphere, with a `radius`, is run on a circle.

    Returns:
        Name -> measured value. `print` shows one line each.

    Raises:
        ConformanceError: An `AssertionError` with the right number and the likeliest mistake.
        ValueError: For an argument of the wrong kind.

    Examples:
        >>> found = glp.check.check_kernel(glp.langevin.MALA)
        >>> found["detailed balance, largest deviation of its logarithm"].value < 1e-9
        True
    """
    check_function(
        make, "make", ": pass the class, or a function of the step size, step_size -> kernel"
    )
    if facts is not None:
        check_kind(facts, "facts", Facts, "glp.langevin.Facts(...)")
    if target is not None:
        check_kind(target, "target", ("score",), "a density with draws of its own, .sample")
        if not hasattr(target, "sample") and getattr(target, "event_shape", None) is None:
            raise ValueError("target must have draws of its own, .sample, or an event_shape")
    kernel = make(STEP)
    check_is_kernel(kernel, "make(step_size)")
    facts = facts_of(kernel) if facts is None else facts
    report, flat = Report(), _runs(kernel, Observed(Skewed()), 2)
    if target is None and not flat and hasattr(kernel, "radius"):
        target = OnCircle(kernel.radius)
    if target is None and not flat:
        raise ValueError(
            "target must be a density whose draws lie where this kernel runs: it cannot start at "
            "points of R²"
        )
    for x, where in _starts(target):
        coupled = _conduct(report, make, facts, where, x)
    _runs_go_on(report, kernel, where, x, coupled)
    if flat:
        gaussian(report, make, facts)
        if _runs(kernel, Observed(Skewed()), 1):
            paths.quartic(report, make, facts)
            paths.balance(report, make, facts)
        else:
            paths.nearly(report, make, facts)
        if target is None:
            paths.units(report, make)
    paths.invariance(report, make, facts, target)
    return report


def _runs(kernel: Any, target: Any, d: int) -> bool:
    """Return whether a kernel starts in R^d: some need two dimensions, or points of a sphere."""
    x = torch.randn(2, d, generator=seeded(), dtype=torch.float64)
    try:
        kernel.step(kernel.init(x, target), target, generator=seeded())
    except ValueError:
        return False
    return True


def _starts(target: Any) -> list[tuple[Tensor, Any]]:
    """Return points to start from, and the density there."""
    if target is not None and hasattr(target, "sample"):
        return [(target.sample(6, generator=seeded(1)).double(), target)]
    if target is not None:
        shape = target.event_shape
        return [(torch.randn(6, *shape, generator=seeded(1), dtype=torch.float64), target)]
    skewed = Observed(Skewed(), 0.01)
    return [
        (torch.randn(6, *event, generator=seeded(1), dtype=torch.float64), skewed)
        for event in EVENTS
    ]


# ---------------------------------------------------------------------------- conduct


def _conduct(report: Report, make: Made, facts: Facts, target: Any, x: Tensor) -> bool:
    """Look at steps from x; return whether the kernel says that its rows are one sample."""
    kernel = make(STEP)
    step = lambda x, g: kernel.step(kernel.init(x, target), target, generator=g)
    with_own_noise(lambda g: step(x, g), "a step")
    for dtype in (torch.float64, torch.float32):
        _shapes(kernel, target, x.to(dtype))
    _randomness(report, kernel, facts, target, x)
    single, double = step(x.float(), Watched())[0].x, step(x, Watched())[0].x
    report.small(
        "float32 compared with float64", off_by(single, double), 1e-3,
        "a constant in float32 or a number that overflows there",
    )  # fmt: skip
    return _batch_independence(report, kernel, target, x)


def _shapes(kernel: Any, target: Any, x: Tensor) -> None:
    before, state = x.clone(), kernel.init(x, target)
    kept = [field.clone() for field in state]
    require(
        hasattr(state, "_fields") and torch.equal(state.x, x),
        "init(x, target)", type(state).__name__, "a NamedTuple whose x is x",
        "a state of a different type, or a position that init changes",
    )  # fmt: skip
    for _ in range(3):  # also later steps
        new, info = kernel.step(state, target, generator=seeded(2))
        require(
            type(new) is type(state) and hasattr(info, "_fields"),
            "step(state, target, generator=)", f"({type(new).__name__}, {type(info).__name__})",
            f"({type(state).__name__}, a NamedTuple)", "a step that returns something else",
        )  # fmt: skip
        for name, a, b in zip(state._fields, new, state, strict=True):
            require(
                a.shape == b.shape and a.dtype == b.dtype and len(a) == len(x),
                f"state.{name} after a step from x {tuple(x.shape)} in {x.dtype}",
                f"{tuple(a.shape)} in {a.dtype}", f"{tuple(b.shape)} in {b.dtype}",
                "a sum over the wrong dimension, or a constant that changes the dtype",
            )  # fmt: skip
        for name, a in zip(info._fields, info, strict=True):
            require(
                len(a) == len(x),
                f"info.{name}", tuple(a.shape), f"({len(x)}, ...)",
                "a mean over chains: what a step reports is for each chain",
            )  # fmt: skip
        require(
            bool(torch.isfinite(new.x).all()),
            "a step at step_size 0.1", "NaN or infinity", "finite numbers",
            "a division by 0, or a step that explodes",
        )  # fmt: skip
        require(
            torch.equal(x, before) and all(map(torch.equal, state, kept)),
            "the arguments of a step", "changed", "as it was",
            "an in-place operation, such as x += h * s",
        )  # fmt: skip
        _cached(target, new)
        state, kept = new, [field.clone() for field in new]


def _cached(target: Any, state: Any) -> None:
    """Score and log-density in a state must be those at its position."""
    for name in {"score", "log_prob"} & set(state._fields):
        right = getattr(target, name)(state.x)
        off = off_by(getattr(state, name), right)
        require(
            off <= 1e-9 if state.x.dtype == torch.float64 else off <= 1e-3,
            f"state.{name} after a step", f"off by {off:.2g}", "that at state.x",
            "a stale value: the one at the proposal or at the old position",
        )  # fmt: skip


def _randomness(report: Report, kernel: Any, facts: Facts, target: Any, x: Tensor) -> None:
    state = kernel.init(x, target)
    one, two, other = (kernel.step(state, target, generator=seeded(n))[0] for n in (3, 3, 4))
    require(
        all(map(torch.equal, one, two)),
        "two steps with the same generator", "different", "the same bits",
        "noise that does not come from generator=, or something kept outside the state",
    )  # fmt: skip
    source, asked = Watched(), _Asked(target)
    for _ in range(3):
        state, _ = kernel.step(state, asked, generator=source)
    require(
        all(shape[0] == len(x) for _, shape in source.asked),
        "noise for six chains", [tuple(shape) for _, shape in source.asked][:3], "six rows each",
        "the same noise for all chains",
    )  # fmt: skip
    report.hold(
        "draws of noise a step",
        len(source.asked) / 3,
        len(source.asked) / 3 if facts.draws is None else facts.draws,
        0.0,
        else_="noise that is drawn twice, or not where the facts say",
    )
    if facts.draws:
        require(
            not all(map(torch.equal, one, other)),
            "steps with two generators", "the same", "different",
            "noise from a fixed seed",
        )  # fmt: skip
    if facts.needs_log_prob is not None:
        kernel.init(x, asked)
        require(
            asked.asked == facts.needs_log_prob,
            "whether the log-density is used", asked.asked, facts.needs_log_prob,
            "a Metropolis step that is left out, or facts of a different kernel",
        )  # fmt: skip


class _Asked:
    """A target that records whether its log-density was evaluated."""

    def __init__(self, target: Any) -> None:
        self.target, self.asked = target, False

    def log_prob(self, x: Tensor) -> Tensor:
        self.asked = True
        return self.target.log_prob(x)

    def __getattr__(self, name: str) -> Any:
        if name == "log_prob_and_score":  # in two, so that each is seen
            raise AttributeError(name)
        return getattr(self.target, name)


def _batch_independence(report: Report, kernel: Any, target: Any, x: Tensor) -> bool:
    """Change all rows but the first; return whether the kernel says that its rows are one sample."""
    mates = torch.cat([x[:1], x[1:].flip(0)])  # other mates, where the kernel runs for certain
    mates[-1] = x[0]
    ends = [
        kernel.step(kernel.init(v, target), target, generator=Watched(shared=True))[0]
        for v in (x, mates)
    ]
    off = max(off_by(a[:1], b[:1]) for a, b in zip(*ends, strict=True) if a.is_floating_point())
    if off > 1e-12:
        try:
            run(kernel, target, x, 1, generator=seeded(), chunk_size=2)
        except ValueError as error:
            if "chunk" in str(error):  # the method, and it says so where it would go wrong
                report.measure("what other chains change", off)
                return True
    report.small(
        "what other chains change", off, 1e-12,
        "a coupled batch: a mean, norm or decision over all chains that each chain needs for itself",
    )  # fmt: skip
    return False


def _runs_go_on(report: Report, kernel: Any, target: Any, x: Tensor, coupled: bool) -> None:
    """Chunks of any size, and a run that was saved and loaded, give the same chains."""
    if not coupled:
        many = x.repeat(3, *[1] * (x.ndim - 1))
        whole, parts = (
            run(kernel, target, many, 3, generator=seeded(5), chunk_size=n) for n in (None, 8)
        )
        fields = zip((whole.draws, *whole.state), (parts.draws, *parts.state), strict=True)
        report.small(
            "what chunks change", max(off_by(a, b) for a, b in fields), 1e-10,
            "a coupled batch, or something kept between steps outside the state",
        )  # fmt: skip
    whole, first = (run(kernel, target, x, n, generator=seeded(6)) for n in (5, 2))
    buffer = io.BytesIO()
    torch.save(first.resume, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    second = run(kernel, target, resume=saved, n_steps=3)
    draws = torch.cat([first.draws, second.draws], 1)
    pairs = [(draws, whole.draws), *zip(second.state, whole.state, strict=True)]
    # a loaded tensor may lie elsewhere in memory, where vector instructions round otherwise
    drawn = [target.sample(1, generator=seeded())] if hasattr(target, "sample") else []
    report.small(
        "what a break in a run changes", max(off_by(a, b) for a, b in pairs),
        ROUNDED * coarsest(*whole.state, *drawn),
        "something the next step needs that is not in the state, such as a count or last noise",
    )  # fmt: skip
