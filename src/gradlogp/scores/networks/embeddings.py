"""Embeddings of a scalar noise coordinate and of a class label, and seeded initialisation."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...core import Generator, rand_like

NO_CLASS = -1
"""The label of no class: a network given it answers for all classes together."""


def drop_labels(
    labels: Int[Tensor, " batch"], p: float, generator: Generator | None = None
) -> Int[Tensor, " batch"]:
    """Replace each label by `NO_CLASS` with probability p, independently of the others.

    A conditional network trained so knows the unconditional law too (classifier-free guidance).

    References:
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022)
        | https://arxiv.org/abs/2207.12598
    """
    u = rand_like(torch.empty(labels.shape, device=labels.device, dtype=torch.float64), generator)
    return labels.masked_fill(u < p, NO_CLASS)


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
    """One vector from the noise coordinate and, for a class-conditional network, the label.

    The embedding of `NO_CLASS` is 0. A learned one would add nothing: what the network sees is the
    sum of both parts, and a vector moves freely between them.
    """

    def __init__(self, width: int, n_classes: int = 0) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.fourier = Fourier()
        self.noise = nn.Sequential(nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(n_classes, width) if n_classes else None

    def forward(
        self, c: Float[Tensor, " batch"], labels: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch width"]:
        """Return the conditioning vector.

        Raises:
            ValueError: If labels are missing, not wanted, or out of range.
        """
        emb = self.noise(self.fourier(c))
        if self.label is None:
            if labels is not None:
                raise ValueError("labels were given to a network with n_classes=0")
        elif labels is None:
            raise ValueError(
                f"this network is conditional on {self.n_classes} classes: pass labels"
            )
        else:
            if labels.shape != c.shape:
                raise ValueError(
                    f"labels must have shape {tuple(c.shape)}, one a sample, got {tuple(labels.shape)}"
                )
            none = labels == NO_CLASS
            if not torch.compiler.is_compiling() and bool(
                (((labels < 0) & ~none) | (labels >= self.n_classes)).any()
            ):
                raise ValueError(
                    f"labels must lie in 0 … {self.n_classes - 1}, or be {NO_CLASS} for no class"
                )
            emb = emb + self.label(labels.clamp(min=0)).masked_fill(none.unsqueeze(-1), 0.0)
        return nn.functional.silu(emb)


def initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw every weight from U(−1/√fan_in, 1/√fan_in) and every class embedding from N(0, 1).

    PyTorch's own constructors draw from the global generator; a seeded network must not.
    """
    for m in module.modules():
        if isinstance(m, nn.Linear | nn.Conv2d):
            bound = m.weight[0].numel() ** -0.5
            nn.init.uniform_(m.weight, -bound, bound, generator=generator)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Embedding):
            nn.init.normal_(m.weight, generator=generator)
