"""Conditions of networks, embeddings of these and of a noise coordinate, initial weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor

from ...core import Generator, check_count, check_event_shape, check_kind, rand_like

_Layer = TypeVar("_Layer", bound=nn.Module)


class Fourier(nn.Module):
    """Sines and cosines of f c for each number c and frequency f, times f^power, `(*) -> (*, 2 n)`.

    References:
        | Attention Is All You Need (Vaswani et al., 2017)
        | https://arxiv.org/abs/1706.03762
    """

    frequencies: Tensor
    weights: Tensor

    def __init__(self, frequencies: Sequence[float], power: float = 0.0) -> None:
        super().__init__()
        # in every dtype and on every device the same; on "meta" a power imports SymPy
        grid, here = torch.tensor(frequencies, dtype=torch.float64, device="cpu"), _device()
        weights = (grid**power).float().repeat(2)
        self.register_buffer("frequencies", grid.float().to(here), persistent=False)
        self.register_buffer("weights", weights.to(here), persistent=False)

    def forward(self, c: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch features"]:
        """Return the features of c."""
        phase = c.unsqueeze(-1) * self.frequencies.to(c)
        return torch.cat([phase.sin(), phase.cos()], -1) * self.weights.to(c)

    def slopes(self, c: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch features"]:
        """Return the derivatives of the features of c."""
        f = self.frequencies.to(c)
        phase = c.unsqueeze(-1) * f
        return torch.cat([f * phase.cos(), -f * phase.sin()], -1) * self.weights.to(c)


class Conditioning(nn.Module):
    """One vector from the noise coordinate and the condition: the sum of an embedding of each.

    The embedding of `NO_CLASS` is 0. A learned one would add nothing: the network sees the sum of
    both parts, and a constant vector can be moved from one to the other.

    Arguments:
        width: Number of entries of the vector.
        condition: A number of classes, a shape of values, or None, as `read_condition` returns it.
    """

    def __init__(self, width: int, condition: int | tuple[int, ...] | None = None) -> None:
        super().__init__()
        ends = math.log(0.25), math.log(32.0)
        grid = torch.linspace(*ends, 16, dtype=torch.float64, device="cpu").exp()
        self.fourier = Fourier(grid.tolist())
        self.noise = nn.Sequential(
            unset(nn.Linear, 32, width), nn.SiLU(), unset(nn.Linear, width, width)
        )
        self.label = self.values = None
        if isinstance(condition, int):
            self.label = unset(nn.Embedding, condition, width)
        elif condition is not None:
            self.values = nn.Sequential(
                unset(nn.Linear, math.prod(condition), width),
                nn.SiLU(),
                unset(nn.Linear, width, width),
            )

    def forward(
        self,
        c: Float[Tensor, " batch"],
        condition: Int[Tensor, " batch"] | Float[Tensor, "batch *condition"] | None = None,
    ) -> Float[Tensor, "rows width"]:
        """Return the conditioning vector; the condition has been checked (`check_condition`).

        One row for all, where c was expanded from one number.
        """
        if len(c) > 1 and not c.stride(0):  # one number for all: one row, which is added to each
            c = c[:1]
        emb = self.noise(self.fourier(c))
        if condition is not None and self.label is not None:
            none = condition == NO_CLASS
            known = condition.masked_fill(none, 0)  # other negative numbers fail as indices
            emb = emb + self.label(known).masked_fill(none.unsqueeze(-1), 0.0)
        if condition is not None and self.values is not None:
            emb = emb + self.values(condition.flatten(1).to(c.dtype))
        return nn.functional.silu(emb)


def unset(kind: type[_Layer], *sizes: int, **options: int) -> _Layer:
    """Return a layer whose weights are later drawn by `initialise`.

    PyTorch's own constructors draw from the global generator, which is left as it was. `skip_init`
    does not draw, but imports SymPy: 0.3 s in every process that loads a model.
    """
    here = _device()
    if kind is nn.Embedding and here.type == "meta":  # to draw N(0, 1) there imports Dynamo: 1.7 s
        return kind(*sizes, _weight=torch.empty(sizes, device="meta"))
    with torch.random.fork_rng(devices=[]):
        return kind(*sizes, device="meta" if here.type == "meta" else "cpu", **options).to(here)


def _device() -> torch.device:
    return torch.empty(0).device  # that of `torch.set_default_device`


def initialise(module: nn.Module, generator: torch.Generator | None) -> None:
    """Draw every weight from U(−1/√fan_in, 1/√fan_in) and every class embedding from N(0, 1)."""
    for m in module.modules():
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d):
            bound = m.weight[0].numel() ** -0.5
            nn.init.uniform_(m.weight, -bound, bound, generator=generator)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.Embedding) and not m.weight.is_meta:
            nn.init.normal_(m.weight, generator=generator)


NO_CLASS = -1
"""The label of no class: a network given it answers for all classes together."""


def read_condition(condition: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    """Return a number of classes, a shape of values, or None.

    Raises:
        ValueError: For fewer than one class, or a shape without positive sizes.
    """
    if condition is None:
        return None
    sizes = read_sizes(condition, "condition")
    return sizes[0] if isinstance(condition, int) else sizes


def read_sizes(sizes: int | Sequence[int], name: str) -> tuple[int, ...]:
    """Return a number, or a sequence of them, as a shape.

    Raises:
        ValueError: Unless there is at least one number, and all are positive integers.
    """
    if isinstance(sizes, int):
        check_count(sizes, name)
        return (sizes,)
    check_kind(sizes, name, list | tuple, "a number or a shape of positive sizes")
    check_count(len(sizes), f"the number of sizes of {name}")
    check_event_shape(tuple(sizes), name)
    return tuple(int(n) for n in sizes)


def check_condition(
    kind: int | tuple[int, ...] | None, condition: Tensor | None, batch: int
) -> None:
    """Check the condition passed to a network against its kind, as `read_condition` returns it.

    Raises:
        ValueError: If it is missing, superfluous, of a wrong dtype or shape, or out of range; the last
            is looked at only where that needs no wait, not on a GPU.
    """
    got = "none" if condition is None else f"{condition.dtype} {tuple(condition.shape)}"
    if kind is None:
        if condition is not None:
            raise ValueError(
                f"a condition, {got}, was given to a network that has none; build it with condition="
            )
    elif isinstance(kind, int):
        wanted = f"int64 labels ({batch},) from 0 to {kind - 1}, or {NO_CLASS} for no class"
        if condition is None or condition.dtype != torch.int64 or condition.shape != (batch,):
            raise ValueError(
                f"this network is conditional on {kind} classes: pass {wanted}; got {got}"
            )
        # a value can be looked at neither in a compiled graph nor in a transform such as vmap, and on a
        # GPU only by waiting for it; there it fails as an index
        hidden = condition.device.type not in ("cpu", "mps") or torch.compiler.is_compiling()
        hidden = hidden or is_functorch_wrapped_tensor(condition)
        if not hidden and bool(((condition < NO_CLASS) | (condition >= kind)).any()):
            raise ValueError(
                f"this network is conditional on {kind} classes: pass {wanted}; got labels from "
                f"{int(condition.min())} to {int(condition.max())}"
            )
    elif (
        condition is None or not condition.is_floating_point() or condition.shape != (batch, *kind)
    ):
        raise ValueError(
            f"this network is conditional on values: pass floats {(batch, *kind)}; got {got}"
        )


def drop(p: float, n: int, generator: Generator | None = None) -> Bool[Tensor, " n"]:
    """Draw which of n rows lose their condition: each with probability p, independently.

    A conditional network trained in this way knows the unconditional law too (classifier-free
    guidance).

    References:
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022)
        | https://arxiv.org/abs/2207.12598
    """
    at = generator.device if isinstance(generator, torch.Generator) else "cpu"
    return rand_like(torch.empty(n, dtype=torch.float64, device=at), generator) < p


def read_event_shape(event_shape: Any, network: nn.Module) -> torch.Size:
    """Return the event shape that a network states, or that was passed for one that states none.

    Raises:
        ValueError: If there is none, it is not a shape, or the two differ.
    """
    if event_shape is not None:
        check_event_shape(tuple(event_shape) if isinstance(event_shape, list) else event_shape)
    own = getattr(network, "event_shape", None)
    own = event_shape if own is None else own
    if own is None:
        raise ValueError("pass event_shape=: this network does not state one")
    if event_shape is not None and tuple(event_shape) != tuple(own):
        raise ValueError(f"event_shape={event_shape}, but that of the network is {own}: omit it")
    return torch.Size(own)
