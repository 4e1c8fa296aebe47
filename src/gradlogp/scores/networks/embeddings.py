"""Embeddings of a scalar noise coordinate and of a condition, and seeded initialisation."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .conditions import NO_CLASS


class Fourier(nn.Module):
    """Sines and cosines of a scalar at geometric frequencies, `(B,) -> (B, 2 n)`.

    References:
        | Attention Is All You Need (Vaswani et al., 2017)
        | https://arxiv.org/abs/1706.03762
    """

    frequencies: Tensor

    def __init__(self, n: int = 16, lowest: float = 0.25, highest: float = 32.0) -> None:
        super().__init__()
        ends = math.log(lowest), math.log(highest)
        grid = (
            torch.linspace(*ends, n, dtype=torch.float64).exp().float()
        )  # in every dtype the same
        self.register_buffer("frequencies", grid, persistent=False)

    def forward(self, c: Float[Tensor, " batch"]) -> Float[Tensor, "batch features"]:
        """Return the features of c."""
        phase = c.unsqueeze(-1) * self.frequencies.to(c)
        return torch.cat([phase.sin(), phase.cos()], -1)


class Conditioning(nn.Module):
    """One vector from the noise coordinate and the condition: the sum of an embedding of each.

    The embedding of `NO_CLASS` is 0. A learned one would add nothing: what the network sees is the
    sum of both parts, and a vector moves freely between them.

    Arguments:
        width: Entries of the vector.
        condition: A number of classes, a shape of values, or None, as `read_condition` returns it.
    """

    def __init__(self, width: int, condition: int | tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.fourier = Fourier()
        self.noise = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.label = self.values = None
        if isinstance(condition, int):
            self.label = nn.Embedding(condition, width)
        elif condition is not None:
            self.values = nn.Sequential(
                nn.Linear(math.prod(condition), width), nn.SiLU(), nn.Linear(width, width)
            )

    def forward(
        self,
        c: Float[Tensor, " batch"],
        condition: Int[Tensor, " batch"] | Float[Tensor, "batch *condition"] | None = None,
    ) -> Float[Tensor, "batch width"]:
        """Return the conditioning vector; the condition has been checked (`check_condition`)."""
        emb = self.noise(self.fourier(c))
        if condition is not None and self.label is not None:
            none = condition == NO_CLASS
            emb = emb + self.label(condition.clamp(min=0)).masked_fill(none.unsqueeze(-1), 0.0)
        if condition is not None and self.values is not None:
            emb = emb + self.values(condition.flatten(1).to(c.dtype))
        return nn.functional.silu(emb)


def initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw every weight from U(−1/√fan_in, 1/√fan_in) and every class embedding from N(0, 1).

    PyTorch's own constructors draw from the global generator; a seeded network must not.
    """
    for m in module.modules():
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d):
            bound = m.weight[0].numel() ** -0.5
            nn.init.uniform_(m.weight, -bound, bound, generator=generator)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Embedding):
            nn.init.normal_(m.weight, generator=generator)
