"""Starts, metrics and the one call: each stage against normal laws, where all is known."""

import math
import re

import pytest
import torch
from support import close

import gradlogp as glp
from gradlogp import Chain, Gaussian, GaussianMixture, as_target
from gradlogp.distributions.targets import Funnel
from gradlogp.langevin import (
    BAOAB,
    HMC,
    MALA,
    MCLMC,
    Preconditioner,
    find_start,
    fisher_divergence,
    fit_metric,
)
from gradlogp.langevin.guard import check_rows
from gradlogp.langevin.kernels.steps import jittered_length
from gradlogp.langevin.tuning_mclmc import expected_bias


def spread(d, generator):
    """A covariance with condition number 10⁶ and rotated axes."""
    Q = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    return Q @ torch.diag(torch.logspace(-3, 3, d)) @ Q.mT


# ---------------------------------------------------------------------------- metrics


def test_the_metric_of_a_normal_law_is_its_covariance(generator):
    """S C_s S = C_x for s = −Λ(x − μ) has the solution Λ⁻¹, whatever the sample of 40 draws."""
    d = 6
    C = spread(d, generator)
    law = Gaussian(torch.ones(d), C)
    x = law.sample(40, generator=generator)
    P = fit_metric(x, law.score(x))
    assert P.kind == "matrix"
    assert float((torch.linalg.solve(C, P.value) - torch.eye(d)).abs().max()) < 0.02
    sample = torch.linalg.solve(C, torch.cov(x.mT)) - torch.eye(d)  # negative control
    assert float(sample.abs().max()) > 0.3
    assert fisher_divergence(P, x, law.score(x), torch.ones(d)) < 1e-3
    shrunk = Preconditioner(2 * P.value)
    # ‖Rᵀs + R⁻¹y‖² with R Rᵀ = 2C, s = −C⁻¹y: (√2 − 1/√2)² yᵀC⁻¹y
    y = x - 1
    exact = 0.5 * float((y * torch.linalg.solve(C, y.mT).mT).sum(1).mean())
    close(fisher_divergence(shrunk, x, law.score(x), torch.ones(d)), exact, 0.05 * exact)


def test_the_diagonal_metric_is_the_root_of_variances(generator):
    x = torch.randn(500, 3, generator=generator)
    s = torch.randn(500, 3, generator=generator) * torch.tensor([1.0, 2.0, 4.0])
    P = fit_metric(x, s, "diagonal")
    close(P.value, (x.var(0) / s.var(0)).sqrt(), 1e-10)
    assert fit_metric(x.reshape(500, 1, 3), s.reshape(500, 1, 3), "diagonal").value.shape == (1, 3)


def test_few_directions_of_many_are_found_by_a_low_rank(generator):
    """500 dimensions, of which 3 directions are 100 times as wide, from 150 draws."""
    d = 500
    U = torch.linalg.qr(torch.randn(d, 3, generator=generator)).Q
    C = torch.eye(d) + 9999 * U @ U.mT
    law = Gaussian(torch.zeros(d), C)
    x = law.sample(150, generator=generator)
    P = fit_metric(x, law.score(x))
    assert P.kind == "low-rank"
    # of the condition number 10⁴ little is left, with a fifth of the draws that a matrix needs
    assert float((P.apply(U.mT) * U.mT).sum(1).min()) > 1e4 / 6
    diagonal = fit_metric(x, law.score(x), "diagonal")
    assert float((diagonal.apply(U.mT) * U.mT).sum(1).max()) < 1e4 / 100  # negative control


