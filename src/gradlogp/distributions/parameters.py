r"""Named parameters in their own spaces, and the unconstrained numbers that samplers move.

A density p of parameters x = T(z) is sampled as the density of z ∈ R^n,

.. math:: \log p(T(z)) + \log|\det \partial T / \partial z|

with the bijections T of `constraints`. Without the second term it would be a different law.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.transforms import Transform

from ..core import check_batch, check_function
from .constraints import bijection, with_log_det

Named = Mapping[str, Tensor]
"""Parameters by name, each `(*batch, *shape)`."""

Function = Callable[..., Any]
"""Takes parameters by keyword, those of a module as one dictionary."""


class Slot(NamedTuple):
    """One parameter: its shape and constraint, and where it stands among the values."""

    shape: torch.Size
    constraint: constraints.Constraint
    transform: Transform | None
    """None for one that is free itself."""
    free_shape: torch.Size
    flat: slice


class Parameters:
    """Names, shapes and constraints of the parameters of a density.

    Arguments:
        declared: For each name a shape such as `(3,)`, or `()` for a number; a constraint of
            `torch.distributions.constraints`, for a number; or `(shape, constraint)`. The shape is
            that of the constrained value: `((4,), constraints.simplex)` are four numbers, with
            three unconstrained ones behind them. An `nn.Module` stands for its trainable
            parameters.

    Raises:
        ValueError: For a name that is not an identifier, an unknown kind of declaration, or a
            constraint that does not fit the shape or has no bijection.

    Examples:
        >>> from torch.distributions import constraints
        >>> parameters = glp.distributions.Parameters({"a": (2,), "sigma": constraints.positive})
        >>> values, log_det = parameters.unpack(torch.tensor([[1.0, 2.0, 0.0]]))
        >>> values
        {'a': tensor([[1., 2.]]), 'sigma': tensor([1.])}
    """

    def __init__(self, declared: Mapping[str, Any] | nn.Module) -> None:
        self.as_dict = isinstance(declared, nn.Module)
        """Whether functions take one dictionary: names of modules hold dots."""
        if isinstance(declared, nn.Module):
            declared = {
                name: tuple(p.shape) for name, p in declared.named_parameters() if p.requires_grad
            }
        if not isinstance(declared, Mapping) or not declared:
            raise ValueError(
                'parameters must be a dictionary such as {"beta": (3,), "sigma": '
                f"constraints.positive}} or an nn.Module, with at least one entry, got {declared!r}"
            )
        self.slots: dict[str, Slot] = {}
        free = flat = 0
        for name, value in declared.items():
            if not self.as_dict and not (isinstance(name, str) and name.isidentifier()):
                raise ValueError(f"{name!r} must be a valid keyword name")
            shape, constraint = _declared(name, value)
            transform, free_shape = _transform(name, shape, constraint)
            where = slice(flat, flat + shape.numel())
            self.slots[name] = Slot(shape, constraint, transform, free_shape, where)
            free, flat = free + free_shape.numel(), where.stop
        self.n_free = free
        """How many numbers are sampled."""
        self.n_flat = flat
        """How many numbers the values have, all parameters together."""

    def __repr__(self) -> str:
        listed = (f"{k}: {tuple(s.shape)} {s.constraint}" for k, s in self.slots.items())
        return f"Parameters({', '.join(listed)})"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each parameter, without the batch."""
        return {name: tuple(slot.shape) for name, slot in self.slots.items()}

    def names(self) -> list[str]:
        """Return a name for each number of the values: `sigma`, `p[2]`, `L[1,0]`."""
        return [n for name, slot in self.slots.items() for n in coordinates(name, slot.shape)]

    @cached_property
    def constant(self) -> tuple[bool, ...]:
        """Which values cannot change, such as those above the diagonal of a Cholesky factor."""
        same = torch.zeros(self.n_flat, dtype=torch.bool)
        for slot in self.slots.values():
            if slot.transform is not None and slot.constraint.event_dim >= 2:
                z = [torch.full(slot.free_shape, v, dtype=torch.float64) for v in (0.0, 1.0)]
                same[slot.flat] = torch.eq(*map(slot.transform, z)).flatten()
        return tuple(same.tolist())

    # ------------------------------------------------------------------------ there and back

    def unpack(
        self, z: Float[Tensor, "batch free"]
    ) -> tuple[dict[str, Tensor], Float[Tensor, " batch"]]:
        """Return the named values, each `(B, *shape)`, and `log |J|` of the map from z to them."""
        self._check(z)
        named, logs = self._unpack(z)
        return named, sum(logs, z.new_zeros(len(z)))

    def constrain(self, z: Float[Tensor, "batch free"]) -> Float[Tensor, "batch flat"]:
        """Return the values, flattened and concatenated, `(B, n_flat)`."""
        self._check(z)
        return torch.cat([x.reshape(len(z), -1) for x in self._unpack(z)[0].values()], 1)

    def split(self, x: Float[Tensor, "*batch flat"]) -> dict[str, Tensor]:
        """Return the named values `(*batch, *shape)` of flat ones, such as draws.

        Raises:
            ValueError: For a wrong number of values.
        """
        if x.ndim == 0 or x.shape[-1] != self.n_flat:
            raise ValueError(
                f"the values of {self._listed()} are {self.n_flat} numbers (*, {self.n_flat}), got "
                f"shape {tuple(x.shape)}"
            )
        return {
            name: x[..., slot.flat].reshape(*x.shape[:-1], *slot.shape)
            for name, slot in self.slots.items()
        }

    def unconstrain(
        self, values: Named | Float[Tensor, "batch flat"]
    ) -> Float[Tensor, "batch free"]:
        """Return the unconstrained numbers z of values: starting points for `run`.

        Arguments:
            values: By name, each `(B, *shape)`, or flat `(B, n_flat)`.

        Raises:
            ValueError: For missing or unknown names, a wrong shape, or values on the boundary or
                outside the support of a constraint.
        """
        named = self.split(values) if isinstance(values, Tensor) else values
        if named.keys() != self.slots.keys():
            raise ValueError(
                f"values must have the names {self._listed()}, got {', '.join(named)}"
            )
        parts = []
        for name, slot in self.slots.items():
            x = named[name]
            if x.ndim != len(slot.shape) + 1 or x.shape[1:] != slot.shape:
                shape = ", ".join(("B", *map(str, slot.shape)))
                raise ValueError(f"{name} must have shape ({shape}), got {tuple(x.shape)}")
            if not bool(slot.constraint.check(x).all()):
                raise ValueError(f"{name} must satisfy {slot.constraint} everywhere")
            z = x if slot.transform is None else slot.transform.inv(x).to(x)
            if not bool(torch.isfinite(z).all()):
                raise ValueError(
                    f"{name} must lie strictly inside {slot.constraint}: boundary and non-finite "
                    f"values have no unconstrained counterpart"
                )
            parts.append(z.reshape(len(x), -1))
        return torch.cat(parts, 1)

    # ------------------------------------------------------------------------ functions of them

    def call(self, f: Function, named: Named, *rows: Tensor, vectorized: bool = True) -> Any:
        """Return f of the named values, `(B, *shape)` each, or of every chain's alone and stacked.

        Arguments:
            f: Takes `rows` by position, then parameters by keyword (of a module, one dictionary).
            named: The values.
            rows: Arguments that are the same for all chains.
            vectorized: Whether f takes a batch of chains; otherwise it takes one, inside
                `torch.func.vmap`, and must not branch on values.
        """
        one = lambda named: f(*rows, named) if self.as_dict else f(*rows, **named)
        return one(dict(named)) if vectorized else torch.func.vmap(one)(dict(named))

    def log_prob(
        self, f: Callable[[dict[str, Tensor]], Tensor], z: Float[Tensor, "batch free"]
    ) -> Float[Tensor, " batch"]:
        """Return the log-density of z: that of the named values, f, plus `log |J|`.

        Distributions of PyTorch raise an error for all chains if a proposal of one of them has
        overflowed and is out of bounds. Such a chain is then NaN, and the others are not affected.
        """
        named, logs = self._unpack(z)
        try:
            return sum(logs, f(named))
        except (ValueError, RuntimeError):
            pass
        try:
            inside = self._inside(z, named)
            named, logs = self._unpack(torch.where(inside.unsqueeze(1), z, 0.0))
            value = sum(logs, f(named))  # what is wrong with f itself is raised here
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise ValueError(
                "a function of one chain, or of minibatches, runs inside torch.func.vmap and must not "
                "branch on values; torch.distributions do when they validate their arguments: "
                "pass them validate_args=False"
            ) from error
        # NaN in the score too, which a constant NaN in the value would leave 0
        outside = torch.where(inside, 0.0, math.nan).to(z).unsqueeze(1)
        return value + (outside * z).sum(1)

    def check_function(self, f: Function, name: str, n_rows: int = 0) -> None:
        """Raise `ValueError` unless f can be called with these parameters."""
        check_function(f, name)
        named = {} if self.as_dict else dict.fromkeys(self.slots)
        try:
            inspect.signature(f).bind(*[None] * (n_rows + self.as_dict), **named)
        except TypeError as error:
            how = "as one dictionary" if self.as_dict else "by keyword"
            first = "rows of the data and then " if n_rows else ""
            raise ValueError(f"{name} must take {first}{self._listed()} {how}: {error}") from None
        except ValueError:  # a builtin that does not say what it takes
            return

    # ------------------------------------------------------------------------ inside

    def _listed(self) -> str:
        return ", ".join(self.slots)

    def _check(self, z: Tensor) -> None:
        check_batch(z, name="z")
        if z.ndim != 2 or z.shape[1] != self.n_free:
            raise ValueError(
                f"{self._listed()} have {self.n_free} unconstrained numbers, z of shape (B, "
                f"{self.n_free}), "
                f"got {tuple(z.shape)}; Parameters.unconstrain computes them from values"
            )

    def _blocks(self, z: Tensor) -> Iterator[tuple[str, Slot, Tensor]]:
        """Yield each parameter with its free numbers, in their shape."""
        parts = z.split([slot.free_shape.numel() for slot in self.slots.values()], 1)
        for (name, slot), part in zip(self.slots.items(), parts, strict=True):
            yield name, slot, part.reshape(len(z), *slot.free_shape)

    def _unpack(self, z: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return the named values, and log |J| of each that is not free."""
        named, logs = {}, []
        for name, slot, block in self._blocks(z):
            if slot.transform is None:
                named[name] = block
                continue
            value, each = with_log_det(slot.transform, block)
            named[name] = value.to(z)
            logs.append(each if each.ndim == 1 else each.flatten(1).sum(1))
        return named, logs

    def _inside(self, z: Tensor, named: Named) -> Tensor:
        """Return which rows are finite and satisfy their constraints after rounding."""
        inside = torch.isfinite(z).all(1)
        for name, slot in self.slots.items():
            checks = (slot.constraint.check(named[name]), torch.isfinite(named[name]))
            for each in checks:
                inside = inside & each.reshape(len(z), -1).all(1)
        return inside


def parameters_of(target: object) -> Parameters | None:
    """Return the named parameters of a target, None where it has none (a module has a method)."""
    found = getattr(target, "parameters", None)
    return found if isinstance(found, Parameters) else None


def as_parameters(declared: Parameters | Mapping[str, Any] | nn.Module) -> Parameters:
    """Return the parameters that were declared."""
    return declared if isinstance(declared, Parameters) else Parameters(declared)


def coordinates(name: str, shape: torch.Size) -> list[str]:
    """Return a name for each entry of a variable: `x` for a number, else `x[0,0]`, `x[0,1]`, …."""
    places = (",".join(map(str, place)) for place in product(*map(range, shape)))
    return [f"{name}[{place}]" for place in places] if shape else [name]


def _declared(name: str, value: Any) -> tuple[torch.Size, constraints.Constraint]:
    shape: Any = ()
    constraint: Any = constraints.real
    if isinstance(value, constraints.Constraint):
        constraint = value
    elif (
        isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], tuple | list)
    ):
        shape, constraint = value
    else:
        shape = value
    whole = isinstance(shape, tuple | list) and all(type(n) is int and n > 0 for n in shape)
    if not whole or not isinstance(constraint, constraints.Constraint):
        raise ValueError(
            f"{name} must be a shape such as (3,), () for a number, a constraint such as "
            f"constraints.positive, or both as (shape, constraint), got {value!r}"
        )
    return torch.Size(shape), constraint


def _transform(
    name: str, shape: torch.Size, constraint: constraints.Constraint
) -> tuple[Transform | None, torch.Size]:
    """Return the bijection and the shape of its free numbers."""
    try:
        transform = bijection(constraint)
        if len(shape) < constraint.event_dim:
            raise ValueError(
                f"{constraint} constrains {constraint.event_dim} dimensions jointly; state them as "
                f"(shape, constraint), got shape {tuple(shape)}"
            )
        base: Any = constraint
        while isinstance(base, constraints.independent):
            base = base.base_constraint
        if type(base) is type(constraints.real):
            return None, shape
        free_shape = torch.Size(transform.inverse_shape(shape))
        if transform.forward_shape(free_shape) != shape:
            raise ValueError(
                f"the bounds of {constraint} must broadcast to {tuple(shape)}; with them it is "
                f"{tuple(transform.forward_shape(free_shape))}"
            )
        return transform, free_shape
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
