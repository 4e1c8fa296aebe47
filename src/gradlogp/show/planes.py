r"""Fields in the plane as data for a page: mixtures by their parameters, all others as tables.

x_σ = x_0 + σ ε throughout: a schedule enters through z/α and σ/α. A table has the score, and log
p_σ if it is known, on grids center ± (reach + 4σ) at levels geometric in σ, in half precision; in
between it is read by cubic interpolation (Catmull and Rom), in position and in log σ.
"""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..core import NoisyScore, Schedule, rand_like

Field = Callable[[Tensor, float], Tensor]
"""f(x, σ) -> `(B, C)`: the score, and log p_σ as a third column where it is known."""

DEPTH = 14.0
"""log p below its maximum at which the window ends: e^-14 of the density."""

NODES = 192
"""Nodes a side of the quadrature of a density."""


class Window(NamedTuple):
    """A square: its centre and half its side."""

    center: tuple[float, float]
    reach: float


class Frame(NamedTuple):
    """Where data lie, x = shift + scale z, for the column names and the law in data units."""

    shift: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)


def square(center: tuple[float, float], reach: float, n: int) -> Tensor:
    """Return the points of an n × n grid, `(n², 2)`, rows of y, columns of x."""
    u = torch.linspace(-reach, reach, n, dtype=torch.float64)
    y, x = torch.meshgrid(u + center[1], u + center[0], indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)


def find_window(log_prob: Callable[[Tensor], Tensor]) -> Window:
    """Return the square in which a density is above e^-14 of its maximum.

    Raises:
        ValueError: If it is nowhere finite, or unbounded.
    """
    window = Window((0.0, 0.0), 8.0)
    for _ in range(40):
        points = square(*window, 129)
        values = clean(log_prob(points)).reshape(129, 129)
        top = float(values.max())
        if not math.isfinite(top):
            raise ValueError(
                "the log-density is finite nowhere near 0: pass window=(center, reach)"
            )
        inside = values > top - DEPTH
        edge = inside[0].any() | inside[-1].any() | inside[:, 0].any() | inside[:, -1].any()
        box = points.reshape(129, 129, 2)[inside]
        low, high = box.min(0).values, box.max(0).values
        cell = 2 * window.reach / 128
        middle = ((low + high) / 2).tolist()
        half = float((high - low).max()) / 2 + cell
        if bool(edge):
            window = Window(window.center, 2 * window.reach)
        elif half < 0.6 * window.reach:
            window = Window((middle[0], middle[1]), 1.2 * half)
        else:
            return Window((middle[0], middle[1]), half)
        if window.reach > 1e9:
            break
    raise ValueError(
        "the log-density does not decay: it belongs to no probability law on the plane"
    )


def clean(values: Tensor) -> Tensor:
    """Return log-densities with −∞ for NaN, as outside the support."""
    values = values.detach().double()
    return torch.where(values.isnan(), -torch.inf, values)