@pytest.mark.parametrize("k", [0, 2])
def test_a_low_rank_metric_is_the_matrix_it_stands_for(k, generator):
    d = 5
    U = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q[:, :k]
    sd, lam = torch.rand(d, generator=generator) + 0.5, torch.tensor([0.2, 7.0])[:k]
    low = Preconditioner(torch.cat([sd[None], lam[:, None] * U.mT]), "low-rank")
    S = sd[:, None] * (torch.eye(d) + (U * (lam - 1)) @ U.mT) * sd
    v = torch.randn(4, d, generator=generator)
    close(low.apply(v), v @ S, 1e-10)
    close(low.inv_quadratic(v), (v * torch.linalg.solve(S, v.mT).mT).sum(1), 1e-10)
    R = low.sqrt(torch.eye(d)).mT
    close(R @ R.mT, S, 1e-10)
    close(low.inv_sqrt(R.mT), torch.eye(d), 1e-10)
    close(low.pull_back(torch.eye(d)), R, 1e-10)
    close(low.symmetric().value, S, 1e-10)
    M = low.momentum(torch.eye(d)).mT
    close(M @ M.mT, torch.linalg.inv(S), 1e-8)


def test_the_current_metric_stays_if_no_other_predicts_better(generator):
    law = Gaussian(torch.zeros(8), spread(8, generator))
    x = law.sample(5, generator=generator)
    exact = Preconditioner(law.cov)
    assert fit_metric(x, law.score(x), current=exact) is exact
    x = law.sample(40, generator=generator)
    assert fit_metric(x, law.score(x), current=Preconditioner(1.0)).kind == "matrix"


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda: fit_metric(torch.zeros(3, 2), torch.zeros(3, 2)), "at least 4"),
        (lambda: fit_metric(torch.zeros(9, 2), torch.zeros(9, 2)), "did not move"),
        (lambda: Preconditioner(torch.ones(3, 2), "low-rank"), "orthogonal"),
        (lambda: Preconditioner(torch.ones(3), "low-rank"), "low-rank"),
    ],
)
def test_bad_metrics_are_refused(case, message, as_user):
    with pytest.raises(ValueError, match=message):
        case()


# ---------------------------------------------------------------------------- starts


def test_the_start_on_a_normal_law_is_exact(generator):
    """The best normal law is the law itself, its bound log ∫p, and starts are draws of it."""
    d = 4
    C, m = 4 * spread(d, generator), torch.tensor([100.0, -3.0, 0.5, 7.0])
    law = Gaussian(m, C)
    target = as_target(log_prob=lambda x: law.log_prob(x) + 1.5, event_shape=(d,))
    found = find_start(target, 60, generator=generator)
    close(found.bound, torch.full((8,), 1.5), 1e-5)
    close(torch.linalg.solve(C, found.metric.value), torch.eye(d), 1e-4)
    r = (found.x - m) @ torch.linalg.inv(torch.linalg.cholesky(C)).mT
    assert float(r.mean(0).abs().max()) < 4.5 / math.sqrt(60)
    assert float((r.var(0) - 1).abs().max()) < 4.5 * math.sqrt(2 / 60)
    assert len(found.x.unique(dim=0)) == 60


def test_a_density_without_a_mode_has_a_start(generator):
    """Along the neck of a funnel the density grows without end; the best normal law does not."""
    found = find_start(Funnel(6), 8, generator=generator)
    assert bool(torch.isfinite(found.x).all())
    assert float(found.bound.max()) > -3  # nats below log ∫p = 0
    assert float(found.x[:, 0].abs().max()) < 12


def test_both_modes_are_given_starts(generator):
    law = GaussianMixture([0.5, 0.5], [[-1.5, 0.0], [1.5, 0.0]], [0.05, 0.05])
    x = find_start(law, 40, generator=generator).x
    assert 5 < int((x[:, 0] > 0).sum()) < 35


