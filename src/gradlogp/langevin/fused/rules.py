"""What each PyTorch operation becomes (see `tracing`); operations without a rule are refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import operations as op
from .places import PLACES
from .tracing import CannotCompile, Refs, Tracer
from .truths import TRUTHS, axes, logical, opposite, truth, written


def apply(m: Tracer, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the references of all results of an operation, or None if it leaves numbers alone.

    Raises:
        CannotCompile: If there is no rule for it.
    """
    schema = func._schema
    name = schema.name.removeprefix("aten::")
    if func is torch.ops.aten.view.dtype:
        raise CannotCompile("it reads numbers as another type")
    if func.is_view or name in VIEWS or name in SHAPE_ONLY:
        return None
    if name == "_is_all_true":  # what laws of PyTorch require; the result does not change the path
        m.conditions.append(m(args[0]).ravel())
        return None
    sized = torch.Tag.dynamic_output_shape in func.tags and name not in PLACES
    if not schema.returns or sized or name in LOOKS:
        raise CannotCompile("it looks at values of x to decide what to do")
    if schema.is_mutable and name.endswith("_"):
        name = "index_put" if name == "_index_put_impl_" else name.removesuffix("_")
        m.own(args[0])
    elif schema.is_mutable:
        raise CannotCompile(f"operation {func}")
    try:
        found = RULES[name](m, *args, **kwargs)
    except CannotCompile:
        raise
    except Exception:  # no rule, or none for these arguments
        raise CannotCompile(f"operation {func}") from None
    return found if isinstance(found, list) else [found]


VIEWS = {"detach", "alias", "_unsafe_view", "_reshape_alias", "lift_fresh"}
"""Operations that return the same memory."""

SHAPE_ONLY = {
    "new_ones", "new_zeros", "new_full", "new_empty", "new_empty_strided", "ones_like",
    "zeros_like", "full_like", "empty_like",
}  # fmt: skip
"""Operations on a tensor of which only shape and kind matter."""

LOOKS = {"_is_any_true", "_local_scalar_dense", "is_nonzero", "equal", "allclose"}
"""Operations whose result Python may branch on."""


# ---------------------------------------------------------------------------- numbers


def _unary(kind: int) -> Callable[..., Refs]:
    return lambda m, a: m.do(kind, m(a))


def _binary(kind: int, swap: bool = False) -> Callable[..., Refs]:
    return lambda m, a, b: m.do(kind, m(b), m(a)) if swap else m.do(kind, m(a), m(b))


def _add(m: Tracer, a: Any, b: Any, alpha: float = 1) -> Refs:
    if logical(a, b):
        return m.do(op.MAX, m(a), m(b))
    return m.do(op.ADD, m(a), m.do(op.MUL, m(b), m(alpha)))


def _sub(m: Tracer, a: Any, b: Any, alpha: float = 1) -> Refs:
    return m.do(op.SUB, m(a), m.do(op.MUL, m(b), m(alpha)))


def _power(m: Tracer, a: Any, b: Any) -> Refs:
    """Return a power, of a small integer as products."""
    x = m(a)
    if not isinstance(b, Tensor) and b == 0.5:
        return m.do(op.SQRT, x)
    if isinstance(b, Tensor) or b != int(b) or abs(b) > 16:
        return m.do(op.POW, x, m(b))
    out, square, n = m(1), x, abs(int(b))
    while n:
        out = m.do(op.MUL, out, square) if n & 1 else out
        square, n = (m.do(op.MUL, square, square) if n > 1 else square), n >> 1
    out = np.broadcast_to(out, x.shape)
    return m.do(op.DIV, m(1), out) if b < 0 else out


def _halves(m: Tracer, kind: int, a: Any) -> Refs:
    """Return half the sum, or difference, of exp x and exp(−x)."""
    return m.do(op.MUL, m(0.5), m.do(kind, m.do(op.EXP, m(a)), m.do(op.EXP, m.do(op.NEG, m(a)))))


def _unequal(m: Tracer, a: Any, b: Any) -> Refs:
    return opposite(m, m.do(op.EQ, m(a), m(b)))


def _where(m: Tracer, c: Any, a: Any, b: Any) -> Refs:
    return m.do(op.WHERE, m(c), m(a), m(b))


def _clamp(m: Tracer, a: Any, low: Any = None, high: Any = None) -> Refs:
    x = m(a)
    x = x if low is None else m.do(op.MAX, x, m(low))
    return x if high is None else m.do(op.MIN, x, m(high))


