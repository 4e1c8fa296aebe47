"""No step of a driver makes the host wait for a device: counted on one that is played."""

import contextlib
import inspect
from importlib import import_module

import pytest
import torch
from far_support import Elsewhere, far
from kernel_support import KERNELS, make
from torch import nn

import gradlogp as glp
from gradlogp.diffusion import transitions
from gradlogp.noise.coordinates import AffineCoordinates

TRANSITIONS = [v for v in vars(transitions).values() if inspect.isclass(v)]


class OnHost(torch.Generator):
    """A generator of the played device, which draws on the host."""

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")

    def __init__(self, device="cpu"):
        pass


@pytest.fixture(autouse=True)
def generators(monkeypatch):
    monkeypatch.setattr(torch, "Generator", OnHost)
    monkeypatch.setattr(import_module("gradlogp.langevin.run.rounds"), "ROUND_SECONDS", 1e9)


def waits(run):
    """Return the waits of a step by their places: those of six steps less those of three."""
    found = []
    for n in (3, 6):
        with Elsewhere() as elsewhere:
            run(n)
        found.append(elsewhere.waits)
    return {place: n / 3 for place, n in (found[1] - found[0]).items()}


def moved(model):
    """Move a model to the played device, weight by weight."""
    with Elsewhere():
        for part in model.modules():
            if isinstance(part, AffineCoordinates):
                continue
            for name, weight in part._parameters.items():
                part._parameters[name] = weight if weight is None else nn.Parameter(far(weight))
            for name, buffer in part._buffers.items():
                part._buffers[name] = buffer if buffer is None else far(buffer)
    return model


def model(schedule, **options):
    return moved(glp.ScoreModel(glp.MLP(2, 8, 1), schedule, **options)).eval()


@pytest.fixture(scope="module")
def start():
    return far(torch.linspace(-1, 1, 8).reshape(4, 2))


@pytest.mark.parametrize("kind", TRANSITIONS, ids=lambda c: c.__name__)
def test_no_transition_waits(kind, start):
    score = model(glp.schedules.VE(0.01, 10.0))
    print(waits(lambda n: glp.evolve(kind(), score, start, glp.time_grid(score.schedule, 2 * n))))


@pytest.mark.parametrize("kind", KERNELS, ids=lambda c: c.__name__)
def test_no_kernel_waits(kind, start):
    with Elsewhere():
        law = glp.Gaussian(far(torch.zeros(2)), far(torch.eye(2)))
    kernel=make(kind,0.1)
    print(waits(lambda n: glp.run(kernel, law, start, n)))
def test_fit(start):
    m=model(glp.schedules.VE(0.01, 10.0))
    data=torch.randn(64,2)
    def f(n):
        list(glp.fit(m,data,steps=n,batch_size=8,check_every=100))
    print(waits(f))
