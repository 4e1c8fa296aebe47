"""Starts, and tuned and planned steps: dual averaging, curvature, what a plan promises."""

import dataclasses
import math
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from support import COV, MEAN, close

from gradlogp import Gaussian, GaussianMixture, as_target, run, sample
from gradlogp.langevin import (
    HMC,
    MALA,
    SGLD,
    ULA,
    Adaptation,
    Preconditioner,
    estimate_curvature,
    find_start,
    plan_steps,
    step_for_bias,
    warm_up,
)
from gradlogp.langevin.kernels.facts import UNKNOWN
from gradlogp.langevin.planning import gaussian_bias
from gradlogp.langevin.run.resume import Part
from gradlogp.langevin.run.warmup import LOOK, Moved, Walkers, averaged, learnt, safer_than
from gradlogp.langevin.tuning.adaptation import DualAveraging
from gradlogp.langevin.tuning.metric import fit_metric

NORMAL = as_target(log_prob=lambda x: -x.square().flatten(1).sum(1) / 2, score=lambda x: -x)


class State(NamedTuple):
    x: torch.Tensor


class Info(NamedTuple):
    acceptance: torch.Tensor


@dataclass(frozen=True)
class Known:
    """A kernel that accepts with probability exp(−c h), c differing between the chains."""

    step_size: float

    def init(self, x, target):
        return State(x)

    def step(self, state, target, *, generator=None):
        return state, Info(torch.exp(-self.step_size * state.x[:, 0]))


# ---------------------------------------------------------------------------- step sizes


def test_dual_averaging_is_its_formula():
    """Hoffman & Gelman (2014), equation 6, in closed form: H̄_t = Σ (δ − α_i) / (t + t_0)."""
    accepted, h0, delta = [0.9, 0.1, 0.7, 0.3, 1.0], 0.2, 0.6
    averaging, average = DualAveraging.start(h0, delta), 0.0
    for t, a in enumerate(accepted, 1):
        averaging = averaging.update(a)
        total = sum(delta - b for b in accepted[:t]) / (t + 10)
        log_step = math.log(10 * h0) - math.sqrt(t) / 0.05 * total
        average = t**-0.75 * log_step + (1 - t**-0.75) * average
        close(averaging.log_step, log_step, 1e-13)
        close(averaging.log_average, average, 1e-13)


def test_the_step_of_a_known_acceptance():
    """exp(−c h) = δ at h = −log(δ)/c: the last steps lead there, whatever dual averaging swings to."""
    c = 4.0
    found = warm_up(Known(1.0), NORMAL, torch.full((3, 1), c), 2000, Adaptation(0.574))
    assert abs(found.kernel.step_size / (-math.log(0.574) / c) - 1) < 0.005
    assert isinstance(found.kernel, Known)


@dataclass(frozen=True)
class Own(Known):
    """The same with a step for each chain."""

    facts = dataclasses.replace(UNKNOWN, step_per_chain=True)


def test_chains_that_differ_have_steps_of_their_own():
    """A mean over chains has equilibria in which one of four stands still; no chain is left here."""
    c = torch.tensor([[1.0], [1.2], [0.9], [1e4]])
    found = warm_up(Own(0.3), NORMAL, c, 2000, Adaptation(0.651))
    exact = -math.log(0.651) / c[:, 0]
    assert float((found.steps / exact - 1).abs().max()) < 0.1
    close(found.kernel.step_size, float(found.steps.min()), 1e-12)  # the straggler decides
    together = warm_up(Known(0.3), NORMAL, c, 600, Adaptation(0.651))  # negative control
    assert math.exp(-together.kernel.step_size * 1e4) < 1e-6
    alike = warm_up(Own(0.3), NORMAL, c[:3], 1000, Adaptation(0.651))
    pooled = float(torch.exp(-alike.kernel.step_size * c[:3]).mean())
    assert abs(pooled - 0.651) < 0.002


def test_tuning_is_deterministic(generator):
    x0 = torch.randn(5, 2, generator=generator)
    one, two = (
        warm_up(MALA(0.1), NORMAL, x0, 30, generator=generator.manual_seed(3)) for _ in range(2)
    )
    assert one.kernel == two.kernel
    assert torch.equal(one.state.x, two.state.x)