def _log_sigmoid(m: Tracer, a: Any) -> list[Any]:
    x = m(a)
    tail = m.do(op.LOG1P, m.do(op.EXP, m.do(op.NEG, m.do(op.ABS, x))))
    return [m.do(op.SUB, m.do(op.MIN, x, m(0)), tail), None]


def _softplus(m: Tracer, a: Any, beta: float = 1, threshold: float = 20) -> Refs:
    x = m.do(op.MUL, m(a), m(beta))
    soft = m.do(op.DIV, m.do(op.LOG1P, m.do(op.EXP, x)), m(beta))
    return m.do(op.WHERE, m.do(op.LT, m(threshold), x), m(a), soft)


def _softplus_backward(m: Tracer, g: Any, a: Any, beta: float, threshold: float) -> Refs:
    x = m.do(op.MUL, m(a), m(beta))
    slope = m.do(op.MUL, m(g), m.do(op.SIGMOID, x))
    return m.do(op.WHERE, m.do(op.LT, m(threshold), x), m(g), slope)


def _cross_entropy(
    m: Tracer, a: Any, b: Any, weight: Any = None, factor: Any = None, reduction: int = 1
) -> Refs:
    if weight is not None or factor is not None or reduction != 0:
        raise NotImplementedError
    return m.do(op.SUB, m.do(op.MUL, opposite(m, m(b)), m(a)), _log_sigmoid(m, a)[0])


def _slope(m: Tracer, g: Any, slope: Refs) -> Refs:
    return m.do(op.MUL, m(g), slope)


def _silu_backward(m: Tracer, g: Any, a: Any) -> Refs:
    x, s = m(a), m.do(op.SIGMOID, m(a))
    return _slope(m, g, m.do(op.MUL, s, m.do(op.ADD, m(1), m.do(op.MUL, x, opposite(m, s)))))


def _logaddexp(m: Tracer, a: Any, b: Any) -> Refs:
    x, y = m(a), m(b)
    top, gap = m.do(op.MAX, x, y), m.do(op.NEG, m.do(op.ABS, m.do(op.SUB, x, y)))
    soft = m.do(op.ADD, top, m.do(op.LOG1P, m.do(op.EXP, gap)))
    return m.do(op.WHERE, m.do(op.EQ, x, y), m.do(op.ADD, x, m(math.log(2))), soft)


def _xlogy(m: Tracer, a: Any, b: Any) -> Refs:
    x = m(a)
    return m.do(op.WHERE, m.do(op.EQ, x, m(0)), m(0), m.do(op.MUL, x, m.do(op.LOG, m(b))))


def _addcmul(kind: int) -> Callable[..., Refs]:
    return lambda m, a, b, c, value=1: m.do(
        op.ADD, m(a), m.do(op.MUL, m(value), m.do(kind, m(b), m(c)))
    )  # fmt: skip


def _lerp(m: Tracer, a: Any, b: Any, weight: Any) -> Refs:
    return m.do(op.ADD, m(a), m.do(op.MUL, m(weight), m.do(op.SUB, m(b), m(a))))


def _to_copy(m: Tracer, a: Any, dtype: Any = None, **_: Any) -> Refs:
    """Change the type: numbers to true or false, and not to integers."""
    if dtype == torch.bool:
        return truth(m, a)
    if dtype is not None and a.is_floating_point() and not dtype.is_floating_point:
        raise NotImplementedError
    return m(a)


# ---------------------------------------------------------------------------- sums


