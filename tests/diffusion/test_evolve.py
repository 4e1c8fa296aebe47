"""The drivers: which steps they take, whose noise they use, and where they start and end."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from support import (
    COV,
    LADDERS,
    MEAN,
    MIXTURE,
    clone,
    close,
    every_continuous,
    every_schedule,
    start,
)

from gradlogp import (
    MLP,
    ExactScore,
    Gaussian,
    GaussianMixture,
    ScoreModel,
    as_score,
    as_target,
    evolve,
    log_likelihood,
    run,
    time_grid,
)
from gradlogp.calculus import affine_map
from gradlogp.core import BLOCK, Moments, Streams, per_sample, rand_like, sum_event
from gradlogp.diffusion import (
    DDIM,
    AdaptiveFlow,
    Ancestral,
    AnnealedLangevin,
    Coloured,
    ProbabilityFlow,
    ReverseSDE,
    UniPC,
    plan_levels,
    plan_likelihood,
)
from gradlogp.diffusion.planning import MOST, _enough
from gradlogp.distributions import Joint
from gradlogp.noise import terminal
from gradlogp.noise.coordinates import AffineCoordinates
from gradlogp.noise.schedules import DDPM, EDM, VE, VP, Cosine, Levels, Rectified, SubVP

TRANSITIONS = [
    Ancestral(),
    Ancestral("forward"),
    ProbabilityFlow(1),
    ProbabilityFlow(2),
    AnnealedLangevin(2, 0.2),
]
names = lambda v: type(v).__name__
every_transition = pytest.mark.parametrize("transition", TRANSITIONS, ids=repr)


def grid(schedule, n=12, t_min=1e-2):
    return time_grid(schedule, n, t_min=t_min)


def noisy(score, schedule=None):
    """A plain function of (z, t) as a noisy score."""
    return as_score(score, "score", schedule or VP())


# ---------------------------------------------------------------------------- evolve


@every_transition
@every_schedule
def test_a_point_mass_comes_back_as_a_point(transition, schedule, generator):
    """The last step denoises at the level it is at, so that no noise is left at all."""
    point = Gaussian([3.0, -40.0], 0.0)
    score = ExactScore(point, schedule)
    x = start(schedule, (50, 2), point.mean, 0.0, generator)
    times = grid(schedule)
    out = evolve(transition, score, x, times, generator=generator)
    close(out, point.mean.expand(50, 2), 1e-11)
    left = evolve(transition, score, x, times, generator=generator, denoise=False)
    a, b = schedule(times[-1])
    spread = float((left - a * point.mean).std() / b)
    assert spread > 0.7  # at the noise level of the last time or above


def test_evolve_takes_the_announced_steps(generator):
    calls, seen, done = [], [], []

    def spy(x, t, s, score, *, generator=None):
        calls.append((float(t), None if s is None else float(s), len(x)))
        return x + 1

    x, score = torch.zeros(5, 2), noisy(lambda x, t: -x)
    times = torch.tensor([1.0, 0.5, 0.25])
    out = evolve(
        spy, score, x, times, generator=generator, chunk_size=3,
        callback=lambda x, t: seen.append((float(t), x.clone())),
        progress=lambda *steps: done.append(steps),
    )  # fmt: skip
    once = [(1.0, 0.5), (0.5, 0.25), (0.25, None)]
    assert calls == [(*c, 3) for c in once] + [(*c, 2) for c in once]
    assert done == [(i, 6) for i in range(1, 7)]
    assert [t for t, _ in seen] == [1.0, 0.5, 0.25] * 2
    assert [float(v[0, 0]) for _, v in seen] == [0.0, 1.0, 2.0] * 2
    assert [len(v) for _, v in seen] == [3, 3, 3, 2, 2, 2]
    assert torch.equal(out, torch.full((5, 2), 3.0))
    assert torch.equal(x, torch.zeros(5, 2))
    calls.clear()
    evolve(spy, score, x, times, denoise=False)
    assert calls[-1] == (0.25, 0.25, 5)


def test_evolve_leaves_no_graph():
    w = torch.ones((), requires_grad=True)
    out = evolve(Ancestral(), noisy(lambda x, t: -w * x), torch.ones(2, 1), grid(VP()))
    assert not out.requires_grad


BAD_TIMES = {
    "ascending": [0.1, 0.5, 1.0],
    "repeated": [1.0, 0.5, 0.5],
    "beyond one": [1.5, 0.5],
    "below zero": [1.0, -0.1],
    "empty": [],
    "matrix": [[1.0, 0.5]],
    "scalar": 1.0,
}


@pytest.mark.parametrize("case", BAD_TIMES)
def test_bad_times_are_refused(case, as_user):
    times = torch.tensor(BAD_TIMES[case])
    with pytest.raises(ValueError, match="times"):
        evolve(Ancestral(), noisy(lambda x, t: -x), torch.zeros(2, 2), times)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(4)}, "shape"),
        ({"x": torch.zeros(4, 2, dtype=torch.long)}, "floating"),
        ({"x": torch.zeros(0, 2)}, "empty"),
        ({"x": torch.tensor([[0.0, math.nan]])}, "finite"),
        ({"transition": lambda x, t, s, score, generator: x[:, :1]}, "shape"),
        ({"chunk_size": 2, "generator": Streams(0, 0, 4, 4)}, "chunk"),
        ({"score": lambda x, t: -x}, "as_score"),
    ],
)
def test_bad_evolutions_are_refused(change, message, as_user):
    usual = {"transition": Ancestral(), "score": noisy(lambda x, t: -x), "x": torch.zeros(4, 2)}
    with pytest.raises(ValueError, match=message):
        evolve(**usual | change)


# ---------------------------------------------------------------------------- the start


@pytest.mark.parametrize("transition", [ProbabilityFlow(2), Ancestral(), Ancestral("forward")])
@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(0.01, 30.0), Cosine()], ids=names)
def test_data_far_from_the_origin(transition, schedule):
    """N(10, 1) end to end, its law carried exactly; N(0, σ_1²) as start is off."""
    n = 60
    times = time_grid(schedule, n)
    score = ExactScore(Gaussian([10.0], 1.0), schedule)

    def step(x, g):
        return evolve(transition, score, x, times, generator=g)

    law = affine_map(step, 1, 0 if isinstance(transition, ProbabilityFlow) else n - 1)
    a, b = schedule(torch.ones(()))
    m, C = law.law(a * torch.tensor([10.0]), (a**2 + b**2) * torch.eye(1))
    close(m, torch.tensor([10.0]), 1e-9)
    flow = isinstance(transition, ProbabilityFlow)
    assert abs(float(C[0, 0]) - 1) < (0.005 if flow else 0.25)
    wrong, _ = law.law(torch.zeros(1), b**2 * torch.eye(1))
    assert abs(float(wrong[0]) - 10) > 3 * abs(float(m[0]) - 10)
    if flow:  # forgets the start only as α_1, where the noisy ones forget it as α_1²
        assert abs(float(wrong[0]) - 10) > 5e-3


# ---------------------------------------------------------------------------- a number of samples

JOINT = Joint(
    GaussianMixture([0.4, 0.6], [[-1.0, 0.5, 0.0], [1.5, -0.5, 1.0]], [[0.3] * 3, [0.5] * 3]), 1
)
BLIND = [ReverseSDE(1.0, "heun"), AnnealedLangevin(2, 0.2)]


def knowing(score, **facts):
    """A score that knows moments in place of its law, so that chunks draw their own starts."""
    facts = {"moments": Moments(torch.zeros(2), torch.ones(2)), "event_shape": (2,), **facts}
    return as_score(score, "score", score.schedule, **facts)


@pytest.mark.parametrize("exact", [True, False], ids=["exact law", "moments"])
def test_drawn_samples_do_not_depend_on_chunks(exact, generator):
    score, times = ExactScore(Gaussian(MEAN, COV), VP()), time_grid(VP(), 5)
    score = score if exact else knowing(score)
    draw = lambda n, g, **options: evolve(Ancestral(), score, n, times, generator=g, **options)
    outs = [draw(11, clone(generator), chunk_size=size) for size in (None, 1, 4, 11, 50)]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=1e-12, atol=1e-12)
    assert len(outs[0].unique(dim=0)) == 11
    place = torch.full((11, 2), torch.nan)
    assert draw(11, clone(generator), chunk_size=4, out=place) is place
    assert torch.equal(place, outs[2])
    if exact:
        g = clone(generator)
        states = terminal(score).sample(11, generator=g)
        assert torch.equal(draw(states, g), outs[0])
    assert not torch.equal(draw(11, generator.manual_seed(1)), outs[0])


@pytest.mark.parametrize("size", [None, 1, 2, 3])
def test_conditions_follow_their_rows_through_chunks(size, generator):
    rows = torch.tensor([[0.7], [-1.3], [2.0], [0.0], [0.7]])
    exact, times = ExactScore(JOINT, VP()), time_grid(VP(), 8)
    x = torch.randn(5, 2, generator=generator)
    out = evolve(ProbabilityFlow(), exact.given(rows), x, times, chunk_size=size)
    for i in range(5):
        alone = evolve(ProbabilityFlow(), exact.given(rows[i : i + 1]), x[i : i + 1], times)
        torch.testing.assert_close(out[i : i + 1], alone, rtol=1e-12, atol=1e-12)
    assert float((out[0] - out[4]).abs().min()) > 1e-3  # one condition, two starts
    drawn = [
        evolve(Ancestral(), exact.given(rows), 5, times, generator=clone(generator), chunk_size=k)
        for k in (None, size)
    ]
    torch.testing.assert_close(drawn[1], drawn[0], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="5 rows"):
        evolve(Ancestral(), exact.given(rows), x[:3], times)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: evolve(Ancestral(), s, 4, torch.tensor([0.9, 0.5])), "needs a start at t = 1"),
        (lambda s: evolve(Ancestral(), knowing(s, event_shape=None), 4), "event_shape="),
        (lambda s: evolve(Coloured(2.0, Ancestral()), s, 4), "coloured noise"),
        (lambda s: evolve(Ancestral(), s, 0), "at least 1"),
        (lambda s: evolve(Ancestral(), s, -2), "at least 1"),
        (lambda s: evolve(Ancestral(), s, 4, out=torch.zeros(4, 3)), "must have shape"),
        (
            lambda s: evolve(Ancestral(), s, 4, out=torch.zeros(4, 2).float()),
            "must be torch.float64",
        ),
        (lambda s: evolve(Ancestral(), knowing(s, moments=None), 4), "moments="),
    ],
)
def test_what_cannot_be_drawn_is_refused(call, message, as_user):
    with pytest.raises(ValueError, match=message):
        call(ExactScore(Gaussian(MEAN, COV), VP()))


@pytest.mark.parametrize("transition", BLIND, ids=repr)
def test_full_noise_is_left_by_ddim(transition, generator):
    """Where α_1 = 0, of which these transitions make nothing, the first step is DDIM's."""
    score, times = ExactScore(Gaussian(MEAN, COV), Rectified()), time_grid(Rectified(), 6)
    x = torch.randn(5, 2, generator=generator)
    with pytest.raises(ValueError, match="alpha"):
        transition(x, times[0], times[1], score, generator=clone(generator))
    out = evolve(transition, score, x, times, generator=clone(generator))
    z = DDIM()(x, times[0], times[1], score)
    expected = evolve(transition, score, z, times[1:], generator=clone(generator))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    seen = []
    evolve(transition, score, 5, times, generator=generator, callback=lambda z, t: seen.append(z))
    close(seen[1], DDIM()(seen[0], times[0], times[1], score), 1e-12)
    early = evolve(transition, score, x, torch.tensor([1.0]), generator=generator)
    close(early, MEAN.expand(5, 2), 1e-12)  # one denoising, which says the mean


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_samples_come_back_in_the_units_and_the_dtype_of_the_data(dtype, generator):
    data = torch.tensor([[120.0, -3.01], [80.0, -2.99]], dtype=dtype)
    coordinates = AffineCoordinates.fit(data, torch.Size([2]))
    close(coordinates.scale, torch.tensor([20.0, 0.01]), 1e-6)
    model = ScoreModel(MLP(2, 8, generator=generator), VE(0.01, 10.0), "v").float()
    model.coordinates = coordinates
    times = time_grid(model.schedule, 4)
    z, x = (
        evolve(Ancestral(), model, 6, times, generator=clone(generator), denoise=end)
        for end in (False, True)
    )
    assert z.dtype == torch.float32  # model coordinates are those of the weights
    assert x.dtype == dtype
    tweedie = model.denoise(z, times[-1])
    expected = coordinates.shift + coordinates.scale * tweedie.double()
    close(x.double(), expected, 1e-5)
    bare = ScoreModel(model.network, model.schedule, "v").float()
    inside = evolve(Ancestral(), bare, 6, times, generator=clone(generator), denoise=False)
    assert torch.equal(inside, z)


