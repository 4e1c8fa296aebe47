"""What a network is conditional on: classes, values of any shape, or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from ...core import Generator, check_count, check_event_shape, check_kind, rand_like

NO_CLASS = -1
"""The label of no class: a network given it answers for all classes together."""


def read_condition(condition: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    """Return a number of classes, a shape of values, or None.

    Raises:
        ValueError: For no class at all, or a shape without positive sizes.
    """
    if condition is None:
        return None
    sizes = read_sizes(condition, "condition")
    return sizes[0] if isinstance(condition, int) else sizes


def read_sizes(sizes: int | Sequence[int], name: str) -> tuple[int, ...]:
    """Return a number, or a sequence of them, as a shape.

    Raises:
        ValueError: Unless there is at least one, and all are positive integers.
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
    """Check what a network was given against what it is conditional on, `read_condition`'s.

    Raises:
        ValueError: If it is missing, not wanted, or of another dtype or shape, or out of range.
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
        # a value can be looked at neither in a compiled graph nor in a transform such as vmap
        hidden = torch.compiler.is_compiling() or is_functorch_wrapped_tensor(condition)
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

    A conditional network trained so knows the unconditional law too (classifier-free guidance).

    References:
        | Classifier-Free Diffusion Guidance (Ho & Salimans, 2022)
        | https://arxiv.org/abs/2207.12598
    """
    at = generator.device if isinstance(generator, torch.Generator) else "cpu"
    return rand_like(torch.empty(n, dtype=torch.float64, device=at), generator) < p
