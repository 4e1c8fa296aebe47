"""A small convolutional U-Net, conditional on classes, values or images on request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from ...core import check_batch, check_count, check_generator
from .embeddings import Conditioning, check_condition, initialise, read_condition, read_sizes


class _Norm(nn.GroupNorm):
    """Group normalisation that has a forward-mode derivative: PyTorch's wants contiguous input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous() if _transformed(x) else x)


def _transformed(x: Tensor) -> bool:
    """Return whether x is one of a transform such as vmap or jvp."""
    return not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(x)


class _Residual(nn.Module):
    """GroupNorm, scaled and shifted by the conditioning, between two 3×3 convolutions."""

    def __init__(self, c_in: int, c_out: int, width: int) -> None:
        super().__init__()
        self.norm1 = _Norm(min(8, c_in), c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.film = nn.Linear(width, 2 * c_out)
        self.norm2 = _Norm(min(8, c_out), c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        scale, shift = self.film(emb)[..., None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(nn.functional.silu(h))


class UNet(nn.Module):
    """A U-Net: network(x, c), or network(x, c, condition) if it has one, -> like x `(B, C, H, W)`.

    Each level halves the resolution. With `patch` > 1 the image is first folded into patches of
    that side, which on a CPU buys far more than a level of the network costs.

    Classes come as int64 labels `(B,)`, with −1 for no class; values as floats `(B, *condition)`.
    An image of the same height and width is folded like x and joins its channels. All else is
    embedded and added to the embedding of c.

    References:
        | U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015)
        | https://arxiv.org/abs/1505.04597

    Arguments:
        event: The event shape (C, H, W).
        channels: Channels of each level, finest first; multiples of 8.
        blocks: Residual blocks a level.
        patch: Side of the patches folded into channels; 1 for none.
        condition: What to condition on: a number of classes, the shape of values, or None.
        generator: Where the initial weights are drawn from.

    Raises:
        ValueError: If the image cannot be halved that often; when called, for a condition that is
            missing, not wanted, or does not fit.
    """

    def __init__(
        self,
        event: Sequence[int],
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        patch: int = 1,
        condition: int | Sequence[int] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        shape, channels = read_sizes(event, "event"), read_sizes(channels, "channels")
        check_count(blocks, "blocks")
        check_count(patch, "patch")
        check_generator(generator)
        side = patch * 2 ** (len(channels) - 1)
        if len(shape) != 3:
            raise ValueError(f"event must be a shape (C, H, W), got {shape}")
        if shape[1] % side or shape[2] % side:
            raise ValueError(
                f"an event of {shape[1]}x{shape[2]} pixels cannot be halved {len(channels) - 1} times, "
                f"as channels ask for, after folding {patch}x{patch} patches (patch): sides must be "
                f"multiples of {side}"
            )
        if any(c % 8 or c < 8 for c in channels):
            raise ValueError(f"channels must be multiples of 8, got {tuple(channels)}")
        self.condition = kind = read_condition(condition)
        self.config = {
            "event": list(shape), "channels": list(channels), "blocks": blocks,
            "patch": patch, "condition": kind,
        }  # fmt: skip
        self.event_shape = torch.Size(shape)
        width, c_image = 4 * channels[0], shape[0] * patch**2
        self.joined = isinstance(kind, tuple) and len(kind) == 3 and kind[1:] == shape[1:]
        c_joined = kind[0] * patch**2 if isinstance(kind, tuple) and self.joined else 0
        self.conditioning = Conditioning(width, None if self.joined else kind)
        self.fold, self.unfold = nn.PixelUnshuffle(patch), nn.PixelShuffle(patch)
        self.inlet = nn.Conv2d(c_image + c_joined, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, c in enumerate(channels):
            self.down.append(nn.ModuleList(_Residual(c, c, width) for _ in range(blocks)))
            self.up.insert(0, nn.ModuleList(_Residual(2 * c, c, width) for _ in range(blocks)))
            if i + 1 < len(channels):
                self.shrink.append(nn.Conv2d(c, channels[i + 1], 3, stride=2, padding=1))
                self.grow.insert(0, nn.Conv2d(channels[i + 1], c, 3, padding=1))
        self.middle = _Residual(channels[-1], channels[-1], width)
        self.norm = _Norm(8, channels[0])
        self.outlet = nn.Conv2d(channels[0], c_image, 3, padding=1)
        initialise(self, generator)
        nn.init.zeros_(self.outlet.weight)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        c: Float[Tensor, " batch"],
        condition: Int[Tensor, " batch"] | Float[Tensor, "batch *condition"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """Return the prediction at x."""
        check_batch(x, self.event_shape)
        check_condition(self.condition, condition, len(x))
        seen = x
        if condition is not None and self.joined:
            seen, condition = torch.cat([x, condition.to(x.dtype)], dim=1), None
        emb = self.conditioning(c, condition)
        h = self.fold(seen)
        if not _transformed(h):  # vmap has no such format
            h = h.contiguous(memory_format=torch.channels_last)
        h = self.inlet(h)
        kept: list[Tensor] = []
        for i, level in enumerate(self.down):
            for block in level.children():
                h = block(h, emb)
                kept.append(h)
            if i < len(self.shrink):
                h = self.shrink[i](h)
        h = self.middle(h, emb)
        for i, level in enumerate(self.up):
            for block in level.children():
                h = block(torch.cat([h, kept.pop()], dim=1), emb)
            if i < len(self.grow):
                h = self.grow[i](nn.functional.interpolate(h, scale_factor=2.0))
        h = self.outlet(nn.functional.silu(self.norm(h)))
        return self.unfold(h).contiguous()
