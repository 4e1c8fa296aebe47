"""Building models, shared by the estimator, the command line and the demonstrations."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from contextlib import closing
from functools import cached_property, partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import (
    ALONE,
    Estimate,
    NoisyScore,
    Processes,
    Schedule,
    Transition,
    permutation,
    randn_like,
)
from ..diffusion import UniPC, evolve, plan_levels, plan_likelihood
from ..diffusion.evolve import first_time
from ..distributions.analytic import Gaussian, GaussianMixture
from ..learn.objectives import multilevel, weights
from ..learn.objectives.masked import Masks
from ..noise.coordinates import AffineCoordinates, Scales, Subset, subset
from ..noise.grids import time_grid
from ..noise.ladder import noise_levels, noise_span
from ..noise.predictions import Kind
from ..noise.schedules import VE
from ..scores.base import FULL
from ..scores.conditioned import Condition, linear_part
from ..scores.model import ScoreModel
from ..scores.networks import MLP, UNet
from ..show.progress import bar

OBJECTIVE = partial(multilevel, stratified=True)
"""What to train with: every noise level alike, times spread evenly over the batch."""

OF_IMAGES = partial(multilevel, stratified=True, weight=weights.truncated_v)
"""What large images train with: more of the levels that decide about means over an image."""

LEAST = 1e-3
"""Of the standard deviation: below it the noise levels do not follow what y leaves of x."""

ATTENDED = 256
"""Places of the coarsest level up to which they look at one another."""

LOOKED_AT = 2**16
"""Rows that noise levels are chosen by."""

FREQUENCIES = (1.0, 2.5, 6.3, 16.0)
ROWS_A_COLUMN = 20
"""Frequencies that the MLP is given of each entry of vectors, where there are so many rows or more
for each of at most `width` columns. With fewer rows it memorises them (wine, breast_cancer); with more
it finds edges and grids that it does not find without (diabetes, diamonds)."""

CHUNK, ENTRIES = 4096, 2**17
"""Points handled together, and entries of images and sequences, whose networks keep many numbers for
each: on a CPU, more take up to twice as long, and gigabytes of memory."""


def chunk_of(score: NoisyScore, n: int) -> int:
    """Return how many of n points are handled together, on the device of the score."""
    shape, like = score.event_shape, getattr(score, "like", torch.empty(0))
    if shape is None or len(shape) == 1 or like.device.type != "cpu":
        return min(n, CHUNK)
    return min(n, CHUNK, max(1, ENTRIES // shape.numel()))


def build_model(
    x: Float[Tensor, "n *event"] | Subset,
    *,
    network: nn.Module | None = None,
    schedule: Schedule | None = None,
    predicts: Kind = "v",
    standardize: bool | Literal["one"] = True,
    width: int | None = None,
    depth: int = 3,
    channels: Sequence[int] | None = None,
    condition: int | Sequence[int] | None = None,
    base: Gaussian | GaussianMixture | Literal["gaussian"] | None = None,
    given: Tensor | None = None,
    masks: Masks | None = None,
    repeats: Tensor | None = None,
    dense: bool = False,
    generator: torch.Generator | None = None,
) -> ScoreModel:
    """Return an untrained model that suits the data.

    Noise levels for vectors are geometric in the range of `noise.ladder.noise_span` (VE). For
    images they range from half the spacing of the points or a tenth of Scott's bandwidth
    n^{−1/(d+4)}, whichever is larger but at most 0.05, to their largest distance. Both are in
    units of the standard deviation of the data. Values to condition on narrow the law: the
    smallest level is then in units of the residual standard deviation in the narrowest direction.
    Images `(C, H, W)` and sequences `(C, L)` get a U-Net, all other data an MLP.

    `given` are the conditions of the rows of x, and `repeats` the row of each sample, where some are
    there more often. With `masks` the model is conditional on any part of a row instead. With
    `dense` rows (`learn.settings.dense`) the MLP is narrower and learns the whole score, and a
    mixture only replaces what held-out rows do not support. The other arguments are those of
    `ScoreEstimator` and `ScoreModel`.
    """
    event = x.shape[1:]
    width = (64 if dense else 128) if width is None else width
    if schedule is None:
        scales: Scales = "one" if standardize == "one" else "each"
        own = x if repeats is None else subset(x, repeats)
        if len(x) > LOOKED_AT:
            some = permutation(len(x), generator)[:LOOKED_AT]
            few, given = x[some], None if given is None else given[some]
        else:
            few = x[:]
        z = AffineCoordinates.fit(own, event, scales).encode(few) if standardize else few
        if len(event) == 1:
            least, most = noise_span(z, generator, n_points=len(x))
        else:
            sigmas = noise_levels(z.float(), tell=None, generator=generator).sigmas
            # n points do not tell the score at scales far below a kernel density's bandwidth
            bandwidth = len(x) ** (-1 / (event.numel() + 4))
            least, most = min(0.05, max(sigmas[-1], 0.1 * bandwidth)), sigmas[0]
        if given is not None and given.is_floating_point() and standardize:
            least *= _unexplained(z, given)
        schedule = VE(least, most)
    if network is None and suits_unet(event) and masks is None:
        channels = levels_for(event) if channels is None else channels
        places = math.prod(-(-n // 2 ** (len(channels) - 1)) for n in event[1:])
        network = UNet(
            event, channels, condition=condition, attention=places <= ATTENDED,
            start=base == "gaussian" and len(event) == 3 and event.numel() > FULL,
            generator=generator,
        )  # fmt: skip
    elif network is None:
        d = event.numel()
        network = MLP(
            event, width, depth, condition, holes=masks is not None, generator=generator,
            frequencies=FREQUENCIES if ROWS_A_COLUMN * d <= len(x) and d <= width else (),
        )  # fmt: skip
        if base is None and masks is None and event.numel() > width:
            warn_of_rank(x, width)
    model = ScoreModel(network, schedule, predicts, event, base=base)
    if dense and model.base is not None and isinstance(base, GaussianMixture):
        model.base.fallback = True  # the network would have to undo its edges
    if masks is not None:
        masks.prepare(model.condition)
    return model


def objective_for(model: ScoreModel) -> Any:
    """Return what a model trains with where nothing else is asked for."""
    return OBJECTIVE if model.basis is None else OF_IMAGES


def warn_of_rank(x: Tensor | Subset, width: int) -> None:
    """Warn if data has more directions than a network has units: it could not carry all of them."""
    y = x[:CHUNK].flatten(1).double()
    w = torch.linalg.svdvals((y - y.mean(0)) / y.std(0, correction=0).clamp(min=1e-12)).square()
    rank = int((w > 1e-3 * w.mean()).sum())
    if rank > width:
        warnings.warn(
            f"the data have {rank} directions and the network a width of {width}: it cannot carry all "
            'of them, and some will come out too wide; pass base="gaussian", or a larger width',
            stacklevel=3,
        )


def _unexplained(z: Tensor, y: Tensor) -> float:
    """Return the smallest residual standard deviation of any direction, given a linear fit to y.

    For a linear model this is the width of the posterior, and otherwise it is on average no
    narrower.
    """
    found = linear_part(z.flatten(1).double(), y)
    if found is None:
        return 1.0
    return float(torch.linalg.eigvalsh(found[1])[0].clamp(min=LEAST**2, max=1).sqrt())


def suits_unet(event: Sequence[int]) -> bool:
    """Whether events are images, or sequences of some length, whose neighbours belong together."""
    return (len(event) == 3 and max(event[1:]) >= 4) or (len(event) == 2 and event[1] >= 8)


def levels_for(event: Sequence[int]) -> tuple[int, ...]:
    """Return channels for the levels of a U-Net: (32, 64) up to 16 places; of more (16, 32, 64, …, 64).

    The coarsest of these is at most 8 pixels wide. On a CPU this is as good as twice the channels
    on the finest level in the same time, and better in a short time: in 25 and 60 seconds, on
    patches of 32×32 pixels.
    """
    longest = max(event[1:])
    if longest <= 16:
        return 32, 64
    return 16, 32, *[64] * (math.ceil(math.log2(longest / 8)) - 1)


def follow(
    records: Any, step: int, loss: Estimate | None, callback: Any, *, quiet: bool
) -> tuple[int, Estimate | None]:
    """Train under a progress bar; return the last step and held-out loss, at first those given."""
    before = None  # whose loss has left a device that is still computing that of the record
    with bar("learning", quiet=quiet) as update, closing(records):
        for record in records:
            step, loss = record.step, record.held_out or loss
            if callback is not None:
                callback(record)
            last = before if before is not None and record.reading.ahead else record
            update(step, record.steps, f"loss {last.loss if loss is None else loss.value:.4f}")
            before = record
    return step, loss


def draw(
    score: NoisyScore,
    n: int,
    levels: int,
    *,
    transition: Transition = UniPC(),  # noqa: B008
    generator: torch.Generator,
    title: str = "sampling",
    quiet: bool,
    processes: Processes = ALONE,
    **options: Any,
) -> Tensor:
    """Return n samples over so many noise levels, under a progress bar."""
    rho = math.inf if isinstance(transition, UniPC) else 7.0  # what suits either
    t_max = first_time(transition, score)
    with bar(title, quiet=quiet) as update:
        return evolve(
            transition, score, n, time_grid(score.schedule, levels, rho=rho, t_max=t_max),
            generator=generator, chunk_size=chunk_of(score, -(-n // processes.size)), progress=update,
            processes=processes, **options,
        )  # fmt: skip


EXACT = 32
"""Entries of an event up to which the steps of a likelihood are measured with the exact divergence."""


class Needs:
    """What a model needs; nothing is measured before it is asked for."""

    def __init__(self, model: ScoreModel) -> None:
        self.model = model

    @cached_property
    def levels(self) -> int:
        """The noise levels for samples that are right to a hundredth of a deviation."""
        return sample_levels(self.model)

    @cached_property
    def steps(self) -> int:
        """The steps for log-likelihoods that are right to 0.003 √d nats."""
        return likelihood_steps(in_float64(self.model))


def in_float64(model: ScoreModel) -> ScoreModel:
    """Return a copy of a model in float64, in which no result depends on the batch."""
    return copy.deepcopy(model).cpu().double()


def sample_levels(model: ScoreModel) -> int:
    """Return the noise levels that sampling needs, to a hundredth of a standard deviation."""
    if model.schedule.times is not None:
        return len(model.schedule.times)
    generator = torch.Generator().manual_seed(0)
    return plan_levels(_typical(model, 32, generator), generator=generator).n


def likelihood_steps(model: ScoreModel) -> int:
    """Return the steps that a log-likelihood of d entries needs, to 0.003 √d nats."""
    generator, d = torch.Generator().manual_seed(0), model.event_shape.numel()
    n = max(8, min(64, 1024 // d))
    return plan_likelihood(
        _typical(model, n, generator), tolerance=0.003 * math.sqrt(d), n_draws=n, generator=generator,
        divergence="exact" if d <= EXACT else "hutchinson",
    ).n  # fmt: skip


def _typical(model: ScoreModel, n: int, generator: torch.Generator) -> NoisyScore:
    """Return the score given n conditions like those of the data, without asking the user."""
    condition = model.condition
    if not isinstance(condition, Condition):
        return model
    if isinstance(condition.kind, int):
        return model.given(torch.arange(n, device=model.z_std.device) % condition.kind)
    z = randn_like(torch.zeros(n, *condition.kind), generator).to(model.z_std)
    return model.given(condition.coordinates.decode(z))
