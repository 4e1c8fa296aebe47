"""The facts of every kernel against what it does: counted, enumerated, or followed point by point."""

import dataclasses
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from kernel_support import (
    DENSE,
    GAUSSIAN,
    KERNELS,
    PRECISION,
    SKEWED,
    HalvedQuartic,
    make,
    memory_of,
    quartic_bias,
)
from support import COV, MEAN, close, order, z_score

from gradlogp import langevin
from gradlogp.calculus import kernel_map
from gradlogp.core import Injected, Streams
from gradlogp.langevin import kernels
from gradlogp.langevin.kernels.facts import UNKNOWN, Facts, facts_of, table


def skewed_sample(n, tau, generator):
    """Draws of p^{1/τ} for log p = x − e^x: log of a Gamma variable of shape 1/τ and scale τ."""
    u = torch.rand(n, 1, generator=generator)
    if tau == 1:
        return torch.log(-torch.log1p(-u))
    assert tau == 2  # e^x is χ² of one degree of freedom
    return 2 * torch.log(torch.special.ndtri((1 + u) / 2).abs())


def maker(kernel, **changes):
    """Step size -> kernel, with batches of one observation."""
    if "batch_size" in {f.name for f in dataclasses.fields(kernel)}:
        changes["batch_size"] = 1
    return partial(make, kernel, **changes)


EVERY = [maker(kernel) for kernel in KERNELS]
EVERY += [maker(kernels.Splitting, scheme=s) for s in ("OABAO", "ABO", "OBA")]
FLAT = [m for m in EVERY if not hasattr(m(0.1), "radius")]
"""Those whose law is that of a density on R^d; kernels on a sphere are in test_sphere.py."""
LINE = [m for m in FLAT if not hasattr(m(0.1), "integrator")]
"""Those that run in one dimension; the others are in test_microcanonical.py."""


def each(makers):
    name = lambda k: k.scheme if type(k) is kernels.Splitting else type(k).__name__
    return pytest.mark.parametrize("made", makers, ids=[name(m(0.1)) for m in makers])


def test_every_kernel_has_facts():
    assert all(isinstance(kernel(0.1).facts, Facts) for kernel in EVERY)
    assert facts_of(object()) == UNKNOWN


# ---------------------------------------------------------------------------- draws, arguments


class Counting(Streams):
    """A source that counts how often it is asked."""

    def __init__(self):
        self.calls, self.generator = 0, torch.Generator().manual_seed(0)

    def draw(self, law, shape, like):
        self.calls += 1
        return law(shape, generator=self.generator).to(like)


class Watched(HalvedQuartic):
    """A target that remembers whether its log-density was asked for."""

    asked = False

    def log_prob(self, x):
        self.asked = True
        return super().log_prob(x)


@each(EVERY)
def test_draws_and_the_need_of_a_log_density_are_counted(made):
    kernel, target, source = made(0.1), Watched(), Counting()
    kernel = dataclasses.replace(kernel, radius=2**0.5) if hasattr(kernel, "radius") else kernel
    source.start, source.stop, source.total = 0, 4, 4
    state = kernel.init(torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]), target)
    for _ in range(3):
        state, _ = kernel.step(state, target, generator=source)
    assert source.calls == 3 * kernel.facts.draws
    assert target.asked == kernel.facts.needs_log_prob


# ---------------------------------------------------------------------------- on a Gaussian


class Shared(Counting):
    """The same noise for every row."""

    def draw(self, law, shape, like):
        return super().draw(law, (1, *shape[1:]), like).expand(shape)


class Observed:
    """The Gaussian in two observations, whose scores differ by a constant."""

    n_data, log_prob, score = 2, staticmethod(GAUSSIAN.log_prob), staticmethod(GAUSSIAN.score)

    def minibatch_score(self, x, index):
        return GAUSSIAN.score(x) + index - 0.5


