"""What every kernel owes: no order of coordinates or chains, and a policy for what is not finite."""

import math
import re

import pytest
import torch
from kernel_support import DENSE, GAUSSIAN, SKEWED, cliff, step
from support import MEAN, close

from gradlogp import as_target, run
from gradlogp.check.conformance.report import Watched
from gradlogp.core import Injected
from gradlogp.langevin.kernels import (
    BAOA,
    BAOAB,
    GHMC,
    HMC,
    MALA,
    MCLMC,
    NUTS,
    OBABO,
    ULA,
    AdjustedMCLMC,
    LeimkuhlerMatthews,
    PositionDependentULA,
    PreconditionedULA,
    Preconditioner,
    Splitting,
    TamedULA,
)


def softened(x):
    return 1 / (1 + x**2) + 0.5


EVERY = [
    ULA(0.1),
    LeimkuhlerMatthews(0.1),
    TamedULA(0.1),
    TamedULA(0.1, coordinatewise=True),
    PreconditionedULA(0.1, 0.7),
    PositionDependentULA(0.1, softened, "autograd"),
    MALA(0.3),
    HMC(0.7, 2),
    GHMC(0.7),
    NUTS(0.5),
    MCLMC(0.5, 2.0),
    AdjustedMCLMC(0.5, 2),
    BAOAB(0.3),
    OBABO(0.3),
    BAOA(0.3),
    Splitting(0.3, "ABOBA"),
]


