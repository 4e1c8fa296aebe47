r"""Observation operators: linear ones with their adjoints, and functions linearised at a point.

An operator A maps `(B, *event)` to `(B, *observed)`, each sample separately. A linear operator
also has its adjoint, ⟨A x, y⟩ = ⟨x, Aᵀ y⟩.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..core import (
    check_batch,
    check_count,
    check_event_shape,
    check_finite,
    check_function,
    check_kind,
    check_number,
    check_option,
    check_same_shape,
)

Boundary = Literal["periodic", "zero"]


@runtime_checkable
class LinearOperator(Protocol):
    """A linear map of every sample, and its adjoint."""

    def apply(self, x: Tensor) -> Tensor:
        """Return A x, `(B, *event) -> (B, *observed)`."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Return Aᵀ y, `(B, *observed) -> (B, *event)`."""


@runtime_checkable
class Separating(Protocol):
    """A linear operator no two of whose observed entries share one of x: A W Aᵀ stays diagonal."""

    def gram(self, weights: Tensor | float) -> Tensor | float:
        """Return the diagonal of A diag(weights) Aᵀ, in the shape of what is observed."""


def check_operator(operator: object, name: str = "operator") -> None:
    """Raise `ValueError` unless this is a linear operator or a function."""
    if isinstance(operator, type) or not isinstance(operator, LinearOperator):
        check_function(operator, name, "; or an operator, which has apply and adjoint")


