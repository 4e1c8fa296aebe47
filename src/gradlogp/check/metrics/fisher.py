"""Fisher divergence to a known score."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    Estimate,
    ScoreFn,
    check_batch,
    check_same_shape,
    mean_and_error,
    sum_event,
)


@torch.no_grad()
def fisher_divergence(
    score: ScoreFn, target_score: ScoreFn, x: Float[Tensor, "batch *event"]
) -> Estimate:
    r"""Fisher divergence :math:`D_F(p \| q) = \tfrac12 E_p \|s_p - s_q\|^2` over samples x of p.

    Blind to the weights of far modes: a small value does not certify them.

    Arguments:
        score: The model's score.
        target_score: The known score.
        x: Samples of the law to average over, `(B, *event)`.

    References:
        | Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005)
        | https://jmlr.org/papers/v6/hyvarinen05a.html
    """
    check_batch(x)
    s, target = score(x), target_score(x)
    check_same_shape(s, x, "score")
    check_same_shape(target, x, "target_score")
    return mean_and_error(0.5 * sum_event((s - target).square()))