def label(kernel):
    """What a kernel is, without addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(kernel))


every = pytest.mark.parametrize("kernel", EVERY, ids=label)


class Permuted:
    """The same noise with the coordinates in another order; uniform numbers have none."""

    def __init__(self, generator, index):
        self.generator, self.index = generator, index

    def draw(self, law, shape, like):
        z = law(shape, generator=self.generator)
        return z[:, self.index] if law is torch.randn else z


@every
def test_coordinates_have_no_order(kernel, generator):
    x = torch.randn(9, 3, generator=generator)
    index = torch.tensor([2, 0, 1])
    draws = []
    for i in (torch.arange(3), index):
        noise = Permuted(torch.Generator().manual_seed(3), i)
        draws.append(run(kernel, SKEWED, x[:, i], 6, generator=noise).draws)
    close(draws[0][..., index], draws[1], 1e-11)


@pytest.mark.parametrize(
    "kernel",
    [
        ULA(0.1, 0.0),
        LeimkuhlerMatthews(0.1, 0.0),
        PreconditionedULA(0.2, DENSE, 0.0),
        PositionDependentULA(0.1, softened, "autograd", 0.0),
        TamedULA(0.1, 0.0),
        BAOAB(0.3, temperature=0.0),
    ],
    ids=lambda k: type(k).__name__,
)
def test_at_temperature_zero_there_is_no_noise(kernel):
    x = run(kernel, GAUSSIAN, torch.full((2, 2), 2.0), 300).state.x
    assert torch.equal(x[0], x[1])
    close(x[0], MEAN, 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        MALA,
        lambda h: HMC(h, 3),
        NUTS,
        lambda h: MCLMC(h, 1.0),
        lambda h: AdjustedMCLMC(h, 2),
    ],
    ids=["MALA", "HMC", "NUTS", "MCLMC", "AdjustedMCLMC"],
)
def test_a_step_for_each_chain_is_that_chain_alone(make, generator):
    x, steps, source = (
        torch.randn(9, 3, generator=generator),
        torch.linspace(0.05, 1.5, 9),
        Watched(),
    )
    together, info = make(steps).step(make(steps).init(x, SKEWED), SKEWED, generator=source)
    noise = [law(shape, generator=generator) for law, shape in source.asked]
    together, info = step(make(steps), SKEWED, x, *noise)
    for i, h in enumerate(steps.tolist()):
        alone, told = step(make(h), SKEWED, x[i : i + 1], *(z[i : i + 1] for z in noise))
        for one, all_of in zip((*alone, *told), (*together, *info), strict=True):
            close(one[0], all_of[i], 1e-12)
    with pytest.raises(ValueError, match=r"step_size must have shape \(\) or \(9,\), got \(4,\)"):
        step(make(torch.ones(4)), SKEWED, x, *noise)


# ---------------------------------------------------------------------------- not finite


@pytest.mark.parametrize(
    "kernel",
    [MALA(0.5), HMC(1.0, 1), GHMC(1.0, math.inf), AdjustedMCLMC(1.0, 2, False)],
    ids=label,
)
@pytest.mark.parametrize(
    ("value", "diverging"), [(-math.inf, False), (math.nan, True), (math.inf, True)]
)
def test_outside_the_support_is_an_ordinary_rejection(kernel, value, diverging):
    x, u = torch.zeros(3, 2), torch.zeros(3)
    z = torch.tensor([[5.0, 0.0], [-0.1, 0.03], [math.inf, 0.0]])  # the last leads nowhere
    noise = [z, u, 0 * x][: kernel.facts.draws]
    new, info = step(kernel, cliff(value), x, *noise)
    assert info.diverging.tolist() == [diverging, False, True]
    assert info.accepted.tolist() == [False, True, False]
    assert torch.equal(info.acceptance[::2], torch.zeros(2))
    assert torch.equal(new.x[::2], x[::2])
    assert all(torch.isfinite(field[:2]).all() for field in new)
    loud, noise = type(kernel)(**{**vars(kernel), "on_nonfinite": "raise"}), [v[:2] for v in noise]
    if diverging:
        with pytest.raises(FloatingPointError, match="1 of 2 proposals"):
            step(loud, cliff(value), x[:2], *noise)
    else:
        assert torch.equal(step(loud, cliff(value), x[:2], *noise)[0].x, new.x[:2])


UNADJUSTED = [k for k in EVERY if not k.facts.needs_log_prob]


@pytest.mark.parametrize("kernel", UNADJUSTED, ids=label)
def test_an_unadjusted_chain_freezes_or_raises(kernel):
    target = as_target(score=lambda x: torch.where(x.abs() > 3, torch.nan, -x))
    x = torch.tensor([[0.5], [1.0], [-0.4]])
    noise = [torch.tensor([[0.2], [1e3], [-0.1]])] * kernel.facts.draws
    start = kernel.init(x, target)
    new, info = kernel.step(start, target, generator=Injected(*noise))
    assert info.diverging.tolist() == [False, True, False]
    for field, old in zip(new, start, strict=True):  # all of its state stays
        assert torch.equal(field[1], old[1])
        assert torch.isfinite(field).all()
    assert not torch.equal(new.x[0], x[0])
    changed = {k: v for k, v in vars(kernel).items() if k != "scheme" or type(kernel) is Splitting}
    loud = type(kernel)(**{**changed, "on_nonfinite": "raise"})
    with pytest.raises(FloatingPointError, match=r"1 of 3 chains.*step_size"):
        loud.step(start, target, generator=Injected(*noise))


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("make", [MALA, lambda h, **k: HMC(h, 2, **k), GHMC])
def test_adjusted_kernels_need_a_temperature_and_a_log_density(make, as_user):
    with pytest.raises(ValueError, match=r"needs temperature > 0"):
        make(0.1, temperature=0.0)
    with pytest.raises(ValueError, match=r"log-density.*ULA"):
        make(0.1).init(torch.zeros(3, 2), as_target(score=lambda x: -x))
    with pytest.raises(ValueError, match="1 of 3"):
        make(0.1).init(torch.tensor([[0.0], [2.0], [0.5]]), cliff(-math.inf))


def test_kernels_of_equal_preconditioners_are_equal():
    assert PreconditionedULA(0.1, 2.0) == PreconditionedULA(0.1, Preconditioner(2.0))
    assert MALA(0.1, preconditioner=DENSE) == MALA(0.1, preconditioner=DENSE.clone())
    assert MALA(0.1, preconditioner=DENSE) != MALA(0.1)
    assert MALA(0.1) == MALA(0.1, preconditioner=1.0)
    with pytest.raises(TypeError):
        PreconditionedULA(0.1)
