"""The covariance of few rows in many columns, shrunk towards its diagonal."""

from __future__ import annotations

import torch
from torch import Tensor

from .shared import FLOOR


def shrunk_covariance(z: Tensor) -> Tensor:
    r"""Return the covariance of rows `(N, d)`, (1 − ρ) S + ρ diag(S) with ρ by cross-validation.

    If there are few rows for d² entries, the sample covariance has directions that are far too
    thin, which makes new rows very unlikely. ρ maximises the likelihood of each quarter under the
    fit to the others. With N ≥ 20 d it is 0.

    References:
        | A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices (Ledoit & Wolf, 2004)
        | https://doi.org/10.1016/S0047-259X(03)00096-4
    """
    n, d = z.shape
    S = _covariance(z)
    if n >= 20 * d or n < 8:
        return S if n >= 20 * d else _towards_diagonal(S, 0.5)
    rates = [0.0, *(10**-k for k in (4, 3.5, 3, 2.5, 2, 1.5, 1, 0.5))]
    gains = torch.zeros(len(rates), dtype=torch.float64)
    for fold in range(4):
        test = torch.arange(n) % 4 == fold
        y, within = z[test] - z[~test].mean(0), _covariance(z[~test])
        scale = within.diagonal().clamp(min=torch.finfo(z.dtype).tiny).sqrt()
        w, U = torch.linalg.eigh(within / torch.outer(scale, scale))
        y = ((y / scale) @ U).square().sum(0) / test.sum()
        for i, rate in enumerate(rates):
            v = ((1 - rate) * w.clamp(min=0) + rate).clamp(min=FLOOR)
            gains[i] -= (y / v + v.log()).sum()
    return _towards_diagonal(S, rates[int(gains.argmax())])


def _covariance(z: Tensor) -> Tensor:
    y = z - z.mean(0)
    return y.mT @ y / len(z)


def _towards_diagonal(S: Tensor, rate: float) -> Tensor:
    return (1 - rate) * S + rate * torch.diag(S.diagonal())
