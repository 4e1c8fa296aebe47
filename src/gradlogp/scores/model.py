r"""The learned noisy score: a network in the frame of unit variance at every noise level."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import (
    Moments,
    Schedule,
    check_batch,
    check_kind,
    check_option,
    check_schedule,
    per_sample,
)
from ..distributions.analytic.gaussian import Gaussian
from ..distributions.analytic.mixture import GaussianMixture
from ..noise.coordinates import AffineCoordinates, Data, Scales, as_tensor, mean_and_std
from ..noise.predictions import KINDS, Kind
from ..noise.score_base import ScoreBase
from .base import AnyBase, read_base
from .conditioned import MOST_LINEAR, Condition, ConditionedScore, linear_part
from .frame import Frame, Seen, check_held, frame_of, noise_coordinate
from .masked import Mask, MaskedScore
from .networks.embeddings import read_condition, read_event_shape
from .shared import ROWS, Noised
from .traced import learned_and_trace
from .waves import Waves


class ScoreModel(ScoreBase, nn.Module):
    r"""The score of z_t = α z_0 + σ ε from a network, noise level by noise level.

    The network sees standardised input and predicts in the standardised frame: for z_0 of mean m
    and standard deviation c (entry by entry),

    .. math::
        \tilde z = \frac{z_t - α m}{\sqrt{α^2 c^2 + σ^2}}, \quad
        \tilde α = \frac{α c}{\sqrt{α^2 c^2 + σ^2}}, \quad
        \tilde σ = \frac{σ}{\sqrt{α^2 c^2 + σ^2}}, \quad
        \tilde z = \tilde α \tilde z_0 + \tilde σ ε

    and `predicts` names the prediction in terms of (z̃_0, ε). For a model conditional on values, m
    is the best linear prediction of z_0 from them and c the residual standard deviation, so that
    the linear part is exact from the start (not with `condition_dropout`, where the network must
    work without the values). A network with `holes=True` predicts the residual of z_0 under a
    Gaussian law, in its standard deviations (`Mask`), and log-odds for entries that encode a level
    (`Levels`). With `predicts="v"` this is the EDM preconditioning (up to a sign). The network
    receives −λ/8 with λ = 2 log(α c̄/σ), so that models of the same data under different schedules
    see the same coordinate.

    With a `base` the network learns a correction to the noised score of a Gaussian or a mixture.
    Every prediction is an affine function of ε; only its linear part applies to the output F of
    the network:

    .. math::
        s_θ(z, t) = s_{base}(z, t) - \frac{w}{σ} F, \qquad
        w = 1 \;(ε), \quad \tilde α \;(v), \quad \tilde α / \tilde σ \;(x_0), \quad
        \tilde α / (\tilde α + \tilde σ) \;(velocity), \quad -\tilde σ \;(score)

    With `predicts="v"` and the base N(m, c²) this is the model without a base, and so EDM's. If
    the network is 0, the score is that of the base, however thin its directions are; far from the
    data only the base remains. `base.share` scales the correction at each noise level. With
    `base.fallback` the network learns a whole score s, and the result is (1 − share) s_base + share s.

    A model carries its coordinates, x = shift + scale · z, for data whose columns have different
    units. Coordinates, moments and the scales of the condition are fitted in training and stored
    with the weights; they start as identities. `forward` has no branch that depends on data, so
    that `torch.compile`, `torch.export` and `torch.func.vmap` accept it; calling the model checks
    more. `columns` may name the entries of a vector; a checkpoint keeps the names.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        network: network(z, c) or, if conditional, network(z, c, condition) -> like z.
        schedule: The noise schedule.
        predicts: One of score, epsilon, x0, v, velocity.
        event_shape: The event shape, if the network has no attribute `event_shape`.
        condition: What the network is conditional on, if it has no attribute `condition`: a number
            of classes, or the shape of float values.
        base: What the network corrects, for all conditions: "gaussian", a Gaussian fitted to the
            data together with the frame (for events of more than 512 entries 32 directions and a
            diagonal, or for images a mixture of waves, `scores.waves`); a `Gaussian` or a
            `GaussianMixture` in model coordinates, which is not changed; or None.

    Raises:
        ValueError: For an unknown `predicts` or base, if no event shape is known, or if an event
            shape or a condition is not that of the network.

    Examples:
        >>> model = glp.ScoreModel(glp.MLP(2, generator=torch.Generator()), glp.schedules.VP())
        >>> model(torch.zeros(3, 2), torch.tensor(0.5)).shape
        torch.Size([3, 2])
    """

    schedule: Schedule
    event_shape: torch.Size
    coordinates: AffineCoordinates
    z_mean: Tensor
    z_std: Tensor
    gain: Tensor | None
    left: Tensor | None
    _frames: Mapping[int, tuple[Tensor, Frame]] | None = None

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        predicts: Kind = "epsilon",
        event_shape: torch.Size | tuple[int, ...] | None = None,
        condition: int | tuple[int, ...] | None = None,
        base: Gaussian | GaussianMixture | Literal["gaussian"] | None = None,
    ) -> None:
        nn.Module.__init__(self)
        check_kind(network, "network", nn.Module, "a torch.nn.Module")
        check_schedule(schedule)
        check_option(predicts, "predicts", KINDS)
        self.network, self.schedule, self.predicts = network, schedule, predicts
        self.event_shape = read_event_shape(event_shape, network)
        weight = next((p for p in network.parameters() if p.is_floating_point()), torch.empty(0))
        zeros = torch.zeros(self.event_shape, dtype=weight.dtype, device=weight.device)
        ones = torch.ones_like(zeros)
        self.coordinates = AffineCoordinates(zeros, ones)
        self.register_buffer("z_mean", zeros)
        self.register_buffer("z_std", ones)
        condition = read_condition(condition)
        kind = read_condition(getattr(network, "condition", condition))
        if condition not in (None, kind):
            raise ValueError(f"condition={condition}, but that of the network is {kind}: omit it")
        self.base: AnyBase | None = read_base(base, self.event_shape, zeros)
        self.condition: Condition | Mask | None = None if kind is None else Condition(kind)
        if getattr(network, "holes", False):
            if base is not None:
                raise ValueError(
                    "a network with holes=True always starts from its own base law: omit base="
                )
            self.condition = Mask(self.event_shape)
        # of values a base is that of all together, and what they predict linearly is one too
        values = base is None and isinstance(kind, tuple) and isinstance(self.condition, Condition)
        entries = math.prod(kind) if isinstance(kind, tuple) and values else 0
        linear = 0 < zeros.numel() * entries <= MOST_LINEAR
        gain = zeros.new_zeros(zeros.numel(), entries) if linear else None
        self.register_buffer("gain", gain)
        self.register_buffer("left", ones.clone() if linear else None)
        self.columns: tuple[str, ...] = ()

    @property
    def moments(self) -> Moments:  # type: ignore[override]
        """Mean and variance of z_0, entry by entry."""
        return Moments(self.z_mean, self.z_std.square())

    fixed_dtype = True

    @property
    def basis(self) -> Waves | None:
        """The basis in which the base has independent entries, if it is not that of z."""
        return self.base if isinstance(self.base, Waves) else None

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype and on the device of the weights."""
        return self.z_mean.new_empty(0)

    def fit_frame(self, data: Data, scales: Scales | None = None) -> None:
        """Fit coordinates (if `scales` requests it), moments and base to data in its own units.

        Raises:
            ValueError: If a column or channel is constant, or the model's dtype cannot hold it.
        """
        if scales is not None:
            self.coordinates = AffineCoordinates.fit(data, self.event_shape, scales)
        shift, scale = each = self.coordinates.shift, self.coordinates.scale
        mean, std = each if scales == "each" else mean_and_std(data, self.event_shape)
        mean, std = ((mean - shift) / scale).to(self.z_mean), (std / scale).to(self.z_std)
        check_held(mean, std)
        self.z_mean.copy_(mean)
        self.z_std.copy_(std)
        if self.base is not None and self.base.follows:
            self.base.fit(data, self.coordinates)
        if isinstance(self.condition, Mask):  # known values are seen in the frame of the others
            m, c = (v.double().cpu() for v in (mean, std))
            self.condition.coordinates = AffineCoordinates(shift + scale * m, scale * c)

    def fit_condition(self, data: Data, condition: Tensor, dropout: float) -> None:
        """Fit the scales and the linear part of the condition, after `fit_frame`.

        Arguments:
            data: `(N, *event)`, in data units.
            condition: One per row, of the kind of the model, in its own units.
            dropout: The probability with which training omits it.

        Raises:
            ValueError: If the model has no condition, or a column or channel of values is constant.
        """
        if self.condition is None:
            raise ValueError("this model was created without a condition: there is nothing to fit")
        some = slice(None, None, -(-len(data) // ROWS))
        if isinstance(self.condition, Mask):
            self.condition.fit(condition[some].cpu())
            return
        self.condition.fit(condition, dropout)
        if self.gain is None or self.left is None:
            return
        self.gain.zero_()
        self.left.fill_(1.0)
        if dropout > 0:
            return
        z = self.coordinates.encode(as_tensor(data[some]).cpu().double())
        found = linear_part(z.flatten(1), self.condition.encode(condition[some].cpu().double()))
        if found is not None:
            self.gain.copy_(found[0])
            self.left.copy_(found[1].diagonal().sqrt().reshape(self.event_shape))
            self.left /= self.z_std

    def tabulated(self, times: Sequence[Tensor]) -> ScoreModel:
        """Return the same model with its frames at these times computed, all together."""
        other = super().tabulated(times)
        if isinstance(self.condition, Mask):
            return other
        stacked = torch.stack(list(times)).cpu().double()
        frames = self._frame(self.z_mean.expand(len(times), *self.event_shape), stacked)
        network: Any = self.network  # of a subclass `forward` may take none
        takes = signature(network.forward).parameters if hasattr(network, "_embedded") else ()
        if self.condition is None and "embedded" in takes:
            frames = frames._replace(embedded=network._embedded(frames.coordinate))
        other._frames = {id(t): (t, row) for t, row in zip(times, frames.rows(), strict=True)}
        return other

    def _frame(self, z: Tensor, t: Tensor) -> Frame:
        """Return what depends on time alone, for states like z."""
        same, frame = self._frames.get(id(t), (None, None)) if self._frames else (None, None)
        if frame is not None and same is t and z.dtype == self.z_mean.dtype:
            return frame
        m, c, alone = self.z_mean.to(z), self._spread(z), self._whole
        return frame_of(*self.schedule(t), z, m, c, self.predicts, alone=alone)

    @property
    def _whole(self) -> bool:
        """Whether the network predicts all of a score, and not a correction."""
        return self.base is None or self.base.fallback

    @property
    def start(self) -> float:  # type: ignore[override]
        """The least time from which on the model is its base alone, of which the law is known; or 1."""
        base, c = self.base, self._spread(self.z_std)
        return min(1.0, base.alone_from(self.schedule, c)) if base else 1.0

    @property
    def kinks(self) -> list[float]:  # type: ignore[override]
        """The times at which the slope of the share of a correction jumps."""
        return self.base.kinks(self.schedule, self._spread(self.z_std)) if self.base else []

    def law(self, t: Tensor) -> Noised | None:
        """Return the law of z_t where it is that of the base, so that nothing is learned."""
        return self.base.law(t, self.schedule, self._spread(self.z_std)) if self.base else None

    def _noise_input(self, t: Tensor) -> Tensor:
        """Return what the network is given of a time: −λ/8, in the shape of t."""
        return noise_coordinate(*self.schedule(t), self._spread(self.z_std))

    def _spread(self, z: Tensor) -> Tensor:
        """Return c."""
        return (self.z_std if self.left is None else self.z_std * self.left).to(z)

    def _predicted(self, z: Tensor, condition: Tensor | None) -> Tensor | None:
        """Return what the condition adds to the mean, linearly, rows like z; None: nothing."""
        if self.gain is None or condition is None:
            return None
        return (condition.to(z).flatten(1) @ self.gain.to(z).T).reshape(z.shape)

    def _seen(self, z: Tensor, frame: Frame, condition: Tensor | None) -> Seen:
        """Return what the network is given of states z."""
        predicted = self._predicted(z, condition)
        if predicted is not None:
            z = z - frame.alpha() * predicted
        start = None
        if self.base is not None and getattr(self.network, "start", False):
            start = (
                self.base.denoise(z, *frame.flat_levels()) - self.z_mean.to(z)
            ) / self._spread(z)
        z_unit = (z - frame.drift) * frame.scale
        coordinate = frame.coordinate.expand(len(z))
        return Seen(z_unit, coordinate, condition, start, frame.embedded, predicted)

    def forward(
        self,
        z: Float[Tensor, "batch *event"],
        t: Float[Tensor, "*time"],
        condition: Tensor | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """Return the score ∇ log p_t(z) = −ε̂/σ; t `()` or `(B,)`; not finite at σ = 0.

        Raises:
            ValueError: For a wrong shape.
        """
        check_batch(z, self.event_shape, "z", held=False)
        if isinstance(self.condition, Mask) and self.condition.cov is not None:
            a, b = (per_sample(q, z) for q in self.schedule(t))
            return (a * self.denoise_given(z, t, condition) - z) / b**2
        frame = self._frame(z, t)
        seen = self._seen(z, frame, condition)
        s = frame.score(seen.z_unit, seen.through(self.network))
        if self.base is None or (self.training and self.base.fallback):
            return s
        return self.base.corrected(s, z, *frame.place())

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        return nn.Module.__call__(self, z, t, self._without(z))

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        return self.denoise_given(z, t, self._without(z))

    def _without(self, z: Tensor) -> Tensor | None:
        """Return the null condition for each row of z; None for a model without conditions."""
        return None if self.condition is None else self.condition.null(len(z), z)

    def _known(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.base is None:
            return None
        return self.base.known_mean(z, *self._frame(z, t).place())

    def _beyond_mean(self, z: Tensor, t: Tensor) -> Tensor | None:
        return self.base.beyond_mean(z, *self._frame(z, t).place()) if self.base else None

    def _learned(self, z: Tensor, t: Tensor) -> Tensor:
        return self.denoise_given(z, t, self._without(z), alone=True)

    def _learned_and_trace(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor] | None:
        return learned_and_trace(self, z, t, self._without(z))

    def denoise_given(
        self, z: Tensor, t: Tensor, condition: Tensor | None, *, alone: bool = False
    ) -> Tensor:
        """Return E[z_0 | z_t = z] for a condition in the form that `forward` takes.

        With `alone` it is what the network adds to the base. Where α = 0 the state carries no
        information about z_0, and neither does a score or ε: the result is the mean of z_0, or of the
        base if there is one.
        """
        if isinstance(self.condition, Mask) and condition is None:
            condition = self.condition.null(len(z), z)
        frame = self._frame(z, t)
        seen = self._seen(z, frame, condition)
        out = seen.through(self.network)
        if not isinstance(self.condition, Mask) or self.condition.cov is None:
            return self._mean_by(out, seen, frame, z, alone)
        a, b = (per_sample(q, z) for q in self.schedule(t))
        m, c = self.z_mean.to(z), self._spread(z)
        asked: Any = (z - a * m) / c, a, b / c, condition, out, seen.coordinate
        return m + c * self.condition.denoise(*asked)

    def _mean_by(self, out: Tensor, seen: Seen, frame: Frame, z: Tensor, alone: bool) -> Tensor:
        """Return E[z_0 | z_t = z] by what the network says."""
        whole, predicted = self._whole, seen.predicted
        z0 = self._spread(z) * frame.mean(self.predicts, out, seen.z_unit if whole else None)
        if whole:
            z0 = self.z_mean.to(z) + (z0 if predicted is None else predicted + z0)
        if self.base is None:
            return z0
        return self.base.corrected_mean(z0, z, *frame.place(), alone=alone)

    def given(self, condition: Tensor | int) -> ConditionedScore:
        """Return the score of z_t given a condition: one for all samples, or one for each.

        Arguments:
            condition: A class, as an int or int64 `(1,)` or `(B,)`; or float values `(1, *shape)`
                or `(B, *shape)`, in the units of training; or, for a network created with
                `holes=True`, rows of x itself `(1, *event)` or `(B, *event)`, NaN where unknown.

        Raises:
            ValueError: If the model has no condition, or the condition is of the wrong kind.
        """
        if self.condition is None:
            raise ValueError("this model was created without a condition: it accepts none")
        made = MaskedScore if isinstance(self.condition, Mask) else ConditionedScore
        return made(self, self.condition.encode(condition))

    def unconditional(self) -> ConditionedScore | ScoreModel:
        """Return the score of all conditions together.

        A conditional model knows it if it was trained with `condition_dropout`: it is then the
        other half of guidance, `GuidedScore(model.given(y), model.unconditional())`.

        Raises:
            ValueError: If the model is conditional and was trained without `condition_dropout`:
                its output for the null condition would then be meaningless.
        """
        if self.condition is None:
            return self
        self.condition.check_null()
        return ConditionedScore(self, None)
