"""NUTS: every transition probability enumerated, on a closed orbit and on windows of open ones."""

import itertools
import math

import pytest
import torch
from kernel_support import QUARTIC, SKEWED, cliff
from support import close, z_score

from gradlogp import as_target, run
from gradlogp.core import Injected, sum_event
from gradlogp.langevin import HMC, NUTS, AdjustedMCLMC

NORMAL = as_target(score=lambda x: -x, log_prob=lambda x: -sum_event(x**2) / 2)
STIFF = torch.tensor([1.0, 16.0]).double()
STRETCHED = as_target(score=lambda x: -STIFF * x, log_prob=lambda x: -sum_event(STIFF * x**2) / 2)


def orbit(target, x, p, h, steps):
    """The points of a leapfrog orbit, and H, from −steps to steps."""

    def go(x, p, h):
        points = []
        for _ in range(steps):
            p = p + h / 2 * target.score(x)
            x = x + h * p
            p = p + h / 2 * target.score(x)
            points.append((x, p))
        return points

    points = [*reversed(go(x, p, -h)), (x, p), *go(x, p, h)]
    x, p = (torch.cat(v) for v in zip(*points, strict=True))
    return x, p, sum_event(p**2) / 2 - target.log_prob(x)


def cells(edges):
    """Midpoints and lengths of the intervals between points of (0, 1)."""
    edges = torch.tensor(sorted({0.0, 1.0, *(float(e) for e in edges if 0 < e < 1)}))
    return (edges[1:] + edges[:-1]) / 2, edges.diff()


def choices(w, start, forward):
    """All that the uniform numbers of three doublings can decide, and how probable it is.

    `w` gives the weight of a point by its number on the orbit; `forward` are the directions.
    """
    low = high = start
    doubling, level = [], [[], []]
    for j, on in enumerate(forward):
        half = range(high + 1, high + 1 + 2**j) if on else range(low - 1, low - 1 - 2**j, -1)
        doubling.append([sum(map(w, half)) / sum(map(w, range(low, high + 1)))])
        for k in range(j):
            for i in range(0, 2**j, 2 ** (k + 1)):
                both = [w(n) for n in half[i : i + 2 ** (k + 1)]]
                level[k].append(sum(both[2**k :]) / sum(both))
        low, high = min(low, *half), max(high, *half)
    parts = [cells(edges) for edges in (*doubling, *level)]
    u = torch.cartesian_prod(*(mid for mid, _ in parts))
    chance = torch.cartesian_prod(*(length for _, length in parts)).prod(1)
    coins = torch.where(torch.tensor(forward), 0.0, 1.0).expand(len(u), 3)
    rest = torch.cat([u[:, 3:], torch.zeros(len(u), 1)], 1)
    return torch.stack([coins, u[:, :3], rest], 1), chance / 8


def transitions(kernel, target, xs, ps, w, starts):
    """P(end at x | start) as lists of ends and probabilities, one for each start, in one step."""
    noise, chance, momentum, x, count = [], [], [], [], []
    for i in starts:
        found = [choices(w, i, forward) for forward in itertools.product((True, False), repeat=3)]
        noise += [u for u, _ in found]
        chance.append(torch.cat([c for _, c in found]))
        n = len(chance[-1])
        count.append(n)
        x.append(xs(i).expand(n, -1))
        momentum.append(ps(i).expand(n, -1))
    state = kernel.init(torch.cat(x), target)
    source = Injected(torch.cat(momentum), torch.cat(noise))
    new, info = kernel.step(state, target, generator=source)
    assert not source.left
    close(torch.stack([c.sum() for c in chance]), torch.ones(len(starts)), 1e-12)
    return list(zip(new.x.split(count), chance, strict=True)), info, torch.cat(chance)


H12 = 2 * math.sin(math.pi / 12)
"""The step at which orbits of the oscillator close after twelve steps."""


def ring():
    """Points and weights of such an orbit."""
    x, p, H = orbit(NORMAL, torch.tensor([[1.0]]), torch.tensor([[0.5]]), H12, 12)
    close(x[12], x[24], 1e-13)
    return x[12:24], p[12:24], (-H[12:24]).softmax(0)


def ring_matrix(kernel):
    x, p, w = ring()
    found, info, chance = transitions(
        kernel, NORMAL, lambda i: x[i % 12], lambda i: p[i % 12], lambda i: w[i % 12], range(12)
    )
    T = torch.zeros(12, 12)
    for row, (ends, probability) in zip(T, found, strict=True):
        away = (ends - x.mT).abs()
        assert float(away.min(1).values.max()) < 1e-12
        row.index_add_(0, away.argmin(1), probability)
    return T, w, info, chance


