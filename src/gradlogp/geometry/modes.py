r"""Modes of a density: the gradient flow of log p, its limits, and their kinds.

Along dx/dt = s(x) the log-density is a Lyapunov function, d/dt log p(x(t)) = ‖s(x(t))‖² ≥ 0: every
limit is a stationary point, s = 0. The eigenvalues of ∇² log p there distinguish modes (all
negative) from minima (all positive) and saddles. Nothing is random, and no start depends on the
others. If log p is much steeper in one direction than in another, the flow needs too many steps,
and a quasi-Newton search is used instead.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..calculus.ode import Size, attempt, error_of, growth, integrate
from ..calculus.quasi_newton import minimise
from ..calculus.reverse import jacobian
from ..core import (
    Density,
    ScoreFn,
    check_count,
    check_function,
    check_level,
    check_number,
    check_points,
    check_target,
    evaluate,
    per_sample,
)
from ..distributions.as_target import Target


class Flow(NamedTuple):
    """Points after the flow, the time each has reached, and the steps it tried."""

    x: Float[Tensor, "batch *event"]
    t: Float[Tensor, " batch"]
    n_steps: Int[Tensor, " batch"]


@dataclass(frozen=True)
class Modes:
    """Stationary points of log p, and the one to which each start led (−1: none found).

    If `by_flow` is true, the start lies in the basin of that point under dx/dt = s. Otherwise a
    quasi-Newton search was used, which also climbs, but may leave the basin.
    """

    points: Float[Tensor, "K *event"]
    kind: tuple[str, ...]
    index: Int[Tensor, " K"]
    eigenvalues: Float[Tensor, "K d"]
    log_prob: Float[Tensor, " K"] | None
    basin: Int[Tensor, " batch"]
    n_steps: Int[Tensor, " batch"]
    by_flow: Bool[Tensor, " batch"]


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)


def _where(keep: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(keep.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _start(
    score: ScoreFn, x0: Tensor, tolerance: float | None, max_steps: int
) -> tuple[ScoreFn, Tensor, Tensor, float]:
    """Return the score without its graph, its value at x0, a first step, and the tolerance."""

    def field(x: Tensor) -> Tensor:
        return evaluate(score, x).detach()

    check_points(x0, "x0")
    check_function(score, "score")
    s = field(x0.detach())
    bad = (~s.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(
            f"the score at x0 is not finite in rows {bad[:10]}; start where p is positive"
        )
    tol = torch.finfo(x0.dtype).eps ** (2 / 3) if tolerance is None else tolerance
    check_number(tol, "tolerance", above=0, below=1)
    check_count(max_steps, "max_steps")
    # 1/‖s‖² has the units of time; where s is tiny the error control shortens the step
    return field, s, 1e-3 / _norm(s).square().clamp(min=1e-12), tol


def _travelled(x0: Tensor | None, tolerance: float) -> Size:
    """Return the size of steps: the distance from x0 (None: of the step), no units and no origin."""

    def size(x: Tensor, y: Tensor) -> Tensor:
        far = _norm(y - x) if x0 is None else torch.maximum(_norm(y - x), _norm(y - x0))
        rounding = 8 * torch.finfo(x.dtype).eps * _norm(x)
        return per_sample((far + rounding / tolerance) / x[0].numel() ** 0.5, x)  # a mean square

    return size


def _newton(s: Tensor, w: Tensor, U: Tensor, cut: Tensor) -> Tensor:
    """Return −H s / (H² + cut²): Newton's step, but none along eigenvalues far below cut or NaN."""
    c = torch.einsum("bij,bi->bj", U, s.flatten(1))
    step = -w * c / (w.square() + cut.square().unsqueeze(1))
    return torch.einsum("bij,bj->bi", U, step.where(~step.isnan(), 0.0)).reshape(s.shape)


def _slow(s: Tensor, w: Tensor, U: Tensor, cut: Tensor, n_steps: int) -> Tensor:
    """Return where the flow needs more than n_steps: stable steps are no longer than 3/max|w|.

    Only directions count in which the next stationary point is far, compared with the others.
    """
    c = torch.einsum("bij,bi->bj", U, s.flatten(1))
    far = (w * c / (w.square() + (1e-5 * cut).square().unsqueeze(1))).abs()
    far = far > 1e-3 * far.amax(1, keepdim=True)
    return (far & (3 * n_steps * w.abs() < w.abs().amax(1, keepdim=True))).any(1)


