"""log Z: annealed weights of Gaussians in closed form, bridges of known variance, known normalisers."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from support import COV, MEAN, close, z_score

from gradlogp import Gaussian, GaussianMixture, as_target, run
from gradlogp.core import randn_like
from gradlogp.distributions import targets
from gradlogp.distributions.targets import (
    Banana,
    DoubleWell,
    Funnel,
    LogCosh,
    LogisticRegression,
    ManyWell,
    Ring,
    SkewedGumbel,
)
from gradlogp.langevin import HMC, MALA, ULA, Chain, ParallelTempering
from gradlogp.langevin.annealing import anneal, bridge
from gradlogp.langevin.evidence import evidence


class Position(NamedTuple):
    x: torch.Tensor


@dataclass(frozen=True)
class AR1:
    """x' = ρ x + √((1 − ρ²)/λ) z, which keeps N(0, 1/λ) of whatever precision λ the target has."""

    rho: float

    def init(self, x, target):
        return Position(x)

    def step(self, state, target, *, generator=None):
        precision = -target.score(torch.ones(1, 1))
        noise = randn_like(state.x, generator) * ((1 - self.rho**2) / precision).sqrt()
        return Position(self.rho * state.x + noise), None


def line(precision):
    return Gaussian(torch.zeros(1), torch.tensor(1 / precision))


def walk(start, end, rho, n, generator, K=10):
    """Weights of exp(−λ x²/2) through K steps of λ that are equal in ratio."""
    ratio = (end / start) ** (torch.arange(K + 1) / K)
    levels = ((start * ratio - start) / (end - start)).tolist()
    base = line(start)
    x = base.sample(n, generator=generator)
    found = anneal(x, line(end), base, levels, [AR1(rho)] * (K - 1), generator=generator)
    return found.log_w - 0.5 * math.log(end / start), found  # the laws above are normalised


@pytest.mark.parametrize(
    ("rho", "mean", "variance", "widening"),
    [
        (0.0, -0.7434917750, 0.1105560039, 0.6472471835),
        (0.5, -0.7768262047, 0.2041521844, 0.6238959662),
        (0.9, -1.0801057534, 1.5900909259, 0.4927670562),
    ],
)
def test_the_weights_of_gaussians(rho, mean, variance, widening, generator):
    """E w is a ratio of normalisers whatever the kernel mixes; log w has the law of Gaussians."""
    log_w, found = walk(1.0, 4.0, rho, 40_000, generator)
    assert abs(z_score(log_w, mean)) < 4
    assert abs(z_score((log_w - mean).square(), variance)) < 4
    assert abs(z_score(log_w.exp(), 0.5)) < 4  # √(1/4)
    close(found.increments.sum() - 0.5 * math.log(4.0), log_w.mean(), 1e-12)
    log_w, _ = walk(1.0, 0.25, rho, 40_000, generator)
    assert abs(z_score(log_w, widening)) < 4
    assert log_w.mean() < math.log(2.0)


def test_the_way_back_has_the_inverse_weights(generator):
    """With levels that fall E w = Z(base)/Z(target), and log Z lies between both means."""
    levels = torch.linspace(0, 1, 9).tolist()
    base, target = Gaussian(MEAN, 2 * COV), Gaussian(MEAN + 0.3, COV)
    scaled = as_target(target.score, lambda x: target.log_prob(x) + 1.5)
    kernels = [MALA(0.1)] * 7
    there = anneal(base.sample(20_000, generator=generator), scaled, base, levels, kernels,
                   generator=generator)  # fmt: skip
    back = anneal(target.sample(20_000, generator=generator), scaled, base, levels[::-1],
                  kernels[::-1], generator=generator)  # fmt: skip
    assert abs(z_score(there.log_w.exp(), math.exp(1.5))) < 4
    assert abs(z_score(back.log_w.exp(), math.exp(-1.5))) < 4
    assert there.log_w.mean() < 1.5 < -back.log_w.mean()
    found = bridge(there.log_w, back.log_w)
    assert abs(found.log_z - 1.5) < 4 * found.standard_error < 0.05
    assert abs(found.contradiction) < 4


# ---------------------------------------------------------------------------- the bridge


def pair(p, q, n, m, generator):
    """log w of independent draws in both directions, without a way between."""
    x, y = p.sample(n, generator=generator), q.sample(m, generator=generator)
    return q.log_prob(x) - p.log_prob(x), p.log_prob(y) - q.log_prob(y)


