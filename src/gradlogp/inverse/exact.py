r"""Posteriors in closed form: a Gaussian or a Gaussian mixture, seen linearly with Gaussian noise."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from ..core import check_kind
from ..distributions.analytic import Gaussian, GaussianMixture
from .observation import Observation
from .operators import as_matrix

Law = TypeVar("Law", Gaussian, GaussianMixture)


def posterior(law: Law, observation: Observation) -> Law:
    r"""Return the law of x given y = A x + N(0, R), for x of a Gaussian or a Gaussian mixture.

    For N(μ, S), with the gain K = S Aᵀ (A S Aᵀ + R)⁻¹,

    .. math:: N(μ + K (y - A μ),\; (I - K A) S (I - K A)^\top + K R K^\top)

    and for a mixture that of every component, with weights π_k N(y; A μ_k, A S_k Aᵀ + R) divided
    by their sum. Noising this law gives the law of x_t given y, with which every approximation can
    be compared. Components whose weight underflows to 0 are omitted.

    Arguments:
        law: The prior.
        observation: One row y, by a linear operator.

    Raises:
        ValueError: For several rows, an operator that is not linear, or A S Aᵀ + R singular.

    Examples:
        >>> law = glp.Gaussian([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])
        >>> A = glp.inverse.Matrix(torch.tensor([[1.0, 0.0]]))
        >>> seen = glp.inverse.Observation(torch.tensor([[2.0]]), A, 1.0)
        >>> glp.inverse.posterior(law, seen).mean
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    check_kind(law, "law", Gaussian | GaussianMixture, "a Gaussian or a GaussianMixture")
    check_kind(observation, "observation", Observation, "an Observation, such as from observe")
    if len(observation.y) != 1:
        raise ValueError(
            f"one observation has one posterior, got {len(observation.y)} rows; pass y[i : i + 1]"
        )
    if isinstance(law, Gaussian):
        mean, cov, _ = _condition(law.mean[None], law.cov[None], observation)
        found = Gaussian(mean[0], cov[0])
    else:
        mean, cov, log_evidence = _condition(law.means, law.covs, observation)
        weights = (law.weights.log() + log_evidence).softmax(0)
        keep = weights > 0
        found = GaussianMixture(weights[keep], mean[keep], cov[keep])
    found.dtype = law.dtype
    return found


def _condition(
    mean: Tensor, cov: Tensor, observation: Observation
) -> tuple[Tensor, Tensor, Tensor]:
    """Return means `(K, D)`, covariances `(K, D, D)` and log-evidences `(K,)` given y."""
    y = observation.rows(mean[:1]).flatten(1)
    m = y.shape[1]
    A = as_matrix(observation.linear, mean.shape[1:], mean)
    eye = torch.eye(m).to(mean)
    R = observation.R.product(eye.reshape(m, *observation.y.shape[1:])).flatten(1)
    r = y - mean @ A.mT
    G = A @ cov @ A.mT + R
    L, info = torch.linalg.cholesky_ex(G)
    if bool((info > 0).any()):
        raise ValueError("A S Aᵀ + R is singular: y is already certain in some direction")
    K = torch.cholesky_solve(A @ cov, L).mT
    rest = torch.eye(mean.shape[1]).to(mean) - K @ A
    white = torch.linalg.solve_triangular(L, r.unsqueeze(-1), upper=False).squeeze(-1)
    log_det = 2 * L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    log_evidence = -0.5 * (white.square().sum(-1) + log_det + m * math.log(2 * math.pi))
    new = rest @ cov @ rest.mT + K @ R @ K.mT
    return mean + (K @ r.unsqueeze(-1)).squeeze(-1), (new + new.mT) / 2, log_evidence