class Blur:
    r"""A density in the plane convolved with N(0, σ² I), by the trapezoidal rule.

    .. math::
        p_σ(x) = \int p(y) N(x; y, σ^2 I) dy, \qquad
        \nabla \log p_σ(x) = \frac{E[y | x] - x}{σ^2}

    Exponents are summed as logarithms, so that the tails do not underflow. The rule is exact to
    rounding if σ is larger than the spacing of the nodes and p vanishes at the border.
    """

    def __init__(self, log_prob: Callable[[Tensor], Tensor], window: Window) -> None:
        self.window = window
        u = torch.linspace(-1, 1, NODES, dtype=torch.float64) * window.reach
        self.x, self.y = u + window.center[0], u + window.center[1]
        nodes = square(*window, NODES)
        self.log_p = clean(log_prob(nodes)).reshape(NODES, NODES)
        self.cell = 2 * window.reach / (NODES - 1)
        self.log_p = self.log_p - self.log_p.logsumexp((0, 1)) - 2 * math.log(self.cell)
        w = (self.log_p.exp() * self.cell**2).reshape(-1)
        self.mean = w @ nodes
        self.cov = torch.einsum("n,ni,nj->ij", w, nodes - self.mean, nodes - self.mean)

    @property
    def core(self) -> Window:
        """The square around 0.998 of each coordinate, a tenth wider."""
        w, ends = self.log_p.exp() * self.cell**2, []
        for axis, marginal in ((self.x, w.sum(0)), (self.y, w.sum(1))):
            below = marginal.cumsum(0)
            at = torch.searchsorted(below, torch.tensor([0.001, 0.999], dtype=torch.float64))
            ends.append(axis[at.clamp(max=NODES - 1)].tolist())
        (a, b), (c, d) = ends
        return Window(((a + b) / 2, (c + d) / 2), 1.1 * max(b - a, d - c) / 2)

    @property
    def least(self) -> float:
        """The least σ at which the rule is sound."""
        return 1.5 * self.cell

    def on_grid(self, x: Tensor, y: Tensor, sigma: float) -> Tensor:
        """Return score and log p_σ on the grid of these axes, `(len(y), len(x), 3)`."""
        kx = -(((x[:, None] - self.x) / sigma) ** 2) / 2  # (X, m)
        ky = -(((y[:, None] - self.y) / sigma) ** 2) / 2
        along_y = torch.stack([(self.log_p + k[:, None]).logsumexp(0) for k in ky])  # (Y, m)
        along_x = torch.stack([(self.log_p + k).logsumexp(1) for k in kx])  # (X, m)
        joint_x = along_y[:, None] + kx  # (Y, X, m)
        joint_y = along_x + ky[:, None]
        log_p = joint_x.logsumexp(-1) + 2 * math.log(self.cell) - math.log(2 * math.pi * sigma**2)
        sx = (joint_x.softmax(-1) @ self.x - x) / sigma**2
        sy = (joint_y.softmax(-1) @ self.y - y[:, None]) / sigma**2
        return torch.stack([sx, sy, log_p], -1)

    def __call__(self, points: Tensor, sigma: float) -> Tensor:
        """Return score and log p_σ at points `(B, 2)`, by the sum over all nodes at once."""
        nodes = torch.stack([self.x.repeat(NODES), self.y.repeat_interleave(NODES)], 1)
        rows = []
        for part in points.split(64):
            gap = ((part[:, None] - nodes) ** 2).sum(-1) / (2 * sigma**2)
            joint = self.log_p.reshape(-1) - gap
            log_p = joint.logsumexp(1) + 2 * math.log(self.cell) - math.log(2 * math.pi * sigma**2)
            score = (joint.softmax(1) @ nodes - part) / sigma**2
            rows.append(torch.cat([score, log_p[:, None]], 1))
        return torch.cat(rows)


def ratio_of_noise(schedule: Schedule, t: float) -> float:
    """Return σ_t/α_t, at the earliest time of a ladder for t = 0."""
    if t == 0.0 and schedule.times is not None:
        t = float(schedule.times.min())
    alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
    return float(sigma) / float(alpha) if float(alpha) > 0 else math.inf


