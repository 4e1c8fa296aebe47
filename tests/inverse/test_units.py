"""Observations are in data units, states in model coordinates: both hold for every method."""

import pytest
import torch
from support import close

from gradlogp import ExactScore, Gaussian, evolve, time_grid
from gradlogp.core import Injected
from gradlogp.diffusion import Ancestral, AnnealedLangevin
from gradlogp.inverse import (
    DPS,
    AnnealedLikelihood,
    Blur,
    DPSStep,
    Identity,
    Inpainting,
    Matrix,
    MomentMatching,
    Observation,
    PiGDM,
    RePaint,
    Subsampling,
    posterior,
)
from gradlogp.noise.coordinates import AffineCoordinates
from gradlogp.noise.schedules import VE, VP, Levels
from gradlogp.noise.score_base import ScoreWrapper

RNG = torch.Generator().manual_seed(3)
F64 = {"dtype": torch.float64}
D = 6
SHIFT = torch.tensor([500.0, -3.0, 0.4, 70.0, 1.0, -80.0], **F64)
SCALE = torch.tensor([30.0, 0.5, 0.05, 10.0, 0.2, 4.0], **F64)
ROOT = torch.randn(D, D, generator=RNG, **F64)
LAW_Z = Gaussian(
    0.3 * torch.randn(D, generator=RNG, **F64), ROOT @ ROOT.mT / D + 0.1 * torch.eye(D)
)
MASK = torch.tensor([True, True, False, False, True, False])
T = torch.tensor(0.4, **F64)


def decoded(law):
    """The law of x = shift + scale z."""
    return Gaussian(SHIFT + SCALE * law.mean, law.cov * SCALE * SCALE[:, None])


def encoded(law):
    return Gaussian((law.mean - SHIFT) / SCALE, law.cov / SCALE / SCALE[:, None])


class InUnits(ScoreWrapper):
    """A score of z that says that x = shift + scale z."""

    def __init__(self, score, shift=SHIFT, scale=SCALE):
        self.score, self.affine = score, AffineCoordinates(shift, scale)

    @property
    def coordinates(self):  # type: ignore[override]
        return self.affine

    def _score(self, z, t):
        return self.score(z, t)

    def _denoise(self, z, t):
        return self.score.denoise(z, t)

    def log_prob(self, z, t):
        return self.score.log_prob(z, t)


LAW = decoded(LAW_Z)
OPERATORS = {
    "identity": (Identity(), 0.3 * SCALE),
    "inpainting": (Inpainting(MASK), 0.3 * SCALE[MASK]),
    "inpainting, no noise": (Inpainting(MASK), 0.0),
    "subsampling": (Subsampling(3), torch.tensor([4.0, 1.0], **F64)),
    "matrix": (Matrix(torch.randn(2, D, generator=RNG, **F64)), 5.0),
    "correlated": (
        Matrix(torch.randn(2, D, generator=RNG, **F64)),
        torch.tensor([[9.0, 2.0], [2.0, 4.0]], **F64),
    ),
    "blur": (Blur(torch.tensor([0.2, 0.5, 0.3], **F64)), 2.0),
    "blur, zero outside": (Blur(torch.tensor([0.2, 0.5, 0.3], **F64), "zero"), 2.0),
}
each_operator = pytest.mark.parametrize(
    ("operator", "noise"), OPERATORS.values(), ids=OPERATORS.keys()
)


def observation(operator, noise, law, generator):
    """What one draw of a law, two deviations off, would show."""
    x = law.mean + 2 * (law.sample(1, generator=generator) - law.mean)
    return Observation(operator.apply(x), operator, noise)


def off(a, b):
    return float((a - b).abs().max())


@each_operator
@pytest.mark.parametrize("schedule", [VP(), VE(0.01, 20.0)], ids=["VP", "VE"])
def test_moment_matching_is_the_posterior_in_data_units(operator, noise, schedule, generator):
    seen = observation(operator, noise, LAW, generator)
    z = torch.randn(5, D, generator=generator)
    right = ExactScore(encoded(posterior(LAW, seen)), schedule)
    prior = ExactScore(LAW_Z, schedule)
    guided = MomentMatching(InUnits(prior), seen)
    for t in torch.tensor([0.9, 0.4, 0.02]):
        close(guided(z, t), right(z, t), 1e-9)
        close(guided.denoise(z, t), right.denoise(z, t), 1e-9)
    # negative controls, at the last time: y read as if it were of z; shift, or scale, forgotten
    for wrong, least in (
        (prior, 1.0),
        (InUnits(prior, shift=0 * SHIFT), 0.1),
        (InUnits(prior, scale=SCALE**0), 0.1),
    ):
        assert off(MomentMatching(wrong, seen)(z, t), right(z, t)) > least


