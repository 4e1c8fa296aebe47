"""What each function does to a jet; functions without a rule are refused."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .jet import Jet, Unsupported

Second = Callable[[], Tensor]
"""f''(z), worked out where a Laplacian is wanted."""


def _silu(z: Tensor) -> tuple[Tensor, Tensor, Second]:
    g = torch.sigmoid(z)
    f = z * g
    return f, torch.addcmul(g, f, 1 - g), lambda: g * (1 - g) * (2 + z * (1 - 2 * g))


def _tanh(z: Tensor, f: Tensor) -> tuple[Tensor, Second]:
    f1 = 1 - f * f
    return f1, lambda: -2 * f * f1


def _sigmoid(z: Tensor, f: Tensor) -> tuple[Tensor, Second]:
    f1 = f * (1 - f)
    return f1, lambda: f1 * (1 - 2 * f)


def _softplus(z: Tensor, f: Tensor) -> tuple[Tensor, Second]:
    g = torch.sigmoid(z)
    return g, lambda: g * (1 - g)


def _gelu(z: Tensor, f: Tensor) -> tuple[Tensor, Second]:
    normal = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(z) + z * normal, lambda: normal * (2 - z * z)


def _rsqrt(z: Tensor, f: Tensor) -> tuple[Tensor, Second]:
    f3 = f * f * f
    return -0.5 * f3, lambda: 0.75 * f3 * f * f


DERIVATIVES: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Second]]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "gelu": _gelu,
    "relu": lambda z, f: ((z > 0).to(z), lambda: torch.zeros_like(z)),
    "abs": lambda z, f: (z.sign(), lambda: torch.zeros_like(z)),
    "exp": lambda z, f: (f, lambda: f),
    "log": lambda z, f: (1 / z, lambda: -1 / (z * z)),
    "sin": lambda z, f: (z.cos(), lambda: -f),
    "cos": lambda z, f: (-z.sin(), lambda: -f),
    "square": lambda z, f: (2 * z, lambda: torch.full_like(z, 2.0)),
    "sqrt": lambda z, f: (0.5 / f, lambda: -0.25 / (f * z)),
    "rsqrt": _rsqrt,
    "reciprocal": lambda z, f: (-f * f, lambda: 2 * f * f * f),
}
"""Functions of single entries: (z, f(z)) -> (f'(z), a function that returns f''(z))."""

WITH_VALUES: dict[str, Callable[[Tensor], tuple[Tensor, Tensor, Second]]] = {"silu": _silu}
"""Functions whose value and derivatives need the same sigmoid: z -> (f(z), f'(z), …)."""


def value_of(a: Any) -> Any:
    """Return the value of a jet, anything else as it is."""
    return a.value if isinstance(a, Jet) else a


def _map(lap: Tensor | float | None, f: Callable[[Tensor], Tensor]) -> Tensor | float | None:
    return f(lap) if isinstance(lap, Tensor) else lap


def _sum(a: Tensor | float, b: Tensor | float, value: Tensor, sign: float = 1) -> Tensor | float:
    """Return a + sign · b of two Laplacians, in the shape of the value; 0.0 for two zeros."""
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return 0.0
    return (a + sign * b).expand(value.shape)  # type: ignore[union-attr]


def _full(z: Jet) -> Tensor:  # the derivatives with a batch dimension of full size
    return z.jac.expand(-1, *z.value.shape)


def _no_more_jets(*others: Any) -> None:
    if any(isinstance(a, Jet) for a in others):
        raise Unsupported("a second argument that depends on x")


def _linear_map(func: Any, z: Any, *args: Any, **kwargs: Any) -> Jet:
    """A function linear in its first argument."""
    if not isinstance(z, Jet):
        raise Unsupported("an argument that depends on x, other than the first")
    _no_more_jets(*args, *kwargs.values())
    f = lambda a: func(a, *args, **kwargs)
    value = f(z.value)
    as_bits = func.__name__ == "view" and any(isinstance(a, torch.dtype) for a in args)
    if as_bits or not value.is_floating_point():
        raise Unsupported("another kind of number")
    if func.__name__ in ("reshape", "view", "flatten") and value.shape == z.value.shape:
        return z
    return Jet(value, torch.vmap(f)(_full(z)), _map(z.lap, f))


def _affine_map(
    func: Any, z: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any
) -> Jet:
    """A linear layer or convolution; its bias has no derivative."""
    _no_more_jets(weight, bias, *args, *kwargs.values())
    if not isinstance(z, Jet):
        raise Unsupported("a weight that depends on x")
    if func is F.linear:
        f = lambda a: F.linear(a, weight)
        return Jet(F.linear(z.value, weight, bias), (z.jac, weight), _map(z.lap, f))
    g = lambda a: func(a, weight, None, *args, **kwargs)
    k, jac = len(z.jac), _full(z)
    images = g(jac.flatten(0, 1)).unflatten(0, (k, -1))
    return Jet(func(z.value, weight, bias, *args, **kwargs), images, _map(z.lap, g))


def _joined(func: Any, parts: Any, *args: Any, **kwargs: Any) -> Jet:
    """`cat` and `stack`, of jets and constants."""
    first = next(p for p in parts if isinstance(p, Jet))
    jacs = [
        _full(p) if isinstance(p, Jet) else p.new_zeros(len(first.jac), *p.shape) for p in parts
    ]
    value = func([value_of(p) for p in parts], *args, **kwargs)
    jac = torch.vmap(lambda *p: func(list(p), *args, **kwargs))(*jacs)
    if first.lap is None:
        return Jet(value, jac, None)
    laps = [p.lap if isinstance(p, Jet) else 0.0 for p in parts]
    if all(isinstance(lap, float) for lap in laps):
        return Jet(value, jac, 0.0)
    pairs = zip(laps, parts, strict=True)
    laps = [a if isinstance(a, Tensor) else torch.zeros_like(value_of(p)) for a, p in pairs]
    return Jet(value, jac, func(laps, *args, **kwargs))


def _entrywise(func: Any, z: Any, *args: Any, **kwargs: Any) -> Jet:
    """A function of single entries, with its default options (softplus names its own)."""
    usual = func is F.softplus and args == (1.0, 20.0)
    if (args and not usual) or any(v not in (False, "none") for v in kwargs.values()):
        raise Unsupported("options of an entrywise function")
    if func.__name__ in WITH_VALUES:
        return _chain(z, *WITH_VALUES[func.__name__](z.value))
    f = func(z.value)
    return _chain(z, f, *DERIVATIVES[func.__name__](z.value, f))


def _chain(z: Jet, f: Tensor, f1: Tensor, f2: Second) -> Jet:
    if z.lap is None:
        return Jet(f, f1 * z.jac, None)
    lap = f2() * z.jac.square().sum(0)
    return Jet(f, f1 * z.jac, torch.addcmul(lap, f1, z.lap) if isinstance(z.lap, Tensor) else lap)


def _pow(func: Any, z: Any, p: Any) -> Jet:
    if not isinstance(z, Jet) or not isinstance(p, int | float):
        raise Unsupported("a power that is not a number")
    if p in (0, 1):
        return (
            _mul(func, z, 1.0)
            if p == 1
            else _chain(z, z.value**0, 0 * z.value, lambda: 0 * z.value)
        )
    f1 = p * z.value ** (p - 1)
    return _chain(z, z.value**p, f1, lambda: p * (p - 1) * z.value ** (p - 2))


def _add(func: Any, a: Any, b: Any, *, alpha: float = 1) -> Jet:
    """Return a + α b, or a − b, of jets and constants."""
    sign = -alpha if func.__name__ in ("sub", "subtract", "__sub__", "__rsub__", "rsub") else alpha
    if func.__name__ in ("__rsub__", "rsub"):
        a, b = b, a
    jet = a if isinstance(a, Jet) else b
    first = value_of(a)
    if not isinstance(first, Tensor):  # in the dtype of the jet, not in the default one
        first = torch.as_tensor(first, dtype=jet.value.dtype, device=jet.value.device)
    value = torch.add(first, value_of(b), alpha=sign)
    if isinstance(a, Jet) and isinstance(b, Jet):
        _same_rank(value, a, b)
        lap = None if a.lap is None or b.lap is None else _sum(a.lap, b.lap, value, sign)
        return Jet(value, torch.add(a.jac, b.jac, alpha=sign), lap)
    z, factor = (a, 1) if isinstance(a, Jet) else (b, sign)
    _same_rank(value, z)
    jac = (z.jac * factor) if factor != 1 else z.jac
    lap = _map(z.lap, lambda v: (v * factor).expand(value.shape))
    if value.shape != z.value.shape:
        jac = jac.expand(-1, *value.shape)
    return Jet(value, jac, lap)


def _same_rank(value: Tensor, *jets: Jet) -> None:
    if any(value.ndim != z.value.ndim for z in jets):
        raise Unsupported("broadcasting over new dimensions")


def _mul(func: Any, a: Any, b: Any) -> Jet:
    """The entrywise product of jets and constants."""
    value = value_of(a) * value_of(b)
    if not (isinstance(a, Jet) and isinstance(b, Jet)):
        z, c = (a, b) if isinstance(a, Jet) else (b, a)
        _same_rank(value, z)
        return Jet(value, z.jac * c, _map(z.lap, lambda v: v * c))
    _same_rank(value, a, b)
    jac = a.jac * b.value + a.value * b.jac
    if a.lap is None or b.lap is None:
        return Jet(value, jac, None)
    lap = a.lap * b.value + a.value * b.lap + 2 * (a.jac * b.jac).sum(0)
    return Jet(value, jac, lap)


def _addcmul(func: Any, a: Any, b: Any, c: Any, *, value: float = 1) -> Jet:
    """Return a + value · b c of jets and constants."""
    jets = isinstance(b, Jet) or isinstance(c, Jet)
    return _add(torch.add, a, _mul(func, b, c) if jets else b * c, alpha=value)


def _div(func: Any, a: Any, b: Any) -> Jet:
    if func.__name__ in ("__rtruediv__", "__rdiv__"):
        a, b = b, a
    if isinstance(b, Jet):
        return _mul(func, a, _entrywise(torch.reciprocal, b))
    value = a.value / b
    _same_rank(value, a)
    return Jet(value, a.jac / b, _map(a.lap, lambda v: v / b))


def _matmul(func: Any, a: Any, b: Any) -> Jet:
    """A matrix product of jets and constants."""
    if isinstance(a, Jet) and not isinstance(b, Jet):
        f = lambda v: v @ b
        return Jet(
            f(a.value), f(a.jac) if b.ndim == 2 else torch.vmap(f)(_full(a)), _map(a.lap, f)
        )
    if not isinstance(a, Jet):
        return _linear_map(lambda v: torch.matmul(a, v), b)
    value, products = a.value @ b.value, torch.vmap(torch.matmul)
    right, left = torch.vmap(lambda v: v @ b.value), torch.vmap(lambda v: a.value @ v)
    jac = right(_full(a)) + left(_full(b))
    if a.lap is None or b.lap is None:
        return Jet(value, jac, None)
    across = products(_full(a), _full(b)).sum(0)
    first = _map(a.lap, lambda v: v @ b.value)
    second = _map(b.lap, lambda v: a.value @ v)
    assert first is not None
    assert second is not None
    return Jet(value, jac, _sum(first, second, value) + 2 * across)


def _softmax(func: Any, z: Jet, dim: int) -> Jet:
    """exp(z) over its sum; what is taken off for safety changes nothing, and so has no derivative."""
    e = _entrywise(torch.exp, _add(operator.sub, z, z.value.detach().amax(dim, keepdim=True)))
    return _mul(None, e, _entrywise(torch.reciprocal, _linear_map(torch.sum, e, dim, True)))


def _group_norm(
    func: Any, z: Jet, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Jet:
    """`_layer_norm` within groups of channels."""
    n, *event = z.value.shape
    pieces = _linear_map(torch.reshape, z, (n, groups, -1))
    pieces = _layer_norm(func, pieces, pieces.value.shape[2:], eps=eps)
    out = _linear_map(torch.reshape, pieces, (n, *event))
    along = (-1, *[1] * (len(event) - 1))
    out = out if weight is None else _mul(func, out, weight.reshape(along))
    return out if bias is None else _add(torch.add, out, bias.reshape(along))


def _layer_norm(
    func: Any, z: Jet, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Jet:
    """(z − mean) / sqrt(var + eps), by the rules above."""
    dims = tuple(range(-len(shape), 0))
    centred = _add(operator.sub, z, _linear_map(torch.mean, z, dims, keepdim=True))
    var = _linear_map(torch.mean, _mul(None, centred, centred), dims, keepdim=True)
    out = _mul(None, centred, _entrywise(torch.rsqrt, _add(torch.add, var, eps)))
    out = out if weight is None else _mul(None, out, weight)
    return out if bias is None else _add(torch.add, out, bias)


def _to(func: Any, z: Any, *args: Any, **kwargs: Any) -> Any:
    """Another dtype or device; also that of a jet, whatever the numbers in x."""
    if isinstance(z, Jet):
        return _linear_map(func, z, *args, **kwargs)
    return func(z, *map(value_of, args), **{k: value_of(v) for k, v in kwargs.items()})


def _masked_fill(func: Any, z: Any, mask: Any, value: Any) -> Jet:
    """A constant in the place of some entries, where the derivatives are 0."""
    _no_more_jets(mask, value)
    filled = func(z.value, mask, value)
    if filled.shape != z.value.shape:
        raise Unsupported("a mask with other dimensions")
    f = lambda a: a.masked_fill(mask, 0.0)
    return Jet(filled, f(_full(z)), _map(z.lap, f))


def _identity(func: Any, z: Jet, p: float = 0.5, training: bool = False, **kwargs: Any) -> Jet:
    """Dropout when it does nothing; memory formats."""
    if training or kwargs.get("train"):
        raise Unsupported("a random function")
    return z


FACTS = frozenset(
    "size dim numel new_zeros new_ones new_empty new_full zeros_like ones_like empty_like full_like "
    "is_floating_point is_complex get_device __len__ shape dtype device ndim layout itemsize is_cuda "
    "is_cpu is_meta is_sparse is_quantized names".split()
)
"""What does not depend on the numbers in x. (`requires_grad` and `detach` would cut a function off
from x without a sign of it, so they are not known here.)"""

SIGNS = frozenset(
    "gt lt ge le eq ne isfinite isnan sign __gt__ __lt__ __ge__ __le__ __eq__ __ne__".split()
)
"""What is constant in x but for jumps."""

_LINEAR = (
    "reshape view flatten unflatten squeeze unsqueeze permute transpose movedim sum mean __getitem__ "
    "expand neg __neg__ avg_pool1d avg_pool2d adaptive_avg_pool2d roll flip "
    "float double narrow select diagonal pixel_shuffle pixel_unshuffle interpolate"
)
RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((*DERIVATIVES, *WITH_VALUES), _entrywise),
    **dict.fromkeys(("pow", "__pow__"), _pow),
    "addcmul": _addcmul,
    **dict.fromkeys(_LINEAR.split(), _linear_map),
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), _affine_map),
    **dict.fromkeys(("cat", "concat", "stack"), _joined),
    **dict.fromkeys("add sub subtract rsub __add__ __radd__ __sub__ __rsub__".split(), _add),
    **dict.fromkeys("mul multiply __mul__ __rmul__".split(), _mul),
    **dict.fromkeys("div divide true_divide __truediv__ __rtruediv__ __rdiv__".split(), _div),
    **dict.fromkeys(("matmul", "__matmul__", "mm", "bmm"), _matmul),
    "softmax": _softmax,
    "to": _to,
    "masked_fill": _masked_fill,
    "unbind": lambda func, z, dim=0: tuple(
        _linear_map(torch.select, z, dim, i) for i in range(z.value.shape[dim])
    ),
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    **dict.fromkeys(("dropout", "contiguous"), _identity),
}
