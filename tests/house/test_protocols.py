"""One conformance test for every kernel and every transition, found by introspection."""

import dataclasses
import inspect
import math

import pytest
import torch
from kernel_support import ARGUMENTS, KERNELS, found, make, softened

from gradlogp import as_score, core, run
from gradlogp.core import Density, per_sample, sum_event
from gradlogp.diffusion import transitions
from gradlogp.noise.schedules import VE, VP, Levels

TRANSITIONS = found(transitions)
STEP = 0.1


COUPLED = {"SVGD"}
"""Kernels whose rows are one sample: each particle moves by where all others are, without noise."""


SPHERES = {"SphereMALA", "SphereULA"}
"""Kernels whose chains stay on the sphere where they start."""


PLANE = {"AdjustedMCLMC", "MCLMC"}
"""Kernels that need two dimensions."""


def in_units(kernel, step_size, c):
    """The kernel for x at a step size as one for c x, or None where it prefers a unit."""
    fields = {f.name for f in dataclasses.fields(kernel)}
    if kernel.__name__ == "TamedULA":  # bounds the drift by one unit of x
        return None
    if "friction" in fields:  # the step is a time, and velocities keep their unit
        return make(kernel, c * step_size, friction=1 / c)
    if fields & {"n_leapfrog", "max_depth", "n_steps"}:
        return make(kernel, c * step_size)
    if "decoherence_length" in fields:
        return make(kernel, c * step_size, decoherence_length=c)
    if "covariance" in fields:
        return make(kernel, c**2 * step_size, covariance=0.8 * c**2)
    if "regularizer" in fields:  # G = 1/(λ + √V) has the unit of x
        return make(kernel, c * step_size, regularizer=0.1 / c)
    if "radius" in fields:
        return make(kernel, c**2 * step_size, radius=c)
    if "G" in fields:
        return make(kernel, c**2 * step_size, G=lambda y: softened(y / c))
    return make(kernel, c**2 * step_size)


