"""Conditions of a score, and a score with its condition fixed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core import Analytic, check_count, check_event_shape, check_kind, sent
from ..noise.coordinates import AffineCoordinates, Data, as_tensor
from ..noise.score_base import ScoreWrapper
from .networks import NO_CLASS
from .traced import learned_and_trace

LEAST_ROWS = 10
"""Rows for each number of a condition that its linear part needs."""

MOST_LINEAR = 250_000
"""Entries of the linear part of a condition, beyond which a model has none."""

NULL = 4.0
"""Where the learned null condition starts, in standard deviations, or beyond what goes further."""


def check_condition(condition: Any, kind: int | torch.Size | None) -> Tensor:
    """Return a condition as a tensor with one row for all samples or one for each.

    Arguments:
        condition: An int or int64 `(1,)`, `(B,)` for classes; float `(1, *shape)`, `(B, *shape)`.
        kind: The number of classes, the shape of float values, or None if either is allowed.

    Raises:
        ValueError: If it is neither, or of the wrong kind.
    """
    wanted = {
        int: f"a class, as an int or int64 of shape (1,) or (B,), from 0 to {kind!s} - 1",
        torch.Size: f"float values of shape (1 or B, {', '.join(map(str, kind or ()))})"
        if not isinstance(kind, int)
        else "",
    }.get(
        type(kind), "a class (an int, int64 of shape (1,) or (B,)) or a float tensor (1 or B, …)"
    )
    if isinstance(condition, int) and not isinstance(condition, bool):
        check_count(condition, "condition, a class,", -(2**63))  # what int64 holds
        condition = torch.tensor([condition])
    check_kind(condition, "the condition", Tensor, wanted)
    got = f"{condition.dtype} of shape {tuple(condition.shape)}"
    classes = condition.dtype == torch.int64 and condition.ndim == 1
    values = condition.is_floating_point() and condition.ndim >= 2
    if isinstance(kind, int):
        values = False
    elif kind is not None:
        classes, values = False, values and condition.shape[1:] == kind
    if not (classes or values) or not len(condition):
        raise ValueError(f"the condition must be {wanted}; got {got}")
    if classes and isinstance(kind, int):
        low, high = int(condition.min()), int(condition.max())
        if low < 0 or high >= kind:
            raise ValueError(f"the condition must be {wanted}; got {low if low < 0 else high}")
    if values and not bool(condition.isfinite().all()):
        raise ValueError("the condition has entries that are not finite")
    return condition


def linear_part(
    z: Float[Tensor, "n D"], y: Float[Tensor, "n *condition"]
) -> tuple[Float[Tensor, "D k"], Float[Tensor, "D D"]] | None:
    r"""Return the gain of the best linear prediction of z from y, and the residual covariance.

    .. math:: z \approx \bar z + G (y - \bar y), \quad G = S_{zy} S_{yy}^{-1}, \quad
        C = S_{zz} - G S_{yz}

    For Gaussian z and y these determine the conditional law. None if there are too few rows.

    Arguments:
        z: Data in float64.
        y: Values in float64, of any shape.
    """
    y = y.flatten(1).to(z)
    n, k = y.shape
    if n < LEAST_ROWS * (k + 1) or k + z.shape[1] > 1000:
        return None
    z, y = z - z.mean(0), y - y.mean(0)
    gain = torch.linalg.lstsq(y, z, driver="gelsd").solution.T  # columns may depend on one another
    left = z - y @ gain.T
    return gain, left.T @ left / (n - k - 1)


class Condition(nn.Module):
    """What a network is conditional on: classes, or float values of any shape.

    Values are standardised before the network sees them, per column of vectors and per channel of
    larger arrays; the fitted scales are stored with the weights. If training omitted conditions,
    the network saw the null condition instead: the label `NO_CLASS`, or a learned value.

    Arguments:
        kind: A number of classes, or the shape of float values.

    Raises:
        ValueError: If it is neither.
    """

    dropout: Tensor
    _read: tuple[Tensor, int, float] | None = None  # it, its version, and its value

    def __init__(self, kind: int | Sequence[int]) -> None:
        super().__init__()
        if isinstance(kind, int):
            check_count(kind, "condition, as a number of classes,")
            sizes: tuple[int, ...] = (kind,)
        else:
            sizes = tuple(kind) if isinstance(kind, list) else kind  # type: ignore[assignment]
            check_event_shape(sizes, "condition, if it is not a number of classes,")
        if not sizes:
            raise ValueError(f"condition must be a number of classes or a shape, got {kind!r}")
        self.kind: int | torch.Size = kind if isinstance(kind, int) else torch.Size(sizes)
        self.register_buffer("dropout", torch.zeros(()))  # how often training left it out
        if not isinstance(self.kind, int):
            zeros = torch.zeros(self.kind)
            self.coordinates = AffineCoordinates(zeros, torch.ones(self.kind))
            self.null_value = nn.Parameter(torch.full(self.kind, NULL))

    @property
    def config(self) -> int | list[int]:
        """What rebuilds it, JSON."""
        return self.kind if isinstance(self.kind, int) else list(self.kind)

    def fit(self, values: Data, dropout: float) -> None:
        """Fit the scales of float values to data, and record how often they will be dropped.

        The null condition starts beyond all values, so that it differs from all of them.

        Raises:
            ValueError: If a column or channel of values is constant.
        """
        known = float(self.dropout) > 0
        self.dropout.fill_(dropout)
        if not isinstance(self.kind, int):
            try:
                self.coordinates = AffineCoordinates.fit(values, self.kind)
            except ValueError as error:
                raise ValueError(f"the condition does not determine it: {error}") from None
            if dropout > 0 and not known:
                beyond = self.coordinates.encode(as_tensor(values)).amax(0) + 1
                with torch.no_grad():
                    self.null_value.copy_(beyond.clamp(min=NULL))

    def check(self, condition: Tensor | int) -> Tensor:
        """Return a condition as a tensor, or raise `ValueError`."""
        return check_condition(condition, self.kind)

    def encode(self, condition: Tensor | int) -> Tensor:
        """Return the condition in the form that the network takes.

        Raises:
            ValueError: If it is not of this kind.
        """
        value = self.check(condition)
        return value if isinstance(self.kind, int) else self.coordinates.encode(value)

    def null(self, n: int, like: Tensor) -> Tensor:
        """Return n rows of the null condition."""
        self.check_null()
        if isinstance(self.kind, int):
            return torch.full((n,), NO_CLASS, device=like.device)
        return self.null_value.to(like).expand(n, *self.kind)

    def drop(self, encoded: Tensor, dropped: Tensor) -> Tensor:
        """Return encoded conditions with the null condition where `dropped` `(B,)`."""
        if isinstance(self.kind, int):
            return encoded.masked_fill(dropped, NO_CLASS)
        where = dropped.reshape(-1, *[1] * len(self.kind))
        return torch.where(where, self.null_value.to(encoded), encoded)

    def _dropout(self) -> float:
        """Return the number in `dropout`, read once for every value: a device would be waited for."""
        held = self.dropout
        if held.is_inference():  # which counts no changes
            return float(held)
        if self._read is None or self._read[0] is not held or self._read[1] != held._version:
            self._read = held, held._version, float(held)
        return self._read[2]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_read": None}  # copies count their changes anew

    def check_null(self) -> None:
        """Raise `ValueError` unless training has shown the network the null condition."""
        if not self._dropout() > 0:
            raise ValueError(
                "this conditional model was never trained on its null condition: pass a condition with "
                "model.given(...), or train it with condition_dropout=0.1"
            )


class ConditionedScore(ScoreWrapper):
    """A conditional model with its condition fixed: a plain noisy score again.

    Its moments are those of all conditions together.

    Arguments:
        model: A `ScoreModel` or `ForeignScore`.
        condition: The condition in the form that the network takes, one row or one for each
            sample; None for the null condition.
    """

    def __init__(self, model: Any, condition: Tensor | None) -> None:
        self.score: Any = model
        self.condition = condition

    @property
    def pooled(self) -> bool:  # type: ignore[override]
        """Whether a condition is given, so that the moments are not its own."""
        return self.condition is not None

    @property
    def start(self) -> float:  # type: ignore[override]
        """That of the model, whose base is the same for all conditions."""
        return float(self.score.start)

    @property
    def kinks(self) -> Sequence[float]:  # type: ignore[override]
        """Those of the model."""
        return getattr(self.score, "kinks", ())

    def law(self, t: Tensor) -> Analytic | None:
        """Return the law of z_t where it is that of the base, for all conditions."""
        law: Analytic | None = self.score.law(t)
        return law

    @property
    def n_rows(self) -> int | None:
        """How many conditions there are."""
        return None if self.condition is None else len(self.condition)

    def _each(self, z: Tensor) -> Tensor:
        """Return the condition of every row of z."""
        if self.condition is None:
            return self.score.condition.null(len(z), z)
        value = self.condition
        value = sent(value, z.device, z.dtype if value.is_floating_point() else None)
        return value.expand(len(z), *value.shape[1:])

    def _score(self, z: Tensor, t: Tensor) -> Tensor:
        return self.score.forward(z, t, self._each(z))

    def _denoise(self, z: Tensor, t: Tensor) -> Tensor:
        return self.score.denoise_given(z, t, self._each(z))

    def _known(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor] | None:
        known: tuple[Tensor, Tensor] | None = self.score._known(z, t)
        return known

    def _beyond_mean(self, z: Tensor, t: Tensor) -> Tensor | None:
        beyond: Tensor | None = self.score._beyond_mean(z, t)
        return beyond

    def _learned(self, z: Tensor, t: Tensor) -> Tensor:
        mean: Tensor = self.score.denoise_given(z, t, self._each(z), alone=True)
        return mean

    def _learned_and_trace(self, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor] | None:
        if type(self) is not ConditionedScore:
            return None
        return learned_and_trace(self.score, z, t, self._each(z))

    def _around(self, score: Any) -> Any:  # another condition in place of this one, or none
        return score

    def rows(self, index: slice | Tensor) -> ConditionedScore:
        """Return the score of these rows of the condition."""
        if self.condition is None or len(self.condition) == 1:
            return self
        return type(self)(self.score, self.condition[index])
