r"""A score given any part of x: one network for all parts, and the score that it becomes.

A row with holes, NaN where nothing is known, is the condition. The score stays one of all of x, so that
rows with different holes go together: entries that are known become independent of everything,
N(m, v) with the moments of z_0,

.. math::
    p(z \mid x_{known}) = p(z_{unknown} \mid x_{known}) \prod_{i\ known} N(z_i; m_i, v_i)

and whoever draws puts the known values back. Putting freshly noised known values in at every step of an
unconditional model instead is biased, however fine the steps.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core import Generator, check_event_shape, per_sample, randn_like
from ..noise.coordinates import AffineCoordinates
from .base import Shared
from .conditioned import ConditionedScore
from .levels import Levels

MOST_GAUSSIAN = 48
"""Entries of a vector up to which a network learns the rest of a Gaussian law."""

MOST_ROWS, MOST_WORK = 2000, 10**8
"""Rows that it is fitted to, and rows times D³, but five rows an entry at least."""

ROUNDS, STILL = 40, 1e-3
"""Of expectation maximisation, and by how little S changes where it ends."""

CHUNK = 4096
"""Rows that are filled together."""

RIDGE = 1e-3
"""Least variance, in the frame of unit variance, of any direction of that law."""

FOLDS, PLENTY, NINETY = 3, 20, 1.6449
"""Of few rows how many are spared in turn; rows an entry that are many; 90 % of N(0, 1) lie within."""


def check_holes(x: Any, event_shape: torch.Size) -> Tensor:
    """Return rows with holes, `(1, *event)` or `(B, *event)`, as they are.

    Raises:
        ValueError: Unless they are floats of that shape, finite or NaN.
    """
    wanted = f"float rows (1 or B, {', '.join(map(str, event_shape))}), NaN where nothing is known"
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"the condition must be {wanted}; got {got}")
    if x.ndim < 1 or x.shape[1:] != event_shape or not len(x):
        raise ValueError(f"the condition must be {wanted}; got shape {tuple(x.shape)}")
    if bool(x.isinf().any()):
        raise ValueError("the condition has infinite entries")
    return x


def gaussian_with_holes(u: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the maximum-likelihood mean and covariance of incomplete rows (expectation maximisation).

    .. math:: m = \frac{1}{n} \sum_i E[u_i], \quad
        S = \frac{1}{n} \sum_i \left( \mathrm{Cov}[u_i] + (E[u_i] - m)(E[u_i] - m)^\top \right)

    given the known entries of each row. A tenth of a row for each entry, with the variances of S and no
    correlation, is counted in, so that few rows do not make a singular law.

    Arguments:
        u: Rows `(N, D)` of about unit variance.
        known: 1 where an entry is known, `(N, D)`.

    References:
        | Maximum Likelihood from Incomplete Data via the EM Algorithm (Dempster et al., 1977)
        | https://doi.org/10.1111/j.2517-6161.1977.tb01600.x
    """
    n, d = u.shape
    m, S = (u * known).sum(0) / known.sum(0).clamp(min=1), torch.eye(d).to(u)
    for _ in range(ROUNDS if not bool(known.all()) else 1):
        A_S = known.unsqueeze(2) * S
        C = A_S * known.unsqueeze(1) + (1 - known + known * 1e-9).diag_embed()
        X = torch.linalg.solve(C, A_S)
        mean = m + ((u - m) * known).unsqueeze(1).bmm(X).squeeze(1)
        cov = (S - A_S.mT @ X).mean(0)
        m = mean.mean(0)
        before, S = S, cov + (mean - m).T @ (mean - m) / n
        S = (n * S + 0.1 * d * S.diagonal().diag()) / (n + 0.1 * d)
        if float((S - before).abs().max()) < STILL:
            break
    return m, (S + S.T) / 2