def test_samples_that_became_nan_or_infinite_are_counted():
    """Two of three, and nothing is broadcast."""
    score = noisy(lambda x, t: torch.where(x.abs() > 1, torch.nan, -x))
    with pytest.raises(FloatingPointError, match="2 of 3 samples"):
        evolve(ProbabilityFlow(1), score, torch.tensor([[0.1], [4.0], [9.0]]), grid(VP()))


# ---------------------------------------------------------------------------- times


@every_continuous
@pytest.mark.parametrize(("n", "t_min"), [(2, 1e-3), (3, 1e-5), (40, 0.2), (300, 1e-3), (10, 0.0)])
def test_time_grid_of_a_schedule(schedule, n, t_min):
    times = time_grid(schedule, n, t_min=t_min)
    assert times.shape == (n,)
    assert times.dtype == torch.float64
    assert times[0] == 1
    assert times[-1] == t_min
    assert (times.diff() < 0).all()
    inner = times[1:-1]
    a, b = schedule(inner)
    first, last = ((b / a).clamp(max=1e3) for a, b in map(schedule, times[[0, -1]]))
    ramp = torch.linspace(0, 1, n)[1:-1]
    r = (first ** (1 / 7) + ramp * (last ** (1 / 7) - first ** (1 / 7))) ** 7
    torch.testing.assert_close(b / a, r, rtol=1e-8, atol=1e-10 if t_min == 0 else 0)


