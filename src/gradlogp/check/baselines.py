"""Classical density estimators, fitted to the training rows of a model, for comparison."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Estimate, check_points, new_seed, permutation
from ..show.report import Row
from .looks import View, classifier_look, split
from .metrics.classifier import Distinction
from .metrics.columns import effective, weights_of

LEAST = 10
"""Rows below which nothing is fitted."""

MOST_ROWS = 5000
"""Rows that a mixture or a kernel density is fitted to."""

MOST_COLUMNS = 64
"""Columns up to which a mixture of full covariances is tried."""

FEW_COLUMNS = 5
"""Columns up to which a kernel density is tried."""


class Baseline(NamedTuple):
    """A fitted estimator.

    Attributes:
        name: Its name in words.
        log_prob: The log-density of rows `(n, d)`, in nats.
        sample: Draws rows from it.
    """

    name: str
    log_prob: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]


def fitted_mixture(k: int, rows: np.ndarray, seed: int) -> Any:
    """Return a mixture of k normal laws of scikit-learn, fitted by EM on one thread.

    Its matrices are d × d. Threads that wait for one another cost more than they save there: twice
    the time on two idle cores, and many times on busy ones.
    """
    from sklearn.mixture import GaussianMixture
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        return GaussianMixture(k, random_state=seed % 2**32, reg_covar=1e-6).fit(rows)


def baselines(
    train: Float[Tensor, "n d"], *, generator: torch.Generator | None = None
) -> list[Baseline]:
    """Fit a normal law, a mixture of normal laws, and a kernel density.

    The number of components minimises BIC among 2, 4, 8, 16 and 32, the bandwidth maximises the
    likelihood of a fifth of the rows. All are fitted in units of each column's standard deviation;
    a mixture up to 64 columns, a kernel density up to 5. A constant column is refused, because it
    has no density.

    Arguments:
        train: Rows, `(n, d)`, finite.
        generator: Source of starts, subsamples and splits.

    Raises:
        ValueError: For fewer than 10 rows, values that are not finite, or a constant column.
    """
    from sklearn.neighbors import KernelDensity

    check_points(train, "train", least=LEAST)
    if train.ndim != 2 or train.shape[1] == 0:
        raise ValueError(f"train must have shape (n, d), got {tuple(train.shape)}")
    train = train.detach().double()
    mean, deviation = train.mean(0), train.std(0)
    if bool((deviation == 0).any()):
        at = (deviation == 0).nonzero().flatten().tolist()
        raise ValueError(f"train has constant columns, {at}: they have no density; leave them out")
    z = ((train - mean) / deviation).cpu().numpy()
    seed = new_seed(generator)
    order = permutation(len(z), generator).numpy()
    some, d = z[order[:MOST_ROWS]], z.shape[1]
    normal = fitted_mixture(1, z, seed)
    found: list[tuple[str, Any]] = [("normal law", normal)]
    if d <= MOST_COLUMNS:
        best, least = None, normal.bic(some)
        for k in (2, 4, 8, 16, 32):
            if len(some) < 4 * k:
                break
            tried = fitted_mixture(k, some, seed)
            bic = tried.bic(some)
            if bic > least:
                break
            best, least = (k, tried), bic
        if best is not None:
            found.append((f"mixture of {best[0]} normal laws", best[1]))
    if d <= FEW_COLUMNS:
        cut = max(1, len(some) // 5)
        scott = len(some) ** (-1 / (d + 4))
        score = lambda h: KernelDensity(bandwidth=h, rtol=1e-3).fit(some[cut:]).score(some[:cut])
        bandwidth = max((c * scott for c in (0.1, 0.2, 0.4, 0.7, 1.0)), key=score)
        kernel = KernelDensity(bandwidth=bandwidth, rtol=1e-4).fit(some)
        found.append((f"kernel density, bandwidth {bandwidth:.2g}", kernel))
    log_det = float(deviation.log().sum())

    def wrap(name: str, model: Any) -> Baseline:
        def log_prob(x: Tensor) -> Tensor:
            rows = ((x - mean) / deviation).cpu().numpy()
            return torch.from_numpy(np.asarray(model.score_samples(rows))) - log_det

        def sample(n: int) -> Tensor:
            rows = model.sample(n)[0] if hasattr(model, "bic") else model.sample(n, seed % 2**32)
            return torch.from_numpy(np.asarray(rows, dtype=np.float64)) * deviation + mean

        return Baseline(name, log_prob, sample)

    return [wrap(name, model) for name, model in found]


AHEAD = 0.05
"""Nats by which a classical estimator has to be ahead, beside its error, to count."""


class Beside(NamedTuple):
    """A classical estimator: name, log-densities of held-out rows, how detectable its draws are."""

    name: str
    log_prob: Tensor
    distinction: Distinction


def fitted_beside(v: View, generator: torch.Generator | None) -> list[Beside]:
    """Fit classical estimators to the training rows, except to columns without a density."""
    x, held = v.joint["train"], v.joint["held_out"]
    if v.joint_names != v.names or bool((x.std(0) == 0).any()):
        return []
    found = []
    for b in baselines(x, generator=generator):
        drawn = b.sample(len(v.joint["samples"]))
        joint = {**v.joint, "samples": drawn}
        equal = {**v.weights, "samples": weights_of(drawn, None)}
        parts = split(v._replace(joint=joint, weights=equal), generator)
        found.append(Beside(b.name, b.log_prob(held), classifier_look(parts, generator)[1]))
    return found


def rows_beside(
    found: list[Beside], v: View, log_prob: Tensor | None, ours: Distinction
) -> tuple[list[Row], list[str]]:
    """Return rows of classical estimators, and a sentence for those that do better than the model."""
    if not found:
        note = "classical densities need numeric columns without holes that are not constant"
        return [Row("classical estimators", "not fitted", note=note)], []
    w = v.weights["held_out"]
    table = [
        Row(
            f"log-likelihood, {b.name}",
            *weighted_mean(b.log_prob, w),
            note="nats per held-out row",
        )
        for b in found
    ]
    sentences = []
    if log_prob is not None:
        gaps = [(weighted_mean(b.log_prob - log_prob, w), b.name) for b in found]
        gap, name = max(gaps, key=lambda pair: pair[0].value)
        ahead = gap.value > AHEAD + 3 * gap.standard_error
        table.append(
            Row(f"model minus {name}", -gap.value, gap.standard_error, verdict=not ahead,
                note="nats per held-out row")
        )  # fmt: skip
        if ahead:
            sentences.append(f"a {name} does better by {gap} nats per held-out row")
    for b in found:
        auc = b.distinction.auc
        noise = math.hypot(auc.standard_error, ours.auc.standard_error)
        harder = ours.auc.value - auc.value > 3 * noise
        note = "its draws, by the same classifier" + (
            "; harder to detect than the samples" * harder
        )
        table.append(Row(f"classifier, {b.name}", *auc[:2], 0.5, note=note))
    return table, sentences


def weighted_mean(values: Tensor, w: Tensor) -> Estimate:
    """Return a weighted mean and its standard error."""
    mean = float(w @ values)
    return Estimate(mean, math.sqrt(float(w @ (values - mean).square()) / (effective(w) - 1)))
