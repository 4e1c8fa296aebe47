"""Kernels, targets and states as arrays, and back."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...distributions import targets as densities
from ...distributions.analytic import Gaussian
from ..kernels import HMC, MALA, ULA, LeimkuhlerMatthews
from ..kernels.hamiltonian import HamiltonianInfo
from ..kernels.steps import LangevinInfo, MetropolisInfo
from . import engine, machine, mixtures
from . import known as tiles_of
from .functions import Translated, check
from .noise import NARROW, VECTOR, WIDE


def number(kernel: Any, dtype: Any) -> tuple[int, Any]:
    """Return which kernel this is, and its numbers (see `engine.tiles`)."""
    h, tau = kernel.step_size, kernel.temperature
    if isinstance(kernel, ULA | LeimkuhlerMatthews | MALA):
        kind = {ULA: engine.ULA, LeimkuhlerMatthews: engine.AVERAGED, MALA: engine.MALA}
        rest = [1 / tau, 1 / (4 * h * tau)] if isinstance(kernel, MALA) else [(h * tau / 2) ** 0.5]
        c = [h, (2 * h * tau) ** 0.5, *rest]
        return kind[type(kernel)], np.array([*c, 0.0][:4], dtype)
    if isinstance(kernel, HMC):
        return engine.HMC, np.array([h, tau**0.5, 1 / tau, 1 / (2 * tau)], dtype)
    gamma, m = kernel.friction, kernel.mass
    decay, gain = math.exp(-gamma * h), math.sqrt(tau * m * -math.expm1(-2 * gamma * h))
    return engine.BAOAB, np.array([h / 2, h / (2 * m), decay, gain], dtype)


def score_of(target: Any, x0: Tensor) -> tuple[Any, tuple[Any, ...], int]:
    """Return the score of tiles, its constants, and the rows of working space that it wants."""
    if isinstance(target, Translated):
        check(target, x0)
        lanes = min(VECTOR * len(width(len(x0))), 4 * -(-len(x0) // 4))
        rows = target.program.places + machine.SCRATCH
        return machine.score, target.constants(x0, lanes), rows
    if hasattr(target, "score_fn"):
        return target.of_tiles, (), 1
    if not hasattr(target, "_cov"):
        score, constants, rows = known(target)
        return score, tuple(_of_dtype(v, x0) for v in constants), rows
    w, U = target._cov.w.double(), target._cov.U
    U = None if U is None else U.double()
    mean, weights = target.mean, torch.ones(1)
    if isinstance(target, Gaussian):
        mean, w, U = mean[None], w[None], None if U is None else U[None]
    else:
        mean, weights = target.means, target.weights
    log_pi = weights.double().log()
    const = log_pi - 0.5 * (2 * math.pi * w).log().sum(-1)
    K, D = mean.shape
    if U is None or bool((w == w[:, :1]).all()):
        P: Tensor = 1 / w
        arrays, rows, score = (mean, P, const), K + 1, mixtures.diagonal
    else:
        W = U / w.sqrt().unsqueeze(-2)
        arrays, rows, score = (mean, W, const), K + 1 + K * D, mixtures.full
    return score, tuple(_of_dtype(v, x0) for v in arrays), rows


def _of_dtype(value: Any, x0: Tensor) -> Any:
    """Return an array or a number in the dtype of the chains."""
    if not isinstance(value, Tensor):
        return x0.new_tensor(value).numpy()[()]
    return np.ascontiguousarray(value.detach().to(x0).numpy())


def known(target: Any) -> tuple[Any, tuple[Any, ...], int]:
    """Return the score of tiles of a known target, its constants, and the rows that it wants."""
    constants: tuple[Any, ...]
    match target:
        case densities.Banana():
            a, c = target.scale, target.width
            z = math.log(2 * math.pi * a * c)
            return tiles_of.banana, (target.location, 1 / a, target.curvature, 1 / c, z), 1
        case densities.Funnel():
            z = 0.5 * target.dim * math.log(2 * math.pi) + math.log(target.scale)
            return tiles_of.funnel, (target.scale**-2, z), 2
        case densities.Ring():
            return tiles_of.ring, (target.radius, target.width**-2), 1
        case densities.DoubleWell() | densities.ManyWell():
            well = target.well if isinstance(target, densities.ManyWell) else target
            constants = (well.quartic, well.quadratic, well.tilt, float(well.dim))
            return tiles_of.wells, constants, 1
        case densities.LogCosh():
            return tiles_of.log_cosh, (math.log(2), 0.0), 1
        case densities.SkewedGumbel():
            return tiles_of.gumbel, (1.0, 0.0), 1
    N, D = target.features.shape
    pad = -N % 4
    features = torch.nn.functional.pad(target.features, (0, -D % 4, 0, pad))
    labels = torch.cat([target.labels.to(features), features.new_full((pad,), 0.5)])
    constants = (features, labels, target.prior_scale**-2, pad * math.log(2))
    return tiles_of.logistic, constants, 6


def seeds(seed: int, n: int) -> Any:
    """Return generator states `(n, 4)`, uint32: SplitMix64 of the seed and the number of a chain."""
    words = _words(seed, n, 1, 2)
    halves = [(v >> np.uint64(shift)).astype(np.uint32) for v in words.T for shift in (0, 32)]
    return np.stack(halves, 1)


def _words(seed: int, n: int, first: int, count: int) -> Any:
    """Return 64 random bits `(n, count)`, some of the sequence that every chain has of its own."""

    def mix(v: Any) -> Any:
        v = (v ^ (v >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        v = (v ^ (v >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return v ^ (v >> np.uint64(31))

    golden = np.array([0x9E3779B97F4A7C15], np.uint64)  # an array may overflow in silence
    key = mix(np.array([seed % 2**64], np.uint64) + golden)
    chain = mix(key ^ mix(np.arange(1, n + 1, dtype=np.uint64) * golden))
    return mix(chain[:, None] + golden * np.arange(first, first + count, dtype=np.uint64))


class Keyed(NamedTuple):
    """Normal numbers in front of those of the steps: chain k has the same in every run of a seed."""

    seed: int

    def draw(self, law: Callable[..., Tensor], shape: torch.Size, like: Tensor) -> Tensor:
        """Return `shape` normal numbers, rows being the chains."""
        n, D = shape
        u = (_words(self.seed, n, 3, 2 * D) >> np.uint64(11)) * 2.0**-53
        z = np.sqrt(-2 * np.log1p(-u[:, :D])) * np.cos(2 * math.pi * u[:, D:])
        return torch.from_numpy(z).to(like)


def width(n: int) -> tuple[int, ...]:
    """Return how wide the tiles of n chains are: idle lanes cost as much as others."""
    return NARROW if n <= VECTOR else WIDE


def _tiles(rows: Any, lanes: int) -> Any:
    """Turn `(n, D)` into `(tile, D, lanes)`; idle lanes repeat the last chain."""
    n, D = rows.shape
    tiles = -(-n // lanes)
    padded = np.concatenate([rows, np.repeat(rows[-1:], tiles * lanes - n, 0)])
    return np.ascontiguousarray(padded.reshape(tiles, lanes, D).transpose(0, 2, 1))


class Arrays(NamedTuple):
    """What `engine.tiles` reads and writes."""

    rng: Any
    x: Any
    score: Any
    extra: Any
    log_prob: Any
    counts: Any
    draws: Any
    flags: Any
    accepted: Any
    acceptance: Any
    kept_log_prob: Any
    energy: Any

    @classmethod
    def of(cls, start: Any, noise: Any, kept: int, kind: int) -> Arrays:
        """Lay out the state at the start, and room for the draws."""
        n, D = start.x.shape
        lanes = VECTOR * len(width(n))
        x, score = (_tiles(v.detach().numpy(), lanes) for v in start[:2])
        tiles, dtype = len(x), x.dtype
        rng = _tiles(noise, lanes).reshape(tiles, 4 * lanes)
        log_prob = np.zeros((tiles, lanes), dtype)
        metropolis = kind in (engine.MALA, engine.HMC)
        if metropolis:
            log_prob = _tiles(start.log_prob.numpy()[:, None], lanes)[:, 0].copy()
        carried = [
            v for name in ("z", "momentum") if (v := getattr(start, name, None)) is not None
        ]
        extra = (
            _tiles(carried[0].numpy(), lanes) if carried else np.zeros((tiles, 0, lanes), dtype)
        )
        room = (n, kept) if metropolis else (1, 1)
        return cls(
            rng, x, score, extra, log_prob, np.zeros(n, np.int64), np.empty((n, kept, D), dtype),
            np.zeros((n, kept), np.bool_), np.zeros(room, np.bool_), np.zeros(room, dtype),
            np.zeros(room, dtype), np.zeros((n, kept) if kind == engine.HMC else (1, 1), dtype),
        )  # fmt: skip

    def noise(self) -> Tensor:
        """Return where the noise of every chain stands, `(n, 4)`."""
        tiles, lanes = self.x.shape[0], self.x.shape[2]
        rows = self.rng.reshape(tiles, 4, lanes).transpose(0, 2, 1).reshape(-1, 4)
        return torch.from_numpy(rows[: len(self.counts)].astype(np.int64))

    def result(self, start: Any, kept: int, n_steps: int) -> tuple[Tensor, Any, Any]:
        """Return the first draws, their info and the state after n_steps, of the type at the start."""
        n = len(self.counts)

        def back(tiles: Any) -> Tensor:
            rows = tiles.transpose(0, 2, 1).reshape(-1, tiles.shape[1])[:n]
            return torch.from_numpy(np.ascontiguousarray(rows))

        fields = {"x": back(self.x), "score": back(self.score)}
        fields |= {name: back(self.extra) for name in ("z", "momentum") if hasattr(start, name)}
        flags = torch.from_numpy(self.flags)[:, :kept]
        info: Any = LangevinInfo(flags)
        if hasattr(start, "log_prob"):
            fields["log_prob"] = back(self.log_prob[:, None])[:, 0].contiguous()
            told = (self.acceptance, self.accepted, self.kept_log_prob)
            acceptance, accepted, log_prob = (torch.from_numpy(v)[:, :kept] for v in told)
            info = MetropolisInfo(acceptance, accepted, log_prob, flags)
            if hasattr(start, "number"):
                fields["number"] = start.number + n_steps
                energy = torch.from_numpy(self.energy)[:, :kept]
                info = HamiltonianInfo(acceptance, accepted, log_prob, flags, energy)
        draws = torch.from_numpy(self.draws)
        if kept < draws.shape[1]:  # a file of a view would be as large as what was made room for
            draws = draws[:, :kept].clone()
        return draws, info, type(start)(**fields)