@pytest.mark.parametrize("schedule", [VE(0.02, 30.0), VP(), Rectified()], ids=str)
def test_times_uniform_in_log_r(schedule):
    times = time_grid(schedule, 9, rho=math.inf)
    log_r = -0.5 * schedule.log_snr(times).clamp(min=-2 * math.log(1e3))
    close(log_r.diff(), torch.full((8,), float(log_r[-1] - log_r[0]) / 8), 1e-6)


def test_time_grid_is_that_of_edm_on_ve():
    schedule, n = VE(0.002, 80.0), 18
    times = time_grid(schedule, n, t_min=0.0)
    i = torch.arange(n) / (n - 1)
    sigma = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    close(schedule(times)[1], sigma, 1e-9)
    ratios = time_grid(schedule, n, rho=3.0)
    assert float((schedule(ratios)[1] - sigma).abs().max()) > 1


@pytest.mark.parametrize("schedule", LADDERS, ids=names)
def test_time_grid_of_a_ladder(schedule):
    times = time_grid(schedule)
    assert torch.equal(times, schedule.times)
    if isinstance(schedule, Levels):
        close(schedule(times)[1], torch.tensor(schedule.sigmas), 1e-12)
    else:
        abar = (1 - torch.tensor(schedule.betas)).cumprod(0)
        close(schedule(times)[0].square(), abar.flip(0), 1e-12)


