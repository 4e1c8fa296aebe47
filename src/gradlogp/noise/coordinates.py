r"""The map between the units of the data and the coordinates in which noise is isotropic.

x_0 is in data units, z_t in model coordinates: z = (x − shift)/scale. The map is fitted, kept and
applied in float64 whatever the dtype of a model, so that data far from 0 keep their digits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..core import (
    Coordinates,
    check_batch,
    check_dtype,
    check_event_shape,
    check_finite,
    check_kind,
    check_option,
    sum_event,
)


class Rows(ABC):
    """Rows `(N, *event)` that are created on request, such as those of a dataset."""

    shape: torch.Size
    dtype: torch.dtype

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.shape)

    @abstractmethod
    def __len__(self) -> int:
        """Return N."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Tensor:
        """Return rows by a slice or their numbers."""


Data = Tensor | np.ndarray | Rows
"""In memory, on disk as a NumPy memory map, or created on request; `(N, *event)`."""

Scales = Literal["each", "one"]
"""A scale for each column of vectors and each channel of `(C, L)` or `(C, H, W)`, or one for all."""

READ = 2**23  # entries read at a time when all of a data set is looked at
HELD = 2**27  # bytes of data that are held in memory, copied and encoded as a whole


def as_tensor(part: Data) -> Tensor:
    """Return data as a tensor.

    Raises:
        ValueError: Unless it holds real numbers.
    """
    part = part[:] if isinstance(part, Rows) else part
    real = not part.is_complex() if isinstance(part, Tensor) else part.dtype.kind in "fiub"
    if not real:
        raise ValueError(f"data must be real numbers, got dtype {part.dtype}")
    return part.detach() if isinstance(part, Tensor) else torch.from_numpy(np.array(part))


class Subset(Rows):
    """Some rows of data that stay in place, perhaps on disk, and are read on request.

    Arguments:
        data: `(N, *event)`.
        index: Which rows, int64 or int32.
    """

    def __init__(self, data: Data, index: Tensor) -> None:
        self.data, self.index = data, index
        self.moments: dict[Scales, tuple[Tensor, Tensor]] = {}  # what `mean_and_std` has found
        self.shape = torch.Size((len(index), *data.shape[1:]))
        self.dtype = as_tensor(data[:1]).dtype

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any) -> Tensor:
        """Return rows by a slice or their numbers."""
        which = self.index[index]
        return as_tensor(self.data[which.numpy() if isinstance(self.data, np.ndarray) else which])


def subset(data: Data, index: Tensor) -> Tensor | Subset:
    """Return some rows of data; for more than `HELD` bytes a view that reads them on request."""
    found = Subset(data, index)
    bytes_of_row = math.prod(found.shape[1:]) * found.dtype.itemsize
    return found if len(index) * bytes_of_row > HELD else found[:]


