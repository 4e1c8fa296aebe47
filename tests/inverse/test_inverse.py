"""Posterior sampling: guided scores, steps and Langevin against posteriors in closed form."""

import math
from dataclasses import dataclass

import pytest
import torch
from support import COV, MEAN, close, gauss_hermite

from gradlogp import (
    ExactScore,
    Gaussian,
    GaussianMixture,
    as_score,
    evolve,
    log_likelihood,
    time_grid,
)
from gradlogp.calculus import affine_map
from gradlogp.check.conformance.transitions import Counting
from gradlogp.core import Injected, Moments, randn_like
from gradlogp.diffusion import DDIM, Ancestral, AnnealedLangevin, DPMSolver, ProbabilityFlow
from gradlogp.inverse import (
    DPS,
    AnnealedLikelihood,
    DPSStep,
    Identity,
    Inpainting,
    Matrix,
    MomentMatching,
    Observation,
    PiGDM,
    PosteriorTarget,
    RePaint,
    posterior,
)
from gradlogp.noise.schedules import VE, VP, Levels, Rectified

RNG = torch.Generator().manual_seed(1)
F64 = {"dtype": torch.float64}
ROOT4 = torch.randn(4, 4, generator=RNG, **F64)
LAW4 = Gaussian(torch.randn(4, generator=RNG, **F64), ROOT4 @ ROOT4.mT + 0.1 * torch.eye(4))
A24 = torch.randn(2, 4, generator=RNG, **F64)
Y2 = torch.tensor([[0.7, -1.3]], **F64)
R2 = torch.tensor([[0.5, 0.2], [0.2, 0.3]], **F64)
PLANE = Gaussian(MEAN, COV)
MIXTURE = GaussianMixture(
    [0.3, 0.5, 0.2], torch.tensor([[-1.5, 0.0], [1.0, 0.5], [0.0, 2.0]], **F64), 0.2
)
T = torch.tensor(0.4, **F64)
SKETCH = Matrix(torch.tensor([[1.0, 0.5]], **F64))
SEEN1 = Observation(torch.tensor([[0.4]], **F64), SKETCH, 0.3)
each_schedule = pytest.mark.parametrize("schedule", [VP(), VE(0.01, 20.0)], ids=["VP", "VE"])
GUIDED = {
    "DPS": DPS, "PiGDM": PiGDM, "moments": MomentMatching, "annealed": AnnealedLikelihood,
}  # fmt: skip
each_guided = pytest.mark.parametrize("method", GUIDED.values(), ids=GUIDED.keys())


# ---------------------------------------------------------------------------- the exact answer


@pytest.mark.parametrize("noise", [0.3, torch.tensor([0.1, 0.4]), R2], ids=["σ", "σᵢ", "R"])
@pytest.mark.parametrize("law", [LAW4, GaussianMixture([0.4, 0.6], A24, 0.7)], ids=["1", "2"])
def test_posterior_is_prior_times_likelihood(law, noise, generator):
    seen = Observation(Y2, Matrix(A24), noise)
    x = torch.randn(6, 4, generator=generator)
    log_joint = law.log_prob(x) + seen.log_likelihood(x)
    off = posterior(law, seen).log_prob(x) - log_joint
    close(off, off[:1].expand(6), 1e-9)
    target = PosteriorTarget(law, seen)
    close(target.score(x), posterior(law, seen).score(x), 1e-9)
    close(target.log_prob(x), log_joint, 1e-12)


def test_evidence_of_a_mixture():
    """The weights of the components, by integrating their densities."""
    nodes, w = gauss_hermite(2, 40)
    seen = SEEN1
    evidence = []
    for k in range(3):
        x = MIXTURE.means[k] + 0.2**0.5 * nodes
        r = seen.residual(x)[:, 0]
        evidence.append(float((w * torch.exp(-0.5 * (r / 0.3) ** 2)).sum()))
    expected = MIXTURE.weights * torch.tensor(evidence)
    close(posterior(MIXTURE, seen).weights, expected / expected.sum(), 1e-9)


def test_components_without_weight_are_left_out():
    far = GaussianMixture([0.5, 0.5], [[0.0, 0.0], [200.0, 0.0]], 0.1)
    assert posterior(far, Observation(torch.zeros(1, 2), Identity(), 0.1)).weights.tolist() == [1]


