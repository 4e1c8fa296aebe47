"""The times at which a model is trained: uniform, stratified, or by importance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ...core import (
    Generator,
    PartOfBatch,
    Schedule,
    check_count,
    check_finite,
    check_function,
    check_kind,
    check_schedule,
    per_sample,
    rand_like,
)

T_MIN = 1e-3
"""The earliest time drawn in training: below it VP noise is under 1 % of the data."""


def _uniform(like: Tensor, generator: Generator | None, stratified: bool) -> Tensor:
    """Draw u in [0, 1); with `stratified` one from each of B equal parts, in random order."""
    if not stratified:
        return rand_like(like, generator)
    if isinstance(generator, PartOfBatch):  # spread over the batch of all processes
        whole = _uniform(like.new_empty(generator.total), generator.generator, True)
        return whole[generator.rows]
    return (rand_like(like, generator).argsort() + rand_like(like, generator)) / len(like)


def draw_times(
    schedule: Schedule,
    like: Float[Tensor, " batch"],
    generator: Generator | None = None,
    *,
    stratified: bool = False,
) -> Float[Tensor, " batch"]:
    """Draw a time for each sample: uniform over the levels of a ladder, otherwise over [1e-3, 1].

    With `stratified` the batch is spread evenly, with one time from each of B equal parts in
    random order: each time is still uniform, and the mean over the batch varies less.
    """
    check_schedule(schedule)
    check_kind(like, "like", Tensor, "a tensor (B,)")
    u = _uniform(like, generator, stratified)
    if schedule.times is None:
        return T_MIN + (1 - T_MIN) * u
    times = schedule.times.to(like)
    return times[(u * len(times)).long().clamp(max=len(times) - 1)]


def times_of(
    schedule: Schedule,
    z: Float[Tensor, "batch *event"],
    t: Tensor | None,
    generator: Generator | None,
    stratified: bool,
) -> Float[Tensor, " batch"]:
    """Return the times of a batch, drawn by `draw_times` by default.

    Raises:
        ValueError: Unless there is one for each sample.
    """
    if t is None:
        return draw_times(schedule, z.new_empty(len(z)), generator, stratified=stratified)
    check_finite(t, "t")
    if t.shape != z.shape[:1]:
        raise ValueError(f"t must have shape ({len(z)},), got {tuple(t.shape)}")
    return t


def noised_with(schedule: Schedule, z: Tensor, t: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Return z_t = α z + σ ε, and σ as it multiplies z."""
    a, b = (per_sample(v, z) for v in schedule(t))
    return torch.addcmul(a * z, b, eps), b


class ImportanceTimes:
    r"""Times from a density q(t) ∝ f(t), with the ratio that preserves every mean.

    .. math:: E_{t \sim U}[l(t)] = E_{t \sim q}\left[ \frac{u(t)}{q(t)} l(t) \right]

    q is constant within cells whose edges are geometric in t (for a ladder: on each level), so
    that sampling and the ratio are exact. If f is proportional to the size of the loss, the mean
    over a batch varies least.

    Arguments:
        density: (schedule, t) -> f(t) > 0, up to a factor, `(n,)`; the schedule is that of the score.
        n_cells: Number of cells on [1e-3, 1].

    Raises:
        ValueError: For n_cells below 1; when used, if f is not positive and finite everywhere.

    References:
        | Maximum Likelihood Training of Score-Based Diffusion Models (Song et al., 2021)
        | https://arxiv.org/abs/2101.09258
    """

    def __init__(self, density: Callable[[Schedule, Tensor], Tensor], n_cells: int = 1000) -> None:
        check_function(density, "density")
        check_count(n_cells, "n_cells")
        self.density, self.n_cells = density, n_cells
        self._tables: tuple[Schedule, tuple[Tensor, ...]] | None = None

    def _table(self, schedule: Schedule) -> tuple[Tensor, ...]:
        """Return lower edges, widths, cumulative probabilities and ratios, kept for one schedule."""
        if self._tables is not None and self._tables[0] == schedule:
            return self._tables[1]
        if schedule.times is None:
            edges = torch.logspace(-3, 0, self.n_cells + 1, dtype=torch.float64)
            low, width = edges[:-1], edges.diff()
            uniform, at = width / (1 - T_MIN), (edges[:-1] + edges[1:]) / 2
        else:
            at = schedule.times.double()
            low, width = at, torch.zeros_like(at)
            uniform = torch.full_like(at, 1 / len(at))
        f = self.density(schedule, at).double()
        if f.shape != at.shape or not bool((torch.isfinite(f) & (f > 0)).all()):
            raise ValueError(
                f"density must be positive and finite on all {len(at)} times, with one number "
                f"per time; got shape {tuple(f.shape)}, minimum {float(f.min()):.3g}"
            )
        p = f * uniform
        p = p / p.sum()
        self._tables = schedule, (low, width, p.cumsum(0), uniform / p)
        return self._tables[1]

    @classmethod
    def for_likelihood(cls) -> ImportanceTimes:
        """Return f = g²/σ², in proportion to a loss with the likelihood weight."""
        return cls(lambda schedule, t: schedule.g2(t) / schedule(t)[1] ** 2)

    def draw(
        self,
        schedule: Schedule,
        like: Float[Tensor, " batch"],
        generator: Generator | None = None,
        *,
        stratified: bool = False,
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Return times and the ratios u(t)/q(t), one of each for each sample."""
        u = _uniform(like, generator, stratified).double()
        low, width, cumulative, ratio = (v.to(u.device) for v in self._table(schedule))
        cell = torch.searchsorted(cumulative, u, right=True).clamp(max=len(cumulative) - 1)
        below = cumulative[cell] - cumulative.diff(prepend=cumulative.new_zeros(1))[cell]
        within = (u - below) / (cumulative[cell] - below)
        t = low[cell] + width[cell] * within.clamp(0, 1)
        return t.to(like), ratio[cell].to(like)
