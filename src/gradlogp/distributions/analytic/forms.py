r"""Mixtures of Gaussians arranged for speed: the same formulas, with the chains contiguous.

Every form has its constants in one dtype, on one device, and evaluates

.. math:: \log p(x) = \log \sum_k e^{l_k(x)}, \quad s(x) = \sum_k r_k g_k, \quad r = softmax(l)

on arrays whose last dimension is the batch: with a small event dimension last, vector instructions
would be idle. `Linear` and `Quadratic` need no array (K, D, B): their exponents are linear in x and
its squares, or all products of two entries. If means are many standard deviations apart, this
suffers from cancellation, and `Differences` is used instead.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import FEW, sent
from .covariance import Covariance

FAR, FAR_DOUBLE = 2.0**8, 2.0**16
"""Largest squared distance of a mean from the centre, in its own variances, where terms may cancel."""


class Pair(NamedTuple):
    """Two components of equal precisions: r_1 = sigmoid(const + oddsᵀ (x − c)), and columns of PM."""

    odds: Float[Tensor, " D"]
    const: Float[Tensor, ""]
    second: Float[Tensor, "D 1"]
    difference: Float[Tensor, "D 1"]
    shared: Float[Tensor, "D 1"] | float


class Linear(NamedTuple):
    r"""Components that share their eigenvectors or are diagonal: everything is a matrix product.

    With y the coordinates of x − c in the eigenbasis, P the precisions there and M the means,

    .. math:: l_k = c_k + (P_k M_k)^\top y - \tfrac12 P_k^\top y^2, \quad
        g_k = P_k M_k - P_k y

    and a P shared by all components is not needed in the softmax: then `P` is None, `shared` holds
    it, and its quadratic term is added once.
    """

    c: Float[Tensor, " D"] | None
    U: Float[Tensor, "D D"] | None
    PM: Float[Tensor, "K D"]
    const: Float[Tensor, "K 1"]
    P: Float[Tensor, "K D"] | None
    shared: Float[Tensor, " D"] | float
    pair: Pair | None

    def _y(self, x: Tensor) -> Tensor:
        y = x if self.c is None else x - self.c
        return y if self.U is None else y @ self.U

    def _exponents(self, y: Tensor) -> Tensor:
        l = torch.addmm(self.const, self.PM, y.mT)
        return l if self.P is None else torch.addmm(l, self.P, y.mT.square(), alpha=-0.5)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), `(B,)`."""
        y = self._y(x)
        log_p = self._exponents(y).logsumexp(0)
        if self.P is not None:
            return log_p
        square = y.square()
        if isinstance(self.shared, float):
            return torch.sub(log_p, square.sum(1), alpha=0.5 * self.shared)
        return torch.sub(log_p, square @ self.shared, alpha=0.5)

    def score(self, x: Tensor) -> Tensor:
        """Return ∇ log p(x), `(B, D)`; for two components with the chains contiguous."""
        if self.pair is not None:
            return self._score_of_pair(x, self.pair)
        y = self._y(x)
        r = self._exponents(y).softmax(0).mT
        s = torch.mm(r, self.PM)
        if self.P is not None:
            s = s - torch.mm(r, self.P) * y
        elif isinstance(self.shared, float):
            s = torch.sub(s, y, alpha=self.shared)
        else:
            s = torch.addcmul(s, y, self.shared, value=-1.0)
        return s if self.U is None else s @ self.U.mT

    def _score_of_pair(self, x: Tensor, pair: Pair) -> Tensor:
        """Return the score of two components of equal P: their softmax is a sigmoid."""
        x = x if self.c is None else x - self.c
        r = torch.addmv(pair.const, x, pair.odds).sigmoid_()
        y = columns(x) if self.U is None else self.U.mT @ columns(x)  # (D, B)
        if isinstance(pair.shared, float):
            s = torch.sub(pair.second, y, alpha=pair.shared)
        else:
            s = torch.addcmul(pair.second, y, pair.shared, value=-1.0)
        s = s.addcmul_(pair.difference, r)
        return s.mT if self.U is None else (self.U @ s).mT


def columns(x: Tensor) -> Tensor:
    """Return x `(B, D)` as `(D, B)` with the last dimension contiguous, for few D."""
    y = x.mT
    return y if y.is_contiguous() else torch.stack(x.unbind(1))


