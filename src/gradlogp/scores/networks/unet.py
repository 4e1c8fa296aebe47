"""A small convolutional U-Net of images and sequences, conditional on request."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from ...core import check_batch, check_count, check_generator, check_kind
from .embeddings import (
    Conditioning,
    check_condition,
    initialise,
    read_condition,
    read_sizes,
    unset,
)

Conv = type[nn.Conv1d] | type[nn.Conv2d]


class _Norm(nn.GroupNorm):
    """Group normalisation that has a forward-mode derivative: PyTorch's wants contiguous input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.contiguous() if _transformed(x) else x)


def _transformed(x: Tensor) -> bool:
    """Return whether x is one of a transform such as vmap or jvp."""
    return not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(x)


class _Residual(nn.Module):
    """GroupNorm, scaled and shifted by the conditioning, between two convolutions of width 3."""

    def __init__(self, conv: Conv, c_in: int, c_out: int, width: int) -> None:
        super().__init__()
        self.norm1 = _Norm(min(8, c_in), c_in)
        self.conv1 = unset(conv, c_in, c_out, 3, padding=1)
        self.film = unset(nn.Linear, width, 2 * c_out)
        self.norm2 = _Norm(min(8, c_out), c_out)
        self.conv2 = unset(conv, c_out, c_out, 3, padding=1)
        self.skip = unset(conv, c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(nn.functional.silu(self.norm1(x)))
        scale, shift = self.film(emb).reshape(*emb.shape[:1], -1, *[1] * (x.ndim - 2)).chunk(2, 1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(nn.functional.silu(h))


class _Attention(nn.Module):
    """Every place looks at every other: softmax(qᵀk/√c) v, heads of 32 channels at most; added to x.

    References:
        | Attention Is All You Need (Vaswani et al., 2017)
        | https://arxiv.org/abs/1706.03762
    """

    def __init__(self, conv: Conv, c: int) -> None:
        super().__init__()
        self.heads = next(n for n in range(max(1, c // 32), 0, -1) if c % n == 0)
        self.norm = _Norm(8, c)
        self.seen, self.outlet = unset(conv, c, 3 * c, 1), unset(conv, c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.seen(self.norm(x)).flatten(2)
        q, k, v = seen.reshape(len(x), 3, self.heads, -1, seen.shape[-1]).unbind(1)
        weight = (q.transpose(-1, -2) @ k / q.shape[-2] ** 0.5).softmax(-1)
        return x + self.outlet((v @ weight.transpose(-1, -2)).reshape(x.shape))


class UNet(nn.Module):
    """A U-Net for images `(B, C, H, W)` or sequences `(B, C, L)`: network(x, c[, condition]) -> like x.

    Each level halves the resolution. Sides may have any length: an odd length n becomes (n + 1)/2,
    and on the way up the superfluous pixel is cut off. So no layer, and no mean of a
    normalisation, sees anything outside the image except the zeros at the border of a convolution.
    With `patch` > 1 the image is first folded into patches of that side, which on a CPU saves far
    more than a level of the network costs; it is padded with zeros to whole patches.

    Classes are int64 labels `(B,)`, with −1 for no class; values are floats `(B, *condition)`. An
    image or sequence with the same sides is folded like x and appended to its channels. All other
    values are embedded and added to the embedding of c.

    References:
        | U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger et al., 2015)
        | https://arxiv.org/abs/1505.04597

    Arguments:
        event: The event shape (C, H, W) or (C, L).
        channels: Channels of each level, finest first; multiples of 8.
        blocks: Residual blocks per level.
        patch: Side of the patches folded into channels; 1 for none.
        condition: What to condition on: a number of classes, the shape of values, or None.
        attention: Whether the coarsest level has self-attention. Its cost grows with the square of
            the number of pixels there.
        start: Whether the network sees, in further channels, what the base of its model makes of x:
            a mean over the image, for example, is hard to find in much noise.
        generator: Source of the initial weights.

    Raises:
        ValueError: For an event of a different shape, or with sides too short for the levels; when
            called, for a condition that is missing, superfluous, or does not fit.
    """

    def __init__(
        self,
        event: Sequence[int],
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        patch: int = 1,
        condition: int | Sequence[int] | None = None,
        attention: bool = False,
        *,
        start: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_kind(attention, "attention", bool, "True or False")
        check_kind(start, "start", bool, "True or False")
        shape, channels = read_sizes(event, "event"), read_sizes(channels, "channels")
        check_count(blocks, "blocks")
        check_count(patch, "patch")
        check_generator(generator)
        if len(shape) not in (2, 3):
            raise ValueError(f"event must be a shape (C, H, W) or (C, L), got {shape}")
        side = patch * 2 ** (len(channels) - 1)
        if max(shape[1:]) <= side // 2:
            raise ValueError(
                f"an event of {'x'.join(map(str, shape[1:]))} cannot be halved often enough: "
                f"channels need "
                f"{len(channels) - 1} halvings, after folding patches of {patch} (patch)"
            )
        if any(c % 8 or c < 8 for c in channels):
            raise ValueError(f"channels must be multiples of 8, got {tuple(channels)}")
        self.condition = kind = read_condition(condition)
        self.config = {
            "event": list(shape), "channels": list(channels), "blocks": blocks,
            "patch": patch, "condition": kind, "attention": attention,
        } | ({"start": True} if start else {})  # fmt: skip
        self.start = start
        self.event_shape, self.patch = torch.Size(shape), patch
        conv: Conv = nn.Conv2d if len(shape) == 3 else nn.Conv1d
        folded = patch ** (len(shape) - 1)
        width, c_image = 4 * channels[0], shape[0] * folded
        self.joined = isinstance(kind, tuple) and len(kind) == len(shape) and kind[1:] == shape[1:]
        c_joined = kind[0] * folded if isinstance(kind, tuple) and self.joined else 0
        self.conditioning = Conditioning(width, None if self.joined else kind)
        self.inlet = unset(
            conv, c_image * (2 if start else 1) + c_joined, channels[0], 3, padding=1
        )
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, c in enumerate(channels):
            self.down.append(nn.ModuleList(_Residual(conv, c, c, width) for _ in range(blocks)))
            ups = nn.ModuleList(_Residual(conv, 2 * c, c, width) for _ in range(blocks))
            self.up.insert(0, ups)
            if i + 1 < len(channels):
                self.shrink.append(unset(conv, c, channels[i + 1], 3, stride=2, padding=1))
                self.grow.insert(0, unset(conv, channels[i + 1], c, 3, padding=1))
        self.middle = _Residual(conv, channels[-1], channels[-1], width)
        self.attention = _Attention(conv, channels[-1]) if attention else None
        self.norm = _Norm(8, channels[0])
        self.outlet = unset(conv, channels[0], c_image, 3, padding=1)
        initialise(self, generator)
        nn.init.zeros_(self.outlet.weight)
        if conv is nn.Conv2d:
            self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        x: Float[Tensor, "batch channels *sides"],
        c: Float[Tensor, " batch"],
        condition: Int[Tensor, " batch"] | Float[Tensor, "batch *condition"] | None = None,
        *,
        start: Float[Tensor, "batch channels *sides"] | None = None,
    ) -> Float[Tensor, "batch channels *sides"]:
        """Return the prediction at x; `start` is what the base of the model makes of it."""
        check_batch(x, self.event_shape, held=False)
        check_condition(self.condition, condition, len(x))
        if (start is not None) != self.start:
            raise ValueError(
                "a U-Net with start=True works in a model with a base, and no other takes start="
            )
        seen = x if start is None else torch.cat([x, start.to(x.dtype)], dim=1)
        if condition is not None and self.joined:
            seen, condition = torch.cat([seen, condition.to(x.dtype)], dim=1), None
        emb = self.conditioning(c, condition)
        h = _fold(seen, self.patch)
        if h.ndim == 4 and not _transformed(h):  # vmap has no such format
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
        if self.attention is not None:
            h = self.attention(h)
        for i, level in enumerate(self.up):
            if i > 0:
                larger = nn.functional.interpolate(h, scale_factor=2.0)
                h = self.grow[i - 1](_cut(larger, kept[-1].shape[2:]))
            for block in level.children():
                h = block(torch.cat([h, kept.pop()], dim=1), emb)
        h = self.outlet(nn.functional.silu(self.norm(h)))
        return _cut(_unfold(h, self.patch), x.shape[2:]).contiguous()


def _cut(x: Tensor, sides: Sequence[int]) -> Tensor:
    """Return x without what it has beyond these sides."""
    for axis, n in enumerate(sides, 2):
        if x.shape[axis] > n:
            x = x.narrow(axis, 0, n)
    return x


def _fold(x: Tensor, patch: int) -> Tensor:
    """Fold patches into channels, after filling up with zeros to whole patches."""
    if patch == 1:
        return x
    missing = [-n % patch for n in x.shape[2:]]
    if any(missing):
        x = nn.functional.pad(x, [v for m in reversed(missing) for v in (0, m)])
    if x.ndim == 4:
        return nn.functional.pixel_unshuffle(x, patch)
    return x.unflatten(2, (-1, patch)).transpose(2, 3).flatten(1, 2)


def _unfold(x: Tensor, patch: int) -> Tensor:
    """Undo `_fold`."""
    if patch == 1:
        return x
    if x.ndim == 4:
        return nn.functional.pixel_shuffle(x, patch)
    return x.unflatten(1, (-1, patch)).transpose(2, 3).flatten(2)
