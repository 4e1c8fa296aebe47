"""The frame of unit variance in which a network sees the states of one level of noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import Schedule, check_same_shape, per_sample, sent
from ..noise.grids import least_time, noise_range
from ..noise.predictions import Kind, epsilon_weights, to_x0
from ..noise.schedules import invert_log_snr

LOG_SNR_LIMIT = 30.0  # beyond it exp(λ) is 0 or ∞ to float32, and the network need not know more


class Frame(NamedTuple):
    r"""What of a model depends on time alone, for all samples or in a row for each.

    .. math::
        \tilde z = scale \cdot (z - drift), \qquad
        s = of_z \cdot \tilde z + of_{network} \cdot F(\tilde z)
    """

    scale: Tensor
    drift: Tensor
    of_z: Tensor | None  # None: 0
    of_network: Tensor
    coordinate: Tensor
    embedded: Sequence[Tensor] | None = None  # what the network makes of the coordinate, if known
    levels: tuple[Tensor, Tensor] | None = None  # α and σ as they multiply z
    unit: tuple[Tensor, Tensor] | None = None  # α̃ and σ̃

    def alpha(self) -> Tensor:
        """Return α as it multiplies z."""
        assert self.levels is not None
        return self.levels[0]

    def place(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return α, σ and the noise coordinate, as a base takes them."""
        return *self.flat_levels(), self.coordinate

    def flat_levels(self) -> tuple[Tensor, Tensor]:
        """Return α and σ, `(1, 1)` or `(B, 1)`."""
        assert self.levels is not None
        alpha, sigma = self.levels
        return alpha.reshape(-1, 1), sigma.reshape(-1, 1)

    def score(self, z_unit: Tensor, out: Tensor) -> Tensor:
        """Return the score that a prediction stands for."""
        if self.of_z is None:
            return self.of_network * out
        return torch.addcmul(self.of_z * z_unit, self.of_network, out)

    def mean(self, kind: Kind, out: Tensor, z_unit: Tensor | None) -> Tensor:
        """Return E[z̃_0 | z̃_t] by a prediction, with z̃_t or, of a correction, without.

        It is 0 where α = 0, and neither a score nor ε says anything about z_0.
        """
        assert self.unit is not None
        a, b = self.unit
        nothing = torch.zeros_like(a)
        blind = (a == 0) if kind in ("score", "epsilon") else nothing.bool()
        z0 = to_x0(kind, out, nothing if z_unit is None else z_unit, a.masked_fill(blind, 1.0), b)
        return z0.masked_fill(blind, 0.0)

    def rows(self) -> list[Frame]:
        """Return the frame of each row."""
        none = [None] * len(self.coordinate)
        rows: list[Iterable[Any]] = [none if v is None else v.unbind() for v in self[:5]]
        for several in self[5:8]:
            rows.append(none if several is None else zip(*(v.unbind() for v in several)))  # noqa: B905
        return [Frame(*row) for row in zip(*rows, strict=True)]


class Seen(NamedTuple):
    """What a network is given of states."""

    z_unit: Tensor
    coordinate: Tensor
    condition: Tensor | None = None
    start: Tensor | None = None  # what the base makes of the states, for a network that asks
    embedded: Sequence[Tensor] | None = None
    predicted: Tensor | None = None  # the mean of z_0 that the condition adds, linearly

    def through(self, network: nn.Module) -> Tensor:
        """Return what the network says of them."""
        extra = () if self.condition is None else (self.condition,)
        known: dict[str, Any] = {} if self.embedded is None else {"embedded": self.embedded}
        if self.start is not None:
            known["start"] = self.start
        out: Tensor = network(self.z_unit, self.coordinate, *extra, **known)
        check_same_shape(out, self.z_unit, "the network")
        return out


def frame_of(
    alpha: Tensor, sigma: Tensor, z: Tensor, mean: Tensor, std: Tensor, kind: Kind, *, alone: bool
) -> Frame:
    """Return the frame of states like z at the levels α and σ, `()` or `(B,)`.

    Arguments:
        alpha: α.
        sigma: σ.
        z: States `(B, *event)`; of these only shape, dtype and device count.
        mean: m.
        std: c.
        kind: What the network predicts.
        alone: Whether a prediction is all; beside a base its linear part is.
    """
    a, b = per_sample(alpha, z), per_sample(sigma, z)
    signal = a * std
    scale = torch.addcmul(b * b, signal, signal).rsqrt()
    a_unit, b_unit = signal * scale, b * scale
    of_z, of_network = epsilon_weights(kind, a_unit, b_unit, unit=True)
    minus = -b  # s = −ε/σ
    of_z = of_z / minus if alone and of_z is not None else None
    coordinate = noise_coordinate(alpha, sigma, std).to(z.dtype)
    return Frame(
        scale, a * mean, of_z, of_network / minus, coordinate, None, (a, b),
        (a_unit, b_unit),
    )  # fmt: skip


def noise_coordinate(alpha: Tensor, sigma: Tensor, std: Tensor) -> Tensor:
    """Return −λ/8, λ = 2 log(α c̄/σ), what the network is given of the noise."""
    rms = torch.linalg.vector_norm(std) / std.numel() ** 0.5
    if alpha.device != rms.device:  # single numbers of the host, which wait for nothing
        wide = torch.promote_types(rms.dtype, torch.float32)
        alpha, sigma = (sent(v, rms.device, wide) for v in (alpha, sigma))
    r = sigma / (alpha * rms.to(alpha.dtype))
    return r.log().clamp(-LOG_SNR_LIMIT / 2, LOG_SNR_LIMIT / 2) / 4


def time_from(schedule: Schedule, coordinate: float, std: Tensor) -> float:
    """Return the least time at which `noise_coordinate` is no less than this, or infinity."""
    rms = float(torch.linalg.vector_norm(std.double()) / std.numel() ** 0.5)
    log_ratio = torch.tensor(4 * coordinate + math.log(rms), dtype=torch.float64)
    low, high = map(math.log, noise_range(schedule))
    rounded = 1e-5  # of the coordinate, a float32
    if log_ratio <= low + rounded:
        return float(least_time(schedule))
    if log_ratio > high + rounded or coordinate == math.inf:
        return math.inf
    if schedule.times is not None:
        late = -0.5 * schedule.log_snr(schedule.times) >= log_ratio - rounded
        return float(schedule.times[late].min())
    return float(invert_log_snr(schedule, -2 * log_ratio))


def check_held(mean: Tensor, std: Tensor) -> None:
    """Raise `ValueError` if the dtype of these moments cannot hold the data that have them."""
    if not bool((mean.isfinite() & std.isfinite() & (std > 0)).all()):
        raise ValueError(f"the data is too large or too small for {mean.dtype}; rescale it")
    if bool((mean.abs() * torch.finfo(mean.dtype).eps > 0.01 * std).any()):
        raise ValueError(
            f"the data lies so far from 0 that {mean.dtype} would lose it to rounding: "
            f"standardise it (standardize=True), or use a model in float64"
        )
