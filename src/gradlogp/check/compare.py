"""How right are samples? The metrics as rows of a report, each beside its floor.

The floor is the same number between two independent sets of real data of the same size: what a
perfect model would show.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import mean_and_error, new_seed, permutation
from ..diffusion.likelihood import bits_per_dim
from ..show.report import Row
from . import metrics

MARGIN = 4.0  # standard errors by which a value may miss its mark before it counts as a failure


def likelihood_row(name: str, log_prob: Tensor, note: str = "") -> Row:
    """Return the mean log-likelihood of held-out data, in nats."""
    return Row(name, *mean_and_error(log_prob), note=note)


def bits_row(log_prob: Tensor, event_shape: torch.Size, levels: int) -> Row:
    """Return the bits per dimension of integer data from log p of dequantised data x = k + u − ½."""
    log_p_unit = log_prob + math.prod(event_shape) * math.log(levels)  # of (x + ½)/levels
    bits = mean_and_error(bits_per_dim(log_p_unit, tuple(event_shape), levels))
    note = f"upper bound for integers 0 … {levels - 1}"
    return Row("bits per dimension", *bits, note=note)


def difference_row(name: str, ours: Tensor, theirs: Tensor, note: str = "") -> Row:
    """Return the paired difference of two log-likelihoods of the same points; it should be ≥ 0."""
    gap = mean_and_error(ours.double() - theirs.double())
    return Row(name, *gap, verdict=gap.value + 2 * gap.standard_error >= 0, note=note)


def compare(
    samples: Float[Tensor, "n *event"],
    held_out: Float[Tensor, "m *event"],
    train: Float[Tensor, "k *event"] | None = None,
    *,
    ratio: float = 1.5,
    generator: torch.Generator | None = None,
) -> list[Row]:
    """Compare samples with held-out data.

    Arguments:
        samples: Generated samples.
        held_out: Data not trained on.
        train: Data trained on: gives the floors, and what copies would be copies of. Without it
            half of the held-out data is the floor of the other half, and copying is not looked at.
        ratio: Largest ratio of the sliced Wasserstein distance to its floor that passes; so does
            a distance within four standard errors of the floor.
        generator: Where subsamples, projections and permutations come from.

    Raises:
        ValueError: For shapes that differ, or too few points.
    """
    scale = held_out.double().std(0 if held_out.ndim == 2 else None).clamp(min=1e-12)
    samples, real = samples.double() / scale, held_out.double() / scale
    other = real[1::2] if train is None else train.double() / scale
    real = real[::2] if train is None else real
    n = min(len(samples), len(other))
    fake, reference = samples[:n], other[permutation(len(other), generator)[:n]]

    seed = new_seed(generator)  # the same projections for the value and its floor
    distance, floor = (
        metrics.sliced_wasserstein(z, real, generator=torch.Generator().manual_seed(seed))
        for z in (fake, reference)
    )
    slack = MARGIN * math.hypot(distance.standard_error, floor.standard_error)
    near_floor = distance.value <= max(ratio * floor.value, floor.value + slack)
    mmd, mmd_floor = (metrics.mmd(z, real, generator=generator) for z in (fake, reference))
    c2st, c2st_floor = (metrics.c2st(z, real, generator=generator) for z in (fake, reference))
    rows = [
        Row("sliced Wasserstein distance", *distance, *floor, verdict=near_floor,
            note="to held-out data, in its standard deviations"),
        Row("MMD²", *mmd[:2], *mmd_floor[:2],
            note=f"permutation p-value {mmd.p_value:.3g} (floor {mmd_floor.p_value:.3g})"),
        Row("classifier two-sample accuracy", *c2st[:2], *c2st_floor[:2],
            note="½ if nothing tells samples from real data"),
    ]  # fmt: skip
    if train is None:
        return rows
    near = metrics.nearest_neighbours(fake, other, real, generator=generator)
    gap = near.real_to_train.value - near.to_train.value
    noise = math.hypot(near.real_to_train.standard_error, near.to_train.standard_error)
    return [
        *rows,
        Row("distance to the nearest training point", *near.to_train, *near.real_to_train,
            verdict=gap <= MARGIN * noise,
            note="mean over samples; floor: over held-out data; copies would be nearer"),
        Row("nearer to training than to held-out data", *near.nearer_train, 0.5,
            note="fraction of samples; 1 for copies"),
    ]  # fmt: skip
