"""The facts of every transition against what it does: counted, and followed on laws that are known."""

import itertools
import math
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from support import Counting, close, order

from gradlogp import ExactScore, Gaussian, as_score, evolve, time_grid
from gradlogp.calculus import affine_map
from gradlogp.core import Streams
from gradlogp.diffusion import transitions
from gradlogp.diffusion.transitions import (
    DDIM,
    AdaptiveFlow,
    Ancestral,
    AnnealedLangevin,
    Churn,
    Coloured,
    DPMSolver,
    ExponentialAB,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseSDE,
    UniPC,
)
from gradlogp.diffusion.transitions.annealed_kernels import ExponentialSteps, PreconditionedSteps
from gradlogp.diffusion.transitions.facts import UNKNOWN, facts_of, table
from gradlogp.inverse import DPSStep, Inpainting, Matrix, Observation, RePaint
from gradlogp.langevin import BAOAB, MALA, LeimkuhlerMatthews, PositionDependentULA, TamedULA
from gradlogp.noise.schedules import VE, VP, Rectified

SHOWN = [
    DDIM(), DDIM(0.7), ProbabilityFlow(1), ProbabilityFlow(2), ProbabilityFlow(4), AdaptiveFlow(),
    DPMSolver(2), DPMSolver(3), ExponentialAB(2), ExponentialAB(3), ExponentialAB(4), UniPC(1),
    UniPC(), Ancestral(), Ancestral("forward"), Ancestral("optimal"), ReverseSDE(),
    ReverseSDE(1.0, "euler"), ReverseSDE(1.0, "heun"), PredictorCorrector(), Churn(),
    AnnealedLangevin(), Coloured(),
]  # fmt: skip
"""Those of the table in the docs."""

EVERY = [
    *SHOWN,
    DPMSolver(1), UniPC(2), ExponentialAB(1), *(ExponentialAB(k, "x0") for k in (1, 2, 3, 4)),
    ExponentialAB(2, extrapolate=True), Ancestral("optimal", n_probes=2),
    *(ReverseSDE(0.0, method) for method in ("exponential", "euler", "heun")),
    ReverseSDE(0.5), ReverseSDE(0.5, "heun"), Churn(0.0), Churn(0.1, order=1), Churn(0.9, order=4),
    Churn(0.1, s_noise=1.1), PredictorCorrector(ReverseSDE(1.0, "heun"), n_steps=3),
    PredictorCorrector(DDIM(), rule="sample"), AnnealedLangevin(3, 1.0, BAOAB),
    AnnealedLangevin(3, 5.0, ExponentialSteps(0.0)),
    AnnealedLangevin(2, 0.2, PreconditionedSteps(0.3)),
    Coloured(1.0, DPMSolver(3)), Coloured(1.0, ReverseSDE(1.0, "heun")),
]  # fmt: skip

DATA = Gaussian(torch.tensor([0.7, -1.2], dtype=torch.float64), [[1.5, 0.6], [0.6, 0.5]])
SEEN = Observation(torch.tensor([[0.4]]), Matrix(torch.tensor([[1.0, 0.5]]).double()), 0.3)
ENTRY = Observation(torch.tensor([[0.4]]), Inpainting(torch.tensor([True, False])), 0)
SPARING = [
    AnnealedLangevin(4, 0.1, kernel)
    for kernel in (
        LeimkuhlerMatthews, TamedULA, MALA, PreconditionedSteps(1.0),
        partial(PositionDependentULA, G=torch.ones_like, divergence=torch.zeros_like),
    )
]  # fmt: skip
GUIDED = [DPSStep(Ancestral(), SEEN), RePaint(Ancestral(), ENTRY, 3), RePaint(DDIM(), ENTRY, 1)]
T, S, U = (torch.tensor(v, dtype=torch.float64) for v in (0.6, 0.4, 0.3))


def _id(transition):
    return re.sub(" at 0x[0-9a-f]+", "", str(transition))  # workers have to find the same ids


each = partial(pytest.mark.parametrize, "transition", ids=_id)


class Draws(Streams):
    """A source of noise that counts how often it is drawn from."""

    def __init__(self, seed=0):
        self.drawn, self.generator = 0, torch.Generator().manual_seed(seed)

    def draw(self, law, shape, like):
        self.drawn += 1
        return law(shape, generator=self.generator, dtype=like.dtype)


def started(transition):
    return transition.begin() if hasattr(transition, "begin") else transition


def test_every_transition_has_facts():
    classes = {v for v in vars(transitions).values() if isinstance(v, type)}
    assert classes == {type(transition) for transition in EVERY}
    assert classes == {type(transition) for transition in SHOWN}
    assert all(facts_of(t) is t.facts or facts_of(t) == t.facts for t in EVERY + GUIDED)
    assert facts_of(lambda *a, **k: a[0]) == UNKNOWN