@pytest.mark.parametrize("kind", ["diagonal", "matrix", "auto"])
def test_the_metric_becomes_the_covariance(kind, generator):
    """On a normal law draws and scores together give the covariance to rounding, from any step."""
    cov = torch.tensor([[100.0, 0.0], [0.0, 0.01]]) if kind == "diagonal" else COV
    target = Gaussian(MEAN, cov)
    x0 = target.sample(4, generator=generator)
    found = warm_up(
        MALA(0.01), target, x0, 320, Adaptation(preconditioner=kind), generator=generator
    )
    P = found.kernel.preconditioner
    assert P.kind == ("diagonal" if kind == "diagonal" else "matrix")
    expected = cov.diagonal() if kind == "diagonal" else cov
    assert float((P.value / expected - 1).abs().max()) < 1e-3


def test_a_normal_law_has_the_width_of_its_metric(generator):
    """Of n draws of N(0, I_d) the largest singular value is about √n + √d, not √n."""
    law = Gaussian(torch.zeros(40), torch.linspace(0.1, 9, 40))
    x = law.sample(80, generator=generator)
    seen = [Moved(None, y, law.score(y), None, None, None) for y in x.split(4)]
    use, how = torch.ones(4, dtype=torch.bool), Adaptation(preconditioner="auto")
    P, width = learnt(how, None, seen, use)
    close(P.apply(torch.eye(40)), law.cov, 1e-3)
    assert 1 <= width < 1.2
    half = [m._replace(score=4 * m.score) for m in seen]  # steeper than its draws are wide
    assert abs(learnt(how, None, half, use)[1] - 2) < 0.3


@pytest.mark.parametrize("own", [False, True])
def test_divergent_steps_count_up_to_twice_the_tuned_one(own):
    def window(short, long):  # of 100 steps of 4 chains at 0.5 and 2.1, so many diverge of each
        none = torch.zeros(4, dtype=torch.bool)
        return [
            Moved(
                torch.full((4,) if own else (), h), None, None, None, None,
                ~none if i < 2 * (short if h < 1 else long) else none,
            )
            for i in range(100) for h in [0.5 if i % 2 else 2.1]
        ]  # fmt: skip

    h, all_of_them = torch.ones(4 if own else ()), torch.ones(4, dtype=torch.bool)
    rate = lambda seen, use=all_of_them: safer_than(0.8, Adaptation(), seen, h, use)
    assert rate(window(0, 50)) == 0.8
    assert rate(window(1, 0)) == pytest.approx(0.9)
    assert rate(window(1, 0)[:78]) == 0.8  # too short to say
    some = torch.tensor([True, False, False, False])
    seen = [m._replace(diverging=m.diverging & ~some) for m in window(5, 0)]
    assert rate(seen) == pytest.approx(0.9)
    assert rate(seen, some) == 0.8
    assert safer_than(0.8, Adaptation(0.8), window(5, 0), h, all_of_them) == 0.8


def test_a_long_window_ends_where_its_first_steps_add_nothing(generator):
    kernel, h = MALA(0.5), torch.tensor(0.5)
    state = kernel.init(torch.zeros(4, 2), NORMAL)
    walkers = Walkers([Part(slice(0, 4), generator, state, None)], NORMAL, None)
    looked = []
    for vain, n, taken in ((True, 300, LOOK), (False, 300, 300), (True, LOOK, LOOK)):
        says = lambda seen, vain=vain: looked.append(len(seen)) or vain
        assert len(averaged(kernel, walkers, h, None, n, 0.6, says)[1]) == taken
    assert looked == [LOOK, LOOK]


