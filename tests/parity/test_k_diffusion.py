"""Samplers of k-diffusion on our score as a denoiser, against our transitions on the same levels."""

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support import close

from gradlogp import ExactScore, GaussianMixture, evolve
from gradlogp.core import Injected
from gradlogp.diffusion import DDIM, Ancestral, DPMSolver, ProbabilityFlow
from gradlogp.noise.schedules import DDPM, EDM, VE, VP
from gradlogp.scores import RescheduledScore
from gradlogp.scores.foreign import from_k_diffusion, to_k_diffusion

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from peers_diffusion import k_diffusion_sampling

try:
    sampling = k_diffusion_sampling()
except ImportError as error:
    pytest.skip(f"k-diffusion: {error}", allow_module_level=True)

LAW = GaussianMixture([0.3, 0.7], torch.tensor([[-2.0, 0.5], [1.0, -1.0]]).double(), [0.3, 0.6])
LOW, HIGH, N = 0.02, 30.0, 14
TIMES = torch.linspace(1, 0, N, dtype=torch.float64)


def start(generator):
    return HIGH * torch.randn(6, 2, generator=generator)


def levels():
    """σ at TIMES under EDM(LOW, HIGH), and 0."""
    return torch.cat([EDM(LOW, HIGH)(TIMES)[1], torch.zeros(1)])


def test_the_levels_are_those_of_get_sigmas_karras():
    close(levels(), sampling.get_sigmas_karras(N, LOW, HIGH).double(), 1e-10)


@pytest.mark.parametrize("schedule", [VE(0.01, 50.0), EDM(), VP()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize(
    ("sampler", "transition"),
    [("euler", DDIM()), ("heun", ProbabilityFlow(2)), ("dpmpp_2m", DPMSolver(2))],
    ids=["euler", "heun", "dpmpp_2m"],
)
def test_a_deterministic_sampler(sampler, transition, schedule, generator):
    x, edm = start(generator), EDM(LOW, HIGH)
    denoiser = to_k_diffusion(ExactScore(LAW, schedule))
    expected = getattr(sampling, f"sample_{sampler}")(denoiser, x, levels(), disable=True)
    out = evolve(transition, ExactScore(LAW, edm), x, TIMES)
    close(out, expected, 1e-9)
    moved = RescheduledScore(ExactScore(LAW, schedule), edm)
    close(evolve(transition, moved, x, TIMES), expected, 1e-9)
    other = evolve(DPMSolver(3), ExactScore(LAW, edm), x, TIMES)
    assert float((other - expected).abs().max()) > 1e-3  # a control


def test_the_ancestral_sampler(generator):
    x, edm, z = start(generator), EDM(LOW, HIGH), torch.randn(N - 1, 6, 2, generator=generator)
    left = list(z)
    expected = sampling.sample_euler_ancestral(
        to_k_diffusion(ExactScore(LAW, VP())), x, levels(), disable=True,
        noise_sampler=lambda *_: left.pop(0),
    )  # fmt: skip
    close(
        evolve(Ancestral(), ExactScore(LAW, edm), x, TIMES, generator=Injected(*z)),
        expected,
        1e-9,
    )


def test_discrete_denoisers(generator):
    """Their wrapper of a DDPM network as our score, given the steps between as they are."""
    from importlib import import_module

    external = import_module("k_diffusion.external")
    betas = torch.linspace(1e-3, 0.2, 50, dtype=torch.float64)
    schedule = DDPM(betas)
    exact = ExactScore(LAW, schedule)

    def network(x, i):
        t = (i + 1) / 50
        return -schedule(t)[1][:, None] * exact(x, t)

    wrapped = external.DiscreteEpsDDPMDenoiser(network, (1 - betas).cumprod(0), quantize=False)
    score = from_k_diffusion(wrapped)
    edm = score.schedule
    close(torch.tensor([edm.sigma_min, edm.sigma_max]), wrapped.sigmas[[0, -1]], 1e-12)
    x = 3 * torch.randn(50, 2, generator=generator)
    ours = to_k_diffusion(exact)(x, wrapped.sigmas)
    close(wrapped(x, wrapped.sigmas), ours, 1e-7)  # at the steps: the same levels


def test_the_levels_differ_where_they_should():
    """Negative control: other levels, other samples."""
    assert all(a > b for a, b in pairwise(levels()))
    assert float((levels()[:-1] - VE(LOW, HIGH)(TIMES)[1]).abs().max()) > 1
