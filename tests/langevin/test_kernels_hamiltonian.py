"""HMC and GHMC: one leapfrog step is MALA, volumes, reversibility path by path."""

import math

import pytest
import torch
from kernel_support import DENSE, QUARTIC, SKEWED
from support import close

from gradlogp.core import Injected
from gradlogp.langevin.kernels import (
    GHMC,
    HMC,
    MALA,
    OBABO,
    Preconditioner,
)
from gradlogp.langevin.kernels.hamiltonian import PhaseState, leapfrog

# ---------------------------------------------------------------------------- HMC


@pytest.mark.parametrize("target", [SKEWED, QUARTIC])
@pytest.mark.parametrize("tau", [1.0, 1.8])
@pytest.mark.parametrize("P", [1.0, torch.tensor([0.4, 1.9]), DENSE], ids=lambda p: str(type(p)))
def test_mala_is_hmc_with_one_leapfrog_step(target, tau, P, generator):
    h, n = 0.4, 200
    x, z = torch.randn(2, n, 2, generator=generator)
    u = torch.rand(n, generator=generator)
    P = P if isinstance(P, float) else P.double()
    one, two = MALA(h, tau, P), HMC(math.sqrt(2 * h), 1, P, tau)

    def step(kernel):
        return kernel.step(kernel.init(x, target), target, generator=Injected(z, u))

    (a, info), (b, other) = step(one), step(two)
    close(other.acceptance, info.acceptance, 1e-11)
    assert torch.equal(other.accepted, info.accepted)
    assert other._fields[:4] == info._fields
    for left, right in zip(a, b[:3], strict=True):
        close(left, right, 1e-11)
    assert 0 < int(info.accepted.sum()) < n
    far = HMC(math.sqrt(h), 1, P, tau)  # negative control
    assert not torch.allclose(step(far)[0].x, a.x)


@pytest.mark.parametrize("P", [1.0, DENSE], ids=["unit", "dense"])
def test_leapfrog_keeps_volume_and_undoes_itself(P, generator):
    P = Preconditioner(P)

    def flow(y):
        x, q = y[:, :2], y[:, 2:]
        start = PhaseState(x, SKEWED.score(x), SKEWED.log_prob(x), q)
        end = leapfrog(start, SKEWED, 0.4, 5, P)
        return torch.cat([end.x, end.momentum], 1)

    y = torch.randn(10, 4, generator=generator)
    J = torch.func.vmap(torch.func.jacrev(lambda v: flow(v[None])[0]))(y)
    close(torch.linalg.det(J), torch.ones(10), 1e-11)
    turn = torch.tensor([1.0, 1.0, -1.0, -1.0])
    close(turn * flow(turn * flow(y)), y, 1e-11)
    assert float((flow(y) - y).abs().min()) > 1e-4


# ---------------------------------------------------------------------------- GHMC


def ghmc_paths(kernel, x, p, q, u, turn=True):
    """One step of a kernel from (x, p) through momentum q after the first friction.

    Returns the end, the logarithm of the density of the path, and the same for the path that goes
    back from the end with its momentum turned round, up to the law of the second friction's noise.
    """
    h, gamma, m, tau = kernel.step_size, kernel.friction, kernel.mass, kernel.temperature
    c = math.exp(-gamma * h / 2)
    sd = math.sqrt(tau * m * (1 - c**2))
    z1 = (q - c * p) / sd
    z2 = torch.full_like(p, 0.3)
    start = kernel.init(x, SKEWED)._replace(momentum=p)
    new, info = kernel.step(start, SKEWED, generator=Injected(z1, u, z2))
    inner = (new.momentum - sd * z2) / c  # after the Metropolis step
    if not turn:  # a kernel that forgets to turn the momentum round
        inner = torch.where(info.accepted[:, None], inner, -inner)
        new = new._replace(momentum=c * inner + sd * z2)
    chance = torch.where(info.accepted, info.acceptance, 1 - info.acceptance)

    def density(x, p, z, w):
        weight = SKEWED.log_prob(x) / tau - p.square().sum(1) / (2 * tau * m)
        return weight - (z.square() + w.square()).sum(1) / 2 + chance.log()

    there = density(x, p, z1, z2)
    z1_back, z2_back = (c * new.momentum - inner) / sd, (c * q - p) / sd
    back_start = kernel.init(new.x, SKEWED)._replace(momentum=-new.momentum)
    end, info_back = kernel.step(back_start, SKEWED, generator=Injected(z1_back, u, z2_back))
    chance = torch.where(info_back.accepted, info_back.acceptance, 1 - info_back.acceptance)
    return there, density(new.x, new.momentum, z1_back, z2_back), end, info


