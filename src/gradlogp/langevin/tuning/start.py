r"""Starting points of chains: quasi-Newton paths, and the best normal law on each.

A path leads from an overdispersed point up the log-density. At points x on it the normal law

.. math:: N(x + Σ s(x),\; Σ), \quad Σ = |{-\nabla^2 \log p(x)}|^{-1}

with the absolute values of the eigenvalues, is compared with p by the evidence lower bound: the
law with the largest bound is the best start on the path. Far out the bound is poor, and at the end
of the path it may be poor too: if the density has no mode there, as in the neck of a funnel, the
best law lies on the way.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...calculus.quasi_newton import Path, minimise_each
from ...calculus.reverse import jacobian
from ...core import (
    Density,
    check_count,
    check_dtype,
    check_event_shape,
    check_generator,
    check_target,
    randn_like,
)
from ..guard import Guarded
from ..kernels import Preconditioner
from ..kernels.steps import evaluated

N_PATHS, TRIES = 8, 100
"""Paths, and points that are tried for the start of each until the density is positive there."""

RADIUS = 2.0
"""Starts of paths are uniform on (−2, 2), as in Stan."""

POINTS, DRAWS = 12, 30
"""Points of a path at which a normal law is tried, and draws by which it is judged."""

STRAIGHT = 1e-8
"""Curvature, in squares of the slope, up to which a direction has none: a law is as wide there as log p
takes to fall by 1, or where it does not fall as the region in which paths start."""

POOL, TEMPER = 50, 8.0
"""Draws of the best law of each path from which the starts are chosen, and nats below the best from
which their log-weights count no less: or one of them would win all."""

NEAR, WEIGHTY = 4.0, 5.0
"""Deviations beyond √d from which a draw is far from a normal law, and nats below the best bound up to
which a law weighs something."""

HESSIAN = 200
"""Dimensions up to which the curvature comes from second derivatives, not from the path."""


ONE_POINT = (
    "functions receive all chains at once, (B, *event); if this one takes a single point, pass "
    "vectorized=False in as_target"
)


class Start(NamedTuple):
    """Starting points of chains, and what is known about the density around them.

    Attributes:
        x: One for each chain, `(chain, *event)`.
        metric: The covariance of the best normal law found.
        mean, root: Those of the best normal law of each path, `(path, d)` and `(path, d, d)`.
        bound: Its evidence lower bound, `(path,)`: paths that differ by more than a few nats have ended
            in different modes, or not arrived.
        evaluations: Number of evaluations of log-density and score, one point each.
    """

    x: Float[Tensor, "chain *event"]
    metric: Preconditioner
    mean: Float[Tensor, "path d"]
    root: Float[Tensor, "path d d"]
    bound: Float[Tensor, " path"]
    evaluations: int

    def unvisited(self, x: Float[Tensor, "n *event"]) -> int:
        """Return how many paths ended in a law that weighs something and that no draw comes near."""
        if (d := self.mean.shape[1]) > HESSIAN:  # widths from a path are guesses: far says nothing
            return 0
        x, n = x.flatten(1).to(self.mean), 0
        for mean, root, bound in zip(self.mean, self.root, self.bound, strict=True):
            r = torch.linalg.solve_triangular(root, (x - mean).mT, upper=False).norm(dim=0)
            n += bool((r.min() > d**0.5 + NEAR) & (bound > self.bound.max() - WEIGHTY))
        return n


class _Normal(NamedTuple):
    mean: Tensor
    root: Tensor
    bound: float


@torch.no_grad()
def find_start(
    target: Density,
    n_chains: int,
    *,
    event_shape: torch.Size | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
) -> Start:
    """Return starting points of chains, each a draw from a normal law that fits the density.

    From 50 draws of the best law of each of eight paths the starts are chosen without replacement,
    evenly over the paths, in proportion to their importance weights, whose ratios are limited to
    e⁸.

    References:
        | Pathfinder: Parallel Quasi-Newton Variational Inference (Zhang, Carpenter, Gelman &
          Vehtari, 2022)
        | https://jmlr.org/papers/v23/21-0889.html

    Arguments:
        target: The density, with a log-density.
        n_chains: Number of chains.
        event_shape: The shape of a draw, for a target without an event shape.
        dtype: The dtype of the starts; float64 by default, or PyTorch's default if the target has
            tensors of that dtype and does not accept float64.
        generator: Source of all randomness.

    Raises:
        ValueError: For a target whose shape is not known, or if no point is found at which
            log-density and score are finite.
    """
    check_target(target)
    check_count(n_chains, "n_chains")
    if event_shape is not None:
        check_event_shape(event_shape)
    if dtype is not None:
        check_dtype(dtype)
    check_generator(generator)
    shape = event_shape if event_shape is not None else getattr(target, "event_shape", None)
    if shape is None:
        raise ValueError(
            "the target does not state the shape of a draw: pass start=, or as_target(..., "
            "event_shape=(d,))"
        )
    target = Guarded(target)
    target.lenient = True  # paths back off from where it fails
    like = torch.empty(0, dtype=dtype or torch.float64)
    if generator is not None:
        like = like.to(generator.device)
    if dtype is None and _wants_another(target.target, torch.Size(shape), like):
        like = like.to(torch.get_default_dtype())
    starts, noise, laws, evaluations = [], [], [], 0
    for _ in range(N_PATHS):
        x0, tried = _positive(target, torch.Size(shape), like, generator)
        starts.append(x0)
        noise.append(randn_like(x0.new_empty(DRAWS, x0.numel()), generator))
        evaluations += tried
    paths = minimise_each(lambda x: _objective(target, x), torch.cat(starts))
    for path, z in zip(paths, noise, strict=True):
        law, used = _best(target, path, z)
        laws.append(law)
        evaluations += path.evaluations + used
    pool, weights = [], []
    for law in laws:
        z = randn_like(like.new_empty(max(POOL, n_chains), law.mean.numel()), generator)
        x = law.mean + z @ law.root.mT
        log_p = _log_prob(target, x.reshape(-1, *shape))
        log_q = -z.square().sum(1) / 2 - law.root.diagonal().log().sum()
        pool.append(x)
        weights.append(log_p - log_q)
    evaluations += sum(len(x) for x in pool)
    x, log_w = torch.cat(pool), torch.cat(weights)
    ok = log_w > -torch.inf
    if int(ok.sum()) < n_chains:
        raise ValueError(
            f"only {int(ok.sum())} of {len(ok)} points around the best ones found have a finite "
            "log-density; pass start="
        )
    x, log_w = x[ok], log_w[ok]
    chosen = _spread_out(log_w.clamp(min=float(log_w.max()) - TEMPER), n_chains, generator)
    best = max(laws, key=lambda law: law.bound)
    return Start(
        x[chosen].reshape(-1, *shape),
        Preconditioner(best.root.double() @ best.root.double().mT, kind="matrix"),
        torch.stack([law.mean for law in laws]),
        torch.stack([law.root for law in laws]),
        torch.tensor([law.bound for law in laws], dtype=torch.float64),
        evaluations,
    )


def _objective(target: Density, x: Tensor) -> tuple[Tensor, Tensor]:
    log_prob, score = evaluated(x, target)
    return -log_prob, -score


def _log_prob(target: Density, x: Tensor) -> Tensor:
    value = target.log_prob(x)
    return torch.where(torch.isfinite(value), value, -torch.inf)


def _wants_another(target: Density, shape: torch.Size, like: Tensor) -> bool:
    """Return whether the target cannot mix the dtype of `like` with its own tensors."""
    try:
        target.log_prob(like.new_full((1, *shape), 0.5))
    except RuntimeError as error:  # PyTorch has no type of its own for this one
        return "dtype" in str(error) or "scalar type" in str(error)
    except (ArithmeticError, ValueError):
        return False
    return False


def _positive(
    target: Guarded, shape: torch.Size, like: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, int]:
    """Return a point `(1, *event)` where log-density and score are finite, and how many were tried."""
    for tried in range(1, TRIES + 1):
        u = torch.rand(1, *shape, dtype=like.dtype, device=like.device, generator=generator)
        x = RADIUS * (2 * u - 1)
        log_prob, score = evaluated(x, target)
        if bool(torch.isfinite(log_prob).all() & torch.isfinite(score).all()):
            return x, tried
    if target.failures:
        why = next(iter(target.failures))
        why += "" if "vectorized" in why else f"; {ONE_POINT}"
        raise ValueError(f"the target failed at every point tried: {why}")
    raise ValueError(
        f"none of {TRIES} points in (−{RADIUS:g}, {RADIUS:g}) has a finite log-density and score; "
        "pass start=, points where both are finite"
    )


def _best(target: Density, path: Path, z: Tensor) -> tuple[_Normal, int]:
    """Return the normal law of the largest bound, by draws with the noise z, at points of a path."""
    k, shape = len(path.points), path.points.shape[1:]
    # more of them towards the end, where the laws change least but are best
    back = torch.linspace(0, 1, min(POINTS, k)).square() * (k - 1)
    index = sorted({k - 1 - int(i) for i in back})
    d = shape.numel()
    points, scores = path.points[index].flatten(1), -path.gradients[index].flatten(1)
    curvatures, used = _curvatures(target, path, index)
    laws = []
    for x, s, H in zip(points, scores, curvatures, strict=True):
        if not bool(torch.isfinite(H).all()):
            continue
        w, U = torch.linalg.eigh((H + H.mT) / 2)
        slope = (s.to(U) @ U).square()
        w = torch.where(w.abs() <= STRAIGHT * slope, slope.clamp(min=RADIUS**-2), w)
        w = w.abs().clamp(min=float(w.abs().max()) * 1e-14).clamp(min=1e-300)
        covariance = (U / w) @ U.mT
        root, info = torch.linalg.cholesky_ex((covariance + covariance.mT) / 2)
        if int(info) or not bool(torch.isfinite(root).all()):
            root = torch.diag(covariance.diagonal().sqrt())
        mean = x + covariance.to(s) @ s
        for center in (mean, x):
            laws.append(_Normal(center, root.to(x), 0.0))
    if not laws:
        raise ValueError("the score has no finite derivatives along the path; pass start=")
    draws = torch.cat([law.mean + z @ law.root.mT for law in laws])
    log_p = _log_prob(target, draws.reshape(-1, *shape)).reshape(len(laws), len(z))
    widths = torch.stack([law.root.diagonal().log().sum() for law in laws])
    log_q = -z.square().sum(1) / 2 - widths[:, None] - d / 2 * math.log(2 * math.pi)
    bounds = (log_p - log_q).mean(1).tolist()
    best = max(range(len(laws)), key=lambda i: bounds[i])
    return laws[best]._replace(bound=bounds[best]), used + len(draws)


def _curvatures(target: Density, path: Path, index: list[int]) -> tuple[Tensor, int]:
    """Return −∇s at points of a path, or what the path says of it, and the evaluations used."""
    x = path.points[index]
    if x[0].numel() <= HESSIAN:
        try:
            return -jacobian(target.score, x).double(), x.numel()
        except (RuntimeError, ValueError):
            pass  # a score by hand, or operations without second derivatives
    return torch.stack([_curvature(path, i) for i in index]), 0


def _curvature(path: Path, last: int, memory: int = 30) -> Tensor:
    """Return the BFGS estimate of the Hessian of −log p from the path up to one of its points."""
    x, g = path.points.flatten(1).double(), path.gradients.flatten(1).double()
    d = x.shape[1]
    H = torch.eye(d, dtype=torch.float64, device=x.device)
    first = max(0, last - memory)
    for i in range(first, last):
        step, y = x[i + 1] - x[i], g[i + 1] - g[i]
        if (curved := float(step @ y)) <= 1e-12 * float(step.norm() * y.norm()):
            continue
        if i == first:
            H = H * (float(y @ y) / curved)
        Hs = H @ step
        H = H + torch.outer(y, y) / curved - torch.outer(Hs, Hs) / (step @ Hs)
    return H


def _spread_out(log_w: Tensor, n: int, generator: torch.Generator | None) -> Tensor:
    """Return n different indices with these log-weights, evenly over their order: over all paths.

    Systematic resampling; repeated indices are replaced by those with the largest log w + Gumbel.
    """
    kind: Any = {"dtype": log_w.dtype, "device": log_w.device}
    drawn = torch.rand(1 + len(log_w), generator=generator, **kind)
    u, more = drawn[0], drawn[1:].clamp(min=torch.finfo(log_w.dtype).tiny)
    at = (u + torch.arange(n).to(log_w)) / n
    index = torch.searchsorted(log_w.softmax(0).cumsum(0), at).clamp(max=len(log_w) - 1).unique()
    rest = log_w - (-more.log()).log()
    rest[index] = -torch.inf
    return torch.cat([index, rest.topk(n - len(index)).indices])