def test_columns_of_any_units_are_solved(generator):
    """Twenty columns from kilometres to centimetres are as far from solved as the same in z."""
    d = 20
    scale, root = torch.logspace(3, -2, d), torch.randn(d, d, generator=generator)
    law, y = Gaussian(torch.zeros(d), root @ root.mT / d + 0.1 * torch.eye(d)), torch.ones(1, d)
    prior, z = ExactScore(law, VP()), torch.randn(4, d, generator=generator)
    same = Observation(y, Identity(), 0.1)
    seen = Observation(scale * y, Identity(), 0.1 * scale)
    units = InUnits(prior, 0 * scale, scale)
    close(MomentMatching(units, seen)(z, T), MomentMatching(prior, same)(z, T), 1e-8)
    few = {"max_steps": 3}
    close(MomentMatching(units, seen, **few)(z, T), MomentMatching(prior, same, **few)(z, T), 1e-8)


@each_operator
@pytest.mark.parametrize("schedule", [VP(), VE(0.01, 20.0)], ids=["VP", "VE"])
def test_pigdm_is_the_posterior_in_data_units(operator, noise, schedule, generator):
    """On data whose z is isotropic, with the variance that the moments say."""
    law = Gaussian(LAW_Z.mean, 1.7)
    seen = observation(operator, noise, decoded(law), generator)
    z = torch.randn(5, D, generator=generator)
    right = ExactScore(encoded(posterior(decoded(law), seen)), schedule)
    guided = PiGDM(InUnits(ExactScore(law, schedule)), seen)
    close(guided(z, T), right(z, T), 1e-9)
    close(guided.denoise(z, T), right.denoise(z, T), 1e-9)
    assert off(PiGDM(guided.score, seen, data_var=1.0)(z, T), right(z, T)) > 1e-3
    assert off(PiGDM(ExactScore(law, schedule), seen)(z, T), right(z, T)) > 1
    alike = Observation(seen.y, operator, noise)  # without its own coordinates
    bare = posterior(law, alike)
    close(PiGDM(ExactScore(law, schedule), alike)(z, T), ExactScore(bare, schedule)(z, T), 1e-8)


def test_a_function_of_data_is_linearised_in_data_units(generator):
    """With J of A at x̂₀ and y − A(x̂₀) + J x̂₀ as what was seen, it is a Gaussian's posterior."""
    f = lambda x: torch.stack([(x[:, 0] / 30).sin() + x[:, 2] * x[:, 4], x[:, 1] * x[:, 3]], 1)
    score, z = InUnits(ExactScore(LAW_Z, VP())), torch.randn(4, D, generator=generator)
    noise = torch.tensor([0.2, 3.0])
    bent = Observation(f(LAW.sample(1, generator=generator)), f, noise)
    for i in range(4):
        row = z[i : i + 1]
        x0 = SHIFT + SCALE * score.denoise(row, T)
        J = torch.autograd.functional.jacobian(lambda x: f(x[None])[0], x0[0])
        flat = Observation(bent.residual(x0) + x0 @ J.mT, Matrix(J), noise)
        right = ExactScore(encoded(posterior(LAW, flat)), VP())(row, T)
        close(MomentMatching(score, bent)(row, T), right, 1e-9)
        assert off(MomentMatching(score.score, bent)(row, T), right) > 1  # y read as of z


@each_operator
def test_dps_is_the_gradient_in_data_units(operator, noise, generator):
    """Of log N(y; A(shift + scale ẑ₀), R) in z, and the step of its residual's norm."""
    some = 1e-2 if isinstance(noise, float) and noise == 0 else noise
    seen = observation(operator, some, LAW, generator)
    score, z = InUnits(ExactScore(LAW_Z, VP())), torch.randn(5, D, generator=generator)
    w = z.clone().requires_grad_()
    x0 = SHIFT + SCALE * score.denoise(w, T)
    g = torch.autograd.grad(seen.log_likelihood(x0).sum(), w, retain_graph=True)[0]
    close(DPS(score, seen)(z, T), score(z, T) + g, 1e-9)
    close(DPS(score, seen, scale=0.3)(z, T), score(z, T) + 0.3 * g, 1e-9)
    alpha, sigma = VP()(T)
    close(DPS(score, seen).denoise(z, T), score.denoise(z, T) + sigma**2 / alpha * g, 1e-9)
    g = torch.autograd.grad(seen.residual(x0).flatten(1).norm(dim=1).sum(), w)[0]
    s, noise = torch.tensor(0.3), torch.randn(5, D, generator=generator)
    plain = Ancestral()(z, T, s, score, generator=Injected(noise))
    step = DPSStep(Ancestral(), seen, zeta=0.1)
    close(step(z, T, s, score, generator=Injected(noise)), plain - 0.1 * g, 1e-9)