@pytest.mark.parametrize(("m", "tau"), [(1.0, 1.0), (2.0, 0.6)])
@pytest.mark.parametrize("u", [0.0, 1.0])
def test_ghmc_is_reversible_up_to_the_sign_of_the_momentum(m, tau, u, generator):
    """π(x,p) T((x,p), (y,q)) = π(y,q) T((y,−q), (x,−p)), path by path, accepted or not."""
    n = 300
    x, p, q = torch.randn(3, n, 2, generator=generator)
    kernel = GHMC(0.9, 0.7, m, tau)
    assert kernel.facts.reversible
    there, back, end, info = ghmc_paths(kernel, x, p, q, torch.full((n,), u))
    some = (info.acceptance > 1e-8) & (info.acceptance < 1 - 1e-8)
    assert int(some.sum()) > 80
    assert info.accepted[some].all() == (u == 0)
    close(there[some], back[some], 1e-6)
    close(end.x[some], x[some], 1e-9)
    close(end.momentum[some], -p[some], 1e-9)
    if u == 1:  # negative control: without the turn a rejected path does not come back
        _, _, end, _ = ghmc_paths(kernel, x, p, q, torch.full((n,), u), turn=False)
        assert float((end.momentum + p)[some].abs().max()) > 0.1


def test_ghmc_turns_round_on_a_rejection_and_is_obabo_otherwise(generator):
    n = 200
    x, p, z1, z2 = torch.randn(4, n, 2, generator=generator)
    kernel, free = GHMC(0.9, 0.7, 1.3), OBABO(0.9, 0.7, 1.3)
    start = kernel.init(x, SKEWED)._replace(momentum=p)
    new, info = kernel.step(start, SKEWED, generator=Injected(z1, torch.rand(n), z2))
    kinetic = free.init(x, SKEWED)._replace(momentum=p)
    moved, _ = free.step(kinetic, SKEWED, generator=Injected(z1, z2))
    yes = info.accepted
    assert 20 < int(yes.sum()) < n - 10
    close(new.x[yes], moved.x[yes], 1e-12)
    close(new.momentum[yes], moved.momentum[yes], 1e-12)
    c = math.exp(-0.7 * 0.45)
    sd = math.sqrt(1.3 * (1 - c**2))
    assert torch.equal(new.x[~yes], x[~yes])
    close(new.momentum[~yes], (-c * (c * p + sd * z1) + sd * z2)[~yes], 1e-12)


def test_ghmc_at_infinite_friction_is_mala(generator):
    h, m, n = 0.8, 2.0, 100
    x, z = torch.randn(2, n, 2, generator=generator)
    u = torch.rand(n, generator=generator)
    kernel, plain = GHMC(h, math.inf, m), MALA(h**2 / (2 * m))
    new, info = kernel.step(kernel.init(x, SKEWED), SKEWED, generator=Injected(z, u, z))
    other, expected = plain.step(plain.init(x, SKEWED), SKEWED, generator=Injected(z, u))
    close(info.acceptance, expected.acceptance, 1e-11)
    close(new.x, other.x, 1e-11)
