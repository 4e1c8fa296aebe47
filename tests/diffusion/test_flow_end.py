"""Where the flow of a model with a base ends: with the law of the base, and not with its means."""

import math

import pytest
import torch
from support import MIXTURE, Wave, close, seeded, spd
from torch import nn
from torch.func import jacrev

import gradlogp as glp
from gradlogp.diffusion import transitions
from gradlogp.diffusion.evolve import evolve
from gradlogp.diffusion.transitions import DDIM, AdaptiveFlow, Ancestral, ReverseSDE, UniPC
from gradlogp.distributions.analytic import Gaussian, GaussianMixture
from gradlogp.noise.schedules import VE, VP, Rectified, invert_log_snr
from gradlogp.scores.base import Base
from gradlogp.scores.exact import ExactScore
from gradlogp.scores.model import ScoreModel
from gradlogp.scores.networks import MLP
from gradlogp.scores.waves import Waves

FLOWS = {
    "DDIM": DDIM(),
    "UniPC": UniPC(),
    "Heun": transitions.ProbabilityFlow(),
    "Euler": transitions.ProbabilityFlow(1),
    "to a tolerance": AdaptiveFlow(),
    "Adams-Bashforth": transitions.ExponentialAB(),
    "DPM": transitions.DPMSolver(),
    "no noise": ReverseSDE(0.0),
}
RANDOM = {"DDIM": DDIM(1.0), "ancestral": Ancestral(), "reverse SDE": ReverseSDE()}
SCHEDULES = {"VE": (VE(0.3, 20.0), 0.0), "VP": (VP(), 0.1), "rectified": (Rectified(), 0.2)}
every_schedule = pytest.mark.parametrize(("schedule", "time"), SCHEDULES.values(), ids=SCHEDULES)


class Zero(nn.Module):
    def __init__(self, event_shape):
        super().__init__()
        self.event_shape = event_shape

    def forward(self, x, coordinate):
        return torch.zeros_like(x)


def alone(law, schedule, event_shape=(3,)):
    """A model that is its base."""
    return ScoreModel(Zero(torch.Size(event_shape)), schedule, "v", base=law).double()


def ended(transition, score, z, t):
    return transition(z, torch.tensor(t).double(), None, score, generator=seeded())


@every_schedule
@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_draws_of_the_noised_gaussian_end_with_its_covariance(flow, schedule, time, generator):
    """J (α² S + σ² I) Jᵀ = S for the linear map J from z to the end, which takes α μ to μ."""
    law = Gaussian(torch.randn(3, generator=generator), spd(3, generator))
    model = alone(law, schedule)
    a, b = schedule(torch.tensor(time).double())
    J = jacrev(lambda z: ended(flow, model, z[None], time)[0])(torch.zeros(3).double())
    noisy = a**2 * law.cov + b**2 * torch.eye(3).double()
    close(J @ noisy @ J.mT, law.cov)
    close(ended(flow, model, a * law.mean[None], time), law.mean[None])


@every_schedule
@pytest.mark.parametrize("random", RANDOM.values(), ids=RANDOM)
def test_transitions_that_draw_end_at_the_mean(random, schedule, time, generator):
    law = Gaussian(torch.randn(3, generator=generator), spd(3, generator))
    model, z = alone(law, schedule), torch.randn(4, 3, generator=generator)
    close(ended(random, model, z, time), model.denoise(z, torch.tensor(time).double()))


def test_of_a_mixture_the_error_is_of_fourth_order(generator):
    """Beside the exact flow to a 3,000th of the noise; that of the mean is of second order."""
    exact, z = ExactScore(MIXTURE, VE(1e-4, 20.0)), torch.randn(100, 2, generator=generator)
    flow, errors = AdaptiveFlow(1e-9, 1e-9), []
    for sigma in (0.2, 0.1, 0.05):
        start = invert_log_snr(exact.schedule, torch.tensor(-2 * math.log(sigma)).double())
        truth = evolve(flow, exact, z, torch.stack([start, torch.zeros_like(start)]))
        model = alone(MIXTURE, VE(sigma, 20.0), (2,))
        ends = ended(UniPC(), model, z, 0.0), model.denoise(z, torch.zeros(()).double())
        errors.append([float((end - truth).square().mean().sqrt()) for end in ends])
    (far, mean_far), (_, _), (near, mean_near) = errors
    assert 4 - 0.4 < math.log2(far / near) / 2 < 4 + 0.4
    assert 2 - 0.2 < math.log2(mean_far / mean_near) / 2 < 2 + 0.2