def gradient_flow(
    score: ScoreFn,
    x0: Float[Tensor, "batch *event"],
    t: Tensor | float,
    *,
    tolerance: float | None = None,
    max_steps: int = 10_000,
) -> Flow:
    r"""Follow :math:`dx/dt = s(x)` from x0 for the time t; on N(μ, P⁻¹) x − μ shrinks by e^{-tP}.

    Explicit Runge–Kutta of order 5, each sample with its own steps: a stiff score needs many.

    Arguments:
        score: s, shape of x.
        x0: Starts, `(B, *event)`.
        t: Times, `()` or `(B,)`, at least 0.
        tolerance: Error of a step, relative to the distance from x0; eps^{2/3} of the dtype by default.
        max_steps: Maximum number of steps; a row that needs more stops at the time returned with
            it.

    Raises:
        ValueError: For starts or times that are not finite, or negative times.

    References:
        | A Family of Embedded Runge-Kutta Formulae (Dormand & Prince, 1980)
        | https://doi.org/10.1016/0771-050X(80)90013-3

    Examples:
        >>> glp.gradient_flow(lambda x: -x, torch.tensor([[1.0]]), t=1.0).x  # e⁻¹
        tensor([[0.3679]])
    """
    field, _, h, tol = _start(score, x0, tolerance, max_steps)
    end = check_level(t, x0, "t", zero=True).flatten().expand(len(x0))
    found = integrate(
        lambda x, _: field(x), x0.detach(), 0.0, end, rtol=tol,
        atol=torch.finfo(x0.dtype).tiny, size=_travelled(x0.detach(), tol),
        first_step=h.double() / end.clamp(min=1e-300), max_steps=max_steps, partial=True,
    )  # fmt: skip
    return Flow(found.y, (found.part * end).to(end), found.accepted + found.rejected)