def test_a_chain_that_cannot_move_starts_again(generator):
    """Far out the density is so rough that only a step of 10⁻¹² is accepted."""

    def log_prob(x):
        rough = -1e7 + 1e6 * (1e6 * x[:, 0]).sin()
        return torch.where(x[:, 0] > 40, rough, -x.square().sum(1) / 2)

    x0 = torch.randn(4, 2, generator=generator)
    x0[2, 0] = 50.0
    how, target = Adaptation(preconditioner="auto"), as_target(log_prob=log_prob)
    found = warm_up(HMC(0.5, 2), target, x0, 200, how, generator=generator)
    assert found.restarts.tolist() == [0, 0, 1, 0]
    assert float(found.state.x.abs().max()) < 10
    close(
        found.kernel.preconditioner.apply(torch.eye(2)), torch.eye(2), 0.2
    )  # the straggler is not in it
    kernel = dataclasses.replace(found.kernel, preconditioner=Preconditioner(1.0))
    chain = run(kernel, target, found.state.x, 200, generator=generator)
    assert float(chain.info.acceptance.mean(1).min()) > 0.6


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (lambda: warm_up(ULA(0.1), NORMAL, torch.zeros(2, 2), 5), "step_for_bias"),
        (lambda: warm_up(Known(0.1), NORMAL, torch.zeros(2, 2), 5), "facts"),
        (lambda: warm_up(MALA(0.1), NORMAL, torch.zeros(2, 2), 0), "at least 1"),
        (lambda: Adaptation(1.0), "target_accept"),
        (lambda: Adaptation(preconditioner="full"), "preconditioner"),
        (lambda: warm_up(MALA(0.1), NORMAL, torch.zeros(2), 5), "x0"),
        (
            lambda: warm_up(object(), NORMAL, torch.zeros(2, 2), 5),
            "an instance with its step size",
        ),
        (lambda: warm_up(SGLD(lambda k: 0.1, 2), NORMAL, torch.zeros(2, 2), 5), "one number"),
        (
            lambda: warm_up(
                ULA(0.1), NORMAL, torch.zeros(2, 2), 50, Adaptation(preconditioner="matrix")
            ),
            "no field preconditioner",
        ),
        (
            lambda: warm_up(
                MALA(0.1), NORMAL, torch.zeros(2, 2), 39, Adaptation(preconditioner="matrix")
            ),
            "40",
        ),
        (lambda: plan_steps((0.0, 1.0, 2), 0.1), "m of the problem must be positive"),
        (lambda: plan_steps((2.0, 1.0, 2), 0.1), "L of the problem must be at least 2"),
        (lambda: plan_steps((1.0, 1.0, 2), 0.0), "accuracy"),
        (lambda: plan_steps((1.0, 1.0, 2), 0.1, distance=-1.0), "distance"),
        (lambda: plan_steps((1.0, 1.0, 2), 0.1, metric="tv"), "metric"),
    ],
)
def test_what_cannot_be_tuned_or_planned_is_refused(case, message, as_user):
    with pytest.raises(ValueError, match=message):
        case()


# ---------------------------------------------------------------------------- bias


@pytest.mark.parametrize("b", [0.01, 0.1, 1.0, 5.0])
def test_step_for_bias_is_exact_for_ula(b):
    """The variance of ULA, v = (1 − h l)² v + 2 h, is (1 + b)/l at l = L and closer below."""
    l = torch.tensor([0.1, 1.0, 7.0])
    h = step_for_bias(7.0, b)
    v = 2 * h / (1 - (1 - h * l) ** 2)
    close(v[-1] * 7, 1 + b, 1e-12)
    assert (v * l <= 1 + b + 1e-12).all()
    assert (v > 1 / l).all()


@pytest.mark.parametrize(("L", "b"), [(0.0, 0.1), (1.0, 0.0), (-1.0, 0.1), (1.0, math.inf)])
def test_bad_biases_are_refused(L, b):
    with pytest.raises(ValueError, match="positive"):
        step_for_bias(L, b)


def test_gaussian_bias_is_the_distance_of_the_two_laws():
    l, h = torch.tensor([0.5, 2.0, 3.0]), 0.3
    kept = 2 * h / (1 - (1 - h * l) ** 2)
    close(gaussian_bias(l, h), float((kept.sqrt() - l.rsqrt()).norm()), 1e-12)
    assert gaussian_bias(l, 2 / 3) == math.inf
    close(gaussian_bias(l, 1e-9) / float(l.sum().sqrt() / 4 * 1e-9), 1.0, 1e-6)


# ---------------------------------------------------------------------------- curvature


