r"""Scores and divergences by automatic differentiation.

For s: R^d -> R^d with Jacobian ∇s the divergence is tr ∇s. Probes v with E[v vᵀ] = I give the
unbiased estimate vᵀ(∇s)v. Everything is a composition of `torch.func` transforms, so it can be
differentiated again, and every sample is on its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .core import (
    Generator,
    ScoreFn,
    check_batch,
    check_same_shape,
    rand_like,
    randn_like,
    sum_event,
)

Probe = Literal["gaussian", "rademacher", "sphere"]


def score_from_log_prob(log_prob: Callable[[Tensor], Tensor]) -> ScoreFn:
    """Return x -> ∇ log p(x) for a log-density `(B, *event) -> (B,)`.

    Raises:
        ValueError: If the function returns anything but one number per sample. A vector-valued
            "log-density" has no gradient; pass it as a score.
    """

    def total(x: Tensor) -> Tensor:
        value = log_prob(x)
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"a log-density (or energy) must return shape ({x.shape[0]},), one number per "
                f"sample, got {tuple(value.shape)}; if the function returns a vector field, pass "
                "it as score="
            )
        return value.sum()

    return torch.func.grad(total)


def probe(law: Probe, like: Tensor, generator: Generator | None = None) -> Tensor:
    """Draw v with E[v vᵀ] = I: standard normal, ±1, or uniform on the sphere of radius √d.

    References:
        | Sliced Score Matching: A Scalable Approach to Density and Score Estimation (Song et al., 2019)
        | https://arxiv.org/abs/1905.07088
    """
    if law == "rademacher":
        return torch.where(rand_like(like, generator) < 0.5, -1.0, 1.0).to(like)
    v = randn_like(like, generator)
    if law == "gaussian":
        return v
    if law == "sphere":
        norm = v.flatten(1).norm(dim=1)
        radius = v[0].numel() ** 0.5
        return v * (radius / norm).reshape(-1, *[1] * (v.ndim - 1))
    raise ValueError(f"unknown probe law {law!r}; one of 'gaussian', 'rademacher', 'sphere'")


def _basis_vector(i: Tensor, x: Tensor) -> Tensor:
    index = torch.arange(x.shape[1:].numel(), device=x.device)
    return (index == i).to(x.dtype).reshape(x.shape[1:]).expand_as(x)


def jacobian_trace(
    s: ScoreFn, x: Float[Tensor, "batch *event"], chunk_size: int = 64
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
    r"""Return s(x) and the exact divergence tr ∇s(x).

    .. math:: \nabla \cdot s = \sum_{i=1}^d e_i^\top (\nabla s)\, e_i

    by d Jacobian-vector products in forward mode, `chunk_size` coordinates at a time, so that
    memory does not grow with d beyond the chunk.

    Arguments:
        s: A vector field `(B, *event) -> (B, *event)`.
        x: Where, shape `(B, *event)`.
        chunk_size: Coordinates differentiated together.
    """
    check_batch(x)

    def partial(i: Tensor) -> tuple[Tensor, Tensor]:
        tangent = _basis_vector(i, x)
        value, derivative = torch.func.jvp(s, (x,), (tangent,))  # type: ignore[misc]
        return value, sum_event(derivative * tangent)

    # the value does not depend on i, so that it is computed once for all i of a chunk
    partials = torch.func.vmap(partial, out_dims=(None, 0))  # type: ignore[arg-type]
    index = torch.arange(x.shape[1:].numel(), device=x.device)
    parts = [partials(chunk) for chunk in index.split(chunk_size)]
    value = parts[0][0]
    check_same_shape(value, x, "the vector field")
    return value, torch.cat([diagonal for _, diagonal in parts]).sum(0)


def jacobian(s: ScoreFn, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch d d"]:
    """Return the Jacobian ∇s at every sample, entry [b, i, j] = ∂s_i/∂x_j."""
    check_batch(x)
    index = torch.arange(x.shape[1:].numel(), device=x.device)

    def column(j: Tensor) -> Tensor:
        return torch.func.jvp(s, (x,), (_basis_vector(j, x),))[1].flatten(1)

    return torch.func.vmap(column, out_dims=2)(index)


def hutchinson_trace(
    s: ScoreFn,
    x: Float[Tensor, "batch *event"],
    probes: Float[Tensor, "n_probes batch *event"],
) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, "n_probes batch"]]:
    r"""Return s(x) and vᵀ(∇s)v for each probe, `(n_probes, B)`.

    .. math:: E[v^\top (\nabla s) v] = \nabla \cdot s \quad \text{if} \quad E[v v^\top] = I

    Arguments:
        s: A vector field `(B, *event) -> (B, *event)`.
        x: Where, shape `(B, *event)`.
        probes: Probes from `probe`, shape `(n_probes, B, *event)`.

    References:
        | A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines
          (Hutchinson, 1990)
        | https://doi.org/10.1080/03610919008812866
    """
    check_batch(x)
    if probes.ndim != x.ndim + 1 or probes.shape[1:] != x.shape or len(probes) == 0:
        raise ValueError(
            f"probes must have shape (n_probes, {', '.join(map(str, x.shape))}), got "
            f"{tuple(probes.shape)}"
        )
    values = []
    for v in probes:
        value, jv = torch.func.jvp(s, (x,), (v,))  # type: ignore[misc]
        values.append(sum_event(v * jv))
    check_same_shape(value, x, "the vector field")
    return value, torch.stack(values)