def pieces(data: Data) -> Iterator[tuple[int, Tensor]]:
    """Yield all of data in pieces, each with the number of its first row.

    A `Subset` is read in the order in which its rows are stored.
    """
    if isinstance(data, Subset) and bool((data.index[1:] < data.index[:-1]).any()):
        data = Subset(data.data, torch.from_numpy(np.sort(data.index.numpy())))
    step = max(1, READ // max(1, math.prod(data.shape[1:])))
    for start in range(0, len(data), step):
        yield start, as_tensor(data[start : start + step])


def mean_and_std(
    data: Data, event_shape: torch.Size, scales: Scales = "each"
) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation in float64, in the shape of an event.

    Raises:
        ValueError: If a column, a channel, or all data are constant; for unknown `scales`.
    """
    check_kind(data, "data", Tensor | np.ndarray | Rows, "a tensor or a NumPy array")
    check_event_shape(event_shape)
    check_option(scales, "scales", Scales)
    if data.ndim < 2 or tuple(data.shape[1:]) != tuple(event_shape) or not len(data):
        raise ValueError(
            f"data must have shape (N, {', '.join(map(str, event_shape))}), N at least 1, got "
            f"{tuple(data.shape)}"
        )
    known = data.moments if isinstance(data, Subset) else {}
    if scales in known:
        m, s = known[scales]
        return m.clone(), s.clone()
    axes = tuple(i for i in range(len(event_shape) + 1) if scales == "one" or i != 1)
    # sums of differences from the first row: of a constant they are 0, and far from 0 they keep digits
    near = as_tensor(data[:1]).double().cpu().numpy().mean(axes, keepdims=True)
    total, count = np.zeros(()), 0
    for _, part in pieces(data):
        total = total + (part.double().cpu().numpy() - near).sum(axes)
        count += part.numel()
    n = count / max(1, total.size)
    mean = near.reshape(total.shape) + total / n
    kept = np.expand_dims(mean, axes)
    squares = np.zeros(())
    for _, part in pieces(data):
        with np.errstate(over="ignore"):
            squares = squares + np.square(part.double().cpu().numpy() - kept).sum(axes)
    std = np.sqrt(squares / n)
    constant = np.atleast_1d(std <= 1e-12 * np.maximum(1e-300, np.abs(mean)))
    if constant.any():
        kind = "column(s)" if len(event_shape) == 1 else "channel(s)"
        where = f"{kind} {np.flatnonzero(constant).tolist()} are" if std.ndim else "the data is"
        raise ValueError(f"{where} constant: they have no density; drop them")
    if not np.isfinite(std).all():
        raise ValueError("the data is too large for float64; rescale it")
    shape = (-1, *[1] * (len(event_shape) - 1)) if std.ndim else ()
    m, s = (torch.as_tensor(v).reshape(shape).expand(event_shape).clone() for v in (mean, std))
    known[scales] = m.clone(), s.clone()
    return m, s


@dataclass(frozen=True)
class Identity:
    """Model coordinates that are those of the data."""

    def encode(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Return z."""
        return z

    def log_det(self, x: Tensor) -> Tensor:
        """Return 0 for each sample."""
        check_batch(x)
        return x.new_zeros(len(x))

    def pull_back(self, x: Tensor, s_z: Tensor) -> Tensor:
        """Return s_z."""
        return s_z


IDENTITY = Identity()
"""The coordinates of all scores but fitted models."""


class AffineCoordinates(nn.Module):
    r"""z = (x − shift)/scale, entry by entry.

    .. math::
        \log |\det dz/dx| = -\sum \log scale, \qquad \nabla_x \log p(x) = \nabla_z \log p(z) / scale

    shift and scale stay in float64 on the CPU when a model that holds them is converted or moved.
    Decoded values have at least the precision of the data to which the map was fitted.

    Arguments:
        shift: The shift, in the shape of an event.
        scale: The scale, in the same shape, positive.
        dtype: float32 or float64, that of the data; `decode` returns it, or that of z if wider.

    Raises:
        ValueError: If the shapes differ, or the scale is not positive and finite.
    """

    shift: Tensor
    scale: Tensor
    bits: Tensor

    def __init__(self, shift: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        check_finite(shift, "shift")
        check_finite(scale, "scale")
        check_dtype(dtype)
        if shift.shape != scale.shape:
            raise ValueError(
                f"shift and scale must have one shape, got {tuple(shift.shape)} and "
                f"{tuple(scale.shape)}"
            )
        if not bool((scale > 0).all()):
            raise ValueError(f"scale must be positive, got a minimum of {float(scale.min()):.3g}")
        self.register_buffer("shift", shift.detach().double().cpu().clone())
        self.register_buffer("scale", scale.detach().double().cpu().clone())
        self.register_buffer("bits", torch.tensor(8.0 * dtype.itemsize))  # kept with the weights

    @classmethod
    def fit(
        cls, data: Data, event_shape: torch.Size, scales: Scales = "each"
    ) -> AffineCoordinates:
        """Return coordinates of zero mean and unit variance for data `(N, *event)`.

        Raises:
            ValueError: If a column, a channel, or all data are constant.
        """
        check_kind(data, "data", Tensor | np.ndarray | Rows, "a tensor or a NumPy array")
        mean, std = mean_and_std(data, event_shape, scales)
        kind = as_tensor(data[:0]).dtype
        narrow = kind.itemsize <= (
            4 if kind.is_floating_point else 2
        )  # float32 has all its digits
        dtype = torch.float32 if narrow else torch.float64
        return cls(mean, std, dtype)

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> AffineCoordinates:
        return self

    @property
    def one_scale(self) -> bool:
        """Whether all entries have the same scale."""
        return bool((self.scale == self.scale.flatten()[0]).all())

    def encode(self, x: Tensor) -> Tensor:
        """Return z, of the dtype of x."""
        check_batch(x, self.shift.shape)
        return ((x.double() - self.shift.to(x.device)) / self.scale.to(x.device)).to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Return x, of the dtype of the data or that of z, whichever has more digits."""
        check_batch(z, self.shift.shape, "z")
        x = self.shift.to(z.device) + self.scale.to(z.device) * z.double()
        own = torch.float64 if float(self.bits) == 64 else torch.float32
        return x.to(torch.promote_types(own, z.dtype))

    def log_det(self, x: Tensor) -> Tensor:
        """Return −Σ log scale for each sample, `(B,)`."""
        check_batch(x, self.shift.shape)
        return -sum_event(self.scale.log().expand(len(x), *self.shift.shape)).to(x)

    def pull_back(self, x: Tensor, s_z: Tensor) -> Tensor:
        """Return s_z / scale."""
        return (s_z.double() / self.scale.to(s_z.device)).to(s_z.dtype)


def same_coordinates(a: Coordinates, b: Coordinates) -> bool:
    """Return whether two maps are the same."""
    if a is b or a == b:
        return True
    if isinstance(a, AffineCoordinates) and isinstance(b, AffineCoordinates):
        shape = a.shift.shape == b.shift.shape
        return shape and bool((a.shift == b.shift).all() and (a.scale == b.scale).all())
    affine = next((c for c in (a, b) if isinstance(c, AffineCoordinates)), None)
    if affine is not None and IDENTITY in (a, b):
        return bool((affine.shift == 0).all() and (affine.scale == 1).all())
    return False


def affine_part(coordinates: Coordinates) -> AffineCoordinates | None:
    """Return affine coordinates as they are, and None for the identity.

    Raises:
        ValueError: For other coordinates, because the caller needs an affine map.
    """
    if coordinates == IDENTITY:
        return None
    if not isinstance(coordinates, AffineCoordinates):
        raise ValueError(
            f"this needs affine coordinates, and those of the score are {type(coordinates).__name__}"
        )
    return coordinates