def test_a_mode_that_no_chain_visits_is_named(generator):
    """Paths end in both modes; chains that all stay in one agree with each other, and are wrong."""
    law = GaussianMixture([0.5, 0.5], [[-1.5, 0.0], [1.5, 0.0]], [0.02, 0.02])
    target = as_target(log_prob=law.log_prob, event_shape=(2,))
    found = find_start(target, 4, generator=generator)
    one = law.sample(4000, generator=generator).reshape(4, 1000, 2)
    left = one * torch.tensor([-1.0, 1.0]) * one[..., :1].sign()
    chain = Chain(left, info=None, state=None, start=found)
    assert any("no draw lies" in reason for reason in chain.verdict.reasons), chain.verdict
    assert Chain(one, info=None, state=None, start=found).verdict.ok
    sampled = glp.sample(target, 50, n_warmup=50, generator=generator)
    assert not sampled.verdict.ok


def test_a_start_from_a_target_that_fails_here_and_there(generator):
    def log_prob(x):
        if bool((x < -1.5).any()):
            raise torch.linalg.LinAlgError("not positive definite")
        return -(x - 1).square().sum(1) * 50

    found = find_start(as_target(log_prob=log_prob, event_shape=(2,)), 4, generator=generator)
    assert float((found.x - 1).abs().max()) < 1


# ---------------------------------------------------------------------------- the kernel


def test_lengths_of_paths_are_uniform():
    for n in (1, 2, 5):
        lengths = torch.tensor([jittered_length(n, k) for k in range(5000)])
        counts = lengths.bincount(minlength=2 * n)[1:]
        assert counts.sum() == 5000
        assert float((counts * (2 * n - 1) / 5000 - 1).abs().max()) < 0.01


@pytest.mark.parametrize(
    ("h", "n", "rho", "rho2", "rate"),
    [
        (0.5, 3, 0.0615779198, 0.0205438441, 0.9794910310),
        (1.0, 2, -0.3690299170, 0.2747352090, 0.9208331517),
        (1.5, 2, -0.7405922651, 0.8927295728, 0.9331038203),
        (1.9, 1, 0.1957156811, 0.5611849294, 0.5487893190),
    ],
)
def test_a_path_on_a_normal_law(h, n, rho, rho2, rate, generator):
    """Lag-1 correlations of x and x², and the acceptance, in closed form."""
    N = 200_000
    x = torch.randn(N, 1, generator=generator)
    law = as_target(log_prob=lambda x: -x.square().sum(1) / 2, score=lambda x: -x)
    kernel = HMC(h, n, jitter=False)
    y, info = kernel.step(kernel.init(x, law), law, generator=generator)
    y = y.x
    for value, exact in (
        (x * y, rho), ((x**2 - 1) * (y**2 - 1) / 2, rho2), (info.acceptance, rate)
    ):  # fmt: skip
        error = float(value.std()) / math.sqrt(N)
        assert abs(float(value.mean()) - exact) < 4.5 * error


# ---------------------------------------------------------------------------- the one call


def test_a_posterior_in_units_far_apart(generator):
    d = 5
    C, m = spread(d, generator), torch.linspace(-30, 30, d)
    law = Gaussian(m, C)
    target = as_target(log_prob=lambda x: law.log_prob(x), event_shape=(d,))
    chain = glp.sample(target, 300, n_warmup=200, generator=generator)
    assert chain.verdict.ok, chain.verdict
    assert chain.draws.shape == (4, 300, d)
    r = (chain.draws.flatten(0, 1) - m) @ torch.linalg.inv(torch.linalg.cholesky(C)).mT
    assert float(r.mean(0).abs().max()) < 0.12
    assert float((r.var(0) - 1).abs().max()) < 0.25
    again = glp.sample(target, 30, n_warmup=30, generator=generator.manual_seed(7))
    twice = glp.sample(target, 30, n_warmup=30, generator=generator.manual_seed(7))
    assert torch.equal(again.draws, twice.draws)


def test_a_target_in_single_precision_is_sampled_in_it(generator):
    A = torch.eye(2, dtype=torch.float32)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        target = as_target(log_prob=lambda x: -(x @ A).square().sum(1) / 2, event_shape=(2,))
        chain = glp.sample(target, 200, n_warmup=100, generator=generator)
    finally:
        torch.set_default_dtype(before)
    assert chain.draws.dtype == torch.float32
    assert chain.verdict.ok, chain.verdict


