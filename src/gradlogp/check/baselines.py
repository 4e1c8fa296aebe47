"""Classical density estimators, fitted to the training rows of a model, for comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core import check_points, new_seed, permutation

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
    from sklearn.mixture import GaussianMixture
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
    seed = new_seed(generator) % 2**32
    order = permutation(len(z), generator).numpy()
    some, d = z[order[:MOST_ROWS]], z.shape[1]

    def mixture(k: int, rows: Any) -> Any:
        return GaussianMixture(k, random_state=seed, reg_covar=1e-6).fit(rows)

    normal = mixture(1, z)
    found: list[tuple[str, Any]] = [("normal law", normal)]
    if d <= MOST_COLUMNS:
        best, least = None, normal.bic(some)
        for k in (2, 4, 8, 16, 32):
            if len(some) < 4 * k:
                break
            tried = mixture(k, some)
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
            rows = model.sample(n)[0] if hasattr(model, "bic") else model.sample(n, seed)
            return torch.from_numpy(np.asarray(rows, dtype=np.float64)) * deviation + mean

        return Baseline(name, log_prob, sample)

    return [wrap(name, model) for name, model in found]
