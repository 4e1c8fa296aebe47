r"""Is a vector field the score of anything? Its rotation, and log-density differences along paths.

A field s on R^d is a gradient if and only if its Jacobian J is symmetric everywhere, and then its
integral along a path depends only on the end points: it is the difference of log p. A network
trained as a score does not satisfy this constraint in general.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ...calculus.reverse import jacobian, probe
from ...core import (
    Estimate,
    Generator,
    NoiseSource,
    ScoreFn,
    check_count,
    check_finite,
    check_function,
    check_generator,
    check_points,
    check_same_shape,
    evaluate,
    finite_result,
    mean_and_error,
    per_sample,
    sum_event,
)


class Conservativity(NamedTuple):
    """E‖(J − Jᵀ)/2‖_F², and its ratio to E‖J‖_F² in [0, 1]: 0 for a gradient."""

    rotation: Estimate
    ratio: Estimate


def _vjp(s: Tensor, x: Tensor, v: Tensor, create_graph: bool = False) -> Tensor:
    """Return Jᵀ v."""
    if s.requires_grad:
        (g,) = torch.autograd.grad(
            s, x, v, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
        if g is not None:
            return g
    raise ValueError(
        "the score does not depend on x through differentiable operations: a score that detaches x, "
        "runs under torch.no_grad(), or calls autograd.grad without create_graph=True has no "
        "Jacobian here"
    )


def _norms(score: ScoreFn, x: Tensor, probes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return ‖(J − Jᵀ)/2‖_F² and ‖J‖_F² for every sample, or their means over some probes."""
    if probes is None:
        J = jacobian(score, x).detach().double()
        return sum_event(((J - J.mT) / 2).square()), sum_event(J.square())
    leaf = x.detach().requires_grad_()
    s = score(leaf)
    check_same_shape(s, x, "score")
    # u -> Jᵀ u is linear, so that its own vjp at any u is J v: forward mode from reverse mode,
    # also for fields that call autograd.grad and therefore know no forward mode
    u = torch.zeros_like(x, requires_grad=True)
    transposed = _vjp(s, leaf, u, create_graph=True)
    rotation, total = [], []
    for v in probes:
        Jt_v, J_v = (g.detach().double() for g in (_vjp(s, leaf, v), _vjp(transposed, u, v)))
        rotation.append(sum_event(((J_v - Jt_v) / 2).square()))
        # either square would do; with both the ratio cannot exceed 1
        total.append(sum_event(J_v.square() + Jt_v.square()) / 2)
    return torch.stack(rotation).mean(0), torch.stack(total).mean(0)


@torch.enable_grad()
def conservativity(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    n_probes: int | None = None,
    *,
    generator: Generator | None = None,
    chunk_size: int = 256,
) -> Conservativity:
    r"""How far a vector field is from a gradient, by the antisymmetric part of its Jacobian J.

    .. math::
        \text{rotation} = E\left\|\tfrac{J - J^\top}{2}\right\|_F^2, \qquad
        \text{ratio} = \frac{\text{rotation}}{E\|J\|_F^2} \in [0, 1]

    The ratio is 0 for a gradient, 1 where J is antisymmetric, and about (d − 1)/2d for a matrix
    without any structure. Exact with d products vᵀJ per point; with probes v, E[v vᵀ] = I, from
    E‖(J − Jᵀ)v‖² = ‖J − Jᵀ‖_F², one vᵀJ and one J v each, without bias in numerator and
    denominator. Standard errors are over the samples, and that of the ratio is by the delta
    method.

    Arguments:
        score: The field, differentiable by autograd in reverse mode (twice, with probes).
        x: Samples of the law to average over, `(B, *event)`.
        n_probes: Number of Rademacher probes per sample; None for the exact Jacobian.
        generator: Source of the probes.
        chunk_size: Number of samples processed together; J has d² numbers for each.

    Returns:
        Rotation and ratio; the ratio is NaN if J is 0 at all samples.

    Raises:
        ValueError: For a wrong shape, or a score that autograd cannot differentiate.

    References:
        | On Investigating the Conservative Property of Score-Based Generative Models
          (Chao et al., 2023)
        | https://arxiv.org/abs/2209.12753
        | Should EBMs Model the Energy or the Score? (Salimans & Ho, 2021)
        | https://openreview.net/forum?id=9AS-TF2jRNb
    """
    check_points(x, least=2)
    check_function(score, "score")
    check_count(chunk_size, "chunk_size")
    check_generator(generator, NoiseSource)
    points = x.split(chunk_size)
    probes: Sequence[Tensor | None] = [None] * len(points)
    if n_probes is not None:
        check_count(n_probes, "n_probes")
        v = torch.stack([probe("rademacher", x, generator) for _ in range(n_probes)])
        probes = v.split(chunk_size, dim=1)
    parts = [_norms(score, *pair) for pair in zip(points, probes, strict=True)]
    rotation, total = (torch.cat(values) for values in zip(*parts, strict=True))
    scale = total.mean()
    ratio = rotation.mean() / scale
    error = mean_and_error((rotation - ratio * total) / scale).standard_error
    return Conservativity(finite_result(mean_and_error(rotation)), Estimate(float(ratio), error))


class LogDensityDifference(NamedTuple):
    """log p(b) − log p(a), and how far other paths and fewer nodes are from it, each `(B,)`."""

    value: Float[Tensor, " batch"]
    path_dependence: Float[Tensor, " batch"]
    quadrature_error: Float[Tensor, " batch"]


Curve = Callable[[Tensor], tuple[Tensor, Tensor]]
"""u in [0, 1], `(B,)`, to a point and the velocity dγ/du there, each `(B, *event)`."""


