"""The adaptive solver: order, tolerance, and samples that do not see one another."""

import math

import pytest
import torch
from support import close

from gradlogp.calculus.ode import A, C, E, integrate


def oscillator(y, t):
    """y'' = −y as a system; exact flow is a rotation."""
    return torch.stack([y[:, 1], -y[:, 0]], 1)


def test_tableau_satisfies_the_conditions_of_order_five():
    """Row sums, and the quadrature conditions Σ b c^k = 1/(k + 1) of order 5 and of the lower one."""
    for row, c in zip(A, C, strict=True):
        close(sum(row), c, 1e-14)
    nodes, b = [0.0, *C], [*A[-1], 0.0]
    lower = [high - difference for high, difference in zip(b, E, strict=True)]
    for weights, order in ((b, 5), (lower, 4)):
        for k in range(order):
            close(sum(w * c**k for w, c in zip(weights, nodes, strict=True)), 1 / (k + 1), 1e-14)
    close(sum(E), 0.0, 1e-14)


@pytest.mark.parametrize("span", [(0.0, 7.0), (3.0, -2.0)])
def test_error_follows_the_tolerance(span, generator):
    y, (start, end) = torch.randn(5, 2, generator=generator), span
    turn = end - start
    R = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    errors = []
    for tolerance in (1e-5, 1e-10):
        found = integrate(oscillator, y, start, end, rtol=tolerance, atol=tolerance)
        errors.append(float((found.y - y @ R.mT).abs().max()))
        assert errors[-1] < float(found.error.max()) * 3  # an estimate; a rotation carries it on
    assert errors[0] < 1e-3
    assert errors[1] < 1e-8
    assert errors[1] > 0


def test_time_enters_the_field_per_sample(generator):
    """dy/dt = 2 t k: y = t² k, though steps differ from sample to sample."""
    rate = torch.tensor([[1.0], [100.0]])
    field = lambda y, t: 2 * t[:, None] * rate + 0 * y
    found = integrate(field, torch.zeros(2, 1), 0.0, 2.0, rtol=1e-8, atol=1e-8)
    close(found.y, 4 * rate, 1e-10)


def test_samples_take_steps_of_their_own(generator):
    rate = torch.tensor([[1.0], [40.0]])
    field = lambda y, t: rate[: len(y)] * torch.stack([y[:, 0]], 1) * -1.0
    both = integrate(field, torch.ones(2, 1), 0.0, 1.0, rtol=1e-6, atol=1e-6)
    alone = integrate(field, torch.ones(1, 1), 0.0, 1.0, rtol=1e-6, atol=1e-6)
    assert torch.equal(both.y[:1], alone.y)
    assert int(both.accepted[0]) == int(alone.accepted[0]) < int(both.accepted[1])
    close(both.y[1, 0], math.exp(-40.0), 1e-6)


def test_what_a_tolerance_is_relative_to(generator):
    """Relative to 1 it is an absolute one, to the bit; to a thousandth, a thousand times tighter."""
    y, ones = torch.randn(3, 2, generator=generator), lambda y, moved: torch.ones_like(y)
    solve = lambda rtol, atol, **how: integrate(
        oscillator, y, 0.0, 2.0, rtol=rtol, atol=atol, **how
    )
    absolute, same = solve(0.0, 1e-6), solve(1e-6, 0.0, size=ones)
    tight = solve(1e-3, 0.0, size=lambda y, m: 1e-3 * ones(y, m))
    assert torch.equal(same.y, absolute.y)
    assert torch.equal(same.accepted, absolute.accepted)
    close(tight.y, absolute.y, 1e-12)
    one_sample = solve(1e-6, 0.0, size=lambda y, m: y.new_ones(3, 1))
    assert torch.equal(one_sample.y, absolute.y)


def test_every_sample_may_have_an_end_of_its_own(generator):
    y, ends = torch.randn(3, 2, generator=generator), torch.tensor([1.5, 0.0, -2.0])
    tight = {"rtol": 1e-7, "atol": 1e-7}
    together = integrate(oscillator, y, 0.0, ends, **tight)
    for i, end in enumerate(ends.tolist()):
        alone = integrate(oscillator, y[i : i + 1], 0.0, end, **tight)
        close(together.y[i : i + 1], alone.y, 1e-14)
        assert together.accepted[i] == alone.accepted[0]
    assert torch.equal(together.y[1], y[1])
    assert together.part.tolist() == [1, 1, 1]


def test_a_partial_path_says_how_far_it_came():
    """dy/dt = y² from 1 and −1: the first is infinite at t = 1, the second is −1/(1 + t)."""
    y = torch.tensor([[1.0], [-1.0]])
    found = integrate(
        lambda y, t: y.square(), y, 0.0, 2.0, rtol=1e-8, atol=1e-8, max_steps=300, partial=True
    )
    assert 0.499 < found.part[0] <= 0.5
    assert found.part[1] == 1
    assert found.accepted[0] + found.rejected[0] == 300
    close(found.y[1, 0], -1 / 3, 1e-7)