def test_of_images_each_kind_keeps_its_spectrum(generator):
    """The covariance of what ends is that of the waves, in their own basis; of kinds that are alike."""
    model = ScoreModel(Zero(torch.Size([3, 14, 14])), VE(0.5, 20.0), "v", base="gaussian").double()
    base = model.base
    base.colours.copy_(torch.linalg.qr(torch.randn(3, 3, generator=generator))[0])
    base.variances.uniform_(0.1, 3.0, generator=generator)
    base.mean.normal_(generator=generator)
    v, z = base.variances, base.mean + torch.randn(5, 3, 14, 14, generator=generator)
    w = base.waves(ended(UniPC(), model, z, 0.0) - base.mean)
    close(w, base.waves(z - base.mean) * (v / (v + 0.25)).sqrt())


def test_of_kinds_of_pictures_it_is_that_of_a_mixture(generator):
    """Two kinds with means and spectra of their own, beside the same law as a vector, at α = 0.8."""
    event = torch.Size([1, 4, 6])
    waves = Waves(event).double()
    waves.mean.normal_(generator=generator)
    waves.centres[:8] = torch.randn(event, generator=generator)
    waves.factors[:8] = 0.2
    waves.variances.uniform_(0.1, 3.0, generator=generator)
    Q = waves.image(torch.eye(24).double().reshape(-1, *event)).flatten(1)  # rows: waves
    v = (waves.factors[:, waves.band] * waves.variances).flatten(1)[[0, -1]]
    means = waves.mean.flatten() + waves.centres.flatten(1)[[0, -1]] @ Q
    law = GaussianMixture([0.5, 0.5], means, Q.mT @ v.diag_embed() @ Q)
    flat = Base.of_law(law, torch.Size([24]), v)
    a, b = torch.full((1, 1), 0.8).double(), torch.full((1, 1), 0.6).double()
    z = torch.randn(6, *event, generator=generator)
    close(waves.beyond(z, a, b).flatten(1), flat.beyond(z.flatten(1), a, b), rtol=1e-9)


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_time_0_without_noise_is_the_same_end(flow, generator):
    """Under a schedule with σ(0) = 0, except for solvers of higher order, which go there by steps."""
    law = Gaussian(torch.randn(3, generator=generator), spd(3, generator))
    model, z = alone(law, Rectified()), torch.randn(4, 3, generator=generator)
    zero, t = torch.zeros(()).double(), torch.tensor(0.3).double()
    if flow not in (FLOWS["Heun"], FLOWS["to a tolerance"]):
        close(flow(z, t, zero, model), flow(z, t, None, model))
    close(flow(z, zero, None, model), z, atol=1e-12)  # where there is no noise, nothing is left
    one = torch.ones(()).double()  # and from nothing but noise a draw of the base
    w, U = law._cov
    drawn = law.mean + (z @ U * w.sqrt()) @ U.mT
    close(flow(z, one, None, model), drawn, rtol=1e-6)


def test_with_memory_the_last_step_ends_there_too(generator):
    law = Gaussian(torch.zeros(2), torch.tensor([1.0, 0.01]))
    model = alone(law, VE(0.1, 20.0), (2,))
    times = glp.time_grid(model.schedule, 12, rho=math.inf, t_max=1.0)
    x = evolve(UniPC(), model, 20_000, times, generator=generator).double()
    assert float((x.var(0) / law.cov.diagonal() - 1).abs().max()) < 4 * (2 / 20_000) ** 0.5