def test_posterior_without_noise_is_singular_where_it_was_seen():
    seen = Observation(torch.tensor([[0.4]]), Inpainting(torch.tensor([True, False])), 0)
    found = posterior(PLANE, seen)
    gain = COV[1, 0] / COV[0, 0]
    close(found.mean, torch.stack([torch.tensor(0.4), MEAN[1] + gain * (0.4 - MEAN[0])]), 1e-12)
    close(found.cov, torch.diag(torch.stack([MEAN[0] * 0, COV[1, 1] - gain * COV[0, 1]])), 1e-12)


# ---------------------------------------------------------------------------- guided scores


def test_dps_trusts_the_observation_too_much():
    """On N(0, 1) with y = x_0 + noise of variance r: the precision of p(x_t | y) by DPS and truly."""
    r, seen = 0.25, Observation(torch.zeros(1, 1), Identity(), 0.5)
    law, x = Gaussian([0.0], 1.0), torch.ones(1, 1)
    alpha, sigma = (float(v) for v in VP()(T))
    score = ExactScore(law, VP())
    by_dps = -float(DPS(score, seen)(x, T))
    close(by_dps, 1 + alpha**2 / r, 1e-10)  # x̂_0 = α x: it adds α²/r
    exact = -float(ExactScore(posterior(law, seen), VP())(x, T))
    close(exact, 1 + alpha**2 / (r + sigma**2), 1e-10)
    assert by_dps > 1.2 * exact


@each_guided
def test_every_sample_is_on_its_own(method, generator):
    """Alone or in a batch with others, each with its own time and its own observation."""
    x = 2 * torch.randn(6, 2, generator=generator)
    t = torch.linspace(0.1, 0.9, 6)
    y = torch.randn(6, 1, generator=generator)
    x[5], y[5] = 1e4, 1e4  # a wild batch-mate
    score = ExactScore(MIXTURE, VP())
    together = method(score, Observation(y, SKETCH, 0.3))(x, t)
    for i in range(6):
        alone = method(score, Observation(y[i : i + 1], SKETCH, 0.3))
        close(together[i : i + 1], alone(x[i : i + 1], t[i]), 1e-10)
        close(
            method(score, Observation(y, SKETCH, 0.3)).denoise(x, t)[i : i + 1],
            alone.denoise(x[i : i + 1], t[i]),
            1e-10,
        )


@each_guided
def test_single_precision_stays(method):
    x = torch.randn(3, 2, generator=RNG, dtype=torch.float32)
    t = torch.tensor(0.4, dtype=torch.float32)
    guided = method(ExactScore(MIXTURE, VP()), SEEN1)
    assert guided(x, t).dtype == torch.float32
    close(guided(x, t).double(), guided(x.double(), t.double()), 1e-4)


@pytest.mark.parametrize("method", [PiGDM, MomentMatching])
def test_a_guided_score_can_be_differentiated(method, generator, monkeypatch):
    """Through the solver too: the derivative of the score of p(x_t | y), and its log-likelihood."""
    law = Gaussian(LAW4.mean, 1.0) if method is PiGDM else LAW4
    seen = Observation(Y2, Matrix(A24), R2)
    guided = method(ExactScore(law, VP()), seen)
    exact = posterior(law, seen)
    x = torch.randn(2, 4, generator=generator).requires_grad_()
    v = torch.randn(2, 4, generator=generator)
    found = torch.autograd.grad((guided(x, T) * v).sum(), x)[0]
    H = exact.noised(*VP()(T)).hessian(x.detach())
    close(found, (H @ v.unsqueeze(-1)).squeeze(-1), 1e-7)
    # the moments of all data and of the posterior, by which times are chosen, differ: the same for both
    monkeypatch.setattr("gradlogp.diffusion.likelihood._spread", lambda score: 1.0)
    x, far = x.detach(), VP(0.1, 40.0)  # α₁ = 4e-5: the law at t = 1 is known of both
    value = log_likelihood(method(ExactScore(law, far), seen), x, n_steps=4).log_prob
    close(value, log_likelihood(ExactScore(exact, far), x, n_steps=4).log_prob, 1e-6)


def test_few_steps_of_the_solver(generator):
    """As many as there are observed entries are enough; one is not."""
    seen = Observation(Y2, Matrix(A24), 0.1)
    score, x = ExactScore(LAW4, VP()), torch.randn(5, 4, generator=generator)
    full = MomentMatching(score, seen)(x, T)
    two, one = (MomentMatching(score, seen, max_steps=n)(x, T) for n in (2, 1))
    close(two, full, 1e-8)
    assert float((one - full).abs().max()) > 1e-2