@each([*EVERY, *GUIDED, *SPARING])
def test_evaluations_and_draws_are_counted(transition, generator):
    x = torch.randn(5, 2, generator=generator)
    score, noise = Counting(ExactScore(DATA, VP())), Draws()
    run = started(transition)
    first = run(x, T, S, score, generator=noise)
    facts = transition.facts
    if isinstance(transition, AdaptiveFlow):
        assert score.calls >= facts.evaluations
    else:
        assert score.calls == facts.evaluations
    assert noise.drawn == facts.draws
    again = transition(x, T, S, score, generator=Draws(1))
    assert torch.equal(again, first) == (facts.draws == 0)


@each([*EVERY, *GUIDED])
def test_leaving_alpha_zero(transition, generator, as_user):
    """From t = 1 of `Rectified`: refused by those that say so, finite from the others."""
    x, one = torch.randn(5, 2, generator=generator), torch.ones(())
    score = ExactScore(DATA, Rectified())
    if transition.facts.divides_by_alpha:
        with pytest.raises(ValueError, match=r"alpha|exponential"):
            transition(x, one, T, score, generator=generator)
    else:
        assert torch.isfinite(transition(x, one, T, score, generator=generator)).all()


@each([*EVERY, *GUIDED])
def test_memory(transition, generator):
    """A second step in a run differs from the same step alone where there is memory, and only there."""
    x, score = torch.randn(5, 2, generator=generator), ExactScore(DATA, VP())
    run = started(transition)
    y = run(x, T, S, score, generator=Draws())
    second = run(y, S, U, score, generator=Draws(1))
    alone = transition(y, S, U, score, generator=Draws(1))
    assert torch.equal(second, alone) != transition.facts.memory


@each([*EVERY, *GUIDED])
def test_samples_depend_neither_on_chunks_nor_on_batch_mates(transition, generator):
    score, x = ExactScore(DATA, VP()), torch.randn(7, 2, generator=generator)
    before, times = x.clone(), time_grid(VP(), 6)

    def carry(x, size=None):
        same = torch.Generator().manual_seed(3)
        return evolve(transition, score, x, times, generator=same, chunk_size=size)

    whole = carry(x)
    assert torch.equal(x, before)
    for size in (1, 3):
        close(carry(x, size), whole, 1e-11)
    wild = torch.cat([x[:1], 1e3 * x[1:]])
    close(carry(wild)[:1], whole[:1], 1e-11)
    assert carry(x.float()).dtype == torch.float32


@each([*EVERY, *GUIDED])
def test_wrong_shapes_are_refused(transition, as_user):
    """Of a score, which is never broadcast, and of times, which are one for all samples."""
    broken, exact = as_score(lambda x, t: -x[:, :1], "score", VP()), ExactScore(DATA, VP())
    with pytest.raises(ValueError, match="shape"):
        transition(torch.ones(3, 2), T, S, broken)
    with pytest.raises(ValueError, match="at one time"):
        transition(torch.zeros(2, 2), torch.tensor([0.5, 0.6]), S, exact)


BAD = {
    ReverseSDE: {"eta": [-0.1, math.inf], "method": ["milstein"]},
    DDIM: {"eta": [1.2]}, UniPC: {"order": [0, 4]}, DPMSolver: {"order": [4]},
    ExponentialAB: {"order": [5], "predicts": ["v"]}, ProbabilityFlow: {"order": [0, 3]},
    AdaptiveFlow: {"rtol": [-1.0, math.nan], "max_steps": [0]},
    PredictorCorrector: {"snr": [0.0], "n_steps": [0], "rule": ["batch"], "predictor": [DPMSolver()]},
    Churn: {"gamma": [-0.1], "r_min": [-1.0], "r_max": [-1.0], "order": [3]},
    Ancestral: {"variance": ["beta"], "n_probes": [0, 2]},  # probes are for the optimal one alone
    AnnealedLangevin: {"n_steps": [0], "relative_step": [0.0, 2.0, math.nan]},
}  # fmt: skip


@pytest.mark.parametrize("transition", BAD)
def test_bad_arguments(transition, as_user):
    for name, values in BAD[transition].items():
        for value in values:
            with pytest.raises(ValueError, match=name):
                transition(**{name: value})


# ---------------------------------------------------------------------------- order

HIGH, LOW, MEAN, VAR = 4.0, 0.05, 0.7, 1.96
"""From σ of about two deviations of the data: from 80, where x̂_0 is flat, orders look higher."""

LINE = Gaussian(torch.tensor([MEAN], dtype=torch.float64), VAR)
NARROW = Gaussian(torch.zeros(2, dtype=torch.float64), 0.2)
WIDE = VE(LOW, HIGH)  # log σ uniform in t


def ladder(n):
    """Times of σ from 2.6, below the largest so that there is room for more noise, to σ_min."""
    return torch.linspace(0.9, 0, n + 1, dtype=torch.float64)


