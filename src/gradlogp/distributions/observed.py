r"""Posteriors of many observations, whose score can be estimated from a few of them.

.. math:: \log p(x) = \log π(x) + \sum_{i=1}^N \log ℓ(y_i | x) + const
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from ..calculus.reverse import score_from_log_prob
from ..core import check_batch


@dataclass(frozen=True, eq=False)
class Observed:
    r"""A density that is a prior times N likelihoods, for minibatch kernels such as `SGLD`.

    .. math:: \log p(x) = \log π(x) + \sum_{i=1}^N \log ℓ(y_i | x) + const

    Scores come from automatic differentiation of the two functions. Where chains have batches of
    their own the functions run inside `torch.func.vmap`, one chain at a time: they must not branch
    on values.

    Arguments:
        log_prior: x -> log π(x), `(B, *event) -> (B,)`; a constant may be missing.
        log_likelihood: x, rows -> log ℓ(y_i | x), `(B, *event), (n, ...) -> (B, n)`, for n rows of
            the data, each row on its own.
        data: The N observations, `(N, ...)`.

    Raises:
        ValueError: For data without rows; when called, for a function that returns another shape.
    """

    log_prior: Callable[[Tensor], Tensor]
    log_likelihood: Callable[[Tensor, Tensor], Tensor]
    data: Tensor

    def __post_init__(self) -> None:
        if not isinstance(self.data, Tensor) or self.data.ndim == 0 or len(self.data) == 0:
            raise ValueError("data must be a tensor (N, ...) of at least one observation")

    @property
    def n_data(self) -> int:
        """N, the number of observations."""
        return len(self.data)

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return log p(x) + const."""
        check_batch(x)
        return self._log_prob(x, self._rows(x), 1.0)

    def score(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return ∇ log p(x), from all observations."""
        check_batch(x)
        rows = self._rows(x)
        return score_from_log_prob(lambda x: self._log_prob(x, rows, 1.0))(x)

    def minibatch_score(
        self, x: Float[Tensor, "batch *event"], index: Integer[Tensor, "*chains n"]
    ) -> Float[Tensor, "batch *event"]:
        r"""Return the estimate of ∇ log p(x) from the observations in a batch S of size n.

        .. math:: \hat g(x) = \nabla \log π(x) + \frac{N}{n} \sum_{i \in S} \nabla \log ℓ(y_i | x)

        Unbiased where every observation is equally likely to be drawn.

        Arguments:
            x: Where, `(B, *event)`.
            index: S, `(n,)` for one batch shared by all chains or `(B, n)` for one each.

        Raises:
            ValueError: For an index of another shape, or without entries.
        """
        check_batch(x)
        if index.ndim not in (1, 2) or (index.ndim == 2 and len(index) != len(x)):
            raise ValueError(
                f"index must have shape (n,) or ({len(x)}, n), got {tuple(index.shape)}"
            )
        if index.shape[-1] == 0:
            raise ValueError("index is empty: a minibatch needs at least one observation")
        scale, rows = self.n_data / index.shape[-1], self._rows(x)[index]
        if index.ndim == 1:
            return score_from_log_prob(lambda x: self._log_prob(x, rows, scale))(x)

        def one(x: Tensor, rows: Tensor) -> Tensor:
            return self._log_prob(x.unsqueeze(0), rows, scale).squeeze(0)

        return torch.func.vmap(torch.func.grad(one))(x, rows)

    def _rows(self, x: Tensor) -> Tensor:
        """Return the data on the device of x, and in its dtype unless they are integers."""
        return self.data.to(x) if self.data.is_floating_point() else self.data.to(x.device)

    def _log_prob(self, x: Tensor, rows: Tensor, scale: float) -> Tensor:
        prior, each = self.log_prior(x), self.log_likelihood(x, rows)
        if prior.shape != x.shape[:1]:
            raise ValueError(f"log_prior must return ({len(x)},), got {tuple(prior.shape)}")
        if each.shape != (len(x), len(rows)):
            raise ValueError(
                f"log_likelihood must return ({len(x)}, {len(rows)}) for {len(x)} points and "
                f"{len(rows)} rows of the data, got {tuple(each.shape)}"
            )
        return prior + scale * each.sum(1)