def test_a_model_that_is_no_score_is_noticed(generator):
    """The 'covariance' of an expanding field is negative."""
    x, seen = torch.randn(3, 2, generator=generator), Observation(Y2, Identity(), 0.1)
    wrong = as_score(lambda x, t: -x * 30, "score", VP())
    with pytest.raises(ValueError, match="not positive definite"):
        MomentMatching(wrong, seen)(x, T)
    stopped = MomentMatching(wrong, seen, indefinite="stop")(x, T)
    close(stopped, wrong(x, T), 1e-12)  # nothing was added


@pytest.mark.parametrize("method", [DPS, PiGDM, MomentMatching])
def test_evaluates_the_model_once(method, generator):
    counting = Counting(ExactScore(MIXTURE, VP()))
    method(counting, SEEN1)(torch.randn(3, 2, generator=generator), T)
    assert counting.calls == 1


@pytest.mark.parametrize("method", [DPS, PiGDM, MomentMatching])
def test_where_nothing_is_left_of_the_data_it_is_the_prior(method, generator):
    """α = 0: z says nothing of z_0, and y nothing of z; p(z | y) = p(z)."""
    prior, one = ExactScore(PLANE, Rectified()), torch.tensor(1.0)
    z = torch.randn(3, 2, generator=generator)
    guided = method(prior, SEEN1)
    close(guided(z, one), prior(z, one), 1e-15)
    close(guided.denoise(z, one), prior.denoise(z, one), 1e-15)
    with pytest.raises(ValueError, match="alpha > 0"):
        guided(z, torch.tensor([1.0, 0.5, 0.5]))
    x = evolve(DDIM(), guided, z, torch.tensor([1.0, 0.5, 0.1]))  # leaves α = 0
    assert bool(x.isfinite().all())


