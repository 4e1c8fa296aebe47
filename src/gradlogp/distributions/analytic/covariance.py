r"""Covariances in their eigenbasis: S = U diag(w) Uᵀ, without U if S is diagonal.

In this form noising is exact and costs nothing, α² S + σ² I = U diag(α² w + σ²) Uᵀ, and applying
any function of S takes two small products, so that no inverse is needed. Arrays may have leading
dimensions (components, samples); they broadcast as usual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ...core import check_finite, check_kind, check_number, sent, shown


class Covariance(NamedTuple):
    """Eigenvalues `(..., D)` and eigenvectors `(..., D, D)`, or None for a diagonal matrix."""

    w: Tensor
    U: Tensor | None

    def rotate(self, v: Tensor) -> Tensor:
        """Return Uᵀ v; a U of its own for each component k needs v of shape (B, K, D)."""
        if self.U is None:
            return v
        return v @ self.U if self.U.ndim == 2 else torch.einsum("bki,kij->bkj", v, self.U)

    def rotate_back(self, v: Tensor) -> Tensor:
        """Return U v."""
        if self.U is None:
            return v
        return v @ self.U.mT if self.U.ndim == 2 else torch.einsum("bkj,kij->bki", v, self.U)

    def matrix(self, values: Tensor) -> Tensor:
        """Return the matrix U diag(values) Uᵀ, `(..., D, D)`."""
        if self.U is None:
            return torch.diag_embed(values)
        return (self.U * values.unsqueeze(-2)) @ self.U.mT

    def to(self, like: Tensor) -> Covariance:
        """Return this in the dtype and on the device of a tensor."""
        return Covariance(self.w.to(like), None if self.U is None else self.U.to(like))


def covariance(cov: Tensor, D: int, kind: str) -> Covariance:
    """Decompose a `scalar`, `diagonal` or `full` covariance (leading dimensions allowed).

    Raises:
        ValueError: If it is not finite, not symmetric, or has a negative eigenvalue.
    """
    if kind == "full":
        scale = cov.abs().amax(dim=(-2, -1), keepdim=True)
        if bool(((cov - cov.mT).abs() > 1e-5 * scale).any()):
            raise ValueError("the covariance matrix is not symmetric")
        w, U = torch.linalg.eigh((cov + cov.mT) / 2)
        # eigh is backward stable: an eigenvalue within rounding of 0 is 0
        tiny = D * torch.finfo(cov.dtype).eps * w[..., -1:].abs()
        w = torch.where(w.abs() <= tiny, torch.zeros_like(w), w)
        result = Covariance(w, U)
    else:
        w = cov.unsqueeze(-1).expand(*cov.shape, D) if kind == "scalar" else cov
        result = Covariance(w.clone(), None)
    if bool((result.w < 0).any()):
        raise ValueError(
            f"the covariance has a negative eigenvalue ({float(result.w.min()):.3g}); "
            "variances (not standard deviations) are expected, and must be at least 0"
        )
    return result


def as_parameter(value: Tensor | float | Sequence[Any], name: str) -> Tensor:
    """Return a parameter as a finite floating-point tensor; plain numbers become float64."""
    if isinstance(value, Tensor) and value.is_floating_point():
        result = value
    else:
        try:
            result = torch.as_tensor(value, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ValueError(f"{name} must be numbers, got {shown(value)}") from None
    check_finite(result, name)
    return result


def constant(dtype: torch.dtype, *parameters: Tensor | None) -> bool:
    """Return whether constants computed from these may be kept: no derivative goes through them.

    That is neither a gradient, nor a tangent, nor a transform of `torch.func`, whose tensors do
    not have their own storage; and x is float32 or float64.
    """
    if dtype not in (torch.float32, torch.float64) or torch.compiler.is_compiling():
        return False
    for value in (torch.empty(()), *parameters):  # the empty one: is a transform on at all?
        if value is None:
            continue
        if value.requires_grad or forward_ad.unpack_dual(value).tangent is not None:
            return False
        try:
            value.data_ptr()
        except RuntimeError:
            return False
    return True


def coefficients(
    alpha: Tensor | float, sigma: Tensor | float, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Return α and σ as tensors `()` or `(B,)`, refusing anything else.

    Raises:
        ValueError: For shapes that are neither () nor one (B,); for values on the host that are
            negative or not finite.
    """
    for name, v in (("alpha", alpha), ("sigma", sigma)):
        if not isinstance(v, Tensor):
            check_number(v, name, least=0)
        elif v.ndim > 1:
            raise ValueError(f"{name} must have shape () or (B,), got {tuple(v.shape)}")
    a, b = torch.as_tensor(alpha, dtype=like.dtype), torch.as_tensor(sigma, dtype=like.dtype)
    if like.device.type == "cpu":
        a, b = sent(a, like.device), sent(b, like.device)
    for name, v in (("alpha", a), ("sigma", b)):
        if v.device.type != "cpu":  # which would have to be waited for
            continue
        # of one number, which every step of a sampler asks for, this takes a tenth of the time
        right = 0 <= float(v) < math.inf if not v.ndim else (torch.isfinite(v) & (v >= 0)).all()
        if not right:
            raise ValueError(f"{name} must be at least 0 and finite, got {shown(v)}")
    if a.ndim == b.ndim == 1 and a.shape != b.shape:
        raise ValueError(f"alpha has shape {tuple(a.shape)}, but sigma {tuple(b.shape)}")
    return torch.broadcast_tensors(sent(a, like.device), sent(b, like.device))


