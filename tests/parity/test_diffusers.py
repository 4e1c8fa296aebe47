"""Our steps with a UNet of diffusers against the schedulers of diffusers, the same noise in both.

A UNet of random weights: what it predicts means nothing, and every step is a function of it.
"""

import math
from itertools import pairwise

import pytest
import torch
from support import close

from gradlogp import ExactScore, Gaussian, GaussianMixture, evolve
from gradlogp.core import Injected
from gradlogp.diffusion import DDIM, AdaptiveFlow, Ancestral, DPMSolver, ExponentialAB
from gradlogp.noise.schedules import EDM
from gradlogp.scores.diffusers import from_diffusers

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

N, EVENT = 10, (3, 8, 8)  # N divides 1000, as DDIM and DDPM there assume of their steps
SCHEDULES = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
}
by_schedule = pytest.mark.parametrize("name", SCHEDULES)
by_prediction = pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
by_dtype = pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 2e-5), (torch.float64, 1e-12)],
    ids=["float32", "float64"],
)


def tiny(dtype=torch.float32, **config):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        **config,
    )  # fmt: skip
    return unet.to(dtype).eval()


def scheduler(cls, dtype, name, kind="epsilon", **options):
    clip = {"clip_sample": False} if cls in ("DDPMScheduler", "DDIMScheduler") else {}
    made = getattr(diffusers, cls)(**SCHEDULES[name], prediction_type=kind, **clip, **options)
    made.alphas_cumprod = made.alphas_cumprod.to(dtype)
    return made


def noise(dtype, generator, n=N + 1):
    return torch.randn(n, 2, *EVENT, generator=generator).to(dtype)


@torch.no_grad()
def theirs(unet, made, x, step=None):
    """The loop of a pipeline of diffusers."""
    step = step or (lambda i, out, t, x: made.step(out, t, x).prev_sample)
    for i, t in enumerate(made.timesteps):
        x = step(i, unet(x, t).sample, t, x)
    return x


def ours(transition, model, made, x, draws=()):
    times = (made.timesteps.double() + 1) / 1000
    return evolve(transition, model, x, times, generator=Injected(*draws))


def distance(a, b):
    """The largest difference, relative to the largest entry."""
    return float((a - b).abs().max() / a.abs().max())


@by_dtype
@by_prediction
@by_schedule
def test_ancestral_is_ddpm(name, kind, dtype, tolerance, generator, monkeypatch):
    from diffusers.schedulers import scheduling_ddpm

    unet, draws = tiny(dtype), noise(dtype, generator)
    for variance, type_ in (("posterior", "fixed_small"), ("forward", "fixed_large")):
        made = scheduler("DDPMScheduler", dtype, name, kind, variance_type=type_)
        made.set_timesteps(N)
        left = list(draws[1:])
        monkeypatch.setattr(
            scheduling_ddpm, "randn_tensor", lambda *a, left=left, **k: left.pop(0)
        )
        expected = theirs(unet, made, draws[0])
        assert len(left) == 1  # no noise in the last of their steps
        out = ours(Ancestral(variance), from_diffusers(unet, made), made, draws[0], draws[1:N])
        assert distance(expected, out) < tolerance
    wrong = ours(Ancestral("posterior"), from_diffusers(unet, made), made, draws[0], draws[1:N])
    assert distance(expected, wrong) > 1e-3  # a control


@by_dtype
@by_prediction
@by_schedule
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim(eta, name, kind, dtype, tolerance, generator):
    unet, draws = tiny(dtype), noise(dtype, generator)
    made = scheduler("DDIMScheduler", dtype, name, kind)
    made.final_alpha_cumprod = made.final_alpha_cumprod.to(dtype)
    made.set_timesteps(N)

    def step(i, out, t, x):
        return made.step(out, int(t), x, eta=eta, variance_noise=draws[1 + i]).prev_sample

    expected = theirs(unet, made, draws[0], step)
    used = draws[1:N] if eta else ()
    out = ours(DDIM(eta), from_diffusers(unet, made), made, draws[0], used)
    assert distance(expected, out) < tolerance


@by_prediction
@by_schedule
@pytest.mark.parametrize(
    ("transition", "options"),
    [
        (DPMSolver(1), {"solver_order": 1}),
        (DPMSolver(2), {"solver_order": 2}),
        (ExponentialAB(2, "x0"), {"solver_order": 2, "solver_type": "heun"}),
    ],
    ids=["order 1", "2M midpoint", "2M heun"],
)
def test_dpm_solver(transition, options, name, kind, generator):
    """They compute in float32 whatever they are given; so this can be no sharper."""
    unet, x = tiny(), noise(torch.float32, generator, 1)[0]
    made = scheduler("DPMSolverMultistepScheduler", torch.float32, name, kind, **options)
    made.set_timesteps(N)
    expected = theirs(unet, made, x)
    out = ours(transition, from_diffusers(unet, made), made, x)
    assert distance(expected, out) < (3e-4 if name == "cosine" else 2e-5)  # ᾱ_T = 2e-9 there
    other = ours(DPMSolver(3), from_diffusers(unet, made), made, x)
    assert (name, kind) == ("cosine", "epsilon") or distance(expected, other) > 1e-3  # a control


@pytest.mark.parametrize("cls", ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_zero_terminal_snr(cls, kind, generator, monkeypatch):
    """Two of them end at ᾱ_T = 0 and one at 2⁻²⁴; we follow each."""
    from diffusers.schedulers import scheduling_ddpm

    unet, draws = tiny(), noise(torch.float32, generator)
    options = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    made = scheduler(cls, torch.float32, "scaled_linear", kind, **options)
    made.set_timesteps(N)
    assert int(made.timesteps[0]) == 999
    left = list(draws[1:])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, **k: left.pop(0))
    expected = theirs(unet, made, draws[0])
    transition = {"DDPMScheduler": Ancestral(), "DDIMScheduler": DDIM()}.get(cls, DPMSolver(2))
    used = draws[1:N] if cls == "DDPMScheduler" else ()
    out = ours(transition, from_diffusers(unet, made), made, draws[0], used)
    assert bool(expected.isfinite().all())
    assert distance(expected, out) < 1e-3


