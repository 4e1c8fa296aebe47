"""Every kernel against the public checks, and kernels that are wrong in a known way."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from kernel_support import DENSE, KERNELS, make
from torch import Tensor

import gradlogp as glp
from gradlogp.check import ConformanceError, check_kernel
from gradlogp.check.conformance import kernel_laws, kernel_paths, laws
from gradlogp.check.conformance import kernels as conformance_kernels
from gradlogp.check.conformance.report import Report
from gradlogp.core import rand_like, randn_like
from gradlogp.distributions import UniformSphere
from gradlogp.langevin import kernels
from gradlogp.langevin.kernels.facts import UNKNOWN, facts_of, table
from gradlogp.langevin.run import run as langevin_run


def maker(kernel, **changes):
    """Step size -> kernel, with batches of one observation."""
    if "batch_size" in {f.name for f in dataclasses.fields(kernel)}:
        changes["batch_size"] = 1
    return partial(make, kernel, **changes)


class OnSphere:
    """A density on the unit sphere of R³ whose score has a part across it, and draws of another."""

    def __init__(self, pull=0.0):
        self.pull = torch.tensor([pull, 0.0, 0.0])

    def log_prob(self, x):
        return x @ self.pull.to(x)

    def score(self, x):
        return self.pull.to(x).expand(x.shape) + 0 * x

    def sample(self, n, generator=None):
        return UniformSphere(3).sample(n, generator=generator)


# a divergence by differentiation has tests of its own, and takes ten times as long
MORE = {
    "PositionDependentULA": {"divergence": lambda x: -2 * x / (1 + x.square()).square()},
}
VARIANTS = {k.__name__: maker(k, **MORE.get(k.__name__, {})) for k in KERNELS}
VARIANTS |= {
    f"Splitting {scheme}": maker(kernels.Splitting, scheme=scheme)
    for scheme in ("OABAO", "ABO", "OBA")
}
VARIANTS |= {
    "BAOAB, heavy": maker(kernels.BAOAB, friction=math.inf, mass=2.5, temperature=0.4),
    "TamedULA, coordinatewise": maker(kernels.TamedULA, coordinatewise=True),
    "HMC, one step": maker(kernels.HMC, n_leapfrog=1),
    "NUTS": maker(kernels.NUTS, max_depth=3),
    "SGLD, SVRG": maker(kernels.SGLD, replace=True, estimator=kernels.SVRG(3)),
}
POWERS = {
    "AdjustedMCLMC": 1, "HMC": 1, "NUTS": 1, "LeimkuhlerMatthews": 2, "MALA": 2, "SGLD": 2,
    "ParallelTempering": 2, "PreconditionedULA": 2, "ULA": 2,
}  # fmt: skip
"""The power of a unit of x in the step size; the other kernels have further settings with a unit."""


OTHERS = {"Splitting OABAO", "Splitting OBA"}
"""Orders of the parts of a step: two more are among the kernels and the variants."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in OTHERS)) for n in VARIANTS]
)
def test_every_kernel(name):
    made, sphere = VARIANTS[name], "Sphere" in name
    found = check_kernel(made)
    power = found.get("power of the units of x in the step size")
    if power is not None and name in {k.__name__ for k in KERNELS} - {"SVGD"}:
        assert power.value == POWERS[name] if name in POWERS else math.isnan(power.value)
    facts = made(0.1).facts
    assert facts.exact or not facts.reversible  # so that an unadjusted kernel is not
    shown = "order of the bias on a quartic" in found  # in one dimension, at temperature 1
    cold = getattr(made(0.1), "temperature", 1.0) != 1.0
    assert shown or facts.order is None or cold or sphere or hasattr(made(0.1), "integrator")
    assert facts.stationary is None or not facts.affine or any("facts" in key for key in found)


WARM = {
    kernel.__name__: maker(kernel, temperature=0.3, **MORE.get(kernel.__name__, {}))
    for kernel in KERNELS
    if "temperature" in {f.name for f in dataclasses.fields(kernel)}
    and "Sphere" not in kernel.__name__
}
THREE = torch.block_diag(DENSE, torch.ones(1, 1).double())
WARM |= {
    f"{kernel.__name__} {i}": lambda h, k=kernel, C=C: k(h / 4, C, 0.6)
    for kernel in (kernels.PreconditionedULA, kernels.ExponentialEuler)
    for i, C in enumerate((THREE, laws.COV, torch.tensor([0.4, 1.9, 0.7]).double()))
}


