r"""Score matching without noise: explicit, implicit, sliced, and by finite differences.

All of them estimate the same J(θ) = ½ E‖s_θ − s‖² over the data, s = ∇ log p, up to ½ E‖s‖², which
does not depend on θ. They are based on one integration by parts,

    E[s_θ · s] = −E[∇ · s_θ],

which holds where p s_θ vanishes at infinity and at the boundary of the support, and where s_θ is
continuous: a network with jumps has a divergence that automatic differentiation does not see. For data
on a half line or in a box see `boundary.generalised`; for networks with jumps, denoising. Every
objective returns the loss of each sample, `(B,)`.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from ...calculus.reverse import Probe, hutchinson_trace, jacobian_trace, slices
from ...calculus.reverse import probe as draw_probe
from ...core import (
    Generator,
    ScoreFn,
    check_count,
    check_function,
    check_number,
    check_points,
    evaluate,
    per_sample,
    sum_event,
)


def explicit(
    score: ScoreFn, x: Float[Tensor, "batch *event"], target_score: ScoreFn
) -> Float[Tensor, " batch"]:
    r"""Explicit score matching, :math:`\tfrac12 \|s_θ(x) - s(x)\|^2`: the target score is known.

    An unbiased estimate of J(θ) = ½ E‖s_θ − s‖² itself, 0 at the minimum.

    Arguments:
        score: The model, `(B, *event) -> (B, *event)`.
        x: Points, `(B, *event)`.
        target_score: The known score s.

    Raises:
        ValueError: For a wrong shape, an empty batch, or points that are not finite.

    Examples:
        >>> law, x = glp.Gaussian([0.0]), torch.tensor([[0.0], [1.0]])
        >>> glp.objectives.explicit(lambda x: -2 * x, x, law.score)
        tensor([0.0000, 0.5000])
    """
    check_points(x)
    s, target = evaluate(score, x), evaluate(target_score, x, "target_score")
    return 0.5 * sum_event((s - target).square())


def implicit(
    score: ScoreFn, x: Float[Tensor, "batch *event"], *, chunk_size: int | None = None
) -> Float[Tensor, " batch"]:
    r"""Implicit score matching, exact, :math:`\nabla \cdot s_θ(x) + \tfrac12 \|s_θ(x)\|^2`.

    An unbiased estimate of J(θ) − ½ E‖s‖². For the score of an energy pass `as_score(f,
    "energy")`: its Laplacian costs half as much as the trace of a general field.

    Arguments:
        score: The model, `(B, *event) -> (B, *event)`.
        x: Data, `(B, *event)`.
        chunk_size: Coordinates differentiated together (`calculus.reverse.jacobian_trace`).

    Raises:
        ValueError: For a wrong shape, an empty batch, points that are not finite, or a score that
            does not depend on x differentiably.

    References:
        | Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005)
        | https://jmlr.org/papers/v6/hyvarinen05a.html

    Examples:
        >>> x = torch.tensor([[0.0], [1.0], [2.0]])
        >>> glp.objectives.implicit(lambda x: -x, x)  # ½ s² + s'
        tensor([-1.0000, -0.5000,  1.0000])
    """
    check_points(x)
    check_function(score, "score")
    s, trace = jacobian_trace(score, x, chunk_size)
    square = sum_event(s.square())
    if len(x) > 1 and not bool(trace.any()) and bool(square.any()):
        warnings.warn(
            "the trace of the Jacobian is exactly 0 at every point while the score is not: a piecewise "
            "linear energy (ReLU) has no second derivatives, and the loss drives the score to 0; "
            "use a smooth activation (SiLU, tanh), or objectives.denoising",
            stacklevel=2,
        )
    return trace + 0.5 * square


def sliced(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    n_slices: int = 1,
    probe: Probe = "rademacher",
    *,
    generator: Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Sliced score matching, :math:`v^\top (\nabla s_θ) v + \tfrac12 (v^\top s_θ)^2`.

    An unbiased estimate of J(θ) − ½ E‖s‖², averaged over `n_slices` probes v with E[v vᵀ] = I.

    Arguments:
        score: The model, `(B, *event) -> (B, *event)`.
        x: Data, `(B, *event)`.
        n_slices: Number of probes per sample.
        probe: Law of the probes: "gaussian", "rademacher", or "sphere", the sphere of radius √d.
        generator: Source of the probes.

    Raises:
        ValueError: For a wrong shape, an empty batch, points that are not finite, an unknown
            probe law, or a score that does not depend on x differentiably.

    References:
        | Sliced Score Matching: A Scalable Approach to Density and Score Estimation (Song et al., 2019)
        | https://arxiv.org/abs/1905.07088

    Examples:
        >>> x, g = torch.tensor([[0.0], [1.0]]), torch.Generator()
        >>> glp.objectives.sliced(lambda x: -x, x, generator=g)  # exact in one dimension
        tensor([-1.0000, -0.5000])
    """
    check_function(score, "score")
    along, form = slices(score, x, draw_probes(x, n_slices, probe, generator))
    return form + 0.5 * along.square().mean(0)


