r"""Three noisy scores of one type: learned, exact, and that of a finite data set.

Each is a function (x_t, t) -> ∇ log p_t(x_t) with `.denoise(x_t, t)` = E[x_0 | x_t], so whatever
works with one works with all, and every sampler can be tested without training.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..core import (
    Analytic,
    NoisyScoreFn,
    Schedule,
    check_batch,
    check_same_shape,
    per_sample,
)
from ..distributions.analytic.empirical import Empirical
from ..noise.predictions import (
    KINDS,
    Kind,
    to_epsilon,
    to_x0,
)
from .networks import NO_CLASS

LOG_SNR_LIMIT = 30.0  # beyond it exp(λ) is 0 or ∞ to float32, and the network need not know more


class ScoreModel(nn.Module):
    r"""The score of x_t = α x_0 + σ ε from a network, noise level by noise level.

    The network sees standardised input and predicts in the standardised frame: for data of mean m
    and standard deviation c (per entry),

    .. math::
        \tilde x = \frac{x_t - α m}{\sqrt{α^2 c^2 + σ^2}}, \quad
        \tilde α = \frac{α c}{\sqrt{α^2 c^2 + σ^2}}, \quad
        \tilde σ = \frac{σ}{\sqrt{α^2 c^2 + σ^2}}, \quad
        \tilde x = \tilde α \tilde x_0 + \tilde σ ε

    and `predicts` names what it predicts of (x̃_0, ε). With `predicts="v"` this is the EDM
    preconditioning (up to a sign). The network is told −λ/8 with λ = 2 log(α c̄/σ), so that models
    under different schedules of the same data see the same coordinate.

    Besides, a model may carry a change of coordinates `encode`/`decode`, x = shift + scale · z, for
    data whose coordinates have different units; the score is then that of z. Both maps are fitted
    in training and stored with the weights; they start as identities. So is `label_dropout`, how
    often training left the class label out.

    References:
        | Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022)
        | https://arxiv.org/abs/2206.00364

    Arguments:
        network: network(x, c) or, if class-conditional, network(x, c, labels) -> like x.
        schedule: The noise schedule.
        predicts: One of score, epsilon, x0, v, velocity.
        event_shape: The event shape; taken from the network where it has one.

    Raises:
        ValueError: For an unknown `predicts`, or if no event shape is known.
    """

    data_mean: Tensor
    data_std: Tensor
    shift: Tensor
    scale: Tensor
    label_dropout: Tensor

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        predicts: Kind = "epsilon",
        event_shape: torch.Size | tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if predicts not in KINDS:
            raise ValueError(f"unknown kind {predicts!r}; one of {', '.join(map(repr, KINDS))}")
        shape = event_shape if event_shape is not None else getattr(network, "event_shape", None)
        if shape is None:
            raise ValueError("pass event_shape=: this network does not name one")
        self.network, self.schedule, self.predicts = network, schedule, predicts
        self.event_shape = torch.Size(shape)
        for name, value in (("data_mean", 0.0), ("data_std", 1.0), ("shift", 0.0), ("scale", 1.0)):
            self.register_buffer(name, torch.full(self.event_shape, value))
        # how often training left the label out; models saved before there was this never did
        self.register_buffer("label_dropout", torch.zeros(()))
        self.register_load_state_dict_pre_hook(_add_label_dropout)

    def encode(self, x: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return z = (x − shift) / scale: data units to model coordinates."""
        check_batch(x, self.event_shape)
        return (x - self.shift.to(x)) / self.scale.to(x)

    def decode(self, z: Float[Tensor, "batch *event"]) -> Float[Tensor, "batch *event"]:
        """Return x = shift + scale · z: model coordinates to data units."""
        check_batch(z, self.event_shape, "z")
        return self.shift.to(z) + self.scale.to(z) * z

    def log_det_encode(self) -> float:
        """Return log |det dz/dx|, what a log-density in data units gains over one of z."""
        return -float(self.scale.double().log().sum())

    def _frame(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return x̃, α̃, σ̃, √(α²c²+σ²) and the network's noise coordinate."""
        check_batch(x, self.event_shape)
        alpha, sigma = self.schedule(t)
        a, b = per_sample(alpha, x), per_sample(sigma, x)
        m, c = self.data_mean.to(x), self.data_std.to(x)
        norm = (a**2 * c**2 + b**2).sqrt()
        log_snr = 2 * (alpha * c.square().mean().sqrt().to(alpha)).log() - 2 * sigma.log()
        coordinate = -log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT) / 8
        return (x - a * m) / norm, a * c / norm, b / norm, norm, coordinate.to(x).expand(len(x))

    def _network(self, x_unit: Tensor, coordinate: Tensor, labels: Tensor | None) -> Tensor:
        extra = () if labels is None else (labels,)
        out = self.network(x_unit, coordinate, *extra)
        check_same_shape(out, x_unit, "the network")
        return out

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        t: Float[Tensor, "*time"],
        labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """Return the score ∇ log p_t(x) = −ε̂/σ; t `()` or `(B,)`.

        Raises:
            ValueError: At σ = 0, where there is no score; or for a wrong shape.
        """
        x_unit, a, b, norm, coordinate = self._frame(x, t)
        if bool((b == 0).any()):
            raise ValueError("there is no score at sigma = 0; ask for it at a later time t")
        out = self._network(x_unit, coordinate, labels)
        if self.predicts == "score":
            return out / norm
        return -to_epsilon(self.predicts, out, x_unit, a, b) / (b * norm)

    def denoise(
        self,
        x: Float[Tensor, "batch *event"],
        t: Float[Tensor, "*time"],
        labels: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """Return the posterior mean E[x_0 | x_t = x]; t `()` or `(B,)`.

        Where α = 0 the state says nothing of x_0 and a score or ε nothing either: the data mean
        is the answer.
        """
        x_unit, a, b, _, coordinate = self._frame(x, t)
        out = self._network(x_unit, coordinate, labels)
        blind = (a == 0) if self.predicts in ("score", "epsilon") else torch.zeros_like(a).bool()
        x0 = to_x0(self.predicts, out, x_unit, a.masked_fill(blind, 1.0), b)
        return self.data_mean.to(x) + self.data_std.to(x) * x0.masked_fill(blind, 0.0)

    def given(self, labels: Int[Tensor, "*batch"]) -> Conditioned:
        """Return the noisy score with the class labels fixed: `(B,)`, or `()` for all samples."""
        return Conditioned(self, labels)

    def unconditional(self) -> NoisyScoreFn:
        """Return the noisy score of all classes together.

        A class-conditional model knows it if it was trained with `label_dropout`: then this is the
        other half of guidance, `GuidedScore(model.given(labels), model.unconditional())`.

        Raises:
            ValueError: If the model is conditional and was trained without `label_dropout`: what
                the network says of the label of no class would then mean nothing.
        """
        if not getattr(self.network, "n_classes", 0):
            return self
        if not float(self.label_dropout) > 0:
            raise ValueError(
                "this class-conditional model never saw the label of no class; train it with "
                "label_dropout=0.1"
            )
        return Conditioned(self, torch.tensor(NO_CLASS, device=self.shift.device))


def _add_label_dropout(
    model: nn.Module, state: dict[str, Tensor], prefix: str, *arguments: object
) -> None:
    state.setdefault(f"{prefix}label_dropout", torch.zeros(()))


class Conditioned:
    """A class-conditional model with its labels fixed: a plain noisy score again."""

    def __init__(self, model: ScoreModel, labels: Int[Tensor, "*batch"]) -> None:
        self.model, self.labels = model, labels

    def _each(self, x: Tensor) -> Tensor:
        """Return a label for each sample of x."""
        if self.labels.ndim and len(self.labels) != len(x):
            raise ValueError(
                f"{len(self.labels)} labels were given and {len(x)} samples came; in chunks, give one "
                "label for all, or the labels of each chunk to a score of its own"
            )
        return (self.labels if self.labels.ndim else self.labels.expand(len(x))).to(x.device)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the score of the law of x_t given the labels."""
        return self.model(x, t, self._each(x))

    def denoise(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E[x_0 | x_t = x, labels]."""
        return self.model.denoise(x, t, self._each(x))


class ExactScore:
    """The exact noisy score of a density known in closed form.

    Arguments:
        density: A law closed under noising, such as `GaussianMixture`.
        schedule: The noise schedule.
    """

    def __init__(self, density: Analytic, schedule: Schedule) -> None:
        self.density, self.schedule = density, schedule
        self.event_shape = density.event_shape

    def __call__(
        self, x: Float[Tensor, "batch *event"], t: Tensor
    ) -> Float[Tensor, "batch *event"]:
        """Return ∇ log p_t(x); t `()` or `(B,)`."""
        return self.density.noised(*self.schedule(t)).score(x)

    def log_prob(self, x: Float[Tensor, "batch *event"], t: Tensor) -> Float[Tensor, " batch"]:
        """Return log p_t(x)."""
        return self.density.noised(*self.schedule(t)).log_prob(x)

    def denoise(
        self, x: Float[Tensor, "batch *event"], t: Tensor
    ) -> Float[Tensor, "batch *event"]:
        """Return the posterior mean E[x_0 | x_t = x]."""
        return self.density.posterior_mean(x, *self.schedule(t))


class EmpiricalScore:
    r"""The exact noisy score of a finite data set: what a network that memorises would learn.

    The noised law is a mixture of Gaussians at the points α x_i, so

    .. math::
        s(x, t) = \frac{α \sum_i w_i(x) x_i - x}{σ^2}, \quad
        w = \mathrm{softmax}\left( -\frac{\|x - α x_i\|^2}{2 σ^2} \right)

    Distances are computed as differences, not as ‖x‖² + ‖y‖² − 2xᵀy, which cancels. `law` is the
    data's law without its schedule.

    Arguments:
        data: The points, `(N, *event)`.
        schedule: The noise schedule.
        chunk_size: Query points handled together, so that memory stays at chunk_size · N.

    Raises:
        ValueError: For data that are no batch, are empty or not finite; for a chunk_size below 1.
    """

    def __init__(
        self, data: Float[Tensor, "n *event"], schedule: Schedule, chunk_size: int = 1024
    ) -> None:
        self.law = Empirical(data, chunk_size)
        self.data, self.schedule, self.chunk_size = data, schedule, chunk_size
        self.event_shape = data.shape[1:]

    def _coefficients(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Check x and t, and return (α_t, σ_t)."""
        check_batch(x, self.event_shape)
        per_sample(t, x)
        return self.schedule(t)

    def log_prob(self, x: Float[Tensor, "batch *event"], t: Tensor) -> Float[Tensor, " batch"]:
        """Return log p_t(x), the log of a kernel density estimate with bandwidth σ/α."""
        return self.law.noised(*self._coefficients(x, t)).log_prob(x)

    def denoise(
        self, x: Float[Tensor, "batch *event"], t: Tensor
    ) -> Float[Tensor, "batch *event"]:
        """Return the posterior mean Σ_i w_i(x) x_i."""
        return self.law.posterior_mean(x, *self._coefficients(x, t))

    def __call__(
        self, x: Float[Tensor, "batch *event"], t: Tensor
    ) -> Float[Tensor, "batch *event"]:
        """Return ∇ log p_t(x).

        Raises:
            ValueError: At σ = 0, where there is no score; or for a wrong shape.
        """
        alpha, sigma = self._coefficients(x, t)
        if bool((sigma == 0).any()):
            raise ValueError("there is no score at sigma = 0; ask for it at a later time t")
        return self.law.noised(alpha, sigma).score(x)
