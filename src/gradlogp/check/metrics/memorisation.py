"""Does a model copy its training data, or fit them better than other data of the same law?"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    Estimate,
    Generator,
    check_count,
    check_number,
    check_points,
    evaluate,
    finite_result,
    mean_and_error,
    neighbours,
    per_sample,
    randn_like,
    subsample,
    sum_event,
    warn_of_cost,
)
from ...distributions.analytic.empirical import Empirical
from .two_sample import two_samples

MANY_POINTS = 50_000
"""Points above which a warning comes of a time that grows as their square: minutes."""


class Memorisation(NamedTuple):
    """Nearest-neighbour distances of samples and of held-out data, and who is nearer to what."""

    to_train: Estimate
    to_held_out: Estimate
    real_to_train: Estimate
    nearer_train: Estimate


def nearest_neighbours(
    samples: Float[Tensor, "n *event"],
    train: Float[Tensor, "m *event"],
    held_out: Float[Tensor, "k *event"],
    *,
    generator: torch.Generator | None = None,
) -> Memorisation:
    """Nearest-neighbour distances that reveal memorisation.

    `nearer_train` is the fraction of samples nearer to the training set than to a held-out set of
    the same size (the larger of the two is subsampled): ½ for a model that generalises, 1 for one
    that copies. `to_train` is the mean distance of a sample to the training set, `real_to_train`
    that of held-out data to it, and `to_held_out` that of a sample to the held-out set. The
    standard error of `nearer_train` is that over all ways to divide the two reference sets: points
    near many samples make it larger than a binomial error. Time grows as the product of the two
    numbers of points and d, with a warning from 50,000 points on; 64 MB are held at a time.

    Arguments:
        samples: Generated samples, `(n, *event)`.
        train: Training data, `(m, *event)`.
        held_out: Data that were not used in training, `(k, *event)`.
        generator: Source of the subsample.

    References:
        | A Non-Parametric Test to Detect Data-Copying in Generative Models (Meehan et al., 2020)
        | https://arxiv.org/abs/2004.05675
    """
    s, tr = two_samples(samples, train, "samples", "train")
    _, ho = two_samples(samples, held_out, "samples", "held_out")
    warn_of_cost(
        max(len(samples), len(train)), MANY_POINTS, "a search for nearest neighbours",
        "compare random subsets of the samples and of the data",
    )  # fmt: skip
    n = min(len(tr), len(ho))
    tr_n, ho_n = subsample(tr, n, generator), subsample(ho, n, generator)
    d_train, i_train = _nearest(s, tr_n)
    d_held, i_held = _nearest(s, ho_n)
    # equal distances (copies in both sets) count half to each side
    nearer = (d_train < d_held).double() + 0.5 * (d_train == d_held).double()
    whose = torch.where(d_train <= d_held, i_train, n + i_held)
    counts = torch.bincount(whose, minlength=2 * n).double() / len(s)
    spread = float((counts - counts.mean()).square().sum()) * 2 * n / (2 * n - 1)
    found = Memorisation(
        mean_and_error(d_train),
        mean_and_error(d_held),
        mean_and_error(_nearest(ho_n, tr_n)[0]),
        Estimate(float(nearer.mean()), 0.5 * math.sqrt(spread)),
    )
    return finite_result(found, "samples")


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance of each point of a to its nearest of b, and which that is."""
    values, indices = neighbours(a, b)
    return values[:, 0], indices[:, 0]


Verdict = Literal["generalises", "overfits", "memorises", "undecided"]

LEAST = 10
"""Points of each kind, below which no error bar can be trusted."""

FREE, HALF, SEEN = 0.1, 0.5, 0.1
"""Below the first share nothing of note is copied, above the second most is; and what part of the
held-out loss copying would have to save, for a noise level to tell anything."""


class DenoisingGap(NamedTuple):
    """Denoising losses E‖x − D(x + σε)‖²/σ² on training and held-out data, with a verdict.

    Attributes:
        sigma: The noise level.
        train: The loss on training data.
        held_out: The loss on held-out data.
        copy: The loss on training data of a perfect copy, the denoiser of the training data's own
            (empirical) law; the smallest possible loss there.
        ratio: train / held_out: 1 for a model that generalises.
        copied: (held_out − train)/(held_out − copy), 0 for a model that generalises and 1 for a copy.
        verdict: "generalises" (copied below 0.1, by two standard errors), "memorises" (above 0.5,
            by two), "overfits" (above 0, by three), otherwise "undecided"; also if a copy would
            not reduce the held-out loss by a tenth: at such a σ even a copy looks like a general
            model.
    """

    sigma: float
    train: Estimate
    held_out: Estimate
    copy: Estimate
    ratio: Estimate
    copied: Estimate
    verdict: Verdict


