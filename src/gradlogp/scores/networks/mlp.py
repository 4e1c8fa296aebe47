"""A residual multilayer perceptron for vectors (or anything flattened to one)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .embeddings import Conditioning, initialise


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.shift = nn.Linear(width, width)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        inner = self.first(nn.functional.silu(h)) + self.shift(emb)
        return h + self.second(nn.functional.silu(inner))


class MLP(nn.Module):
    """A residual MLP: network(x, c, labels) -> like x.

    It knows nothing of diffusion: c is a number per sample that orders the noise levels.

    Arguments:
        event: The event shape, or the dimension D of a vector.
        width: Hidden width.
        depth: Number of residual blocks, two linear layers each.
        n_classes: Number of classes to condition on; 0 for none. Label −1 then stands for no class.
        generator: Where the initial weights are drawn from.
    """

    def __init__(
        self,
        event: int | Sequence[int],
        width: int = 128,
        depth: int = 3,
        n_classes: int = 0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        shape = (event,) if isinstance(event, int) else tuple(int(n) for n in event)
        if not shape or min(*shape, width, depth) < 1 or n_classes < 0:
            raise ValueError(
                f"MLP needs positive sizes, got event={event}, width={width}, depth={depth}, "
                f"n_classes={n_classes}"
            )
        self.config = {
            "event": list(shape),
            "width": width,
            "depth": depth,
            "n_classes": n_classes,
        }
        self.event_shape = torch.Size(shape)
        self.n_classes = n_classes
        d = self.event_shape.numel()
        self.conditioning = Conditioning(width, n_classes)
        self.inlet = nn.Linear(d, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.outlet = nn.Linear(width, d)
        initialise(self, generator)
        nn.init.zeros_(self.outlet.weight)

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        c: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """Return the prediction at x."""
        emb = self.conditioning(c, labels)
        h = self.inlet(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        return self.outlet(nn.functional.silu(h)).reshape(x.shape)