def _segment(a: Tensor, b: Tensor) -> Curve:
    return lambda u: (a + per_sample(u, a, "u") * (b - a), b - a)


def _integrals(
    score: ScoreFn, curves: list[Curve], like: Tensor, n_nodes: int, n_panels: int
) -> tuple[Tensor, Tensor]:
    """Return ∫ s·γ' du over consecutive curves, and the change from half as many panels."""
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)

    def composite(panels: int) -> Tensor:
        total = like.new_zeros(len(like), dtype=torch.float64)
        for curve in curves:
            for k in range(panels):
                for node, weight in zip(nodes, weights, strict=True):
                    u = like.new_full((len(like),), (k + (node + 1) / 2) / panels)
                    x, velocity = curve(u)
                    s = evaluate(score, x, finite=True).detach()
                    total += weight / (2 * panels) * sum_event(s.double() * velocity.double())
        return total

    fine = composite(n_panels)
    return fine, (fine - composite(n_panels // 2)).abs()


def _corners(a: Tensor, b: Tensor) -> list[Tensor]:
    """Return two points beside the middle of a and b, at right angles to b − a."""
    middle, delta = (a + b) / 2, (b - a).flatten(1)
    length = delta.norm(dim=1, keepdim=True)
    unit = delta / length.clamp(min=torch.finfo(a.dtype).tiny)
    corners = []
    # Fixed directions that lean on every coordinate, so that a rotation in any plane shows; two of
    # them, since b − a may be parallel to one. In one dimension nothing remains: there is no detour.
    for wave in (torch.cos, torch.sin):
        c = wave(torch.arange(1, delta.shape[1] + 1, device=a.device, dtype=a.dtype) ** 2)
        c = c / c.norm()
        across = c - (unit @ c).unsqueeze(1) * unit
        corners.append(middle + (0.5 * length * across).reshape(a.shape))
    return corners


def log_density_difference(
    score: ScoreFn,
    a: Float[Tensor, "batch *event"],
    b: Float[Tensor, "batch *event"],
    path: Callable[[Tensor], Tensor] | None = None,
    *,
    via: Float[Tensor, "batch *event"] | None = None,
    n_nodes: int = 16,
    n_panels: int = 8,
) -> LogDensityDifference:
    r"""Difference log p(b) − log p(a) from a score, as its integral along a path γ from a to b.

    .. math:: \log p(b) - \log p(a) = \int_0^1 s(γ(u)) \cdot γ'(u)\, du

    by Gauss–Legendre quadrature. For a field that is not a gradient the value depends on the path.
    The same integral is therefore computed along other paths, and the largest difference is the
    path dependence: the circulation of the field around the enclosed surface, 0 for a gradient. It
    is meaningful if it exceeds the quadrature error, the largest change among the paths with half
    the panels. A change of s between two modes that is narrower than the spacing of the nodes may
    be missed.

    Arguments:
        score: The field.
        a: Start, `(B, *event)`.
        b: End, `(B, *event)`.
        path: γ, from u in [0, 1] `(B,)` to points `(B, *event)`, each from its own u, with γ(0) = a
            and γ(1) = b; None for the straight line. It is differentiated in forward mode.
        via: Corner of the other path a → via → b. By default two corners beside the midpoint; if
            `path` is given, it is also compared with the straight line.
        n_nodes: Nodes per panel.
        n_panels: Number of panels of equal length in u, for each segment of a path; an even
            number.

    Raises:
        ValueError: For shapes that differ, or a path that does not lead from a to b.

    References:
        | Simulating Normalizing Constants: From Importance Sampling to Bridge Sampling to Path
          Sampling (Gelman & Meng, 1998)
        | https://doi.org/10.1214/ss/1028905934
    """
    check_points(a, "a")
    check_points(b, "b", a.shape[1:])
    check_function(score, "score")
    if path is not None:
        check_function(path, "path")
    if b.shape != a.shape or b.dtype != a.dtype:
        raise ValueError(
            f"a and b must have one shape and dtype, got {tuple(a.shape)} {a.dtype} and "
            f"{tuple(b.shape)} {b.dtype}"
        )
    check_count(n_nodes, "n_nodes")
    check_count(n_panels, "n_panels", 2)
    if n_panels % 2:
        raise ValueError(f"n_panels must be even, got {n_panels}")
    straight = [_segment(a, b)]
    paths = [straight]
    if path is not None:
        for name, end, point in ((0, a, "a"), (1, b, "b")):
            found = path(a.new_full((len(a),), float(name)))
            check_same_shape(found, a, "path")
            size = 1 + float(torch.maximum(a.abs(), b.abs()).max())
            if not float((found - end).abs().max()) <= math.sqrt(torch.finfo(a.dtype).eps) * size:
                raise ValueError(f"path must lead from a to b, but path({name}) is not {point}")
        along: Any = lambda u: torch.func.jvp(path, (u,), (torch.ones_like(u),))
        paths = [[along], straight]
    if via is not None:
        check_points(via, "via", a.shape[1:])
        if via.shape != a.shape:
            raise ValueError(f"via must have shape {tuple(a.shape)}, got {tuple(via.shape)}")
    for corner in [via] if via is not None else _corners(a, b):
        paths.append([_segment(a, corner), _segment(corner, b)])
    results = [_integrals(score, curves, a, n_nodes, n_panels) for curves in paths]
    value = results[0][0]
    spread = torch.stack([(other - value).abs() for other, _ in results[1:]]).amax(0)
    error = torch.stack([change for _, change in results]).amax(0)
    what = "the integral of score from a to b along path or via"
    check_finite(torch.stack([value, spread, error], 1), what)
    return LogDensityDifference(*(v.to(a.dtype) for v in (value, spread, error)))
