"""Minibatch kernels: every batch of a small problem is enumerated, so that laws come out exactly."""

import itertools
import math

import pytest
import torch
from scipy import stats
from scipy.linalg import solve_discrete_lyapunov
from support import close

from gradlogp import run
from gradlogp.calculus import kernel_map
from gradlogp.core import Injected, sum_event
from gradlogp.distributions.observed import Observed
from gradlogp.distributions.targets import LogisticRegression
from gradlogp.langevin import ULA
from gradlogp.langevin.kernels.minibatch import (
    SVRG,
    Anchor,
    ControlVariates,
    Plain,
    draw_index,
    polynomial_decay,
    weighted_average,
)
from gradlogp.langevin.kernels.stochastic import PSGLD, SGHMC, SGLD

Y = torch.tensor([0.3, -1.1, 2.0, 0.4, 1.7], dtype=torch.float64)
PRIOR, NOISE = 4.0, 0.8  # variances


def normal_mean(data, prior=PRIOR, noise=NOISE):
    """The posterior of the mean of normal observations, a normal law of precision λ."""
    return Observed(
        lambda x: -0.5 * sum_event(x**2) / prior,
        lambda x, rows: -0.5 * (x - rows).square() / noise,
        data,
    )


TARGET = normal_mean(Y)
N = len(Y)
LAM = 1 / PRIOR + N / NOISE
MU = float(Y.sum() / NOISE / LAM)


def gradient_variance(n, replace, data=Y):
    N, spread = len(data), float(data.var(correction=0)) / NOISE**2
    return N**2 / n * spread * (1 if replace else (N - n) / (N - 1))


def outcomes(n, replace):
    """Noise rows that lead to every batch of n of 5, all equally likely."""
    if not replace and n**2 > N:  # the order of N numbers
        return torch.tensor(list(itertools.permutations(range(N)))) / N
    sizes = [N if replace else N - n + 1 + k for k in range(n)]
    rows = itertools.product(*[range(s) for s in sizes])
    return torch.tensor([[(t + 0.5) / s for t, s in zip(row, sizes, strict=True)] for row in rows])


def enumerate_step(kernel, fields, u, z, target=TARGET):
    """One step from the same state for every batch; fields are columns of the new state."""
    x = torch.full((len(u), 1), fields.pop("x"))
    state = kernel.init(x, target)
    state = state._replace(**{k: torch.full_like(getattr(state, k), v) for k, v in fields.items()})
    return kernel.step(state, target, generator=Injected(u, torch.full((len(u), 1), z)))[0]


def one_dimensional(kernel, n, replace=False, step=0, target=TARGET):
    """M, the b of every batch, and the gain of the noise in x' = M x + b + q z."""
    u = outcomes(n, replace)
    at = lambda x, z: enumerate_step(kernel, {"x": x, "step": step}, u, z, target).x[:, 0]
    b = at(0.0, 0.0)
    M, q = at(1.0, 0.0) - b, at(0.0, 1.0) - b
    close(at(-2.5, 1.3), -2.5 * M + b + 1.3 * q, 1e-11)
    close(M, M[0].expand_as(M), 1e-12)
    return float(M[0]), b, float(q[0])


def logistic(generator):
    x = torch.randn(7, 3, generator=generator)
    y = (torch.rand(7, generator=generator) < 0.5).double()
    p = LogisticRegression(x, y, 1.3)
    return p, Observed(p.log_prior, p.log_likelihood, p.data)


# ---------------------------------------------------------------------------- the posterior


def test_posterior_is_the_product(generator):
    p, posterior = logistic(generator)
    x = torch.randn(6, 3, generator=generator)
    close(posterior.log_prob(x), p.log_prob(x), 1e-12)
    close(posterior.score(x), p.score(x), 1e-12)
    close(posterior.minibatch_score(x, torch.arange(7)), p.score(x), 1e-12)
    close(TARGET.score(x[:, :1]), -LAM * (x[:, :1] - MU), 1e-12)