@pytest.mark.parametrize("n_warmup", [0, 10])
def test_a_short_warm_up_tunes_what_it_can(n_warmup, generator):
    target = as_target(log_prob=lambda x: -x.square().sum(1) / 2, event_shape=(2,))
    chain = glp.sample(target, 400, n_warmup=n_warmup, generator=generator)
    assert chain.draws.shape == (4, 400, 2)
    assert abs(float(chain.draws.var()) - 1) < 0.2


def test_paths_follow_the_step_also_from_given_starts(generator):
    law = Gaussian(torch.zeros(3), torch.tensor([1.0, 1.0, 1e-4]))
    x0 = 0.1 * torch.randn(4, 3, generator=generator)
    chain = glp.sample(law, 200, n_warmup=200, start=x0, generator=generator)
    assert chain.verdict.ok, chain.verdict
    assert 1 <= chain.kernel.n_leapfrog <= 4


def test_named_parameters_come_back_in_their_own_space(generator):
    from torch.distributions import constraints

    def log_prob(rate, p):
        return 2 * rate.log() - 2 * rate + (p.log() * torch.tensor([1.0, 2.0, 3.0])).sum(1)

    target = as_target(
        log_prob=log_prob,
        parameters={"rate": constraints.positive, "p": ((3,), constraints.simplex)},
    )
    chain = glp.sample(target, 400, n_warmup=200, generator=generator)
    assert chain.verdict.ok, chain.verdict
    rate = chain["rate"]  # Gamma(3, rate 2): 1.5 ± √.75
    assert abs(float(rate.mean()) - 1.5) < 0.12
    close(chain["p"].mean((0, 1)), torch.tensor([2.0, 3.0, 4.0]) / 9, 0.03)  # Dirichlet(2, 3, 4)


def test_a_score_alone_is_followed_and_its_bias_named(generator):
    law = Gaussian([1.0, 2.0], [1.0, 0.5])
    target = as_target(score=law.score)
    x0 = torch.randn(8, 2, generator=generator)
    chain = glp.sample(target, 2000, 8, n_warmup=500, start=x0, generator=generator)
    assert isinstance(chain.kernel, BAOAB)
    assert any("not adjusted" in reason or "bias" in reason for reason in chain.verdict.reasons)
    with pytest.raises(ValueError, match="start="):
        glp.sample(target)