class Quadratic(NamedTuple):
    r"""Components with precisions P_k of their own: everything is a matrix product.

    With y = x − c, the means M and b_k = P_k M_k,

    .. math:: l_k = c_k + b_k^\top y - \tfrac12 y^\top P_k y, \quad
        s = \sum_k r_k b_k - \Big(\sum_k r_k P_k\Big) y

    where the products of two entries of y are those of all components. Where float32 would lose too
    many digits of l_k, its constants, the last three, are in float64.
    """

    c: Float[Tensor, " D"] | None
    b: Float[Tensor, "K D"]
    P: Float[Tensor, "K D*D"]
    const: Float[Tensor, "K 1"]
    linear: Float[Tensor, "K D"]
    square: Float[Tensor, "K D*D"]

    def _exponents(self, y: Tensor) -> Tensor:
        y = y.to(self.const.dtype)
        products = (y.unsqueeze(0) * y.unsqueeze(1)).flatten(0, 1)
        l = torch.addmm(self.const, self.linear, y)
        return torch.addmm(l, self.square, products, alpha=-0.5)

    def _y(self, x: Tensor) -> Tensor:
        return columns(x if self.c is None else x - self.c)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), `(B,)`."""
        return self._exponents(self._y(x)).logsumexp(0).to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        """Return ∇ log p(x), `(B, D)`."""
        y = self._y(x)
        r = self._exponents(y).softmax(0).to(x.dtype)
        D, B = y.shape
        P = torch.mm(self.P.mT, r).reshape(D, D, B)
        return (torch.mm(self.b.mT, r) - (P * y).sum(1)).mT


class Differences(NamedTuple):
    r"""Any components: differences from every mean, laid out (K, D, B).

    .. math:: y_k = S_k^{-1/2} (x - μ_k), \quad l_k = c_k - \tfrac12 |y_k|^2, \quad
        g_k = -S_k^{-1/2} y_k

    with W_k = U_k diag(w_k)^{-1/2} for the square root; `W` is `(K, D, D)`, or `(K, D, 1)` if the
    covariances are diagonal.
    """

    means: Float[Tensor, "K D 1"]
    const: Float[Tensor, "K 1"]
    W: Float[Tensor, "K D _"]

    def _white(self, x: Tensor) -> tuple[Tensor, Tensor]:
        d = x.mT - self.means
        y = self.W * d if self.W.shape[-1] != d.shape[1] else torch.bmm(self.W.mT, d)
        return y, self.const - 0.5 * y.square().sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x), `(B,)`."""
        return self._white(x)[1].logsumexp(0)

    def score(self, x: Tensor) -> Tensor:
        """Return ∇ log p(x), `(B, D)`."""
        y, l = self._white(x)
        weighted = y * l.softmax(0).neg().unsqueeze(1)
        K, D, B = y.shape
        if self.W.shape[-1] != D:
            return (weighted * self.W).sum(0).mT
        return torch.mm(weighted.reshape(K * D, B).mT, self.W.mT.reshape(K * D, D))


Form = Linear | Quadratic | Differences
"""A mixture at x."""


def form(weights: Tensor, means: Tensor, cov: Covariance, like: Tensor) -> Form:
    """Return the form of Σ_k π_k N(μ_k, S_k) in the dtype and on the device of a tensor.

    The constants are computed in float64 and rounded once. Their numbers are looked at, so they
    are best in host memory.

    Arguments:
        weights: π, `(K,)`.
        means: μ, `(K, D)`.
        cov: Eigenvalues `(K, D)`, positive, and eigenvectors `(K, D, D)` or None.
        like: A tensor with the dtype and device of the result.
    """
    wide = torch.float64 if means.device.type != "mps" else torch.float32
    pi, mu, w = (v.to(wide) for v in (weights, means, cov.w))
    U = None if cov.U is None else cov.U.to(wide)
    const = (pi.log() - 0.5 * (2 * math.pi * w).log().sum(-1)).unsqueeze(-1)
    level = float(w[0, 0])
    isotropic = bool((w == level).all())
    if isotropic:
        U = None  # a multiple of the identity has any eigenvectors
    most = FAR_DOUBLE if like.dtype == torch.float64 else FAR
    own = U is not None and not bool((U == U[0]).all())  # eigenvectors of their own
    mixed = own and like.dtype == torch.float32 and like.device.type == "cpu"

    def put(v: Tensor) -> Tensor:
        return sent(v.to(like.dtype), like.device)

    def off(M: Tensor) -> float:
        M = M if U is None else (M.unsqueeze(1) @ U).squeeze(1)
        return float((M.square() / w).sum(1).max())

    # no entry of a mean is further from the centre than the largest is from 0: of means that this
    # bound leaves near the origin neither distance has to be computed
    near, centre = float(mu.abs().amax(0).square().sum() / w.min()) < most / 2, None
    if not near:
        centre = ((mu.amax(0) + mu.amin(0)) / 2).to(like.dtype).to(mu)
    apart = centre is not None and off(mu - centre) > (FAR_DOUBLE if mixed else most)
    if apart or (own and mu.shape[1] > len(mu)):
        W = (1 / w.sqrt()).unsqueeze(-1) if U is None else U / w.sqrt().unsqueeze(-2)
        return Differences(*(put(v) for v in (mu.unsqueeze(-1), const, W)))
    # where the origin is as good as the centre, it saves a pass
    if centre is None or off(mu) <= most:
        M, shift = mu, None
    else:
        M, shift = mu - centre, put(centre)
    if own:
        assert U is not None
        P = (U / w.unsqueeze(-2)) @ U.mT
        b = (P @ M.unsqueeze(-1)).squeeze(-1)
        const = const - 0.5 * (b * M).sum(-1, keepdim=True)
        b_like, P_like = put(b), put(P.flatten(1))
        if mixed and not near and off(M) > FAR:
            return Quadratic(shift, b_like, P_like, const, b, P.flatten(1))
        return Quadratic(shift, b_like, P_like, put(const), b_like, P_like)
    M = M if U is None else M @ U[0]
    PM = M / w
    const = const - 0.5 * (PM * M).sum(-1, keepdim=True)
    shared = isotropic or bool((w == w[0]).all())
    pair = None
    if shared and len(mu) == 2 and mu.shape[1] <= FEW:
        difference, c = PM[0] - PM[1], put((const[0] - const[1]).squeeze())
        odds = put(difference if U is None else U[0] @ difference)
        P_column = 1 / level if isotropic else put(1 / w[0]).unsqueeze(-1)
        second, difference = (put(v).unsqueeze(-1) for v in (PM[1], difference))
        pair = Pair(odds, c, second, difference, P_column)
    return Linear(
        shift,
        None if U is None else put(U[0]),
        put(PM),
        put(const),
        None if shared else put(1 / w),
        1 / level if isotropic else put(1 / w[0]),
        pair,
    )