def _sum(m: Tracer, a: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Refs:
    return m.reduce(op.SUM, m(a), axes(dim), keepdim)


def _mean(m: Tracer, a: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Refs:
    total = _sum(m, a, dim, keepdim)
    return m.do(op.DIV, total, m(a.numel() / max(1, total.size)))


def _most(m: Tracer, a: Any, dim: Any = None, keepdim: bool = False) -> Refs:
    return m.reduce(op.MOST, m(a), axes(dim), keepdim)


def _least(m: Tracer, a: Any, dim: Any = None, keepdim: bool = False) -> Refs:
    return m.do(op.NEG, m.reduce(op.MOST, m.do(op.NEG, m(a)), axes(dim), keepdim))


def _shifted(m: Tracer, a: Any, dim: Any) -> tuple[Refs, Refs, Refs]:
    """Return x − max x, the logarithm of the sum of its exponentials, and max x, if finite."""
    x = m(a)
    top = m.reduce(op.MOST, x, axes(dim), True)
    top = m.do(op.WHERE, m.do(op.EQ, m.do(op.SUB, top, top), m(0)), top, m(0))
    x = m.do(op.SUB, x, top)
    return x, m.do(op.LOG, m.reduce(op.SUM, m.do(op.EXP, x), axes(dim), True)), top


def _logsumexp(m: Tracer, a: Any, dim: Any, keepdim: bool = False) -> Refs:
    _, log, top = _shifted(m, a, dim)
    out = m.do(op.ADD, log, top)
    return out if keepdim else out.squeeze(tuple(d % a.ndim for d in axes(dim)))


def _log_softmax(m: Tracer, a: Any, dim: int, half: bool) -> Refs:
    x, log, _ = _shifted(m, a, dim)
    return m.do(op.SUB, x, log)


def _softmax(m: Tracer, a: Any, dim: int, half: bool) -> Refs:
    return m.do(op.EXP, _log_softmax(m, a, dim, half))


def _log_softmax_backward(m: Tracer, g: Any, out: Any, dim: int, dtype: Any) -> Refs:
    total = m.reduce(op.SUM, m(g), (dim,), True)
    return m.do(op.SUB, m(g), m.do(op.MUL, m.do(op.EXP, m(out)), total))


def _softmax_backward(m: Tracer, g: Any, out: Any, dim: int, dtype: Any) -> Refs:
    product = m.do(op.MUL, m(g), m(out))
    return m.do(op.SUB, product, m.do(op.MUL, m(out), m.reduce(op.SUM, product, (dim,), True)))


def _var(m: Tracer, a: Any, dim: Any = None, correction: Any = 1, keepdim: bool = False) -> Refs:
    mean = _mean(m, a, dim, True)
    off = m.do(op.SUB, m(a), mean)
    total = m.reduce(op.SUM, m.do(op.MUL, off, off), axes(dim), keepdim)
    return m.do(op.DIV, total, m(a.numel() / max(1, total.size) - correction))


def _norm(
    m: Tracer, a: Any, order: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Refs:
    if order != 2:
        raise NotImplementedError
    x = m(a)
    return m.do(op.SQRT, m.reduce(op.SUM, m.do(op.MUL, x, x), axes(dim), keepdim))


def _cumsum(m: Tracer, a: Any, dim: int, dtype: Any = None) -> Refs:
    lines = np.moveaxis(m(a), dim, 0).copy()
    for i in range(1, len(lines)):
        lines[i] = m.do(op.ADD, lines[i - 1], lines[i])
    return np.moveaxis(lines, 0, dim)


def _product(m: Tracer, a: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Refs:
    x = m(a).reshape(-1, 1) if dim is None else np.moveaxis(m(a), dim, 0)
    out = x[0]
    for line in x[1:]:
        out = m.do(op.MUL, out, line)
    out = out.reshape(()) if dim is None else out
    return np.expand_dims(out, dim) if keepdim else out


# ---------------------------------------------------------------------------- products


def _matmul(m: Tracer, a: Any, b: Any) -> Refs:
    """Any product of vectors and matrices, or of batches of matrices."""
    A, B = m(a), m(b)
    left = A[None] if A.ndim == 1 else A
    right = B[:, None] if B.ndim == 1 else B
    n, k, c = left.shape[-2], left.shape[-1], right.shape[-1]
    batch = left.shape[:-2]
    shape = (*batch, n, c, k)
    rows = np.broadcast_to(left[..., :, None, :], shape).reshape(-1, k)
    columns = np.broadcast_to(np.swapaxes(right, -1, -2)[..., None, :, :], shape).reshape(-1, k)
    out = m.do(op.MUL, rows[:, 0], columns[:, 0]) if k == 1 else m.fill(op.DOT, rows, columns)
    shape = batch + (() if A.ndim == 1 else (n,)) + (() if B.ndim == 1 else (c,))
    return out.reshape(shape)


def _addmm(m: Tracer, c: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Refs:
    product = m.do(op.MUL, _matmul(m, a, b), m(alpha))
    return m.do(op.ADD, m.do(op.MUL, m(c), m(beta)), product)


UNARY = {
    "neg": op.NEG, "exp": op.EXP, "log": op.LOG, "log1p": op.LOG1P, "expm1": op.EXPM1,
    "sqrt": op.SQRT, "abs": op.ABS, "sgn": op.SIGN, "sign": op.SIGN, "sin": op.SIN, "cos": op.COS,
    "tanh": op.TANH, "atan": op.ATAN, "erf": op.ERF, "erfc": op.ERFC, "lgamma": op.LGAMMA,
    "digamma": op.DIGAMMA, "sigmoid": op.SIGMOID, "floor": op.FLOOR,
}  # fmt: skip

BINARY = {
    "mul": op.MUL, "div": op.DIV, "maximum": op.MAX, "minimum": op.MIN, "lt": op.LT, "le": op.LE,
    "eq": op.EQ, "atan2": op.ATAN2,
}  # fmt: skip

RULES: dict[str, Callable[..., Any]] = {
    # numbers
    **{name: _unary(kind) for name, kind in UNARY.items()},
    **{name: _binary(kind) for name, kind in BINARY.items()},
    "gt": _binary(op.LT, swap=True),
    "ge": _binary(op.LE, swap=True),
    "ne": _unequal,
    "isnan": lambda m, a: _unequal(m, a, a),
    "isinf": lambda m, a: m.do(op.EQ, m.do(op.ABS, m(a)), m(math.inf)),
    "add": _add,
    "sub": _sub,
    "rsub": lambda m, a, b, alpha=1: _sub(m, b, a, alpha),
    "reciprocal": lambda m, a: m.do(op.DIV, m(1), m(a)),
    "rsqrt": lambda m, a: m.do(op.DIV, m(1), m.do(op.SQRT, m(a))),
    "pow": _power,
    "log2": lambda m, a: m.do(op.DIV, m.do(op.LOG, m(a)), m(math.log(2))),
    "log10": lambda m, a: m.do(op.DIV, m.do(op.LOG, m(a)), m(math.log(10))),
    "tan": lambda m, a: m.do(op.DIV, m.do(op.SIN, m(a)), m.do(op.COS, m(a))),
    "exp2": lambda m, a: m.do(op.EXP, m.do(op.MUL, m(a), m(math.log(2)))),
    "cosh": lambda m, a: _halves(m, op.ADD, a),
    "sinh": lambda m, a: _halves(m, op.SUB, a),
    "where": _where,
    "masked_fill": lambda m, a, mask, value: m.do(
        op.WHERE, m(mask), written(m, a, value), m(a)
    ),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda m, a, high: _clamp(m, a, None, high),
    "relu": lambda m, a: m.do(op.MAX, m(a), m(0)),
    "threshold_backward": lambda m, g, a, low: m.do(
        op.WHERE, m.do(op.LE, m(a), m(low)), m(0), m(g)
    ),
    "addcmul": _addcmul(op.MUL),
    "addcdiv": _addcmul(op.DIV),
    "lerp": _lerp,
    "logaddexp": _logaddexp,
    "xlogy": _xlogy,
    "binary_cross_entropy_with_logits": _cross_entropy,
    "silu": lambda m, a: m.do(op.MUL, m(a), m.do(op.SIGMOID, m(a))),
    "silu_backward": _silu_backward,
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "log_sigmoid_forward": _log_sigmoid,
    "log_sigmoid_backward": lambda m, g, a, buffer: _slope(
        m, g, m.do(op.SIGMOID, m.do(op.NEG, m(a)))
    ),
    "sigmoid_backward": lambda m, g, s: m.do(
        op.MUL, m(g), m.do(op.MUL, opposite(m, m(s)), m(s))
    ),
    "tanh_backward": lambda m, g, t: _slope(m, g, opposite(m, m.do(op.MUL, m(t), m(t)))),
    # sums
    "sum": _sum,
    "mean": _mean,
    "amax": _most,
    "amin": _least,
    "logsumexp": _logsumexp,
    "_log_softmax": _log_softmax,
    "_softmax": _softmax,
    "_log_softmax_backward_data": _log_softmax_backward,
    "_softmax_backward_data": _softmax_backward,
    "var": _var,
    "linalg_vector_norm": _norm,
    "cumsum": _cumsum,
    "prod": _product,
    # products
    "mm": _matmul,
    "mv": _matmul,
    "dot": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "addmv": _addmm,
    "baddbmm": _addmm,
    "_to_copy": _to_copy,
    **TRUTHS,
    **PLACES,
}  # fmt: skip
