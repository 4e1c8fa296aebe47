r"""Gaussian mixtures Σ_k π_k N(μ_k, S_k): every multi-modal check stands on them.

With responsibilities r_k(x) and component scores g_k(x) = −S_k⁻¹ (x − μ_k),

    s = Σ_k r_k g_k,    ∇² log p = Σ_k r_k ((g_k − s)(g_k − s)ᵀ − S_k⁻¹),

and α X + σ Z is the mixture of the noised components with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import check_batch, check_count, choice, randn_like, rows_held
from .covariance import (
    Covariance,
    as_parameter,
    check_index,
    coefficients,
    conditional,
    constant,
    covariance,
    vanishes,
)
from .forms import Form, form


class _Components(NamedTuple):
    """Per-component quantities at x, in the eigenbasis of each S_k."""

    S: Covariance
    y: Tensor  # (B, K, D), Uᵀ (x − μ_k)
    log_joint: Tensor  # (B, K), log π_k N(x; μ_k, S_k)

    @property
    def r(self) -> Tensor:
        """Responsibilities, `(B, K)`."""
        return self.log_joint.softmax(-1)


class GaussianMixture:
    r"""The mixture :math:`p = \sum_k π_k N(μ_k, S_k)`.

    Far outside, where every component underflows, log p and its derivatives stay finite: only
    differences of exponents enter.

    Wikipedia:
        https://wikipedia.org/wiki/Mixture_model

    Arguments:
        weights: π, shape `(K,)`, positive, summing to 1.
        means: μ, shape `(K, D)`.
        covs: S, matrices `(K, D, D)`, variances `(K, D)`, one variance each `(K,)`, or one for all.

    Raises:
        ValueError: For a shape that does not fit, weights that are not probabilities, or a matrix
            that is not a covariance.

    Examples:
        >>> law = glp.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], 1.0)
        >>> x = torch.tensor([[-2.0], [0.0], [1.0]])
        >>> law.score(x)
        tensor([[0.0013],
                [0.0000],
                [0.9281]])
        >>> law.responsibilities(x)[1:]
        tensor([[0.5000, 0.5000],
                [0.0180, 0.9820]])
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor | Sequence[Sequence[float]],
        covs: Tensor | Sequence[Any] | float = 1.0,
    ) -> None:
        pi, mu = as_parameter(weights, "weights"), as_parameter(means, "means")
        S = as_parameter(covs, "covs")
        if mu.ndim != 2 or 0 in mu.shape:
            raise ValueError(f"means must have shape (K, D), got {tuple(mu.shape)}")
        K, D = mu.shape
        if pi.shape != (K,):
            raise ValueError(f"weights must have shape ({K},), got {tuple(pi.shape)}")
        if not bool((pi > 0).all()) or abs(float(pi.sum()) - 1) > 1e-5:
            raise ValueError(
                "weights must be positive and sum to 1 (divide them by their sum), "
                f"got a sum of {float(pi.sum()):.6g} and a minimum of {float(pi.min()):.3g}"
            )
        kinds = {(): "scalar", (K,): "scalar", (K, D): "diagonal", (K, D, D): "full"}
        if tuple(S.shape) not in kinds:
            raise ValueError(
                f"covs must have shape (), ({K},), ({K}, {D}) or ({K}, {D}, {D}) for means of "
                f"shape ({K}, {D}), got {tuple(S.shape)}"
            )
        self.dtype = mu.dtype if isinstance(means, Tensor) else torch.get_default_dtype()
        dtype = torch.promote_types(mu.dtype, S.dtype)
        cov = covariance(S.to(dtype), D, kinds[tuple(S.shape)])
        if S.ndim == 0:
            cov = Covariance(cov.w.expand(K, D), None)
        self._set(pi.to(dtype) / pi.sum(), mu.to(dtype, copy=True), cov, vanishes(cov.w, 0.0))

    def _set(self, weights: Tensor, means: Tensor, cov: Covariance, singular: bool) -> None:
        self.weights, self.means, self._cov, self._singular = weights, means, cov, singular
        self._forms: dict[tuple[torch.dtype, torch.device], Form] = {}
        self._host: GaussianMixture | None = None  # the same law there

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one draw, `(D,)`."""
        return self.means.shape[-1:]

    @property
    def covs(self) -> Tensor:
        """The covariance matrices, `(K, D, D)`."""
        return self._cov.matrix(self._cov.w)

    @property
    def mean(self) -> Tensor:
        """The mean Σ_k π_k μ_k, `(D,)`."""
        return self.weights @ self.means

    @property
    def cov(self) -> Tensor:
        """The covariance Σ_k π_k (S_k + (μ_k − m)(μ_k − m)ᵀ), `(D, D)`."""
        spread = self.means - self.mean
        between = torch.einsum("k,ki,kj->ij", self.weights, spread, spread)
        return between + torch.einsum("k,kij->ij", self.weights, self.covs)

    def _form(self, x: Tensor) -> Form | None:
        """Return the constants for the dtype and device of x, worked out at the first use."""
        key = x.dtype, x.device
        found = self._forms.get(key)
        if found is None and self.means.ndim == 2:
            if constant(x.dtype, self.weights, self.means, *self._cov):
                with torch.inference_mode(False), torch.no_grad():
                    law = self._hosted()
                    found = self._forms[key] = form(law.weights, law.means, law._cov, x)
        return found

    def _hosted(self) -> GaussianMixture:
        """Return this law in host memory, where a look at its numbers does not wait for a device."""
        if self.means.device.type == "cpu":
            return self
        if self._host is None:
            w, U = self._cov
            cov = Covariance(w.cpu(), None if U is None else U.cpu())
            self._host = self._like(self.means.cpu(), cov, self._singular)
            self._host.weights = self.weights.cpu()
        return self._host

    def _check(self, x: Tensor, name: str = "x") -> None:
        check_batch(x, self.event_shape, name)
        if self.means.ndim == 3 and len(self.means) != len(x):
            raise ValueError(f"this law was noised for {len(self.means)} samples, got {len(x)}")
        if self._singular:
            raise ValueError(
                "a covariance is singular, so there is no density; use .noised(alpha, sigma)"
            )

    def _parts(self, x: Tensor, arrays: int) -> list[tuple[GaussianMixture, Tensor]]:
        """Return parts of x with their laws where arrays (B, K, D) of all rows are too large, or []."""
        rows = rows_held(arrays * self.means.shape[-2:].numel())
        if len(x) <= rows:
            return []
        parts = x.split(rows)
        if self.means.ndim == 2:
            return [(self, part) for part in parts]
        own = zip(self.means.split(rows), self._cov.w.split(rows), strict=True)
        covs = ((means, Covariance(w, self._cov.U)) for means, w in own)
        laws = [self._like(means, cov, self._singular) for means, cov in covs]
        return list(zip(laws, parts, strict=True))

    def _like(self, means: Tensor, cov: Covariance, singular: bool) -> GaussianMixture:
        """Return a mixture of the same weights."""
        law = object.__new__(GaussianMixture)
        law.dtype = self.dtype
        law._set(self.weights, means, cov, singular)
        return law

    def _components(self, x: Tensor, name: str = "x") -> _Components:
        self._check(x, name)
        S = self._cov.to(x)
        y = S.rotate(x.unsqueeze(1) - self.means.to(x))
        log_det = (S.w * (2 * math.pi)).log().sum(-1)
        log_joint = self.weights.to(x).log() - 0.5 * ((y.square() / S.w).sum(-1) + log_det)
        return _Components(S, y, log_joint)

    def log_prob(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, " batch"]:
        """Return log p(x)."""
        self._check(x)
        if parts := self._parts(x, 4):
            return torch.cat([law.log_prob(y) for law, y in parts])
        fast = self._form(x)
        return self._components(x).log_joint.logsumexp(-1) if fast is None else fast.log_prob(x)

    def responsibilities(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch K"]:
        """Return r_k(x) = P(component k | x)."""
        self._check(x)
        if parts := self._parts(x, 4):
            return torch.cat([law.responsibilities(y) for law, y in parts])
        return self._components(x).r

    def score(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D"]:
        """Return ∇ log p(x) = Σ_k r_k g_k."""
        self._check(x)
        if parts := self._parts(x, 4):
            return torch.cat([law.score(y) for law, y in parts])
        fast = self._form(x)
        if fast is not None:
            return fast.score(x)
        c = self._components(x)
        if c.S.U is None:
            return -(c.r.unsqueeze(-1) * (c.y / c.S.w)).sum(1)
        return -c.S.rotate_back(c.r.unsqueeze(-1) * c.y / c.S.w).sum(1)

    def hessian(self, x: Float[Tensor, "batch D"]) -> Float[Tensor, "batch D D"]:
        """Return ∇² log p(x) = Σ_k r_k ((g_k − s)(g_k − s)ᵀ − S_k⁻¹)."""
        self._check(x)
        if parts := self._parts(x, 2 * x.shape[1] + 4):
            return torch.cat([law.hessian(y) for law, y in parts])
        c = self._components(x)
        g = -c.S.rotate_back(c.y / c.S.w)
        spread = g - (c.r.unsqueeze(-1) * g).sum(1, keepdim=True)
        between = torch.einsum("bk,bki,bkj->bij", c.r, spread, spread)
        return between - (c.r[..., None, None] * c.S.matrix(1 / c.S.w)).sum(1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "n D"]:
        """Draw n independent points."""
        if self.means.ndim == 3:
            raise ValueError("only a law noised with α and σ of shape () can be sampled, not (B,)")
        check_count(n, "n")
        k = choice(self.weights, n, generator)
        shape = (n, *self.event_shape)
        z = randn_like(torch.empty(shape, dtype=self.dtype, device=self.means.device), generator)
        S, mu = self._cov.to(z), self.means.to(z)
        x = S.w[k].sqrt() * z
        if S.U is not None:
            x = (S.U[k] @ x.unsqueeze(-1)).squeeze(-1)
        return mu[k] + x

    def noised(self, alpha: Tensor | float, sigma: Tensor | float) -> GaussianMixture:
        """Return the law of α X + σ Z; α, σ `()` or one for each sample `(B,)`."""
        a, b = (v[..., None, None] for v in coefficients(alpha, sigma, self.means))
        cov = Covariance(a**2 * self._cov.w + b**2, self._cov.U)
        law = self._like(a * self.means, cov, vanishes(cov.w, sigma))
        away = self.means.device.type != "cpu" and law.means.ndim == 2
        away = away and constant(torch.float32, self.weights, self.means, *self._cov)
        if away and all(torch.as_tensor(v).device.type == "cpu" for v in (alpha, sigma)):
            law._host = self._hosted().noised(alpha, sigma)
        return law

    def _of_parts(
        self,
        f: Callable[[Tensor, Tensor | float, Tensor | float], Tensor],
        x_t: Tensor,
        alpha: Tensor | float,
        sigma: Tensor | float,
        arrays: int,
    ) -> Tensor | None:
        """Return f of parts, as in `_parts`, or None where x_t need not be divided."""
        check_batch(x_t, self.event_shape, "x_t")
        rows = rows_held(arrays * self.means.shape[-2:].numel())
        each = coefficients(alpha, sigma, x_t)
        if len(x_t) <= rows or any(v.ndim and len(v) != len(x_t) for v in each):
            return None  # which is refused where there are more or fewer than points
        a, b = (v.split(rows) if v.ndim else repeat(v) for v in each)
        return torch.cat([f(*part) for part in zip(x_t.split(rows), a, b, strict=False)])

    def _posterior(
        self, x_t: Tensor, alpha: Tensor | float, sigma: Tensor | float
    ) -> tuple[Tensor, Tensor, Covariance]:
        """Return r_k and the component posteriors' means m_k and covariances C_k."""
        c = self.noised(alpha, sigma)._components(x_t, "x_t")
        a, b = (v[..., None, None] for v in coefficients(alpha, sigma, x_t))
        w = self._cov.w.to(x_t)
        m = self.means.to(x_t) + c.S.rotate_back(a * w / c.S.w * c.y)
        return c.r, m, Covariance(b**2 * w / c.S.w, c.S.U)

    def conditional(self, index: Sequence[int] | Tensor, values: Tensor) -> GaussianMixture:
        """Return the law of the other entries given those at `index`: see `Gaussian.conditional`."""
        k = check_index(index, values, self.event_shape[0])
        x = values.to(self.means)[None]
        parts = [conditional(m, S, k, x) for m, S in zip(self.means, self.covs, strict=True)]
        here = GaussianMixture(self.weights, self.means[:, k], self.covs[:, k][:, :, k])
        weights = here.responsibilities(x)[0].clamp(min=torch.finfo(x.dtype).tiny)
        if not bool(weights.isfinite().all()):
            raise ValueError(
                f"values lie too far from every component for {x.dtype} to tell which is nearest"
            )
        return GaussianMixture(
            weights, torch.cat([m for m, _ in parts]), torch.stack([S for _, S in parts])
        )

    def posterior_mean(
        self, x_t: Float[Tensor, "batch D"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch D"]:
        r"""Return E[x_0 | x_t] = Σ_k r_k m_k, m_k = μ_k + α S_k (α² S_k + σ² I)⁻¹ (x_t − α μ_k)."""
        of_parts = self._of_parts(self.posterior_mean, x_t, alpha, sigma, 6)
        if of_parts is not None:
            return of_parts
        r, m, _ = self._posterior(x_t, alpha, sigma)
        return (r.unsqueeze(-1) * m).sum(1)

    def posterior_cov(
        self, x_t: Float[Tensor, "batch D"], alpha: Tensor | float, sigma: Tensor | float
    ) -> Float[Tensor, "batch D D"]:
        r"""Return Cov[x_0 | x_t] = Σ_k r_k (C_k + (m_k − E)(m_k − E)ᵀ), C_k = Cov[x_0 | x_t, k]."""
        of_parts = self._of_parts(
            self.posterior_cov, x_t, alpha, sigma, 2 * self.event_shape[0] + 6
        )
        if of_parts is not None:
            return of_parts
        r, m, C = self._posterior(x_t, alpha, sigma)
        spread = m - (r.unsqueeze(-1) * m).sum(1, keepdim=True)
        within = (r[..., None, None] * C.matrix(C.w)).sum(1)
        return within + torch.einsum("bk,bki,bkj->bij", r, spread, spread)