ROWS = {
    0: ".0044228368 .6485267144 .1548361813 .0313965047 .0316767065 0 0 0 0 .0626315803 "
       ".0631905432 .0033189329",
    5: "0 0 .1220456469 .1872853042 .3164911724 .0000694406 .0032494923 .1529495512 .1548361813 "
       ".0313965047 .0316767065 0",
}  # fmt: skip
WEIGHTS = ".0823086647 .0815805891 .0825868842 .0843517400 .0851045470 .0840675750"


def numbers(text):
    return torch.tensor([float(v) for v in text.split()])


def test_the_transition_matrix_of_a_closed_orbit():
    T, w, info, _ = ring_matrix(NUTS(H12, 3))
    close(w, numbers(WEIGHTS).repeat(2), 1e-10)
    close(T.sum(1), torch.ones(12), 1e-12)
    for i, row in ROWS.items():
        close(T[i], numbers(row), 2e-10)
    assert float((w @ T - w).abs().max()) < 1e-15
    close(w[:, None] * T, (w[:, None] * T).mT, 1e-14)  # reversible
    assert not info.diverging.any()
    assert int(info.n_leapfrog.max()) == 7
    assert int(info.depth.max()) == 3


STARTS = [
    (QUARTIC, [1.2], [0.9], 0.5),
    (QUARTIC, [0.3], [-1.1], 0.5),
    (QUARTIC, [-1.0], [0.2], 0.5),
    (STRETCHED, [1.0, 0.1], [0.3, -0.5], 0.4),
    (SKEWED, [-2.0, 0.4], [0.7, 0.6], 0.9),
]


@pytest.mark.parametrize(("target", "x", "p", "h"), STARTS)
@pytest.mark.parametrize("worst", [1000.0, 0.05, 0.005])
def test_the_weight_of_a_point_is_what_comes_to_it(target, x, p, h, worst):
    """Σ w_i T(i, 0) = w_0 over all that can reach 0, on any target; also where H may not vary."""
    x, p, H = orbit(target, torch.tensor([x]), torch.tensor([p]), h, 14)
    w = (-H).softmax(0)
    at = lambda v: lambda i: v[14 + i]
    kernel = NUTS(h, 3, max_energy_error=worst)
    found, info, _ = transitions(kernel, target, at(x), at(p), at(w), range(-7, 8))
    into = [
        float(w[7 + k] * chance[((ends - x[14]).abs() < 1e-11).all(1)].sum())
        for k, (ends, chance) in enumerate(found)
    ]
    close(sum(into), float(w[14]), 1e-14)
    assert sum(into) - max(into) > 0.05 * float(w[14])
    assert info.diverging.any() == (worst < 0.01) or worst == 0.05


def test_the_acceptance_that_the_step_is_tuned_by(generator):
    """.92517 is the mean over all new points; that of the points kept would be larger."""
    n = 100_000
    state = (kernel := NUTS(1.0, 3)).init(torch.randn(n, 1, generator=generator), NORMAL)
    new, info = kernel.step(state, NORMAL, generator=generator)
    error = float(info.acceptance.std()) / math.sqrt(n)
    assert error < 6e-4
    assert abs(float(info.acceptance.mean()) - 0.92517) < 4.5 * error
    assert abs(z_score(new.x[:, 0].square(), 1.0)) < 4.5
    assert float(info.accepted.double().mean()) > 0.95


def test_one_step_from_exact_draws_where_mutants_are_off(generator):
    """h = 1, whose orbits close after six points: wrong rules move E x² by .15 to .23 in one step."""
    n = 20_000
    state = (kernel := NUTS(1.0)).init(torch.randn(n, 1, generator=generator), NORMAL)
    assert abs(z_score(kernel.step(state, NORMAL, generator=generator)[0].x[:, 0] ** 2, 1)) < 4.5


def test_orbits_that_go_round_in_every_doubling_are_seen_to_turn(generator):
    """N(0, I) at ε = .95: eight points go round more than once, five turn back."""
    state = (kernel := NUTS(0.95)).init(torch.randn(500, 30, generator=generator), NORMAL)
    _, info = kernel.step(state, NORMAL, generator=generator)
    assert int(info.n_leapfrog.max()) <= 7


# ---------------------------------------------------------------------------- conduct