@torch.no_grad()
def denoising_gap(
    denoise: Callable[[Tensor], Tensor],
    train: Float[Tensor, "m *event"],
    held_out: Float[Tensor, "k *event"],
    sigma: float,
    *,
    n_draws: int = 4,
    generator: Generator | None = None,
) -> DenoisingGap:
    r"""Compare denoising on training and on held-out data, beside a model that only copies.

    .. math::
        L(D; A) = \mathrm{mean}_{x \in A} \frac{\|x - D(x + σ ε)\|^2}{σ^2}, \qquad
        \text{copied} = \frac{L(D; \text{held out}) - L(D; \text{train})}
                             {L(D; \text{held out}) - L(D_\text{train}; \text{train})}

    D_train is the posterior mean under the empirical law of the training data, the minimiser of
    the training loss over all functions. Choose a σ at which points overlap little, about the
    distance of nearest neighbours or below: at a large σ a copy cannot be distinguished from a
    model. Training and held-out data must have the same law, otherwise their difference is
    mistaken for copying. D_train takes time of order n_draws N² d for N training points, with a
    warning from 50,000 on.

    Arguments:
        denoise: D at this noise level, x + σε -> E[x | x + σε], `(B, *event) -> (B, *event)`.
        train: All training data of the model.
        held_out: Data that were not used in training.
        sigma: σ, with α = 1, in the coordinates of the data.
        n_draws: Number of draws of noise per point.
        generator: Source of the noise.

    Raises:
        ValueError: For σ ≤ 0, shapes that differ, or fewer than ten points in either set.

    References:
        | Generalization in diffusion models arises from geometry-adaptive harmonic representations
          (Kadkhodaie et al., 2024)
        | https://arxiv.org/abs/2310.02557
    """
    check_points(train, "train", least=LEAST)
    check_points(held_out, "held_out", train.shape[1:], LEAST)
    check_number(sigma, "sigma", above=0)
    check_count(n_draws, "n_draws")
    warn_of_cost(
        len(train), MANY_POINTS, "the denoiser that only copies",
        "judge by a random subset of the training data, and as many held-out rows",
    )  # fmt: skip
    law = Empirical(train)

    def copy(y: Tensor) -> Tensor:
        return law.posterior_mean(y, 1.0, sigma)

    a, k = _losses((denoise, copy), train, sigma, n_draws, generator)
    (b,) = _losses((denoise,), held_out, sigma, n_draws, generator)
    on_train, on_held, by_copy = (mean_and_error(v) for v in (a, b, k))
    A, B, K = on_train.value, on_held.value, by_copy.value
    ratio_error = (on_train.standard_error**2 + (A / B * on_held.standard_error) ** 2) ** 0.5 / B
    saved = mean_and_error(k - B)  # what a copy would save, on the training points
    span = B - K
    share = (B - A) / span
    # to first order in the three means; those on training points vary together
    of_train = mean_and_error((share * k - a) / span).standard_error
    of_held = (1 - share) / span * on_held.standard_error
    error = (of_train**2 + of_held**2) ** 0.5
    tells = span > SEEN * B and span > 3 * (saved.standard_error + on_held.standard_error)
    verdict: Verdict = "undecided"
    if tells and share - 2 * error > HALF:
        verdict = "memorises"
    elif tells and share + 2 * error < FREE:
        verdict = "generalises"
    elif tells and share - 3 * error > 0:
        verdict = "overfits"
    ratio, copied = Estimate(A / B, ratio_error), Estimate(share, error)
    found = DenoisingGap(sigma, on_train, on_held, by_copy, ratio, copied, verdict)
    return finite_result(found, "train")


def _losses(
    denoisers: tuple[Callable[[Tensor], Tensor], ...],
    x: Tensor,
    sigma: float,
    n_draws: int,
    generator: Generator | None,
) -> list[Tensor]:
    """Return the loss of every denoiser at every point, `(n,)` each, all with the same noise.

    ‖ε‖² − D is a control variate: a denoiser that leaves most of the noise has nearly this loss.
    """
    totals = [torch.zeros(len(x), dtype=torch.float64, device=x.device) for _ in denoisers]
    control = torch.zeros_like(totals[0])
    for _ in range(n_draws):
        eps = randn_like(x, generator)
        y = x + per_sample(sigma, x, "sigma") * eps
        control += (sum_event(eps.double().square()) - x[0].numel()) / n_draws
        for total, denoise in zip(totals, denoisers, strict=True):
            clean = evaluate(denoise, y, "denoise", finite=True)
            total += sum_event(((clean - x) / sigma).double().square()) / n_draws
    centred = control - control.mean()
    return [
        total - (centred @ total) / centred.square().sum().clamp(min=1e-300) * control
        for total in totals
    ]