@each(FLAT)
def test_affine_on_a_gaussian(made, generator):
    """f(u + v) = f(u) + f(v) − f(0) on unit vectors and others, with the same noise for all four."""
    steps = [made(h) for h in (0.4, 0.8, 1.5)]  # some refused and some not, for one of them
    if isinstance(steps[0], kernels.SVGD):  # particles move by where the others are
        return
    u, v = torch.cat([torch.eye(2), torch.randn(6, 2, generator=generator)]).split(4)
    x = torch.cat([0 * u, u, v, u + v])
    source, off = Shared(), []
    for kernel in 40 * steps:
        f = kernel.step(kernel.init(x, Observed()), Observed(), generator=source)[0].x
        zero, at_u, at_v, at_both = f.split(4)
        off.append(float((at_both - at_u - at_v + zero).abs().max()))
    assert (max(off) < 1e-12) == steps[0].facts.affine
    assert max(off) < 1e-12 or max(off) > 1e-3


@each(FLAT)
@pytest.mark.parametrize("tau", [1.0, 0.3])
@pytest.mark.parametrize("h", [0.05, 0.4])
def test_the_stationary_covariance(made, tau, h):
    """From the affine map that a step is, by the equation Σ = M Σ Mᵀ + Q."""
    warm = "temperature" in {f.name for f in dataclasses.fields(made(h))}
    kernel = made(h, temperature=tau) if warm else made(h)
    facts = kernel.facts
    if facts.exact:
        close(facts.stationary(kernel, PRECISION), (tau if warm else 1.0) * COV, 1e-12)
    elif facts.stationary is not None:
        assert facts.affine
        close(facts.stationary(kernel, PRECISION), law_of(kernel)[1], 1e-9)


def law_of(kernel):
    """Mean and covariance of x under what an affine kernel keeps on the Gaussian."""
    field = memory_of(kernel.init(MEAN[None], GAUSSIAN))
    mean, cov = kernel_map(kernel, GAUSSIAN, 2, kernel.facts.draws, field).stationary()
    close(mean[:2], MEAN, 1e-9)
    return mean[:2], cov[:2, :2]


@pytest.mark.parametrize(
    "C", [DENSE, COV, torch.tensor([0.4, 1.9]).double()], ids=["dense", "its own", "diag"]
)
def test_the_stationary_covariance_of_matrices(C):
    for kernel in (kernels.PreconditionedULA(0.05, C, 0.6), kernels.ExponentialEuler(0.1, C, 0.6)):
        close(kernel.facts.stationary(kernel, PRECISION), law_of(kernel)[1], 1e-9)


# ---------------------------------------------------------------------------- off a Gaussian


@each(LINE)
def test_order_on_a_quartic(made):
    """A Gaussian cannot show the order: there averaged noise and BAOAB have no error at all."""
    if (expected := made(0.1).facts.order) is None:
        return
    timed = memory_of(made(0.1).init(torch.zeros(1, 1), HalvedQuartic())) == "momentum"
    steps = [0.1, 0.05, 0.025] if timed else [0.04, 0.02, 0.01]
    errors = [quartic_bias(made(h)) for h in steps]
    found = order(errors)[-1]
    close(found, float(expected), 0.08)
    assert abs(errors[0]) > 1e-5


def moments(kernel, generator, n=40_000, n_steps=40):
    """The largest z-score of three moments of log Exp(1), after steps from its own draws."""
    target = Skewed()
    x = skewed_sample(n, 1, generator)
    state = kernel.init(x, target)
    if isinstance(kernel, kernels.ParallelTempering):
        hot = skewed_sample(n, 2, generator)
        both = torch.stack([x, hot], 1)
        state = state._replace(
            replicas=both, scores=SKEWED.score(both), log_probs=(both - both.exp())[..., 0]
        )
    if "momentum" in state._fields:
        state = state._replace(momentum=torch.randn(n, 1, generator=generator))
    for _ in range(n_steps):
        state, info = kernel.step(state, target, generator=generator)
        assert float(info.diverging.double().mean()) < 1e-3
    y, variance = state.x[:, 0] + 0.5772156649015329, math.pi**2 / 6
    fourth = 3 * variance**2 + math.pi**4 / 15
    return max(abs(z_score(y**k, e)) for k, e in ((1, 0), (2, variance), (4, fourth)))