@pytest.mark.parametrize(
    "case",
    [
        lambda: time_grid(VP(), 1),
        lambda: time_grid(VP(), 0),
        lambda: time_grid(VP(), 10, t_min=1.0),
        lambda: time_grid(VP(), 10, t_min=-0.1),
        lambda: time_grid(VP(), t_min=math.nan),
    ],
)
def test_bad_grids_are_refused(case, as_user):
    with pytest.raises(ValueError):
        case()


def test_times_that_float64_cannot_tell_apart_are_refused():
    """Under VP σ² is about t near 0, and r⁷ of the 300th part of a grid is below what is resolved."""
    with pytest.raises(ValueError, match=r"6 of 300 times .* t_min > 0, such as 0.001"):
        time_grid(VP(), 300, t_min=0.0)
    assert (time_grid(VP(), 300, t_min=1e-6).diff() < 0).all()


# ---------------------------------------------------------------------------- run


class Count(NamedTuple):
    x: torch.Tensor


class Info(NamedTuple):
    step: torch.Tensor
    u: torch.Tensor


@dataclass(frozen=True)
class Counter:
    """A kernel whose state is the number of steps taken."""

    def init(self, x, target):
        return Count(x)

    def step(self, state, target, *, generator=None):
        x = state.x + 1
        return Count(x), Info(x[:, 0], rand_like(x[:, 0], generator))


