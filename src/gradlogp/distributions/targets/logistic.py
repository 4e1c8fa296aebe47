r"""Bayesian logistic regression on real data, with a reference posterior from a long run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ...core import check_batch, check_finite, check_number, check_points


class Reference(NamedTuple):
    """Posterior mean and covariance with their Monte Carlo standard errors, float64."""

    mean: Float[Tensor, " D"]
    mean_error: Float[Tensor, " D"]
    cov: Float[Tensor, "D D"]
    cov_error: Float[Tensor, "D D"]


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    r"""The posterior of logistic regression with a Gaussian prior, unnormalised.

    .. math::
        \log p(β) = \sum_{i=1}^N \left( y_i x_i^\top β - \log(1 + e^{x_i^\top β}) \right)
                    - \frac{\|β\|^2}{2τ^2}

    A constant column of `features` gives the intercept, to which the prior also applies.
    `log_prior`, `log_likelihood` and `data` are the arguments of `Observed`, for minibatches.

    Arguments:
        features: x, `(N, D)`.
        labels: y, `(N,)`, each 0 or 1.
        prior_scale: τ > 0.
        reference: Known mean and covariance of the posterior, or None.

    Raises:
        ValueError: For shapes that do not fit, or labels other than 0 and 1.
    """

    features: Float[Tensor, "N D"]
    labels: Float[Tensor, " N"]
    prior_scale: float = 1.0
    reference: Reference | None = None

    def __post_init__(self) -> None:
        check_points(self.features, "features")
        check_finite(self.labels, "labels")
        check_number(self.prior_scale, "prior_scale", above=0)
        if self.labels.shape != self.features.shape[:1]:
            raise ValueError(
                f"labels must have shape ({len(self.features)},), got {tuple(self.labels.shape)}"
            )
        if bool(((self.labels != 0) & (self.labels != 1)).any()):
            raise ValueError("labels must be 0 or 1")

    @classmethod
    def breast_cancer(cls) -> LogisticRegression:
        """Return the posterior on the breast cancer data of scikit-learn, with τ = 1.

        569 tumours, 30 features standardised to mean 0 and variance 1 and a constant: 31
        coefficients, the constant's first; 1 is benign. In float64. The reference is a long run of
        MALA, by `benchmarks/reference_logistic.py`.

        References:
            | Nuclear Feature Extraction for Breast Tumor Diagnosis (Street et al., 1993)
            | https://doi.org/10.1117/12.148698
        """
        from sklearn.datasets import load_breast_cancer

        x, y = load_breast_cancer(return_X_y=True)
        x, y = torch.as_tensor(x).double(), torch.as_tensor(y).double()
        x = (x - x.mean(0)) / x.std(0, correction=0)
        path = resources.files(__package__) / "breast_cancer.json"
        stored = json.loads(path.read_text(encoding="utf-8"))
        parts = (torch.tensor(stored[k], dtype=torch.float64) for k in Reference._fields)
        return cls(torch.cat([torch.ones_like(x[:, :1]), x], 1), y, 1.0, Reference(*parts))

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one draw."""
        return self.features.shape[1:]

    @property
    def mean(self) -> Float[Tensor, " D"]:
        """The reference's posterior mean.

        Raises:
            ValueError: If there is no reference.
        """
        return self._known().mean

    @property
    def cov(self) -> Float[Tensor, "D D"]:
        """The reference's posterior covariance.

        Raises:
            ValueError: If there is no reference.
        """
        return self._known().cov

    @property
    def log_normalizer(self) -> None:
        """None: the evidence is not known."""
        return None

    @property
    def data(self) -> Float[Tensor, "N columns"]:
        """Features and, in the last column, labels: the rows of `log_likelihood`."""
        return torch.cat([self.features, self.labels.to(self.features).unsqueeze(1)], 1)

    def log_prior(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return −‖β‖²/(2τ²)."""
        check_batch(x, self.event_shape)
        return -0.5 * x.square().sum(1) / self.prior_scale**2

    def log_likelihood(
        self, x: Float[Tensor, "batch D"], rows: Float[Tensor, "n columns"]
    ) -> Float[Tensor, "batch n"]:
        """Return log p(y_i | x_i, β) for every β and every row."""
        logit = x @ rows[:, :-1].mT
        return rows[:, -1] * logit - F.softplus(logit)

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(β) + const."""
        logit, y = self._logit(x)
        return (y * logit - F.softplus(logit)).sum(1) + self.log_prior(x)

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return Σ (y_i − σ(x_iᵀβ)) x_i − β/τ²."""
        logit, y = self._logit(x)
        return (y - torch.sigmoid(logit)) @ self.features.to(x) - x / self.prior_scale**2

    def _logit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_batch(x, self.event_shape)
        return x @ self.features.to(x).mT, self.labels.to(x)

    def _known(self) -> Reference:
        if self.reference is None:
            raise ValueError("this posterior has no reference; breast_cancer() has one")
        return self.reference
