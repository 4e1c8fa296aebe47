r"""Quasi-Newton minimisation from one starting point or several, with the path from each.

A search is a generator that yields the point at which it needs f, so that the searches from several
points can have their evaluations made together, in one batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core import check_count, check_function, check_number, check_points

DENSE, MEMORY = 200, 30
"""Up to so many dimensions H is a matrix; beyond, it is made of the last so many steps."""

LATE = 10
"""The last steps, which tell how sharply f bends where the search is."""

WIDE, WIDER = 1e4, 1e3
"""The unit of length at first, in lengths of the sharpest bend, and by how much each search widens it.

An H that starts too large costs a few evaluations a direction; one too small for a flat direction takes
it for solved. With these H is right to 1e-8 in directions flatter by 1e16, then by 1e22.
"""


SEARCHES = 60
"""Trials along one way."""


class Path(NamedTuple):
    """The points of a minimisation, from the start to the end, and how it ended.

    Attributes:
        points: The start and the end of each step, `(k, *event)`.
        values: f there, `(k,)`, float64; they never rise.
        gradients: ∇f there, shape of points.
        converged: Whether a new search from the last point, without the metric learned so far,
            gained no more than the tolerance, and the gradient is correspondingly small.
        evaluations: How often f and its gradient were evaluated, including failures.
    """

    points: Float[Tensor, "k *event"]
    values: Float[Tensor, " k"]
    gradients: Float[Tensor, "k *event"]
    converged: bool
    evaluations: int


T = TypeVar("T")
Value = tuple[float, np.ndarray]
"""f and ∇f at one point, flat; +∞ and 0 where they are not finite or cannot be computed."""

Asking = Generator[Tensor, Value, T]
"""What yields points `(1, *event)`, is sent f and ∇f there, and returns T in the end."""

Function = Callable[[Tensor], tuple[Tensor, Tensor]]


class _Spent(Exception):
    """No evaluation is left."""


class _Still(Exception):
    """f does not change any more on the way."""


def _values(f: Function, x: Tensor, first: bool = False) -> list[Value]:
    """Return f and ∇f at each row of x; if `first`, an error of f is raised."""
    try:
        value, gradient = f(x)
    except (ArithmeticError, RuntimeError, ValueError):  # a factorisation, a law's parameters
        if len(x) > 1:
            return [_values(f, row[None], first)[0] for row in x]
        if first:
            raise
        return [(np.inf, np.zeros(x.numel()))]
    if value.shape != x.shape[:1] or gradient.shape != x.shape:
        raise TypeError(
            f"f must return shapes {tuple(x.shape[:1])} and {tuple(x.shape)}, got "
            f"{tuple(value.shape)} and {tuple(gradient.shape)}"
        )
    v, g = value.double().tolist(), gradient.flatten(1).numpy(force=True).astype(float)
    ok = np.isfinite(v) & np.isfinite(g).all(1)
    return [(v[i], g[i]) if ok[i] else (np.inf, np.zeros_like(g[i])) for i in range(len(v))]


class _Search:
    """f in the coordinates w = (x − x₀)/unit, and the path that the search has accepted."""

    def __init__(
        self, f: Function, x0: Tensor, at_start: Value, tolerance: float, max_evaluations: int
    ) -> None:
        self.f, self.x0, self.tolerance = f, x0, tolerance
        self.most, self.left = max_evaluations, max_evaluations - 1
        self.unit, self.small, self.converged = 1.0, 0, False
        self.bends: list[float] = []
        self.path = [(np.zeros(x0.numel()), *at_start)]
        self.trials: list[tuple[np.ndarray, float, np.ndarray]] = []

    def evaluate(self, x: Tensor) -> Asking[Value]:
        """Ask for f and ∇f."""
        if self.left == 0:
            raise _Spent
        self.left -= 1
        return (yield x)

    def at(self, w: np.ndarray) -> Tensor:
        """Return x₀ + unit · w, `(1, *event)`."""
        step = torch.from_numpy(self.unit * w).reshape(self.x0.shape)
        return (self.x0.double() + step.to(self.x0.device)).to(self.x0)

    def enough(self) -> float:
        """Return the tolerance, or the rounding of f where that is larger."""
        return max(self.tolerance, 8 * torch.finfo(self.x0.dtype).eps * abs(self.path[-1][1]))

    def value(self, w: np.ndarray) -> Asking[Value]:
        """Ask for f and its gradient in the coordinates w."""
        old, v, g = self.path[-1]
        if np.array_equal(w, old):
            return v, g
        x = self.at(w)
        finite = bool(x.isfinite().all())
        value, gradient = (yield from self.evaluate(x)) if finite else (np.inf, g)
        if value == np.inf:
            # interpolation goes to where this parabola along the way has its minimum, a fifth of it
            return v + 1.5 * abs(float(g @ (w - old))), -4 * g
        self.trials.append((w.copy(), value, self.unit * gradient))
        if sum(abs(trial[1] - v) <= self.enough() for trial in self.trials) > 3:
            raise _Still
        return self.trials[-1][1:]

    def accept(self, w: np.ndarray) -> None:
        """Keep w, one of the trials; two steps in a row that gain next to nothing are the last."""
        old, new = self.path[-1], next(t for t in reversed(self.trials) if np.array_equal(t[0], w))
        self.small = self.small + 1 if old[1] - new[1] <= self.enough() else 0
        self.bends.append(_bend(old, new) / self.unit / self.unit)
        self.path.append(new)
        self.trials.clear()
        if self.small == 2:
            raise _Still

    def probe(self) -> Asking[None]:
        """Estimate the curvature of f along its gradient at the start, with one more evaluation.

        The step is 1/‖∇f‖, along which f changes by 1: it scales with x.
        """
        _, _, g = self.path[0]
        size = float(np.linalg.norm(g))
        way = -g / size / size
        new = (way, *(yield from self.evaluate(self.at(way))))
        bend = _bend(self.path[0], new) if new[1] < np.inf else 0.0
        self.bends = [bend if bend > 0 else size * size]

    def level(self) -> bool:
        """Return whether ‖∇f‖²/(2λ) is nothing, λ the sharpest bend on the way, up to rounding."""
        rounding = 8 * torch.finfo(self.x0.dtype).eps * float(self.at(self.path[-1][0]).norm())
        most = max(self.bends)
        size = float(np.linalg.norm(self.path[-1][2])) / self.unit
        return size <= (2 * most * self.enough()) ** 0.5 + most * rounding

    def run(self, width: float) -> Asking[tuple[float, bool]]:
        """Search from the end of the path without a metric; return the gain, and if f was still.

        Lengths are in units of `width` times the length over which f recently curved by 1.
        """
        unit = width / (max(self.bends[-LATE:]) or 1.0) ** 0.5  # a plane does not bend
        ratio, self.unit = unit / self.unit, unit
        self.path = [(w / ratio, v, ratio * g) for w, v, g in self.path]
        w, v, _ = self.path[-1]
        self.small = 0
        self.trials.clear()
        try:
            if len(w) <= DENSE:
                yield from self._few(w)
            else:
                self._many(w)
            still = False
        except _Still:
            still = True
        return v - self.path[-1][1], still

    def _few(self, w: np.ndarray) -> Asking[None]:
        """Search with all of H, until a way has no point that is good enough."""
        H, before = np.eye(len(w)), None
        while True:
            _, v, g = self.path[-1]
            way = -H @ g
            slope = float(g @ way)
            gain = float(np.linalg.norm(g)) / 2 if before is None else before - v
            if not slope < 0:  # nor if it is no number
                return
            a = yield from _wolfe(self.value, w, v, slope, way, min(1.0, 2.02 * gain / -slope))
            if not a:
                return
            old, w = w, w + a * way
            before, (_, y) = v, (yield from self.value(w))
            self.accept(w)
            step, y = w - old, y - g
            rho = 1 / float(y @ step)
            left = np.eye(len(w)) - rho * np.outer(step, y)
            H = left @ H @ left.T + rho * np.outer(step, step)

    def _many(self, w: np.ndarray) -> None:
        """Search with an H of the last steps alone, and evaluate f on the spot."""
        from scipy.optimize import minimize

        most = self.left + 2
        options = {
            "gtol": 0.0, "ftol": 0.0, "maxiter": most, "maxfun": most, "maxcor": MEMORY, "maxls": 50,
        }  # fmt: skip
        minimize(
            lambda w: _driven(self.value(w), self.f), w, jac=True, method="L-BFGS-B",
            callback=lambda w: self.accept(w), options=options,
        )  # fmt: skip

    def search(self) -> Asking[Path]:
        """Search until there is no further gain, or no evaluation left; return the path."""
        self.converged = not self.path[0][2].any()
        with contextlib.suppress(_Spent):
            if not self.converged:
                yield from self.probe()
            width = WIDE
            while not self.converged:
                gain, still = yield from self.run(width)
                if width > WIDE and gain <= self.enough():
                    self.converged = self.level()
                    break
                # what ended without an end begins again as at the start
                width = WIDE * WIDER if still or gain <= self.enough() else WIDE
        w, values, gradients = (np.stack(part) for part in zip(*self.path, strict=True))
        return Path(
            torch.cat([self.at(row) for row in w]),
            torch.from_numpy(values),
            torch.from_numpy(gradients / self.unit).reshape(-1, *self.x0.shape[1:]).to(self.x0),
            self.converged,
            self.most - self.left,
        )


def _driven(asking: Asking[T], f: Function) -> T:
    """Return what a generator returns, with f evaluated where it asks."""
    try:
        x = next(asking)
        while True:
            x = asking.send(_values(f, x)[0])
    except StopIteration as end:
        return end.value


def _wolfe(
    f: Callable[[np.ndarray], Asking[Value]],
    w: np.ndarray,
    v: float,
    slope: float,
    way: np.ndarray,
    a: float,
) -> Asking[float]:
    """Return a step along a direction to where f is lower and flatter, trying a first; 0 if none.

    The strong Wolfe conditions: f has fallen by at least 1e-4 of the linear prediction, and its
    slope is at most 0.9 of the initial one. Brackets shrink to the minimum of a cubic.
    """
    low, high = (0.0, v, slope), None
    for _ in range(SEARCHES):
        value, gradient = yield from f(w + a * way)
        new = a, value, float(gradient @ way)
        if value > v + 1e-4 * a * slope or value >= low[1]:
            high = new
        elif abs(new[2]) <= -0.9 * slope:
            return a
        else:
            if new[2] * ((high[0] if high else math.inf) - low[0]) >= 0:
                high = low
            low = new
        if high is None:
            a *= 4
        else:
            a = low[0] + (high[0] - low[0]) * min(max(_lowest(low, high), 0.1), 0.9)
    return 0.0


def _lowest(low: tuple[float, float, float], high: tuple[float, float, float]) -> float:
    """Return where the cubic of two values and slopes is lowest, as a part of the way between."""
    length = high[0] - low[0]
    a, b = low[2] * length, high[2] * length
    z = a + b - 3 * (high[1] - low[1])
    root = z * z - a * b
    if not (root >= 0 and math.isfinite(root)):
        return 0.5
    root = math.sqrt(root)
    below = b - a + 2 * root
    return 1 - (b + root - z) / below if below else 0.5


def _bend(
    a: tuple[np.ndarray, float, np.ndarray], b: tuple[np.ndarray, float, np.ndarray]
) -> float:
    """Return ‖Δ∇f‖/‖Δw‖ between two points."""
    return float(np.linalg.norm(b[2] - a[2]) / np.linalg.norm(b[0] - a[0]))


def minimise(
    f: Callable[[Tensor], tuple[Tensor, Tensor]],
    x0: Float[Tensor, "1 *event"],
    *,
    tolerance: float = 1e-8,
    max_evaluations: int = 2000,
) -> Path:
    r"""Minimise f from one starting point by BFGS, and return the points of the path.

    .. math:: x_{k+1} = x_k - a_k H_k \nabla f(x_k), \quad
              H_{k+1} (\nabla f(x_{k+1}) - \nabla f(x_k)) = x_{k+1} - x_k

    with a_k from a line search for the strong Wolfe conditions. Lengths are measured by f itself,
    so that the unit of x does not matter. Where f or its gradient is not finite, or raises an
    `ArithmeticError`, `RuntimeError` or `ValueError`, f counts as +∞ and the search backs off.
    When there is no further gain, the search starts again in a wider unit, until that gains
    nothing either: H is too small in directions that are flatter than the steepest by more than
    10¹⁶.

    Arguments:
        f: x `(1, *event)` -> value `(1,)` and gradient `(1, *event)`; of −log p for a density.
        x0: The start, one row, at which both are finite.
        tolerance: Gain below which the search ends, in units of f: nats for −log p.
        max_evaluations: Maximum number of evaluations of f; `converged` says whether they were
            enough.

    Raises:
        ValueError: If x0 is not one finite row, or if f or its gradient is not finite there.

    References:
        | Numerical Optimization, chapters 3, 6 and 7 (Nocedal & Wright, 2006)
        | https://doi.org/10.1007/978-0-387-40065-5
    """
    check_points(x0, "x0")
    if len(x0) != 1:
        raise ValueError(f"x0 has {len(x0)} rows: call minimise_each for several starts")
    return minimise_each(f, x0, tolerance=tolerance, max_evaluations=max_evaluations)[0]


def minimise_each(
    f: Callable[[Tensor], tuple[Tensor, Tensor]],
    x0: Float[Tensor, "start *event"],
    *,
    tolerance: float = 1e-8,
    max_evaluations: int = 2000,
) -> list[Path]:
    """Minimise f from each of several starting points, with one call of f for all where they are.

    Arguments:
        f: As in `minimise`, for as many rows as searches still go on.
        x0: The starts, at which f and its gradient are finite.
        tolerance: As in `minimise`.
        max_evaluations: As in `minimise`, for each start.

    Raises:
        ValueError: As in `minimise`.
    """
    check_points(x0, "x0")
    check_function(f, "f")
    check_number(tolerance, "tolerance", above=0)
    check_count(max_evaluations, "max_evaluations")
    x0 = x0.detach()
    values = _values(f, x0, first=True)
    if any(v == np.inf for v, _ in values):
        raise ValueError("f or its gradient is not finite at x0; start where both are")
    paths: dict[int, Path] = {}
    searches = [
        _Search(f, row[None], at_start, tolerance, max_evaluations).search()
        for row, at_start in zip(x0, values, strict=True)
    ]
    answers: dict[int, Value | None] = dict.fromkeys(range(len(x0)))
    with np.errstate(all="ignore"):  # trials may be far out
        while answers:
            asked = {}
            for i, answer in answers.items():
                try:
                    asked[i] = searches[i].send(answer) if answer else next(searches[i])
                except StopIteration as end:
                    paths[i] = end.value
            found = _values(f, torch.cat(list(asked.values()))) if asked else []
            answers = dict(zip(asked, found, strict=True))
    return [paths[i] for i in range(len(x0))]