def sliced_vr(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    n_slices: int = 1,
    probe: Probe = "rademacher",
    *,
    generator: Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Sliced score matching with reduced variance, :math:`v^\top (\nabla s_θ) v + \tfrac12 \|s_θ\|^2`.

    An unbiased estimate of J(θ) − ½ E‖s‖²: `implicit` with Hutchinson's estimate of the trace. Its
    minimiser is the score only if E[v vᵀ] = I exactly (with E[v vᵀ] = c I it is c times the
    score), so every law of probes is scaled to that; the unit sphere is not available. Arguments,
    errors and the reference are those of `sliced`.
    """
    check_function(score, "score")
    s, forms = hutchinson_trace(score, x, draw_probes(x, n_slices, probe, generator))
    return forms.mean(0) + 0.5 * sum_event(s.square())


def draw_probes(x: Tensor, n_slices: int, probe: Probe, generator: Generator | None) -> Tensor:
    """Check x and draw probes, `(n_slices, B, *event)`."""
    check_points(x)
    check_count(n_slices, "n_slices")
    return torch.stack([draw_probe(probe, x.detach(), generator) for _ in range(n_slices)])


def finite_difference(
    score: ScoreFn,
    x: Float[Tensor, "batch *event"],
    n_slices: int = 1,
    probe: Probe = "rademacher",
    *,
    step: float | None = None,
    generator: Generator | None = None,
) -> Float[Tensor, " batch"]:
    r"""Sliced score matching without a second derivative: central differences along a probe v.

    .. math::
        \frac{v^\top (s_θ(x + h v) - s_θ(x - h v))}{2 h}
        + \tfrac12 \left\| \frac{s_θ(x + h v) + s_θ(x - h v)}{2} \right\|^2

    An estimate of J(θ) − ½ E‖s‖² whose bias is O(h²), and 0 for affine scores. It needs two
    evaluations for each probe, and no derivative of s in x. By default the step h is the
    cube root of the rounding unit of the dtype, times the root mean square of the entries of each
    sample where that is above 1. Other arguments, and errors, are those of `sliced`.

    References:
        | Efficient Learning of Generative Models via Finite-Difference Score Matching
          (Pang et al., 2020)
        | https://arxiv.org/abs/2007.03317
    """
    check_points(x)
    check_count(n_slices, "n_slices")
    like = x.detach()
    if step is None:
        most = (
            like.flatten(1).abs().amax(1).clamp(min=1.0)
        )  # the squares of large entries overflow
        scale = (most * (like.flatten(1) / most[:, None]).square().mean(1).sqrt()).clamp(min=1.0)
        h = per_sample(torch.finfo(x.dtype).eps ** (1 / 3) * scale, x)
    else:
        check_number(step, "step", above=0)
        h = per_sample(step, x)
    losses = []
    for _ in range(n_slices):
        v = draw_probe(probe, like, generator)
        above, below = evaluate(score, x + h * v), evaluate(score, x - h * v)
        slope = sum_event(v * (above - below)) / (2 * h.reshape(-1))
        losses.append(slope + 0.5 * sum_event(((above + below) / 2).square()))
    return torch.stack(losses).mean(0)
