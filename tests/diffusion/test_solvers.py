"""Solvers of the flow and the reverse SDE: exact laws, and orders of convergence."""

import itertools
import math

import pytest
import torch
from support import (
    COV,
    MEAN,
    MIXTURE,
    close,
    every_continuous,
    gauss_hermite,
    noised_law,
    order,
    start,
    step_law,
)

from gradlogp import ExactScore, Gaussian, GaussianMixture, evolve, time_grid
from gradlogp.core import Injected
from gradlogp.diffusion import (
    DDIM,
    AdaptiveFlow,
    Ancestral,
    Churn,
    DPMSolver,
    ExponentialAB,
    PredictorCorrector,
    ProbabilityFlow,
    ReverseSDE,
    UniPC,
)
from gradlogp.diffusion.transitions.multistep import exponential_weights
from gradlogp.noise.schedules import VE, VP, Rectified, invert_log_snr

DATA = Gaussian(MEAN, COV)
LINE = GaussianMixture([0.4, 0.6], torch.tensor([[-1.0], [1.5]], dtype=torch.float64), [0.3, 0.2])
HALF, LATER = torch.tensor([0.6, 0.35], dtype=torch.float64)


def exact_flow(schedule, x, t, s):
    """x_s of the probability flow of DATA, in the eigenbasis of COV."""
    (m_t, S_t), (m_s, S_s) = noised_law(schedule, t), noised_law(schedule, s)
    U = torch.linalg.eigh(COV)[1]
    ratio = ((U.mT @ S_s @ U).diag() / (U.mT @ S_t @ U).diag()).sqrt()
    return m_s + (x - m_t) @ U @ (ratio.unsqueeze(1) * U.mT)


# ---------------------------------------------------------------------------- multistep

MULTISTEP = [
    DPMSolver(1), DPMSolver(2), DPMSolver(3),
    *(ExponentialAB(k, kind) for k in (1, 2, 3, 4) for kind in ("epsilon", "x0")),
]  # fmt: skip
each_solver = pytest.mark.parametrize("solver", MULTISTEP, ids=str)


@pytest.mark.parametrize("h", [0.7, 2.5])
@pytest.mark.parametrize("growth", [-1.0, 1.0])
def test_weights_integrate_polynomials_against_the_exponential(growth, h):
    """Closed forms: ∫ e^{g(h−u)} u^n du by M_n = (n M_{n−1} − h^n)/g, M_0 = (e^{gh} − 1)/g."""
    offsets = [0.0, -0.4, -1.1, -1.3]
    weights = exponential_weights(offsets, h, growth)
    M = math.expm1(growth * h) / growth
    for n in range(4):
        found = sum(w * node**n for w, node in zip(weights, offsets, strict=True))
        close(found / max(1.0, abs(M)), M / max(1.0, abs(M)), 1e-13)
        M = ((n + 1) * M - h ** (n + 1)) / growth


@each_solver
@every_continuous
def test_order_of_a_step_after_exact_ones(solver, schedule, generator):
    """From exact states of a Gaussian's flow the next step errs by O(h^{k+1}), λ uniform."""
    end = torch.tensor(0.45)
    there = schedule.log_snr(end)
    x = torch.randn(8, 2, generator=generator) * 2
    score, errors = ExactScore(DATA, schedule), []
    for h in (0.02, 0.01):
        run = solver.begin()
        lam = there - 2 * h * torch.arange(solver.order, -1, -1, dtype=torch.float64)
        times = invert_log_snr(schedule, lam)
        for t, s in itertools.pairwise(times):
            out = run(exact_flow(schedule, x, end, t), t, s, score)
        errors.append(float((out - x).norm()))
    assert abs(float(order(errors)) - (solver.order + 1)) < 0.4, errors


REFERENCES = {}


def flow_end(schedule, x):
    """Where the flow of MIXTURE leads from x, to a tolerance far below what is tested."""
    if schedule not in REFERENCES:
        grid, score = torch.tensor([1.0, 0.02]), ExactScore(MIXTURE, schedule)
        out = evolve(AdaptiveFlow(1e-9, 1e-9), score, x, grid, denoise=False)
        REFERENCES[schedule] = out
    return REFERENCES[schedule]


ORDERS = [
    (DDIM(), 1, 40), (ProbabilityFlow(2), 2, 50), (ProbabilityFlow(4), 4, 25),
    (DPMSolver(2), 2, 40), (DPMSolver(3), 3, 80),
    (ExponentialAB(2), 2, 40), (ExponentialAB(3), 3, 80), (ExponentialAB(4), 3, 80),
    (ExponentialAB(3, "x0"), 3, 80), (ExponentialAB(4, "x0"), 4, 80), (UniPC(1), 2, 40),
    (UniPC(2), 3, 80), (UniPC(3), 3, 80), (Churn(0.0), 2, 40),
]  # fmt: skip
"""A solver, its order, and steps from where it shows."""
LOWER = (3, 5, 6, 8)
"""Those of which the same solver is there with a higher order, which begins as they do."""
DIFFERENT = [VE(0.05, 50.0), VP(), Rectified()]