@pytest.mark.parametrize(
    ("q", "common"),
    [(line(0.25), 0.8400177536), (Gaussian(torch.ones(1), torch.tensor(1.0)), 0.7959457344)],
)
def test_the_variance_of_a_bridge(q, common, generator):
    """n Var = 2 (1/I − 1) with I = ∫ 2 p q / (p + q), and the overlap is n I / 2."""
    n, variance = 200_000, 2 * (1 / common - 1)
    found = bridge(*pair(line(1.0), q, n, n, generator))
    assert abs(found.log_z) < 4 * (variance / n) ** 0.5
    close(n * found.standard_error**2, variance, 0.01)
    close(2 * found.overlap / n, common, 0.005)


@pytest.mark.parametrize(
    ("n", "m"),
    [
        (150, 600),
        *(pytest.param(n, m, marks=pytest.mark.slow) for n, m in ((300, 300), (600, 150))),
    ],
)
def test_errors_and_contradictions_are_what_they_say(n, m, generator):
    founds = [bridge(*pair(line(1.0), line(0.3), n, m, generator)) for _ in range(200)]
    z = torch.tensor([b.log_z / b.standard_error for b in founds])
    assert abs(z_score(z, 0.0)) < 4
    assert abs(z_score(z.square(), 1.0)) < 4
    c = torch.tensor([b.contradiction for b in founds])
    assert abs(c.mean()) < 4 / 200**0.5
    assert 0.65 < c.square().mean() < 1.4
    # negative control: the second sample is not of the law whose density is in the weights
    wrong = line(0.25).sample(m, generator=generator)
    forward, _ = pair(line(1.0), line(0.5), n, m, generator)
    other = line(1.0).log_prob(wrong) - line(0.5).log_prob(wrong)
    assert abs(bridge(forward, other).log_z) > 0.1


def test_values_that_do_not_meet():
    far = torch.full((50,), -800.0)
    found = bridge(far, far)  # w says Z = e⁻⁸⁰⁰, the way back Z = e⁸⁰⁰
    assert found.overlap < 1e-9
    assert found.standard_error > 1e3
    dead = torch.full((5,), -math.inf)
    assert bridge(dead, dead).standard_error == math.inf


def test_neighbours_that_are_alike_widen_the_error(generator):
    forward, reverse = pair(line(1.0), line(0.25), 1000, 1000, generator)
    repeated = reverse[:50].repeat_interleave(20)
    plain = bridge(forward, repeated)
    batched = bridge(forward, repeated, 32)
    assert batched.standard_error > 2 * plain.standard_error


# ---------------------------------------------------------------------------- evidence


KNOWN = [
    Banana(0.4, 1.7, -0.6, 0.5),
    Funnel(3, 1.0),
    Ring(0.5, 0.8),
    DoubleWell(3, 0.5, 1.3, -0.7),
    ManyWell(6),
    LogCosh(3),
    SkewedGumbel(2),
]
BY_DEFAULT = [Banana(), Funnel(), Ring(), DoubleWell(), ManyWell()]
"""The same laws with parameters of which much is 0 or 1, or in more dimensions."""


@pytest.mark.parametrize(
    "p", [*KNOWN, *(pytest.param(p, marks=pytest.mark.slow) for p in BY_DEFAULT)], ids=repr
)
def test_known_normalisers(p, generator):
    found = evidence(p, p.sample(2000, generator=generator), generator=generator)
    assert abs(found.log_z - p.log_normalizer) < 3 * found.standard_error
    assert found.standard_error < 0.15
    assert found.verdict.ok, str(found)
    assert found.levels[0] == 0
    assert found.levels[-1] == 1
    assert found.increments.shape == (2, len(found.levels) - 1)
    assert len(found.acceptance) == len(found.levels) - 2
    lower, upper = found.increments.sum(1)
    assert lower < found.log_z < upper


def test_every_known_normaliser_is_tried():
    """A target with a normaliser is in the list; that of a logistic regression is not known."""
    laws = [v for v in vars(targets).values() if hasattr(v, "log_normalizer")]
    tried = {type(p) for p in KNOWN} | {LogisticRegression}
    assert set(laws) <= tried
    assert len(laws) == 8


