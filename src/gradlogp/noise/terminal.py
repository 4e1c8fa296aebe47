"""The law at t = 1, from which samplers start."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Schedule, randn_like


def prior(
    schedule: Schedule,
    shape: tuple[int, ...],
    mean: Tensor | float = 0.0,
    var: Tensor | float = 1.0,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw from N(α_1 m, α_1² v + σ_1²), the law of x at t = 1 for data of that mean and variance.

    It is the law itself for Gaussian data, and elsewhere agrees with it in the first two moments;
    N(0, σ_1²) by habit would be off by α_1 m in the mean.

    Arguments:
        schedule: The noise schedule.
        shape: `(n, *event)`.
        mean: Data mean m, a number or an event-shaped tensor.
        var: Data variance v per entry, likewise.
        generator: Where the noise comes from.
        dtype: Of the result; PyTorch's default where not given.
        device: Of the result.
    """
    mean, var = torch.as_tensor(mean), torch.as_tensor(var)
    for name, value in (("mean", mean), ("var", var)):
        if value.ndim and value.shape != torch.Size(shape[1:]):
            raise ValueError(
                f"{name} must be a number or have shape {tuple(shape[1:])}, got {tuple(value.shape)}"
            )
    if bool((var < 0).any()):
        raise ValueError("var must be at least 0; it is a variance, not a standard deviation")
    z = randn_like(torch.empty(shape, dtype=dtype, device=device), generator)
    alpha, sigma = (v.to(z) for v in schedule(torch.ones((), dtype=torch.float64)))
    return alpha * mean.to(z) + (alpha**2 * var.to(z) + sigma**2).sqrt() * z
