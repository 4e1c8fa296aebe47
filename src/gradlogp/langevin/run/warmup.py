"""A burn-in in which the kernel is tuned, with all chains together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...core import Density, Kernel
from ..kernels import Preconditioner
from ..tuning import LEAST, Adaptation, Moved
from .engines import Engine
from .resume import Part


def check_adapt(adapt: bool | Adaptation, burn_in: int, engine: Engine) -> Adaptation | None:
    """Return how to adapt, or None.

    Raises:
        ValueError: For an engine that cannot, or a burn-in too short for it.
    """
    if not isinstance(adapt, bool | Adaptation):
        raise ValueError(f"adapt must be True, False or an Adaptation, got {adapt!r}")
    if adapt is False:
        return None
    how = Adaptation() if adapt is True else adapt
    if engine == "fused":
        raise ValueError("engine='fused' cannot adapt: tune first, with adapt_step_size")
    least = 1 if how.preconditioner == "none" else LEAST
    if burn_in < least:
        raise ValueError(
            f"adapt= tunes the kernel in the burn-in: needs burn_in >= {least}, better some "
            f"hundreds, got {burn_in}"
        )
    return how


def warm_up(
    how: Adaptation,
    kernel: Kernel[Any, Any],
    target: Density,
    parts: list[Part],
    n_steps: int,
    tell: Callable[[Any], None] | None,
) -> tuple[Any, list[Part]]:
    """Return the tuned kernel and where the parts stand after n_steps with it.

    The parts take each step together, for one update with the mean of all their acceptances: what
    is tuned does not depend on the chunks. Ctrl-C is raised, since there is nothing to keep.
    """

    def move(kernel: Kernel[Any, Any]) -> Moved:
        x, acceptances = [], []
        for i, part in enumerate(parts):
            state, info = kernel.step(part.state, target, generator=part.noise)
            parts[i] = part._replace(state=state)
            x.append(state.x)
            if (acceptance := getattr(info, "acceptance", None)) is not None:
                acceptances.append(acceptance)
            if tell is not None:
                tell(info)
        return Moved(torch.cat(x), torch.cat(acceptances) if acceptances else None)

    parts = list(parts)
    return how.tune(kernel, n_steps, move), parts


def tuned_values(kernel: Any) -> dict[str, Any]:
    """Return what may have been tuned, as tensors, numbers and strings."""
    values: dict[str, Any] = {
        "kernel": type(kernel).__name__, "step_size": float(kernel.step_size),
    }  # fmt: skip
    P = getattr(kernel, "preconditioner", None)
    if isinstance(P, Preconditioner):
        values |= {"preconditioner": P.value, "kind": P.kind}
    return values


def retuned(kernel: Any, values: Mapping[str, Any] | None) -> Any:
    """Return the kernel with what a run that goes on had tuned.

    Raises:
        ValueError: If it is a kernel of another kind.
    """
    if values is None:
        return kernel
    changes: dict[str, Any] = {"step_size": values["step_size"]}
    if "preconditioner" in values:
        changes["preconditioner"] = Preconditioner(values["preconditioner"], values["kind"])
    fields = {f.name for f in dataclasses.fields(kernel)}
    if missing := changes.keys() - fields:
        raise ValueError(
            f"resume holds a tuned {' and '.join(sorted(missing))}, which {type(kernel).__name__} "
            "has not: go on with the kernel of that run"
        )
    if values.get("kernel", type(kernel).__name__) != type(kernel).__name__:
        raise ValueError(
            f"resume holds a step size tuned for {values['kernel']}, and {type(kernel).__name__} was "
            "given: go on with the kernel of that run"
        )
    return dataclasses.replace(kernel, **changes)
