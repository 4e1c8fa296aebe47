r"""The law from which large images start: a mixture of independent waves of independent colours.

Neighbouring pixels are alike at any place of a picture, so that its covariance is nearly diagonal in
the cosine transform Q of each side and the principal colours U. Pictures are of several kinds, smooth
or rough, bright or dark. Component k has its own mean m_k of the longest waves, and variances v_k that
are those of the data, times a factor for each band of waves. Where w is a wave of z_t − α μ,
c_k = α² v_k + σ², and r_k are the responsibilities of the components,

.. math::
    s = -Q^\top \sum_k r_k \frac{w - α m_k}{c_k}, \qquad
    E[z_0 | z_t] = μ + Q^\top \sum_k r_k \left( m_k + \frac{α v_k}{c_k} (w - α m_k) \right)

The score of any law obeys E[s wᵀ] = −I (Stein), and samples have the right variances, to first order,
if a learned one does. What a model lacks is added after training, for each level of noise and each
band, with c = α² v + σ² for the variances v of all data:

.. math::
    s \to s + β \frac{w}{c}, \qquad β = -1 - \frac{\sum_i E[s_i w_i]}{\sum_i E[w_i^2/c_i]}

reduced where it is not large compared with its error (`Waves.lacks`).
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from ..core import Generator, randn_like
from ..noise.coordinates import AffineCoordinates, Data, pieces
from .shared import FLOOR, LEVELS, ROWS, Shared, chosen

BANDS = (0.5, 1.2, 1.7, 2.4, 3.4, 4.8, 6.8, 9.6, 13.6, 19.2, 27.2)
"""Frequencies between the bands, in half periods of the image: the first is that of its mean."""

COMPONENTS, FEWEST, LONG, ROUNDS = 16, 50, 3, 15
"""Components, rows for each of them at least, bands in which they have means of their own, and rounds
of their fit."""

ENTRIES = 2**24
"""Entries of the rows that they are fitted to, at most."""

LEAST = 1e-5
"""The least factor of a variance."""


class Waves(Shared):
    """A mixture for images `(C, H, W)` in model coordinates, and what is kept of the correction.

    It is fitted to the training data together with the frame of a model.
    """

    colours: Tensor
    mean: Tensor
    variances: Tensor
    weights: Tensor
    centres: Tensor
    factors: Tensor
    linear: Tensor
    band: Tensor

    follows = True

    def __init__(self, event_shape: torch.Size, *, like: Tensor | None = None) -> None:
        like = torch.empty(0) if like is None else like
        super().__init__(like)
        self.event_shape = event_shape
        channels, *sides = event_shape
        eye = torch.eye(channels, dtype=like.dtype, device=like.device)
        self.register_buffer("colours", eye)
        self.register_buffer("mean", like.new_zeros(event_shape))
        self.register_buffer("variances", like.new_ones(event_shape))
        bands = channels * (len(BANDS) + 1)
        self.register_buffer("weights", like.new_full((COMPONENTS,), 1 / COMPONENTS))
        self.register_buffer("centres", like.new_zeros(COMPONENTS, *event_shape))
        self.register_buffer("factors", like.new_ones(COMPONENTS, bands))
        self.register_buffer("linear", like.new_zeros(LEVELS, bands))
        i, j = (torch.arange(n, device=like.device).float() for n in sides)
        ring = torch.bucketize(torch.hypot(i[:, None], j), i.new_tensor(BANDS))
        first = (len(BANDS) + 1) * torch.arange(channels, device=like.device)
        self.register_buffer("band", first[:, None, None] + ring, persistent=False)

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds it, JSON: a base without directions of its own."""
        return {"components": COMPONENTS, "rank": 0, "follows": True}

    def waves(self, z: Tensor) -> Tensor:
        """Return what images `(B, C, H, W)` are in the basis."""
        y = (self.colours.to(z).mT @ z.flatten(2)).reshape(z.shape)
        return cosines(z.shape[2], z) @ y @ cosines(z.shape[3], z).mT

    def image(self, w: Tensor) -> Tensor:
        """Undo `waves`."""
        z = (self.colours.to(w) @ w.flatten(2)).reshape(w.shape)
        return cosines(w.shape[2], w).mT @ z @ cosines(w.shape[3], w)

    def score(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return ∇ log p_t(z) of the noised law; α and σ are `(1, 1)` or `(B, 1)`."""
        total: Any = 0
        for r, y, c, _, _ in self._parts(z, a, b):
            total = total - r * y / c
        return self.image(total.reshape(z.shape))

    def denoise(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return E[z_0 | z_t = z] of the law."""
        return self._image_of_mean(self._mean(self._parts(z, a, b), a), z)

    def denoise_trace(self, z: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return E[z_0 | z_t = z] of the law and its divergence, `(B,)`: see `Base.denoise_trace`."""
        parts = self._parts(z, a, b)
        w, trace = self._mean(parts, a), z.new_zeros(len(z))
        for r, y, c, m, v in parts:
            gain = a * v / c
            trace = trace + r[:, 0] * (gain.sum(1) - (y / c * (m + gain * y - w)).sum(1))
        return self._image_of_mean(w, z), trace

    def beyond(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
        """Return the end of the flow from z minus E[z_0 | z_t = z]: see `Base.beyond`."""
        total: Any = 0
        for r, y, c, _, v in self._parts(z, a, b):
            gain = v / c
            total = total + r * (gain.sqrt() - a * gain) * y
        return self.image(total.reshape(z.shape))

    def _mean(self, parts: list[tuple[Tensor, ...]], a: Tensor) -> Tensor:
        """Return the mean of the waves of z_0 − μ, flat."""
        total: Any = 0
        for r, y, c, m, v in parts:
            total = total + r * (m + a * v / c * y)
        return cast(Tensor, total)

    def _image_of_mean(self, w: Tensor, z: Tensor) -> Tensor:
        return self.mean.to(z) + self.image(w.reshape(z.shape))

    def log_prob(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return log p_t(z) of the noised law, `(B,)`."""
        log_joint, _ = self._components(z, a, b)
        return log_joint.logsumexp(1) - 0.5 * z[0].numel() * math.log(2 * math.pi)

    def sample(self, n: int, a: Tensor, b: Tensor, generator: Generator | None) -> Tensor:
        """Draw n states of the noised law; α and σ are `(1, 1)`."""
        eps = randn_like(self.mean.new_empty(n, *self.event_shape), generator).flatten(1)
        k = chosen(self.weights, n, generator)
        a, b = a.to(eps), b.to(eps)
        m, v = self._moments(eps)
        w = a * m[k] + (a.square() * v + b.square()).sqrt()[k] * eps
        return a[..., None, None] * self.mean + self.image(w.reshape(n, *self.event_shape))

    def _parts(self, z: Tensor, a: Tensor, b: Tensor) -> list[tuple[Tensor, ...]]:
        """Return r, w − α m, α² v + σ², m and v of each component, of flat waves."""
        log_joint, parts = self._components(z, a, b)
        r = log_joint.softmax(1)
        return [(r[:, k, None], *part) for k, part in enumerate(parts)]

    def _components(
        self, z: Tensor, a: Tensor, b: Tensor
    ) -> tuple[Tensor, list[tuple[Tensor, ...]]]:
        """Return log π_k N(z; …), `(B, K)`, up to d/2 log 2π, and w − α m, c, m and v of each."""
        w = self.waves(z - a[..., None, None] * self.mean.to(z)).flatten(1)
        energy, parts = [], list[tuple[Tensor, ...]]()
        for m, v in zip(*self._moments(z), strict=True):
            y, c = w - a * m, a.square() * v + b.square()
            energy.append((y.square() / c + c.log()).sum(1))
            parts.append((y, c, m, v))
        return self.weights.to(z).log() - 0.5 * torch.stack(energy, 1), parts

    def _moments(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return m and v of all components, of flat waves `(K, d)`."""
        factors = self.factors.to(like)[:, self.band] * self.variances.to(like)
        return self.centres.to(like).flatten(1), factors.flatten(1)

    def corrected(self, s: Tensor, z: Tensor, a: Tensor, b: Tensor, coordinate: Tensor) -> Tensor:
        """Return the score with the share of a correction s, and of what that lacks."""
        s = s + self._lacking(z, a, b, coordinate)
        return self.beside(self.score(z, a, b), s, coordinate)

    def corrected_mean(
        self, z0: Tensor, z: Tensor, a: Tensor, b: Tensor, coordinate: Tensor, *,
        alone: bool = False,
    ) -> Tensor:  # fmt: skip
        """Return E[z_0 | z_t = z] with the share of z0 and of what it lacks, or `alone` this share."""
        extra = self._lacking(z, a, b, coordinate)
        blind = a.masked_fill(a == 0, torch.inf)  # where a state carries no information
        z0 = z0 + extra * (b.square() / blind)[..., None, None]
        return self.beside(None if alone else self.denoise(z, a, b), z0, coordinate)

    def _lacking(self, z: Tensor, a: Tensor, b: Tensor, coordinate: Tensor) -> Tensor:
        """Return β w/c; coordinates are `()` or `(B,)`."""
        w, c = self._noised(z, a, b)
        return self.image(self.between(self.linear, coordinate)[..., self.band] * w / c)

    def _noised(self, z: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = a[..., None, None], b[..., None, None]
        return self.waves(z - a * self.mean.to(z)), a.square() * self.variances.to(z) + b.square()

    def squares(self, z: Tensor) -> Tensor:
        """Return the squared waves of z − μ, `(B, C, H, W)`."""
        return self.waves(z - self.mean.to(z)).square()

    def lacks(
        self, s: Tensor, z0: Tensor, eps: Tensor, a: Tensor, b: Tensor, squares: Tensor
    ) -> Tensor:
        """Return β of scores s at α z_0 + σ ε, for each band, reduced by its error.

        The sum of s w over a band is regressed on three with known means, of u e, e² and u² of the
        waves u of z_0 − μ and e of ε, so that most of what is due to the rows and their noise is
        taken out. What is left is reduced by the square of its standard error over itself, to 0 if
        that is above 1 (the non-negative garrote).

        References:
            | Better Subset Regression Using the Nonnegative Garrote (Breiman, 1995)
            | https://doi.org/10.1080/00401706.1995.10484371

        Arguments:
            s: Scores `(B, C, H, W)`.
            z0: Rows of the data.
            eps: Their noise.
            a: α, `(1, 1)`.
            b: σ, `(1, 1)`.
            squares: Means of `squares` over all data.
        """
        a, b = a[..., None, None], b[..., None, None]
        u, e = self.waves(z0 - self.mean.to(z0)), self.waves(eps)
        c = a.square() * self.variances.to(z0) + b.square()
        sums = lambda v: self._by_band(v.flatten(1).double())
        own = sums((a.square() * squares + b.square()) / c)[0]
        controls = torch.stack([sums(u * e), sums(e.square() - 1), sums(u.square() - squares)], 1)
        product, error = controlled(sums(self.waves(s) * (a * u + b * e)), controls)
        own = own.clamp(min=torch.finfo(own.dtype).tiny)
        beta, error = -1 - product / own, error / own
        told = (beta.square() - error.square()).clamp(min=0)
        return beta * told / beta.square().clamp(min=torch.finfo(own.dtype).tiny)

    def _by_band(self, v: Tensor) -> Tensor:
        """Return the sums over each band of rows `(N, d)`."""
        return v.new_zeros(len(v), self.linear.shape[1]).index_add(1, self.band.flatten(), v)

    @torch.no_grad()
    def fit(self, data: Data, coordinates: AffineCoordinates) -> None:
        """Become the law of data `(N, *event)`."""
        some, (channels, *_) = data[:: -(-len(data) // ROWS)], self.event_shape
        parts = lambda: (coordinates.encode(part.double().cpu()) for _, part in pieces(some))
        mean: Any = sum(z.sum(0) for z in parts()) / len(some)
        self.mean.copy_(mean)
        square, v = torch.zeros(channels, channels).double(), torch.zeros_like(mean)
        for z in parts():
            each = (z - mean).movedim(1, 0).flatten(1)
            square += each @ each.mT
        self.colours.copy_(torch.linalg.eigh(square).eigenvectors)
        for z in parts():
            v += self.waves(z - mean).square().sum(0) / len(some)
        self.variances.copy_(v.clamp(min=FLOOR * float(v.mean())))
        few = data[:: -(-len(data) * self.event_shape.numel() // ENTRIES)]
        z = torch.cat([part for _, part in pieces(few)]).double().cpu()
        self._fit_components(self.waves(coordinates.encode(z) - mean).flatten(1))

    def _fit_components(self, w: Tensor) -> None:
        """Fit the components to waves `(n, d)` of the data, by expectation and maximisation.

        They begin with equal parts of the rows, from the smoothest to the roughest.
        """
        n, band, scale = len(w), self.band.flatten(), self.variances.double().flatten().sqrt()
        k, bands = max(1, min(COMPONENTS, n // FEWEST)), self.linear.shape[1]
        y = w / scale
        size = band.bincount(minlength=bands).clamp(min=1)
        own = band % (len(BANDS) + 1) < LONG
        rough = self._by_band(y.square()).clamp(min=LEAST).log().sum(1).argsort().argsort()
        r = torch.nn.functional.one_hot(rough * k // n, k).to(y)
        for _ in range(ROUNDS):
            total = r.sum(0).clamp(min=1e-9).unsqueeze(1)
            mean = r.mT @ y / total
            m = mean * own
            left = r.mT @ y.square() / total - 2 * m * mean + m.square()
            f = (self._by_band(left) / size).clamp(min=LEAST)
            v = f[:, band]
            square = y.square() @ (1 / v).mT - 2 * y @ (m / v).mT + (m.square() / v).sum(1)
            log_joint = (total / n).log().mT - 0.5 * (square + v.log().sum(1))
            r = log_joint.softmax(1)
        same = torch.arange(COMPONENTS) % k  # of few rows there are fewer, each more than once
        weights = (total / n)[same, 0] / same.bincount()[same]
        self.weights.copy_(weights / weights.sum())
        self.centres.copy_((m * scale)[same].reshape(self.centres.shape))
        self.factors.copy_(f[same])


def controlled(y: Tensor, controls: Tensor) -> tuple[Tensor, Tensor]:
    """Return means of y `(n, K)` and their errors, with controls `(n, m, K)` of mean 0.

    The part of y that the controls explain, by least squares over the rows, is subtracted. With too
    few rows for so many slopes the error is infinite.
    """
    n, m, _ = controls.shape
    size = controls.square().mean(0)
    controls = controls / size.sqrt().where(size > 0, 1.0)  # or a large one hides the others
    x, left = controls - controls.mean(0), y - y.mean(0)
    gram = torch.einsum("imk,ilk->kml", x, x)
    slopes = (
        torch.linalg.pinv(gram, hermitian=True) @ torch.einsum("imk,ik->km", x, left)[..., None]
    )
    left = left - torch.einsum("imk,km->ik", x, slopes[..., 0])
    mean = y.mean(0) - torch.einsum("mk,km->k", controls.mean(0), slopes[..., 0])
    if n <= m + 1:
        return mean, torch.full_like(mean, math.inf)
    return mean, (left.square().sum(0) / (n * (n - m - 1))).sqrt()


def cosines(n: int, like: Tensor) -> Tensor:
    """Return the orthonormal cosine transform of n numbers, `(n, n)`: a wave in each row."""
    k = torch.arange(n, dtype=torch.float64, device=like.device).unsqueeze(1)
    waves = (math.pi / n * k * (k.mT + 0.5)).cos() * math.sqrt(2 / n)
    return torch.where(k == 0, waves / math.sqrt(2), waves).to(like)