@dataclass(frozen=True)
class Identity:
    """All of x is observed, A = I: denoising."""

    def gram(self, weights: Tensor | float) -> Tensor | float:
        """Return the weights."""
        return weights

    def apply(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return x."""
        check_batch(x)
        return x

    def adjoint(self, y: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return y."""
        check_batch(y, name="y")
        return y


@dataclass(frozen=True, eq=False)
class Inpainting:
    """Some entries of x are observed: `(B, *event) -> (B, m)`, in the order of the flattened event.

    Arguments:
        mask: True where x is observed, in the shape of an event, with m entries that are True.

    Raises:
        ValueError: For a mask that is not boolean or has no True entry.
    """

    mask: Bool[Tensor, "*event"]

    def __post_init__(self) -> None:
        check_kind(self.mask, "mask", Tensor, "a tensor")
        if self.mask.dtype != torch.bool or self.mask.ndim == 0 or not bool(self.mask.any()):
            raise ValueError(
                "mask must be a boolean tensor in the shape of an event, True where x is "
                "observed, with at "
                f"least one True; got {self.mask.dtype} of shape {tuple(self.mask.shape)}"
            )

    def gram(self, weights: Tensor | float) -> Tensor | float:
        """Return the weights of the entries that are seen."""
        return weights.flatten()[self._seen(weights)] if isinstance(weights, Tensor) else weights

    def _seen(self, like: Tensor) -> Tensor:
        return self.mask.flatten().nonzero().squeeze(1).to(like.device)

    def apply(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch m"]:
        """Return the entries that are seen."""
        check_batch(x, self.mask.shape)
        return x.flatten(1).index_select(1, self._seen(x))

    def adjoint(self, y: Float[Tensor, "batch m"]) -> Float[Tensor, "batch *event"]:
        """Return an event with y where x is seen and 0 elsewhere."""
        seen = self._seen(y)
        check_batch(y, seen.shape, "y")
        empty = y.new_zeros(len(y), self.mask.numel())
        return empty.index_add(1, seen, y).reshape(-1, *self.mask.shape)


@dataclass(frozen=True)
class Subsampling:
    """Means over blocks: super-resolution.

    Arguments:
        factor: The length of a block along every axis of an event, (1, 2, 2) for an image with
            channels; one number if an event has one axis.

    Raises:
        ValueError: For a factor below 1; when called, for an event that does not divide into such
            blocks.
    """

    factor: int | tuple[int, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.factor, tuple):
            check_count(self.factor, "factor")
        check_event_shape(self._factors, "factor")

    @property
    def _factors(self) -> tuple[int, ...]:
        return (self.factor,) if isinstance(self.factor, int) else self.factor

    def gram(self, weights: Tensor | float) -> Tensor | float:
        """Return the mean of the weights over each block of n entries, divided by n."""
        n = math.prod(self._factors)
        return self.apply(weights[None])[0] / n if isinstance(weights, Tensor) else weights / n

    def _check(self, x: Tensor, name: str) -> None:
        check_batch(x, name=name)
        if x.ndim != 1 + len(self._factors):
            raise ValueError(
                f"{name} has events of shape {tuple(x.shape[1:])}, factor={self.factor} is for "
                f"{len(self._factors)} axes; pass one factor per axis, 1 for channels"
            )

    def apply(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *blocks"]:
        """Return the mean of every block."""
        self._check(x, "x")
        for axis, k in enumerate(self._factors, start=1):
            if x.shape[axis] % k:
                raise ValueError(
                    f"axis {axis} has {x.shape[axis]} entries, which blocks of {k} do not divide"
                )
            x = x.unflatten(axis, (-1, k)).mean(axis + 1)
        return x

    def adjoint(self, y: Float[Tensor, "batch *blocks"]) -> Float[Tensor, "batch *event"]:
        """Return y/n in each of the n entries of its block."""
        self._check(y, "y")
        for axis, k in enumerate(self._factors, start=1):
            y = y.repeat_interleave(k, axis) / k
        return y


@dataclass(frozen=True, eq=False)
class Blur:
    r"""Convolution with a kernel over the last axes of an event, separately for all other axes.

    .. math:: (A x)_i = \sum_j k_j\, x_{i - j}

    with j from −⌊n/2⌋ to ⌊n/2⌋, so that the output has the shape of the input. Outside x is continued
    periodically or by 0. The adjoint is the convolution with the mirrored kernel.

    Arguments:
        kernel: k, of one to three axes, each of odd length n.
        boundary: "periodic" or "zero".

    Raises:
        ValueError: For a kernel of even length or too many axes, or an unknown boundary; when
            called, for an event smaller than half the kernel.
    """

    kernel: Tensor
    boundary: Boundary = "periodic"

    def __post_init__(self) -> None:
        check_finite(self.kernel, "kernel")
        shape = tuple(self.kernel.shape)
        if not 1 <= len(shape) <= 3 or any(n % 2 == 0 for n in shape):
            raise ValueError(f"kernel must have one to three axes of odd length, got {shape}")
        check_option(self.boundary, "boundary", Boundary)

    @classmethod
    def gaussian(cls, deviation: float, shape: torch.Size | tuple[int, ...]) -> Blur:
        """Return a Gaussian blur of events (C, H, W), cut off at three standard deviations.

        Raises:
            ValueError: For a standard deviation that is not positive, or a quarter of the image or
                more.
        """
        check_event_shape(shape, "shape")
        if len(shape) < 2:
            raise ValueError(f"shape must be (C, H, W), got {tuple(shape)}")
        check_number(deviation, "deviation", above=0, below=min(shape[1:]) / 4)
        reach = min(int(3 * deviation + 1), (min(shape[1:]) - 1) // 2)
        u = (-0.5 * (torch.arange(-reach, reach + 1) / deviation).square()).exp()
        kernel = torch.outer(u, u)
        return cls((kernel / kernel.sum())[None])

    def _correlate(self, x: Tensor, kernel: Tensor, name: str) -> Tensor:
        check_batch(x, name=name)
        k, half = kernel.ndim, [n // 2 for n in kernel.shape]
        if x.ndim <= k or any(n < h for n, h in zip(x.shape[-k:], half, strict=True)):
            raise ValueError(
                f"a kernel of shape {tuple(kernel.shape)} needs events of at least {k} axes, the "
                f"last at least {half} long, got {tuple(x.shape[1:])}"
            )
        flat = x.reshape(-1, 1, *x.shape[-k:])
        sides = [h for h in reversed(half) for _ in range(2)]
        mode = "circular" if self.boundary == "periodic" else "constant"
        padded = F.pad(flat, sides, mode=mode)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[k - 1]
        return convolve(padded, kernel.to(x)[None, None]).reshape(x.shape)

    def apply(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return k ∗ x."""
        # PyTorch's convolutions do not mirror the kernel
        return self._correlate(x, self.kernel.flip(tuple(range(self.kernel.ndim))), "x")

    def adjoint(self, y: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return the convolution of y with the mirrored kernel."""
        return self._correlate(y, self.kernel, "y")


@dataclass(frozen=True, eq=False)
class Matrix:
    """A matrix: `(B, D) -> (B, m)`.

    Arguments:
        A: Shape `(m, D)`.

    Raises:
        ValueError: If A is not a matrix.
    """

    A: Tensor

    def __post_init__(self) -> None:
        check_finite(self.A, "A")
        if self.A.ndim != 2:
            raise ValueError(f"A must be a matrix (m, D), got shape {tuple(self.A.shape)}")

    def apply(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch m"]:
        """Return A x."""
        check_batch(x, self.A.shape[1:])
        return x @ self.A.to(x).mT

    def adjoint(self, y: Float[Tensor, "batch m"]) -> Float[Tensor, "batch D"]:
        """Return Aᵀ y."""
        check_batch(y, self.A.shape[:1], "y")
        return y @ self.A.to(y)


@dataclass(frozen=True, eq=False)
class Scaled:
    """A diag(scale): an operator on x seen from coordinates z with x = shift + scale · z."""

    operator: LinearOperator
    scale: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Return A (scale · x)."""
        return self.operator.apply(self.scale.to(x) * x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return scale · Aᵀ y."""
        return self.scale.to(y) * self.operator.adjoint(y)


def gram_diagonal(operator: LinearOperator) -> Tensor | float | None:
    """Return the diagonal of A Aᵀ where it is a diagonal matrix in closed form, else None."""
    if isinstance(operator, Separating):
        return operator.gram(1.0)
    if isinstance(operator, Scaled) and isinstance(operator.operator, Separating):
        return operator.operator.gram(operator.scale.square())
    return None


@dataclass(frozen=True, eq=False)
class Linearised:
    """The derivative of a function at x, as a linear operator."""

    f: Callable[[Tensor], Tensor]
    x: Tensor

    def apply(self, v: Tensor) -> Tensor:
        """Return (∇f) v."""
        check_same_shape(v, self.x, "v")
        return torch.func.jvp(self.f, (self.x,), (v,))[1]

    def adjoint(self, u: Tensor) -> Tensor:
        """Return (∇f)ᵀ u."""
        return torch.func.vjp(self.f, self.x)[1](u)[0]


def as_matrix(operator: LinearOperator, event_shape: torch.Size, like: Tensor) -> Tensor:
    """Return the matrix `(m, d)` of a linear operator between flattened events."""
    d = event_shape.numel()
    basis = torch.eye(d, dtype=like.dtype, device=like.device).reshape(d, *event_shape)
    return operator.apply(basis).flatten(1).mT