@pytest.mark.parametrize("name", WARM)
def test_temperatures_and_matrices(name):
    report, made = Report(), WARM[name]
    facts = made(0.1).facts
    kernel_laws.gaussian(report, made, facts)
    if name in {kernel.__name__ for kernel in KERNELS if "MCLMC" not in kernel.__name__}:
        kernel_paths.balance(report, made, facts)  # the others are of three dimensions
    seen = [key for key in report if "over that of the facts" in key]
    assert len(seen) == (2 if facts.affine and facts.stationary else 0)


# ---------------------------------------------------------------------------- wrong kernels


class State(NamedTuple):
    x: Tensor
    score: Tensor


class Info(NamedTuple):
    norm: Tensor


def langevin(x, s, h, z):
    return x + h * s + math.sqrt(2 * h) * z


class Own:
    """ULA as anybody writes it, with a move of the test's choice."""

    def __init__(
        self, step_size: float, move: Callable[..., Any] = langevin, noise=randn_like, score=None
    ):
        self.step_size, self.move, self.noise, self.score = step_size, move, noise, score

    def init(self, x, target):
        return State(x, target.score(x))

    def step(self, state, target, *, generator=None):
        z = self.noise(state.x, generator)
        x = self.move(state.x, state.score, self.step_size, z)
        score = target.score(x) if self.score is None else self.score(target, x, state)
        return State(x, score), Info(state.score.flatten(1).norm(dim=1))


def in_place(x, s, h, z):
    x += h * s + math.sqrt(2 * h) * z
    return x


def wrong_dialect(x, s, h, z):
    return x + h / 2 * s + math.sqrt(h) * z


COUNT = []

WRONG = {
    "wrong sign": {"move": lambda x, s, h, z: x - h * s + math.sqrt(2 * h) * z},
    r"noise √h z in place": {"move": lambda x, s, h, z: x + h * s + math.sqrt(h) * z},
    r"noise 2 √h z": {"move": lambda x, s, h, z: x + h * s + 2 * math.sqrt(h) * z},
    r"noise 2h z in place": {"move": lambda x, s, h, z: x + h * s + 2 * h * z},
    "noise h z in place": {"move": lambda x, s, h, z: x + h * s + h * z},
    "a step half as long": {"move": wrong_dialect},
    "d = 3": {"move": lambda x, s, h, z: x + h * s + math.sqrt(2 * h * x.shape[1]) * z},
    "by d = 3": {"move": lambda x, s, h, z: x + h * s + math.sqrt(2 * h / x.shape[1]) * z},
    "does not vanish where the score does": {
        "move": lambda x, s, h, z: langevin(x, s + 0.1, h, z)
    },
    "not linear": {"move": lambda x, s, h, z: langevin(x, s.clamp(-1, 1), h, z)},
    "coupled batch": {"move": lambda x, s, h, z: langevin(x, s - 0.1 * s.mean(0), h, z)},
    "same noise for all": {"noise": lambda x, g: randn_like(x[:1], g).expand(x.shape)},
    "noise that does not come from": {"noise": lambda x, g: torch.randn_like(x)},
    r"randn_like\(x, generator\)": {
        "noise": lambda x, g: torch.randn(x.shape, dtype=x.dtype, generator=g)
    },
    "drawn twice": {"noise": lambda x, g: randn_like(x, g) + 0 * randn_like(x, g)},
    "in-place operation, such as": {"move": in_place},
    "stale": {"score": lambda target, x, state: state.score},
    "changes the dtype": {"move": lambda x, s, h, z: langevin(x, s, h, z.double())},
    "wrong dimension": {"move": lambda x, s, h, z: langevin(x, s, h, z)[:, :1]},
    "explodes": {"move": lambda x, s, h, z: x / 0},
    "something kept outside the state": {
        "move": lambda x, s, h, z: COUNT.append(1) or langevin(x, s * (1 + len(COUNT) % 7), h, z)
    },
}