def test_an_observation_that_counts_for_nothing_changes_nothing(generator):
    law = Gaussian(torch.randn(3, generator=generator), spd(3, generator))
    model, z = alone(law, VE(0.3, 20.0)), torch.randn(4, 3, generator=generator)
    mask = torch.tensor([True, False, False])
    seen = glp.inverse.observe(z, glp.inverse.Inpainting(mask), 1.0, generator=generator)
    step = glp.inverse.DPSStep(DDIM(), seen, zeta=0.0)
    close(ended(step, model, z, 0.0), ended(DDIM(), model, z, 0.0))


def test_a_correction_is_added_and_a_whole_score_counts_by_its_share(generator):
    z, t = torch.randn(4, 2, generator=generator), torch.zeros(()).double()
    model = ScoreModel(Wave(2), VE(0.3, 20.0), "v", base=MIXTURE).double().eval()
    beyond = ended(UniPC(), alone(MIXTURE, VE(0.3, 20.0), (2,)), z, 0.0)
    beyond = beyond - ExactScore(MIXTURE, VE(0.3, 20.0)).denoise(z, t)
    assert float(beyond.abs().max()) > 0.01
    close(ended(UniPC(), model, z, 0.0) - model.denoise(z, t), beyond)
    model.base.fallback = True
    for share, part in ((1.0, 0.0), (0.25, 0.75)):
        model.base.share.fill_(share)
        close(ended(UniPC(), model, z, 0.0) - model.denoise(z, t), part * beyond, atol=1e-12)


def test_wrapped_it_is_the_same(generator):
    """Conditional, guided and under another schedule; a score of another make knows nothing of it."""
    z = torch.randn(4, 2, generator=generator)
    network = MLP(2, 4, 1, condition=3, generator=generator)
    model = ScoreModel(network, VP(), "v", base=MIXTURE).double()
    model.condition.dropout.fill_(0.1)
    inside, t = model.given(2), torch.tensor(0.1).double()
    beyond = (ended(DDIM(), inside, z, 0.1) - inside.denoise(z, t)).detach()
    close(beyond, ended(DDIM(), model, z, 0.1) - model.denoise(z, t))
    assert float(beyond.abs().max()) > 0.01
    guided = glp.GuidedScore(inside, model.unconditional(), 2.0)
    close(ended(DDIM(), guided, z, 0.1) - guided.denoise(z, t), beyond)
    wide = ScoreModel(Zero(torch.Size([2])), VP(), "v", base=Gaussian(torch.zeros(2), 4.0))
    apart = glp.GuidedScore(model, wide.double(), 2.0)  # of two bases: combined like the scores
    free = ended(DDIM(), wide, z, 0.1) - wide.denoise(z, t)
    close(ended(DDIM(), apart, z, 0.1) - apart.denoise(z, t), 3 * beyond - 2 * free)
    plain = glp.as_score(lambda z, t: z, "x0", VP())
    half = glp.GuidedScore(model, plain, 2.0)
    close(ended(DDIM(), half, z, 0.1) - half.denoise(z, t), 3 * beyond)
    other, (a, b) = VE(1e-3, 100.0), VP()(t)
    place = float(invert_log_snr(other, 2 * (a / b).log()))
    moved = ended(DDIM(), glp.RescheduledScore(inside, other), z / a, place)
    close(moved, ended(DDIM(), inside, z, 0.1), rtol=1e-6)
    close(ended(DDIM(), plain, z, 0.1), z)
    touching = glp.RescheduledScore(alone(MIXTURE, VE(0.01, 20.0), (2,)), Rectified())
    times = torch.tensor([0.9, 0.5, 0.1, 0.02, 0.0]).double()  # to where there is no noise
    assert bool(evolve(DDIM(), touching, z, times).isfinite().all())


def test_of_few_directions_it_is_the_mean(generator):
    model = alone(None, VE(0.3, 20.0), (4,))
    model.base = Base(torch.Size([4]), 1, 2).double()
    z = torch.randn(3, 4, generator=generator)
    close(ended(UniPC(), model, z, 0.0), model.denoise(z, torch.zeros(()).double()))