def path_error(transition, n):
    """How far the flow of N(0.7, 1.96) from three points ends from where it should."""
    x = torch.tensor([[4.0], [-1.5], [0.2]], dtype=torch.float64)
    out = evolve(transition, ExactScore(LINE, WIDE), x, ladder(n), denoise=False)
    start = float(WIDE(torch.tensor(0.9))[1])
    ratio = math.sqrt((VAR + LOW**2) / (VAR + start**2))
    return float((out - MEAN - ratio * (x - MEAN)).norm())


def law_error(transition, n, data, schedule):
    """How far mean and covariance, exact at the start, end from those at σ_min."""
    score, times = ExactScore(data, schedule), ladder(n)
    law = data.noised(*schedule(times[0]))
    m, C = law.mean, law.cov
    for t, s in itertools.pairwise(times):
        step = affine_map(
            lambda x, g, t=t, s=s: transition(x, t, s, score, generator=g),
            2, transition.facts.draws,
        )  # fmt: skip
        m, C = step.law(m, C)
    end = data.noised(*schedule(times[-1]))
    return float((m - end.mean).norm() + (C - end.cov).norm())


LOOSE = AdaptiveFlow(1e6, 1e6)  # each interval in one step
PATHS = [t for t in EVERY if not t.facts.draws and not isinstance(t, AdaptiveFlow)]
AFFINE = [
    t for t in EVERY
    if t.facts.draws and not getattr(t, "n_probes", None) and getattr(t, "rule", "") != "sample"
]  # fmt: skip


@each(PATHS)
def test_order_of_the_path(transition):
    errors = [path_error(transition, n) for n in (40, 80, 160)]
    found = float(order(errors)[-1])
    assert abs(found - transition.facts.order) < 0.25, errors


def test_order_of_an_adaptive_flow_held_to_one_step():
    errors = [path_error(LOOSE, n) for n in (6, 12, 24)]
    assert float(order(errors)[-1]) > LOOSE.facts.order - 0.3, errors
    assert path_error(AdaptiveFlow(1e-10, 1e-10), 1) < 1e-8


@each(AFFINE)
def test_order_of_the_law(transition):
    wanted = transition.facts.order
    if wanted is None:  # a bias shows where the data are as narrow as the last noise
        errors = [law_error(transition, n, NARROW, VE(0.5, HIGH)) for n in (80, 160)]
        assert float(order(errors)[-1]) < 0.9, errors
        return
    n = 160 if "euler" in str(transition) else 40  # whose error changes its sign at first
    errors = [law_error(transition, k, DATA, WIDE) for k in (n, 2 * n)]
    assert abs(float(order(errors)[-1]) - wanted) < 0.25, errors


# ---------------------------------------------------------------------------- exact


def point_error(transition):
    """How far a step from the law of a point at t misses that at s, for one long step."""
    mean = torch.tensor([0.7, -1.2], dtype=torch.float64)
    score, schedule = ExactScore(Gaussian(mean, 0.0), VP()), VP()
    (a, b), (a_s, b_s) = schedule(T), schedule(U)
    step = affine_map(
        lambda x, g: transition(x, T, U, score, generator=g), 2, transition.facts.draws
    )
    m, C = step.law(a * mean, b**2 * torch.eye(2))
    return float((m - a_s * mean).norm() + (C - b_s**2 * torch.eye(2)).norm())


@each([t for t in EVERY if not t.facts.draws or t in AFFINE])
def test_on_which_data_a_step_is_exact(transition):
    stated = transition.facts.exact
    if isinstance(transition, AdaptiveFlow):
        assert stated is None
        return
    exact = point_error(transition) < 1e-9
    optimal = isinstance(transition, Ancestral) and transition.variance == "optimal"
    assert exact == (stated == "data that are one point" or optimal), stated


def test_exactness_that_is_not_of_a_point():
    """β on N(0, I) under VP; the optimal variance entry by entry."""
    assert Ancestral("forward").facts.exact == "N(0, I) under VP"
    unit = Gaussian(torch.zeros(2), 1.0)
    for variance, right in (("forward", True), ("posterior", False)):
        move = Ancestral(variance)
        step = affine_map(
            lambda x, g, move=move: move(x, T, U, ExactScore(unit, VP()), generator=g), 2, 1
        )
        C = step.law(torch.zeros(2), torch.eye(2))[1]
        assert torch.allclose(C, torch.eye(2), rtol=1e-11, atol=1e-11) == right
    assert Ancestral("optimal").facts.exact == "in the variance of every entry"  # test_solvers.py


# ---------------------------------------------------------------------------- the page


def test_the_page_shows_the_facts():
    page = Path(__file__).parents[2] / "docs" / "diffusion.md"
    assert table(SHOWN) in page.read_text(encoding="utf-8")