def test_a_kernel_of_ones_own_is_right_by_the_facts_of_another():
    found = check_kernel(Own, facts=glp.langevin.ULA.facts)
    assert abs(found["order of the bias on a quartic"].value - 1) < 0.05
    assert found["covariance kept on a Gaussian, over that of the facts, h = 0.4"].value == (
        pytest.approx(1, abs=1e-12)
    )
    assert "power of the units" in str(found)


@pytest.mark.parametrize("likely", WRONG)
def test_what_is_wrong_is_named(likely, recwarn):
    with pytest.raises(ConformanceError, match=likely) as caught:
        check_kernel(partial(Own, **WRONG[likely]), facts=glp.langevin.ULA.facts)
    assert isinstance(caught.value, AssertionError)
    assert caught.value.check in str(caught.value)


def test_without_facts_what_no_claim_can_excuse_still_fails():
    found = check_kernel(Own)
    assert found["covariance on a Gaussian as h → 0, over that of p"].value == (
        pytest.approx(1, abs=1e-3)
    )
    assert "order of the bias on a quartic" not in found
    with pytest.raises(ConformanceError, match=r"as h → 0.*√h z in place"):
        check_kernel(partial(Own, **WRONG["noise √h z in place"]))


class Metropolis(NamedTuple):
    x: Tensor
    score: Tensor
    log_prob: Tensor


class Decided(NamedTuple):
    acceptance: Tensor
    accepted: Tensor


def ratio(new, old, there, back):
    """The log-ratio, from both states and the logs of q(y|x) and q(x|y)."""
    return new.log_prob - old.log_prob + back - there


class OwnMALA:
    """MALA with a log-ratio of the test's choice."""

    def __init__(self, step_size, ratio=ratio, of=4.0):
        self.step_size, self.ratio, self.of = step_size, ratio, of

    def init(self, x, target):
        return Metropolis(x, target.score(x), target.log_prob(x))

    def step(self, state, target, *, generator=None):
        h, x = self.step_size, state.x
        y = x + h * state.score + math.sqrt(2 * h) * randn_like(x, generator)
        new = self.init(y, target)

        def log_q(to, at):
            return -(to.x - at.x - h * at.score).square().flatten(1).sum(1) / (self.of * h)

        log = self.ratio(new, state, log_q(new, state), log_q(state, new))
        acceptance = log.clamp(max=0).exp()
        accepted = rand_like(acceptance, generator) < acceptance
        fields = [
            torch.where(accepted.reshape(-1, *[1] * (a.ndim - 1)), a, b)
            for a, b in zip(new, state, strict=True)
        ]
        return Metropolis(*fields), Decided(acceptance, accepted)


REFUSED = {
    "inverted ratio": {"ratio": lambda new, old, there, back: -ratio(new, old, there, back)},
    "x and y are swapped": {"ratio": lambda new, old, there, back: ratio(new, old, back, there)},
    "left out": {"ratio": lambda new, old, there, back: new.log_prob - old.log_prob},
    "an exponent with 2h where 4h belongs": {"of": 2.0},
    "an exponent with 4h where 2h belongs": {"of": 8.0},
    "Metropolis step": {"ratio": lambda new, *rest: 0 * new.log_prob},
}


def test_a_metropolis_step_of_ones_own():
    check_kernel(OwnMALA, facts=glp.langevin.MALA.facts)


@pytest.mark.parametrize("likely", REFUSED)
def test_a_wrong_metropolis_step_is_named(likely):
    with pytest.raises(ConformanceError, match=likely):
        check_kernel(partial(OwnMALA, **REFUSED[likely]), facts=glp.langevin.MALA.facts)


def test_facts_that_are_wrong():
    facts = glp.langevin.ULA.facts
    for change, likely in (
        ({"order": 2}, "a different order"), ({"draws": 2}, "where the facts say"),
        ({"affine": False, "stationary": None}, "facts of a different kernel"),
        ({"needs_log_prob": True}, "facts of a different kernel"),
        ({"exact": True, "stationary": None}, "over that of the facts"),
        ({"reversible": True}, "Metropolis step"),
    ):  # fmt: skip
        with pytest.raises(ConformanceError, match=likely):
            check_kernel(glp.langevin.ULA, facts=dataclasses.replace(facts, **change))
    facts = dataclasses.replace(glp.langevin.MALA.facts, reversible=False)
    with pytest.raises(ConformanceError, match="this one is reversible"):
        check_kernel(glp.langevin.MALA, facts=facts)
    assert not any(dataclasses.astuple(UNKNOWN)[:8])


