r"""Running mean and covariance of draws, in one pass and mergeable."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import check_batch


@dataclass(frozen=True, eq=False)
class Welford:
    r"""Count n, mean m and scatter M = Σ (x − m)(x − m)ᵀ of the draws seen so far.

    .. math::
        n = n_a + n_b, \quad δ = m_b - m_a, \quad m = m_a + δ\, n_b/n, \quad
        M = M_a + M_b + δ δ^\top n_a n_b / n

    Nothing is ever subtracted from a sum of squares, so that a large mean does not cost digits.
    `Welford.start(x)` begins; `add` and `merge` return new accumulators and leave the old ones
    unchanged.

    References:
        | Note on a Method for Calculating Corrected Sums of Squares and Products (Welford, 1962)
        | https://doi.org/10.1080/00401706.1962.10490022

    Arguments:
        count: n.
        mean: m, in the shape of an event.
        scatter: M `(d, d)`, or its diagonal in the shape of an event.
        dense: Whether the scatter is a matrix.
    """

    count: int
    mean: Tensor
    scatter: Tensor
    dense: bool

    @classmethod
    def start(cls, x: Float[Tensor, "draw *event"], *, dense: bool = False) -> Welford:
        """Return the accumulator of a batch of draws."""
        check_batch(x)
        if len(x) == 0:
            raise ValueError("x is empty: there is no draw to start from")
        mean = x.mean(0)
        centred = x - mean
        flat = centred.flatten(1)
        scatter = flat.mT @ flat if dense else centred.square().sum(0)
        return cls(len(x), mean, scatter, dense)

    def add(self, x: Float[Tensor, "draw *event"]) -> Welford:
        """Return the accumulator with a batch of draws added."""
        return self.merge(Welford.start(x, dense=self.dense))

    def merge(self, other: Welford) -> Welford:
        """Return the accumulator of the draws of both.

        Raises:
            ValueError: If one is dense and the other is not, or the events differ in shape.
        """
        if self.dense != other.dense or self.mean.shape != other.mean.shape:
            raise ValueError(
                f"other must be {'dense' if self.dense else 'diagonal'} with events of shape "
                f"{tuple(self.mean.shape)}, got {'dense' if other.dense else 'diagonal'} and "
                f"{tuple(other.mean.shape)}"
            )
        n = self.count + other.count
        delta = other.mean - self.mean
        flat = delta.flatten()
        square = torch.outer(flat, flat) if self.dense else delta.square()
        scatter = self.scatter + other.scatter + square * (self.count * other.count / n)
        return Welford(n, self.mean + delta * (other.count / n), scatter, self.dense)

    def covariance(self) -> Tensor:
        """Return the unbiased covariance `(d, d)`, or the variances in the shape of an event.

        Raises:
            ValueError: For fewer than two draws.
        """
        if self.count < 2:
            raise ValueError("a covariance needs at least two draws")
        return self.scatter / (self.count - 1)
