r"""A score given any part of x: one network for all parts, and the resulting score.

The condition is a row with NaN in the unknown entries. The score remains a score of all of x, so
that a batch can contain rows with different unknown entries: known entries become independent of
everything else, N(m, v) with the moments of z_0,

.. math::
    p(z \mid x_{known}) = p(z_{unknown} \mid x_{known}) \prod_{i\ known} N(z_i; m_i, v_i)

and drivers put the known values back after drawing. The alternative, inserting freshly noised
known values in every step of an unconditional model, is biased however small the steps are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..core import Generator, check_event_shape, per_sample, randn_like
from ..noise.coordinates import AffineCoordinates
from .conditioned import ConditionedScore
from .levels import Levels
from .shared import Shared

MOST_GAUSSIAN = 48
"""Entries of a vector up to which a network learns the rest of a Gaussian law."""

MOST_ROWS, MOST_WORK = 2000, 10**8
"""Most rows to fit it to, and most rows times D³, but at least five rows per entry."""

ROUNDS, STILL = 40, 1e-3
"""Most rounds of expectation maximisation, and the change of S below which it ends."""

CHUNK = 4096
"""Number of rows filled at once."""

RIDGE = 1e-3
"""Least variance of that law in any direction, in the frame of unit variance."""

FOLDS, PLENTY, NINETY = 3, 20, 1.6449
"""Number of folds; rows per entry that are enough without them; 90 % of N(0, 1) lie within ± this."""


def check_holes(x: Any, event_shape: torch.Size) -> Tensor:
    """Return rows with holes, `(1, *event)` or `(B, *event)`, unchanged.

    Raises:
        ValueError: If they are not floats of that shape, finite or NaN.
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

    given the known entries of each row. A tenth of a row per entry, with the variances of S and no
    correlation, is added, so that the law is not singular if there are few rows.

    Arguments:
        u: Rows `(N, D)` with about unit variance.
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
    r"""Return the ratio of the variance of numbers about their conditional means to the fitted one.

    For entry i of a row, given all other known entries, with P the inverse covariance of all these,

    .. math:: r_i = \frac{(P (u - m))_i}{\sqrt{P_{ii}}} \sim N(0, 1)

    if m and S are the true ones. Estimates from few rows make \|r\| larger, the more so the more
    entries are given, and the fraction of a row that `gaussian_with_holes` adds may outweigh this.
    The rows are divided into n folds, and m and S are fitted to the rows outside each. The ratio of
    variances is (q / 1.645)² with the 90 % quantile q of \|r\|, on which a few extreme values have
    little effect. Its logarithm is inversely proportional to the number of rows, of which every fit
    lacks a share 1/n; so it is multiplied by 1 − 1/n.

    Arguments:
        u: Rows `(N, D)` with about unit variance.
        known: 1 where an entry is known, `(N, D)`.
        judged: Entries whose r are used, bool `(D,)`.
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
    """Return `gaussian_with_holes`, with a variance of at least `RIDGE` in every direction."""
    m, S = gaussian_with_holes(u, known)
    w, U = torch.linalg.eigh(S)
    return m, (U * w.clamp(min=RIDGE)) @ U.T


def _given(S: Tensor, a: Tensor, b: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return S A C⁻¹ times `left`, and the remaining variance, with C = A S A + B; row by row."""
    a_S = a.unsqueeze(2) * S
    L = torch.linalg.cholesky(a_S * a.unsqueeze(1) + b.diag_embed())
    X = torch.cholesky_solve(a_S, L)
    return (left.unsqueeze(1) @ X).squeeze(1), S.diagonal() - (a_S * X).sum(1)