class Skewed(HalvedQuartic):
    """log p = x − e^x in two observations."""

    def log_prob(self, x):
        return SKEWED.log_prob(x)

    def score(self, x):
        return SKEWED.score(x)


LARGE = {
    "BAOA": 1.2, "BAOAB": 1.2, "GHMC": 1.2, "HMC": 0.8, "LeimkuhlerMatthews": 0.7, "MALA": 0.7,
    "NUTS": 0.8, "OBABO": 0.8, "PSGLD": 0.02, "ParallelTempering": 0.7, "SGHMC": 0.6, "Splitting": 1.2,
}  # fmt: skip
"""Steps at which a good part is refused or a bias shows; 0.3 elsewhere."""


@each(LINE)
def test_exact_kernels_keep_the_law_and_others_do_not(made, generator):
    kernel = made(LARGE.get(type(made(0.1)).__name__, 0.3))
    if not isinstance(kernel, kernels.SVGD):  # whose particles are one sample
        worst = moments(kernel, generator)
        assert worst < 4.5 if kernel.facts.exact else worst > 6


def flow(kernel, target, x, y):
    """log p(x) q(y|x) a(x, y) for a kernel with one normal number a step, found by Newton's method.

    The step as a function of its noise z is inverted at y: q(y|x) = φ(z)/|∂y/∂z|.
    """
    state = kernel.init(x, target)
    extra = [torch.zeros(len(x))] * (kernel.facts.draws - 1)  # every proposal is accepted

    def ends(z):
        return kernel.step(state, target, generator=Injected(z, *extra))

    z = torch.zeros_like(x)
    for _ in range(50):
        z.requires_grad_()
        end = ends(z)[0].x
        slope = torch.autograd.grad(end.sum(), z)[0]
        z = (z - ((end - y) / slope).clamp(-1, 1)).detach()
    new, info = ends(z)
    close(new.x, y, 1e-10)
    accepted = getattr(info, "acceptance", torch.ones(len(x))).log()
    return target.log_prob(x) - (z.square() / 2 + slope.abs().log())[:, 0] + accepted


ONE_NORMAL = [
    made
    for made in LINE
    if made(0.1).facts.draws - made(0.1).facts.exact == 1
    and "score" in (fields := made(0.1).init(torch.zeros(1, 1), HalvedQuartic())._fields)
    and not {"momentum", "z"} & set(fields)
    and not isinstance(made(0.1), kernels.NUTS)
]
"""Kernels that draw one normal number, and a uniform one if they accept or refuse."""


@each(ONE_NORMAL)
def test_reversible_point_by_point(made, generator):
    """p(x) q(y|x) a(x, y) = p(y) q(x|y) a(y, x), on a skewed law; with momentum see GHMC's test."""
    x, y = -2 + 2.5 * torch.rand(2, 300, 1, generator=generator)
    kernel = made(0.4)
    off = float((flow(kernel, SKEWED, x, y) - flow(kernel, SKEWED, y, x)).abs().max())
    assert (off < 1e-8) == kernel.facts.reversible
    assert off < 1e-8 or off > 0.05


def test_what_is_reversible_is_exact():
    """So that an unadjusted kernel is not, without a test of its own."""
    for facts in (made(0.1).facts for made in EVERY):
        assert facts.exact or not facts.reversible


# ---------------------------------------------------------------------------- the page


def test_the_table_in_the_docs_is_made_from_the_facts():
    assert all(hasattr(langevin, kernel.__name__) for kernel in KERNELS)
    shown = [make(kernel, 0.1) for kernel in KERNELS]
    shown.sort(key=lambda kernel: (kernel.facts.needs_log_prob, kernel.facts.draws))
    page = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    assert table(shown) in page, f"docs/sampling.md must have this table\n\n{table(shown)}"
