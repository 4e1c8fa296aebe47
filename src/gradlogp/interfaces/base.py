"""The law from which a learned score starts, and whether the learned score is better."""

from __future__ import annotations

import copy
import warnings
from contextlib import suppress
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..check.baselines import fitted_mixture
from ..core import Estimate, NoisyScore, mean_and_error
from ..diffusion import log_likelihood
from ..distributions.analytic.mixture import GaussianMixture
from ..noise.coordinates import AffineCoordinates, Scales, Subset
from ..scores.base import FULL
from ..scores.model import ScoreModel
from .pipeline import suits_unet

BaseName = Literal["auto", "gaussian", "mixture", "none"]

COMPONENTS = (2, 4, 8, 16, 32)
"""Sizes of mixtures that are tried."""

MIXED = 10_000
"""Rows that a mixture is fitted to."""

MOST_HELD_OUT = 10_000
"""Rows held out by default, at most."""

ROWS, ENTRIES = 200, 2**16
"""Held-out rows on which a model is compared with its base, or as many as have so many entries."""

STEPS = 32
"""Steps of the flow in that comparison."""

IN_FLOAT64 = 2
"""How many times as long an evaluation takes in float64, about."""

PARTS = (1.0, 0.9, 0.75, 0.5, 0.25)
"""Parts of a correction that are tried until one is better than none: of a network that memorises, a
single row in a hundred can make the whole worse by far, and a part of it not."""

EXACT = 32
"""Entries of an event up to which that comparison takes the exact divergence."""


class Correction(NamedTuple):
    """The gain of the learned correction in held-out nats over the base, and whether it is kept.

    It is measured on rows that also chose the weights and the share, so it is slightly optimistic.
    If the whole makes the likelihood worse, the gain is that of the largest of `PARTS` that is better
    than none by more than its error, or of the smallest. `part` is what is kept.
    """

    gain: Estimate
    kept: bool
    part: float = 1.0

    def __str__(self) -> str:
        kept = "kept" if self.part == 1 else f"{self.part:g} of it kept"
        return f"{self.gain} nats above the base, {kept if self.kept else 'left out'}"