def test_a_kernel_that_was_asked_for_is_tuned(generator):
    law = Gaussian(torch.zeros(3), torch.tensor([1.0, 100.0, 0.01]))
    chain = glp.sample(law, 500, n_warmup=400, kernel=MALA(0.1), generator=generator)
    assert chain.verdict.ok, chain.verdict
    assert isinstance(chain.kernel, MALA)
    close(chain.kernel.preconditioner.apply(torch.eye(3)).diagonal(), law.cov.diagonal(), 0.05)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda t: glp.sample(t, 0), "n_draws"),
        (lambda t: glp.sample(t, n_chains=0), "n_chains"),
        (lambda t: glp.sample(t, n_warmup=-1), "n_warmup"),
        (lambda t: glp.sample(t, start=torch.zeros(3, 2)), "3 points for 4 chains"),
        (lambda t: glp.sample(as_target(log_prob=lambda x: -x.sum(1))), "shape of a draw"),
        (
            lambda t: glp.sample(
                as_target(log_prob=lambda x: x.sum(1) * torch.inf, event_shape=(2,))
            ),
            "none of 100 points",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(case, message, as_user):
    with pytest.raises(ValueError, match=message):
        case(as_target(log_prob=lambda x: -x.square().sum(1), event_shape=(2,)))


def test_what_is_no_density_kernel_or_generator_is_named(as_user):
    target = as_target(log_prob=lambda x: -x.square().sum(1), event_shape=(2,))
    for case, message in (
        (lambda: glp.sample(lambda x: -x.square().sum(1)), "as_target"),
        (lambda: glp.sample(target, kernel=MALA), "with its step size"),
        (lambda: glp.sample(target, kernel="nuts"), "with its step size"),
        (lambda: glp.sample(target, generator=0), "manual_seed"),
        (lambda: as_target(log_prob=lambda x: -x.sum(1), event_shape=2), "tuple"),
        (
            lambda: glp.sample(as_target(log_prob=lambda x: x.sum(1, True), event_shape=(2,))),
            "failed at every point",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            case()


def test_stiff_densities_in_single_precision(generator):
    """The metric stays in float64: rounded to float32 a condition of 10⁸ would be singular."""
    scale = torch.tensor([1.0, 1e-4], dtype=torch.float32)
    law = as_target(log_prob=lambda x: -(x / scale.to(x)).square().sum(1) / 2)
    x0 = scale * torch.randn(4, 2, generator=generator, dtype=torch.float32)
    chain = glp.sample(law, 250, n_warmup=300, start=x0, generator=generator)
    assert chain.draws.dtype == torch.float32
    assert float((chain.draws.std((0, 1)) / scale - 1).abs().max()) < 0.15


def test_many_dimensions_have_no_other_modes(generator, monkeypatch):
    """Beyond 200 dimensions the laws of paths are guesses, and no mode is inferred from them."""
    monkeypatch.setattr("gradlogp.langevin.tuning.start.HESSIAN", 20)
    d = 21
    law = Gaussian(torch.zeros(d), torch.logspace(-1, 1, d))
    found = find_start(as_target(log_prob=law.log_prob, event_shape=(d,)), 4, generator=generator)
    assert found.unvisited(law.sample(50, generator=generator)) == 0


# ---------------------------------------------------------------------------- what a user gets wrong


@pytest.mark.parametrize(
    "f",
    [
        lambda x: -(x[0].square() + x[1].square()),
        lambda x: -x.square().sum() / 2,
        lambda x: -x @ torch.eye(2) @ x,
    ],
)
def test_a_function_of_one_point_is_told_of_vectorized(f, as_user):
    with pytest.raises(ValueError, match="vectorized=False"):
        glp.sample(as_target(log_prob=f, event_shape=(2,)), 10, n_warmup=0)
    glp.sample(as_target(log_prob=f, event_shape=(2,), vectorized=False), 10, n_warmup=0)


@pytest.mark.parametrize("start", [None, torch.zeros(4, 2), torch.ones(4, 2).cumsum(0)])
@pytest.mark.parametrize(
    "f",
    [
        lambda x: -x.square().sum(1) / 9 - (x - x.mean(0)).square().sum(1),
        lambda x: -(x / (1 + x.norm())).square().sum(1) - x.square().sum(1),
        lambda x: -x.square().sum(1).sort().values,
    ],
)
def test_a_density_that_mixes_the_batch_is_refused(f, start):
    with pytest.raises(ValueError, match="depends on the other points of the batch"):
        glp.sample(as_target(log_prob=f, event_shape=(2,)), 10, n_warmup=0, start=start)


def test_a_score_that_mixes_the_batch_is_refused():
    target = as_target(score=lambda x: -x + x.mean(0) / 9)
    with pytest.raises(ValueError, match="the score of a point depends"):
        glp.sample(target, 10, 8, n_warmup=0, start=torch.ones(8, 1))


def test_rows_that_differ_by_rounding_or_chance_alone_are_not_refused(generator):
    A = torch.randn(300, 300, generator=generator)
    A = A @ A.mT  # products of matrices round otherwise in larger batches
    check_rows(as_target(log_prob=lambda x: -((x @ A) * x).sum(1)), torch.randn(4, 300))
    check_rows(as_target(log_prob=lambda x: -x.square().sum(1) + torch.rand(len(x))), A[:4])
    check_rows(as_target(log_prob=lambda x: x.log().sum(1)), -torch.ones(2, 2))
    single = A.float()  # a function may compute in float32 whatever the points are
    of_single = lambda x: -(x.float() @ single @ x.float().mT).diagonal().double()
    check_rows(as_target(log_prob=of_single), torch.randn(4, 300, dtype=torch.float64))


def test_a_border_of_nan_asks_for_a_constraint(generator):
    def log_prob(x):  # x_0 ~ Gamma(1.5, 1)
        return x[:, 0].log() / 2 - x[:, 0] - x[:, 1].square()

    target = as_target(log_prob=log_prob, event_shape=(2,))
    chain = glp.sample(target, 50, n_warmup=40, generator=generator)
    assert any("constraints.positive" in reason for reason in chain.verdict.reasons)
    steep = as_target(log_prob=lambda x: -x.square().square().sum(1), event_shape=(1,))
    with pytest.warns(RuntimeWarning, match="diverged"):
        chain = glp.run(HMC(2.0, 5), steep, torch.ones(4, 1), 100, generator=generator)
    reasons = [r for r in chain.verdict.reasons if "divergent" in r]
    assert len(reasons) == 1
    assert "constraint" not in reasons[0]


@pytest.mark.parametrize(
    ("integrator", "bias"),
    [
        ("leapfrog", 3.65),
        pytest.param("minimal norm", -2.0, marks=pytest.mark.slow),
        ("two-stage", -1.6),
    ],
)
def test_microcanonical_dynamics_are_tuned_and_their_bias_is_named(integrator, bias, generator):
    d = 20
    scale = torch.logspace(-1, 1, d)
    law = Gaussian(torch.zeros(d), scale)
    kernel = MCLMC(1e-3, 0.1, integrator=integrator)
    n = 400 if integrator == "leapfrog" else 150  # whose draws are looked at, too
    chain = glp.sample(law, n, 8, n_warmup=200, kernel=kernel, generator=generator)
    assert chain.draws.shape == (8, n, d)
    assert chain.kernel.preconditioner.kind == "matrix"
    named = float(re.search(r"bias of ([+-][\d.]+) %", str(chain.verdict))[1])
    assert abs(named - bias) < 0.35 * abs(bias)
    relative = chain.draws.square().mean((0, 1)) / scale - 1
    if integrator == "leapfrog":  # N(0, I) in the metric: h²/(12 (d − 1)) is known
        exact = chain.kernel.step_size**2 / (12 * (d - 1))
        assert abs(named / 100 - exact) < 0.2 * exact
        assert abs(float(relative.mean()) - exact) < 0.02  # 8 × 400 draws of 20 coordinates


def test_the_bias_named_follows_the_step(generator):
    """On N(0, I) it is h²/(12 (d − 1)), for steps that are not those of the tuning as well."""
    d = 40
    x = torch.randn(32, d, generator=generator)
    law = Gaussian(torch.zeros(d), torch.ones(d))
    for h in (1.5, 3.0):
        chain = glp.run(MCLMC(h, d**0.5), law, x, 60, generator=generator)
        W = chain.info.energy_change
        named = expected_bias("leapfrog", float(W.square().mean()) / d)
        assert abs(named / (h**2 / (12 * (d - 1))) - 1) < 0.15


def test_a_metric_that_is_off_by_a_little_stays(generator):
    """λ + 1/λ − 2 in one direction: 0.07 at λ = 1.3 and 0.5 at λ = 2."""
    x = torch.randn(400, 3, generator=generator)
    for scale, stays in ((1.3, True), (2.0, False)):
        current = Preconditioner(torch.diag(torch.tensor([scale, 1.0, 1.0])), "matrix")
        assert (fit_metric(x, -x, "auto", current) is current) == stays