def test_scores_are_counted_and_not_asked_of_chains_that_ended(generator):
    """`n_leapfrog` is the number of steps of each chain; in all hardly twice as many rows are moved."""
    moved = []
    target = as_target(
        score=lambda x: moved.append(len(x)) or 1 - x.exp(),
        log_prob=lambda x: sum_event(x - x.exp()),
    )
    x = torch.randn(400, 2, generator=generator)
    state = (kernel := NUTS(torch.linspace(0.02, 1.0, 400))).init(x, target)
    moved.clear()
    _, info = kernel.step(state, target, generator=generator)
    needed, longest = int(info.n_leapfrog.sum()), int(info.n_leapfrog.max())
    assert needed <= sum(moved) <= 2 * needed
    assert len(moved) >= longest > 10 * float(info.n_leapfrog.double().median())
    for n, depth in zip(info.n_leapfrog.tolist(), info.depth.tolist(), strict=True):
        assert 2 ** (depth - 1) <= n < 2**depth


@pytest.mark.parametrize(
    ("value", "diverging"), [(-math.inf, False), (math.nan, True), (math.inf, True)]
)
def test_a_point_outside_or_not_finite_ends_the_orbit(value, diverging):
    """At 0 with velocity 5 the first point is beyond 1; a half with such a point is thrown away."""
    target, kernel = cliff(value), NUTS(0.5)
    z, u = torch.tensor([[5.0], [0.1]]), torch.zeros(2, 3, 10)
    state = kernel.init(torch.zeros(2, 1), target)
    new, info = kernel.step(state, target, generator=Injected(z, u))
    assert info.diverging.tolist() == [diverging, False]
    assert info.accepted.tolist() == [False, True]
    assert info.n_leapfrog[0] == 1
    assert info.acceptance[0] == 0
    assert all(torch.isfinite(field).all() for field in (*new, *info))
    loud = NUTS(0.5, on_nonfinite="raise")
    if diverging:
        with pytest.raises(FloatingPointError, match="1 of 2 orbits"):
            loud.step(state, target, generator=Injected(z, u))
    else:
        assert torch.equal(loud.step(state, target, generator=Injected(z, u))[0].x, new.x)


def test_a_target_is_not_asked_about_what_is_not_finite(generator):
    def score(x):
        assert torch.isfinite(x).all()
        return torch.where(x.abs() > 2, torch.nan, -x)

    target = as_target(score=score, log_prob=lambda x: -sum_event(x**2) / 2)
    x = torch.randn(200, 2, generator=generator).clamp(-1.9, 1.9)
    state = (kernel := NUTS(0.3)).init(x, target)
    for _ in range(5):
        state, info = kernel.step(state, target, generator=generator)
    assert info.diverging.any()
    assert float(state.x.abs().max()) <= 2


def test_an_unstable_step_diverges(generator):
    """Far out on a quartic the energy of the first point is wrong by ten orders of magnitude."""
    x = torch.tensor([[10.0], [0.1]])
    new, info = (kernel := NUTS(0.5)).step(kernel.init(x, QUARTIC), QUARTIC, generator=generator)
    assert info.diverging.tolist() == [True, False]
    assert torch.equal(new.x[0], x[0])
    assert not torch.equal(new.x[1], x[1])


def test_it_is_hmc_of_one_step_at_depth_one(generator):
    """A tree of two points, taken with min(1, w'/w): the same rule as Metropolis."""
    n = 500
    x, z = torch.randn(2, n, 2, generator=generator)
    u, forward = torch.rand(n, generator=generator), torch.zeros(n, 3, 1)
    forward[:, 1, 0] = u
    one, two = NUTS(1.2, 1), HMC(1.2, 1)
    state = one.init(x, SKEWED)
    new, info = one.step(state, SKEWED, generator=Injected(z, forward))
    other, other_info = two.step(two.init(x, SKEWED), SKEWED, generator=Injected(z, u))
    assert torch.equal(info.accepted, other_info.accepted)
    close(info.acceptance, other_info.acceptance, 1e-12)
    close(info.energy, other_info.energy, 1e-12)
    close(new.x, other.x, 1e-12)
    assert 0.3 < float(info.accepted.double().mean()) < 0.98


@pytest.mark.parametrize("h", [torch.tensor([0.1, -1.0]), torch.ones(2, 2)])
def test_bad_steps_are_refused(h, as_user):
    with pytest.raises(ValueError, match="step_size"):
        NUTS(h)


@pytest.mark.parametrize(
    "kernel",
    [pytest.param(NUTS(0.02), marks=pytest.mark.slow), AdjustedMCLMC(50.0, 3)],
    ids=lambda k: type(k).__name__,
)
def test_the_step_size_is_tuned_to_the_acceptance_of_the_facts(kernel, generator):
    x = torch.randn(20, 5, generator=generator)
    chain = run(kernel, NORMAL, x, 170, burn_in=130, adapt=True, generator=generator)
    assert abs(float(chain.info.acceptance.mean()) - kernel.facts.target_acceptance) < 0.08
    assert abs(z_score(chain.draws[:, -1].flatten().square(), 1.0)) < 4.5
