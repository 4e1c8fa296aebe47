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

COTANGENTS = 2**17
"""Entries of the rows of a Jacobian that are pulled back together: what a processor's cache holds."""


def _active(h: Tensor, slopes: list[Tensor] | None) -> Tensor:
    """Return silu(h), and keep its derivative if there is a list for it."""
    if slopes is None:
        return nn.functional.silu(h)
    g = torch.sigmoid(h)
    a = h * g
    slopes.append(torch.addcmul(g, a, 1 - g))
    return a


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = unset(nn.Linear, width, width), unset(nn.Linear, width, width)
        self.shift = unset(nn.Linear, width, width)

    def forward(self, h: Tensor, shift: Tensor, slopes: list[Tensor] | None = None) -> Tensor:
        inner = self.first(_active(h, slopes)) + shift
        return h + self.second(_active(inner, slopes))

    def pulled(self, g: Tensor, at_h: Tensor, at_inner: Tensor) -> Tensor:
        """Return the cotangents of h, `(k, B, width)`, for those of the result; slopes `(B, width)`."""
        inner = (g @ self.second.weight).mul_(at_inner)
        return (inner @ self.first.weight).mul_(at_h).add_(g)


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
        return self._through(x, c, condition, embedded)

    def _through(
        self,
        x: Tensor,
        c: Tensor,
        condition: Tensor | None,
        embedded: Sequence[Tensor] | None,
        slopes: list[Tensor] | None = None,
    ) -> Tensor:
        """Return the prediction, and keep the derivatives of all functions of single entries."""
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
            h = block(h, shift, slopes)
        return self.outlet(_active(h, slopes)).reshape(x.shape)

    def _plain(self) -> bool:
        """Return whether all layers are of the kinds, and in the places, that `_traced` knows."""
        blocks = list(self.blocks)
        if any(type(b) is not _Block for b in blocks):
            return False
        layers = [self.inlet, self.outlet]
        layers += [m for b in blocks for m in (b.first, b.second, b.shift)]  # type: ignore[misc]
        return all(type(m) is nn.Linear for m in layers) and not any(
            m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m)
            for m in self.modules()
        )

    @torch.no_grad()
    def _traced(
        self,
        x: Float[Tensor, "batch *event"],
        c: Float[Tensor, " batch"],
        weights: Float[Tensor, " *event"],
        condition: Int[Tensor, " batch"] | Float[Tensor, "batch *condition"] | None = None,
        embedded: Sequence[Tensor] | None = None,
    ) -> tuple[Float[Tensor, "batch *event"], Float[Tensor, " batch"]]:
        r"""Return the prediction F at x and a weighted trace of its Jacobian, without a graph.

        .. math:: \sum_i w_i \, \partial F_i / \partial x_i

        By the chain rule from the output: derivatives of activations are computed once for all rows,
        and of the first layer only the columns of one entry. For a network that is `_plain`.

        Arguments:
            x: Where.
            c: Noise coordinates.
            weights: w.
            condition: As for a call.
            embedded: As for a call.
        """
        assert not self.holes
        slopes: list[Tensor] = []
        value = self._through(x, c, condition, embedded, slopes)
        n, width = slopes[0].shape
        y, d = x.flatten(1), x[0].numel()
        inlet, outlet = self.inlet.weight, self.outlet.weight * weights.reshape(-1, 1)
        columns, more, total = inlet[:, :d], None, x.new_zeros(n)
        if self.features is not None:  # those of an entry: (d, n, 2 F) and (d, width, 2 F)
            more = self.features.slopes(y).transpose(0, 1)
            theirs = inlet[:, d:].unflatten(1, (d, -1)).transpose(0, 1)
        for index in torch.arange(d, device=x.device).split(max(1, COTANGENTS // (n * width))):
            g = outlet[index].unsqueeze(1) * slopes[-1]
            for k in reversed(range(len(self.blocks))):
                block = self.blocks[k]
                assert isinstance(block, _Block)
                g = block.pulled(g, *slopes[2 * k : 2 * k + 2])
            total += (g @ columns[:, index].mT.unsqueeze(2)).sum((0, 2))
            if more is not None:
                total += ((g @ theirs[index]) * more[index]).sum((0, 2))
        return value, total
