"""Shapes and checks of arguments, with one wording for each refusal.

Entry points (drivers, estimators, metrics, objectives, constructors) run all checks once. Code
inside a loop checks only shapes, because looking at values would wait for the device.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from inspect import signature
from numbers import Integral, Rational, Real
from typing import Any, get_args

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)
"""Precisions in which statistics are computed: half precision has no digits to sum."""


LARGEST = 2**63 - 1
"""What a tensor can count."""


def check_batch(
    x: Tensor, event_shape: torch.Size | None = None, name: str = "x", *, held: bool = True
) -> None:
    """Raise `ValueError` unless x is a floating-point batch `(B, *event)`.

    Its numbers must be in memory, unless `held` is False: compilers pass tensors without memory.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {shown(x)}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {x.dtype}; convert it with .float()")
    (_check_held if held else _check_dense)(x, name)
    if x.ndim < 2 or (event_shape is not None and x.shape[1:] != event_shape):
        event = "*event" if event_shape is None else ", ".join(map(str, event_shape))
        raise ValueError(f"{name} must have shape (B, {event}), got {tuple(x.shape)}")


def check_points(
    x: Tensor,
    name: str = "x",
    event_shape: torch.Size | None = None,
    least: int = 1,
    *,
    wait: bool = True,
) -> None:
    """Raise `ValueError` unless x is a batch `(B, *event)` of at least so many rows, all finite.

    Without `wait` as `check_finite`, what loops of others call.
    """
    check_batch(x, event_shape, name)
    check_finite(x, name, wait=wait)
    if len(x) < least:
        raise ValueError(f"{name} must have at least {least} rows, got {len(x)}")


def check_event_shape(shape: object, name: str = "event_shape") -> None:
    """Raise `ValueError` unless this is a tuple of positive integers."""
    whole = isinstance(shape, tuple) and all(
        isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in shape
    )
    if not whole:
        raise ValueError(
            f"{name} must be a tuple of positive sizes such as (3,), got {shown(shape)}"
        )


def check_finite(x: Tensor, name: str, *, wait: bool = True) -> None:
    """Raise `ValueError` unless x holds numbers, in float32 or float64, and all are finite.

    Without `wait` finite is looked for only in what is on the host.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"{name} must be a torch.Tensor, got {shown(x)}")
    if x.dtype not in FLOATS:
        raise ValueError(
            f"{name} must be float32 or float64, got {x.dtype}; convert it with .float()"
        )
    _check_held(x, name)
    if x.numel() == 0:
        raise ValueError(f"{name} is empty, shape {tuple(x.shape)}")
    if not wait and x.device.type != "cpu":
        return
    # one pass; only a sum that is not finite is looked at more closely
    if not math.isfinite(x.detach().sum().item()) and not bool(torch.isfinite(x).all()):
        if x.ndim < 2:
            raise ValueError(f"{name} must be finite, got {shown(x)}")
        bad = int((~torch.isfinite(x)).flatten(1).any(1).sum())
        raise ValueError(f"{name} has {bad} of {len(x)} rows that are not finite; remove them")


def _check_dense(x: Tensor, name: str) -> None:
    """Raise `ValueError` unless the numbers of a tensor stand one beside the other."""
    if x.layout is not torch.strided:
        raise ValueError(f"{name} must be dense, got {x.layout}; convert it with .to_dense()")


def _check_held(x: Tensor, name: str) -> None:
    """Raise `ValueError` unless all numbers of a tensor are in memory, one beside the other."""
    _check_dense(x, name)
    if x.device.type == "meta":
        raise ValueError(f"{name} must hold numbers, got a tensor on the meta device")


def check_device(device: object, name: str = "device") -> None:
    """Raise `ValueError` unless this is a device that this machine has."""
    try:
        torch.empty(1, device=device).tolist()  # type: ignore[call-overload]
    except (RuntimeError, AssertionError, TypeError, ValueError, OverflowError) as error:
        why = str(error).splitlines()[0]
        raise ValueError(
            f"{name} must be one of this machine such as 'cpu', got {shown(device)}: {why}"
        ) from None


def check_dtype(dtype: object, name: str = "dtype") -> None:
    """Raise `ValueError` unless this is a precision in which statistics are computed."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS:
        raise ValueError(f"{name} must be torch.float32 or torch.float64, got {dtype!r:.60}")


def check_same_shape(out: Tensor, x: Tensor, name: str) -> None:
    """Raise `ValueError` unless a function of x returned real numbers in the shape of x."""
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if shape != tuple(x.shape):
        raise ValueError(f"{name} returned shape {shape} for x of {tuple(x.shape)}")
    if out.is_complex():
        raise ValueError(f"{name} must return real numbers, got {out.dtype}")