def test_minibatch_scores_are_unbiased_and_need_their_factor(generator):
    p, posterior = logistic(generator)
    x = torch.randn(6, 3, generator=generator)
    batches = list(itertools.combinations(range(7), 3))
    shared = [posterior.minibatch_score(x, torch.tensor(s)) for s in batches]
    close(torch.stack(shared).mean(0), p.score(x), 1e-12)
    rows = p.data[[0, 2, 5]]
    by_hand = (rows[:, -1] - torch.sigmoid(x @ rows[:, :-1].mT)) @ rows[:, :-1]
    close(posterior.minibatch_score(x, torch.tensor([0, 2, 5])), 7 / 3 * by_hand - x / 1.69, 1e-12)
    index = torch.tensor([batches[k] for k in (0, 3, 9, 20, 30, 34)])
    own = posterior.minibatch_score(x, index)
    close(own, torch.stack([shared[k][i] for i, k in enumerate((0, 3, 9, 20, 30, 34))]), 1e-12)


@pytest.mark.parametrize(("n", "replace"), [(2, False), (3, False), (2, True), (5, True)])
def test_batches_are_uniform(n, replace, generator):
    size, draws = 6, 20_000
    index = draw_index(torch.empty(draws, 1), size, n, replace, generator)
    if replace:
        sets = list(itertools.product(range(size), repeat=min(n, 2)))
        rows = index[:, :2]
    else:
        assert (index.sort(1).values.diff(dim=1) > 0).all()
        sets = list(itertools.combinations(range(size), n))
        rows = index.sort(1).values
    counts = torch.stack([(rows == torch.tensor(s)).all(1).sum() for s in sets])
    assert counts.sum() == draws
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_enumeration_meets_every_batch():
    for n, replace, expected in ((2, False, 10), (3, False, 10), (2, True, 25)):
        u = outcomes(n, replace)
        index = draw_index(torch.empty(len(u), 1), N, n, replace, Injected(u))
        rows = index if replace else index.sort(1).values
        counts = torch.unique(rows, dim=0, return_counts=True)[1]
        assert len(counts) == expected
        assert (counts == counts[0]).all()


# ---------------------------------------------------------------------------- SGLD


@pytest.mark.parametrize(("n", "replace"), [(2, False), (3, False), (2, True)])
@pytest.mark.parametrize("h", [0.01, 0.1, 0.25])
def test_sgld_stationary_variance(n, replace, h):
    M, b, q = one_dimensional(SGLD(h, n, replace), n, replace)
    close(b.mean() / (1 - M), MU, 1e-10)
    variance = (b.var(correction=0) + q**2) / (1 - M**2)
    V = gradient_variance(n, replace)
    close(variance, (1 + h * V / 2) / (LAM * (1 - h * LAM / 2)), 1e-10)
    assert abs(float(variance) * LAM * (1 - h * LAM / 2) - 1) > 0.02  # V counts


def test_without_the_factor_the_law_is_another():
    class Forgetful(Observed):
        def minibatch_score(self, x, index):
            prior = -x / PRIOR
            whole = Observed.minibatch_score(self, x, index)
            return prior + (whole - prior) * index.shape[-1] / self.n_data

    broken = Forgetful(TARGET.log_prior, TARGET.log_likelihood, Y)
    M, b, q = one_dimensional(SGLD(0.1, 2), 2, target=broken)
    variance = float((b.var(correction=0) + q**2) / (1 - M**2))
    right = (1 + 0.05 * gradient_variance(2, False)) / (LAM * (1 - 0.05 * LAM))
    assert abs(variance / right - 1) > 0.05
    assert abs(float(b.mean()) / (1 - M) - MU) > 0.02


@pytest.mark.parametrize("tau", [0.0, 0.5, 2.0])
def test_sgld_temperature(tau):
    h = 0.1
    M, _, q = one_dimensional(SGLD(h, 2, temperature=tau), 2)
    close(q, math.sqrt(2 * h * tau), 1e-12)
    close(M, 1 - h * LAM, 1e-12)


def test_sgld_on_all_observations_is_ula(generator):
    x, u, z = torch.randn(4, 1, generator=generator), torch.rand(4, N), torch.randn(4, 1)
    new, info = SGLD(0.2, N).step(SGLD(0.2, N).init(x, TARGET), TARGET, generator=Injected(u, z))
    ula, _ = ULA(0.2).step(ULA(0.2).init(x, TARGET), TARGET, generator=Injected(z))
    close(new.x, ula.x, 1e-12)
    assert torch.equal(info.step_size, torch.full((4,), 0.2))
    assert torch.equal(new.step, torch.ones(4, dtype=torch.long))


