"""What the estimator, the command line and the demonstrations start from and end with."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import NoisyScore, Schedule, Transition, rand_like
from ..diffusion import ProbabilityFlow, evolve
from ..learn.objectives import multilevel
from ..noise.coordinates import AffineCoordinates, Scales
from ..noise.grids import time_grid
from ..noise.ladder import noise_levels
from ..noise.predictions import Kind
from ..noise.schedules import VE
from ..scores.model import ScoreModel
from ..scores.networks import MLP, UNet
from ..show.progress import bar

OBJECTIVE = partial(multilevel, stratified=True)
"""What to train with: every noise level alike, times spread evenly over the batch."""

CHUNK = 4096
"""Points handled together."""


def build_model(
    x: Float[Tensor, "n *event"],
    *,
    network: nn.Module | None = None,
    schedule: Schedule | None = None,
    predicts: Kind = "v",
    standardize: bool | Literal["one"] = True,
    width: int = 128,
    depth: int = 3,
    channels: Sequence[int] = (32, 64),
    condition: int | Sequence[int] | None = None,
    repeats: Tensor | None = None,
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
        repeats: The row of each sample that will be learned from, where some are there more often.
        generator: Where the initial weights come from.
    """
    event = x.shape[1:]
    if schedule is None:
        scales: Scales = "one" if standardize == "one" else "each"
        own = x if repeats is None else x[repeats]
        z = AffineCoordinates.fit(own, event, scales).encode(x) if standardize else x
        sigmas = noise_levels(z.float(), tell=None, generator=generator).sigmas
        # n points do not tell the score at scales far below a kernel density's bandwidth
        bandwidth = len(x) ** (-1 / (event.numel() + 4))
        schedule = VE(min(0.05, max(sigmas[-1], 0.1 * bandwidth)), sigmas[0])
    if network is None and suits_unet(event):
        network = UNet(event, channels, condition=condition, generator=generator)
    elif network is None:
        network = MLP(event, width, depth, condition, generator=generator)
    return ScoreModel(network, schedule, predicts, event)


def sample_weights(sample_weight: Any, n: int) -> Tensor | None:
    """Return weights of samples; None where all count alike."""
    if sample_weight is None:
        return None
    try:
        weight = torch.as_tensor(np.asarray(sample_weight, dtype=np.float64))
    except (TypeError, ValueError):
        raise ValueError("sample_weight must be numbers, one a sample") from None
    if weight.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), got {tuple(weight.shape)}")
    if not bool((weight >= 0).all() and weight.isfinite().all() and (weight > 0).sum() >= 2):
        raise ValueError(
            "sample_weight must be finite and not negative, and two weights at least must not be zero"
        )
    return weight


def repeated(
    weight: Tensor, generator: torch.Generator | None = None, *, copies: int = 4
) -> Tensor:
    r"""Return row i so often as its weight says, `(m,)`, by systematic sampling.

    .. math::
        n_i = \lfloor C_i + u \rfloor - \lfloor C_{i-1} + u \rfloor, \qquad
        C_i = \frac{m}{W} \sum_{j \le i} w_j, \quad u \sim U(0, 1)

    so that E n_i = m w_i / W and |n_i − E n_i| < 1, W the sum of the weights. With whole weights m is W
    where that is at most so many copies for each row, and n_i = w_i; else m is that.

    Arguments:
        weight: Not negative, `(n,)`.
        generator: Where u comes from.
        copies: Of a row of average weight: rounding 4 to whole ones adds less than a tenth to errors.
    """
    weight = weight.double()
    total, most = float(weight.sum()), copies * len(weight)
    whole = bool((weight == weight.round()).all()) and total <= most
    m = round(total) if whole else most
    u = 0.5 if whole else float(rand_like(weight[:1], generator))
    ends = (weight.cumsum(0) * (m / total) + u).floor().long()
    ends[-1] = m  # rounding may leave it one short
    counts = torch.diff(ends, prepend=torch.zeros(1, dtype=torch.long))
    return torch.arange(len(weight)).repeat_interleave(counts)


def suits_unet(event: Sequence[int]) -> bool:
    """Whether events are images with even sides, which a U-Net can halve."""
    return len(event) == 3 and not any(n % 2 for n in event[1:])


def draw(
    score: NoisyScore,
    n: int,
    levels: int,
    *,
    transition: Transition = ProbabilityFlow(),  # noqa: B008
    generator: torch.Generator,
    title: str = "sampling",
    quiet: bool,
    **options: Any,
) -> Tensor:
    """Return n samples over so many noise levels, under a progress bar."""
    with bar(title, quiet=quiet) as update:
        return evolve(
            transition, score, n, time_grid(score.schedule, levels), generator=generator,
            chunk_size=CHUNK, progress=update, **options,
        )  # fmt: skip