def evaluate(
    f: Callable[[Tensor], Tensor], x: Tensor, name: str = "score", *, finite: bool = False
) -> Tensor:
    """Return f(x); `ValueError` if f cannot be called or returns another shape than that of x."""
    check_function(f, name)
    out = f(x)
    check_same_shape(out, x, name)
    if finite:
        check_finite(out, name)
    return out


def check_count(
    value: Any, name: str, least: int = 1, why: str = "", *, most: int | None = None
) -> None:
    """Raise `ValueError` unless this is an integer within the bounds."""
    if (
        isinstance(value, bool)
        or not isinstance(value, Integral)
        or not least <= int(value) <= (LARGEST if most is None else most)
    ):
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {span}, got {shown(value)}{why}")


def check_number(
    value: Tensor | float,
    name: str,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    why: str = "",
) -> None:
    """Raise `ValueError` unless this is one finite number within the bounds."""
    number = _float(value) if _is_number(value) else math.nan
    if not (
        math.isfinite(number)
        and (above is None or number > above)
        and (least is None or number >= least)
        and (below is None or number < below)
        and (most is None or number <= most)
    ):
        what = _bounds(above, least, below, most)
        raise ValueError(f"{name} must {what}, got {shown(value)}{why}")


def check_level(
    value: Tensor | float,
    x: Tensor,
    name: str = "sigma",
    *,
    zero: bool = False,
    why: str = "",
) -> Tensor:
    """Return a scale `()` or one per sample `(B,)`, positive or `zero`, so that it multiplies x.

    Raises:
        ValueError: For a different shape, or a value that is not finite or too small.
    """
    v = per_sample(value, x, name)
    if not bool((torch.isfinite(v) & (v >= 0 if zero else v > 0)).all()):
        lowest = f"a minimum of {v.min().item():.4g}" if v.ndim else f"{v.item():.4g}"
        bound = "at least 0" if zero else "positive"
        raise ValueError(f"{name} must be {bound} and finite, got {lowest}{why}")
    return v


def check_option(value: object, name: str, options: Any) -> None:
    """Raise `ValueError` unless this is one of the words, given as a `Literal` or a sequence."""
    words = get_args(options) or tuple(options)
    if not isinstance(value, str) or value not in words:
        *rest, last = map(repr, words)
        listed = f"{', '.join(rest)} or {last}" if rest else last
        raise ValueError(f"{name} must be {listed}, got {shown(value)}")


def check_function(
    value: object,
    name: str,
    why: str = "",
    *,
    takes: int | None = None,
    by_name: tuple[str, ...] = (),
) -> None:
    """Raise `ValueError` unless this can be called, with these arguments where that is known."""
    if not callable(value):
        raise ValueError(f"{name} must be a function, got {shown(value)}{why}")
    if takes is not None:
        try:
            called = signature(value.forward if isinstance(value, torch.nn.Module) else value)
        except ValueError:  # as of some functions in C
            return
        try:
            called.bind(*[None] * takes, **dict.fromkeys(by_name))
        except TypeError as error:
            more = "".join(f" and {key}=" for key in by_name)
            raise ValueError(
                f"{name} must be a function of {takes} arguments{more}: {error}"
            ) from None


def asked(f: Callable[[Tensor], Any], x: Tensor, name: str) -> Any:
    """Return f(x), refusing what was computed by NumPy or SciPy, which have no gradients.

    Raises:
        TypeError: For such a function; a `ValueError` would count as a point outside the support.
    """
    try:
        value = f(x)
    except (RuntimeError, TypeError) as error:
        place, said = error.__traceback__, str(error)
        while place is not None and place.tb_frame.f_code.co_name != "__array__":
            place = place.tb_next
        # np.sum(x, axis=1) of a tensor x calls x.sum(axis=1, out=None); PyTorch 2.6 has other words
        signs = "call numpy()", "argument 'axis'", "(out=NoneType, axis="
        if place is not None or any(sign in said for sign in signs):
            raise TypeError(NUMPY.format(name)) from error
        raise
    if type(value).__module__ == "numpy":
        raise TypeError(NUMPY.format(name))
    return value


NUMPY = (  # what to write instead of a function of arrays
    "{} is computed by NumPy or SciPy, which have no gradients: write it with PyTorch (torch.exp for "
    "np.exp, dim= for axis=, torch.distributions for scipy.stats); or, if you have its gradient too, "
    "pass both as functions of tensors, log_prob=lambda x: torch.from_numpy(f(x.detach().numpy())) and "
    "score=lambda x: torch.from_numpy(g(x.detach().numpy()))"
)


