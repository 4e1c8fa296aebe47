"""What every kernel and every transition of the library owes beside what the public checks ask."""

import dataclasses
import inspect

import pytest
import torch
from kernel_support import KERNELS, make

from gradlogp import core
from gradlogp.check.conformance.laws import Observed, Skewed
from gradlogp.diffusion import transitions

TRANSITIONS = [v for v in vars(transitions).values() if inspect.isclass(v)]
STEP = 0.1


SPHERES = {"SphereMALA", "SphereULA"}
"""Kernels whose chains stay on the sphere where they start."""


every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda c: c.__name__)
every_flat_kernel = pytest.mark.parametrize(
    "kernel", [c for c in KERNELS if c.__name__ not in SPHERES], ids=lambda c: c.__name__
)
every_transition = pytest.mark.parametrize("transition", TRANSITIONS, ids=lambda c: c.__name__)


SKEWED = Observed(Skewed(), 0.01)


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
    narrow = Narrow(Skewed(), 0.01)
    with pytest.raises(ValueError, match="shape"):
        k.step(k.init(x, narrow), narrow)


@every_flat_kernel
def test_kernel_whose_target_becomes_nan(kernel, generator):
    """The chain stays where it was and is flagged; the others go on as without it."""
    k = make(kernel, STEP)
    x = torch.tensor([[0.1, 0.2], [-0.2, 0.5], [0.3, -0.4], [-30.0, 0.0]])
    state = k.init(x, SKEWED)
    broken = Broken(Skewed(), 0.01)
    new, info = k.step(state, broken, generator=torch.Generator().manual_seed(3))
    fine, unbroken = k.step(state, SKEWED, generator=torch.Generator().manual_seed(3))
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
