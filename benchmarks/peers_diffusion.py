r"""Solvers of the probability flow from other libraries, all with one signature.

    samples = solvers()["k-diffusion dpmpp_2m, karras"](denoise, x, sigma_max, sigma_min, nfe)

takes x = x_0 + σ_max ε, `(B, *event)`, to the noise-free end with at most `nfe` evaluations of
denoise(x, σ) -> E[x_0 | x], σ of shape (). All end alike, in the posterior mean at σ_min, and each
runs on two grids: `karras`, σ^(1/ρ) uniform with ρ = 7, which is what these libraries recommend, and
`log`, log σ uniform. What a solver spends is counted outside, by `Counted`: two-stage ones need an
odd number and leave one evaluation unused where nfe is even.

Libraries that are not installed are left out. What they compute in single precision stays so:
`DPMSolverMultistepScheduler` casts x to float32 in every step.
"""

import importlib.util
import math
import sys
import types
from collections.abc import Callable
from functools import partial
from importlib import import_module

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Solver = Callable[[Denoise, Tensor, float, float, int], Tensor]
RHO = 7.0


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.calls = denoise, 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Return E[x_0 | x]."""
        self.calls += 1
        return self.denoise(x, sigma)


def karras(u: Tensor, sigma_max: float, sigma_min: float) -> Tensor:
    """σ at u from 1 (σ_max) to 0 (σ_min), σ^(1/ρ) linear in u."""
    low, high = sigma_min ** (1 / RHO), sigma_max ** (1 / RHO)
    return (low + u * (high - low)) ** RHO


def log(u: Tensor, sigma_max: float, sigma_min: float) -> Tensor:
    """The same, log σ linear in u."""
    return sigma_min * (u * math.log(sigma_max / sigma_min)).exp()


GRIDS = {"karras": karras, "log": log}


def sigmas(grid, n, sigma_max, sigma_min):
    """N noise levels from σ_max down to σ_min, and 0."""
    u = torch.linspace(1, 0, n, dtype=torch.float64)
    return torch.cat([grid(u, sigma_max, sigma_min), torch.zeros(1, dtype=torch.float64)])


def levels(nfe, stages):
    """How many noise levels nfe evaluations pay for: the last step, to 0, is one evaluation."""
    n = 1 + (nfe - 1) // stages
    if n < 2:
        raise ValueError(
            f"nfe must be at least {1 + stages} for {stages} evaluations a step, got {nfe}"
        )
    return n


# ---------------------------------------------------------------------------- k-diffusion


def k_diffusion_sampling():
    """Import k_diffusion.sampling alone: the package itself imports torchvision and what not."""
    if "k_diffusion.sampling" in sys.modules:
        return sys.modules["k_diffusion.sampling"]
    found = importlib.util.find_spec("k_diffusion")
    if found is None:
        raise ImportError("k-diffusion is not installed")
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = list(found.submodule_search_locations)
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]
    package.utils = utils
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    stubbed = importlib.util.find_spec("torchsde") is None
    if stubbed:  # wanted at import, used by the stochastic samplers alone
        sys.modules["torchsde"] = types.ModuleType("torchsde")
    try:
        return import_module("k_diffusion.sampling")
    finally:
        if stubbed:
            del sys.modules["torchsde"]


def run_k_diffusion(name, stages, grid, denoise, x, sigma_max, sigma_min, nfe, **options):
    sample = getattr(k_diffusion_sampling(), f"sample_{name}")
    ladder = sigmas(grid, levels(nfe, stages), sigma_max, sigma_min).to(x)
    return sample(lambda x, s: denoise(x, s[0]), x, ladder, disable=True, **options)


def k_diffusion_solvers(grid):
    k_diffusion_sampling()
    run = run_k_diffusion
    return {
        "k-diffusion euler": partial(run, "euler", 1, grid),
        "k-diffusion heun": partial(run, "heun", 2, grid),
        "k-diffusion lms": partial(run, "lms", 1, grid),
        "k-diffusion dpmpp_2m": partial(run, "dpmpp_2m", 1, grid),
        "k-diffusion dpmpp_2s": partial(run, "dpmpp_2s_ancestral", 2, grid, eta=0.0),
    }


# ---------------------------------------------------------------------------- azula


def run_azula(name, stages, grid, denoise, x, sigma_max, sigma_min, nfe, **options):
    """Its samplers stop at σ_min; the posterior mean there is added, as all others have it."""
    from azula import sample
    from azula.denoise import DiracPosterior

    class Denoiser:
        def schedule(self, t):
            return torch.ones_like(t), grid(t, sigma_max, sigma_min)

        def __call__(self, x_t, t):
            return DiracPosterior(mean=denoise(x_t, self.schedule(t)[1].to(x_t)))

    steps = levels(nfe, stages) - 1
    sampler = getattr(sample, name)(
        Denoiser(), steps=steps, silent=True, dtype=torch.float64, **options
    )
    return denoise(sampler(x).to(x), torch.tensor(sigma_min).to(x))


def azula_solvers(grid):
    import azula.sample  # noqa: F401

    return {
        "azula DDIM": partial(run_azula, "DDIMSampler", 1, grid),
        "azula Heun": partial(run_azula, "HeunSampler", 2, grid),
        "azula zAB3": partial(run_azula, "zABSampler", 1, grid, order=3),
        "azula zEAB2": partial(run_azula, "zEABSampler", 1, grid, order=2),
        "azula zEAB3": partial(run_azula, "zEABSampler", 1, grid, order=3),
        "azula xEAB2": partial(run_azula, "xEABSampler", 1, grid, order=2),
        "azula xEAB3": partial(run_azula, "xEABSampler", 1, grid, order=3),
    }


# ---------------------------------------------------------------------------- diffusers


def begin(scheduler, ladder):
    """Give a scheduler the noise levels of the grid, in the precision they have."""
    n = len(ladder) - 1
    scheduler.set_timesteps(n)
    scheduler.sigmas = ladder.cpu()
    scheduler.timesteps = torch.arange(n, 0, -1)  # names of the steps, which must differ
    scheduler.set_begin_index(0)
    return scheduler


def run_diffusers(name, grid, denoise, x, sigma_max, sigma_min, nfe, **options):
    """Schedulers in the variance-preserving frame: y = x/sqrt(1 + σ²)."""
    import diffusers

    made = getattr(diffusers, name)(prediction_type="sample", **options)
    ladder = sigmas(grid, levels(nfe, 1), sigma_max, sigma_min)
    scheduler = begin(made, ladder)
    y = x / (1 + sigma_max**2) ** 0.5
    for t, sigma in zip(scheduler.timesteps, ladder[:-1], strict=True):
        x0 = denoise(((1 + sigma**2).sqrt() * y).to(x), sigma.to(x))
        y = scheduler.step(x0, t, y).prev_sample
    return y


def run_diffusers_edm(grid, denoise, x, sigma_max, sigma_min, nfe, **options):
    """The scheduler in EDM's frame wants the output of the network before its preconditioning."""
    from diffusers import EDMDPMSolverMultistepScheduler

    made = EDMDPMSolverMultistepScheduler(sigma_min, sigma_max, **options)
    ladder = sigmas(grid, levels(nfe, 1), sigma_max, sigma_min)
    scheduler, c = begin(made, ladder), made.config.sigma_data
    for t, sigma in zip(scheduler.timesteps, ladder[:-1], strict=True):
        s = sigma.to(x)
        skip, out = c**2 / (s**2 + c**2), s * c / (s**2 + c**2) ** 0.5
        x = scheduler.step((denoise(x, s) - skip * x) / out, t, x).prev_sample
    return x


def diffusers_solvers(grid):
    import diffusers  # noqa: F401

    dpm, unipc = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
    return {
        "diffusers DPM++ 2M": partial(run_diffusers, dpm, grid, solver_order=2),
        "diffusers DPM++ 3M": partial(run_diffusers, dpm, grid, solver_order=3),
        "diffusers UniPC 2": partial(run_diffusers, unipc, grid, solver_order=2),
        "diffusers UniPC 3": partial(run_diffusers, unipc, grid, solver_order=3),
        "diffusers EDM-DPM++ 2M": partial(run_diffusers_edm, grid, solver_order=2),
        "diffusers EDM-DPM++ 3M": partial(run_diffusers_edm, grid, solver_order=3),
    }


def solvers() -> dict[str, Solver]:
    """Every solver of the libraries that are installed, by name: "library method, grid"."""
    found = {}
    for title, grid in GRIDS.items():
        for library in (k_diffusion_solvers, azula_solvers, diffusers_solvers):
            try:
                found |= {f"{name}, {title}": solver for name, solver in library(grid).items()}
            except ImportError:
                continue
    return found