@pytest.mark.parametrize("method", [DPS, PiGDM, MomentMatching])
@pytest.mark.usefixtures("as_user")
def test_what_guided_scores_refuse(method):
    x, seen = torch.zeros(2, 2), SEEN1
    for ask in (
        method(ExactScore(PLANE, VP()), seen),
        method(ExactScore(PLANE, VP()), seen).denoise,
    ):
        with pytest.raises(ValueError, match=r"sigma [=>] 0"):
            ask(x, torch.tensor(0.0))
    cut = as_score(lambda x, t: -x.detach(), "score", VP(), moments=Moments(*torch.ones(2)))
    with pytest.raises(ValueError, match="differentiably"):
        method(cut, seen)(x, T)
    with pytest.raises(ValueError, match="rows"):
        method(ExactScore(PLANE, VP()), Observation(torch.zeros(3, 1), SKETCH, 1.0))(x, T)
    with pytest.raises(ValueError, match="shape"):
        method(ExactScore(PLANE, VP()), seen)(x[0], T)
    wrong = Observation(torch.zeros(1, 3), SKETCH, 1.0)
    with pytest.raises(ValueError, match="the operator returned"):
        method(ExactScore(PLANE, VP()), wrong)(x, T)


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: DPS(s, SEEN1, scale=-1.0), "scale"),
        (lambda s: DPS(s, Observation(Y2, Identity(), 0))(Y2, T), "no noise"),
        (lambda s: PiGDM(as_score(lambda x, t: -x, "score", VP()), SEEN1), "pass data_var="),
        (lambda s: DPS(lambda x, t: -x, SEEN1), "as_score"),
        (lambda s: PiGDM(lambda x, t: -x, SEEN1), "as_score"),
        (lambda s: AnnealedLikelihood(lambda x, t: -x, SEEN1), "as_score"),
        (lambda s: AnnealedLikelihood(s, Observation(Y2, lambda x: x, 1.0)), "linear"),
        (
            lambda s: AnnealedLikelihood(as_score(lambda x, t: x, "score", VP()), SEEN1).log_prob(
                Y2, T
            ),
            "log-density",
        ),
        (lambda s: posterior(PLANE, Observation(Y2.repeat(2, 1), Identity(), 1.0)), "2 rows"),
        (lambda s: posterior(PLANE, Observation(Y2, lambda x: x, 1.0)), "linear"),
        (
            lambda s: posterior(
                PLANE, Observation(Y2, Matrix(torch.tensor([[1.0, 0], [0, 0]])), 0)
            ),
            "singular",
        ),
        (lambda s: DPSStep(DPMSolver(), SEEN1), "without memory"),
        (lambda s: RePaint(Ancestral(), SEEN1), "Inpainting"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(ExactScore(PLANE, VP()))


# ---------------------------------------------------------------------------- whole samplers


def flow_moments(score, schedule, d, n=25):
    """The law at the end of a deterministic affine sampler started from N(α m, …) of the prior."""
    move = lambda x, g: evolve(ProbabilityFlow(), score, x, time_grid(schedule, n, t_min=1e-4))
    return affine_map(move, d, 0)


@each_schedule
def test_flow_of_moment_matching_ends_in_the_posterior(schedule):
    seen = Observation(torch.tensor([[0.4]]), SKETCH, 0.3)
    exact = posterior(PLANE, seen)
    start = exact.noised(*schedule(torch.tensor(1.0)))
    law = {}
    for method in (MomentMatching, DPS):
        score = method(ExactScore(PLANE, schedule), seen)
        law[method] = flow_moments(score, schedule, 2).law(start.mean, start.cov)
    close(law[MomentMatching][0], exact.mean, 8e-3)
    close(law[MomentMatching][1], exact.cov, 8e-3)
    # negative control: DPS ends somewhere else
    assert float((law[DPS][1] - exact.cov).abs().max()) > 0.02


# ---------------------------------------------------------------------------- steps


def test_dps_step_where_the_residual_is_0():
    point = Gaussian([0.0, 0.0], 0.0)  # x̂_0 = 0
    step = DPSStep(DDIM(), Observation(torch.zeros(1, 2), Identity(), 0.1))
    x = torch.ones(1, 2)
    score = ExactScore(point, VP())
    s = torch.tensor(0.2)
    close(step(x, T, s, score), DDIM()(x, T, s, score), 1e-12)


FIRST = Inpainting(torch.tensor([True, False]))
HALF = Observation(torch.tensor([[0.4]], **F64), FIRST, 0)


@each_schedule
def test_repaint_puts_what_was_seen_in_place(schedule, generator):
    score, x = ExactScore(PLANE, schedule), torch.randn(3, 2, generator=generator)
    s = torch.tensor(0.3)
    step, noise = RePaint(DDIM(), HALF, n_resamples=1), torch.randn(3, 2, generator=generator)
    moved = step(x, T, s, score, generator=Injected(noise))
    alpha, sigma = schedule(s)
    close(moved[:, 0], alpha * 0.4 + sigma * noise[:, 0], 1e-12)
    close(moved[:, 1], DDIM()(x, T, s, score)[:, 1], 1e-12)
    close(step(x, T, None, score)[:, 0], torch.full((3,), 0.4), 1e-15)


@each_schedule
def test_repaint_renoises_by_the_forward_law(schedule, generator):
    """What was at level s comes back to level t with the law of x_t given x_s."""
    s, x = torch.tensor(0.3), torch.zeros(1, 2)
    seen_first = []

    def record(x, t, s, score, *, generator=None):
        seen_first.append(x)
        return torch.zeros_like(x) + 5.0

    z = torch.tensor([[1.0, 2.0]])
    step = RePaint(record, HALF, n_resamples=2)
    step(x, T, s, ExactScore(PLANE, schedule), generator=Injected(0 * z, z, 0 * z))
    (a_t, b_t), (a_s, b_s) = schedule(T), schedule(s)
    at_s = torch.stack([a_s * 0.4, torch.tensor(5.0)])
    spread = (b_t**2 - (a_t / a_s * b_s) ** 2).sqrt()
    close(seen_first[1][0], a_t / a_s * at_s + spread * z[0], 1e-12)


def repaint_moments(transition, n, score, times, draws):
    """The law of samples, carried exactly through every (affine) step, each with so many draws."""
    law = score.law(times[0])
    m, C = law.mean, law.cov
    step = RePaint(transition, HALF, n_resamples=n)
    for t, s in zip(times, [*times[1:], None], strict=True):
        move = lambda x, g, t=t, s=s: step(x, t, s, score, generator=g)
        m, C = affine_map(move, 2, 0 if s is None else n * (2 + draws) - 1).law(m, C)
    return m, C


@dataclass(frozen=True)
class ExactReverse:
    """The law of x_s given x_t itself, for a Gaussian under α = 1: a step without an error."""

    def __call__(self, z, t, s, score, *, generator=None):
        if s is None:
            return score.denoise(z, t)
        now, then = score.law(t).cov, score.law(s).cov
        gain = torch.linalg.solve(now, then).mT
        L = torch.linalg.cholesky(then - gain @ then)
        return z @ gain.mT + randn_like(z, generator) @ L.mT


@pytest.mark.parametrize(
    ("n", "levels", "mean", "var"),
    [
        (1, 200, 0.6178019, 0.3186432),  # 0.62501 and 0.31234 with 1000 levels
        pytest.param(2, 1000, 0.76451, 0.24325, marks=pytest.mark.slow),
    ],
)
def test_replacement_is_biased_by_construction(n, levels, mean, var):
    """On N(0, [1 ρ; ρ 1]) with ρ = 0.9, although steps are exact and fine: truly 0.9 y and 0.19."""
    law = Gaussian([0.0, 0.0], [[1.0, 0.9], [0.9, 1.0]])
    ladder = Levels(torch.logspace(2, -3, levels))
    m, C = repaint_moments(ExactReverse(), n, ExactScore(law, ladder), ladder.times, 1)
    close(m, [0.4, 0.4 * mean], 5e-6)
    close(C[1, 1], var, 5e-6)


def test_repaint_approaches_the_conditional_law():
    """Replacement is biased on every grid; resampling corrects that, a finer grid the spread."""
    exact = posterior(PLANE, HALF)
    score, grid = ExactScore(PLANE, VP()), lambda k: time_grid(VP(), k, t_min=1e-4)
    found = {
        (n, k): repaint_moments(DDIM(), n, score, grid(k), 0) for n in (1, 5) for k in (12, 36)
    }
    shift = {key: abs(float(m[1] - exact.mean[1])) for key, (m, _) in found.items()}
    spread = {key: abs(float(C[1, 1] - exact.cov[1, 1])) for key, (_, C) in found.items()}
    for m, C in found.values():
        close(m[0], 0.4, 1e-12)
        close(C[0], torch.zeros(2), 1e-12)
    assert shift[1, 36] > max(0.04, 0.8 * shift[1, 12])
    assert shift[5, 36] < 0.3 * shift[1, 36]
    assert spread[5, 36] < 0.6 * spread[5, 12]


@pytest.mark.usefixtures("as_user")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"observation": Observation(torch.zeros(1, 1), FIRST, 0.1)}, "noise=0"),
        ({"transition": DPMSolver()}, "without memory"),
    ],
)
def test_what_repaint_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        RePaint(**{"transition": DDIM(), "observation": HALF, **arguments})


