r"""The joint law of x and a condition y in closed form, for comparison with a conditional score.

If (x, y) is a mixture Σ_k π_k N(μ_k, S_k), the law of x given y is a mixture again, with

.. math::
    π_k(y) ∝ π_k N(y; μ_{k,y}, S_{k,yy}), \quad
    m_k(y) = μ_{k,x} + S_{k,xy} S_{k,yy}^{-1} (y - μ_{k,y}), \quad
    C_k = S_{k,xx} - S_{k,xy} S_{k,yy}^{-1} S_{k,yx}

so that there are weights and means for each y, and the covariances are shared. `WithHoles`
conditions on any entries, which may differ from row to row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core import check_batch, check_count, check_kind, per_sample, rand_like, randn_like
from .covariance import as_parameter, conditional
from .gaussian import Gaussian
from .mixture import GaussianMixture

LawOfXY = Gaussian | GaussianMixture


@dataclass(frozen=True, eq=False)
class ConditionalMixture:
    """A mixture whose weights and means differ from row to row, noised or not.

    Arguments:
        log_weights: log π, `(R, K)`, R the number of conditions.
        means: `(R, K, D)`.
        variances: The eigenvalues of every covariance, `(K, D)` or `(R, K, D)`.
        basis: Its eigenvectors, `(K, D, D)` or `(R, K, D, D)`.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor
    basis: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of what is drawn."""
        return self.means.dtype

    @property
    def event_shape(self) -> torch.Size:
        """(D,)."""
        return self.means.shape[2:]

    @property
    def n_rows(self) -> int:
        """R."""
        return len(self.means)

    def rows(self, index: slice | Tensor) -> ConditionalMixture:
        """Return the law of these rows; itself where there is one for all."""
        if self.n_rows == 1:
            return self
        variances = self.variances[index] if self.variances.ndim == 3 else self.variances
        basis = self.basis[index] if self.basis.ndim == 4 else self.basis
        return ConditionalMixture(self.log_weights[index], self.means[index], variances, basis)

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-weights of each component at x, Uᵀ(x − μ) and the variances, all in x's dtype."""
        check_batch(x, self.event_shape)
        if self.n_rows not in (1, len(x)):
            raise ValueError(f"this law has {self.n_rows} rows, but got {len(x)} points")
        w, U = self.variances.to(x), self.basis.to(x)
        y = _turn(x.unsqueeze(1) - self.means.to(x), U)
        log_p = -0.5 * (y.square() / w + (2 * math.pi * w).log()).sum(-1)
        return self.log_weights.to(x) + log_p, y, w

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), `(B,)`."""
        return self._at(x)[0].logsumexp(-1)

    def score(self, x: Tensor) -> Tensor:
        """Return ∇ log p(x)."""
        log_joint, y, w = self._at(x)
        each = -_turn(y / w, self.basis.to(x).mT)
        return (log_joint.softmax(-1).unsqueeze(-1) * each).sum(1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw one point for each row, or n of the only row."""
        check_count(n, "n")
        if self.n_rows not in (1, n):
            raise ValueError(f"this law has {self.n_rows} rows, but {n} draws were requested")
        like = self.means.new_empty(n)
        edges = self.log_weights.softmax(-1).cumsum(-1)
        above = rand_like(like, generator).unsqueeze(-1) > edges
        k = above.sum(-1).clamp(max=edges.shape[1] - 1)
        row = torch.arange(n) if self.n_rows > 1 else torch.zeros(n, dtype=torch.long)
        w = self.variances[row, k] if self.variances.ndim == 3 else self.variances[k]
        z = randn_like(self.means.new_empty(n, *self.event_shape), generator) * w.sqrt()
        U = self.basis[row, k] if self.basis.ndim == 4 else self.basis[k]
        return self.means[row, k] + _turn(z, U.mT)

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> ConditionalMixture:
        """Return the law of α X + σ Z; α and σ `()` or one for each row."""
        a = torch.as_tensor(alpha).to(self.means)
        b = torch.as_tensor(sigma).to(self.means)
        each = a.ndim + b.ndim > 0
        R = max(self.n_rows, a.numel(), b.numel())
        a3, b3 = (v.expand(R).reshape(R, 1, 1) if each else v for v in (a, b))
        means = (a3 * self.means).expand(R, *self.means.shape[1:]) if each else a * self.means
        log_weights = self.log_weights.expand(len(means), -1)
        return ConditionalMixture(log_weights, means, a3**2 * self.variances + b3**2, self.basis)

    def posterior_mean(self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """Return E[X | α X + σ Z = x_t]."""
        a = per_sample(alpha, x_t, "alpha").unsqueeze(-1)
        log_joint, y, w = self.noised(alpha, sigma)._at(x_t)
        clean = self.variances.to(x_t)
        shift = _turn(a * clean / w * y, self.basis.to(x_t).mT)
        each = self.means.to(x_t) + shift
        return (log_joint.softmax(-1).unsqueeze(-1) * each).sum(1)


def _turn(v: Tensor, U: Tensor) -> Tensor:
    """Return vᵀ U along the last axis, over any axes before it."""
    return (v.unsqueeze(-2) @ U).squeeze(-2)


def _components(law: LawOfXY) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, means and covariances of a mixture, or of a Gaussian as one of one component."""
    if isinstance(law, Gaussian):
        return torch.ones(1, dtype=law.mean.dtype), law.mean[None], law.cov[None]
    return law.weights, law.means, law.covs


class Joint(GaussianMixture):
    """A law of (x, y) as the law of x alone, a mixture, that can be conditioned on y.

    Arguments:
        law: The joint law, a Gaussian or a mixture; y are the last entries.
        n_condition: Number of entries of y.

    Raises:
        ValueError: Unless at least one entry is left for x and one for y.
    """

    def __init__(self, law: LawOfXY, n_condition: int) -> None:
        check_kind(law, "law", LawOfXY, "a Gaussian or a GaussianMixture")
        check_count(n_condition, "n_condition")
        d = law.event_shape[0] - n_condition
        if d < 1:
            raise ValueError(
                f"n_condition must leave at least one of the {law.event_shape[0]} entries for x"
            )
        weights, means, covs = _components(law)
        super().__init__(weights, means[:, :d], covs[:, :d, :d])
        self.n_condition, self.dtype = n_condition, law.dtype
        self._y = GaussianMixture(weights, means[:, d:], covs[:, d:, d:])
        gain = torch.linalg.solve(covs[:, d:, d:], covs[:, d:, :d]).mT
        self._x_mean, self._gain = means[:, :d], gain
        left = covs[:, :d, :d] - gain @ covs[:, d:, :d]
        self._variances, self._basis = torch.linalg.eigh((left + left.mT) / 2)
        self._log_weights = weights.log()

    def given(self, condition: Tensor | int) -> ConditionalMixture:
        """Return the law of x given y, one for each row of y `(1, k)` or `(B, k)`.

        Raises:
            ValueError: If y is not of that shape.
        """
        if not isinstance(condition, Tensor):
            raise ValueError(f"the condition must be a tensor (B, {self.n_condition})")
        y = condition.to(self._gain)
        check_batch(y, torch.Size([self.n_condition]), "the condition")
        away = y.unsqueeze(1) - self._y.means.to(y)
        parts = zip(self._y.means, self._y.covs, self._log_weights, strict=True)
        log_joint = torch.stack([Gaussian(m, S).log_prob(y) + w for m, S, w in parts], -1)
        means = self._x_mean + torch.einsum("kxy,bky->bkx", self._gain, away)
        return ConditionalMixture(log_joint.log_softmax(-1), means, self._variances, self._basis)


class Classes(Joint):
    """The law of all classes together, which can be conditioned on the class.

    Arguments:
        laws: The law of each class, a Gaussian or a mixture.
        weights: Probabilities of the classes, which sum to 1; equal by default.

    Raises:
        ValueError: For no class, weights that do not fit, or laws of different dimensions.
    """

    def __init__(self, laws: Sequence[LawOfXY], weights: Sequence[float] | None = None) -> None:
        check_kind(laws, "laws", Sequence, "a sequence of laws, one for each class")
        check_count(len(laws), "the number of laws")
        for law in laws:
            check_kind(law, "each of laws", LawOfXY, "a Gaussian or a GaussianMixture")
        if len({law.event_shape for law in laws}) > 1:
            raise ValueError("all laws must have the same dimension")
        given = [1 / len(laws)] * len(laws) if weights is None else weights
        shares = as_parameter(given, "weights")
        if shares.shape != (len(laws),):
            raise ValueError(f"weights must have one entry for each of the {len(laws)} laws")
        parts = [_components(law) for law in laws]
        all_weights = torch.cat([s * w for s, (w, _, _) in zip(shares, parts, strict=True)])
        means, covs = (torch.cat([part[i] for part in parts]) for i in (1, 2))
        GaussianMixture.__init__(self, all_weights, means, covs)
        self.n_classes, self.dtype = len(laws), laws[0].dtype
        self._of = torch.cat([torch.full((len(w),), i) for i, (w, _, _) in enumerate(parts)])
        self._x_mean, self._log_weights = means, all_weights.log()
        self._variances, self._basis = torch.linalg.eigh(covs)

    def given(self, condition: Tensor | int) -> ConditionalMixture:
        """Return the law of a class, an int, or one for each row of int64 `(1,)` or `(B,)`.

        Raises:
            ValueError: If there is no such class.
        """
        if isinstance(condition, int):
            check_count(condition, "condition, a class,", 0, most=self.n_classes - 1)
        c = torch.tensor([condition]) if isinstance(condition, int) else condition
        good = isinstance(c, Tensor) and c.dtype == torch.int64 and c.ndim == 1 and len(c) > 0
        if not good or bool(((c < 0) | (c >= self.n_classes)).any()):
            raise ValueError(
                f"the condition must be a class from 0 to {self.n_classes - 1}, an int or int64 (B,)"
            )
        mine = self._of == c.unsqueeze(1)
        log_weights = self._log_weights.masked_fill(~mine, -math.inf).log_softmax(-1)
        means = self._x_mean.expand(len(c), *self._x_mean.shape)
        return ConditionalMixture(log_weights, means, self._variances, self._basis)


class WithHoles(GaussianMixture):
    r"""A law of x that can be conditioned on any part of x, a different part in each row.

    `given(x)`, with NaN where x is unknown, is again a law of all of x. In it the known entries
    are independent of everything else, with the mean and variance that they have in the law:

    .. math:: p(x_u \mid x_k) \prod_{i\ known} N(x_i; m_i, v_i)

    so that a batch can contain rows with different unknown entries, as for a learned score.

    Arguments:
        law: A Gaussian or a mixture.
    """

    def __init__(self, law: LawOfXY) -> None:
        check_kind(law, "law", LawOfXY, "a Gaussian or a GaussianMixture")
        super().__init__(*_components(law))
        self.dtype = law.dtype

    def given(self, condition: Tensor) -> ConditionalMixture:
        """Return the law given rows `(1, D)` or `(B, D)`, with NaN in the unknown entries.

        Raises:
            ValueError: If the rows do not have that shape.
        """
        check_kind(condition, "condition", Tensor, "rows of x, with NaN where nothing is known")
        x = condition.to(self.means)
        if x.ndim != 2 or x.shape[1:] != self.event_shape or not len(x) or bool(x.isinf().any()):
            raise ValueError(
                f"the condition must have shape (1 or B, {self.event_shape[0]}), NaN where nothing is "
                f"known and finite elsewhere; got {tuple(x.shape)}"
            )
        R, K, D = len(x), *self.means.shape
        log_weights = self.weights.log().expand(R, K).clone()
        means = self.mean.expand(R, K, D).clone()
        covs = self.cov.diagonal().diag_embed().expand(R, K, D, D).clone()
        patterns, which = torch.unique(~x.isnan(), dim=0, return_inverse=True)
        for i, known in enumerate(patterns):
            rows = (which == i).nonzero()[:, 0]
            u, k = (~known).nonzero()[:, 0], known.nonzero()[:, 0]
            for j, (mean, cov) in enumerate(zip(self.means, self.covs, strict=True)):
                part, left = conditional(mean, cov, k, x[rows][:, k])
                means[rows[:, None], j, u] = part
                covs[rows[:, None, None], j, u[:, None], u] = left
                if len(k):
                    law = Gaussian(mean[k], cov[k][:, k])
                    log_weights[rows, j] += law.log_prob(x[rows][:, k])
        variances, basis = torch.linalg.eigh(covs)
        return ConditionalMixture(log_weights.log_softmax(-1), means, variances, basis)