@each_operator
def test_annealed_likelihood_is_in_data_units(operator, noise, generator):
    """N(y; A x(z/α), R + (σ/α)² A diag(scale²) Aᵀ) times the prior of z."""
    seen = observation(operator, noise, LAW, generator)
    guided = AnnealedLikelihood(InUnits(ExactScore(LAW_Z, VP())), seen)
    z = torch.randn(5, D, generator=generator).requires_grad_()
    A = operator.apply(torch.eye(D)).mT
    m = len(A)
    std = torch.as_tensor(noise)
    R = std if std.ndim == 2 else torch.diag(std.expand(m).square())
    for t in torch.tensor([0.9, 0.4, 0.05]):
        alpha, sigma = VP()(t)
        cov = R + (sigma / alpha) ** 2 * (A * SCALE**2) @ A.mT
        law = torch.distributions.MultivariateNormal((SHIFT + SCALE * z / alpha) @ A.mT, cov)
        expected = LAW_Z.noised(alpha, sigma).log_prob(z) + law.log_prob(seen.y)
        value = guided.log_prob(z, t)
        close((value - value[:1]).detach(), (expected - expected[:1]).detach(), 1e-8)
        close(guided(z.detach(), t), torch.autograd.grad(expected.sum(), z)[0], 1e-8)


# ---------------------------------------------------------------------------- whole samplers

HALF = Inpainting(MASK)
PRIOR = InUnits(ExactScore(LAW_Z, VE(0.01, 20.0)))


def guided_samplers(y, noise):
    """Transition, score and times that sample x given what was seen of it."""
    seen, n = Observation(y, HALF, noise), 60
    bare = Observation(y, HALF, 0)
    ladder = Levels(torch.logspace(1.3, -2, 40))
    slow = InUnits(ExactScore(LAW_Z, ladder))
    norm = Observation(y / SCALE[MASK], Matrix(torch.diag(1 / SCALE)[MASK]), noise)
    return {
        "MomentMatching": (Ancestral(), MomentMatching(PRIOR, seen), n),
        "PiGDM": (Ancestral(), PiGDM(PRIOR, seen), n),
        "DPS": (Ancestral(), DPS(PRIOR, Observation(y, HALF, 0.1 * SCALE[MASK])), 200),
        "DPSStep": (DPSStep(Ancestral(), norm, 0.3), PRIOR, 100),
        "RePaint": (RePaint(Ancestral(), bare, 2), PRIOR, n),
        "AnnealedLikelihood": (
            AnnealedLangevin(5, 0.4), AnnealedLikelihood(slow, seen), None,
        ),
    }  # fmt: skip


METHODS = ("MomentMatching", "PiGDM", "DPS", "DPSStep", "RePaint", "AnnealedLikelihood")


@pytest.mark.parametrize("method", METHODS)
def test_chunks_follow_their_rows(method, generator):
    """An observation for each sample, moved in chunks: bit for bit what all at once would give."""
    y = SHIFT[MASK] + SCALE[MASK] * torch.randn(7, 3, generator=generator)
    move, score, n = guided_samplers(y, 0.02 * SCALE[MASK])[method]
    times = time_grid(score.schedule, None if n is None else 12)[:12]
    start = 20.0 * torch.randn(7, D, generator=generator)
    found = [
        evolve(
            move, score, start, times,
            generator=torch.Generator().manual_seed(0), chunk_size=size,
        )
        for size in (None, 3)
    ]  # fmt: skip
    close(found[1] / SCALE, found[0] / SCALE, 1e-8)
    other = evolve(move, score, start.flip(0), times, generator=torch.Generator().manual_seed(0))
    assert off(other.flip(0) / SCALE, found[0] / SCALE) > 0.1  # the rows matter