def vanishes(w: Tensor, sigma: Tensor | float) -> bool:
    """Whether one of the variances w is 0, to which σ² was added.

    Only for σ = 0, or one on a device, is w looked at, which may be on a device itself.
    """
    b = torch.as_tensor(sigma)
    if b.device.type == "cpu" and bool((b.square() >= torch.finfo(w.dtype).tiny).all()):
        return False
    return bool((w == 0).any())


def conditional(mean: Tensor, cov: Tensor, index: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return means `(B, D − k)` and the covariance of the other entries given those at `index`.

    Arguments:
        mean: μ, `(D,)`.
        cov: S, `(D, D)`.
        index: The known entries, `(k,)`.
        values: Their values, `(B, k)`.
    """
    other = torch.ones(len(mean), dtype=torch.bool).index_fill(0, index.cpu(), False)
    u = other.nonzero()[:, 0].to(mean.device)
    gain = torch.linalg.solve(cov[index][:, index], cov[index][:, u]).mT
    left = cov[u][:, u] - gain @ cov[index][:, u]
    return mean[u] + (values - mean[index]) @ gain.mT, (left + left.mT) / 2


def check_index(index: Sequence[int] | Tensor, values: Tensor, d: int) -> Tensor:
    """Return which entries of d are known, as a tensor.

    Raises:
        ValueError: If entries are repeated, all are known, or their number is not that of the
            values.
    """
    check_kind(
        index, "index", list | tuple | range | Tensor, "a list of entries, or a tensor of them"
    )
    if not isinstance(index, Tensor) and not all(type(i) is int and abs(i) < 2**62 for i in index):
        raise ValueError(f"index must be integers, got {shown(index)}")
    found = index if isinstance(index, Tensor) else torch.tensor(list(index), dtype=torch.int64)
    whole = (
        found.ndim == 1 and found.dtype == torch.int64 and len(set(found.tolist())) == len(found)
    )
    if not whole or not 0 < len(found) < d or not bool(((found >= 0) & (found < d)).all()):
        raise ValueError(
            f"index must hold distinct entries from 0 to {d - 1}, but not all of them; got "
            f"{shown(index)}"
        )
    what = f"a tensor ({len(found)},), one value per entry of index"
    check_kind(values, "values", Tensor, what)
    if values.shape != found.shape:
        raise ValueError(f"values must be {what}, got {shown(values)}")
    if not bool(values.isfinite().all()):
        raise ValueError("values has entries that are NaN or infinite")
    return found