def check_kind(value: object, name: str, kind: Any, what: str, why: str = "") -> None:
    """Raise `ValueError` unless this is an instance of a kind, or has all attributes of a tuple."""
    if isinstance(kind, tuple) and all(isinstance(k, str) for k in kind):
        right = not isinstance(value, type) and all(hasattr(value, k) for k in kind)
    else:
        right = isinstance(value, kind)
    if not right:
        raise ValueError(f"{name} must be {what}, got {shown(value)}{why}")
    if isinstance(value, Tensor):
        _check_held(value, name)


def check_per_sample(value: Tensor | float, x: Tensor, name: str = "t") -> None:
    """Raise `ValueError` unless this is a number `()` or one per sample `(B,)` of x `(B, *event)`."""
    if not isinstance(value, (Tensor, Real)):
        raise ValueError(f"{name} must be a number or a tensor, got {shown(value)}")
    if isinstance(value, Tensor):
        (_check_dense if x.device.type == "meta" else _check_held)(value, name)
        if value.ndim and value.shape != x.shape[:1]:
            raise ValueError(
                f"{name} must have shape () or ({x.shape[0]},), got {tuple(value.shape)}"
            )


def per_sample(value: Tensor | float, x: Tensor, name: str = "t") -> Tensor:
    """Reshape a number `()` or one per sample `(B,)` so that it multiplies x `(B, *event)`.

    What is on the host goes to the device of x without a wait for it.
    """
    check_per_sample(value, x, name)
    if not isinstance(value, Tensor):
        return x.new_full((), _float(value))
    v = sent(value, x.device, x.dtype)
    return v.reshape(-1, *[1] * (x.ndim - 1)) if v.ndim else v


def sent(v: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return v on a device: what is on the host goes there without a wait, and the other way waits."""
    return v.to(device, v.dtype if dtype is None else dtype, non_blocking=v.device.type == "cpu")


def along(v: Tensor, value: Tensor) -> Tensor:
    """Return vᵀ value for a constant v, to differentiate in place of the value at the vector v.

    For the latter PyTorch imports sympy, which takes a second.
    """
    with torch.inference_mode(False), torch.enable_grad():
        return (value * (v.clone() if v.is_inference() else v)).sum()


def sum_event(x: Tensor) -> Tensor:
    """Sum over the event dimensions: `(B, *event) -> (B,)`."""
    return x.flatten(1).sum(1)


# ---------------------------------------------------------------------------- wording


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        held = value.layout is torch.strided and value.device.type != "meta"
        return held and value.ndim == 0 and not value.is_complex() and value.dtype != torch.bool
    fraction = isinstance(value, Rational) and not isinstance(
        value, Integral
    )  # no tensor takes it
    return isinstance(value, Real) and not isinstance(value, bool) and not fraction


def _float(value: Tensor | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond the largest number
        return math.inf


def _bounds(
    above: float | None, least: float | None, below: float | None, most: float | None
) -> str:
    low, high = (least if above is None else above), (most if below is None else below)
    if low is not None and high is not None:
        left, right = "[" if above is None else "(", "]" if below is None else ")"
        return f"lie in {left}{low:g}, {high:g}{right}"
    if low is not None:
        bound = f"at least {low:g}" if above is None else f"above {low:g}" if low else "positive"
        return f"be {bound} and finite"
    if high is not None:
        return f"be {'at most' if below is None else 'below'} {high:g} and finite"
    return "be a finite number"


def shown(value: object) -> str:
    """Say what was given, in one line."""
    if isinstance(value, Tensor):
        if value.ndim == 0 and value.device.type != "meta":
            return str(value.item())
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value)
    plain = isinstance(value, (str, int, float, complex, tuple, type(None)))
    return text if plain and len(text) <= 60 else type(value).__name__


LONGEST = 80
"""Characters of a name or a value in a message: files may have cells of any length."""


def nearest(name: str, known: Sequence[str]) -> str:
    """Return advice on a name that is not known, to put after it."""
    near = difflib.get_close_matches(name, known, 1, 0.65)
    return (f"; did you mean '{near[0]}'?" if near else ";") + f" known: {some(known, 20)}"


def some(items: Sequence[object], most: int = 5) -> str:
    """Return the first items as text, each no longer than `LONGEST`."""
    return ", ".join(map(short, items[:most])) + (", …" if len(items) > most else "")


def short(item: object) -> str:
    """Return an item as text, cut after `LONGEST` characters."""
    text = str(item)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def joined(items: Sequence[str]) -> str:
    """Return items with commas between them, to be copied; cut where they fill no line but a screen."""
    whole = ",".join(items)
    return whole if len(whole) <= 10 * LONGEST else f"{whole[: 10 * LONGEST - 1]}…"


def listed(sentences: Sequence[str], most: int = 10) -> str:
    """Return sentences in one line, and how many more there are."""
    more = len(sentences) - most
    return "; ".join(sentences[:most]) + (f"; and {more} more" if more > 0 else "")