every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda c: c.__name__)
every_flat_kernel = pytest.mark.parametrize(
    "kernel", [c for c in KERNELS if c.__name__ not in SPHERES], ids=lambda c: c.__name__
)
every_transition = pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda c: c.__name__)
events = pytest.mark.parametrize("event", [(2,), (1, 3, 3)], ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


class Observed:
    """log p = Σ x − e^x of y = c x, from ten observations whose scores differ by constants.

    Skewed, so that a wrong sign cannot hide. It is all that a kernel may ask for: a log-density, a
    score, and one from a minibatch.
    """

    n_data = 10

    def __init__(self, c=1.0):
        self.c = c

    def log_prob(self, y):
        return sum_event(y / self.c - (y / self.c).exp())

    def score(self, y):
        return (1 - (y / self.c).exp()) / self.c

    def minibatch_score(self, y, index):
        apart = (index.to(y) - 4.5) / 100  # 0 in the mean over all ten
        scatter = self.n_data / index.shape[-1] * apart.sum(-1)
        return self.score(y) + per_sample(scatter, y) / self.c


SKEWED = Observed()


def noisy_score(schedule):
    """The score of data N(1, 2 I) of any event shape."""

    def score(x, t):
        a, b = (per_sample(v, x) for v in schedule(t))
        return -(x - a) / (2 * a**2 + b**2)

    return as_score(score, "score", schedule)


def clone(generator):
    return torch.Generator().set_state(generator.get_state())


def test_there_is_something_to_test():
    exported = {c.__name__ for c in KERNELS}
    assert exported >= {"ULA", "MALA", "SVGD", *ARGUMENTS} - {"ExponentialEuler"}
    assert COUPLED <= exported
    assert {c.__name__ for c in TRANSITIONS} >= {
        "Ancestral",
        "ProbabilityFlow",
        "AnnealedLangevin",
    }


def same_signature(method, protocol):
    """The same parameters, in the same order and of the same kinds and defaults."""
    ours, theirs = (
        [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
        for f in (method, protocol)
    )
    assert ours == theirs


@pytest.mark.parametrize("cls", KERNELS + TRANSITIONS, ids=lambda c: c.__name__)
def test_frozen_dataclass(cls):
    assert dataclasses.is_dataclass(cls)
    instance = make(cls, STEP) if cls in KERNELS else cls()
    name = dataclasses.fields(cls)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(instance, name, 1)
    twin = make(cls, STEP) if cls in KERNELS else cls()
    assert instance == twin
    assert hash(instance) == hash(twin)
    assert f"{name}=" in repr(instance)
    assert cls.__doc__
    assert "Arguments:" in cls.__doc__


@every_kernel
def test_kernel_signature(kernel):
    assert isinstance(make(kernel, STEP), core.Kernel)
    assert dataclasses.fields(kernel)[0].name == "step_size"
    same_signature(kernel.init, core.Kernel.init)
    same_signature(kernel.step, core.Kernel.step)


@every_transition
def test_transition_signature(transition):
    assert isinstance(transition(), core.Transition)
    same_signature(transition.__call__, core.Transition.__call__)


# ---------------------------------------------------------------------------- kernels


def start(event, dtype, generator, n=6, kernel=None):
    x = torch.randn(n, *event, generator=generator).to(dtype)
    return placed(kernel, x)


def placed(kernel, x):
    """x, or where the kernel is one of a sphere the points of it in the same directions."""
    on_sphere = kernel is not None and kernel.__name__ in SPHERES
    return x / per_sample(x.flatten(1).norm(dim=1), x) if on_sphere else x


OF_A_LADDER = {"swap_acceptance", "proposed", "origin"}
"""What a step reports of every temperature or pair of them, beside the chain."""


def is_named_tuple(value):
    return isinstance(value, tuple) and hasattr(value, "_fields")


@every_kernel
@events
@dtypes
def test_kernel_step(kernel, event, dtype, generator):
    x = start(event, dtype, generator, kernel=kernel)
    before = x.clone()
    state = make(kernel, STEP).init(x, SKEWED)
    kept = [field.clone() for field in state]
    assert torch.equal(state.x, x)
    new, info = make(kernel, STEP).step(state, SKEWED, generator=generator)
    assert is_named_tuple(state)
    assert is_named_tuple(info)
    assert type(new) is type(state)
    assert torch.equal(x, before)  # nothing that was given has been changed
    assert all(torch.equal(a, b) for a, b in zip(state, kept, strict=True))
    for field, old in zip(new, state, strict=True):
        assert field.shape == old.shape
        assert field.dtype == old.dtype
        assert field.dtype in (dtype, torch.int64)  # numbers are those of x, or count
        assert len(field) == 6
    for name, field in info._asdict().items():
        if name not in OF_A_LADDER:
            assert field.shape == (6,), name
            assert field.dtype in (dtype, torch.bool, torch.int64), name
        assert len(field) == 6
    assert info.diverging.shape == (6,)
    assert info.diverging.dtype == torch.bool
    assert not info.diverging.any()
    assert not torch.equal(new.x, x)


@every_kernel
@events
def test_kernel_state_belongs_to_its_position(kernel, event, generator):
    """After any step the cached score and log-density are those at x: a stale one fails."""
    state = make(kernel, 0.5).init(start(event, torch.float64, generator, kernel=kernel), SKEWED)
    for _ in range(5):
        state, info = make(kernel, 0.5).step(state, SKEWED, generator=generator)
        if hasattr(state, "score"):
            torch.testing.assert_close(state.score, SKEWED.score(state.x), rtol=1e-12, atol=1e-12)
        if hasattr(state, "log_prob"):
            expected = SKEWED.log_prob(state.x)
            torch.testing.assert_close(state.log_prob, expected, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(info.log_prob, expected, rtol=1e-12, atol=1e-12)


@every_kernel
@events
def test_kernel_randomness(kernel, event, generator):
    state = make(kernel, STEP).init(start(event, torch.float64, generator, kernel=kernel), SKEWED)
    one, two, three = (
        make(kernel, STEP).step(state, SKEWED, generator=g)[0].x
        for g in (clone(generator), clone(generator), generator.manual_seed(123))
    )
    assert torch.equal(one, two)
    assert torch.equal(one, three) == (make(kernel, STEP).facts.draws == 0)
    torch.manual_seed(0)  # None means PyTorch's default generator
    first = make(kernel, STEP).step(state, SKEWED)[0].x
    torch.manual_seed(0)
    assert torch.equal(make(kernel, STEP).step(state, SKEWED)[0].x, first)


@every_kernel
@events
def test_kernel_batch_independence(kernel, event, generator):
    x = start(event, torch.float64, generator, kernel=kernel)
    other = x.clone()
    other[1:] = placed(kernel, 3 - 2 * other[1:])
    k = make(kernel, STEP)
    one, two = (k.step(k.init(v, SKEWED), SKEWED, generator=clone(generator)) for v in (x, other))
    assert not torch.equal(one[0].x[1:], two[0].x[1:])
    if kernel.__name__ in COUPLED:  # it is the method, and said so
        assert not torch.equal(one[0].x[0], two[0].x[0])
        assert "one sample" in kernel.__doc__.lower()
        return
    for a, b in zip((*one[0], *one[1]), (*two[0], *two[1]), strict=True):
        assert torch.equal(a[0], b[0])


@every_kernel
@events
def test_kernel_chunks(kernel, event, generator):
    """Chunks of any size give the same chains; where rows are one sample they are refused."""
    x = start(event, torch.float64, generator, 1040, kernel)  # more than one block of noise
    if kernel.__name__ in COUPLED:
        with pytest.raises(ValueError, match="chunk"):
            run(make(kernel, STEP), SKEWED, x[:8], 3, chunk_size=4)
        return
    whole, parts = (
        run(make(kernel, STEP), SKEWED, x, 3, generator=clone(generator), chunk_size=size)
        for size in (None, 137)
    )
    torch.testing.assert_close(whole.draws, parts.draws, rtol=1e-11, atol=1e-11)
    for a, b in zip((*whole.info, *whole.state), (*parts.info, *parts.state), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@every_kernel
@events
@dtypes
def test_kernel_goes_on(kernel, event, dtype, generator, tmp_path):
    """Nine steps are four, saved and loaded, and five: bit for bit."""
    x, k = start(event, dtype, generator, kernel=kernel), make(kernel, STEP)
    whole = run(k, SKEWED, x, 9, generator=clone(generator))
    first = run(k, SKEWED, x, 4, generator=clone(generator))
    torch.save(first.resume, tmp_path / "run.pt")
    saved = torch.load(tmp_path / "run.pt", weights_only=True)
    second = run(k, SKEWED, resume=saved, n_steps=5)
    assert torch.equal(torch.cat([first.draws, second.draws], 1), whole.draws)
    for a, b in zip(second.state, whole.state, strict=True):
        assert torch.equal(a, b)


@every_kernel
@pytest.mark.parametrize("h", [0.0, -0.1, math.inf, math.nan])
def test_kernel_refuses_bad_steps(kernel, h, as_user):
    with pytest.raises(ValueError, match="step_size"):
        make(kernel, h)


@every_kernel
@pytest.mark.parametrize(
    "x", [torch.zeros(3), torch.zeros(3, 2, dtype=torch.long), torch.zeros(())],
    ids=["no batch", "integers", "a number"],
)  # fmt: skip
def test_kernel_refuses_bad_starts(kernel, x, as_user):
    with pytest.raises(ValueError, match="x0"):
        make(kernel, STEP).init(x, SKEWED)


class Narrow(Observed):
    """A density whose score forgets a dimension."""

    def score(self, y):
        return super().score(y)[:, :1]

    def minibatch_score(self, y, index):
        return super().minibatch_score(y, index)[:, :1]


@every_kernel
def test_kernel_never_broadcasts_a_score(kernel, as_user):
    k, x = make(kernel, STEP), torch.randn(3, 2)
    with pytest.raises(ValueError, match="shape"):
        k.step(k.init(x, Narrow()), Narrow())


@every_flat_kernel
def test_kernel_whose_target_becomes_nan(kernel, generator):
    """The chain stays where it was and is flagged; the others go on as without it."""
    k = make(kernel, STEP)
    x = torch.tensor([[0.1, 0.2], [-0.2, 0.5], [0.3, -0.4], [-30.0, 0.0]])
    state = k.init(x, SKEWED)
    broken = Broken()
    new, info = k.step(state, broken, generator=clone(generator))
    fine, unbroken = k.step(state, SKEWED, generator=clone(generator))
    assert not unbroken.diverging.any()
    assert info.diverging.tolist() == [False, False, False, True]
    assert torch.equal(new.x[3], x[3])
    assert torch.equal(new.x[:3], fine.x[:3])


class Broken(Observed):
    """Not a number left of −10, where none but the last chain is or comes to."""

    def log_prob(self, y):
        return torch.where(y[:, 0] < -10, torch.nan, super().log_prob(y))

    def score(self, y):
        return torch.where(y < -10, torch.nan, super().score(y))

    def minibatch_score(self, y, index):
        return torch.where(y < -10, torch.nan, super().minibatch_score(y, index))


@every_kernel
def test_kernel_does_not_depend_on_units(kernel, generator):
    """A kernel for x at step h is one for c x at step c² h, with the same noise."""
    c, x = 4.0, start((3,), torch.float64, generator, kernel=kernel)
    scaled = Observed(c)
    one = run(make(kernel, STEP), SKEWED, x, 10, generator=clone(generator)).draws
    other = in_units(kernel, STEP, c)
    k = other or make(kernel, c**2 * STEP)
    two = run(k, scaled, c * x, 10, generator=clone(generator)).draws
    same = torch.allclose(two, c * one, rtol=1e-10, atol=1e-10)
    assert same == (other is not None)


# ---------------------------------------------------------------------------- transitions

SCHEDULES = [VP(), VE(0.05, 8.0), Levels([4.0, 1.0, 0.2])]
ENDS = [(0.9, 0.5), (0.5, 0.0), (0.5, None), (0.5, 0.5)]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)


@every_transition
@events
@dtypes
@every_schedule
@pytest.mark.parametrize(("t", "s"), ENDS)
def test_transition_step(transition, event, dtype, schedule, t, s, generator):
    x = start(event, dtype, generator)
    before = x.clone()
    t, s = torch.tensor(t), None if s is None else torch.tensor(s)
    score = noisy_score(schedule)
    one, two = (transition()(x, t, s, score, generator=clone(generator)) for _ in range(2))
    assert torch.equal(x, before)
    assert one.shape == x.shape
    assert one.dtype == dtype
    assert torch.isfinite(one).all()
    assert torch.equal(one, two)
    other = x.clone()
    other[1:] = 5 - 3 * other[1:]
    mates = transition()(other, t, s, score, generator=clone(generator))
    assert torch.equal(mates[0], one[0])
    assert not torch.equal(mates[1:], one[1:])
    rounded = transition()(x.double(), t, s, score, generator=torch.Generator())
    if torch.equal(transition()(x, t, s, score, generator=torch.Generator()), one):
        # deterministic: float32 is float64 up to rounding
        torch.testing.assert_close(one.double(), rounded, rtol=1e-4, atol=1e-4)


def test_density_protocol():
    assert isinstance(SKEWED, Density)
    assert not isinstance(object(), Density)
    assert not isinstance(object(), core.Kernel)