def held_out_rows(n: int, fraction: float | None) -> int:
    """Return how many of n rows are held out: a tenth by default, or up to a quarter of few rows.

    At most `MOST_HELD_OUT`, which are enough to distinguish losses.

    With fewer than a few dozen held-out rows, neither the best weights nor the share of a
    correction can be determined.
    """
    if n < 20:
        return 0
    return (
        max(min(n // 10, MOST_HELD_OUT), min(n // 4, 64))
        if fraction is None
        else int(fraction * n)
    )


def base_for(
    name: BaseName, kept: Tensor | Subset, aside: Tensor | Subset, *,
    condition: str | None, standardize: bool | Literal["one"], seed: int,
) -> GaussianMixture | Literal["gaussian"] | None:  # fmt: skip
    """Return the base of a model for these rows, in the coordinates that it will have.

    By default large images have a mixture of waves (`scores.waves`): means over an image are hard to
    find in much noise, and a U-Net that starts from nothing gets them wrong for a long time. Images
    of at most `FULL` entries have none. Sequences have one Gaussian. So have vectors with classes:
    the modes of a mixture would have to be unlearned class by class. With values there is none: the
    model includes their linear prediction.

    Arguments:
        name: "none"; "gaussian"; "mixture", or one Gaussian if that is as good on the validation
            rows; "auto", as described above, and "mixture" for vectors.
        kept: Training rows, `(N, *event)`.
        aside: Validation rows.
        condition: "classes", "values", or None, as in the estimator.
        standardize: As in the estimator.
        seed: Seed of the starts of a mixture.
    """
    local = suits_unet(kept.shape[1:])
    images = local and kept.ndim == 4 and kept[0].numel() <= FULL
    if name == "none" or (name == "auto" and (images or condition == "values")):
        return None
    one = name == "auto" and (local or condition is not None)
    if name == "gaussian" or len(aside) < 2 or one:
        return "gaussian"
    few = kept[:: -(-len(kept) // MIXED)]
    z, held = few.double(), aside[:MOST_HELD_OUT].double()
    if standardize is not False:
        scales: Scales = "one" if standardize == "one" else "each"
        coordinates = AffineCoordinates.fit(kept, kept.shape[1:], scales)
        z, held = (coordinates.encode(part) for part in (z, held))
    found, _ = mixture_of(z.flatten(1), held.flatten(1), seed)
    return "gaussian" if found is None else found


def mixture_of(z: Tensor, aside: Tensor, seed: int) -> tuple[GaussianMixture | None, Estimate]:
    """Return the mixture that is best on validation rows, or None if one Gaussian is as good.

    Returns:
        The mixture, and its gain over one Gaussian, in nats per row.
    """
    rows = aside.numpy()
    one = highest = _fitted(z, 1, seed).score_samples(rows)
    best, worse = None, 0
    for k in COMPONENTS:
        if k * (z.shape[1] + 1) > len(z) or worse == 2:
            break
        found = _fitted(z, k, seed)
        nats = found.score_samples(rows)
        over = mean_and_error(torch.as_tensor(nats - highest))
        if over.value > 2 * over.standard_error:  # else fewer do as well
            best, highest, worse = found, nats, 0
        else:
            worse += 1
    gain = mean_and_error(torch.as_tensor(highest - one))
    if best is None:
        return None, gain
    parts = (torch.as_tensor(v) for v in (best.weights_, best.means_, best.covariances_))
    return GaussianMixture(*parts), gain


def _fitted(z: Tensor, k: int, seed: int) -> Any:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is judged by what it says of rows
        return fitted_mixture(k, z.numpy(), seed)


class _Silent(torch.nn.Module):
    """Stands for a network of which nothing is kept, and costs nothing."""

    def forward(self, z: Tensor, *rest: Tensor) -> Tensor:
        return 0 * z  # which can be differentiated


class Judge:
    """Compares a model with its base by the likelihood of held-out rows; drops a worse correction.

    The share of a correction ensures at each level that the bound is not worse. In the likelihood
    of the flow, errors of one sign at many levels add up, so that it is compared once, as a whole.

    Attributes:
        found: The result; None for a model without a base, or with fewer than two rows.
    """

    def __init__(self, x: Tensor | Subset, condition: Tensor | None, seed: int) -> None:
        n = min(ROWS, max(16, ENTRIES // x.shape[1:].numel()))
        self.x, self.seed = x[:n].double(), seed
        self.condition = None if condition is None else condition[:n]
        self.found: Correction | None = None

    def evaluations(self, model: ScoreModel) -> int:
        """Return about how many rows a network is asked for; a derivative takes as long as a value.

        That is if the whole correction is better than none: else its parts are tried as well.
        """
        if model.base is None or len(self.x) < 2 or model.schedule.times is not None:
            return 0
        d = self.x[0].numel()
        derivatives = d if d <= EXACT else 1
        return len(self.x) * (STEPS + 1) * (1 + derivatives) * IN_FLOAT64

    @torch.no_grad()
    def __call__(self, model: ScoreModel) -> None:
        """Judge a model; its share becomes a part of it, or 0, where the base is better."""
        if model.base is None or len(self.x) < 2 or model.schedule.times is not None:
            return
        if not bool(model.base.share.any()):  # they are the same
            self.found = Correction(Estimate(0.0, 0.0), False, 0.0)
            return
        ours: ScoreModel = copy.deepcopy(model).cpu().double()
        base = copy.deepcopy(ours)
        assert base.base is not None
        # not 0: both paths are to end at the same time, so that what they have in common cancels
        base.base.share *= 1e-30
        base.network = _Silent()
        assert ours.base is not None
        share, known = ours.base.share.clone(), torch.full((len(self.x),), torch.inf).double()
        with suppress(ArithmeticError):  # no number at all
            known = self._nats(base)
        for part in PARTS:
            ours.base.share.copy_(part * share)
            try:
                gain = mean_and_error(self._nats(ours) - known)
            except ArithmeticError:  # no number at all
                gain = Estimate(float("-inf"), float("nan"))
            kept = gain.value > (0.0 if part == 1 else gain.standard_error)
            self.found = Correction(gain, kept, part if kept else 0.0)
            if kept:
                break
        model.base.share.mul_(part if kept else 0.0)

    def _nats(self, model: ScoreModel) -> Tensor:
        score: NoisyScore = model if self.condition is None else model.given(self.condition)
        exact = self.x[0].numel() <= EXACT
        return log_likelihood(
            score, self.x, n_steps=STEPS, divergence="exact" if exact else "hutchinson",
            generator=torch.Generator().manual_seed(self.seed),
        ).log_prob  # fmt: skip
