r"""Fisher divergence, exact distances of two Gaussians, and two identities of every score.

For p with score s on its own samples, and where p vanishes fast enough at the boundary of its support,

    E_p[s] = 0,    E_p‖s‖² = −E_p[tr ∇s]:

Stein's identity for a constant and for s itself. A gap between the sides is a boundary term, a
wrong score, or a sign that the samples have a different law.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...calculus.reverse import jacobian_trace
from ...core import (
    Estimate,
    ScoreFn,
    check_count,
    check_finite,
    check_function,
    check_kind,
    check_points,
    evaluate,
    finite_result,
    mean_and_error,
    sum_event,
)
from ...distributions.analytic import Gaussian
from ...distributions.analytic.covariance import Covariance


def _laws(p: Gaussian, q: Gaussian, density: bool) -> tuple[Tensor, Covariance, Covariance]:
    """Return m_p − m_q and both covariances in float64, invertible if a `density` is needed."""
    for name, law in (("p", p), ("q", q)):
        check_kind(law, name, Gaussian, "a Gaussian")
        if law.mean.ndim != 1:
            raise ValueError(
                f"{name} was noised for {len(law.mean)} samples; noise it with () α, σ"
            )
        # the eigenvalues that the law was made with: those of its matrix are rounded once more
        if density and bool((law._cov.w == 0).any()):
            raise ValueError(
                f"the covariance of {name} is singular, so there is no density; noise it with "
                ".noised(alpha, sigma), or use gaussian_wasserstein"
            )
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"p and q must have the same dimension, got {len(p.mean)} and {len(q.mean)}"
        )
    like = torch.empty((), dtype=torch.float64, device=p.mean.device)
    return p.mean.to(like) - q.mean.to(like), p._cov.to(like), q._cov.to(like)


def gaussian_fisher(p: Gaussian, q: Gaussian) -> float:
    r"""Fisher divergence of Gaussians, :math:`D_F(p \| q) = \tfrac12 E_p \|s_p - s_q\|^2`.

    .. math::
        D_F = \tfrac12 \left( \operatorname{tr}[(P_q - P_p) S_p (P_q - P_p)]
              + \|P_q (m_p - m_q)\|^2 \right)

    with P = S⁻¹; in float64. It is not symmetric.

    Arguments:
        p: The law to average over.
        q: The law compared with it.

    Raises:
        ValueError: For different dimensions or a singular covariance.

    References:
        | Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005)
        | https://jmlr.org/papers/v6/hyvarinen05a.html
    """
    shift, S_p, S_q = _laws(p, q, density=True)
    P_q = S_q.matrix(1 / S_q.w)
    # tr[(P_q − P_p) S_p (P_q − P_p)] as a sum of squares, which rounding cannot make negative
    gap = P_q @ S_p.matrix(S_p.w.sqrt()) - S_p.matrix(S_p.w.rsqrt())
    return 0.5 * float(gap.square().sum() + (P_q @ shift).square().sum())


def gaussian_kl(p: Gaussian, q: Gaussian) -> float:
    r"""Kullback–Leibler divergence of Gaussians, :math:`KL(p \| q) = E_p[\log p - \log q]`.

    .. math::
        KL = \tfrac12 \left( \operatorname{tr}(P_q S_p) - d + \log\det S_q - \log\det S_p
             + (m_p - m_q)^\top P_q (m_p - m_q) \right)

    with P = S⁻¹; in nats, in float64. It is not symmetric. Arguments and errors are those of
    `gaussian_fisher`.

    References:
        | On Information and Sufficiency (Kullback & Leibler, 1951)
        | https://doi.org/10.1214/aoms/1177729694

    Examples:
        >>> p, q = glp.Gaussian([0.0]), glp.Gaussian([1.0], 2.0)
        >>> round(glp.metrics.gaussian_kl(p, q), 4)  # ½ (½ + ½ − 1 + log 2)
        0.3466
    """
    shift, S_p, S_q = _laws(p, q, density=True)
    # with σ_i the singular values of S_q^{-1/2} S_p^{1/2} the first four terms are
    # Σ σ_i² − 1 − log σ_i²: every summand is at least 0, so nothing cancels at p = q
    ratio = torch.linalg.svdvals(S_q.matrix(S_q.w.rsqrt()) @ S_p.matrix(S_p.w.sqrt()))
    excess = (ratio - 1) * (ratio + 1)
    quad = (S_q.rotate(shift.unsqueeze(0)).square() / S_q.w).sum()
    return 0.5 * float((excess - excess.log1p()).sum() + quad)


def gaussian_wasserstein(p: Gaussian, q: Gaussian) -> float:
    r"""2-Wasserstein distance of Gaussians (not squared).

    .. math::
        W_2^2 = \|m_p - m_q\|^2
          + \operatorname{tr}\left(S_p + S_q - 2 (S_p^{1/2} S_q S_p^{1/2})^{1/2}\right)
          = \|m_p - m_q\|^2 + \min_{U^\top U = I} \|S_p^{1/2} - S_q^{1/2} U\|_F^2

    The second form is computed, in float64: U is the orthogonal factor of S_q^{1/2} S_p^{1/2},
    there is no cancellation if p is close to q, and singular covariances need no special
    treatment.

    Arguments:
        p: The first law, whose covariance may be singular.
        q: The second law.

    Raises:
        ValueError: For different dimensions.

    References:
        | On the Bures–Wasserstein Distance Between Positive Definite Matrices
          (Bhatia, Jain & Lim, 2019)
        | https://arxiv.org/abs/1712.01504

    Examples:
        >>> p, q = glp.Gaussian([0.0]), glp.Gaussian([3.0], 25.0)
        >>> glp.metrics.gaussian_wasserstein(p, q)  # √(3² + (5 − 1)²)
        5.0
    """
    shift, S_p, S_q = _laws(p, q, density=False)
    A, B = (S.matrix(S.w.sqrt()) for S in (S_p, S_q))
    W, _, Vh = torch.linalg.svd(B @ A)
    return math.sqrt(float(shift.square().sum() + (A - B @ W @ Vh).square().sum()))


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
    check_points(x, least=2)
    s = evaluate(score, x, finite=True)
    target = evaluate(target_score, x, "target_score", finite=True)
    return finite_result(mean_and_error(0.5 * sum_event((s - target).square())))


class FisherInformation(NamedTuple):
    """E‖s‖², −E tr ∇s, and the first minus the second on the same samples."""

    squared: Estimate
    curvature: Estimate
    difference: Estimate


def fisher_information(
    score: ScoreFn, x: Float[Tensor, "batch *event"], *, chunk_size: int = 64
) -> FisherInformation:
    r"""Fisher information of a density (about its location) in two ways.

    .. math:: J(p) = E_p\|s\|^2 = -E_p[\operatorname{tr} ∇s]

    They agree if p s vanishes at the boundary of the support and at infinity; the exponential law
    on the half-line has s = −1, so 1 on the left and 0 on the right. The difference is computed
    sample by sample, so that its error is that of the pairs.

    Arguments:
        score: The score of the law of x.
        x: Samples, `(B, *event)`.
        chunk_size: Coordinates differentiated together.

    Raises:
        ValueError: For a wrong shape.

    References:
        | Estimation of Non-Normalized Statistical Models by Score Matching (Hyvärinen, 2005)
        | https://jmlr.org/papers/v6/hyvarinen05a.html
    """
    check_points(x, least=2)
    check_function(score, "score")
    check_count(chunk_size, "chunk_size")
    s, trace = jacobian_trace(score, x, chunk_size)
    check_finite(s, "score")
    squared, curvature = sum_event(s.detach().double().square()), -trace.detach().double()
    parts = squared, curvature, squared - curvature
    return finite_result(FisherInformation(*map(mean_and_error, parts)))


class MeanScore(NamedTuple):
    """E[s], its standard error for each coordinate, and the p-value of E[s] = 0."""

    value: Tensor
    standard_error: Tensor
    p_value: float


def _hotelling(values: Tensor) -> float:
    """Return the p-value of mean 0 for independent rows `(n, d)`, n > d."""
    from scipy.stats import f

    n, d = values.shape
    mean = values.mean(0)
    w, U = torch.linalg.eigh(torch.cov(values.mT).reshape(d, d))
    spread = w > d * torch.finfo(w.dtype).eps * w[-1].abs()
    along = mean @ U
    # along a direction without variance the mean is known: it is 0 or it is not
    rounding = 1e-10 * values.square().mean().sqrt()
    if bool((along[~spread].abs() > rounding).any()):
        return 0.0
    r = int(spread.sum())
    if r == 0:
        return 1.0
    t2 = n * float((along[spread].square() / w[spread]).sum())
    return float(f.sf(t2 * (n - r) / (r * (n - 1)), r, n - r))


def mean_score(score: ScoreFn, x: Float[Tensor, "batch *event"]) -> MeanScore:
    r"""Mean of a score over samples of its law, which is 0: :math:`E_p[s] = \int ∇p = 0`.

    Stein's identity with a constant test function. The p-value is that of Hotelling's T² over all
    coordinates together, T² = n m̄ᵀ C⁻¹ m̄ with the sample mean m̄ and covariance C of s(x), exact
    for a normal s(x) and asymptotic otherwise. It is small if the density jumps at the boundary of
    its support, if the score is wrong, or if x has a different law.

    Arguments:
        score: The score of the law of x.
        x: Independent samples, `(B, *event)`, more than d of them.

    Raises:
        ValueError: For a wrong shape, or no more samples than coordinates.

    References:
        | The Generalization of Student's Ratio (Hotelling, 1931)
        | https://doi.org/10.1214/aoms/1177732979
        | A Kernelized Stein Discrepancy for Goodness-of-fit Tests (Liu, Lee & Jordan, 2016)
        | https://arxiv.org/abs/1602.03253
    """
    check_points(x)
    d = x.shape[1:].numel()
    if len(x) <= d:
        raise ValueError(f"x must hold more samples than its {d} coordinates, got {len(x)}")
    values = evaluate(score, x, finite=True).detach().double()
    error = values.std(0) / math.sqrt(len(x))
    mean = values.mean(0)
    check_finite(torch.stack([mean, error]), "the mean score at x")
    return MeanScore(mean, error, _hotelling(values.flatten(1)))
