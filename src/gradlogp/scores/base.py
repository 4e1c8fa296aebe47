r"""The law from which a learned score starts: a Gaussian or a mixture, noised in closed form.

For z_0 ~ Σ_k π_k N(μ_k, S_k) the law of α z_0 + σ ε is the mixture of N(α μ_k, Σ_k),
Σ_k = α² S_k + σ² I, and with its responsibilities r_k(z)

.. math::
    s(z) = -\sum_k r_k Σ_k^{-1} (z - α μ_k), \qquad
    E[z_0 | z] = \sum_k r_k \left( μ_k + α S_k Σ_k^{-1} (z - α μ_k) \right)

Everything here is a plain function of tensors: no branch depends on values, so that a model with a
base can be compiled, exported and vmapped, and its trace can be carried forward.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ..core import Generator, check_kind, randn_like
from ..distributions.analytic.gaussian import Gaussian
from ..distributions.analytic.mixture import GaussianMixture
from ..noise.coordinates import AffineCoordinates, Data, pieces
from .shared import FLOOR, ROWS, Shared, chosen
from .shared import LEVELS as LEVELS
from .shrinkage import shrunk_covariance
from .waves import Waves

FULL = 512
"""Entries of an event up to which the covariance of the data is kept whole."""

RANK = 32
"""Directions kept beyond: the rest of the covariance is its diagonal."""


class Base(Shared):
    """A Gaussian or a mixture in model coordinates, and the share of the correction beside it.

    Arguments:
        event_shape: The shape of an event, of d entries.
        components: The number of Gaussians in it.
        rank: The number of directions of each covariance: all d, or for a single Gaussian fewer,
            in addition to a diagonal: S = D + V diag(w) Vᵀ.
        follows: Whether it is fitted to the training data together with the frame of a model.
        fallback: Whether the network learns the whole score, and this law only replaces a part.
    """

    weights: Tensor
    means: Tensor
    values: Tensor
    vectors: Tensor
    diagonal: Tensor

    def __init__(
        self, event_shape: torch.Size, components: int = 1, rank: int | None = None, *,
        follows: bool = False, fallback: bool = False, like: Tensor | None = None,
    ) -> None:  # fmt: skip
        like = torch.empty(0) if like is None else like
        super().__init__(like)
        d = event_shape.numel()
        rank = d if rank is None else rank
        self.event_shape, self.follows, self.fallback = event_shape, follows, fallback
        eye = torch.eye(d, rank, dtype=like.dtype, device=like.device)
        whole = 1.0 if rank == d else 0.0
        for name, value in {
            "weights": like.new_full((components,), 1 / components),
            "means": like.new_zeros(components, d),
            "values": like.new_full((components, rank), whole),
            "vectors": eye.expand(components, d, rank).clone(),
            "diagonal": like.new_full((d,), 1 - whole),
        }.items():
            self.register_buffer(name, value)

    @classmethod
    def of_data(cls, event_shape: torch.Size, like: Tensor) -> Base:
        """Return a Gaussian that is fitted together with the frame of its model."""
        d = event_shape.numel()
        return cls(event_shape, 1, None if d <= FULL else RANK, follows=True, like=like)

    @classmethod
    def of_law(
        cls, law: Gaussian | GaussianMixture, event_shape: torch.Size, like: Tensor
    ) -> Base:
        """Return the base given by a law in model coordinates, whose events are flattened.

        Raises:
            ValueError: If its dimension is not that of an event, or it was noised sample by sample.
        """
        means = (law.mean if isinstance(law, Gaussian) else law.means).detach()
        d, kind = event_shape.numel(), 1 if isinstance(law, Gaussian) else 2
        if means.ndim != kind or means.shape[-1] != d:
            raise ValueError(
                f"base must be a law over the {d} entries of an event, got means of shape "
                f"{tuple(means.shape)}"
            )
        means = means.reshape(-1, d)
        base = cls(event_shape, len(means), like=like)
        if isinstance(law, GaussianMixture):
            base.weights.copy_(law.weights)
        base.means.copy_(means)
        w, U = law._cov
        base.values.copy_(w)
        if U is not None:
            base.vectors.copy_(U)
        return base

    @property
    def config(self) -> dict[str, Any]:
        """What rebuilds it, JSON."""
        return {
            "components": len(self.means), "rank": self.rank, "follows": self.follows,
        } | ({"fallback": True} if self.fallback else {})  # fmt: skip

    @property
    def rank(self) -> int:
        """Directions of each covariance that are kept."""
        return self.values.shape[1]

    @property
    def whole(self) -> bool:
        """Whether covariances are kept whole, in their eigenbases."""
        return self.rank == self.means.shape[1]

    def score(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return ∇ log p_t(z) of the noised law, shape of z.

        Arguments:
            z: States `(B, *event)`.
            a: α, `(1, 1)` or `(B, 1)`.
            b: σ, in the same shapes.
        """
        if not self.whole:
            return self._low_rank(z.flatten(1), a, b)[0].reshape(z.shape)
        _, y, noisy, _, U = self._rotated(z.flatten(1), a, b)
        return -((y / noisy) @ U.mT).reshape(z.shape)

    def denoise(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return E[z_0 | z_t = z] of the law."""
        if not self.whole:
            s, D, A = self._low_rank(z.flatten(1), a, b)
            return (self.means.to(z) - a * (D * s + (s @ A) @ A.mT)).reshape(z.shape)
        return self._mean(*self._rotated(z.flatten(1), a, b), a)[0].reshape(z.shape)

    def denoise_trace(self, z: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return E[z_0 | z_t = z] and its divergence, `(B,)`.

        With G_k = α S_k Σ_k⁻¹, the scores g_k and means m_k of the components, and g and m of all,

        .. math:: \nabla \cdot m =
            \sum_k r_k \left( \mathrm{tr}\, G_k + (g_k - g) \cdot (m_k - m) \right)

        where g changes nothing but rounding: far out g_k is large.
        """
        if not self.whole:
            trace = self._low_rank_trace(z.flatten(1), a, b)
            return self.denoise(z, a, b), trace.expand(len(z))
        y, each, noisy, r, U = self._rotated(z.flatten(1), a, b)
        z0, gain = self._mean(y, each, noisy, r, U, a)
        traces = self._entries(gain).sum(1)
        if r is None:
            return z0.reshape(z.shape), traces[:, 0].expand(len(z))
        apart = self._centres(z) + gain * y - z0 @ U  # U_kᵀ(m_k − m)
        own = each / noisy
        g = (own @ U.mT) @ U
        own = own - (r.unsqueeze(1) * self._entries(g)).flatten(1)  # −r_k U_kᵀ(g_k − g)
        return z0.reshape(z.shape), (r * traces).sum(1) - (own * apart).sum(1)

    def beyond(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
        r"""Return the end of the flow from z, at σ = 0, minus E[z_0 | z_t = z].

        For a Gaussian this is, along a direction of variance w,

        .. math:: \left( \sqrt{w/(α^2 w + σ^2)} - α w/(α^2 w + σ^2) \right) y

        For a mixture it is the mean over components by their responsibilities at z, to O(σ⁴). None
        unless covariances are kept whole.
        """
        if not self.whole:
            return None
        _, each, noisy, _, U = self._rotated(z.flatten(1), a, b)
        gain = self.values.to(z).mT.reshape(1, -1) / noisy.clamp(min=torch.finfo(z.dtype).tiny)
        return ((each * (gain.sqrt() - a * gain)) @ U.mT).reshape(z.shape)

    def log_prob(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return log p_t(z) of the noised law, `(B,)`."""
        z = z.flatten(1)
        constant = 0.5 * z.shape[1] * math.log(2 * math.pi)
        if self.whole:
            return self._log_joint(*self._principal(z, a, b)[:2]).logsumexp(1) - constant
        s, _, A = self._low_rank(z, a, b)
        E, M = self._woodbury(A, a, b)
        log_det = E.log().sum(1) + torch.logdet(M)
        return 0.5 * ((z - a * self.means.to(z)) * s).sum(1) - 0.5 * log_det - constant

    def sample(self, n: int, a: Tensor, b: Tensor, generator: Generator | None) -> Tensor:
        """Draw n states of the noised law; α and σ are `(1, 1)`."""
        means, V, w = self.means, self.vectors, self.values
        eps = randn_like(means.new_empty(n, means.shape[1]), generator)
        a, b = a.to(eps), b.to(eps)
        if not self.whole:
            along = randn_like(means.new_empty(n, self.rank), generator) * w[0].sqrt()
            z = a * (means + along @ V[0].mT)
            z = z + (a.square() * self.diagonal + b.square()).sqrt() * eps
            return z.reshape(n, *self.event_shape)
        own = one_hot(chosen(self.weights, n, generator), len(means)).to(eps)
        std = (a.square() * w + b.square()).sqrt()
        y = (own.unsqueeze(2) * (eps.unsqueeze(1) * std)).flatten(1)
        z = a * (own @ means) + y @ V.movedim(0, 1).flatten(1).mT
        return z.reshape(n, *self.event_shape)

    def corrected(self, s: Tensor, z: Tensor, a: Tensor, b: Tensor, coordinate: Tensor) -> Tensor:
        """Return the score with the share of a correction s; coordinates are `()` or `(B,)`."""
        return self.beside(self.score(z, a, b), s, coordinate)

    def corrected_mean(
        self, z0: Tensor, z: Tensor, a: Tensor, b: Tensor, coordinate: Tensor, *,
        alone: bool = False,
    ) -> Tensor:  # fmt: skip
        """Return E[z_0 | z_t = z] with the share of a correction z0, or `alone` this share."""
        return self.beside(None if alone else self.denoise(z, a, b), z0, coordinate)

    def _mean(
        self, y: Tensor, each: Tensor, noisy: Tensor, r: Tensor | None, U: Tensor, a: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return E[z_0 | z_t = z], from what `_rotated` returns, and α w/(α² w + σ²)."""
        means, tiny = self.means.to(y), torch.finfo(y.dtype).tiny
        gain = a * self.values.to(y).mT.reshape(1, -1) / noisy.clamp(min=tiny)
        return (each * gain) @ U.mT + (means if r is None else r @ means), gain

    def _rotated(
        self, z: Tensor, a: Tensor, b: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]:
        """Return y_k = U_kᵀ(z − α μ_k), r_k y_k, α² w + σ², `(B, d K)`, r `(B, K)`, and all U_k."""
        y, noisy, U = self._principal(z, a, b)
        if len(self.means) == 1:
            return y, y, noisy, None, U
        r = self._log_joint(y, noisy).softmax(1)
        return y, (r.unsqueeze(1) * self._entries(y)).flatten(1), noisy, r, U

    def _principal(self, z: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return U_kᵀ(z − α μ_k) and α² w + σ², `(B, d K)`, and all U_k in a row.

        The components of an entry stand side by side: sums over its few entries are then as fast as
        the memory.
        """
        U = self.vectors.to(z).permute(1, 2, 0).flatten(1)  # (d, d K)
        y = z @ U - a * self._centres(z)
        return y, a.square() * self.values.to(z).mT.reshape(1, -1) + b.square(), U

    def _centres(self, z: Tensor) -> Tensor:
        """Return U_kᵀ μ_k, `(1, d K)`."""
        means = self.vectors.to(z).mT @ self.means.to(z).unsqueeze(2)  # (K, d, 1)
        return means.movedim(0, 2).reshape(1, -1)

    def _entries(self, y: Tensor) -> Tensor:
        """Return what belongs to the components, `(B, d K)`, as `(B, d, K)`."""
        return y.unflatten(1, (-1, len(self.means)))

    def _log_joint(self, y: Tensor, noisy: Tensor) -> Tensor:
        """Return log π_k N(z; α μ_k, Σ_k), `(B, K)`, up to d/2 log 2π."""
        energy = self._entries(y.square() / noisy + noisy.log()).sum(1)
        return self.weights.to(y).log() - 0.5 * energy

    def _low_rank(self, z: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Return the score for S = D + A Aᵀ, D, and A = V diag(w)^{1/2}.

        With E = α² D + σ², Σ⁻¹ = E⁻¹ − α² E⁻¹ A (I + α² Aᵀ E⁻¹ A)⁻¹ Aᵀ E⁻¹.
        """
        D, A = self.diagonal.to(z), self.vectors[0].to(z) * self.values[0].to(z).sqrt()
        E, M = self._woodbury(A, a, b)
        middle = torch.linalg.inv(M)
        y = (z - a * self.means.to(z)) / E
        along = ((y @ A).unsqueeze(1) @ middle).flatten(1)
        return -(y - a.square() * ((along @ A.mT) / E)), D, A

    def _woodbury(self, A: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return E = α² D + σ² and I + α² Aᵀ E⁻¹ A."""
        E = a.square() * self.diagonal.to(A) + b.square()
        inner = (A.mT.unsqueeze(0) / E.unsqueeze(1)) @ A
        one = torch.eye(A.shape[1], dtype=A.dtype, device=A.device)
        return E, one + a.square().unsqueeze(2) * inner

    def _low_rank_trace(self, z: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Return tr α S Σ⁻¹ for S = D + A Aᵀ, `(1,)` or `(B,)`."""
        D, A = self.diagonal.to(z), self.vectors[0].to(z) * self.values[0].to(z).sqrt()
        E, M = self._woodbury(A, a, b)
        rest = b.square().unsqueeze(2) * ((A.mT.unsqueeze(0) / E.square().unsqueeze(1)) @ A)
        left = torch.linalg.solve(M, rest).diagonal(dim1=1, dim2=2).sum(1)
        return a[:, 0] * ((D / E).sum(1) + left)

    @torch.no_grad()
    def fit(self, data: Data, coordinates: AffineCoordinates) -> None:
        """Become the Gaussian of data `(N, *event)`, given in its own units."""
        d, n = self.means.shape[1], len(data)
        if self.whole and n > ROWS:  # in pieces: data on disk are never held whole
            total, square = torch.zeros(d).double(), torch.zeros(d, d).double()
            for _, part in pieces(data):
                z = coordinates.encode(part.double().cpu()).flatten(1)
                total, square = total + z.sum(0), square + z.mT @ z
            mean = total / n
            w, U = torch.linalg.eigh(square / n - torch.outer(mean, mean))
        else:
            step = -(-n // ROWS)
            z = torch.cat([part for _, part in pieces(data[::step])]).double().cpu()
            z = coordinates.encode(z).flatten(1)
            mean = z.mean(0)
            if self.whole:
                w, U = torch.linalg.eigh(shrunk_covariance(z))
            else:
                variances, V = _main_directions(z - mean, self.rank)
                rest = (z - mean).square().mean(0) - (V.square() * variances).sum(1)
                self.diagonal.copy_(rest.clamp(min=FLOOR * float(rest.mean())))
                w, U = variances, V
        least = FLOOR * float(w.mean()) if self.whole else 0.0
        self.means.copy_(mean.unsqueeze(0))
        self.values.copy_(w.clamp(min=least).unsqueeze(0))
        self.vectors.copy_(U.unsqueeze(0))


def _main_directions(y: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the largest principal variances of y, of mean 0, and their directions, `(D, rank)`.

    By iteration of a subspace, as `torch.pca_lowrank`, which draws from the global generator. With
    fewer rows than directions the other variances are 0.
    """
    V = randn_like(y.new_empty(y.shape[1], rank), torch.Generator().manual_seed(0))
    for _ in range(5):
        V = torch.linalg.qr(y.mT @ (y @ V)).Q
    along = y @ V
    w, W = torch.linalg.eigh(along.mT @ along / len(y))
    return w.clamp(min=0).flip(0), V @ W.flip(1)


AnyBase = Base | Waves
"""What a network corrects."""


def read_base(
    base: Gaussian | GaussianMixture | Literal["gaussian"] | None,
    event_shape: torch.Size,
    like: Tensor,
) -> AnyBase | None:
    """Return the base that an argument describes.

    Raises:
        ValueError: If the argument does not describe a base, or does not fit an event.
    """
    if base is None:
        return None
    if isinstance(base, str):
        if base != "gaussian":
            raise ValueError(f"base, as a string, must be 'gaussian', got {base!r}")
        if len(event_shape) == 3 and event_shape.numel() > FULL:
            return Waves(event_shape, like=like)
        return Base.of_data(event_shape, like)
    check_kind(base, "base", Gaussian | GaussianMixture, "'gaussian', a Gaussian or a mixture")
    return Base.of_law(base, event_shape, like)


def base_of(config: dict[str, Any] | None, event_shape: torch.Size) -> AnyBase | None:
    """Return the base of a configuration, before its tensors are loaded."""
    if config is None:
        return None
    if config["rank"] == 0:
        return Waves(event_shape)
    rest = {k: config[k] for k in ("follows", "fallback") if k in config}
    return Base(event_shape, config["components"], config["rank"], **rest)


def shapes_of(
    config: dict[str, Any] | None, event_shape: tuple[int, ...]
) -> dict[str, tuple[int, ...] | None]:
    """Return the shapes of its large tensors, by which a file is believed or not."""
    names = ("base.means", "base.values", "base.vectors")
    if config is None or config["rank"] == 0:
        return dict.fromkeys(names) | {"base.variances": None if config is None else event_shape}
    k, r, d = config["components"], config["rank"], math.prod(event_shape)
    return dict(zip(names, ((k, d), (k, r), (k, d, r)), strict=True))


def check_base(base: AnyBase | None) -> dict[str, bool]:
    """Return for each of its tensors whether it can be what it is called."""
    if base is None:
        return {}
    if isinstance(base, Waves):
        positive = {n: getattr(base, n) for n in ("variances", "factors", "weights")}
        return {f"base.{n}": bool((v > 0).all()) for n, v in positive.items()} | base.check_share(
            "base"
        )
    weights = base.weights
    return {
        "base.weights": bool((weights > 0).all()) and abs(float(weights.sum()) - 1) < 1e-4,
        "base.values": bool((base.values >= 0).all()),
        "base.diagonal": bool((base.diagonal >= 0).all()),
    } | base.check_share("base")
