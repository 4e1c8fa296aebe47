"""What all laws that a network corrects have: the share of the correction at each noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

LEVELS = 24
"""Levels of noise at which the share of the correction is known; between them it is interpolated."""

FLOOR = 1e-8
"""The least variance along a direction, as a share of the mean one: directions of no variance at all
have no density, and thinner ones no digits in float32."""

ROWS = 20_000
"""Rows looked at for a covariance that is not kept whole, or is judged by cross-validation."""


class Shared(nn.Module):
    """A law that a network corrects, and the share of the correction at each noise level.

    Arguments:
        like: A tensor with its dtype and device.
        entries: The number of entries with separate shares; by default there is one share for all.
    """

    share: Tensor
    span: Tensor
    fallback = False
    """Whether the network learns the whole score, and this law only replaces a part."""

    def __init__(self, like: Tensor, *entries: int) -> None:
        super().__init__()
        self.register_buffer("share", like.new_ones(LEVELS, *entries))
        self.register_buffer("span", like.new_tensor([-1.0, 1.0]))

    def shared(self, coordinate: Tensor) -> Tensor:
        """Return the share of the correction at noise coordinates, linear between levels."""
        return self.between(self.share, coordinate)

    def between(self, table: Tensor, coordinate: Tensor) -> Tensor:
        """Return rows of a table `(LEVELS, ...)` at noise coordinates, linear between levels."""
        (low, high), last = self.span.to(coordinate), len(table) - 1
        place = ((coordinate - low) / (high - low) * last).clamp(0, last).unsqueeze(-1)
        levels = torch.arange(last + 1, dtype=place.dtype, device=place.device)
        return (1 - (place - levels).abs()).clamp(min=0) @ table.to(place)

    def beside(self, known: Tensor, learned: Tensor, coordinate: Tensor) -> Tensor:
        """Return what this law and a network say together, by the share at noise coordinates."""
        share = self.shared(coordinate).reshape(-1, *[1] * (known.ndim - 1))
        return known + share * (learned - known if self.fallback else learned)

    def check_share(self, name: str) -> dict[str, bool]:
        """Return for each of its tensors whether it can be what it is called."""
        low, high = self.span.tolist()
        possible = bool(((self.share >= 0) & (self.share <= 1)).all())
        return {f"{name}.share": possible, f"{name}.span": low < high}