NORMAL = as_target(score=lambda x: -x, log_prob=lambda x: -0.5 * sum_event(x**2))


@pytest.mark.parametrize("n_steps", [1, 7, 12])
@pytest.mark.parametrize("burn_in", [0, 3, 6])
@pytest.mark.parametrize("thin", [1, 2, 4])
def test_run_keeps_the_announced_draws(n_steps, burn_in, thin, as_user):
    if burn_in >= n_steps or thin > n_steps - burn_in:
        with pytest.raises(ValueError, match="keep no draw"):
            run(Counter(), NORMAL, torch.zeros(2, 1), n_steps, burn_in, thin)
        return
    seen, x0 = [], torch.zeros(2, 1)
    chain = run(
        Counter(), NORMAL, x0, n_steps, burn_in, thin, progress=lambda *steps: seen.append(steps)
    )
    kept = [step for step in range(1, n_steps + 1) if step > burn_in][thin - 1 :: thin]
    assert len(kept) == (n_steps - burn_in) // thin
    assert chain.draws[0, :, 0].tolist() == kept
    assert chain.info.step[1].tolist() == kept
    assert chain.state.x[:, 0].tolist() == [n_steps] * 2
    assert seen == [(i, n_steps) for i in range(1, n_steps + 1)]


# ---------------------------------------------------------------------------- chunks


def test_callers_streams_are_kept():
    """Two processes that each run half of the chains get those of one process."""
    n = BLOCK + 100
    x0, times = torch.zeros(n, 2), torch.linspace(1, 1e-3, 4)
    score = noisy(lambda x, t: -x * (1 + per_sample(t, x)))

    def part(start, stop):
        streams = Streams(5, start, stop, n)
        return evolve(Ancestral(), score, x0[start:stop], times, generator=streams)

    whole = part(0, n)
    halves = torch.cat([part(0, 600), part(600, n)])
    torch.testing.assert_close(halves, whole, rtol=1e-12, atol=1e-12)


SCHEDULES = [VE(0.05, 30.0), VP(), EDM()]


