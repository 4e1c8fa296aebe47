"""What a kernel does to a Gaussian, exactly: its step is affine there, and noise can be chosen.

The step is evaluated on the unit vectors of its state and of its noise, which gives x' = M x + N z, and
the law of x follows by linear algebra. Nothing is drawn, so that a factor 2 shows in the last digit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import Tensor

from ...core import Kernel, Streams
from ...distributions.analytic import Gaussian


class Chosen(Streams):
    """A source of noise that hands out the tensors it was given, in order."""

    def __init__(self, *noise: Tensor) -> None:
        self.left = list(noise)

    def draw(self, law: Callable[..., Tensor], shape: torch.Size, like: Tensor) -> Tensor:
        """Return the next tensor."""
        return self.left.pop(0).to(like)


class Linear(NamedTuple):
    """A step x' = M x + N(0, Q), on the position and, after it, one more field of the state."""

    M: Tensor
    Q: Tensor

    def stationary(self) -> Tensor:
        """Return the covariance C = M C Mᵀ + Q."""
        return torch.as_tensor(solve_discrete_lyapunov(self.M.numpy(), self.Q.numpy()))

    @property
    def radius(self) -> float:
        """The spectral radius of M: the chain is stable below 1."""
        return float(torch.linalg.eigvals(self.M).abs().max())


def linear_step(
    kernel: Kernel[Any, Any], cov: Tensor, field: str | None = None, n_draws: int = 1
) -> Linear:
    """Return the step of a kernel on N(0, cov).

    Arguments:
        kernel: An unadjusted kernel.
        cov: The covariance `(d, d)`.
        field: What the state carries besides position and score, as `momentum`.
        n_draws: How often a step draws noise.
    """
    d, n_fields = len(cov), 1 if field is None else 2
    law = Gaussian(torch.zeros(d, dtype=torch.float64), cov)
    rows = (n_fields + n_draws) * d
    unit = torch.eye(rows, dtype=torch.float64).reshape(rows, -1, d).unbind(1)
    state = kernel.init(unit[0], law)
    if field is not None:
        state = state._replace(**{field: unit[1]})
    new, _ = kernel.step(state, law, generator=Chosen(*unit[n_fields:]))
    fields = [new.x] if field is None else [new.x, getattr(new, field)]
    out = torch.cat(fields, 1)
    gain, noise = out[: n_fields * d], out[n_fields * d :]
    return Linear(gain.mT, noise.mT @ noise)
