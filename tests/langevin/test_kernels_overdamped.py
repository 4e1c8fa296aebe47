"""Variants of ULA and MALA: averaged noise, tamed drifts, constant preconditioners."""

import math

import pytest
import torch
from kernel_support import (
    DENSE,
    I2,
    QUARTIC,
    SKEWED,
    step,
)
from support import close, order, seeded

from gradlogp import as_target, run
from gradlogp.core import Injected
from gradlogp.langevin.kernels import (
    HMC,
    MALA,
    MCLMC,
    NUTS,
    ULA,
    AdjustedMCLMC,
    LeimkuhlerMatthews,
    PreconditionedULA,
    TamedULA,
)

# ---------------------------------------------------------------------------- averaged noise


def test_leimkuhler_matthews_is_its_formula(generator):
    h, tau = 0.07, 1.7
    kernel = LeimkuhlerMatthews(h, tau)
    x, z1, z2 = torch.randn(3, 5, 2, 3, generator=generator)
    zero = kernel.init(x, SKEWED)
    assert not zero.z.any()
    one, info = kernel.step(zero, SKEWED, generator=Injected(z1))
    two, _ = kernel.step(one, SKEWED, generator=Injected(z2))
    close(one.x, x + h * (1 - x.exp()) + math.sqrt(2 * h * tau) * z1 / 2, 1e-12)
    close(two.x, one.x + h * (1 - one.x.exp()) + math.sqrt(2 * h * tau) * (z1 + z2) / 2, 1e-12)
    assert torch.equal(two.z, z2)
    assert not info.diverging.any()


# ---------------------------------------------------------------------------- tamed


@pytest.mark.parametrize("event", [(1,), (2, 3)])
def test_tamed_is_its_formula(event, generator):
    h, tau = 0.3, 0.6
    x, z = torch.randn(2, 5, *event, generator=generator)
    s = 1 - x.exp()
    noise = math.sqrt(2 * h * tau) * z
    for n, row in enumerate(s):  # the norm is that of one chain
        new, _ = step(TamedULA(h, tau), SKEWED, x, z)
        close(new.x[n], x[n] + h * row / (1 + h * row.norm()) + noise[n], 1e-12)
    new, _ = step(TamedULA(h, tau, coordinatewise=True), SKEWED, x, z)
    close(new.x, x + h * s / (1 + h * s.abs()) + noise, 1e-12)


def test_tamed_walks_in_where_ula_explodes():
    x, h, silent = torch.full((1, 1), 100.0), 0.1, [torch.zeros(1, 1)] * 8
    for coordinatewise in (False, True):
        kernel = TamedULA(h, coordinatewise=coordinatewise)
        chain = run(kernel, QUARTIC, x, 8, generator=Injected(*silent))
        close(chain.state.x, torch.full((1, 1), 92.0), 1e-5)
        assert not chain.info.diverging.any()
    with pytest.raises(FloatingPointError, match=r"1 of 1 chains.*step_size"):
        run(ULA(h, on_nonfinite="raise"), QUARTIC, x, 8, generator=Injected(*silent))
    with pytest.warns(RuntimeWarning, match="1 of 1 chains diverged"):
        assert run(ULA(h), QUARTIC, x, 8, generator=Injected(*silent)).info.diverging.any()


def test_tamed_tends_to_ula(generator):
    x, z = torch.randn(2, 4, 3, generator=generator)
    for coordinatewise in (False, True):
        gaps = []
        for h in (1e-3, 5e-4, 2.5e-4):
            tamed = step(TamedULA(h, coordinatewise=coordinatewise), SKEWED, x, z)[0]
            gaps.append(float((tamed.x - step(ULA(h), SKEWED, x, z)[0].x).norm()))
        close(order(gaps), torch.full((2,), 2.0), 0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tamed_drift_never_exceeds_one(dtype):
    """Scores whose squares overflow, and scores of 0, which have no direction."""
    huge = torch.finfo(dtype).max / 10
    for size, expected in ((huge, 2**-0.5), (0.0, 0.0)):
        target = as_target(score=lambda x, size=size: torch.full_like(x, size))
        x = torch.zeros(3, 2, dtype=dtype)
        new, _ = step(TamedULA(0.1, temperature=0.0), target, x, x)
        close(new.x, torch.full_like(x, expected), 1e-6)


# ---------------------------------------------------------------------------- preconditioned

SHAPES = [0.7, torch.tensor([0.4, 1.9], dtype=torch.float64), DENSE]


def matrix(P):
    return P * I2 if not isinstance(P, torch.Tensor) else torch.diag(P) if P.ndim == 1 else P


def root(P):
    w, U = torch.linalg.eigh(matrix(P))
    return U @ torch.diag(w.sqrt()) @ U.mT


@pytest.mark.parametrize("P", SHAPES, ids=["number", "diagonal", "matrix"])
def test_preconditioned_ula_is_its_formula(P, generator):
    h, tau = 0.2, 0.5
    x, z = torch.randn(2, 6, 2, generator=generator)
    new, _ = step(PreconditionedULA(h, P, tau), SKEWED, x, z)
    drift, noise = (1 - x.exp()) @ matrix(P), z @ root(P)
    close(new.x, x + h * drift + math.sqrt(2 * h * tau) * noise, 1e-12)


@pytest.mark.parametrize(
    ("plain", "preconditioned"),
    [
        (ULA(0.3), PreconditionedULA(0.3, DENSE)),
        (MALA(0.3, 1.4), MALA(0.3, 1.4, DENSE)),
        (HMC(0.8, 3, temperature=1.4), HMC(0.8, 3, DENSE, temperature=1.4)),
        (NUTS(0.4), NUTS(0.4, preconditioner=DENSE)),
        (MCLMC(0.3, 1.0), MCLMC(0.3, 1.0, preconditioner=DENSE)),
        (AdjustedMCLMC(0.5, 2), AdjustedMCLMC(0.5, 2, preconditioner=DENSE)),
    ],
    ids=lambda k: type(k).__name__,
)
def test_preconditioning_is_plain_dynamics_in_whitened_coordinates(
    plain, preconditioned, generator
):
    C = root(DENSE)  # x = C y
    white = as_target(
        score=lambda y: SKEWED.score(y @ C) @ C, log_prob=lambda y: SKEWED.log_prob(y @ C)
    )
    y = torch.randn(200, 2, generator=generator)
    go = lambda k, target, x: k.step(k.init(x, target), target, generator=seeded(4))
    (one, info), (two, other) = go(plain, white, y), go(preconditioned, SKEWED, y @ C)
    close(two.x, one.x @ C, 1e-11)
    for name in {"acceptance", "accepted", "energy_change", "n_leapfrog"} & set(info._fields):
        close(getattr(other, name), getattr(info, name), 1e-10)
    wrong, _ = go(plain, SKEWED, y @ C)  # negative control
    assert float((wrong.x - two.x).abs().max()) > 0.1
