r"""The No-U-Turn sampler: leapfrog orbits that double until they turn back.

A tree is a segment of 2^j neighbouring points on the orbit of the start. It doubles at a randomly
chosen end, and the next state is drawn from it with weights w = exp(−H). The tree has the same
probability from every start in it, so the law is invariant, because

* a new half is discarded, and ends the step, if one of its dyadic subtrees turns or becomes NaN or
  infinite: from a start in that subtree the tree would have ended there;
* whether a segment turns depends only on the segment, not on the start.

All chains of a batch are at the same leaf of the same doubling: subtrees are kept on one stack,
like carries in binary counting, and there is no recursion. Chains that have ended are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ...core import (
    Density,
    Generator,
    check_count,
    check_number,
    per_sample,
    rand_like,
    randn_like,
    sum_event,
)
from .facts import NO_U_TURN, Facts, metropolis_facts, own_covariance
from .hamiltonian import PhaseState, energy, leapfrog
from .preconditioner import IDENTITY, Preconditioner, as_preconditioner
from .steps import (
    Adjusted,
    Metropolised,
    MetropolisState,
    check_shared,
    per_chain,
    select,
)

FEWEST = 0.5
"""Chains that have ended are taken out once fewer than this part of the rows still moves."""


class NUTSInfo(NamedTuple):
    """Information about a step; `energy` is H at the new state.

    `acceptance` is the mean of min(1, exp(−ΔH)) over all points of the orbit except the start,
    which tuning of the step size uses; `accepted` says whether the chain moved. `n_leapfrog`
    counts leapfrog steps, with one score each, and `depth` doublings, the last of which may have
    been discarded.
    """

    acceptance: Float[Tensor, " chain"]
    accepted: Bool[Tensor, " chain"]
    log_prob: Float[Tensor, " chain"]
    diverging: Bool[Tensor, " chain"]
    energy: Float[Tensor, " chain"]
    n_leapfrog: Int64[Tensor, " chain"]
    depth: Int64[Tensor, " chain"]


class _Tree(NamedTuple):
    """A stretch of an orbit, first to last as it was built; log-weights are relative to the start."""

    first: PhaseState
    last: PhaseState
    pick: Tensor  # the point drawn from it: x, score, log-density and log-weight in one row
    log_w: Tensor  # of all its points together
    least: Tensor  # log-weight of a single point, and the largest
    most: Tensor


class _Outcome(NamedTuple):
    """What is counted for each chain."""

    acceptance: Tensor
    accepted: Tensor
    diverging: Tensor
    n_leapfrog: Tensor
    depth: Tensor


class _Work(NamedTuple):
    """The chains that still move: which of all they are, and all that belongs to them."""

    rows: Tensor
    tree: _Tree
    outcome: _Outcome
    step: Tensor  # as it multiplies x
    sign: Tensor  # ±1, the direction of the last doubling, likewise
    uniforms: Tensor
    H: Tensor  # at the start

    def onwards(self, depth: int) -> _Work:
        """Return the same at the beginning of a doubling: the tree is seen in its direction."""
        sign = per_sample(1 - 2 * (self.uniforms[:, 0, depth] >= 0.5).to(self.H), self.step)
        turn, (first, last) = (sign != self.sign).flatten(), self.tree[:2]
        tree = self.tree._replace(first=select(turn, last, first), last=select(turn, first, last))
        outcome = self.outcome._replace(depth=self.outcome.depth + 1)
        return self._replace(tree=tree, outcome=outcome, sign=sign)


def _rows(value: Any, index: Tensor) -> Any:
    """Return these rows of all tensors in a nest of tuples and lists."""
    if isinstance(value, Tensor):
        return value[index]
    fields = [_rows(field, index) for field in value]
    return type(value)(*fields) if hasattr(value, "_fields") else type(value)(fields)


def _turned(a: PhaseState, b: PhaseState, sign: Tensor) -> Tensor:
    """Return whether (x_b − x_a)·p < 0 at one of the ends, b being after a in the direction of time."""
    way = sign * (b.x - a.x)
    return torch.minimum(sum_event(way * a.momentum), sum_event(way * b.momentum)) < 0


def _turns(a: _Tree, b: _Tree, sign: Tensor, single: bool) -> Tensor:
    """Return whether a followed by b turns, as a whole or in the segments that end next to the seam.

    These segments do not depend on the start either. Without them an orbit that makes one full
    turn in every doubling would not be detected.
    """
    whole = _turned(a.first, b.last, sign)
    if single:
        return whole
    return whole | _turned(a.first, b.first, sign) | _turned(a.last, b.last, sign)


def _joined(a: _Tree, b: _Tree, take: Tensor) -> _Tree:
    """Return a and then b as one, with the point of b where it is to be taken."""
    return _Tree(
        a.first,
        b.last,
        torch.where(take[:, None], b.pick, a.pick),
        torch.logaddexp(a.log_w, b.log_w),
        torch.minimum(a.least, b.least),
        torch.maximum(a.most, b.most),
    )


@dataclass(frozen=True)
class NUTS(Metropolised):
    r"""The No-U-Turn sampler: HMC whose orbit grows until it turns back.

    .. math::
        q \sim N(0, P^{-1}), \quad H(x, q) = -\log p(x) + \tfrac12 q^\top P q, \quad
        \text{turned: } (x_+ - x_-) \cdot q_- < 0 \text{ or } (x_+ - x_-) \cdot q_+ < 0

    The orbit through (x, q) is doubled in a random direction until it turns, a new half has a part
    that turns, or `max_depth` is reached. The next state is a point of it with weights exp(−H):
    inside a new half exactly, and the new half is chosen with probability min(1, W_new/W_old),
    which prefers distant points. This leaves p exactly invariant. There is no temperature.

    A subtree in which H varies by more than `max_energy_error` is treated like one that turns, and
    flagged `diverging`; so is a subtree with a point that is not finite. A subtree that leaves the
    support is not flagged. A rule about H − H(start) would depend on the start and change the law.

    A step draws momenta and, all at once, three uniform numbers per doubling: for its direction,
    for the choice of its half, and for one level of the choice inside halves. There each pair of
    neighbouring subtrees of 2^k points chooses its right one with probability W_r/(W_l + W_r), and
    all pairs with the same k use the same number. A point is drawn by one choice at each level,
    and the numbers of different levels are independent, so its probability is exactly w/W.

    References:
        | The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian Monte Carlo
          (Hoffman & Gelman, 2014)
        | https://arxiv.org/abs/1111.4246
        | A Conceptual Introduction to Hamiltonian Monte Carlo (Betancourt, 2017)
        | https://arxiv.org/abs/1701.02434

    Arguments:
        step_size: ε > 0, the time of one leapfrog step; or one for each chain, `(chain,)`.
        max_depth: Maximum number of doublings; each needs twice the scores of the one before,
            2^depth − 1 in total.
        preconditioner: The inverse mass P, as in `HMC`.
        max_energy_error: Δ > 0.
        on_nonfinite: `raise` for a `FloatingPointError` instead of a flag.

    Raises:
        ValueError: For an argument out of its range.

    Examples:
        >>> target, g = glp.Gaussian(torch.zeros(2)), torch.Generator().manual_seed(0)
        >>> chain = glp.run(glp.langevin.NUTS(0.5), target, torch.zeros(4, 2), 50, generator=g)
        >>> chain.draws.shape
        torch.Size([4, 50, 2])
    """

    step_size: float | Tensor
    max_depth: int = 10
    preconditioner: Preconditioner | Tensor | float = IDENTITY
    max_energy_error: float = 1000.0
    on_nonfinite: Adjusted = "reject"

    facts: ClassVar[Facts] = metropolis_facts(
        NO_U_TURN, stationary=own_covariance, step_per_chain=True
    )

    def __post_init__(self) -> None:
        check_shared(self, Adjusted, per_chain=True)
        check_count(self.max_depth, "max_depth", most=30)
        check_number(self.max_energy_error, "max_energy_error", above=0)

    def step(
        self, state: MetropolisState, target: Density, *, generator: Generator | None = None
    ) -> tuple[MetropolisState, NUTSInfo]:
        """Move every chain by one step."""
        P, n = as_preconditioner(self.preconditioner), len(state.x)
        momentum = P.momentum(randn_like(state.x, generator))
        uniforms = rand_like(state.x.new_empty(n, 3, self.max_depth), generator)
        # one order in memory, so that sums do not depend on which chains were taken out
        start = PhaseState(*(v.contiguous() for v in (*state, momentum)))
        zero, H = torch.zeros_like(start.log_prob), energy(start, P)
        no, count = zero.bool(), torch.zeros_like(zero, dtype=torch.long)
        outcome, pick = _Outcome(zero, no, no, count, count), _packed(start, zero)
        kept = pick.clone(), _Outcome(*(v.clone() for v in outcome))
        tree = _Tree(start, start, pick, zero, zero, zero)
        step = per_sample(per_chain(self.step_size, start.x), start.x)
        rows = torch.arange(n, device=zero.device)
        work = _Work(rows, tree, outcome, step, torch.ones_like(step), uniforms, H)
        for depth in range(self.max_depth):
            work, half = self._half(work, depth, target, P, kept)
            if half is None:
                break
            work, going = self._doubled(work, half, depth)
            if depth + 1 == self.max_depth or not bool(going.all()):
                work, _ = _left(work, (), going, kept)
        return self._end(kept, H, state.x.shape)

    def _half(
        self,
        work: _Work,
        depth: int,
        target: Density,
        P: Preconditioner,
        kept: tuple[Tensor, _Outcome],
    ) -> tuple[_Work, _Tree | None]:
        """Return the chains whose new half of 2^depth points did not fail, and that half.

        The others are omitted; the result is empty if it failed for all chains.
        """
        work = work.onwards(depth)
        point, alive, stack = work.tree.last, torch.ones_like(work.H).bool(), list[_Tree]()
        step = work.sign * work.step
        for leaf in range(2**depth):
            point = leapfrog(point, target, step, 1, P)
            kinetic = sum_event(point.momentum * P.apply(point.momentum)) / 2
            log_w, outside = work.H - kinetic + point.log_prob, point.log_prob == -torch.inf
            # the momentum is not finite where the score, here or before, is not
            lost = ~torch.isfinite(torch.where(outside, kinetic, log_w))
            failed, wide = outside | lost, torch.zeros_like(lost)
            chance = torch.where(failed | ~alive, 0.0, log_w.clamp(max=0.0).exp())
            pick = _packed(point, log_w)
            new, level = _Tree(point, point, pick, log_w, log_w, log_w), 0
            while leaf >> level & 1:
                old = stack.pop()
                failed = failed | _turns(old, new, work.sign, level == 0)
                to_right = (new.log_w - torch.logaddexp(old.log_w, new.log_w)).exp()
                new = _joined(old, new, work.uniforms[:, 2, level] < to_right)
                wide = wide | (new.most - new.least > self.max_energy_error)
                level += 1
            stack.append(new)
            outcome = work.outcome
            outcome = outcome._replace(
                acceptance=outcome.acceptance + chance, n_leapfrog=outcome.n_leapfrog + alive
            )
            flagged = alive & (lost | (wide & ~outside))
            alive = alive & ~(failed | wide)
            n_alive, n_flagged = torch.stack([alive.sum(), flagged.sum()]).tolist()
            if n_flagged:
                outcome = outcome._replace(diverging=outcome.diverging | flagged)
            work = work._replace(outcome=outcome)
            few = n_alive < (FEWEST if leaf + 1 < 2**depth else 1) * len(alive)
            if few or n_flagged:  # a target is not asked again about what is not finite
                work, (point, stack, step) = _left(work, (point, stack, step), alive, kept)
                alive = alive[alive]
            if not n_alive:
                return work, None
        return work, stack[0]

    def _doubled(self, work: _Work, half: _Tree, depth: int) -> tuple[_Work, Tensor]:
        """Return the tree with its new half, and which chains continue."""
        old, outcome = work.tree, work.outcome
        take = work.uniforms[:, 1, depth] < (half.log_w - old.log_w).exp()
        tree = _joined(old, half, take)
        wide = tree.most - tree.least > self.max_energy_error
        outcome = outcome._replace(
            accepted=outcome.accepted | take, diverging=outcome.diverging | wide
        )
        turned = _turns(old, half, work.sign, depth == 0)
        return work._replace(tree=tree, outcome=outcome), ~(turned | wide)

    def _end(
        self, kept: tuple[Tensor, _Outcome], H: Tensor, shape: torch.Size
    ) -> tuple[MetropolisState, NUTSInfo]:
        (pick, outcome), d = kept, shape[1:].numel()
        if self.on_nonfinite == "raise" and bool(outcome.diverging.any()):
            raise FloatingPointError(
                f"{int(outcome.diverging.sum())} of {len(H)} orbits became infinite or NaN, or did not "
                "nearly conserve energy; use a smaller step_size"
            )
        acceptance = outcome.acceptance / outcome.n_leapfrog
        x, score, (log_prob, log_w) = pick[:, :d], pick[:, d:-2], pick[:, -2:].T.contiguous()
        x, score = (v.contiguous().reshape(shape) for v in (x, score))
        return MetropolisState(x, score, log_prob), NUTSInfo(
            acceptance, outcome.accepted, log_prob, outcome.diverging, H - log_w, outcome.n_leapfrog,
            outcome.depth,
        )  # fmt: skip


def _left(
    work: _Work, also: Any, going: Tensor, kept: tuple[Tensor, _Outcome]
) -> tuple[_Work, Any]:
    """Return the chains that continue, with their data, after all have been saved."""
    for whole, part in zip((kept[0], *kept[1]), (work.tree.pick, *work.outcome), strict=True):
        whole[work.rows] = part
    return _rows((work, also), going.nonzero()[:, 0])


def _packed(point: PhaseState, log_w: Tensor) -> Tensor:
    """Return what is kept of a point in one row: choosing between two is then one operation."""
    ends = point.log_prob[:, None], log_w[:, None]
    return torch.cat([point.x.flatten(1), point.score.flatten(1), *ends], 1)