def hessians(target, x):
    with torch.enable_grad():
        return -torch.func.vmap(torch.func.jacrev(lambda v: target.score(v[None])[0]))(x)


MIXTURE = GaussianMixture([0.3, 0.7], [[-1.5, -0.8], [1.4, 0.9]], [0.3, 0.4])


@pytest.mark.parametrize(
    "target",
    [
        Gaussian(MEAN, COV),
        MIXTURE,
        as_target(log_prob=lambda x: -x.pow(4).sum(1) - x.prod(1)),
        as_target(score=lambda x: -x),
    ],
    ids=["gaussian", "mixture", "autograd", "score only"],
)
def test_curvature_in_the_plane_is_exact(target, generator):
    x = torch.randn(6, 2, generator=generator)
    found = estimate_curvature(target, x, generator=generator)
    values = torch.linalg.eigvalsh(hessians(target, x))
    close(found.m, float(values.min()), 1e-10)
    close(found.L, float(values.max()), 1e-10)
    assert found.residual == 0
    if target is MIXTURE:
        assert found.m < 0  # between the modes it is not log-concave


def test_curvature_in_high_dimension(generator):
    """Extreme eigenvalues to rounding from 40 of 200 products where they stand apart."""
    d = 200
    l = torch.linspace(1, 2, d)
    l[0], l[-1] = 0.01, 50.0
    Q = torch.linalg.qr(torch.randn(d, d, generator=generator)).Q
    target = Gaussian(torch.zeros(d), Q @ torch.diag(1 / l) @ Q.mT)
    found = estimate_curvature(target, torch.zeros(3, d), n_iterations=40, generator=generator)
    close(found.L, 50.0, 1e-9)
    close(found.m, 0.01, 1e-6)
    assert found.residual < 1e-4
    rough = estimate_curvature(target, torch.zeros(1, d), n_iterations=3, generator=generator)
    assert rough.L <= 50 + 1e-9
    assert rough.m >= 0.01 - 1e-9
    assert min(abs(rough.L - l)) <= rough.residual + 1e-9
    assert rough.residual > 1e-3


def test_curvature_of_images(generator):
    images = estimate_curvature(NORMAL, torch.zeros(2, 1, 3, 3), generator=generator)
    close(images[:2], (1.0, 1.0), 1e-10)


@pytest.mark.parametrize(
    "case",
    [
        lambda: estimate_curvature(NORMAL, torch.zeros(2, 2), n_iterations=0),
        lambda: estimate_curvature(NORMAL, torch.zeros(0, 2)),
        lambda: estimate_curvature(as_target(score=torch.zeros_like), torch.zeros(2, 2)),
        lambda: estimate_curvature(as_target(score=lambda x: -x.sqrt()), torch.zeros(2, 2)),
    ],
)
def test_bad_curvatures_are_refused(case, as_user):
    with pytest.raises(ValueError):
        case()


# ---------------------------------------------------------------------------- plans


def exact_distance(l, h, n):
    """W₂ between N(0, 1/l) and ULA after n steps from the mode."""
    a = 1 - h * l
    kept = 2 * h / (1 - a**2)
    return float(((kept * (1 - a ** (2 * n))).sqrt() - l.rsqrt()).norm())


@pytest.mark.parametrize("accuracy", [1.0, 0.1, 0.01])
@pytest.mark.parametrize("l", [[1.0], [0.5, 3.0], [0.1, 1.0, 2.0, 10.0]])
def test_a_plan_keeps_its_promise_on_gaussians(l, accuracy):
    l = torch.tensor(l)
    target = Gaussian(torch.zeros(len(l)), 1 / l)
    made = plan_steps(target, accuracy)
    m, L, d = float(l.min()), float(l.max()), len(l)
    bound = math.exp(math.log1p(-m * made.step_size) * made.n_steps) * math.sqrt(d / m)
    bound += 1.65 * L / m * math.sqrt(made.step_size * d)
    assert bound <= accuracy * (1 + 1e-9) or made.step_size == 2 / (m + L)
    assert made.step_size <= 2 / (m + L)
    assert exact_distance(l, made.step_size, made.n_steps) <= accuracy
    exact = made.exact_gaussian
    assert exact_distance(l, exact.step_size, exact.n_steps) <= accuracy
    assert exact.step_size > made.step_size
    assert exact.n_steps < made.n_steps
    if exact.step_size < 2 / (m + L):
        close(gaussian_bias(l, exact.step_size), accuracy / 2, 1e-9)