# ---------------------------------------------------------------------------- Langevin


def test_relative_steps_below_1_are_stable():
    """The curvature of π_t is at most 2/σ²: with a prior that is one point it is that."""
    t, seen = torch.tensor(0.4), Observation(Y2, Identity(), 0)
    for law in (Gaussian([0.0, 0.0], 0.0), PLANE):
        guided = AnnealedLikelihood(ExactScore(law, VP()), seen)
        H = torch.autograd.functional.jacobian(lambda x, g=guided: g(x[None], t)[0], Y2[0])
        worst = float(-torch.linalg.eigvalsh(H).min() * VP()(t)[1] ** 2)
        assert worst <= 2 + 1e-9
        assert law is PLANE or math.isclose(worst, 2, rel_tol=1e-9)


def annealed_moments(relative_step, n_steps):
    ladder = Levels(torch.logspace(1, -3, 22))
    score = AnnealedLikelihood(ExactScore(PLANE, ladder), SEEN1)
    move = AnnealedLangevin(n_steps, relative_step)
    times = time_grid(ladder)
    m, C = torch.zeros(2), 100 * torch.eye(2)
    for t, s in zip(times, [*times[1:], None], strict=True):
        step = lambda x, g, t=t, s=s: move(x, t, s, score, generator=g)
        m, C = affine_map(step, 2, n_steps).law(m, C)
    return m, C


def test_annealed_langevin_reaches_the_posterior():
    """The law, carried exactly: the error falls with the work, as it does for no guided score."""
    exact = posterior(PLANE, SEEN1)
    errors = []
    for n_steps in (1, 9):
        m, C = annealed_moments(0.4, n_steps)
        errors.append(float((C - exact.cov).abs().max() + (m - exact.mean).abs().max()))
    assert errors[0] > 3 * errors[1]
    assert errors[1] < 0.05
