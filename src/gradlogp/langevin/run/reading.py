"""Reading a stream of draws: nothing that its state does not count is ever seen.

Kernels and other settings are plain values there, which a file can hold and a later run compares.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections import namedtuple
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core import Density
from ...distributions.parameters import Parameters, parameters_of
from .. import kernels, tuning
from ..chain import Chain
from ..tuning.start import HESSIAN, Start
from .files import Rows, tensor
from .warmup import WarmUp, retuned


def plain(value: Any) -> Any:
    """Return numbers, strings and tensors as they are, a frozen dataclass of this room as its fields.

    Anything else, such as a function, is represented by the name of its type.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):  # those of NumPy, too
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if isinstance(value, tuple | list):
        return tuple(map(plain, value))
    if isinstance(value, Mapping):
        return {name: plain(v) for name, v in value.items()}
    if dataclasses.is_dataclass(value) and _known(type(value).__name__) is type(value):
        own = (f.name for f in dataclasses.fields(value) if f.init)
        return {"class": type(value).__name__} | {n: plain(getattr(value, n)) for n in own}
    return {"opaque": f"{type(value).__module__}.{type(value).__qualname__}"}


def rebuilt(value: Any) -> Any:
    """Return the original of plain values.

    Raises:
        ValueError: If the plain values are not sufficient.
    """
    if isinstance(value, tuple):
        return tuple(map(rebuilt, value))
    if not isinstance(value, Mapping):
        return value
    known = _known(value.get("class", ""))
    if known is None:
        raise ValueError(f"a file cannot hold a {value.get('opaque', value.get('class'))}")
    return known(**{name: rebuilt(v) for name, v in value.items() if name != "class"})


def alike(a: Any, b: Any) -> bool:
    """Whether two plain values are the same."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    return type(a) is type(b) and a == b


def _known(name: str) -> type | None:
    """Return the dataclass of this room of that name, or None."""
    found = getattr(kernels, name, getattr(tuning, name, None))
    return found if isinstance(found, type) and dataclasses.is_dataclass(found) else None


FORMAT = 1
"""Of the files."""

FIXED = {
    "format", "mark", "shape", "dtype", "n_steps", "burn_in", "thin", "since", "adapt", "kernel",
    "parameters", "start",
}  # fmt: skip
MOVING = {"done", "draws", "resume", "divergences", "failures", "warmup"}
FILES = {"ready", "info"}
"""What a state holds: the arguments of the run, its position, and what is in the files."""


def beside(path: Path, what: str) -> Path:
    """Return the path of the lock, the state or the information of a stream."""
    return path.with_name(f"{path.name}.{what}")


def rows_of(path: Path, saved: Mapping[str, Any]) -> Rows:
    """Return the file of draws."""
    return Rows(path, saved["shape"], np.dtype(saved["dtype"]), saved["mark"])


def info_rows_of(path: Path, saved: Mapping[str, Any]) -> Rows | None:
    """Return the file of information; None if steps report nothing."""
    if not saved["info"]:
        return None
    dtype = np.dtype([tuple(field) for field in saved["info"]], align=True)
    return Rows(beside(path, "info"), saved["shape"][:2], dtype, saved["mark"])


def contents(
    path: Path, saved: Mapping[str, Any], n_draws: int, kind: Any, mode: str
) -> tuple[Tensor, Any]:
    """Return the first draws and their information.

    Raises:
        ValueError: If a file is missing, truncated, or belongs to a different run.
    """
    draws = rows_of(path, saved)
    if not saved["ready"]:
        nothing = np.empty((draws.shape[0], 0, *draws.shape[2:]), draws.dtype)
        return tensor(nothing), named("Info", [], [])
    infos = info_rows_of(path, saved)
    for rows in (draws, infos):
        if rows is not None:
            rows.open()
            rows.close()
    values = []
    if infos is not None:
        whole = infos.mapped(mode)
        values = [tensor(whole[name])[:, :n_draws] for name, *_ in saved["info"]]
    names = [name for name, *_ in saved["info"] or ()]
    info = kind(*values) if hasattr(kind, "_fields") else named("Info", names, values)
    return tensor(draws.mapped(mode))[:, :n_draws], info


def named(kind: str, names: list[str], values: list[Any]) -> Any:
    """Return a named tuple of a kind of which only the fields are known."""
    return namedtuple(kind, names)(*values)


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the state of a stream.

    Raises:
        ValueError: If there is none, or it is damaged or of a different version.
    """
    side = beside(Path(path), "state")
    try:
        saved = torch.load(side, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise ValueError(
            f"{path} is not a file of draws: there is no {side.name} next to it"
        ) from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        says = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"{side} is damaged: {says}") from None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ValueError(f"{side} does not belong to a file of draws of format {FORMAT}")
    if saved.keys() != FIXED | MOVING | FILES or not _sound(saved):
        raise ValueError(f"{side} is damaged: its entries are inconsistent")
    return saved