@pytest.mark.parametrize(
    ("transition", "wanted", "n", "schedule"),
    [
        # each kind of solver with one schedule; the rest is slow
        pytest.param(
            *row, schedule, marks=() if i % 3 == j and i not in LOWER else pytest.mark.slow
        )
        for i, row in enumerate(ORDERS)
        for j, schedule in enumerate(DIFFERENT)
    ],
    ids=str,
)
def test_order_on_a_mixture(transition, wanted, n, schedule):
    """At least: with ε̂ order 4 shows only at more steps than these."""
    score = ExactScore(MIXTURE, schedule)
    x = start(schedule, (6, 2), generator=torch.Generator().manual_seed(5))
    expected, errors = flow_end(schedule, x), []
    for steps in (n, 2 * n):
        times = time_grid(schedule, steps + 1, t_min=0.02)
        out = evolve(transition, score, x, times, denoise=False)
        errors.append(float((out - expected).norm()))
    assert float(order(errors)) > wanted - 0.35, errors
    assert float(order(errors)) < wanted + 0.6 or isinstance(transition, ExponentialAB | UniPC), (
        errors
    )


@each_solver
@every_continuous
def test_a_step_without_memory_is_ddim(solver, schedule, generator):
    x = torch.randn(5, 2, generator=generator)
    score = ExactScore(MIXTURE, schedule)
    close(solver(x, HALF, LATER, score), DDIM()(x, HALF, LATER, score), 1e-12)


def test_two_values_of_dpm_solver_are_2m(generator):
    """The formula of the paper, with r and D written out."""
    schedule, score = VP(), ExactScore(MIXTURE, VP())
    t0, t1, t2 = torch.tensor([0.8, 0.6, 0.45])
    x0 = torch.randn(5, 2, generator=generator)
    run = DPMSolver(2).begin()
    x1 = run(x0, t0, t1, score)
    x2 = run(x1, t1, t2, score)
    lam = [0.5 * schedule.log_snr(t) for t in (t0, t1, t2)]
    h, r = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
    D = (1 + 1 / (2 * r)) * score.denoise(x1, t1) - 1 / (2 * r) * score.denoise(x0, t0)
    (_, b1), (a2, b2) = schedule(t1), schedule(t2)
    close(x2, b2 / b1 * x1 - a2 * torch.expm1(-h) * D, 1e-12)


@pytest.mark.parametrize("schedule", [VE(0.05, 50.0), VP(), Rectified()], ids=str)
def test_the_extrapolated_end_gains_two_orders_of_the_last_level(schedule, generator):
    """From exact states of a Gaussian's flow, σ/α halved: the end errs by O(r⁴) instead of O(r²)."""
    x0, score = MEAN + torch.randn(5, 2, generator=generator), ExactScore(DATA, schedule)
    slopes = []
    for extrapolate in (False, True):
        errors = []
        for r in (0.12, 0.06):
            lam = -2 * torch.tensor([1.3 * r, r]).log()
            before, last = invert_log_snr(schedule, lam)
            U = torch.linalg.eigh(COV)[1]
            w = (U.mT @ COV @ U).diag()

            def at(t, x0=x0, U=U, w=w):
                """The state of the flow that ends in x0."""
                a, b = schedule(t)
                return a * MEAN + (x0 - MEAN) @ U @ (
                    ((a**2 * w + b**2) / w).sqrt()[:, None] * U.mT
                )

            run = ExponentialAB(2, extrapolate=extrapolate).begin()
            run(at(before), before, last, score)
            out = run(at(last), last, None, score)
            errors.append(float((out - x0).norm()))
        slopes.append(float(order(errors)))
    assert abs(slopes[0] - 2) < 0.15
    assert abs(slopes[1] - 4) < 0.3


# ---------------------------------------------------------------------------- reverse SDE


@every_continuous
def test_exponential_reverse_step_is_the_ancestral_one(schedule, generator):
    x, z = torch.randn(2, 6, 2, generator=generator)
    score = ExactScore(MIXTURE, schedule)
    expected = Ancestral()(x, HALF, LATER, score, generator=Injected(z))
    close(ReverseSDE()(x, HALF, LATER, score, generator=Injected(z)), expected, 1e-11)
    close(DDIM(1.0)(x, HALF, LATER, score, generator=Injected(z)), expected, 1e-11)


