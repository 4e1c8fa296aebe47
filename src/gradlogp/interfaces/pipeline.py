r"""A trained model used in data units: build it from data, draw from it, evaluate it.

Models work in coordinates z = (x − shift)/scale (`ScoreModel.encode`); here everything goes in and
comes out in the units of the data. Work is done in chunks, and a chunk's result does not depend
on the chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import (
    NoisyScoreFn,
    Progress,
    Schedule,
    Streams,
    Transition,
    block_of,
    new_seed,
)
from ..diffusion.evolve import evolve
from ..diffusion.likelihood import log_likelihood
from ..diffusion.transitions import (
    DDIM,
    AnnealedLangevin,
    ProbabilityFlow,
    ReverseSDE,
)
from ..learn.batches import moments
from ..learn.objectives import multilevel
from ..noise.grids import time_grid
from ..noise.ladder import noise_levels
from ..noise.predictions import Kind
from ..noise.schedules import VE, invert_log_snr
from ..noise.terminal import prior
from ..scores.model import ScoreModel
from ..scores.networks import MLP, UNet

OBJECTIVE = partial(multilevel, stratified=True)
"""What to train with: every noise level alike, times spread evenly over the batch."""

CHUNK = 4096  # points handled together
BLOCK = CHUNK  # most of them that share a stream of noise, so that no chunk draws that of another
T_END = 1e-3  # the time nearest the data where the noise vanishes at t = 0


def _streams(model: ScoreModel, n: int, generator: torch.Generator | None) -> list[Streams]:
    """Return the noise of every chunk."""
    device = model.shift.device
    block = min(block_of(model.event_shape, device), BLOCK)
    return Streams.split(new_seed(generator), n, CHUNK, device, block)


def build_model(
    x: Float[Tensor, "n *event"],
    *,
    network: nn.Module | None = None,
    schedule: Schedule | None = None,
    predicts: Kind = "v",
    standardize: bool = True,
    width: int = 128,
    depth: int = 3,
    channels: Sequence[int] = (32, 64),
    condition: int | Sequence[int] | None = None,
    generator: torch.Generator | None = None,
) -> ScoreModel:
    """Return an untrained model that suits the data.

    Noise levels reach, geometrically (VE), from half the spacing of the points or a tenth of Scott's
    bandwidth n^{−1/(d+4)}, whichever is larger but at most 0.05, to their largest distance, all in
    units of the data's standard deviation. Images with even sides get a U-Net, all else an MLP.

    Arguments:
        x: The data, `(N, *event)`.
        network: Your own network instead.
        schedule: Your own schedule instead.
        predicts: What the network predicts.
        standardize: Whether the model will learn in standardised coordinates.
        width: Width of the MLP.
        depth: Its residual blocks.
        channels: Channels of the U-Net.
        condition: What to condition on: a number of classes, the shape of values, or None.
        generator: Where the initial weights come from.
    """
    event = x.shape[1:]
    if schedule is None:
        mean, std = moments(x, event)
        z = ((x - mean) / std if standardize else x).float()
        sigmas = noise_levels(z, tell=None, generator=generator).sigmas
        # n points do not tell the score at scales far below a kernel density's bandwidth
        bandwidth = len(x) ** (-1 / (event.numel() + 4))
        schedule = VE(min(0.05, max(sigmas[-1], 0.1 * bandwidth)), sigmas[0])
    if network is None and len(event) == 3 and not any(n % 2 for n in event[1:]):
        network = UNet(event, channels, condition=condition, generator=generator)
    elif network is None:
        network = MLP(event, width, depth, condition, generator=generator)
    return ScoreModel(network, schedule, predicts, event)


def first_time(schedule: Schedule) -> Tensor:
    """Return the time nearest the data at which there still is noise."""
    _, sigma = schedule(torch.zeros((), dtype=torch.float64))
    return torch.tensor(T_END if sigma == 0 else 0.0, dtype=torch.float64)


def noise_range(schedule: Schedule) -> tuple[float, float]:
    """Return the smallest and largest σ/α of a schedule, in model coordinates."""
    ends = torch.stack([first_time(schedule), torch.ones((), dtype=torch.float64)])
    low, high = (-0.5 * schedule.log_snr(ends)).exp().tolist()
    return low, high


def _noisy(model: ScoreModel, labels: Tensor | None, part: Tensor) -> NoisyScoreFn:
    return model if labels is None else model.given(labels[part].to(model.shift.device))


def generate(
    model: ScoreModel,
    n: int,
    *,
    labels: Int[Tensor, " n"] | None = None,
    transition: Transition | None = None,
    n_steps: int = 32,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "n *event"]:
    """Draw n samples in data units, by the probability flow (Heun) where no transition is given.

    Arguments:
        model: A trained model.
        n: How many.
        labels: Class numbers `(n,)` of a class-conditional model.
        transition: Another way from p_t to p_s.
        n_steps: Times of the grid; a discrete ladder keeps its own.
        generator: Where the noise comes from.
        progress: Called as progress(done, total).
    """
    if n < 1:
        raise ValueError(f"the number of samples must be at least 1, got {n}")
    transition = ProbabilityFlow() if transition is None else transition
    device, schedule = model.shift.device, model.schedule
    start = prior(
        schedule, (n, *model.event_shape), model.data_mean.cpu(), model.data_std.cpu() ** 2,
        generator=generator, dtype=model.shift.dtype,
    )  # fmt: skip
    times = time_grid(schedule, n_steps, t_min=float(first_time(schedule)))
    # where nothing of the data is left (α = 0) some steps divide by it: DDIM's, which does not, opens
    blind = schedule(times[0])[0] == 0 and isinstance(transition, ReverseSDE | AnnealedLangevin)
    parts: list[Tensor] = []
    chunks = torch.arange(n).split(CHUNK)
    for i, (part, noise) in enumerate(zip(chunks, _streams(model, n, generator), strict=True)):

        def advance(done: int, total: int, i: int = i) -> None:
            if progress is not None:
                progress(i * total + done, len(chunks) * total)

        score = _noisy(model, labels, part)
        z = start[part].to(device)
        if blind:
            with torch.no_grad():
                z = DDIM()(z, times[0], times[1], score, schedule)
        z = evolve(
            transition, score, schedule, z, times[1:] if blind else times,
            generator=noise, progress=advance,
        )  # fmt: skip
        parts.append(model.decode(z).cpu())
    return torch.cat(parts)


def log_density(
    model: ScoreModel,
    x: Float[Tensor, "n *event"],
    *,
    labels: Int[Tensor, " n"] | None = None,
    n_steps: int = 24,
    n_probes: int | None = None,
    generator: torch.Generator | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, " n"]:
    """Return the log-density of x in nats and data units, with exact or probed divergence.

    Arguments:
        model: A trained model; of the law blurred by its smallest noise level.
        x: Points in data units.
        labels: Class numbers of a class-conditional model.
        n_steps: Runge–Kutta steps.
        n_probes: Estimate the divergence with so many probes; exact where not given. The probes'
            error is then part of the spread over samples.
        generator: Where the probes come from.
        progress: Called as progress(done, total).
    """
    schedule, parts = model.schedule, []
    chunks = torch.arange(len(x)).split(CHUNK)
    for i, (part, noise) in enumerate(
        zip(chunks, _streams(model, len(x), generator), strict=True)
    ):

        def advance(done: int, total: int, i: int = i) -> None:
            if progress is not None:
                progress(i * total + done, len(chunks) * total)

        z = model.encode(x[part].to(model.shift))
        result = log_likelihood(
            _noisy(model, labels, part), schedule, z,
            "exact" if n_probes is None else "hutchinson", n_steps=n_steps,
            n_probes=n_probes or 1, generator=noise, t_min=float(first_time(schedule)),
            mean=model.data_mean, var=model.data_std**2, progress=advance,
        )  # fmt: skip
        parts.append(result.log_prob.cpu() + model.log_det_encode())
    return torch.cat(parts)


def _time_of(schedule: Schedule, sigma: float) -> Tensor:
    """Return the time at which σ/α is `sigma`."""
    low, high = noise_range(schedule)
    if not low * (1 - 1e-9) <= sigma <= high * (1 + 1e-9):
        raise ValueError(
            f"sigma={sigma} lies outside the noise levels learned, {low:.3g} to {high:.3g}"
        )
    log_snr = -2 * torch.tensor(sigma, dtype=torch.float64).log()
    return invert_log_snr(schedule, log_snr, float(first_time(schedule)))


@torch.no_grad()
def field(
    model: ScoreModel,
    x: Float[Tensor, "n *event"],
    labels: Int[Tensor, " n"] | None = None,
    *,
    sigma: float | None = None,
) -> Float[Tensor, "n *event"]:
    """Return ∇ log p in data units, p blurred by noise of sd `sigma` in model coordinates.

    Arguments:
        model: A trained model.
        x: Points in data units.
        labels: Class numbers of a class-conditional model.
        sigma: The blur; the smallest noise level where not given. An error δ of ε̂ is one of δ/σ of
            the score: a larger σ trades detail for accuracy.

    Raises:
        ValueError: If the model was not trained at so large or small a noise.
    """
    schedule = model.schedule
    t = first_time(schedule) if sigma is None else _time_of(schedule, sigma)
    alpha, _ = schedule(t)
    return alpha * model(alpha * model.encode(x), t, labels) / model.scale.to(x)


@torch.no_grad()
def denoised(
    model: ScoreModel,
    x: Float[Tensor, "n *event"],
    sigma: float,
    labels: Int[Tensor, " n"] | None = None,
) -> Float[Tensor, "n *event"]:
    """Return E[x_0 | x_0 + noise = x] in data units, noise of sd `sigma` in model coordinates.

    Raises:
        ValueError: If the model was not trained at so large or small a noise.
    """
    t = _time_of(model.schedule, sigma)
    alpha, _ = model.schedule(t)
    return model.decode(model.denoise(alpha * model.encode(x), t, labels))
