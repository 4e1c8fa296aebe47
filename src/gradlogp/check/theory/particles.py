r"""Claims on minibatches, tempering, particles and the Stein discrepancy."""

from __future__ import annotations

import torch
from scipy.special import betainc

from ...core import Estimate, mean_and_error, sum_event
from ...distributions.analytic import Gaussian, GaussianMixture
from ...distributions.observed import Observed
from ...langevin.kernels import SGLD, SVGD, ControlVariates, ParallelTempering, polynomial_decay
from ...langevin.kernels.particles import Linear
from ..metrics import SteinDiscrepancy, ksd
from .claim import Numbers, at_most, exact, false, statistical, table

WELLING = "Welling & Teh 2011"
VOLLMER = "Vollmer, Zygalakis & Teh 2016, arXiv 1501.00438"
BAKER = "Baker, Fearnhead, Fox & Nemeth 2019, arXiv 1706.05439"
KOFKE = "Kofke 2002, doi 10.1063/1.1507776"
LIU = "Liu & Wang 2016, 2018, arXiv 1608.04471, 1810.11693"
GORHAM = "Gorham & Mackey 2017, arXiv 1703.01717"

Y = torch.tensor([[-1.5], [-0.3], [0.2], [0.9], [1.1], [2.6]], dtype=torch.float64)
"""Six observations of N(x, 1), x with a flat prior: the posterior is N(mean, 1/6)."""

H, BATCH = 0.1, 2
V = (36 / BATCH) * float(Y.var(correction=0)) * (6 - BATCH) / 5
"""The variance of the minibatch score, (N²/n) var(terms) (N − n)/(N − 1)."""

SGLD_VARIANCE = (1 + H * V / 2) / (6 * (1 - 3 * H))


def _variance(kernel: SGLD, n: int, g: torch.Generator) -> Estimate:
    """The variance of x about the posterior mean, after 25 steps, which forget the start."""
    terms = lambda x, rows: -0.5 * (x - rows[..., 0]).square()
    target, mean = Observed(lambda x: 0 * sum_event(x), terms, Y), Y.mean()
    x = mean + torch.randn(n // 4, 1, dtype=torch.float64, generator=g) / 6**0.5
    state = kernel.init(x, target)
    for _ in range(25):
        state, _ = kernel.step(state, target, generator=g)
    return mean_and_error((state.x[:, 0] - mean).square())


def _decreasing_steps() -> Numbers:
    """The variance after k steps of h_k, by the recursion v' = (1 − hλ)² v + 2h + h² V."""
    schedule, v = polynomial_decay(0.1, 1.0, 0.6), 1.0
    for k in range(20_000):
        h = schedule(k)
        v = (1 - 6 * h) ** 2 * v + 2 * h + h * h * V
    return 1.0, 6 * v


def _swap_rate(n: int, g: torch.Generator) -> Numbers:
    """Swaps between draws of N(0, I/β) at β = 1 and ½, by the rule of the kernel."""
    d, beta = 10, 0.5
    z = torch.randn(2, n // 4, d, dtype=torch.float64, generator=g)
    energy = 0.5 * z.square().sum(2) * torch.tensor([[1.0], [1 / beta]], dtype=torch.float64)
    accepted = ((1 - beta) * (energy[0] - energy[1])).exp().clamp(max=1)
    expected = 2 * float(betainc(d / 2, d / 2, beta / (1 + beta)))
    return expected, mean_and_error(accepted)


def _tempering_finds_weights(n: int, g: torch.Generator) -> Numbers:
    """Chains that all start in one of two far modes of weights 0.3 and 0.7."""
    law = GaussianMixture([0.3, 0.7], torch.tensor([[-4.0], [4.0]]).double(), 0.25)
    kernel = ParallelTempering((0.1, 0.5, 2.0, 6.0), (1.0, 4.0, 16.0, 64.0))
    state = kernel.init(torch.full((min(n // 200, 2000), 1), -4.0).double(), law)
    for _ in range(250):
        state, _ = kernel.step(state, law, generator=g)
    return 0.7, mean_and_error((state.x[:, 0] > 0).double())


def _particles(n: int, g: torch.Generator) -> Numbers:
    law = Gaussian(torch.tensor([1.5], dtype=torch.float64), 2.0)
    kernel = SVGD(0.05, Linear())
    state = kernel.init(torch.randn(5, 1, dtype=torch.float64, generator=g), law)
    for _ in range(4000):
        state, _ = kernel.step(state, law)
    return 2.0, state.x.var(correction=0)


def _stein(shift: float, g: torch.Generator) -> SteinDiscrepancy:
    law = Gaussian(torch.zeros(2).double(), 1.0)
    return ksd(law.score, shift + law.sample(1000, generator=g), generator=g)


def _stein_of_draws(n: int, g: torch.Generator) -> Numbers:
    found = _stein(0.0, g)
    return 0.0, Estimate(found.value, found.standard_error)


CHECKS = table(
    __name__,
    minibatches=(
        statistical, "SGLD's variance is (1 + hV/2)/(λ(1 − hλ/2)), batches of 2 of 6, h = 0.1",
        VOLLMER, 0.02, lambda n, g: (SGLD_VARIANCE, _variance(SGLD(H, BATCH), n, g))),
    minibatches_are_biased=(
        false, "“SGLD at a fixed step samples the posterior”: its variance, 1/6 in truth", WELLING,
        lambda n, g: (1 / 6, _variance(SGLD(H, BATCH), n, g), SGLD_VARIANCE)),
    decreasing_steps=(
        exact, "with steps 0.1 (1+k)^−0.6 the variance tends to the posterior's: after 20,000, times "
        "λ", WELLING, 1e-2, _decreasing_steps),
    control_variates=(
        statistical, "with control variates at the mode V = 0 here: the variance of ULA, "
        "1/(λ(1 − hλ/2))", BAKER, 0.01,
        lambda n, g: (
            1 / (6 * (1 - 3 * H)),
            _variance(SGLD(H, BATCH, estimator=ControlVariates(Y.mean().reshape(1))), n, g))),
    swap_rate=(
        statistical, "tempering: swaps of N(0, I/β), d = 10, β = 1 and ½, accepted at 2 I_{1/3}(5, 5)",
        KOFKE, 0.01, _swap_rate),
    tempering_finds_weights=(
        statistical, "parallel tempering finds the weight 0.7 of a far mode from the other one",
        KOFKE, 0.03, _tempering_finds_weights),
    particles=(
        exact, "SVGD with k = xᵀy + 1 on N(1.5, 2): the biased variance of 5 particles is exact",
        LIU, 1e-8, _particles),
    stein=(
        statistical, "the kernel Stein discrepancy of exact draws is 0 in the mean", GORHAM, 0.02,
        _stein_of_draws),
    stein_of_others=(
        at_most, "… and tells draws moved by 1 from it: p-value", GORHAM,
        lambda n, g: (0.01, _stein(1.0, g).p_value)),
)  # fmt: skip