@every_continuous
def test_euler_step_is_the_sde_written_out(schedule, generator):
    x, z = torch.randn(2, 6, 2, generator=generator)
    score, eta = ExactScore(MIXTURE, schedule), 0.7
    h, f, g2 = HALF - LATER, schedule.f(HALF), schedule.g2(HALF)
    drift = f * x - (1 + eta**2) / 2 * g2 * score(x, HALF)
    expected = x - h * drift + eta * (g2 * h).sqrt() * z
    out = ReverseSDE(eta, "euler")(x, HALF, LATER, score, generator=Injected(z))
    close(out, expected, 1e-12)


STOCHASTIC = [
    (ReverseSDE(1.0, "exponential"), 1), (ReverseSDE(1.0, "euler"), 1), (ReverseSDE(1.0, "heun"), 2),
    (ReverseSDE(0.5, "heun"), 2), (Ancestral(), 1), (DDIM(0.6), 1), (Ancestral("optimal"), 2),
]  # fmt: skip


@pytest.mark.parametrize(("transition", "wanted"), STOCHASTIC, ids=str)
@pytest.mark.parametrize("schedule", [VE(0.05, 8.0), VP()], ids=lambda s: type(s).__name__)
def test_weak_order_on_a_mixture(transition, wanted, schedule):
    """E x⁴ after a step from the exact law at t, by quadrature over x and z, against that at s."""
    (nodes, weights), (z_nodes, z_weights) = gauss_hermite(1, 60), gauss_hermite(1, 12)
    parts = [(0.4, -1.0, 0.3), (0.6, 1.5, 0.2)]
    errors = []
    for h in (0.008, 0.004):
        t, s = HALF, HALF - h
        (a_t, b_t), (a_s, b_s) = schedule(t), schedule(s)
        at_t = [a_t * m + (a_t**2 * v + b_t**2).sqrt() * nodes for _, m, v in parts]
        mass = torch.cat([w * weights for w, _, _ in parts])
        x = torch.cat(at_t).repeat_interleave(len(z_nodes), 0)
        z = z_nodes.repeat(len(mass), 1)
        out = transition(x, t, s, ExactScore(LINE, schedule), generator=Injected(z))
        measured = (out[:, 0].pow(4).reshape(len(mass), -1) @ z_weights) @ mass
        at_s = [(w, a_s * m, a_s**2 * v + b_s**2) for w, m, v in parts]
        exact = sum(w * (m**4 + 6 * m**2 * v + 3 * v**2) for w, m, v in at_s)
        errors.append(abs(float(measured - exact)))
    assert float(order(errors)) > wanted + 1 - 0.35, errors


@every_continuous
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim_is_the_formula_of_the_paper(schedule, eta, generator):
    x, z = torch.randn(2, 6, 2, generator=generator)
    score = ExactScore(MIXTURE, schedule)
    (a_t, b_t), (a_s, b_s) = schedule(HALF), schedule(LATER)
    std = eta * b_s / b_t * (b_t**2 - (a_t / a_s) ** 2 * b_s**2).sqrt()
    x0 = score.denoise(x, HALF)
    eps = (x - a_t * x0) / b_t
    expected = a_s * x0 + (b_s**2 - std**2).sqrt() * eps + std * z
    out = DDIM(eta)(x, HALF, LATER, score, generator=Injected(z))
    close(out, expected, 1e-10)
    if eta == 0:
        close(ProbabilityFlow(1)(x, HALF, LATER, score), expected, 1e-10)


# ---------------------------------------------------------------------------- optimal variance


@every_continuous
def test_optimal_variance_is_that_of_the_true_posterior(schedule, generator):
    """Var[x_s | x_t] of a mixture, entry by entry, from its law at s noised further to t."""
    x = 2 * torch.randn(6, 2, generator=generator)
    (a_t, b_t), (a_s, b_s) = schedule(HALF), schedule(LATER)
    a = a_t / a_s
    at_s = MIXTURE.noised(a_s, b_s)
    cov = at_s.posterior_cov(x, a, (b_t**2 - a**2 * b_s**2).sqrt())
    score = ExactScore(MIXTURE, schedule)
    step = lambda z: Ancestral("optimal")(x, HALF, LATER, score, generator=Injected(z))
    spread = step(torch.ones(6, 2)) - step(torch.zeros(6, 2))
    close(spread.square(), cov.diagonal(dim1=1, dim2=2), 1e-9)


def test_optimal_variance_by_probes(generator):
    """Exact in one probe where the Jacobian is diagonal: signs square to one."""
    density = Gaussian(MEAN, torch.tensor([1.5, 0.2]))
    schedule, x = VP(), torch.randn(7, 2, generator=generator)
    score, z = ExactScore(density, schedule), torch.randn(7, 2, generator=generator)
    exact = Ancestral("optimal")(x, HALF, LATER, score, generator=Injected(z))
    signs = torch.rand(7, 2, generator=generator)
    probed = Ancestral("optimal", n_probes=1)(x, HALF, LATER, score, generator=Injected(signs, z))
    close(probed, exact, 1e-12)