def spread_given_all(u: Tensor, known: Tensor, judged: Tensor) -> float:
    r"""Return how much wider numbers spread about their conditional means than a fitted law says.

    Of entry i of a row, given all others that are known, with P the inverse covariance of these,

    .. math:: r_i = \frac{(P (u - m))_i}{\sqrt{P_{ii}}} \sim N(0, 1)

    under m and S known, but few rows leave them uncertain, the more so the more is given, and the
    entries counted in (`gaussian_with_holes`) may outweigh them. m and S are those of the rows that
    are not looked at, in folds, and the ratio of variances (q / 1.645)² that of the 90 % quantile q
    of \|r\|: few wild values do not count. What is not learned from is a share 1/n of a fold too few,
    and the logarithm of the ratio goes with 1/n.

    Arguments:
        u: Rows `(N, D)` of about unit variance.
        known: 1 where an entry is known, `(N, D)`.
        judged: Entries to look at, bool `(D,)`.
    """
    fold, found = torch.arange(len(u)) % FOLDS, []
    for i in range(FOLDS):
        m, S = _fitted(u[fold != i], known[fold != i])
        k = known[fold == i]
        P = torch.linalg.inv(k.unsqueeze(2) * S * k.unsqueeze(1) + (1 - k).diag_embed())
        r = (P @ ((u[fold == i] - m) * k).unsqueeze(2)).squeeze(2)
        found.append((r / P.diagonal(dim1=1, dim2=2).sqrt())[(k > 0) & judged].abs())
    r = torch.cat(found)
    if len(r) < PLENTY:
        return 1.0
    return float(r.quantile(0.9) / NINETY) ** (2 - 2 / FOLDS)


