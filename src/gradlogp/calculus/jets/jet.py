r"""Value, Jacobian and Laplacian carried forward through a function in one pass.

Every intermediate result z of a network is kept with its derivatives along k coordinates and, if a
Laplacian is needed, the sum of its second derivatives,

    z,    ∂_i z (i = 1 … k),    Δz = Σ_i ∂_i² z.

A linear map acts on all three. A function f of single entries gives f'∘z ∂_i z and f'∘z Δz + f''∘z
Σ_i (∂_i z)². So the Laplacian of an energy costs one forward pass with k tangents, half as much as
forward-over-reverse differentiation, and the first layer of a network sees the same tangents for
every sample. Only functions with a rule are supported; for any other `Unsupported` is raised, and
the caller falls back on reverse-mode differentiation.

References:
    | A Computational Framework for Neural Network-Based Variational Monte Carlo with Forward Laplacian
      (Li et al., 2024)
    | https://doi.org/10.1038/s42256-024-00794-x
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Unsupported(NotImplementedError):
    """A function without known derivatives."""


@cache
def _rules() -> ModuleType:
    """Return the rules, which need `Jet`; an import statement would look them up at every call."""
    from . import rules

    return rules


class Jet(Tensor):
    """A tensor `(B, *event)`, its derivatives `(k, B | 1, *event)`, and its Laplacian.

    The Laplacian is 0.0 as long as it is known to vanish, and None if it is not needed. The
    derivatives of a linear layer are kept as `pending` (the derivatives before it, and its
    weight), since a trace needs only a diagonal of them.
    """

    value: Tensor
    lap: Tensor | float | None
    pending: tuple[Tensor, Tensor] | None
    _jac: Tensor | None

    @staticmethod
    def __new__(
        cls: Any, value: Tensor, jac: Tensor | tuple[Tensor, Tensor], lap: Tensor | float | None
    ) -> Jet:
        """Wrap the three; the shape, dtype and device are those of the value."""
        jet: Jet = Tensor._make_wrapper_subclass(
            cls, value.shape, dtype=value.dtype, device=value.device
        )
        jet.value, jet.lap = value, lap
        jet._jac, jet.pending = (None, jac) if isinstance(jac, tuple) else (jac, None)
        return jet

    def __init__(self, *parts: Any) -> None:
        pass

    @property
    def jac(self) -> Tensor:
        """The derivatives."""
        if self._jac is None:
            assert self.pending is not None
            self._jac = F.linear(*self.pending)
        return self._jac

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Refuse what bypassed the rules."""
        raise Unsupported(str(func))

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Apply the rule of a function, or refuse it."""
        rules = _rules()
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "") or str(func)
        if name == "__get__":  # an attribute: shape, dtype, …
            name = func.__self__.__name__
        known = name in rules.FACTS
        # with gradients switched off inside (a custom autograd.Function) the graph would be lost
        if not known and not torch.is_grad_enabled():
            raise Unsupported(name)
        if known or name in rules.SIGNS:
            of = rules.value_of
            with torch._C.DisableTorchFunctionSubclass():
                return func(*map(of, args), **{k: of(v) for k, v in kwargs.items()})
        rule = rules.RULES.get(name)
        if rule is None:
            raise Unsupported(name)
        with torch._C.DisableTorchFunctionSubclass(), torch.set_grad_enabled(_WITH_GRAPH.get()):
            try:
                return rule(func, *args, **kwargs)
            except (RuntimeError, TypeError) as error:  # the fallback meets the user's errors
                raise Unsupported(name) from error


_WITH_GRAPH = ContextVar("_WITH_GRAPH", default=True)
"""Whether the rules record what they do, which is not needed if no gradient is computed."""


def _units(x: Tensor, index: Tensor) -> Tensor:
    """Return the unit vectors of the coordinates `index`, `(k, 1, *event)`."""
    return F.one_hot(index, x.shape[1:].numel()).to(x).reshape(-1, 1, *x.shape[1:])


def _evaluate(f: Callable[[Tensor], Tensor], x: Jet) -> Any:
    before = _WITH_GRAPH.set(torch.is_grad_enabled())
    try:
        with torch.enable_grad():  # see above
            return f(x)
    finally:
        _WITH_GRAPH.reset(before)


def _given(a: Tensor) -> Tensor:
    return a if torch.is_grad_enabled() else a.detach()


def second_derivatives(
    log_prob: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return vᵀ∇log p for directions v `(k, B | 1, *event)`, `(k, B)`, and Σ_v vᵀ(∇²log p)v, `(B,)`."""
    out = _evaluate(log_prob, Jet(x, directions, 0.0))
    if not isinstance(out, Jet) or out.lap is None or out.value.shape != x.shape[:1]:
        raise Unsupported("a result that does not depend on x, or is not one number per sample")
    lap = out.lap if isinstance(out.lap, Tensor) else torch.full_like(out.value, out.lap)
    return _given(out.jac.expand(-1, len(x))), _given(lap)


def laplacian(
    log_prob: Callable[[Tensor], Tensor], x: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ∂_i log p for the coordinates i in `index`, `(k, B)`, and Σ_i ∂_i² log p, `(B,)`."""
    return second_derivatives(log_prob, x, _units(x, index))


def partial_trace(
    s: Callable[[Tensor], Tensor], x: Tensor, index: Tensor
) -> tuple[Tensor, Tensor]:
    """Return s(x) and Σ_i ∂_i s_i over the coordinates i in `index`, `(B,)`."""
    out = _evaluate(s, Jet(x, _units(x, index), None))
    if not isinstance(out, Jet) or out.value.shape != x.shape:
        raise Unsupported("a result that does not depend on x, or has another shape")
    if out.pending is not None and x.ndim == 2:  # the i-th output of the last layer only
        before, weight = out.pending
        trace = (before * weight[index].unsqueeze(1)).sum((0, 2)).expand(len(x))
        return _given(out.value), _given(trace)
    jac = out.jac.expand(-1, *x.shape).flatten(2)
    at = index.reshape(-1, 1, 1).expand(-1, len(x), 1)
    return _given(out.value), _given(jac.gather(2, at).sum((0, 2)))