def test_derivatives_go_through_the_path():
    y = torch.tensor([[0.3], [1.2]], requires_grad=True)
    k = torch.tensor(0.7, requires_grad=True)
    found = integrate(lambda y, t: -k * y, y, 0.0, 1.5, rtol=1e-10, atol=1e-10)
    by_y, by_k = torch.autograd.grad(found.y.sum(), (y, k))
    close(by_y, torch.full_like(y, math.exp(-0.7 * 1.5)), 1e-8)
    close(by_k, float(-1.5 * found.y.detach().sum()), 1e-8)


def test_nothing_to_do():
    y = torch.ones(2, 1)
    found = integrate(oscillator, y, 1.0, 1.0, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.y, y)
    assert found.nfe == 0


def test_what_cannot_be_solved_is_an_error(as_user):
    blow_up = lambda y, t: y.square()  # reaches infinity at t = 1
    with pytest.raises(ArithmeticError, match=r"resolution of time|not enough"):
        integrate(blow_up, torch.ones(1, 1), 0.0, 2.0, rtol=1e-8, atol=1e-8, max_steps=400)
    with pytest.raises(ArithmeticError, match="not enough"):
        integrate(oscillator, torch.ones(1, 2), 0.0, 90.0, rtol=1e-9, atol=1e-9, max_steps=5)
    with pytest.raises(ArithmeticError, match="not finite"):
        integrate(lambda y, t: y / 0, torch.ones(1, 1), 0.0, 1.0, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="shape"):
        integrate(lambda y, t: y[:, :1], torch.ones(2, 2), 0.0, 1.0, rtol=1e-3, atol=1e-3)


def test_a_step_that_was_refused_leaves_no_trace_in_derivatives():
    """dy/dt = −y³ from 50: first attempts overflow, y(1) = y/√(1 + 2y²) has a finite slope."""
    y = torch.tensor([[1.0], [50.0]], requires_grad=True)
    found = integrate(lambda y, t: -y.pow(3), y, 0.0, 1.0, rtol=1e-8, atol=1e-8)
    assert int(found.rejected[1]) > 0
    close(found.y, y.detach() / (1 + 2 * y.detach() ** 2).sqrt(), 1e-6)
    slope = torch.autograd.grad(found.y.sum(), y)[0]
    close(slope, (1 + 2 * y.detach() ** 2) ** -1.5, 1e-5)


def test_the_last_attempt_counts():
    steps = int(
        integrate(oscillator, torch.ones(1, 2), 0.0, 1.0, rtol=1e-6, atol=1e-6).accepted[0]
    )
    tight = {"rtol": 1e-6, "atol": 1e-6}
    found = integrate(oscillator, torch.ones(1, 2), 0.0, 1.0, max_steps=steps, **tight)
    assert int(found.accepted[0]) == steps
    with pytest.raises(ArithmeticError, match="not enough"):
        integrate(oscillator, torch.ones(1, 2), 0.0, 1.0, max_steps=steps - 1, **tight)


KINKS = (0.3, 0.71)


def bent(y, t):
    """A rate whose slope jumps at `KINKS`, by much."""
    return (1 - 40 * (t - KINKS[0]).abs() + 30 * (t - KINKS[1]).abs()).unsqueeze(1).expand_as(y)


def integral_of_bent(t):
    pieces = [(-40, KINKS[0]), (30, KINKS[1])]
    return t + sum(c * ((t - k) * (t - k).abs() + k * k) / 2 for c, k in pieces)


@pytest.mark.parametrize("backwards", [False, True])
def test_steps_end_where_derivatives_jump(backwards):
    """The pair is exact for pieces of straight lines; across a kink it is not, and does not know."""
    ends = torch.tensor([0.2, 0.5, 1.0, 0.9], dtype=torch.float64)
    y = torch.zeros(4, 1)
    for stops, exact in ((KINKS, True), ((-1.0, *KINKS, 0.5, 2.0), True), ((), False)):
        field = (lambda y, t: -bent(y, -t)) if backwards else bent
        at = -ends if backwards else ends
        times = [-t for t in stops] if backwards else stops
        found = integrate(field, y, 0.0, at, rtol=1e-4, atol=1e-4, first_step=0.9, stops=times)
        error = (found.y[:, 0] - integral_of_bent(ends)).abs()
        if exact:
            assert float(error.max()) < 1e-13
        else:
            assert float(error.max()) > 1e-5


def test_a_step_cut_short_does_not_shorten_the_next():
    """A stop costs a step, and not the growth from a short one to long ones again."""
    attempts = []
    for stops in ((), (0.5, 0.5 + 1e-9)):
        found = integrate(
            lambda y, t: -y, torch.ones(1, 1), 0.0, 1.0, rtol=1e-6, atol=1e-6, stops=stops
        )
        attempts.append(int(found.accepted + found.rejected))
    assert attempts[1] <= attempts[0] + 2