def _fitted(u: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Return `gaussian_with_holes`, no direction of less variance than `RIDGE`."""
    m, S = gaussian_with_holes(u, known)
    w, U = torch.linalg.eigh(S)
    return m, (U * w.clamp(min=RIDGE)) @ U.T


def _given(S: Tensor, a: Tensor, b: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return S A C⁻¹ of what is left, and the variance that stays, C = A S A + B; a row for each."""
    a_S = a.unsqueeze(2) * S
    L = torch.linalg.cholesky(a_S * a.unsqueeze(1) + b.diag_embed())
    X = torch.cholesky_solve(a_S, L)
    return (left.unsqueeze(1) @ X).squeeze(1), S.diagonal() - (a_S * X).sum(1)


class Mask(Shared):
    """The condition of a network that knows any part of x: what is known, and its values.

    The network takes it as `(B, 2, *event)`: 1 where an entry is known, 0 where it is not, −1 where it
    is neither known nor asked for; and the known values in the frame of unit variance, 0 elsewhere.
    Nothing known is the null condition, which it has always seen.

    Of vectors it keeps mean and covariance, so that the network has to learn only what a Gaussian law
    with these does not say; and which entries are levels of a column, whose frequencies it keeps
    (`Levels`). The covariance is that of all entries, or, of more than `MOST_GAUSSIAN`, of those that
    are no levels, if they are fewer. Of what the network says beyond that law, `share` is kept, level
    by level of noise.

    Arguments:
        event_shape: The shape of x.
    """

    mean: Tensor | None
    cov: Tensor | None
    wider: Tensor | None
    numbers: Tensor
    levels: Levels | None

    def __init__(self, event_shape: torch.Size) -> None:
        check_event_shape(event_shape)
        super().__init__(torch.empty(0), event_shape.numel())
        self.event_shape = torch.Size(event_shape)
        self.kind = torch.Size((2, *event_shape))
        self.coordinates = AffineCoordinates(torch.zeros(event_shape), torch.ones(event_shape))
        D, vector = self.event_shape.numel(), len(event_shape) == 1
        self.register_buffer("mean", torch.zeros(D) if vector else None)
        self.register_buffer("cov", torch.eye(D) if vector else None)
        self.register_buffer("wider", torch.zeros(D) if vector else None)  # logarithms
        self.numbers = torch.ones(D, dtype=torch.bool)  # what that is judged by
        self.levels = Levels(D) if vector else None

    def fit(self, rows: Tensor) -> None:
        """Take from rows with holes, in the units of the data, mean and covariance of most likelihood.

        And how often each level is met.
        """
        if self.mean is None or self.cov is None or self.levels is None or self.wider is None:
            return
        self.levels.fit(rows.double(), self.coordinates)
        d = self.event_shape.numel()
        own = self.levels.block.cpu() < 0 if d > MOST_GAUSSIAN else torch.ones(d).bool()
        d = int(own.sum())
        if not 0 < d <= MOST_GAUSSIAN:
            return
        most = max(5 * d, min(MOST_ROWS, MOST_WORK // d**3))
        known, u = self.encode(rows[:: -(-len(rows) // most)].double()).unbind(1)
        u, known = u[:, own], known[:, own]
        mean, cov = _fitted(u, known)
        self.mean[own] = mean.to(self.mean)
        self.cov[torch.outer(own, own)] = cov.to(self.cov).flatten()
        if 2 * FOLDS < len(u) < PLENTY * d and d > 1:
            ratio = spread_given_all(u, known, self.numbers[own])
            others = float(known.sum(1).mean()) - 1
            self.wider[own] = math.log(ratio) / max(others, 1.0)

    def fill(
        self, rows: Tensor, given: Tensor, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draw what is NaN in rows from the Gaussian law given some of the rest, and its density.

        .. math:: N(m_a + S_{ak} S_{kk}^{-1} (u_k - m_k),\; S_{aa} - S_{ak} S_{kk}^{-1} S_{ka})

        Arguments:
            rows: Rows `(N, D)`, in the units of the data, NaN where a value is to be drawn.
            given: Which entries it is drawn given, where they are there, bool like the rows.
            generator: Where draws come from.

        Returns:
            The rows, whole, and the log-density `(N,)` of what was drawn, in nats.
        """
        assert self.mean is not None
        assert self.cov is not None
        found, nats = rows.clone(), rows.new_zeros(len(rows))
        S, m = self.cov.to(rows), self.mean.to(rows)
        some = rows.isnan().any(1).nonzero()[:, 0]
        for part in some.split(CHUNK):
            asked, k = rows[part].isnan(), (given[part] & ~rows[part].isnan()).to(rows)
            u = torch.where(asked, 0.0, self.coordinates.encode(rows[part]))
            k_S = k.unsqueeze(2) * S
            X = torch.linalg.solve(k_S * k.unsqueeze(1) + (1 - k).diag_embed(), k_S)
            mean = m + ((u - m) * k).unsqueeze(1).bmm(X).squeeze(1)
            a = asked.to(rows)
            cov = (S - k_S.mT @ X) * a.unsqueeze(1) * a.unsqueeze(2) + (1 - a).diag_embed()
            L = torch.linalg.cholesky(cov + RIDGE**2 * a.diag_embed())
            eps = randn_like(u, generator) * a
            drawn = mean + (L @ eps.unsqueeze(2)).squeeze(2)
            found[part] = torch.where(asked, self.coordinates.decode(drawn), rows[part])
            each = L.diagonal(dim1=1, dim2=2).log() + self.coordinates.scale.to(u).log()
            each = each + 0.5 * eps.square() + 0.5 * math.log(2 * math.pi)
            nats[part] = -(each * a).sum(1)
        return found, nats

    def gaussian(
        self, u: Tensor, alpha: Tensor, sigma: Tensor, condition: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""Return mean and deviation of u_0 given α u_0 + σ ε = u and what is known, in a Gaussian law.

        .. math:: m + S A C^{-1} (y - A m), \quad C = A S A + B

        with A the signal and B the noise of every entry: 1 and next to 0 where it is known, 0 and 1
        where it is neither known nor asked for, α and σ²/c where it is not known. So the covariance
        of what is not known is that given what is known, times c = exp Σ `wider` over this.

        Arguments:
            u: In the frame of unit variance, `(B, D)`.
            alpha: `(B, 1)`, or () for all.
            sigma: In that frame, `(B, D)` or `(D,)`.
            condition: As the network takes it.
        """
        assert self.mean is not None
        assert self.cov is not None
        assert self.wider is not None
        if not condition.stride(0) and not alpha.ndim:  # the same for all
            state, values = condition[:1].unbind(1)
        else:
            state, values = condition.unbind(1)
        S, m, sigma = self.cov.to(u), self.mean.to(u), sigma.reshape(-1, u.shape[1])
        is_known, is_open = state > 0.5, state.abs() < 0.5
        wider = (is_known.to(u) @ self.wider.to(u)).exp().unsqueeze(1)
        a = torch.where(is_open, alpha, is_known.to(u))
        b = torch.where(is_open, sigma.square() / wider, torch.where(is_known, RIDGE, 1.0).to(u))
        left = torch.where(is_open, u, values) - a * m
        if len(m) <= MOST_GAUSSIAN:
            mean, var = _given(S, a, b, left)
        else:  # most are correlated with none
            v = S.diagonal()
            gain = a * v / (a * a * v + b)
            mean, var = gain * left, v - gain * a * v
            own = (S - v.diag()).any(0).nonzero()[:, 0]
            found = _given(S[own][:, own], *(x[:, own] for x in (a, b, left)))
            mean, var = (x.index_copy(1, own, y) for x, y in zip((mean, var), found, strict=True))
        return m + mean, (wider * var).clamp(min=1e-10).sqrt()

    def denoise(
        self, u: Tensor, alpha: Tensor, sigma: Tensor, condition: Tensor, out: Tensor,
        coordinate: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the mean of u_0 that the network corrects by `out`: arguments as of `gaussian`.

        Numbers by so many deviations, levels by the logarithm of how much likelier they are; of either
        the share at the noise coordinate of the network.
        """
        assert self.levels is not None
        mean, sd = self.gaussian(u, alpha, sigma, condition)
        met, found = (
            self.levels.denoise(u, alpha, sigma, f) for f in (torch.zeros_like(out), out)
        )
        is_level, share = self.levels.block >= 0, self.shared(coordinate)
        known = torch.where(is_level, met, mean)
        return known + share * torch.where(is_level, found - met, sd * out)

    @property
    def config(self) -> list[int]:
        """What rebuilds it, JSON."""
        return list(self.kind)

    def check(self, condition: Any) -> Tensor:
        """Return rows with holes, or raise `ValueError`."""
        return check_holes(condition, self.event_shape)

    def encode(self, condition: Any) -> Tensor:
        """Return the condition as the network takes it, from rows in data units, NaN where unknown.

        Raises:
            ValueError: If it is not of this kind.
        """
        x = self.check(condition)
        known = ~x.isnan()
        values = self.coordinates.encode(torch.where(known, x, self.coordinates.shift.to(x)))
        return torch.stack([known.to(x), torch.where(known, values, 0.0)], 1)

    def null(self, n: int, like: Tensor) -> Tensor:
        """Return n rows of nothing known."""
        return like.new_zeros(1, *self.kind).expand(n, *self.kind)

    def drop(self, encoded: Tensor, dropped: Tensor) -> Tensor:
        """Return encoded conditions, nothing known where `dropped` `(B,)`."""
        return torch.where(dropped.reshape(-1, *[1] * len(self.kind)), 0.0, encoded)

    def check_null(self) -> None:
        """Do nothing: that nothing is known is a condition like others."""


class MaskedScore(ConditionedScore):
    r"""The score of z_t given a part of x, one part for each row or one for all.

    Where an entry is unknown, that of the network; where it is known,

    .. math:: -\frac{z_i - α m_i}{α^2 v_i + σ^2}

    Arguments:
        model: A `ScoreModel` whose network was made with `holes=True`.
        condition: As the network takes it (`Mask.encode`); None for nothing known.
    """

    def _apart(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where entries are known, and their mean and variance."""
        m, v = self.score.moments
        return self._each(z)[:, 0].abs() > 0.5, m.to(z), v.to(z)

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        known, m, v = self._apart(z)
        a, b = (per_sample(q, z) for q in self.score.schedule(t))
        return torch.where(known, -(z - a * m) / (a**2 * v + b**2), super()._score(z, t))

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        known, m, v = self._apart(z)
        a, b = (per_sample(q, z) for q in self.score.schedule(t))
        apart = m + a * v / (a**2 * v + b**2) * (z - a * m)
        return torch.where(known, apart, super()._denoise(z, t))
