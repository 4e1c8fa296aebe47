"""First and second derivatives of functions of single entries."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _silu(z: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    g = torch.sigmoid(z)
    return g + f * (1 - g), g * (1 - g) * (2 + z * (1 - 2 * g))


def _tanh(z: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    f1 = 1 - f * f
    return f1, -2 * f * f1


def _sigmoid(z: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    f1 = f * (1 - f)
    return f1, f1 * (1 - 2 * f)


def _softplus(z: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    g = torch.sigmoid(z)
    return g, g * (1 - g)


def _gelu(z: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    normal = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(z) + z * normal, normal * (2 - z * z)


def _rsqrt(z: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    f3 = f * f * f
    return -0.5 * f3, 0.75 * f3 * f * f


DERIVATIVES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "silu": _silu,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "gelu": _gelu,
    "relu": lambda z, f: ((z > 0).to(z), torch.zeros_like(z)),
    "abs": lambda z, f: (z.sign(), torch.zeros_like(z)),
    "exp": lambda z, f: (f, f),
    "log": lambda z, f: (1 / z, -1 / (z * z)),
    "sin": lambda z, f: (z.cos(), -f),
    "cos": lambda z, f: (-z.sin(), -f),
    "square": lambda z, f: (2 * z, torch.full_like(z, 2.0)),
    "sqrt": lambda z, f: (0.5 / f, -0.25 / (f * z)),
    "rsqrt": _rsqrt,
    "reciprocal": lambda z, f: (-f * f, 2 * f * f * f),
}
"""Functions of single entries: (z, f(z)) -> (f'(z), f''(z))."""
