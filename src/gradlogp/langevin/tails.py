r"""Tails so heavy that a variance may not exist, in draws and in the log-density itself.

Beyond a high threshold the excesses of any law that is not exotic are those of a generalised Pareto law

.. math:: P(Y > y) = (1 + k y/σ)^{-1/k}

whose shape k is 1/ν for Student's t with ν degrees of freedom and 0 for normal and exponential
tails. A variance exists for k < 1/2, an error of an estimated variance for k < 1/4. Draws
determine k with an error; if the log-density is known, its slope far out determines it exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..distributions.as_target import has_log_prob
from .diagnostics import thinned
from .guard import Guarded
from .kernels import SphereMALA, SphereULA

if TYPE_CHECKING:
    from .chain import Chain

ALPHA = 0.05
"""Chance that draws of a law whose fourth moments exist are held to have no variance."""

FOURTH = 0.25
"""The shape from which fourth moments do not exist."""

FAR, FURTHER = 1e4, 1e6
"""Where the slope of the log-density is looked at, in widths of the draws from their medians."""

SLACK = 0.02
"""By how much a slope may miss the one from which on there is no variance."""

AXES, RAYS, MOST = 100, 16, 1000
"""Coordinates along which it is looked at, at most, rays through draws, and dimensions up to which."""

LEAST = 100
"""Draws below which the shape of tails is not estimated."""


class Fit(NamedTuple):
    """The shape k of the tails of each coordinate, `(d,)`, and from how many draws it is."""

    shape: Tensor
    n: int


def tail_shape(x: Float[Tensor, "n d"]) -> Fit:
    r"""Return the generalised Pareto shape of the largest |x − median|, coordinate by coordinate.

    From the min(n/5, 3√n) largest of n, by the approximate posterior mean of Zhang & Stephens; NaN
    if a quarter of them are equal, as for chains that do not move.

    References:
        | A New and Efficient Estimation Method for the Generalized Pareto Distribution
          (Zhang & Stephens, 2009)
        | https://doi.org/10.1198/tech.2009.08017
        | Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao & Gabry, 2024)
        | https://jmlr.org/papers/v25/19-556.html
    """
    n = len(x)
    far = (x.double() - x.double().median(0).values).abs().sort(0).values
    m = int(min(n / 5, 3 * n**0.5))
    y = far[n - m :] - far[n - m - 1]
    tiny = torch.finfo(y.dtype).tiny
    quarter, most = y[int(m / 4 + 0.5) - 1].clamp(min=tiny), y[-1].clamp(min=tiny)
    n_grid = 30 + int(m**0.5)
    j = torch.arange(1, n_grid + 1, dtype=y.dtype)[:, None]
    theta = 1 / most + (1 - (n_grid / (j - 0.5)).sqrt()) / (3 * quarter)
    k = torch.stack([(-row * y).log1p().mean(0) for row in theta])
    likelihood = m * ((-theta / k).log() - k - 1)
    likelihood = torch.where(likelihood.isnan(), -torch.inf, likelihood)
    best = (likelihood.softmax(0) * theta).sum(0)
    shape = (-best * y).log1p().mean(0)
    return Fit(torch.where(y[int(m / 4 + 0.5) - 1] > 0, shape, torch.nan), m)


def critical_shape(n_tail: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    r"""Return the shape above which a variance may not exist.

    A law with fourth moments exceeds it in one of d coordinates with a probability of 5 %, and it
    is no more than one error below 1/2. The error of k from m independent excesses is (1 + k)/√m.
    """
    z = torch.special.ndtri(torch.tensor(1 - ALPHA / len(n_tail), dtype=torch.float64))
    root = n_tail.clamp(min=1).sqrt()
    return torch.maximum(FOURTH + z * (1 + FOURTH) / root, 0.5 - 1.5 / root)


class Falls(NamedTuple):
    """Slopes of log p in the logarithm of the distance: along each axis `(d,)`, and along rays."""

    axes: Tensor
    rays: Tensor


@torch.no_grad()
def falls(target: Any, x: Float[Tensor, "n *event"]) -> Falls:
    """Return how log p falls with log r far from the draws; NaN where it cannot be computed.

    If the slope along an axis is −3 or more for some values of the others, that coordinate has no
    variance; if the slope along rays in d dimensions is −(d + 2) or more, |x| has none.
    """
    flat = x.flatten(1)
    d = flat.shape[1]
    middle = flat.median(0).values
    width = (flat - middle).abs().median(0).values
    axes = min(d, AXES)
    ways = torch.zeros(2 * axes, d).to(flat)
    for i in range(axes):
        ways[2 * i, i], ways[2 * i + 1, i] = width[i], -width[i]
    rays = thinned(flat, RAYS)[:RAYS] - middle
    ways = torch.cat([ways, rays])
    points = torch.cat([middle + r * ways for r in (FAR, FURTHER)])
    near, far = target.log_prob(points.reshape(-1, *x.shape[1:])).double().chunk(2)
    slope = (far - near) / torch.tensor(FURTHER / FAR, dtype=torch.float64).log()
    slope = torch.where(torch.isfinite(near) & torch.isfinite(far), slope, torch.nan)
    known = torch.where(slope.isnan(), -torch.inf, slope)
    along = known[: 2 * axes].unflatten(0, (axes, 2)).amax(1)
    return Falls(along, slope[2 * axes :])


def heavy(
    x: Float[Tensor, "chain draw d"], ess_tail: Tensor, names: list[str], target: Any | None
) -> list[str]:
    """Return in words which variance may not exist.

    Arguments:
        x: The draws.
        ess_tail: Their effective sizes in the tails: how many excesses are independent.
        names: Names of the coordinates.
        target: The density of x itself, if it has a log-density.
    """
    useful = "; medians and quantiles can be used"
    d = x.shape[2]
    if target is not None and d <= MOST:
        found = falls(target, x.flatten(0, 1))
        at = int(found.axes.argmax())
        if float(found.axes[at]) >= -3 - SLACK:
            return [
                f"the variance of {names[at]} may not exist: in the tail the density falls like "
                f"its power {float(found.axes[at]):.2f}, while a variance needs below −3{useful}"
            ]
        if float(found.rays.median()) >= -(d + 2) - SLACK:
            return [
                "variances may not exist: along rays the density falls like the power "
                f"{float(found.rays.median()):.2f} of the distance, while they need below −{d + 2} "
                f"in {d} dimensions{useful}"
            ]
    flat = x.flatten(0, 1)
    if len(flat) < LEAST:
        return []
    fit = tail_shape(flat)
    independent = fit.n * (ess_tail / len(flat)).clamp(max=1.0)
    over = fit.shape - critical_shape(independent)
    over = torch.where(over.isnan(), -torch.inf, over)
    at = int(over.argmax())
    if float(over[at]) <= 0:
        return []
    return [
        f"the variance of {names[at]} may not exist: the shape of its tails is "
        f"{float(fit.shape[at]):.2f}, and from 1/2 on there is no variance{useful}"
    ]


def plain_density(chain: Chain) -> Any | None:
    """Return the density of the draws as they are, on all of R^d, where it is known."""
    kernel, target, named = chain.kernel, chain.target, chain.parameters
    if (
        target is None
        or (named is not None and any(s.transform is not None for s in named.slots.values()))
        or getattr(kernel, "temperature", 1.0) != 1.0
        or isinstance(kernel, SphereULA | SphereMALA)
        or not has_log_prob(target)
    ):
        return None
    target = Guarded(target)  # far from the draws it may fail
    target.lenient = True
    return _Flat(target, chain.state.x.shape[1:], chain.state.x)


class _Flat:
    """The log-density of flattened draws, in the dtype and on the device of the chains."""

    def __init__(self, target: Any, event: torch.Size, like: Tensor) -> None:
        self.target, self.event, self.like = target, event, like

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log p(x) + const of x `(n, d)`."""
        value: Tensor = self.target.log_prob(x.reshape(len(x), *self.event).to(self.like))
        return value.cpu()