class _Search(NamedTuple):
    """A target with its tolerances; a `scale` is the largest |eigenvalue| that a row has met."""

    target: Density
    field: ScoreFn
    log_prob: ScoreFn
    known: bool
    tolerance: float
    eps: float

    def curvature(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return eigenvalues `(B, d)` and eigenvectors of ∇² log p, NaN where it is not finite."""
        hessian = getattr(self.target, "hessian", None)
        H = (jacobian(self.target.score, x) if hessian is None else hessian(x)).detach()
        d = x.shape[1:].numel()
        if H.shape != (len(x), d, d):
            raise ValueError(f"hessian must return {(len(x), d, d)}, got {tuple(H.shape)}")
        finite = H.flatten(1).isfinite().all(1)
        w, U = torch.linalg.eigh(_where(finite, (H + H.mT) / 2, torch.zeros_like(H)))
        return _where(finite, w, torch.full_like(w, torch.nan)), U

    def still(self, x: Tensor, s: Tensor, scale: Tensor) -> Tensor:
        """Return whether s is 0 in units of the curvature, up to the rounding of x."""
        return _norm(s) <= self.tolerance * scale.sqrt() + 8 * self.eps * scale * _norm(x)

    def ascends(self, x: Tensor, y: Tensor) -> Tensor:
        """Return where log p(y) ≥ log p(x), up to rounding."""
        before, after = self.log_prob(x).detach(), self.log_prob(y).detach()
        return after >= before - 8 * self.eps * before.abs()

    def ascend(self, x: Tensor, s: Tensor, h: Tensor, max_steps: int) -> tuple[Tensor, ...]:
        """Follow the flow until Newton's method ends in the same basin: x, scale, steps, success.

        If log p is known, rows for which the flow is too slow are left unfinished.
        """
        n_steps, scale = torch.zeros_like(h, dtype=torch.long), torch.zeros_like(h)
        done, never = n_steps > 0, torch.zeros_like(h)  # the field knows no time
        stiff = done
        for k in range(max_steps):
            if k % 8 == 0:  # a Hessian costs as much as many steps
                w, U = self.curvature(x)
                scale = torch.where(done, scale, torch.fmax(scale, w.abs().amax(1)))
                cut = self.eps**0.5 * w.abs().amax(1)
                if self.known:
                    stiff = stiff | (
                        _slow(s, w, U, cut, max_steps) & ~done & ~self.still(x, s, scale)
                    )
                step = _newton(s, w, U, cut)
                y, s_y = x + step, self.field(x + step)
                # concave here, and the step shrinks tenfold with the same Hessian: log p is close
                # to a quadratic on the way, and y is in the basin of x
                sure = (w <= cut.unsqueeze(1)).all(1) & self.ascends(x, y) & ~done & ~stiff
                sure &= _norm(_newton(s_y, w, U, cut)) <= 0.1 * _norm(step)
                sure &= _norm(s_y) <= 0.1 * _norm(s)
                done = done | sure | (self.still(x, s, scale) & ~stiff)
                x, s = _where(sure, y, x), _where(sure, s_y, s)
                if bool((done | stiff).all()):
                    break
            # error relative to the step itself: s must fall to 0, not to the error of the way
            tried = attempt(
                lambda x, _: self.field(x), x, s, per_sample(h, x, "h"), lambda _: never
            )
            y, s_y, _ = tried
            error = error_of(tried, x, 1e-6, torch.finfo(x.dtype).tiny, _travelled(None, 1e-6))
            accept = error <= 1
            ascends = self.ascends(x, _where(accept, y, x))
            h = torch.where(ascends, h * growth(error).to(h), 0.2 * h)
            accept &= ascends & ~done & ~stiff
            x, s = _where(accept, y, x), _where(accept, s_y, s)
            n_steps += ~(done | stiff)
        return x, scale, n_steps, done

    def climb(self, x: Tensor, most: int) -> tuple[Tensor, int, bool]:
        """Maximise log p from one row by quasi-Newton steps: where it ends, evaluations, success."""
        both = getattr(self.target, "log_prob_and_score", None)

        def f(x: Tensor) -> tuple[Tensor, Tensor]:
            log_prob, score = (self.log_prob(x), self.field(x)) if both is None else both(x)
            return -log_prob.detach(), -score.detach()

        if not all(bool(part.isfinite().all()) for part in f(x)):
            return x, 1, False
        path = minimise(f, x, max_evaluations=most)
        return path.points[-1:], path.evaluations, path.converged

    def refine(self, x: Tensor, scale: Tensor, wanted: Tensor) -> tuple[Tensor, ...]:
        """Lower ‖s‖² to 0 by damped Newton steps: x, spectrum, scale, success, degeneracy."""
        s, mu, busy = self.field(x), x.new_full((len(x),), 1e-2), wanted
        for _ in range(100):
            w, U = self.curvature(x)
            scale = torch.where(busy, torch.fmax(scale, w.abs().amax(1)), scale)
            y = x + _newton(s, w, U, mu.sqrt() * w.abs().amax(1))
            s_y = self.field(y)
            better = busy & (_norm(s_y) < _norm(s))
            x, s = _where(better, y, x), _where(better, s_y, s)
            busy = better | (busy & (mu < 1e6) & ~self.still(x, s, scale))
            busy &= _norm(s) > self.eps * scale.sqrt()
            mu = torch.where(better, mu / 8, mu * 8)
            if not bool(busy.any()):
                break
        w, U = self.curvature(x)
        least, most = w.abs().amin(1), w.abs().amax(1)
        flat = (least <= self.eps**0.5 * most) | (most <= self.eps**0.5 * scale)
        flat &= ~self.bends(x, s, w, U)
        return x, w, U, scale, wanted & self.still(x, s, scale) & w.isfinite().all(1), flat

    def bends(self, x: Tensor, s: Tensor, w: Tensor, U: Tensor) -> Tensor:
        """Return whether the smallest eigenvalue λ is real: it predicts the score 0.1/√|λ| away.

        It is not real on a ridge, where it is rounding, or at a contact of higher order.
        """
        least, i = w.abs().min(1)
        u = U.gather(2, i.reshape(-1, 1, 1).expand(-1, U.shape[1], 1))[:, :, 0]
        length = torch.where(least > 0, 0.1 * least.rsqrt(), 0.0)  # no step where λ is 0
        step = length.unsqueeze(1) * u
        change = ((self.field(x + step.reshape(x.shape)) - s).flatten(1) * step).sum(1)
        expected = torch.where(w.gather(1, i.unsqueeze(1))[:, 0] < 0, -0.01, 0.01)
        return (change - expected).abs() < 0.005


def _cluster(
    x: Tensor, found: Tensor, scale: Tensor, w: Tensor, U: Tensor, flat: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the row that stands for each distinct point, and its number for each row, or −1."""
    # 1/√scale is the length of the sharpest bend of log p; where there is none, |x| must do
    radius = 1e-3 * torch.minimum(scale.rsqrt(), 1 + _norm(x))
    label = torch.full((len(x),), -1, dtype=torch.long, device=x.device)
    first: list[int] = []
    for i in found.nonzero()[:, 0].tolist():
        if label[i] < 0:
            away = x - x[i]
            near = _norm(away) <= radius[i]
            if not bool(flat[i]):  # in each direction by its own bend
                near |= ((away.flatten(1) @ U[i]).square() @ w[i].abs()) <= 1e-6
            label[found & (label < 0) & near] = len(first)
            first.append(i)
    return torch.tensor(first, dtype=torch.long, device=x.device), label


def find_modes(
    target: Density,
    x0: Float[Tensor, "batch *event"],
    *,
    also_saddles: bool = False,
    tolerance: float | None = None,
    max_steps: int = 2000,
) -> Modes:
    r"""Find the modes of a density by gradient ascent on log p, and which start leads to which.

    From every start :math:`dx/dt = s(x)` is followed with steps that never lower log p (if the
    target knows it) until log p is close to a quadratic, then Newton's method is used. If log p is
    known and the flow would need more than max_steps, as on the narrow ridges of a regression on
    raw units, a quasi-Newton search continues from there: `by_flow` is then False. Limits closer
    than 1e-3/√λ are the same point, where λ is the size of the eigenvalue in each direction. The
    kind is "mode" (all eigenvalues negative), "minimum" (all positive), "saddle" (both) or
    "degenerate" (one is 0 up to √eps of the largest, and log p is not quadratic along it: a ridge,
    a plateau, a contact of higher order).

    Arguments:
        target: The density; its `hessian(x)`, `(B, d, d)`, is used if it has one.
        x0: Starts, `(B, *event)`. A mode that no start leads to is not found.
        also_saddles: Also look for ‖s‖ = 0 from the starts and from the midpoint of any two modes.
            These points come last; degenerate ones are omitted, others may be missed.
        tolerance: ‖s‖/√λ that counts as 0; eps^{2/3} of the dtype by default.
        max_steps: Maximum number of steps of the flow, then of evaluations of the search. Starts
            that reached no stationary point have basin −1, and a `RuntimeWarning` gives their
            number.

    Returns:
        `Modes`; index counts positive eigenvalues, log_prob is None if it is unknown, and n_steps
        has the steps of the flow and evaluations of the search.

    Raises:
        ValueError: For a target without score, or if x0, the score or log p there is not finite.

    References:
        | Mode-Finding for Mixtures of Gaussian Distributions (Carreira-Perpiñán, 2000)
        | https://doi.org/10.1109/34.888716

    Examples:
        >>> law = glp.GaussianMixture([0.5, 0.5], [[-2.0], [2.0]], 0.5)
        >>> found = glp.find_modes(law, torch.tensor([[-3.0], [-1.0], [1.0]]))
        >>> found.points
        tensor([[-2.0000],
                [ 2.0000]])
    """
    check_target(target)
    check_points(x0, "x0", getattr(target, "event_shape", None))
    field, s, h, tol = _start(target.score, x0, tolerance, max_steps)
    known = not (isinstance(target, Target) and target.log_prob_fn is None)
    log_prob = target.log_prob if known else lambda x: x.new_zeros(len(x))
    bad = (~log_prob(x0.detach()).isfinite()).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(
            f"log p at x0 is not finite in rows {bad[:10]}; start where p is positive"
        )
    eps = torch.finfo(x0.dtype).eps
    search = _Search(target, field, log_prob, known, tol, eps)
    x, scale, n_steps, by_flow = search.ascend(x0.detach(), s, h, max_steps)
    settled = by_flow.clone()
    for i in (~by_flow).nonzero()[:, 0].tolist() if known else ():
        x[i : i + 1], evaluations, settled[i] = search.climb(x[i : i + 1], max_steps)
        n_steps[i] += evaluations
    x, w, U, scale, found, flat = search.refine(x, scale, settled)
    if also_saddles:
        first, _ = _cluster(x, found, scale, w, U, flat)
        peaks = x[first][(~flat & (w < 0).all(1))[first]]
        more = torch.cat([x0.detach(), ((peaks.unsqueeze(1) + peaks) / 2).flatten(0, 1)])
        unknown = x.new_zeros(len(more))
        y, v, V, r, ok, bad = search.refine(more, unknown, unknown == 0)
        pairs = ((x, y), (w, v), (U, V), (scale, r), (found, ok & ~bad), (flat, bad))
        x, w, U, scale, found, flat = (torch.cat(pair) for pair in pairs)
    first, label = _cluster(x, found, scale, w, U, flat)
    points, w = x[first], w[first]
    nothing = torch.where(flat[first], eps**0.5 * w.abs().amax(1), 0.0)
    index = (w > nothing.unsqueeze(1)).sum(1)
    names = {0: "mode", w.shape[1]: "minimum"}
    kinds = zip(flat[first].tolist(), index.tolist(), strict=True)
    kind = tuple("degenerate" if b else names.get(k, "saddle") for b, k in kinds)
    values = log_prob(points).detach() if known else None
    basin = label[: len(x0)]
    if lost := int((basin < 0).sum()):
        warnings.warn(
            f"{lost} of {len(x0)} starts reached no stationary point (basin −1): raise max_steps, "
            "or start closer to the bulk of the density",
            RuntimeWarning,
            stacklevel=2,
        )
    return Modes(points, kind, index, w, values, basin, n_steps, by_flow)