# ---------------------------------------------------------------------------- corrector, churn


def still(x, t, s, score, *, generator=None):
    """A predictor that does nothing."""
    return x


@pytest.mark.parametrize("q", [0.3, 0.9])
def test_corrector_by_level_is_langevin_with_step_two_q_squared_variance(q):
    """And never a longer one than the variance of the noise."""
    schedule = VP()
    step = step_law(PredictorCorrector(still, snr=q), DATA, schedule, HALF, LATER, 1)
    m, S = noised_law(schedule, LATER)
    h, P = min(2 * q**2, 1) * schedule(LATER)[1] ** 2, torch.linalg.inv(S)
    close(step.M, torch.eye(2) - h * P, 1e-12)
    close(step.b, h * P @ m, 1e-12)
    close(step.Q, 2 * h * torch.eye(2), 1e-12)


def test_corrector_by_sample_sets_each_ratio_on_its_own(generator):
    schedule, q = VP(), 0.1
    score = ExactScore(MIXTURE, schedule)
    x, z = torch.randn(2, 6, 2, generator=generator)
    move = PredictorCorrector(still, snr=q, rule="sample")
    out = move(x, HALF, LATER, score, generator=Injected(z))
    s = score(x, LATER)
    h = (2 * q**2 * 2 / s.square().sum(1, keepdim=True)).clamp(max=schedule(LATER)[1] ** 2)
    close(out, x + h * s + (2 * h).sqrt() * z, 1e-12)
    alone = move(x[2:3], HALF, LATER, score, generator=Injected(z[2:3]))
    close(alone, out[2:3], 1e-13)


@every_continuous
def test_churn_raises_the_law_to_the_level_above(schedule, generator):
    """Noise that leads from r to (1 + γ) r, and the flow from there."""
    x, z = torch.randn(2, 6, 2, generator=generator)
    score, gamma = ExactScore(MIXTURE, schedule), 0.2
    (a, b), t = schedule(HALF), HALF
    r = b / a
    t_hat = invert_log_snr(schedule, -2 * ((1 + gamma) * r).log())
    a_hat, b_hat = schedule(t_hat)
    close(b_hat / a_hat, (1 + gamma) * r, 1e-9)
    y = a_hat * (x / a + r * math.sqrt((1 + gamma) ** 2 - 1) * z)
    expected = ProbabilityFlow()(y, t_hat, LATER, score)
    close(Churn(gamma)(x, t, LATER, score, generator=Injected(z)), expected, 1e-9)
    quiet = Churn(gamma, r_min=float(2 * r))(x, t, LATER, score, generator=Injected())
    close(quiet, ProbabilityFlow()(x, t, LATER, score), 1e-12)
    top = torch.ones(())
    if schedule(top)[0] > 0:  # nothing is known above the largest level
        out = Churn(gamma)(x, top, LATER, score, generator=Injected())
        close(out, ProbabilityFlow()(x, top, LATER, score), 1e-12)


# ---------------------------------------------------------------------------- adaptive


@every_continuous
def test_adaptive_flow_meets_its_tolerance_on_a_gaussian(schedule, generator):
    t, end = torch.tensor(0.9), torch.tensor(0.02)
    x = torch.randn(6, 2, generator=generator) * 3
    expected, score = exact_flow(schedule, x, t, end), ExactScore(DATA, schedule)
    errors = []
    for tolerance in (1e-4, 1e-8):
        out = AdaptiveFlow(tolerance, tolerance)(x, t, end, score)
        errors.append(float((out - expected).abs().max()))
    assert errors[0] < 1e-2, errors
    assert errors[1] < 2e-7, errors


# ---------------------------------------------------------------------------- slips that were found


@pytest.mark.parametrize(
    "transition",
    [DDIM(), Ancestral(), ReverseSDE(), ReverseSDE(1.0, "heun"), ProbabilityFlow(4), DPMSolver(2)],
    ids=str,
)
def test_a_step_of_no_length_stays(transition, generator):
    """Also at full noise, where α = 0."""
    x, score = torch.randn(3, 2, generator=generator), ExactScore(DATA, Rectified())
    out = evolve(transition, score, x, torch.tensor([1.0]), denoise=False, generator=generator)
    close(out, x, 1e-12)


def test_runge_kutta_reaches_time_zero(generator):
    score, x = ExactScore(DATA, VP()), torch.randn(4, 2, generator=generator)
    out = evolve(ProbabilityFlow(4), score, x, time_grid(VP(), 30, t_min=0.0))
    close(out, evolve(ProbabilityFlow(4), score, x, time_grid(VP(), 60)), 0.02)
