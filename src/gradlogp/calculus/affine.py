"""The exact affine map of a step that is affine in the state and in its noise.

A step is evaluated on a basis of its state and of every noise it draws, with chosen noise. This
gives x' = M x + b + N(0, Q), and laws follow by linear algebra. Nothing is drawn, so a wrong
factor is visible to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import (
    Density,
    Generator,
    Injected,
    Kernel,
    check_count,
    check_function,
    check_kernel,
    check_target,
)

Step = Callable[[Tensor, Generator], Tensor]
"""step(x, generator) -> x'."""

CHECKED = 16
"""Random points at which a step is checked to be affine."""

TOLERANCE = 1e-10
"""Relative and absolute deviation from an affine map that is taken for rounding."""


class Affine(NamedTuple):
    """A Markov step x' = M x + b + N(0, Q)."""

    M: Float[Tensor, "d d"]
    b: Float[Tensor, " d"]
    Q: Float[Tensor, "d d"]

    def law(
        self, m: Float[Tensor, " d"], C: Float[Tensor, "d d"]
    ) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """Return mean M m + b and covariance M C Mᵀ + Q of x', for x of mean m and covariance C."""
        return self.M @ m + self.b, self.M @ C @ self.M.mT + self.Q

    @property
    def radius(self) -> float:
        """The spectral radius of M: the step has a stationary law below 1."""
        return float(torch.linalg.eigvals(self.M).abs().max())

    def stationary(self) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """Return mean and covariance of the stationary law, m = M m + b, C = M C Mᵀ + Q.

        Raises:
            ValueError: If the spectral radius of M is not below 1.
        """
        from scipy.linalg import solve_discrete_lyapunov

        if not self.radius < 1:
            raise ValueError(
                f"the step has no stationary law: its spectral radius is {self.radius:.4g}, which "
                f"must be below 1; use a smaller step size"
            )
        mean = torch.linalg.solve(torch.eye(len(self.b)).to(self.M) - self.M, self.b)
        return mean, torch.as_tensor(solve_discrete_lyapunov(self.M.numpy(), self.Q.numpy()))


class _Silence:
    """Noise that is 0, and the law and shape of every requested draw."""

    def __init__(self) -> None:
        self.asked: list[tuple[Callable[..., Tensor], torch.Size]] = []

    def draw(self, law: Callable[..., Tensor], shape: torch.Size, like: Tensor) -> Tensor:
        self.asked.append((law, shape))
        return like.new_zeros(shape)


def affine_map(step: Step, d: int, n_draws: int | None = None) -> Affine:
    """Return M, b and Q of a step x' = M x + b + N(0, Q), in float64 on the CPU.

    The step is run twice: on one row of zeros, to count its draws, and on the unit vectors of x
    and of each draw together with random rows, which check that it is affine. Every row is a
    separate state with its own noise, which is checked as well.

    Arguments:
        step: step(x, generator) -> x', for x and x' of shape `(n, d)`, with noise from `core` alone.
        d: Dimension of x.
        n_draws: How often the step draws noise; any number by default.

    Raises:
        ValueError: If the step is not affine in x and in its noise, draws a different number of
            times or from a law other than N(0, I), or draws differently in the two runs.
    """
    check_function(step, "step")
    check_count(d, "d")
    silence = _Silence()
    alone = step(torch.zeros(1, d, dtype=torch.float64), silence)
    asked = silence.asked
    if n_draws is not None and len(asked) != n_draws:
        raise ValueError(f"the step draws noise {len(asked)} times, and n_draws is {n_draws}")
    sizes = [d, *(shape.numel() for _, shape in asked)]
    n, seeded = sum(sizes), torch.Generator().manual_seed(0)
    normal = torch.tensor([True] + [law is torch.randn for law, _ in asked])
    normal = normal.repeat_interleave(torch.tensor(sizes))
    anything = torch.randn(CHECKED, n, dtype=torch.float64, generator=seeded)
    # uniform numbers at both ends, where what they decide shows
    anything = torch.where(normal, anything, (anything > 0) * (1 - 2**-53))
    basis = torch.eye(n, dtype=torch.float64)
    x, *rows = torch.cat([torch.zeros_like(basis[:1]), basis, anything]).split(sizes, 1)
    noise = Injected(
        *(z.reshape(-1, *shape[1:]) for z, (_, shape) in zip(rows, asked, strict=True))
    )
    out = step(x, noise)
    if noise.left:
        raise ValueError(
            f"the step drew noise {len(asked)} times for one row and {len(noise.left)} times fewer "
            f"for {len(x)}: the draws of an affine step do not depend on x"
        )
    b = out[0]
    gains = out[1 : 1 + n] - b  # a row for each unit vector
    seen, expected = torch.cat([alone, out[1 + n :]]), torch.cat([out[:1], b + anything @ gains])
    if not torch.allclose(seen, expected, rtol=TOLERANCE, atol=TOLERANCE):
        off = float((seen - expected).abs().max())
        raise ValueError(
            f"the step is not affine, row by row: at a random point it is off by {off:.2g}"
        )
    if bool(gains[~normal].any()):
        raise ValueError("the step depends on numbers that are uniform, and not N(0, 1)")
    return Affine(gains[:d].mT, b, gains[d:].mT @ gains[d:])


def kernel_map(
    kernel: Kernel[Any, Any],
    target: Density,
    d: int,
    n_draws: int | None = None,
    field: str | None = None,
) -> Affine:
    """Return the `affine_map` of a kernel's step on a Gaussian.

    Arguments:
        kernel: An unadjusted kernel.
        target: A Gaussian on `(n, d)`.
        d: Dimension of the target.
        n_draws: How often a step draws noise; any number by default.
        field: A field of the state besides position and score, such as `momentum`: the map is then
            that of (x, field), of dimension 2 d.

    Raises:
        ValueError: If the step is not affine, for example because it may be rejected.
    """
    check_kernel(kernel)
    check_target(target)
    check_count(d, "d")

    def step(v: Tensor, generator: Generator) -> Tensor:
        state = kernel.init(v[:, :d], target)
        if field is not None:
            state = state._replace(**{field: v[:, d:]})
        new, _ = kernel.step(state, target, generator=generator)
        return new.x if field is None else torch.cat([new.x, getattr(new, field)], 1)

    return affine_map(step, d if field is None else 2 * d, n_draws)
