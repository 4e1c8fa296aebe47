r"""Langevin dynamics with a preconditioner that depends on the position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import Generator, check_function, check_same_shape, randn_like
from .facts import Facts, unadjusted_facts
from .steps import LangevinState, Overdamped, Unadjusted, langevin_step

Field = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class PositionDependentULA(Overdamped):
    r"""ULA with a symmetric positive definite G(x), and the drift term that it requires.

    .. math:: x' = x + h\, (G(x) \nabla \log p(x) + τ \operatorname{div} G(x))
        + \sqrt{2 h τ}\, G(x)^{1/2} z, \quad
        (\operatorname{div} G)_i = \sum_j \partial_j G_{ij}

    Without div G the law in one dimension tends to p/G instead of p, however small the step is. It
    is therefore required: as a function, or as `"autograd"`. With it the error is of order h, as
    for `ULA`. The root of a matrix is its Cholesky factor. A chain that becomes NaN or infinite
    stays where it was and is flagged `diverging`.

    References:
        | Riemann Manifold Langevin and Hamiltonian Monte Carlo Methods (Girolami & Calderhead, 2011)
        | https://doi.org/10.1111/j.1467-9868.2010.00765.x
        | A Complete Recipe for Stochastic Gradient MCMC (Ma, Chen & Fox, 2015)
        | https://arxiv.org/abs/1506.04696

    Arguments:
        step_size: h > 0.
        G: x -> the diagonal of G(x), shape of x, or the matrices `(B, d, d)` for d entries per
            event. Each row may depend only on its own x.
        divergence: x -> div G(x), shape of x, or `"autograd"`: one forward-mode derivative of G
            for each of the d directions.
        temperature, on_nonfinite: As in `ULA`.

    Raises:
        ValueError: For an argument out of its range; in a step, if G is not positive definite or
            has the wrong shape.
    """

    step_size: float
    G: Field
    divergence: Field | Literal["autograd"]
    temperature: float = 1.0
    on_nonfinite: Unadjusted = "freeze"

    facts: ClassVar[Facts] = unadjusted_facts(1, affine=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_function(self.G, "G", "; for a constant use PreconditionedULA")
        if not isinstance(self.divergence, str) or self.divergence != "autograd":
            why = ", or 'autograd'; without div G the wrong law is sampled"
            check_function(self.divergence, "divergence", why)

    def _next(self, state: LangevinState, generator: Generator | None) -> Tensor:
        x, tau = state.x, self.temperature
        G = self.G(x)
        root = _root(G, x)
        if callable(self.divergence):
            div = self.divergence(x)
            check_same_shape(div, x, "divergence")
        else:
            div = matrix_divergence(self.G, x)
        drift = _times(G, state.score) + tau * div
        noise = _times(root, randn_like(x, generator))
        return langevin_step(x, drift, self.step_size, noise, tau)


def matrix_divergence(G: Field, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
    """Return (div G)_i = Σ_j ∂_j G_ij by forward-mode differentiation along each axis j."""
    total = torch.zeros_like(x).flatten(1)
    for j in range(total.shape[1]):
        axis = torch.zeros_like(total)
        axis[:, j] = 1
        change = torch.func.jvp(G, (x,), (axis.view_as(x),))[1]
        if change.shape == x.shape:
            total[:, j] = change.flatten(1)[:, j]
        else:
            total += change[:, :, j]
    return total.view_as(x)


def _times(A: Tensor, v: Tensor) -> Tensor:
    """A diagonal `(B, *event)` or matrices `(B, d, d)` times v."""
    if A.shape == v.shape:
        return A * v
    return torch.einsum("bij,bj->bi", A, v.flatten(1)).view_as(v)


def _root(G: Tensor, x: Tensor) -> Tensor:
    d = x.flatten(1).shape[1]
    if G.shape == x.shape:
        good, root = bool((G > 0).all()), G.sqrt()
    elif G.shape == (len(x), d, d):
        root, failed = torch.linalg.cholesky_ex(G)
        good = not bool(failed.any())
    else:
        raise ValueError(
            f"G must return {tuple(x.shape)} or {(len(x), d, d)}, got {tuple(G.shape)}"
        )
    if not good:
        raise ValueError("G must return a positive definite matrix (diagonal: positive entries)")
    return root