def test_decreasing_steps_follow_their_recursion():
    """v' = (1 − hλ)² v + 2h + h² V, and the bias goes away."""
    schedule = polynomial_decay(0.3, 2.0, 0.7)
    kernel, V = SGLD(schedule, 2), gradient_variance(2, False)
    v = expected = 3.0
    for k in range(25):
        h = 0.3 * (2 + k) ** -0.7
        M, b, q = one_dimensional(kernel, 2, step=k)
        v = M**2 * v + float(b.var(correction=0)) + q**2
        expected = (1 - h * LAM) ** 2 * expected + 2 * h + h**2 * V
        close(v, expected, 1e-11)
    for k in range(25, 30_000):
        h = schedule(k)
        expected = (1 - h * LAM) ** 2 * expected + 2 * h + h**2 * V
    assert 1 < expected * LAM < 1.01
    assert v * LAM > 1.05


# ---------------------------------------------------------------------------- estimators


def test_control_variates_are_exact_on_the_normal_mean(generator):
    x = torch.randn(3, 1, generator=generator)
    estimator = ControlVariates(torch.tensor([0.37]))
    anchor = estimator.start(x, TARGET)
    for batch in itertools.combinations(range(N), 2):
        close(estimator(x, torch.tensor(batch), anchor, TARGET), TARGET.score(x), 1e-12)
    u, z, steps = torch.rand(20, 3, 2), torch.randn(20, 3, 1, generator=generator), 20
    kernel = SGLD(0.1, 2, estimator=estimator)
    noise = itertools.chain.from_iterable(zip(u, z, strict=True))
    controlled = run(kernel, TARGET, x, steps, generator=Injected(*noise)).draws
    close(controlled, run(ULA(0.1), TARGET, x, steps, generator=Injected(*z)).draws, 1e-11)


@pytest.mark.parametrize("estimator", [ControlVariates(torch.tensor([0.2, -0.4, 0.1])), SVRG(2)])
def test_anchored_estimates_are_unbiased_and_quieter(estimator, generator):
    p, posterior = logistic(generator)
    x = 0.3 * torch.randn(6, 3, generator=generator)
    anchor = estimator.start(x, posterior)
    batches = [torch.tensor(s) for s in itertools.combinations(range(7), 3)]
    for shift in (0.0, 0.2):
        y = x + shift
        values = torch.stack([estimator(y, s, anchor, posterior) for s in batches])
        plain = torch.stack([posterior.minibatch_score(y, s) for s in batches])
        close(values.mean(0), p.score(y), 1e-12)
        assert float(values.var(0).sum()) < 0.3 * float(plain.var(0).sum())
    close(anchor.score, p.score(anchor.x), 1e-12)
    if isinstance(estimator, SVRG):  # at its anchor there is no noise at all
        there = torch.stack([estimator(x, s, anchor, posterior) for s in batches])
        close(there.var(0), torch.zeros(6, 3), 1e-20)


def test_svrg_renews_its_anchor(generator):
    x = torch.randn(4, 1, generator=generator)
    kernel = SGLD(0.05, 2, estimator=SVRG(3))
    state, path = kernel.init(x, TARGET), [x]
    for k in range(8):
        state, _ = kernel.step(state, TARGET, generator=generator)
        assert torch.equal(state.anchor, path[k - k % 3])
        close(state.anchor_score, TARGET.score(state.anchor), 1e-12)
        path.append(state.x)


# ---------------------------------------------------------------------------- SGHMC


def joint(kernel, target):
    """The affine map of (x, p) on all observations; which order they are drawn in does not matter."""
    return kernel_map(kernel, target, 1, n_draws=2, field="momentum")


def lyapunov(M, Q):
    return torch.as_tensor(solve_discrete_lyapunov(M.numpy(), Q.numpy()))


@pytest.mark.parametrize(("h", "expected"), [(0.05, 1.0006), (0.1, 1.0026), (0.5, 1.0909)])
def test_sghmc_is_symplectic_euler(h, expected):
    """On N(0, 1) with friction 1; explicit Euler has 1.053, 1.114 and 2.154."""
    unit = Observed(
        lambda x: 0 * sum_event(x), lambda x, rows: -0.5 * x**2 + 0 * rows, torch.zeros(1)
    )
    step = joint(SGHMC(h, 1), unit)
    a = 1 - h
    close(step.M, torch.tensor([[1 - h**2, h * a], [-h, a]]), 1e-12)
    cov = lyapunov(step.M, step.Q)
    assert abs(float(cov[0, 0]) - expected) < 6e-5
    explicit = lyapunov(torch.tensor([[1, h], [-h, a]]), torch.tensor([[0, 0], [0, 2 * h]]))
    assert float(explicit[0, 0]) > expected + 0.05


