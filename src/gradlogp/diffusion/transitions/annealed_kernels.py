r"""Kernels of annealed Langevin dynamics that depend on the covariance at each level.

For data with covariance V the law of x_t has covariance α²V + σ²I. In units of σ that is I +
(α/σ)² V, so that only the signal-to-noise ratio α²/σ² of a level matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from ...calculus import affine_map
from ...core import Generator, Kernel, check_finite, check_function, check_number, sum_event
from ...distributions.as_target import Target
from ...langevin.kernels import PreconditionedULA, Preconditioner
from ...langevin.kernels.overdamped import ExponentialEuler
from ...langevin.kernels.preconditioner import Kind
from ...langevin.kernels.steps import started

MakeKernel = Callable[[float], Kernel[Any, Any]]
"""Step size -> kernel, such as `ULA`."""


@runtime_checkable
class LevelKernel(Protocol):
    """What makes a kernel for each level."""

    def at(self, step_size: float, snr: float) -> Kernel[Any, Any]:
        """Return the kernel for x_t/σ_t at the level of signal-to-noise ratio α_t²/σ_t²."""


@dataclass(frozen=True, eq=False)
class ExponentialSteps:
    r"""Steps that integrate the linear part of the score exactly: `ExponentialEuler`.

    .. math::
        x' = x + C_t (I - E)\, s(x, t) + \left( C_t (I - E^2) \right)^{1/2} z, \quad
        C_t = α_t^2 V + σ_t^2 I, \quad E = e^{-ησ_t^2 C_t^{-1}}

    If the data are Gaussian with covariance V, every level leaves its exact law invariant, for any
    η > 0, also above 2. Otherwise V = 0 is the safe choice: then the linear part is −x/σ_t², the
    score of a single point, which is stable for any η on any law; for large η a step is α_t times
    the Tweedie mean, plus σ_t z.

    References:
        | Dimension-Uniform Discretization Analysis of Preconditioned Annealed Langevin Dynamics for
          Multimodal Gaussian Mixtures (2026)
        | https://arxiv.org/abs/2605.16473

    Arguments:
        covariance: V ≥ 0, the covariance of the data: a number, a diagonal in the shape of an
            event, a matrix, or a `Preconditioner`.

    Raises:
        ValueError: If V is negative or not finite.
    """

    covariance: Preconditioner | Tensor | float

    def __post_init__(self) -> None:
        check_covariance(self.covariance)

    def at(self, step_size: float, snr: float) -> ExponentialEuler:
        """Return the kernel for x_t/σ_t."""
        return ExponentialEuler(step_size, noised(self.covariance, snr))


@dataclass(frozen=True, eq=False)
class PreconditionedSteps:
    r"""Steps preconditioned by the covariance of every level.

    .. math::
        x' = x + η C_t\, s(x, t) + \sqrt{2 η}\, C_t^{1/2} z, \quad C_t = α_t^2 V + σ_t^2 I

    If the data are Gaussian with covariance V, every direction contracts by 1 − η per step and
    ends with variance 1/(1 − η/2) times that of the level. For a mixture V must not exceed the
    covariance of its components, otherwise the narrowest of them makes the steps unstable; `MALA`
    would reject them.

    References:
        | Dimension-Free Multimodal Sampling via Preconditioned Annealed Langevin Dynamics (2026)
        | https://arxiv.org/abs/2602.01449

    Arguments:
        covariance: V ≥ 0, the covariance of the data: a number, a diagonal in the shape of an
            event, a matrix, or a `Preconditioner`.
        kernel: (η, preconditioner=) -> kernel: `PreconditionedULA`, `MALA`, or
            `partial(HMC, n_leapfrog=3)`.

    Raises:
        ValueError: If V is negative or not finite.
    """

    covariance: Preconditioner | Tensor | float
    kernel: Callable[..., Kernel[Any, Any]] = PreconditionedULA

    def __post_init__(self) -> None:
        check_covariance(self.covariance)
        check_function(self.kernel, "kernel")

    def at(self, step_size: float, snr: float) -> Kernel[Any, Any]:
        """Return the kernel for x_t/σ_t."""
        return self.kernel(step_size, preconditioner=noised(self.covariance, snr))


def noised(covariance: Preconditioner | Tensor | float, snr: float) -> Preconditioner:
    """Return I + snr V."""
    V, kind = _value_and_kind(covariance)
    if kind == "matrix":
        assert isinstance(V, Tensor)
        return Preconditioner(torch.eye(len(V)).to(V) + snr * V, kind="matrix")
    return Preconditioner(1 + snr * V, kind=kind)


def check_covariance(covariance: Preconditioner | Tensor | float) -> None:
    """Raise `ValueError` unless V is finite, at least 0, and symmetric if it is a matrix."""
    if isinstance(covariance, Tensor):
        check_finite(covariance, "covariance")
    elif not isinstance(covariance, Preconditioner):
        check_number(covariance, "covariance", least=0)
    V, kind = _value_and_kind(covariance)
    if not isinstance(V, Tensor):
        smallest, largest = V, V
    elif kind == "matrix" and bool(torch.isfinite(V).all()):
        noised(V, 1.0)  # symmetric?
        w = torch.linalg.eigvalsh(V)
        w = torch.where(w.abs() < 1e-6 * w.abs().max(), 0.0, w)  # V may be singular
        smallest, largest = float(w.min()), float(w.max())
    else:
        smallest, largest = float(V.min()), float(V.max())
    if not (smallest >= 0 and largest < torch.inf):
        raise ValueError(
            "covariance must be finite and at least 0; its smallest and largest entries or eigenvalues "
            f"are {smallest:.3g} and {largest:.3g}"
        )


def _value_and_kind(covariance: Preconditioner | Tensor | float) -> tuple[Tensor | float, Kind]:
    if isinstance(covariance, Preconditioner):
        covariance = covariance.symmetric()
        assert covariance.kind is not None
        return covariance.value, covariance.kind
    if not isinstance(covariance, Tensor) or covariance.ndim == 0:
        return float(covariance), "number"
    square = covariance.ndim == 2 and covariance.shape[0] == covariance.shape[1]
    return covariance, "matrix" if square else "diagonal"


NORMAL = Target(lambda y: -y, lambda y: -0.5 * sum_event(y.square()))
"""The law of a level in units of its noise, for data that are one point."""


def level_variance(
    kernel: MakeKernel | LevelKernel, relative_step: float, n_steps: int, ratio: float
) -> float:
    """Return s_T²/σ² after T steps at a level on point-mass data, from s_0² = γ² σ².

    A step is affine there, and its map determines the law. `ladder.variance_ratio` is the closed
    form for ULA.

    Raises:
        ValueError: For a kernel whose step is not affine, for example because it may be rejected.
    """
    made = (
        kernel.at(relative_step, 0.0) if isinstance(kernel, LevelKernel) else kernel(relative_step)
    )

    def level(x: Tensor, generator: Generator) -> Tensor:
        state = started(made, x, NORMAL, generator)
        for _ in range(n_steps):
            state, info = made.step(state, NORMAL, generator=generator)
            if hasattr(info, "acceptance"):
                raise ValueError(
                    f"{type(made).__name__} may reject steps: choose relative_step by its "
                    "acceptance instead"
                )
        return state.x

    found = affine_map(level, 1)
    return float(ratio**2 * found.M**2 + found.Q)


def solve_step(n_steps: int, ratio: float, kernel: MakeKernel | LevelKernel) -> float:
    """Return the η in (0, 1] whose steps end nearest to the variance of the level."""

    def off(eta: float) -> float:
        return (level_variance(kernel, eta, n_steps, ratio) - 1) ** 2

    grid = np.geomspace(1e-3, 1.0, 61)
    best = int(np.argmin([off(eta) for eta in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(minimize_scalar(off, bounds=(low, high), method="bounded").x)
