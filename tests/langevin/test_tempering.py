"""Parallel tempering: swaps against closed forms and detailed balance, modes that are found."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from scipy.special import betainc
from support import close, z_score

from gradlogp import (
    Gaussian,
    GaussianMixture,
    as_target,
    run,
)
from gradlogp.core import Injected, sum_event
from gradlogp.distributions.targets import SkewedGumbel
from gradlogp.langevin import MALA, ULA
from gradlogp.langevin.kernels.steps import MetropolisInfo, MetropolisState
from gradlogp.langevin.kernels.tempering import ParallelTempering, swap_log_ratio


@dataclass(frozen=True)
class Still:
    """A kernel that moves nothing: what is left is swaps."""

    step_size: float
    temperature: float = 1.0

    def init(self, x, target):
        return MetropolisState(x, target.score(x), target.log_prob(x))

    def step(self, state, target, *, generator=None):
        zero = torch.zeros(len(state.x))
        return state, MetropolisInfo(zero, zero > 0, state.log_prob, zero > 0)


def with_replicas(kernel, replicas, target):
    """A state of the kernel with given replicas `(chain, ladder, *event)`."""
    flat = replicas.flatten(0, 1)
    shape = replicas.shape[:2]
    return kernel.init(replicas[:, 0], target)._replace(
        replicas=replicas,
        scores=target.score(flat).reshape(replicas.shape),
        log_probs=target.log_prob(flat).reshape(shape),
    )


@pytest.mark.parametrize(("betas", "d"), [((1.0, 0.5), 10), ((1.0, 0.8), 100), ((1.5, 0.2), 2)])
def test_swap_acceptance_of_gaussians(betas, d, generator):
    """2 I_{β₂/(β₁+β₂)}(d/2, d/2) for replicas that have their laws; a wrong sign gives 1 − …."""
    taus = tuple(1 / b for b in betas)
    target = as_target(score=lambda x: -x, log_prob=lambda x: -0.5 * sum_event(x**2))
    kernel = ParallelTempering(0.3 * d ** (-1 / 3), taus)
    scale = torch.tensor(taus).sqrt()[:, None]
    x = scale * torch.randn(10_000, 2, d, generator=generator)
    _, info = kernel.step(with_replicas(kernel, x, target), target, generator=generator)
    assert info.proposed.all()
    expected = 2 * betainc(d / 2, d / 2, betas[1] / sum(betas))
    assert abs(z_score(info.swap_acceptance[:, 0], expected)) < 4.5


def test_swaps_of_two_states_are_in_detailed_balance():
    """All 2^3 joint states of a density on {0, 1}: π(s) P(s, s') = π(s') P(s', s), exactly."""
    target = as_target(score=lambda x: 0 * x, log_prob=lambda x: 1.3 * x[:, 0])
    taus = (1.0, 2.0, 5.0)
    kernel = ParallelTempering(0.1, taus, kernel=Still)
    states = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    log_pi = (1.3 * states / torch.tensor(taus)).sum(1)
    code = lambda s: (s @ torch.tensor([4.0, 2.0, 1.0])).long()
    for round_ in (0, 1):  # even pairs, then odd ones
        state = with_replicas(kernel, states.unsqueeze(2), target)
        state = state._replace(step=torch.full((8,), round_))
        acceptance = kernel.step(state, target, generator=Injected(torch.ones(8, 2)))[1]
        pair = round_
        assert acceptance.proposed[:, pair].all()
        assert not acceptance.proposed[:, 1 - pair].any()
        P = torch.zeros(8, 8)
        a = acceptance.swap_acceptance[:, pair]
        swapped = kernel.step(state, target, generator=Injected(torch.zeros(8, 2)))[0]
        P[torch.arange(8), code(swapped.replicas[..., 0])] += a
        P[torch.arange(8), torch.arange(8)] += 1 - a
        close(P.sum(1), torch.ones(8), 1e-12)
        flow = log_pi.exp()[:, None] * P
        close(flow, flow.mT, 1e-12)
        assert float((P - P.mT).abs().max()) > 0.1  # the balance is not that of a flat law


def test_swap_ratio_by_hand(generator):
    log_probs, taus = torch.randn(5, 3, generator=generator), torch.tensor([1.0, 1.7, 4.0])
    ratio = swap_log_ratio(log_probs, taus)
    for i in range(2):
        there = log_probs[:, i + 1] / taus[i] + log_probs[:, i] / taus[i + 1]
        here = log_probs[:, i] / taus[i] + log_probs[:, i + 1] / taus[i + 1]
        close(ratio[:, i], there - here, 1e-12)


def test_replicas_travel_in_one_direction():
    """Where every swap is accepted a round trip takes 2R rounds, and no replica turns back."""
    flat = as_target(score=lambda x: 0 * x, log_prob=lambda x: 0 * x[:, 0])
    R = 5
    kernel = ParallelTempering(0.1, tuple(range(1, R + 1)), swap_every=2, kernel=Still)
    start = kernel.init(torch.zeros(1, 1), flat)
    x = torch.arange(float(R)).reshape(1, R, 1)
    state, path = with_replicas(kernel, x, flat), [start.origin[0]]
    for k in range(4 * R):
        state, info = kernel.step(state, flat, generator=torch.Generator())
        assert info.proposed.any() == bool(k % 2)
        if k % 2:
            path.append(state.origin[0])
        assert torch.equal(state.replicas[0, :, 0], state.origin[0].double())
    place = torch.stack(path).argsort(1)  # where each replica is after each round
    assert torch.equal(place[2 * R], place[0])
    assert not torch.equal(place[R], place[0])
    first = place[:, 0].tolist()
    assert first == [0, 1, 2, 3, 4, 4, 3, 2, 1, 0, 0]
    assert kernel.facts.reversible is False
    assert kernel.facts.exact is kernel.facts.draws is None  # of a kernel that says nothing


def test_a_swap_carries_everything(generator):
    target = SkewedGumbel(2)
    kernel = ParallelTempering(0.3, (1.0, 1.5, 3.0))
    state = kernel.init(torch.randn(50, 2, generator=generator), target)
    for _ in range(6):
        state, info = kernel.step(state, target, generator=generator)
        flat = state.replicas.flatten(0, 1)
        close(state.scores.flatten(0, 1), target.score(flat), 1e-12)
        close(state.log_probs.flatten(), target.log_prob(flat), 1e-12)
        assert torch.equal(state.x, state.replicas[:, 0])
        assert torch.equal(state.score, state.scores[:, 0])
        assert torch.equal(info.log_prob, state.log_prob)
        assert torch.equal(state.log_prob, state.log_probs[:, 0])
        assert torch.equal(state.origin.sort(1).values, torch.arange(3).expand(50, 3))
    assert (state.origin != torch.arange(3)).any()


def test_one_temperature_is_the_kernel_itself(generator):
    target, x0 = SkewedGumbel(), torch.randn(8, 1, generator=generator)
    z, u = torch.randn(8, 1, generator=generator), torch.rand(8, generator=generator)
    one = ParallelTempering(0.4, (1.0,))
    new, info = one.step(one.init(x0, target), target, generator=Injected(z, u, torch.zeros(8, 0)))
    close(
        new.x,
        MALA(0.4).step(MALA(0.4).init(x0, target), target, generator=Injected(z, u))[0].x,
        1e-12,
    )
    assert info.swap_acceptance.shape == (8, 0)


def test_all_replicas_keep_their_laws(generator):
    """Exact draws of N(0, τ) stay so, which fails if swaps take the wrong sign."""
    taus, n = (1.0, 2.0, 4.0), 20_000
    target = Gaussian([0.0, 0.0, 0.0], 1.0)
    kernel = ParallelTempering(0.3, taus)
    scale = torch.tensor(taus).sqrt()[:, None]
    state = with_replicas(kernel, scale * torch.randn(n, 3, 3, generator=generator), target)
    for _ in range(12):
        state, _ = kernel.step(state, target, generator=generator)
    for r, tau in enumerate(taus):
        square = state.replicas[:, r, 0].square()
        assert abs(z_score(square, tau)) < 4.5
    assert abs(z_score(state.x[:, 1], 0.0)) < 4.5
    assert float((state.origin[:, 0] != 0).double().mean()) > 0.5


def test_it_crosses_where_one_temperature_does_not(generator):
    """All start in the left well of a mixture; MALA alone never leaves it."""
    target = GaussianMixture([0.3, 0.7], torch.tensor([[-6.0], [6.0]]), 1.0)
    x0 = torch.full((400, 1), -6.0)
    ladder = ParallelTempering(0.8, (1.0, 2.5, 6.0, 15.0, 40.0))
    x = run(ladder, target, x0, 150, 149, generator=generator).state.x[:, 0]
    right = (x > 0).double()
    assert abs(z_score(right, 0.7)) < 4.5
    assert abs(z_score((x - 6 * x.sign()).square(), 1.0)) < 4.5
    alone = run(ParallelTempering(0.8, (1.0,)), target, x0, 150, 149, generator=generator).state.x
    assert float((alone > 0).double().mean()) == 0


def test_dtype_and_refusals(generator, as_user):
    kernel = ParallelTempering(0.1, (1.0, 2.0))
    new, info = kernel.step(
        kernel.init(torch.zeros(3, 2, 2), as_target(log_prob=lambda x: -sum_event(x**2))),
        as_target(log_prob=lambda x: -sum_event(x**2)),
        generator=generator,
    )
    assert new.replicas.shape == (3, 2, 2, 2)
    single = kernel.step(
        kernel.init(torch.zeros(3, 1).float(), SkewedGumbel()), SkewedGumbel(), generator=generator
    )
    assert single[0].x.dtype == single[1].swap_acceptance.dtype == torch.float32
    assert not info.diverging.any()
    for wrong, message in (
        (lambda: ParallelTempering(0.1, (2.0, 1.0)), "increasing"),
        (lambda: ParallelTempering(0.1, ()), "increasing"),
        (lambda: ParallelTempering(0.1, (1.0, math.inf)), "finite"),
        (lambda: ParallelTempering((0.1,), (1.0, 2.0)), "step_size"),
        (lambda: ParallelTempering(-0.1), "step_size"),
        (lambda: ParallelTempering(0.1, swap_every=0), "swap_every"),
        (
            lambda: ParallelTempering(0.1, kernel=ULA).init(torch.zeros(2, 1), SkewedGumbel()),
            "MALA",
        ),
        (lambda: kernel.init(torch.zeros(3, 1), as_target(score=lambda x: -x)), "log-density"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