def test_the_schedule_is_theirs():
    for name in SCHEDULES:
        made = scheduler("DDPMScheduler", torch.float64, name)
        schedule = from_diffusers(tiny(), made).schedule
        alpha, sigma = schedule(schedule.times.flip(0))
        close(alpha**2, made.alphas_cumprod, 1e-12)
        close(sigma**2, 1 - made.alphas_cumprod, 1e-12)


@torch.no_grad()
def test_a_class_conditional_unet(generator):
    unet, x = tiny(torch.float64, num_class_embeds=5), noise(torch.float64, generator, 1)[0]
    model = from_diffusers(unet, diffusers.DDPMScheduler())
    labels, t = torch.tensor([4, 1]), torch.tensor([0.25, 0.5])
    eps = unet(x, torch.tensor([249, 499]), class_labels=labels).sample
    sigma = model.schedule(t)[1][:, None, None, None]
    close(model.given(labels)(x, t), -eps / sigma, 1e-12)
    with pytest.raises(ValueError, match=r"model\.given"):
        model(x, t)


@torch.no_grad()
def test_folders(tmp_path, generator):
    torch.set_default_dtype(torch.float32)  # diffusers casts to it what it reads
    unet, made = tiny(), diffusers.DDPMScheduler(prediction_type="v_prediction")
    diffusers.DDPMPipeline(unet, made).save_pretrained(tmp_path / "pipeline")
    unet.save_pretrained(tmp_path / "unet_alone")
    x, t = noise(torch.float32, generator, 1)[0], torch.tensor(0.3)
    expected = from_diffusers(unet, made)(x, t)
    for model in (
        from_diffusers(tmp_path / "pipeline"),
        from_diffusers(str(tmp_path / "unet_alone"), made),
        from_diffusers(tmp_path / "unet_alone", tmp_path / "pipeline" / "scheduler"),
    ):
        assert torch.equal(model(x, t), expected)
        assert model.event_shape == EVENT
        assert not model.network.unet.training


@torch.no_grad()
def test_steps_between_and_tables(generator):
    x, t = noise(torch.float32, generator, 1)[0], torch.tensor(0.2505)
    unet = tiny()
    model = from_diffusers(unet, diffusers.DDPMScheduler())
    eps = unet(x, torch.tensor(249.5)).sample
    close(model(x, t), -eps / model.schedule(t)[1], 1e-5)
    table = from_diffusers(
        tiny(time_embedding_type="learned", num_train_timesteps=1000), diffusers.DDPMScheduler()
    )
    assert bool(table(x, torch.tensor(0.25)).isfinite().all())
    with pytest.raises(ValueError, match="nowhere between them"):
        table(x, t)


# ---------------------------------------------------------------------------- order of 3M


def edm_run(law, x, ladder, order):
    """diffusers' EDM scheduler, in the float64 of the noise levels that it is given."""
    made = diffusers.EDMDPMSolverMultistepScheduler(
        float(ladder[-2]), float(ladder[0]), solver_order=order, lower_order_final=False
    )
    n, c = len(ladder) - 1, made.config.sigma_data
    made.set_timesteps(n)
    made.sigmas, made.timesteps = ladder, torch.arange(n, 0, -1)
    made.set_begin_index(0)
    for t, s in zip(made.timesteps, ladder[:-1], strict=True):
        skip, out = c**2 / (s**2 + c**2), s * c / (s**2 + c**2).sqrt()
        x0 = law.posterior_mean(x, 1.0, s)
        x = made.step((x0 - skip * x) / out, t, x).prev_sample
    return x


LAWS = {
    "Gaussian": Gaussian(torch.tensor([0.5, -1.0]).double(), torch.tensor([0.3, 2.0]).double()),
    "mixture": GaussianMixture(
        [0.4, 0.6], torch.tensor([[-1.0, 0.5], [1.0, -0.5]]).double(), [0.3, 0.6]
    ),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_third_order_is_third_order_here_and_second_there(law, generator):
    """h φ_3 multiplies the second derivative, which is twice the divided difference.

    Both solve from σ = 10⁴ to 0.05 with λ uniform, and denoise there. The first steps of either are
    of lower order, and count for nothing where x says so little of x_0.
    """
    high, low, rho = 1e4, 0.05, 7.0
    schedule = EDM(low, high)
    score, x = ExactScore(law, schedule), high * torch.randn(8, 2, generator=generator)
    flow = AdaptiveFlow(rtol=1e-10, atol=1e-10)
    reference = evolve(flow, score, x, torch.tensor([1.0, 0.0]))

    def run(solver, n):
        ladder = torch.linspace(math.log(high), math.log(low), n + 1).exp()
        if solver == "theirs":
            return edm_run(law, x, torch.cat([ladder, torch.zeros(1)]), 3)
        times = (ladder ** (1 / rho) - ladder[-1] ** (1 / rho)) / (
            ladder[0] ** (1 / rho) - ladder[-1] ** (1 / rho)
        )
        return evolve(DPMSolver(3), score, x, times)

    def orders(solver):
        errors = [float((run(solver, n) - reference).abs().max()) for n in (64, 128, 256)]
        return [math.log2(a / b) for a, b in pairwise(errors)]

    assert all(1.8 < order < 2.2 for order in orders("theirs"))
    assert all(order > 2.8 for order in orders("ours"))