def test_a_plan_from_curvature():
    l = torch.tensor([0.5, 1.0, 3.0])
    made, known = plan_steps((0.5, 3.0, 3), 0.1), plan_steps(Gaussian(torch.zeros(3), 1 / l), 0.1)
    close(made.step_size, known.step_size, 1e-12)
    assert abs(made.n_steps - known.n_steps) <= 1
    assert made.exact_gaussian.step_size < known.exact_gaussian.step_size  # all are taken as L
    close(made.step_size, (0.05 * 0.5 / (1.65 * 3)) ** 2 / 3, 1e-12)
    assert "Dalalyan" in made.theorem
    assert any("0.5-strongly" in condition for condition in made.conditions)
    near = plan_steps((0.5, 3.0, 3), 0.1, distance=0.01)
    assert near.n_steps == 1


CENTRE = torch.tensor([3.0, -1.0], dtype=torch.float64)
SPREAD = torch.tensor([[4.0, 0.6], [0.6, 0.25]], dtype=torch.float64)
PRECISION = torch.linalg.inv(SPREAD)


class ByHand:
    """N(3, −1; SPREAD), computed by NumPy."""

    event_shape = torch.Size([2])

    def log_prob(self, x):
        y = (x - CENTRE).numpy()
        return torch.as_tensor(-(y @ PRECISION.numpy() * y).sum(1) / 2)

    def score(self, x):
        return torch.as_tensor(-(x - CENTRE).numpy() @ PRECISION.numpy())


def once(x):
    """The same from distances, whose second derivative PyTorch does not have."""
    y = (x - CENTRE) @ torch.linalg.cholesky(PRECISION)
    return -torch.cdist(y, torch.zeros(1, 2))[:, 0].square() / 2


@pytest.mark.parametrize(
    "target", [ByHand(), as_target(log_prob=once, event_shape=(2,))], ids=["by hand", "once"]
)
def test_a_score_without_derivatives_has_starts(target, generator):
    """The curvature comes from the path: on a normal law it is near the precision at its end."""
    found = find_start(target, 400, generator=generator)
    y = (found.x - CENTRE) @ torch.linalg.cholesky(PRECISION)
    assert float(y.square().sum(1).median()) < 4  # of χ² with two degrees 1.4
    chain = sample(target, 200, n_warmup=100, generator=generator)
    assert chain.verdict.ok, chain.verdict
    assert abs(float(chain.draws[..., 0].var()) / 4 - 1) < 0.25


def test_directions_without_curvature_are_as_wide_as_their_slope(generator):
    """Laplace's law bends nowhere but at 0: its Hessian would give a width of 10¹⁵⁰, or 10⁷."""
    rate = torch.tensor([1.0, 4.0])
    for log_prob in (
        lambda x: -(x.abs() * rate).sum(1),
        lambda x: -(x[:, :2].abs() * rate).sum(1) - 50 * x[:, 2:].square().sum(1),
    ):
        d = 2 if log_prob(torch.ones(1, 2)) == -5 else 3
        start = find_start(as_target(log_prob=log_prob, event_shape=(d,)), 4, generator=generator)
        width = start.metric.value.diagonal()
        assert bool(((width > 0.009) & (width < 4.1)).all())  # at 0 itself there is no slope
        assert float(start.x.abs().max()) < 20


def test_laws_without_a_slope_are_doubted():
    """A flat one is none; where one ends at a border its scores say nothing."""
    g = torch.Generator().manual_seed(0)
    flat = as_target(log_prob=lambda x: 0 * x.sum(1), event_shape=(2,))
    assert not sample(flat, 100, n_warmup=100, generator=g).verdict.ok
    x = torch.rand(400, 2, generator=g)
    torch.testing.assert_close(fit_metric(x, torch.zeros(400, 2)).value, x.var(0))