def test_draws_of_another_law_are_no_exact_draws():
    """Invariance and its power: uniform draws on a sphere, and a density that is not uniform."""
    made = lambda h: kernels.SphereMALA(h)
    found = check_kernel(made, target=OnSphere())
    assert abs(found["change of E x from exact draws"].value) < 0.02
    with pytest.raises(ConformanceError, match="change of E x from exact draws"):
        check_kernel(made, target=OnSphere(2.0))


def test_a_target_without_draws_is_a_place_to_run():
    target = glp.as_target(log_prob=lambda x: -x.square().sum(1), event_shape=(3,))
    found = check_kernel(glp.langevin.MALA, target=target)
    assert "what chunks change" in found
    assert "change of E x from exact draws" not in found
    found = check_kernel(glp.langevin.MALA, target=glp.Gaussian([0.0, 1.0], 2.0))
    assert "change of E x from exact draws" in found


def resumed(monkeypatch, change):
    """Make every resumed run start from a changed state."""

    def run(*arguments, resume=None, **more):
        if resume is not None:
            state = {name: change(v) for name, v in resume["state"].items()}
            resume = {**resume, "state": state}
        return langevin_run(*arguments, resume=resume, **more)

    monkeypatch.setattr(conformance_kernels, "run", run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernel", ["ULA", "MALA", "BAOAB"])
def test_a_break_in_a_run_may_round_and_no_more(kernel, dtype, monkeypatch):
    one = torch.eye(2, dtype=dtype)
    target = glp.GaussianMixture(one[0] * 0.4 + one[1] * 0.6, 2 * one, one[0] + 0.5)
    made, eps = getattr(kernels, kernel), torch.finfo(dtype).eps
    resumed(monkeypatch, lambda v: v * (1 + eps) if v.is_floating_point() else v)
    found = check_kernel(made, target=target)["what a break in a run changes"].value
    assert 0 < found < 20 * eps
    resumed(monkeypatch, lambda v: v * (1 + 1e3 * eps) if v.is_floating_point() else v)
    with pytest.raises(ConformanceError, match="what a break in a run changes"):
        check_kernel(made, target=target)


class Forgetful(kernels.BAOAB):
    """BAOAB that starts at rest from every state which it did not return itself."""

    last: ClassVar[list[Any]] = []

    def step(self, state, target, *, generator=None):
        if not any(state is known for known in self.last):
            state = state._replace(momentum=torch.zeros_like(state.momentum))
        new, info = super().step(state, target, generator=generator)
        self.last.append(new)
        return new, info


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_momentum_that_a_break_loses_is_seen(dtype):
    target = glp.Gaussian(torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype))
    with pytest.raises(ConformanceError, match=r"what a break in a run changes.*not in the state"):
        check_kernel(Forgetful, target=target)


class Elsewhere(Own):
    """A kernel of points that are nowhere in R²."""

    def init(self, x, target):
        raise ValueError("x must lie elsewhere")


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "make must be a function, got 3: pass the class, or a function of"),
        ((lambda h: 3,), r"make\(step_size\)"), ((Elsewhere,), "target"),
    ],
)  # fmt: skip
def test_what_is_no_kernel_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_kernel(*arguments)
    for name in ("facts", "target"):
        with pytest.raises(ValueError, match=name):
            check_kernel(glp.langevin.ULA, **{name: "ULA"})


def test_the_table_in_the_docs_is_made_from_the_facts():
    assert all(hasattr(glp.langevin, kernel.__name__) for kernel in KERNELS)
    assert all(isinstance(make(kernel, 0.1).facts, glp.langevin.Facts) for kernel in KERNELS)
    assert facts_of(object()) == UNKNOWN
    shown = [make(kernel, 0.1) for kernel in KERNELS]
    shown.sort(key=lambda kernel: (kernel.facts.needs_log_prob, kernel.facts.draws))
    page = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    assert table(shown) in page, f"docs/sampling.md must have this table\n\n{table(shown)}"