def test_sghmc_with_the_noise_of_batches_taken_off():
    """With V̂ = V the law on batches is that of the full score."""
    h, n = 0.1, 2
    V = gradient_variance(n, False)
    kernel = SGHMC(h, n, friction=3.0, noise_estimate=V)
    u = outcomes(n, False)

    def at(x, p, z):
        new = enumerate_step(kernel, {"x": x, "momentum": p}, u, z)
        return torch.cat([new.x, new.momentum], 1)

    b = at(0.0, 0.0, 0.0)
    M = torch.stack([at(1.0, 0.0, 0.0) - b, at(0.0, 1.0, 0.0) - b], 2).mean(0)
    q = (at(0.0, 0.0, 1.0) - b)[0]
    Q = torch.outer(q, q) + torch.cov(b.mT, correction=0)
    full = joint(SGHMC(h, N, friction=3.0), TARGET)
    close(M, full.M, 1e-12)
    close(lyapunov(M, Q), lyapunov(full.M, full.Q), 1e-10)
    naive = torch.outer(q, q) * (6 * h) / (6 * h - h**2 * V) + torch.cov(b.mT, correction=0)
    assert float(lyapunov(M, naive)[0, 0]) > 1.2 * float(lyapunov(full.M, full.Q)[0, 0])


# ---------------------------------------------------------------------------- pSGLD


@pytest.mark.parametrize("correction", ["exact", "omitted"])
def test_psgld_is_its_formula(correction, generator):
    p, posterior = logistic(generator)
    h, a, lam, tau = 0.3, 0.6, 0.2, 0.7
    kernel = PSGLD(h, 3, correction, a, lam, temperature=tau)
    x, z = torch.randn(2, 5, 3, generator=generator)
    u = torch.rand(5, 7, generator=generator)
    index = draw_index(x, 7, 3, False, Injected(u))
    old = torch.rand(5, 3, generator=generator) / 100
    state = kernel.init(x, posterior)._replace(square=old)
    new, _ = kernel.step(state, posterior, generator=Injected(u, z))

    def G(x, b):
        rows = p.data[index[b]]
        g = (rows[:, -1] - torch.sigmoid(rows[:, :-1] @ x)) @ rows[:, :-1] * 7 / 3 - x / 1.69
        V = a * old[b] + (1 - a) * (g / 7) ** 2
        return 1 / (lam + V.sqrt()), (g, V)

    for b in range(5):
        (precond, (g, V)) = G(x[b], b)
        gamma = torch.func.jacrev(lambda v, b=b: G(v, b)[0])(x[b]).diagonal()
        assert float(gamma.abs().max()) > 0.01
        drift = precond * g + (tau * gamma if correction == "exact" else 0)
        close(new.x[b], x[b] + h * drift + (2 * h * tau * precond).sqrt() * z[b], 1e-10)
        close(new.square[b], V, 1e-12)


def test_psgld_with_a_fixed_preconditioner_has_its_exact_law():
    """With a = 1 it is G = 1/λ: stationary precision λ_p − (h/2) λ_p² G."""
    h, regularizer = 0.1, 2.0
    kernel = PSGLD(h, N, "exact", decay=1.0, regularizer=regularizer)
    M, b, q = one_dimensional(kernel, N)
    close(q**2 / (1 - M**2), 1 / (LAM - h / 2 * LAM**2 / regularizer), 1e-10)
    close(b.var(correction=0), 0.0, 1e-20)