@pytest.mark.parametrize(
    ("schedule", "tolerance"),
    [
        pytest.param(
            s, e, marks=() if (type(s), e) in ((VP, 0.03), (EDM, 0.003)) else pytest.mark.slow
        )
        for s in SCHEDULES
        for e in (0.03, 0.003)
    ],
    ids=lambda v: type(v).__name__ if v in SCHEDULES else v,
)
def test_levels_leave_an_error_below_the_tolerance(schedule, tolerance, generator):
    """On their own draws, compared with the flow at a far smaller tolerance; half of them do not."""
    score = ExactScore(MIXTURE, schedule)
    plan = plan_levels(score, tolerance=tolerance, generator=generator)
    z = plan_start(score, generator)
    ends = [1.0, float(time_grid(schedule)[-1])]
    truth = evolve(AdaptiveFlow(1e-6, 1e-6), score, z, torch.tensor(ends, dtype=torch.float64))

    def error(n):
        x = evolve(UniPC(), score, z, time_grid(schedule, n, rho=math.inf))
        return float((x - truth).square().mean().sqrt() / truth.std(0).square().mean().sqrt())

    assert plan.error <= tolerance
    assert error(plan.n) < 3 * tolerance, plan  # the draws of the plan are 32
    assert error(plan.n // 2) > tolerance, plan


def plan_start(score, generator):
    return score.law(torch.tensor(1.0)).sample(100, generator=generator)


@pytest.mark.parametrize(
    "schedule",
    [pytest.param(s, marks=() if isinstance(s, VP) else pytest.mark.slow) for s in SCHEDULES],
    ids=lambda s: type(s).__name__,
)
def test_likelihood_within_the_tolerance(schedule, generator):
    score = ExactScore(MIXTURE, schedule)
    plan = plan_likelihood(score, generator=generator)
    x = MIXTURE.sample(20, generator=generator)
    truth = log_likelihood(score, x, tolerance=1e-4).log_prob
    errors = [
        float((log_likelihood(score, x, n_steps=n).log_prob - truth).square().mean().sqrt())
        for n in (plan.n, plan.n // 2)
    ]
    assert errors[0] < 5 * 0.005, (plan, errors)
    assert errors[1] > 0.005, (plan, errors)


@pytest.mark.parametrize(("how", "expected"), [((), 48), ((16,), 44), ((16, 0.7), 52)])
def test_numbers_between_powers_of_two_are_searched(how, expected):
    """n steps are off by 1000/n²: 32 by 0.73 from 64, and 64 by 0.18 from 128."""
    off = lambda n: torch.tensor(1000 / n**2)
    plan = _enough(off, lambda a, b: float((a - b).abs()), 0.5, *how)
    assert plan.n == expected
    assert plan.error == pytest.approx(1000 / expected**2 - 1000 / 128**2)


def test_where_nothing_is_enough_the_error_says_so(generator):
    plan = plan_levels(ExactScore(MIXTURE, VP()), tolerance=1e-12, generator=generator)
    assert plan.n == MOST
    assert 1e-12 < plan.error < 1e-4


def test_what_is_refused(generator):
    with pytest.raises(ValueError, match="discrete ladder"):
        plan_levels(ExactScore(MIXTURE, DDPM(torch.linspace(1e-4, 0.02, 50))), generator=generator)
    with pytest.raises(ValueError, match="no continuous flow"):
        plan_likelihood(ExactScore(MIXTURE, DDPM(torch.linspace(1e-4, 0.02, 50))))
    with pytest.raises(ValueError, match="Ancestral draws noise"):
        plan_levels(ExactScore(MIXTURE, VP()), Ancestral())


def test_a_probe_measures_the_same_steps(generator):
    """The error of the solver is that along one probe, the same for any number of steps."""
    score = ExactScore(MIXTURE, VP())
    exact = plan_likelihood(score, generator=generator)
    probed = plan_likelihood(score, divergence="hutchinson", generator=generator)
    assert 0.5 <= probed.n / exact.n <= 2
    assert probed.error < 0.005
