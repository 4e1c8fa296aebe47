r"""Posteriors of many observations, whose score can be estimated from a few of them.

.. math:: \log p(x) = \log π(x) + \sum_{i=1}^N \log ℓ(y_i | x) + const
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from ..calculus.reverse import GradientField
from ..core import check_batch, check_finite, check_function
from .parameters import Function, Parameters, as_parameters

POINTWISE_ENTRIES = 2**22
"""Log-likelihoods of draws and observations that are computed together."""


@dataclass(frozen=True, eq=False)
class Observed:
    r"""A density that is a prior times N likelihoods, for minibatch kernels such as `SGLD`.

    .. math:: \log p(x) = \log π(x) + \sum_{i=1}^N \log ℓ(y_i | x) + const

    Scores are computed by automatic differentiation of the two functions. If each chain has its
    own minibatch, the functions run inside `torch.func.vmap`, one chain at a time: they must not
    branch on values.

    With `parameters` the functions take named values, `log_prior(**values)` and
    `log_likelihood(rows, **values)`, and x are the unconstrained numbers behind them, `(B,
    n_free)`. The Jacobian belongs to the prior: it is counted once, whatever the size of a
    minibatch.

    Arguments:
        log_prior: x -> log π(x), `(B, *event) -> (B,)`; a constant may be missing.
        log_likelihood: x, rows -> log ℓ(y_i | x), `(B, *event), (n, ...) -> (B, n)`, for n rows of
            the data, each row separately. With parameters the rows come first.
        data: The N observations, `(N, ...)`.
        parameters: As for `as_target`; None for a plain x.
        vectorized: With parameters, whether functions take a batch of chains; otherwise they take
            one chain and return `()` and `(n,)`.

    Raises:
        ValueError: For data without rows, or parameters that the functions do not take; when
            called, if a function returns a different shape.

    Examples:
        >>> data = torch.tensor([1.0, 2.0, 3.0])
        >>> prior = lambda x: -x.square().sum(1) / 2
        >>> likelihood = lambda x, y: -(y - x).square() / 2
        >>> posterior = glp.distributions.Observed(prior, likelihood, data)
        >>> posterior.score(torch.tensor([[1.5], [0.0]]))
        tensor([[0.],
                [6.]])
    """

    log_prior: Function
    log_likelihood: Function
    data: Tensor
    parameters: Parameters | Mapping[str, Any] | nn.Module | None = None
    vectorized: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.data, Tensor) or self.data.ndim == 0 or len(self.data) == 0:
            raise ValueError("data must be a tensor (N, ...) with at least one observation")
        if self.data.is_floating_point():
            check_finite(self.data, "data")
        check_function(self.log_prior, "log_prior")
        check_function(self.log_likelihood, "log_likelihood")
        if self.parameters is not None:
            parameters = as_parameters(self.parameters)
            object.__setattr__(self, "parameters", parameters)
            parameters.check_function(self.log_prior, "log_prior")
            parameters.check_function(self.log_likelihood, "log_likelihood", n_rows=1)
        elif not self.vectorized:
            raise ValueError("vectorized=False is for functions of named values: pass parameters=")

    @property
    def n_data(self) -> int:
        """N, the number of observations."""
        return len(self.data)

    @property
    def event_shape(self) -> torch.Size | None:
        """The shape of one x; None if any shape is allowed."""
        names = self._names
        return None if names is None else torch.Size([names.n_free])

    def log_prob(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, " batch"]:
        """Return log p(x) + const."""
        return self._field(x).log_prob(x)

    def score(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return ∇ log p(x), from all observations."""
        return self._field(x)(x)

    def log_prob_and_score(
        self, x: Float[Tensor, "batch *event"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch *event"]]:
        """Return both, from one evaluation."""
        return self._field(x).log_prob_and_score(x)

    def minibatch_score(
        self, x: Float[Tensor, "batch *event"], index: Integer[Tensor, "*chains n"]
    ) -> Float[Tensor, "batch *event"]:
        r"""Return the estimate of ∇ log p(x) from the observations in a batch S of size n.

        .. math:: \hat g(x) = \nabla \log π(x) + \frac{N}{n} \sum_{i \in S} \nabla \log ℓ(y_i | x)

        Unbiased if every observation is equally likely to be drawn.

        Arguments:
            x: Points, `(B, *event)`.
            index: S, `(n,)` for one batch shared by all chains or `(B, n)` for one each.

        Raises:
            ValueError: For an index of a different shape, or without entries.
        """
        check_batch(x, self.event_shape)
        if index.ndim not in (1, 2) or (index.ndim == 2 and len(index) != len(x)):
            raise ValueError(
                f"index must have shape (n,) or ({len(x)}, n), got {tuple(index.shape)}"
            )
        if index.shape[-1] == 0:
            raise ValueError("index is empty: a minibatch needs at least one observation")
        scale, rows = self.n_data / index.shape[-1], self._rows(x)[index]
        if index.ndim == 1:
            return GradientField(lambda x: self._log_prob(x, rows, scale))(x)

        def one(x: Tensor, rows: Tensor) -> Tensor:
            return self._log_prob(x.unsqueeze(0), rows, scale).squeeze(0)

        return torch.func.vmap(torch.func.grad(one))(x, rows)

    def constrain(self, x: Tensor) -> Tensor:
        """Return what draws of x are stored as: the values of the parameters, `(B, n_flat)`."""
        return x if self._names is None else self._names.constrain(x)

    @torch.no_grad()
    def pointwise(self, draws: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch N"]:
        """Return log ℓ(y_i | x) of each draw and each observation, a few draws at a time.

        Arguments:
            draws: Draws of a chain, `chain.draws.flatten(0, 1)`: with parameters their values, not
                the unconstrained numbers.
        """
        rows = self._rows(draws)
        parts = draws.split(max(1, POINTWISE_ENTRIES // self.n_data))
        return torch.cat([self._likelihoods(self._split(part), rows) for part in parts])

    @torch.no_grad()
    def predict(
        self, draws: Float[Tensor, "batch *event"], f: Function
    ) -> Float[Tensor, "batch N *outcome"]:
        """Return draws of new outcomes for all observations, one set for each draw.

        Arguments:
            draws: As for `pointwise`.
            f: Draws outcomes, `(B, n, *outcome)`; has the arguments of `log_likelihood`. It uses
                your own generator for noise.

        Raises:
            ValueError: If f returns a different shape.
        """
        rows, parts = self._rows(draws), []
        for part in draws.split(max(1, POINTWISE_ENTRIES // self.n_data)):
            x = self._split(part)
            if self._names is None or self.vectorized:
                parts.append(self._call(f, x, rows))
            else:  # one after another: inside vmap nothing can be drawn from a generator
                each = ({k: v[i] for k, v in x.items()} for i in range(len(part)))
                parts.append(torch.stack([self._names.call(f, one, rows) for one in each]))
            if parts[-1].shape[:2] != (len(part), len(rows)):
                raise ValueError(
                    f"the prediction must have shape ({len(part)}, {len(rows)}, …), one row "
                    f"per observation, got {tuple(parts[-1].shape)}"
                )
        return torch.cat(parts)

    @property
    def _names(self) -> Parameters | None:
        assert self.parameters is None or isinstance(self.parameters, Parameters)
        return self.parameters

    def _rows(self, x: Tensor) -> Tensor:
        """Return the data on the device of x, and in its dtype unless they are integers."""
        return self.data.to(x) if self.data.is_floating_point() else self.data.to(x.device)

    def _field(self, x: Tensor) -> GradientField:
        check_batch(x, self.event_shape)
        rows = self._rows(x)
        return GradientField(lambda x: self._log_prob(x, rows, 1.0))

    def _log_prob(self, x: Tensor, rows: Tensor, scale: float) -> Tensor:
        of_values = lambda x: self._log_prob_of_values(x, rows, scale)
        return of_values(x) if self._names is None else self._names.log_prob(of_values, x)

    def _log_prob_of_values(self, x: Any, rows: Tensor, scale: float) -> Tensor:
        prior, n = self._call(self.log_prior, x), len(_first(x))
        if prior.shape != (n,):
            raise ValueError(f"log_prior must return ({n},), got {tuple(prior.shape)}")
        return prior + scale * self._likelihoods(x, rows).sum(1)

    def _likelihoods(self, x: Any, rows: Tensor) -> Tensor:
        each, n = self._call(self.log_likelihood, x, rows), len(_first(x))
        if each.shape != (n, len(rows)):
            raise ValueError(
                f"log_likelihood must return ({n}, {len(rows)}) for {n} points and "
                f"{len(rows)} rows of the data, got {tuple(each.shape)}"
            )
        return each

    def _split(self, draws: Tensor) -> Any:
        return draws if self._names is None else self._names.split(draws)

    def _call(self, f: Function, x: Any, *rows: Tensor) -> Tensor:
        if self._names is None:
            return f(x, *rows)
        return self._names.call(f, x, *rows, vectorized=self.vectorized)


def _first(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else next(iter(x.values()))