def test_a_chain_and_a_kernel_of_ones_own(generator):
    """An unnormalised Gaussian: log Z = c; draws of a chain are correlated and cost error."""
    law = Gaussian(MEAN, COV)
    target = as_target(law.score, lambda x: law.log_prob(x) - 3.0)
    x0 = law.sample(4, generator=generator)
    chain = run(MALA(0.02), target, x0, 500, generator=generator)
    assert isinstance(chain, Chain)
    found = evidence(target, chain, kernel=HMC(0.3, 3), n_particles=2000, generator=generator)
    assert abs(found.log_z + 3) < 3 * found.standard_error
    independent = evidence(target, law.sample(2000, generator=generator), n_particles=2000,
                           generator=generator)  # fmt: skip
    assert found.standard_error > 1.2 * independent.standard_error
    assert abs(independent.log_z + 3) < 3 * independent.standard_error
    fixed = evidence(target, law.sample(500, generator=generator), levels=[0.0, 0.3, 1.0],
                     kernel=HMC(0.3, 3), generator=generator)  # fmt: skip
    close(fixed.levels, [0.0, 0.3, 1.0])
    assert abs(fixed.log_z + 3) < 3 * fixed.standard_error


def test_the_same_seed_gives_the_same_number():
    law, found = Gaussian(MEAN, COV), []
    for _ in range(2):
        g = torch.Generator().manual_seed(3)
        found.append(evidence(law, law.sample(200, generator=g), n_particles=200, generator=g))
    assert found[0].log_z == found[1].log_z


def test_a_support_with_an_edge(generator):
    """Uniform in a square of area 4: particles outside have no weight, and are not moved."""
    inside = lambda x: torch.where((x.abs() < 1).all(1), 0.0, -torch.inf)
    square = as_target(lambda x: 0 * x, inside)
    draws = 2 * torch.rand(2000, 2, generator=generator) - 1
    found = evidence(square, draws, generator=generator)
    assert abs(found.log_z - math.log(4.0)) < 3 * found.standard_error
    assert found.standard_error < 0.1
    assert found.verdict.ok


def test_a_path_that_widens_is_flagged(generator):
    target = Gaussian(torch.zeros(2), torch.tensor([1.0, 1.0]))
    draws = target.sample(1000, generator=generator)
    for variance, ok in ((4.0, True), (1.0, True), (0.25, False)):
        base = Gaussian(torch.zeros(2), torch.tensor([2.0, variance]))
        verdict = evidence(target, draws, base, generator=generator).verdict
        assert verdict.ok == ok
        assert any("times as wide as the base" in reason for reason in verdict.reasons) != ok


def test_draws_that_miss_a_mode_are_contradicted(generator):
    """The base reaches both modes, the draws lie in the light one."""
    law = GaussianMixture([0.1, 0.9], [[-3.0, 0.0], [3.0, 0.0]], [0.5, 0.2])
    draws = law.sample(8000, generator=generator)
    base = Gaussian(torch.zeros(2), torch.tensor([12.0, 2.0]))
    assert evidence(law, draws, base, generator=generator).verdict.ok
    found = evidence(law, draws[draws[:, 0] < 0], base, generator=generator)
    assert not found.verdict.ok
    assert "contradict each other" in found.verdict.reasons[0]


def test_too_few_particles_are_flagged(generator):
    law = Gaussian(torch.zeros(30), torch.tensor(1.0))
    base = Gaussian(torch.zeros(30), torch.tensor(9.0))
    found = evidence(law, law.sample(100, generator=generator), base, levels=[0.0, 1.0],
                     n_particles=100, generator=generator)  # fmt: skip
    assert not found.verdict.ok
    assert "fewer than 30" in " ".join(found.verdict.reasons)
    assert str(found).startswith("log Z = ")


def test_refusals(as_user):
    law = Gaussian(MEAN, COV)
    x = law.sample(50, generator=torch.Generator().manual_seed(0))
    for levels in ([0.0, 0.5], [0.5, 1.0], [0.0, 0.6, 0.5, 1.0], [0.0]):
        with pytest.raises(ValueError, match="levels must increase from 0 to 1"):
            evidence(law, x, levels=levels)
    with pytest.raises(ValueError, match="ULA does not leave its target invariant"):
        evidence(law, x, kernel=ULA(0.1))
    with pytest.raises(ValueError, match="ParallelTempering is not reversible"):
        evidence(law, x, kernel=ParallelTempering(0.1))
    with pytest.raises(ValueError, match="more than 3 draws of 2 coordinates, got 3"):
        evidence(law, x[:3])
    with pytest.raises(ValueError, match=r"draws of shape \(d,\), these have \(2, 1\)"):
        evidence(law, x[..., None])