def test_psgld_samples_another_law_without_its_correction():
    """G = 1/(1 + |x|) on N(0, 1): the law is p, or p/G with E x² = (1 + 2c)/(1 + c), c = √(2/π)."""
    unit = Observed(
        lambda x: 0 * sum_event(x), lambda x, rows: -0.5 * x**2 + 0 * rows, torch.zeros(1)
    )
    x = torch.linspace(-7, 7, 350).unsqueeze(1)  # no node at the kink
    u, c = torch.rand(len(x), 1), math.sqrt(2 / math.pi)

    def second_moment(correction, h):
        kernel = PSGLD(h, 1, correction, decay=0.0, regularizer=1.0)
        state = kernel.init(x, unit)
        mean, up = (
            kernel.step(state, unit, generator=Injected(u, torch.full_like(x, z)))[0].x
            for z in (0.0, 1.0)
        )
        K = torch.softmax(-0.5 * ((x.mT - mean) / (up - mean)) ** 2, dim=1)
        law = torch.linalg.matrix_power(K, 2**14)[175]
        return float(law @ x[:, 0] ** 2)

    expected = {"exact": 1.0, "omitted": (1 + 2 * c) / (1 + c)}
    for correction, value in expected.items():
        coarse, fine = (abs(second_moment(correction, h) - value) for h in (0.04, 0.02))
        assert fine < 0.04
        assert fine < coarse


# ---------------------------------------------------------------------------- averages


def test_weighted_average(generator):
    values, h = torch.randn(3, 5, 2, generator=generator), torch.rand(5, generator=generator)
    expected = sum(h[k] * values[:, k] for k in range(5)) / h.sum()
    close(weighted_average(values, h), expected, 1e-12)
    close(weighted_average(values, h.expand(3, 5)), expected, 1e-12)
    close(weighted_average(values[..., 0], torch.ones(5)), values[..., 0].mean(1), 1e-12)
    chain = run(SGLD(polynomial_decay(0.1), 2), TARGET, torch.zeros(2, 1), 6, generator=generator)
    h = torch.tensor([0.1 * (1 + k) ** -0.55 for k in range(6)])
    close(chain.info.step_size, h.expand(2, 6), 1e-12)
    close(
        weighted_average(chain.draws, chain.info.step_size),
        weighted_average(chain.draws, h),
        1e-12,
    )


REFUSED = [
    (
        lambda: SGLD(0.1, 6).init(torch.zeros(2, 1), TARGET),
        "at most the number of observations, 5",
    ),
    (lambda: SGLD(0.1, 2).init(torch.zeros(2), TARGET), "x0"),
    (lambda: SGLD(0.1, 2).init(torch.zeros(2, 1), logistic_target()), "Observed"),
    (lambda: run(SGLD(lambda k: 0.1 - k, 2), TARGET, torch.zeros(2, 1), 3), r"step_size\(1\)"),
    (lambda: PSGLD(0.1, 2, "exact", decay=1.5), "decay"),
    (lambda: SGHMC(0.1, 2, noise_estimate=21.0), "noise_estimate must be at most"),
    (lambda: ControlVariates(torch.zeros(2)).start(torch.zeros(3, 1), TARGET), "x_star"),
    (lambda: polynomial_decay(-1.0), "a must"),
    (lambda: polynomial_decay(1.0, gamma=0.5), "gamma"),
    (lambda: weighted_average(torch.zeros(2, 3), torch.ones(4)), "step_sizes"),
    (lambda: weighted_average(torch.zeros(2, 3), torch.zeros(3)), "positive"),
    (lambda: Observed(sum_event, lambda x, r: x, torch.zeros(0, 2)), "at least one"),
    (lambda: Observed(sum_event, lambda x, r: x, Y).score(torch.zeros(2, 1)), "log_likelihood"),
    (lambda: Observed(lambda x: x, lambda x, r: x - r, Y).score(torch.zeros(2, 1)), "log_prior"),
    (lambda: TARGET.minibatch_score(torch.zeros(2, 1), torch.zeros(3, 2).long()), "index"),
    (lambda: TARGET.minibatch_score(torch.zeros(2, 1), torch.zeros(0).long()), "empty"),
]


def logistic_target():
    return LogisticRegression(torch.ones(3, 1), torch.zeros(3))


@pytest.mark.parametrize(("call", "message"), REFUSED)
def test_refusals(call, message, as_user):
    with pytest.raises(ValueError, match=message):
        call()


def test_plain_has_no_anchor():
    anchor = Plain().start(torch.zeros(3, 2), TARGET)
    assert isinstance(anchor, Anchor)
    assert anchor.x.shape == anchor.score.shape == (3, 0)
    assert SGLD(0.1, 2) == SGLD(0.1, 2)
    assert hash(SGLD(polynomial_decay(0.1), 2)) == hash(SGLD(polynomial_decay(0.1), 2))
