r"""Maps x = T(z) of all of R^n onto the values that a constraint allows, with log |det dx/dz|.

`torch.distributions` has the map for half-lines. It has none for ordered vectors, Cholesky factors
and covariances, and its maps for intervals, the simplex and correlations clip their values, so
that density or Jacobian are wrong far out (on the simplex by 26 nats at z = 30 in float32). All of
these are defined here. A density p of x is the density p(T(z)) |det dx/dz| of z.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import ExpTransform, IndependentTransform, Transform


class _Ordered(constraints.Constraint):
    """Vectors whose entries rise strictly."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Return which vectors rise."""
        return (value.diff(dim=-1) > 0).all(-1)


ordered = _Ordered()
"""The constraint of vectors x_1 < x_2 < … < x_K."""


class _Bijection(Transform):
    """A map whose value and Jacobian share their work."""

    domain: constraints.Constraint = constraints.real_vector
    bijective = True

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log |J|, without the last dimension of z."""
        raise NotImplementedError

    def _call(self, x: Tensor) -> Tensor:
        return self.with_log_det(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return log |J|; x are the free numbers here, as everywhere in PyTorch."""
        return self.with_log_det(x)[1]


class IntervalTransform(_Bijection):
    r"""Numbers between a and b, entry by entry.

    .. math:: x = a + (b - a)\, σ(z), \qquad \log|J| = \log(b - a) + \log σ(z) + \log σ(-z)

    If x rounds to a bound, it is that bound: a density without a limit there is then not finite,
    whereas a clipped value would distort its tail.

    Arguments:
        low: a, a number or a tensor.
        high: b, a number or a tensor.
    """

    domain = constraints.real

    def __init__(self, low: Tensor | float, high: Tensor | float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.codomain = constraints.interval(low, high)

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log |J|, each in the shape of z."""
        low, high = (b.to(z) if isinstance(b, Tensor) else b for b in (self.low, self.high))
        width = high - low
        log_width = width.log() if isinstance(width, Tensor) else math.log(width)
        return low + width * z.sigmoid(), log_width + F.logsigmoid(z) + F.logsigmoid(-z)

    def _inverse(self, x: Tensor) -> Tensor:
        low, high = (b.to(x) if isinstance(b, Tensor) else b for b in (self.low, self.high))
        return (x - low).log() - (high - x).log()

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of x, and of z."""
        bounds = (b.shape for b in (self.low, self.high) if isinstance(b, Tensor))
        return torch.broadcast_shapes(shape, *bounds)

    inverse_shape = forward_shape


class OrderedTransform(_Bijection):
    r"""Ordered vectors, K numbers from K.

    .. math:: x_1 = z_1, \quad x_k = x_{k-1} + e^{z_k}, \qquad
        \log|J| = \sum_{k>1} z_k
    """

    codomain = ordered

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log |J|, without the last dimension of z."""
        x = torch.cat([z[..., :1], z[..., 1:].exp()], -1).cumsum(-1)
        return x, z[..., 1:].sum(-1)

    def _inverse(self, x: Tensor) -> Tensor:
        return torch.cat([x[..., :1], x.diff(dim=-1).log()], -1)


class SimplexTransform(_Bijection):
    r"""Points of the simplex by breaking a stick, K numbers from K − 1; z = 0 is its centre.

    .. math:: v_k = σ(z_k - \log(K - k)), \quad x_k = v_k \prod_{j<k} (1 - v_j), \qquad
        \log|J| = \sum_{k=1}^{K} \log x_k

    The Jacobian is that of the first K − 1 entries, in which `Dirichlet` has its density.
    """

    codomain = constraints.simplex

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and log |J|, without the last dimension of z."""
        a = z - _left(z.shape[-1], z).log()
        rest = F.pad(F.logsigmoid(-a).cumsum(-1), (1, 0))  # log of what is left of the stick
        log_x = F.pad(F.logsigmoid(a), (0, 1)) + rest
        return log_x.softmax(-1), log_x.sum(-1)  # x sums to 1 but for rounding: that is taken off

    def _inverse(self, x: Tensor) -> Tensor:
        rest = x.flip(-1).cumsum(-1).flip(-1)[..., 1:]
        return x[..., :-1].log() - rest.log() + _left(x.shape[-1] - 1, x).log()

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of x."""
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of z."""
        if not shape or shape[-1] < 2:
            raise ValueError(f"a point of a simplex needs at least 2 entries, got shape {shape}")
        return torch.Size((*shape[:-1], shape[-1] - 1))


class CorrCholeskyTransform(_Bijection):
    r"""Cholesky factors L of correlation matrices, d × d from d (d − 1)/2 numbers, row by row.

    .. math:: L_{ij} = \tanh(z_{ij}) \sqrt{1 - \sum_{l<j} L_{il}^2}, \qquad
        \log|J| = \sum_{j<i} \log(1 - \tanh^2 z_{ij}) + \tfrac12 \log(1 - \sum_{l<j} L_{il}^2)

    The Jacobian is that of the entries below the diagonal, in which `LKJCholesky` has its density.
    For the entries of L Lᵀ it is log|J| + Σ_{i>1} (d − i) log L_ii.

    References:
        | Generating Random Correlation Matrices Based on Vines and Extended Onion Method
          (Lewandowski, Kurowicka & Joe, 2009)
        | https://doi.org/10.1016/j.jmva.2009.04.008
    """

    codomain = constraints.corr_cholesky

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return L and log |J|, without the last dimension of z."""
        a, below = _triangle(z, -1)
        # log √(1 − tanh² a), with 1 − tanh² a = 4 σ(2a) σ(−2a), which keeps its digits where tanh is 1
        step = math.log(2) + (F.logsigmoid(2 * a) + F.logsigmoid(-2 * a)) / 2
        rest = step.cumsum(-1) - step
        eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        L = (a.tanh() + eye) * rest.exp()
        return L, (2 * step + rest)[below].sum(-1)

    def _inverse(self, x: Tensor) -> Tensor:
        # tanh z / √(1 − tanh² z) = sinh z, from sums without cancellation
        rest = x.square().flip(-1).cumsum(-1).flip(-1)[..., 1:].sqrt()
        below = _below(x, -1)
        return (x[below] / rest[below]).asinh()

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of x."""
        d = _size(shape[-1], -1)
        return torch.Size((*shape[:-1], d, d))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of z."""
        d = _square(shape, 2)
        return torch.Size((*shape[:-2], d * (d - 1) // 2))


class LowerCholeskyTransform(_Bijection):
    r"""Lower triangles L with positive diagonal, d × d from d (d + 1)/2 numbers, row by row.

    .. math:: L_{ij} = z_{ij}, \quad L_{ii} = e^{z_{ii}}, \qquad \log|J| = \sum_i z_{ii}
    """

    codomain = constraints.lower_cholesky

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return L and log |J|, without the last dimension of z."""
        L, logs = _factor(z)
        return L, logs.sum(-1)

    def _inverse(self, x: Tensor) -> Tensor:
        return _free(x)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of x."""
        d = _size(shape[-1], 0)
        return torch.Size((*shape[:-1], d, d))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Return the shape of z."""
        d = _square(shape, 1)
        return torch.Size((*shape[:-2], d * (d + 1) // 2))


class PositiveDefiniteTransform(_Bijection):
    r"""Symmetric positive definite matrices L Lᵀ, with L of `LowerCholeskyTransform`.

    .. math:: \log|J| = d \log 2 + \sum_{i=1}^{d} (d - i + 2) \log L_{ii}

    The Jacobian is that of the entries on and below the diagonal, in which `Wishart` has its density.
    """

    codomain = constraints.positive_definite

    def with_log_det(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return L Lᵀ and log |J|, without the last dimension of z."""
        L, logs = _factor(z)
        d = logs.shape[-1]
        weights = torch.arange(d + 1, 1, -1, dtype=z.dtype, device=z.device)
        return L @ L.mT, d * math.log(2) + (weights * logs).sum(-1)

    def _inverse(self, x: Tensor) -> Tensor:
        return _free(torch.linalg.cholesky(x))

    forward_shape = LowerCholeskyTransform.forward_shape
    inverse_shape = LowerCholeskyTransform.inverse_shape


OWN: dict[type[constraints.Constraint], type[Transform]] = {
    type(ordered): OrderedTransform,
    type(constraints.simplex): SimplexTransform,
    type(constraints.corr_cholesky): CorrCholeskyTransform,
    type(constraints.lower_cholesky): LowerCholeskyTransform,
    type(constraints.positive_definite): PositiveDefiniteTransform,
}
"""What is taken from here; the rest is `torch.distributions.biject_to`."""


def bijection(constraint: constraints.Constraint) -> Transform:
    """Return the map of R^n onto the values that a constraint allows, with `log_abs_det_jacobian`.

    Arguments:
        constraint: A constraint of `torch.distributions.constraints`: `real`, `positive`,
            `nonnegative`, `greater_than(a)`, `less_than(b)`, `interval(a, b)`, `unit_interval`,
            `simplex`, `corr_cholesky`, `lower_cholesky`, `positive_definite`; `independent`, `cat`
            and `stack` of them; or `ordered`.

    Raises:
        ValueError: For a constraint without such a map or with discrete values, a class instead of
            an object, or bounds that are not finite.

    Examples:
        >>> from torch.distributions import constraints
        >>> T = glp.distributions.bijection(constraints.interval(0.0, 2.0))
        >>> T(torch.tensor([-100.0, 0.0, 100.0]))
        tensor([0., 1., 2.])
    """
    if not isinstance(constraint, constraints.Constraint):
        raise ValueError(
            f"a constraint must be an object such as constraints.positive or "
            f"constraints.interval(0, 1), got {constraint!r}"
        )
    if isinstance(constraint, constraints.independent):
        base = bijection(constraint.base_constraint)
        return IndependentTransform(base, constraint.reinterpreted_batch_ndims)
    if (inner := getattr(constraint, "base_constraint", None)) is not None:
        return bijection(inner)  # of a mixture, from a class that older versions do not have
    if (own := OWN.get(type(constraint))) is not None:
        return own()
    low, high = (getattr(constraint, f"{name}_bound", None) for name in ("lower", "upper"))
    for bound in (low, high):
        if bound is not None and not bool(torch.isfinite(torch.as_tensor(bound)).all()):
            raise ValueError(
                f"the bounds of {constraint} must be finite; for a half-line use "
                "constraints.greater_than(a) or less_than(b), for the whole line constraints.real"
            )
    if isinstance(constraint, constraints.interval | constraints.half_open_interval):
        a, b = constraint.lower_bound, constraint.upper_bound
        if not bool((torch.as_tensor(a) < b).all()):
            raise ValueError(f"the lower bound of {constraint} must be below the upper one")
        return IntervalTransform(a, b)
    half_line = isinstance(constraint, constraints.greater_than | constraints.greater_than_eq)
    if half_line and not isinstance(low, Tensor) and low == 0:
        return ExpTransform()  # that of PyTorch adds 0 and multiplies by 1
    try:
        return biject_to(constraint)
    except NotImplementedError:
        raise ValueError(
            f"{constraint} has no bijection with a Jacobian; supported are real, positive, "
            f"nonnegative, "
            "greater_than, less_than, interval, simplex, corr_cholesky, lower_cholesky, "
            "positive_definite of torch.distributions.constraints, and ordered of "
            "gradlogp.distributions; discrete values have no score: sum over them"
        ) from None


def with_log_det(transform: Transform, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the value of a bijection and log |J|, without the dimensions of an event of z."""
    if isinstance(transform, _Bijection):
        return transform.with_log_det(z)
    x = transform(z)
    return x, transform.log_abs_det_jacobian(z, x)


# ---------------------------------------------------------------------------- triangles


def _left(n: int, like: Tensor) -> Tensor:
    """Return n, …, 1: how many entries of a simplex come after entry 1, …, n."""
    return torch.arange(n, 0, -1, dtype=like.dtype, device=like.device)


def _below(x: Tensor, offset: int) -> tuple[Any, Tensor, Tensor]:
    """Return the index of a lower triangle, row by row; −1 leaves the diagonal out."""
    i, j = torch.tril_indices(x.shape[-2], x.shape[-1], offset, device=x.device)
    return ..., i, j


def _triangle(z: Tensor, offset: int) -> tuple[Tensor, tuple[Any, Tensor, Tensor]]:
    """Lay z out as a lower triangle, row by row, with zeros above; return it and where it is."""
    d = _size(z.shape[-1], offset)
    a = z.new_zeros(*z.shape[:-1], d, d)
    below = _below(a, offset)
    a[below] = z
    return a, below


def _diagonal(a: Tensor) -> Tensor:
    return a.diagonal(dim1=-2, dim2=-1)


def _factor(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Cholesky factor of free numbers z, and the logarithm of its diagonal: it is free."""
    a, _ = _triangle(z, 0)
    logs = _diagonal(a)
    return a.tril(-1) + logs.exp().diag_embed(), logs


def _free(x: Tensor) -> Tensor:
    """Return the free numbers of a Cholesky factor."""
    a = x.tril(-1) + _diagonal(x).log().diag_embed()
    return a[_below(x, 0)]


def _size(n: int, offset: int) -> int:
    """Return d of a triangle of n entries: n = d (d + 1 + 2 offset)/2."""
    return (math.isqrt(1 + 8 * n) - 1 - 2 * offset) // 2


def _square(shape: torch.Size, least: int) -> int:
    """Return d of matrices `(*, d, d)`, d ≥ least."""
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < least:
        raise ValueError(
            f"a matrix must have shape (d, d) with d >= {least}, got shape {tuple(shape)}"
        )
    return shape[-1]
