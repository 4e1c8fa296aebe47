"""Schedules against closed forms; drift and diffusion against what they must conserve."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import close
from torch.func import jvp

from gradlogp.core import Schedule
from gradlogp.noise.grids import likelihood_grid
from gradlogp.noise.schedules import (
    DDPM,
    EDM,
    SCHEDULES,
    VE,
    VP,
    Cosine,
    Levels,
    Rectified,
    SubVP,
    from_config,
    invert_log_snr,
)

BETAS = torch.linspace(1e-3, 0.3, 20, dtype=torch.float64)
SIGMAS = (20.0, 9.0, 3.0, 1.0, 0.4, 0.05)
ALL = [VE(), EDM(), VP(), SubVP(), Cosine(), Rectified(), DDPM(BETAS), Levels(SIGMAS)]
NAMES = [type(s).__name__ for s in ALL]
every_schedule = pytest.mark.parametrize("schedule", ALL, ids=NAMES)
INSIDE = torch.linspace(0.013, 0.987, 30, dtype=torch.float64)  # off the knots of both ladders


def derivative(f, t):
    return jvp(f, (t,), (torch.ones_like(t),))[1]


# ---------------------------------------------------------------------------- closed forms


def test_vp():
    s, t = VP(0.1, 20.0), torch.linspace(0, 1, 21)
    beta = 0.1 + 19.9 * t
    alpha, sigma = s(t)
    close(alpha, torch.exp(-(0.1 * t + 19.9 * t**2 / 2) / 2))
    close(alpha**2 + sigma**2, torch.ones(21))
    close(s.f(t), -beta / 2)
    close(s.g2(t), beta)  # at t = 0 as well, where sigma' is infinite
    assert float(s(torch.tensor(1.0))[0]) == pytest.approx(math.exp(-5.025), rel=1e-14)


def test_sub_vp_sigma_is_a_standard_deviation():
    s, t = SubVP(0.1, 20.0), torch.linspace(0, 1, 21)
    beta, alpha = 0.1 + 19.9 * t, VP(0.1, 20.0)(t)[0]
    close(s(t)[0], alpha)
    close(s(t)[1], 1 - alpha**2)
    close(s.f(t), -beta / 2)
    close(s.g2(t), beta * (1 - alpha**4))
    # the law of the SDE itself: variance with v' = 2 f v + g^2, v(0) = 0 is sigma^2, not sigma
    grid = torch.linspace(0, 1, 20_001)
    rate = s.g2(grid) / s(grid)[0] ** 2
    v = s(grid)[0] ** 2 * torch.cat([torch.zeros(1), torch.cumulative_trapezoid(rate, grid)])
    close(v[10_000], s(grid)[1][10_000] ** 2, rtol=1e-6)


def test_ve():
    s, t = VE(0.02, 30.0), torch.linspace(0, 1, 21)
    alpha, sigma = s(t)
    close(alpha, torch.ones(21))
    close(sigma, 0.02 * 1500**t)
    close(s.f(t), torch.zeros(21))
    close(s.g2(t), 2 * sigma**2 * math.log(1500))


def test_rectified():
    s, t = Rectified(), torch.linspace(0, 1, 21)[:-1]
    close(s(t), (1 - t, t))
    close(s.f(t), -1 / (1 - t))
    close(s.g2(t), 2 * t / (1 - t))
    close(s(torch.tensor(1.0)), (torch.tensor(0.0), torch.tensor(1.0)))


def test_cosine():
    s, t = Cosine(s=0.008, alpha_min=1e-3), torch.linspace(0, 1, 21)
    a0 = math.pi / 2 * 0.008 / 1.008
    turn = math.acos(1e-3 * math.cos(a0)) - a0
    a = a0 + turn * t
    alpha, sigma = s(t)
    close(alpha, a.cos() / math.cos(a0))
    close(alpha**2 + sigma**2, torch.ones(21))
    close(s.f(t), -turn * a.tan())
    close(s.g2(t), 2 * turn * a.tan(), rtol=1e-9)  # variance preserving: g^2 = -2 f
    assert float(alpha[-1]) == pytest.approx(1e-3, rel=1e-12)
    # the paper's alpha_bar, up to where its path ends
    u = a[:-1] * 2 / math.pi * 1.008 - 0.008  # the paper's t/T
    paper = lambda u: torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    close(alpha[:-1] ** 2, paper(u) / paper(torch.zeros(())))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosine_keeps_its_digits_near_the_data(dtype):
    """sigma ~ sqrt(2 a' tan(a0) t): no difference of nearly equal angles."""
    t = torch.tensor([1e-10, 1e-8, 1e-6], dtype=dtype)
    s = Cosine()
    a0 = math.pi / 2 * 0.008 / 1.008
    turn = math.acos(1e-3 * math.cos(a0)) - a0
    expected = (2 * turn * math.tan(a0) * t.double()).sqrt()
    close(s(t)[1].double(), expected, rtol=1e-4, atol=0)


def test_ddpm_is_its_table():
    s = DDPM(BETAS)
    T = len(BETAS)
    assert s.times.tolist() == [i / T for i in range(T, 0, -1)]
    abar = (1 - BETAS).cumprod(0)
    alpha, sigma = s(s.times.flip(0))
    close(alpha, abar.sqrt())
    close(sigma, (1 - abar).sqrt())
    close(s(torch.tensor(0.0)), (torch.tensor(1.0), torch.tensor(0.0)))
    middle = (torch.arange(T) + 0.5) / T  # log abar is linear from step to step
    rate = T * torch.log1p(-BETAS)
    close(s.f(middle), rate / 2)
    close(s.g2(middle), -rate)
    close(s(middle)[0] ** 2, (abar * torch.cat([torch.ones(1), abar[:-1]])).sqrt())


def test_ddpm_of_a_thousand_steps_is_the_vp_sde():
    s = DDPM(torch.linspace(1e-4, 0.02, 1000))
    close(s(INSIDE)[0], VP(0.1, 20.0)(INSIDE)[0], rtol=0.05, atol=1e-3)


def test_levels_hit_their_sigmas():
    s = Levels(SIGMAS)
    close(s.times, torch.linspace(1, 0, 6))
    alpha, sigma = s(s.times)
    close(alpha, torch.ones(6))
    close(sigma, torch.tensor(SIGMAS))
    middle = (s.times[1:] + s.times[:-1]) / 2
    high, low = torch.tensor(SIGMAS[:-1]), torch.tensor(SIGMAS[1:])
    close(s(middle)[1], (high * low).sqrt())
    close(s.g2(middle), 2 * high * low * 5 * (high / low).log())
    geometric = Levels([8.0, 4.0, 2.0, 1.0])
    close(geometric(INSIDE)[1], VE(1.0, 8.0)(INSIDE)[1])


# ---------------------------------------------------------------------------- what all share


@every_schedule
@pytest.mark.parametrize("v", [0.0, 0.3, 1.0, 4.0])
def test_the_sde_has_the_marginals_of_the_schedule(schedule, v):
    """d(alpha^2 v + sigma^2)/dt = 2 f (alpha^2 v + sigma^2) + g^2 for data of any variance v."""

    def variance(t):
        alpha, sigma = schedule(t)
        return alpha**2 * v + sigma**2

    right = 2 * schedule.f(INSIDE) * variance(INSIDE) + schedule.g2(INSIDE)
    close(derivative(variance, INSIDE), right, rtol=1e-9)
    h = 1e-5
    slope = (variance(INSIDE + h) - variance(INSIDE - h)) / (2 * h)
    close(slope, right, rtol=1e-5, atol=1e-6)


@every_schedule
def test_drift_and_diffusion_from_the_log_snr(schedule):
    t = INSIDE
    alpha, sigma = schedule(t)
    close(schedule.log_snr(t), torch.log(alpha**2 / sigma**2), rtol=1e-9)
    close(schedule.f(t), derivative(lambda u: schedule(u)[0].log(), t), rtol=1e-9)
    close(schedule.g2(t), -(sigma**2) * derivative(schedule.log_snr, t), rtol=1e-9)
    rates = schedule.rates(t)
    h = 1e-5
    for i in (0, 1):
        slope = (schedule(t + h)[i] - schedule(t - h)[i]) / (2 * h)
        close(rates[i], slope, rtol=1e-5, atol=1e-6)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_dtype_and_finite_rates(schedule, dtype):
    t = torch.tensor([[0.0, 1e-6, 0.2], [0.5, 0.9, 0.999]], dtype=dtype)
    for value in (*schedule(t), schedule.f(t), schedule.g2(t)):
        assert value.shape == t.shape
        assert value.dtype == dtype
        assert value.isfinite().all()
    assert (schedule.g2(t) >= 0).all()
    for i in range(2):  # a scalar is a batch of one
        for j in range(3):
            close(schedule(t[i, j]), tuple(v[i, j] for v in schedule(t)), rtol=1e-5, atol=1e-12)
            close(schedule.g2(t[i, j]), schedule.g2(t)[i, j], rtol=1e-5, atol=1e-12)


@every_schedule
def test_single_precision_agrees_with_double(schedule):
    t = torch.tensor([0.01, 0.1, 0.5, 0.9])
    for name in ("__call__", "f", "g2", "log_snr"):
        double, single = getattr(schedule, name)(t), getattr(schedule, name)(t.float())
        for a, b in zip(double, single, strict=True):
            close(b.double(), a, rtol=2e-4, atol=1e-6)


@st.composite
def configs(draw):
    low, ratio = draw(st.floats(1e-3, 1.0)), draw(st.floats(2.0, 1e4))
    betas = draw(st.lists(st.floats(1e-4, 0.5), min_size=1, max_size=12))
    beta_min = draw(st.floats(0.01, 1.0))
    vp = {"beta_min": beta_min, "beta_max": beta_min + draw(st.floats(0.0, 25.0))}
    sigmas = [low]
    for b in betas:
        sigmas.insert(0, sigmas[0] * (1 + 5 * b))
    arguments = {
        "VE": {"sigma_min": low, "sigma_max": low * ratio}, "VP": vp, "SubVP": vp,
        "EDM": {"sigma_min": low, "sigma_max": low * ratio, "rho": 1 + 10 * low},
        "Cosine": {"s": draw(st.floats(1e-3, 0.1))}, "Rectified": {},
        "DDPM": {"betas": betas}, "Levels": {"sigmas": sigmas},
    }  # fmt: skip
    name = draw(st.sampled_from(NAMES))
    return {"name": name} | arguments[name]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(config=configs(), a=st.floats(0.0, 1.0), b=st.floats(0.0, 1.0))
def test_log_snr_falls(config, a, b):
    schedule = from_config(config)
    t, s = max(a, b), min(a, b)
    ends = torch.tensor([s, t], dtype=torch.float64)
    alpha, sigma = schedule(ends)
    assert ((alpha >= 0) & (alpha <= 1) & (sigma >= 0)).all()
    assert alpha[1] <= alpha[0] + 1e-15
    if t - s > 1e-6:
        assert sigma[1] > sigma[0] or sigma[1] > 1 - 1e-6  # saturates in the last digit at 1
        low, high = schedule.log_snr(ends).flip(0)
        assert low < high
    inside = ends.clamp(1e-3, 1 - 1e-3)
    assert (schedule.g2(inside) > 0).all()
    assert (schedule.f(inside) <= 0).all()


@every_schedule
def test_invert_log_snr(schedule):
    for n in (1, 15, 300, 2000):  # six bits at a time, three, and one
        times = torch.linspace(0.01, 0.99, n)
        close(invert_log_snr(schedule, schedule.log_snr(times)), times, rtol=1e-9)
    beyond = invert_log_snr(schedule, torch.tensor([1e9, -1e9]), 0.01)
    close(beyond, torch.tensor([0.01, 1.0]), rtol=1e-9)


@every_schedule
def test_config_round_trip(schedule):
    config = json.loads(json.dumps({"name": type(schedule).__name__} | asdict(schedule)))
    again = from_config(config)
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert torch.equal(again(INSIDE)[1], schedule(INSIDE)[1])


def test_every_schedule_has_a_name_and_is_frozen():
    assert {c.__name__ for c in SCHEDULES} == set(NAMES)
    for schedule in ALL:
        assert isinstance(schedule, Schedule)
        with pytest.raises(AttributeError):
            schedule.sigma_min = 3.0
    assert [type(s).__name__ for s in ALL if s.times is not None] == ["DDPM", "Levels"]
    with pytest.raises(TypeError, match="abstract"):
        Schedule()  # type: ignore[abstract]


def test_a_schedule_of_ones_own_needs_only_the_map():
    class Circle(Schedule):
        def __call__(self, t):
            return torch.cos(1.5 * t), torch.sin(1.5 * t)

    t = torch.tensor([0.2, 0.9])
    close(Circle().f(t), -1.5 * torch.tan(1.5 * t))
    close(Circle().g2(t), 3.0 * torch.tan(1.5 * t))


# ---------------------------------------------------------------------------- bad arguments


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: VE(2.0, 1.0), "needs sigma_min < sigma_max, got 2"),
        (lambda: VP(2.0, 1.0), "beta_min must lie in"),
        (lambda: SubVP(2.0, 1.0), "beta_min must lie in"),
        (lambda: Cosine(s=0.0), "s must be positive and finite"),
        (lambda: Cosine(alpha_min=1.0), "alpha_min must lie in"),
        (lambda: DDPM([]), "the number of betas must be an integer of at least 1, got 0"),
        (lambda: DDPM([0.1, 1.0]), "betas must lie in"),
        (lambda: DDPM([0.0]), "betas must lie in"),
        (lambda: Levels([1.0]), "the number of sigmas must be an integer of at least 2, got 1"),
        (lambda: Levels([1.0, 2.0]), "decrease"),
        (lambda: Levels([1.0, 1.0]), "decrease"),
        (lambda: Levels([1.0, 0.0]), "positive"),
        (
            lambda: from_config({"name": "Linear"}),
            "unknown schedule: 'Linear'; one of VE, EDM, VP",
        ),
        (lambda: from_config({}), "unknown schedule: None"),
    ],
)
def test_refuses_bad_arguments(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_table_is_no_tensor_of_a_transformation():
    """First used inside torch.func, a schedule can still be copied."""
    import copy

    for schedule in (DDPM(BETAS), Levels(SIGMAS)):
        torch.func.grad(lambda u, s=schedule: s(u)[1])(torch.tensor(0.4))
        assert copy.deepcopy(schedule) == schedule


@pytest.mark.parametrize("spread", [1.0, 0.2, 4.0])
def test_the_times_of_a_likelihood_grow_apart_where_the_data_are_forgotten(spread):
    """Steps of log r are alike for r ≪ c, and as 1/√(1 + r/2c) asks at any r: their density."""
    schedule = VE(0.001 * spread, 200 * spread)
    times = likelihood_grid(schedule, 2001, 0.0, spread)
    assert times[[0, -1]].tolist() == [1.0, 0.0]
    r = schedule(times)[1] / spread
    steps, middle = -r.log().diff(), (r[1:] * r[:-1]).sqrt()
    density = (1 + middle / 2) ** -0.5
    close(steps * density, (steps * density).mean().expand(2000), rtol=1e-5)
    assert 9 < float(steps[0] / steps[-1]) < 11  # sqrt(101)
