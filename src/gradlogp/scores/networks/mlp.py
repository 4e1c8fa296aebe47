"""A residual multilayer perceptron for vectors (or anything flattened to one)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ...core import check_batch, check_count, check_generator, check_kind, check_number
from .embeddings import (
    Conditioning,
    Fourier,
    check_condition,
    initialise,
    read_condition,
    read_sizes,
    unset,
)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = unset(nn.Linear, width, width), unset(nn.Linear, width, width)
        self.shift = unset(nn.Linear, width, width)

    def forward(self, h: Tensor, shift: Tensor) -> Tensor:
        inner = self.first(nn.functional.silu(h)) + shift
        return h + self.second(nn.functional.silu(inner))


class MLP(nn.Module):
    """A residual MLP: network(x, c), or network(x, c, condition) if it has one, -> like x.

    It knows nothing of diffusion: c is a number per sample that orders the noise levels. Classes
    are int64 labels `(B,)`, with −1 for no class; values are floats `(B, *condition)`, which are
    flattened. Both are embedded and added to the embedding of c.

    Arguments:
        event: The event shape, or the dimension D of a vector.
        width: Hidden width.
        depth: Number of residual blocks, two linear layers each.
        condition: What to condition on: a number of classes, the shape of values, or None.
        frequencies: Also pass sin(f x)/√f and cos(f x)/√f of each entry to the first layer, for
            each of these f. A field with edges, thin ridges or a grid is then learned in far fewer
            steps; with few rows the network also memorises sooner.
        holes: Whether to condition on any part of x: the condition is then `(B, 2, *event)`, 0
            where an entry is not known, and elsewhere the value that replaces the noisy one.
        generator: Source of the initial weights.

    References:
        | Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains
          (Tancik et al., 2020)
        | https://arxiv.org/abs/2006.10739

    Raises:
        ValueError: For sizes below 1, or frequencies that are not positive; when called, for a
            condition that is missing, superfluous, or does not fit.

    Examples:
        >>> network = glp.MLP(2, width=16, depth=1, generator=torch.Generator())
        >>> network(torch.zeros(5, 2), torch.zeros(5)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        event: int | Sequence[int],
        width: int = 128,
        depth: int = 3,
        condition: int | Sequence[int] | None = None,
        frequencies: Sequence[float] = (),
        *,
        holes: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        shape = read_sizes(event, "event")
        check_count(width, "width")
        check_count(depth, "depth")
        check_generator(generator)
        check_kind(holes, "holes", bool, "True or False")
        if holes and condition is not None:
            raise ValueError("holes=True sets its own condition: omit condition=")
        check_kind(frequencies, "frequencies", list | tuple, "a list of numbers")
        for f in frequencies:
            check_number(f, "each of frequencies", above=0)
        other = read_condition(condition)
        self.holes, self.condition = holes, (2, *shape) if holes else other
        self.config = {
            "event": list(shape), "width": width, "depth": depth, "condition": other,
            "frequencies": list(map(float, frequencies)),
        } | ({"holes": True} if holes else {})  # fmt: skip
        self.event_shape = torch.Size(shape)
        d = self.event_shape.numel()
        self.conditioning = Conditioning(width, other)
        self.features = Fourier(frequencies, -0.5) if frequencies else None
        inputs = d + 2 * d * len(frequencies) + d * holes
        self.inlet = unset(nn.Linear, inputs, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.outlet = unset(nn.Linear, width, d)
        initialise(self, generator)
        nn.init.zeros_(self.outlet.weight)

    def _embedded(
        self,
        c: Float[Tensor, " batch"],
        condition: Int[Tensor, " batch"] | Float[Tensor, "batch *condition"] | None = None,
    ) -> list[Float[Tensor, "rows width"]]:
        """Return what does not depend on x: the shift of each block, for each sample or for all."""
        emb = self.conditioning(c, None if self.holes else condition)
        shifts = []
        for block in self.blocks:
            assert isinstance(block, _Block)
            shifts.append(block.shift(emb))
        return shifts

    def forward(
        self,
        x: Float[Tensor, "batch *event"],
        c: Float[Tensor, " batch"],
        condition: Int[Tensor, " batch"] | Float[Tensor, "batch *condition"] | None = None,
        embedded: Sequence[Tensor] | None = None,
    ) -> Float[Tensor, "batch *event"]:
        """Return the prediction at x; `embedded` is that of c and the condition, if known already."""
        check_batch(x, self.event_shape, held=False)
        check_condition(self.condition, condition, len(x))
        shifts = self._embedded(c, condition) if embedded is None else embedded
        seen, known = x.flatten(1), []
        if self.holes and condition is not None:
            state, values = condition.to(x).flatten(2).unbind(1)
            known, seen = [state], torch.where(state == 0, seen, values)
        more = [] if self.features is None else [self.features(seen).flatten(1)]
        h = self.inlet(torch.cat([seen, *more, *known], 1) if more or known else seen)
        for block, shift in zip(self.blocks, shifts, strict=True):
            h = block(h, shift)
        return self.outlet(nn.functional.silu(h)).reshape(x.shape)
