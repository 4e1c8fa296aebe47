"""The result of a conformance check, and its errors: number, right number, likeliest mistake."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...core import Estimate, NoiseSource, mean_and_error

Slips = Mapping[str, float]
"""What may have gone wrong -> the number that would then be found."""

NEAR = 0.1
"""How near a number must be to that of a slip, compared with how far it is from the right one."""

BEYOND = 5.0
"""Standard errors by which a mean over exact draws may be off: by chance once in 2 million."""


EXACT = torch.finfo(torch.float64).eps
"""The rounding of a number in double precision."""

ROUNDED = 256
"""Roundings by which a number may be off that a few operations give."""


class ConformanceError(AssertionError):
    """A number that differs from the right one.

    Attributes:
        check: What was measured.
        found: The number found.
        right: The right number.
        likely: The likeliest mistake, in words.
    """

    def __init__(self, check: str, found: object, right: object, likely: str) -> None:
        self.check, self.found, self.right, self.likely = check, found, right, likely
        super().__init__(
            f"{check}: found {_shown(found)}, and {_shown(right)} is right; likeliest mistake: {likely}"
        )


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Report(dict[str, Estimate]):
    """Measured values: name -> number with its error bar; `print` shows one line each.

    Attributes:
        eps: The rounding unit of the measurement: that of float32 for a law whose tensors are in
            float32.
    """

    eps = EXACT

    def __str__(self) -> str:
        width = max(map(len, self), default=0)
        return "\n".join(
            f"{name:<{width}}  {number if number.standard_error else f'{number.value:.6g}'}"
            for name, number in self.items()
        )

    def measure(self, name: str, value: Tensor | float, error: float = 0.0) -> float:
        """Keep a number, and return it."""
        self[name] = Estimate(float(value), error)
        return float(value)

    def allows(self, exact: float) -> float:
        """Return the deviation that is rounding: `exact` in double precision, else 10⁴ roundings."""
        return max(exact, 1e4 * self.eps)

    def cancelled(self, x: Tensor, s: Tensor) -> float:
        """Return what rounding of x leaves of (α E[x_0|x] − x) over s, where most of x cancels."""
        return ROUNDED * self.eps * float(x.norm() / s.norm())

    def hold(
        self,
        name: str,
        found: Tensor | float,
        right: Tensor | float,
        tolerance: float,
        slips: Slips | None = None,
        *,
        d: int | None = None,
        else_: str | None = None,
    ) -> None:
        """Record a number that must be within `tolerance` of the right one.

        Arguments:
            name: What is measured.
            found: The number found.
            right: The right number.
            tolerance: The largest deviation that counts as rounding, or the order of neglected
                terms.
            slips: Known mistakes for this number; the usual ones are tried after these.
            d: The dimension, which may be forgotten or counted twice.
            else_: The likeliest mistake if none of `slips` gives this number, instead of the usual
                ones.

        Raises:
            ConformanceError: If the deviation is larger, or the number is not finite.
        """
        found, right = self.measure(name, found), float(right)
        if not abs(found - right) <= tolerance:
            raise ConformanceError(name, found, right, likeliest(found, right, slips, d, else_))

    def small(self, name: str, found: Tensor | float, most: float, likely: str) -> None:
        """Record a deviation that must be rounding.

        Raises:
            ConformanceError: If it is above `most`, or not finite.
        """
        found = self.measure(name, found)
        if not found <= most:
            raise ConformanceError(name, found, f"at most {most:.1g}", likely)

    def mean(
        self, name: str, values: Tensor, right: float, slips: Slips | None = None, **more: Any
    ) -> None:
        """Keep the mean of independent numbers `(n,)`, which must be within `BEYOND` errors."""
        found = mean_and_error(values)
        self.hold(
            name,
            found.value,
            right,
            BEYOND * found.standard_error + max(1e-12, ROUNDED * self.eps),
            slips,
            **more,
        )
        self[name] = found


def require(condition: bool, check: str, found: object, right: object, likely: str) -> None:
    """Raise `ConformanceError` unless a condition holds, as of a shape or a type."""
    if not condition:
        raise ConformanceError(check, found, right, likely)


def likeliest(
    found: float,
    right: float,
    slips: Slips | None = None,
    d: int | None = None,
    else_: str | None = None,
) -> str:
    """Return the mistake that gives this number: of those known here, or of the usual ones."""
    if not math.isfinite(found):
        return "a division by 0, or a step that explodes: look at its sign and size"
    usual = {
        "a wrong sign": -right,
        "a factor 2 too many": 2 * right,
        "a missing factor 2": right / 2,
        "a missing or an extra square root (√2)": math.sqrt(2) * right,
        "a missing or an extra square root (1/√2)": right / math.sqrt(2),
        "a factor 2 squared": 4 * right,
        "a factor 1/2 squared": right / 4,
        "something left out": 0.0,
    }
    if d is not None and d > 1:
        usual |= {
            f"a factor d = {d}, a sum where a mean belongs": d * right,
            f"a division by d = {d}, a mean where a sum belongs": right / d,
        }
    for known in (slips or {}, usual if right != 0 and else_ is None else {}):
        off = {slip: abs(found - value) for slip, value in known.items()}
        best = min(off, key=off.__getitem__, default=None)
        if best is not None and off[best] < NEAR * abs(found - right):
            return f"{best} (it gives {known[best]:.6g})"
    return else_ or "none of the usual mistakes (sign, factor 2, square root, d) gives this number"


# ---------------------------------------------------------------------------- noise


class Watched:
    """A source of noise that records the law and the shape of every draw.

    Arguments:
        shared: Whether all rows get the same noise.
        seed: Seed of the numbers.
    """

    def __init__(self, shared: bool = False, seed: int = 0) -> None:
        self.shared, self.generator = shared, torch.Generator().manual_seed(seed)
        self.asked: list[tuple[Callable[..., Tensor], torch.Size]] = []

    def draw(self, law: Callable[..., Tensor], shape: torch.Size, like: Tensor) -> Tensor:
        """Return numbers of the law, in the dtype of `like`."""
        self.asked.append((law, shape))
        drawn = (1, *shape[1:]) if self.shared else shape
        return law(drawn, generator=self.generator, dtype=torch.float64).to(like).expand(shape)


def seeded(seed: int = 0) -> torch.Generator:
    """Return a generator at a fixed place."""
    return torch.Generator().manual_seed(seed)


def with_own_noise(call: Callable[[Any], Any], what: str) -> Any:
    """Return call(source) with our own source of noise, if call(torch.Generator) works.

    Raises:
        ConformanceError: If it does not accept our source: it draws by
            `torch.randn(generator=...)`.
    """
    call(seeded())
    source: NoiseSource = Watched()
    try:
        return call(source)
    except Exception as error:
        raise ConformanceError(
            f"{what} with a noise source in place of a torch.Generator",
            f"{type(error).__name__}: {error}",
            "noise from core.randn_like(x, generator)",
            "noise from torch.randn(..., generator=generator): chunks, streams and these checks supply "
            "the noise themselves, so draw it with gradlogp.core.randn_like(x, generator)",
        ) from error


def coarsest(*tensors: Tensor) -> float:
    """Return the rounding of the least precise of these tensors."""
    return max([EXACT, *(torch.finfo(v.dtype).eps for v in tensors if v.is_floating_point())])


def parameters_of(f: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function, by name; none where they cannot be looked up."""
    try:
        return dict(inspect.signature(f).parameters)
    except (TypeError, ValueError):
        return {}


def off_by(a: Tensor, b: Tensor) -> float:
    """Return the largest deviation, compared with the larger of 1 and the largest entry."""
    if a.shape != b.shape:
        return math.inf
    if not a.numel():
        return 0.0
    a, b = a.detach().double(), b.detach().double()
    off = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
    off = torch.where(off.isnan(), torch.inf, off)  # a number where the other has none
    size = torch.where(b.isfinite(), b.abs(), 0.0)  # an infinite entry would hide all others
    return float(off.max() / max(1.0, float(size.max())))
