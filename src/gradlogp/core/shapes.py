"""Shapes, and the checks of arguments that everything else asks for."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_batch(x: Tensor, event_shape: torch.Size | None = None, name: str = "x") -> None:
    """Raise `ValueError` unless x is a floating-point batch `(B, *event)`."""
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {x.dtype}; convert it with .float()")
    if x.ndim < 2 or (event_shape is not None and x.shape[1:] != event_shape):
        event = "*event" if event_shape is None else ", ".join(map(str, event_shape))
        raise ValueError(f"{name} must have shape (B, {event}), got {tuple(x.shape)}")


def check_same_shape(out: Tensor, x: Tensor, name: str) -> None:
    """Raise `ValueError` unless a function of x returned the shape of x (never broadcast)."""
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if shape != tuple(x.shape):
        raise ValueError(f"{name} returned shape {shape} for x of {tuple(x.shape)}")


def per_sample(value: Tensor | float, x: Tensor, name: str = "t") -> Tensor:
    """Reshape a number `()` or one per sample `(B,)` so that it multiplies x `(B, *event)`."""
    v = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if v.ndim == 0:
        return v
    if v.shape != x.shape[:1]:
        raise ValueError(f"{name} must have shape () or ({x.shape[0]},), got {tuple(v.shape)}")
    return v.reshape(-1, *[1] * (x.ndim - 1))


def sum_event(x: Tensor) -> Tensor:
    """Sum over the event dimensions: `(B, *event) -> (B,)`."""
    return x.flatten(1).sum(1)


def check_points(x: Tensor, name: str = "x") -> None:
    """Raise `ValueError` unless x is a batch `(B, *event)`, not empty, of finite numbers."""
    check_batch(x, name=name)
    if x.numel() == 0:
        raise ValueError(f"{name} is empty, shape {tuple(x.shape)}; a loss needs points")
    # one pass; only a sum that is not finite is looked at more closely
    if not math.isfinite(x.detach().sum().item()) and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise ValueError(f"{name} has {bad} of {len(x)} rows that are not finite; remove them")


def check_count(value: int, name: str) -> None:
    """Raise `ValueError` unless a count is at least 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")