def _sound(saved: dict[str, Any]) -> bool:
    """Return whether the sizes that a state names can be those of a run."""
    shape, counts = saved["shape"], [saved[k] for k in ("n_steps", "burn_in", "done", "draws")]
    try:
        return (
            all(type(n) is int and n >= 0 for n in (*shape, *counts))
            and len(shape) >= 2
            and saved["draws"] <= shape[1]
            and saved["done"] <= saved["n_steps"]
            and np.dtype(saved["dtype"]).kind in "fc"
            and all(np.dtype(kind).kind in "biufc" for _, kind, _ in saved["info"] or ())
        )
    except (TypeError, ValueError):
        return False


def open_chain(path: str | os.PathLike[str], target: Density | None = None) -> Chain:
    """Return the draws of a stream as a `Chain`: see `Chain.open`."""
    saved, path = read(path), Path(path)
    try:
        try:
            draws, info = contents(path, saved, saved["draws"], None, "c")
        except OSError:  # larger than the memory, as which the system counts a private view
            draws, info = contents(path, saved, saved["draws"], None, "r+")
        return chain_of(saved, draws, info, target)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{beside(path, 'state')} is damaged: {error!r}") from None


def chain_of(saved: Mapping[str, Any], draws: Tensor, info: Any, target: Density | None) -> Chain:
    """Return the chain that a state describes."""
    resume, parameters = saved["resume"], None if target is None else parameters_of(target)
    if (own := saved["parameters"]) is not None:
        if parameters is None:
            parameters = _parameters(own)
        elif parameters.shapes != own["shapes"]:
            raise ValueError(
                f"these are draws of {own['shapes']}, but the target has {parameters.shapes}"
            )
    try:
        kernel = retuned(rebuilt(saved["kernel"]), resume.get("tuned"))
    except ValueError:  # it holds functions, or is not one of this library
        kernel = None
    step_size, warmup = getattr(kernel, "step_size", None), saved["warmup"]
    return Chain(
        draws,
        info,
        named("State", list(resume["state"]), list(resume["state"].values())),
        complete=saved["done"] == saved["n_steps"],
        divergences=saved["divergences"],
        step_size=float(step_size) if isinstance(step_size, float | int) else None,
        resume=resume,
        kernel=kernel,
        target=target,
        failures=saved["failures"],
        warmup=warmup and WarmUp(kernel=kernel, state=None, **rebuilt_values(warmup)),
        start=start_of(saved),
        parameters=parameters,
    )


def kernel_of(path: str | os.PathLike[str]) -> Any:
    """Return the kernel of a run.

    Raises:
        ValueError: If it cannot be created from the contents of the file.
    """
    try:
        return rebuilt(read(path)["kernel"])
    except ValueError as error:
        raise ValueError(f"{error}; pass kernel= again") from None


def start_of(saved: Mapping[str, Any]) -> Start | None:
    """Return where `sample` started."""
    return None if saved["start"] is None else Start(**rebuilt_values(saved["start"]))


def rebuilt_values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain fields as what they were."""
    return {name: rebuilt(value) for name, value in fields.items()}


def plain_start(start: Start | None) -> dict[str, Any] | None:
    """Return what is kept of a start: nothing where the verdict does not ask for it."""
    if start is None or start.mean.shape[1] > HESSIAN:
        return None
    return {name: plain(value) for name, value in start._asdict().items()}


def _parameters(own: Mapping[str, Any]) -> Parameters:
    """Return names and shapes of values, whose constraints are not known here."""
    made = Parameters({f"x{i}": tuple(shape) for i, shape in enumerate(own["shapes"].values())})
    made.slots = dict(zip(own["shapes"], made.slots.values(), strict=True))
    made.__dict__["constant"] = tuple(own["constant"])
    return made