class Mask(Shared):
    """The condition of a network that accepts any known part of x: which entries, and their values.

    The network takes it as `(B, 2, *event)`: 1 where an entry is known, 0 where it is not, −1
    where it is neither known nor needed; and the known values in the frame of unit variance, 0
    elsewhere. If nothing is known, this is the null condition, which the network has always seen.

    For vectors it keeps mean and covariance, so that the network only learns what the Gaussian law
    with these moments does not describe; and it keeps which entries are levels of a column, and
    their frequencies (`Levels`). The covariance includes all entries; if these are more than
    `MOST_GAUSSIAN`, only those that are not levels, if they are fewer. `share` is the part of the
    network's correction to that law that is kept, for each noise level.

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
        self.numbers = torch.ones(D, dtype=torch.bool)  # what `wider` is estimated from
        self.levels = Levels(D) if vector else None

    def fit(self, rows: Tensor) -> None:
        """Fit mean and covariance to rows with holes, in the units of the data, by maximum likelihood.

        Also fit the frequencies of levels.
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
        r"""Draw the NaN entries of rows from the Gaussian law given some others, with their density.

        .. math:: N(m_a + S_{ak} S_{kk}^{-1} (u_k - m_k),\; S_{aa} - S_{ak} S_{kk}^{-1} S_{ka})

        Arguments:
            rows: Rows `(N, D)`, in the units of the data, NaN where a value is to be drawn.
            given: Which entries to condition on if they are present, bool, shape of the rows.
            generator: Source of the draws.

        Returns:
            The complete rows, and the log-density `(N,)` of the draws, in nats.
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
        r"""Return mean and deviation of u_0 given α u_0 + σ ε = u and the known part, for a Gaussian.

        .. math:: m + S A C^{-1} (y - A m), \quad C = A S A + B

        with A the signal and B the noise of every entry: 1 and almost 0 where it is known, 0 and 1
        where it is neither known nor needed, α and σ²/c where it is not known. The covariance of
        the unknown entries is then that given the known ones, times c = exp Σ `wider` over these.

        Arguments:
            u: States in the frame of unit variance, `(B, D)`.
            alpha: α, `(B, 1)`, or () for all.
            sigma: σ in that frame, `(B, D)` or `(D,)`.
            condition: The condition in the form that the network takes.
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
        """Return the mean of u_0 corrected by `out`, with the arguments of `gaussian`.

        `out` corrects numbers in units of their deviation, and levels by their log-odds; both are
        multiplied by the share at the noise coordinate of the network.
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
        """The data from which to rebuild it, as JSON."""
        return list(self.kind)

    def check(self, condition: Any) -> Tensor:
        """Return rows with holes, or raise `ValueError`."""
        return check_holes(condition, self.event_shape)

    def encode(self, condition: Any) -> Tensor:
        """Return the condition for the network, from rows in data units with NaN where unknown.

        Raises:
            ValueError: If it is not of this kind.
        """
        x = self.check(condition)
        known = ~x.isnan()
        values = self.coordinates.encode(torch.where(known, x, self.coordinates.shift.to(x)))
        return torch.stack([known.to(x), torch.where(known, values, 0.0)], 1)

    def null(self, n: int, like: Tensor) -> Tensor:
        """Return n rows in which nothing is known."""
        return like.new_zeros(1, *self.kind).expand(n, *self.kind)

    def drop(self, encoded: Tensor, dropped: Tensor) -> Tensor:
        """Return encoded conditions, with nothing known in the rows of `dropped`, `(B,)`."""
        return torch.where(dropped.reshape(-1, *[1] * len(self.kind)), 0.0, encoded)

    def check_null(self) -> None:
        """Do nothing: a row in which nothing is known is a valid condition."""


class MaskedScore(ConditionedScore):
    r"""The score of z_t given a part of x, one part for each row or one for all.

    In the unknown entries it is that of the network; in the known ones

    .. math:: -\frac{z_i - α m_i}{α^2 v_i + σ^2}

    Arguments:
        model: A `ScoreModel` whose network was created with `holes=True`.
        condition: The condition for the network (`Mask.encode`); None if nothing is known.
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