def time_of_ratio(schedule: Schedule, ratio: float) -> float:
    """Return the time at which σ_t/α_t is this, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if ratio_of_noise(schedule, middle) < ratio else (low, middle)
    return high


def noise_to_data(score: NoisyScore) -> tuple[Field, float, float]:
    """Return the field of a noisy score in y = z/α at r = σ/α, and the range of r."""

    def field(y: Tensor, r: float) -> Tensor:
        t = torch.tensor(time_of_ratio(score.schedule, r), dtype=torch.float64)
        alpha = float(score.schedule(t)[0])
        with torch.no_grad():
            return alpha * score(alpha * y, t).detach().double()

    return field, ratio_of_noise(score.schedule, 0.0), ratio_of_noise(score.schedule, 1.0)


class Table(NamedTuple):
    """A field on grids: values `(level, y, x, channel)` in half precision."""

    window: Window
    sigmas: tuple[float, ...]
    values: np.ndarray

    def spec(self) -> dict[str, Any]:
        """Return what the page reads."""
        return {
            "kind": "table", "center": list(self.window.center), "reach": self.window.reach,
            "size": self.values.shape[1], "sigmas": list(self.sigmas),
            "channels": self.values.shape[-1],
            "values": b64encode(self.values.astype("<f2").tobytes()).decode("ascii"),
        }  # fmt: skip

    def __call__(self, points: Tensor, sigma: float) -> Tensor:
        """Return the values at points `(B, 2)` within the grid, as the page reads them."""
        n, L = self.values.shape[1], len(self.sigmas)
        grid = self.values[0].astype(np.float64)
        if L > 1:
            g = math.log(sigma / self.sigmas[0]) / math.log(self.sigmas[-1] / self.sigmas[0])
            g = min(max(g * (L - 1), 0.0), L - 1.0)
            i = min(int(g), L - 2)
            at = np.clip(np.arange(i - 1, i + 3), 0, L - 1)
            w = _cubic(np.array(g - i), i == 0, i == L - 2)
            grid = np.tensordot(w, self.values[at].astype(np.float64), 1)
        u = (points.numpy() - np.array(self.window.center)) / (self.window.reach + 4 * sigma)
        u = np.clip((u + 1) / 2 * (n - 1), 0, n - 1)
        base = np.minimum(u.astype(int), n - 2)
        w = _cubic(u - base, base == 0, base == n - 2)  # (4, B, 2)
        out = np.zeros((len(u), grid.shape[-1]))
        for a in range(4):
            for b in range(4):
                at = np.clip(base + np.array([a - 1, b - 1]), 0, n - 1)
                out += (w[a, :, 0] * w[b, :, 1])[:, None] * grid[at[:, 1], at[:, 0]]
        return torch.as_tensor(out)


def _cubic(f: np.ndarray, first: Any, last: Any) -> np.ndarray:
    """Return the weights of the points −1, 0, 1, 2; rows are continued as a straight line."""
    g, h = f * f, f * f * f
    a, b, c, d = 0.5 * np.stack([2 * g - f - h, 3 * h - 5 * g + 2, 4 * g + f - 3 * h, h - g])
    a, b, c = np.where(first, 0, a), np.where(first, b + 2 * a, b), np.where(first, c - a, c)
    return np.stack(
        [a, np.where(last, b - d, b), np.where(last, c + 2 * d, c), np.where(last, 0, d)]
    )


def tabulate(field: Field, window: Window, sigmas: tuple[float, ...], size: int) -> Table:
    """Return the table of a field at these levels.

    Raises:
        ValueError: If a value is not finite.
    """
    levels = []
    for sigma in sigmas:
        reach = window.reach + 4 * sigma
        if isinstance(field, Blur):
            u = torch.linspace(-reach, reach, size, dtype=torch.float64)
            level = field.on_grid(u + window.center[0], u + window.center[1], sigma)
        else:
            parts = square(window.center, reach, size).split(8192)
            level = torch.cat([field(part, sigma) for part in parts]).reshape(size, size, -1)
        if not bool(torch.isfinite(level).all()):
            raise ValueError(
                f"the field is not finite everywhere in the window at σ = {sigma:.3g}"
            )
        levels.append(level.numpy())
    values = np.stack(levels)
    if values.shape[-1] > 2:  # only differences count
        values[..., 2] -= values[..., 2].max()
    return Table(window, sigmas, np.clip(values, -65504, 65504).astype(np.float16))


def interpolation_error(
    table: Table, field: Field, generator: torch.Generator, n: int = 64
) -> float:
    """Return the relative error of the score from a table: rms over random points and levels.

    At eight levels between those of the table, with n points each, uniform in the window.
    """
    low, high = table.sigmas[0], table.sigmas[-1]
    off = whole = 0.0
    for u in rand_like(torch.empty(8, dtype=torch.float64), generator).tolist():
        sigma = low * (high / low) ** u
        side = table.window.reach + sigma
        points = 2 * rand_like(torch.empty(n, 2, dtype=torch.float64), generator) - 1
        points = side * points + torch.tensor(table.window.center, dtype=torch.float64)
        exact = field(points, sigma)[:, :2]
        # σ² s, the way to the denoised point: levels count alike
        off += sigma**4 * float((table(points, sigma)[:, :2] - exact).square().sum())
        whole += sigma**4 * float(exact.square().sum())
    return math.sqrt(off / whole) if whole else 0.0
